//! What of an announcement is on the wire: as often and as long as it was said.

use crate::common::*;

/// Matches segments that begin with `PORT`.
const BEGINS_WITH_PORT: &str = "tcp dport 21 @ih,0,32 0x504f5254";

/// A `PORT` that is lost once behind the gateway. The best of three, if need be.
#[test]
fn retransmission_gets_the_same_rewrite() {
    let (gateway, _server) = served(Topology::Masquerade, "", json!({}));
    let lab = &gateway.lab;
    let mut plan = plan(lab, (login(), port_transfer()));
    plan["nodelay"] = json!(true);
    let mut times = Vec::new();
    while !times.last().is_some_and(|time| *time < 1000.0) {
        assert!(times.len() < 3, "recovery took {times:?} ms");
        lab.server.nft(&lose_once("prerouting", BEGINS_WITH_PORT)).unwrap();
        let (inner, outer) = captures(lab);
        let session = scripted_client(&lab.client, &plan).ok();
        assert!(session.got(6).starts_with("200 "), "{}", session.got(6));
        times.push(session.steps[5..=6].iter().map(|(_, ms)| ms).sum::<f64>());
        assert_eq!(gateway.count("pinholes_opened"), times.len() as u64);
        assert_eq!(lab.gateway.invalid_packets().unwrap(), 0);
        let [inner, outer] = [inner, outer].map(|side| side.finish().unwrap());
        let port = "tcp.dstport == 21 && tcp.payload[0:4] == 50:4f:52:54";
        let copies = outer.fields(port, &["tcp.seq", "tcp.payload"]).unwrap();
        assert!(copies.len() >= 2, "{copies:?}");
        assert!(copies.iter().all(|copy| *copy == copies[0]), "{copies:?}");
        for side in [inner, outer] {
            assert_eq!(side.faults().unwrap(), [""; 0]);
        }
    }
}

/// The rewritten line is as long as it was, so that no sequence number changes: each server must read what that takes.
#[test]
fn servers_take_zeros_before_the_numbers_of_a_port() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    for kind in ServerKind::ALL {
        let server = Server::start(kind, &lab.server).unwrap();
        let transfer =
            (ask("PORT 192,168,150,80,4,1"), say("LIST"), accept(1025), reply(), reply());
        let steps = (login_as(server.login()), transfer, ask("QUIT"));
        let (session, _, outer) = captured(lab, || talk(lab, &steps).ok_in(kind));
        assert!(session.got(6).starts_with("200"), "{kind}: {}", session.got(6));
        assert_eq!(outer.announcements().unwrap(), ["PORT 198,51,100,1,4,001"], "{kind}");
    }
}
