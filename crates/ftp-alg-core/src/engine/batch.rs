//! The decisions of a batch, and the one order in which they are carried out.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
    time::Instant,
};

use crate::{
    engine::{
        EncodedRecord, Engine, Event, EventKind, FlowChange, Kernel, KernelError,
        events::{Events, OmittedEvents},
        table::entry::Head,
    },
    packet::{self, Packet},
    session::{DropReason, Side},
};

/// A packet in a kernel queue, as its host identifies it. The engine passes it through.
// Aligned so that it is copied as a whole: writing and reading it in different parts would stall once a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(align(8))]
pub struct Token {
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
    /// These bytes of [`Batch::replacements`] are forwarded in its place.
    Replace(Range<u32>),
    /// It is dropped.
    Drop(DropReason),
}

impl Verdict {
    /// The replacement, from [`Batch::replacements`].
    pub fn replacement<'a>(&self, replacements: &'a [u8]) -> &'a [u8] {
        let Self::Replace(range) = self else { return &[] };
        replacements.get(range.start as usize..range.end as usize).unwrap_or_default()
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
}

impl Released {
    /// The packet's session.
    pub(crate) fn session(&self) -> SessionRef {
        SessionRef { index: self.index, id: self.id }
    }
}

/// A packet to send from this machine, with the addresses that its recipient knows.
#[derive(Clone, Debug)]
pub(crate) struct Injection {
    /// The number of its session, and the session's endpoints.
    pub(crate) session: u64,
    pub(crate) client: SocketAddr,
    pub(crate) server: SocketAddr,
    /// The source address that the packets of its connection have at our hooks.
    pub(crate) source: IpAddr,
    /// The operator's bits of the connection's ct mark.
    pub(crate) ct_mark: u32,
    /// The IP packet.
    pub(crate) packet: Vec<u8>,
}

impl Injection {
    /// The injection of a packet that has the endpoints of packets at our hooks. It gets the addresses that its recipient
    /// knows, because NAT does not translate it any more, and the ct mark, by which it is routed. Nothing is injected into a
    /// connection whose translation is unknown.
    pub(crate) fn new(head: &Head, recipient: Side, packet: Vec<u8>) -> Option<Self> {
        let translation = head.extra().translation?;
        let (client, server) = (head.client(), head.server());
        let (source, destination) = translation.seen_by(recipient);
        let parsed = Packet::parse(&packet).ok()?;
        let has_endpoints = parsed.source() == source && parsed.destination() == destination;
        let packet = if has_endpoints {
            packet
        } else {
            let mut translated = Vec::new();
            packet::build_with_endpoints(&parsed, source, destination, &mut translated);
            translated
        };
        let source = head.ends_to(recipient).0.ip();
        let (session, ct_mark) = (head.id, translation.ct_mark);
        Some(Self { session, client, server, source, ct_mark, packet })
    }
}

/// The decisions of a batch that are not carried out yet, in order. Pinholes are already open and queue modes set, and the
/// [table of pinholes](crate::engine::pinholes::PinholeTable) knows the closings. Reused, so that packets need no
/// allocation.
#[derive(Debug, Default)]
pub struct Batch {
    /// Records of changed sessions, and where each is.
    records: Vec<u8>,
    record_places: Vec<RecordPlace>,
    /// Connections that the BPF program takes over or returns.
    pub(crate) flow_changes: Vec<FlowChange>,
    /// Verdicts, in the order in which packets are forwarded.
    pub verdicts: Vec<Released>,
    /// Replacements of packets.
    pub replacements: Vec<u8>,
    /// Packets to send.
    pub(crate) injections: Vec<Injection>,
    pub(crate) events: Events,
}

/// Where a record is.
#[derive(Debug)]
struct RecordPlace {
    session: u64,
    start: usize,
    /// The end of the part for another machine.
    portable_end: usize,
    end: usize,
}

/// Allocation in bytes that is reused for the next batch; a larger one is freed.
const RETAINED_CAPACITY: usize = 256 << 10;

impl Batch {
    /// Adds a record of `session`, whose first `portable` bytes are for another machine.
    pub(crate) fn push_record(&mut self, session: u64, record: &[u8], portable: usize) {
        let start = self.records.len();
        self.records.extend_from_slice(record);
        let (portable_end, end) = (start + portable, self.records.len());
        self.record_places.push(RecordPlace { session, start, portable_end, end });
    }

