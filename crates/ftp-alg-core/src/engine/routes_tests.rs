//! Packets that arrive on another interface than the one on which their sender is.

use super::*;

const LAN: u32 = 2;
const WAN: u32 = 3;
const GUESTS: u32 = 4;
const UPLINK: u32 = 5;

const REPLY: &str = "229 Entering Extended Passive Mode (|||3306|)\r\n";

impl Conversation {
    /// A conversation between two interfaces of a kernel that has no route but those to the ends themselves.
    fn between_interfaces() -> Self {
        Self::ungreeted_between_interfaces(Policy::default()).log_in()
    }

    fn ungreeted_between_interfaces(policy: Policy) -> Self {
        let engine = Engine::new(policy, Checksums::Verify);
        let mut talk = Self::at(engine, "192.168.150.80", [LAN, WAN]);
        talk.gateway.kernel.routes = Some(Vec::new());
        talk
    }

    fn add_route(&mut self, address: IpAddr, interface: u32) {
        let routes = self.gateway.kernel.routes.get_or_insert_default();
        routes.push((address, interface));
    }

    /// Somebody sends a line of `side` from `interface`, which the peer of `side` does not get. It is the next one, but
    /// for so many bytes.
    fn forge_at(&mut self, side: Side, distance: u32, line: &str, interface: u32) {
        let output = self.interfaces[index(side.peer())];
        let packet = self.packet(side, self.next[index(side)] + distance, line.as_bytes(), 0);
        let before = self.received;
        assert_eq!(self.pass_between(&packet, interface, output).0, PacketOutcome::Drop);
        self.received = before;
        assert_eq!(self.gateway.kernel.opened, 0);
    }

    fn forge(&mut self, side: Side, line: &str, interface: u32) {
        self.forge_at(side, 0, line, interface);
    }

    fn opens(&mut self, command: &str, reply: &str) {
        let opened = self.gateway.kernel.opened;
        self.say(Side::Client, command);
        self.say(Side::Server, reply);
        assert_eq!(self.gateway.kernel.opened, opened + 1);
    }
}

/// The client gets at another port of its server; so does the client of a published server, or a server at another port
/// of its client.
#[test]
fn a_forged_line_opens_nothing_and_does_not_change_the_session() {
    for interface in [LAN, GUESTS] {
        let mut talk = Conversation::between_interfaces();
        talk.play("> EPSV");
        talk.forge(Side::Server, REPLY, interface);
        talk.forge(Side::Server, "500 no\r\n", interface);
        talk.play("< 500 no");
        talk.opens("PASV\r\n", "227 Entering Passive Mode (203,0,113,9,78,52)\r\n");
    }
}

#[test]
fn a_forged_reset_does_not_end_the_session() {
    let mut talk = Conversation::between_interfaces();
    let reset = talk.next_packet(Side::Server, b"", flags::RST);
    talk.pass_between(&reset, LAN, LAN);
    talk.opens("EPSV\r\n", REPLY);
}

/// A client, or one of its hosts, sends the SYN-ACK of a connection that continues the live one, and acknowledges it.
/// So it would begin a dialogue in which each line of a listing is a reply of its own.
#[test]
fn a_client_cannot_begin_its_live_connection_again() {
    for (interface, distance) in [(LAN, 0), (GUESTS, 0), (LAN, 2 << 20), (WAN, 0), (WAN, 500)] {
        let mut talk = Conversation::between_interfaces();
        talk.play("> STAT -1 d < 211-status of d");
        let first = talk.next[1].wrapping_sub(distance);
        let syn_ack = talk.packet(Side::Server, first.wrapping_sub(1), b"", flags::SYN);
        talk.pass_between(&syn_ack, interface, LAN);
        let received = std::mem::replace(&mut talk.received[0], first);
        let acknowledgement = talk.next_packet(Side::Client, b"", 0);
        talk.pass(&acknowledgement);
        talk.received[0] = received;
        talk.play("< 220 a > USER u < 331 b > PASS p < 230 c > EPSV");
        talk.say(Side::Server, REPLY);
        assert_eq!(talk.gateway.kernel.opened, 0, "{interface} {distance}");
        // The session is the same.
        talk.play("< 211 end < 331 who < 230 in < 500 what < 500 what");
        assert_eq!(talk.gateway.engine.sessions.list().next().unwrap().id, 1);
    }
}

/// Where its server is now, or after its end from anywhere, a client may begin a connection again.
#[test]
fn a_new_connection_on_the_same_endpoints_may_come_another_way() {
    for has_ended in [false, true] {
        let mut talk = Conversation::between_interfaces();
        if has_ended {
            talk.end();
        } else {
            talk.add_route(talk.server.ip(), UPLINK);
        }
        talk.interfaces = [LAN, UPLINK];
        talk.shake_hands();
        let mut talk = talk.log_in();
        talk.opens("EPSV\r\n", REPLY);
    }
}

