//! Reads captures in the formats pcap and pcapng, record by record, and writes them in the classic pcap format.
//! Malformed captures are errors and never panics.
//!
//! pcap-parser parses the formats. This module reads the bytes that pcap-parser needs from any `Read`; a pipe may
//! return few bytes at a time. It also does what pcap-parser does not do: it checks lengths, reads the obsolete packet
//! block, and handles timestamps of any resolution.
//!
//! A compressed capture is recognised, and not read.
//!
//! The module finds the IP header by link type (<https://www.tcpdump.org/linktypes.html>), and knows nothing else of the
//! packets. Frames are counted from 1, as capture tools do.

use std::{
    io::{self, BufReader, Read, Write},
    ops::Range,
    time::Duration,
};

use pcap_parser::{
    Block, EPB_MAGIC as ENHANCED_PACKET, IDB_MAGIC as INTERFACE, InterfaceDescriptionBlock,
    LegacyPcapBlock, PcapError, SHB_MAGIC as SECTION, SJE_MAGIC as JOURNAL,
    SPB_MAGIC as SIMPLE_PACKET,
    nom::{self, IResult, Needed},
    parse_block_be, parse_block_le, parse_pcap_frame, parse_pcap_frame_be,
    parse_pcap_frame_modified, parse_pcap_header, parse_sectionheaderblock, parse_unknownblock_be,
    parse_unknownblock_le,
};

/// The maximum length of a record. A longer one means that the capture is damaged. Wireshark's limit is 256 KiB, and
/// 128 MiB for link types that do not occur here.
const MAX_RECORD: usize = 1 << 24;
/// The maximum number of interfaces of a pcapng section.
const MAX_INTERFACES: usize = 1 << 16;
/// The pcapng block type of the obsolete packet block. Its layout differs from the enhanced packet block only in the
/// interface field.
const OBSOLETE_PACKET: u32 = 2;
/// The offset of the packet in an enhanced packet block.
const ENHANCED_DATA: usize = 28;
const SIMPLE_DATA: usize = 12;
/// LINKTYPE_RAW: each packet starts with its IPv4 or IPv6 header.
const RAW_IP: u32 = 101;
/// The maximum packet length (Wireshark's limit).
const SNAP_LENGTH: u32 = 262_144;

/// How a compressed file begins, its format, and the command that prints its content.
const COMPRESSIONS: [(&[u8], Compression); 4] = [
    (&[0x1f, 0x8b], Compression { format: "gzip", command: "zcat" }),
    (&[0x28, 0xb5, 0x2f, 0xfd], Compression { format: "zstd", command: "zstdcat" }),
    (b"\xfd7zX", Compression { format: "xz", command: "xzcat" }),
    (b"BZh", Compression { format: "bzip2", command: "bzcat" }),
];

/// The link type of a packet, and its range in the block.
type PacketInBlock = Option<(Option<LinkType>, Range<usize>)>;
type Parsed<'a, T> = IResult<&'a [u8], T, PcapError<&'a [u8]>>;

/// Why a capture cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(transparent)]
    Io(io::Error),
    #[error("not a pcap or pcapng capture{0}")]
    NotCapture(&'static str),
    #[error("it is compressed with {}", .0.format)]
    Compressed(Compression),
    #[error(
        "link type {0} is not supported; supported are Ethernet, Linux cooked (SLL, SLL2), raw IP and loopback"
    )]
    Link(u32),
    #[error("damaged after frame {after}: {what}")]
    Damaged { after: u64, what: String },
    #[error("cannot read on after frame {after}: {source}")]
    Read { after: u64, source: io::Error },
}

/// A format of compressed files.
#[derive(Clone, Copy, Debug)]
pub struct Compression {
    pub format: &'static str,
    /// The command that prints the content of such a file.
    pub command: &'static str,
}

impl Compression {
    /// The compression of a file that begins with `start`.
    pub fn of(start: &[u8]) -> Option<Self> {
        let known = COMPRESSIONS.iter().find(|(magic, _)| start.starts_with(magic));
        known.map(|(_, compression)| *compression)
    }
}

