//! Connections that were picked up mid-stream. A client can cause that: its server discards a RST that conntrack and the
//! gateway take for the connection's end. Nothing is opened, and whatever may be no FTP passes unchanged.

use super::{
    support::{
        ends::{Ends, WIDE},
        ftp::eprt,
    },
    *,
};

/// A connection whose session was forgotten.
fn picked_up(scenario: &Scenario) -> Sim {
    let mut sim = Sim::logged_in(scenario.clone());
    sim.forget();
    sim
}

#[test]
fn a_command_that_the_policy_refuses_is_refused_on_a_picked_up_connection() {
    everywhere(|mut scenario| {
        scenario.client.nagle = false;
        scenario.policy.auth_tls = AuthTls::Refuse;
        let third = third(scenario.v6);
        let client = scenario.translation().client;
        for line in [
            third.clone(),
            third.to_lowercase(),
            third.replacen(' ', "  ", 1),
            format!(" {third}"),
            active(at(client, 22)),
            active(at(client, scenario.policy.min_data_port - 1)),
            "PORT 10,0,x\r\n".into(),
            "AUTH TLS\r\n".into(),
        ] {
            let refused = crossed_out(&line);
            for before in ["", "NOOP\r\n"] {
                let heard = picked_up(&scenario).tell(Client, &format!("{before}{line}"));
                assert_eq!(heard, format!("{before}{refused}"));
            }
            // Nothing is held back, because earlier bytes may be missing. What cannot name the client is crossed out.
            let own = active(at(client, 40_000));
            let (own, port) = own[5..].split_at(own.len() - 5 - "156,64\r\n".len());
            assert!(["156,64\r\n", "40000|\r\n"].contains(&port));
            let argument = line.len() - line[5..].trim_start().len();
            for cut in 1..line.len() {
                let mut sim = picked_up(&scenario);
                let heard = sim.tell_cut(Client, &line, cut);
                let from = argument.max(cut);
                assert_eq!(heard[from..], refused[from..], "{heard:?}, split at {cut}");
                let (named, crossed_out) = heard[argument..].split_once('X').unwrap();
                let names_only_client = own.starts_with(named) || named.starts_with(own);
                assert!(
                    names_only_client && !crossed_out.contains(','),
                    "{heard:?}, split at {cut}"
                );
                assert_eq!(sim.kernel.opened, []);
            }
        }
    });
}

/// On an asymmetric route the gateway sees no reply, and no acknowledgement. What is only cut is not ambiguous.
#[test]
fn a_cut_announcement_of_the_own_address_passes_where_replies_are_not_seen() {
    everywhere(|scenario| {
        let scenario = Scenario { client: without_nagle(scenario.nat).client, ..scenario };
        let own = at(scenario.translation().client, 40_000);
        let mut lines =
            vec![active(own), eprt(own), eprt(own).replace('|', "!"), "PORT\r\n".into()];
        lines.push("LPRT 4,4,10,0,0,2,2,156,64\r\n".into());
        for line in lines {
            for first in 1..line.len() - 1 {
                let mut sim = picked_up(&scenario);
                for second in [first, (first + 8).min(line.len() - 1)] {
                    let (start, rest) = line.as_bytes().split_at(first);
                    let pieces = [start, &rest[..second - first], &rest[second - first..]];
                    let heard =
                        sim.say_in_pieces(Client, pieces.into_iter().filter(|one| !one.is_empty()));
                    assert_eq!(heard, line.as_bytes(), "split at {first}, {second}");
                }
                assert_eq!(sim.engine().counters().pinholes_refused, 0);
                assert_eq!(sim.kernel.opened, []);
            }
        }
        let external = active(at(scenario.translation().client_external, 2200));
        assert_eq!(picked_up(&scenario).tell(Client, &external), external);
    });
}

/// What is held back is acknowledged to its sender, with all that precedes it.
#[test]
fn lost_data_before_a_pickup_is_not_acknowledged() {
    let mut sim = picked_up(&without_nagle(Nat::Masquerade));
    let lost = sim.next_segment(Client, b"NOOP\r\n");
    let start = Segment {
        seq: lost.seq.wrapping_add(lost.payload.len() as u32),
        ..sim.next_segment(Client, b"PORT 10,99")
    };
    let before = sim.client.acknowledged();
    sim.forge(Client, &start);
    assert_eq!(sim.client.acknowledged(), before);
}

#[test]
fn what_may_be_no_ftp_passes_unchanged_on_a_picked_up_connection() {
    let records: Vec<u8> =
        (0..999_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    for said in [
        &b"\x17\x03\x03\0\x09PORT 10\n1"[..],
        b"\nEPRT",
        b"NOOP\rPORT 10,99,99,99,8,152\r\n",
        b"x\nP",
        b"P",
        b"RT 10,99,99,99,8,152\r\n",
        b"PORTAL 10,99,99,99,8,152\r\n",
        b"GET /PORT 10,99,99,99,8,152 HTTP/1.1\r\n",
        &records,
    ] {
        for scenario in [with(Nat::Masquerade), without_nagle(Nat::Routed)] {
            let mut sim = picked_up(&scenario);
            assert_eq!(sim.say(Client, said), said);
            assert_eq!(sim.timeouts(), 0, "nothing is held back");
            let answer = [b"\x17\x03\x03\0\x01", said].concat();
            assert_eq!(sim.say(Server, &answer), answer);
            assert_eq!(sim.say(Client, b"x\r\n"), b"x\r\n");
            assert_eq!(sim.kernel.opened, []);
        }
    }
}

/// A client that mirrors many files sends more than the gateway stores. What is not stored any more may not be retransmitted
/// with other bytes.
#[test]
fn a_client_whose_server_is_not_seen_may_send_as_much_as_it_likes() {
    const LINES: u32 = 20_000;
    let mut ends = Ends::new(with(Nat::Routed));
    ends.sim.forget();
    let first = ends.client;
    for count in 0..LINES {
        let passed = ends.pass(Client, "SIZE x\r\n", flags::ACK | flags::PSH, WIDE);
        assert!(passed.is_some(), "{count}");
        (ends.client, ends.server) = (ends.client + 8, ends.server + 8);
    }
    let again = |ends: &mut Ends, at| {
        ends.client = at;
        ends.pass(Client, "PORT 10,99,99,99,9,9\r\n", flags::ACK | flags::PSH, WIDE)
    };
    assert_eq!(again(&mut ends, first), None);
    let stored = again(&mut ends, first + (LINES - 10) * 8);
    assert_eq!(stored.map(|segment| segment.payload), Some(b"SIZE x\r\nSIZE x\r\nSIZE x".to_vec()));
}
