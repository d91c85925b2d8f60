//! TCP is a stream: announcements are retransmitted.

use crate::common::*;

fn run(lab: &Lab, transfer: Vec<Value>) -> Session {
    let mut plan = plan(lab, (login(), transfer));
    plan["nodelay"] = json!(true);
    scripted_client(&lab.client, &plan)
}

/// Matches segments that begin with `PORT`.
const BEGINS_WITH_PORT: &str = "tcp dport 21 @ih,0,32 0x504f5254";

/// An active transfer whose `PORT` is lost once on its way into `place`, and got through with one
/// pinhole; what its inner and outer side saw. The best of three, if need be.
fn active_transfer_losing_port(
    gateway: &Gateway,
    place: &Host,
) -> (CaptureAnalysis, CaptureAnalysis) {
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    let mut times = Vec::new();
    while times.len() < 3 {
        place.nft(&lose_once("prerouting", BEGINS_WITH_PORT)).unwrap();
        let (inner, outer) = captures(lab);
        let session = run(lab, port_transfer()).ok();
        assert!(session.got(6).starts_with("200 "), "{}", session.got(6));
        let took: f64 = session.steps[5..=6].iter().map(|(_, ms)| ms).sum();
        times.push(took);
        assert_eq!(gateway.count("pinholes_opened"), times.len() as u64);
        assert_eq!(gateway.lab.gateway.invalid_packets().unwrap(), 0);
        if took < 1000.0 {
            return (inner.finish().unwrap(), outer.finish().unwrap());
        }
    }
    panic!("recovery took {times:?} ms");
}

#[test]
fn retransmission_gets_the_same_rewrite() {
    let gateway = gateway(Topology::Masquerade);
    let (inner, outer) = active_transfer_losing_port(&gateway, &gateway.lab.server);
    let copies = outer
        .fields("tcp.dstport == 21 && tcp.payload[0:4] == 50:4f:52:54", &["tcp.seq", "tcp.payload"])
        .unwrap();
    assert!(copies.len() >= 2, "{copies:?}");
    assert!(copies.iter().all(|copy| *copy == copies[0]), "{copies:?}");
    for side in [inner, outer] {
        assert_eq!(side.faults().unwrap(), [""; 0]);
    }
}
