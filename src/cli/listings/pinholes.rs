//! `ftp-alg pinholes`: the table of pinholes.

use std::net::{IpAddr, SocketAddr};

use clap::{Args, ValueEnum};

use super::ListOptions;
use crate::{
    cli::{
        Failure,
        columns::{self, Column},
        output::Style,
        selection::{Endpoints, Selection, Subject},
        table,
    },
    daemon::snapshot::PinholeRow,
};

#[derive(Args, Debug)]
pub(in crate::cli) struct PinholeOptions {
    #[command(flatten)]
    list: ListOptions<SortColumn>,
    #[command(flatten)]
    selection: Selection,
    /// Only pinholes at this port, of ARRIVAL or of its translation
    #[arg(long, value_name = Endpoints::FORM, value_parser = Endpoints::parse)]
    port: Option<Endpoints>,
}

/// The columns by which pinholes can be sorted.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum SortColumn {
    Session,
    Kind,
    /// The first to expire first
    Left,
    Initiator,
    Arrival,
    Client,
    Server,
    User,
}

/// What a row is sorted by: only one of them differs.
type Key = (Option<(IpAddr, u16)>, u64, Option<String>);

impl PinholeOptions {
    /// Prints the selected pinholes.
    pub fn run(&self) -> Result<(), Failure> {
        let order = (|row: &PinholeRow| row.session, key);
        let text = |rows: &[PinholeRow], style: Style| text(rows, style) + &self.hint(rows);
        self.list.print("pinholes", |row| self.selects(row), order, text)
    }

    /// Where the pinhole of a port is if it is not open any more.
    fn hint(&self, rows: &[PinholeRow]) -> String {
        let port = self.port.filter(|_| rows.is_empty());
        port.map_or_else(String::new, |port| format!("used ones: ftp-alg events --port {port}\n"))
    }

    fn selects(&self, row: &PinholeRow) -> bool {
        let subject = Subject {
            client: row.client.map(|client| client.ip()),
            server: row.server.map(|server| server.ip()),
            user: row.user.as_deref(),
            session: Some(row.session),
        };
        let is_at = |wanted: Endpoints| wanted.contains(row.arrival) || wanted.contains(row.target);
        self.port.is_none_or(is_at) && self.selection.selects(subject)
    }
}

fn key(row: &PinholeRow, by: SortColumn) -> Key {
    let end = |end: SocketAddr| (end.ip(), end.port());
    let endpoint = |end: Option<(IpAddr, u16)>| (end, 0, None);
    let text = |text: Option<String>| (None, 0, text);
    match by {
        SortColumn::Session => (None, 0, None), // they are
        SortColumn::Kind => text(Some(row.kind.to_string())),
        SortColumn::Left => (None, row.remaining_seconds, None),
        SortColumn::Initiator => endpoint(Some((row.initiator, 0))),
        SortColumn::Arrival => endpoint(Some(end(row.arrival))),
        SortColumn::Client => endpoint(row.client.map(end)),
        SortColumn::Server => endpoint(row.server.map(end)),
        SortColumn::User => text(row.user.clone()),
    }
}

const COLUMNS: [Column; 8] = [
    Column::new(">SESSION"),
    Column::new("KIND"),
    Column::new(">LEFT"),
    Column::new("INITIATOR").shrinking(),
    Column::new("ARRIVAL").shrinking(),
    Column::new("USER").optional().shrinking(),
    Column::new("CLIENT").optional().shrinking(),
    Column::new("SERVER").optional().shrinking(),
];

/// The table of `ftp-alg pinholes`.
pub(super) fn text(pinholes: &[PinholeRow], style: Style) -> String {
    if pinholes.is_empty() {
        return "no pinholes\n".to_owned();
    }
    columns::render(&COLUMNS, &pinholes.iter().flat_map(rows).collect(), style)
}

/// The row of a pinhole, and a second row with its translations if there is one.
fn rows(row: &PinholeRow) -> impl Iterator<Item = Vec<String>> {
    let end = |end: Option<SocketAddr>| end.map(|end| end.to_string()).unwrap_or_default();
    let own = vec![
        row.session.to_string(),
        row.kind.to_string(),
        table::span(row.remaining_seconds),
        row.initiator.to_string(),
        row.arrival.to_string(),
        row.user.clone().unwrap_or_default(),
        end(row.client),
        end(row.server),
    ];
    let mut translated = vec![String::new(); 5];
    if row.source != row.initiator {
        translated[3] = format!("as {}", row.source);
    }
    if row.target != row.arrival {
        translated[4] = format!("to {}", row.target);
    }
    let is_translated = translated.iter().any(|cell| !cell.is_empty());
    [own].into_iter().chain(is_translated.then_some(translated))
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser as _;
    use ftp_alg_core::ftp::AnnouncementKind;

    use super::*;
    use crate::cli::output::PLAIN;

    pub fn row(source: &str, target: &str) -> PinholeRow {
        PinholeRow {
            session: 7,
            client: "192.168.150.80:1026".parse().ok(),
            server: "203.0.113.9:21".parse().ok(),
            user: Some("bob".into()),
            initiator: "203.0.113.9".parse().unwrap(),
            arrival: "198.51.100.1:3762".parse().unwrap(),
            target: target.parse().unwrap(),
            source: source.parse().unwrap(),
            kind: AnnouncementKind::Port,
            remaining_seconds: 29,
        }
    }

    #[test]
    fn translation_is_shown_in_a_second_row() {
        let rows =
            [row("203.0.113.9", "192.168.150.80:3762"), row("10.0.0.1", "198.51.100.1:3762")];
        let expected = "\
SESSION  KIND  LEFT  INITIATOR    ARRIVAL
      7  PORT   29s  203.0.113.9  198.51.100.1:3762
                                  to 192.168.150.80:3762
      7  PORT   29s  203.0.113.9  198.51.100.1:3762
                     as 10.0.0.1
";
        assert_eq!(text(&rows, PLAIN), expected);
        let wide = text(&rows, Style { width: Some(120), has_colours: false });
        assert!(
            wide.contains("ARRIVAL                 USER  CLIENT               SERVER\n"),
            "{wide}"
        );
    }

    fn options(arguments: &str) -> PinholeOptions {
        #[derive(clap::Parser)]
        struct Test {
            #[command(flatten)]
            options: PinholeOptions,
        }
        let words = ["pinholes"].into_iter().chain(arguments.split_whitespace());
        Test::try_parse_from(words).unwrap().options
    }

    #[test]
    fn a_pinhole_is_found_by_its_port_and_by_its_session() {
        let row = row("203.0.113.9", "192.168.150.80:1234");
        for (arguments, expected) in [
            ("", true),
            ("--port 3762", true),
            ("--port 1234", true),
            ("--port 21", false),
            ("--port 198.51.100.1:3762", true),
            ("--port 192.168.150.80:1234", true),
            ("--port 192.0.2.99:3762", false),
            ("--session 7 --client 192.168.0.0/16 --server 203.0.113.9 --user bob", true),
            ("--session 8", false),
            ("--user eve", false),
        ] {
            assert_eq!(options(arguments).selects(&row), expected, "{arguments}");
        }
    }

    #[test]
    fn a_port_without_a_pinhole_has_a_hint_at_its_events() {
        let row = row("203.0.113.9", "192.168.150.80:1234");
        let hint = "used ones: ftp-alg events --port 50069\n";
        assert_eq!(options("--port 50069").hint(&[]), hint);
        assert_eq!(options("--port 50069").hint(&[row]), "");
        assert_eq!(options("").hint(&[]), "");
    }
}
