//! RSTs that refuse data connections: which pinholes open again, and how often.

use super::*;

const LAN: u32 = 2;
const WAN: u32 = 3;

impl Conversation {
    /// A conversation with an open pinhole that the kernel lets a SYN consume.
    fn with_consumed_pinhole() -> Self {
        let engine = Engine::new(Policy::default(), Checksums::Verify);
        let mut talk = Self::at(engine, "192.168.150.80", [LAN, WAN]).log_in();
        let client = talk.client.ip();
        talk.gateway.kernel.routes = Some(vec![(client, LAN), (talk.server.ip(), WAN)]);
        talk.say(Side::Client, PORT);
        assert_eq!(talk.gateway.kernel.open.len(), 1);
        talk.gateway.kernel.open.clear();
        talk
    }

    /// The client's RST to a SYN of the server, from this port, on this interface. Returns whether the pinhole is open.
    fn refuse(&mut self, port: u16, input: u32) -> bool {
        self.reset(port, input, 0, Some(4711))
    }

    /// As [`refuse`](Self::refuse), with this sequence number, and this acknowledgement if there is one.
    fn reset(&mut self, port: u16, input: u32, seq: u32, ack: Option<u32>) -> bool {
        let bytes = self.rst(Side::Client, [port, 20], seq, ack);
        let meta = PacketMeta { input, output: WAN, ..PacketMeta::default() };
        let outcome = self.gateway.queued(self.now, &bytes, meta);
        assert!(matches!(outcome, PacketOutcome::Accept | PacketOutcome::Wait), "{outcome:?}");
        // It is forwarded after the kernel's answer about the route.
        let verdicts = self.gateway.verdicts().iter().map(|released| &released.verdict);
        assert!(verdicts.eq([&Verdict::Accept]));
        !self.gateway.kernel.open.is_empty()
    }
}

#[test]
fn a_refused_pinhole_opens_again_for_the_rest_of_its_time() {
    let mut talk = Conversation::with_consumed_pinhole();
    assert!(talk.refuse(3762, LAN));
    let [again] = &talk.gateway.kernel.open[..] else { panic!() };
    assert_eq!(again.target, "192.168.150.80:3762".parse().unwrap());
    talk.gateway.kernel.open.clear();
    talk.now += Duration::from_secs(31);
    assert!(!talk.refuse(3762, LAN), "after its deadline");
}

#[test]
fn a_pinhole_opens_again_a_limited_number_of_times() {
    let mut talk = Conversation::with_consumed_pinhole();
    for _ in 0..8 {
        assert!(talk.refuse(3762, LAN));
        talk.gateway.kernel.open.clear();
    }
    assert!(!talk.refuse(3762, LAN));
}

#[test]
fn an_rst_that_the_target_did_not_send_opens_nothing() {
    let mut talk = Conversation::with_consumed_pinhole();
    assert!(!talk.refuse(3763, LAN), "another port");
    assert!(!talk.refuse(3762, WAN), "from the initiator's side");
    assert_eq!(talk.gateway.engine.counters().unread.elsewhere, 1);
    assert!(talk.refuse(3762, 0), "of this machine");
}

/// A target whose handshake goes on answers a wrong acknowledgement with the number that it names (RFC 9293 section
/// 3.10.7.3), so an initiator could have any number in it, but no ACK.
#[test]
fn an_rst_that_does_not_answer_a_syn_opens_nothing() {
    let mut talk = Conversation::with_consumed_pinhole();
    assert!(!talk.reset(3762, LAN, 0, None));
    assert!(!talk.reset(3762, LAN, 4711, None));
    assert!(!talk.reset(3762, LAN, 1, Some(4711)));
    assert!(talk.refuse(3762, LAN));
}

#[test]
fn what_was_closed_does_not_open_again() {
    let denies = Policy { deny_ports: [3762..=3762].into(), ..Policy::default() };
    type Close<'a> = &'a dyn Fn(&mut Conversation);
    let closings: [(&str, Close<'_>); 4] = [
        ("refused", &|talk| drop(talk.say(Side::Server, "500 no\r\n"))),
        ("denied by a reload", &|talk| talk.set_policy(denies.clone())),
        ("replaced", &|talk| {
            talk.play("< 200 ok > PORT 192,168,150,80,14,179 < 200 ok");
        }),
        ("forgotten", &|talk| {
            let (client, server) = (talk.client, talk.server);
            talk.gateway.run(talk.now, |engine, effects| {
                engine.sessions.forget_between(client, server, effects)
            });
            talk.gateway.expire(talk.now);
        }),
    ];
    for (why, close) in closings {
        let mut talk = Conversation::with_consumed_pinhole();
        close(&mut talk);
        talk.gateway.kernel.open.clear();
        assert!(!talk.refuse(3762, LAN), "{why}");
    }
}
