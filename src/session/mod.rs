//! One control connection: stream assembly, dialogue, sequence adjustment.
//!
//! [`Session::packet`] takes each packet of the connection and says how it is to be forwarded.
//! What may be announced is not decided here but by the [`Judge`] that is handed in. Knows nothing
//! of other sessions, of the kernel, or of time.
//!
//! Invariants, whatever the peers send:
//! - bytes are read in the order of their numbers, each once;
//! - a segment past a gap is not forwarded, so nothing reaches a peer that was not read;
//! - a number is delivered with the same byte however often its segment is sent again.

mod adjust;
mod dialogue;
mod judge;
mod lines;
mod stream;
mod tls;

pub use adjust::SequenceMap;
pub use dialogue::{Dialogue, Phase};
pub use judge::{Judge, Note, Refused, Ruling};
use lines::{Read, client_line, server_line};
use stream::{MAX_HELD, Stream};
use tls::TlsRecords;

use crate::{
    ftp::{Command, Text},
    packet::{Packet, Seq, flags},
};

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

/// How a packet is to be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// As it is.
    Unchanged,
    /// With other numbers, and other payload if `payload` says so (it is in the buffer that was
    /// handed in).
    Changed {
        /// The sequence number.
        seq: Seq,
        /// The acknowledgement number.
        ack: Seq,
        /// Whether the payload is the buffer's.
        payload: bool,
        /// The control bits.
        flags: u8,
        /// The urgent pointer.
        urgent: u16,
    },
    /// Not at all: its sender will send it again.
    Not,
}

/// An acknowledgement to send to the end whose bytes are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// To whom.
    pub to: Side,
    /// The other end's next number, as the addressee knows it.
    pub seq: Seq,
    /// The addressee's next number.
    pub ack: Seq,
    /// The other end's window as last advertised.
    pub window: u16,
    /// The timestamps option, where the connection uses it.
    pub timestamps: Option<(u32, u32)>,
}

/// What is to be done about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it goes on.
    pub forward: Forward,
    /// What is to be sent besides.
    pub acknowledge: Option<Acknowledgement>,
}

/// How the connection is treated.
#[derive(Clone, Debug)]
enum Mode {
    /// Both directions are read.
    Reading,
    /// TLS; per direction (client's first) its records, or `None` once it is plain text again.
    Encrypted(Box<[Option<TlsRecords>; 2]>),
    /// Nothing is read any more.
    Opaque,
}

/// How much of the client's bytes is kept until it is acknowledged, so that what is sent again is
/// what was read and no other command takes its place. More is not forwarded before that.
const MAX_KEPT: usize = 1 << 16;
/// Of how much of it pure acknowledgements need not be seen.
const MAX_UNSEEN: usize = 1 << 14;

/// How far numbers may be from those that come next.
const MAX_DISTANCE: u32 = 1 << 20;

fn is_near(number: Seq, next: Seq) -> bool {
    number.distance_from(next).unsigned_abs() <= MAX_DISTANCE
}

/// The longest unfinished Telnet command that is not held back: `IAC WILL`. A subnegotiation, which
/// no FTP end sends, is.
const MAX_TELNET: usize = 2;

/// One control connection.
#[derive(Clone, Debug)]
pub struct Session {
    client: Stream,
    server: Stream,
    dialogue: Dialogue,
    mode: Mode,
    /// The first numbers of client and server.
    first: (Seq, Seq),
    /// Whether every packet must be seen from now on.
    wants_every: bool,
    reset: bool,
}

impl Session {
    /// A connection whose SYN-ACK is `syn_ack`: it tells both initial numbers.
    pub fn opened(syn_ack: &Packet<'_>) -> Self {
        Self::answered(syn_ack, Dialogue::default())
    }

