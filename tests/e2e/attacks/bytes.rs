//! Lines that a gateway and a server may parse differently: Telnet commands, NUL bytes, unusual line ends, endless
//! lines, and overlapping segments that differ.

use super::{
    addresses::{ATTEMPTS, assert_refused},
    scene::{ANNOUNCED, PORT, Scene},
};
use crate::common::*;

/// An announcement of the outsider's port 3764.
const BOUNCE: &str = "PORT 198,51,100,66,14,180";

#[test]
fn telnet_commands_nuls_and_blanks_do_not_hide_a_bounce() {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    let lines = [
        "\u{ff}\u{f4}\u{ff}\u{f2}PORT 198,51,100,66,14,180",
        "PO\u{ff}\u{f1}RT 198,51,100,66,14,180",
        "PO\u{ff}\u{fb}\u{1}RT 198,51,100,66,14,180",
        "PORT 198,51,\u{ff}\u{f1}100,66,14,180",
        "PORT\u{ff}\u{f1} 198,51,100,66,14,180\u{ff}\u{f1}",
        "\0PORT 198,51,100,66,14,180",
        "P\0O\0R\0T\0 198,51,100,66,14,180",
        "PORT \u{0}198,51,100,66,14,\u{0}180",
        "EPRT\0 |1|198.51.100.66|3764|\0",
        "\tPORT\t198,51,100,66,14,180",
        "port 198,51,100,66,14,180",
        // Bytes that ProFTPD treats as blanks.
        "\rPORT 198,51,100,66,14,180",
        "\u{b}\u{c}PORT 198,51,100,66,14,180",
        "PORT\u{b}198,51,100,66,14,180",
        "PORT\r198,51,100,66,14,180",
    ];
    assert_refused(&scene, &lines.map(str::to_owned));
}

#[test]
fn a_bare_line_feed_ends_a_line() {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    let send = |text: String| json!({"send": text});
    let both = json!({"reply": true, "count": 2});
    let steps = [
        send(format!("NOOP\n{BOUNCE}\r\n")),
        both.clone(),
        send(format!("NOOP\r\r\n{BOUNCE}\n")),
        both,
        say("LIST"),
        reply(),
    ];
    let client = scene.logged_in(&steps);
    assert_eq!(scene.announcements(), [""; 0]);
    scene.assert_nothing_opened(&[ANNOUNCED, 3764]);
    let session = client.release();
    let is_refused = |at| session.got(at).starts_with("504 Refused by the gateway: ");
    assert!(is_refused(6) && is_refused(8), "{session:?}");
    assert!(session.got(10).starts_with("425 "));
}

/// RFC 959 ends lines with CR LF, so a bare CR is part of the line.
#[test]
fn a_bare_carriage_return_does_not_end_a_line() {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    let lines = [format!("NOOP\r{PORT}"), format!("NOOP\r{PORT}\rLIST")];
    let client = scene.logged_in(&lines.map(|line| [say(&line), reply()]).concat());
    scene.assert_nothing_opened(&[ANNOUNCED]);
    let session = client.release().ok();
    assert!([6, 8].iter().all(|at| session.got(*at).starts_with("500 ")), "{session:?}");
}

