//! The text of `replay` for people: a line for each note, and a summary.

use std::net::IpAddr;

use ftp_alg_core::engine::{Decision, Event};

use crate::{
    cli::{
        columns::{self, Cell, Column},
        output::PLAIN,
        table,
    },
    config::escaped,
    replay::{AnnouncementRow, FramePosition, Summary},
};

/// The width of the longest IPv4 endpoint.
const ENDPOINT_WIDTH: usize = 21;
/// The width to which a column grows: that of the longest IPv6 endpoint.
const MAX_WIDTH: usize = 47;
/// How many reasons the summary lists.
const MAX_REASONS: usize = 10;

/// The columns before the reason: title, least width, and whether the cells are numbers. A column grows with its first
/// wider cell.
const COLUMNS: [(&str, usize, bool); 7] = [
    ("FRAME", 5, true),
    ("SESSION", 7, true),
    ("FROM", 6, false),
    ("KIND", 4, false),
    ("ANNOUNCED", ENDPOINT_WIDTH, false),
    ("ACTION", 7, false),
    ("REWRITTEN", 9, false),
];

/// The table of announcements and of what happened in sessions, whose rows come one at a time.
pub(super) struct NoteTable {
    columns: Vec<(&'static str, usize, bool)>,
    /// The names of the captures, if there are several.
    captures: Vec<String>,
    has_rows: bool,
}

impl NoteTable {
    /// A table for `captures`, and for a NAT with the address `external`.
    pub fn new(captures: &[&str], external: Option<IpAddr>) -> Self {
        let captures: Vec<String> = match captures {
            [_] => Vec::new(),
            several => several.iter().map(|name| escaped(name)).collect(),
        };
        let mut columns = COLUMNS.to_vec();
        if external.is_some() {
            columns[6].1 = ENDPOINT_WIDTH;
        }
        if !captures.is_empty() {
            let widest = captures.iter().map(|name| name.chars().count()).max().unwrap_or(0);
            columns.insert(0, ("FILE", widest.max(4), false));
        }
        Self { columns, captures, has_rows: false }
    }

    /// Whether nothing was formatted yet.
    pub fn is_empty(&self) -> bool {
        !self.has_rows
    }

    /// The line of an announcement.
    pub fn announcement(&mut self, row: &AnnouncementRow) -> String {
        let unread =
            || row.unread_line.as_ref().map_or("-".to_owned(), |said| format!("\"{said}\""));
        let cells = [
            row.from.to_owned(),
            row.kind.to_string(),
            row.announced.clone().unwrap_or_else(unread),
            row.action.to_owned(),
            row.rewritten.clone().unwrap_or_else(|| "-".to_owned()),
        ];
        self.row((row.capture, row.frame, row.session), cells, &row.reason)
    }

    /// The line of what happened in a session.
    pub fn session(&mut self, position: FramePosition, event: &Event) -> String {
        self.row((position.capture, position.frame, event.session), [], &event.text())
    }

    fn row<const CELLS: usize>(
        &mut self,
        (capture, frame, session): (usize, u64, u64),
        cells: [String; CELLS],
        text: &str,
    ) -> String {
        let header = if self.has_rows {
            String::new()
        } else {
            let titles = self.columns.iter().map(|(title, ..)| (*title).to_owned()).collect();
            self.line(titles, "REASON")
        };
        self.has_rows = true;
        let name = self.captures.get(capture).cloned();
        let first = name.into_iter().chain([frame.to_string(), session.to_string()]);
        header + &self.line(first.chain(cells).collect(), text)
    }

