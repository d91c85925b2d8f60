//! Each transfer is one line of the log: who moved which file, how many bytes, and how it ended.

mod restarts;

use std::cell::Cell;

use crate::common::*;

/// What a scripted server sends.
const BODY: &str = "here it is\r\n";

/// Waits for the log line of a transfer with all of `parts`.
fn wait_for_line(gateway: &Gateway, parts: &[&str]) -> String {
    let mut found = None;
    wait_for(&format!("{parts:?}"), || {
        let log = gateway.daemon.log();
        let mut lines = log.lines().filter(|line| line.contains(" transfer #"));
        found = lines.find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned);
        found.is_some()
    });
    found.unwrap()
}

/// The bytes are those of the file, in each mode, with each back end, on the fast path and off it.
#[test]
fn each_transfer_is_logged_with_its_file_and_exact_size() {
    for (setup, topology) in [
        ("", Topology::Masquerade),
        // Packets that leave by the output hook have no time.
        ("", Topology::OnServer),
        ("queue.fast-path = \"off\"\n", Topology::PublishedServer),
        ("pinhole.backend = \"conntrack\"\n", Topology::Masquerade),
    ] {
        let gateway = gateway_with(topology, setup);
        let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
        let (user, _) = server.login();
        let transfers = [
            (V4, Mode::Active, 5),
            (V4, Mode::Passive, 123_456),
            (V6, Mode::Active, 0),
            (V6, Mode::Passive, 7),
        ];
        for (family, mode, length) in transfers {
            let address = gateway.lab.server_address(family);
            let transfer =
                Transfer::new(ClientProgram::Curl, &gateway.lab.client, &server, address, mode);
            let name = format!("q3-{mode}-{length}.csv");
            transfer.upload(&name, &vec![b'x'; length]).unwrap();
            assert_eq!(transfer.download(&name).unwrap().len(), length);
            for verb in ["STOR", "RETR"] {
                let size = format!("/{name} {length} B in ");
                let line = wait_for_line(&gateway, &[&format!("{user}@"), verb, &size]);
                assert!(line.ends_with(": 226"), "{setup} {topology}: {line}");
            }
        }
        // An event comes after its line.
        wait_for("the events", || gateway.events("transfer").len() == 8);
        let shown = gateway.events("transfer");
        let of =
            |verb: &str| shown.iter().filter(|event| event["verb"] == verb).collect::<Vec<_>>();
        assert_eq!((of("STOR").len(), of("RETR").len()), (4, 4));
        let first = of("STOR")[0];
        assert_eq!((&first["user"], &first["code"]), (&json!(user), &json!(226)), "{first}");
        assert!(first["path"].as_str().unwrap().ends_with("/q3-active-5.csv"), "{first}");
        let totals = &gateway.daemon.status().unwrap()["transfers"];
        // curl lists nothing.
        assert_eq!(
            [&totals["active"]["complete"], &totals["passive"]["complete"]],
            [&json!(4); 2],
            "{setup}: {totals}"
        );
        assert_eq!(totals["bytes_up"], 123_468, "{totals}");
        assert_eq!(totals["bytes_down"], 123_468, "{totals}");
    }
}

/// The bytes of transfers that are over, each with the [`BODY`] of a scripted server.
fn assert_exact_bytes(gateway: &Gateway, transfers: usize) {
    wait_for("the transfers", || gateway.events("transfer").len() == transfers);
    for event in gateway.events("transfer") {
        let found = (&event["bytes"], &event["result"]);
        assert_eq!(found, (&json!(BODY.len()), &json!("complete")), "{event}");
    }
}

#[test]
fn transfers_that_the_fast_path_admits_have_exact_bytes() {
    let Some(gateway) = fast_path_gateway(Topology::Masquerade) else { return };
    let _server = scripted_server(&gateway.lab.server, &json!({"body": BODY}));
    let active = active_transfer(gateway.lab.client.address(V4), 3762);
    let steps = [login(), passive_transfer("PASV"), active, passive_transfer("EPSV")].concat();
    let sessions = Cell::new(0);
    until_on_fast_path(&gateway, ("admitted", 2), || {
        sessions.set(sessions.get() + 1);
        talk(&gateway.lab, &steps).ok();
    });
    assert_exact_bytes(&gateway, 3 * sessions.get());
}

