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
    let setups = ["", "queue.fast-path = \"off\"\n", "pinhole.backend = \"conntrack\"\n"];
    for setup in setups {
        // Packets that leave by the output hook have no time.
        let of_host =
            [Topology::OnServer, Topology::OnClient].into_iter().filter(|_| setup.is_empty());
        for topology in [Topology::Masquerade, Topology::PublishedServer].into_iter().chain(of_host)
        {
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
            for (field, expected) in [
                ("user", json!(user)),
                ("direction", json!("up")),
                ("mode", json!("active")),
                ("bytes", json!(5)),
                ("result", json!("complete")),
                ("code", json!(226)),
                ("reason", Value::Null),
            ] {
                assert_eq!(first[field], expected, "{field}: {first}");
            }
            assert!(first["path"].as_str().unwrap().ends_with("/q3-active-5.csv"), "{first}");
            let totals = &gateway.daemon.status().unwrap()["transfers"];
            let complete = |mode: &str| totals[mode]["complete"].as_u64().unwrap();
            // curl lists nothing.
            assert_eq!((complete("active"), complete("passive")), (4, 4), "{setup}: {totals}");
            assert_eq!(totals["bytes_up"], 123_468, "{totals}");
            assert_eq!(totals["bytes_down"], 123_468, "{totals}");
        }
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
    for topology in [Topology::Routed, Topology::Masquerade, Topology::PublishedServer] {
        let Some(gateway) = fast_path_gateway(topology) else { return };
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
}

/// The rules see packets of such a connection as packets from and to a server.
#[test]
fn a_data_connection_at_a_control_port_has_exact_bytes() {
    for setup in ["", "queue.fast-path = \"off\"\n"] {
        let gateway =
            gateway_with(Topology::Routed, &format!("control-ports = [21, 2121]\n{setup}"));
        let lab = &gateway.lab;
        let _server = scripted_server(&lab.server, &json!({"body": BODY}));
        let active = active_transfer(lab.client.address(V4), 2121);
        talk(lab, (login(), active.clone(), active)).ok();
        assert_exact_bytes(&gateway, 2);
    }
}

#[test]
fn a_failed_transfer_is_logged_with_its_reason() {
    let gateway = gateway(Topology::Masquerade);
    let server = Server::start(ServerKind::Proftpd, &gateway.lab.server).unwrap();
    // The server gives up after one retransmission.
    gateway.lab.server.run("sysctl", &["-qw", "net.ipv4.tcp_syn_retries=1"]).unwrap();
    gateway.lab.client.nft("table inet f { chain i { type filter hook input priority 0; tcp dport 40001 drop; }; }").unwrap();
    let mut steps = login();
    steps.extend([say("RETR none"), reply()]);
    for port in ["156,64", "156,65"] {
        // 40000 refuses, 40001 does not answer.
        steps.extend([say(&format!("PORT 192,168,150,80,{port}")), reply(), say("LIST"), reply()]);
    }
    let plan =
        json!({"host": gateway.lab.server_address(V4).to_string(), "timeout": 30, "steps": steps});
    let session = scripted_client(&gateway.lab.client, &plan);
    assert_eq!(session.error, None, "{session:?} {}", server.log());
    wait_for_line(&gateway, &["RETR", "none", ", refused"]);
    let reset = wait_for_line(&gateway, &["LIST", "refused the connection"]);
    assert!(reset.contains("no data connection: 192.168.150.80:40000 refused"), "{reset}");
    wait_for_line(
        &gateway,
        &["LIST", ": 425, no data connection: SYN of ", "no answer from 192.168.150.80:40001"],
    );
    let totals = &gateway.daemon.status().unwrap()["transfers"];
    assert_eq!(totals["active"]["no_data_connection"], 2, "{totals}");
}

#[test]
fn a_flood_of_refused_transfers_fills_no_log_and_loses_no_event() {
    const REFUSED: usize = 400;
    let plan = json!({"extra": {"RETR": "550 No such file."}});
    let lab = Lab::new(Topology::Masquerade).unwrap();
    let file = lab.directory().join("transfers.json");
    let gateway = Gateway::on(lab, &format!("log.transfers = {file:?}\n"));
    let _server = scripted_server(&gateway.lab.server, &plan);
    let flood = (0..REFUSED).flat_map(|number| ask(&format!("RETR {number}.csv")));
    talk(&gateway.lab, [login(), flood.collect()].concat()).ok();
    let written = || fs::read_to_string(&file).unwrap().lines().count();
    wait_for("all lines of the file", || written() == REFUSED);
    wait_for("all events", || gateway.events("transfer").len() == REFUSED);
    wait_for("the summary", || gateway.daemon.log().contains("not logged: transfers, the last of"));
    let log = gateway.daemon.log();
    let logged = log.lines().filter(|line| line.contains(" transfer #")).count();
    assert!((100..REFUSED).contains(&logged), "{logged}");
    // The session gets its other lines.
    talk(&gateway.lab, [login(), ask("PORT 9,9,9,9,80,80")].concat()).ok();
    wait_for("a refusal", || gateway.daemon.log().contains("refuse PORT"));
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

/// Pure-FTPd reports success when its kernel has the file, and the client still reads.
#[test]
fn a_slow_download_has_its_bytes() {
    const SIZE: usize = 200_000;
    for setup in ["", "queue.fast-path = \"off\"\n"] {
        let gateway = gateway_with(Topology::Masquerade, setup);
        let end = [reply(), reply(), gate(), drain()];
        let (_server, client) = start_download(&gateway, ServerKind::PureFtpd, SIZE, &end);
        // Longer than a transfer waits for its packets.
        thread::sleep(Duration::from_millis(1500));
        assert_eq!(gateway.events("transfer"), [json!(null); 0], "{setup}");
        assert_eq!(client.release().error, None);
        wait_for("the transfer", || gateway.events("transfer").len() == 1);
        let transfer = &gateway.events("transfer")[0];
        assert_eq!((&transfer["bytes"], &transfer["result"]), (&json!(SIZE), &json!("complete")));
        assert!(transfer["seconds"].as_f64().unwrap() > 1.4, "{transfer}");
    }
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
    assert!(
        gateway.daemon.log().contains("nfnetlink_log group 2100: "),
        "{}",
        gateway.daemon.log()
    );
    let rules = gateway.lab.gateway.run("nft", &["list", "table", "inet", "ftp_alg"]).unwrap();
    assert!(!rules.stdout_text().contains("log group"));
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    let (address, client) = (gateway.lab.server_address(V4), &gateway.lab.client);
    for mode in [Mode::Active, Mode::Passive] {
        let transfer = Transfer::new(ClientProgram::Curl, client, &server, address, mode);
        transfer.upload(&mode.to_string(), b"12345").unwrap();
        let line = wait_for_line(&gateway, &["STOR", &format!("/{mode} in ")]);
        assert!(line.ends_with(": 226"), "{line}");
    }
}

/// `log.transfers`: a line of JSON for each, in a new file after a rotation and a reload.
#[test]
fn transfers_are_written_to_a_file() {
    let lab = lab_for(Topology::Masquerade, "");
    let file = lab.directory().join("transfers.json");
    let gateway = Gateway::on(lab, &format!("log.transfers = \"{}\"", file.display()));
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    let (address, client) = (gateway.lab.server_address(V4), &gateway.lab.client);
    for name in ["first", "second"] {
        let transfer = Transfer::new(ClientProgram::Curl, client, &server, address, Mode::Passive);
        transfer.upload(name, b"12345").unwrap();
        wait_for(name, || fs::read_to_string(&file).is_ok_and(|text| text.ends_with("\n")));
        let text = fs::read_to_string(&file).unwrap();
        let row = event_of(text.trim_end());
        assert!(row["path"].as_str().unwrap().ends_with(&format!("/{name}")), "{row}");
        assert_eq!((&row["event"], &row["bytes"]), (&json!("transfer"), &json!(5)), "{row}");
        fs::rename(&file, file.with_extension(name)).unwrap();
        signal(&gateway.daemon, "HUP");
        wait_for("the reload", || {
            gateway.daemon.log().matches("the new configuration is in use").count()
                == if name == "first" { 1 } else { 2 }
        });
    }
    assert_eq!(gateway.daemon.status().unwrap()["transfers"]["unwritten"], 0);
}

/// `log.transfers-format`: what programs that evaluate the logs of servers read.
#[test]
fn transfers_are_written_as_xferlog() {
    let lab = lab_for(Topology::Masquerade, "");
    let file = lab.directory().join("xferlog");
    let log =
        format!("log.transfers = \"{}\"\nlog.transfers-format = \"xferlog\"\n", file.display());
    let gateway = Gateway::on(lab, &log);
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    curl(&gateway.lab, &server, Mode::Passive).upload("report.csv", b"12345").unwrap();
    wait_for("the line", || fs::read_to_string(&file).is_ok_and(|text| text.ends_with("\n")));
    let line = fs::read_to_string(&file).unwrap();
    let user = server.login().0;
    let of_user = if user == "anonymous" { 'a' } else { 'r' };
    let expected = format!(
        "^[A-Z][a-z]{{2}} [A-Z][a-z]{{2}} [ 1-3][0-9] [0-9:]{{8}} [0-9]{{4}} [0-9]+ 192.168.150.80 5 \\S*report.csv b _ i \
         {of_user} {user} ftp 0 \\* c\n$"
    );
    assert!(regex::Regex::new(&expected).unwrap().is_match(&line), "{line}");
}

/// A server with few ports uses each again at once, while the daemon reads packets some twenty times a second. To those
/// that the gateway sends itself the kernel gives no time.
#[test]
fn transfers_over_the_same_ports_have_their_own_bytes() {
    const FILES: usize = 60;
    let slow = "queue.fast-path = \"off\"\n";
    for (setup, topology) in
        [("", Topology::Masquerade), (slow, Topology::Masquerade), (slow, Topology::Routed)]
    {
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

/// Sequence numbers count modulo 4 GiB; conntrack, if it counts, says how often that was passed.
#[test]
fn bytes_above_4_gib_are_exact_where_conntrack_counts_or_null() {
    let size: u64 = (4 << 30) + 5;
    // In super-packets, so that it ends in time on a busy machine.
    let lab = Lab::build(LabSpec { offloads: true, ..LabSpec::new(Topology::Masquerade) }).unwrap();
    let gateway = Gateway::on(lab, "");
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    for (counts, known) in [(1, json!(size)), (0, json!(null))] {
        let count = format!("echo {counts} > /proc/sys/net/netfilter/nf_conntrack_acct");
        lab.gateway.shell(&count).unwrap();
        let upload = format!(
            "import ftplib\n\
             with ftplib.FTP('{}', 'lab', 'lab', timeout=60) as ftp:\n\
             \x20   with ftp.transfercmd('STOR big{counts}') as data:\n\
             \x20       for part in [4 << 20] * ({size} >> 22) + [{size} % (4 << 20)]:\n\
             \x20           data.sendall(bytes(part))\n\
             \x20   ftp.voidresp()\n",
            lab.server_address(V4)
        );
        lab.client.run("/usr/bin/python3", &["-c", &upload]).unwrap();
        wait_for_line(&gateway, &[&format!("STOR big{counts} ")]);
        let transfer = gateway.events("transfer").pop().unwrap();
        assert_eq!(transfer["bytes"], known, "{transfer}");
        assert_eq!(transfer["uncertain"].is_string(), counts == 0, "{transfer}");
    }
}

/// A client that opens no data connection, and one whose SYN is dropped behind the gateway.
#[test]
fn a_hanging_transfer_is_reported_before_its_end() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let port = "pasv_min_port=40000\npasv_max_port=40000\naccept_timeout=18\n";
    let server = Server::start_with(ServerKind::Vsftpd, &lab.server, port).unwrap();
    lab.server.nft("table inet f { chain i { type filter hook input priority 0; tcp dport 40000 drop; }; }").unwrap();
    let (user, _) = server.login();
    let address = lab.server_address(V4);
    for (file, dials, why) in [
        ("silent", false, format!("no connection of 192.168.150.80 to {address}:40000 seen")),
        ("dropped", true, format!("SYN of 192.168.150.80 seen, no answer from {address}:40000")),
    ] {
        let steps = json!([
            login_as(server.login()),
            ask("PASV"),
            say(&format!("STOR /pub/{file}")),
            gate()
        ]);
        let held = hold(lab, steps);
        let mut dialler = lab.client.command("bash");
        dialler.args(["-c", &format!("exec 3<>/dev/tcp/{address}/40000")]);
        let dialler = dials.then(|| lab.client.start(dialler, "dialler").unwrap());
        let waits = format!("{user}@192.168.150.80 STOR /pub/{file} has waited 1");
        let line = wait_for_line(&gateway, &[&waits]);
        assert!(line.ends_with(&why), "{line}");
        let mut event = Value::Null;
        wait_for("its event", || {
            let mut reported = gateway.events("transfer-waiting").into_iter();
            let found = reported.find(|event| event["path"] == format!("/pub/{file}"));
            event = found.unwrap_or_default();
            !event.is_null()
        });
        for (field, expected) in [
            ("user", json!(user)),
            ("verb", json!("STOR")),
            ("direction", json!("up")),
            ("mode", json!("passive")),
            ("bytes", Value::Null),
            ("result", json!("waiting")),
            ("code", Value::Null),
            ("reason", json!(why)),
        ] {
            assert_eq!(event[field], expected, "{field}: {event}");
        }
        let ended = format!("STOR /pub/{file} in ");
        let line = wait_for_line(&gateway, &[&ended, ": 425, no data connection: "]);
        let (_, time) = line.split_once(&ended).unwrap();
        let seconds: f64 = time.split_once(" s").unwrap().0.parse().unwrap();
        assert!(seconds > 10.0, "{line}");
        drop(dialler);
        assert_eq!(held.release().error, None);
        assert!(line.ends_with(&why), "{line}");
        let log = gateway.daemon.log();
        assert_eq!(log.matches(&waits).count(), 1, "{log}");
    }
}

/// A verb that only this server reads as `RETR`, and one that is read.
#[test]
fn a_file_that_an_unknown_verb_moves_is_reported() {
    for setup in ["", "queue.fast-path = \"off\"\n", "pinhole.backend = \"conntrack\"\n"] {
        let gateway = gateway_with(Topology::Masquerade, setup);
        let plan = json!({"body": BODY, "read_as": {"RE'TR": "RETR"}});
        let _server = scripted_server(&gateway.lab.server, &plan);
        let unknown = [say("RE'TR x"), reply(), accept(3762), reply()];
        let hidden = [ask("PORT 192,168,150,80,14,178"), unknown.to_vec()].concat();
        let in_passive = [say("RE'TR x"), reply(), drain(), reply()].to_vec();
        let hidden_passive = [ask("PASV"), vec![dial()], in_passive].concat();
        talk(&gateway.lab, (login(), &hidden, port_transfer(), &hidden, &hidden_passive)).ok();
        wait_for("the events", || gateway.events("transfer-unseen").len() == 3);
        assert_exact_bytes(&gateway, 1);
        for (event, mode) in
            gateway.events("transfer-unseen").iter().zip(["active", "active", "passive"])
        {
            for (field, expected) in [
                ("verb", Value::Null),
                ("path", Value::Null),
                ("direction", json!("down")),
                ("mode", json!(mode)),
                ("bytes", json!(BODY.len())),
                ("result", json!("unseen")),
                ("user", json!("lab")),
            ] {
                assert_eq!(event[field], expected, "{setup}{field}: {event}");
            }
        }
        let ended = || gateway.events("session-ended");
        wait_for("the end of the session", || !ended().is_empty());
        let known = (&ended()[0]["transfers"], &ended()[0]["bytes"]);
        assert_eq!(known, (&json!(1), &json!(4 * BODY.len())), "{}", ended()[0]);
    }
}

/// pyftpdlib connects before it answers a `PORT`.
#[test]
fn a_blocked_active_transfer_is_reported_before_the_reply_to_its_port() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let server = Server::start(ServerKind::Pyftpdlib, &lab.server).unwrap();
    lab.client.nft("table inet f { chain i { type filter hook input priority 0; tcp dport 40001 drop; }; }").unwrap();
    let port = say("PORT 192,168,150,80,156,65");
    let held = hold(lab, (login_as(server.login()), port, gate()));
    wait_for("the event", || gateway.events("no-data-connection").len() == 1);
    let missing = gateway.events("no-data-connection");
    let reason = missing[0]["reason"].as_str().unwrap();
    assert!(reason.ends_with("seen, no answer from 192.168.150.80:40001"), "{reason}");
    let totals = &gateway.daemon.status().unwrap()["transfers"];
    assert_eq!(totals["active"]["no_data_connection"], 1, "{totals}");
    assert_eq!(held.release().error, None);
    wait_for("the end of the session", || !gateway.events("session-ended").is_empty());
    assert_eq!(gateway.events("no-data-connection"), missing, "it is reported once");
}

/// Without its entry in conntrack nothing of a connection passes the gateway.
#[test]
fn a_running_transfer_that_the_kernel_forgets_is_reported() {
    [false, true].into_iter().for_each(assert_reports_a_forgotten_transfer);
}

/// The daemon may be another one since the transfer began.
fn assert_reports_a_forgotten_transfer(is_restarted: bool) {
    let mut gateway = gateway(Topology::Masquerade);
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    server.put("long", &vec![b'x'; 50_000_000]).unwrap();
    let (user, password) = server.login();
    let url = format!("ftp://{}/pub/long", gateway.lab.server_address(V4));
    let mut held = Vec::new();
    for (mode, more) in [("passive", &[][..]), ("active", &["--ftp-port", "-", "--disable-eprt"])] {
        let mut curl = gateway.lab.client.command("curl");
        curl.args([
            "--silent",
            "--output",
            "/dev/null",
            "--limit-rate",
            "50k",
            "--max-time",
            "120",
        ]);
        curl.args(["--user", &format!("{user}:{password}"), "--disable-epsv"]).args(more).arg(&url);
        held.push(gateway.lab.client.start(curl, mode).unwrap());
    }
    wait_for("running transfers", || gateway.count("pinholes_used") == 2);
    if is_restarted {
        assert!(gateway.daemon.stop().unwrap().success());
        gateway.start_again("");
    }
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
    for setup in ["", "queue.fast-path = \"off\"\n", "pinhole.timeout = \"3s\"\n"] {
        let gateway = gateway_with(Topology::Masquerade, setup);
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
        assert!(missing().iter().all(|event| event["reason"] == refused.as_str()), "{setup}");
        wait_for("the warning", || {
            let status = gateway.daemon.status().unwrap();
            let text = status["warnings"].to_string();
            text.contains("no-data-connection") && text.contains(&refused)
        });
        assert_eq!(gateway.daemon.status().unwrap()["problems"], json!([]));
        rule("drop");
        let mut program = lab.client.command("curl");
        program.args(["-sS", "--max-time", "60", "--disable-epsv", &url]);
        let hanging = lab.client.start(program, "curl").unwrap();
        wait_for("the report while it hangs", || missing().len() == 4);
        let silent = format!("SYN of 192.168.150.80 seen, no answer from {address}:40000");
        assert_eq!(missing()[3]["reason"], silent.as_str());
        assert!(gateway.daemon.log().contains(&format!(": no data connection: {silent}")));
        drop(hanging);
        let totals = &gateway.daemon.status().unwrap()["transfers"];
        assert_eq!(totals["passive"]["no_data_connection"], 4, "{totals}");
        // It is not reported again with the session's end, and a client that cancels is not reported.
        rule("accept");
        let cancelled = hold(lab, json!([login_as(server.login()), ask("PASV"), gate()]));
        assert_eq!(cancelled.release().error, None);
        curl(lab, &server, Mode::Passive).upload("last", b"12345").unwrap();
        wait_for_line(&gateway, &["/last 5 B in "]);
        assert_eq!(missing().len(), 4, "{setup}");
    }
}

/// From the first login to the end, with the bytes. A connection without a login leaves nothing.
#[test]
fn sessions_are_reported_from_login_to_end() {
    for setup in ["", "log.transfers = false\n"] {
        let gateway = gateway_with(Topology::Masquerade, setup);
        let lab = &gateway.lab;
        let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
        let (user, _) = server.login();
        talk(
            lab,
            [reply(), say("USER nobody"), reply(), say("PASS no"), reply(), say("QUIT"), reply()],
        )
        .ok();
        curl(lab, &server, Mode::Passive).upload("q3.csv", b"12345").unwrap();
        wait_for("the end of the session", || !gateway.events("session-ended").is_empty());
        let [ended] = &gateway.events("session-ended")[..] else { panic!() };
        let [started] = &gateway.events("session-started")[..] else { panic!() };
        assert_eq!(started["session"], ended["session"]);
        let bytes = if setup.is_empty() { json!(5) } else { Value::Null };
        for (field, expected) in [
            ("user", json!(user)),
            ("end", json!("closed")),
            ("transfers", json!(1)),
            ("bytes", bytes),
            ("client", json!("192.168.150.80")),
        ] {
            assert_eq!(ended[field], expected, "{field}: {ended}");
        }
        assert!(!gateway.daemon.log().contains("session ended"), "only with the level debug");
        let sessions = [ended, started].map(|event| event["id"].as_u64().unwrap());
        let transfers = gateway.events("transfer");
        let ids = transfers.iter().map(|transfer| transfer["id"].as_u64().unwrap());
        assert!(ids.into_iter().all(|id| sessions[1] < id && id < sessions[0]), "{transfers:?}");
    }
}
