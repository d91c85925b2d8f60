//! `ftp-alg sessions`: the table of sessions.

use std::{
    cmp::Reverse,
    net::{IpAddr, SocketAddr},
};

use clap::{Args, ValueEnum};

use super::{ListOptions, detail, moved_text, subject, transfer_text};
use crate::{
    cli::{
        Failure,
        columns::{self, Column},
        output::Style,
        selection::Selection,
        table,
    },
    daemon::snapshot::{SessionRow, SessionSummary},
};

#[derive(Args, Debug)]
pub(in crate::cli) struct SessionOptions {
    #[command(flatten)]
    list: ListOptions<SortColumn>,
    #[command(flatten)]
    selection: Selection,
}

/// The columns by which sessions can be sorted.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum SortColumn {
    Id,
    Client,
    Server,
    State,
    /// The oldest first
    Age,
    Adj,
    /// The most open pinholes first
    Open,
    User,
    /// The most bytes of the running transfer first
    Bytes,
    /// The fastest transfer first
    Rate,
    Transfer,
    /// Those on the fast path first
    Fast,
    /// The most bytes of all transfers first
    Total,
}

/// What a row is sorted by: only one of them differs.
type Key = (Option<(IpAddr, u16)>, Reverse<u64>, Option<String>);

impl SessionOptions {
    /// Prints the selected sessions, or one in detail if it is selected by its number.
    pub fn run(&self) -> Result<(), Failure> {
        if let Some(id) = self.selection.session {
            return detail::print(id, &self.selection, self.list.json, &self.list.socket);
        }
        let selects = |row: &SessionRow| self.selection.selects(subject(&row.summary));
        self.list.print("sessions", selects, (|row: &SessionRow| row.summary.id, key), text)
    }
}

fn key(row: &SessionRow, by: SortColumn) -> Key {
    let SessionSummary { client, server, state, age_seconds, adjusted, .. } = &row.summary;
    let endpoint = |end: &SocketAddr| (Some((end.ip(), end.port())), Reverse(0), None);
    let number = |number: u64| (None, Reverse(number), None);
    let text = |text: Option<String>| (None, Reverse(0), text);
    let transfer = row.summary.transfer.as_ref();
    match by {
        SortColumn::Id => (None, Reverse(0), None), // they are
        SortColumn::Client => endpoint(client),
        SortColumn::Server => endpoint(server),
        SortColumn::State => text(Some(state.clone())),
        SortColumn::Age => number(*age_seconds),
        SortColumn::Adj => number(u64::from(*adjusted)),
        SortColumn::Open => number(row.pinholes),
        SortColumn::User => text(row.summary.user.clone()),
        SortColumn::Bytes => number(transfer.and_then(|one| one.bytes).unwrap_or(0)),
        SortColumn::Rate => {
            number(transfer.and_then(|one| one.bytes_per_second).unwrap_or(0.0) as u64)
        }
        SortColumn::Total => number(row.summary.bytes.unwrap_or(0)),
        SortColumn::Fast => number(u64::from(row.summary.fast_path)),
        SortColumn::Transfer => text(transfer.map(transfer_text)),
    }
}

const COLUMNS: [Column; 13] = [
    Column::new(">ID"),
    Column::new("CLIENT").shrinking(),
    Column::new("SERVER").shrinking(),
    Column::new("STATE"),
    Column::new(">AGE"),
    Column::new("ADJ"),
    Column::new(">OPEN"),
    Column::new("USER").optional().shrinking(),
    Column::new(">BYTES").optional(),
    Column::new(">RATE").optional(),
    Column::new("TRANSFER").optional().shrinking(),
    Column::new("FAST").optional(),
    Column::new(">TOTAL").optional(),
];

/// The table of `ftp-alg sessions`.
fn text(sessions: &[SessionRow], style: Style) -> String {
    if sessions.is_empty() {
        return "no sessions\n".to_owned();
    }
    columns::render(&COLUMNS, &sessions.iter().flat_map(rows).collect(), style)
}

/// The row of a session, and a second row with external endpoints if there is one.
fn rows(row: &SessionRow) -> impl Iterator<Item = Vec<String>> {
    let session = &row.summary;
    let unknown = || ["-".to_owned(), "-".to_owned()];
    let moved = session.transfer.as_ref().map(|one| moved_text(one).unwrap_or_else(unknown));
    let [bytes, rate] = moved.unwrap_or_default();
    let own = vec![
        session.id.to_string(),
        session.client.to_string(),
        session.server.to_string(),
        session.state.clone(),
        table::span(session.age_seconds),
        yes_or_no(session.adjusted),
        row.pinholes.to_string(),
        session.user.clone().unwrap_or_default(),
        bytes,
        rate,
        session.transfer.as_ref().map(transfer_text).unwrap_or_default(),
        yes_or_no(session.fast_path),
        session.bytes.map_or_else(|| "-".to_owned(), table::bytes),
    ];
    let client = external_text(session.client, session.client_external);
    let server = external_text(session.server, session.server_external);
    let has_external = !(client.is_empty() && server.is_empty());
    let external = has_external.then(|| vec!["as".to_owned(), client, server]);
    [own].into_iter().chain(external)
}

