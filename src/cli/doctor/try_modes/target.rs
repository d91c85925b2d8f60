//! The argument of `--try`: a server and a login.

use std::{fmt, path::Path};

use percent_encoding::percent_decode_str;
use url::{Host, Url};

use crate::config;

/// The environment variable that may have the password.
const PASSWORD_VARIABLE: &str = "FTP_ALG_PASSWORD";
const URL_FORM: &str = "use ftp://[USER[:PASSWORD]@]HOST[:PORT], or ftps://, or ftpes://";

/// How the control connection is encrypted.
#[derive(Clone, Copy)]
pub(super) enum Encryption {
    None,
    /// By `AUTH TLS`.
    Explicit,
    /// TLS from the first byte.
    Implicit,
}

/// A server and a login. It has no `Debug`, so that no message has the password.
pub(super) struct TryTarget {
    pub(super) encryption: Encryption,
    /// Whether any certificate is accepted.
    pub(super) is_insecure: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: String,
    /// The password, if the user gave one.
    pub(super) password: Option<String>,
}

impl fmt::Display for TryTarget {
    /// The URL without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { encryption, host, port, user, .. } = self;
        let scheme = match encryption {
            Encryption::None => "ftp",
            Encryption::Explicit => "ftpes",
            Encryption::Implicit => "ftps",
        };
        match host.contains(':') {
            true => write!(f, "{scheme}://{user}@[{host}]:{port}"),
            false => write!(f, "{scheme}://{user}@{host}:{port}"),
        }
    }
}

impl TryTarget {
    /// Parses a URL. A password in `file`, or in the environment, overrides the one in the URL.
    ///
    /// Error messages do not contain the URL, because it may contain a password.
    pub(super) fn new(url: &str, file: Option<&Path>, is_insecure: bool) -> Result<Self, String> {
        let mut target = Self { is_insecure, ..Self::from_url(url)? };
        let given = match file {
            Some(path) => Some(
                config::read_text(path)
                    .map_err(|error| format!("--password-file {}: {error}", path.display()))?,
            ),
            None => std::env::var(PASSWORD_VARIABLE).ok(),
        };
        if let Some(text) = given {
            target.password = Some(text.lines().next().unwrap_or_default().to_owned());
        }
        if target.user == "anonymous" {
            target.password.get_or_insert_with(|| "ftp-alg@".to_owned());
        }
        // A line feed would start another FTP command.
        let words = [Some(&target.user), target.password.as_ref()];
        if words.into_iter().flatten().any(|word| word.contains(char::is_control)) {
            return Err("--try: control character in the user name or the password".to_owned());
        }
        Ok(target)
    }

    pub(super) fn is_encrypted(&self) -> bool {
        !matches!(self.encryption, Encryption::None)
    }

    fn from_url(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("--try: {error}; {URL_FORM}"))?;
        let (encryption, port) = match url.scheme() {
            "ftp" => (Encryption::None, 21),
            "ftpes" => (Encryption::Explicit, 21),
            "ftps" => (Encryption::Implicit, 990),
            other => {
                return Err(format!("--try: scheme `{other}` is not supported; {URL_FORM}"));
            }
        };
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(format!("--try: the URL has a path; {URL_FORM}"));
        }
        // `Url` takes the host of a scheme that it does not know as it is.
        let host = match url.host_str().and_then(|host| Host::parse(host).ok()) {
            Some(Host::Domain(name)) => name,
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => return Err(format!("--try: the URL has no host; {URL_FORM}")),
        };
        let decoded = |text| {
            let text = percent_decode_str(text).decode_utf8();
            text.map(String::from).map_err(|_| "--try: the login is not UTF-8".to_owned())
        };
        let user = match url.username() {
            "" => "anonymous".to_owned(),
            user => decoded(user)?,
        };
        let password = url.password().map(decoded).transpose()?;
        let port = url.port().unwrap_or(port);
        Ok(Self { encryption, is_insecure: false, host, port, user, password })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_has_a_host_and_optional_parts() {
        for (url, said, password) in [
            ("ftp://h", "ftp://anonymous@h:21", Some("ftp-alg@")),
            ("ftp://h:2121/", "ftp://anonymous@h:2121", Some("ftp-alg@")),
            ("ftp://u@198.51.100.1", "ftp://u@198.51.100.1:21", None),
            ("ftps://h", "ftps://anonymous@h:990", Some("ftp-alg@")),
            ("FTPES://u@198.51.100.1:2121", "ftpes://u@198.51.100.1:2121", None),
            ("ftps://F%c3%bcr.test", "ftps://anonymous@xn--fr-xka.test:990", Some("ftp-alg@")),
            ("ftps://u@[2001:db8::1]:21", "ftps://u@[2001:db8::1]:21", None),
            ("ftp://u:p%40x%25@[2001:db8::1]", "ftp://u@[2001:db8::1]:21", Some("p@x%")),
        ] {
            let target = TryTarget::new(url, None, false).unwrap();
            assert_eq!(target.to_string(), said);
            assert_eq!(target.password.as_deref(), password, "{url}");
        }
    }

    #[test]
    fn unsupported_url_is_refused_without_showing_its_password() {
        for url in [
            "h",
            "http://u:secret@h",
            "sftp://u:secret@h",
            "ftp://",
            "ftps://",
            "ftpes://u:secret@:21",
            "ftps://u:secret@h/file",
            "ftp://u:secret@h/file",
            "ftp://u:secret@h:99999",
            "ftp://u:secret%0d%0aDELE%20x@h",
            "ftp://u:secret%ff@h",
        ] {
            let error = TryTarget::new(url, None, false).err().unwrap();
            assert!(error.starts_with("--try: ") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn password_is_the_first_line_of_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "of the file\nmore\n").unwrap();
        let target = TryTarget::new("ftp://u:other@h", Some(file.path()), false).unwrap();
        assert_eq!(target.password.as_deref(), Some("of the file"));
        let error =
            TryTarget::new("ftp://h", Some(Path::new("/nonexistent")), false).err().unwrap();
        assert!(error.starts_with("--password-file /nonexistent: "), "{error}");
    }
}
