//! `ftp-alg replay` on captures recorded elsewhere, checked by their truth files and by tshark.
//!
//! The captures are in `shared/captures` above the project, or where `FTP_ALG_CAPTURES` says. Where
//! they or tshark are absent the tests say so and are skipped, but not where `CI` is set.

use std::{
    collections::BTreeMap,
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use etherparse::PacketBuilder;
use ftp_alg_lab::CaptureAnalysis;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use serde_json::Value;

pub fn replay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ftp-alg")).arg("replay").args(arguments).output().unwrap()
}

/// What a successful replay printed.
pub fn printed(arguments: &[&str]) -> String {
    let output = replay(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.is_empty(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn announcements(arguments: &[&str]) -> Vec<Value> {
    let text = printed(&[arguments, &["--json"]].concat());
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// One line on standard error, and exit code 1.
pub fn failure(arguments: &[&str]) -> String {
    let output = replay(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr.trim_end().strip_prefix("ftp-alg: ").unwrap().to_owned()
}

/// What is absent may be absent here, but not where everything is to be tested.
fn absent(what: &str) {
    assert!(env::var_os("CI").is_none(), "{what}, and CI is set");
    eprintln!("SKIPPED: {what}");
}

pub fn captures() -> Vec<PathBuf> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = env::var_os("FTP_ALG_CAPTURES").map(PathBuf::from).or_else(|| {
        project.ancestors().map(|above| above.join("shared/captures")).find(|f| f.is_dir())
    });
    let Some(folder) = folder else {
        absent("no shared/captures above the project, and FTP_ALG_CAPTURES is not set");
        return Vec::new();
    };
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut captures: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|e| e == "pcap")).collect();
    captures.sort();
    assert!(captures.len() >= 12, "captures are missing: {captures:?}");
    captures
}

#[test]
#[ignore = "make test-arm64-replay: builds the program"]
fn the_program_for_arm64_says_the_same_of_every_capture() {
    let program = env::var("FTP_ALG_ARM64_PROGRAM").unwrap();
    for capture in captures() {
        let capture = capture.to_str().unwrap();
        for arguments in [&[capture][..], &[capture, "--json", "--transfers"]] {
            let there = Command::new("packaging/run")
                .args([&program, "replay"])
                .args(arguments)
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .output()
                .unwrap();
            assert_eq!(there, replay(arguments), "{arguments:?}");
        }
    }
}

fn name(path: &Path) -> &str {
    path.file_stem().unwrap().to_str().unwrap()
}

fn capture(wanted: &str) -> Option<String> {
    let found = captures().into_iter().find(|path| name(path) == wanted)?;
    Some(found.to_str().unwrap().to_owned())
}

/// Whether tests can run `program`.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        absent(&format!("{program} is not installed"));
    }
    found
}

/// Fields of tshark: what may be wrong, then what a packet is, then what the analysis of sequence numbers may find.
const FIELDS: &str = "ip.checksum.status tcp.checksum.status _ws.malformed \
    frame.time_epoch ip.src ipv6.src ip.dst ipv6.dst tcp.payload \
    tcp.analysis.lost_segment tcp.analysis.ack_lost_segment tcp.analysis.out_of_order \
    tcp.analysis.retransmission tcp.analysis.spurious_retransmission tcp.analysis.fast_retransmission \
    tcp.analysis.duplicate_ack tcp.analysis.keep_alive tcp.analysis.zero_window";

/// What tshark makes of a capture; made in one run, as each takes its time to start.
#[derive(Default)]
struct Dissection {
    /// Frames with a wrong checksum, or malformed.
    wrong: Vec<usize>,
    /// How often the analysis of sequence numbers found each.
    flags: BTreeMap<usize, usize>,
    packets: Vec<DissectedPacket>,
}

#[derive(PartialEq)]
struct DissectedPacket {
    time: String,
    source: String,
    destination: String,
    payload: String,
}

impl Dissection {
    fn of(capture: &Path) -> Self {
        let mut found = Self::default();
        let fields: Vec<&str> = FIELDS.split_whitespace().collect();
        for row in CaptureAnalysis::open(capture).fields("frame", &fields).unwrap() {
            let field = |at: usize| row.get(at).cloned().unwrap_or_default();
            let is_wrong = (0..2).any(|at| field(at).contains('0')) || !field(2).is_empty();
            found.packets.push(DissectedPacket {
                time: field(3),
                source: field(4) + &field(5),
                destination: field(6) + &field(7),
                payload: field(8),
            });
            found.wrong.extend(is_wrong.then_some(found.packets.len()));
            for at in (9..fields.len()).filter(|at| !field(*at).is_empty()) {
                *found.flags.entry(at).or_default() += 1;
            }
        }
        found
    }

