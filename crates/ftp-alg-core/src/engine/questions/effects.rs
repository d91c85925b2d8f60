//! The effects of a batch: requests to the kernel, and actions to carry out in the order of the fields.

use std::{net::SocketAddr, ops::Range, time::Instant};

use crate::{
    engine::{
        Entry, Event, FastPathPinholeClosing, KernelError, PacketMeta, QueueMode, Renewal,
        Translation,
        events::Events,
        offload::handover::{FastPathPinhole, FlowChanges},
        pinholes::{
            proposal::Attempt,
            registry::{PinholeClosing, PinholeRegistry},
        },
        questions::kernel::RouteLookup,
    },
    session::{DropReason, PendingLine, Side},
};

/// A packet in a kernel queue, as its host identifies it. The engine passes it through.
// Aligned so that it is copied as a whole: writing and reading it in different parts would stall once a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(align(8))]
pub struct Token {
    /// Index of the host's queue.
    pub queue: u16,
    /// Packet number in the queue.
    pub id: u32,
    /// The packet mark on arrival.
    pub mark: u32,
}

/// What happens to a queued packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is forwarded unchanged.
    Accept,
    /// These bytes of [`Effects::replacements`] are forwarded in its place.
    Replace(Range<u32>),
    /// It is dropped.
    Drop(DropReason),
}

impl Verdict {
    /// The replacement, from [`Effects::replacements`].
    pub fn replacement<'a>(&self, replacements: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Replace(range) => {
                replacements.get(range.start as usize..range.end as usize).unwrap_or_default()
            }
            Self::Accept | Self::Drop(_) => &[],
        }
    }
}

/// A reference to a session: its table slot and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRef {
    pub(crate) index: u32,
    pub(crate) id: u64,
}

impl SessionRef {
    /// A reference to no session.
    pub(crate) const NONE: Self = Self { index: u32::MAX, id: 0 };
}

/// A verdict that can be given.
#[derive(Clone, Debug)]
pub struct Released {
    /// The packet.
    pub token: Token,
    /// The verdict.
    pub verdict: Verdict,
    /// The session reference in two fields: its padding would be copied with the next field, which stalls.
    pub(crate) index: u32,
    pub(crate) id: u64,
    /// Whether all packets of the session were already queued before this decision.
    pub(crate) all_were_queued: bool,
    /// Whether the kernel must first have set the queue mode to all.
    pub(crate) needs_all_queued: bool,
}

impl Released {
    /// The packet's session.
    pub(crate) fn session(&self) -> SessionRef {
        SessionRef { index: self.index, id: self.id }
    }
}

/// A request to the kernel, with room for the answer.
#[derive(Debug)]
pub struct KernelRequest<Q, A> {
    pub(crate) session: SessionRef,
    /// The request.
    pub request: Q,
    /// The kernel's answer; `None` until it is there.
    pub answer: Option<Result<A, KernelError>>,
    /// The packet that waits for the answer.
    pub(crate) waiting: Option<WaitingPacket>,
}

impl<Q, A> KernelRequest<Q, A> {
    #[inline(always)] // built where it stays
    pub(crate) fn new(session: SessionRef, request: Q, waiting: Option<WaitingPacket>) -> Self {
        Self { session, request, answer: None, waiting }
    }
}

/// A packet that waits for an answer.
#[derive(Debug)]
pub(crate) struct WaitingPacket {
    pub(crate) token: Token,
    pub(crate) meta: PacketMeta,
    /// Position of its bytes in [`Effects::waiting_bytes`].
    pub(crate) bytes: Range<usize>,
    /// The line that needs a decision.
    pub(crate) line: Option<Box<PendingLine>>,
}

/// A lookup of a connection's translation.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    /// The client as packets show it.
    pub client: SocketAddr,
    /// The server as packets show it.
    pub server: SocketAddr,
}

/// A request to change the queue mode of a control connection.
#[derive(Clone, Copy, Debug)]
pub struct QueueModeChange {
    /// The connection as packets show it.
    pub connection: Lookup,
    /// Its translation; `None` if it must be looked up.
    pub translation: Option<Translation>,
    /// The new queue mode.
    pub mode: QueueMode,
    pub(crate) purpose: Purpose,
}

/// The reason for a [`QueueModeChange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The session needs it.
    Session,
    /// Another connection may have started on the same endpoints, so the translation is unknown.
    TupleReuse,
    /// The connection is not inspected.
    NotInspected,
}

/// A packet to send from this machine.
#[derive(Clone, Debug)]
pub struct Injection {
    pub(crate) session: SessionRef,
    pub(crate) recipient: Side,
    /// The endpoints of packets at our hooks.
    pub(crate) client: SocketAddr,
    pub(crate) server: SocketAddr,
    /// The operator's bits of the connection's ct mark.
    pub(crate) ct_mark: u32,
    /// The IP packet, with the addresses that the recipient knows.
    pub packet: Vec<u8>,
}

