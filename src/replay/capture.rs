//! Reading captures: pcap and pcapng, record by record, whatever their bytes are.
//!
//! pcap-file's reader is not used: it refuses packets that the snap length cut, and takes every
//! pcapng timestamp for nanoseconds. Formats: draft-ietf-opsawg-pcap and -pcapng. Knows nothing of
//! what the packets hold but the link type; a frame is what capture tools count as one, from 1.

use std::{
    io::{self, Read},
    time::Duration,
};

use super::link::Link;

/// No record is longer than this; a length above it is damage. (Wireshark's limit is 256 KiB, and
/// 128 MiB for link types that do not occur here.)
const MAX_RECORD: u32 = 1 << 24;
/// Types of pcapng blocks.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;
const JOURNAL: u32 = 9;

/// Why a capture cannot be read, or not further.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("not a pcap or pcapng capture{0}")]
    NotCapture(&'static str),
    /// Its packets are those of a link that is not read here.
    #[error(
        "link type {0} is not supported; Ethernet, Linux cooked (SLL, SLL2), raw IP and loopback are"
    )]
    Link(u32),
    /// A length in it cannot be.
    #[error("damaged after frame {after}: {what}")]
    Damaged {
        /// The last frame that was read.
        after: u64,
        /// What is wrong.
        what: String,
    },
}

/// One packet of a capture.
#[derive(Debug)]
pub struct Record {
    /// Its number, from 1.
    pub frame: u64,
    /// Since 1970.
    pub time: Duration,
    /// `None` for a link type that is not read here, and for what is no packet.
    pub link: Option<Link>,
    /// What was captured of it.
    pub data: Vec<u8>,
}

/// An interface of a pcapng section.
#[derive(Clone, Copy, Debug)]
struct Interface {
    link: u32,
    snap_length: u32,
    /// Timestamp units in a second.
    units: u64,
    offset_seconds: i64,
}

#[derive(Debug)]
enum Format {
    /// Link, units in a second, bytes that follow each record's header (a patched format has 8).
    Pcap(Link, u32, usize),
    Pcapng(Vec<Interface>),
}

