//! Formats aligned text: lists of names and values, wrapped lines, durations, bytes.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Names, each behind `indent` blanks, and their values in a column of their own, wrapped at column `end`. The names have
/// at least `width` columns.
pub(super) fn list(
    items: &[(impl AsRef<str>, String)],
    indent: usize,
    width: usize,
    end: usize,
) -> String {
    let names = items.iter().map(|(name, _)| name.as_ref().chars().count());
    let width = names.max().unwrap_or(0).max(width);
    let row = |(name, value): &(_, String)| {
        let value = wrapped(value, indent + width + 2, end);
        format!("{:indent$}{:<width$}  {value}\n", "", AsRef::as_ref(name))
    };
    items.iter().map(row).collect()
}

/// The lines of `text`, each wrapped at column `end`. The first starts at column `indent`, and further lines are indented to
/// it.
pub(super) fn wrapped(text: &str, indent: usize, end: usize) -> String {
    let wrap = |line| wrap(line, end.saturating_sub(indent), false);
    text.lines().flat_map(wrap).collect::<Vec<_>>().join(&format!("\n{:indent$}", ""))
}

/// `text` in lines of at most `limit` columns, which end between words. A word that is too long is
/// broken, or sticks out.
pub(super) fn wrap(text: &str, limit: usize, breaks_words: bool) -> Vec<String> {
    let mut lines = vec![String::new()];
    for mut word in text.split(' ') {
        loop {
            let line = lines.last_mut().filter(|line| !line.is_empty());
            match line {
                Some(line) if line.width() + 1 + word.width() <= limit => {
                    line.push(' ');
                    line.push_str(word);
                    break;
                }
                Some(_) => lines.push(String::new()),
                None => {
                    let head = fitting(word.chars(), limit);
                    let whole = !breaks_words || head.is_empty() || head.len() == word.len();
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

/// The first of `chars`, as many as fit into `room` columns.
pub(super) fn fitting(chars: impl Iterator<Item = char>, mut room: usize) -> String {
    let fits = |char: &char| {
        let rest = room.checked_sub(char.width().unwrap_or(0));
        room = rest.unwrap_or(0);
        rest.is_some()
    };
    chars.take_while(fits).collect()
}

/// A duration in its two largest units: `45s`, `3m 5s`, `2h 0m`, `4d 1h`.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// A number of bytes in a unit that leaves few digits: `812 B`, `1.5 KiB`, `23 GiB`.
pub(super) fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    match bytes {
        0..1024 => format!("{bytes} B"),
        _ => scaled(bytes, 1024, &units.map(|unit| format!(" {unit}"))),
    }
}

/// A number in at most five characters or so: `99999`, `123k`, `1.2M`.
pub(super) fn count(count: u64) -> String {
    match count {
        0..100_000 => count.to_string(),
        _ => scaled(count, 1000, &["k", "M", "G", "T", "P", "E"].map(str::to_owned)),
    }
}

/// `value`, which is at least `step`, in the largest of `units` that is not above `value`. Rounded down.
fn scaled(value: u64, step: u64, units: &[String; 6]) -> String {
    let (mut unit, mut size) = (0, step);
    while unit + 1 < units.len() && value / size >= step {
        (unit, size) = (unit + 1, size * step);
    }
    let (whole, tenth) = (value / size, value % size / (size / 10).max(1));
    match whole {
        0..10 => format!("{whole}.{}{}", tenth.min(9), units[unit]),
        _ => format!("{whole}{}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_between_words() {
        let long = "x".repeat(90);
        for (text, expected) in [
            ("", ""),
            ("a b", "a b"),
            (&*format!("{} b", "a".repeat(68)), &*format!("{} b", "a".repeat(68))),
            (&format!("{} b", "a".repeat(69)), &format!("{}\n          b", "a".repeat(69))),
            (&format!("a {long} b"), &format!("a\n          {long}\n          b")),
        ] {
            assert_eq!(wrapped(text, 10, 80), expected);
        }
        assert_eq!(wrapped("a b c", 10, 13), "a b\n          c");
        assert_eq!(wrapped("a b", 10, 0), "a\n          b");
        assert_eq!(wrapped("a b\nc = \"d\"", 2, 80), "a b\n  c = \"d\"");
        for (text, limit, expected) in [
            ("", 5, vec![""]),
            ("one two three", 7, vec!["one two", "three"]),
            ("a 1234567890 b", 4, vec!["a", "1234", "5678", "90 b"]),
            ("日本", 1, vec!["日本"]),
        ] {
            assert_eq!(wrap(text, limit, true), expected, "{text}");
        }
    }

    #[test]
    fn large_numbers_have_units() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((10 << 20) - 1, "9.9 MiB"),
            (23 << 30, "23 GiB"),
            (u64::MAX, "15 EiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
        for (number, text) in [
            (99_999, "99999"),
            (100_000, "100k"),
            (999_999, "999k"),
            (1_250_000, "1.2M"),
            (u64::MAX, "18E"),
        ] {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn duration_shows_its_two_largest_units() {
        for (seconds, text) in [(0, "0s"), (185, "3m 5s"), (7200, "2h 0m"), (349_200, "4d 1h")] {
            assert_eq!(span(seconds), text);
        }
    }
}