/// Sends very long lines, each on a connection of its own, given as a start and a filler. The client has no more data in
/// flight than the gateway stores, because dropped segments would only cost time.
fn assert_long_lines(lines: &[(&str, &str)]) {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    let before = scene.gateway.daemon.resident_kib().unwrap();
    let say_line = |(start, filler): &(&str, &str)| {
        let times = telling(&[1_000_000], &[10_000_000])[0] / filler.len();
        let long = json!({"send": filler, "times": times});
        let steps = [json!({"send": start}), long, say(""), reply(), say("NOOP"), reply()];
        let plan = json!({"timeout": 60, "buffer": 20_000});
        scene.client_of(&scene.gateway.lab.client, &plan, &[&login()[..], &steps].concat())
    };
    let clients: Vec<_> = thread::scope(|scope| {
        let clients: Vec<_> = lines.iter().map(|line| scope.spawn(|| say_line(line))).collect();
        scene.assert_transfer();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let grown = scene.gateway.daemon.resident_kib().unwrap().saturating_sub(before);
    assert!(grown < 4 << 10, "memory has grown by {grown} KiB");
    scene.assert_closed(&[ANNOUNCED]);
    for client in clients {
        let session = client.release().ok();
        assert!(session.got(8).starts_with("500 "), "{}", session.got(8));
        assert_eq!(session.got(10), "200 Noop");
    }
    assert_eq!(scene.announcements().len(), 1, "only the ordinary transfer may announce");
    assert_eq!(scene.gateway.count("pinholes_opened"), 1);
}

#[test]
fn megabytes_without_a_line_end_open_no_pinhole() {
    assert_long_lines(&[("", "x"), ("", "OOPS 192,168,150,80,14,178 ")]);
}

#[test]
fn an_announcement_of_megabytes_opens_no_pinhole() {
    assert_long_lines(&[(PORT, " and so on"), ("PORT ", "0"), ("EPRT |1|", "\u{ff}\u{f1}")]);
}

/// Sends overlapping segments that differ. The server must receive the bytes that the gateway inspected first. `lost`
/// selects a packet to drop behind the gateway, and `heard` has the lines that the server must receive.
fn assert_first_bytes_win(taken: &str, segments: &Value, lost: Option<&str>, heard: &[&str]) {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    let lab = &scene.gateway.lab;
    if let Some(lost) = lost {
        lab.server.nft(&lose_once("prerouting", lost)).unwrap();
    }
    let outsider_capture = Capture::start(&lab.outsider, "eth0", "tcp").unwrap();
    let sent = json!({"taken": taken, "segments": segments});
    let replies = json!({"reply": true, "count": heard.len()});
    let client = scene.logged_in(&[sent, replies, say("LIST"), reply()]);
    let lines = &scene.server.lines()[2..];
    let expected = [heard, &["LIST"]].concat();
    assert_eq!(lines.len(), expected.len(), "{lines:?}");
    for (line, start) in lines.iter().zip(expected) {
        assert!(line.starts_with(start), "{start} in {lines:?}");
    }
    let own = heard.iter().filter(|line| line.starts_with("PORT 198,51,100,1,")).count();
    assert_eq!(scene.gateway.count("pinholes_opened"), own as u64);
    if own == 0 {
        scene.assert_closed(&[ANNOUNCED, 3764]);
    }
    assert_eq!(client.release().error, None);
    let server = lab.server.address(V4);
    let reached = format!("{ATTEMPTS} && ip.src == {server}");
    assert_eq!(
        outsider_capture.finish().unwrap().count(&reached).unwrap(),
        0,
        "the server connected to the outsider"
    );
    scene.assert_transfer();
}

/// An nftables match for segments that begin with `NO`.
const BEGINS_WITH_NO: &str = "tcp dport 21 @ih,0,16 0x4e4f";

#[test]
fn overlapping_segments_that_differ_retain_the_first_bytes() {
    let noop = "NOOP 198,51,100,66,14,180\r\n";
    let bounce = format!("{BOUNCE}\r\n");
    // The first segment is lost before the server, then the second one arrives.
    let both = json!([[0, noop], [0, bounce], [0, &bounce[..9]]]);
    assert_first_bytes_win(noop, &both, Some(BEGINS_WITH_NO), &["NOOP 198"]);
    // The second segment is longer. Its additional bytes are new.
    let longer = bounce.repeat(2);
    let both = json!([[0, noop], [0, longer]]);
    assert_first_bytes_win(&longer, &both, Some(BEGINS_WITH_NO), &["NOOP 198", "XXXX XXX"]);
    // The bounce arrives first, but after a gap. Then its missing part arrives in segments.
    let late = json!([[4, &bounce[4..]], [0, "NOOP"], [2, "RT 1"], [0, noop]]);
    assert_first_bytes_win(noop, &late, None, &["NOOP 198"]);
}

#[test]
fn held_bytes_cannot_be_replaced_by_a_retransmission() {
    let line = format!("{PORT}\r\n");
    let bounce = "PORT 198,051,100,66,14,180\r\n";
    let segments = json!([[0, &line[..9]], [0, &bounce[..9]], [9, &line[9..]]]);
    assert_first_bytes_win(&line, &segments, None, &["PORT 198,51,100,1,"]);
    // The result is 192.51.100.66, because the end was not inspected before.
    let segments = json!([[0, &line[..9]], [0, bounce]]);
    assert_first_bytes_win(&line, &segments, None, &["XXXX XXX"]);
    let other = format!("N{}", &bounce[1..]);
    let started = json!([[0, "NO"], [0, "PO"], [0, bounce], [2, &other[2..]]]);
    assert_first_bytes_win(&other, &started, Some(BEGINS_WITH_NO), &["NORT 198"]);
}