/// Reads a capture.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    format: Format,
    big_endian: bool,
    frame: u64,
    last_time: Duration,
    is_cut: bool,
    unread_link: Option<u32>,
    nanoseconds: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the capture's header.
    pub fn open(mut input: R) -> Result<Self, CaptureError> {
        let mut magic = Vec::with_capacity(4);
        input.by_ref().take(4).read_to_end(&mut magic)?;
        let Ok(magic) = <[u8; 4]>::try_from(&magic[..]) else {
            let what = if magic.is_empty() { ": it is empty" } else { "" };
            return Err(CaptureError::NotCapture(what));
        };
        let mut reader = Self {
            input,
            format: Format::Pcapng(Vec::new()),
            big_endian: false,
            frame: 0,
            last_time: Duration::ZERO,
            is_cut: false,
            unread_link: None,
            nanoseconds: false,
        };
        match (u32::from_le_bytes(magic), u32::from_be_bytes(magic)) {
            (SECTION, _) => {
                reader.open_section()?;
                reader.nanoseconds = true; // interfaces, which tell, may come at any time
            }
            (0xa1b2_c3d4, _) => reader.open_pcap(false, 1_000_000, 0)?,
            (0xa1b2_3c4d, _) => reader.open_pcap(false, 1_000_000_000, 0)?,
            (0xa1b2_cd34, _) => reader.open_pcap(false, 1_000_000, 8)?,
            (_, 0xa1b2_c3d4) => reader.open_pcap(true, 1_000_000, 0)?,
            (_, 0xa1b2_3c4d) => reader.open_pcap(true, 1_000_000_000, 0)?,
            (_, 0xa1b2_cd34) => reader.open_pcap(true, 1_000_000, 8)?,
            _ if magic.starts_with(&[0x1f, 0x8b]) => {
                return Err(CaptureError::NotCapture(": it is compressed; gunzip it first"));
            }
            _ => return Err(CaptureError::NotCapture("")),
        }
        Ok(reader)
    }

    /// The next packet; `None` at the end, or where the capture is cut off.
    pub fn next_record(&mut self) -> Result<Option<Record>, CaptureError> {
        match self.format {
            Format::Pcap(link, units, extra) => self.next_pcap(link, units, extra),
            Format::Pcapng(_) => self.next_pcapng(),
        }
    }

    /// Whether the capture ended within a record.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// A link type that occurred and is not read here.
    pub fn unread_link(&self) -> Option<u32> {
        self.unread_link
    }

    /// Whether its timestamps may be finer than microseconds.
    pub fn has_nanoseconds(&self) -> bool {
        self.nanoseconds
    }

    fn open_pcap(&mut self, big: bool, units: u32, extra: usize) -> Result<(), CaptureError> {
        self.big_endian = big;
        let Some(header) = self.bytes(20)? else {
            return Err(CaptureError::NotCapture(": its header is cut off"));
        };
        // The upper bits of the link type say how long a frame check sequence is.
        let number = self.long(&header, 16) & 0xffff;
        let link = Link::from_number(number).ok_or(CaptureError::Link(number))?;
        self.format = Format::Pcap(link, units, extra);
        self.nanoseconds = units > 1_000_000;
        Ok(())
    }

    fn next_pcap(
        &mut self,
        link: Link,
        units: u32,
        extra: usize,
    ) -> Result<Option<Record>, CaptureError> {
        let Some(header) = self.bytes(16 + extra)? else { return Ok(None) };
        let length = self.length(self.long(&header, 8))?;
        let Some(data) = self.rest(length)? else { return Ok(None) };
        let (seconds, fraction) = (self.long(&header, 0), self.long(&header, 4));
        let nanoseconds = u64::from(fraction) * u64::from(1_000_000_000 / units);
        let time = Duration::from_secs(seconds.into()) + Duration::from_nanos(nanoseconds);
        self.frame += 1;
        Ok(Some(Record { frame: self.frame, time, link: Some(link), data }))
    }

    /// After a section's type: its length, its byte order, and the rest of it.
    fn open_section(&mut self) -> Result<(), CaptureError> {
        let Some(start) = self.bytes(8)? else {
            return Err(CaptureError::NotCapture(": its header is cut off"));
        };
        self.big_endian = match start[4..] {
            [0x1a, 0x2b, 0x3c, 0x4d] => true,
            [0x4d, 0x3c, 0x2b, 0x1a] => false,
            _ if self.frame == 0 => return Err(CaptureError::NotCapture("")),
            _ => return Err(self.damaged("a section has no byte order".to_owned())),
        };
        let length = self.length(self.long(&start, 0))?;
        self.rest(length.saturating_sub(12))?;
        self.format = Format::Pcapng(Vec::new());
        Ok(())
    }

    fn next_pcapng(&mut self) -> Result<Option<Record>, CaptureError> {
        loop {
            let Some(kind) = self.bytes(4)? else { return Ok(None) };
            let kind = self.long(&kind, 0);
            if kind == SECTION {
                self.open_section()?;
                continue;
            }
            let Some(length) = self.rest(4)? else { return Ok(None) };
            let length = self.length(self.long(&length, 0))?;
            if length < 12 || length % 4 != 0 {
                return Err(self.damaged(format!("a block of {length} bytes")));
            }
            let Some(mut block) = self.rest(length - 8)? else { return Ok(None) };
            block.truncate(length - 12); // the length again
            match kind {
                INTERFACE => self.add_interface(&block),
                ENHANCED_PACKET | OBSOLETE_PACKET if block.len() >= 20 => {
                    let interface = if kind == ENHANCED_PACKET {
                        self.long(&block, 0)
                    } else {
                        u32::from(self.word(&block, 0))
                    };
                    let stamp =
                        u64::from(self.long(&block, 4)) << 32 | u64::from(self.long(&block, 8));
                    let captured = self.long(&block, 12) as usize;
                    return self.packet(interface, Some(stamp), captured, &block[20..]);
                }
                SIMPLE_PACKET if block.len() >= 4 => {
                    let length = self.long(&block, 0);
                    let snap = self.interface(0).map_or(0, |i| i.snap_length);
                    let captured = if snap == 0 { length } else { length.min(snap) } as usize;
                    return self.packet(0, None, captured, &block[4..]);
                }
                ENHANCED_PACKET | OBSOLETE_PACKET | SIMPLE_PACKET => {
                    return Err(self.damaged(format!("a packet block of {length} bytes")));
                }
                JOURNAL => {
                    self.frame += 1; // tools count it
                }
                _ => {}
            }
        }
    }

    fn packet(
        &mut self,
        interface: u32,
        stamp: Option<u64>,
        captured: usize,
        data: &[u8],
    ) -> Result<Option<Record>, CaptureError> {
        let Some(interface) = self.interface(interface) else {
            return Err(self.damaged(format!("a packet of interface {interface}, not described")));
        };
        let Some(data) = data.get(..captured) else {
            return Err(self.damaged(format!("a packet of {captured} bytes in a smaller block")));
        };
        if let Some(stamp) = stamp {
            self.last_time = interface.time(stamp);
        }
        let link = Link::from_number(interface.link);
        if link.is_none() {
            self.unread_link = Some(interface.link);
        }
        self.frame += 1;
        Ok(Some(Record { frame: self.frame, time: self.last_time, link, data: data.to_vec() }))
    }

    fn interface(&self, number: u32) -> Option<Interface> {
        let Format::Pcapng(interfaces) = &self.format else { return None };
        interfaces.get(usize::try_from(number).ok()?).copied()
    }

    fn add_interface(&mut self, block: &[u8]) {
        let mut interface = Interface {
            link: u32::MAX, // a cut description describes no link
            snap_length: 0,
            units: 1_000_000,
            offset_seconds: 0,
        };
        if block.len() >= 8 {
            interface.link = u32::from(self.word(block, 0));
            interface.snap_length = self.long(block, 4);
        }
        let mut at = 8;
        while at + 4 <= block.len() {
            let (code, length) = (self.word(block, at), usize::from(self.word(block, at + 2)));
            let Some(value) = block.get(at + 4..at + 4 + length) else { break };
            match (code, value) {
                (0, _) => break,
                (9, &[resolution]) => interface.units = units(resolution),
                (14, value) if length == 8 => {
                    let (a, b) = (self.long(value, 0), self.long(value, 4));
                    let (high, low) = if self.big_endian { (a, b) } else { (b, a) };
                    let offset = u64::from(high) << 32 | u64::from(low);
                    interface.offset_seconds = offset.cast_signed();
                }
                _ => {}
            }
            at += 4 + length.next_multiple_of(4);
        }
        if let Format::Pcapng(interfaces) = &mut self.format {
            interfaces.push(interface);
        }
    }

    /// Exactly `count` bytes; `None` at the end of the capture, which may be cut off.
    fn bytes(&mut self, count: usize) -> Result<Option<Vec<u8>>, CaptureError> {
        // Grows as bytes come: a length is not believed before.
        let mut bytes = Vec::new();
        let found = self.input.by_ref().take(count as u64).read_to_end(&mut bytes)?;
        self.is_cut |= found > 0 && found < count;
        Ok((found == count).then_some(bytes))
    }

    /// The same for what must follow what was read before.
    fn rest(&mut self, count: usize) -> Result<Option<Vec<u8>>, CaptureError> {
        let bytes = self.bytes(count)?;
        self.is_cut |= bytes.is_none();
        Ok(bytes)
    }

    fn length(&self, length: u32) -> Result<usize, CaptureError> {
        if length > MAX_RECORD {
            return Err(self.damaged(format!("a record of {length} bytes")));
        }
        Ok(length as usize)
    }

    fn damaged(&self, what: String) -> CaptureError {
        CaptureError::Damaged { after: self.frame, what }
    }

    /// The four bytes at `at`; callers have checked that they are there.
    fn long(&self, bytes: &[u8], at: usize) -> u32 {
        let four = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).unwrap_or([0; 4]);
        if self.big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
    }

    fn word(&self, bytes: &[u8], at: usize) -> u16 {
        let two = bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).unwrap_or([0; 2]);
        if self.big_endian { u16::from_be_bytes(two) } else { u16::from_le_bytes(two) }
    }
}

impl Interface {
    fn time(&self, stamp: u64) -> Duration {
        let nanoseconds =
            u128::from(stamp % self.units) * 1_000_000_000 / u128::from(self.units.max(1));
        let seconds = (stamp / self.units).saturating_add_signed(self.offset_seconds);
        Duration::new(seconds, nanoseconds as u32) // below 10^9
    }
}

/// `if_tsresol`: a power of ten, or with the upper bit of two. What is finer than 64 bits can tell
/// is taken for the default.
fn units(resolution: u8) -> u64 {
    let exponent = u32::from(resolution & 0x7f);
    let units = if resolution & 0x80 == 0 {
        10u64.checked_pow(exponent)
    } else {
        2u64.checked_pow(exponent)
    };
    units.unwrap_or(1_000_000)
}
