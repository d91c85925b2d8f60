//! `ftp-alg assistant`: what a confined daemon starts for itself, see `gateway::assistant`.

use std::path::PathBuf;

use clap::Args;

use super::Failure;
use crate::daemon;

/// The daemon's assistant; only the daemon starts it
#[derive(Args, Debug)]
pub struct Assistant {
    /// The user to become
    #[arg(long)]
    user: Option<String>,
    /// What it may read for the daemon
    files: Vec<PathBuf>,
}

impl Assistant {
    /// Works until the daemon at the other end of standard input has ended.
    pub fn run(&self) -> Result<(), Failure> {
        Ok(daemon::assist(self.user.as_deref(), self.files.clone())?)
    }
}
