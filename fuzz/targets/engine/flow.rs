//! One direction of a control connection: what its sender sent, and what its receiver was given.

use ftp_alg_core::packet::{Seq, flags};

use super::segment::Segment;

/// Of more than this nothing is noted.
const LONGEST: i32 = 1 << 14;
/// An engine believes no acknowledgement that is farther away.
const FARTHEST: i32 = (1 << 20) + LONGEST;
/// What stands in the stream for a FIN.
const FIN: u16 = 256;

/// One direction.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    /// The number of the first byte.
    pub first: u32,
    /// What its sender says, with a FIN.
    pub sent: Vec<u16>,
    /// What its receiver was given first for each number.
    received: Vec<Option<u16>>,
    /// How much of it has no gap.
    complete: usize,
    /// What its receiver has acknowledged of it, truly or not.
    acknowledged: i32,
    /// What its receiver says that it has.
    pub ack: u32,
    /// Data that its sender knows to have arrived, and does not retransmit.
    pub settled: usize,
    /// Whether other bytes were sent under the same numbers.
    pub is_contradicted: bool,
    /// Whether nothing is known of it any more.
    pub is_unknown: bool,
}

impl Flow {
    pub fn new(first: u32) -> Self {
        Self { first, ack: first, ..Self::default() }
    }

    pub fn has_ended(&self) -> bool {
        self.sent.last() == Some(&FIN)
    }

    /// Says `bytes`; gives from where on.
    pub fn say(&mut self, bytes: &[u8]) -> usize {
        let from = self.sent.len();
        if !self.has_ended() && from + bytes.len() < LONGEST as usize {
            self.sent.extend(bytes.iter().map(|b| u16::from(*b)));
        }
        from
    }

    /// Whether it says a verb that may log in, perhaps with NUL or Telnet commands in between.
    pub fn says_login(&self) -> bool {
        let said = self.sent_bytes();
        let is_verb =
            |w: &[u8]| [b"USER", b"PASS", b"ACCT"].iter().any(|verb| w.eq_ignore_ascii_case(*verb));
        said.contains(&0xff) || said.windows(4).any(is_verb)
    }

    /// Whether it says 2xx, perhaps with NUL or Telnet commands in between.
    pub fn says_success(&self) -> bool {
        let said = self.sent_bytes();
        said.contains(&0xff) || said.windows(2).any(|w| w[0] == b'2' && w[1].is_ascii_digit())
    }

    /// Whether it says 230, which is a login as a greeting as well.
    pub fn says_230(&self) -> bool {
        self.sent_bytes().windows(3).any(|w| w == b"230")
    }

    fn sent_bytes(&self) -> Vec<u8> {
        self.sent.iter().filter_map(|b| u8::try_from(*b).ok()).filter(|b| *b != 0).collect()
    }

    pub fn end(&mut self) -> usize {
        let from = self.sent.len();
        if !self.has_ended() {
            self.sent.push(FIN);
        }
        from
    }

    /// The segment of what was said from `from` up to `to`.
    pub fn segment(&self, from: usize, to: usize) -> Segment {
        let said = &self.sent[from..to];
        let fin = if said.last() == Some(&FIN) { flags::FIN } else { 0 };
        Segment {
            seq: self.first.wrapping_add(from as u32), // bounded above
            flags: flags::ACK | fin,
            payload: said.iter().filter_map(|b| u8::try_from(*b).ok()).collect(),
            ..Segment::default()
        }
    }

    /// The number after all that was said.
    pub fn next(&self) -> u32 {
        self.first.wrapping_add(self.sent.len() as u32) // bounded above
    }

    /// The receiver says that it has all that it was given.
    pub fn acknowledge(&mut self) {
        self.ack = self.first.wrapping_add(self.complete as u32); // bounded above
    }

    /// The receiver sent an acknowledgement.
    pub fn acknowledged(&mut self, ack: u32) {
        let covered = self.place(ack);
        if covered <= FARTHEST {
            self.acknowledged = self.acknowledged.max(covered);
        }
    }

    /// Whether its sender accepts segments with this acknowledgement: of nothing that was not sent (RFC 9293 section
    /// 3.10.7.4), and not too old (RFC 5961 section 5.2).
    pub fn may_acknowledge(&self, ack: u32) -> bool {
        (-FARTHEST..=self.sent.len() as i32).contains(&self.place(ack)) // bounded above
    }

    /// The sender was given the acknowledgement `ack`, which covers nothing that it has not sent.
    pub fn settle(&mut self, ack: u32) {
        let covered = self.place(ack);
        assert!(covered <= self.sent.len() as i32, "{ack} acknowledges too much"); // bounded above
        self.settled = self.settled.max(usize::try_from(covered).unwrap_or_default());
    }

    /// Whether every line that was said has arrived. The LF of a line without CR may be crossed out, because some server
    /// takes it for a blank.
    pub fn is_delivered(&self) -> bool {
        let (cr, lf) = (u16::from(b'\r'), u16::from(b'\n'));
        let arrived =
            self.received[..self.complete].iter().filter(|byte| **byte == Some(lf)).count();
        arrived >= self.sent.windows(2).filter(|two| *two == [cr, lf]).count()
    }

    /// The receiver was given `segment`. What it has not acknowledged must not change.
    pub fn receive(&mut self, segment: &Segment) {
        if segment.has(flags::SYN) || segment.has(flags::RST) || !segment.has(flags::ACK) {
            return;
        }
        let fin = segment.has(flags::FIN).then_some(FIN);
        let start = self.place(segment.seq);
        for (at, byte) in segment.payload.iter().map(|b| u16::from(*b)).chain(fin).enumerate() {
            let place = start.wrapping_add(at as i32); // within a packet
            if place < self.acknowledged || !(0..LONGEST).contains(&place) {
                continue;
            }
            let place = place as usize; // not negative
            if self.received.len() <= place {
                self.received.resize(place + 1, None);
            }
            match self.received[place] {
                // The end of the stream is no byte that is read.
                Some(first) if self.is_contradicted && (byte == FIN) != (first == FIN) => {}
                Some(first) if !self.is_unknown => {
                    assert_eq!(byte, first, "the byte at {place} has changed: {segment:?}");
                }
                _ => self.received[place] = Some(byte),
            }
        }
        let more = self.received.get(self.complete..).unwrap_or_default();
        self.complete += more.iter().take_while(|byte| byte.is_some()).count();
    }

    fn place(&self, number: u32) -> i32 {
        Seq(number).distance_from(Seq(self.first))
    }
}
