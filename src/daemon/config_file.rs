//! The configuration file, and whether the daemon uses what it says.

use std::{
    fs, io,
    path::{self, Path, PathBuf},
    sync::Mutex,
};

use serde::{Deserialize, Serialize};

use super::{health::ProblemName, shard::lock, snapshot::Finding};
use crate::{
    config::{self, Change, Config, ConfigError, DEFAULT_PATH},
    kernel::broker,
};

/// The configuration file, and the configuration in use.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    /// Whether it is the default file, which may be absent at a start.
    is_default: bool,
    /// The text at the start, which has the fixed keys, and its configuration.
    started: (String, Config),
    known: Mutex<FileState>,
}

#[derive(Debug)]
struct FileState {
    /// The text that was loaded last.
    loaded: String,
    /// Whether the file was read. A reload then refuses an absent file, because nobody removes a file to have the
    /// defaults.
    was_there: bool,
    in_use: Config,
    /// The text that was seen last, or why there was none.
    seen: Option<Result<String, String>>,
    difference: Option<Finding>,
}

/// The texts that have the configuration in use.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfigTexts {
    /// The file.
    pub file: PathBuf,
    /// The text at the daemon's start, which has the fixed keys.
    pub started: String,
    /// The text at the last reload, which has all other keys.
    pub loaded: String,
}

impl ConfigTexts {
    /// The configuration.
    pub fn in_use(&self) -> Result<Config, ConfigError> {
        let started = Config::parse(&self.started, &self.file)?;
        Ok(Config::parse(&self.loaded, &self.file)?.with_fixed_keys_of(&started))
    }
}

