//! Packets that arrive on another interface than the one on which their sender is.

use ftp_alg_core::{
    engine::{Event, EventKind},
    policy::NetworkPolicy,
};

use super::{support::ends::Ends, *};

const LAN: u32 = 2;
const WAN: u32 = 3;
const GUESTS: u32 = 4;
const UPLINK: u32 = 5;

/// Connections between two interfaces of a kernel that has no route but those to the ends themselves.
fn ungreeted(policy: Policy) -> Ends {
    let interfaces = [LAN, WAN];
    let hands_over = policy.networks.first().map(|_| 4854);
    let mut sim = Sim::new(Scenario { interfaces, policy, hands_over, ..with(Nat::Routed) });
    sim.kernel.routes = Some(Vec::new());
    let (client, server) = (sim.client.next_number(), sim.server.next_number());
    Ends { sim, client, server }
}

fn logged_in() -> Ends {
    let mut ends = ungreeted(Policy::default());
    ends.play(LOGIN);
    ends
}

impl Ends {
    /// Sends the messages of a script. `@4-2` is for one that arrives on interface 4 and leaves by 2; if it passes, it may
    /// be repeated. `@forged` is not the sender's: it must be dropped. `@50` is so many bytes past the sender's next
    /// sequence number. `@refused` is a PORT that must be crossed out, and all others must pass as they are. Returns the
    /// number of pinholes opened so far.
    fn pass_ways(&mut self, script: &str) -> usize {
        for message in messages(script) {
            let from = if message.from_client { Client } else { Server };
            let [client, server] = self.sim.kernel.interfaces;
            let own = if message.from_client { [client, server] } else { [server, client] };
            let way = message.options.iter().find_map(|option| option.split_once('-'));
            let way = way.map(|(input, output)| [input, output].map(|one| one.parse().unwrap()));
            let [input, output] = way.unwrap_or(own);
            let past = message.options.iter().find_map(|option| option.parse().ok());
            let packet = self.packet(from, past.unwrap_or(0), 0, message.text.as_bytes());
            let meta = PacketMeta { input, output, ..PacketMeta::FORWARDED };
            let (outcome, passed) = self.sim.decided(self.sim.clock(), &packet, meta);
            if message.options.contains(&"forged") {
                assert_eq!(outcome, PacketOutcome::Drop, "{script}");
                continue;
            }
            let heard = text(Segment::checked(&passed).2.payload);
            if message.options.contains(&"refused") {
                assert!(!heard.contains("PORT"), "{script}: {heard}");
            } else {
                assert_eq!(heard, message.text, "{script}");
            }
            if way.is_some() {
                let (outcome, _) = self.sim.decided(self.sim.clock(), &packet, meta);
                assert_ne!(outcome, PacketOutcome::Drop, "{script}: repeated");
            }
            let next = if message.from_client { &mut self.client } else { &mut self.server };
            *next += message.text.len() as u32;
        }
        self.sim.kernel.opened.len()
    }

    /// A packet of `from` with these flags, `past` its next sequence number, comes by `input`.
    fn pass_flags(&mut self, from: Side, past: i32, flags: u8, input: u32) {
        let mut segment = Segment::checked(&self.packet(from, 0, 0, b"")).2;
        (segment.seq, segment.flags) = (segment.seq.wrapping_add_signed(past), flags);
        let (source, destination) = self.sim.endpoints(from);
        let meta = PacketMeta { input, output: LAN, ..PacketMeta::FORWARDED };
        self.sim.decided(self.sim.clock(), &segment.packet(source, destination), meta);
    }
}

