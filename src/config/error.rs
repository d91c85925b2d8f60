//! Configuration errors: file, line, column, key, value, what is allowed.
//!
//! Each problem is one line of text, whatever the file contains: values are escaped and cut.

use std::{fmt, io, ops::Range, path::Path, path::PathBuf};

use super::hint;

/// Maximum number of characters of a value in a message.
const MAX_SHOWN: usize = 60;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}{}", path.display(), remedy(source))]
    Read { path: PathBuf, source: io::Error },
    #[error("{}", lines(.0))]
    Invalid(Vec<Problem>),
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::IsADirectory => "; name a file",
        io::ErrorKind::PermissionDenied => "; let the user that ftp-alg runs as read the file",
        _ => "",
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// A key that the file may not have: key with table, position, message.
pub(super) struct InvalidKey {
    pub key: String,
    pub offset: usize,
    pub message: String,
}

/// One problem in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file as the caller named it.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The key with its table, such as `pinhole.mark`; `None` if no key applies.
    pub key: Option<String>,
    /// The value, and what is allowed.
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
pub(super) fn problem_at(
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
        // A byte order mark is invisible.
        column: before[line_start..].trim_start_matches('\u{feff}').chars().count() + 1,
        key,
        message,
    }
}

/// The TOML parser's message about a syntax error.
pub(super) fn syntax_problem(path: &Path, text: &str, error: &toml::de::Error) -> Problem {
    let offset = error.span().map_or(0, |span| span.start);
    let (offset, message) = match bare_text(text, offset) {
        Some(token) => {
            let meant = hint::unquoted(&text[token.clone()]);
            let shown = shown_value(text, token.clone());
            (token.start, format!("{shown} is text without quotes: write {meant}"))
        }
        None => (offset, error.message().split_whitespace().collect::<Vec<_>>().join(" ")),
    };
    problem_at(path, text, offset, key_before(text, offset), message)
}

/// The unquoted text around byte `offset` that should be a value.
fn bare_text(text: &str, offset: usize) -> Option<Range<usize>> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || ".:/_-".contains(c);
    let start = text.get(..offset)?.trim_end_matches(is_part).len();
    let length = text[start..].find(|c| !is_part(c)).unwrap_or(text.len() - start);
    let line = text[..start].rsplit('\n').next()?;
    let is_value = line.contains('=') && line.trim_end().ends_with(['=', '[', ',']);
    (is_value && length > 0).then_some(start..start + length)
}

/// The key before byte `offset` in its line.
fn key_before(text: &str, offset: usize) -> Option<String> {
    let line = text.get(..offset)?.rsplit('\n').next()?;
    let key = line.split_once('=')?.0.trim();
    (!key.is_empty()).then(|| shown_value(key, 0..key.len()))
}

/// `text[span]` for a message: one line, without control characters, cut.
pub(super) fn shown_value(text: &str, span: Range<usize>) -> String {
    let value = text.get(span).unwrap_or_default();
    match value.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => escape_control_characters(&value[..end]) + "...",
        None => escape_control_characters(value),
    }
}

/// `text` with escaped control characters, which a terminal would interpret.
pub(crate) fn escape_control_characters(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => plain.extend(c.escape_default()),
            false => plain.push(c),
        }
    }
    plain
}
