//! TCP is a stream: announcements cut anywhere, sent again, delayed by Nagle's algorithm.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod common;

use common::{Session, captures, gateway, login, reply, say, scripted_client, scripted_server};
use ftp_alg::lab::{Family, Lab, Topology};
use serde_json::{Value, json};

/// Longer than any answer here takes, shorter than Linux' shortest retransmission time-out (200 ms).
const STALL_MS: f64 = 150.0;

const PORT: &str = "PORT 192,168,150,80,14,178\r\n";

/// An announcement cut as `cut` says, and the transfer that follows; six steps.
fn active_transfer(mut announcement: Value, cut: &Value) -> Vec<Value> {
    if let (Some(step), Some(cut)) = (announcement.as_object_mut(), cut.as_object()) {
        step.extend(cut.clone());
    }
    vec![announcement, reply(), say("LIST"), reply(), json!({"accept": 3762}), reply()]
}

fn run(lab: &Lab, nodelay: bool, transfers: Vec<Vec<Value>>) -> Session {
    let mut steps = login();
    steps.extend(transfers.into_iter().flatten());
    let host = lab.dialled(Family::V4).to_string();
    let plan = json!({"host": host, "listen": [3762], "nodelay": nodelay, "steps": steps});
    scripted_client(&lab.client, &plan)
}

fn assert_prompt(session: &Session, transfer: usize, pauses_ms: f64, what: &str) {
    let steps = &session.steps[5 + transfer * 6..][..6];
    assert!(steps[1].0.starts_with("200 "), "{what}: {}", steps[1].0);
    let took = steps.iter().map(|(_, ms)| ms).sum::<f64>() - pauses_ms;
    assert!(took < STALL_MS, "{what}: stalled, {took} ms: {steps:?}");
}

fn port_is_cut_at_every_byte(nodelay: bool) {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    let (inner, outer) = captures(lab);
    let cuts: Vec<usize> = (1..PORT.len()).collect();
    let transfers = cuts
        .iter()
        .map(|cut| active_transfer(json!({"send": PORT}), &json!({"cut": [cut], "pause": 0.01})));
    let session = run(lab, nodelay, transfers.collect());
    assert_eq!(session.error, None);
    for (number, cut) in cuts.iter().enumerate() {
        assert_prompt(&session, number, 10.0, &format!("cut behind byte {cut}"));
    }
    let (inner, outer) = (inner.finish().unwrap(), outer.finish().unwrap());
    for side in [inner, outer] {
        assert_eq!(side.faults().unwrap(), [""; 0]);
        assert_eq!(side.timeouts().unwrap(), [""; 0]);
    }
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0);
}

#[test]
fn port_cut_at_every_byte_without_nagle() {
    port_is_cut_at_every_byte(true);
}

#[test]
fn port_cut_at_every_byte_with_nagle() {
    port_is_cut_at_every_byte(false);
}

#[test]
fn port_one_byte_a_segment() {
    let gateway = gateway(Topology::Masquerade);
    let _server = scripted_server(&gateway.lab.server, &json!({}));
    for nodelay in [true, false] {
        for pause in [0.0, 0.002] {
            let bytes = json!({"bytes": true, "pause": pause});
            let transfers = vec![active_transfer(json!({"send": PORT}), &bytes); 3];
            let session = run(&gateway.lab, nodelay, transfers);
            let what = format!("one byte a segment, nodelay {nodelay}, pause {pause}");
            assert_eq!(session.error, None, "{what}");
            for number in 0..3 {
                // Sleeping takes longer than asked for.
                let pauses = (PORT.len() - 1) as f64 * pause * 1000.0 * 2.0;
                assert_prompt(&session, number, pauses, &what);
            }
        }
    }
}

#[test]
fn lines_before_and_behind_an_announcement_share_its_segment() {
    let gateway = gateway(Topology::Masquerade);
    let server = scripted_server(&gateway.lab.server, &json!({}));
    let together = format!("TYPE I\r\n{PORT}LIST\r\n");
    let steps = vec![json!({"send": together}), reply(), reply(), reply()];
    let rest = vec![json!({"accept": 3762}), reply()];
    let session = run(&gateway.lab, true, vec![steps, rest]);
    assert_eq!(session.error, None);
    assert!(session.got(6).starts_with("200 Type"));
    assert!(session.got(7).starts_with("200 PORT"));
    assert!(server.lines()[3].starts_with("PORT 198,51,100,1,"), "{:?}", server.lines());
}

/// Passive transfers to a published server whose announcements are cut as `cut` says.
fn passive_announcements(cut: &str, pause: f64, nodelay: bool, count: usize) {
    let gateway = gateway(Topology::PublishedServer);
    let lab = &gateway.lab;
    let plan = json!({"cut": cut, "pause": pause, "nodelay": nodelay, "passive_port": 50069});
    let _server = scripted_server(&lab.server, &plan);
    let one = [
        say("PASV"),
        reply(),
        json!({"dial": true, "later": true}),
        say("LIST"),
        reply(),
        json!({"drain": true}),
        reply(),
    ];
    let session = run(lab, true, vec![one.to_vec(); count]);
    assert_eq!(session.error, None);
    let length = "227 Entering Passive Mode (192,168,150,90,195,149)\r\n".len();
    for number in 0..count {
        let steps = &session.steps[5 + number * one.len()..][..one.len()];
        let pieces = if cut == "each" { 1 } else { length - 1 };
        let took = steps.iter().map(|(_, ms)| ms).sum::<f64>() - pieces as f64 * pause * 2000.0;
        assert!(took < STALL_MS, "announcement {number}: stalled, {took} ms: {steps:?}");
    }
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0);
}

