//! The layout of the program's maps, as `ftp-alg-fastpath` generates it, with what only the tests need.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part")]

use ftp_alg_fastpath::layout::counter;
pub use ftp_alg_fastpath::layout::{
    AddressText, AdmittedSyn, Flow, LONGEST_LINE, LineRecord, PacketTuple, Pinhole, PinholeKey,
    READMISSION_TIME, SYN_LIFETIME, SavedLine, SynKey, TupleValue, dialogue::*,
};

// Indices of the map `counters`.
pub const INSPECTED: usize = counter::INSPECTED as usize;
pub const HANDED_BACK: usize = counter::HANDED_BACK as usize;
pub const OPENED: usize = counter::OPENED as usize;
pub const ADMITTED: usize = counter::ADMITTED as usize;
pub const RING_FULL: usize = counter::RING_FULL as usize;
pub const REWRITTEN: usize = counter::REWRITTEN as usize;

/// The side that sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

impl Side {
    pub fn index(self) -> usize {
        self as usize
    }

    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// What a line has for an address.
pub fn text(address: &AddressText) -> &str {
    std::str::from_utf8(&address.bytes[..address.length.into()]).unwrap()
}

/// The pinhole that the flow opened last.
pub fn last_pinhole(flow: &Flow) -> Option<PinholeKey> {
    (flow.pinhole_line != 0).then_some(flow.pinhole)
}

/// Sequence number and bytes of the last inspected line of a side; `None` for a FIN.
pub fn saved_line(seq: u32, line: Option<&[u8]>) -> SavedLine {
    let mut saved = SavedLine { seq, ..SavedLine::default() };
    saved.length = u32::try_from(line.map_or(LONGEST_LINE + 1, <[u8]>::len)).unwrap();
    let line = line.unwrap_or_default();
    saved.bytes[..line.len()].copy_from_slice(line);
    saved
}
