//! `ftp-alg sessions`: the table of sessions.

use clap::{Args, builder::PossibleValuesParser};

use super::{ListOptions, detail, subject, transfer_text};
use crate::{
    cli::{
        Failure,
        columns::{self, Cell, Column, Cut},
        selection::Selection,
    },
    daemon::snapshot::{SessionRow, TransferProgress},
};

#[derive(Args, Debug)]
pub(in crate::cli) struct SessionOptions {
    /// Sort by this column: numbers from the greatest, but for ID
    #[arg(long, value_name = "COLUMN", ignore_case = true, value_parser = PossibleValuesParser::new(columns::titles(&COLUMNS)))]
    sort: Option<String>,
    #[command(flatten)]
    list: ListOptions,
    #[command(flatten)]
    selection: Selection,
}

impl SessionOptions {
    /// Prints the selected sessions, or one in detail if it is selected by its number.
    pub fn run(&self) -> Result<(), Failure> {
        if let Some(id) = self.selection.session {
            return detail::print(id, &self.selection, self.list.json, &self.list.socket);
        }
        let selects = |row: &SessionRow| self.selection.selects(subject(&row.summary));
        self.list.print("sessions", &COLUMNS, self.sort.as_deref(), selects, "")
    }
}

/// The columns of sessions, here and in `top`.
pub(in crate::cli) const COLUMNS: [Column<SessionRow>; 15] = [
    Column::new("ID", |row: &SessionRow| Cell::count(row.summary.id)).right().usual(3),
    Column::new("CLIENT", |row: &SessionRow| Cell::endpoint(row.summary.client))
        .searched()
        .cut(12, Cut::Middle)
        .usual(20),
    Column::new("SERVER", |row: &SessionRow| Cell::endpoint(row.summary.server))
        .searched()
        .cut(12, Cut::Middle)
        .usual(18),
    Column::new("STATE", |row: &SessionRow| Cell::text(&row.summary.state)).usual(9).from(82),
    Column::number("AGE", |row: &SessionRow| Cell::seconds(row.summary.age_seconds))
        .usual(6)
        .from(122),
    Column::new("ADJ", |row: &SessionRow| Cell::yes_or_no(row.summary.adjusted))
        .most_first()
        .usual(3)
        .from(138),
    Column::number("OPEN", |row: &SessionRow| match &row.summary.passive_ports {
        Some(ports) => Cell::number(row.pinholes as f64, ports.clone()),
        None => Cell::count(row.pinholes),
    })
    .usual(4)
    .from(138),
    Column::new("USER", |row: &SessionRow| Cell::known(row.summary.user.as_deref(), Cell::text))
        .searched()
        .cut(5, Cut::End)
        .usual(8),
    Column::new("TRANSFER", |row: &SessionRow| {
        of_transfer(row, |transfer| Cell::text(&transfer_text(transfer)))
    })
    .searched()
    .cut(8, Cut::AfterWord)
    .usual(12)
    .optional(),
    Column::number("RATE", |row: &SessionRow| {
        of_transfer(row, |transfer| Cell::rate(transfer.bytes_per_second))
    })
    .usual(9)
    .optional(),
    Column::number("BYTES", |row: &SessionRow| {
        of_transfer(row, |transfer| Cell::bytes(transfer.bytes))
    })
    .usual(8)
    .optional()
    .from(92),
    Column::number("SECS", |row: &SessionRow| {
        of_transfer(row, |transfer| Cell::known(transfer.seconds, Cell::count))
    })
    .usual(5)
    .optional()
    .from(108),
    Column::number("XFERS", |row: &SessionRow| Cell::count(row.summary.transfers.into()))
        .usual(6)
        .optional()
        .from(115),
    Column::number("TOTAL", |row: &SessionRow| Cell::bytes(row.summary.bytes))
        .usual(8)
        .optional()
        .from(102),
    Column::new("FAST", |row: &SessionRow| Cell::yes_or_no(row.summary.fast_path))
        .most_first()
        .usual(4)
        .optional()
        .from(128),
];

/// The cell of the transfer that has not ended, if there is one.
fn of_transfer(row: &SessionRow, cell: impl FnOnce(&TransferProgress) -> Cell) -> Cell {
    row.summary.transfer.as_ref().map(cell).unwrap_or_default()
}
