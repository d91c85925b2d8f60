//! `ftp-alg replay` with other inputs than one capture: a compressed one, standard input, several captures, a
//! configuration; and how its output appears.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use super::replay::{LOGIN, announcements, failure, printed, slacksite};

const CLIENT: [u8; 4] = [192, 168, 150, 80];
const SERVER: [u8; 4] = [192, 0, 2, 90];
const PORT: (bool, &str) = (true, "PORT 192,168,150,80,14,178");

/// A login, and then `lines`.
fn dialogue(lines: &[(bool, &str)]) -> Vec<u8> {
    slacksite(CLIENT, SERVER, &[&LOGIN[..], lines].concat())
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
    Command::new(env!("CARGO_BIN_EXE_ftp-alg"))
        .arg("replay")
        .args(arguments)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Exit code, standard output, standard error.
fn outcome(arguments: &[&str], stdin: Stdio) -> (Option<i32>, String, String) {
    let output = started(arguments, stdin).wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_compressed_capture_is_refused_with_what_to_type() {
    let place = Place::new();
    let content = dialogue(&[PORT]);
    let plain = place.file("plain", &content);
    let expected = announcements(&[&plain]);
    let tools = [("gzip", "zcat"), ("zstd", "zstdcat"), ("xz", "xzcat"), ("bzip2", "bzcat")];
    for (format, command) in tools {
        let Ok(output) = Command::new(format).args(["-c", &plain]).output() else {
            eprintln!("SKIPPED: {format} is not installed");
            continue;
        };
        assert!(output.status.success(), "{format}");
        // Its name says nothing.
        let file = place.file("a.pcap", &output.stdout);
        let typed = format!("{command} {file} | ftp-alg replay -");
        assert_eq!(failure(&[&file]), format!("{file} is compressed with {format}: {typed}"));
        let (code, _, stderr) = outcome(&["-"], File::open(&file).unwrap().into());
        let advice = format!("... | {command} | ftp-alg replay -");
        let expected_error =
            format!("ftp-alg: standard input is compressed with {format}: {advice}\n");
        assert_eq!((code, stderr), (Some(1), expected_error));
        // What it says works.
        let program = env!("CARGO_BIN_EXE_ftp-alg");
        let typed =
            format!("{} --json", typed.replace("ftp-alg replay", &format!("{program} replay")));
        let output = Command::new("sh").args(["-c", &typed]).output().unwrap();
        let rows = String::from_utf8(output.stdout).unwrap();
        let rows: Vec<Value> = rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect();
        assert_eq!(rows, expected, "{typed}");
    }
    let file = place.file("Bob's (1).gz", b"\x1f\x8b");
    let quoted = file.replace('\'', r"'\''");
    assert!(failure(&[&file]).ends_with(&format!(": zcat '{quoted}' | ftp-alg replay -")));
}

#[test]
fn standard_input_is_a_capture() {
    let place = Place::new();
    let content = dialogue(&[PORT]);
    let plain = place.file("plain", &content);
    let expected = printed(&[&plain, "--json"]);
    let from_file = outcome(&["-", "--json"], File::open(&plain).unwrap().into());
    assert_eq!(from_file, (Some(0), expected.clone(), String::new()));
    let mut child = started(&["-", "--json"], Stdio::piped());
    child.stdin.take().unwrap().write_all(&content).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "in a pipe");
    let (code, _, stderr) = outcome(&["-"], Stdio::null());
    let expected = "ftp-alg: standard input: not a pcap or pcapng capture: it is empty\n";
    assert_eq!((code, &*stderr), (Some(1), expected));
    let (code, _, stderr) = outcome(&["-", "-"], Stdio::null());
    let expected = "ftp-alg: standard input (-) is named twice; name it once\n";
    assert_eq!((code, &*stderr), (Some(2), expected));
    let (code, _, stderr) = outcome(&["-", "--write", &plain], File::open(&plain).unwrap().into());
    assert_eq!(code, Some(1));
    assert!(stderr.contains("it is the capture itself"), "{stderr}");
}

/// The capture is not at its end, and its announcements are there.
#[test]
fn lines_appear_as_soon_as_their_frame_is_read() {
    let content = dialogue(&[PORT, (false, "200 ok"), PORT]);
    for (options, first) in [(&["-", "--json"][..], "{\"frame\":14,"), (&["-"], "FRAME ")] {
        let mut child = started(options, Stdio::piped());
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&content).unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().starts_with(first));
        let ports = lines.by_ref().take(if options.len() > 1 { 1 } else { 3 });
        assert!(ports.last().unwrap().unwrap().contains("192.168.150.80:3762"));
        drop(stdin);
        assert!(child.wait().unwrap().success());
        assert_eq!(lines.count() > 0, options.len() == 1, "the summary is for people");
    }
}