impl Conversation {
    /// The next line of `side` between these interfaces, as it passes.
    fn pass_next(
        &mut self,
        side: Side,
        line: &str,
        (input, output): (u32, u32),
    ) -> (PacketOutcome, String) {
        let packet = self.take_next(side, line);
        self.pass_between(&packet, input, output)
    }

    /// The next line of `side` passes unchanged, between these interfaces.
    fn pass_line(&mut self, side: Side, line: &str, between: (u32, u32)) {
        let passed = self.pass_next(side, line, between);
        assert_eq!(passed, (PacketOutcome::Accept, line.to_owned()));
    }
}

/// The whole server may be forged. Or its packets take a link of one direction; then all of them pass.
#[test]
fn a_server_that_is_elsewhere_opens_nothing() {
    let mut talk = Conversation::ungreeted_between_interfaces(Policy::default());
    // The SYN-ACK came by the WAN, but the kernel sends the client's packets elsewhere.
    let (upwards, downwards) = ((LAN, UPLINK), (WAN, LAN));
    talk.pass_line(Side::Server, "220 ready\r\n", downwards);
    for (command, reply) in
        [("USER joe\r\n", "230 in\r\n"), ("EPSV\r\n", REPLY), ("EPSV\r\n", REPLY)]
    {
        talk.pass_line(Side::Client, command, upwards);
        talk.pass_line(Side::Server, reply, downwards);
    }
    // What the policy refuses, it refuses.
    let packet = talk.next_packet(Side::Client, b"PORT 10,0,0,9,0,22\r\n", 0);
    let (_, line) = talk.pass_between(&packet, upwards.0, upwards.1);
    assert!(!line.contains("PORT"), "{line}");
    assert_eq!(talk.gateway.kernel.opened, 0);
}

/// As after a change of routes that the gateway does not see.
#[test]
fn commands_that_are_repeated_from_elsewhere_are_read_and_open_nothing_any_more() {
    for line in ["NOOP\r\n", "PORT 192,168,150,80,14,178\r\n", "PORT 10,0,0,9,0,22\r\n"] {
        let mut talk = Conversation::between_interfaces();
        talk.forge(Side::Client, line, GUESTS);
        talk.forge(Side::Client, line, GUESTS);
        let packet = talk.take_next(Side::Client, line);
        let (outcome, passed) = talk.pass_between(&packet, GUESTS, WAN);
        assert_ne!(outcome, PacketOutcome::Drop);
        // The policy refuses what it forbids.
        assert_eq!(passed == line, !line.contains("10,0,0,9"), "{passed}");
        // What was read may be repeated.
        assert_ne!(talk.pass_between(&packet, GUESTS, WAN).0, PacketOutcome::Drop);
        talk.play("> EPSV");
        talk.say(Side::Server, REPLY);
        assert_eq!(talk.gateway.kernel.opened, 0, "{line}");
    }
}

/// The replies of a server take another path, to which no route leads: they pass when they are retransmitted, the later
/// ones at once, and the session goes on.
#[test]
fn replies_from_elsewhere_pass_unread() {
    let mut talk = Conversation::between_interfaces();
    talk.forge(Side::Server, REPLY, GUESTS);
    talk.forge_at(Side::Server, 50, REPLY, GUESTS);
    talk.forge(Side::Server, REPLY, GUESTS);
    for (command, reply) in [("EPSV\r\n", REPLY), ("NOOP\r\n", "200 ok\r\n"), ("EPSV\r\n", REPLY)] {
        talk.say(Side::Client, command);
        talk.pass_line(Side::Server, reply, (GUESTS, LAN));
    }
    assert_eq!(talk.gateway.kernel.opened, 0);
}

/// A packet without payload passes, with the numbers that its receiver knows.
#[test]
fn an_acknowledgement_from_elsewhere_passes() {
    let mut talk = Conversation::between_interfaces();
    let packet = talk.next_packet(Side::Server, b"", 0);
    let (outcome, _) = talk.pass_between(&packet, GUESTS, LAN);
    assert_eq!(outcome, PacketOutcome::Accept);
    assert_eq!(talk.gateway.engine.counters().unread.elsewhere, 1);
    talk.opens("EPSV\r\n", REPLY);
}

