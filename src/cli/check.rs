//! `ftp-alg check`: whether a configuration is valid.

use std::path::Path;

use clap::Args;

use super::{ConfigOption, Failure, output};
use crate::config;

/// Say whether a configuration is valid
///
/// Every problem is one line on standard error, with file, line, column, key, value and what is
/// allowed; the exit code is then 2. Nothing is touched, and no privileges are needed.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Check {
    #[command(flatten)]
    config: ConfigOption,
}

impl Check {
    /// Prints one line if it is.
    pub fn run(&self) -> Result<(), Failure> {
        self.config.load()?;
        let default = Path::new(config::DEFAULT_PATH);
        let path = self.config.config.as_deref().unwrap_or(default);
        let absent = self.config.config.is_none() && !default.exists();
        let what = if absent { "absent, so the defaults apply: valid" } else { "valid" };
        output::print_line(&format!("{}: {what}", path.display()))
    }
}
