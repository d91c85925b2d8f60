//! External addresses that change while sessions run: one given by name, and the gateway's own.

use crate::{common::*, health::problems};

const FIRST: &str = "203.0.113.1";
const SECOND: &str = "203.0.113.2";

fn is(address: &str) -> Value {
    json!({ NAME: {"A": [address], "ttl": 1} })
}

/// A published server whose external address has a name.
fn named(names: &Value) -> (NameServer, Gateway) {
    let lab = Lab::new(Topology::PublishedServer).unwrap();
    let dns = NameServer::start(&lab.gateway, &executable(), names);
    let configuration = format!("[nat]\nexternal-address = \"dns:{NAME}\"\n");
    let daemon = Daemon::start(&dns.executable, &lab.gateway, &configuration).unwrap();
    (dns, Gateway { daemon, lab })
}

/// Where a new control connection is informed to connect, and how long the answer took.
fn announced_address(lab: &Lab) -> (String, f64) {
    let (answer, time) = answered(lab);
    (host_port(&answer).0, time)
}

/// What a new control connection gets for PASV, and how long that took.
fn answered(lab: &Lab) -> (String, f64) {
    let session = talk(lab, (login(), ask("PASV"))).ok();
    (session.got(6).to_owned(), session.steps[6].1)
}

#[test]
fn sessions_announce_what_the_name_stands_for_by_then() {
    let (dns, gateway) = named(&is(FIRST));
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    wait_for_address(&gateway.daemon, FIRST);
    let client = hold(lab, (login(), ask("PASV"), gate(), ask("PASV")));
    dns.set(&is(SECOND));
    let changed = Instant::now();
    wait_for_address(&gateway.daemon, SECOND);
    assert!(changed.elapsed() < scaled_timeout(Duration::from_secs(10)), "{:?}", changed.elapsed());
    assert_eq!(announced_address(lab).0, SECOND);
    let session = client.release().ok();
    assert_eq!(host_port(session.got(6)).0, FIRST);
    assert_eq!(host_port(session.got(9)).0, SECOND, "the connection that was open all along");
    let status = gateway.daemon.ask(&["status"]).unwrap().stdout_text();
    assert!(status.contains(NAME) && status.contains(SECOND), "{status}");
}

#[test]
fn a_name_server_that_is_silent_delays_no_packet_and_changes_nothing() {
    let (dns, gateway) = named(&is(FIRST));
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    wait_for_address(&gateway.daemon, FIRST);
    dns.set(&json!({ NAME: null }));
    let asked = dns.questions();
    wait_for("a question", || dns.questions() > asked + 1);
    let times = [(); 3].map(|()| {
        let (address, milliseconds) = announced_address(lab);
        assert_eq!(address, FIRST, "the last known address");
        milliseconds
    });
    // A question that is not answered takes seconds, each time; a delay on a busy machine does not come each time.
    assert!(times.iter().any(|time| *time < 1500.0), "{times:?} ms");
    wait_for("the failure", || !row(&gateway.daemon, "ipv4")["error"].is_null());
    assert_eq!(row(&gateway.daemon, "ipv4")["address"], FIRST);
    dns.set(&is(SECOND));
    wait_for_address(&gateway.daemon, SECOND);
    assert!(row(&gateway.daemon, "ipv4")["error"].is_null());
    let log = gateway.daemon.log();
    let warnings = log.lines().filter(|line| line.contains("WARN") && line.contains(" A record"));
    assert_eq!(warnings.count(), 1, "one line for one failure\n{log}");
}

/// As of somebody who guesses the numbers of questions.
#[test]
fn wrong_answers_of_a_name_server_fill_no_log() {
    let wrong = json!({ NAME: {"A": [FIRST], "ttl": 1, "wrong": 20} });
    let (dns, gateway) = named(&wrong);
    wait_for_address(&gateway.daemon, FIRST);
    let lines = || gateway.daemon.log().lines().filter(|line| line.contains("WARN")).count();
    for level in ["info", "warn", "debug"] {
        gateway.daemon.ask(&["log-level", level]).unwrap().success().unwrap();
        let asked = dns.questions();
        wait_for("more questions", || dns.questions() > asked + 3);
        assert!(lines() < 10, "{level}: {}", gateway.daemon.log());
    }
}