impl ConfigFile {
    /// Reads the file at `path`, as [`Config::load`] does, to use it.
    pub(super) fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let read = broker::read(path.unwrap_or(Path::new(DEFAULT_PATH)));
        let (text, was_there) = (read.as_ref().cloned().unwrap_or_default(), read.is_ok());
        let config = Config::from_read(path, read)?;
        let (loaded, in_use) = (text.clone(), config.clone());
        let known = FileState { loaded, was_there, in_use, seen: None, difference: None };
        let is_default = path.is_none();
        let path = path.unwrap_or(Path::new(DEFAULT_PATH)).to_owned();
        Ok(Self { path, is_default, started: (text, config), known: Mutex::new(known) })
    }

    /// The configuration in use.
    pub(super) fn in_use(&self) -> Config {
        lock(&self.known).in_use.clone()
    }

    /// The texts of the configuration in use.
    pub(super) fn texts_in_use(&self) -> ConfigTexts {
        let (started, loaded) = (self.started.0.clone(), lock(&self.known).loaded.clone());
        let file = path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        ConfigTexts { file, started, loaded }
    }

    /// Reads the file again and uses its configuration, with the fixed keys of before. Returns the configuration and
    /// its changes. Logs why a file is refused.
    pub(super) fn load_again(&self) -> Result<(Config, Vec<Change>), ConfigError> {
        let read = broker::read(&self.path);
        let (text, is_there) = (read.as_ref().cloned().unwrap_or_default(), read.is_ok());
        let mut known = lock(&self.known);
        let loaded = self.config_of(&known, read);
        let mut changes = Vec::new();
        match &loaded {
            Ok(new) => {
                let fixed = self.started.1.fixed_keys_changed(new);
                changes = config::changes(&known.loaded, &text);
                changes.retain(|change| !fixed.contains(&&*change.key));
                (known.loaded, known.was_there) = (text, is_there);
                for key in fixed {
                    log_event!(
                        RELOAD_KEY_FIXED,
                        key,
                        "reload: {key} keeps its old value, because it changes only at a restart: \
                         systemctl restart ftp-alg"
                    );
                }
                known.in_use = new.clone().with_fixed_keys_of(&known.in_use);
            }
            Err(error) => {
                for line in error.to_string().lines() {
                    log_event!(RELOAD_REFUSED, "reload: {line}");
                }
                let (what, remedy) = match is_of_file(error) {
                    true => ("the new configuration is refused", "correct the file"),
                    false => ("the file was not read", "see ftp-alg status"),
                };
                log_event!(
                    RELOAD_REFUSED,
                    "reload: {what}, and the old one stays in use: {remedy}, then reload"
                );
            }
        }
        if self.has_stored_text() && loaded.as_ref().err().is_none_or(is_of_file) {
            known.difference = self.compare(loaded.as_ref(), &known.in_use);
        }
        loaded.map(|_| (known.in_use.clone(), changes))
    }

    /// Compares the file with what is in use. Called each second: a file that is being written is
    /// compared when it stays as it is. A pipe has its text once, so it is not read again.
    pub(super) fn examine(&self) {
        if !self.has_stored_text() {
            return;
        }
        let read = broker::read(&self.path);
        if read.as_ref().err().is_some_and(broker::gave_no_answer) {
            return;
        }
        let seen = read.as_ref().map_err(io::Error::to_string).cloned();
        let mut known = lock(&self.known);
        if known.seen.as_ref() != Some(&seen) {
            known.seen = Some(seen);
        } else {
            let loaded = self.config_of(&known, read);
            known.difference = self.compare(loaded.as_ref(), &known.in_use);
        }
    }

    /// How the file differs from what is in use.
    pub(super) fn difference(&self) -> Option<Finding> {
        lock(&self.known).difference.clone()
    }

    /// Whether the path has a regular file, or none.
    fn has_stored_text(&self) -> bool {
        fs::metadata(&self.path).map_or(true, |found| found.is_file())
    }

    /// The configuration in what was `read` of the file now.
    fn config_of(
        &self,
        known: &FileState,
        read: io::Result<String>,
    ) -> Result<Config, ConfigError> {
        let may_be_absent = self.is_default && !known.was_there;
        Config::from_read((!may_be_absent).then_some(&self.path), read)
    }

    fn compare(&self, loaded: Result<&Config, &ConfigError>, in_use: &Config) -> Option<Finding> {
        let path = self.path.display();
        let (name, text, remedy) = match loaded {
            Err(error) => {
                let is_absent = is_absent(error);
                let restart =
                    if is_absent && self.is_default { "has the defaults" } else { "fails" };
                let error = error.to_string();
                let mut lines = error.lines();
                let first = lines.next().unwrap_or_default();
                let more = match lines.count() {
                    0 => String::new(),
                    more => format!(" (and {more} more)"),
                };
                let text = format!(
                    "the configuration from before stays in use: a reload is refused, and a restart {restart}: {first}{more}"
                );
                let remedy = match is_absent {
                    true => format!(
                        "write {path} again: if it is empty, the defaults apply; then reload"
                    ),
                    false => format!("correct the file, see ftp-alg check {path}; then reload"),
                };
                (ProblemName::Config, text, remedy)
            }
            Ok(new) => {
                let fixed = self.started.1.fixed_keys_changed(new);
                if new.clone().with_fixed_keys_of(in_use) != *in_use {
                    let text = format!("{path} was changed, and is not in use yet");
                    (ProblemName::ConfigPending, text, "systemctl reload ftp-alg".to_owned())
                } else if fixed.is_empty() {
                    return None;
                } else {
                    let text = format!(
                        "{path} has other values than are in use, of keys that a reload does not change: {}",
                        fixed.join(", ")
                    );
                    (ProblemName::ConfigPending, text, "systemctl restart ftp-alg".to_owned())
                }
            }
        };
        Some(name.finding_with(text, remedy))
    }
}