/// The client gets at another port of its server; so does the client of a published server, or a server at another port
/// of its client. The replies of a server may take another path, to which no route leads: they pass when they are
/// retransmitted, the later ones at once, and the session goes on. The same holds for a client's commands, as after a
/// change of routes that the gateway does not see.
#[test]
fn lines_from_elsewhere_open_nothing() {
    for (case, opened) in [
        ("> EPSV < REPLY @forged @2-2 < 500 no @forged @2-2 < 500 no > EPSV < REPLY", 1),
        ("> EPSV < REPLY @forged @4-2 < 500 no @forged @4-2 < 500 no > EPSV < REPLY", 1),
        (
            "> EPSV < REPLY @forged @4-2 < REPLY @forged @50 @4-2 < REPLY @forged @4-2 < REPLY @4-2 \
             > NOOP < 200 ok @4-2 > EPSV < REPLY @4-2",
            0,
        ),
        ("> NOOP @forged @4-3 > NOOP @forged @4-3 > NOOP @4-3 > EPSV < REPLY", 0),
        ("> OWN @forged @4-3 > OWN @forged @4-3 > OWN @4-3 > EPSV < REPLY", 0),
        // The policy refuses what it forbids.
        ("> THIRD @forged @4-3 > THIRD @forged @4-3 > THIRD @refused @4-3 > EPSV < REPLY", 0),
    ] {
        let case = case.replace("OWN", "PORT 192,168,150,80,14,178");
        let case = case.replace("THIRD", "PORT 10,0,0,9,0,22").replace("REPLY", "229 x (|||3306|)");
        assert_eq!(logged_in().pass_ways(&case), opened, "{case}");
    }
}

#[test]
fn a_forged_reset_does_not_end_the_session() {
    let mut ends = logged_in();
    ends.pass_flags(Server, 0, flags::RST | flags::ACK, LAN);
    assert_eq!(ends.pass_ways("> EPSV < 229 x (|||3306|)"), 1);
}

/// A client, or one of its hosts, sends the SYN-ACK of a connection that continues the live one, and acknowledges it.
/// So it would begin a dialogue in which each line of a listing is a reply of its own.
#[test]
fn a_client_cannot_begin_its_live_connection_again() {
    for (interface, distance) in [(LAN, 0), (GUESTS, 0), (LAN, 2 << 20), (WAN, 0), (WAN, 500)] {
        let mut ends = logged_in();
        ends.play("> STAT -1 d < 211-status of d @more");
        ends.pass_flags(Server, -1 - distance, flags::SYN | flags::ACK, interface);
        let way = PacketMeta { input: LAN, output: WAN, ..PacketMeta::FORWARDED };
        ends.queue_with(Client, 0, 0_u32.wrapping_sub(distance.cast_unsigned()), b"", way);
        let opened = ends.play(
            "< 220 a @more > USER u < 331 b @more > PASS p < 230 c @more > EPSV < 229 x (|||3306|) @more",
        );
        assert_eq!(opened, 0, "{interface} {distance}");
        // The session is the same.
        ends.play("< 211 end < 331 who < 230 in < 500 what < 500 what");
        assert_eq!(ends.sim.engine().sessions.list().next().unwrap().id, 1);
    }
}

/// Where its server is now, or after its end from anywhere, a client may begin a connection again.
#[test]
fn a_new_connection_on_the_same_endpoints_may_come_another_way() {
    for has_ended in [false, true] {
        let mut sim = ungreeted(Policy::default()).sim;
        sim.play(LOGIN);
        if has_ended {
            sim.close_both();
            sim.settle();
        } else {
            sim.kernel.routes = Some(vec![(sim.translation.server.ip(), UPLINK)]);
        }
        sim.kernel.interfaces = [LAN, UPLINK];
        sim.connect_again();
        sim.play(&format!("{LOGIN}> EPSV < 229 x (|||3306|)"));
        assert_eq!(sim.kernel.opened.len(), 1);
    }
}

/// The whole server may be forged. Or its packets take a link of one direction; then all of them pass. The SYN-ACK came by
/// the WAN, but the kernel sends the client's packets elsewhere.
#[test]
fn a_server_that_is_elsewhere_opens_nothing_unless_the_policy_says_so() {
    let login = "< 220 ready > USER joe @2-5 < 230 in ";
    let epsv = "> EPSV @2-5 < 229 x (|||3306|) ";
    let refused = "> PORT 10,0,0,9,0,22 @refused @2-5";
    let mut ends = ungreeted(Policy::default());
    assert_eq!(ends.pass_ways(&format!("{login}{epsv}{epsv}{refused}")), 0);
    // A reload holds for open sessions.
    let mut ends = ungreeted(Policy::default());
    ends.pass_ways(login);
    for (policy, opened) in [(Policy::default(), 0), (any_interface(), 1)] {
        ends.sim.reload(policy);
        assert_eq!(ends.pass_ways(epsv), opened);
    }
}

