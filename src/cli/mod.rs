//! The commands. Those of a few lines are in this file, and each of the others in its own.
//!
//! This file also has the parts that commands share: parsing the arguments, errors ([`Failure`]), and common options.
//! `main` only maps the result to an exit code.

mod columns;
#[cfg(feature = "demo")]
mod demo;
mod doctor;
mod event_reader;
mod events;
mod generated;
mod listings;
mod output;
mod replay;
mod run;
mod selection;
mod setup;
mod status;
mod table;
#[cfg(feature = "top")]
mod top;
mod watch;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{
    Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
    builder::PossibleValuesParser,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::{
    config::{self, Config, ConfigError},
    daemon::{
        self, DaemonError, Password, PasswordError, control_client,
        snapshot::{self, Findings},
    },
    kernel::{RuleParameters, table::rule_files},
};
use ftp_alg_firewall::IpVersion;

/// How long a command waits for an answer of the daemon.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The last section of each help text.
const EXIT_STATUS: &str = "EXIT STATUS:
  0  done
  1  failed: standard error says why, and what to do
  2  wrong usage or configuration";
/// Width of help texts.
const HELP_WIDTH: usize = 80;
/// The commands, by what they are for.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Set up", &["doctor", "setup", "check", "rules"]),
    ("Run", &["run", "log-level", "activate", "deactivate"]),
    ("Look at the daemon", &["status", "sessions", "pinholes", "events", "top"]),
    ("Try", &["demo", "replay", "watch"]),
    ("Other", &["completions", "version", "help"]),
];
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
    /// There are problems, which were already printed.
    fn from_findings(findings: &Findings) -> Self {
        Self::Failed(format!("{}: standard output says what to do", findings.counts()))
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

/// The command line with all commands. Each help text ends with the exit codes, and the program's has the commands in
/// groups, which clap cannot do.
fn program() -> clap::Command {
    let program = Arguments::command().mut_subcommands(|part| part.after_help(EXIT_STATUS));
    let groups = grouped_commands(program.clone());
    program.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{groups}Options:\n{{options}}{{after-help}}"
    ))
}

/// The commands of `program` with what they do, in their groups.
fn grouped_commands(mut program: clap::Command) -> String {
    // Adds `help`.
    program.build();
    let width = GROUPS.iter().flat_map(|(_, names)| *names).map(|name| name.len()).max();
    let (width, mut text) = (width.unwrap_or(0), String::new());
    let item = |command: &clap::Command| {
        let about = command.get_about().map(ToString::to_string);
        (command.get_name().to_owned(), about.unwrap_or_default())
    };
    for (group, names) in GROUPS {
        let commands = names.iter().filter_map(|name| program.find_subcommand(name)).map(item);
        let list = table::list(&commands.collect::<Vec<_>>(), 2, width, HELP_WIDTH);
        text += &format!("{group}:\n{list}\n");
    }
    text
}

