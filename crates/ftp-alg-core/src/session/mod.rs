//! One control connection: stream assembly, dialogue, sequence adjustment.
//!
//! [`Session::packet`] takes each packet of the connection and says how it is to be forwarded.
//! What may be announced is not decided here but by the [`Inspection`] that is handed in. Knows nothing
//! of other sessions, of the kernel, or of time.
//!
//! Invariants, whatever the peers send:
//! - bytes are read in the order of their numbers, each once;
//! - a segment past a gap is not forwarded, so nothing reaches a peer that was not read;
//! - a number is delivered with the same byte however often its segment is sent again.

mod adjust;
mod apart;
mod copies;
mod dialogue;
mod drops;
mod ended;
mod few;
mod forwarding;
pub mod harmless;
mod inspection;
mod kept;
mod lines;
mod reading;
mod reason;
mod stream;
mod tls;
mod unanswered;
mod unseen;
mod urgent;

use std::borrow::Cow;

pub use adjust::SequenceMap;
use apart::Pushed;
use copies::Copies;
pub use dialogue::{Dialogue, Phase};
pub use drops::DropReason;
use ended::Cut;
use few::Bytes;
pub use forwarding::{Acknowledgement, Forward, Outcome, Rest};
pub use inspection::{Announced, Answers, Inspection, Limit, Note, Refused, Request, Ruling};
use kept::save_kept;
pub use reason::Reason;
use serde::{Deserialize, Serialize};
use stream::Stream;
use tls::TlsRecords;
use unseen::Unseen;
use urgent::Mark;

use crate::packet::{Packet, Seq, flags};

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The end that sends commands.
    Client,
    /// The end that sends replies.
    Server,
}

impl Side {
    /// The other end.
    pub fn peer(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// Why a connection is not read.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Unread {
    /// TLS: the records of each direction, `None` once it is plain text again.
    Encrypted { client: Option<TlsRecords>, server: Option<TlsRecords> },
    /// It is not FTP, or was lost while it was encrypted: for good.
    Opaque,
}

/// Of how much of the client's bytes that wait to be acknowledged pure acknowledgements need not be seen.
const MAX_UNSEEN: usize = 1 << 14;

/// How much of either direction may have passed unseen, as while the daemon was away.
const MAX_MISSED: u32 = 1 << 16;

/// After how many segments past a gap, one after the other, the receiver is asked what it has.
const ASKED_AFTER: u8 = 2;

/// How far numbers may be from those that come next.
const MAX_DISTANCE: u32 = 1 << 20;

fn is_near(number: Seq, next: Seq) -> bool {
    number.distance_from(next).unsigned_abs() <= MAX_DISTANCE
}

/// One control connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Session {
    client: Stream,
    server: Stream,
    /// What was read of the client's bytes from `kept_from` on and is not known to be acknowledged.
    #[serde(serialize_with = "save_kept")]
    kept: Bytes,
    kept_from: Seq,
    dialogue: Dialogue,
    /// The first numbers of client and server.
    first: (Seq, Seq),
    seldom: Option<Box<Seldom>>,
    /// Whether something that has passed is being read.
    #[serde(skip)]
    reads_passed: bool,
    cut: Cut,
    /// What may have passed since it was saved.
    #[serde(skip, default = "Unseen::of_saved")]
    unseen: Unseen,
    /// Of the packet that is being read.
    #[serde(skip)]
    pushed: Pushed,
}

/// What few connections have: in one place, as a packet's session is to be in few cache lines.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Seldom {
    /// Set if what is sent is not read as FTP.
    unread: Option<Unread>,
    /// Of what passed before it was read.
    copies: Copies,
    /// The last urgent pointer of the client that was forwarded.
    mark: Option<Mark>,
    /// The smallest window that the packets of the pending command offered, if they acknowledged all that was said.
    #[serde(skip)]
    offered: u16,
}

impl Session {
    /// A connection whose SYN-ACK is `syn_ack`: it tells both initial numbers.
    pub fn opened(syn_ack: &Packet<'_>) -> Self {
        Self::answered(syn_ack, Dialogue::default())
    }

    /// Such a connection, of which something was said before that was not read.
    pub fn opened_unread(syn_ack: &Packet<'_>) -> Self {
        Self::answered(syn_ack, Dialogue::early())
    }

