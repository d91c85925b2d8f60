//! What IP and TCP may do besides carrying bytes, through the real gateway: fragments, IP options, small windows.

use crate::common::*;

const PORT: &str = "PORT 192,168,150,80,14,178";

/// A client that sends its packets itself, and its kernel nothing (see `raw_client.py`).
fn raw_client(gateway: &Gateway, mut plan: Value) -> Value {
    let lab = &gateway.lab;
    let client = &lab.client;
    let quiet = "type filter hook output priority 0; tcp flags & rst != 0 drop;";
    client.nft(&format!("table inet quiet {{ chain output {{ {quiet} }}; }}")).unwrap();
    plan["host"] = json!(lab.server_address(V4).to_string());
    plan["source"] = json!(client.address(V4).to_string());
    let script = client.write("raw_client.py", include_bytes!("common/raw_client.py")).unwrap();
    let mut command = client.command("/usr/bin/python3");
    command.arg(script).arg(plan.to_string());
    let done = client.finish(command, b"", Duration::from_secs(60)).unwrap().success().unwrap();
    serde_json::from_str(&done.stdout_text()).unwrap()
}

fn lines(lines: &[&str]) -> Vec<Value> {
    lines.iter().map(|line| say(line)).collect()
}

#[test]
fn an_announcement_in_ip_fragments_with_options_is_rewritten() {
    let (gateway, server) = served(Topology::Masquerade, "", json!({}));
    let lab = &gateway.lab;
    let (inner, outer) = captures(lab);
    let steps = lines(&["USER lab", "PASS lab", PORT, "NOOP", "TYPE I"]);
    let plan = json!({"fragment": 24, "ip_options": true, "steps": steps});
    let report = raw_client(&gateway, plan);
    assert_eq!(report["error"], Value::Null, "{report}");
    let codes: Vec<&str> =
        report["replies"].as_array().unwrap().iter().map(|r| &r.as_str().unwrap()[..3]).collect();
    assert_eq!(codes, ["220", "331", "230", "200", "200", "200"]);
    let heard = server.lines();
    let port = heard.iter().find(|line| line.starts_with("PORT")).unwrap();
    let external = lab.gateway.address(V4).to_string();
    assert_eq!(host_port(port), (external, 3762), "{heard:?}");
    assert_eq!(gateway.count("pinholes_opened"), 1);
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0);
    assert!(inner.finish().unwrap().count("ip.flags.mf == 1 && ip.hdr_len > 20").unwrap() > 0);
    assert_eq!(outer.finish().unwrap().wrong_checksums().unwrap(), [""; 0]);
}

/// Sends `steps` after a login, and has nothing opened. The server has `more` configuration, and someone has put a
/// `.message` into `pub`. Where a window smaller than a segment ends, Linux has its server's segment end after a while,
/// with PSH (`tcp_write_wakeup`): what ends there looks as if it were over.
fn opens_nothing(kind: ServerKind, more: &str, message: &str, steps: &[Value]) {
    let gateway = gateway(Topology::PublishedServer);
    let server = Server::start_with(kind, &gateway.lab.server, more).unwrap();
    server.put(".message", message.as_bytes()).unwrap();
    let (user, password) = server.login();
    let mut all = lines(&[&format!("USER {user}"), &format!("PASS {password}")]);
    all.extend_from_slice(steps);
    let report = raw_client(&gateway, json!({"steps": all}));
    assert_eq!(report["error"], Value::Null, "{report}");
    let opened = gateway.count("pinholes_opened");
    assert_eq!(opened, 0, "{report}{}", gateway.daemon.log());
    let bounds = || gateway.daemon.log().matches("may be part of another reply").count();
    wait_for("its line", || bounds() > 0);
    assert_eq!(bounds(), 1, "{report}{}", gateway.daemon.log());
}

/// Sends `line`, and lets the server say no more than `reply`.
fn stop_behind(line: &str, reply: &str) -> Value {
    json!({"send": format!("{line}\r\n"), "edge": reply.len()})
}

#[test]
fn a_listing_that_its_client_has_a_real_server_stop_is_no_announcement() {
    let name = "k\r\x00213 End\r\x00229 E (|||3306|)\r\0y";
    let listed = "drwxr-xr-x    2 1        1            4096 Nov 21 15:10 k";
    opens_nothing(
        ServerKind::Vsftpd,
        "",
        "",
        &[
            say(&format!("MKD pub/{name}")),
            stop_behind("STAT pub/k*", &format!("213-Status follows:\r\n{listed}\r\n213 End\r\n")),
            epsv_with_room_for("229 E (|||3306|)\r\n".len()),
        ],
    );
}

/// `EPSV` in one segment, which lets the server say so much.
fn epsv_with_room_for(bytes: usize) -> Value {
    json!({"send": "EPSV\r\n", "edge": bytes, "whole": true})
}

#[test]
fn a_directory_that_its_client_has_a_real_server_stop_is_no_announcement() {
    let name = "x\r\0\n\u{ff}\u{fb}A229 E (|||3306|)";
    let unbounded = |line: &str| json!({"send": format!("{line}\r\n"), "edge": 50_000});
    let steps = [
        unbounded(&format!("MKD pub/{name}")),
        unbounded(&format!("CWD pub/{name}")),
        // We read two commands where it read one, and several replies in each of these: then nothing is pending.
        unbounded("XPWD"),
        unbounded("XPWD"),
        unbounded("XPWD"),
        stop_behind("XPWD", "257 \"/pub/x\r\n"),
        epsv_with_room_for("229 E (|||3306|)\" is the current directory\r\n".len()),
    ];
    opens_nothing(ServerKind::Proftpd, "", "", &steps);
}

/// It shows what someone has put there, and makes line ends of what stands for a time.
#[test]
fn a_file_that_its_client_has_a_real_server_stop_is_no_announcement() {
    let end = "\r%{time:%n}";
    let message = format!("x{end}250 End{end}229 x (|||3306|)\n");
    for room in ["229 x (|||3306|)\r\n".len(), 20, 50_000] {
        let steps = [stop_behind("CWD pub", "250-x\r\n250 End\r\n"), epsv_with_room_for(room)];
        opens_nothing(ServerKind::Proftpd, "DisplayChdir .message", &message, &steps);
    }
}
