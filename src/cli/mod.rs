//! The commands, one file each.
//!
//! This file has the parts that commands share: parsing the arguments, errors ([`Failure`]), and common options.
//! `main` only maps the result to an exit code.

mod broker;
mod check;
mod completions;
#[cfg(feature = "demo")]
mod demo;
mod doctor;
mod log_level;
mod manual;
mod output;
mod pinholes;
mod replay;
mod rules;
mod run;
mod sessions;
mod setup;
mod status;
mod table;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};
use serde::de::DeserializeOwned;

use crate::{
    config::{self, Config, ConfigError},
    daemon::{self, DaemonError, control_client, snapshot},
};

/// How long a command waits for an answer of the daemon.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The last section of each help text.
const EXIT_STATUS: &str = "EXIT STATUS:
  0  done
  1  failed: standard error says why, and what to do
  2  wrong usage or configuration";
/// The version, with the commit that it was built from.
const VERSION: &str = env!("FTP_ALG_VERSION");

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Wrong arguments or a wrong configuration; one line for each problem.
    #[error("{0}")]
    Usage(String),
    /// The command failed; one line for each problem.
    #[error("{0}")]
    Failed(String),
    /// Standard output is closed, as in `ftp-alg sessions | head -1`. This is no error, but the command ends because
    /// nobody reads its output.
    #[error("standard output is closed")]
    Closed,
}

impl Failure {
    /// FTP does not work. The `count` problems were already printed.
    fn from_problem_count(count: usize) -> Self {
        Self::Failed(match count {
            1 => "1 problem keeps FTP from working".to_owned(),
            many => format!("{many} problems keep FTP from working"),
        })
    }

    /// Wraps any error of a command that failed.
    pub fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    /// The exit code, and the lines for standard error.
    pub fn report(&self) -> (u8, Vec<String>) {
        let (code, text) = match self {
            Self::Closed => return (0, Vec::new()),
            Self::Failed(text) => (1, text),
            Self::Usage(text) => (2, text),
        };
        // Without a priority, journald logs a line with priority info (sd-daemon(3)).
        let priority = if daemon::logs_to_journal() { "<3>" } else { "" };
        (code, text.lines().map(|line| format!("{priority}ftp-alg: {line}")).collect())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        match error {
            DaemonError::Config(_) | DaemonError::Log { .. } | DaemonError::Account(_) => {
                Self::Usage(error.to_string())
            }
            other => Self::failed(other),
        }
    }
}

impl From<control_client::ClientError> for Failure {
    fn from(error: control_client::ClientError) -> Self {
        Self::failed(error)
    }
}

/// Runs the command in `arguments`, which start with the name of the program.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let matches = program().try_get_matches_from(&arguments);
    match matches.and_then(|matches| Arguments::from_arg_matches(&matches)) {
        Ok(arguments) => arguments.command.run(),
        Err(error) => print_help_or_fail(&error, &arguments),
    }
}

/// The command line with all commands. Each help text ends with the exit codes.
fn program() -> clap::Command {
    Arguments::command().mut_subcommands(|part| part.after_help(EXIT_STATUS))
}

/// FTP through NAT and default drop: reads control connections, rewrites
/// endpoints that NAT makes wrong, opens one pinhole for each data connection.
///
/// See `ftp-alg COMMAND --help` for each command.
#[derive(Debug, Parser)]
#[command(
    name = "ftp-alg",
    version = VERSION,
    max_term_width = 80,
    after_help = EXIT_STATUS
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Check(check::Check),
    Doctor(doctor::Doctor),
    Rules(rules::Rules),
    Setup(setup::Setup),
    Status(status::Status),
    Sessions(sessions::Sessions),
    Pinholes(pinholes::Pinholes),
    LogLevel(log_level::LogLevel),
    Replay(replay::Replay),
    #[cfg(feature = "demo")]
    Demo(demo::Demo),
    Completions(completions::Completions),
    /// Print the version and the commit it was built from
    Version,
    /// Print the manual page
    #[command(hide = true)]
    Manual,
    #[command(name = daemon::BROKER_COMMAND, hide = true)]
    Broker(broker::Broker),
}

impl Command {
    fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Run(command) => command.run(),
            Self::Check(command) => command.run(),
            Self::Doctor(command) => command.run(),
            Self::Rules(command) => command.run(),
            Self::Setup(command) => command.run(),
            Self::Status(command) => command.run(),
            Self::Sessions(command) => command.run(),
            Self::Pinholes(command) => command.run(),
            Self::LogLevel(command) => command.run(),
            Self::Replay(command) => command.run(),
            #[cfg(feature = "demo")]
            Self::Demo(command) => command.run(),
            Self::Completions(command) => command.run(&program()),
            Self::Version => output::print_line(&format!("ftp-alg {VERSION}")),
            Self::Manual => manual::print(program()),
            Self::Broker(command) => command.run(),
        }
    }
}

