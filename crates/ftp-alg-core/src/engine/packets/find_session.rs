//! Finds the session that a packet belongs to, or starts one.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    engine::{
        Engine, Entry, Kernel, PacketMeta, QueuedPacket, Sessions, Verdict,
        batch::SessionRef,
        packets::{ACCEPT, Handling, PacketContext, routes::SOME_UNREAD, trace_unread},
        table::{Key, PREFETCHED, entry::Timestamp},
    },
    packet::{Packet, flags},
    session::{DropReason, Phase, Session, Side},
};

/// Why a session is not to inspect a packet now.
enum Obstacle {
    /// The gateway has reset the connection.
    Reset,
    /// The packet belongs to another connection on the same endpoints.
    OtherConnection,
    /// Packets before it are missing.
    OutOfOrder { all_were_queued: bool },
}

/// Up to this many sessions are cached anyway.
const FEW_SESSIONS: usize = 4096;
/// After so long without a packet the server is not inside a reply, because servers write one at once.
const SILENCE: Duration = Duration::from_secs(5);

impl Sessions {
    /// Prepares for the next packets, without decisions. With more sessions than a cache holds, each packet would wait
    /// for memory; here all of them wait once.
    pub fn prefetch<'p>(&self, packets: impl Iterator<Item = &'p [u8]>) {
        if self.table.len() < FEW_SESSIONS {
            return;
        }
        let mut keys = [Key::default(); PREFETCHED];
        let mut packets = packets.filter_map(|bytes| Packet::parse(bytes).ok()).peekable();
        while packets.peek().is_some() {
            let mut count = 0;
            for (key, packet) in keys.iter_mut().zip(&mut packets) {
                let (source, destination) = packet.endpoints();
                *key = Key::between(source, destination);
                count += 1;
            }
            self.table.prefetch(&keys[..count]);
        }
    }
}

impl Engine {
    /// Finds the session of a packet, or starts one, and sets its `context`. Returns the end that sent the packet; an
    /// error with the decision if its session is not to inspect the packet now.
    #[inline]
    pub(crate) fn find_session(
        &mut self,
        now: Instant,
        queued: &QueuedPacket<'_>,
        packet: &Packet<'_>,
        context: &mut PacketContext,
        kernel: &mut dyn Kernel,
    ) -> Result<Side, Handling> {
        let (source, destination) = packet.endpoints();
        let timestamp = self.sessions.epoch.timestamp(now);
        let found = self.sessions.table.find(&Key::between(source, destination));
        if let Some(index) = found
            && let Some(entry) = self.sessions.table.get_mut(index)
        {
            let (from, meta) = (entry.head.side_of(source), &queued.meta);
            let is_usual = !packet.has(flags::SYN)
                && entry.head.is_settled()
                && entry.session.interfaces.are_settled(from, meta.input, meta.output);
            if is_usual {
                let session = SessionRef { index, id: entry.head.id };
                return match obstacle(entry, timestamp, from, queued, packet) {
                    None => {
                        context.session = session;
                        Ok(from)
                    }
                    Some(obstacle) => {
                        Err(self.handle_obstacle(obstacle, queued, packet, session, from, context))
                    }
                };
            }
        }
        self.find_unusual_session(now, queued, packet, found, context, kernel)
    }

    /// As [`find_session`](Self::find_session), for a packet that may begin a session, wait for one, or come from
    /// elsewhere. Its endpoints are those of the entry `found`.
    #[inline(never)]
    fn find_unusual_session(
        &mut self,
        now: Instant,
        queued: &QueuedPacket<'_>,
        packet: &Packet<'_>,
        found: Option<u32>,
        context: &mut PacketContext,
        kernel: &mut dyn Kernel,
    ) -> Result<Side, Handling> {
        let QueuedPacket { bytes, meta, .. } = queued;
        let timestamp = self.sessions.epoch.timestamp(now);
        let source = packet.endpoints().0;
        let mut known = None;
        if let Some(index) = found
            && let Some(entry) = self.sessions.table.get_mut(index)
        {
            let from = entry.head.side_of(source);
            let is_settled = entry.session.interfaces.are_settled(from, meta.input, meta.output);
            let is_over = entry.session.is_over();
            let session = SessionRef { index, id: entry.head.id };
            let is_handed_over = entry.head.extra().fast_path.is_handed_over;
            let is_adjusted = is_handed_over && entry.session.has_adjusted_numbers(from, packet);
            let is_certain = !packet.has(flags::SYN) && entry.head.incarnation().is_none();
            // A SYN changes nothing by itself. When the connection has ended, its ends may be elsewhere.
            let begins = packet.has(flags::SYN) && (!packet.has(flags::ACK) || is_over);
            if !is_settled && !begins && !self.comes_from_sender(now, index, from, meta, kernel) {
                self.report_elsewhere(index, SOME_UNREAD);
                let has_payload = !packet.payload().is_empty();
                if has_payload && !self.accepts_from_elsewhere(index, from, packet) {
                    return Err(Handling::Verdict(Verdict::Drop(DropReason::Elsewhere)));
                }
                if from == Side::Server || !has_payload {
                    self.record_packet(now, index);
                    let reason = "it arrived where no route to its sender leads";
                    self.pass_unread(bytes, |unread| &mut unread.elsewhere, reason);
                    (context.session, context.is_elsewhere) = (session, true);
                    return Ok(from);
                }
            }
            if is_handed_over {
                self.sessions.take_back(index);
                if is_adjusted {
                    return Err(Handling::Verdict(Verdict::Drop(DropReason::Adjusted)));
                }
            }
            known = is_certain.then_some((index, from));
        }
        let known = known.or_else(|| {
            let before = found.and_then(|index| Some(self.sessions.table.get_mut(index)?.head.id));
            let index = self.find_or_insert(now, packet, found, *meta, kernel)?;
            let entry = &self.sessions.table.get_mut(index)?;
            let (from, is_new) = (entry.head.side_of(source), before != Some(entry.head.id));
            if is_new {
                // It knows no interfaces, so there is no question.
                self.comes_from_sender(now, index, from, meta, kernel);
            }
            Some((index, from))
        });
        let Some(known) = known else {
            trace_unread(bytes, "no session for it");
            return Err(ACCEPT);
        };
        let (index, from) = known;
        let Some(entry) = self.sessions.table.get_mut(index) else {
            return Err(ACCEPT);
        };
        let session = SessionRef { index, id: entry.head.id };
        if let Some(obstacle) = obstacle(entry, timestamp, from, queued, packet) {
            return Err(self.handle_obstacle(obstacle, queued, packet, session, from, context));
        }
        context.session = session;
        Ok(from)
    }

