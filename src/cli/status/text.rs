//! `ftp-alg status` for people: problems, then warnings, the state, the rates, and the totals in groups.
//!
//! Each value has one place. A total that is 0 is left out, except those that say whether the gateway works.

use ftp_alg_core::engine::{Count, CounterDescription};

use crate::{
    cli::{output::Style, table},
    daemon::{
        counted::counted,
        health::CheckStatus,
        snapshot::{
            ClientBytes, FastPathState, FastPathStatus, Findings, NameRow, PairStatus, Problem,
            Rates, RunningTotals, Severity, Status, TransferTotals, WindowCounts,
        },
    },
};

/// Least width of the names in a group of totals.
const NAME_WIDTH: usize = 22;
/// How many clients are listed.
const TOP_CLIENTS: usize = 5;
/// Width of the names and of each window in the table of rates.
const RATE_WIDTHS: [usize; 2] = [18, 12];

/// A blank at which no line is broken.
const NO_BREAK: &str = "\u{a0}";

/// The whole text.
pub(super) fn text(status: &Status, style: Style) -> String {
    let parts = [
        findings(&status.findings, style),
        state(status, style),
        rates(&status.rates),
        top_clients(&status.transfers.top_clients),
        totals(status, style),
    ];
    parts.join("").trim_start_matches('\n').to_owned()
}