/// The rules see packets of such a connection as packets from and to a server.
#[test]
fn a_data_connection_at_a_control_port_has_exact_bytes() {
    let setup = "queue.fast-path = \"off\"\n";
    let gateway = gateway_with(Topology::Routed, &format!("control-ports = [21, 2121]\n{setup}"));
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({"body": BODY}));
    let active = active_transfer(lab.client.address(V4), 2121);
    talk(lab, (login(), active.clone(), active)).ok();
    assert_exact_bytes(&gateway, 2);
}

/// A client asks a server for a file of `size` bytes, and goes on with the steps `end`.
fn start_download(
    gateway: &Gateway,
    kind: ServerKind,
    size: usize,
    end: &[Value],
) -> (Server, GatedClient) {
    let server = Server::start(kind, &gateway.lab.server).unwrap();
    server.put("large", &vec![b'x'; size]).unwrap();
    let retrieve = [say("TYPE I"), reply(), say("EPSV"), reply(), dial(), say("RETR pub/large")];
    let steps = (login_as(server.login()), retrieve.to_vec(), end.to_vec());
    let client = hold(&gateway.lab, steps);
    (server, client)
}

/// Another program reads the group: everything works, without bytes.
#[test]
fn a_taken_group_costs_the_bytes_alone() {
    let lab = lab_for(Topology::Masquerade, "");
    let mut command = lab.gateway.command("tcpdump");
    command.args(["-i", "nflog:2100", "-w", "/dev/null"]);
    let other = lab.gateway.start(command, "nflog").unwrap();
    wait_for("the other reader", || other.log().contains("listening on"));
    let gateway = Gateway::on(lab, "");
    let log = gateway.daemon.log();
    assert!(log.contains("nfnetlink_log group 2100: "), "{log}");
    assert!(!gateway.lab.gateway.ruleset().unwrap().contains("log group"));
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    for mode in MODES {
        curl(&gateway.lab, &server, mode).upload(&mode.to_string(), b"12345").unwrap();
        let line = wait_for_line(&gateway, &["STOR", &format!("/{mode} in ")]);
        assert!(line.ends_with(": 226"), "{line}");
    }
}

/// `log.transfers` and its format: a line for each, in a new file after a rotation and a reload.
#[test]
fn transfers_are_written_to_a_file() {
    for format in ["json", "xferlog"] {
        let lab = lab_for(Topology::Masquerade, "");
        let file = lab.directory().join("transfers");
        let log = format!("log.transfers = {file:?}\nlog.transfers-format = \"{format}\"\n");
        let gateway = Gateway::on(lab, &log);
        let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
        for name in ["first", "second"] {
            curl(&gateway.lab, &server, Mode::Passive).upload(name, b"12345").unwrap();
            wait_for(name, || fs::read_to_string(&file).is_ok_and(|text| text.ends_with("\n")));
            let text = fs::read_to_string(&file).unwrap();
            if format == "json" {
                let row = event_of(text.trim_end());
                assert!(row["path"].as_str().unwrap().ends_with(&format!("/{name}")), "{row}");
                assert_eq!((&row["event"], &row["bytes"]), (&json!("transfer"), &json!(5)));
            } else {
                let end = format!("/{name} b _ i a {} ftp 0 * c\n", server.login().0);
                assert!(text.lines().count() == 1 && text.ends_with(&end), "{text}");
            }
            fs::rename(&file, file.with_extension(name)).unwrap();
            signal(&gateway.daemon, "HUP");
            wait_for("the new file", || file.exists());
        }
        assert_eq!(gateway.daemon.status().unwrap()["transfers"]["unwritten"], 0);
    }
}

/// A server with few ports uses each again at once, while the daemon reads packets some twenty times a second. To those
/// that the gateway sends itself the kernel gives no time.
#[test]
fn transfers_over_the_same_ports_have_their_own_bytes() {
    const FILES: usize = 30;
    let slow = "queue.fast-path = \"off\"\n";
    for (setup, topology) in [("", Topology::Masquerade), (slow, Topology::Routed)] {
        let gateway = gateway_with(topology, setup);
        let lab = &gateway.lab;
        let is_here = topology == Topology::Routed;
        let host = if is_here { &lab.gateway } else { &lab.server };
        let address = if is_here { host.address(V4) } else { lab.server_address(V4) };
        lab.gateway.nft("insert rule inet gateway input accept").unwrap();
        let ports = "pasv_min_port=40000\npasv_max_port=40004\n";
        let _server = Server::start_with(ServerKind::Vsftpd, host, ports).unwrap();
        let directory = lab.client.directory().join("files");
        let upload = format!(
            "mkdir -p {0}; cd {0}; for n in $(seq {FILES}); do head -c $((37 * n)) /dev/zero > f$n; done; \
             curl -sS --disable-epsv -T 'f[1-{FILES}]' ftp://{1}/pub/",
            directory.display(),
            address
        );
        lab.client.shell(&upload).unwrap();
        wait_for("all transfers", || gateway.events("transfer").len() == FILES);
        for (number, event) in (1..).zip(gateway.events("transfer")) {
            let expected = (format!("/pub/f{number}"), 37 * number);
            let known = (&event["path"], &event["bytes"]);
            assert_eq!(known, (&json!(expected.0), &json!(expected.1)), "{event}");
            assert_eq!(event["result"], "complete", "{event}");
        }
    }
}

