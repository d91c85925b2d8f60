//! The engine with a kernel that only takes notes: one dialogue, packet by packet.

use std::net::IpAddr;

use etherparse::PacketBuilder;

use super::*;

/// Notes what it was asked for; masquerades as it is told.
#[derive(Default)]
struct Notes {
    translation: Option<Translation>,
    open: Vec<Pinhole>,
    injected: Vec<Vec<u8>>,
    attention: Option<Attention>,
    /// Conntrack was flushed, and no packet has passed since.
    forgot: bool,
}

impl Kernel for Notes {
    fn translation(
        &mut self,
        _: SocketAddr,
        _: SocketAddr,
    ) -> Result<Option<Translation>, KernelError> {
        Ok(self.translation.filter(|_| !self.forgot))
    }

    fn open(&mut self, opening: &Opening<'_>) -> Result<(), KernelError> {
        self.open.push(*opening.pinhole);
        Ok(())
    }

    fn close(&mut self, pinhole: &Pinhole) -> Result<(), KernelError> {
        self.open.retain(|p| p != pinhole);
        Ok(())
    }

    fn attend(&mut self, _: &Translation, attention: Attention) -> Result<(), KernelError> {
        if self.forgot {
            return Err(KernelError::Unknown);
        }
        self.attention = Some(attention);
        Ok(())
    }

    fn inject(&mut self, packet: &[u8]) -> Result<(), KernelError> {
        self.injected.push(packet.to_vec());
        Ok(())
    }
}

/// A conversation over a gateway: both ends count what they sent, and what reached them.
struct Conversation {
    engine: Engine,
    kernel: Notes,
    now: Instant,
    client: SocketAddr,
    server: SocketAddr,
    next: [u32; 2],
    received: [u32; 2],
}

impl Conversation {
    fn masqueraded() -> Self {
        Self::through(Engine::new(Policy::default(), Checksums::Verify), "192.168.150.80")
    }

    fn through(engine: Engine, client: &str) -> Self {
        let client = SocketAddr::new(client.parse().unwrap(), 1035);
        let server = "203.0.113.9:21".parse().unwrap();
        let translation = Translation {
            client,
            client_external: "198.51.100.1:1035".parse().unwrap(),
            server,
            server_external: server,
        };
        let kernel = Notes { translation: Some(translation), ..Notes::default() };
        let now = Instant::now();
        let (next, received) = ([100, 500], [500, 100]);
        let mut this = Self { engine, kernel, now, client, server, next, received };
        let syn_ack = this.build(Side::Server, 499, b"", true);
        assert_eq!(this.hand(&syn_ack).0, Verdict::Accept);
        this
    }

    fn logged_in() -> Self {
        Self::masqueraded().log_in()
    }

    fn log_in(mut self) -> Self {
        for (side, line) in [
            (Side::Server, "220 ready\r\n"),
            (Side::Client, "USER joe\r\n"),
            (Side::Server, "331 password\r\n"),
            (Side::Client, "PASS x\r\n"),
            (Side::Server, "230 in\r\n"),
        ] {
            assert_eq!(self.say(side, line), (Verdict::Accept, line.to_owned()));
        }
        self
    }

    fn build(&self, side: Side, seq: u32, payload: &[u8], syn: bool) -> Vec<u8> {
        let (from, to, me) = match side {
            Side::Client => (self.client, self.server, 0),
            Side::Server => (self.server, self.client, 1),
        };
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), to.ip()) else { panic!() };
        let builder = PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
            .tcp(from.port(), to.port(), seq, 512)
            .ack(self.received[me]);
        let builder = if syn { builder.syn() } else { builder };
        let mut bytes = Vec::new();
        builder.write(&mut bytes, payload).unwrap();
        bytes
    }

    fn hand(&mut self, packet: &[u8]) -> (Verdict, String) {
        let mut out = Vec::new();
        let verdict = self.engine.packet(self.now, packet, &mut self.kernel, &mut out);
        let seen = if verdict == Verdict::Replace { &out } else { packet };
        let seen = Packet::parse(seen).unwrap();
        let payload = seen.payload().to_vec();
        if verdict != Verdict::Drop && !payload.is_empty() {
            let receiver = usize::from(seen.source() == self.client);
            self.received[receiver] = seen.seq().0 + payload.len() as u32;
        }
        self.engine.settle(&mut self.kernel);
        (verdict, String::from_utf8(payload).unwrap())
    }

    fn say(&mut self, side: Side, text: &str) -> (Verdict, String) {
        let me = usize::from(side == Side::Server);
        let packet = self.build(side, self.next[me], text.as_bytes(), false);
        self.next[me] += text.len() as u32;
        self.hand(&packet)
    }
}

#[test]
fn the_slacksite_port_is_rewritten_and_leads_back() {
    let mut talk = Conversation::logged_in();
    let (verdict, line) = talk.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    assert_eq!((verdict, &*line), (Verdict::Replace, "PORT 198,51,100,1,14,178\r\n"));
    assert_eq!(
        talk.kernel.open,
        [Pinhole {
            initiator: "203.0.113.9".parse().unwrap(),
            arrival: "198.51.100.1:3762".parse().unwrap(),
            target: "192.168.150.80:3762".parse().unwrap(),
            source: "203.0.113.9".parse().unwrap(),
        }]
    );
    assert_eq!(talk.kernel.attention, Some(Attention::Every));
    assert_eq!(talk.engine.counters().rewrites, 1);
}

#[test]
fn a_refused_announcement_closes_its_pinhole() {
    let mut talk = Conversation::logged_in();
    talk.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    talk.say(Side::Server, "500 no\r\n");
    assert!(talk.kernel.open.is_empty() && talk.engine.pinholes().next().is_none());
}

