//! One control connection: stream assembly, dialogue, sequence adjustment.
//!
//! [`Session::inspect`] takes each packet of the connection and returns how it is forwarded. The session does not
//! decide about announcements; it asks its caller through [`DialogueHandler`]. It knows nothing of other sessions, the kernel, or
//! time.
//!
//! A [`Session`] consists of two [directions](direction), and a [`Dialogue`] with the [state](state).
//! [`packet_handling`] connects them: it gives a packet's acknowledgement to the opposite direction, and its payload
//! through [`reading`] to the dialogue, and builds the forwarded packet. `docs/life-of-a-packet.md` has a picture.
//!
//! Invariants, whatever the peers send:
//! - Bytes are read in the order of their sequence numbers, each once, because the ends process them in this order.
//! - A segment past a gap is not forwarded, so every byte that reaches a peer has been read.
//! - A sequence number is always delivered with the same byte, however often its segment is retransmitted, because the
//!   receiver may use any of the copies.

mod activity;
mod compact;
mod dialogue;
mod direction;
mod handler;
mod interfaces;
mod packet_handling;
mod protocols;
mod reading;
mod reason;
mod state;

pub use activity::{Activity, TransferVerb};
pub use dialogue::Dialogue;
pub use direction::SequenceMap;
use direction::{Direction, UnacknowledgedData};
pub use handler::{
    Action, AnnouncedLine, Conditions, DialogueEvent, DialogueHandler, RefusedLine, SessionLimit,
};
pub use interfaces::{Interfaces, RouteQuestion, Side};
pub use packet_handling::{
    Acknowledgement, DropReason, ForwardAction, ForwardPlan, TrailingSegment,
};
pub use reason::RefusalReason;
use serde::{Deserialize, Serialize};
pub use state::Phase;
use state::{Inspection, Read};

use crate::packet::{Packet, Seq, flags};

/// Limit of a line start that is held back. Announcements are far shorter: the longest `EPRT` of RFC 2428 has 63 bytes.
const MAX_HELD: usize = 512;

/// Limit of the stored part of an unfinished line that was forwarded. Of a longer line, only this part is read.
const MAX_LINE: usize = 1024;

/// One control connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Session {
    client: Direction,
    server: Direction,
    /// The client's unacknowledged data.
    unacknowledged: UnacknowledgedData,
    /// The state of the dialogue.
    pub dialogue: Dialogue,
    /// Whether all packets were read. After a restore or downtime nobody knows, because packets may have passed unread,
    /// unless the connection is adjusted.
    #[serde(skip)]
    has_read_all: bool,
    /// Whether the client or the server has reset the connection.
    is_reset_by_peer: bool,
    /// The interfaces of both ends.
    pub interfaces: Interfaces,
}

impl Session {
    /// A connection that starts with `syn_ack`, which carries both initial sequence numbers.
    pub fn from_syn_ack(syn_ack: &Packet<'_>) -> Self {
        let mut session = Self::new(syn_ack.ack(), syn_ack.seq() + 1, Dialogue::default());
        session.server.space.observe(syn_ack);
        session.client.space.has_plain_window = !syn_ack.scales_window();
        session
    }

    /// A connection picked up mid-stream, from `packet` of `side` on.
    pub fn picked_up(side: Side, packet: &Packet<'_>) -> Self {
        match side {
            Side::Client => Self::new(packet.seq(), packet.ack(), Dialogue::picked_up()),
            Side::Server => Self::new(packet.ack(), packet.seq(), Dialogue::picked_up()),
        }
    }

    fn new(client: Seq, server: Seq, dialogue: Dialogue) -> Self {
        Self {
            client: Direction::new(client),
            server: Direction::new(server),
            unacknowledged: UnacknowledgedData::new(client),
            dialogue,
            has_read_all: true,
            is_reset_by_peer: false,
            interfaces: Interfaces::default(),
        }
    }

    /// Whether it is as this module leaves it. A record may say anything.
    pub fn is_consistent(&self) -> bool {
        self.client.is_consistent()
            && self.server.is_consistent()
            && self.unacknowledged.is_consistent()
            && self.dialogue.is_consistent()
    }

    /// Makes it one that no packets lead to.
    #[cfg(test)]
    pub fn forge(&mut self) {
        self.client.space.map.forge();
    }

