//! Tables whose columns are described once, for lists and for `top`: title, width, and the cell of a row.
//!
//! A terminal with more width has more columns; with less, the widest cells are shortened. A list without a terminal has
//! always the same columns, and nothing is shortened, because scripts read it. The column of `--sort` is never left out.

use std::{
    cmp::Ordering,
    net::{IpAddr, SocketAddr},
};

use unicode_width::UnicodeWidthStr as _;

use super::{
    output::Style,
    table::{bytes, fitting, span},
};
use crate::config::escaped;

/// The blanks between two cells of a list.
const GAP: usize = 2;

/// A column of rows of one type.
pub(super) struct Column<Row> {
    pub shape: Shape,
    pub cell: fn(&Row) -> Cell,
}

/// How a column looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub title: &'static str,
    pub is_right: bool,
    /// Whether a list that is sorted by this column begins with the greatest value.
    pub most_first: bool,
    /// The width of usual contents, so that columns of a live view do not move when rows change.
    pub usual: usize,
    /// The least width, and where the text is cut, if the terminal is narrow.
    pub cut: Option<(usize, Cut)>,
    /// Whether a list has the column only if there is room.
    pub is_optional: bool,
    /// The least width of a terminal on which a live view has the column.
    pub from: u16,
    /// Whether a filter searches the column.
    pub is_searched: bool,
}

impl<Row> Column<Row> {
    pub const fn new(title: &'static str, cell: fn(&Row) -> Cell) -> Self {
        let shape = Shape {
            title,
            is_right: false,
            most_first: false,
            usual: 0,
            cut: None,
            is_optional: false,
            from: 0,
            is_searched: false,
        };
        Self { shape, cell }
    }
    /// A column of numbers.
    pub const fn number(title: &'static str, cell: fn(&Row) -> Cell) -> Self {
        Self::new(title, cell).right().most_first()
    }
    pub const fn right(mut self) -> Self {
        self.shape.is_right = true;
        self
    }
    pub const fn most_first(mut self) -> Self {
        self.shape.most_first = true;
        self
    }
    pub const fn usual(mut self, usual: usize) -> Self {
        self.shape.usual = usual;
        self
    }
    pub const fn cut(mut self, least: usize, at: Cut) -> Self {
        self.shape.cut = Some((least, at));
        self
    }
    pub const fn from(mut self, from: u16) -> Self {
        self.shape.from = from;
        self
    }
    pub const fn optional(mut self) -> Self {
        self.shape.is_optional = true;
        self
    }
    pub const fn searched(mut self) -> Self {
        self.shape.is_searched = true;
        self
    }
}

impl Shape {
    fn is_called(&self, title: Option<&str>) -> bool {
        title.is_some_and(|title| self.title.eq_ignore_ascii_case(title))
    }
}

/// How these columns look.
pub(super) fn shapes<Row>(columns: &[Column<Row>]) -> Vec<Shape> {
    columns.iter().map(|column| column.shape).collect()
}

/// A cell, which is ordered by its number, or without one by its text.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Cell {
    pub text: String,
    pub number: Option<f64>,
    /// A second text, which a list shows below the first one.
    pub below: String,
}

impl Cell {
    pub fn text(text: &str) -> Self {
        Self { text: escaped(text), ..Self::default() }
    }

    pub fn number(number: f64, text: impl ToString) -> Self {
        Self { text: text.to_string(), number: Some(number), ..Self::default() }
    }

    pub fn count(count: u64) -> Self {
        Self::number(count as f64, count)
    }

    pub fn seconds(seconds: u64) -> Self {
        Self::number(seconds as f64, span(seconds))
    }

    pub fn yes_or_no(value: bool) -> Self {
        Self::number(f64::from(u8::from(value)), if value { "yes" } else { "no" })
    }

    /// The cell of a value, or `-` for one that is not known.
    pub fn known<T>(value: Option<T>, cell: impl FnOnce(T) -> Self) -> Self {
        value.map_or_else(|| Self::text("-"), cell)
    }