/// One packet of a capture.
#[derive(Debug)]
pub struct Record<'a> {
    /// The number of the frame, from 1.
    pub frame: u64,
    /// The time since 1970.
    pub time: Duration,
    /// The link type; `None` if it is not supported.
    pub link: Option<LinkType>,
    /// The captured bytes.
    pub data: &'a [u8],
}

/// An interface of a pcapng section.
#[derive(Clone, Copy, Debug)]
struct Interface {
    link: u32,
    snap_length: u32,
    /// Timestamp units per second.
    units: u64,
    offset_seconds: i64,
}

/// A pcap capture: the parser for its records, the link type, and the timestamp units per second.
type Pcap = (for<'a> fn(&'a [u8]) -> Parsed<'a, LegacyPcapBlock<'a>>, LinkType, u32);

/// Reads a capture.
pub struct CaptureReader<R> {
    input: BufReader<R>,
    /// `None` for pcapng.
    pcap: Option<Pcap>,
    /// Whether the current pcapng section is big-endian.
    big_endian: bool,
    interfaces: Vec<Interface>,
    /// The current record or block, with its header.
    block: Vec<u8>,
    frame: u64,
    last_time: Duration,
    is_truncated: bool,
    unsupported_link: Option<u32>,
}

impl<R: Read> CaptureReader<R> {
    /// Reads the header of the capture.
    pub fn open(input: R) -> Result<Self, CaptureError> {
        let mut reader = Self {
            input: BufReader::new(input),
            pcap: None,
            big_endian: false,
            interfaces: Vec::new(),
            block: Vec::new(),
            frame: 0,
            last_time: Duration::ZERO,
            is_truncated: false,
            unsupported_link: None,
        };
        let is_whole = reader.read_block(|start| match block_type(start, false) {
            Some(SECTION) => bytes_missing(&parse_sectionheaderblock(start)),
            _ => bytes_missing(&parse_pcap_header(start)),
        })?;
        if let Ok((_, header)) = parse_pcap_header(&reader.block) {
            // The upper bits of the link type are the length of the frame check sequence.
            let number = header.network.0.cast_unsigned() & 0xffff;
            let link = LinkType::from_number(number).ok_or(CaptureError::Link(number))?;
            let units = if header.is_nanosecond_precision() { 1_000_000_000 } else { 1_000_000 };
            reader.pcap = Some(match (header.is_modified_format(), header.is_bigendian()) {
                (true, _) => (parse_pcap_frame_modified, link, units),
                (false, true) => (parse_pcap_frame_be, link, units),
                (false, false) => (parse_pcap_frame, link, units),
            });
        } else if let Ok((_, section)) = parse_sectionheaderblock(&reader.block) {
            reader.big_endian = section.big_endian();
        } else {
            return Err(match (&reader.block[..], Compression::of(&reader.block)) {
                (_, Some(compression)) => CaptureError::Compressed(compression),
                ([], _) => CaptureError::NotCapture(": it is empty"),
                ([_, _, _, _, ..], _) if !is_whole => {
                    CaptureError::NotCapture(": its header is incomplete")
                }
                _ => CaptureError::NotCapture(""),
            });
        }
        Ok(reader)
    }

