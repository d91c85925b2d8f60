//! What the kernel adds to the numbers of a connection by itself, so that packets which need nothing else
//! need not be seen.
//!
//! It knows one place a direction, and what to add up to it and after it (`struct nf_ct_seqadj`). It does so
//! as a packet leaves, after us: a packet that we see goes on with such numbers that those which its
//! receiver is to have come out. So the [`SequenceMap`] stays what counts; what the kernel does
//! only has to agree with it where packets pass that we do not see.

use serde::{Deserialize, Serialize};

use super::{SequenceMap, Session, Side, forwarding::Forward};
use crate::packet::{Packet, Seq, flags};

/// What is added to the numbers that one end sends; taken from the acknowledgements that it gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renumbering {
    /// The last number to which `before` is added.
    pub position: Seq,
    /// What is added up to there.
    pub before: u32,
    /// What is added after it.
    pub after: u32,
}

impl Renumbering {
    /// Whether it changes no number.
    pub fn is_identity(&self) -> bool {
        self.before == 0 && self.after == 0
    }

    /// The number to forward so that the kernel makes `wanted` of it (`nf_ct_seq_adjust`).
    fn before_delivery(&self, wanted: Seq) -> Seq {
        let late = wanted - self.after;
        if late.is_after(self.position) { late } else { wanted - self.before }
    }

    /// The acknowledgement to forward so that the kernel makes `wanted` of it.
    pub fn before_acknowledgement(&self, wanted: Seq) -> Seq {
        let late = wanted + self.after;
        if (late - self.before).is_after(self.position) { late } else { wanted + self.before }
    }

    /// Whether this does to all numbers that are not acknowledged what `wanted` does.
    fn does(&self, wanted: &Self) -> bool {
        // What is constant now was not before `position`, which is acknowledged.
        let constant = wanted.before == wanted.after && self.after == wanted.after;
        constant || self == wanted
    }
}

impl SequenceMap {
    /// The same as the kernel can do it, if it can: with no more than one rewrite that is not acknowledged.
    fn as_renumbering(&self) -> Option<Renumbering> {
        let (base, rewrites) = self.shape();
        match rewrites {
            [] => Some(Renumbering { position: Seq(0), before: base, after: base }),
            [one] => {
                let (position, after) = one.step();
                Some(Renumbering { position, before: base, after })
            }
            _ => None,
        }
    }
}

/// Of client and server.
pub type Renumberings = [Renumbering; 2];

impl Session {
    /// What the kernel would have to do; `None` if it cannot, or nothing is to be done.
    pub fn renumberings(&self) -> Option<Renumberings> {
        let numbers_change = self.client.map.shifts() || self.server.map.shifts();
        let held = self.client.is_holding() || self.server.is_holding();
        if !numbers_change || held {
            return None;
        }
        Some([self.client.map.as_renumbering()?, self.server.map.as_renumbering()?])
    }

    /// Whether the kernel does `wanted`, as far as is known.
    pub fn is_renumbered_as(&self, wanted: &Renumberings) -> bool {
        let kernel = self.renumbered_by_kernel();
        kernel.iter().zip(wanted).all(|(kernel, wanted)| kernel.does(wanted))
    }

    /// What the kernel was last told to do.
    pub fn renumbered_by_kernel(&self) -> Renumberings {
        self.unseen.renumbered().copied().unwrap_or_default()
    }

    /// The kernel does this from now on.
    pub fn set_renumbered(&mut self, renumbered: Renumberings) {
        let changes = renumbered.iter().any(|r| !r.is_identity());
        self.unseen.set_renumbered(changes.then_some(renumbered));
    }

    /// Whether packets of `side` that nobody sees have the numbers that they must have.
    pub(super) fn is_right_unseen(&self, side: Side) -> bool {
        let stream = self.peek(side);
        let kernel = self.renumbered_by_kernel()[side as usize];
        let wanted = stream.map.as_renumbering();
        !stream.is_holding() && wanted.is_some_and(|wanted| kernel.does(&wanted))
    }

    /// `forward` of a packet of `from`, so that its receiver has those numbers once the kernel has
    /// changed them.
    pub fn before_renumbering(&self, from: Side, packet: &Packet<'_>, forward: Forward) -> Forward {
        let Some(kernel) = self.unseen.renumbered() else { return forward };
        let (own, others) = (&kernel[from as usize], &kernel[from.peer() as usize]);
        let (seq, ack) = match forward {
            Forward::Not => return forward,
            Forward::Unchanged => (packet.seq(), packet.ack()),
            Forward::Changed { seq, ack, .. } => (seq, ack),
        };
        let seq = own.before_delivery(seq);
        let ack =
            if packet.has(flags::ACK) { others.before_acknowledgement(ack) } else { packet.ack() };
        let same = (seq, ack) == (packet.seq(), packet.ack());
        match forward {
            // The kernel maps the blocks of SACK as well.
            Forward::Unchanged | Forward::Changed { payload: false, .. }
                if same && self.is_right_unseen(from.peer()) =>
            {
                Forward::Unchanged
            }
            Forward::Changed { payload, flags, urgent, .. } => {
                Forward::Changed { seq, ack, payload, flags, urgent }
            }
            _ => {
                let urgent = packet.urgent().unwrap_or(0);
                Forward::Changed { seq, ack, payload: false, flags: packet.flags(), urgent }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `nf_ct_seq_adjust`, as the kernel's sources have it.
    fn delivered(seq: Seq, r: &Renumbering) -> Seq {
        if seq.is_after(r.position) { seq + r.after } else { seq + r.before }
    }

    fn acknowledged(ack: Seq, r: &Renumbering) -> Seq {
        if (ack - r.before).is_after(r.position) { ack - r.after } else { ack - r.before }
    }

    proptest! {
        /// Where packets pass unseen the kernel does what the map does; where they are seen, what it does is
        /// undone.
        #[test]
        fn the_kernel_and_the_map_agree(start: u32, at in 10u32..1000, len in 1u32..60,
                                        new in 1usize..60, base in -50i32..50) {
            let mut map = SequenceMap::default();
            let sent = |n: u32| Seq(start) + n;
            if base != 0 {
                map.replace(sent(0), 60, vec![b'x'; (60 + base) as usize]);
                map.forget_before(sent(60));
            }
            let at = at + 60;
            map.replace(sent(at), len, vec![b'y'; new]);
            let r = map.as_renumbering().unwrap();
            for n in 60..at + len + 200 {
                if n <= at || n >= at + len {
                    prop_assert_eq!(delivered(sent(n), &r), map.deliver(sent(n)));
                    let ack = map.deliver(sent(n));
                    prop_assert_eq!(acknowledged(ack, &r), sent(n));
                }
                let wanted = map.deliver(sent(n));
                // Between the two constants there may be numbers that the kernel cannot make.
                let forwarded = r.before_delivery(wanted);
                if n <= at || n >= at + len {
                    prop_assert_eq!(delivered(forwarded, &r), wanted);
                }
                let forwarded = r.before_acknowledgement(sent(n));
                if n <= at || n >= at + len {
                    prop_assert_eq!(acknowledged(forwarded, &r), sent(n));
                }
            }
            map.forget_before(sent(at + len));
            let settled = map.as_renumbering().unwrap();
            prop_assert!(r.does(&settled));
        }
    }
}
