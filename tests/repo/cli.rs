//! The program as scripts see it: exit codes, and messages on the right stream.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
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

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn config(&self, text: &str) -> String {
        let path = self.path("ftp-alg.toml");
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

#[test]
fn a_valid_configuration_is_said_to_be_valid_before_its_warnings() {
    let place = Place::new();
    let server = "[pinhole]\nbackend = \"conntrack\"\n[[server]]\naddress = \"10.0.0.5\"\n\
                  passive-ports = \"50000-50100\"\n";
    for (text, warning) in [
        ("", ""),
        ("control-ports = [21, 2121]\n[pinhole]\nmark = 0x10000000\n", ""),
        (server, "WARNING server.passive-ports of 10.0.0.5: 101 ports: "),
    ] {
        let file = place.config(text);
        for arguments in [&["check", &file][..], &["check", "--config", &file]] {
            let (code, stdout, stderr) = outcome(arguments);
            let warnings = stdout.strip_prefix(&format!("{file}: valid\n")).unwrap();
            assert_eq!((code, stderr.as_str()), (0, ""));
            assert!(warnings.starts_with(warning), "{warnings}");
            assert_eq!(warnings.lines().count(), usize::from(!warning.is_empty()), "{warnings}");
        }
    }
}

#[test]
fn check_reads_the_file_of_the_password() {
    let place = Place::new();
    let password = place.path("password");
    let file =
        place.config(&format!("[metrics]\npassword-file = {:?}\n", password.to_str().unwrap()));
    let path = password.display();
    let absent = format!(
        "{file}: valid, but metrics.password-file: cannot read {path}: No such file or directory (os error 2)\n"
    );
    assert_eq!(outcome(&["check", &file]), (0, absent, String::new()));
    fs::write(&password, "secret\n").unwrap();
    let wrong = format!(
        "ftp-alg: metrics.password-file: {path} has no colon in its first line; its first line must be USER:PASSWORD\n"
    );
    assert_eq!(outcome(&["check", &file]), (2, String::new(), wrong));
    fs::write(&password, "bob:secret\n").unwrap();
    assert_eq!(outcome(&["check", &file]), (0, format!("{file}: valid\n"), String::new()));
}

/// With line and column, key, value, and what is allowed, or the nearest known key.
#[test]
fn each_error_of_a_configuration_is_one_line() {
    let place = Place::new();
    for (text, errors) in [
        (
            "\n\n\n\n\n[pinhole]\nmark = 0x80000000\n",
            &["7:8: pinhole.mark: 0x80000000 is not a bit of mark-mask 0x70000000"][..],
        ),
        (
            "queue.workers = 0\npolicy.require-login = 1\n",
            &["1:17: queue.workers: ", "2:24: policy.require-login: "],
        ),
        (
            "[policy]\nrequire-logn = true\n",
            &["2:1: policy.require-logn: unknown key; did you mean `require-login`?"],
        ),
        (
            "[metrics]\nlisten = \"127.0.0.1:0\"\n",
            &["2:10: metrics.listen: \"127.0.0.1:0\" is not"],
        ),
        (
            "[[network]]\nclients = \"10.0.0.0/8\"\n[[network]]\nclients = \"10.1.0.0/16\"\n",
            &["3:1: network: never applies, because the [[network]] of line 1 has all"],
        ),
    ] {
        let file = place.config(text);
        for command in [&["check"][..], &["rules", "nftables"], &["run"], &["doctor"]] {
            let (code, stdout, stderr) = outcome(&[command, &["--config", &file]].concat());
            assert_eq!((code, stdout.as_str()), (2, ""), "{command:?}");
            assert_eq!(stderr.lines().count(), errors.len(), "{command:?}: {stderr}");
            for (line, error) in stderr.lines().zip(errors) {
                let expected = format!("ftp-alg: {file}:{error}");
                assert!(line.starts_with(&expected), "{command:?}: {line}");
            }
        }
    }
}

#[test]
fn the_file_to_check_may_be_named_without_an_option() {
    let place = Place::new();
    let file = place.config("");
    let (code, _, stderr) = outcome(&["check", &file, "--config", &file]);
    assert_eq!(code, 2);
    assert!(stderr.ends_with("see `ftp-alg check --help`\n"), "{stderr}");
    let absent = place.path("absent.toml").to_str().unwrap().to_owned();
    for arguments in [&["check", &*absent][..], &["check", "--config", &absent]] {
        let (code, _, stderr) = outcome(arguments);
        assert_eq!(code, 2);
        let expected = format!("ftp-alg: cannot read the configuration {absent}: No such file");
        assert!(stderr.starts_with(&expected), "{stderr}");
    }
}

#[test]
fn without_a_daemon_the_socket_is_named_and_how_to_start_one() {
    let place = Place::new();
    let socket = place.path("none.sock");
    let socket = socket.to_str().unwrap();
    let expected = format!(
        "ftp-alg: no daemon answers on {socket}: start one with `ftp-alg run`, or name its socket \
         with --socket\n"
    );
    for command in ["sessions", "pinholes", "events"] {
        assert_eq!(outcome(&[command, "--socket", socket]), (1, String::new(), expected.clone()));
    }
    let (code, stdout, stderr) = outcome(&["status", "--socket", socket]);
    assert_eq!((code, stderr), (1, expected));
    assert!(stdout.starts_with("PROBLEM ") && stdout.ends_with("\n"), "{stdout}");
}

#[test]
fn waiting_for_a_daemon_ends_in_time() {
    let place = Place::new();
    let socket = place.path("none.sock");
    let started = Instant::now();
    let (code, _, stderr) =
        outcome(&["status", "--wait", "0.3", "--socket", socket.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(stderr.contains("no daemon was ready on /"), "{stderr}");
    assert!((Duration::from_millis(300)..Duration::from_secs(20)).contains(&started.elapsed()));
}

#[test]
fn wrong_usage_is_one_line_and_exit_code_2() {
    // The words of a command, and what is said of them.
    let cases = [
        ("", ""),
        ("frobnicate", ""),
        ("--frobnicate", ""),
        ("status --jsn", ""),
        ("status --wait -1", ""),
        ("status --wait nan", ""),
        ("status --wait 1e99", ""),
        ("rules", ""),
        ("rules pf", ""),
        ("replay", ""),
        ("doctor --try ftp://h/file", "has a path"),
        ("doctor --try sftp://h", "is not supported"),
        ("doctor --password-file /x", "--try"),
        ("doctor --insecure", "--try"),
    ];
    for (words, said) in cases {
        let (code, stdout, stderr) = outcome(&words.split_whitespace().collect::<Vec<_>>());
        assert_eq!((code, stdout.as_str()), (2, ""), "{words}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.starts_with("ftp-alg: ") && stderr.contains(said), "{stderr}");
    }
}

#[test]
fn every_command_explains_itself() {
    let (_, stdout, _) = outcome(&["--help"]);
    let commands = stdout.lines().skip_while(|line| *line != "Set up:");
    let commands = commands.take_while(|line| *line != "Options:");
    let commands = commands.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let commands: Vec<&str> = commands.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.len() >= 9, "{stdout}");
    let all = commands.iter().filter(|command| **command != "help");
    for arguments in
        all.flat_map(|command| [[command, "--help"], [command, "-h"], ["help", command]])
    {
        let (code, stdout, stderr) = outcome(&arguments);
        let command = arguments.iter().find(|word| commands.contains(word) && **word != "help");
        assert_eq!((code, stderr.as_str()), (0, ""));
        assert!(stdout.contains(&format!("Usage: ftp-alg {}", command.unwrap())), "{stdout}");
        assert_help(&stdout);
    }
    assert_eq!(outcome(&["help"]).1, stdout);
    assert_help(&stdout);
    let (code, stdout, _) = outcome(&["--version"]);
    assert_eq!((code, stdout), (0, format!("ftp-alg {}\n", env!("CARGO_PKG_VERSION"))));
}

/// No line is too wide, and the exit codes are at the end.
fn assert_help(text: &str) {
    let wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(wide.is_empty(), "more than 80 columns:\n{}", wide.join("\n"));
    let (_, status) = text.split_once("EXIT STATUS:\n").unwrap();
    let codes: Vec<&str> = status.lines().map(|line| &line.trim()[..1]).collect();
    assert_eq!(codes, ["0", "1", "2"], "{text}");
}

#[test]
fn a_closed_standard_output_ends_the_program_quietly() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = program(&["--help"]).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
}

#[test]
fn a_full_standard_output_is_an_error() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = program(&["--version"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("ftp-alg: cannot write the output: No space left"), "{stderr}");
}

/// The command line wins over the environment.
#[test]
fn a_log_filter_that_means_nothing_is_wrong_usage() {
    let place = Place::new();
    for (arguments, filter, config, expected) in [
        (&[][..], "ftp=loud", "", "ftp-alg: log level refused: FTP_ALG_LOG=ftp=loud: "),
        (&[], "loud", "", "ftp-alg: log level refused: FTP_ALG_LOG=loud: "),
        (&["--log-level", "debug"], "loud", "wrong", "ftp-alg.toml:1:"),
        (&["--log-level", "loud"], "", "", "[possible values: error, warn, info, debug, trace]"),
    ] {
        let config = place.config(config);
        let arguments = [&["run", "--config", &config], arguments].concat();
        let output = program(&arguments).env("FTP_ALG_LOG", filter).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
    }
}

#[test]
fn errors_are_errors_in_the_journal() {
    let place = Place::new();
    let file = fs::File::create(place.path("stderr")).unwrap();
    let about = file.metadata().unwrap();
    let journal = format!("{}:{}", about.dev(), about.ino());
    let mut check = program(&["check", "/nonexistent-by-choice"]);
    let status = check.env("JOURNAL_STREAM", journal).stderr(file).status().unwrap();
    assert_eq!(status.code(), Some(2));
    let said = fs::read_to_string(place.path("stderr")).unwrap();
    assert!(said.starts_with("<3>ftp-alg: cannot read the configuration"), "{said}");
}

#[test]
fn a_state_directory_that_cannot_be_is_an_error() {
    let place = Place::new();
    let config = place.config("");
    let socket = place.path("s");
    let arguments =
        ["run", "--state-dir", &config, "--config", &config, "--socket", socket.to_str().unwrap()];
    let (code, _, stderr) = outcome(&arguments);
    assert_eq!(code, 1);
    assert!(stderr.starts_with("ftp-alg: cannot use the directory /"), "{stderr}");
}

/// Scripts, and a person who pipes the output, learn what to use instead.
#[cfg(feature = "top")]
#[test]
fn the_live_view_needs_a_terminal() {
    let (code, stdout, stderr) = outcome(&["top"]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    let why = "ftp-alg: standard output is no terminal: scripts use `ftp-alg status --json` and \
               `ftp-alg events --follow --json`\n";
    assert_eq!(stderr, why);
    let (code, _, stderr) = outcome(&["top", "--interval", "0.1"]);
    assert!(code == 2 && stderr.contains("use 0.2 to 3600 seconds"), "{stderr}");
}