    fn answered(syn_ack: &Packet<'_>, dialogue: Dialogue) -> Self {
        let mut session = Self::between(syn_ack.ack(), syn_ack.seq() + 1, dialogue);
        session.server.observe(syn_ack);
        session
    }

    /// A connection whose start was not seen, from `packet` of `side` on.
    pub fn joined(side: Side, packet: &Packet<'_>) -> Self {
        match side {
            Side::Client => Self::between(packet.seq(), packet.ack(), Dialogue::joined()),
            Side::Server => Self::between(packet.ack(), packet.seq(), Dialogue::joined()),
        }
    }

    fn between(client: Seq, server: Seq, dialogue: Dialogue) -> Self {
        Self {
            client: Stream::new(client),
            server: Stream::new(server),
            kept: Bytes::default(),
            kept_from: client,
            dialogue,
            first: (client, server),
            seldom: None,
            reads_passed: false,
            cut: Cut::No,
            unseen: Unseen::Nothing,
            pushed: Pushed::Not,
        }
    }

    /// Whether `syn_ack` is the one that this session began with, sent again.
    pub fn began_with(&self, syn_ack: &Packet<'_>) -> bool {
        self.first == (syn_ack.ack(), syn_ack.seq() + 1)
    }

    /// Whether `packet` is the client's acknowledgement of the SYN-ACK that this session began with, or
    /// the first that it says with it.
    pub fn is_confirmed_by(&self, packet: &Packet<'_>) -> bool {
        packet.has(flags::ACK) && (packet.seq(), packet.ack()) == self.first
    }

    /// Whether every packet of the connection must be seen: numbers differ, or bytes are held.
    #[inline]
    pub fn wants_every_packet(&self) -> bool {
        // Acknowledgements show what is missing, and how much of what is kept was received.
        let is_asked = self.client.gaps.max(self.server.gaps) >= ASKED_AFTER;
        let is_much = self.copies().is_some_and(Copies::is_much);
        is_asked || is_much || self.changes_packets()
    }

    /// Whether numbers differ from here on, or bytes are held: packets that are not seen would break the connection.
    #[inline]
    pub fn changes_packets(&self) -> bool {
        let is_plain = |stream: &Stream| !(stream.map.shifts() || stream.is_holding());
        !(is_plain(&self.client) && is_plain(&self.server))
    }

    /// The answer of a receiver that was asked what it has is not waited for any longer. The next segment past a gap asks
    /// again.
    pub fn stop_asking(&mut self) {
        for stream in [&mut self.client, &mut self.server] {
            stream.gaps = stream.gaps.min(ASKED_AFTER - 1);
        }
    }

    /// Whether numbers or bytes of either direction are not delivered as they are sent.
    pub fn is_adjusted(&self) -> bool {
        !(self.client.map.is_identity() && self.server.map.is_identity())
    }

    /// Whether no packet of the connection need be seen any more.
    #[inline]
    pub fn wants_no_packet(&self) -> bool {
        matches!(self.unread(), Some(Unread::Opaque)) && !self.wants_every_packet()
    }

    /// Whether the connection is over: reset, or finished by both ends.
    pub fn is_over(&self) -> bool {
        self.cut.is_cut() || (self.client.finished && self.server.finished)
    }

    /// Whether it was saved, or copies were lost, and nothing has shown yet that it goes on where it was.
    pub fn is_unconfirmed(&self) -> bool {
        self.unseen != Unseen::Nothing || self.has_lost_copies()
    }

    /// Whether one end has said its last.
    pub fn is_half_closed(&self) -> bool {
        self.client.finished || self.server.finished
    }

    /// What has been said.
    pub fn dialogue(&self) -> &Dialogue {
        &self.dialogue
    }

