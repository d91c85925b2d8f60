//! Two TCP ends that lose nothing, and a session between them: what a stream says, however it is
//! cut into segments.

use std::{fmt, net::SocketAddr};

use ftp_alg_core::{
    ftp::{Announcement, Kind, Malformed, Zeros},
    packet::{Packet, Seq, flags},
    session::{
        Announced, Forward, Inspection, Known, Note, Outcome, Phase, Question, Reason, Refused,
        Ruling, Session, Side,
    },
};

/// Lines may be read otherwise when they are cut, once they are longer than is held back.
pub const LONGEST: usize = 512;

/// Something that a session said to its judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Announcement(Kind, Result<Announcement, Malformed>),
    Refused(Refused),
    Note(Note),
}

/// What a session made of a stream.
#[derive(PartialEq, Eq)]
pub struct Reading {
    pub said: Vec<Said>,
    /// What the stream's receiver was given.
    pub received: Vec<u8>,
    /// Whether a 227 or 229 would be an answer, and whether a login was accepted.
    pub dialogue: (bool, bool),
    /// What nothing bars from being opened.
    pub opened: Vec<Announcement>,
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { said, received, dialogue, opened } = self;
        write!(f, "{dialogue:?} {said:?} {opened:?} {}", received.escape_ascii())
    }
}

/// Writes down what it is asked, and opens everything that can be read, or refuses all.
pub struct Recorder {
    pub said: Vec<Said>,
    pub opened: Vec<Announcement>,
    /// What is announced instead; where there is none all is refused.
    pub endpoint: Option<SocketAddr>,
    pub refuses_auth: bool,
}

impl Recorder {
    fn rule(&mut self, announced: &Announced) -> Ruling {
        // Nothing comes of it, and of a line that was cut it is not said. The engine lets pass what comes after a pickup.
        if !announced.asked || announced.phase == Phase::Joined {
            return Ruling::Pass;
        }
        // Blanks before a verb that have passed are not always kept, so the place in what is kept depends on the cuts.
        // What the receiver gets shows whether the endpoint was found.
        let mut parsed = announced.parsed.clone();
        if let Ok(announcement) = &mut parsed {
            announcement.endpoint = 0..0;
        }
        self.said.push(Said::Announcement(announced.kind, parsed.clone()));
        match (parsed, self.endpoint) {
            (Ok(announcement), Some(endpoint)) => {
                if announced.bar.is_none() {
                    self.opened.push(announcement);
                }
                Ruling::Open { endpoint, zeros: Zeros::Three }
            }
            _ if announced.kind.is_active() => Ruling::Refuse(Reason::Malformed),
            (Ok(_), None) => Ruling::Refuse(Reason::Address),
            _ => Ruling::Pass,
        }
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::Refused(what) => self.said.push(Said::Refused(what)),
            Note::Limit(_) => {}
            note => self.said.push(Said::Note(note)),
        }
    }
}

/// One direction's stream.
#[derive(Clone, Debug, Default)]
struct Stream {
    first: u32,
    sent: Vec<u8>,
    /// How much of `sent` is acknowledged.
    acknowledged: usize,
    received: Vec<u8>,
}

/// A control connection.
pub struct Talk {
    judge: Recorder,
    session: Session,
    client: Stream,
    server: Stream,
    packet: Vec<u8>,
    out: Vec<u8>,
}

const HEADERS: usize = 40;

impl Talk {
    /// A connection whose handshake is over, and was seen unless `picked_up`; `first` is the client's first number.
    pub fn new(
        first: u32,
        endpoint: Option<SocketAddr>,
        refuses_auth: bool,
        picked_up: bool,
    ) -> Self {
        let mut packet = vec![0; HEADERS];
        packet[0] = 0x45;
        packet[9] = 6;
        packet[32] = 0x50;
        let stream = |first| Stream { first, ..Stream::default() };
        let (client, server) = (stream(first), stream(u32::MAX - 100));
        let session = if picked_up {
            fill(&mut packet, first, server.first, flags::ACK, b"");
            Session::joined(Side::Client, &Packet::parse(&packet).expect("a packet"))
        } else {
            fill(&mut packet, server.first.wrapping_sub(1), first, flags::SYN | flags::ACK, b"");
            Session::opened(&Packet::parse(&packet).expect("a packet"))
        };
        let judge = Recorder { said: Vec::new(), opened: Vec::new(), endpoint, refuses_auth };
        Self { judge, session, client, server, packet, out: Vec::new() }
    }

    /// `side` says `bytes` in one segment, and again what of it is not acknowledged.
    pub fn say(&mut self, side: Side, bytes: &[u8]) {
        let stream = self.stream(side);
        let mut from = stream.sent.len();
        stream.sent.extend_from_slice(bytes);
        loop {
            self.send(side, from);
            self.acknowledge(side);
            let stream = self.stream(side);
            // What is held back is not acknowledged before the line is whole.
            if stream.acknowledged <= from || stream.acknowledged == stream.sent.len() {
                return;
            }
            from = stream.acknowledged;
        }
    }

