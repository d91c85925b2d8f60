//! Two TCP ends without packet loss and a session between them: what the session reads must not depend on the boundaries
//! of segments.

use std::{fmt, net::SocketAddr};

use ftp_alg_core::{
    ftp::{Announcement, AnnouncementKind, MalformedAnnouncement, Padding},
    packet::{Packet, Seq, flags},
    session::{
        Action, AnnouncedLine, Conditions, Dialogue, DialogueEvent, DialogueHandler, ForwardAction,
        ForwardPlan, Phase, RefusalReason, RefusedLine, Session, Side,
    },
};

/// The limit of held lines. The boundaries of segments may matter for longer ones.
pub const LONGEST: usize = 512;

/// A question or an event of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Announcement(AnnouncementKind, Result<Announcement, MalformedAnnouncement>),
    Refused(RefusedLine),
    Event(DialogueEvent),
}

/// The result of one stream.
#[derive(PartialEq, Eq)]
pub struct Reading {
    pub said: Vec<Said>,
    /// The bytes that the stream's receiver got.
    pub received: Vec<u8>,
    /// Whether a `PASV` or `EPSV` is pending, and whether a login was accepted.
    pub dialogue: (bool, bool),
    /// The announcements for which the dialogue allows a pinhole.
    pub opened: Vec<Announcement>,
    /// Whether a server's announcement must be a segment of its own.
    pub is_ambiguous: bool,
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { said, received, dialogue, opened, is_ambiguous } = self;
        let received = received.escape_ascii();
        write!(f, "{dialogue:?} {said:?} {opened:?} ambiguous: {is_ambiguous} {received}")
    }
}

/// Records questions and events. Accepts every announcement that can be parsed, or refuses all.
pub struct Recorder {
    pub said: Vec<Said>,
    pub opened: Vec<Announcement>,
    /// The endpoint to announce instead; `None` refuses all announcements.
    pub endpoint: Option<SocketAddr>,
    pub refuses_auth: bool,
}

impl DialogueHandler for Recorder {
    fn on_announcement(&mut self, announced: &AnnouncedLine) -> Action {
        // It has no effect, and a line that was cut does not ask. After a pickup the engine opens nothing.
        if !announced.was_requested || announced.phase == Phase::PickedUp {
            return Action::Pass;
        }
        // Blanks before a verb that were forwarded are not always stored, so the position in the line depends on the
        // boundaries of segments. The received bytes show whether the endpoint was found.
        let mut parsed = announced.parsed.clone();
        if let Ok(announcement) = &mut parsed {
            announcement.endpoint = 0..0;
        }
        self.said.push(Said::Announcement(announced.kind, parsed.clone()));
        match (parsed, self.endpoint) {
            (Ok(announcement), Some(endpoint)) => {
                if announced.blocked_because.is_none() {
                    self.opened.push(announcement);
                }
                Action::Open { endpoint, padding: Padding::Blanks }
            }
            _ if announced.kind.is_active() => Action::Refuse(RefusalReason::Malformed),
            (Ok(_), None) => Action::Refuse(RefusalReason::ForeignAddress),
            _ => Action::Pass,
        }
    }

    fn may_renumber(&mut self) -> bool {
        true
    }

    fn on_event(&mut self, event: DialogueEvent, _: &Dialogue) {
        match event {
            DialogueEvent::LineRefused(line) => self.said.push(Said::Refused(line)),
            DialogueEvent::LimitReached(_) => {}
            event => self.said.push(Said::Event(event)),
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
    recorder: Recorder,
    session: Session,
    client: Stream,
    server: Stream,
    packet: Vec<u8>,
    out: Vec<u8>,
}

const HEADERS: usize = 40;

impl Talk {
    /// A connection after its handshake, which was seen unless `picked_up`; `first` is the client's first sequence number.
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
            Session::picked_up(Side::Client, &Packet::parse(&packet).expect("a packet"))
        } else {
            fill(&mut packet, server.first.wrapping_sub(1), first, flags::SYN | flags::ACK, b"");
            Session::from_syn_ack(&Packet::parse(&packet).expect("a packet"))
        };
        let recorder = Recorder { said: Vec::new(), opened: Vec::new(), endpoint, refuses_auth };
        Self { recorder, session, client, server, packet, out: Vec::new() }
    }

    /// `side` sends `bytes` in one segment, and retransmits what is not acknowledged.
    pub fn say(&mut self, side: Side, bytes: &[u8]) {
        let stream = self.stream(side);
        let mut from = stream.sent.len();
        stream.sent.extend_from_slice(bytes);
        loop {
            self.send(side, from);
            self.acknowledge(side);
            let stream = self.stream(side);
            // Held bytes are not acknowledged before the line is complete.
            if stream.acknowledged <= from || stream.acknowledged == stream.sent.len() {
                return;
            }
            from = stream.acknowledged;
        }
    }