#[test]
fn one_interrupt_leaves_the_summary_and_two_end_the_replay() {
    let content = dialogue(&[PORT]);
    for interrupts in [1, 2] {
        let mut child = started(&["-"], Stdio::piped());
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&content).unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().starts_with("FRAME "));
        for _ in 0..interrupts {
            let pid = child.id().to_string();
            assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        }
        if interrupts == 1 {
            drop(stdin); // as tcpdump does
        } else {
            // Two signals may be one to the program, so they are repeated until it ends.
            while child.try_wait().unwrap().is_none() {
                let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
            }
        }
        let code = if interrupts == 1 { 0 } else { 130 };
        assert_eq!(child.wait().unwrap().code(), Some(code));
        let rest: Vec<String> = lines.map(|line| line.unwrap()).collect();
        let has_summary = rest.iter().any(|line| line.starts_with("packets "));
        assert_eq!(has_summary, interrupts == 1, "{rest:?}");
    }
}

#[test]
fn a_closed_output_ends_the_replay_quietly() {
    let place = Place::new();
    let many: Vec<_> = std::iter::repeat_n([PORT, (false, "200 ok")], 2000).flatten().collect();
    let file = place.file("many.pcap", &dialogue(&many));
    for options in [&[&*file][..], &[&file, "--json"]] {
        let mut child = started(options, Stdio::null());
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0]).unwrap();
        drop(stdout);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    }
    // A file gets everything.
    let lines = place.path("lines");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ftp-alg"));
    command.args(["replay", &file, "--json"]).stdout(File::create(&lines).unwrap());
    assert!(command.status().unwrap().success());
    assert_eq!(fs::read_to_string(&lines).unwrap().lines().count(), 2000);
}

#[test]
fn several_captures_are_one_conversation() {
    let place = Place::new();
    let whole = dialogue(&[PORT, (false, "200 ok"), PORT]);
    // A pcap header has 24 bytes, a record 16 and its packet; here the first packet of the second capture has the end of
    // the first announcement's frames.
    let frame =
        |at: usize| 16 + u32::from_be_bytes(whole[at + 8..at + 12].try_into().unwrap()) as usize;
    let cut = (0..13).fold(24, |at, _| at + frame(at));
    let first = place.file("first.pcap", &whole[..cut]);
    let second = place.file("second.pcap", &[&whole[..24], &whole[cut..]].concat());
    let rows = announcements(&[&first, &second]);
    let place_of = |row: &Value| (row["frame"].as_u64().unwrap(), row["file"].clone());
    let expected = [(1, Value::from(&*second)), (5, Value::from(&*second))];
    assert_eq!(rows.iter().map(place_of).collect::<Vec<_>>(), expected);
    let alone = announcements(&[&second]);
    assert!(alone.iter().all(|row| row.get("file").is_none() && row["action"] == "ignore"));
    let text = printed(&[&first, &second]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("FILE ") && lines[1].starts_with(&first), "{text}");
    assert!(lines[2].starts_with(&second) && lines[2].contains("PORT"), "{text}");
    let (code, _, stderr) = outcome(&[&second, &first], Stdio::null());
    assert_eq!(code, Some(0));
    assert!(
        stderr.contains(&format!("{first}: it begins before the end of the capture")),
        "{stderr}"
    );
}

