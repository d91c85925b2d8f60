//! What is wrong with a configuration, and where: file, line, column, key, value, what is allowed.
//!
//! One problem is one line of text whatever the file holds: values are escaped and cut.

use std::{fmt, io, ops::Range, path::Path, path::PathBuf};

use toml::de::{DeTable, DeValue};

/// The most characters of a value that a message repeats.
const MAX_SHOWN: usize = 60;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What it says is not allowed; a line for each problem, at least one.
    #[error("{}", lines(.0))]
    Invalid(Vec<Problem>),
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The key with its tables, as in `pinhole.mark`; `None` where there is none to name.
    pub key: Option<String>,
    /// The offending value and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.path.display(), self.line, self.column)?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// A problem at byte `offset` of `text`.
pub(super) fn at(
    path: &Path,
    text: &str,
    offset: usize,
    key: Option<String>,
    message: String,
) -> Problem {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Problem {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        key,
        message,
    }
}

/// What the TOML reader said, with the key that it does not name and, for an unknown key, the
/// nearest known one.
pub(super) fn from_toml(path: &Path, text: &str, error: &toml::de::Error) -> Problem {
    let offset = error.span().map_or(0, |span| span.start);
    let key = key_at(text, offset);
    let message = match (unknown_key(error.message()), &key) {
        (Some(message), _) => message,
        (None, Some(key)) if error.message() == "invalid type: map, expected a sequence" => {
            format!("there may be several: write [[{key}]], with two brackets")
        }
        _ => error.message().split_whitespace().collect::<Vec<_>>().join(" "),
    };
    at(path, text, offset, key, message)
}

/// `text[span]` as a message may repeat it: on one line, without control characters, not too long.
pub(super) fn shown(text: &str, span: Range<usize>) -> String {
    let value = text.get(span).unwrap_or_default();
    let mut shown: String = value
        .chars()
        .take(MAX_SHOWN)
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            escaped.is_none().then_some(c).into_iter().chain(escaped.into_iter().flatten())
        })
        .collect();
    if value.chars().nth(MAX_SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}

/// Rewords serde's "unknown field `x`, expected one of `a`, `b`", which is the one place where
/// the known keys of a table are at hand without a second list of them.
fn unknown_key(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field ")?;
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    let known: Vec<&str> = quoted.collect();
    let nearest = known
        .iter()
        .map(|key| (distance(unknown, key), *key))
        .min()
        .filter(|&(edits, key)| edits <= key.len().max(unknown.len()) / 3 + 1);
    Some(match nearest {
        Some((_, key)) => format!("unknown key; did you mean `{key}`?"),
        None => format!("unknown key; allowed: {}", known.join(", ")),
    })
}

/// How many characters must be inserted, deleted or replaced to make `a` of `b` (Levenshtein),
/// where `_` counts as `-`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, c) in a.chars().map(|c| if c == '_' { '-' } else { c }).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &d) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(c != d);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The key, with its tables, at or around byte `offset`.
fn key_at(text: &str, offset: usize) -> Option<String> {
    let document = DeTable::parse(text).ok()?;
    let mut path = Vec::new();
    keys_to(document.get_ref(), offset, &mut path);
    (!path.is_empty()).then(|| path.join("."))
}

fn keys_to(table: &DeTable<'_>, offset: usize, path: &mut Vec<String>) -> bool {
    for (key, value) in table {
        path.push(shown(key.get_ref(), 0..key.get_ref().len()));
        let inside = match value.get_ref() {
            DeValue::Table(inner) => keys_to(inner, offset, path),
            DeValue::Array(items) => items
                .iter()
                .filter_map(|item| item.get_ref().as_table())
                .any(|inner| keys_to(inner, offset, path)),
            _ => false,
        };
        if inside || holds(key.span(), offset) || holds(value.span(), offset) {
            return true;
        }
        path.pop();
    }
    false
}

fn holds(span: Range<usize>, offset: usize) -> bool {
    span.start <= offset && offset < span.end.max(span.start + 1)
}