/// Prints help or version if the user asked for it. Any other error is wrong usage, reported in one line.
fn print_help_or_fail(error: &clap::Error, arguments: &[OsString]) -> Result<(), Failure> {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => output::print(&text),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            Err(Failure::Usage("no command given; `ftp-alg --help` lists the commands".to_owned()))
        }
        _ => {
            let command = arguments.get(1).and_then(|word| word.to_str());
            let command =
                command.filter(|word| Arguments::command().find_subcommand(word).is_some());
            let command = command.map_or(String::new(), |command| format!("{command} "));
            let problem = one_line(&text);
            Err(Failure::Usage(format!("{problem}; see `ftp-alg {command}--help`")))
        }
    }
}

/// The error text of clap in one line: the error and the tips, without the layout.
fn one_line(text: &str) -> String {
    let parts: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .map(|line| line.trim_start_matches("error: ").trim_start_matches("tip: "))
        .collect();
    parts.join("; ").replace(":; ", ": ")
}

/// `--config`.
#[derive(Args, Debug)]
struct ConfigOption {
    #[arg(long, value_name = "FILE", help = config_help())]
    config: Option<PathBuf>,
}

fn config_help() -> String {
    format!("The configuration file [default: {}, if it exists]", config::DEFAULT_PATH)
}

impl ConfigOption {
    /// Reads the configuration.
    fn load(&self) -> Result<Config, Failure> {
        Ok(Config::load(self.config.as_deref())?)
    }
}

/// `--socket`.
#[derive(Args, Debug)]
struct SocketOption {
    /// The daemon's control socket
    #[arg(long, value_name = "SOCKET", default_value = daemon::DEFAULT_SOCKET)]
    socket: PathBuf,
}

impl SocketOption {
    /// Sends the request `what` to the daemon.
    fn request(
        &self,
        what: &str,
    ) -> Result<control_client::DaemonAnswer, control_client::ClientError> {
        control_client::request(&self.socket, what, ANSWER_TIMEOUT)
    }

    /// The status of the daemon.
    fn status(&self) -> Result<snapshot::Status, control_client::ClientError> {
        self.request("status")?.parse()
    }

    /// Requests the rows of `what` and prints them, as JSON or formatted by `text`.
    fn print_rows<T: DeserializeOwned>(
        &self,
        what: &str,
        json: bool,
        text: fn(&[T]) -> String,
    ) -> Result<(), Failure> {
        let answer = self.request(what)?;
        if json {
            output::print_line(answer.json())
        } else {
            output::print(&text(&answer.parse::<Vec<_>>()?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(arguments: &[&str]) -> String {
        let arguments = ["ftp-alg"].iter().chain(arguments).map(OsString::from);
        match run(arguments) {
            Err(Failure::Usage(text)) => text,
            other => panic!("no usage error: {other:?}"),
        }
    }

    #[test]
    fn options_of_all_commands_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_one_line_with_a_hint_at_help() {
        let cases: [(&[&str], &str); 5] = [
            (&[], "no command given; `ftp-alg --help` lists the commands"),
            (
                &["doctr"],
                "unrecognized subcommand 'doctr'; a similar subcommand exists: 'doctor'; \
                 see `ftp-alg --help`",
            ),
            (
                &["status", "--jsn"],
                "unexpected argument '--jsn' found; a similar argument exists: '--json'; \
                 see `ftp-alg status --help`",
            ),
            (
                &["replay"],
                "the following required arguments were not provided: <CAPTURE>; \
                 see `ftp-alg replay --help`",
            ),
            (
                &["status", "--wait", "soon"],
                "invalid value 'soon' for '--wait <SECS>': use 0 to 86400 seconds; \
                 see `ftp-alg status --help`",
            ),
        ];
        for (arguments, expected) in cases {
            assert_eq!(usage(arguments), expected);
        }
    }

    #[test]
    fn each_problem_is_one_line_with_the_program_name() {
        let (code, lines) = Failure::Usage("a\nb".into()).report();
        assert_eq!((code, lines), (2, vec!["ftp-alg: a".to_owned(), "ftp-alg: b".to_owned()]));
        assert_eq!(Failure::Closed.report(), (0, Vec::new()));
    }
}
