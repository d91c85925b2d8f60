//! Text that looks like an announcement, and announcements at the wrong time.

use super::scene::{ANNOUNCED, PASSIVE, PASSIVE_PORT, PORT, Scene};
use crate::common::*;

/// Runs `exchanges` (a command, the server's reply) after a login. None of them may open a pinhole.
fn assert_text(topology: Topology, exchanges: &[(&str, &str)], cut_before: Option<&str>) {
    let extra: serde_json::Map<String, Value> =
        exchanges.iter().map(|(said, answer)| ((*said).to_owned(), json!(answer))).collect();
    let plan = json!({"extra": extra, "cut_before": cut_before, "pause": 0.01});
    let scene = Scene::new(topology, &plan);
    let steps: Vec<_> = exchanges.iter().flat_map(|(said, _)| [say(said), reply()]).collect();
    let client = scene.logged_in(&steps);
    let port = if topology == Topology::Masquerade { ANNOUNCED } else { PASSIVE_PORT };
    scene.assert_nothing_opened(&[port]);
    let session = client.release().ok();
    for (at, (said, answer)) in exchanges.iter().enumerate() {
        assert_eq!(session.got(6 + at * 2), answer.replace("\r\n", "\n"), "reply to {said}");
    }
    let heard = scene.server.lines();
    for (said, _) in exchanges {
        assert!(heard.iter().any(|line| line == said), "{said} is missing in {heard:?}");
    }
}

#[test]
fn a_port_command_inside_an_argument_is_text() {
    let exchanges = [
        "RETR PORT 192,168,150,80,14,178",
        "STOR PORT 192,168,150,80,14,178",
        "MKD a\rPORT 192,168,150,80,14,178",
        "SITE PORT 192,168,150,80,14,178",
        "PASS PORT 192,168,150,80,14,178",
        "USER PORT 192,168,150,80,14,178",
        "XPORT 192,168,150,80,14,178",
    ];
    let exchanges = exchanges.map(|line| (line, "550 No"));
    assert_text(Topology::Masquerade, &exchanges, None);
}

#[test]
fn an_announcement_inside_another_reply_is_text() {
    let lines = [
        ("STAT", format!("211-Status\r\n{PASSIVE}\r\n211 End")),
        ("HELP", format!("214-Help\r\n 227 x\r\n{PASSIVE}\r\n229 Extended (|||50069|)\r\n214 End")),
        ("RETR x", format!("550 {PASSIVE}: no such file")),
        ("RETR y", format!("550-no such file:\r\n{PASSIVE}\r\n550 End")),
        ("MKD z", format!("257 \"{PASSIVE}\" is there")),
        ("PASV x", format!("500-Not this one:\r\n{PASSIVE}\r\n500 End")),
        ("EPSV x", "500-Nor:\r\n229 Extended (|||50069|)\r\n500 End".to_owned()),
    ];
    let exchanges: Vec<_> = lines.iter().map(|(said, answer)| (*said, answer.as_str())).collect();
    assert_text(Topology::PublishedServer, &exchanges, None);
}

/// A segment that begins with a reply code is not a reply if the line does not begin there.
#[test]
fn a_reply_code_inside_a_line_is_text() {
    let lines = [
        ("STAT", format!("211-Status {PASSIVE}\r\n211 End")),
        ("PASV x", format!("500 What is {PASSIVE}?")),
        ("EPSV x", format!("500-Look:\r\n {PASSIVE}\r\n500 End")),
    ];
    let exchanges: Vec<_> = lines.iter().map(|(said, answer)| (*said, answer.as_str())).collect();
    for cut_before in [None, Some("227"), Some(" Entering")] {
        assert_text(Topology::PublishedServer, &exchanges, cut_before);
    }
}

#[test]
fn a_passive_reply_to_another_command_opens_no_pinhole() {
    let exchanges = [("NOOP", PASSIVE), ("FEAT", "229 Entering Extended Passive Mode (|||50069|)")];
    assert_text(Topology::PublishedServer, &exchanges, None);
}

