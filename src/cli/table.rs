//! Aligned text: tables with a header, and lists of names and values.

/// Columns as wide as their widest cell; those whose header starts with `>` align to the right.
pub(super) fn render<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let titles = header.map(|title| title.trim_start_matches('>'));
    let mut widths = titles.map(|title| title.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for ((cell, width), title) in cells.iter().zip(widths).zip(header) {
            line += &match title.starts_with('>') {
                true => format!("{cell:>width$}  "),
                false => format!("{cell:<width$}  "),
            };
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = line(titles);
    for row in rows {
        text += &line(row.each_ref().map(String::as_str));
    }
    text
}

/// Two columns without a header.
pub(super) fn list(items: &[(impl AsRef<str>, String)]) -> String {
    let width = items.iter().map(|(name, _)| name.as_ref().len()).max().unwrap_or(0);
    let row = |(name, value): &(_, String)| format!("{:<width$}  {value}\n", AsRef::as_ref(name));
    items.iter().map(row).collect()
}

/// `text` in lines that end before column 81, where it begins at column `indent`, as its further lines do.
pub(super) fn wrapped(text: &str, indent: usize) -> String {
    let mut lines = String::new();
    let mut column = indent;
    for word in text.split(' ') {
        let width = word.chars().count();
        if column > indent && column + 1 + width > 80 {
            lines += &format!("\n{:indent$}{word}", "");
            column = indent + width;
        } else {
            let blank = if column > indent { " " } else { "" };
            lines += &format!("{blank}{word}");
            column += blank.len() + width;
        }
    }
    lines
}

/// `45s`, `3m 5s`, `2h 0m`, `4d 1h`: the two largest units.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["1", "10.0.0.1:40000", "x"], ["12", "a", ""]].map(|row| row.map(String::from));
        assert_eq!(
            render([">id", "client", "state"], &rows),
            "id  client          state\n 1  10.0.0.1:40000  x\n12  a\n"
        );
    }

    #[test]
    fn text_is_wrapped_before_column_81_and_no_word_is_cut() {
        let long = "x".repeat(90);
        for (text, expected) in [
            ("", ""),
            ("a b", "a b"),
            (&*format!("{} b", "a".repeat(68)), &*format!("{} b", "a".repeat(68))),
            (&format!("{} b", "a".repeat(69)), &format!("{}\n          b", "a".repeat(69))),
            (&format!("a {long} b"), &format!("a\n          {long}\n          b")),
        ] {
            assert_eq!(wrapped(text, 10), expected);
        }
    }

    #[test]
    fn a_span_shows_its_two_largest_units() {
        for (seconds, text) in [(0, "0s"), (185, "3m 5s"), (7200, "2h 0m"), (349_200, "4d 1h")] {
            assert_eq!(span(seconds), text);
        }
    }
}
