//! `ftp-alg check`: whether a configuration is valid.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{ConfigOption, Failure, output};
use crate::config;

/// Say whether a configuration is valid
///
/// Every problem is one line on standard error, with file, line, column, key, value and what is
/// allowed; the exit code is then 2. Nothing is touched, and no privileges are needed.
#[derive(Args, Debug)]
pub struct Check {
    /// The configuration file, as with --config
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigOption,
}

impl Check {
    /// Prints one line if it is.
    pub fn run(&self) -> Result<(), Failure> {
        let named = self.file.as_ref().or(self.config.config.as_ref());
        ConfigOption { config: named.cloned() }.load()?;
        let default = Path::new(config::DEFAULT_PATH);
        let path = named.map_or(default, PathBuf::as_path);
        let absent = named.is_none() && !default.exists();
        let what = if absent { "absent, so the defaults apply: valid" } else { "valid" };
        output::print_line(&format!("{}: {what}", path.display()))
    }
}