    /// The next packet; `None` at the end of the capture, also if the last record is incomplete.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, CaptureError> {
        let found = match self.pcap {
            Some(pcap) => self.next_in_pcap(pcap)?,
            None => self.next_in_pcapng()?,
        };
        let Some((link, data)) = found else { return Ok(None) };
        self.frame += 1;
        let data = &self.block[data];
        Ok(Some(Record { frame: self.frame, time: self.last_time, link, data }))
    }

    /// Whether the capture ended within a record.
    pub fn is_truncated(&self) -> bool {
        self.is_truncated
    }

    /// A link type in the capture that is not supported.
    pub fn unsupported_link(&self) -> Option<u32> {
        self.unsupported_link
    }

    /// Whether timestamps may be finer than microseconds.
    pub fn has_nanoseconds(&self) -> bool {
        // In pcapng, interfaces have the resolution, and a new interface may follow at any time.
        self.pcap.is_none_or(|(_, _, units)| units > 1_000_000)
    }

    /// Reads the next pcap record.
    fn next_in_pcap(&mut self, (parse, link, units): Pcap) -> Result<PacketInBlock, CaptureError> {
        if !self.read_block(|block| bytes_missing(&parse(block)))? {
            return Ok(None);
        }
        let Ok((_, record)) = parse(&self.block) else {
            return Err(self.damaged("the next record is malformed".to_owned()));
        };
        let nanoseconds = u64::from(record.ts_usec) * u64::from(1_000_000_000 / units);
        self.last_time =
            Duration::from_secs(record.ts_sec.into()) + Duration::from_nanos(nanoseconds);
        Ok(Some((Some(link), self.block.len() - record.data.len()..self.block.len())))
    }

    /// Reads the next pcapng block with a packet.
    fn next_in_pcapng(&mut self) -> Result<PacketInBlock, CaptureError> {
        loop {
            let big_endian = self.big_endian;
            if !self.read_block(|block| match (block_type(block, big_endian), big_endian) {
                (Some(SECTION), _) => bytes_missing(&parse_sectionheaderblock(block)),
                (_, true) => bytes_missing(&parse_unknownblock_be(block)),
                (_, false) => bytes_missing(&parse_unknownblock_le(block)),
            })? {
                return Ok(None);
            }
            let kind = block_type(&self.block, big_endian).unwrap_or_default();
            match kind {
                SECTION | INTERFACE | SIMPLE_PACKET | ENHANCED_PACKET => {}
                OBSOLETE_PACKET => {
                    let kind = ENHANCED_PACKET;
                    let kind = if big_endian { kind.to_be_bytes() } else { kind.to_le_bytes() };
                    self.block[..4].copy_from_slice(&kind);
                }
                JOURNAL => {
                    self.frame += 1; // capture tools count it
                    continue;
                }
                _ => continue,
            }
            let parse = if big_endian { parse_block_be } else { parse_block_le };
            let (interface, stamp, captured, at) = match parse(&self.block) {
                Ok((_, Block::SectionHeader(section))) => {
                    self.big_endian = section.big_endian();
                    self.interfaces.clear();
                    continue;
                }
                Ok((_, Block::InterfaceDescription(_)))
                    if self.interfaces.len() >= MAX_INTERFACES =>
                {
                    let what = format!("a section has more than {MAX_INTERFACES} interfaces");
                    return Err(self.damaged(what));
                }
                Ok((_, Block::InterfaceDescription(block))) => {
                    self.interfaces.push(Interface::of(&block, big_endian));
                    continue;
                }
                Ok((_, Block::EnhancedPacket(packet))) => {
                    let interface = match (kind, big_endian) {
                        (OBSOLETE_PACKET, true) => packet.if_id >> 16,
                        (OBSOLETE_PACKET, false) => packet.if_id & 0xffff,
                        _ => packet.if_id,
                    };
                    let stamp = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                    (interface, Some(stamp), packet.caplen, ENHANCED_DATA)
                }
                Ok((_, Block::SimplePacket(packet))) => {
                    let snap = self.interfaces.first().map_or(0, |interface| interface.snap_length);
                    let snap = if snap == 0 { u32::MAX } else { snap };
                    (0, None, packet.origlen.min(snap), SIMPLE_DATA)
                }
                _ => {
                    let length = self.block.len();
                    let what = format!("the next block of {length} bytes is malformed");
                    return Err(self.damaged(what));
                }
            };
            let Some(interface) = self.interfaces.get(interface as usize).copied() else {
                let what = format!("a packet has the undeclared interface {interface}");
                return Err(self.damaged(what));
            };
            let data = at..at + captured as usize;
            if data.end + 4 > self.block.len() {
                let what = format!("a packet of {captured} bytes does not fit into its block");
                return Err(self.damaged(what));
            }
            if let Some(stamp) = stamp {
                self.last_time = interface.time(stamp);
            }
            let link = LinkType::from_number(interface.link);
            if link.is_none() {
                self.unsupported_link = Some(interface.link);
            }
            return Ok(Some((link, data)));
        }
    }

    /// Reads the next block. `missing` returns how many more bytes are needed. Returns whether the block is complete.
    fn read_block(&mut self, missing: impl Fn(&[u8]) -> usize) -> Result<bool, CaptureError> {
        self.block.clear();
        loop {
            let count = match missing(&self.block) {
                0 => return Ok(true),
                count if count > MAX_RECORD => {
                    return Err(self.damaged(format!("a record has {count} bytes")));
                }
                count => count,
            };
            // The buffer grows only as bytes arrive, because the length in the capture may be wrong.
            let read = self.input.by_ref().take(count as u64).read_to_end(&mut self.block);
            let read = read.map_err(|error| self.read_error(error))?;
            if read < count {
                self.is_truncated |= !self.block.is_empty();
                return Ok(false);
            }
        }
    }

    fn read_error(&self, source: io::Error) -> CaptureError {
        match self.frame {
            0 => CaptureError::Io(source),
            after => CaptureError::Read { after, source },
        }
    }

    fn damaged(&self, what: String) -> CaptureError {
        CaptureError::Damaged { after: self.frame, what }
    }
}

