//! `ftp-alg status` for people: problems, then warnings, the state, the rates, and the totals in groups.
//!
//! Each value has one place. A total that is 0 is left out, except those that say whether the gateway works.

use ftp_alg_core::engine::Count;

use crate::{
    cli::{output::Style, table},
    daemon::{
        counted::counted,
        health::CheckStatus,
        snapshot::{
            ClientBytes, FastPathState, FastPathStatus, NameRow, Problem, Rates, ResultCounts,
            RunningTotals, Status, TransferTotals, WindowCounts,
        },
    },
};

/// Width of the names in a group of totals.
const NAME_WIDTH: usize = 24;
/// How many clients are listed.
const TOP_CLIENTS: usize = 5;
/// Width of the names and of each window in the table of rates.
const RATE_WIDTHS: [usize; 2] = [18, 12];

/// A blank at which no line is broken.
const NO_BREAK: &str = "\u{a0}";

/// The whole text.
pub(super) fn text(status: &Status, style: Style) -> String {
    let parts = [
        findings(&style.red(&CheckStatus::Problem.to_string()), &status.problems, style),
        findings(&style.yellow(&CheckStatus::Warning.to_string()), &status.warnings, style),
        state(status, style),
        rates(&status.rates),
        top_clients(&status.transfers.top_clients),
        totals(status, style),
    ];
    parts.join("").trim_start_matches('\n').to_owned()
}

/// The problems alone.
pub(super) fn problems(all: &[Problem], style: Style) -> String {
    let text = findings(&style.red(&CheckStatus::Problem.to_string()), all, style);
    text.trim_start_matches('\n').to_owned()
}

fn findings(mark: &str, all: &[Problem], style: Style) -> String {
    let finding = |Problem { name, text, remedy }: &Problem| {
        let [text, remedy] = [text, remedy].map(|text| table::wrapped(text, 2, style.text_width()));
        format!("\n{mark} {name}\n  {text}\n  {remedy}\n")
    };
    all.iter().map(finding).collect()
}

/// What the daemon is, and what it does now.
fn state(status: &Status, style: Style) -> String {
    let waiting =
        status.queue_waiting.map(|count| format!(", {} waiting", counted(count, "packet")));
    let now = format!(
        "{}, {} open, {} held{}",
        counted(status.sessions, "session"),
        counted(status.pinholes, "pinhole"),
        table::bytes(status.memory),
        waiting.unwrap_or_default(),
    );
    let rows = [
        ("version", status.version.clone()),
        ("uptime", table::span(status.uptime_seconds)),
        ("back end", format!("{}: {}", status.backend, status.backend_reason)),
    ];
    let rows = rows.into_iter().map(|(name, value)| (name.to_owned(), value));
    let fast_path = fast_path_state(&status.fast_path).into_iter();
    let fast_path = fast_path.map(|line| ("fast path".to_owned(), line));
    let names = status.names.iter().filter_map(|row| Some((row.name.clone(), name_text(row)?)));
    let unconfined = status.unconfined.iter().map(|what| ("unconfined".to_owned(), what.clone()));
    let rows: Vec<_> = rows
        .chain(fast_path)
        .chain([("now".to_owned(), now)])
        .chain(running(&status.running).map(|text| ("running".to_owned(), text)))
        .chain(names)
        .chain(unconfined)
        .collect();
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    let row = |(name, value): &(String, String)| {
        format!("{name:<width$}  {}\n", table::wrapped(value, width + 2, style.text_width()))
    };
    format!("\n{}", rows.iter().map(row).collect::<String>())
}

/// The transfers that have not ended, with bytes and rates that are known. `None` if there are none.
fn running(running: &RunningTotals) -> Option<String> {
    let RunningTotals { bytes_up, bytes_down, bytes_up_per_second, bytes_down_per_second, .. } =
        *running;
    let moved = |(way, bytes, rate): (_, Option<u64>, Option<f64>)| {
        let [bytes, rate] = [bytes?, rate? as u64].map(table::bytes);
        Some(format!(", {bytes} {way} at {rate}/s"))
    };
    let ways = [("up", bytes_up, bytes_up_per_second), ("down", bytes_down, bytes_down_per_second)];
    let text = counted(running.transfers, "transfer");
    (running.transfers > 0).then(|| text + &ways.into_iter().filter_map(moved).collect::<String>())
}