/// FTP through NAT and default drop: reads control connections, rewrites
/// endpoints that NAT makes wrong, opens one pinhole for each data connection.
///
/// See `ftp-alg COMMAND --help` for each command.
#[derive(Debug, Parser)]
#[command(
    name = "ftp-alg",
    version = VERSION,
    max_term_width = HELP_WIDTH,
    after_help = EXIT_STATUS
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunOptions),
    /// Check whether a configuration is valid
    ///
    /// Each problem is one line on standard error: file, line, column, key, value
    /// and the values that are allowed. The exit code is then 2. The command also
    /// reads the file of metrics.password-file, if it may. It changes nothing and
    /// needs no privileges.
    Check {
        /// The configuration file; same as --config
        #[arg(value_name = "FILE", conflicts_with = "config")]
        file: Option<PathBuf>,
        #[command(flatten)]
        config: ConfigOption,
    },
    Doctor(doctor::DoctorOptions),
    /// Print the rules that `run` loads, for inspection
    ///
    /// Prints input for `nft -f -` (nftables) or `iptables-restore --noflush`
    /// (iptables), with the ports, queues and marks of the configuration.
    ///
    /// The nftables rules are those for the configured back end; `auto` means
    /// nftables. They need a kernel with the queue statement of nftables. `run` also
    /// works without this statement.
    ///
    /// The iptables rules are for a kernel on which nftables cannot queue packets.
    /// Do not load them while `run` queues packets itself: every packet would be
    /// queued twice, and connections would break.
    Rules {
        /// The language of the rules
        flavour: RulesFlavour,
        #[command(flatten)]
        config: ConfigOption,
    },
    Setup(setup::Setup),
    Status(status::StatusOptions),
    /// List the sessions that are open now
    ///
    /// ID is the number at the start of the session's log lines. ADJ says whether
    /// sequence numbers are adjusted. OPEN is the number of open pinholes, or the
    /// passive ports that are open to the client of an encrypted session. A wide
    /// terminal also shows TRANSFER, RATE, BYTES and SECS of the one that runs, if
    /// conntrack counts bytes; XFERS, the number of those that ended; TOTAL, the
    /// session's bytes; and FAST (on the fast path).
    /// --session shows one session in detail: the endpoints that NAT shows, its
    /// directory, transfer, pinholes and last events.
    ///
    /// The states are:
    ///   new        no greeting from the server yet
    ///   greeted    greeting seen; no FTP command from the client yet
    ///   login      FTP; no login accepted yet
    ///   logged-in  login accepted; announcements open pinholes
    ///   picked-up  picked up mid-stream; opens no pinholes
    ///   lost       packets were missed; opens no pinholes until it is in step again
    ///   encrypted  TLS; cannot be inspected before CCC
    ///   not-ftp    the server speaks FTP, the client does not; opens no pinholes
    ///   opaque     not FTP, or lost while encrypted; packets pass uninspected
    ///   closing    one end has closed or reset the connection
    #[command(verbatim_doc_comment)]
    Sessions(listings::SessionOptions),
    /// List the pinholes that are open now
    ///
    /// Each pinhole admits one connection from INITIATOR to ARRIVAL. The pinhole
    /// closes when the connection opens, or after LEFT. If the connection is
    /// translated, a second line shows it: `to` another destination, `as` another
    /// source. SESSION is the ID in `ftp-alg sessions`. A wide terminal also shows
    /// its USER, CLIENT and SERVER. `ftp-alg events` says who opened a port earlier.
    #[command(verbatim_doc_comment)]
    Pinholes(listings::PinholeOptions),
    Events(events::EventOptions),
    #[cfg(feature = "top")]
    Top(top::TopOptions),
    /// Show or set the log level of the running daemon
    ///
    /// The level applies until the daemon ends. Only the daemon's user and root can
    /// set it.
    LogLevel {
        /// The new level; without it, the current level is printed
        #[arg(value_name = "LEVEL", value_parser = PossibleValuesParser::new(daemon::LEVELS))]
        level: Option<String>,
        #[command(flatten)]
        socket: SocketOption,
    },
    /// Continue the sessions of the other gateway of a pair
    ///
    /// keepalived's notify script calls this when this gateway gets the virtual
    /// addresses, after `conntrackd -c`. Prints one line with what was taken over. On
    /// a gateway that is active it changes nothing.
    Activate {
        #[command(flatten)]
        socket: SocketOption,
    },
    /// Leave the sessions to the other gateway of a pair
    ///
    /// keepalived's notify script calls this when this gateway loses the virtual
    /// addresses. On a standby it changes nothing.
    Deactivate {
        #[command(flatten)]
        socket: SocketOption,
    },
    Replay(replay::ReplayOptions),
    Watch(watch::WatchOptions),
    #[cfg(feature = "demo")]
    Demo(demo::DemoOptions),
    /// Print completions for a shell
    ///
    /// The package installs them. To load them in the current shell:
    ///   bash: source <(ftp-alg completions bash)
    ///   zsh:  source <(ftp-alg completions zsh)
    ///   fish: ftp-alg completions fish | source
    #[command(verbatim_doc_comment)]
    Completions {
        /// The shell
        #[arg(value_name = "SHELL", value_parser = generated::shells())]
        shell: clap_complete::Shell,
    },
    /// Print the version and the commit it was built from
    Version,
    /// Print the manual page
    #[command(hide = true)]
    Manual,
    /// The daemon's broker; only its keeper starts it
    #[command(name = daemon::BROKER_COMMAND, hide = true)]
    Broker {
        /// The files that it may read for the daemon
        files: Vec<PathBuf>,
    },
    /// The broker's keeper; only the daemon starts it
    #[command(name = daemon::KEEPER_COMMAND, hide = true)]
    Keeper {
        /// The user to become
        #[arg(long)]
        user: Option<String>,
        /// The files that the broker may read for the daemon
        files: Vec<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RulesFlavour {
    /// For nft -f
    Nftables,
    /// For iptables-restore --noflush
    Iptables,
    /// For ip6tables-restore --noflush
    Ip6tables,
}

impl Command {
    fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Run(options) => options.run(),
            Self::Check { file, config } => check(file.as_ref().or(config.config.as_ref())),
            Self::Doctor(options) => options.run(),
            Self::Rules { flavour, config } => {
                let parameters = RuleParameters::from(&config.load()?);
                output::print(&match flavour {
                    RulesFlavour::Nftables => rule_files::render(&parameters),
                    RulesFlavour::Iptables => {
                        rule_files::render_iptables(&parameters, IpVersion::V4)
                    }
                    RulesFlavour::Ip6tables => {
                        rule_files::render_iptables(&parameters, IpVersion::V6)
                    }
                })
            }
            Self::Setup(command) => command.run(),
            Self::Status(options) => options.run(),
            Self::Sessions(options) => options.run(),
            Self::Pinholes(options) => options.run(),
            Self::Events(options) => options.run(),
            #[cfg(feature = "top")]
            Self::Top(options) => options.run(),
            Self::LogLevel { level, socket } => {
                let argument = level.iter().map(|level| format!(" {level}")).collect::<String>();
                let answer = socket.request(&format!("log-level{argument}"))?;
                output::print_line(&answer.parse::<String>()?)
            }
            Self::Activate { socket } => change_role(socket, "activate"),
            Self::Deactivate { socket } => change_role(socket, "deactivate"),
            Self::Replay(options) => options.run(),
            Self::Watch(options) => options.run(),
            #[cfg(feature = "demo")]
            Self::Demo(options) => options.run(),
            Self::Completions { shell } => generated::print_completions(*shell, &program()),
            Self::Version => output::print_line(&format!("ftp-alg {VERSION}")),
            Self::Manual => generated::print_manual(program()),
            Self::Broker { files } => Ok(daemon::serve_as_broker(files.clone())?),
            Self::Keeper { user, files } => Ok(daemon::keep_broker(user.as_deref(), files)?),
        }
    }
}