    /// One word for people.
    pub fn state(&self) -> &'static str {
        match (self.unread(), self.dialogue.phase()) {
            _ if self.is_over() => "closing",
            (Some(Unread::Opaque), _) => "opaque",
            (Some(Unread::Encrypted { .. }), _) => "encrypted",
            (None, Phase::Silent | Phase::Early | Phase::EarlyFeat) => "new",
            (None, Phase::NotFtp) => "not-ftp",
            (None, Phase::Greeted) => "greeted",
            (None, Phase::Joined | Phase::Answered) => "joined",
            (None, Phase::Lost) => "lost",
            (None, Phase::Verified) if self.dialogue.is_logged_in() => "logged-in",
            (None, Phase::Verified) => "login",
        }
    }

    /// Something of each of its cache lines: whoever reads it has them in the cache afterwards.
    pub fn touched(&self) -> u32 {
        let numbers = self.client.next.0 ^ self.server.next.0 ^ self.kept_from.0 ^ self.first.0.0;
        numbers ^ u32::from(self.dialogue.is_logged_in()) ^ self.kept.len() as u32
    }

    /// The mapping of the direction that `side` sends.
    pub fn map(&self, side: Side) -> &SequenceMap {
        match side {
            Side::Client => &self.client.map,
            Side::Server => &self.server.map,
        }
    }

    /// As long may a segment be that `side` is to have sent.
    pub fn longest_segment(&self, side: Side) -> usize {
        self.peek(side).longest_segment()
    }

    /// Takes a packet of `from`. A changed payload is written over `out`.
    #[inline]
    pub fn packet(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        pass: &mut Inspection,
        out: &mut Vec<u8>,
    ) -> Outcome {
        self.packet_after(false, from, packet, pass, out)
    }

    /// As [`packet`](Self::packet); if `calm`, one that ended a calm in which lines may have passed
    /// [unseen](Self::has_unseen_lines).
    pub fn packet_after(
        &mut self,
        calm: bool,
        from: Side,
        packet: &Packet<'_>,
        pass: &mut Inspection,
        out: &mut Vec<u8>,
    ) -> Outcome {
        if packet.has(flags::SYN) {
            return Forward::Unchanged.into();
        }
        if packet.has(flags::URG) {
            return self.urgent_packet(calm, from, packet, pass, out);
        }
        self.take(calm, from, packet, pass, out)
    }

    /// As [`packet_after`](Self::packet_after), of one without the SYN bit, whose urgent pointer stays as it is.
    fn take(
        &mut self,
        calm: bool,
        from: Side,
        packet: &Packet<'_>,
        pass: &mut Inspection,
        out: &mut Vec<u8>,
    ) -> Outcome {
        if self.unseen != Unseen::Nothing && !self.confirm(from, packet) {
            return Forward::Unchanged.into();
        }
        if self.is_over() && !is_near(packet.seq(), self.peek(from).next) {
            return Forward::Unchanged.into(); // of another connection, whose start was not seen
        }
        // What its receiver ignores, as a stranger made it who cannot see the numbers, counts for
        // nothing here either.
        if packet.has(flags::RST) {
            if self.obeys_reset(from, packet.seq()) {
                self.cut = Cut::Reset;
            }
            return self.renumbered(from, packet).into();
        }
        if self.peek(from).expects(packet.seq(), MAX_MISSED) {
            self.stream(from).observe(packet);
            if packet.has(flags::ACK) {
                self.acknowledged(from, packet.ack(), pass);
            }
        }
        out.clear();
        let payload = packet.payload();
        self.offers(from, packet);
        let fin = packet.has(flags::FIN);
        if payload.is_empty() && !fin {
            return self.renumbered(from, packet).into();
        }

        let seq = packet.seq();
        if calm {
            self.begins_line(from, seq, pass);
        }
        let stream = self.stream(from);
        let is_past_gap = seq.is_after(stream.next);
        // It is not known what the server has at its numbers.
        let is_barred = from == Side::Client && self.is_barred() && !payload.is_empty();
        if is_past_gap || is_barred {
            return self.gap(from, packet).into();
        }
        let reads = from == Side::Client && self.is_readable(from);
        let mut payload = if reads { self.as_read(seq, payload) } else { payload.into() };
        let stream = self.stream(from);
        let new = (stream.next - seq) as usize;
        let mut again = true;
        if new <= payload.len() && (new < payload.len() || (fin && !stream.finished)) {
            if stream.finished {
                return Forward::Drop(DropReason::AfterFin).into();
            }
            stream.gaps = 0;
            self.pushed = match Pushed::of(packet) {
                Pushed::Yes
                    if from == Side::Server
                        && self.dialogue.is_doubted()
                        && self.is_apart(packet) =>
                {
                    Pushed::Apart
                }
                pushed => pushed,
            };
            self.read_queued(from, seq, &payload, fin, pass);
            self.see_acknowledgements();
            if pass.request.is_some() {
                return Forward::Asks.into();
            }
            let read = (self.peek(from).next - seq) as usize;
            again = read == new;
            if read == 0 {
                return Forward::Drop(DropReason::LimitReached).into();
            }
            if read < payload.len() {
                payload = payload[..read].to_vec().into(); // the rest comes again
            }
        }
        if matches!(payload, Cow::Borrowed(_)) && !self.is_adjusted() {
            return Forward::Unchanged.into();
        }
        self.deliver(from, packet, payload, again, out)
    }

    /// Whether the receiver of a reset of `from` by number `seq` may obey it: only by the number
    /// that it expects (RFC 5961 section 3.2), which is one that it has not acknowledged.
    fn obeys_reset(&self, from: Side, seq: Seq) -> bool {
        let stream = self.peek(from);
        !seq.is_before(stream.unacknowledged()) && !seq.is_after(stream.next)
    }

    /// The first number of `side` that was not seen yet.
    pub fn next_of(&self, side: Side) -> Seq {
        self.peek(side).next
    }

    /// Whether what precedes `packet` of `from` may just have been overtaken by it, so that it may wait for that.
    /// Not if one before was past that gap, and did not wait. What it acknowledges must be what the other end has sent and is
    /// not known to be acknowledged: else a stranger who hits the window anywhere would have bytes read when their turn comes.
    pub fn is_early(&self, from: Side, packet: &Packet<'_>) -> bool {
        let (stream, other) = (self.peek(from), self.peek(from.peer()));
        if !packet.seq().is_after(stream.next) {
            return false;
        }
        let says = !packet.payload().is_empty() || packet.has(flags::FIN);
        let ack = packet.ack();
        let is_between_ends =
            !ack.is_before(other.acked) && !ack.is_after(other.map.deliver(other.next));
        says && packet.flags() & (flags::SYN | flags::RST | flags::ACK) == flags::ACK
            && is_near(packet.seq(), stream.next)
            && is_between_ends
            && stream.gaps == 0
            && self.unseen == Unseen::Nothing
            && !(self.cut.is_cut() || stream.finished || self.is_barred())
    }

    /// How what is sent is read, if not as FTP.
    fn unread(&self) -> Option<&Unread> {
        self.seldom.as_ref()?.unread.as_ref()
    }

    fn seldom_mut(&mut self) -> &mut Seldom {
        self.seldom.get_or_insert_default()
    }

    /// Whether what `side` sends is plain text that is read.
    fn is_readable(&self, side: Side) -> bool {
        match self.unread() {
            None => true,
            Some(Unread::Encrypted { client, server }) => match side {
                Side::Client => client.is_none(),
                Side::Server => server.is_none(),
            },
            Some(Unread::Opaque) => false,
        }
    }

    fn stream(&mut self, side: Side) -> &mut Stream {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    fn peek(&self, side: Side) -> &Stream {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    /// `by` acknowledged what the other end sent up to delivered `ack`.
    fn acknowledged(&mut self, by: Side, ack: Seq, pass: &mut Inspection) {
        let stream = self.peek(by.peer());
        let delivered = stream.map.deliver(stream.next);
        if !is_near(ack, delivered) {
            return;
        }
        if by == Side::Server {
            self.unbar(ack);
        }
        let stream = self.stream(by.peer());
        if !ack.is_after(delivered) {
            stream.acknowledged(ack);
            if by == Side::Server {
                self.forget_kept();
            }
            return;
        }
        // The receiver has bytes that were never queued here, and so what is held back, which was sent again.
        stream.stop_holding();
        let end = stream.map.acknowledge(ack);
        if self.unseen.has_lines(by.peer()) && self.unread().is_none() {
            self.skip_lines(by.peer(), end, pass);
            self.stream(by.peer()).acknowledged(ack);
        } else {
            // The queue was full, or the daemon away. Both ends go on; what the missed bytes said is not known.
            let stream = self.stream(by.peer());
            stream.skip_to(end.max(stream.next));
            stream.acknowledged(ack);
            if self.unread().is_some() {
                self.seldom_mut().unread = Some(Unread::Opaque);
            }
            self.lose(pass);
        }
    }

    /// Bytes were missed.
    fn lose(&mut self, pass: &mut Inspection) {
        let phase = self.dialogue.phase();
        self.dialogue.lose();
        if phase != self.dialogue.phase() {
            pass.note(Note::Lost);
        }
    }
}
