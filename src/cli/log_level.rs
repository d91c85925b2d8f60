//! `ftp-alg log-level`: how much the running daemon logs.

use clap::{Args, builder::PossibleValuesParser};

use super::{Failure, SocketOption, output};
use crate::daemon;

/// Show or set how much the running daemon logs
///
/// What is set holds until the daemon ends. Only its user and root may set it.
#[derive(Args, Debug)]
pub struct LogLevel {
    /// The level from now on; without it the level is shown
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