/// Has the daemon change its role in a pair of gateways, and prints what it did.
fn change_role(socket: &SocketOption, order: &str) -> Result<(), Failure> {
    output::print_line(&socket.request(order)?.parse::<String>()?)
}

/// Prints one line if the configuration, in the file that is `named` or in the default one, is valid, and one for each
/// warning.
fn check(named: Option<&PathBuf>) -> Result<(), Failure> {
    let loaded = Config::load(named.map(PathBuf::as_path))?;
    let password_file = loaded.metrics.password_file.as_deref();
    let password = password_file.map(|file| Password::of_file(file, config::read_text));
    let unread = match password.transpose() {
        Ok(_) => String::new(),
        // The daemon's user may have more rights, and the configuration may be another machine's.
        Err(error @ PasswordError::Read { .. }) => format!(", but {error}"),
        Err(error) => return Err(Failure::Usage(error.to_string())),
    };
    let default = Path::new(config::DEFAULT_PATH);
    let path = named.map_or(default, PathBuf::as_path);
    let is_absent = named.is_none() && !default.exists();
    let why = if is_absent { ": the file does not exist, so the defaults apply" } else { "" };
    let mark = output::Style::of_stdout().yellow("WARNING");
    let warnings = loaded.warnings(loaded.pinhole.backend);
    let warnings: String = warnings.iter().map(|text| format!("\n{mark} {text}")).collect();
    output::print_line(&format!("{}: valid{why}{unread}{warnings}", path.display()))
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
            let program = Arguments::command();
            let command = arguments.get(1).and_then(|word| word.to_str());
            let command = command.and_then(|word| program.find_subcommand(word));
            let name = command.map_or(String::new(), |command| format!("{} ", command.get_name()));
            let similar = command.map_or(String::new(), |command| similar_options(error, command));
            let problem = one_line(&text);
            Err(Failure::Usage(format!("{problem}{similar}; see `ftp-alg {name}--help`")))
        }
    }
}