    /// What was made of what `side` said.
    pub fn reading_of(self, side: Side) -> Reading {
        let stream = match side {
            Side::Client => self.client,
            Side::Server => self.server,
        };
        let dialogue = self.session.dialogue();
        let dialogue = (dialogue.awaits_passive(), dialogue.is_logged_in());
        // A client is known for none of FTP with the byte that shows it, perhaps before its line is complete: the order
        // of what is told, and how often, depends on the cuts.
        let mut said = self.judge.said;
        said.sort_by_key(|said| format!("{said:?}"));
        said.dedup_by_key(|said| format!("{said:?}"));
        Reading { said, received: stream.received, dialogue, opened: self.judge.opened }
    }

    fn stream(&mut self, side: Side) -> &mut Stream {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    /// A segment of what `side` said from `from` on.
    fn send(&mut self, side: Side, from: usize) {
        let ack = self.stream(side.peer()).next_received();
        let stream = self.stream(side);
        let seq = stream.first.wrapping_add(from as u32); // within an input
        let payload = stream.sent[from..].to_vec();
        let outcome = self.hand(side, seq, ack, &payload);
        let (seq, payload) = match outcome.forward {
            Forward::Drop(_) | Forward::Asks => return,
            Forward::Changed { seq, payload: true, .. } => (seq, &self.out[..]),
            Forward::Changed { seq, .. } => (seq, &payload[..]),
            Forward::Unchanged => (Seq(seq), &payload[..]),
        };
        let received = match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        };
        let next = Seq(received.next_received());
        assert!(payload.is_empty() || !seq.is_after(next), "a gap that nothing fills");
        // A receiver takes what is new; what it has must be the same.
        let known = (next - seq) as usize;
        let again = known.min(payload.len());
        if !payload.is_empty() {
            let at = received.received.len() - known;
            assert_eq!(payload[..again], received.received[at..at + again]);
        }
        received.received.extend_from_slice(&payload[again..]);
    }

    /// The other end acknowledges what it has of what `side` said.
    fn acknowledge(&mut self, side: Side) {
        let ack = self.stream(side).next_received();
        let seq = self.stream(side.peer()).next_sent();
        let outcome = self.hand(side.peer(), seq, ack, b"");
        let ack = match outcome.forward {
            Forward::Drop(_) | Forward::Asks => return,
            Forward::Changed { ack, .. } => ack,
            Forward::Unchanged => Seq(ack),
        };
        let stream = self.stream(side);
        let acknowledged = (ack - Seq(stream.first)) as usize;
        assert!(acknowledged <= stream.sent.len(), "an acknowledgement of what was not sent");
        stream.acknowledged = stream.acknowledged.max(acknowledged);
    }

    fn hand(&mut self, side: Side, seq: u32, ack: u32, payload: &[u8]) -> Outcome {
        let bits = if payload.is_empty() { flags::ACK } else { flags::ACK | flags::PSH };
        fill(&mut self.packet, seq, ack, bits, payload);
        let packet = Packet::parse(&self.packet).expect("a packet");
        let mut pass =
            Inspection { refuses_auth: self.judge.refuses_auth, ..Inspection::default() };
        loop {
            let outcome = self.session.packet(side, &packet, &mut pass, &mut self.out);
            pass.notes.drain(..).for_each(|note| self.judge.note(note));
            match pass.request.take() {
                None => return outcome,
                Some(request) => {
                    let known = match &request.question {
                        Question::Announcement(announced) => {
                            Known::Ruling(self.judge.rule(announced))
                        }
                        Question::Lengthen => Known::Lengthen(true),
                    };
                    pass.answer = Some((request, known));
                }
            }
        }
    }
}

impl Stream {
    /// The number that its receiver expects.
    fn next_received(&self) -> u32 {
        self.first.wrapping_add(self.received.len() as u32) // within an input
    }

    fn next_sent(&self) -> u32 {
        self.first.wrapping_add(self.sent.len() as u32) // within an input
    }
}

/// A session looks at no endpoints and no checksums.
fn fill(packet: &mut Vec<u8>, seq: u32, ack: u32, bits: u8, payload: &[u8]) {
    packet.truncate(HEADERS);
    packet.extend_from_slice(payload);
    let length = packet.len() as u16; // an input is shorter
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[24..28].copy_from_slice(&seq.to_be_bytes());
    packet[28..32].copy_from_slice(&ack.to_be_bytes());
    packet[33] = bits;
    packet[34..36].copy_from_slice(&0x2000u16.to_be_bytes());
}

/// Where to cut: each byte of `cuts` is the length of a segment, in turn and over again.
pub fn segments<'a>(stream: &'a [u8], cuts: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut lengths = cuts.iter().map(|cut| usize::from(*cut).max(1)).cycle();
    let mut rest = stream;
    std::iter::from_fn(move || {
        let length = lengths.next().unwrap_or(1).min(rest.len());
        let (segment, after) = rest.split_at(length);
        rest = after;
        (!segment.is_empty()).then_some(segment)
    })
}

/// Whether no line is longer than is held back.
pub fn is_short(stream: &[u8]) -> bool {
    stream.split(|b| *b == b'\n').all(|line| line.len() < LONGEST)
}
