//! `ftp-alg replay` with other inputs than one capture: a compressed one, standard input, several captures, a
//! configuration; and how its output appears.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::Value;

use super::replay::{LOGIN, announcements, failure, printed, slacksite};

const PORT: (bool, &str) = (true, "PORT 192,168,150,80,14,178");
const OK: (bool, &str) = (false, "200 ok");

/// A login, and then `lines`.
fn dialogue(lines: &[(bool, &str)]) -> Vec<u8> {
    slacksite([192, 168, 150, 80], [192, 0, 2, 90], &[&LOGIN[..], lines].concat())
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }
}

fn started(arguments: &[&str], stdin: Stdio) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ftp-alg"));
    command.arg("replay").args(arguments).stdin(stdin);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// A replay of standard input that has got `content`, but not its end. Its pipes come with it.
fn reading(content: &[u8], options: &[&str]) -> (Child, ChildStdin, BufReader<ChildStdout>) {
    let mut child = started(&[&["-"], options].concat(), Stdio::piped());
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(content).unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    (child, stdin, stdout)
}

/// Exit code, standard output, standard error.
fn outcome(arguments: &[&str], stdin: Stdio) -> (i32, String, String) {
    let output = started(arguments, stdin).wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_compressed_capture_is_refused_with_what_to_type() {
    let place = Place::new();
    let plain = place.file("plain", &dialogue(&[PORT]));
    let tools = [("gzip", "zcat"), ("zstd", "zstdcat"), ("xz", "xzcat"), ("bzip2", "bzcat")];
    for (format, command) in tools {
        let Ok(output) = Command::new(format).args(["-c", &plain]).output() else {
            eprintln!("SKIPPED: {format} is not installed");
            continue;
        };
        // Its name says nothing.
        let file = place.file("Bob's (1)", &output.stdout);
        let typed = format!("{command} '{}' | ftp-alg replay -", file.replace('\'', r"'\''"));
        assert_eq!(failure(&[&file]), format!("{file} is compressed with {format}: {typed}"));
        // What it says works.
        let typed =
            typed.replace("ftp-alg replay", concat!(env!("CARGO_BIN_EXE_ftp-alg"), " replay"));
        let output = Command::new("sh").args(["-c", &typed]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), printed(&[&plain]), "{typed}");
        let (code, _, stderr) = outcome(&["-"], File::open(&file).unwrap().into());
        let said = format!("compressed with {format}: ... | {command} | ftp-alg replay -\n");
        assert_eq!((code, stderr), (1, format!("ftp-alg: standard input is {said}")));
    }
}

#[test]
fn standard_input_is_a_capture() {
    let place = Place::new();
    let plain = place.file("plain", &dialogue(&[PORT]));
    let input = || Stdio::from(File::open(&plain).unwrap());
    assert_eq!(
        outcome(&["-", "--json"], input()),
        (0, printed(&[&plain, "--json"]), String::new())
    );
    for (arguments, stdin, code, said) in [
        (&["-"][..], Stdio::null(), 1, "standard input: not a pcap or pcapng capture: it is empty"),
        (&["-", "-"], input(), 2, "standard input (-) is named twice; name it once"),
        (&["-", "--write", &plain], input(), 1, "it is the capture itself; use another file"),
    ] {
        let (found, _, stderr) = outcome(arguments, stdin);
        assert!(found == code && stderr.ends_with(&format!("{said}\n")), "{found} {stderr}");
    }
}

/// The capture is not at its end, and its announcements are there.
#[test]
fn lines_appear_as_soon_as_their_frame_is_read() {
    for (options, row) in [(&["--json"][..], 0), (&[], 2)] {
        let (mut child, stdin, stdout) = reading(&dialogue(&[PORT]), options);
        let line = stdout.lines().nth(row).unwrap().unwrap();
        assert!(line.contains("192.168.150.80:3762"), "{line}");
        drop(stdin);
        assert!(child.wait().unwrap().success());
    }
}

/// The first one ends tcpdump, too, and so the capture.
#[test]
fn one_interrupt_leaves_the_summary_and_two_end_the_replay() {
    let interrupt = |child: &Child| {
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap()
    };
    for (is_last, code) in [(false, 0), (true, 130)] {
        let (mut child, stdin, mut stdout) = reading(&dialogue(&[PORT]), &[]);
        stdout.read_line(&mut String::new()).unwrap();
        interrupt(&child);
        if is_last {
            // Two signals may be one to the program, so they are repeated until it ends.
            while child.try_wait().unwrap().is_none() {
                interrupt(&child);
            }
        }
        drop(stdin);
        assert_eq!(child.wait().unwrap().code(), Some(code));
        let has_summary = stdout.lines().any(|line| line.unwrap().starts_with("packets "));
        assert_eq!(has_summary, !is_last);
    }
}

#[test]
fn a_closed_output_ends_the_replay_quietly() {
    let place = Place::new();
    let file = place.file("many.pcap", &dialogue(&[PORT, OK].repeat(2000)));
    for options in [&[&*file][..], &[&file, "--json"]] {
        let mut child = started(options, Stdio::null());
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]));
    }
}

