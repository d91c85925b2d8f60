//! A third party that knows both endpoints, but not the numbers: it forges segments outside both
//! windows, and keeps what the ends sent, to send it again much later.

use ftp_alg_core::{packet::flags, session::Side};

use super::{Rng, segment::Segment, tcp::End};

/// How many packets it keeps.
const KEPT: usize = 64;
/// Past every window of the ends, by which an off-path attacker may come near all the same.
const PAST_WINDOWS: usize = 1 << 17;
/// Past what the gateway takes for missed packets.
const FAR: usize = 1 << 21;

pub struct OffPathAttacker {
    /// How often it follows a packet.
    chance: f64,
    rng: Rng,
    retained: Vec<(Side, Vec<u8>)>,
}

impl OffPathAttacker {
    pub fn new(chance: f64, rng: Rng) -> Self {
        Self { chance, rng, retained: Vec::new() }
    }

    /// What it sends, if anything, when it sees `bytes` of `from`.
    pub fn follow(
        &mut self,
        from: Side,
        bytes: &[u8],
        client: &End,
        server: &End,
    ) -> Option<(Side, Vec<u8>)> {
        if self.chance == 0.0 {
            return None;
        }
        if self.retained.len() < KEPT {
            self.retained.push((from, bytes.to_vec()));
        } else {
            let at = self.rng.below(KEPT);
            self.retained[at] = (from, bytes.to_vec());
        }
        if !self.rng.chance(self.chance) {
            return None;
        }
        if self.rng.chance(0.3) {
            let at = self.rng.below(self.retained.len());
            return Some(self.retained[at].clone());
        }
        let (source, destination, _) = Segment::checked(bytes);
        let (side, source, destination) = match self.rng.chance(0.5) {
            true => (from, source, destination),
            false => (from.peer(), destination, source),
        };
        let (sender, receiver) = match side {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        let segment = self.forged(side, sender.next_number(), receiver.next_number());
        Some((side, segment.packet(source, destination)))
    }

    /// A segment of `side`; `seq` and `ack` are what the next genuine one has.
    fn forged(&mut self, side: Side, seq: u32, ack: u32) -> Segment {
        let none = &b""[..];
        let data =
            *self.rng.pick(&[&b"PORT 10,9,9,9,9,9\r\n"[..], b"227 (10,9,9,9,9,9)\r\n", b"P"]);
        let (flags, payload) = match self.rng.below(6) {
            0 => (flags::RST, none),
            1 => (flags::RST | flags::ACK, none),
            2 if side == Side::Server => (flags::SYN | flags::ACK, none),
            2 => (flags::SYN, none),
            3 => (flags::FIN | flags::ACK, none),
            4 => (flags::ACK, none),
            _ => (flags::ACK | flags::PSH, data),
        };
        let nearest = if flags & flags::RST != 0 { PAST_WINDOWS } else { FAR };
        let away = (nearest + self.rng.below((1 << 31) - 2 * nearest)) as u32;
        let seq =
            if self.rng.chance(0.5) { seq.wrapping_add(away) } else { seq.wrapping_sub(away) };
        let ack = match self.rng.below(3) {
            0 => ack,
            1 => ack.wrapping_add(1000), // never sent
            _ => self.rng.next() as u32,
        };
        Segment { seq, ack, flags, window: 0, payload: payload.to_vec(), ..Segment::default() }
    }
}
