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

/// A temporary directory and a file in it; `None` without tshark.
fn place_for_tshark() -> Option<(tempfile::TempDir, PathBuf)> {
    let place = has_tshark().then(|| tempfile::tempdir().unwrap())?;
    let out = place.path().join("out.pcap");
    Some((place, out))
}

fn has_tshark() -> bool {
    let found = Command::new("tshark").arg("--version").output().is_ok();
    if !found {
        absent("tshark is not installed");
    }
    found
}

// Fields of tshark, in words.
const TIME: &str = "frame.time_epoch";
const FLAGS: &str = "lost_segment ack_lost_segment out_of_order retransmission spurious_retransmission \
                     fast_retransmission duplicate_ack keep_alive zero_window";
const WRONG: &str = "ip.checksum.status tcp.checksum.status _ws.malformed";
const ADDRESSES: &str = "ip.src ipv6.src ip.dst ipv6.dst";
const TCP: &str = "tcp.dstport tcp.flags.syn tcp.flags.ack tcp.payload";
const ANNOUNCED: &str = "ftp.active.cip ftp.passive.ip ftp.eprt.ip ftp.eprt.ipv6 ftp.epsv.ip ftp.epsv.ipv6 \
                         ftp.active.port ftp.passive.port ftp.eprt.port ftp.epsv.port";

/// What tshark makes of a capture; made in one run, as each takes its time to start.
#[derive(Default)]
struct Dissection {
    /// Frames with a wrong checksum, or malformed.
    wrong: Vec<usize>,
    /// How often the analysis of sequence numbers found what.
    flags: BTreeMap<&'static str, usize>,
    times: Vec<String>,
    /// Source and destination address of each frame that has them.
    addresses: Vec<[String; 2]>,
    /// Source address of each SYN to port 21, and its destination.
    control: Vec<[String; 2]>,
    /// Where other SYNs go.
    dialled: Vec<[String; 2]>,
    /// Address and port of each announcement.
    announced: Vec<[String; 2]>,
    /// What each segment carries, in hexadecimal.
    payloads: Vec<String>,
}

impl Dissection {
    fn of(capture: &Path) -> Self {
        let names: Vec<&str> = FLAGS.split(' ').collect();
        let flags = names.iter().map(|flag| format!("tcp.analysis.{flag}"));
        let flags = flags.collect::<Vec<_>>().join(" ");
        let groups = [TIME, WRONG, &flags, ADDRESSES, TCP, ANNOUNCED];
        let counts = groups.map(|group| group.split(' ').count());
        let fields: Vec<&str> = groups.iter().flat_map(|group| group.split(' ')).collect();
        let flags = names.iter().map(|flag| (*flag, 0)).collect();
        let mut found = Self { flags, ..Self::default() };
        let rows = CaptureAnalysis::open(capture).fields("frame", &fields).unwrap();
        for (index, row) in rows.iter().enumerate() {
            let mut values = row.iter().map(String::as_str);
            let [time, wrong, flags, addresses, tcp, announced] =
                counts.map(|count| values.by_ref().take(count).collect::<Vec<&str>>());
            found.times.push(time[0].to_owned());
            if wrong[..2].iter().any(|status| status.contains('0')) || !wrong[2].is_empty() {
                found.wrong.push(index + 1);
            }
            for (flag, value) in names.iter().zip(flags) {
                *found.flags.get_mut(flag).unwrap() += usize::from(!value.is_empty());
            }
            let some = |values: Vec<&str>| -> Option<[String; 2]> {
                let some: Vec<_> = values.into_iter().filter(|value| !value.is_empty()).collect();
                Some([some.first()?.to_string(), some.last()?.to_string()])
            };
            let (addresses, announced) = (some(addresses), some(announced));
            if let Some([source, destination]) = addresses.clone()
                && let [port, "1" | "True", "0" | "False", _] = tcp[..]
            {
                match port {
                    "21" => found.control.push([source, destination]),
                    port => found.dialled.push([destination, port.to_owned()]),
                }
            }
            if !tcp[3].is_empty() {
                found.payloads.push(tcp[3].to_owned());
            }
            found.addresses.extend(addresses);
            found.announced.extend(announced);
        }
        found
    }

    /// How many data connections go to an endpoint that was announced.
    fn dialled_as_announced(&self) -> usize {
        self.dialled.iter().filter(|endpoint| self.announced.contains(endpoint)).count()
    }

