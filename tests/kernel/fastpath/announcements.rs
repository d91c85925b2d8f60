//! Announcements: the pinhole that each opens, and the rewrite of its address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};

use super::{layout::*, scene::*};

/// As in the rules: a daemon that is gone for longer opens nothing.
#[test]
fn no_pinhole_is_opened_without_a_heartbeat() {
    for (deadline, is_alive) in [(0, false), (now() - 1, false), (now() + 60 * SECOND, true)] {
        for (side, dialogue, line) in [
            (Side::Client, READY, "PORT 10,0,0,2,4,1\r\n"),
            (Side::Server, PASV_PENDING, "227 (192,0,2,9,255,255)\r\n"),
        ] {
            let mut talk = Talk::new(routed());
            talk.scene.heartbeat.set(0, deadline, 0).unwrap();
            talk.before.dialogue = dialogue;
            talk.hand_over();
            if is_alive {
                let frame = talk.frame(side, line);
                talk.inspected(&frame, &frame.payload.clone());
            } else {
                talk.line_hands_back(side, line);
            }
            assert_eq!(talk.scene.pinholes().len(), usize::from(is_alive), "{line}");
        }
    }
}

#[test]
fn no_pinhole_is_opened_where_this_machine_listens() {
    let families = [
        (routed(), IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        (routed6(), Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into()),
    ];
    for (flow, here, bound) in
        families.into_iter().flat_map(|(flow, here, any)| [(flow, here, here), (flow, here, any)])
    {
        let listener = TcpListener::bind((bound, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (high, low) = (port >> 8, port & 255);
        let mut cases = vec![(Side::Server, EPSV_PENDING, format!("229 (|||{port}|)"))];
        if here.is_ipv4() {
            cases.extend([
                (Side::Client, READY, format!("PORT 10,0,0,2,{high},{low}")),
                (Side::Client, READY, format!("EPRT |1|10.0.0.2|{port}|")),
                (Side::Server, PASV_PENDING, format!("227 (192,0,2,9,{high},{low})")),
            ]);
        } else {
            cases.push((Side::Client, READY, format!("EPRT |2|2001:db8:1::2|{port}|")));
        }
        let mut talk = Talk::new(Flow { active_arrival: here, passive_arrival: here, ..flow });
        for (side, dialogue, line) in &cases {
            talk.before.dialogue = *dialogue;
            talk.hand_over();
            talk.line_hands_back(*side, format!("{line}\r\n"));
        }
        drop(listener);
        for (side, dialogue, line) in &cases {
            talk.before.dialogue = *dialogue;
            talk.hand_over();
            talk.says(*side, line);
        }
    }
    // If the announced end is this machine itself, a listener is expected.
    for (here, server, start) in
        [("127.0.0.1", SERVER.ip(), "EPRT |1|127.0.0.1|"), ("::1", SERVER6, "EPRT |2|::1|")]
    {
        let here = ip(here);
        let listener = TcpListener::bind((here, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut talk = Talk::new(between(here, here, server, server));
        talk.says(Side::Client, &format!("{start}{port}|"));
    }
}
