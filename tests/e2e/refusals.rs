//! What is refused is informed at once, in order: real servers answer, real clients hear the gateway's reason and go on.

use serde::Serialize;

use crate::common::*;

/// But for the one that is announced, and two that might be chosen.
const REFUSING: &str = r#"[nat]
port-range = "49152-49153"
[policy]
auth-tls = "refuse"
deny-ports = ["1024-20049", "20051-49151", "49154-65535"]
"#;

/// The clients may go out without a pinhole.
const ACCEPT_OUTGOING: &str = "insert rule inet gateway forward iifname lan accept";

fn said(gateway: &Gateway, steps: impl Serialize) -> Vec<String> {
    let lab = &gateway.lab;
    let mut plan = plan(lab, steps);
    plan["listen"] = json!([20050]);
    let session = scripted_client(&lab.client, &plan).ok();
    let replies = session.steps.into_iter().map(|(got, _)| got.trim_end().to_owned());
    replies.filter(|got| !got.is_empty()).collect()
}

#[test]
fn every_server_answers_in_order_and_its_client_hears_the_reason() {
    let lab = lab_for(Topology::Masquerade, REFUSING);
    // So the server's own replies pass.
    lab.gateway.nft(ACCEPT_OUTGOING).unwrap();
    let gateway = Gateway::on(lab, REFUSING);
    for kind in ServerKind::ALL {
        let server = Server::start(kind, &gateway.lab.server).unwrap();
        let (name, password) = server.login();
        let third = "PORT 198,51,100,66,14,180";
        let user = ask(&format!("USER {name}"));
        let pipeline =
            format!("TYPE I\r\n{third}\r\nNOOP\r\nEPRT |1|192.168.150.80|22|\r\nNOOP\r\n");
        let steps = (
            // Before the login as well, where some servers would ask for that.
            (reply(), &user, ask(third), &user, ask(&format!("PASS {password}"))),
            ["AUTH TLS", "PASV", "EPSV"].map(ask),
            (json!({"send": pipeline}), [(); 5].map(|()| reply())),
            // What is allowed works on the same connection.
            ["PORT 192,168,150,80,78,82", "CWD pub"].map(ask),
        );
        let heard = said(&gateway, steps);
        let codes: Vec<_> = heard.iter().map(|line| &line[..3]).collect();
        let expected = [
            "220", "331", "504", "331", "230", "534", "227", "229", "200", "504", "200", "504",
            "200", "200", "250",
        ];
        assert_eq!(codes, expected, "{kind}: {heard:#?}");
        for at in [2, 5, 9, 11] {
            assert!(heard[at].to_lowercase().contains("gateway"), "{kind}: {}", heard[at]);
        }
        assert_eq!(gateway.count("errors"), 0);
    }
}

/// A reply that names an endpoint to which the client may not connect is refused where the operator's rules drop what
/// nobody admits. It passes where they may accept it.
#[test]
fn a_servers_reply_is_refused_if_the_operators_rules_drop_the_connection() {
    let gateway = gateway_with(Topology::Masquerade, REFUSING);
    let server = Server::start(ServerKind::Proftpd, &gateway.lab.server).unwrap();
    let steps = [login_as(server.login()), ask("PASV"), ask("EPSV"), ask("NOOP")].concat();
    let codes = || -> Vec<String> {
        said(&gateway, &steps).iter().map(|line| line[..3].to_owned()).collect()
    };
    let is_heard = |pasv: &str, epsv: &str| {
        let expected = ["220", "331", "230", pasv, epsv, "200"];
        wait_for(&format!("{expected:?}"), || codes() == expected);
    };
    is_heard("425", "425");
    gateway.lab.gateway.nft(ACCEPT_OUTGOING).unwrap();
    is_heard("227", "229");
    gateway.lab.gateway.nft("flush chain inet gateway forward").unwrap();
    gateway.lab.gateway.nft("add rule inet gateway forward tcp dport 21 accept").unwrap();
    gateway.lab.gateway.nft("add rule inet gateway forward ct state established accept").unwrap();
    is_heard("425", "425");
    assert_eq!(gateway.count("pinholes_opened"), 0);
}

/// All data ports of a server are denied: each client is informed at once and ends, or says what it tries next, long
/// before any of its time-outs.
#[test]
fn clients_end_at_once_and_show_the_reason() {
    const LIMIT: Duration = Duration::from_secs(7);
    let gateway = gateway_with(Topology::PublishedServer, REFUSING);
    let lab = &gateway.lab;
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    server.put("file", b"contents").unwrap();
    let mut shown = Vec::new();
    for client in ClientProgram::ALL {
        for mode in [Mode::Passive, Mode::Active] {
            let address = lab.server_address(V4);
            let transfer = Transfer::new(client, &lab.client, &server, address, mode);
            let attempt = || {
                let start = Instant::now();
                let outcome = transfer.download("file");
                (start.elapsed(), outcome)
            };
            let (mut took, mut outcome) = attempt();
            if took >= LIMIT {
                // A time-out comes each time, a delay on a busy machine does not.
                (took, outcome) = attempt();
            }
            let error = outcome.err().map(|error| error.to_string()).unwrap_or_default();
            println!("{client} {mode} {took:?}: {error}");
            assert!(took < LIMIT, "{client} {mode}: {took:?}");
            if error.contains("ateway") || error.contains("425") || error.contains("504") {
                shown.push((client, mode));
            }
        }
    }
    println!("the reason is shown by {shown:?}");
    assert!(shown.len() >= 4, "{shown:?}");
}
