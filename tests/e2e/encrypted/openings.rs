//! When the passive ports open: when both ends have begun TLS, by their bytes, and not before.

use super::*;

/// A record of TLS with this message, in a line: what [`say`] and the scripted server add belongs to it.
fn record(kind: u8, message: &str) -> String {
    let length = char::from(u8::try_from(message.len() + 2).unwrap());
    format!("{}\u{3}\u{3}\0{length}{message}", char::from(kind))
}

/// A peer that speaks TLS begins so. No byte is an end of line.
fn client_hello() -> String {
    record(22, "\u{1}\0\0\u{30}client")
}

fn server_hello() -> String {
    record(22, "\u{2}\0\0\u{30}server")
}

const HELLO_LEN: usize = 17;

/// A step that reads the server's hello, or as many bytes.
fn read_hello() -> Value {
    json!({"read": HELLO_LEN})
}

/// Plays `steps` with a server that answers these lines in this way. Returns which passive ports are open then.
fn opened(gateway: &Gateway, port: u16, extra: Value, steps: Value) -> Vec<String> {
    let lab = &gateway.lab;
    let server = scripted_server(&lab.server, &json!({"port": port, "extra": extra}));
    let mut plan = plan(lab, (steps, gate()));
    plan["port"] = json!(port);
    let client = gated_client(&lab.client, plan);
    let mut open = gateway.daemon.open_pinholes().unwrap();
    // What an announcement in plain text has opened is in other sets.
    open.retain(|one| one.starts_with("encrypted"));
    if open.is_empty() {
        let address = lab.server_address(V4).to_string();
        assert_eq!(answers(&lab.client, &address, "-"), [0; 0], "{extra}");
    }
    drop((client, server));
    open
}

#[test]
fn nothing_opens_until_both_ends_have_begun_tls() {
    let lab = Lab::new(Topology::Routed).unwrap();
    accept_implicit(&lab);
    let configuration = configuration(&lab, "nftables");
    let gateway = Gateway::on(lab, &configuration);
    let [client, server] = [client_hello(), server_hello()];
    let begin = json!({"AUTH": "234 go", &client: &server});
    let auth = [vec![reply()], ask("AUTH TLS")].concat();
    let hello = json!([say(&client), read_hello()]);

    // The peers of this test open them.
    let open = opened(&gateway, 21, begin.clone(), json!([auth, hello]));
    assert_eq!(open.len(), 1, "{open:?}");
    gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();

    let silent = json!({"AUTH": "234 go", &client: "  "});
    let text = json!({"AUTH": "234 go", &client: "500 what is that?"});
    let speaks_tls = json!({"AUTH": "234 go", "USER": &server});
    let at_once = json!({"AUTH": format!("234 go\r\n{server}")});
    let alert = json!({"AUTH": "234 go", &client: record(21, "\u{2}\u{28}34567890")});
    let passive = [ask("PASV"), ask("EPSV")].concat();
    for (case, port, extra, steps) in [
        (
            "a ClientHello that is not answered",
            21,
            silent,
            json!([auth, say(&client), {"read": 2}]),
        ),
        ("a ClientHello that text answers", 21, text, json!([auth, say(&client), reply()])),
        ("a ClientHello that an alert answers", 21, alert, json!([auth, hello])),
        ("TLS behind a login", 21, begin.clone(), json!([login(), hello])),
        (
            "a server that speaks TLS alone",
            21,
            speaks_tls,
            json!([auth, say("USER x"), read_hello()]),
        ),
        ("the server's hello alone", 21, at_once, json!([auth, read_hello()])),
        (
            "AUTH accepted, and not used",
            21,
            begin.clone(),
            json!([auth, login().split_off(1), passive]),
        ),
        ("plain text on the port for TLS", IMPLICIT, begin, json!([login(), hello])),
    ] {
        let open = opened(&gateway, port, extra, steps);
        assert_eq!(open, [""; 0], "{case}");
    }
    gateway.assert_tidy();
}

/// Without the key, all is as if the session could not be read.
#[test]
fn a_server_without_passive_ports_gets_none() {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    let server = server_tls(&lab, ClientTls::Explicit, false);
    let server = Server::start_tls(ServerKind::Vsftpd, &lab.server, &server).unwrap();
    server.put("file", b"the body").unwrap();
    let gateway = Gateway::on(lab, "");
    let scene = Scene { gateway, server, tls: ClientTls::Explicit };
    let client = scene.client(V4, gate());
    scene.assert_closed("without the key");
    client.release().ok();
    let mut transfer = curl(scene.lab(), &scene.server, Mode::Passive);
    transfer.tls = ClientTls::Explicit;
    assert!(transfer.download("file").is_err());
    scene.gateway.assert_tidy();
}