#[test]
fn nothing_is_opened_for_a_name_that_was_never_resolved() {
    let (dns, mut gateway) = named(&json!({}));
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    wait_for("an answer", || dns.questions() >= 2);
    assert_eq!(answered(lab).0.trim_end(), "425 Gateway: name not resolved yet.");
    assert_eq!(gateway.count("pinholes_opened"), 0);
    assert_eq!(gateway.count("pinholes_refused"), 1);
    for command in ["status", "doctor"] {
        wait_for("the problem", || problems(&gateway.daemon, command) == ["name"]);
    }
    assert!(!dns.log().contains("other.test"), "no search domain: {}", dns.log());
    dns.set(&is(FIRST));
    wait_for_address(&gateway.daemon, FIRST);
    assert_eq!(announced_address(lab).0, FIRST);
    assert!(gateway.daemon.stop().unwrap().success());
}

#[test]
fn a_reload_adds_changes_and_removes_names() {
    let (_dns, gateway) = named(&json!({ NAME: {"A": [FIRST]}, "b.test": {"A": [SECOND]} }));
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    wait_for_address(&gateway.daemon, FIRST);
    for (configuration, announced_now, names) in [
        (
            "[[server]]\naddress = \"192.168.150.90\"\nexternal-address = \"dns:b.test\"\n",
            SECOND,
            1,
        ),
        ("", "198.51.100.1", 0),
        ("nat.external-address = \"dns:hosts.lab.test\"\n", "203.0.113.9", 2),
    ] {
        reload(&gateway.daemon, configuration);
        // Until the name is looked up, the answer is 425.
        let announced_now = announced_now.replace('.', ",");
        wait_for(configuration, || answered(lab).0.contains(&announced_now));
        let status = gateway.daemon.status().unwrap();
        assert_eq!(status["names"].as_array().unwrap().len(), names, "{configuration}");
    }
}

#[test]
fn a_gateways_new_address_is_announced_and_the_old_one_is_not() {
    let (gateway, server) = served(Topology::Masquerade, "", json!({}));
    let lab = &gateway.lab;
    let client = hold(lab, (login(), port_transfer(), gate(), port_transfer()));
    // As a dial-up line does, which is given another address.
    lab.gateway
        .shell("ip address del 198.51.100.1/24 dev wan; ip address add 198.51.100.77/24 dev wan")
        .unwrap();
    // The kernel forgets masqueraded connections a moment later (masq_device_event).
    let masqueraded = "conntrack -L -p tcp --reply-dst 198.51.100.1 2>/dev/null";
    wait_for("the end of its connection", || {
        lab.gateway.shell(masqueraded).unwrap().stdout_text().is_empty()
    });
    let heard = server.lines().len();
    let session = client.release();
    assert!(session.error.is_some(), "its connection is gone with its address");
    assert_eq!(session.got(9), "the body\r\n");
    assert_eq!(server.lines().len(), heard, "nothing of it reaches the server any more");

    let session = talk(lab, (login(), port_transfer())).ok();
    assert_eq!(session.got(9), "the body\r\n");
    let lines = server.lines();
    let announced: Vec<_> = lines.iter().filter(|line| line.starts_with("PORT")).collect();
    assert_eq!(announced.len(), 2, "{lines:?}");
    assert_eq!(host_port(announced[0]).0, "198.51.100.1");
    assert_eq!(host_port(announced[1]).0, "198.51.100.77");
    // What conntrack has forgotten may end unseen: then its pinhole does in time.
    gateway.daemon.wait_for_no_pinholes(Duration::from_secs(35)).unwrap();
}
