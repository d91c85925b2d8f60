//! What `status`, `sessions` and `pinholes` show of a gateway that works.

use crate::common::*;

/// The window `name` of the rates.
fn window(gateway: &Gateway, name: &str) -> Value {
    gateway.daemon.status().unwrap()["rates"][name].clone()
}

#[test]
fn rates_count_transfers_sessions_and_refusals() {
    let gateway = gateway(Topology::Masquerade);
    let server = Server::start(ServerKind::Proftpd, &gateway.lab.server).unwrap();
    let transfer = curl(&gateway.lab, &server, Mode::Passive);
    transfer.upload("a", &[b'x'; 1000]).unwrap();
    assert_eq!(transfer.download("a").unwrap().len(), 1000);
    let mut steps = login();
    steps.extend([say("PORT 192,168,150,80,0,80"), reply(), say("RETR none"), reply()]);
    talk(&gateway.lab, steps);
    wait_for("two transfers and a failed one", || window(&gateway, "1m")["transfers"] == 3);
    let shown = window(&gateway, "1m");
    for (field, expected) in [
        ("sessions", 3),
        ("failed_transfers", 1),
        ("bytes_up", 1000),
        ("bytes_down", 1000),
        ("refusals", 1),
        ("drops", 0),
    ] {
        assert_eq!(shown[field], expected, "{field}: {shown}");
    }
    assert!(shown["decisions"].as_u64().unwrap() > 10, "{shown}");
    let status = gateway.daemon.status().unwrap();
    let (covered, uptime) = (&status["rates"]["1h"]["seconds"], &status["uptime_seconds"]);
    assert!(covered.as_f64().unwrap() >= uptime.as_f64().unwrap(), "{covered} {uptime}");
    // The newest window forgets them.
    let forgotten = || window(&gateway, "10s")["transfers"] == 0;
    wait_at_most(30, "no transfer in 10 s", forgotten);
    assert_eq!(window(&gateway, "1h")["transfers"], 3);
}

#[test]
fn transfers_that_are_not_reported_have_no_rate() {
    let gateway = gateway(Topology::Masquerade);
    for field in ["transfers", "failed_transfers", "bytes_up", "bytes_down"] {
        assert_eq!(window(&gateway, "10s")[field], Value::Null, "{field}");
    }
    assert_eq!(window(&gateway, "10s")["sessions"], 0);
}

#[test]
fn all_totals_begin_with_the_daemon() {
    let Some(mut gateway) = fast_path_gateway(Topology::Routed) else { return };
    let _server = scripted_server(&gateway.lab.server, &json!({"body": "here it is\r\n"}));
    let transfers = vec![passive_transfer("PASV"); 3];
    let client = hold(&gateway.lab, (login(), &transfers, gate(), &transfers, gate(), &transfers));
    let before = fast_path(&gateway.daemon);
    assert!(before["lines"].as_u64().unwrap() > 0, "{before}");
    gateway.daemon.kill();
    gateway.start_again(FAST_PATH);
    let status = gateway.daemon.status().unwrap();
    for name in ["lines", "opened", "admitted", "handed_back", "no_room"] {
        assert_eq!(status["fast_path"][name], 0, "{name}: {status}");
    }
    for name in ["fast_path_lines", "pinholes_opened", "sessions_started"] {
        assert_eq!(status[name], 0, "{name}: {status}");
    }
    client.release().ok();
    wait_for("six transfers", || gateway.count("pinholes_opened") == 6);
    assert!(fast_path(&gateway.daemon)["lines"].as_u64().unwrap() > 0);
}
