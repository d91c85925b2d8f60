//! The argument of `--try`: a server and a login.

use std::{fmt, path::Path};

use percent_encoding::percent_decode_str;
use url::{Host, Url};

use crate::config;

/// The environment variable that may have the password.
const PASSWORD_VARIABLE: &str = "FTP_ALG_PASSWORD";
const URL_FORM: &str = "use ftp://[USER[:PASSWORD]@]HOST[:PORT]";

/// A server and a login. It has no `Debug`, so that no message has the password.
pub(super) struct TryTarget {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: String,
    /// The password, if the user gave one.
    pub(super) password: Option<String>,
}

impl fmt::Display for TryTarget {
    /// The URL without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, user, .. } = self;
        match host.contains(':') {
            true => write!(f, "ftp://{user}@[{host}]:{port}"),
            false => write!(f, "ftp://{user}@{host}:{port}"),
        }
    }
}

impl TryTarget {
    /// Parses a URL. A password in `file`, or in the environment, overrides the one in the URL.
    ///
    /// Error messages do not contain the URL, because it may contain a password.
    pub(super) fn new(url: &str, file: Option<&Path>) -> Result<Self, String> {
        let mut target = Self::from_url(url)?;
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

    fn from_url(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("--try: {error}; {URL_FORM}"))?;
        if url.scheme() != "ftp" {
            return Err(format!("--try: scheme `{}` is not supported; {URL_FORM}", url.scheme()));
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(format!("--try: the URL has a path; {URL_FORM}"));
        }
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
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
        Ok(Self { host, port: url.port().unwrap_or(21), user, password })
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
            ("ftp://u:p%40x%25@[2001:db8::1]", "ftp://u@[2001:db8::1]:21", Some("p@x%")),
        ] {
            let target = TryTarget::new(url, None).unwrap();
            assert_eq!(target.to_string(), said);
            assert_eq!(target.password.as_deref(), password, "{url}");
        }
    }

    #[test]
    fn unsupported_url_is_refused_without_showing_its_password() {
        for url in [
            "h",
            "http://u:secret@h",
            "ftps://u:secret@h",
            "ftp://",
            "ftp://u:secret@h/file",
            "ftp://u:secret@h:99999",
            "ftp://u:secret%0d%0aDELE%20x@h",
            "ftp://u:secret%ff@h",
        ] {
            let error = TryTarget::new(url, None).err().unwrap();
            assert!(error.starts_with("--try: ") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn password_is_the_first_line_of_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "of the file\nmore\n").unwrap();
        let target = TryTarget::new("ftp://u:other@h", Some(file.path())).unwrap();
        assert_eq!(target.password.as_deref(), Some("of the file"));
        let error = TryTarget::new("ftp://h", Some(Path::new("/nonexistent"))).err().unwrap();
        assert!(error.starts_with("--password-file /nonexistent: "), "{error}");
    }
}