/// The other end learns of the new path first.
#[test]
fn lines_that_arrive_before_the_route_changes_are_read_after_it() {
    for side in [Side::Client, Side::Server] {
        let mut talk = Conversation::between_interfaces();
        let (command, reply) = ("EPSV\r\n", REPLY);
        let me = usize::from(side == Side::Server);
        if side == Side::Server {
            talk.say(Side::Client, command);
        }
        talk.forge(side, if side == Side::Client { command } else { reply }, UPLINK);
        talk.now += Duration::from_millis(200);
        talk.add_route([talk.client, talk.server][me].ip(), UPLINK);
        talk.interfaces[me] = UPLINK;
        if side == Side::Client {
            talk.say(Side::Client, command);
        }
        talk.say(Side::Server, reply);
        assert_eq!(talk.gateway.kernel.opened, 1, "{side:?}");
    }
}

#[test]
fn a_flood_asks_the_kernel_ten_times_a_second() {
    let mut talk = Conversation::between_interfaces();
    for lookups in 1..20 {
        for _ in 0..100 {
            talk.forge_at(Side::Server, 1, REPLY, GUESTS);
        }
        assert_eq!(talk.gateway.kernel.route_lookups, lookups);
        talk.now += Duration::from_millis(100);
    }
    let (events, _) = talk.gateway.take_events();
    let is_report = |event: &&Event| matches!(event.kind, EventKind::Elsewhere(_));
    assert_eq!(events.iter().filter(is_report).count(), 1);
}

/// A policy that lets the packets of the server count on any interface.
fn any_interface() -> Policy {
    let policy = Policy { any_interface: true, ..Policy::default() };
    let servers = vec!["203.0.113.9/32".parse().unwrap()];
    let networks = vec![NetworkPolicy { servers, ..of_all(policy) }];
    Policy { networks, ..Policy::default() }
}

/// What the routing tables do not show: links of one direction, and several links in turn.
#[test]
fn lines_count_wherever_they_arrive_if_the_policy_says_so() {
    for (upwards, downwards) in [
        ((LAN, UPLINK), [(WAN, LAN); 2]),
        ((LAN, UPLINK), [(GUESTS, LAN); 2]),
        ((LAN, UPLINK), [(UPLINK, LAN), (WAN, LAN)]),
        ((LAN, UPLINK), [(WAN, LAN), (GUESTS, LAN)]),
        ((GUESTS, UPLINK), [(WAN, LAN), (WAN, LAN)]),
        ((LAN, UPLINK), [(1 << 16, LAN), (1 << 17, LAN)]),
    ] {
        let mut talk = Conversation::ungreeted_between_interfaces(any_interface());
        // The BPF program compares interfaces.
        talk.gateway.engine.sessions.set_uses_fast_path(true);
        // A session in both modes, in which the server's packets arrive by each of these ways in turn.
        let mut ways = downwards.into_iter().cycle();
        talk.pass_line(Side::Server, "220 ready\r\n", ways.next().unwrap());
        for (command, seen, reply) in [
            ("USER joe\r\n", "USER joe\r\n", "230 in\r\n"),
            ("EPSV\r\n", "EPSV\r\n", REPLY),
            ("PORT 192,168,150,80,14,178\r\n", "PORT 198,51,100,1,", "200 ok\r\n"),
        ] {
            let passed = [
                talk.pass_next(Side::Client, command, upwards),
                talk.pass_next(Side::Server, reply, ways.next().unwrap()),
            ];
            assert!(passed.iter().all(|(outcome, _)| *outcome != PacketOutcome::Drop));
            assert!(passed[0].1.starts_with(seen) && passed[1].1 == reply, "{passed:?}");
        }
        assert_eq!(talk.gateway.kernel.opened, 2);
        assert!(talk.gateway.kernel.changes.is_empty(), "{upwards:?} {downwards:?}");
        let (events, _) = talk.gateway.take_events();
        let is_report = |event: &Event| matches!(event.kind, EventKind::Elsewhere(_));
        assert!(!events.iter().any(is_report), "{events:?}");
    }
}

#[test]
fn a_reload_that_lets_packets_count_anywhere_holds_for_open_sessions() {
    let mut talk = Conversation::ungreeted_between_interfaces(Policy::default());
    let (upwards, downwards) = ((LAN, UPLINK), (WAN, LAN));
    talk.pass_line(Side::Server, "220 ready\r\n", downwards);
    talk.pass_line(Side::Client, "USER joe\r\n", upwards);
    talk.pass_line(Side::Server, "230 in\r\n", downwards);
    for (policy, opened) in [(Policy::default(), 0), (any_interface(), 1)] {
        talk.set_policy(policy);
        talk.pass_line(Side::Client, "EPSV\r\n", upwards);
        talk.pass_line(Side::Server, REPLY, downwards);
        assert_eq!(talk.gateway.kernel.opened, opened);
    }
}