    /// A line of the first columns' `cells`. The text takes the place of the other columns.
    fn line(&mut self, cells: Vec<String>, text: &str) -> String {
        let mut line = String::new();
        for (cell, (_, width, are_numbers)) in cells.iter().zip(&mut self.columns) {
            *width = cell.chars().count().min(MAX_WIDTH).max(*width);
            let width = *width;
            line += &match are_numbers {
                true => format!("{cell:>width$}  "),
                false => format!("{cell:<width$}  "),
            };
        }
        format!("{}\n", (line + text).trim_end())
    }
}

/// The summary at the end.
pub(super) fn summary(summary: &Summary) -> String {
    let mut sums = [0; 4];
    for counts in summary.announcements.values() {
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    let mut items = vec![
        ("packets".to_owned(), summary.packets.to_string()),
        ("of control connections".to_owned(), summary.control_packets.to_string()),
        ("sessions".to_owned(), summary.sessions.to_string()),
        ("encrypted".to_owned(), summary.encrypted.to_string()),
        ("announcements".to_owned(), by_action(&sums)),
    ];
    let kinds = summary.announcements.iter();
    items.extend(kinds.map(|(kind, counts)| (format!("  {kind}"), by_action(counts))));
    if !summary.transfers.is_empty() {
        items.push(("transfers".to_owned(), by_result(summary)));
    }
    items.push(("malformed".to_owned(), summary.malformed.to_string()));
    for (name, number) in [
        ("dropped by the kernel", summary.dropped),
        ("not IP", summary.not_ip),
        ("captured in part", summary.incomplete),
        ("gaps", summary.gaps),
        ("not followed to the end", summary.lost),
        ("inside only", summary.inside_only),
        ("not reported", summary.omitted),
    ] {
        if number > 0 {
            items.push((name.to_owned(), number.to_string()));
        }
    }
    if summary.wrong_checksums > 0 {
        let read = format!("{}, read all the same", summary.wrong_checksums);
        items.push(("wrong checksum".to_owned(), read));
    }
    if let Some(written) = summary.written {
        items.push(("written".to_owned(), written.to_string()));
    }
    table::list(&items, 0, 0, usize::MAX) + &reasons(summary)
}

fn by_result(Summary { transfers, bytes: [up, down], .. }: &Summary) -> String {
    let parts: Vec<String> =
        transfers.iter().map(|(result, count)| format!("{result} {count}")).collect();
    let all: u64 = transfers.values().sum();
    format!("{all}: {}; {up} B up, {down} B down", parts.join(", "))
}

fn by_action(counts: &[u64; 4]) -> String {
    let parts = Decision::ACTIONS.iter().zip(counts);
    let parts: Vec<String> = parts.map(|(action, count)| format!("{action} {count}")).collect();
    format!("{}: {}", counts.iter().sum::<u64>(), parts.join(", "))
}

/// A number, an action and a reason.
type Reason = (u64, &'static str, String);

const REASONS: [Column<Reason>; 3] = [
    Column::new("COUNT", |(count, ..): &Reason| Cell::count(*count)).right(),
    Column::new("ACTION", |(_, action, _)| Cell::text(action)),
    Column::new("REASON", |(.., reason)| Cell::text(reason)),
];

/// Why announcements and other commands were not forwarded, or opened nothing; the most frequent reason first.
fn reasons(summary: &Summary) -> String {
    let mut reasons: Vec<_> = summary.reasons.iter().collect();
    if reasons.is_empty() {
        return String::new();
    }
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let (listed, rest) = reasons.split_at(reasons.len().min(MAX_REASONS));
    let others = summary.other_reasons + rest.iter().map(|(_, count)| **count).sum::<u64>();
    let mut rows: Vec<Reason> =
        listed.iter().map(|((action, reason), count)| (**count, *action, reason.clone())).collect();
    if others > 0 {
        rows.push((others, "-", "other reasons".to_owned()));
    }
    format!("\n{}", columns::render(&REASONS, &rows, PLAIN, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_lists_the_most_frequent_reasons() {
        let mut report = Summary { other_reasons: 3, ..Summary::default() };
        for number in 0..12 {
            report.reasons.insert(("refuse", format!("reason {number:02}")), 20 - number);
        }
        let text = summary(&report);
        let lines: Vec<&str> = text.lines().skip_while(|line| !line.is_empty()).skip(1).collect();
        assert_eq!(lines.len(), 12, "{text}");
        assert_eq!(lines[0], "COUNT  ACTION  REASON");
        assert_eq!(lines[1], "   20  refuse  reason 00");
        assert_eq!(lines[11], "   22  -       other reasons");
    }
}
