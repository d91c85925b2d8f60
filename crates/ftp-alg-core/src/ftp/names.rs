//! Names that peers choose, as text for people: of users, files and directories.

use std::fmt::{self, Write};

/// Limit of a name in bytes, before escaping.
const MAX_NAME: usize = 512;

/// The name in `bytes`, cut to 512 bytes. Control characters, those that change the direction of text, backslashes and
/// bytes that are not UTF-8 are escaped (`\n`, `\u{202e}`, `\\`, `\xff`), so a name cannot forge a log line, and two
/// names are never written alike.
pub fn escape_name(bytes: &[u8]) -> Box<str> {
    let cut = bytes.len() > MAX_NAME;
    let bytes = &bytes[..bytes.len().min(MAX_NAME)];
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '"' | '\'' => text.push(char),
                _ => text.extend(char.escape_debug()),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    if cut {
        text.push_str("...");
    }
    text.into()
}

/// An [escaped](escape_name) name in a line of text: in quotes if it could be taken for other parts of the line.
#[derive(Clone, Copy, Debug)]
pub enum NameInText<'a> {
    /// Of a user: plain if it has only letters, digits, `.`, `_`, `-`, `+` and one `@`.
    User(&'a str),
    /// Of a file or directory: plain if it has no blanks and no quotes.
    Path(&'a str),
}

impl fmt::Display for NameInText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, is_plain) = match *self {
            Self::User(name) => (name, is_plain_user(name)),
            Self::Path(name) => {
                (name, !name.contains(|char: char| char.is_whitespace() || char == '"'))
            }
        };
        match is_plain {
            true => f.write_str(name),
            // Its backslashes are escaped already.
            false => write!(f, "\"{}\"", name.replace('"', "\\\"")),
        }
    }
}

fn is_plain_user(name: &str) -> bool {
    let is_plain = |char: char| char.is_alphanumeric() || "._-+@".contains(char);
    !name.is_empty() && name.chars().all(is_plain) && name.matches('@').count() <= 1
}

/// The directory or file `path`, which is relative to `directory` unless it is absolute. `.` and `..` are resolved, as
/// servers do (RFC 959 leaves it to them).
pub fn resolve_path(directory: &str, path: &str) -> Box<str> {
    let (base, path) = match path.starts_with('/') {
        true => ("", path),
        false => (directory, path),
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            _ => parts.push(part),
        }
    }
    format!("/{}", parts.join("/")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_forge_a_line() {
        let names: [(&[u8], &str); 7] = [
            (b"q3 report.csv", "q3 report.csv"),
            ("Größe \"€\"".as_bytes(), "Größe \"€\""),
            (b"a\nb\tc\x1b[31m\x00", "a\\nb\\tc\\u{1b}[31m\\0"),
            (b"C:\\x", "C:\\\\x"),
            ("a\u{202e}b\u{2028}".as_bytes(), "a\\u{202e}b\\u{2028}"),
            (b"\xff\xfea", "\\xff\\xfea"),
            (b"", ""),
        ];
        for (bytes, expected) in names {
            assert_eq!(&*escape_name(bytes), expected);
        }
        assert_eq!(escape_name(&[b'x'; 513]).len(), 515);
        assert_eq!(escape_name(&[0xff; 600]).len(), 4 * 512 + 3);
    }

    #[test]
    fn names_in_text_cannot_be_taken_for_other_parts_of_it() {
        for (name, user, path) in [
            ("bob", "bob", "bob"),
            ("jörg.b_1-x+y@example.net", "jörg.b_1-x+y@example.net", "jörg.b_1-x+y@example.net"),
            ("/pub/q3.csv", "\"/pub/q3.csv\"", "/pub/q3.csv"),
            ("a@b@c", "\"a@b@c\"", "a@b@c"),
            ("x STOR /y: 226", "\"x STOR /y: 226\"", "\"x STOR /y: 226\""),
            ("a\"b", r#""a\"b""#, r#""a\"b""#),
            (r"a\\b c", r#""a\\b c""#, r#""a\\b c""#),
            ("", "\"\"", ""),
        ] {
            assert_eq!(NameInText::User(name).to_string(), user);
            assert_eq!(NameInText::Path(name).to_string(), path);
        }
    }

    #[test]
    fn paths_are_resolved() {
        for (directory, path, expected) in [
            ("/", "a", "/a"),
            ("/pub", "q3.csv", "/pub/q3.csv"),
            ("/pub", "/etc/x", "/etc/x"),
            ("/pub/in", "../out/./f", "/pub/out/f"),
            ("/", "../../f", "/f"),
            ("/pub/", "", "/pub"),
        ] {
            assert_eq!(&*resolve_path(directory, path), expected);
        }
    }
}
