//! Text for a terminal: escaped, cut, wrapped.

use ratatui::text::Span;

/// Where a text that is too long loses characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    Start,
    Middle,
    /// At the start, but behind the first word.
    AfterWord,
    End,
}

/// `text` without anything that a terminal interprets: control characters, and those that change the direction of text.
pub(super) fn escaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '"' | '\'' | '\\' => plain.push(char),
            _ => plain.extend(char.escape_debug()),
        }
    }
    plain
}

/// Columns that `text` needs.
pub(super) fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// `text` in at most `limit` columns, with `…` for what is left out.
pub(super) fn cut(text: &str, limit: usize, at: Cut) -> String {
    if width(text) <= limit {
        return text.to_owned();
    }
    let Some(room) = limit.checked_sub(1) else { return String::new() };
    let (head, tail) = match at {
        Cut::Start => (0, room),
        Cut::Middle => (room - room / 2, room / 2),
        Cut::AfterWord => {
            let word = text.split_inclusive(' ').next().map_or(0, width);
            if word < room { (word, room - word) } else { (0, room) }
        }
        Cut::End => (room, 0),
    };
    let tail: String = fitting(text.chars().rev(), tail).chars().rev().collect();
    format!("{}…{tail}", fitting(text.chars(), head))
}

/// The first of `chars`, as many as fit into `room` columns.
fn fitting(chars: impl Iterator<Item = char>, mut room: usize) -> String {
    let fits = |char: &char| {
        let needed = width(char.encode_utf8(&mut [0; 4]));
        let left = room.checked_sub(needed);
        room = left.unwrap_or(0);
        left.is_some()
    };
    chars.take_while(fits).collect()
}

/// `text` in lines of at most `limit` columns, which end between words where they can.
pub(super) fn wrap(text: &str, limit: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for mut word in text.split(' ') {
        loop {
            let line = lines.last_mut().filter(|line| !line.is_empty());
            match line {
                Some(line) if width(line) + 1 + width(word) <= limit => {
                    line.push(' ');
                    line.push_str(word);
                    break;
                }
                Some(_) => lines.push(String::new()),
                None => {
                    let head = fitting(word.chars(), limit);
                    let whole = head.is_empty() || head.len() == word.len();
                    let end = if whole { word.len() } else { head.len() };
                    lines.pop();
                    lines.push(word[..end].to_owned());
                    word = &word[end..];
                    if whole {
                        break;
                    }
                }
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_interprets_is_escaped() {
        for (text, expected) in [
            ("/pub/\u{1b}[2Ja\r\n", "/pub/\\u{1b}[2Ja\\r\\n"),
            ("\u{9b}31m\u{202e}gpj.exe", "\\u{9b}31m\\u{202e}gpj.exe"),
            ("a\\u{1b} \"b\" 'c' é 日本", "a\\u{1b} \"b\" 'c' é 日本"),
        ] {
            assert_eq!(escaped(text), expected);
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
            assert!(width(&shown) <= limit);
        }
    }

    #[test]
    fn lines_end_between_words_where_they_can() {
        for (text, limit, expected) in [
            ("", 5, vec![""]),
            ("one two three", 7, vec!["one two", "three"]),
            ("a 1234567890 b", 4, vec!["a", "1234", "5678", "90 b"]),
            ("日本", 1, vec!["日本"]),
        ] {
            assert_eq!(wrap(text, limit), expected, "{text}");
        }
    }
}
