//! Puts the segments of one captured control connection in order.
//!
//! The engine drops a segment after a gap and waits for its retransmission. A capture with segments out of order has
//! no such retransmission. So segments after a gap wait here until the gap is filled, or until it is certain that it
//! never will be filled.
//!
//! All sequence numbers here are sent numbers, see `session`.

use std::{net::SocketAddr, time::Duration};

use ftp_alg_core::packet::{Packet, ReorderItem, ReorderQueue, Seq, flags};

use super::report::FramePosition;

/// How many segments of one direction wait after a gap at most.
const MAX_QUEUED: usize = 64;
/// How many bytes wait at most. This is enough for the maximum number of segments.
const MAX_QUEUED_BYTES: usize = MAX_QUEUED << 16;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

impl Flow {
    pub fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }

    /// The key of the connection, which is the same for both directions.
    pub fn connection(self) -> Self {
        self.min(self.reversed())
    }
}

/// A segment of a control connection, as captured.
#[derive(Clone, Debug)]
pub struct CapturedSegment {
    pub position: FramePosition,
    /// The time at which the engine gets the segment.
    pub time: Duration,
    /// The complete IP packet.
    pub bytes: Vec<u8>,
    pub header: SegmentHeader,
}

impl AsRef<[u8]> for CapturedSegment {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The fields of a segment's headers.
#[derive(Clone, Copy, Debug)]
pub struct SegmentHeader {
    pub flow: Flow,
    pub seq: Seq,
    /// The sequence number after the segment. A FIN counts as one number.
    pub end: Seq,
    /// The acknowledgement number, if the segment has one.
    pub ack: Option<Seq>,
    pub flags: u8,
    pub length: usize,
}

impl SegmentHeader {
    /// Reads the header of a segment.
    pub fn read(packet: &Packet<'_>) -> Self {
        let length = packet.payload().len();
        Self {
            flow: Flow { source: packet.source(), destination: packet.destination() },
            seq: packet.seq(),
            // The length fits, because it is at most that of an IP packet.
            end: packet.seq() + length as u32 + u32::from(packet.has(flags::FIN)),
            ack: packet.has(flags::ACK).then(|| packet.ack()),
            flags: packet.flags(),
            length,
        }
    }

    /// Whether all control bits in `which` are set.
    pub fn has(&self, which: u8) -> bool {
        self.flags & which == which
    }
}

/// Whether the engine follows a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FollowState {
    /// The engine does not follow the connection, because no dialogue was captured yet.
    #[default]
    Unfollowed,
    /// The engine follows the connection.
    Followed,
    /// The engine has ended the connection.
    Ended,
    /// The engine has lost the connection. Only its sequence numbers are still adjusted.
    Lost,
}

/// A control connection.
#[derive(Debug, Default)]
pub struct CapturedConnection {
    /// Whether the engine follows the connection.
    pub stage: FollowState,
    /// The last frame, to find the connections that are idle for longest.
    pub last_frame: FramePosition,
    /// The first sequence numbers of client and server, if the start was captured.
    pub initial_numbers: Option<(Seq, Seq)>,
    /// The directions: [`Flow::connection`], and its reverse.
    directions: [CapturedDirection; 2],
}

impl CapturedConnection {
    pub fn direction(&mut self, flow: Flow) -> &mut CapturedDirection {
        &mut self.directions[usize::from(flow != flow.connection())]
    }

    /// Begins both directions: the next sequence number of `flow` is `seq`, that of the other one `ack`.
    pub fn follow(&mut self, flow: Flow, seq: Seq, ack: Seq) {
        self.stage = FollowState::Followed;
        *self.direction(flow) = CapturedDirection::new(seq);
        *self.direction(flow.reversed()) = CapturedDirection::new(ack);
    }
}

/// One direction of a captured control connection.
#[derive(Debug, Default)]
pub struct CapturedDirection {
    /// The first sequence number that was not passed to the engine.
    pub next: Seq,
    queue: ReorderQueue<CapturedSegment, MAX_QUEUED, MAX_QUEUED_BYTES>,
    /// The last frame among the segments of the unfinished line.
    pub line_frame: FramePosition,
    /// The last written acknowledgement number: as captured, and as written.
    pub last_written_ack: Option<(Seq, Seq)>,
}

impl CapturedDirection {
    fn new(next: Seq) -> Self {
        Self { next, ..Self::default() }
    }

    /// Queues a segment that starts after a gap. Returns whether there is room for more segments.
    pub fn enqueue(&mut self, segment: CapturedSegment) -> bool {
        let SegmentHeader { seq, end, .. } = segment.header;
        self.queue.insert(ReorderItem { flow: (), seq, end, item: segment })
            && self.queue.iter().len() < MAX_QUEUED
    }

    /// Takes the next segment, if it is queued. With `any`, takes the first segment after the gap.
    pub fn take_ready(&mut self, any: bool) -> Option<CapturedSegment> {
        let is_ready = any || !self.first_queued()?.is_after(self.next);
        is_ready.then(|| self.queue.take_first())?.map(|waiting| waiting.item)
    }

    /// The start of the first segment after the gap.
    pub fn first_queued(&self) -> Option<Seq> {
        self.queue.iter().next().map(|first| first.seq)
    }

    /// Notes that a segment was passed to the engine with `frame`.
    pub fn advance(&mut self, header: &SegmentHeader, payload: &[u8], frame: FramePosition) {
        let old = usize::try_from(self.next.distance_from(header.seq)).ok();
        if let Some(new) = old.and_then(|old| payload.get(old..)).filter(|new| !new.is_empty()) {
            self.line_frame = match new.iter().rposition(|b| *b == b'\n') {
                Some(last) if last + 1 == new.len() => FramePosition::default(),
                Some(_) => frame,
                None => self.line_frame.max(frame),
            };
        }
        self.next = self.next.max(header.end);
    }
}