/// Whether the fast path runs, and the interfaces whose connections stay inline.
fn fast_path_state(status: &FastPathStatus) -> Vec<String> {
    match status.state {
        FastPathState::On => {
            let connections = counted(status.connections, "connection");
            let on = format!("on: {}; {connections}", status.attached_to());
            [on].into_iter().chain(status.inline_at()).collect()
        }
        FastPathState::Off => vec![format!("off: {}", status.why)],
    }
}

/// The address of a name, or the error. `None` for a family that the name does not have.
fn name_text(row: &NameRow) -> Option<String> {
    let address = row.address.map(|address| {
        let age =
            row.age_seconds.map_or(String::new(), |age| format!(", {} ago", table::span(age)));
        format!("{address}{age}")
    });
    match (address, &row.error) {
        (Some(address), None) => Some(address),
        (Some(address), Some(error)) => Some(format!("{address}; {error}")),
        (None, Some(error)) => Some(format!("no {} address: {error}", row.family)),
        (None, None) => None,
    }
}

/// The windows with their titles. Of a young daemon, those that cover the same time are one. There is none of a daemon
/// that counts no rates.
pub(in crate::cli) fn windows(rates: &Rates) -> Vec<(String, WindowCounts)> {
    let Rates { ten_seconds, minute, hour } = *rates;
    let mut windows: Vec<(String, WindowCounts)> = Vec::new();
    for (nominal, window) in [(10, ten_seconds), (60, minute), (3600, hour)] {
        if windows.last().is_some_and(|(_, last)| last.seconds == window.seconds) {
            windows.pop();
        }
        windows.push((window_title(nominal, window.seconds), window));
    }
    windows.retain(|(_, window)| window.seconds > 0.0);
    windows
}

/// The table of rates.
fn rates(rates: &Rates) -> String {
    let windows = windows(rates);
    if windows.is_empty() {
        return String::new();
    }
    let [name_width, width] = RATE_WIDTHS;
    let row = |name: &str, cells: &mut dyn Iterator<Item = String>| {
        let cells: String = cells.map(|cell| format!("{cell:>width$}")).collect();
        format!("{name:<name_width$}{cells}\n")
    };
    let mut text =
        format!("\n{}", row("in the last", &mut windows.iter().map(|one| one.0.clone())));
    let mut add = |name: &str, cell: fn(&WindowCounts) -> Option<String>| {
        let cells: Option<Vec<_>> = windows.iter().map(|(_, window)| cell(window)).collect();
        text += &cells.map_or(String::new(), |cells| row(name, &mut cells.into_iter()));
    };
    add("new sessions", |window| Some(table::count(window.sessions)));
    add("transfers ended", |window| window.transfers.map(table::count));
    add("  failed", |window| window.failed_transfers.map(table::count));
    add("  up", |window| window.bytes_up.map(table::bytes));
    add("  down", |window| window.bytes_down.map(table::bytes));
    add("refusals", |window| Some(table::count(window.refusals)));
    add("drops", |window| Some(table::count(window.drops)));
    add("decisions", |window| Some(table::count(window.decisions)));
    text
}

/// The clients that moved most in the last hour.
fn top_clients(clients: &[ClientBytes]) -> String {
    let row = |ClientBytes { client, bytes }: &ClientBytes| {
        format!("  {client:<NAME_WIDTH$}  {}\n", table::bytes(*bytes))
    };
    match clients {
        [] => String::new(),
        clients => {
            let rows: String = clients.iter().take(TOP_CLIENTS).map(row).collect();
            format!("\nmost bytes in the last hour\n{rows}")
        }
    }
}

/// The title of a window of `nominal` seconds: what it covers, unless that is nearly all.
fn window_title(nominal: u64, covered: f64) -> String {
    let is_nearly_all = (covered - nominal as f64).abs() * 10.0 < nominal as f64;
    match nominal {
        _ if !is_nearly_all => table::span(covered.round() as u64),
        10 => "10s".to_owned(),
        60 => "1m".to_owned(),
        _ => "1h".to_owned(),
    }
}

/// A group of totals: the names and texts of its rows.
struct Group {
    heading: &'static str,
    rows: Vec<(&'static str, String)>,
}

impl Group {
    fn new(heading: &'static str) -> Self {
        Self { heading, rows: Vec::new() }
    }