    /// Such a connection, of which something was said before that was not read.
    pub fn opened_unread(syn_ack: &Packet<'_>) -> Self {
        Self::answered(syn_ack, Dialogue::joined())
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
            dialogue,
            mode: Mode::Reading,
            first: (client, server),
            wants_every: false,
            reset: false,
        }
    }

    /// Whether `syn_ack` is the one that this session began with, sent again.
    pub fn began_with(&self, syn_ack: &Packet<'_>) -> bool {
        self.first == (syn_ack.ack(), syn_ack.seq() + 1)
    }

    /// Whether every packet of the connection must be seen: numbers differ, or bytes are held.
    pub fn wants_every_packet(&self) -> bool {
        self.wants_every
    }

    /// Whether numbers or bytes of either direction are not delivered as they are sent.
    pub fn is_adjusted(&self) -> bool {
        !(self.client.map.is_identity() && self.server.map.is_identity())
    }

    /// Whether no packet of the connection need be seen any more.
    pub fn wants_no_packet(&self) -> bool {
        matches!(self.mode, Mode::Opaque) && !self.wants_every
    }

    /// Whether the connection is over: reset, or finished by both ends.
    pub fn is_over(&self) -> bool {
        self.reset || (self.client.finished && self.server.finished)
    }

    /// What has been said.
    pub fn dialogue(&self) -> &Dialogue {
        &self.dialogue
    }

    /// One word for people.
    pub fn state(&self) -> &'static str {
        match (&self.mode, self.dialogue.phase()) {
            _ if self.is_over() => "closing",
            (Mode::Opaque, _) => "opaque",
            (Mode::Encrypted(_), _) => "encrypted",
            (Mode::Reading, Phase::Silent) => "new",
            (Mode::Reading, Phase::Greeted) => "greeted",
            (Mode::Reading, Phase::Joined) => "joined",
            (Mode::Reading, Phase::Verified) if self.dialogue.is_logged_in() => "logged-in",
            (Mode::Reading, Phase::Verified) => "login",
        }
    }

    /// The mapping of the direction that `side` sends.
    pub fn map(&self, side: Side) -> &SequenceMap {
        match side {
            Side::Client => &self.client.map,
            Side::Server => &self.server.map,
        }
    }

    /// Takes a packet of `from`. A changed payload is written over `out`.
    pub fn packet(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        judge: &mut impl Judge,
        out: &mut Vec<u8>,
    ) -> Outcome {
        if packet.has(flags::SYN) {
            return Outcome { forward: Forward::Unchanged, acknowledge: None };
        }
        // What its receiver ignores, as a stranger made it who cannot see the numbers, counts for
        // nothing here either.
        let plausible = is_near(packet.seq(), self.peek(from).next);
        if plausible {
            self.stream(from).observe(packet);
            if packet.has(flags::ACK) {
                self.acknowledged(from, packet.ack(), judge);
            }
        }
        if packet.has(flags::RST) {
            self.reset |= plausible;
            return Outcome { forward: self.renumbered(from, packet), acknowledge: None };
        }
        out.clear();
        let payload = packet.payload();
        let fin = packet.has(flags::FIN);
        if payload.is_empty() && !fin {
            return Outcome { forward: self.renumbered(from, packet), acknowledge: None };
        }

        let (seq, end) = (packet.seq(), packet.seq() + payload.len() as u32);
        let stream = self.stream(from);
        if seq.is_after(stream.next) {
            return Outcome { forward: self.gap(from, packet), acknowledge: None };
        }
        let reads = from == Side::Client && matches!(self.mode, Mode::Reading);
        let stream = self.stream(from);
        if reads && stream.contradicts(seq, payload) {
            return Outcome { forward: Forward::Not, acknowledge: None };
        }
        let new = (stream.next - seq) as usize;
        let mut again = true;
        if new <= payload.len() && (new < payload.len() || (fin && !stream.finished)) {
            if stream.map.is_full() || stream.finished || stream.kept() > MAX_KEPT {
                return Outcome { forward: Forward::Not, acknowledge: None };
            }
            stream.gaps = 0;
            again = false;
            if reads {
                stream.keep(seq + new as u32, &payload[new..]);
                // From here on acknowledgements must be seen.
                self.wants_every |= self.client.kept() > MAX_UNSEEN;
            }
            self.read(from, seq + new as u32, &payload[new..], fin, judge);
            let stream = self.stream(from);
            stream.next = end;
            if fin {
                stream.finish(end);
                stream.next = end + 1;
            }
        }
        self.deliver(from, packet, again, out)
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
    fn acknowledged(&mut self, by: Side, ack: Seq, judge: &mut impl Judge) {
        let stream = self.stream(by.peer());
        let delivered = stream.map.deliver(stream.next);
        if !is_near(ack, delivered) {
            return;
        }
        if !ack.is_after(delivered) {
            stream.acked = stream.acked.max(ack);
            stream.forget_acknowledged();
        } else if !stream.is_holding() {
            // The receiver has bytes that were never queued here: the queue was full, or the
            // daemon away. Both ends go on; what the missed bytes said is not known.
            stream.skip_to(stream.map.acknowledge(ack));
            stream.acked = ack;
            if matches!(self.mode, Mode::Encrypted(_)) {
                self.mode = Mode::Opaque;
            }
            self.dialogue.lose();
            judge.note(Note::Lost);
        }
    }

    /// A packet without payload, or one whose payload stays: only its numbers are mapped.
    fn renumbered(&self, from: Side, packet: &Packet<'_>) -> Forward {
        let seq = self.peek(from).map.deliver(packet.seq());
        let ack = self.acknowledgement_for(from, packet);
        // A SACK block may lie past a rewrite that the acknowledgement does not cover yet.
        let claims_move = self.peek(from.peer()).map.shifts();
        if seq == packet.seq() && ack == packet.ack() && !claims_move {
            return Forward::Unchanged;
        }
        let urgent = packet.urgent().unwrap_or(0);
        Forward::Changed { seq, ack, payload: false, flags: packet.flags(), urgent }
    }

    /// The acknowledgement that `packet` of `from` carries, as the other end understands it.
    fn acknowledgement_for(&self, from: Side, packet: &Packet<'_>) -> Seq {
        if !packet.has(flags::ACK) {
            return packet.ack();
        }
        self.peek(from.peer()).map.acknowledge(packet.ack())
    }

    /// A segment that starts past what was seen. Its sender will send the missing bytes first, if
    /// they are missing. If it sends this segment again, they are perhaps not: the receiver is then
    /// made to say what it has, by a segment of no length and a number just before the next, which
    /// must be answered (RFC 9293 section 3.10.7.4).
    fn gap(&mut self, from: Side, packet: &Packet<'_>) -> Forward {
        let ack = self.acknowledgement_for(from, packet);
        let stream = self.stream(from);
        stream.gaps = stream.gaps.saturating_add(1);
        if stream.gaps < 2 {
            return Forward::Not;
        }
        let seq = stream.map.deliver(stream.next) - 1;
        self.wants_every = true;
        Forward::Changed { seq, ack, payload: true, flags: flags::ACK, urgent: 0 }
    }

    /// Reads the bytes `new`, which start at `seq` and were not seen before.
    fn read(
        &mut self,
        from: Side,
        mut seq: Seq,
        mut new: &[u8],
        fin: bool,
        judge: &mut impl Judge,
    ) {
        while let Some(&first) = new.first() {
            let let_go = !matches!(self.mode, Mode::Reading) && self.peek(from).is_holding();
            if let_go {
                self.stream(from).let_go(seq, first);
            }
            match &mut self.mode {
                Mode::Opaque => return,
                Mode::Encrypted(records) => {
                    let first = records.iter().all(Option::is_some);
                    let records = &mut records[usize::from(from == Side::Server)];
                    if let Some(following) = records {
                        let Some(plain) = following.follow(new) else { return };
                        if let_go && plain == 0 {
                            // It goes on a line whose start went with its first byte.
                            self.stop_reading(judge);
                            return;
                        }
                        *records = None;
                        if first {
                            self.dialogue.resume();
                            judge.note(Note::Readable);
                        }
                        (seq, new) = (seq + plain as u32, &new[plain..]);
                    }
                }
                Mode::Reading => {}
            }
            let Some(end) = memchr::memchr(b'\n', new) else {
                self.continue_line(from, seq, new, fin, judge);
                return;
            };
            let (chunk, rest) = new.split_at(end + 1);
            self.end_line(from, seq, chunk, judge);
            (seq, new) = (seq + chunk.len() as u32, rest);
        }
    }

    fn end_line(&mut self, from: Side, seq: Seq, chunk: &[u8], judge: &mut impl Judge) {
        let stream = match from {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        };
        let (line, delivered) = stream.line_with(chunk);
        let mut read = Read::Nothing;
        let edit = match from {
            Side::Client => client_line(&mut self.dialogue, line, delivered, judge, &mut read),
            Side::Server => server_line(&mut self.dialogue, line, delivered, judge, &mut read),
        };
        stream.end_line(seq, chunk, delivered, edit);
        match read {
            Read::Nothing => {}
            Read::NotFtp => self.stop_reading(judge),
            Read::Encrypted => {
                self.mode = Mode::Encrypted(Box::new([Some(TlsRecords::default()); 2]));
                self.client.stop_reading();
                self.server.stop_reading();
                judge.note(Note::Encrypted);
            }
        }
        self.notice_changed_numbers(from);
    }

    fn continue_line(
        &mut self,
        from: Side,
        mut seq: Seq,
        mut chunk: &[u8],
        fin: bool,
        judge: &mut impl Judge,
    ) {
        if from == Side::Client && !self.client.is_holding() {
            // Telnet commands (urgent ones above all) and blanks before a command need not wait.
            let line = [self.client.line(), chunk].concat();
            let text = Text::new(&line);
            let start = match text.bytes() {
                [] if text.unfinished() <= MAX_TELNET => line.len(),
                [] => 0,
                _ => text.origin(0..1).start,
            };
            if let Some(lead) = start.checked_sub(self.client.line().len()) {
                let unfinished = text.unfinished();
                let passed = if lead == chunk.len() { unfinished } else { 0 };
                self.client.pass_over(line[..start].to_vec(), passed);
                (seq, chunk) = (seq + lead as u32, &chunk[lead..]);
            }
            if chunk.is_empty() {
                return;
            }
        }
        let stream = match from {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        };
        let before = stream.line().len();
        let mut hold = false;
        if (stream.is_holding() || before == 0) && self.dialogue.phase() != Phase::Joined {
            let line = [stream.line(), chunk].concat();
            let text = Text::new(&line);
            hold = match from {
                Side::Client => Command::may_announce(&text, judge.refuses_auth()),
                Side::Server => self.dialogue.may_announce(&text),
            };
        }
        if hold && before + chunk.len() > MAX_HELD {
            if from == Side::Client {
                judge.refused(Refused::Overlong);
                stream.cross_out(seq, chunk);
                self.notice_changed_numbers(from);
                return;
            }
            hold = false;
        }
        stream.continue_line(seq, chunk, hold && !fin);
        if stream.is_holding() {
            self.wants_every = true;
        }
        self.notice_changed_numbers(from);
    }

    /// The connection is not FTP: from here on nothing is read.
    fn stop_reading(&mut self, judge: &mut impl Judge) {
        self.mode = Mode::Opaque;
        self.client.stop_reading();
        self.server.stop_reading();
        judge.note(Note::NotFtp);
    }

    fn notice_changed_numbers(&mut self, side: Side) {
        self.wants_every |= self.peek(side).map.shifts();
    }

    /// Forwards a packet whose bytes have all been seen, perhaps all of them before, `again`.
    fn deliver(
        &mut self,
        from: Side,
        packet: &Packet<'_>,
        again: bool,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let stream = self.peek(from);
        let (seq, fin) = (packet.seq(), packet.has(flags::FIN));
        if stream.map.is_shift() {
            return Outcome { forward: self.renumbered(from, packet), acknowledge: None };
        }
        out.clear();
        if fin {
            let with_fin = [packet.payload(), &[0]].concat();
            stream.map.render(seq, &with_fin, out);
            out.pop(); // the FIN's own number
        } else {
            stream.map.render(seq, packet.payload(), out);
        }
        let mut control = packet.flags();
        let limit = stream.longest_segment();
        if out.len() > limit && out.len() > packet.payload().len() {
            // The rest follows when the receiver has acknowledged this much and the sender sends
            // again from there.
            out.truncate(limit);
            control &= !(flags::FIN | flags::PSH);
        }
        let mut delivered = stream.map.deliver(seq);
        let urgent = packet.urgent().map_or(0, |offset| {
            let shifted = stream.map.deliver(seq + u32::from(offset)) - delivered;
            u16::try_from(shifted).unwrap_or(u16::MAX)
        });
        if urgent == 0 {
            control &= !flags::URG; // the urgent byte is held back, or already delivered
        }
        let mut acknowledge = None;
        let may_acknowledge = stream.may_acknowledge_held();
        if out.is_empty() && !fin && (again || !may_acknowledge) {
            // Held back, perhaps delivered since with a later segment. Whether the receiver has all
            // that precedes is not known here, or our own acknowledgement was lost, or discarded
            // for an old timestamp; the receiver's answer to a number just before the next one
            // tells, and will be mapped to cover what is, or was, held.
            delivered = delivered - 1;
        }
        if may_acknowledge {
            acknowledge = Some(self.acknowledge_held(from, packet));
        }
        let ack = self.acknowledgement_for(from, packet);
        let forward =
            Forward::Changed { seq: delivered, ack, payload: true, flags: control, urgent };
        Outcome { forward, acknowledge }
    }

    fn acknowledge_held(&self, to: Side, packet: &Packet<'_>) -> Acknowledgement {
        let other = self.peek(to.peer());
        Acknowledgement {
            to,
            seq: other.map.deliver(other.next),
            ack: self.peek(to).next,
            window: other.window,
            timestamps: other.clock.zip(packet.timestamps().map(|(value, _)| value)),
        }
    }
}
