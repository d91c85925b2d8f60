//! Captures packets on an interface of the lab, and analyses them with tshark.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use rustix::process::Signal;

use super::{BackgroundProcess, Host, LabError, Result, process};

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    process: BackgroundProcess,
    path: PathBuf,
}

impl Capture {
    /// Captures packets on `interface` of `host` that match `filter` (a filter of tcpdump).
    pub fn start(host: &Host, interface: &str, filter: &str) -> Result<Self> {
        let number = fs::read_dir(host.directory()).map_or(0, Iterator::count);
        // The AppArmor profile of Ubuntu allows tcpdump to write only files named *.pcap.
        let name = format!("{}-{interface}-{number}", host.role());
        let path = host.directory().join(format!("{name}.pcap"));
        let mut command = host.command("tcpdump");
        // Each slot of the ring has room for the longest packet, so this size makes a thousand slots.
        command.args(["-i", interface, "-n", "-s", "65535", "-B", "65536"]);
        command.args(["-U", "--immediate-mode"]);
        // tcpdump stays root and writes each packet at once.
        command.args(["-Z", "root", "-w"]).arg(&path).arg(filter);
        let mut process = host.start(command, &name)?;
        process.wait_until("start", Duration::from_secs(60), |tcpdump| {
            Ok(tcpdump.log().contains("listening on"))
        })?;
        Ok(Self { process, path })
    }

    /// Ends the capture when all packets are written that have passed the interface, and returns it for analysis.
    pub fn finish(mut self) -> Result<CaptureAnalysis> {
        self.process.wait_until("all packets", Duration::from_secs(10), |tcpdump| {
            // It answers with its counts.
            tcpdump.signal(Signal::USR1);
            Ok(is_complete(&tcpdump.log()))
        })?;
        self.process.terminate(Duration::from_secs(60))?;
        let log = self.process.log();
        let dropped =
            log.lines().filter_map(|line| line.strip_suffix(" packets dropped by kernel"));
        if dropped.filter_map(|counts| counts.split(' ').next_back()).any(|count| count != "0") {
            return Err(LabError::Unexpected(format!("the capture lost packets: {log}")));
        }
        Ok(CaptureAnalysis::open(&self.path))
    }
}

/// Whether tcpdump has written all packets, by its reports: `tcpdump: 3 packets captured, 3 packets received by filter, 0
/// packets dropped by kernel`. It has if the kernel counts no more, or if nothing changed in its last answers: the kernel
/// also counts what came before the filter was set, and between two answers tcpdump empties its ring.
fn is_complete(log: &str) -> bool {
    let count = |part: &str| part.split(' ').find_map(|word| word.parse::<u64>().ok());
    let counts = |line: &str| {
        let (captured, rest) = line.split_once(" captured, ")?;
        let (received, _) = rest.split_once(" received by filter")?;
        Some((count(captured)?, count(received)?))
    };
    let reports: Vec<(u64, u64)> = log.lines().filter_map(counts).collect();
    let Some(last) = reports.last() else { return false };
    last.0 == last.1 || reports.len() >= 5 && reports.iter().rev().take(5).all(|one| one == last)
}

/// A line of a control connection, assembled from segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlLine {
    /// The number of the connection in the capture.
    pub stream: String,
    /// The address of the sender.
    pub from: IpAddr,
    /// The address of the receiver.
    pub to: IpAddr,
    /// Whether the line was sent to the server.
    pub is_command: bool,
    /// The line without its line end.
    pub text: String,
}

/// A retransmission time-out takes at least 200 ms on Linux. Earlier retransmissions are loss probes. Round trips take
/// microseconds here, so loss probes occur whenever the gateway waits a few milliseconds for the processor on a busy
/// machine.
const TIMEOUT: Duration = Duration::from_millis(190);

/// How many packets later an acknowledged segment may be captured: two processors capture in their own order.
const CAPTURED_LATE: usize = 2;

/// A segment of a connection, with tshark's relative numbers.
#[derive(Debug)]
struct Segment {
    /// The sender's port.
    port: String,
    seq: u64,
    next: u64,
    ack: u64,
}