    /// Adds a count.
    fn always(mut self, name: &'static str, count: u64) -> Self {
        self.rows.push((name, count.to_string()));
        self
    }

    /// Adds the counters of this group.
    fn counters(self, status: &Status) -> Self {
        let heading = self.heading;
        let of_group = status.counts().filter(|(described, _)| described.shown[0] == heading);
        of_group.fold(self, |group, (described, count)| match (described.shown[1], count) {
            ("", _) => group,
            (name, Count::Number(count)) if described.is_always_shown => group.always(name, count),
            (name, Count::Number(count)) => group.if_any(name, count),
            (name, Count::Parts(parts)) => group.parts(name, parts),
        })
    }

    /// Adds a count unless it is 0.
    fn if_any(self, name: &'static str, count: u64) -> Self {
        if count == 0 { self } else { self.always(name, count) }
    }

    /// Adds the counts of `parts` that are not 0, as in `3 low port, 2 foreign address`, unless there are none.
    fn parts(
        self,
        name: &'static str,
        parts: impl IntoIterator<Item = (impl AsRef<str>, u64)>,
    ) -> Self {
        let counted = parts.into_iter().filter(|(_, count)| *count > 0);
        let text = |part: &str, count: u64| format!("{count} {}", part.replace(['_', '-'], " "));
        // A count and its name stay in one line.
        let texts = counted.map(|(part, count)| text(part.as_ref(), count).replace(' ', NO_BREAK));
        let text = texts.collect::<Vec<_>>().join(", ");
        if text.is_empty() { self } else { self.text(name, text) }
    }

    fn text(mut self, name: &'static str, text: String) -> Self {
        self.rows.push((name, text));
        self
    }

    fn print(&self, style: Style) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let row = |(name, text): &(&str, String)| {
            let text =
                table::wrapped(text, NAME_WIDTH + 2, style.text_width()).replace(NO_BREAK, " ");
            format!("  {name:<NAME_WIDTH$}{text}\n")
        };
        format!("{}\n{}", style.bold(self.heading), self.rows.iter().map(row).collect::<String>())
    }
}

fn totals(status: &Status, style: Style) -> String {
    let counted = |heading| Group::new(heading).counters(status);
    let groups = [
        counted("sessions"),
        counted("announcements and commands"),
        of_transfers(status),
        counted("pinholes"),
        counted("packets"),
        of_the_fast_path(status).counters(status),
        counted("daemon"),
    ];
    let age = table::span(status.uptime_seconds);
    let groups: String = groups.iter().map(|group| group.print(style)).collect();
    format!("\ntotals since this daemon started, {age} ago\n\n{groups}")
}

/// The transfers, if the daemon reports them.
fn of_transfers(status: &Status) -> Group {
    let TransferTotals { active, passive, unknown, bytes_up, bytes_down, lost, unwritten, .. } =
        status.transfers;
    let of_all = TransferTotals { servers: Vec::new(), ..status.transfers.clone() };
    let group = Group::new("transfers");
    let results = |counts: ResultCounts| counts.by_result();
    let Rates { hour, .. } = status.rates;
    match hour.transfers {
        None if hour.seconds > 0.0 => {
            group.text("not reported", "log.transfers is false".to_owned())
        }
        None => group,
        Some(_) if of_all == TransferTotals::default() => group.always("ended", 0),
        Some(_) => group
            .parts("active", results(active))
            .parts("passive", results(passive))
            .parts("of unknown mode", results(unknown))
            .text("up", table::bytes(bytes_up))
            .text("down", table::bytes(bytes_down))
            .if_any("not reported", lost)
            .if_any("missing in the file", unwritten),
    }
}

/// The fast path's totals, if it is on or has any: it may be turned off while the daemon runs.
fn of_the_fast_path(status: &Status) -> Group {
    let FastPathStatus { lines, handed_back, opened, admitted, no_room, .. } = status.fast_path;
    let group = Group::new("fast path");
    let counts = [lines, handed_back, opened, admitted, no_room];
    let is_used = status.fast_path.state == FastPathState::On || counts.iter().any(|n| *n > 0);
    match is_used {
        true => group
            .always("lines inspected", lines)
            .always("connections taken back", handed_back)
            .always("pinholes opened", opened)
            .always("pinholes consumed", admitted)
            .if_any("ring buffer full", no_room),
        false => group,
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
