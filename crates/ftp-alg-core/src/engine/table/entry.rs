//! The state of one control connection, in compact form.
//!
//! There may be a million connections, and a packet's connection is then not cached. So the state that every packet
//! needs is in four cache lines together with the session. State that few connections need is boxed.

use std::{
    net::SocketAddr,
    num::NonZeroU16,
    time::{Duration, Instant},
};

use crate::{
    engine::{
        Event, EventKind, QueueMode, SessionEnd, Transfer, TransferEnd, Translation,
        activity::ClientActivity, events::Events, offload::handover::FastPathProgress,
        pinholes::pinhole::Pinhole,
    },
    packet::Endpoint,
    session::{Session, Side},
};

/// A control connection in the table.
#[derive(Debug)]
#[repr(align(64))]
pub struct Entry {
    /// What the engine knows of it besides its session. Decisions about its lines need only this.
    pub head: Head,
    pub session: Session,
}

/// What the engine knows of a control connection besides its session.
#[derive(Debug)]
pub struct Head {
    /// Session number, from 1.
    pub id: u64,
    /// Client and server endpoint, as packets show them.
    pub endpoints: EndpointPair,
    /// Index of the network policy plus one.
    network: Option<NonZeroU16>,
    /// The queue mode that was set last, and the millisecond in which it was set.
    queue_mode: Option<QueueMode>,
    mode_set_at: u32,
    /// Time of the first packet.
    pub first_seen: Timestamp,
    /// Time of the last packet.
    pub last_seen: Timestamp,
    /// Whether the session has changed since its last record.
    pub changed: bool,
    /// Whether the session counts for the memory budget.
    pub is_in_memory_budget: bool,
    /// Whether the session counts for its client's share.
    pub counts_for_client: bool,
    extra: Option<Box<Extra>>,
}

/// State that a connection has only after its first announcement, or in rare cases.
#[derive(Debug)]
pub struct Extra {
    /// The translation, if it was looked up.
    pub translation: Option<Translation>,
    /// The state on the fast path.
    pub fast_path: FastPathProgress,
    /// Another connection on the same endpoints.
    pub incarnation: Option<NewIncarnation>,
    /// Until when every packet is queued, if for a while.
    pub watched_until: Option<Instant>,
    /// How many times in a row conntrack did not know the connection.
    unknown_to_conntrack: u8,
    /// What the client does.
    pub activity: ClientActivity,
}

impl Extra {
    const NOTHING: Self = Self {
        translation: None,
        fast_path: FastPathProgress::NONE,
        incarnation: None,
        watched_until: None,
        unknown_to_conntrack: 0,
        activity: ClientActivity::NOTHING,
    };
}

/// Another connection on the same endpoints, unless its SYN-ACK was spoofed.
#[derive(Debug)]
pub struct NewIncarnation {
    pub session: Box<Session>,
    /// Time of its last SYN-ACK.
    pub last_syn_ack: Timestamp,
}

impl Entry {
    /// Reads one word of each cache line, so that they are cached afterwards.
    pub fn touch_cache_lines(&self) -> u64 {
        self.head.id
            ^ u64::from(self.head.mode_set_at)
            ^ u64::from(self.head.endpoints.server_port[0])
            ^ u64::from(self.session.touch_cache_lines())
    }

    /// A connection whose first packet arrives `now`.
    pub fn new(
        id: u64,
        client: SocketAddr,
        server: SocketAddr,
        session: Session,
        now: Timestamp,
    ) -> Self {
        let head = Head {
            id,
            endpoints: EndpointPair::new(client.into(), server.into()),
            network: None,
            queue_mode: None,
            mode_set_at: 0,
            first_seen: now,
            last_seen: now,
            changed: false,
            is_in_memory_budget: false,
            counts_for_client: false,
            extra: None,
        };
        Self { head, session }
    }
}

impl Head {
    /// The client as packets show it.
    pub fn client(&self) -> SocketAddr {
        self.endpoints.client().socket()
    }

    /// The server as packets show it.
    pub fn server(&self) -> SocketAddr {
        self.endpoints.server().socket()
    }

    /// Source and destination of a packet to `recipient`.
    pub fn ends_to(&self, recipient: Side) -> (SocketAddr, SocketAddr) {
        match recipient {
            Side::Client => (self.server(), self.client()),
            Side::Server => (self.client(), self.server()),
        }
    }

    /// Index of the network policy.
    pub fn network(&self) -> Option<u16> {
        self.network.map(|after| after.get() - 1)
    }

    /// Sets the index of the network policy.
    pub fn set_network(&mut self, network: Option<u16>) {
        // The configuration allows fewer networks than this type can count.
        self.network = network.and_then(|network| NonZeroU16::new(network.saturating_add(1)));
    }

    /// An event of this session.
    pub fn event(&self, kind: EventKind) -> Event {
        let (session, client, server) = (self.id, self.client(), self.server());
        let user = self.extra().activity.user().cloned();
        Event { session, client, server, user, kind }
    }