/// A client that runs `before` without a valid login and then sends an announcement opens no pinhole.
fn assert_no_login(extra: &Value, before: &[Value]) {
    let scene = Scene::new(Topology::Masquerade, &json!({"extra": extra}));
    let client = scene.client(&[before, &[say(PORT), reply()]].concat());
    scene.assert_nothing_opened(&[ANNOUNCED]);
    assert_eq!(client.release().error, None);
}

#[test]
fn no_pinhole_opens_before_a_login() {
    assert_no_login(&json!({}), &[reply()]);
    assert_no_login(&json!({}), &[reply(), say("USER lab"), reply()]);
}

#[test]
fn no_pinhole_opens_after_a_refused_login() {
    let steps = [reply(), say("USER lab"), reply(), say("PASS wrong"), reply()];
    assert_no_login(&json!({"PASS wrong": "530 No"}), &steps);
    let text = "530-Not\r\n230 Welcome\r\n530 at all";
    assert_no_login(&json!({"PASS wrong": text}), &steps);
}

#[test]
fn a_230_to_another_command_is_not_a_login() {
    let steps = [reply(), say("NOOP"), reply(), say("FEAT"), reply()];
    assert_no_login(&json!({"NOOP": "230 Welcome", "FEAT": "232 Welcome"}), &steps);
}

#[test]
fn after_epsv_all_other_announcements_open_no_pinhole() {
    let plan = json!({"extra": {"EPSV ALL": "200 As you wish"}, "passive_port": PASSIVE_PORT});
    for (topology, announcement, port) in [
        (Topology::Masquerade, PORT, ANNOUNCED),
        (Topology::Masquerade, "EPRT |1|192.168.150.80|3762|", ANNOUNCED),
        (Topology::PublishedServer, "PASV", PASSIVE_PORT),
    ] {
        let scene = Scene::new(topology, &plan);
        let steps = [say("EPSV ALL"), reply(), say(announcement), reply()];
        let client = scene.logged_in(&steps);
        scene.assert_closed(&[port]);
        assert_eq!(scene.gateway.count("pinholes_opened"), 0, "{announcement}");
        assert_eq!(client.release().error, None);
    }
}

/// With more pending commands than the gateway stores, it must guess which reply answers which. The guess must not
/// favour an attacker.
#[test]
fn a_long_pipeline_does_not_turn_text_into_announcements() {
    let extra = json!({"STAT": PASSIVE, "PASV": "227 Logout.", "FEAT": "230 Welcome"});
    let scene = Scene::new(Topology::PublishedServer, &json!({"extra": extra}));
    let noops = |count| json!({"send": "NOOP\r\n", "times": count});
    let replies = |count: usize| json!({"reply": true, "count": count});
    let mut steps = Vec::new();
    for (before, after) in [(40, 0), (0, 40), (40, 40), (31, 1), (32, 31), (500, 500)] {
        let together = "NOOP\r\n".repeat(before) + "PASV\r\n" + &"NOOP\r\n".repeat(after);
        steps.extend([json!({"send": together}), replies(before + after + 1)]);
        steps.extend([say("STAT"), reply(), noops(3), replies(3), say("STAT"), reply()]);
    }
    let client = scene.logged_in(&steps);
    scene.assert_closed(&[PASSIVE_PORT]);
    assert_eq!(scene.gateway.count("pinholes_opened"), 0);
    assert_eq!(client.release().error, None);
    // Nor does it turn text into a login.
    let early = [reply(), say("FEAT"), reply(), json!({"send": "USER x\r\n".repeat(40)})];
    let early = [&early[..], &[replies(40), say("FEAT"), reply(), say(PORT), reply()]].concat();
    let client = scene.client(&early);
    assert_eq!(scene.gateway.daemon.open_pinholes().unwrap(), [""; 0]);
    assert_eq!(client.release().error, None);
}
