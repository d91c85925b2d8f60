//! TCP is a stream: announcements are retransmitted.

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