    pub fn bytes(count: Option<u64>) -> Self {
        Self::known(count, |count| Self::number(count as f64, bytes(count)))
    }

    pub fn rate(bytes_per_second: Option<f64>) -> Self {
        Self::known(bytes_per_second, |rate| {
            Self::number(rate, format!("{}/s", bytes(rate as u64)))
        })
    }

    pub fn address(address: IpAddr) -> Self {
        Self { text: address.to_string(), ..Self::endpoint((address, 0).into()) }
    }

    /// Endpoints of IPv4 are ordered by address and port, and those of IPv6 behind them by text.
    pub fn endpoint(endpoint: SocketAddr) -> Self {
        let number = match endpoint {
            SocketAddr::V4(end) => {
                Some(f64::from(u32::from(*end.ip())) * 65536.0 + f64::from(end.port()))
            }
            SocketAddr::V6(_) => None,
        };
        Self { text: endpoint.to_string(), number, ..Self::default() }
    }

    pub fn above(self, below: &str) -> Self {
        Self { below: below.to_owned(), ..self }
    }

    fn is_unknown(&self) -> bool {
        matches!(&*self.text, "" | "-")
    }

    /// The order of two cells. Numbers come before texts, and what is not known comes last.
    pub fn compare(&self, other: &Self, most_first: bool) -> Ordering {
        self.is_unknown().cmp(&other.is_unknown()).then_with(|| match (self.number, other.number) {
            (Some(one), Some(other)) if most_first => other.total_cmp(&one),
            (Some(one), Some(other)) => one.total_cmp(&other),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => self.text.cmp(&other.text),
        })
    }
}

/// The titles, by which rows can be sorted.
pub(super) fn titles<Row>(columns: &[Column<Row>]) -> impl Iterator<Item = &'static str> {
    columns.iter().map(|column| column.shape.title)
}

/// Sorts `rows` by the column with this title, if there is one.
pub(super) fn sort<Row>(columns: &[Column<Row>], rows: &mut Vec<Row>, title: Option<&str>) {
    let is_it = |column: &&Column<Row>| column.shape.is_called(title);
    if let Some(Column { shape, cell }) = columns.iter().find(is_it) {
        let mut keyed: Vec<_> = rows.drain(..).map(|row| (cell(&row), row)).collect();
        keyed.sort_by(|(one, _), (other, _)| one.compare(other, shape.most_first));
        rows.extend(keyed.into_iter().map(|(_, row)| row));
    }
}

/// A list as text, with a header. It is sorted by the column with the title `sorted`, if there is one.
pub(super) fn render<Row>(
    columns: &[Column<Row>],
    rows: &[Row],
    style: Style,
    sorted: Option<&str>,
) -> String {
    let shapes = shapes(columns);
    let cells = |row: &Row| columns.iter().map(|column| (column.cell)(row)).collect::<Vec<_>>();
    let mut lines: Vec<Vec<String>> = Vec::new();
    for cells in rows.iter().map(cells) {
        let has_more = cells.iter().any(|cell| !cell.below.is_empty());
        let (texts, below) = cells.into_iter().map(|cell| (cell.text, cell.below)).unzip();
        lines.extend([texts].into_iter().chain(has_more.then_some(below)));
    }
    let natural = |(at, shape): (usize, &Shape)| {
        let cells = lines.iter().map(|line| line[at].width());
        (at, cells.max().unwrap_or(0).max(shape.title.len()))
    };
    let all: Vec<_> = shapes.iter().enumerate().map(natural).collect();
    let is_optional = |at: usize| shapes[at].is_optional && !shapes[at].is_called(sorted);
    let mut widths: Vec<_> = all.iter().copied().filter(|(at, _)| !is_optional(*at)).collect();
    if let Some(limit) = style.width {
        let least = |(at, width): (usize, usize)| {
            shapes[at].cut.map_or(width, |(least, _)| width.min(least))
        };
        for column in all.into_iter().filter(|(at, _)| is_optional(*at)) {
            let room = limit.saturating_sub(taken(&widths, GAP) + GAP);
            if least(column) <= room {
                widths.push((column.0, column.1.min(room)));
            }
        }
        shrink(&shapes, &mut widths, GAP, limit);
    }
    let line = |cell: &dyn Fn(usize) -> String| {
        let text = line(&shapes, &widths, GAP, cell);
        style.width.map_or_else(|| text.clone(), |width| cut(&text, width, Cut::End))
    };
    let mut text = format!("{}\n", style.bold(line(&|at| shapes[at].title.to_owned()).trim_end()));
    for cells in &lines {
        text += &format!("{}\n", line(&|at| cells[at].clone()).trim_end());
    }
    text
}