/// A hint at the options of `command` with the letter of the unknown option in `error`: of `-c` at `--config`.
fn similar_options(error: &clap::Error, command: &clap::Command) -> String {
    let unknown = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(unknown)) => unknown.as_str(),
        _ => return String::new(),
    };
    let letter = unknown.strip_prefix('-').filter(|letter| letter.chars().count() == 1);
    let options = command.get_arguments().filter_map(|option| option.get_long());
    let similar = options.filter(|option| letter.is_some_and(|letter| option.starts_with(letter)));
    let similar: Vec<_> = similar.map(|option| format!("'--{option}'")).collect();
    match similar.as_slice() {
        [] => String::new(),
        [one] => format!("; a similar argument exists: {one}"),
        _ => format!("; some similar arguments exist: {}", similar.join(", ")),
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

/// The value of an option in seconds.
fn seconds(text: &str, least: f64, most: f64) -> Result<Duration, String> {
    let number = text.parse().ok().filter(|seconds| (least..=most).contains(seconds));
    number.map(Duration::from_secs_f64).ok_or_else(|| format!("use {least} to {most} seconds"))
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
#[derive(Args, Clone, Debug)]
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
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn options_of_all_commands_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_one_line_with_a_hint_at_help() {
        // The words of a command, and what is said of them.
        let cases = "
            => no command given; `ftp-alg --help` lists the commands
            doctr => unrecognized subcommand 'doctr'; a similar subcommand exists: 'doctor'; see `ftp-alg --help`
            status --jsn => unexpected argument '--jsn' found; a similar argument exists: '--json'; see `ftp-alg status --help`
            run -c x => unexpected argument '-c' found; a similar argument exists: '--config'; see `ftp-alg run --help`
            status -x => unexpected argument '-x' found; see `ftp-alg status --help`
            replay => the following required arguments were not provided: <CAPTURE>...; see `ftp-alg replay --help`
            status --wait x => invalid value 'x' for '--wait <SECS>': use 0 to 86400 seconds; see `ftp-alg status --help`
        ";
        for case in cases.trim().lines() {
            let (arguments, expected) = case.split_once("=> ").unwrap();
            let arguments = ["ftp-alg"].into_iter().chain(arguments.split_whitespace());
            match run(arguments.map(OsString::from)) {
                Err(Failure::Usage(text)) => assert_eq!(text, expected),
                other => panic!("no usage error: {other:?}"),
            }
        }
    }

    #[test]
    fn each_command_is_in_one_group() {
        let mut program = program();
        program.build();
        let shown = program.get_subcommands().filter(|command| !command.is_hide_set());
        let shown: BTreeSet<_> = shown.map(clap::Command::get_name).collect();
        let grouped: Vec<_> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        let without_features = ["demo", "top"];
        for name in &grouped {
            assert!(shown.contains(name) || without_features.contains(name), "{name}");
        }
        for name in shown {
            assert_eq!(grouped.iter().filter(|one| **one == name).count(), 1, "{name}");
        }
    }

    /// Its lines are printed as they are, unless they are too long.
    #[test]
    fn no_line_of_a_verbatim_help_is_broken() {
        for command in program().get_subcommands() {
            let text = command.get_long_about().map(ToString::to_string).unwrap_or_default();
            let verbatim = text.split("\n\n").filter(|paragraph| paragraph.contains('\n'));
            for line in verbatim.flat_map(str::lines) {
                assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
            }
        }
    }
}