#[test]
fn passive_announcement_cut_at_every_byte() {
    passive_announcements("each", 0.01, true, 51);
}

#[test]
fn passive_announcement_cut_at_every_byte_with_nagle() {
    passive_announcements("each", 0.01, false, 51);
}

#[test]
fn passive_announcement_one_byte_a_segment() {
    passive_announcements("bytes", 0.002, true, 3);
    passive_announcements("bytes", 0.0, false, 3);
}

/// Drops the first packet that `matching` describes, once.
fn lose_once(hook: &str, matching: &str) -> String {
    format!(
        "table inet loss {{
    chain lose {{
        type filter hook {hook} priority -450;
        {matching} limit rate 1/hour burst 1 packets drop
    }}
}}
"
    )
}

/// Matches segments that begin with `PORT`.
const BEGINS_WITH_PORT: &str = "tcp dport 21 @ih,0,32 0x504f5254";

fn assert_one_rewrite_after_loss(session: &Session, gateway: &common::Gateway, line: &str) {
    assert_eq!(session.error, None);
    assert!(session.got(6).starts_with("200 "), "{}", session.got(6));
    let took: f64 = session.steps[5..=6].iter().map(|(_, ms)| ms).sum();
    assert!(took < 1000.0, "recovery took {took} ms");
    assert_eq!(gateway.daemon.counter("pinholes_opened").unwrap(), 1, "{line}");
    assert_eq!(gateway.lab.gateway.invalid_packets().unwrap(), 0);
}

#[test]
fn announcement_lost_before_the_rewrite_is_rewritten_when_it_comes_again() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    lab.gateway.nft(&lose_once("prerouting", BEGINS_WITH_PORT)).unwrap();
    let (inner, outer) = captures(lab);
    let transfer = active_transfer(json!({"send": PORT}), &json!({}));
    let session = run(lab, true, vec![transfer]);
    assert_one_rewrite_after_loss(&session, &gateway, "lost before");
    let (inner, outer) = (inner.finish().unwrap(), outer.finish().unwrap());
    let copies = |side: &ftp_alg::lab::Analysis| {
        side.count("tcp.dstport == 21 && tcp.payload[0:4] == 50:4f:52:54").unwrap()
    };
    assert!(copies(&inner) >= 2, "the client sent it again");
    assert_eq!(copies(&outer), 1, "the server's side saw it once");
    assert_eq!(outer.faults().unwrap(), [""; 0]);
}

#[test]
fn retransmission_gets_the_same_rewrite() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    lab.server.nft(&lose_once("prerouting", BEGINS_WITH_PORT)).unwrap();
    let (inner, outer) = captures(lab);
    let transfer = active_transfer(json!({"send": PORT}), &json!({}));
    let session = run(lab, true, vec![transfer]);
    assert_one_rewrite_after_loss(&session, &gateway, "lost behind");
    let (inner, outer) = (inner.finish().unwrap(), outer.finish().unwrap());
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
fn reply_lost_behind_an_adjustment_comes_again() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    // `200 PORT`: the answer to the rewritten command.
    let answer = "tcp sport 21 @ih,0,64 0x32303020504f5254";
    lab.client.nft(&lose_once("prerouting", answer)).unwrap();
    let transfer = active_transfer(json!({"send": PORT}), &json!({}));
    let session = run(lab, true, vec![transfer.clone(), transfer]);
    assert_eq!(session.error, None);
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0);
    assert_eq!(gateway.daemon.counter("pinholes_opened").unwrap(), 2);
}

#[test]
fn passive_announcement_sent_again_gets_the_same_rewrite() {
    let gateway = gateway(Topology::PublishedServer);
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({"passive_port": 50069}));
    let announcement = "tcp sport 21 @ih,0,32 0x32323720";
    lab.client.nft(&lose_once("prerouting", announcement)).unwrap();
    let (outer, _inner) = captures(lab);
    let steps = vec![
        say("PASV"),
        reply(),
        json!({"dial": true, "later": true}),
        say("LIST"),
        reply(),
        json!({"drain": true}),
        reply(),
    ];
    let session = run(lab, true, vec![steps]);
    assert_eq!(session.error, None);
    assert_eq!(gateway.daemon.counter("pinholes_opened").unwrap(), 1);
    let outer = outer.finish().unwrap();
    let copies = outer
        .fields("tcp.srcport == 21 && tcp.payload[0:4] == 32:32:37:20", &["tcp.payload"])
        .unwrap();
    assert!(copies.len() >= 2, "{copies:?}");
    assert!(copies.iter().all(|copy| *copy == copies[0]), "{copies:?}");
    assert_eq!(outer.faults().unwrap(), [""; 0]);
}
