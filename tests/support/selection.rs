//! The packet selection, as `rules/ftp-alg.nft.in` has it: which packets are queued and with which packet mark, and which
//! bypassable lines take the fast path, with an NFLOG copy for the daemon.
//!
//! Each packet is judged when it arrives, by the ct mark of that moment. Not modelled: the sign of life, the rate limit
//! of the copies, and the set of connections that had a SYN after their handshake.

use std::{collections::BTreeMap, sync::LazyLock};

use ftp_alg_core::{
    engine::{
        Answer, Attention,
        harmless::{is_harmless_command, is_harmless_reply},
    },
    packet::flags,
    session::Side,
};

use super::{Rng, segment::Segment};

/// What the packet mark of a queued packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Who sent it.
    From(Side),
    /// It took its connection off the fast path.
    EndedCalm,
    /// Its sequence number is that of a packet which did so before.
    EndedCalmBefore,
    /// Every packet of its connection is queued.
    Every,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It passes unread.
    Passes,
    /// It passes, and is read from a copy.
    Copied,
    /// The engine decides.
    Queued(Mark),
}

/// The length of the longest packet on the fast path, headers included; `None` without that rule.
static LONGEST: LazyLock<Option<usize>> = LazyLock::new(|| {
    let rules = include_str!("../../rules/ftp-alg.nft.in");
    let (_, rule) = rules.split_once("\n\t\tmeta length > ")?;
    rule.split(' ').next()?.parse().ok()
});
/// The room for one copy and its netlink attributes (`SLOT` of `src/gateway/copies.rs`, and about 100 bytes of them).
const SLOT: usize = (1 << 10) + 320 - 100;
/// How long the sets `ending` and `calm_ends` keep an element, in microseconds.
const ENDING: u64 = 60_000_000;
const CALM_END: u64 = 20_000_000;

/// The selection of one gateway.
pub struct Selection {
    /// Whether connections become calm.
    pub is_on: bool,
    /// Whether pure acknowledgements are queued although the engine does not want every packet.
    queues_acks: bool,
    /// How often a copy finds the buffer full.
    overflow: f64,
    rng: Rng,
    /// Copies that were not read.
    copies: Vec<Vec<u8>>,
    /// Whether copies were lost since the daemon last read any.
    were_lost: bool,
    /// Whether the daemon has the log group open. Without a reader the kernel makes no copy.
    pub is_read: bool,
    /// Whether the rule that keeps long packets off the fast path is taken out.
    pub takes_any_length: bool,
    /// Until when what follows a FIN is queued.
    ending: u64,
    /// The sequence numbers of the client's packets and of the server's that ended a calm, and until when they are known.
    calm_ends: [BTreeMap<u32, u64>; 2],
    /// Whether the engine has read copies since it last wrote what it knows.
    pub unwritten: bool,
    /// Whether copies were lost, or a crash took what was read of them.
    pub lost: bool,
    /// How many packets passed with a copy.
    pub passed: u64,
}

impl Selection {
    pub fn new(is_on: bool, queues_acks: bool, overflow: f64, rng: Rng) -> Self {
        Self {
            is_on,
            queues_acks: queues_acks && !is_on,
            overflow,
            rng,
            copies: Vec::new(),
            were_lost: false,
            is_read: true,
            takes_any_length: false,
            ending: 0,
            calm_ends: Default::default(),
            unwritten: false,
            lost: false,
            passed: 0,
        }
    }