/// The columns of the terminal that columns of these widths take.
pub(super) fn taken(widths: &[(usize, usize)], gap: usize) -> usize {
    widths.iter().map(|(_, width)| width + gap).sum::<usize>().saturating_sub(gap)
}

/// Cuts the columns to `limit` columns of the terminal, as far as they can be cut: first what is wider than usual, then the
/// widest.
pub(super) fn shrink(shapes: &[Shape], widths: &mut [(usize, usize)], gap: usize, limit: usize) {
    while taken(widths, gap) > limit {
        let can_shrink = |(at, width): &&mut (usize, usize)| {
            shapes[*at].cut.is_some_and(|(least, _)| *width > least)
        };
        let first_to_cut =
            |(at, width): &&mut (usize, usize)| (width.saturating_sub(shapes[*at].usual), *width);
        match widths.iter_mut().filter(can_shrink).max_by_key(first_to_cut) {
            Some((_, width)) => *width -= 1,
            None => break,
        }
    }
}

/// A line with the cells of these columns.
pub(super) fn line(
    shapes: &[Shape],
    widths: &[(usize, usize)],
    gap: usize,
    cell: &dyn Fn(usize) -> String,
) -> String {
    let cells = widths.iter().map(|&(at, wide)| {
        let text = cut(&cell(at), wide, shapes[at].cut.map_or(Cut::End, |(_, at)| at));
        let room = " ".repeat(wide.saturating_sub(text.width()));
        if shapes[at].is_right { room + &text } else { text + &room }
    });
    cells.collect::<Vec<_>>().join(&" ".repeat(gap))
}

/// Where a text that is too long loses characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    #[cfg_attr(not(feature = "top"), expect(dead_code, reason = "only top has paths of their own"))]
    Start,
    Middle,
    /// At the start, but behind the first word.
    AfterWord,
    End,
}

