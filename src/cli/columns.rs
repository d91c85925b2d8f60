//! A table that fits the terminal: with more width it has more columns, with less its widest cells are shortened.
//!
//! Without a terminal it has always the same columns, and nothing is shortened, because scripts read it.

use super::output::Style;

/// The width to which a column that shrinks is shortened at least, so that the others fit.
const MIN_WIDTH: usize = 16;

/// A column. A title that starts with `>` makes it right-aligned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    title: &'static str,
    /// Whether it is there only if a terminal has the width.
    is_optional: bool,
    /// Whether its cells may be shortened on a terminal.
    shrinks: bool,
}

impl Column {
    /// A column that is always there.
    pub const fn new(title: &'static str) -> Self {
        Self { title, is_optional: false, shrinks: false }
    }

    /// The column, which may be shortened.
    pub const fn shrinking(self) -> Self {
        Self { shrinks: true, ..self }
    }

    /// The column, if a terminal has the width.
    pub const fn optional(self) -> Self {
        Self { is_optional: true, ..self }
    }

    fn name(&self) -> &'static str {
        self.title.trim_start_matches('>')
    }
}

/// The rows of a table, with a cell for each column.
pub(super) type Rows = Vec<Vec<String>>;

/// The table as text, with a header.
pub(super) fn render(columns: &[Column], rows: &Rows, style: Style) -> String {
    let natural: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
            cells.max().unwrap_or_default().max(column.name().len())
        })
        .collect();
    let widths = match style.width {
        None => natural
            .iter()
            .zip(columns)
            .map(|(width, column)| (!column.is_optional).then_some(*width))
            .collect(),
        Some(width) => fitting(columns, &natural, width),
    };
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let shown = cells.zip(&widths).zip(columns);
        let shown = shown.filter_map(|((cell, width), column)| Some((cell, (*width)?, column)));
        let text: String = shown
            .map(|(cell, width, column)| {
                let cell = shortened(cell, width);
                match column.title.starts_with('>') {
                    true => format!("{cell:>width$}  "),
                    false => format!("{cell:<width$}  "),
                }
            })
            .collect();
        let text = text.trim_end();
        style.width.map_or_else(|| text.to_owned(), |width| cut(text, width))
    };
    let header = line(&mut columns.iter().map(Column::name));
    let mut text = format!("{}\n", style.bold(&header));
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
        text.push('\n');
    }
    text
}

/// The width of each column on a terminal of `width` columns, and `None` for those without room.
fn fitting(columns: &[Column], natural: &[usize], width: usize) -> Vec<Option<usize>> {
    let gap = |used: usize| if used == 0 { 0 } else { 2 };
    let least = |at: usize| match columns[at].shrinks {
        true => natural[at].min(MIN_WIDTH),
        false => natural[at],
    };
    let mut widths: Vec<Option<usize>> = vec![None; columns.len()];
    let mut used = 0;
    // Those that are always there come first, with all of their text if that fits; then the others, as far as they fit.
    for is_optional in [false, true] {
        for (at, _) in columns.iter().enumerate().filter(|(_, one)| one.is_optional == is_optional)
        {
            let added = gap(used) + least(at);
            if !is_optional || used + added <= width {
                widths[at] = Some(least(at));
                used += added;
            }
        }
        for at in 0..columns.len() {
            if let Some(own) = &mut widths[at] {
                let growth = (natural[at] - *own).min(width.saturating_sub(used));
                (*own, used) = (*own + growth, used + growth);
            }
        }
    }
    widths
}

/// `cell` in at most `width` columns: its middle is left out, because an address differs at its ends.
fn shortened(cell: &str, width: usize) -> String {
    let length = cell.chars().count();
    if length <= width {
        return cell.to_owned();
    }
    let (start, end) = ((width - width.min(1)).div_ceil(2), (width - width.min(1)) / 2);
    let first: String = cell.chars().take(start).collect();
    let last: String = cell.chars().skip(length - end).collect();
    format!("{first}…{last}")
}

/// The first `width` columns of `line`.
fn cut(line: &str, width: usize) -> String {
    match line.chars().count() > width {
        true => line.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
        false => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 4] = [
        Column::new(">ID"),
        Column::new("CLIENT").shrinking(),
        Column::new("USER").optional(),
        Column::new("FILE").optional().shrinking(),
    ];

    fn rendered(width: Option<usize>) -> Vec<String> {
        let row = |cells: [&str; 4]| cells.map(String::from).to_vec();
        let client = "[2001:db8:1:2:3:4:5:6]:40000";
        let rows = vec![
            row(["7", client, "bob", "/pub/quarter/3/report.csv"]),
            row(["12", "10.0.0.1:21", "", ""]),
        ];
        let style = Style { width, has_colours: false };
        render(&COLUMNS, &rows, style).lines().map(str::to_owned).collect()
    }

    #[test]
    fn without_a_terminal_the_columns_are_always_the_same() {
        let expected = ["ID  CLIENT", " 7  [2001:db8:1:2:3:4:5:6]:40000", "12  10.0.0.1:21"];
        assert_eq!(rendered(None), expected);
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
    }

    #[test]
    fn no_width_panics() {
        for width in 0..100 {
            assert_eq!(rendered(Some(width)).len(), 3);
        }
    }
}