/// The number of additional bytes that a parser needs.
fn bytes_missing<T>(parsed: &Parsed<'_, T>) -> usize {
    match parsed {
        Err(nom::Err::Incomplete(Needed::Size(count))) => count.get(),
        Err(nom::Err::Incomplete(Needed::Unknown)) => 1,
        _ => 0,
    }
}

/// The type of a pcapng block.
fn block_type(block: &[u8], big_endian: bool) -> Option<u32> {
    let bytes = *block.first_chunk()?;
    Some(if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
}

impl Interface {
    fn of(block: &InterfaceDescriptionBlock<'_>, big_endian: bool) -> Self {
        let offset = block.if_tsoffset; // pcap-parser reads it as little-endian
        Self {
            link: block.linktype.0.cast_unsigned(),
            snap_length: block.snaplen,
            units: units(block.if_tsresol),
            offset_seconds: if big_endian { offset.swap_bytes() } else { offset },
        }
    }

    fn time(&self, stamp: u64) -> Duration {
        let nanoseconds =
            u128::from(stamp % self.units) * 1_000_000_000 / u128::from(self.units.max(1));
        let seconds = (stamp / self.units).saturating_add_signed(self.offset_seconds);
        Duration::new(seconds, nanoseconds as u32) // below 10^9
    }
}

/// The timestamp units per second of `if_tsresol`: a power of ten, or of two if the upper bit is set. If the value does
/// not fit into 64 bits, the default is used.
fn units(resolution: u8) -> u64 {
    let exponent = u32::from(resolution & 0x7f);
    let units = if resolution & 0x80 == 0 {
        10u64.checked_pow(exponent)
    } else {
        2u64.checked_pow(exponent)
    };
    units.unwrap_or(1_000_000)
}

/// Writes packets to a capture.
pub struct PcapWriter<W> {
    output: W,
    nanoseconds: bool,
}

impl<W: Write> PcapWriter<W> {
    /// Writes the header of the capture. Timestamps are in microseconds, which every tool can read, or in nanoseconds
    /// if `nanoseconds` is set.
    pub fn new(mut output: W, nanoseconds: bool) -> io::Result<Self> {
        let magic: u32 = if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
        for field in [magic, 2 | 4 << 16, 0, 0, SNAP_LENGTH, RAW_IP] {
            output.write_all(&field.to_le_bytes())?;
        }
        Ok(Self { output, nanoseconds })
    }

    /// Writes a packet. `length` is its length on the wire, and `bytes` are the captured bytes.
    pub fn packet(&mut self, time: Duration, bytes: &[u8], length: usize) -> io::Result<()> {
        let fraction = if self.nanoseconds { time.subsec_nanos() } else { time.subsec_micros() };
        let length = u32::try_from(length.max(bytes.len())).unwrap_or(u32::MAX);
        let captured = bytes.len() as u32; // at most the length of an IP packet
        let seconds = time.as_secs() as u32; // a limit of the format: it wraps in 2106
        for field in [seconds, fraction, captured, length] {
            self.output.write_all(&field.to_le_bytes())?;
        }
        self.output.write_all(bytes)
    }

    /// Flushes all packets.
    pub fn finish(mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// The link-layer header of captured packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    /// Ethernet, with or without VLAN tags and PPPoE.
    Ethernet,
    /// Linux cooked, version 1.
    Cooked,
    /// Linux cooked, version 2.
    Cooked2,
    /// A BSD loopback interface: four bytes of address family.
    Loopback,
    /// No link-layer header.
    Raw,
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];
const PPPOE: u16 = 0x8864;

impl LinkType {
    /// The link type with this number in capture files; `None` if it is not supported.
    pub fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 | 108 => Self::Loopback,
            1 => Self::Ethernet,
            12 | 14 | 101 | 228 | 229 => Self::Raw,
            113 => Self::Cooked,
            276 => Self::Cooked2,
            _ => return None,
        })
    }

    /// The bytes from the IP header to the end of the frame; `None` if it is not IP.
    pub fn ip(self, data: &[u8]) -> Option<&[u8]> {
        let ip = match self {
            Self::Ethernet => typed(data.get(14..)?, word(data, 12)?)?,
            Self::Cooked => typed(data.get(16..)?, word(data, 14)?)?,
            Self::Cooked2 => typed(data.get(20..)?, word(data, 0)?)?,
            // The number of the address family and its byte order depend on the machine, so the IP header decides.
            Self::Loopback => data.get(4..)?,
            Self::Raw => data,
        };
        matches!(ip.first()? >> 4, 4 | 6).then_some(ip)
    }
}