/// A policy that lets the packets of the server count on any interface.
fn any_interface() -> Policy {
    let policy = Policy { any_interface: true, ..Policy::default() };
    let servers = vec!["203.0.113.9/32".parse().unwrap()];
    let network = NetworkPolicy { clients: Vec::new(), servers, inspect: true, policy };
    Policy { networks: vec![network], ..Policy::default() }
}

/// What the routing tables do not show: links of one direction, and several links in turn.
#[test]
fn lines_count_wherever_they_arrive_if_the_policy_says_so() {
    for (up, [one, other]) in [
        ("2-5", ["3-2"; 2]),
        ("2-5", ["4-2"; 2]),
        ("2-5", ["5-2", "3-2"]),
        ("2-5", ["3-2", "4-2"]),
        ("4-5", ["3-2"; 2]),
        ("2-5", ["65536-2", "131072-2"]),
    ] {
        let mut ends = ungreeted(any_interface());
        let opened = ends.pass_ways(&format!(
            "< 220 ready @{one} > USER joe @{up} < 230 in @{other} > EPSV @{up} < 229 x (|||3306|) @{one} \
             > PORT 192,168,150,80,14,178 @{up} < 200 ok @{other}"
        ));
        assert_eq!(opened, 2, "{up} {one} {other}");
        // The BPF program compares interfaces.
        assert_eq!(ends.sim.kernel.handovers, []);
        let is_report = |event: &Event| matches!(event.kind, EventKind::Elsewhere(_));
        assert!(!ends.sim.events.iter().any(is_report));
    }
}

/// A packet without payload passes, with the numbers that its receiver knows.
#[test]
fn an_acknowledgement_from_elsewhere_passes() {
    let mut ends = logged_in();
    let way = PacketMeta { input: GUESTS, output: LAN, ..PacketMeta::FORWARDED };
    assert_eq!(ends.queue_with(Server, 0, 0, b"", way), PacketOutcome::Accept);
    assert_eq!(ends.sim.engine().counters().unread.elsewhere, 1);
    assert_eq!(ends.pass_ways("> EPSV < 229 x (|||3306|)"), 1);
}

/// The other end learns of the new path first.
#[test]
fn lines_that_arrive_before_the_route_changes_are_read_after_it() {
    for (place, early, then) in [
        (0, "> EPSV @forged @5-3", "> EPSV < 229 x (|||3306|)"),
        (1, "> EPSV < 229 x (|||3306|) @forged @5-2", "< 229 x (|||3306|)"),
    ] {
        let mut ends = logged_in();
        ends.pass_ways(early);
        ends.sim.advance(Duration::from_millis(200));
        let own = [ends.sim.translation.client, ends.sim.translation.server][place];
        ends.sim.kernel.routes = Some(vec![(own.ip(), UPLINK)]);
        ends.sim.kernel.interfaces[place] = UPLINK;
        assert_eq!(ends.pass_ways(then), 1, "{early}");
    }
}

#[test]
fn a_flood_asks_the_kernel_ten_times_a_second() {
    let mut ends = logged_in();
    let way = PacketMeta { input: GUESTS, output: LAN, ..PacketMeta::FORWARDED };
    for lookups in 1..20 {
        for _ in 0..100 {
            let outcome = ends.queue_with(Server, 1, 0, b"229 x (|||3306|)\r\n", way);
            assert_eq!(outcome, PacketOutcome::Drop);
        }
        assert_eq!(ends.sim.kernel.route_lookups, lookups);
        ends.sim.advance(Duration::from_millis(100));
    }
    let is_report = |event: &&Event| matches!(event.kind, EventKind::Elsewhere(_));
    assert_eq!(ends.sim.events.iter().filter(is_report).count(), 1);
}
