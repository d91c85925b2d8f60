//! `ftp-alg pinholes`: the table of pinholes.

use clap::{Args, builder::PossibleValuesParser};
use ftp_alg_core::engine::PinholeEnds;

use super::ListOptions;
use crate::{
    cli::{
        Failure,
        columns::{self, Cell, Column, Cut},
        selection::{Endpoints, Selection, Subject},
    },
    daemon::snapshot::PinholeRow,
};

#[derive(Args, Debug)]
pub(in crate::cli) struct PinholeOptions {
    /// Sort by this column: LEFT from the first to expire
    #[arg(long, value_name = "COLUMN", ignore_case = true, value_parser = PossibleValuesParser::new(columns::titles(&COLUMNS)))]
    sort: Option<String>,
    #[command(flatten)]
    list: ListOptions,
    #[command(flatten)]
    selection: Selection,
    /// Only pinholes at this port, of ARRIVAL or of its translation
    #[arg(long, value_name = Endpoints::FORM, value_parser = Endpoints::parse)]
    port: Option<Endpoints>,
}

impl PinholeOptions {
    /// Prints the selected pinholes.
    pub fn run(&self) -> Result<(), Failure> {
        let hint = self.port.map(|port| format!("used ones: ftp-alg events --port {port}\n"));
        let (sorted, selects) = (self.sort.as_deref(), |row: &PinholeRow| self.selects(row));
        self.list.print("pinholes", &COLUMNS, sorted, selects, &hint.unwrap_or_default())
    }

    fn selects(&self, row: &PinholeRow) -> bool {
        let info = &row.info;
        let subject = Subject {
            client: Some(info.client.ip()),
            server: Some(info.server.ip()),
            user: info.user.as_deref(),
            session: Some(info.session),
        };
        let is_at = |wanted: Endpoints| {
            wanted.contains(info.ends.arrival) || wanted.contains(info.ends.target)
        };
        self.port.is_none_or(is_at) && self.selection.selects(subject)
    }
}

/// The columns of pinholes, here and in a session in detail.
pub(super) const COLUMNS: [Column<PinholeRow>; 8] = [
    Column::new("SESSION", |row: &PinholeRow| Cell::count(row.info.session)).right(),
    Column::new("KIND", |row: &PinholeRow| Cell::text(&row.info.kind.to_string())),
    Column::new("LEFT", |row: &PinholeRow| Cell::seconds(row.remaining_seconds)).right(),
    Column::new("INITIATOR", |row: &PinholeRow| {
        let PinholeEnds { initiator, source, .. } = row.info.ends;
        let source = (source != initiator).then(|| format!("as {source}"));
        Cell::address(initiator).above(&source.unwrap_or_default())
    })
    .cut(16, Cut::Middle),
    Column::new("ARRIVAL", |row: &PinholeRow| {
        let PinholeEnds { arrival, target, .. } = row.info.ends;
        let target = (target != arrival).then(|| format!("to {target}"));
        Cell::endpoint(arrival).above(&target.unwrap_or_default())
    })
    .cut(16, Cut::Middle),
    Column::new("USER", |row: &PinholeRow| Cell::known(row.info.user.as_deref(), Cell::text))
        .cut(5, Cut::End)
        .optional(),
    Column::new("CLIENT", |row: &PinholeRow| Cell::endpoint(row.info.client))
        .cut(16, Cut::Middle)
        .optional(),
    Column::new("SERVER", |row: &PinholeRow| Cell::endpoint(row.info.server))
        .cut(16, Cut::Middle)
        .optional(),
];

#[cfg(test)]
pub(super) mod tests {
    use ftp_alg_core::{engine::PinholeInfo, ftp::AnnouncementKind};

    use super::*;
    use crate::cli::output::{PLAIN, Style};

    pub fn row(source: &str, target: &str) -> PinholeRow {
        PinholeRow {
            info: PinholeInfo {
                session: 7,
                client: "192.168.150.80:1026".parse().unwrap(),
                server: "203.0.113.9:21".parse().unwrap(),
                user: Some("bob".into()),
                ends: PinholeEnds {
                    initiator: "203.0.113.9".parse().unwrap(),
                    arrival: "198.51.100.1:3762".parse().unwrap(),
                    target: target.parse().unwrap(),
                    source: source.parse().unwrap(),
                },
                kind: AnnouncementKind::Port,
                deadline: None,
            },
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
        assert_eq!(columns::render(&COLUMNS, &rows, PLAIN, None), expected);
        let style = Style { width: Some(120), ..PLAIN };
        let wide = columns::render(&COLUMNS, &rows, style, None);
        assert!(
            wide.contains("ARRIVAL                 USER  CLIENT               SERVER\n"),
            "{wide}"
        );
    }
}