    /// Whether all sent bytes were read and acknowledged, no bytes are stored, and the next line is a command or the
    /// greeting.
    pub fn is_idle(&self) -> bool {
        let is_still = |direction: &Direction| {
            let is_ordinary = direction.is_idle() && direction.has_no_extra();
            is_ordinary && !direction.space.has_gap() && direction.space.map.is_constant_offset()
        };
        self.dialogue.state.reads_all_lines()
            && self.has_read_all
            && !self.is_reset_by_peer
            && self.dialogue.is_quiescent()
            && is_still(&self.client)
            && is_still(&self.server)
            && self.unacknowledged.bytes.is_empty()
    }

    /// Resets the session and frees all stored data, so later packets could not be adjusted. While the session is
    /// remembered, they are dropped, and each is answered by a reset with the sequence number that its sender expects
    /// (RFC 9293 section 3.10.7.1).
    pub fn reset(&mut self) {
        self.client.reset();
        self.server.reset();
        self.unacknowledged = UnacknowledgedData::new(self.client.space.next);
        self.dialogue = Dialogue::picked_up();
        self.dialogue.advance(Read::Reset);
    }

    /// Whether the gateway has reset the session.
    pub fn was_reset(&self) -> bool {
        self.dialogue.state.inspection == Inspection::Reset
    }

    /// Sequence numbers for resets to `to`, taken before the session is reset. `to` expects one of the two, or a number
    /// between them, and then answers the second with a challenge ACK.
    pub fn reset_numbers(&self, to: Side) -> [Seq; 2] {
        let direction = self.direction(to.peer());
        [direction.space.acked, direction.space.map.to_delivered(direction.space.next)]
    }

    /// Whether `packet` of `from` belongs to this connection, and not to another on the same endpoints whose start was
    /// not seen.
    pub fn is_in_window(&self, from: Side, packet: &Packet<'_>) -> bool {
        !packet.has(flags::SYN) && self.direction(from).space.is_in_window(packet.seq())
    }

    /// Whether `syn_ack` is a retransmission of the SYN-ACK that started this session.
    pub fn is_syn_ack_retransmission(&self, syn_ack: &Packet<'_>) -> bool {
        (self.client.space.first, self.server.space.first) == (syn_ack.ack(), syn_ack.seq() + 1)
    }

    /// Whether the numbers of `syn_ack` are those of this live connection. A new connection hardly has both, because
    /// initial sequence numbers grow by 15,625 a millisecond (`secure_tcp_seq`).
    pub fn is_continued_by(&self, syn_ack: &Packet<'_>) -> bool {
        const NEAR: u32 = 4096;
        let is_near = |one: Seq, other: Seq| one.distance_from(other).unsigned_abs() < NEAR;
        let [client, server] = [&self.client.space, &self.server.space];
        !self.is_over()
            && is_near(syn_ack.seq() + 1, server.next)
            && is_near(syn_ack.ack(), client.map.to_delivered(client.next))
    }

    /// Whether `packet` is the client's acknowledgement of the SYN-ACK that started this session, with or without data.
    pub fn is_first_acknowledgement(&self, packet: &Packet<'_>) -> bool {
        let first = (self.client.space.first, self.server.space.first);
        packet.has(flags::ACK) && (packet.seq(), packet.ack()) == first
    }

    /// Whether every packet must be queued: sequence numbers differ, bytes are held back, much of the client's data is
    /// unacknowledged, or a probe's answer is expected.
    #[inline]
    pub fn needs_all_queued(&self) -> bool {
        // Acknowledgements show which bytes are missing, and how much of the unacknowledged data has arrived.
        let is_probing = self.client.space.is_probing() || self.server.space.is_probing();
        is_probing || self.client.has_much_unacknowledged() || self.changes_packets()
    }

    /// Whether pure acknowledgements must be queued, because a server's announcement must be
    /// [a complete reply](reading), or a `PASV` waits behind a command whose reply may be ambiguous.
    #[inline]
    pub fn needs_acknowledgements(&self) -> bool {
        self.dialogue.state.reads_all_lines() && self.dialogue.needs_windows()
    }

    /// Whether sequence numbers differ, or bytes are held back. A packet that passes unread then breaks the connection.
    #[inline]
    pub fn changes_packets(&self) -> bool {
        self.client.changes_packets() || self.server.changes_packets()
    }

    /// Stops waiting for the answer to a probe. The next segment past a gap sends another one.
    pub fn stop_probing(&mut self) {
        self.client.space.stop_probing();
        self.server.space.stop_probing();
    }

    /// Whether sequence numbers or bytes of either direction differ from what was sent.
    pub fn is_adjusted(&self) -> bool {
        !(self.client.space.map.is_identity() && self.server.space.map.is_identity())
    }

