//! Tests of the replay in-process: damaged captures, all capture formats, gaps, and segments out of order.

use std::{
    fs,
    io::{self, Cursor, Read},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use etherparse::{PacketBuilder, PacketBuilderStep, TcpHeader};
use ftp_alg_core::{
    engine::{Event, Transfer},
    policy::Policy,
};
use proptest::prelude::*;

use super::{
    capture::{CaptureError, PcapWriter},
    *,
};

mod streams;
mod transfers;

/// The notes and the summary of a replay.
#[derive(Debug, Default)]
struct Played {
    rows: Vec<AnnouncementRow>,
    session_rows: Vec<(FramePosition, Event)>,
    transfers: Vec<(FramePosition, Event, Transfer)>,
    warnings: Vec<String>,
    summary: Summary,
    error: Option<CaptureError>,
}

/// Plays `capture` with a gateway. Returns the report and the written capture.
fn played_with(nat: SimulatedNat, capture: &[u8]) -> Result<(Played, Vec<u8>), CaptureError> {
    let mut written = Vec::new();
    let mut player = Player::new(Policy::default(), nat);
    player.write_to(&mut written, true).unwrap();
    player.begin_capture();
    let mut reader = CaptureReader::open(Cursor::new(capture))?;
    let error = loop {
        match reader.next_record() {
            Ok(Some(record)) => player.handle_record(&record).unwrap(),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    let error = player.end_capture(&reader).or(error);
    player.finish().unwrap();
    let mut played = Played { error, ..Played::default() };
    for note in player.report.take_notes() {
        match note {
            Note::Announcement(row) => played.rows.push(row),
            Note::Session(position, event) => match event.kind.ended_transfer().cloned() {
                Some(transfer) => played.transfers.push((position, *event, transfer)),
                None => played.session_rows.push((position, *event)),
            },
            Note::Warning(_, warning) => played.warnings.push(warning),
        }
    }
    played.summary = player.report.summary.clone();
    drop(player);
    Ok((played, written))
}

/// Plays `capture` with a gateway that translates 192.168.0.0/16. Returns the report and the written capture.
fn played(capture: &[u8]) -> Result<(Played, Vec<u8>), CaptureError> {
    let external = [198, 51, 100, 1].into();
    let inside = vec!["192.168.0.0/16".parse().unwrap()];
    played_with(SimulatedNat::new(Some(external), inside), capture)
}

/// A conversation without a gateway, one packet for each line.
#[derive(Default)]
struct Talk {
    sent: [u32; 2],
    packets: Vec<Vec<u8>>,
}

const CLIENT: usize = 0;
const SERVER: usize = 1;

impl Talk {
    /// A handshake, and then `lines`.
    fn without_login(lines: &[(usize, &str)]) -> Self {
        let mut talk = Self { sent: [100, u32::MAX - 20], packets: Vec::new() };
        let [client, server] = talk.sent;
        for (from, syn) in [(CLIENT, client - 1), (SERVER, server - 1)] {
            let packet = talk.packet(from, syn, b"", |tcp| tcp.syn());
            talk.packets.push(packet);
        }
        for (from, line) in lines {
            talk.say(*from, line);
        }
        talk
    }

    /// A login, and then `lines`.
    fn of(lines: &[(usize, &str)]) -> Self {
        let login = [
            (SERVER, "220 ready\r\n"),
            (CLIENT, "USER joe\r\n"),
            (SERVER, "331 password\r\n"),
            (CLIENT, "PASS x\r\n"),
            (SERVER, "230 in\r\n"),
        ];
        Self::without_login(&[&login, lines].concat())
    }

    fn packet(
        &self,
        from: usize,
        seq: u32,
        payload: &[u8],
        with: fn(PacketBuilderStep<TcpHeader>) -> PacketBuilderStep<TcpHeader>,
    ) -> Vec<u8> {
        let ends = [([192, 168, 150, 80], 1035), ([203, 0, 113, 9], 21)];
        let [(source, source_port), (destination, port)] = [ends[from], ends[1 - from]];
        let builder = PacketBuilder::ipv4(source, destination, 64).tcp(source_port, port, seq, 512);
        let first = from == CLIENT && self.packets.is_empty();
        let builder = if first { builder } else { builder.ack(self.sent[1 - from]) };
        let mut bytes = Vec::new();
        with(builder).write(&mut bytes, payload).unwrap();
        bytes
    }

    fn say(&mut self, from: usize, line: &str) {
        let packet = self.packet(from, self.sent[from], line.as_bytes(), |tcp| tcp.psh());
        self.sent[from] = self.sent[from].wrapping_add(line.len() as u32);
        self.packets.push(packet);
    }

    /// A pcap of raw IP packets, without the frames `without` (counted from 1).
    fn capture(&self, without: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = PcapWriter::new(&mut bytes, false).unwrap();
        for (index, packet) in self.packets.iter().enumerate() {
            if !without.contains(&(index + 1)) {
                let time = Duration::from_millis(1000 + index as u64);
                writer.packet(time, packet, packet.len()).unwrap();
            }
        }
        bytes
    }
}

fn row(rows: &[AnnouncementRow]) -> (u64, &str, Option<&str>) {
    let [row] = rows else { panic!("not one row: {rows:?}") };
    (row.frame, row.action, row.rewritten.as_deref())
}

/// The written payloads from one source.
fn said(written: &[u8], from: &str) -> String {
    let from: SocketAddr = from.parse().unwrap();
    let mut reader = CaptureReader::open(Cursor::new(written)).unwrap();
    let mut text = Vec::new();
    let mut next: Option<u32> = None;
    while let Some(record) = reader.next_record().unwrap() {
        let packet = ftp_alg_core::packet::Packet::parse(record.data).unwrap();
        assert!(packet.checksum_is_valid());
        if packet.source() == from && !packet.payload().is_empty() {
            assert_eq!(*next.get_or_insert(packet.seq().0), packet.seq().0, "a gap was written");
            text.extend(packet.payload());
            next = Some((packet.seq() + packet.payload().len() as u32).0);
        }
    }
    String::from_utf8(text).unwrap()
}

const PORT: &str = "PORT 192,168,150,80,14,178\r\n";
const REWRITTEN: Option<&str> = Some("198.51.100.1:3762");
const EXTERNAL: &str = "198.51.100.1:1035";

/// An announcement is reported at the frame that completes it, also if that frame comes early.
#[test]
fn out_of_order_segments_are_reported_at_the_completing_frame() {
    let mut talk = Talk::of(&[
        (CLIENT, "PORT 192,168,1"),
        (CLIENT, "50,80,14,178\r\nNOOP\r\n"),
        (CLIENT, "NOOP\r\n"),
    ]);
    talk.packets[7..10].rotate_right(1); // frames 9, 10, 8
    talk.packets.swap(8, 9);
    let (report, written) = played(&talk.capture(&[])).unwrap();
    assert_eq!(row(&report.rows), (10, "rewrite", REWRITTEN));
    assert_eq!((report.summary.gaps, &report.warnings[..]), (0, &[][..]));
    let expected = "USER joe\r\nPASS x\r\nPORT 198,51,100,1,14,178\r\nNOOP\r\nNOOP\r\n";
    assert_eq!(said(&written, EXTERNAL), expected);
    let mut talk = Talk::of(&[(CLIENT, "NOOP\r\n"), (CLIENT, PORT)]);
    talk.packets.swap(7, 8);
    assert_eq!(row(&played(&talk.capture(&[])).unwrap().0.rows), (8, "rewrite", REWRITTEN));
}

#[test]
fn gap_is_reported_and_opens_no_pinhole() {
    let mut talk = Talk::of(&[
        (CLIENT, "NOOP\r\n"),
        (CLIENT, PORT),
        (SERVER, "200 ok\r\n200 ok\r\n"),
        (CLIENT, "QUIT\r\n"),
    ]);
    let (report, ..) = played(&talk.capture(&[8])).unwrap();
    assert_eq!(row(&report.rows), (8, "ignore", None));
    assert_eq!(report.rows[0].reason, "packets were missed: the earlier dialogue is unknown");
    assert_eq!(report.summary.gaps, 1);
    assert!(report.warnings[0].contains("gap before frame 9: 6 bytes from 192.168.150.80:1035"));
    // The result is the same at the end of the capture.
    talk.packets.truncate(9);
    assert_eq!(row(&played(&talk.capture(&[8])).unwrap().0.rows).0, 8);
}

#[test]
fn gap_within_an_announcement_does_not_stop_the_replay() {
    let talk = Talk::of(&[
        (CLIENT, "PORT 192,168,"),
        (CLIENT, "150,80,14,"),
        (CLIENT, "178\r\n"),
        (SERVER, "200 ok\r\n"),
        (CLIENT, "QUIT\r\n"),
    ]);
    let (report, written) = played(&talk.capture(&[9])).unwrap();
    assert!(report.rows.is_empty());
    assert_eq!(
        (report.summary.gaps, report.summary.lost, report.summary.written),
        (1, 1, Some(10))
    );
    assert!(report.warnings[1].contains("is not followed any more"), "{report:?}");
    assert!(!written.is_empty());
}

#[test]
fn segmented_announcement_is_written_as_one_segment() {
    let mut talk = Talk::of(&[]);
    for at in 0..PORT.len() {
        talk.say(CLIENT, &PORT[at..=at]);
        let acknowledgement = talk.packet(SERVER, talk.sent[SERVER], b"", |tcp| tcp);
        talk.packets.push(acknowledgement);
    }
    talk.say(SERVER, "200 ok\r\n");
    let (report, written) = played(&talk.capture(&[])).unwrap();
    assert_eq!(row(&report.rows), (7 + 2 * PORT.len() as u64 - 1, "rewrite", REWRITTEN));
    assert!(said(&written, EXTERNAL).ends_with("\r\nPORT 198,51,100,1,14,178\r\n"));
    // The segments before the last one are held, so neither they nor their acknowledgements are written.
    assert_eq!(report.summary.written, Some(7 + 2 + 1));
}

#[test]
fn pcapng_with_any_byte_order_and_resolution_is_read() {
    let talk = Talk::of(&[(CLIENT, PORT)]);
    for big in [false, true] {
        for (resolution, units) in
            [(None, 1_000_000u64), (Some(9), 1_000_000_000), (Some(0x8a), 1024)]
        {
            let capture = pcapng(&talk, big, resolution, units);
            let mut reader = CaptureReader::open(Cursor::new(&capture[..])).unwrap();
            assert_eq!(reader.next_record().unwrap().unwrap().time, Duration::from_millis(1500));
            let (report, ..) = played(&capture).unwrap();
            assert_eq!(row(&report.rows), (8, "rewrite", REWRITTEN));
        }
    }
}

/// A pcapng capture of raw IP with a talk at 1.5 s.
fn pcapng(talk: &Talk, big: bool, resolution: Option<u8>, units: u64) -> Vec<u8> {
    let resolution = resolution.map(|resolution| [resolution, 0, 0, 0]);
    let options = resolution.as_ref().map(|resolution| (9, 1, &resolution[..]));
    let time = units + units / 2;
    let packets = talk.packets.iter().map(|packet| {
        let length = packet.len() as u32;
        (6, vec![0, (time >> 32) as u32, time as u32, length, length], &packet[..])
    });
    blocks(big, 0, options, packets)
}

#[test]
fn truncated_capture_is_played_to_its_end() {
    let mut talk = Talk::of(&[(CLIENT, PORT)]);
    let whole = talk.capture(&[]);
    talk.say(SERVER, "200 ok\r\n");
    let longer = talk.capture(&[]);
    for end in whole.len() + 1..longer.len() {
        let (report, _) = played(&longer[..end]).unwrap();
        assert_eq!((report.summary.packets, report.error.is_some()), (8, false));
        assert_eq!(report.warnings, ["the capture ends within its last record"]);
    }
    assert!(played(&whole).unwrap().0.warnings.is_empty());
}

#[test]
fn impossible_record_length_is_damage() {
    let mut capture = Talk::of(&[]).capture(&[]);
    let at = 24 + 8; // of the first record
    capture[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = played(&capture).unwrap().0.error.unwrap().to_string();
    assert_eq!(error, "damaged after frame 0: a record has 4294967295 bytes");
}

#[test]
fn segments_cut_by_the_snap_length_are_written_and_are_gaps() {
    let talk = Talk::of(&[(CLIENT, PORT), (SERVER, "200 ok\r\n"), (CLIENT, "QUIT\r\n")]);
    let mut bytes = Vec::new();
    let mut writer = PcapWriter::new(&mut bytes, false).unwrap();
    for packet in &talk.packets {
        let captured = packet.len().min(60);
        writer.packet(Duration::ZERO, &packet[..captured], packet.len()).unwrap();
    }
    let (report, ..) = played(&bytes).unwrap();
    assert_eq!(
        (report.summary.incomplete, report.summary.gaps, report.summary.written),
        (1, 1, Some(10))
    );
    assert!(report.rows.is_empty());
}

/// Captures of other programs, if they are there, and one of our own.
fn samples() -> Vec<Vec<u8>> {
    let talk = Talk::of(&[(CLIENT, PORT), (SERVER, "200 ok\r\n"), (CLIENT, "QUIT\r\n")]);
    let mut samples = vec![talk.capture(&[]), pcapng(&talk, true, Some(9), 1_000_000_000)];
    let start = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let there = start.ancestors().map(|above| above.join("shared/captures"));
    if let Some(folder) = there.into_iter().find(|folder| folder.is_dir()) {
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let captures = files.filter(|path| path.extension().is_some_and(|e| e == "pcap"));
        samples.extend(captures.map(|path| fs::read(path).unwrap()));
    }
    samples
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn damaged_captures_do_not_panic(which: prop::sample::Index, cut: Option<prop::sample::Index>,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40)) {
        thread_local!(static SAMPLES: Vec<Vec<u8>> = samples());
        SAMPLES.with(|samples| {
            let mut capture = which.get(samples).clone();
            for (at, value) in damage {
                let at = at.index(capture.len());
                capture[at] = value;
            }
            if let Some(cut) = cut {
                capture.truncate(cut.index(capture.len()));
            }
            // The written capture can be read again.
            if let Ok((report, written)) = played(&capture) && report.summary.packets > 0 {
                let (second, _) = played_with(SimulatedNat::default(), &written).unwrap();
                assert!(second.error.is_none());
                assert_eq!(Some(second.summary.packets), report.summary.written);
            }
        });
    }
}

/// A pcapng capture of raw IP with a snap length, an option of its interface (code, length, padded value), and `blocks`.
fn blocks<'a>(
    big: bool,
    snap_length: u32,
    option: Option<(u16, u16, &[u8])>,
    blocks: impl IntoIterator<Item = (u32, Vec<u32>, &'a [u8])>,
) -> Vec<u8> {
    let long = |n: u32| if big { n.to_be_bytes() } else { n.to_le_bytes() };
    let word = |n: u16| if big { n.to_be_bytes() } else { n.to_le_bytes() };
    let mut capture = Vec::new();
    let mut add = |kind: u32, body: &[u8]| {
        let padding = vec![0; body.len().next_multiple_of(4) - body.len()];
        let length = long((body.len() + padding.len() + 12) as u32);
        capture.extend([&long(kind)[..], &length, body, &padding, &length].concat());
    };
    add(0x0a0d_0d0a, &[&long(0x1a2b_3c4d)[..], &word(1), &word(0), &[0xff; 8]].concat());
    let option = option.map_or(Vec::new(), |(code, length, value)| {
        [&word(code)[..], &word(length), value, &[0; 4]].concat()
    });
    add(1, &[&word(101)[..], &word(0), &long(snap_length), &option].concat());
    for (kind, fields, data) in blocks {
        let fields: Vec<u8> = fields.into_iter().flat_map(long).collect();
        add(kind, &[&fields[..], data].concat());
    }
    capture
}

/// A reader that returns the same bytes again and again.
struct Again<'a>(Cursor<&'a [u8]>);

impl Read for Again<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.position() == self.0.get_ref().len() as u64 {
            self.0.set_position(0);
        }
        self.0.read(buffer)
    }
}