#[test]
fn an_unused_pinhole_ends_at_its_deadline() {
    let mut talk = Conversation::logged_in();
    talk.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    let deadline = talk.now + Duration::from_secs(30);
    assert_eq!(talk.engine.expire(talk.now, &mut talk.kernel), Some(deadline));
    assert_eq!(talk.engine.expire(deadline, &mut talk.kernel), None);
    assert!(talk.kernel.open.is_empty());
}

#[test]
fn a_cut_announcement_is_held_and_acknowledged() {
    let mut talk = Conversation::logged_in();
    assert_eq!(talk.say(Side::Client, "PO"), (Verdict::Replace, String::new()));
    let acknowledgement = Packet::parse(&talk.kernel.injected[0]).unwrap();
    assert_eq!(acknowledgement.source(), talk.server);
    assert_eq!(acknowledgement.destination(), talk.client);
    assert_eq!(acknowledgement.ack(), Seq(talk.next[0]));
    assert_eq!(acknowledgement.seq(), Seq(talk.next[1]));
    let (_, line) = talk.say(Side::Client, "RT 192,168,150,80,14,178\r\n");
    assert_eq!(line, "PORT 198,51,100,1,14,178\r\n");
}

#[test]
fn other_protocols_are_left_alone_for_good() {
    let mut talk = Conversation::masqueraded();
    talk.say(Side::Server, "220 ready\r\n");
    assert_eq!(talk.say(Side::Client, "POST / HTTP/1.1\r\n").0, Verdict::Accept);
    assert_eq!(talk.kernel.attention, Some(Attention::None));
    assert_eq!(talk.say(Side::Client, "PORT 192,168,150,80,14,178\r\n").0, Verdict::Accept);
    assert!(talk.kernel.open.is_empty());
}

#[test]
fn engines_beside_each_other_give_out_a_port_once_and_number_sessions_in_one_row() {
    let mut first = Conversation::logged_in();
    let mut second = Conversation::through(first.engine.beside(), "192.168.150.81").log_in();
    assert_eq!(second.engine.sessions().next().unwrap().id, 2);
    first.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    first.kernel.open.clear(); // a connection used it up
    second.say(Side::Client, "PORT 192,168,150,81,14,178\r\n");
    let [pinhole] = second.kernel.open[..] else { panic!("{:?}", second.kernel.open) };
    assert_eq!(pinhole.target, "192.168.150.81:3762".parse().unwrap());
    assert_ne!(pinhole.arrival.port(), 3762, "closing one would close the other");
    first.say(Side::Server, "500 no\r\n");
    second.say(Side::Server, "200 ok\r\n");
    second.say(Side::Client, "PORT 192,168,150,81,14,178\r\n");
    assert_eq!(second.kernel.open.last().unwrap().arrival.port(), 3762, "free again");
}

#[test]
fn a_clients_limit_holds_over_engines_beside_each_other() {
    let policy = Policy { max_pinholes_per_client: 1, ..Policy::default() };
    let engine = Engine::new(policy, Checksums::Verify);
    let mut second = Conversation::through(engine.beside(), "192.168.150.80").log_in();
    let mut first = Conversation::through(engine, "192.168.150.80").log_in();
    first.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    second.say(Side::Client, "PORT 192,168,150,80,14,179\r\n");
    assert_eq!((first.kernel.open.len(), second.kernel.open.len()), (1, 0));
    assert_eq!(second.engine.counters().pinholes_refused, 1);
}

#[test]
fn a_flushed_conntrack_is_told_again_what_a_connection_needs() {
    let mut talk = Conversation::logged_in();
    talk.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    assert_eq!(talk.kernel.attention.take(), Some(Attention::Every));
    (talk.kernel.forgot, talk.now) = (true, talk.now + REMINDER);
    let (verdict, line) = talk.say(Side::Client, "NOOP\r\n");
    assert_eq!((verdict, &*line), (Verdict::Replace, "NOOP\r\n"), "it goes on");
    talk.kernel.forgot = false;
    talk.say(Side::Server, "200 ok\r\n");
    assert_eq!(talk.kernel.attention, Some(Attention::Every));
    assert_eq!(talk.engine.counters().errors, 0);
}

#[test]
fn nothing_is_announced_while_the_translation_is_not_known() {
    let mut talk = Conversation::logged_in();
    talk.kernel.forgot = true;
    let (_, line) = talk.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    assert!(line.starts_with("XXXX "), "{line}");
    assert!(talk.kernel.open.is_empty());
    talk.kernel.forgot = false;
    talk.say(Side::Server, "500 what?\r\n");
    let (_, line) = talk.say(Side::Client, "PORT 192,168,150,80,14,178\r\n");
    assert_eq!(line, "PORT 198,51,100,1,14,178\r\n");
}

#[test]
fn what_is_held_while_conntrack_knows_nothing_is_not_lost() {
    let mut talk = Conversation::logged_in();
    talk.kernel.forgot = true;
    assert_eq!(talk.say(Side::Client, "PO"), (Verdict::Replace, String::new()));
    assert!(talk.kernel.injected.is_empty());
    talk.kernel.forgot = false;
    talk.next[0] -= 2;
    assert_eq!(talk.say(Side::Client, "PO"), (Verdict::Replace, String::new()), "sent again");
    assert_eq!(talk.kernel.injected.len(), 1);
    assert_eq!(talk.kernel.attention, Some(Attention::Every));
    let (_, line) = talk.say(Side::Client, "RT 192,168,150,80,14,178\r\n");
    assert_eq!(line, "PORT 198,51,100,1,14,178\r\n");
}