    /// Offsets between delivered and sent sequence numbers, of the client's data and of the server's.
    pub fn sequence_offsets(&self) -> [i32; 2] {
        [&self.client, &self.server].map(|direction| direction.space.map.offset())
    }

    /// Whether the connection is encrypted. `None` if nothing is inspected any more.
    pub fn encryption(&self) -> Option<bool> {
        self.dialogue.state.encryption()
    }

    /// Notes that a route leads to the interface of an end. Discards what was read from packets of another interface.
    pub fn confirm_interface(&mut self, question: RouteQuestion) {
        if self.interfaces.contradicts(question) {
            self.dialogue.note_missed(Read::Doubted, false);
        }
        self.interfaces.set_has_route(question);
    }

    /// Whether to forward a payload of `from` that came from elsewhere. Retransmissions are forwarded, with the bytes
    /// that were read before. If the client's next bytes have come several times, they count as missed.
    pub fn accepts_from_elsewhere(&mut self, from: Side, packet: &Packet<'_>) -> bool {
        let (seq, next) = (packet.seq(), self.direction(from).space.next);
        let end = seq + packet.payload().len() as u32;
        if !end.is_after(next) {
            return true;
        }
        let is_there = match from {
            _ if seq == next => self.interfaces.count_copy(from),
            Side::Client => false,
            Side::Server => self.interfaces.are_copies_enough(),
        };
        if is_there && from == Side::Client {
            self.dialogue.note_missed(Read::Doubted, false);
        }
        is_there
    }

    /// Whether no packet of the connection needs to be queued any more.
    #[inline]
    pub fn needs_none_queued(&self) -> bool {
        matches!(self.dialogue.state.inspection, Inspection::Off | Inspection::OtherProtocol)
            && !self.needs_all_queued()
    }

    /// Whether the connection was reset, or finished by both ends.
    pub fn is_over(&self) -> bool {
        self.is_reset() || (self.client.space.finished && self.server.space.finished)
    }

    /// Whether the server has sent its FIN, so that it answers nothing more.
    pub fn is_closed_by_server(&self) -> bool {
        self.server.space.finished
    }

    /// Whether one of the ends, or the gateway, has reset the connection.
    pub fn is_reset(&self) -> bool {
        self.is_reset_by_peer || self.was_reset()
    }

    /// Whether packets may have passed unread since the last restore or downtime.
    pub fn is_unconfirmed(&self) -> bool {
        !self.is_confirmed() || self.is_client_blocked()
    }

    /// Whether all packets are known to have been read.
    #[inline]
    fn is_confirmed(&self) -> bool {
        self.has_read_all || self.was_reset()
    }

    /// The sequence offset of `side`, and the first sent sequence number to which the offset applies. Only for an
    /// [idle](Self::is_idle) session.
    pub fn sequence_offset(&self, side: Side) -> (u32, Seq) {
        let space = &self.direction(side).space;
        (space.map.to_delivered(space.next) - space.next, space.unacknowledged())
    }

    /// Whether `packet` of `side` ends where the last line of `side` ends in delivered sequence numbers, although sent
    /// ones differ. On a connection just taken back, the fast path has adjusted such a packet. If the caller drops
    /// another packet, TCP retransmits it.
    pub fn has_adjusted_numbers(&self, side: Side, packet: &Packet<'_>) -> bool {
        let space = &self.direction(side).space;
        let delivered = space.map.to_delivered(space.next);
        let length = packet.payload().len() as u32;
        length > 0 && delivered != space.next && packet.seq() + length == delivered
    }

    /// Whether one end has sent a FIN.
    pub fn is_half_closed(&self) -> bool {
        self.client.space.finished || self.server.space.finished
    }

    /// Whether the connection is encrypted, so that a login cannot be seen.
    pub fn is_encrypted(&self) -> bool {
        self.encryption() == Some(true)
    }