/// All problems, then all warnings.
pub(super) fn findings(findings: &Findings, style: Style) -> String {
    let finding = |(severity, problem): (Severity, &Problem)| {
        let Problem { name, text, remedy, since, last } = problem;
        let mark = CheckStatus::from(severity).to_string();
        let mark = match severity {
            Severity::Problem => style.red(&mark),
            Severity::Warning => style.yellow(&mark),
        };
        let [text, remedy] = [text, remedy].map(|text| table::wrapped(text, 2, style.text_width()));
        let times = since.as_ref().zip(last.as_ref());
        let times = times.map(|(since, last)| format!("  since {since}, last seen {last}\n"));
        format!("{mark} {name}\n  {text}\n  {remedy}\n{}", times.unwrap_or_default())
    };
    findings.iter().map(finding).collect::<Vec<_>>().join("\n")
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
        ("host", status.host.clone()),
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
        .chain(status.pair.iter().map(|pair| ("pair".to_owned(), pair_text(pair))))
        .chain([("now".to_owned(), now)])
        .chain(running(&status.running).map(|text| ("running".to_owned(), text)))
        .chain(names)
        .chain(unconfined)
        .collect();
    format!("\n{}", table::list(&rows, 0, 0, style.text_width()))
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

/// The role of this gateway, and what it knows of the other one.
fn pair_text(pair: &PairStatus) -> String {
    let store = match pair.store.as_str() {
        "ok" if pair.lag.is_none() => "not connected",
        store => store,
    };
    let (role, since) = (&pair.role, table::span(pair.since_seconds));
    let behind = counted(pair.shards_behind, "shard");
    let other = pair.peer_version.as_deref().unwrap_or("not seen");
    format!("{role} for {since}; store: {store}, {behind} behind; other gateway: {other}")
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

/// The windows with their titles. Windows of a young daemon that cover the same time become one. Empty if the daemon
/// counts no rates.
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

/// What is counted in each window: the name here, the title in `top`, the count if it is known, and whether it is of bytes.
pub(in crate::cli) type Rate = (&'static str, &'static str, fn(&WindowCounts) -> Option<u64>, bool);
pub(in crate::cli) const RATES: [Rate; 8] = [
    ("new sessions", "SESSIONS", |window| Some(window.sessions), false),
    ("transfers ended", "TRANSFERS", |window| window.transfers, false),
    ("  failed", "FAILED", |window| window.failed_transfers, false),
    ("  up", "UP/s", |window| window.bytes_up, true),
    ("  down", "DOWN/s", |window| window.bytes_down, true),
    ("refusals", "REFUSED", |window| Some(window.refusals), false),
    ("drops", "DROPS", |window| Some(window.drops), false),
    ("decisions", "DECIDED", |window| Some(window.decisions), false),
];

/// The table of rates, without what is not known.
fn rates(rates: &Rates) -> String {
    let windows = windows(rates);
    if windows.is_empty() {
        return String::new();
    }
    let [name_width, width] = RATE_WIDTHS;
    let row = |name: &str, cells: Vec<String>| {
        let cells: String = cells.iter().map(|cell| format!("{cell:>width$}")).collect();
        format!("{name:<name_width$}{cells}\n")
    };
    let rate = |(name, _, count, are_bytes): &Rate| {
        let text = if *are_bytes { table::bytes } else { table::count };
        let cells = windows.iter().map(|(_, window)| count(window).map(text));
        Some(row(name, cells.collect::<Option<_>>()?))
    };
    let titles = windows.iter().map(|(title, _)| title.clone()).collect();
    format!("\n{}", row("in the last", titles)) + &RATES.iter().filter_map(rate).collect::<String>()
}

/// The clients that moved most in the last hour.
fn top_clients(clients: &[ClientBytes]) -> String {
    if clients.is_empty() {
        return String::new();
    }
    let first = clients.iter().take(TOP_CLIENTS);
    let rows: Vec<_> = first.map(|one| (&one.client, table::bytes(one.bytes))).collect();
    format!("\nmost bytes in the last hour\n{}", table::list(&rows, 2, NAME_WIDTH, usize::MAX))
}

/// The title of a window of `nominal` seconds: the time that it covers, unless it covers nearly all.
fn window_title(nominal: u64, covered: f64) -> String {
    let is_nearly_all = (covered - nominal as f64).abs() * 10.0 < nominal as f64;
    match nominal {
        _ if !is_nearly_all => table::span(covered.round() as u64),
        10 => "10s".to_owned(),
        60 => "1m".to_owned(),
        _ => "1h".to_owned(),
    }
}

/// A total: its name and its text.
type Total = (&'static str, String);

/// A count, unless it is 0.
fn if_any((name, count): (&'static str, u64)) -> Option<Total> {
    (count > 0).then(|| (name, count.to_string()))
}

/// The counts of `parts` that are not 0, as in `3 low port, 2 foreign address`, unless there are none.
fn parts(
    name: &'static str,
    parts: impl IntoIterator<Item = (impl AsRef<str>, u64)>,
) -> Option<Total> {
    let counted = parts.into_iter().filter(|(_, count)| *count > 0);
    let text = |part: &str, count: u64| format!("{count} {}", part.replace(['_', '-'], " "));
    // A count and its name stay in one line.
    let texts = counted.map(|(part, count)| text(part.as_ref(), count).replace(' ', NO_BREAK));
    let text = texts.collect::<Vec<_>>().join(", ");
    (!text.is_empty()).then_some((name, text))
}

/// The counters of a group.
fn counters(status: &Status, heading: &str) -> Vec<Total> {
    let of_group = status.counts().filter(|(described, _)| described.shown[0] == heading);
    let total = |(described, count): (&CounterDescription, Count)| match (described.shown[1], count)
    {
        ("", _) => None,
        (name, Count::Number(count)) if described.is_always_shown => {
            Some((name, count.to_string()))
        }
        (name, Count::Number(count)) => if_any((name, count)),
        (name, Count::Parts(all)) => parts(name, all),
    };
    of_group.filter_map(total).collect()
}

fn totals(status: &Status, style: Style) -> String {
    let group = |heading| {
        let totals = match heading {
            "transfers" => of_transfers(status),
            heading => counters(status, heading),
        };
        let rows = table::list(&totals, 2, NAME_WIDTH, style.text_width()).replace(NO_BREAK, " ");
        if rows.is_empty() { rows } else { format!("{}\n{rows}", style.bold(heading)) }
    };
    let age = table::span(status.uptime_seconds);
    let mut headings = vec!["transfers"];
    for (CounterDescription { shown: [heading, _], .. }, _) in status.counts() {
        if !headings.contains(heading) {
            headings.push(heading);
        }
    }
    let groups: String = headings.into_iter().map(group).collect();
    format!("\ntotals since this daemon started, {age} ago\n\n{groups}")
}

/// The transfers, if the daemon reports them.
fn of_transfers(status: &Status) -> Vec<Total> {
    let all = &status.transfers;
    let of_all = TransferTotals { servers: Vec::new(), ..all.clone() };
    let Rates { hour, .. } = status.rates;
    match hour.transfers {
        None if hour.seconds > 0.0 => vec![("not reported", "log.transfers is false".to_owned())],
        None => Vec::new(),
        Some(_) if of_all == TransferTotals::default() => vec![("ended", "0".to_owned())],
        Some(_) => {
            let modes = [
                parts("active", all.active.by_result()),
                parts("passive", all.passive.by_result()),
                parts("of unknown mode", all.unknown.by_result()),
            ];
            let bytes = [("up", all.bytes_up), ("down", all.bytes_down)]
                .map(|(way, bytes)| Some((way, table::bytes(bytes))));
            let missing =
                [("not reported", all.lost), ("missing in the file", all.unwritten)].map(if_any);
            modes.into_iter().chain(bytes).chain(missing).flatten().collect()
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