#[test]
fn errors_name_the_capture_and_the_others_are_played() {
    let place = Place::new();
    let content = dialogue(&[PORT]);
    let good = place.file("good.pcap", &content);
    let mut other_link = content.clone();
    other_link[23] = 147; // pcap-file writes big-endian
    let link_type = "link type 147 is not supported; supported are Ethernet, Linux cooked (SLL, SLL2), \
                     raw IP and loopback";
    let wrong = [
        (place.file("garbage", b"PORT 1,2,3,4,5,6\n"), "not a pcap or pcapng capture"),
        (place.file("empty", b""), "not a pcap or pcapng capture: it is empty"),
        (place.file("link", &other_link), link_type),
        (place.path("absent"), "No such file or directory (os error 2)"),
        (place.path(""), "Is a directory (os error 21)"),
    ];
    let expected = wrong.each_ref().map(|(path, reason)| format!("{path}: {reason}"));
    for ((path, _), expected) in wrong.iter().zip(&expected) {
        assert_eq!(failure(&[path]), *expected);
    }
    let all: Vec<_> = wrong.iter().map(|(path, _)| &**path).chain([&*good, "--json"]).collect();
    let (code, stdout, stderr) = outcome(&all, Stdio::null());
    assert_eq!((code, stdout.lines().count()), (Some(1), 1));
    let expected = expected.map(|error| format!("ftp-alg: {error}"));
    assert_eq!(stderr.lines().collect::<Vec<_>>(), expected);

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
    let row = |config: &str, options: &[&str]| {
        let config = place.file("ftp-alg.toml", config.as_bytes());
        let rows = announcements(&[&[&*capture, "--config", &config], options].concat());
        rows.into_iter().next().map(|row| {
            let rewritten = row["rewritten"].as_str().unwrap_or("-").to_owned();
            format!(
                "{} {rewritten}: {}",
                row["action"].as_str().unwrap(),
                row["reason"].as_str().unwrap()
            )
        })
    };
    let open = "open -: both ends see the same endpoint";
    assert_eq!(row("", &[]).unwrap(), open);
    let refused = row("[policy]\nmin-data-port = 4000\n", &[]).unwrap();
    assert!(refused.starts_with("refuse -: port 3762"), "{refused}");
    let network = "[[network]]\nclients = [\"192.168.150.0/24\"]\nmin-data-port = 4000\n";
    assert_eq!(row(network, &[]).unwrap(), refused);
    let nat = "[nat]\nexternal-address = \"203.0.113.1\"\n";
    let rewritten = row(nat, &[]).unwrap();
    assert!(rewritten.starts_with("rewrite 203.0.113.1:"), "{rewritten}");
    let other = row(nat, &["--external", "203.0.113.9"]).unwrap();
    assert!(other.starts_with("rewrite 203.0.113.9:"), "--external comes first: {other}");
    assert_eq!(row(nat, &["--inside", "10.0.0.0/8"]).unwrap(), open);
    assert_eq!(row("control-ports = [2121]\n", &[]), None);
    assert_eq!(row("control-ports = [2121]\n", &["--ports", "2121,21"]).unwrap(), open);
}

#[test]
fn configurations_that_do_not_fit_are_wrong_usage() {
    let place = Place::new();
    let usage = |arguments: &[&str]| {
        let (code, stdout, stderr) = outcome(arguments, Stdio::null());
        assert_eq!((code, &*stdout), (Some(2), ""), "{stderr}");
        stderr
    };
    let config = place.file("a.toml", b"[nat]\nexternal-address = \"dns:ftp.example.net\"\n");
    assert_eq!(
        usage(&["x", "--config", &config]),
        format!(
            "ftp-alg: {config}: nat.external-address is the name ftp.example.net, and replay looks up no names; \
             give its address with --external\n"
        )
    );
    assert_eq!(
        usage(&["x", "--inside", "10.0.0.0/8"]),
        "ftp-alg: --inside 10.0.0.0/8 has no external address; add --external ADDR\n"
    );
    assert_eq!(
        usage(&["x", "--external", "::1", "--inside", "10.0.0.0/8"]),
        "ftp-alg: address families differ: --external ::1, --inside 10.0.0.0/8; \
         use two IPv4 or two IPv6 values\n"
    );
    let wrong = place.file("b.toml", b"[nat]\nexternal = 1\n");
    assert!(usage(&["x", "--config", &wrong]).starts_with(&format!("ftp-alg: {wrong}:2:1: ")));
    let absent = place.path("absent.toml");
    assert!(usage(&["x", "--config", &absent]).contains("No such file"));
    let capture = place.file("a.pcap", &dialogue(&[]));
    let server =
        b"[[server]]\naddress = \"192.0.2.90\"\nexternal-address = \"dns:ftp.example.net\"\n";
    let server = place.file("c.toml", server);
    let (code, _, stderr) = outcome(&[&capture, "--config", &server], Stdio::null());
    assert_eq!((code, stderr.lines().count()), (Some(0), 1));
    assert!(
        stderr.starts_with(&format!("ftp-alg: {server}: replay looks up no names")),
        "{stderr}"
    );
}
