//! One control connection as a capture shows it: its segments put in order.
//!
//! The engine drops a segment past a gap and waits for it to be sent again; a capture that shows
//! segments out of order has no such repetition. So what is past a gap waits here until the gap is
//! filled, or until it shows that it never will be. All numbers here are sent numbers.

use std::{net::SocketAddr, time::Duration};

use ftp_alg_core::packet::{Packet, ReorderQueue, Seq, Waiting, flags};

/// How many segments of one direction wait behind a gap.
const MAX_QUEUED: usize = 64;
/// How many bytes of them: as many as there can be.
const MAX_QUEUED_BYTES: usize = MAX_QUEUED << 16;

/// A segment of a control connection, as captured.
#[derive(Clone, Debug)]
pub struct CapturedSegment {
    /// The frame that it was in.
    pub frame: u64,
    /// When it is handed on.
    pub time: Duration,
    /// The whole IP packet.
    pub bytes: Vec<u8>,
}

impl AsRef<[u8]> for CapturedSegment {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What a segment's headers say.
#[derive(Clone, Copy, Debug)]
pub struct SegmentHeader {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub seq: Seq,
    /// Past its last number, that of a FIN included.
    pub end: Seq,
    /// The acknowledgement, if there is one.
    pub ack: Option<Seq>,
    pub flags: u8,
    pub length: usize,
}

impl SegmentHeader {
    /// Of a segment.
    pub fn of(packet: &Packet<'_>) -> Self {
        let length = packet.payload().len();
        Self {
            source: packet.source(),
            destination: packet.destination(),
            seq: packet.seq(),
            // At most what an IP packet holds.
            end: packet.seq() + length as u32 + u32::from(packet.has(flags::FIN)),
            ack: packet.has(flags::ACK).then(|| packet.ack()),
            flags: packet.flags(),
            length,
        }
    }

    /// Whether all of the control bits `which` are set.
    pub fn has(&self, which: u8) -> bool {
        self.flags & which == which
    }

    /// Whether it occupies numbers.
    pub fn occupies_sequence_space(&self) -> bool {
        self.seq != self.end
    }
}

/// How a connection is treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FollowState {
    /// Its packets pass: nothing of its dialogue was seen yet, or it is over for the engine.
    #[default]
    Unfollowed,
    /// The engine follows it.
    Followed,
    /// The engine lost it: its numbers are mapped, and no more.
    Lost,
}

/// A control connection.
#[derive(Debug, Default)]
pub struct CapturedConnection {
    /// How it is treated.
    pub stage: FollowState,
    /// Whether the engine has done with it, until it begins anew.
    pub is_finished: bool,
    /// The number of the last SYN.
    pub syn: Option<Seq>,
    /// The first numbers of client and server, where the start was seen.
    pub initial_numbers: Option<(Seq, Seq)>,
    /// Both directions, in the order of the key's ends.
    pub directions: [CapturedDirection; 2],
}

/// One direction of it.
#[derive(Debug, Default)]
pub struct CapturedDirection {
    /// The first number that was not handed on.
    pub next: Seq,
    queue: ReorderQueue<CapturedSegment, MAX_QUEUED, MAX_QUEUED_BYTES>,
    /// The latest of the frames that the unfinished line came in.
    pub line_frame: u64,
    /// The last acknowledgement that was written: as captured, and as written.
    pub last_written_ack: Option<(Seq, Seq)>,
}

impl CapturedDirection {
    /// A direction whose next number is `next`.
    pub fn new(next: Seq) -> Self {
        Self { next, ..Self::default() }
    }

    /// Keeps a segment that starts past a gap. Says whether there is room for more.
    pub fn enqueue(&mut self, facts: &SegmentHeader, segment: CapturedSegment) -> bool {
        let SegmentHeader { seq, end, .. } = *facts;
        self.queue.insert(Waiting { flow: (), seq, end, item: segment })
            && self.queue.iter().len() < MAX_QUEUED
    }

    /// The segment that is next, if it is here; or the first past the gap, if `any` will do.
    pub fn take_ready(&mut self, any: bool) -> Option<CapturedSegment> {
        let is_ready = any || !self.first_queued()?.is_after(self.next);
        is_ready.then(|| self.queue.take_first())?.map(|waiting| waiting.item)
    }

    /// Where the first segment past the gap starts.
    pub fn first_queued(&self) -> Option<Seq> {
        self.queue.iter().next().map(|first| first.seq)
    }

    /// Takes note that the bytes of `payload`, which start at `seq`, were handed on with `frame`.
    pub fn advance(&mut self, facts: &SegmentHeader, payload: &[u8], frame: u64) {
        if let Some(new) = self.new_part(facts, payload) {
            self.line_frame = match new.iter().rposition(|b| *b == b'\n') {
                Some(last) if last + 1 == new.len() => 0,
                Some(_) => frame,
                None => self.line_frame.max(frame),
            };
        }
        self.next = self.next.max(facts.end);
    }

    /// How much of `payload` belongs to a line that began in a later frame than `frame`: such a
    /// line was completed by that later frame.
    pub fn completed_later(
        &self,
        facts: &SegmentHeader,
        payload: &[u8],
        frame: u64,
    ) -> Option<usize> {
        let new = self.new_part(facts, payload).filter(|_| self.line_frame > frame)?;
        let end = new.iter().position(|b| *b == b'\n')? + 1;
        Some(payload.len() - new.len() + end)
    }

    fn new_part<'a>(&self, facts: &SegmentHeader, payload: &'a [u8]) -> Option<&'a [u8]> {
        let old = self.next.distance_from(facts.seq);
        payload.get(usize::try_from(old).ok()?..).filter(|new| !new.is_empty())
    }
}