/// The gaps in the sequence numbers of a connection.
fn gaps(segments: &[&Segment]) -> Vec<String> {
    let mut directions: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    for Segment { port, seq, next, .. } in segments {
        directions.entry(port).or_default().push((*seq, *next));
    }
    let mut gaps = Vec::new();
    for (port, mut spans) in directions {
        spans.sort_unstable();
        let mut reached = spans.first().map_or(0, |(seq, _)| *seq);
        for (seq, next) in spans {
            if seq > reached {
                gaps.push(format!("from port {port}: gap from {reached} to {seq}"));
            }
            reached = reached.max(next);
        }
    }
    gaps
}

/// The acknowledgements of a connection that cover what its other end had not sent.
fn early_acknowledgements(segments: &[&Segment]) -> Vec<String> {
    let mut sent: BTreeMap<&str, u64> = BTreeMap::new();
    let mut captured = segments.iter();
    let mut early = Vec::new();
    for (at, Segment { port, ack, .. }) in segments.iter().enumerate() {
        let so_far = at + 1 + CAPTURED_LATE - (segments.len() - captured.len());
        for Segment { port, next, .. } in captured.by_ref().take(so_far) {
            let sent = sent.entry(port).or_default();
            *sent = (*sent).max(*next);
        }
        let others = sent.iter().filter(|(other, _)| **other != port.as_str());
        if others.map(|(_, sent)| *sent).max().is_some_and(|sent| *ack > sent) {
            early.push(format!("from port {port}: acknowledges {ack}"));
        }
    }
    early
}

/// What tshark says of a packet.
#[derive(Debug)]
struct PacketReport {
    /// Empty if it has no TCP header.
    stream: String,
    segment: Segment,
    has_wrong_checksum: bool,
    is_reordered: bool,
    has_timed_out: bool,
    /// The number of the frame, and what the packet is.
    name: String,
}

impl PacketReport {
    const FIELDS: [&str; 13] = [
        "tcp.stream",
        "tcp.srcport",
        "tcp.seq",
        "tcp.nxtseq",
        "tcp.ack",
        "ip.checksum.status",
        "tcp.checksum.status",
        "tcp.checksum.ffff",
        "tcp.analysis.out_of_order",
        "tcp.analysis.lost_segment",
        "tcp.analysis.rto",
        "frame.number",
        "_ws.col.Info",
    ];

    fn parse(row: Vec<String>) -> Result<Self> {
        let [stream, port, seq, next, ack, ip_sum, tcp_sum, ffff, late, lost, waited, frame, info] =
            <[String; 13]>::try_from(row)
                .map_err(|row| LabError::Unexpected(format!("tshark says of a packet: {row:?}")))?;
        // A packet inside of an ICMP error has values of its own, after a comma.
        let is_bad = |status: &str| status.split(',').any(|status| status == "0");
        let limit = process::scaled_timeout(TIMEOUT).as_secs_f64();
        let seq = seq.parse().unwrap_or(0);
        let next = next.parse().unwrap_or(seq);
        Ok(Self {
            stream,
            segment: Segment { port, seq, next, ack: ack.parse().unwrap_or(0) },
            // Linux sends 0xffff for a TCP checksum of 0. The receiver's sum is the same.
            has_wrong_checksum: is_bad(&ip_sum) || is_bad(&tcp_sum) && ffff.is_empty(),
            is_reordered: !late.is_empty() || !lost.is_empty(),
            has_timed_out: waited
                .split(',')
                .any(|seconds| seconds.parse().is_ok_and(|s: f64| s >= limit)),
            name: format!("frame {frame}: {info}"),
        })
    }
}

fn named(reports: &[PacketReport], is_it: impl Fn(&PacketReport) -> bool) -> Vec<String> {
    reports.iter().filter(|packet| is_it(packet)).map(|packet| packet.name.clone()).collect()
}

/// The gaps in sequence numbers, and the acknowledgements of bytes that were not captured. A packet that is only out of
/// order leaves no gap, see [`CaptureAnalysis::reorderings`].
fn lost_bytes(reports: &[PacketReport]) -> Vec<String> {
    let mut streams: BTreeMap<&str, Vec<&Segment>> = BTreeMap::new();
    for packet in reports.iter().filter(|packet| !packet.stream.is_empty()) {
        streams.entry(&packet.stream).or_default().push(&packet.segment);
    }
    let of_stream = |(stream, segments): (&&str, &Vec<&Segment>)| {
        let found = [gaps(segments), early_acknowledgements(segments)].concat();
        found.into_iter().map(|what| format!("stream {stream} {what}")).collect::<Vec<_>>()
    };
    streams.iter().flat_map(of_stream).collect()
}

