//! `ftp-alg run`: the daemon, in the foreground.

use std::path::PathBuf;

use clap::{Args, builder::PossibleValuesParser};

use super::{ConfigOption, Failure, SocketOption};
use crate::daemon;

/// Run the gateway in the foreground
///
/// The daemon loads its rules into the table inet ftp_alg, opens its queues and
/// inspects control connections. SIGTERM or SIGINT ends it; it then removes the
/// rules. SIGHUP makes it read the configuration again. If the new configuration
/// is not valid, the old one stays in use.
///
/// Before the first packet, the daemon gives up all privileges except
/// CAP_NET_ADMIN, CAP_NET_RAW and access to its own directory. If the machine
/// cannot confine it completely, the log and `status` say what is missing.
///
/// If standard error is the journal, log lines have priorities and fields.
/// Otherwise they have the time. --log-level sets the level and overrides the
/// variable FTP_ALG_LOG. The variable also accepts filters such as
/// `info,ftp_alg::kernel=debug`. `ftp-alg log-level` changes the level later.
/// The daemon notifies the service manager when it is ready (sd_notify).
#[derive(Args, Debug)]
pub(super) struct RunOptions {
    #[command(flatten)]
    config: ConfigOption,
    /// The daemon's own directory; created if absent; nobody else may write to it
    #[arg(long, value_name = "DIR", default_value = daemon::DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    #[command(flatten)]
    socket: SocketOption,
    /// Switch to this user and its group; needs root [default: no switch]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Replace the ftp-alg that runs in this network namespace
    ///
    /// The running daemon has 10 seconds to end. Its sessions continue if the
    /// state directory is the same.
    #[arg(long)]
    takeover: bool,
    /// The log level [default: FTP_ALG_LOG, or info]
    #[arg(long, value_name = "LEVEL", value_parser = PossibleValuesParser::new(daemon::LEVELS))]
    log_level: Option<String>,
}

impl RunOptions {
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
