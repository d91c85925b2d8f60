//! Where the records of a shard are written before the verdicts that they belong to, and the frame that each has there: its
//! length and its checksum, both 32 bits in little-endian order.

use ftp_alg_core::engine::{Batch, Engine};

/// What follows the writing of a batch's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Verdicts: what the records say must survive from then on.
    Confirmed,
    /// Nothing that a peer sees.
    Written,
}

/// A place for records.
pub(super) trait Records {
    /// Writes the records of a batch. Must be called before the verdicts that they belong to are given. The error says what
    /// it costs.
    fn write(&mut self, batch: &Batch, need: Need) -> Result<(), String>;

    /// Does the work of each second, for instance writes all records of `engine` if most of the written ones are superseded.
    fn maintain(&mut self, engine: &mut Engine) -> Result<(), String>;
}

/// The bytes before a record.
const FRAME_HEADER: usize = 8;

/// Appends a record with its frame to `buffer`.
pub(super) fn append_frame(record: &[u8], buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(&(record.len() as u32).to_le_bytes()); // of bounded queues
    buffer.extend_from_slice(&crc32fast::hash(record).to_le_bytes());
    buffer.extend_from_slice(record);
}

/// A record with its frame.
pub(super) fn framed(record: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(FRAME_HEADER + record.len());
    append_frame(record, &mut framed);
    framed
}

/// A frame at the start of some bytes.
pub(super) enum Frame<'b> {
    /// A record, and what follows it.
    Whole(&'b [u8], &'b [u8]),
    /// The bytes end before it does.
    Cut,
    Damaged,
}

impl<'b> Frame<'b> {
    /// Reads the frame at the start of `bytes`.
    pub(super) fn read(bytes: &'b [u8]) -> Self {
        let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER>() else {
            return Self::Cut;
        };
        let [a, b, c, d, sum @ ..] = *header;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let Some((record, rest)) = rest.split_at_checked(length) else { return Self::Cut };
        // Zeros have a checksum of zero.
        match length > 0 && crc32fast::hash(record) == u32::from_le_bytes(sum) {
            true => Self::Whole(record, rest),
            false => Self::Damaged,
        }
    }
}