    /// Whether no other connection may have begun on these endpoints, and no packet may have passed on the fast path.
    #[inline]
    pub fn is_settled(&self) -> bool {
        self.extra
            .as_ref()
            .is_none_or(|extra| extra.incarnation.is_none() && !extra.fast_path.is_handed_over)
    }

    /// Which end `source` is.
    pub fn side_of(&self, source: Endpoint) -> Side {
        if source == self.endpoints.client() { Side::Client } else { Side::Server }
    }

    /// The state that few connections have.
    #[inline]
    pub fn extra(&self) -> &Extra {
        static NOTHING: Extra = Extra::NOTHING;
        self.extra.as_deref().unwrap_or(&NOTHING)
    }

    /// The state that few connections have, to change it if there is any.
    pub fn existing_extra_mut(&mut self) -> Option<&mut Extra> {
        self.extra.as_deref_mut()
    }

    /// The state that few connections have, to set some of it.
    pub fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_with(|| Box::new(Extra::NOTHING))
    }

    /// What the client does, to change it.
    pub fn activity_mut(&mut self) -> &mut ClientActivity {
        &mut self.extra_mut().activity
    }

    /// Ends the oldest transfer, which used this announcement. `ended` is the time of its last reply, if one was
    /// seen. Returns the transfer's event.
    pub fn end_transfer(
        &mut self,
        end: TransferEnd,
        ended: Option<Instant>,
        announcement: Option<&Pinhole>,
    ) -> Option<Event> {
        let now = self.since_first_packet();
        let activity = &mut self.existing_extra_mut()?.activity;
        let transfer = activity.take_transfer(now, end, announcement)?;
        let transfer = Transfer { ended, ..transfer };
        Some(self.event(EventKind::Transfer(Box::new(transfer))))
    }

    /// Adds the events of the session's end to `events`, once: those of its transfers, and its own if its start was
    /// reported. `announcement` is the session's last answered one.
    pub fn end_session(
        &mut self,
        end: SessionEnd,
        announcement: Option<&Pinhole>,
        events: &mut Events,
    ) {
        while let Some(event) = self.end_transfer(end.of_transfers(), None, announcement) {
            events.push(event);
        }
        let duration = self.since_first_packet();
        let extra = self.existing_extra_mut();
        if let Some(ended) = extra.and_then(|extra| extra.activity.end_session(end, duration)) {
            events.push(self.event(EventKind::SessionEnded(ended)));
        }
    }

    /// Returns the oldest transfer, once, if it has been pending for a while `now`. The transfer uses this
    /// announcement.
    pub fn examine_transfers(
        &mut self,
        now: Timestamp,
        announcement: Option<&Pinhole>,
    ) -> Option<Transfer> {
        let now = now.duration_since(self.first_seen);
        self.existing_extra_mut()?.activity.examine_transfers(now, announcement)
    }

    /// When the session, apart from its pinholes, must be looked at after `now`.
    pub fn next_due(&self, now: Instant, epoch: &Epoch) -> Option<Instant> {
        let extra = self.extra.as_ref()?;
        let examination = extra.activity.next_examination();
        let examination =
            examination.and_then(|after| epoch.instant(self.first_seen)?.checked_add(after));
        extra.watched_until.into_iter().chain(examination).filter(|at| *at > now).min()
    }

    /// The time of the last packet since the first one.
    pub fn since_first_packet(&self) -> Duration {
        self.last_seen.duration_since(self.first_seen)
    }

    /// Heap memory in bytes of the names of what the client does.
    #[inline]
    pub fn names_size(&self) -> usize {
        self.extra.as_ref().map_or(0, |extra| extra.activity.heap_size())
    }

    /// The translation; that of a connection without NAT while it is unknown.
    pub fn translation_or_identity(&self) -> Translation {
        let identity = || Translation::identity(self.client(), self.server());
        self.extra().translation.unwrap_or_else(identity)
    }

    /// Sets the translation, or that it is unknown.
    pub fn set_translation(&mut self, translation: Option<Translation>) {
        if self.extra.is_some() || translation.is_some() {
            self.extra_mut().translation = translation;
        }
    }

    /// The other connection on the same endpoints, unless it was spoofed.
    pub fn incarnation(&self) -> Option<&Session> {
        self.extra().incarnation.as_ref().map(|incarnation| &*incarnation.session)
    }

    /// Notes that another connection started `now` on the same endpoints, unless its SYN-ACK is spoofed.
    pub fn set_incarnation(&mut self, session: Session, now: Timestamp) {
        self.extra_mut().incarnation =
            Some(NewIncarnation { session: Box::new(session), last_syn_ack: now });
    }

    /// Converts all times to those of another engine. The queue mode counts as unknown, because its time is.
    pub fn convert_times(&mut self, mut convert: impl FnMut(Timestamp) -> Timestamp) {
        self.first_seen = convert(self.first_seen);
        self.last_seen = convert(self.last_seen);
        if let Some(incarnation) = self.extra.as_mut().and_then(|extra| extra.incarnation.as_mut())
        {
            incarnation.last_syn_ack = convert(incarnation.last_syn_ack);
        }
        self.forget_queue_mode();
    }

    /// Time since the queue mode was set.
    pub fn mode_set_since(&self, now: Timestamp) -> Duration {
        Duration::from_millis(now.millis().wrapping_sub(self.mode_set_at).into())
    }

    /// The queue mode that was set last.
    pub fn queue_mode(&self) -> Option<QueueMode> {
        self.queue_mode
    }

    /// Notes that the kernel has set the queue mode.
    pub fn note_mode(&mut self, mode: QueueMode, now: Timestamp) {
        (self.queue_mode, self.mode_set_at) = (Some(mode), now.millis());
        if let Some(extra) = &mut self.extra {
            extra.unknown_to_conntrack = 0;
        }
    }

    /// Whether conntrack did not know the connection so often that the next request can wait.
    pub fn is_unknown_to_conntrack(&self, now: Timestamp, interval: Duration) -> bool {
        self.extra().unknown_to_conntrack >= MAX_UNKNOWN_TRIES
            && self.mode_set_since(now) < interval
    }

    /// Notes that conntrack did not know the connection. It may know it after the next packet. If it still does not,
    /// the request is repeated only at the resend interval.
    pub fn note_unknown(&mut self, wanted: QueueMode, now: Timestamp) {
        let extra = self.extra_mut();
        extra.unknown_to_conntrack = extra.unknown_to_conntrack.saturating_add(1);
        if extra.unknown_to_conntrack >= MAX_UNKNOWN_TRIES {
            (self.queue_mode, self.mode_set_at) = (Some(wanted), now.millis());
        }
    }

    /// Notes that the queue mode is unknown.
    pub fn forget_queue_mode(&mut self) {
        self.queue_mode = None;
    }
}

