//! `ftp-alg broker`: the helper process of a confined daemon, see `kernel::broker`.

use std::path::PathBuf;

use clap::Args;

use super::Failure;
use crate::daemon;

/// The daemon's broker; only the daemon starts it
#[derive(Args, Debug)]
pub struct Broker {
    /// The user to become
    #[arg(long)]
    user: Option<String>,
    /// The files that it may read for the daemon
    files: Vec<PathBuf>,
}

impl Broker {
    /// Serves the daemon at the other end of standard input until the daemon ends.
    pub fn run(&self) -> Result<(), Failure> {
        Ok(daemon::serve_as_broker(self.user.as_deref(), self.files.clone())?)
    }
}
