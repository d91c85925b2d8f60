//! `ftp-alg pinholes`: lists the open pinholes.

use clap::Args;

use super::{Failure, SocketOption, table};
use crate::daemon::snapshot::PinholeRow;

/// List the pinholes that are open now
///
/// Each pinhole admits one connection from INITIATOR to ARRIVAL. The pinhole
/// closes when the connection opens, or after LEFT. If the connection is
/// translated, a second line shows it: `to` another destination, `as` another
/// source. SESSION is the ID in `ftp-alg sessions`.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Pinholes {
    /// Print one JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketOption,
}

impl Pinholes {
    pub fn run(&self) -> Result<(), Failure> {
        self.socket.print_rows("pinholes", self.json, text)
    }
}

fn text(pinholes: &[PinholeRow]) -> String {
    if pinholes.is_empty() {
        return "no pinholes\n".to_owned();
    }
    let rows: Vec<_> = pinholes.iter().flat_map(rows).collect();
    table::render([">SESSION", "KIND", ">LEFT", "INITIATOR", "ARRIVAL"], &rows)
}

/// The row of a pinhole, and a second row with its translations if there is one.
fn rows(row: &PinholeRow) -> impl Iterator<Item = [String; 5]> {
    let own = [
        row.session.to_string(),
        row.kind.to_string(),
        table::span(row.remaining_seconds),
        row.initiator.to_string(),
        row.arrival.to_string(),
    ];
    let mut translated = [const { String::new() }; 5];
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
mod tests {
    use ftp_alg_core::ftp::AnnouncementKind;

    use super::*;

    #[test]
    fn translation_is_shown_in_a_second_row() {
        let row = |source: &str, target: &str| PinholeRow {
            session: 7,
            initiator: "203.0.113.9".parse().unwrap(),
            arrival: "198.51.100.1:3762".parse().unwrap(),
            target: target.parse().unwrap(),
            source: source.parse().unwrap(),
            kind: AnnouncementKind::Port,
            remaining_seconds: 29,
        };
        let text = text(&[
            row("203.0.113.9", "192.168.150.80:3762"),
            row("10.0.0.1", "198.51.100.1:3762"),
        ]);
        let expected = "\
SESSION  KIND  LEFT  INITIATOR    ARRIVAL
      7  PORT   29s  203.0.113.9  198.51.100.1:3762
                                  to 192.168.150.80:3762
      7  PORT   29s  203.0.113.9  198.51.100.1:3762
                     as 10.0.0.1
";
        assert_eq!(text, expected);
    }
}
