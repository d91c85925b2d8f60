//! The program as scripts see it: exit codes, and messages on the right stream.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    process::{Command, Stdio},
};

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ftp-alg"));
    command.args(arguments);
    command
}

/// Exit code, standard output, standard error.
fn outcome(arguments: &[&str]) -> (i32, String, String) {
    let output = program(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Files that the commands below name.
const FILES: [(&str, &str); 7] = [
    ("valid", "control-ports = [21, 2121]\n[pinhole]\nmark = 0x10000000\n"),
    (
        "warned",
        "pinhole.backend = \"conntrack\"\n[[server]]\naddress = \"10.0.0.5\"\npassive-ports = \"50000-50100\"\n",
    ),
    ("wrong", "queue.workers = 0\npolicy.require-login = 1\n"),
    ("no-password", "[metrics]\npassword-file = \"DIR/absent\"\n"),
    ("bad-password", "[metrics]\npassword-file = \"DIR/valid\"\n"),
    ("password", "bob:secret\n"),
    ("good-password", "[metrics]\npassword-file = \"DIR/password\"\n"),
];

/// Commands, their exit codes, and how each line begins: on standard output after code 0, otherwise on standard error.
const OUTCOMES: &str = "
    check DIR/valid => 0 DIR/valid: valid
    check --config DIR/valid => 0 DIR/valid: valid
    check DIR/warned => 0 DIR/warned: valid / WARNING server.passive-ports of 10.0.0.5: 101 ports:
    check DIR/no-password => 0 DIR/no-password: valid, but metrics.password-file: cannot read DIR/absent: No such file
    check DIR/bad-password => 2 ftp-alg: metrics.password-file: DIR/valid has no colon in its first line
    check DIR/good-password => 0 DIR/good-password: valid
    check DIR/valid --config DIR/valid => 2 ftp-alg:
    check DIR/absent => 2 ftp-alg: cannot read the configuration DIR/absent: No such file
    check --config DIR/absent => 2 ftp-alg: cannot read the configuration DIR/absent: No such file
    check DIR/wrong => 2 ftp-alg: DIR/wrong:1:17: queue.workers: / ftp-alg: DIR/wrong:2:24: policy.require-login:
    rules nftables --config DIR/wrong => 2 ftp-alg: DIR/wrong:1:17: / ftp-alg: DIR/wrong:2:24:
    run --config DIR/wrong => 2 ftp-alg: DIR/wrong:1:17: / ftp-alg: DIR/wrong:2:24:
    doctor --config DIR/wrong => 2 ftp-alg: DIR/wrong:1:17: / ftp-alg: DIR/wrong:2:24:
    run --state-dir DIR/valid --config DIR/valid --socket DIR/s => 1 ftp-alg: cannot use the directory /
    sessions --socket DIR/s => 1 ftp-alg: no daemon answers on DIR/s: start one with `ftp-alg run`, or name its socket
    pinholes --socket DIR/s => 1 ftp-alg: no daemon answers on DIR/s:
    events --socket DIR/s => 1 ftp-alg: no daemon answers on DIR/s:
    rules pf => 2 ftp-alg:
    status --wait 1e99 => 2 ftp-alg:
    doctor --try ftp://h/file => 2 ftp-alg: --try: the URL has a path
    doctor --try sftp://h => 2 ftp-alg: --try: scheme `sftp` is not supported
    doctor --password-file /x => 2 ftp-alg:
    doctor --insecure => 2 ftp-alg:
";

#[test]
fn each_outcome_has_its_exit_code_and_its_stream() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().to_str().unwrap();
    for (name, text) in FILES {
        fs::write(place.path().join(name), text.replace("DIR", directory)).unwrap();
    }
    for case in OUTCOMES.replace("DIR", directory).trim().lines() {
        let (words, expected) = case.trim_start().split_once(" => ").unwrap();
        let (code, expected) = expected.split_once(' ').unwrap();
        let (found, stdout, stderr) = outcome(&words.split(' ').collect::<Vec<_>>());
        let (said, silent) = if found == 0 { (stdout, stderr) } else { (stderr, stdout) };
        assert_eq!((found.to_string().as_str(), silent.as_str()), (code, ""), "{case}\n{said}");
        let expected: Vec<_> = expected.split(" / ").collect();
        assert_eq!(said.lines().count(), expected.len(), "{case}\n{said}");
        for (line, expected) in said.lines().zip(expected) {
            assert!(line.starts_with(expected), "{case}\n{said}");
        }
    }
}

#[test]
fn waiting_for_a_daemon_ends() {
    let (code, _, stderr) = outcome(&["status", "--wait", "0.3", "--socket", "/nonexistent/s"]);
    let expected = "ftp-alg: no daemon was ready on /nonexistent/s within 0.3s\n";
    assert_eq!((code, stderr.as_str()), (1, expected));
}

/// No line is too wide, and the exit codes are at the end. The reference has the command.
#[test]
fn every_command_explains_itself_and_is_in_the_reference() {
    let page = include_str!("../../docs/commands.md");
    let (_, help, _) = outcome(&["--help"]);
    let commands = help.lines().skip_while(|line| *line != "Set up:");
    let commands = commands.take_while(|line| *line != "Options:");
    let names: Vec<&str> =
        commands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    assert!(names.len() > 9, "{names:?}");
    for name in names.into_iter().filter(|name| !["", "help"].contains(name)) {
        assert!(page.contains(&format!("`ftp-alg {name}")), "{name}");
        let (code, stdout, stderr) = outcome(&["help", name]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{name}");
        for text in [&stdout, &help] {
            let wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > 80).collect();
            assert!(wide.is_empty(), "more than 80 columns:\n{}", wide.join("\n"));
            let (_, status) = text.split_once("EXIT STATUS:\n").unwrap();
            let codes: Vec<&str> = status.lines().map(|line| &line.trim()[..1]).collect();
            assert_eq!(codes, ["0", "1", "2"], "{text}");
        }
    }
}

#[test]
fn a_closed_standard_output_ends_the_program_quietly_and_a_full_one_is_an_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = program(&["--help"]).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = program(&["--version"]).stdout(full).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.starts_with("ftp-alg: cannot write the output: No space left"), "{stderr}");
}