    /// Records that a packet of the session at `index` passes unread.
    #[cold]
    fn record_packet(&mut self, now: Instant, index: u32) {
        let timestamp = self.sessions.epoch.timestamp(now);
        if let Some(entry) = self.sessions.table.get_mut(index) {
            entry.head.last_seen = timestamp;
        }
    }

    /// The decision about a packet of `session` and `from` that the session is not to inspect now.
    #[inline(never)]
    fn handle_obstacle(
        &mut self,
        obstacle: Obstacle,
        queued: &QueuedPacket<'_>,
        packet: &Packet<'_>,
        session: SessionRef,
        from: Side,
        context: &mut PacketContext,
    ) -> Handling {
        match obstacle {
            Obstacle::Reset => {
                Handling::Verdict(self.sessions.answer_reset_session(session.index, from, packet))
            }
            Obstacle::OtherConnection => {
                let reason = "it belongs to another connection on the endpoints of a session";
                self.pass_unread(queued.bytes, |unread| &mut unread.other_connection, reason);
                ACCEPT
            }
            Obstacle::OutOfOrder { all_were_queued } => {
                (context.session, context.all_were_queued) = (session, all_were_queued);
                Handling::Reorder
            }
        }
    }

    /// Finds the entry of `packet` if that is not certain, or inserts one if the packet starts a session.
    fn find_or_insert(
        &mut self,
        now: Instant,
        packet: &Packet<'_>,
        found: Option<u32>,
        meta: PacketMeta,
        kernel: &mut dyn Kernel,
    ) -> Option<u32> {
        if let Some(index) = found
            && !packet.has(flags::SYN)
        {
            return self.resolve_tuple_reuse(now, index, packet, kernel);
        }
        let (source, destination) = (packet.source(), packet.destination());
        if packet.has(flags::SYN | flags::ACK) {
            let Some(index) = found else {
                let session = Session::from_syn_ack(packet);
                return self.sessions.insert(now, destination, source, session, kernel);
            };
            let entry = self.sessions.table.get_mut(index)?;
            if entry.session.is_syn_ack_retransmission(packet)
                || entry.session.is_continued_by(packet)
            {
                return found;
            }
            return self.handle_tuple_reuse(now, index, packet, meta.queues_all, kernel);
        }
        if packet.has(flags::SYN) || packet.payload().is_empty() {
            self.sessions.counters.unread.no_session += u64::from(found.is_none());
            return found;
        }
        // Picked up mid-stream. If the rules do not tell which end sent the packet, the port does, if at all. Conntrack
        // is not asked, because an attacker could cause a lookup with each spoofed packet.
        let Some(side) = meta.from.or_else(|| self.side_by_port(source, destination)) else {
            self.sessions.counters.unread.no_session += 1;
            return None;
        };
        let session = Session::picked_up(side, packet);
        let (client, server) = match side {
            Side::Client => (source, destination),
            Side::Server => (destination, source),
        };
        self.sessions.insert(now, client, server, session, kernel)
    }

    fn side_by_port(&self, source: SocketAddr, destination: SocketAddr) -> Option<Side> {
        let is_control =
            |endpoint: SocketAddr| self.sessions.policy.control_ports.contains(&endpoint.port());
        match (is_control(destination), is_control(source)) {
            (true, false) => Some(Side::Client),
            (false, true) => Some(Side::Server),
            _ => None,
        }
    }
}

/// Records a packet of `from` and its time in its session's `entry`, and says why the session is not to inspect it now.
#[inline(always)]
fn obstacle(
    entry: &mut Entry,
    timestamp: Timestamp,
    from: Side,
    queued: &QueuedPacket<'_>,
    packet: &Packet<'_>,
) -> Option<Obstacle> {
    if timestamp.is_later_by(SILENCE, entry.head.last_seen) {
        entry.session.dialogue.record_silence();
    }
    entry.head.last_seen = timestamp;
    if entry.session.was_reset() && !packet.has(flags::SYN) {
        return Some(Obstacle::Reset);
    }
    let is_ungreeted =
        entry.session.dialogue.phase() == Phase::NotGreeted && entry.head.incarnation().is_none();
    if is_ungreeted && !packet.has(flags::SYN) && !entry.session.is_in_window(from, packet) {
        return Some(Obstacle::OtherConnection); // the session started with a spoofed SYN-ACK
    }
    (queued.meta.may_wait && entry.session.may_reorder(from, packet))
        .then(|| Obstacle::OutOfOrder { all_were_queued: entry.session.needs_all_queued() })
}
