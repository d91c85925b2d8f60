//! What comes of a batch: what is asked of the kernel, and what is then to be done, in the order of the fields.

use std::{
    net::SocketAddr,
    ops::Range,
    time::{Duration, Instant},
};

use super::{
    Attention, KernelError, Pinhole, Queued, Translation,
    event::Events,
    handover::FlowChanges,
    pinholes::{Attempt, Shut},
    places::{Closing, Places},
};
use crate::session::{DropReason, Request, Side};

/// A packet in a queue of the kernel, as its host knows it. The engine only hands it back.
// Aligned, so that it is copied whole: read back in other parts than it was written it costs a stall a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(align(8))]
pub struct Token {
    /// Which of the host's queues holds it.
    pub queue: u16,
    /// Its number there.
    pub id: u32,
    /// The packet mark that it came with.
    pub mark: u32,
}

/// What becomes of a queued packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as it is.
    Accept,
    /// These bytes of [`Effects::replacements`] go on in its place.
    Replace(Range<u32>),
    /// It ends here.
    Drop(DropReason),
}

impl Verdict {
    /// What goes on in the packet's place, from [`Effects::replacements`].
    pub fn replacement<'a>(&self, replacements: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Replace(range) => {
                replacements.get(range.start as usize..range.end as usize).unwrap_or_default()
            }
            Self::Accept | Self::Drop(_) => &[],
        }
    }
}

/// A session, by its place in the table and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRef {
    pub(super) index: u32,
    pub(super) id: u64,
}

impl SessionRef {
    /// No session.
    pub(super) const NONE: Self = Self { index: u32::MAX, id: 0 };
}

/// A verdict that can be given.
#[derive(Clone, Debug)]
pub struct Released {
    /// The packet.
    pub token: Token,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Its session, in two: padding would be copied with what follows it, which stalls.
    pub(super) index: u32,
    pub(super) id: u64,
    /// Whether all packets of its session were queued before it was decided.
    pub(super) was_held: bool,
    /// Whether the kernel must have agreed to queue every packet of its session.
    pub(super) needs_every: bool,
}

impl Released {
    /// Its session.
    pub(super) fn session(&self) -> SessionRef {
        SessionRef { index: self.index, id: self.id }
    }
}

/// A question to the kernel, with room for what it says.
#[derive(Debug)]
pub struct Ask<Q, A> {
    pub(super) session: SessionRef,
    /// What is asked.
    pub question: Q,
    /// What the kernel said; `None` before it was asked.
    pub answer: Option<Result<A, KernelError>>,
    /// The packet that waits for it.
    pub(super) waiting: Option<Box<Waiting>>,
}

impl<Q, A> Ask<Q, A> {
    #[inline(always)] // built where it stays
    pub(super) fn new(session: SessionRef, question: Q, waiting: Option<Box<Waiting>>) -> Self {
        Self { session, question, answer: None, waiting }
    }
}

/// A packet that waits for an answer.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) token: Token,
    pub(super) how: Queued,
    /// Its bytes in [`Effects::waiting`].
    pub(super) bytes: Range<usize>,
    /// The line of it that asks.
    pub(super) request: Box<Request>,
    /// What is to be opened for that, if this is what is asked.
    pub(super) attempt: Option<Attempt>,
}

/// How NAT shows the ends of this connection to each other.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    /// The client, as packets show it.
    pub client: SocketAddr,
    /// The server, as packets show it.
    pub server: SocketAddr,
}

/// A pinhole to open.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// The pinhole.
    pub pinhole: Pinhole,
    /// The control connection that it belongs to.
    pub control: Translation,
    /// Whether its client opens the data connection, not its server.
    pub from_client: bool,
    /// How long it lives if no connection comes.
    pub lifetime: Duration,
}

/// Later packets of a control connection need this attention.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// The connection, as packets show it.
    pub connection: Lookup,
    /// The same, where it is known how it is translated; it is to be looked up otherwise.
    pub translation: Option<Translation>,
    /// What its packets need.
    pub attention: Attention,
    pub(super) purpose: Purpose,
}

/// What a [`Mark`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// What its session wants.
    Session,
    /// Another connection may have begun on the same endpoints, so that nothing of its translation is known.
    TupleReuse,
    /// It is not inspected.
    LeaveAlone,
}

/// A packet to send from this machine.
#[derive(Clone, Debug)]
pub struct Injection {
    pub(super) session: SessionRef,
    pub(super) to: Side,
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    /// From its IP header on, with the addresses that its addressee knows.
    pub packet: Vec<u8>,
}

/// What is to be done, in this order. Kept by its host from one batch to the next, so that a packet allocates nothing.
#[derive(Debug, Default)]
pub struct Effects {
    /// Of which of the host's engines.
    pub shard: usize,
    /// Where the pinholes are.
    pub(super) places: Places,
    /// Whether anything was done since effects were last carried out.
    pub(super) is_touched: bool,
    /// Whether it was noted that packets passed unread meanwhile.
    pub(super) has_lapsed: bool,
    /// When a packet of the reorder queue has waited for long enough.
    pub waits_until: Option<Instant>,
    /// Translations to look up.
    pub lookups: Vec<Ask<Lookup, Option<Translation>>>,
    /// Pinholes to close in the same transaction, before the others open.
    pub closed_first: Vec<Closing>,
    /// Pinholes to open, all at once where the kernel can.
    pub openings: Vec<Ask<Opening, ()>>,
    /// Marks to set, once pinholes are open; answered by the translation.
    pub marks: Vec<Ask<Mark, Translation>>,
    /// The packets that wait for answers.
    pub(super) waiting: Vec<u8>,
    /// Records of the sessions that changed, one after the other, with the ends of each.
    pub(super) records: Vec<u8>,
    pub(super) record_ends: Vec<usize>,
    /// Verdicts, in the order in which packets go on.
    pub verdicts: Vec<Released>,
    /// What goes on in the place of packets.
    pub replacements: Vec<u8>,
    /// Packets to send.
    pub injections: Vec<Injection>,
    /// Connections for the program in the kernel to judge, or to leave alone, before verdicts are given.
    pub flow_changes: Option<FlowChanges>,
    /// Pinholes to close.
    pub closings: Vec<Closing>,
    /// Pinholes of the program in the kernel to close.
    pub shut: Vec<Shut>,
    pub(super) events: Events,
}

/// Kept for the next batch; of a larger one the rest is given back.
pub(super) const KEPT: usize = 256 << 10;

impl Effects {
    /// None yet, of the engine `shard` of its host.
    pub fn of(shard: usize) -> Self {
        Self { shard, ..Self::default() }
    }

    /// Something is done, by an engine whose pinholes are at `places`.
    pub(super) fn touch(&mut self, places: &Places) {
        self.is_touched = true;
        self.places.follow(places);
    }

    /// Whether the kernel is to be asked something before anything else is done.
    pub fn asks(&self) -> bool {
        !(self.lookups.is_empty() && self.openings.is_empty() && self.marks.is_empty())
    }

    /// Records of the sessions that changed. To be written before verdicts are given.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.record_ends.iter().copied());
        starts.zip(&self.record_ends).map(|(start, end)| &self.records[start..*end])
    }

    /// All of it was done. What is still asked stays.
    pub fn clear(&mut self) {
        for buffer in [&mut self.records, &mut self.replacements] {
            buffer.clear();
            buffer.shrink_to(KEPT);
        }
        (self.is_touched, self.has_lapsed) = (false, false);
        self.record_ends.clear();
        self.verdicts.clear();
        self.injections.clear();
        self.closings.clear();
        self.flow_changes = None;
        self.shut.clear();
    }
}