    /// Nothing is wrong here that was not wrong in `before`.
    fn assert_as_clean_as(&self, before: &Self, name: &str) {
        assert!(self.wrong.is_empty(), "{name}: wrong frames {:?}", self.wrong);
        for (flag, count) in &self.flags {
            let is_old = before.flags.get(flag).is_some_and(|before| count <= before);
            assert!(is_old, "{name}: {count} x {:?}", FIELDS.split_whitespace().nth(*flag));
        }
    }
}

#[test]
fn every_capture_agrees_with_its_truth_and_what_opens_nothing_has_a_reason() {
    for path in captures() {
        let rows = announcements(&[path.to_str().unwrap()]);
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or("-").to_owned();
        let truth = fs::read_to_string(path.with_extension("truth.tsv")).unwrap();
        let truth = truth.lines().filter(|line| !line.starts_with('#'));
        let mut expected: Vec<[String; 4]> = truth
            .map(|line| {
                let fields: Vec<&str> = line.split('\t').collect();
                let [frame, from, kind, address, port] = fields[..5] else { panic!("{line}") };
                let kind = kind.replace("227", "PASV").replace("229", "EPSV");
                let endpoint = SocketAddr::new(address.parse().unwrap(), port.parse().unwrap());
                [frame.to_owned(), from.to_owned(), kind, endpoint.to_string()]
            })
            .collect();
        let announcing = rows.iter().filter(|row| !row["announced"].is_null());
        let fields = |row| ["from", "kind", "announced"].map(|key| text(row, key));
        let mut found: Vec<_> = announcing
            .map(|row| {
                let [from, kind, announced] = fields(row);
                [row["frame"].to_string(), from, kind, announced]
            })
            .collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{}", name(&path));

        let (open, others): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row["action"] == "open");
        for row in open {
            assert_eq!(row["reason"], "both ends see the same endpoint");
            assert!(row["rewritten"].is_null());
        }
        let describe = |row: &Value| {
            let [kind, announced, action, reason] =
                ["kind", "announced", "action", "reason"].map(|key| text(row, key));
            format!("{} {kind} {announced} {action}: {reason}", row["frame"])
        };
        let expected: &[&str] = match name(&path) {
            "suricata-verify-ftp-bounce" => {
                &["27 PORT 2.2.2.3:80 refuse: 2.2.2.3 is not the sender's address 1.1.1.2"]
            }
            "zeek-fake-long-commands" => &["32 PORT - refuse: PORT is malformed"],
            _ => &[],
        };
        let others: Vec<_> = others.into_iter().map(describe).collect();
        assert_eq!(others, expected, "{}", name(&path));
    }
}

#[test]
fn people_get_a_table_and_a_summary_and_programs_the_contracts_keys_in_its_order() {
    let Some(capture) = capture("suricata-verify-ftp-bounce") else { return };
    assert_eq!(
        printed(&[&capture, "--json"]).lines().last().unwrap(),
        r#"{"frame":27,"kind":"PORT","from":"client","announced":"2.2.2.3:80","action":"refuse","rewritten":null,"reason":"2.2.2.3 is not the sender's address 1.1.1.2"}"#
    );
    assert_eq!(
        printed(&[&capture]),
        "\
FRAME  SESSION  FROM    KIND  ANNOUNCED              ACTION   REWRITTEN  REASON
    8        1  1.1.1.2:33112 -> 2.2.2.1:21: logged in: anonymous
   10        1  client  PORT  1.1.1.2:59549          open     -          both ends see the same endpoint
   25        2  1.1.1.2:58316 -> 2.2.2.1:21: logged in: anonymous
   27        2  client  PORT  2.2.2.3:80             refuse   -          2.2.2.3 is not the sender's address 1.1.1.2

packets                 34
of control connections  34
sessions                2
encrypted               0
announcements           2: open 1, rewrite 0, refuse 1, ignore 0
  PORT                  2: open 1, rewrite 0, refuse 1, ignore 0
malformed               0

COUNT  ACTION  REASON
    1  refuse  2.2.2.3 is not the sender's address 1.1.1.2
"
    );
}

