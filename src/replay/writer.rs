//! Writes a capture in the classic pcap format, with raw IP packets.

use std::{
    io::{self, Write},
    time::Duration,
};

/// LINKTYPE_RAW: each packet starts with its IPv4 or IPv6 header.
const RAW: u32 = 101;
/// The maximum packet length (Wireshark's limit).
const SNAP_LENGTH: u32 = 262_144;

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
        for field in [magic, 2 | 4 << 16, 0, 0, SNAP_LENGTH, RAW] {
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