#[test]
fn several_captures_are_one_conversation() {
    let place = Place::new();
    let (begun, whole) = (dialogue(&[PORT, OK]), dialogue(&[PORT, OK, PORT]));
    let first = place.file("first.pcap", &begun);
    // Behind a header of 24 bytes.
    let second = place.file("second.pcap", &[&whole[..24], &whole[begun.len()..]].concat());
    let rows = announcements(&[&first, &second]);
    let place_of =
        |row: &Value| (row["frame"].as_u64(), row["file"].clone(), row["action"].clone());
    let expected = [(Some(14), &first, "open"), (Some(1), &second, "open")];
    let expected =
        expected.map(|(frame, file, action)| (frame, file.as_str().into(), action.into()));
    assert_eq!(rows.iter().map(place_of).collect::<Vec<_>>(), expected);
    let alone = announcements(&[&second]);
    assert!(alone.iter().all(|row| row.get("file").is_none() && row["action"] == "ignore"));
    let (code, _, stderr) = outcome(&[&second, &first], Stdio::null());
    let warning = format!("ftp-alg: {first}: it begins before the end of the capture");
    assert!(code == 0 && stderr.starts_with(&warning), "{stderr}");
}

#[test]
fn errors_name_the_capture_and_the_others_are_played() {
    let place = Place::new();
    let content = dialogue(&[PORT]);
    let good = place.file("good.pcap", &content);
    let mut other_link = content.clone();
    other_link[23] = 147; // pcap-file writes big-endian
    let wrong = [
        (place.file("garbage", b"PORT 1,2,3,4,5,6\n"), "not a pcap or pcapng capture"),
        (place.file("link", &other_link), "link type 147 is not supported; supported are Ethernet"),
        (place.path("absent"), "No such file or directory (os error 2)"),
        (place.path(""), "Is a directory (os error 21)"),
    ];
    let all: Vec<_> = wrong.iter().map(|(path, _)| &**path).chain([&*good, "--json"]).collect();
    let (code, stdout, stderr) = outcome(&all, Stdio::null());
    assert_eq!((code, stdout.lines().count(), stderr.lines().count()), (1, 1, wrong.len()));
    for (line, (path, reason)) in stderr.lines().zip(&wrong) {
        assert!(line.starts_with(&format!("ftp-alg: {path}: {reason}")), "{line}");
    }

    let [same, nowhere] = ["same.pcap", "nowhere/out.pcap"].map(|name| place.path(name));
    fs::hard_link(&good, &same).unwrap();
    for (out, reason) in [
        (&*nowhere, "No such file or directory (os error 2)"),
        ("/dev/full", "No space left on device (os error 28)"),
        (&*same, "it is the capture itself; use another file"),
    ] {
        assert_eq!(failure(&[&good, "--write", out]), format!("cannot write {out}: {reason}"));
    }
    assert_eq!(fs::read(&good).unwrap(), content);
}

#[test]
fn a_configuration_counts_as_in_the_daemon() {
    let place = Place::new();
    let capture = place.file("a.pcap", &dialogue(&[PORT]));
    let nat = "nat.external-address = \"203.0.113.1\"\n";
    let network = "[[network]]\nclients = [\"192.168.150.0/24\"]\nmin-data-port = 4000\n";
    for (config, options, action, rewritten) in [
        ("", "", "open", ""),
        ("policy.min-data-port = 4000\n", "", "refuse", ""),
        (network, "", "refuse", ""),
        (nat, "", "rewrite", "203.0.113.1:3762"),
        // Options come first.
        (nat, "--external 203.0.113.9", "rewrite", "203.0.113.9:3762"),
        (nat, "--inside 10.0.0.0/8", "open", ""),
        ("control-ports = [2121]\n", "", "", ""),
        ("control-ports = [2121]\n", "--ports 2121,21", "open", ""),
    ] {
        let file = place.file("ftp-alg.toml", config.as_bytes());
        let options = options.split_whitespace();
        let arguments: Vec<_> = [&*capture, "--config", &file].into_iter().chain(options).collect();
        let rows = announcements(&arguments);
        let found = |key: &str| rows.first().and_then(|row| row[key].as_str()).unwrap_or_default();
        assert_eq!(
            (found("action"), found("rewritten")),
            (action, rewritten),
            "{config}{arguments:?}"
        );
    }
}

#[test]
fn configurations_that_do_not_fit_are_wrong_usage() {
    let place = Place::new();
    let name = place.file("a.toml", b"nat.external-address = \"dns:ftp.example.net\"\n");
    let wrong = place.file("b.toml", b"[nat]\nexternal = 1\n");
    for (options, said) in [
        (
            &["--config", &*name][..],
            &*format!("{name}: nat.external-address is the name ftp.example.net, and"),
        ),
        (
            &["--inside", "10.0.0.0/8"],
            "--inside 10.0.0.0/8 has no external address; add --external ADDR",
        ),
        (&["--external", "::1", "--inside", "10.0.0.0/8"], "address families differ: "),
        (&["--config", &wrong], &format!("{wrong}:2:1: ")),
        (&["--config", "/nonexistent"], "cannot read the configuration /nonexistent: No such file"),
    ] {
        let (code, stdout, stderr) = outcome(&[&["x"], options].concat(), Stdio::null());
        assert_eq!((code, &*stdout, stderr.lines().count()), (2, "", 1), "{stderr}");
        assert!(stderr.starts_with(&format!("ftp-alg: {said}")), "{stderr}");
    }
    let capture = place.file("a.pcap", &dialogue(&[]));
    let server =
        b"[[server]]\naddress = \"192.0.2.90\"\nexternal-address = \"dns:ftp.example.net\"\n";
    let server = place.file("c.toml", server);
    let (code, _, stderr) = outcome(&[&capture, "--config", &server], Stdio::null());
    assert_eq!((code, stderr.lines().count()), (0, 1));
    assert!(
        stderr.starts_with(&format!("ftp-alg: {server}: replay looks up no names")),
        "{stderr}"
    );
}