/// Skips VLAN tags and PPPoE up to the IP header.
fn typed(mut data: &[u8], mut ethertype: u16) -> Option<&[u8]> {
    while VLAN.contains(&ethertype) {
        ethertype = word(data, 2)?;
        data = data.get(4..)?;
    }
    match ethertype {
        IPV4 | IPV6 => Some(data),
        PPPOE => matches!(word(data, 6)?, 0x21 | 0x57).then_some(data.get(8..)?),
        _ => None,
    }
}

fn word(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*data.get(at)?, *data.get(at + 1)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlan_tags_and_pppoe_are_skipped() {
        let ip = [0x45, 1, 2];
        let with = |start: &[u8]| [start, &ip].concat();
        let macs = [0; 12];
        let cases = [
            (LinkType::Ethernet, with(&[&macs[..], &[8, 0]].concat())),
            (
                LinkType::Ethernet,
                with(&[&macs[..], &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 8, 0]].concat()),
            ),
            (LinkType::Ethernet, with(&[&macs[..], &[0x88, 0x64], &[0; 6], &[0, 0x21]].concat())),
            (LinkType::Cooked, with(&[&[0; 14][..], &[8, 0]].concat())),
            (LinkType::Cooked2, with(&[&[8, 0][..], &[0; 18]].concat())),
            (LinkType::Loopback, with(&[2, 0, 0, 0])),
            (LinkType::Raw, with(&[])),
        ];
        for (link, data) in cases {
            assert_eq!(link.ip(&data), Some(&ip[..]), "{link:?}");
            for cut in 0..data.len() - ip.len() {
                assert_eq!(link.ip(&data[..cut]), None, "{link:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn other_protocols_are_not_ip() {
        let mut arp = vec![0; 42];
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(LinkType::Ethernet.ip(&arp), None);
    }
}