/// The command line wins over the environment.
#[test]
fn a_log_filter_that_means_nothing_is_wrong_usage() {
    for (level, filter, expected) in [
        (None, "ftp=loud", "ftp-alg: log level refused: FTP_ALG_LOG=ftp=loud: "),
        (Some("debug"), "loud", "cannot read the configuration"),
        (Some("loud"), "", "[possible values: error, warn, info, debug, trace]"),
    ] {
        let mut run = program(&["run", "--config", "/nonexistent"]);
        run.args(level.map(|level| format!("--log-level={level}"))).env("FTP_ALG_LOG", filter);
        let output = run.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
    }
}

#[test]
fn errors_are_errors_in_the_journal() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let about = file.as_file().metadata().unwrap();
    let journal = format!("{}:{}", about.dev(), about.ino());
    let mut check = program(&["check", "/nonexistent"]);
    check.env("JOURNAL_STREAM", journal).stderr(file.reopen().unwrap()).status().unwrap();
    let said = fs::read_to_string(file.path()).unwrap();
    assert!(said.starts_with("<3>ftp-alg: cannot read the configuration"), "{said}");
}

/// Scripts, and a person who pipes the output, learn what to use instead.
#[cfg(feature = "top")]
#[test]
fn the_live_view_needs_a_terminal() {
    let why = "ftp-alg: standard output is no terminal: scripts use `ftp-alg status --json` and \
               `ftp-alg events --follow --json`\n";
    assert_eq!(outcome(&["top"]), (1, String::new(), why.to_owned()));
}