/// Number of immediate requests for a connection that conntrack does not know.
const MAX_UNKNOWN_TRIES: u8 = 4;

/// Both endpoints of a connection. Stored as bytes, because numbers would need alignment.
#[derive(Debug)]
pub struct EndpointPair {
    client: [[u8; 8]; 2],
    server: [[u8; 8]; 2],
    client_port: [u8; 2],
    server_port: [u8; 2],
    is_v4: bool,
}

impl EndpointPair {
    fn new(client: Endpoint, server: Endpoint) -> Self {
        let packed = |end: Endpoint| [end.high.to_ne_bytes(), end.low.to_ne_bytes()];
        Self {
            client: packed(client),
            server: packed(server),
            client_port: client.port().to_ne_bytes(),
            server_port: server.port().to_ne_bytes(),
            is_v4: client.is_v4(),
        }
    }

    /// The client's endpoint.
    pub fn client(&self) -> Endpoint {
        self.end(self.client, self.client_port)
    }

    /// The server's endpoint.
    pub fn server(&self) -> Endpoint {
        self.end(self.server, self.server_port)
    }

    fn end(&self, address: [[u8; 8]; 2], port: [u8; 2]) -> Endpoint {
        let [high, low] = address.map(u64::from_ne_bytes);
        Endpoint::new(high, low, u16::from_ne_bytes(port), self.is_v4)
    }
}

/// A time in nanoseconds since the [`Epoch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Time since `earlier`, at least zero.
    pub fn duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0).max(0).cast_unsigned())
    }

    /// Whether at least `by` has passed since `earlier`.
    #[inline]
    pub fn is_later_by(self, by: Duration, earlier: Self) -> bool {
        let by = i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
        earlier.0.saturating_add(by) <= self.0
    }

    fn millis(self) -> u32 {
        (self.0 / 1_000_000) as u32 // on a circle of 49 days
    }
}

/// The first time that an engine saw. An [`Instant`] takes twice the room of a distance from it.
#[derive(Clone, Copy, Default)]
pub struct Epoch {
    first: Option<Instant>,
    /// The last conversion: all packets of a batch have the same time.
    last: Option<(Instant, Timestamp)>,
}

impl Epoch {
    /// The timestamp of `at`.
    #[inline]
    pub fn timestamp(&mut self, at: Instant) -> Timestamp {
        if let Some((last, timestamp)) = self.last
            && last == at
        {
            return timestamp;
        }
        self.update_timestamp(at)
    }

    fn update_timestamp(&mut self, at: Instant) -> Timestamp {
        let epoch = *self.first.get_or_insert(at);
        let nanos = |distance: Duration| {
            i64::try_from(distance.as_nanos()).unwrap_or(i64::MAX) // in three hundred years
        };
        let timestamp = Timestamp(match at.checked_duration_since(epoch) {
            Some(after) => nanos(after),
            None => -nanos(epoch.duration_since(at)),
        });
        self.last = Some((at, timestamp));
        timestamp
    }

    /// The time of a timestamp; `None` before the first call of `timestamp`.
    pub fn instant(&self, Timestamp(nanos): Timestamp) -> Option<Instant> {
        let distance = Duration::from_nanos(nanos.unsigned_abs());
        let epoch = self.first?;
        if nanos < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_entry_takes_four_cache_lines() {
        assert_eq!(size_of::<Option<Entry>>(), 256);
    }
}