/// A finished capture.
#[derive(Debug)]
pub struct CaptureAnalysis {
    path: PathBuf,
    /// What tshark says of each packet, once somebody has asked for it.
    reports: OnceLock<Vec<PacketReport>>,
}

impl CaptureAnalysis {
    /// Analyses an existing capture file.
    pub fn open(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), reports: OnceLock::new() }
    }

    /// The capture file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fields of the packets that match `filter` (a display filter of tshark), one row for each packet.
    pub fn fields(&self, filter: &str, fields: &[&str]) -> Result<Vec<Vec<String>>> {
        let mut command = Command::new(process::system_program("tshark"));
        command.arg("-n").arg("-r").arg(&self.path).args(["-Y", filter, "-T", "fields"]);
        for protocol in ["ip.check_checksum", "tcp.check_checksum"] {
            command.args(["-o", &format!("{protocol}:TRUE")]);
        }
        for field in fields {
            command.args(["-e", field]);
        }
        let done = process::run(command, b"", Duration::from_secs(60))?;
        // Only the exit status counts, because tshark also prints a warning about running as root.
        let text = done.success()?.stdout_text();
        Ok(text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect())
    }

    /// The number of packets that match `filter`.
    pub fn count(&self, filter: &str) -> Result<usize> {
        self.fields(filter, &["frame.number"]).map(|rows| rows.len())
    }

    /// The packets with a wrong checksum, one line each.
    pub fn wrong_checksums(&self) -> Result<Vec<String>> {
        Ok(named(self.reports()?, |packet| packet.has_wrong_checksum))
    }

    /// The packets that arrived out of order, one line each.
    pub fn reorderings(&self) -> Result<Vec<String>> {
        Ok(named(self.reports()?, |packet| packet.is_reordered))
    }

    /// The retransmissions after a retransmission time-out, one line each.
    pub fn timeouts(&self) -> Result<Vec<String>> {
        Ok(named(self.reports()?, |packet| packet.has_timed_out))
    }

    /// The packets with signs of a wrong rewrite or sequence adjustment, one line each.
    ///
    /// These are packets with a wrong checksum, and packets that acknowledge or follow bytes that were not captured.
    pub fn faults(&self) -> Result<Vec<String>> {
        let reports = self.reports()?;
        let wrong = named(reports, |packet| packet.has_wrong_checksum);
        Ok([wrong, lost_bytes(reports)].concat())
    }

    fn reports(&self) -> Result<&[PacketReport]> {
        if let Some(reports) = self.reports.get() {
            return Ok(reports);
        }
        let rows = self.fields("frame", &PacketReport::FIELDS)?;
        let reports = rows.into_iter().map(PacketReport::parse).collect::<Result<_>>()?;
        Ok(self.reports.get_or_init(|| reports))
    }

    /// The lines on connections to the server's `port`, in the order in which they were complete. Each direction is
    /// assembled by sequence number.
    pub fn control_lines_of(&self, port: u16) -> Result<Vec<ControlLine>> {
        let server = port.to_string();
        let rows = self.fields(
            &format!("tcp.port == {server} && tcp.len > 0"),
            &[
                "frame.number",
                "tcp.stream",
                "ip.src",
                "ip.dst",
                "ipv6.src",
                "ipv6.dst",
                "tcp.dstport",
                "tcp.seq",
                "tcp.payload",
            ],
        )?;
        let mut directions: BTreeMap<(String, bool), ControlDirection> = BTreeMap::new();
        for row in &rows {
            let [frame, stream, src4, dst4, src6, dst6, port, seq, payload] = row.as_slice() else {
                continue;
            };
            let address = |v4: &str, v6: &str| (v4.to_owned() + v6).parse().ok();
            let (Some(from), Some(to)) = (address(src4, src6), address(dst4, dst6)) else {
                continue;
            };
            let is_command = *port == server;
            let direction = directions
                .entry((stream.clone(), is_command))
                .or_insert_with(|| ControlDirection { from, to, segments: BTreeMap::new() });
            let frame = frame.parse().unwrap_or(0);
            direction.add(frame, seq.parse().unwrap_or(0), &bytes(payload));
        }
        let mut lines: Vec<(u64, ControlLine)> = Vec::new();
        for ((stream, is_command), direction) in directions {
            let ControlDirection { from, to, .. } = direction;
            for (frame, text) in direction.lines() {
                let stream = stream.clone();
                lines.push((frame, ControlLine { stream, from, to, is_command, text }));
            }
        }
        lines.sort_by_key(|(frame, _)| *frame);
        Ok(lines.into_iter().map(|(_, line)| line).collect())
    }

    /// The announcements on control connections to port 21: `PORT`, `EPRT`, `227`, `229`.
    pub fn announcements(&self) -> Result<Vec<String>> {
        let lines = self.control_lines_of(21)?.into_iter().map(|line| line.text);
        Ok(lines
            .filter(|line| {
                let start: String = line.chars().take(4).collect::<String>().to_uppercase();
                ["PORT", "EPRT", "227 ", "229 "].contains(&start.as_str())
            })
            .collect())
    }
}