    /// Records of changed sessions.
    pub fn records(&self) -> impl Iterator<Item = EncodedRecord<'_>> {
        self.record_places.iter().map(|place| EncodedRecord {
            session: place.session,
            bytes: &self.records[place.start..place.end],
            portable: &self.records[place.start..place.portable_end],
        })
    }

    /// The events.
    pub fn events(&self) -> &[Event] {
        self.events.stored()
    }

    /// Whether a peer sees a decision: a changed packet, one of the gateway's own, or an open pinhole.
    pub fn shows_decision(&self) -> bool {
        let is_changed = |released: &Released| matches!(released.verdict, Verdict::Replace(_));
        let is_decision = |event: &Event| {
            matches!(
                event.kind,
                EventKind::Announcement(_) | EventKind::Refusal(_) | EventKind::RangeOpened(_)
            )
        };
        !self.injections.is_empty()
            || self.verdicts.iter().any(is_changed)
            || self.events().iter().any(is_decision)
    }

    /// Clears the records, which are written.
    pub(crate) fn clear_records(&mut self) {
        self.records.clear();
        self.record_places.clear();
    }

    /// Clears everything but the events.
    fn clear(&mut self) {
        self.clear_records();
        self.records.shrink_to(RETAINED_CAPACITY);
        self.replacements.clear();
        self.replacements.shrink_to(RETAINED_CAPACITY);
        self.flow_changes.clear();
        self.verdicts.clear();
        self.injections.clear();
    }
}

/// Carries out what an engine decides, besides the kernel: the daemon, `replay`, the simulated network.
pub trait Host {
    /// Whether packets may have passed unread since the batch started.
    fn had_downtime(&mut self) -> bool {
        false
    }

    /// Stores the events, and writes the records. From now on a crash loses nothing of the batch.
    fn record(&mut self, batch: &Batch);

    /// Gives the verdicts.
    fn give(&mut self, batch: &Batch);

    /// Reports an error of the kernel that concerns no session.
    fn report_error(&mut self, _error: &KernelError) {}

    /// Stores the events of injections that failed.
    fn store_late_events(&mut self, _events: &[Event]) {}
}

impl Engine {
    /// Carries out what was decided, in the only safe order. The engine is locked meanwhile. The [events](Self::take_events)
    /// stay.
    ///
    /// 1. Pinholes are open, and queue modes set, since the decision. If packets may have passed unread meanwhile, changes
    ///    are undone that must not be late.
    /// 2. Records are written. A packet whose record is not written has not been forwarded either, and is retransmitted.
    ///    Records come after pinholes: the next daemon closes a pinhole that is in no record, but a pinhole that is only in
    ///    a record would be missing.
    /// 3. The BPF program takes over connections or returns them. Then verdicts are given: no peer has a packet before.
    /// 4. Packets are injected, after those that they follow.
    /// 5. Pinholes that are no longer needed are closed.
    pub fn finish(&mut self, now: Instant, kernel: &mut dyn Kernel, host: &mut dyn Host) {
        if host.had_downtime() {
            self.undo_changes_after_downtime(now, kernel);
        }
        self.sessions.take_records();
        host.record(&self.sessions.batch);
        self.sessions.apply_flow_changes(kernel);
        host.give(&self.sessions.batch);
        self.inject(kernel, host);
        self.sessions.pinholes.send_closings(kernel);
        self.sessions.ranges.send_closings(kernel);
        let mut errors = self.sessions.pinholes.take_errors();
        errors.extend(self.sessions.ranges.take_errors());
        self.sessions.counters.errors += errors.len() as u64;
        errors.iter().for_each(|error| host.report_error(error));
        self.sessions.batch.clear();
    }

    /// Takes the events of all batches since the last call, with the number of omitted ones, and leaves `empty` ones.
    pub fn take_events(&mut self, empty: Vec<Event>) -> (Vec<Event>, OmittedEvents) {
        self.sessions.batch.events.replace(empty)
    }

    fn inject(&mut self, kernel: &mut dyn Kernel, host: &mut dyn Host) {
        let batch = &mut self.sessions.batch;
        let stored = batch.events.stored().len();
        for Injection { session, client, server, source, ct_mark, packet } in &batch.injections {
            if let Err(error) = kernel.inject(packet, *source, *ct_mark) {
                self.sessions.counters.errors += 1;
                let (session, client, server) = (*session, *client, *server);
                let kind = EventKind::Kernel(error.to_string().into());
                batch.events.push(Event { session, client, server, user: None, kind });
            }
        }
        let late = batch.events.stored().get(stored..).unwrap_or_default();
        if !late.is_empty() {
            host.store_late_events(late);
        }
    }
}
