//! Which rows of a panel are shown, in which order, and how wide their columns are.

use unicode_width::UnicodeWidthStr as _;

use super::rows::Row;
use crate::cli::columns::{self, Shape};

/// The order of a panel, and the row that is selected.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection {
    /// The column that orders the rows.
    pub column: usize,
    pub is_descending: bool,
    /// The selected row. `None` is the first one, whichever that is.
    key: Option<u64>,
    /// Its place among the rows that are shown.
    pub at: usize,
    /// The first row on the screen.
    pub offset: usize,
}

impl Selection {
    pub fn new(is_descending: bool) -> Self {
        Self { is_descending, ..Self::default() }
    }

    /// The places of the rows that match `filter`, in their order. If the selected row is gone, its neighbour is
    /// selected.
    pub fn apply(&mut self, shapes: &[Shape], rows: &[Row], filter: &str) -> Vec<usize> {
        let filter = filter.to_lowercase();
        let matching = (0..rows.len()).filter(|at| rows[*at].has(shapes, &filter));
        let mut shown: Vec<usize> = matching.collect();
        shown.sort_by(|one, other| {
            let (one, other) = (&rows[*one], &rows[*other]);
            let order = one.cells[self.column].compare(&other.cells[self.column], false);
            let order = order.then(one.key.cmp(&other.key));
            if self.is_descending { order.reverse() } else { order }
        });
        self.at = match self.key {
            None => 0,
            Some(key) => {
                let found = shown.iter().position(|at| rows[*at].key == key);
                found.unwrap_or(self.at.min(shown.len().saturating_sub(1)))
            }
        };
        self.choose(self.at, rows, &shown);
        shown
    }

    /// Selects the row at this place of `shown`. The first place stays selected when newer rows come.
    pub fn choose(&mut self, at: usize, rows: &[Row], shown: &[usize]) {
        self.at = at.min(shown.len().saturating_sub(1));
        let row = shown.get(self.at).and_then(|at| rows.get(*at));
        self.key = row.filter(|_| self.at > 0).map(|row| row.key);
    }

    /// Scrolls to the selected row. The screen has `room` rows, and does not go beyond the last of `all`.
    pub fn scroll(&mut self, room: usize, all: usize) {
        let last = all.saturating_sub(room).min(self.at);
        self.offset = self.offset.min(last).max((self.at + 1).saturating_sub(room.max(1)));
    }
}

/// The columns that a terminal has room for, with their widths for these rows, in `limit` columns of the terminal in all.
pub(super) fn widths(shapes: &[Shape], rows: &[&Row], limit: u16) -> Vec<(usize, usize)> {
    let shown = shapes.iter().enumerate().filter(|(_, shape)| shape.from <= limit);
    let natural = |(at, shape): (usize, &Shape)| {
        let cells = rows.iter().filter_map(|row| row.cells.get(at)).map(|cell| cell.text.width());
        // Behind the title is room for the mark of the order.
        (at, cells.max().unwrap_or(0).max(shape.usual).max(shape.title.len() + 1))
    };
    let mut widths: Vec<_> = shown.map(natural).collect();
    columns::shrink(shapes, &mut widths, 1, limit.into());
    widths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::columns::{Cell, Column, shapes};

    /// Of a number and a text. The first is searched.
    const COLUMNS: &[Column<(u64, &str)>] = &[
        Column::new("TEXT", |(_, text): &(u64, &str)| Cell::text(text)).searched(),
        Column::new("NUMBER", |(number, _)| Cell::count(*number)),
    ];

    fn rows(texts: &[(u64, &'static str)]) -> Vec<Row> {
        let row = |of: &(u64, &'static str)| Row::new(of.0, COLUMNS, of);
        texts.iter().map(row).collect()
    }

    #[test]
    fn the_selected_row_stays_selected_and_then_its_neighbour() {
        let mut order = Selection::new(true);
        let before = rows(&[(1, "a"), (2, "b"), (3, "c")]);
        let shown = order.apply(&shapes(COLUMNS), &before, "");
        assert_eq!(order.at, 0);
        order.apply(&shapes(COLUMNS), &rows(&[(1, "a"), (4, "d")]), "");
        assert_eq!(order.at, 0, "the newest");
        order.apply(&shapes(COLUMNS), &before, "");
        order.choose(1, &before, &shown);
        for (now, at) in [
            (&[(1, "a"), (2, "b"), (3, "c"), (4, "d")][..], 2),
            // It ends.
            (&[(1, "a"), (3, "c"), (4, "d")], 2),
            (&[(9, "z")], 0),
            (&[], 0),
        ] {
            order.apply(&shapes(COLUMNS), &rows(now), "");
            assert_eq!(order.at, at, "{now:?}");
        }
        order.choose(5, &[], &[]);
        assert_eq!(order.at, 0);
    }

    #[test]
    fn the_screen_follows_the_selected_row() {
        let mut order = Selection { at: 30, ..Selection::default() };
        for (at, room, offset) in [
            (30, 10, 21),
            (20, 10, 20),
            (31, 10, 22),
            (0, 10, 0),
            (5, 0, 5), // no room at all
            (39, 10, 30),
            (39, 25, 15), // the terminal grows
            (39, 50, 0),
        ] {
            order.at = at;
            order.scroll(room, 40);
            assert_eq!(order.offset, offset, "{at}");
        }
    }
}
