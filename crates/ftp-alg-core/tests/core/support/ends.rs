//! Both ends under the test's control: it chooses every segment.

use ftp_alg_core::{
    engine::{PacketMeta, PacketOutcome},
    packet::flags::{ACK, PSH},
    session::Side::{self, Client, Server},
};

use super::{
    scenario::Scenario,
    script::{Message, messages},
    segment::Segment,
    sim::Sim,
};

pub const WIDE: u16 = 30_000;

/// A logged-in connection, and the next sequence number of each end.
pub struct Ends {
    pub sim: Sim,
    pub client: u32,
    pub server: u32,
}

impl Ends {
    pub fn new(scenario: Scenario) -> Self {
        let sim = Sim::logged_in(scenario);
        let (client, server) = (sim.client.next_number(), sim.server.next_number());
        Self { sim, client, server }
    }

    /// Passes a segment of `from` without advancing its sequence number. Returns what goes on of it.
    pub fn pass(&mut self, from: Side, text: &str, flags: u8, window: u16) -> Option<Segment> {
        let (seq, ack) = match from {
            Client => (self.client, self.server),
            Server => (self.server, self.client),
        };
        let payload = text.into();
        let segment = Segment { seq, ack, flags, window, payload, ..Segment::default() };
        self.sim.forge(from, &segment)
    }

    /// Queues a packet of `from`, `seq` bytes after its next number, which acknowledges `ack` bytes that the gateway did
    /// not see.
    pub fn queue(&mut self, from: Side, seq: u32, ack: u32, payload: &[u8]) -> PacketOutcome {
        self.queue_with(from, seq, ack, payload, PacketMeta::FORWARDED)
    }

    /// As [`Self::queue`], with the metadata `how`.
    pub fn queue_with(
        &mut self,
        from: Side,
        seq: u32,
        ack: u32,
        payload: &[u8],
        how: PacketMeta,
    ) -> PacketOutcome {
        let packet = self.packet(from, seq, ack, payload);
        self.sim.decided(self.sim.clock(), &packet, how).0
    }

    /// The packet that [`Self::queue`] queues.
    pub fn packet(&self, from: Side, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
        let (own, other) = match from {
            Client => (self.client, self.server),
            Server => (self.server, self.client),
        };
        let (seq, ack, payload) = (own.wrapping_add(seq), other.wrapping_add(ack), payload.into());
        let segment = Segment { seq, ack, flags: ACK, window: WIDE, payload, ..Segment::default() };
        let (source, destination) = self.sim.endpoints(from);
        segment.packet(source, destination)
    }

    /// Sends the messages of a script and returns the number of pinholes opened so far. A number after `@` is the window, or
    /// if negative how far back the sequence number is; `@lost` gets lost before the peer; `@old` acknowledges a byte less;
    /// `@more` has no PSH, because more follows.
    pub fn play(&mut self, script: &str) -> usize {
        for Message { from_client, text, options } in messages(script) {
            let from = if from_client { Client } else { Server };
            let (mut window, mut back, mut less) = (WIDE, 0, 0);
            for option in &options {
                match *option {
                    "lost" | "more" => {}
                    "old" => less = 1,
                    number => match number.strip_prefix('-') {
                        Some(number) => back = number.parse().unwrap(),
                        None => window = number.parse().unwrap(),
                    },
                }
            }
            let flags = if options.contains(&"more") { ACK } else { ACK | PSH };
            let advance = if options.contains(&"lost") { 0 } else { text.len() as u32 };
            let (back, less) = if from == Client { (back, less) } else { (less, back) };
            (self.client, self.server) = (self.client - back, self.server - less);
            self.pass(from, &text, flags, window);
            match from {
                Client => (self.client, self.server) = (self.client + advance, self.server + less),
                Server => (self.client, self.server) = (self.client + back, self.server + advance),
            }
        }
        self.sim.kernel.opened.len()
    }
}