    /// Nothing is wrong here that was not wrong in `before`.
    fn assert_as_clean_as(&self, before: &Self, name: &str) {
        assert!(self.wrong.is_empty(), "{name}: wrong frames {:?}", self.wrong);
        for (flag, count) in &self.flags {
            assert!(*count <= before.flags[flag], "{name}: {count} x {flag}: {:?}", before.flags);
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
        let mut expected: Vec<(u64, String, String, SocketAddr)> = truth
            .map(|line| {
                let fields: Vec<&str> = line.split('\t').collect();
                let kind = fields[2].replace("227", "PASV").replace("229", "EPSV");
                let endpoint =
                    SocketAddr::new(fields[3].parse().unwrap(), fields[4].parse().unwrap());
                (fields[0].parse().unwrap(), fields[1].to_owned(), kind, endpoint)
            })
            .collect();
        let announcing = rows.iter().filter(|row| !row["announced"].is_null());
        let mut found: Vec<_> = announcing
            .map(|row| {
                let endpoint = text(row, "announced").parse().unwrap();
                (row["frame"].as_u64().unwrap(), text(row, "from"), text(row, "kind"), endpoint)
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
    let Some((_place, out)) = place_for_tshark() else { return };
    let out_text = out.to_str().unwrap();
    let step = if env::var_os("FTP_ALG_NIGHTLY").is_some() { 1 } else { 3 };
    let (mut wrong_before, mut rewritten, mut dialled) = (0, 0, 0);
    for path in captures().iter().skip(step - 1).step_by(step) {
        let (path_text, name) = (path.to_str().unwrap(), name(path));
        let before = Dissection::of(path);
        wrong_before += before.wrong.len();
        printed(&[path_text, "--write", out_text]);
        let after = Dissection::of(&out);
        after.assert_as_clean_as(&before, name);
        assert_eq!((&before.addresses, &before.times), (&after.addresses, &after.times), "{name}");
        // The same packets, but for what is refused.
        let pairs = before.payloads.iter().zip(&after.payloads);
        let changed = pairs.filter(|(before, after)| before != after).count();
        let refused = matches!(name, "suricata-verify-ftp-bounce" | "zeek-fake-long-commands");
        assert_eq!(before.payloads.len(), after.payloads.len(), "{name}");
        assert_eq!(changed, usize::from(refused), "{name}");

        let [client, server] = &before.control[0];
        let external = if client.contains(':') { "2001:db8:1:2:3:4:5:6" } else { "198.51.100.101" };
        for inside in [client, server] {
            let options = ["--external", external, "--inside", inside, "--write"];
            let rows = announcements(&[&[path_text], &options[..], &[out_text]].concat());
            let after = Dissection::of(&out);
            after.assert_as_clean_as(&before, name);
            if client == server {
                assert!(after.payloads.is_empty(), "{name}: nothing passes the gateway");
                continue;
            }
            let seen = |end: &String| if end == inside { external.to_owned() } else { end.clone() };
            let expected: Vec<_> =
                before.addresses.iter().map(|ends| ends.each_ref().map(seen)).collect();
            assert_eq!(after.addresses, expected, "{name}");
            for row in rows.iter().filter(|row| row["action"] == "rewrite") {
                let announced: SocketAddr = row["announced"].as_str().unwrap().parse().unwrap();
                let instead: SocketAddr = row["rewritten"].as_str().unwrap().parse().unwrap();
                assert_eq!(announced.ip().to_string(), *inside);
                assert_eq!(instead, SocketAddr::new(external.parse().unwrap(), announced.port()));
                rewritten += 1;
            }
            // What is announced is what the other end dials, wherever it does.
            assert_eq!(after.dialled_as_announced(), before.dialled_as_announced(), "{name}");
            dialled += after.dialled_as_announced();
        }
    }
    println!("{wrong_before} wrong checksums, {rewritten} rewritten, {dialled} dialled");
    // Some hold checksums from before the network card: that shows that they are checked.
    assert!(
        captures().is_empty()
            || (wrong_before > 0 && rewritten >= 40 / step && dialled >= 60 / step)
    );
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
    let Some(capture) = capture("zeek-ipv4") else { return };
    if Command::new("editcap").arg("--version").output().is_err() {
        return absent("editcap is not installed");
    }
    let place = tempfile::tempdir().unwrap();
    let expected = announcements(&[&capture]);
    let other = place.path().join("other");
    for format in ["pcapng", "nsecpcap", "modpcap"] {
        let arguments = ["-F", format, &capture, other.to_str().unwrap()];
        assert!(Command::new("editcap").args(arguments).status().unwrap().success(), "{format}");
        assert_eq!(announcements(&[other.to_str().unwrap()]), expected, "{format}");
    }
}

#[test]
fn a_cut_off_capture_gives_what_was_read_and_a_warning() {
    let place = tempfile::tempdir().unwrap();
    let cut = place.path().join("cut.pcap");
    let bytes = slacksite([10, 0, 0, 1], [192, 0, 2, 1], &LOGIN);
    fs::write(&cut, &bytes[..bytes.len() - 1]).unwrap();
    let output = replay(&[cut.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    let warning = "the capture ends within its last record";
    let expected = format!("ftp-alg: {}: {warning}\n", cut.display());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), expected);
    assert!(String::from_utf8(output.stdout).unwrap().contains("packets                 12\n"));
}