fn is_absent(error: &ConfigError) -> bool {
    matches!(error, ConfigError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// Whether the contents of the file are the error. If the file could not be read, that is another problem.
fn is_of_file(error: &ConfigError) -> bool {
    !matches!(error, ConfigError::Read { source, .. } if broker::gave_no_answer(source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::snapshot::Problem;

    /// A file with the default configuration, in a directory that is removed with the first value.
    fn default_file() -> (tempfile::TempDir, PathBuf, ConfigFile) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ftp-alg.toml");
        fs::write(&path, "").unwrap();
        let file = ConfigFile::load(Some(&path)).unwrap();
        (directory, path, file)
    }

    fn examined(file: &ConfigFile) -> Option<(String, String, String)> {
        file.examine();
        file.examine();
        let found = file.difference();
        found.map(|(_, Problem { name, text, remedy, .. })| (name, text, remedy))
    }

    #[test]
    fn a_reload_changes_all_but_the_fixed_keys() {
        let (_directory, path, file) = default_file();
        let text = "pinhole.timeout = \"5s\"\nqueue.workers = 8\nmetrics.listen = 9821";
        fs::write(&path, text).unwrap();
        let (config, changes) = file.load_again().unwrap();
        let changes: Vec<_> = changes.into_iter().map(|change| change.text).collect();
        assert_eq!(changes, ["pinhole.timeout (default) -> 5s"], "others are fixed");
        assert_eq!(config.metrics, Config::default().metrics);
        assert_eq!(config.queue, Config::default().queue);
        assert_eq!(config.pinhole.timeout, std::time::Duration::from_secs(5));
        let (name, text, remedy) = examined(&file).unwrap();
        assert_eq!((&*name, &*remedy), ("config-pending", "systemctl restart ftp-alg"));
        assert!(text.ends_with(": queue.workers, metrics.listen"), "{text}");
        fs::write(&path, "metrics.page = false\nmetrics.password-file = \"/p\"").unwrap();
        assert_eq!(file.load_again().unwrap().0.metrics, Config::default().metrics);
        let (_, text, _) = examined(&file).unwrap();
        assert!(text.ends_with(": metrics.page, metrics.password-file"), "{text}");
        // Its ports change now, and its rules at a restart.
        fs::write(&path, "nat.port-range = \"40000-50000\"").unwrap();
        file.load_again().unwrap();
        let (_, text, remedy) = examined(&file).unwrap();
        assert!(text.ends_with(": nat.port-range (for source ports)"), "{text}");
        assert_eq!(remedy, "systemctl restart ftp-alg");
        assert_eq!(file.texts_in_use().in_use().unwrap(), file.in_use());
    }

    /// Also without a reload.
    #[test]
    fn a_file_that_differs_from_what_is_in_use_is_found() {
        let (_directory, path, file) = default_file();
        assert_eq!(examined(&file), None);
        fs::write(&path, "control-ports = []\npinhole.timeout = 5").unwrap();
        file.examine();
        assert!(file.difference().is_none(), "it may be being written");
        let (_, text, _) = examined(&file).unwrap();
        assert!(text.ends_with(" (and 1 more)") && !text.contains('\n'), "{text}");
        // The text that is in use is back within a second after a reload.
        file.load_again().unwrap_err();
        assert!(ProblemName::Config.is_of(&file.difference().unwrap().1));
        fs::write(&path, "# nothing is set\n").unwrap();
        assert_eq!(examined(&file), None);
        fs::write(&path, "pinhole.timeout = \"5s\"").unwrap();
        assert_eq!(examined(&file).unwrap().0, "config-pending");
    }

    #[test]
    fn a_file_that_is_gone_does_not_mean_the_defaults() {
        for is_default in [false, true] {
            let (_directory, path, file) = default_file();
            let file = ConfigFile { is_default, ..file };
            fs::write(&path, "policy.max-sessions = 5").unwrap();
            let (in_use, _) = file.load_again().unwrap();
            fs::remove_file(&path).unwrap();
            let error = file.load_again().unwrap_err().to_string();
            assert!(error.contains("No such file"), "{error}");
            let (name, text, remedy) = examined(&file).unwrap();
            let restart = if is_default { "a restart has the defaults" } else { "a restart fails" };
            assert!(name == "config" && text.contains(restart), "{name}: {text}");
            assert!(remedy.starts_with("write /"), "{remedy}");
            assert_eq!(file.in_use(), in_use);
            // That is how the defaults are meant.
            fs::write(&path, "").unwrap();
            assert_eq!(file.load_again().unwrap().0, Config::default());
            assert_eq!(examined(&file), None);
        }
    }

    #[test]
    fn a_default_file_may_be_absent_until_it_is_there() {
        let (_directory, path, file) = default_file();
        fs::remove_file(&path).unwrap();
        lock(&file.known).was_there = false;
        let file = ConfigFile { is_default: true, ..file };
        assert_eq!(file.load_again().unwrap().0, Config::default());
        assert_eq!(examined(&file), None);
        fs::write(&path, "").unwrap();
        file.load_again().unwrap();
        fs::remove_file(&path).unwrap();
        file.load_again().unwrap_err();
    }
}