    /// The state as one word for `ftp-alg sessions`.
    pub fn state(&self) -> &'static str {
        match (self.encryption(), self.dialogue.phase()) {
            _ if self.is_over() => "closing",
            (None, _) => "opaque",
            (Some(true), _) => "encrypted",
            (_, Phase::NotGreeted | Phase::ClientFirst | Phase::CommandFirst) => "new",
            (_, Phase::TextFirst | Phase::CommandAfterText) => "new",
            (_, Phase::NotFtp) => "not-ftp",
            (_, Phase::Greeted) => "greeted",
            (_, Phase::PickedUp | Phase::PickedUpFtp) => "picked-up",
            (_, Phase::PacketsMissed | Phase::OutOfStep) => "lost",
            (_, Phase::Verified) if self.dialogue.is_logged_in() => "logged-in",
            (_, Phase::Verified) => "login",
        }
    }

    /// Reads one word of each cache line of the session, so that they are cached afterwards.
    pub fn touch_cache_lines(&self) -> u32 {
        let numbers =
            self.client.space.next.0 ^ self.server.space.next.0 ^ self.client.space.first.0;
        numbers ^ u32::from(self.dialogue.is_logged_in()) ^ self.unacknowledged.bytes.len() as u32
    }

    /// Heap memory in bytes of unacknowledged data, rewrites and incomplete lines.
    #[inline]
    pub fn heap_size(&self) -> usize {
        self.client.heap_size()
            + self.server.heap_size()
            + compact::bytes_heap_size(&self.unacknowledged.bytes)
    }

    /// The sequence mapping of the direction that `side` sends.
    pub fn map(&self, side: Side) -> &SequenceMap {
        &self.direction(side).space.map
    }

    /// Maximum length of a delivered segment from `side`.
    pub fn mss(&self, side: Side) -> usize {
        self.direction(side).space.mss()
    }

    /// The next expected sequence number of `side`.
    pub fn next_seq(&self, side: Side) -> Seq {
        self.direction(side).space.next
    }

    /// Whether `packet` of `from` may wait in the reorder queue, for its predecessors or until it [has
    /// room](Self::lacks_room). Not if an earlier segment past the same gap did not wait. The packet's acknowledgement
    /// must be acceptable: otherwise an off-path attacker who guesses any number in the window could inject bytes.
    pub fn may_reorder(&self, from: Side, packet: &Packet<'_>) -> bool {
        let (seq, next) = (packet.seq(), self.next_seq(from));
        let lacks_room = || self.lacks_room(from, seq + packet.payload().len() as u32);
        (seq.is_after(next) || seq == next && lacks_room()) && self.may_wait(from, packet)
    }

    /// Whether `packet` of `from`, which is out of order, may be read later.
    #[cold]
    fn may_wait(&self, from: Side, packet: &Packet<'_>) -> bool {
        let (sender, receiver) = (self.direction(from), self.direction(from.peer()));
        let has_data_or_fin = !packet.payload().is_empty() || packet.has(flags::FIN);
        has_data_or_fin
            && packet.flags() & (flags::SYN | flags::RST | flags::ACK) == flags::ACK
            && sender.space.is_in_window(packet.seq())
            && receiver.space.is_acceptable_ack(packet.ack())
            && !sender.space.has_gap()
            && self.is_confirmed()
            && !(self.is_reset() || sender.space.finished || self.is_client_blocked())
    }

    /// Whether the client's data up to `end` must wait until the server has acknowledged more of it.
    #[inline]
    pub fn lacks_room(&self, from: Side, end: Seq) -> bool {
        from == Side::Client
            && self.unacknowledged.is_large()
            && end.is_after(self.client.space.next)
            && self.dialogue.state.reads_lines(Side::Client)
            && self.dialogue.phase() != Phase::PickedUp
            && !self.unacknowledged.has_room((end - self.client.space.next) as usize)
    }

    /// Whether the client's data is blocked for now.
    pub(crate) fn is_client_blocked(&self) -> bool {
        self.client.extra().is_blocked
    }

    /// The next expected sequence numbers of client and server.
    #[inline]
    pub fn read_positions(&self) -> (Seq, Seq) {
        (self.client.space.next, self.server.space.next)
    }

    /// Whether `packet` of `from` waits for the answer to a probe of the server.
    pub fn awaits_probe_answer(&self, from: Side, packet: &Packet<'_>) -> bool {
        from == Side::Client
            && self.is_client_blocked()
            && !packet.payload().is_empty()
            && self.client.space.is_in_window(packet.seq())
    }

    /// Notes that packets may have passed unread. A client could send other bytes with sequence numbers that the
    /// server has already received, so the server is probed first.
    pub fn note_downtime(&mut self) {
        self.has_read_all = false;
        if self.dialogue.state.reads_all_lines() {
            self.client.extra_mut().is_blocked = true;
            self.client.space.probe_at_next_gap();
        }
    }

    /// Unblocks the client's data, because nothing passed unread before the packet that is read next. Returns whether
    /// the data was blocked.
    pub(crate) fn unblock_client(&mut self) -> bool {
        let is_blocked = self.is_client_blocked();
        if is_blocked {
            self.client.extra_mut().is_blocked = false;
            self.client.space.end_gap();
        }
        is_blocked
    }

    fn direction(&self, side: Side) -> &Direction {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }
}