/// One direction of a control connection: bytes with their frame, by relative sequence number.
struct ControlDirection {
    from: IpAddr,
    to: IpAddr,
    segments: BTreeMap<u64, (u8, u64)>,
}

impl ControlDirection {
    fn add(&mut self, frame: u64, seq: u64, payload: &[u8]) {
        for (offset, byte) in (seq..).zip(payload) {
            self.segments.entry(offset).or_insert((*byte, frame));
        }
    }

    /// The complete lines, each with the frame that completed it.
    fn lines(&self) -> Vec<(u64, String)> {
        let (mut lines, mut text, mut latest) = (Vec::new(), Vec::new(), 0);
        for (byte, frame) in self.segments.values() {
            latest = latest.max(*frame);
            if *byte == b'\n' {
                let line = String::from_utf8_lossy(&text).trim_end_matches('\r').to_owned();
                lines.push((latest, line));
                text.clear();
            } else {
                text.push(*byte);
            }
        }
        lines
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        hex.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_assembled_across_segments_and_retransmissions() {
        let here = "192.0.2.1".parse().unwrap();
        let mut direction = ControlDirection { from: here, to: here, segments: BTreeMap::new() };
        direction.add(3, 5, b"T 1,2\r\nQU");
        direction.add(1, 1, b"POR");
        direction.add(2, 1, b"PORX");
        direction.add(9, 5, b"T 1,2\r\nQUIT\r\n");
        let expected = [(3, "PORXT 1,2".to_owned()), (9, "QUIT".to_owned())];
        assert_eq!(direction.lines(), expected);
    }

    #[test]
    fn a_capture_is_complete_when_all_received_packets_are_captured() {
        let report = |captured| {
            format!(
                "tcpdump: {captured} packets captured, 12 packets received by filter, 0 packets dropped by kernel\n"
            )
        };
        assert!(is_complete(&report(12)));
        assert!(!is_complete(&report(11)));
        assert!(!is_complete("12 packets captured\n"));
        assert!(is_complete(&report(11).repeat(5)), "nothing more comes");
        assert!(!is_complete(&(report(10) + &report(11).repeat(4))));
    }

    #[test]
    fn an_acknowledgement_may_be_captured_before_its_segment_but_not_without() {
        let segment = |port: &str, seq, next, ack| Segment { port: port.into(), seq, next, ack };
        let early = |first, later| {
            let mut all = vec![segment("21", 0, 1, 0), segment("9", 0, 1, 1)];
            all.extend([segment("21", 1, 5, first), segment("9", 1, 1, 5)]);
            all.extend(later);
            early_acknowledgements(&all.iter().collect::<Vec<_>>())
        };
        assert_eq!(early(7, vec![segment("9", 1, 7, 1)]), [""; 0]);
        assert_eq!(early(8, vec![segment("9", 1, 7, 1)]), ["from port 21: acknowledges 8"]);
        let far = vec![segment("21", 5, 5, 1), segment("9", 1, 7, 1)];
        assert_eq!(early(7, far), ["from port 21: acknowledges 7"]);
    }

    #[test]
    fn hexadecimal_payloads_are_parsed() {
        assert_eq!(bytes("50:4f52"), b"POR");
        assert_eq!(bytes(""), b"");
    }
}
