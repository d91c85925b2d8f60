//! Configuration errors: file, line, column, key, value, what is allowed.
//!
//! Each problem is one line of text, whatever the file contains: values are escaped and cut.

use std::{io, ops::Range, path::Path, path::PathBuf};

use super::hint;

/// Maximum number of characters of a value in a message.
const MAX_SHOWN: usize = 60;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}{}", path.display(), remedy(source))]
    Read { path: PathBuf, source: io::Error },
    /// One line for each problem.
    #[error("{0}")]
    Invalid(String),
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::IsADirectory => "; name a file",
        io::ErrorKind::PermissionDenied => "; let the user that ftp-alg runs as read the file",
        _ => "",
    }
}

/// One problem in a configuration.
#[derive(Debug)]
pub(super) struct ConfigProblem {
    /// Its place in the text, in bytes.
    pub(super) offset: usize,
    /// The key with its table, such as `pinhole.mark`; `None` if no key applies.
    pub(super) key: Option<String>,
    /// The value, and what is allowed.
    pub(super) message: String,
}

impl ConfigProblem {
    /// The problem with its place in `text`, which is called `path`.
    pub(super) fn line(&self, path: &Path, text: &str) -> String {
        let before = text.get(..self.offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        // A byte order mark is invisible.
        let column = before[line_start..].trim_start_matches('\u{feff}').chars().count() + 1;
        let key = self.key.as_ref().map_or(String::new(), |key| format!("{key}: "));
        let line = line_number(text, self.offset);
        format!("{}:{line}:{column}: {key}{}", path.display(), self.message)
    }
}

/// The line of byte `offset`, from 1.
pub(super) fn line_number(text: &str, offset: usize) -> usize {
    text.get(..offset).unwrap_or(text).matches('\n').count() + 1
}

/// The TOML parser's message about a syntax error.
pub(super) fn syntax_problem(text: &str, error: &toml::de::Error) -> ConfigProblem {
    let offset = error.span().map_or(0, |span| span.start);
    let (offset, message) = match bare_text(text, offset) {
        Some(token) => {
            let meant = hint::unquoted(&text[token.clone()]);
            let shown = shown_value(text, token.clone());
            (token.start, format!("{shown} is text without quotes: write {meant}"))
        }
        None => (offset, error.message().split_whitespace().collect::<Vec<_>>().join(" ")),
    };
    ConfigProblem { offset, key: key_before(text, offset), message }
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
        Some((end, _)) => escaped(&value[..end]) + "...",
        None => escaped(value),
    }
}

/// `text` without anything that a terminal interprets: control characters, and those that change the direction of text.
pub(crate) fn escaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '"' | '\'' | '\\' => plain.push(char),
            _ => plain.extend(char.escape_debug()),
        }
    }
    plain
}