/// `text` in at most `limit` columns, with `…` for what is left out.
pub(super) fn cut(text: &str, limit: usize, at: Cut) -> String {
    if text.width() <= limit {
        return text.to_owned();
    }
    let Some(room) = limit.checked_sub(1) else { return String::new() };
    let (head, tail) = match at {
        Cut::Start => (0, room),
        Cut::Middle => (room - room / 2, room / 2),
        Cut::AfterWord => {
            let word = text.split_inclusive(' ').next().map_or(0, |word| word.width());
            if word < room { (word, room - word) } else { (0, room) }
        }
        Cut::End => (room, 0),
    };
    let tail: String = fitting(text.chars().rev(), tail).chars().rev().collect();
    format!("{}…{tail}", fitting(text.chars(), head))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row = [&'static str; 4];

    const COLUMNS: [Column<Row>; 4] = [
        Column::new("ID", |row: &Row| Cell::text(row[0])).right(),
        Column::new("CLIENT", |row: &Row| Cell::text(row[1])).cut(16, Cut::Middle),
        Column::new("USER", |row: &Row| Cell::text(row[2])).optional(),
        Column::new("FILE", |row: &Row| Cell::text(row[3])).optional().cut(16, Cut::Middle),
    ];

    fn rendered(width: Option<usize>) -> Vec<String> {
        sorted(width, None)
    }

    fn sorted(width: Option<usize>, sorted: Option<&str>) -> Vec<String> {
        let client = "[2001:db8:1:2:3:4:5:6]:40000";
        let rows =
            [["7", client, "bob", "/pub/quarter/3/report.csv"], ["12", "10.0.0.1:21", "", ""]];
        let style = Style { width, has_colours: false };
        render(&COLUMNS, &rows, style, sorted).lines().map(str::to_owned).collect()
    }

    #[test]
    fn without_a_terminal_the_columns_are_always_the_same() {
        let expected = ["ID  CLIENT", " 7  [2001:db8:1:2:3:4:5:6]:40000", "12  10.0.0.1:21"];
        assert_eq!(rendered(None), expected);
    }

    #[test]
    fn the_column_that_sorts_is_always_there() {
        let first = |width| sorted(width, Some("user")).remove(1);
        assert_eq!(first(None), " 7  [2001:db8:1:2:3:4:5:6]:40000  bob");
        assert_eq!(first(Some(31)), " 7  [2001:db8:…5:6]:40000  bob");
    }

    #[test]
    fn more_width_shows_more() {
        for (width, first) in [
            (3, " 7…"),
            (20, " 7  [2001:db…]:40000"),
            (31, " 7  [2001:db8:1:2…:4:5:6]:40000"),
            (32, " 7  [2001:db8:1:2:3:4:5:6]:40000"),
            (38, " 7  [2001:db8:1:2:3:4:5:6]:40000  bob"),
            (60, " 7  [2001:db8:1:2:3:4:5:6]:40000  bob   /pub/quart…eport.csv"),
            (200, " 7  [2001:db8:1:2:3:4:5:6]:40000  bob   /pub/quarter/3/report.csv"),
        ] {
            let lines = rendered(Some(width));
            assert_eq!(lines[1], first, "{width}");
            assert!(lines.iter().all(|line| line.chars().count() <= width), "{width}: {lines:?}");
        }
        for width in 0..100 {
            assert_eq!(rendered(Some(width)).len(), 3);
        }
    }

    #[test]
    fn a_list_is_sorted_by_any_column_and_what_is_not_known_comes_last() {
        const SORTED: [Column<Option<u64>>; 2] = [
            Column::new("LEAST", |row: &Option<u64>| Cell::bytes(*row)),
            Column::new("MOST", |row: &Option<u64>| Cell::bytes(*row)).most_first(),
        ];
        let mut rows = vec![None, Some(3), Some(20)];
        for (by, expected) in
            [("least", [Some(3), Some(20), None]), ("most", [Some(20), Some(3), None])]
        {
            sort(&SORTED, &mut rows, Some(by));
            assert_eq!(rows, expected, "{by}");
        }
    }

    #[test]
    fn what_is_left_out_is_marked() {
        let path = "/pub/reports/q3.csv";
        for (text, limit, at, expected) in [
            (path, 19, Cut::End, path),
            (path, 8, Cut::End, "/pub/re…"),
            (path, 8, Cut::Start, "…/q3.csv"),
            (path, 8, Cut::Middle, "/pub…csv"),
            (path, 1, Cut::Middle, "…"),
            ("RETR /pub/q3.csv", 13, Cut::AfterWord, "RETR …/q3.csv"),
            ("RETR /pub/q3.csv", 6, Cut::AfterWord, "…3.csv"),
            (path, 8, Cut::AfterWord, "…/q3.csv"),
            (path, 0, Cut::End, ""),
            ("日本語です", 6, Cut::End, "日本…"),
            ("日本語です", 6, Cut::Start, "…です"),
        ] {
            let shown = cut(text, limit, at);
            assert_eq!(shown, expected);
            assert!(shown.width() <= limit);
        }
    }
}