    /// The result of the stream that `side` sent.
    pub fn reading_of(self, side: Side) -> Reading {
        let stream = match side {
            Side::Client => self.client,
            Side::Server => self.server,
        };
        let dialogue = self.session.dialogue;
        let is_ambiguous = dialogue.is_ambiguous();
        let dialogue = (dialogue.has_pending_passive(), dialogue.is_logged_in());
        // The byte that shows that a client does not speak FTP may arrive before its line is complete, so the order and
        // the number of events depend on the boundaries of segments.
        let mut said = self.recorder.said;
        said.sort_by_key(|said| format!("{said:?}"));
        said.dedup_by_key(|said| format!("{said:?}"));
        let (received, opened) = (stream.received, self.recorder.opened);
        Reading { said, received, dialogue, opened, is_ambiguous }
    }

    fn stream(&mut self, side: Side) -> &mut Stream {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    /// Sends the bytes of `side` from `from` on as one segment.
    fn send(&mut self, side: Side, from: usize) {
        let ack = self.stream(side.peer()).next_received();
        let stream = self.stream(side);
        let seq = stream.first.wrapping_add(from as u32); // within an input
        let payload = stream.sent[from..].to_vec();
        let outcome = self.hand(side, seq, ack, &payload);
        let (seq, payload) = match outcome.action {
            ForwardAction::Drop(_) => return,
            ForwardAction::Changed { header, payload: true } => (header.seq, &self.out[..]),
            ForwardAction::Changed { header, .. } => (header.seq, &payload[..]),
            ForwardAction::Unchanged => (Seq(seq), &payload[..]),
        };
        let received = match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        };
        let next = Seq(received.next_received());
        assert!(payload.is_empty() || !seq.is_after(next), "a gap that nothing fills");
        // A receiver accepts new bytes; retransmitted ones must be the same.
        let known = (next - seq) as usize;
        let again = known.min(payload.len());
        if !payload.is_empty() {
            let at = received.received.len() - known;
            assert_eq!(payload[..again], received.received[at..at + again]);
        }
        received.received.extend_from_slice(&payload[again..]);
    }

    /// The other end acknowledges the bytes of `side` that it has received.
    fn acknowledge(&mut self, side: Side) {
        let ack = self.stream(side).next_received();
        let seq = self.stream(side.peer()).next_sent();
        let outcome = self.hand(side.peer(), seq, ack, b"");
        let ack = match outcome.action {
            ForwardAction::Drop(_) => return,
            ForwardAction::Changed { header, .. } => header.ack,
            ForwardAction::Unchanged => Seq(ack),
        };
        let stream = self.stream(side);
        let acknowledged = (ack - Seq(stream.first)) as usize;
        assert!(
            acknowledged <= stream.sent.len(),
            "an acknowledgement of bytes that were not sent"
        );
        stream.acknowledged = stream.acknowledged.max(acknowledged);
    }

    fn hand(&mut self, side: Side, seq: u32, ack: u32, payload: &[u8]) -> ForwardPlan {
        let bits = if payload.is_empty() { flags::ACK } else { flags::ACK | flags::PSH };
        fill(&mut self.packet, seq, ack, bits, payload);
        let packet = Packet::parse(&self.packet).expect("a packet");
        let refuses_auth = self.recorder.refuses_auth;
        let conditions = Conditions { refuses_auth, ..Conditions::default() };
        self.session.inspect(side, &packet, conditions, &mut self.out, &mut self.recorder)
    }
}

impl Stream {
    /// The sequence number that its receiver expects.
    fn next_received(&self) -> u32 {
        self.first.wrapping_add(self.received.len() as u32) // within an input
    }

    fn next_sent(&self) -> u32 {
        self.first.wrapping_add(self.sent.len() as u32) // within an input
    }
}

/// Fills in the fields that a session reads; it ignores endpoints and checksums.
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

/// The endpoint to announce instead: longer or shorter than most announced endpoints, or unchanged.
pub fn endpoint(how: u8) -> SocketAddr {
    match how & 3 {
        0 => ([198, 51, 100, 101], 54321).into(),
        1 => ([1, 1, 1, 1], 257).into(),
        2 => ([10, 0, 0, 2], 1025).into(),
        _ => ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 5282).into(),
    }
}

/// Cuts a stream into segments: each byte of `cuts` is the length of one, cyclically.
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

/// Whether every line is shorter than the limit of held lines.
pub fn is_short(stream: &[u8]) -> bool {
    stream.split(|b| *b == b'\n').all(|line| line.len() < LONGEST)
}