    /// What becomes of a packet of `from` that arrives at `now` and has `length` bytes; `segment` is `None` if conntrack
    /// takes it for invalid. `mark` is the connection's ct mark.
    pub fn way(
        &mut self,
        now: u64,
        mark: &mut Option<Attention>,
        from: Side,
        length: usize,
        segment: Option<&Segment>,
    ) -> Way {
        let every_end = flags::FIN | flags::RST | flags::SYN;
        let (says, ends, urgent) = segment.map_or((true, false, false), |s| {
            (!s.payload.is_empty(), s.flags & every_end != 0, s.has(flags::URG))
        });
        match *mark {
            Some(Attention::None) => Way::Passes,
            Some(Attention::Every | Attention::Watched) => {
                let ended = segment.is_some_and(|segment| self.has_ended(now, from, segment));
                Way::Queued(if ended { Mark::EndedCalmBefore } else { Mark::Every })
            }
            Some(Attention::Calm) => {
                let Some(segment) = segment else { return Way::Passes };
                let payload = &segment.payload;
                let is_harmless = match from {
                    Side::Client => is_harmless_command(payload),
                    Side::Server => is_harmless_reply(payload),
                };
                let is_fin = !says && segment.flags & (every_end | flags::URG) == flags::FIN;
                let fits = self.takes_any_length || LONGEST.is_none_or(|longest| length <= longest);
                if !says && !ends && !urgent {
                    Way::Passes
                } else if (is_fin || is_harmless && !ends && !urgent) && fits {
                    Way::Copied
                } else {
                    *mark = Some(Attention::Payload);
                    self.note_end(now, segment);
                    self.calm_ends[from as usize].insert(segment.seq, now + CALM_END);
                    Way::Queued(Mark::EndedCalm)
                }
            }
            None | Some(Attention::Payload) => {
                if !(says || ends || urgent || self.queues_acks || now < self.ending) {
                    return Way::Passes;
                }
                let Some(segment) = segment else { return Way::Queued(Mark::From(from)) };
                self.note_end(now, segment);
                let ended = self.has_ended(now, from, segment);
                Way::Queued(if ended { Mark::EndedCalmBefore } else { Mark::From(from) })
            }
        }
    }

    /// Whether a segment of `from` that ended a calm begins where this one does.
    fn has_ended(&self, now: u64, from: Side, segment: &Segment) -> bool {
        self.calm_ends[from as usize].get(&segment.seq).is_some_and(|until| now < *until)
    }

    /// What follows a FIN is queued.
    fn note_end(&mut self, now: u64, segment: &Segment) {
        if segment.has(flags::FIN) {
            self.ending = now + ENDING;
        }
    }

    /// What comes back with a verdict, when it is given.
    pub fn answered(answer: Answer, mark: &mut Option<Attention>) {
        match (answer, *mark) {
            (Answer::Calm, None | Some(Attention::Payload)) => *mark = Some(Attention::Calm),
            (Answer::Payload, Some(Attention::Calm)) => *mark = Some(Attention::Payload),
            _ => {}
        }
    }

    /// `bytes` passes.
    pub fn copy(&mut self, bytes: &[u8]) {
        self.passed += 1;
        if !self.is_read {
            self.lost = true;
        } else if bytes.len() > SLOT || self.rng.chance(self.overflow) {
            (self.lost, self.were_lost) = (true, true);
        } else {
            self.copies.push(bytes.to_vec());
        }
    }

    /// Whether the daemon reads copies although no packet is queued.
    pub fn is_read_now(&mut self) -> bool {
        !self.copies.is_empty() && self.rng.chance(0.3)
    }

    /// Whether there is something to read.
    pub fn has_copies(&self) -> bool {
        !self.copies.is_empty() || self.were_lost
    }

    /// The copies, in their order, which are read now; and whether others were lost.
    pub fn read(&mut self) -> (Vec<Vec<u8>>, bool) {
        self.unwritten |= !self.copies.is_empty();
        (std::mem::take(&mut self.copies), std::mem::take(&mut self.were_lost))
    }

    /// The daemon was killed; `written` if it wrote what it knew.
    pub fn crashed(&mut self, written: bool) {
        self.lost |= !self.copies.is_empty() || self.unwritten && !written;
        self.unwritten = false;
        self.were_lost = false;
        self.copies.clear();
    }

    /// Copies that were not read are lost.
    pub fn lose(&mut self) {
        self.copies.clear();
    }

    /// Another connection begins on the same endpoints.
    pub fn begin(&mut self) {
        self.ending = 0;
        self.calm_ends = Default::default();
    }
}