#[test]
fn a_section_with_endless_interfaces_is_refused_at_a_limit() {
    let start = blocks(false, 0, None, []);
    let interface: Vec<u8> =
        [1_u32, 20, 101, 0, 20].into_iter().flat_map(u32::to_le_bytes).collect();
    let capture = start.chain(Again(Cursor::new(&interface)).take(20 * 10_000_000));
    let mut reader = CaptureReader::open(capture).unwrap();
    let error = reader.next_record().map(|record| record.is_some()).unwrap_err().to_string();
    assert_eq!(error, "damaged after frame 0: a section has more than 65536 interfaces");
    // Each section has its own.
    let many = interface.repeat(40_000);
    let section = [&start[..], &many].concat();
    let mut reader = CaptureReader::open(Cursor::new(section.repeat(3))).unwrap();
    assert!(reader.next_record().unwrap().is_none());
}

#[test]
fn all_block_types_are_read() {
    for big in [false, true] {
        let interface = if big { 0xffff } else { 0xffff << 16 }; // interface 0, and the count of lost packets
        let day = if big { 86_400u64.to_be_bytes() } else { 86_400u64.to_le_bytes() };
        let kinds: [(u32, Vec<u32>, &[u8]); 6] = [
            (2, vec![interface, 0, 7_000_000, 2, 2], b"ab"),
            (5, vec![0; 3], b"statistics"),
            (3, vec![5], b"cde"),
            (9, Vec::new(), b"X=Y\n"),
            (6, vec![0, 0, 8_000_000, 1, 9], b"f"),
            (6, vec![0, 0, 8_000_000, 5, 9], b"gh"),
        ];
        let capture = blocks(big, 3, Some((14, 8, &day)), kinds);
        let mut reader = CaptureReader::open(Cursor::new(&capture)).unwrap();
        for (frame, seconds, data) in [(1, 86_407, "ab"), (2, 86_407, "cde"), (4, 86_408, "f")] {
            let record = reader.next_record().unwrap().unwrap();
            assert_eq!((record.frame, record.time.as_secs()), (frame, seconds), "{data}");
            assert_eq!(record.data, data.as_bytes());
        }
        let error = reader.next_record().unwrap_err().to_string();
        assert_eq!(error, "damaged after frame 4: the next block of 36 bytes is malformed");
        assert!(!reader.is_truncated());
    }
}
