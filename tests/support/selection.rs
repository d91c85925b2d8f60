//! The packet selection, as `rules/ftp-alg.nft.in` has it: which packets are queued, and which harmless lines of a
//! calm connection pass at once, with a copy for the engine.
//!
//! The worker is part of the model where it gives verdicts: what was answered to a packet counts when that is
//! released, unless another of the connection was decided in between.

use ftp_alg_core::{
    engine::{
        Answer, Attention,
        harmless::{is_harmless_command, is_harmless_reply},
    },
    packet::flags,
    session::Side,
};

use super::{Rng, segment::Segment};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It passes unread.
    Passes,
    /// It passes, and is read from a copy.
    Copied,
    /// The engine decides.
    Queued,
}

/// The selection of one gateway.
pub struct Selection {
    /// Whether connections become calm.
    pub is_on: bool,
    /// Whether pure acknowledgements are queued although the engine does not want every packet.
    queues_acks: bool,
    rng: Rng,
    /// Copies that were not read.
    copies: Vec<Vec<u8>>,
    /// Whether the last packet that was queued ended the calm.
    pub ended: bool,
    /// When the connection will be calm, as a packet is released that was answered so.
    calm_at: Option<u64>,
    /// Whether the engine has read copies since it last wrote what it knows.
    pub unwritten: bool,
    /// Whether a crash took copies that were not read, or what was read of them.
    pub lost: bool,
    /// How many packets passed with a copy.
    pub passed: u64,
}

impl Selection {
    pub fn new(is_on: bool, queues_acks: bool, rng: Rng) -> Self {
        Self {
            is_on,
            queues_acks: queues_acks && !is_on,
            rng,
            copies: Vec::new(),
            ended: false,
            calm_at: None,
            unwritten: false,
            lost: false,
            passed: 0,
        }
    }

    /// What becomes at `now` of a packet of `from`; `None` if conntrack takes it for invalid. `mark` is what the
    /// connection's ct mark says.
    pub fn way(
        &mut self,
        now: u64,
        mark: &mut Option<Attention>,
        from: Side,
        segment: Option<&Segment>,
    ) -> Way {
        if self.calm_at.is_some_and(|at| at <= now) {
            self.calm_at = None;
            if !matches!(mark, Some(Attention::Every | Attention::Watched | Attention::None)) {
                *mark = Some(Attention::Calm);
            }
        }
        self.ended = false;
        let every_end = flags::FIN | flags::RST | flags::SYN;
        let (says, ends, urgent) = segment.map_or((true, false, false), |s| {
            (!s.payload.is_empty(), s.flags & every_end != 0, s.has(flags::URG))
        });
        match *mark {
            Some(Attention::None) => Way::Passes,
            Some(Attention::Every | Attention::Watched) => Way::Queued,
            Some(Attention::Calm) => {
                let Some(segment) = segment else { return Way::Passes };
                let payload = &segment.payload;
                let is_harmless = match from {
                    Side::Client => is_harmless_command(payload),
                    Side::Server => is_harmless_reply(payload),
                };
                let is_fin = !says && segment.flags & (every_end | flags::URG) == flags::FIN;
                if !says && !ends && !urgent {
                    Way::Passes
                } else if is_fin || is_harmless && !ends && !urgent {
                    Way::Copied
                } else {
                    *mark = Some(Attention::Payload);
                    self.ended = true;
                    Way::Queued
                }
            }
            None | Some(Attention::Payload) if self.queues_acks || ends || says || urgent => {
                Way::Queued
            }
            None | Some(Attention::Payload) => Way::Passes,
        }
    }

    /// `bytes` passes.
    pub fn copy(&mut self, bytes: &[u8]) {
        self.passed += 1;
        self.copies.push(bytes.to_vec());
    }

    /// Whether the daemon reads copies although no packet is queued.
    pub fn is_read_now(&mut self) -> bool {
        !self.copies.is_empty() && self.rng.chance(0.3)
    }

    /// The copies, in their order, which are read now.
    pub fn read(&mut self) -> Vec<Vec<u8>> {
        self.unwritten |= !self.copies.is_empty();
        std::mem::take(&mut self.copies)
    }

    /// What was to go with the last verdict, that is given at `release`.
    pub fn answered(&mut self, answer: Answer, release: u64) {
        self.calm_at = (answer == Answer::Calm).then_some(release);
    }

    /// The daemon was killed; `written` if it wrote what it knew.
    pub fn crashed(&mut self, written: bool) {
        self.lost |= !self.copies.is_empty() || self.unwritten && !written;
        self.unwritten = false;
        self.copies.clear();
        self.calm_at = None;
    }

    /// Copies that were not read are lost.
    pub fn lose(&mut self) {
        self.copies.clear();
    }

    /// Another connection begins on the same endpoints.
    pub fn begin(&mut self) {
        self.calm_at = None;
    }
}