/// Without its entry in conntrack nothing of a connection passes the gateway. The daemon is another one since the transfer
/// began.
#[test]
fn a_running_transfer_that_the_kernel_forgets_is_reported() {
    let mut gateway = gateway(Topology::Masquerade);
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    server.put("long", &vec![b'x'; 50_000_000]).unwrap();
    let (user, password) = server.login();
    let url = format!("ftp://{}/pub/long", gateway.lab.server_address(V4));
    let mut held = Vec::new();
    for (mode, more) in [("passive", ""), ("active", "--ftp-port - --disable-eprt")] {
        let options = "--silent --output /dev/null --limit-rate 50k --max-time 120 --disable-epsv";
        let mut curl = gateway.lab.client.command("sh");
        curl.args(["-c", &format!("exec curl {options} --user {user}:{password} {more} {url}")]);
        held.push(gateway.lab.client.start(curl, mode).unwrap());
    }
    wait_for("running transfers", || gateway.count("pinholes_used") == 2);
    assert!(gateway.daemon.stop().unwrap().success());
    gateway.start_again("");
    gateway.lab.gateway.run("conntrack", &["-F"]).unwrap().success().unwrap();
    wait_for("their events", || gateway.events("no-data-connection").len() == 2);
    for event in gateway.events("no-data-connection") {
        let reason = event["reason"].as_str().unwrap();
        assert!(reason.starts_with("the kernel has forgotten the connection of "), "{event}");
        assert_eq!(event["user"], json!(user), "{event}");
    }
}

/// curl connects before it sends the command, so there is no transfer that could say what hangs. The last of these
/// pinholes expires before anybody would ask.
#[test]
fn a_data_connection_without_an_answer_is_reported_without_a_command() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let port = "pasv_min_port=40000\npasv_max_port=40000\n";
    let server = Server::start_with(ServerKind::Vsftpd, &lab.server, port).unwrap();
    let address = lab.server_address(V4);
    let url = format!("ftp://{address}/file");
    let chain = "table inet f { chain i { type filter hook input priority 0; }; }";
    lab.server.nft(chain).unwrap();
    let rule = |verdict: &str| {
        let rule = format!("flush chain inet f i; add rule inet f i tcp dport 40000 {verdict}");
        lab.server.nft(&rule).unwrap();
    };
    let missing = || gateway.events("no-data-connection");
    rule("reject with tcp reset");
    for session in 1..=3 {
        assert!(lab.client.shell(&format!("curl -sS --disable-epsv {url}")).is_err());
        wait_for("the report", || missing().len() == session);
    }
    let refused = format!("{address}:40000 refused the connection of 192.168.150.80");
    assert!(missing().iter().all(|event| event["reason"] == refused.as_str()));
    let warnings = || gateway.daemon.status().unwrap()["warnings"].to_string();
    wait_for("the warning", || warnings().contains("no-data-connection"));
    assert_eq!(gateway.daemon.status().unwrap()["problems"], json!([]));
    rule("drop");
    let mut program = lab.client.command("curl");
    program.args(["-sS", "--max-time", "60", "--disable-epsv", &url]);
    let hanging = lab.client.start(program, "curl").unwrap();
    wait_for("the report while it hangs", || missing().len() == 4);
    let silent = format!("SYN of 192.168.150.80 seen, no answer from {address}:40000");
    assert_eq!(missing()[3]["reason"], silent.as_str());
    drop(hanging);
    // It is not reported again with the session's end, and a client that cancels is not reported.
    rule("accept");
    let cancelled = hold(lab, json!([login_as(server.login()), ask("PASV"), gate()]));
    assert_eq!(cancelled.release().error, None);
    curl(lab, &server, Mode::Passive).upload("last", b"12345").unwrap();
    wait_for_line(&gateway, &["/last 5 B in "]);
    assert_eq!(missing().len(), 4);
}