fn yes_or_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

fn external_text(own: SocketAddr, external: SocketAddr) -> String {
    if own == external { String::new() } else { external.to_string() }
}

#[cfg(test)]
mod tests {
    use super::{super::samples::summary, *};
    use crate::cli::output::PLAIN;

    fn session(
        client: &str,
        client_external: &str,
        server: &str,
        server_external: &str,
    ) -> SessionRow {
        let summary = summary(client, client_external, server, server_external);
        SessionRow { summary, pinholes: 1 }
    }

    #[test]
    fn external_endpoint_is_shown_in_a_second_row() {
        let (client, server) = ("10.0.0.5:4000", "203.0.113.9:21");
        let rows = [
            session(client, "198.51.100.1:4000", server, server),
            session(client, client, server, "198.51.100.1:2121"),
            session(client, client, server, server),
        ];
        let text = text(&rows, PLAIN);
        let lines: Vec<&str> = text.lines().collect();
        let line = " 7  10.0.0.5:4000      203.0.113.9:21     logged-in  1m 5s  yes     1";
        assert_eq!(lines[1], line);
        assert_eq!(lines[2], "as  198.51.100.1:4000");
        assert_eq!(lines[4], "as                     198.51.100.1:2121");
        assert_eq!(lines.len(), 6, "{text}");
    }

    #[test]
    fn longest_ipv4_row_has_80_columns_and_more_width_shows_more() {
        let (client, server) = ("192.168.150.180:50000", "203.113.113.113:21");
        let mut row = session(client, "198.151.100.100:50000", server, "192.168.100.100:21");
        row.summary.id = 999_999;
        row.summary.age_seconds = 3599;
        row.summary.transfer = Some(crate::daemon::snapshot::TransferProgress {
            verb: "RETR".into(),
            path: "/pub/report.csv".into(),
            seconds: 3,
            started: true,
            bytes: None,
            bytes_per_second: None,
        });
        let width = |text: String| text.lines().map(|line| line.chars().count()).max();
        assert_eq!(width(text(&[row.clone()], PLAIN)), Some(80));
        let at = |width| text(&[row.clone()], Style { width: Some(width), has_colours: false });
        assert_eq!(at(80), text(&[row.clone()], PLAIN));
        assert!(!at(85).contains("bob") && at(86).contains("bob"), "{}", at(86));
        assert!(at(150).contains("      -     -  RETR /pub/report.csv  no"), "{}", at(150));
        let ends = ["[2001:db8:1111:2222:3333:4444:5555:6666]:50000"; 2];
        let long = session(ends[0], ends[0], ends[1], ends[1]);
        for columns in [80, 100, 132, 200] {
            let style = Style { width: Some(columns), has_colours: false };
            let lines = text(&[row.clone(), long.clone()], style);
            assert!(width(lines.clone()) <= Some(columns), "{columns}:\n{lines}");
        }
    }

    #[test]
    fn sessions_are_sorted_by_a_column() {
        let end = "10.0.0.10:4000";
        let mut sessions = [session(end, end, end, end), session("10.0.0.9:4000", end, end, end)];
        let (first, second) = sessions.split_at_mut(1);
        let (first, second) = (&mut first[0].summary, &mut second[0].summary);
        (first.age_seconds, second.age_seconds) = (5, 700);
        (first.state, second.state) = ("login".into(), "logged-in".into());
        (first.user, second.user) = (Some("bob".into()), None);
        (first.adjusted, second.adjusted) = (false, true);
        for by in [
            SortColumn::Client,
            SortColumn::Age,
            SortColumn::State,
            SortColumn::User,
            SortColumn::Adj,
        ] {
            assert!(key(&sessions[1], by) < key(&sessions[0], by), "{by:?}");
        }
        for by in [SortColumn::Id, SortColumn::Server, SortColumn::Transfer] {
            assert!(key(&sessions[1], by) == key(&sessions[0], by), "{by:?}");
        }
    }

    #[test]
    fn empty_list_is_printed_in_words() {
        assert_eq!(text(&[], PLAIN), "no sessions\n");
    }
}