/// On each change of every third capture.
#[test]
fn the_written_capture_is_clean_without_translation_and_with_either_end_translated() {
    if !has("tshark") {
        return;
    }
    let out = tempfile::NamedTempFile::new().unwrap();
    let out_text = out.path().to_str().unwrap();
    let step = if env::var_os("FTP_ALG_NIGHTLY").is_some() { 1 } else { 3 };
    let (mut wrong_before, mut rewritten) = (0, 0);
    for path in captures().iter().skip(step - 1).step_by(step) {
        let (path_text, name) = (path.to_str().unwrap(), name(path));
        let before = Dissection::of(path);
        wrong_before += before.wrong.len();
        printed(&[path_text, "--write", out_text]);
        let after = Dissection::of(out.path());
        after.assert_as_clean_as(&before, name);
        // The same packets, but for what is refused.
        let pairs = before.packets.iter().zip(&after.packets);
        let changed = pairs.filter(|(before, after)| before != after).count();
        let refused = matches!(name, "suricata-verify-ftp-bounce" | "zeek-fake-long-commands");
        assert_eq!(before.packets.len(), after.packets.len(), "{name}");
        assert_eq!(changed, usize::from(refused), "{name}");

        let greeting = before.packets.iter().find(|packet| !packet.payload.is_empty()).unwrap();
        let (client, server) = (&greeting.destination, &greeting.source);
        let external = if client.contains(':') { "2001:db8:1:2:3:4:5:6" } else { "198.51.100.101" };
        for inside in [client, server] {
            let options = ["--external", external, "--inside", inside, "--write", out_text];
            let rows = announcements(&[&[path_text], &options[..]].concat());
            let after = Dissection::of(out.path());
            after.assert_as_clean_as(&before, name);
            if client == server {
                assert!(after.packets.is_empty(), "{name}: nothing passes the gateway");
                continue;
            }
            let seen = |end: &String| if end == inside { external.to_owned() } else { end.clone() };
            let before = before.packets.iter();
            let expected = before.map(|packet| [&packet.source, &packet.destination].map(seen));
            let found = after.packets.into_iter().map(|packet| [packet.source, packet.destination]);
            assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{name}");
            for row in rows.iter().filter(|row| row["action"] == "rewrite") {
                let announced: SocketAddr = row["announced"].as_str().unwrap().parse().unwrap();
                let instead: SocketAddr = row["rewritten"].as_str().unwrap().parse().unwrap();
                assert_eq!(announced.ip().to_string(), *inside);
                assert_eq!(instead, SocketAddr::new(external.parse().unwrap(), announced.port()));
                rewritten += 1;
            }
            // The written capture announces what the rows say.
            let passed = rows.iter().filter(|row| row["action"] != "refuse");
            let passed = passed.map(|row| match row["rewritten"].is_null() {
                true => row["announced"].clone(),
                false => row["rewritten"].clone(),
            });
            let written = announcements(&[out_text]);
            let written: Vec<_> = written.iter().map(|row| row["announced"].clone()).collect();
            assert_eq!(written, passed.collect::<Vec<_>>(), "{name}");
        }
    }
    // Some hold checksums from before the network card: that shows that they are checked.
    assert!(captures().is_empty() || (wrong_before > 0 && rewritten >= 40 / step));
}

/// The dialogues of slacksite.com's page on active and passive FTP, as an Ethernet capture with
/// VLAN tags; each line is acknowledged by itself.
pub fn slacksite(client: [u8; 4], server: [u8; 4], lines: &[(bool, &str)]) -> Vec<u8> {
    let header =
        PcapHeader { ts_resolution: pcap_file::TsResolution::NanoSecond, ..PcapHeader::default() };
    let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
    let mut sent = [1000u32, u32::MAX - 5];
    let mut time = Duration::new(1_700_000_000, 123_456_789);
    let mut packet = |from_client: bool, sent: [u32; 2], syn: bool, ack: bool, text: &str| {
        let ends = [(client, 1026, sent[0]), (server, 21, sent[1])];
        let [from, to] = if from_client { ends } else { [ends[1], ends[0]] };
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .single_vlan(7.try_into().unwrap())
            .ipv4(from.0, to.0, 64)
            .tcp(from.1, to.1, from.2, 8192);
        let builder = if syn { builder.syn() } else { builder };
        let builder = if ack { builder.ack(to.2) } else { builder };
        let builder = if text.is_empty() { builder } else { builder.psh() };
        let mut data = Vec::new();
        builder.write(&mut data, text.as_bytes()).unwrap();
        time += Duration::from_millis(5);
        writer.write_packet(&PcapPacket::new(time, data.len() as u32, &data)).unwrap();
    };
    packet(true, sent, true, false, "");
    sent[0] += 1;
    packet(false, sent, true, true, "");
    sent[1] = sent[1].wrapping_add(1);
    packet(true, sent, false, true, "");
    for (from_client, line) in lines {
        let text = format!("{line}\r\n");
        packet(*from_client, sent, false, true, &text);
        let from = usize::from(!from_client);
        sent[from] = sent[from].wrapping_add(text.len() as u32);
        packet(!from_client, sent, false, true, "");
    }
    writer.into_writer()
}

pub const LOGIN: [(bool, &str); 5] = [
    (false, "220 ready"),
    (true, "USER slacker"),
    (false, "331 Password required for slacker."),
    (true, "PASS x"),
    (false, "230 User slacker logged in."),
];

#[test]
fn other_containers_of_the_same_capture_say_the_same() {
    let Some(capture) = capture("zeek-ipv4").filter(|_| has("editcap")) else { return };
    let expected = announcements(&[&capture]);
    let other = tempfile::NamedTempFile::new().unwrap();
    let other = other.path().to_str().unwrap();
    for format in ["pcapng", "nsecpcap", "modpcap"] {
        let arguments = ["-F", format, &capture, other];
        assert!(Command::new("editcap").args(arguments).status().unwrap().success(), "{format}");
        assert_eq!(announcements(&[other]), expected, "{format}");
    }
}
