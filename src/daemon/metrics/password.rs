//! The password of the endpoint: HTTP basic authentication (RFC 7617), by `[metrics] password-file`.
//!
//! Invariant: nothing prints it. Errors and log lines name the file alone.

use std::{
    fmt, fs,
    hint::black_box,
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use data_encoding::BASE64;
use hyper::{HeaderMap, header};

/// The maximum length of the line, in bytes. In base64 it has to fit into the head of a request.
const MAX_LINE: usize = 1024;
/// The permission to read for all users.
const READ_BY_OTHERS: u32 = 0o004;

/// Why there is no password.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    #[error("metrics.password-file: cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("metrics.password-file: {} {what}; its first line must be USER:PASSWORD", path.display())]
    Content { path: PathBuf, what: &'static str },
}

/// What a client has to send.
pub struct Password {
    /// `USER:PASSWORD` in base64, as the header has it.
    token: String,
    /// Whether all users may read the file.
    pub is_public: bool,
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password")
    }
}

impl Password {
    /// The password of the file at `path`, whose text `read` gets.
    pub fn of_file(
        path: &Path,
        read: impl Fn(&Path) -> io::Result<String>,
    ) -> Result<Self, PasswordError> {
        let text = fs::metadata(path).and_then(|found| match found.is_file() {
            // The read of a pipe could wait without end.
            false => Err(io::Error::other("it is not a regular file")),
            true => Ok((found.permissions().mode() & READ_BY_OTHERS != 0, read(path)?)),
        });
        let path = || path.to_owned();
        let (is_public, text) =
            text.map_err(|source| PasswordError::Read { path: path(), source })?;
        let token = token(&text).map_err(|what| PasswordError::Content { path: path(), what })?;
        Ok(Self { token, is_public })
    }

    /// Whether a request with these headers has the password.
    pub(super) fn is_in(&self, headers: &HeaderMap) -> bool {
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((scheme, token)) = value.and_then(|value| value.split_once(' ')) else {
            return false;
        };
        scheme.eq_ignore_ascii_case("basic")
            && are_equal(token.trim().as_bytes(), self.token.as_bytes())
    }
}

/// The first line of `text` in base64, or what is wrong with it.
fn token(text: &str) -> Result<String, &'static str> {
    let line = text.lines().next().unwrap_or_default();
    match line.split_once(':') {
        _ if line.is_empty() => Err("has an empty first line"),
        _ if line.len() > MAX_LINE => Err("has a first line of more than 1024 bytes"),
        None => Err("has no colon in its first line"),
        Some((_, "")) => Err("has no password behind the colon"),
        Some(_) => Ok(BASE64.encode(line.as_bytes())),
    }
}

/// Whether both are equal. The time says how long they are, and nothing else.
fn are_equal(one: &[u8], other: &[u8]) -> bool {
    let difference = one.iter().zip(other).fold(0, |found, (a, b)| found | (a ^ b));
    one.len() == other.len() && black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;
    use crate::config;

    fn of_text(text: &[u8]) -> Result<Password, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let password = Password::of_file(file.path(), config::read_text);
        password.map_err(|error| error.to_string().replace(file.path().to_str().unwrap(), "FILE"))
    }

    fn admits(text: &str, value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        of_text(text.as_bytes()).unwrap().is_in(&headers)
    }

    #[test]
    fn the_first_line_has_the_password() {
        // The example of RFC 7617.
        let rfc = "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==";
        for text in ["", "\n", "\r\n", "\nbob:other\n"] {
            assert!(admits(&format!("Aladdin:open sesame{text}"), rfc), "{text:?}");
        }
        assert!(admits("Aladdin:open sesame", "bAsIc  QWxhZGRpbjpvcGVuIHNlc2FtZQ== "));
        assert!(admits("a:b:c", &format!("Basic {}", BASE64.encode(b"a:b:c"))));
        for wrong in [
            "",
            "Basic",
            "Basic ",
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=",
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZR==",
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==QWxh",
            "Basic Aladdin:open sesame",
            "Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
        ] {
            assert!(!admits("Aladdin:open sesame", wrong), "{wrong}");
        }
        assert!(!of_text(b"a:b").unwrap().is_in(&HeaderMap::new()));
    }

    #[test]
    fn a_file_without_a_password_is_an_error_that_does_not_show_it() {
        let long = format!("bob:{}", "x".repeat(MAX_LINE));
        for (text, what) in [
            ("", "FILE has an empty first line"),
            ("\nbob:secret", "FILE has an empty first line"),
            ("secret", "FILE has no colon in its first line"),
            ("bob:\n", "FILE has no password behind the colon"),
            (&long, "FILE has a first line of more than 1024 bytes"),
        ] {
            let error = of_text(text.as_bytes()).unwrap_err();
            let advice = "its first line must be USER:PASSWORD";
            assert_eq!(error, format!("metrics.password-file: {what}; {advice}"));
        }
        let error = of_text(&vec![b'x'; 2 << 20]).unwrap_err();
        assert!(error.contains("cannot read FILE: the file has more than"), "{error}");
        assert!(of_text(b"bob:\xff").unwrap_err().contains("save it as UTF-8"));
        let error = Password::of_file(Path::new("/dev/zero"), config::read_text).unwrap_err();
        assert!(error.to_string().contains("it is not a regular file"), "{error}");
        assert_eq!(format!("{:?}", of_text(b"bob:secret").unwrap()), "Password");
    }
}
