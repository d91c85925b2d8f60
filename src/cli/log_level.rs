//! `ftp-alg log-level`: shows or sets the log level of the running daemon.

use clap::{Args, builder::PossibleValuesParser};

use super::{Failure, SocketOption, output};
use crate::daemon;

/// Show or set the log level of the running daemon
///
/// The level applies until the daemon ends. Only the daemon's user and root can
/// set it.
#[derive(Args, Debug)]
pub struct LogLevel {
    /// The new level; without it, the current level is printed
    #[arg(value_name = "LEVEL", value_parser = PossibleValuesParser::new(daemon::LEVELS))]
    level: Option<String>,
    #[command(flatten)]
    socket: SocketOption,
}

impl LogLevel {
    pub fn run(&self) -> Result<(), Failure> {
        let request = match &self.level {
            Some(level) => format!("log-level {level}"),
            None => "log-level".to_owned(),
        };
        output::print_line(&self.socket.request(&request)?.parse::<String>()?)
    }
}
