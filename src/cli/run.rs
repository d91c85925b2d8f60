//! `ftp-alg run`: the daemon, in the foreground.

use std::path::PathBuf;

use clap::{Args, builder::PossibleValuesParser};

use super::{ConfigOption, Failure, SocketOption};
use crate::daemon;

/// Run the gateway in the foreground
///
/// Loads its rules into a table of its own (inet ftp_alg), opens its queues, and handles control
/// connections until SIGTERM or SIGINT ends it; then the rules are gone again. SIGHUP reads the
/// configuration again; if that is not valid, the old one stays in use.
///
/// Before the first packet it gives up all rights but CAP_NET_ADMIN, CAP_NET_RAW and those to its
/// own directory, for good; what this machine cannot confine is logged, and shown by `status`.
///
/// Logs go to the journal with priorities and fields where standard error is the
/// journal, else to standard error with the time. --log-level says how much; it
/// wins over the variable FTP_ALG_LOG, which also takes filters such as
/// `info,ftp_alg::gateway=debug`. `ftp-alg log-level` changes it later. A service
/// manager is told when it is ready (sd_notify).
#[derive(Args, Debug)]
pub struct Run {
    #[command(flatten)]
    config: ConfigOption,
    /// The daemon's own directory; made if it is absent, and nobody else may write to it
    #[arg(long, value_name = "DIR", default_value = daemon::DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    #[command(flatten)]
    socket: SocketOption,
    /// Become this user and its group; needs root [default: stay who it is]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// End the ftp-alg that runs in this network namespace, and go on in its place
    ///
    /// It has 10 seconds to end. Its sessions go on if the state directory is the same.
    #[arg(long)]
    takeover: bool,
    /// How much is logged [default: FTP_ALG_LOG, else info]
    #[arg(long, value_name = "LEVEL", value_parser = PossibleValuesParser::new(daemon::LEVELS))]
    log_level: Option<String>,
}

impl Run {
    pub fn run(&self) -> Result<(), Failure> {
        let options = daemon::DaemonOptions {
            config: self.config.config.clone(),
            state_dir: self.state_dir.clone(),
            socket: self.socket.socket.clone(),
            user: self.user.clone(),
            takeover: self.takeover,
            log_level: self.log_level.clone(),
        };
        Ok(daemon::run(&options)?)
    }
}