/// The effects of a batch, in the order in which they are carried out. The host reuses it for the next batch, so that
/// packets need no allocation.
#[derive(Debug, Default)]
pub struct Effects {
    /// Index of the host's engine.
    pub shard: usize,
    /// The registry of open pinholes.
    pub(crate) registry: PinholeRegistry,
    /// Whether the engine has worked since the effects were last carried out.
    pub(crate) is_active: bool,
    /// Whether downtime during the batch was recorded.
    pub(crate) downtime_recorded: bool,
    /// The next deadline of the reorder queue.
    pub reorder_deadline: Option<Instant>,
    /// Routes to look up; the answer is whether there is one.
    pub route_lookups: Vec<KernelRequest<RouteLookup, bool>>,
    /// Translations to look up.
    pub lookups: Vec<KernelRequest<Lookup, Option<Translation>>>,
    /// Whether to look which pinholes are consumed, because a client's limit is reached.
    pub(crate) looks_for_consumed: bool,
    /// Pinholes to close in the same transaction, before others are opened.
    pub closed_before_opening: Vec<PinholeClosing>,
    /// Pinholes to open, in one transaction if the kernel can.
    pub(crate) openings: Vec<KernelRequest<Attempt, ()>>,
    /// Queue modes to set after pinholes are open; the answer is the translation.
    pub mode_changes: Vec<KernelRequest<QueueModeChange, Translation>>,
    /// The bytes of packets that wait for answers.
    pub(crate) waiting_bytes: Vec<u8>,
    /// Records of changed sessions, and the end of each.
    pub(crate) records: Vec<u8>,
    pub(crate) record_ends: Vec<usize>,
    /// Verdicts, in the order in which packets are forwarded.
    pub verdicts: Vec<Released>,
    /// Replacements of packets.
    pub replacements: Vec<u8>,
    /// Packets to send.
    pub injections: Vec<Injection>,
    /// Connections that the BPF program takes over or returns, before verdicts are given.
    pub flow_changes: Option<FlowChanges>,
    /// Pinholes to renew.
    pub renewals: Vec<Renewal>,
    /// Pinholes to close.
    pub pinholes_to_close: Vec<PinholeClosing>,
    /// Pinholes of the BPF program to close.
    pub fast_path_closings: Vec<FastPathPinholeClosing>,
    /// Pinholes of the BPF program that no session holds, to close.
    pub lost_fast_path_pinholes: Vec<FastPathPinhole>,
    pub(crate) events: Events,
}

/// Allocation in bytes that is reused for the next batch; a larger one is freed.
pub(crate) const RETAINED_CAPACITY: usize = 256 << 10;

impl Effects {
    /// Empty effects of the engine with index `shard`.
    pub fn for_shard(shard: usize) -> Self {
        Self { shard, ..Self::default() }
    }

    /// Marks the effects as in use by an engine with this registry.
    pub(crate) fn activate(&mut self, registry: &PinholeRegistry) {
        self.is_active = true;
        self.registry.share_with(registry);
    }

    /// Requests the queue mode of the connection at `index`, whose translation is unknown.
    pub(crate) fn renew_queue_mode(
        &mut self,
        index: u32,
        entry: &mut Entry,
        mode: QueueMode,
        purpose: Purpose,
    ) {
        entry.begin_request();
        let connection = Lookup { client: entry.client(), server: entry.server() };
        let mode_change = QueueModeChange { connection, translation: None, mode, purpose };
        let session = SessionRef { index, id: entry.id };
        self.mode_changes.push(KernelRequest::new(session, mode_change, None));
    }

    /// Stores the bytes of a packet that waits. Returns their position.
    pub(crate) fn store_waiting(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.waiting_bytes.len();
        self.waiting_bytes.extend_from_slice(bytes);
        start..self.waiting_bytes.len()
    }

    /// Whether the kernel must answer requests before anything else is done.
    pub fn has_kernel_requests(&self) -> bool {
        !(self.route_lookups.is_empty()
            && self.lookups.is_empty()
            && self.openings.is_empty()
            && self.mode_changes.is_empty())
    }

    /// Records of changed sessions, to be written before verdicts are given.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.record_ends.iter().copied());
        starts.zip(&self.record_ends).map(|(start, end)| &self.records[start..*end])
    }

    /// The events that are to be reported.
    pub fn events(&self) -> &[Event] {
        self.events.stored()
    }

    /// The number of transfers that have ended, with those whose events are omitted.
    pub fn ended_transfers(&self) -> u64 {
        self.events.ended_transfers()
    }

    /// Clears everything that was carried out. Open requests stay.
    pub fn clear(&mut self) {
        for buffer in [&mut self.records, &mut self.replacements] {
            buffer.clear();
            buffer.shrink_to(RETAINED_CAPACITY);
        }
        (self.is_active, self.downtime_recorded) = (false, false);
        self.record_ends.clear();
        self.verdicts.clear();
        self.injections.clear();
        self.renewals.clear();
        self.pinholes_to_close.clear();
        self.flow_changes = None;
        self.fast_path_closings.clear();
        self.lost_fast_path_pinholes.clear();
        self.events.clear();
    }
}
