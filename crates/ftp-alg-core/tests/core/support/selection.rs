//! The packet selection, as `rules/table/selection.nft.in` has it: which packets are queued, and with which packet mark.
//!
//! Each packet is inspected when it arrives, by the ct mark of that moment. Not modelled: the heartbeat, and the set of
//! connections that had a SYN after their handshake.

use ftp_alg_core::{engine::QueueMode, packet::flags, session::Side};

use super::segment::Segment;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It passes unread.
    Passes,
    /// The engine decides. The packet mark says who sent it, or that every packet of its connection is queued.
    Queued(Option<Side>),
}

/// How long the set `closing` keeps an element, in microseconds.
const CLOSING_TIMEOUT: u64 = 60_000_000;

/// The selection of one gateway.
pub struct Selection {
    /// Whether pure acknowledgements are queued although the engine does not want every packet.
    queues_acks: bool,
    /// Until when what follows a FIN is queued.
    closing: u64,
}

impl Selection {
    pub fn new(queues_acks: bool) -> Self {
        Self { queues_acks, closing: 0 }
    }

    /// What becomes of a packet of `from` that arrives at `now`; `segment` is `None` if its receiver discards it.
    /// `queue_mode` is what the connection's ct mark says.
    pub fn way(
        &mut self,
        now: u64,
        queue_mode: Option<QueueMode>,
        from: Side,
        segment: Option<&Segment>,
    ) -> Way {
        match queue_mode {
            Some(QueueMode::None) => return Way::Passes,
            Some(QueueMode::EveryPacket | QueueMode::Watch) => return Way::Queued(None),
            None | Some(QueueMode::Selected | QueueMode::WithAcknowledgements) => {}
        }
        let of_note = flags::FIN | flags::RST | flags::SYN | flags::URG;
        let is_of_note = segment.is_none_or(|s| !s.payload.is_empty() || s.flags & of_note != 0);
        if segment.is_some_and(|segment| segment.has(flags::FIN)) {
            self.closing = now + CLOSING_TIMEOUT;
        }
        let queues_acks = self.queues_acks || queue_mode == Some(QueueMode::WithAcknowledgements);
        match is_of_note || queues_acks || now < self.closing {
            true => Way::Queued(Some(from)),
            false => Way::Passes,
        }
    }

    /// Another connection begins on the same endpoints.
    pub fn begin(&mut self) {
        self.closing = 0;
    }
}
