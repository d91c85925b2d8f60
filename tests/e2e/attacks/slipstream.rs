//! NAT slipstreaming: an attacker makes a browser send a `PORT` line to a server that replies like an FTP server.

use super::scene::{ANNOUNCED, PORT, Scene, with_each_back_end};
use crate::common::*;

/// A second control port that the firewall accepts.
const SECOND: u16 = 2121;
/// The first port that the attack announces.
const FIRST: u16 = 4000;

fn port_line(port: u16) -> String {
    format!("PORT 192,168,150,80,{},{}\r\n", port / 256, port % 256)
}

/// Sends each of `openings` on a control connection of its own, to both control ports. The last line of each announces
/// the next port from [`FIRST`]. Each opening has the offsets at which its segments end.
fn assert_opens_nothing(openings: &[(String, Vec<usize>)], extra: &Value) {
    let gateway = gateway_with(Topology::Masquerade, "control-ports = [21, 2121]\n");
    let lab = &gateway.lab;
    let rule = format!("insert rule inet gateway forward tcp dport {SECOND} accept");
    lab.gateway.nft(&rule).unwrap();
    let plan = |port: u16| json!({"port": port, "extra": extra});
    let _servers = [21, SECOND].map(|port| scripted_server(&lab.server, &plan(port)));
    let last = FIRST + openings.len() as u16;
    let legitimate = last + 1;
    for control in [21, SECOND] {
        let mut steps = Vec::new();
        for (opening, cuts) in openings {
            steps.extend([reply(), json!({"send": opening, "cut": cuts, "pause": 0.002})]);
            steps.extend([json!({"sleep": 0.02}), json!({"redial": true})]);
        }
        steps.extend(login());
        steps.extend([gate()]);
        let listen: Vec<u16> = (FIRST..=legitimate).collect();
        let host = lab.server_address(V4);
        let plan = |steps: &[Value], listen: &[u16]| json!({"host": host, "port": control, "listen": listen, "steps": steps});
        let browser = gated_client(&lab.client, plan(&steps, &listen));
        assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0], "on {control}");
        let outside = lab.gateway.address(V4);
        let ports = format!("{FIRST}-{legitimate}");
        // Meanwhile the announcement of a real FTP client opens a pinhole that the scan must find.
        let steps = [&login()[..], &[json!({"send": port_line(legitimate)}), reply(), gate()]];
        let client = gated_client(&lab.client, plan(&steps.concat(), &[]));
        assert_eq!(lab.outsider.scan(outside, &ports).unwrap(), [0; 0], "on {control}");
        assert_eq!(lab.server.scan(outside, &ports).unwrap(), [legitimate], "on {control}");
        for held in [browser, client] {
            assert_eq!(held.release().error, None, "on {control}");
        }
    }
    assert_eq!(gateway.count("pinholes_opened"), 2);
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0);
}

/// The replies of a server that cooperates, so that a `POST` looks like FTP.
fn cooperating_replies() -> Value {
    json!({"POST": "220 go on", "Host:": "331 who?", "GET": "220 go on", "HELO": "220 go on"})
}

#[test]
fn an_http_post_opens_no_pinhole_wherever_segments_end() {
    let head = "POST / HTTP/1.1\r\nHost: ftp.example.net\r\nContent-Length: 4000\r\n\r\n";
    let body = "USER lab\r\nPASS lab\r\n";
    let line = port_line(FIRST).len();
    let openings: Vec<_> = (0..=line)
        .map(|at| {
            let before = format!("{head}{body}");
            // A browser can choose the segment ends by padding. The start of the `PORT` line is the most dangerous one.
            let cut = vec![before.len() + at];
            (before + &port_line(FIRST + at as u16) + "LIST\r\n", cut)
        })
        .collect();
    assert_opens_nothing(&openings, &cooperating_replies());
}

#[test]
fn a_port_line_inside_another_protocol_opens_no_pinhole() {
    let commands = "USER lab\r\nPASS lab\r\n";
    let hello = "\u{16}\u{3}\u{1}\u{1}\u{0}\u{1}\u{0}\u{0}\u{fc}\u{3}\u{3}";
    let stun = "\u{0}\u{1}\u{0}\u{8}!\u{12}\u{a4}Babcdefghijkl";
    let sip = "REGISTER sip:ftp SIP/2.0\r\n";
    let openings =
        [hello, stun, sip, "GET /", "SSH-2.0-x\r\n", "\0x", "\u{ff}\u{f4}\u{ff}\u{f2}x\r\n"];
    let openings: Vec<_> = openings
        .into_iter()
        .flat_map(|start| [format!("{start}{commands}"), format!("{start}\r\n{commands}")])
        .enumerate()
        .map(|(at, before)| {
            let cuts = vec![1, before.len()];
            (before + &port_line(FIRST + at as u16) + "LIST\r\n", cuts)
        })
        .collect();
    assert_opens_nothing(&openings, &cooperating_replies());
}

/// The request that Chromium sends for `fetch(url, {method: "USER", body})`. The server's greeting waited for the
/// client's window, so the request follows the greeting.
#[test]
fn an_http_request_with_an_ftp_verb_opens_no_pinhole() {
    let commands = "USER lab\r\nPASS lab\r\n";
    let openings: Vec<_> = ["USER", "PASS", "NOOP", "STAT", "QUIT", "PWD", "FEAT", "RETR"]
        .into_iter()
        .enumerate()
        .map(|(at, verb)| {
            let body = format!("\r\n{commands}{}LIST\r\n", port_line(FIRST + at as u16));
            let head = format!(
                "{verb} / HTTP/1.1\r\nHost: 10.0.0.2:21\r\nConnection: keep-alive\r\nContent-Length: {}\r\n\
                 User-Agent: Mozilla/5.0\r\nContent-Type: text/plain;charset=UTF-8\r\nAccept: */*\r\n\
                 Origin: null\r\nAccept-Encoding: gzip, deflate\r\nAccept-Language: en-US,en;q=0.9\r\n\r\n",
                body.len()
            );
            let cut = vec![head.len()];
            (head + &body, cut)
        })
        .collect();
    // The server also accepts header lines as commands.
    assert_opens_nothing(&openings, &json!({"Host:": "331 who?", "QUIT": "200 stay"}));
}

/// A server that sends nothing before it answers `USER` is not known to speak FTP.
#[test]
fn a_client_that_precedes_the_greeting_opens_no_pinhole() {
    // The server answers only after it has read a line.
    let scene = Scene::new(Topology::Masquerade, &json!({"greeting": null}));
    let mut steps = vec![json!({"send": "USER lab\r\n"}), reply(), say("PASS lab"), reply()];
    steps.extend([say(PORT), reply()]);
    let client = scene.client(&steps);
    scene.assert_closed(&[ANNOUNCED]);
    assert_eq!(client.release().error, None);
    assert_eq!(scene.gateway.count("pinholes_opened"), 0);
}

/// The kernel's FTP helper reads on where the dialogue is not FTP.
#[test]
fn a_browser_that_waits_for_replies_opens_no_pinhole() {
    with_each_back_end(|back_end| {
        let plan = json!({"extra": {"POST": "230 fine"}});
        let scene = Scene::with(Topology::Masquerade, back_end, &plan);
        let lines = ["POST / HTTP/1.1", PORT, "Host: ftp", "USER lab", "PASS lab", PORT];
        let client = scene.client(&[vec![reply()], lines.map(ask).concat()].concat());
        scene.assert_closed(&[ANNOUNCED]);
        assert_eq!(scene.gateway.count("pinholes_opened"), 0);
        client.release().ok();
    });
}
