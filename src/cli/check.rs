//! `ftp-alg check`: checks a configuration.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{ConfigOption, Failure, output};
use crate::config;

/// Check whether a configuration is valid
///
/// Each problem is one line on standard error: file, line, column, key, value
/// and the values that are allowed. The exit code is then 2. The command changes
/// nothing and needs no privileges.
#[derive(Args, Debug)]
pub struct Check {
    /// The configuration file; same as --config
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigOption,
}

impl Check {
    /// Prints one line if the configuration is valid.
    pub fn run(&self) -> Result<(), Failure> {
        let named = self.file.as_ref().or(self.config.config.as_ref());
        ConfigOption { config: named.cloned() }.load()?;
        let default = Path::new(config::DEFAULT_PATH);
        let path = named.map_or(default, PathBuf::as_path);
        let absent = named.is_none() && !default.exists();
        let what =
            if absent { "valid: the file does not exist, so the defaults apply" } else { "valid" };
        output::print_line(&format!("{}: {what}", path.display()))
    }
}
