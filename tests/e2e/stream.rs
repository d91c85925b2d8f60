//! TCP is a stream: announcements cut anywhere, retransmitted, delayed by Nagle's algorithm.

use crate::common::*;

/// Longer than any answer here takes, shorter than Linux' shortest retransmission time-out (200 ms).
const STALL_MS: f64 = 150.0;

const PORT: &str = "PORT 192,168,150,80,14,178\r\n";

/// An announcement cut as `cut` says, and the transfer that follows; six steps.
fn active_transfer(mut announcement: Value, cut: &Value) -> Vec<Value> {
    if let (Some(step), Some(cut)) = (announcement.as_object_mut(), cut.as_object()) {
        step.extend(cut.clone());
    }
    vec![announcement, reply(), say("LIST"), reply(), accept(3762), reply()]
}

fn run(lab: &Lab, nodelay: bool, transfers: Vec<Vec<Value>>) -> Session {
    let mut steps = login();
    steps.extend(transfers.into_iter().flatten());
    let plan = json!({"host": lab.server_address(V4), "nodelay": nodelay, "steps": steps});
    scripted_client(&lab.client, &plan)
}

/// Transfers that took longer than any answer does, without the pauses they were ordered to make.
fn stalled(session: &Session, steps: usize, pauses_ms: f64) -> Vec<usize> {
    let transfers = session.steps[5..].chunks(steps).enumerate();
    let took = |steps: &[(String, f64)]| steps.iter().map(|(_, ms)| ms).sum::<f64>() - pauses_ms;
    transfers.filter(|(_, steps)| took(steps) >= STALL_MS).map(|(number, _)| number).collect()
}

/// Runs sessions until one has none of the stalls that the ones before had in common; at most
/// three. A stall by a time-out comes each time, one by a busy machine does not.
fn assert_prompt(what: &str, steps: usize, pauses_ms: f64, mut session: impl FnMut() -> Session) {
    let mut stalls: Option<Vec<usize>> = None;
    for _ in 0..3 {
        let session = session().ok_in(what);
        let mut now = stalled(&session, steps, pauses_ms);
        if let Some(before) = stalls {
            now.retain(|number| before.contains(number));
        }
        if now.is_empty() {
            return;
        }
        stalls = Some(now);
    }
    panic!("{what}: stalled each time in transfers {stalls:?}");
}

fn port_is_cut_at_every_byte(nodelay: bool) {
    let (gateway, _server) = served(Topology::Masquerade, "", json!({}));
    let lab = &gateway.lab;
    let cut = |at: usize| json!({"cut": [at], "pause": 0.01});
    let transfers = (1..PORT.len()).map(|at| active_transfer(json!({"send": PORT}), &cut(at)));
    let transfers: Vec<_> = transfers.collect();
    let what = format!("cut at every byte, nodelay {nodelay}");
    captured(lab, || assert_prompt(&what, 6, 10.0, || run(lab, nodelay, transfers.clone())));
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0);
}

#[test]
fn port_cut_at_every_byte() {
    [true, false].into_iter().for_each(port_is_cut_at_every_byte);
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
        let transfer = active_transfer(json!({"send": PORT}), &json!({}));
        let session = run(lab, true, vec![transfer]).ok();
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
fn a_retransmission_of_a_lost_announcement_is_rewritten() {
    let gateway = gateway(Topology::Masquerade);
    let (inner, outer) = active_transfer_losing_port(&gateway, &gateway.lab.gateway);
    let copies = |side: &CaptureAnalysis| {
        side.count("tcp.dstport == 21 && tcp.payload[0:4] == 50:4f:52:54").unwrap()
    };
    assert!(copies(&inner) >= 2, "the client sent it again");
    assert_eq!(copies(&outer), 1, "the server's side saw it once");
    // An acknowledgement may pass before the announcement is retransmitted, with the sequence number
    // behind the bytes that nobody has seen yet: nothing can know how long they will become.
    assert_eq!(outer.wrong_checksums().unwrap(), [""; 0]);
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

#[test]
fn a_retransmitted_passive_announcement_gets_the_same_rewrite() {
    let (gateway, _server) = served(Topology::PublishedServer, "", json!({"passive_port": 50069}));
    let lab = &gateway.lab;
    let announcement = "tcp sport 21 @ih,0,32 0x32323720";
    lab.client.nft(&lose_once("prerouting", announcement)).unwrap();
    let (outer, _inner) = captures(lab);
    run(lab, true, vec![passive_transfer("PASV")]).ok();
    assert_eq!(gateway.count("pinholes_opened"), 1);
    let outer = outer.finish().unwrap();
    let copies = outer
        .fields("tcp.srcport == 21 && tcp.payload[0:4] == 32:32:37:20", &["tcp.payload"])
        .unwrap();
    assert!(copies.len() >= 2, "{copies:?}");
    assert!(copies.iter().all(|copy| *copy == copies[0]), "{copies:?}");
    assert_eq!(outer.faults().unwrap(), [""; 0]);
}
