//! `ftp-alg watch`: what the gateway would do with the traffic of an interface, while nothing is changed.

use std::{net::SocketAddr, process::Command};

use crate::common::*;

/// A watch on an interface of the gateway, which reads packets.
struct Watch(BackgroundProcess);

impl Watch {
    fn start(lab: &Lab, interface: &str, arguments: &[&str]) -> Self {
        let mut command = lab.gateway.command(executable());
        command.args(["watch", "-i", interface]).args(arguments);
        let process = lab.gateway.start(command, "watch").unwrap();
        wait_for("the watch", || process.log().contains("packets are read"));
        Self(process)
    }

    /// The announcements or the transfers so far.
    fn rows(&self, are_transfers: bool) -> Vec<Value> {
        let log = self.0.log();
        let rows = log.lines().filter(|line| line.starts_with('{') && line.ends_with('}'));
        let rows = rows.map(|row| serde_json::from_str::<Value>(row).unwrap());
        rows.filter(|row| (row["event"] == "transfer") == are_transfers).collect()
    }

    fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// Ends it as a service manager does. Returns what it printed.
    fn end(mut self) -> String {
        let status = self.0.terminate(Duration::from_secs(10)).unwrap();
        assert_eq!(status.code(), Some(0), "{}", self.0.log());
        self.0.log()
    }
}

/// The endpoint that a line announces; of a 229, the port.
fn endpoint(line: &str) -> String {
    let bars: Vec<&str> = line.split('|').collect();
    match bars[..] {
        [_, "", "", port, _] => port.to_owned(),
        [_, _, address, port, _] => {
            SocketAddr::new(address.parse().unwrap(), port.parse().unwrap()).to_string()
        }
        _ => {
            let (address, port) = host_port(line);
            format!("{address}:{port}")
        }
    }
}

/// With a daemon, and without one. tshark reads the same announcements.
#[test]
fn a_watch_shows_each_announcement_and_changes_nothing() {
    for has_daemon in [true, false] {
        let lab = lab_for(Topology::Masquerade, "");
        let daemon = has_daemon.then(|| Daemon::start(&executable(), &lab.gateway, "").unwrap());
        let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
        let before = (lab.gateway.ruleset().unwrap(), lab.gateway.connections().unwrap());
        let watch = Watch::start(
            &lab,
            lab.client_side(),
            &["--json", "--transfers", "--external", "198.51.100.1"],
        );
        assert_eq!((lab.gateway.ruleset().unwrap(), lab.gateway.connections().unwrap()), before);
        let link = lab.gateway.run("ip", &["-d", "link", "show", lab.client_side()]).unwrap();
        assert!(link.stdout_text().contains("promiscuity 0"), "{}", link.stdout_text());
        let (capture, _) = captures(&lab);
        let transfers = FAMILIES.map(|family| MODES.map(|mode| (family, mode))).concat();
        for (family, mode) in transfers.iter().filter(|_| has_daemon) {
            let address = lab.server_address(*family);
            let transfer = Transfer::new(ClientProgram::Curl, &lab.client, &server, address, *mode);
            transfer.upload(&mode.to_string(), b"12345").unwrap();
        }
        if has_daemon {
            wait_for("the transfers", || watch.rows(true).len() == transfers.len());
            for (row, (_, mode)) in watch.rows(true).iter().zip(&transfers) {
                let shown = [&row["verb"], &row["mode"], &row["bytes"], &row["user"]];
                let expected =
                    [json!("STOR"), json!(mode.to_string()), json!(5), json!(server.login().0)];
                assert_eq!(shown, expected.each_ref(), "{row}");
            }
        }
        let announcing =
            ["PORT 192,168,150,80,14,178", "PASV", "EPSV", "EPRT |1|192.168.150.80|3763|"];
        let steps = announcing.map(ask);
        talk(&lab, json!([login_as(server.login()), steps, ask("QUIT")])).ok();
        let recorded = capture.finish().unwrap();
        let mut expected: Vec<String> =
            recorded.announcements().unwrap().iter().map(|line| endpoint(line)).collect();
        assert!(expected.len() >= 4, "{expected:?}");
        let mut seen = Vec::new();
        wait_for(&format!("{expected:?}"), || {
            let rows = watch.rows(false);
            let shown = |row: &Value| {
                let announced = row["announced"].as_str().unwrap();
                let of_229 = announced.rsplit(':').next().filter(|_| row["kind"] == "EPSV");
                of_229.unwrap_or(announced).to_owned()
            };
            seen = rows.iter().map(shown).collect();
            seen.len() >= expected.len()
        });
        let active = watch.rows(false).into_iter().filter(|row| row["from"] == "client");
        for row in active.filter(|row| !row["announced"].as_str().unwrap().starts_with('[')) {
            assert_eq!(row["action"], "rewrite", "{row}");
            assert!(row["rewritten"].as_str().unwrap().starts_with("198.51.100.1:"), "{row}");
        }
        expected.sort();
        seen.sort();
        assert_eq!(seen, expected);
        let printed = watch.end();
        assert!(!printed.contains("dropped"), "{printed}");
        if let Some(daemon) = daemon {
            daemon.wait_for_no_pinholes(Duration::from_secs(60)).unwrap();
        } else {
            assert_eq!(lab.gateway.ruleset().unwrap(), before.0);
        }
    }
}

/// The packets of a host have partial checksums, which are no fault. `--count` and `--seconds` end it.
#[test]
fn a_watch_ends_with_a_summary() {
    let gateway = gateway(Topology::Masquerade);
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    for ends_by_count in [true, false] {
        let limit = if ends_by_count { "--count=5" } else { "--seconds=86400" };
        let mut watch = Watch::start(&gateway.lab, gateway.lab.client_side(), &[limit]);
        curl(&gateway.lab, &server, Mode::Passive).upload("q3.csv", b"12345").unwrap();
        let text = match ends_by_count {
            true => {
                wait_for("its end", || watch.0.exit_status().is_some());
                watch.0.log()
            }
            false => {
                wait_for("the announcement", || {
                    watch.0.log().contains("PASV") || watch.0.log().contains("EPSV")
                });
                watch.end()
            }
        };
        let packets = text.lines().find(|line| line.starts_with("of control connections"));
        assert!(packets.is_some_and(|line| !ends_by_count || line.ends_with(" 5")), "{text}");
        for fault in ["wrong checksum", "dropped", "captured in part", "gaps"] {
            assert!(!text.contains(fault), "{fault}: {text}");
        }
        assert!(text.contains("malformed               0"), "{text}");
    }
    let done = gateway.lab.gateway.run(
        "timeout",
        &["60", executable().to_str().unwrap(), "watch", "-i", "lo", "--seconds=1"],
    );
    assert!(done.unwrap().stdout_text().starts_with("no announcements"));
}

#[test]
fn a_watch_says_why_it_cannot_read() {
    let lab = lab_for(Topology::Masquerade, "");
    let program = executable_for_everyone(&lab);
    let program = program.to_str().unwrap();
    let done = lab.gateway.try_run(program, &["watch", "-i", "eth9"]).unwrap();
    assert_fails(&done, 2, "there is no interface eth9; there are lo, ");
    let [setpriv, options @ ..] = AS_NOBODY;
    let arguments = [&options[..], &[program, "watch", "-i", "lo"]].concat();
    let done = lab.gateway.try_run(setpriv, &arguments).unwrap();
    assert_fails(&done, 1, "cannot watch lo: no right to read its packets (CAP_NET_RAW)");
    lab.gateway
        .shell("ip link add brief type veth peer name other\nip link set brief up\n")
        .unwrap();
    let mut watch = Watch::start(&lab, "brief", &[]);
    // One that is only down may come back.
    lab.gateway.shell("ip link set brief down\nip link set brief up\nip link del brief\n").unwrap();
    wait_for("its end", || watch.0.exit_status().is_some());
    assert_eq!(watch.0.exit_status().unwrap().code(), Some(1));
    assert!(watch.0.log().contains("brief has disappeared"), "{}", watch.0.log());
    assert!(watch.0.log().contains("of control connections"), "{}", watch.0.log());
}

/// A watch that is stopped for a while reads later what passed.
#[test]
fn packets_have_the_time_at_which_they_passed() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    server.put("file", b"12345").unwrap();
    let watch = Watch::start(lab, lab.client_side(), &["--json", "--transfers"]);
    let retrieve = [say("TYPE I"), reply(), say("EPSV"), reply(), dial(), say("RETR pub/file")];
    let end = [reply(), gate(), drain(), reply()];
    let transfer = [&retrieve[..], &end].concat();
    let download = || hold(lab, (login_as(server.login()), &transfer));
    // The kernel has the times from the first packet on.
    assert_eq!(download().release().error, None);
    wait_for("a transfer", || watch.rows(true).len() == 1);
    watch.signal("STOP");
    let client = download();
    thread::sleep(Duration::from_millis(1100));
    assert_eq!(client.release().error, None);
    watch.signal("CONT");
    wait_for("the other transfer", || watch.rows(true).len() == 2);
    let row = &watch.rows(true)[1];
    assert_eq!(row["bytes"], 5, "{row}");
    assert!(row["seconds"].as_f64().unwrap() >= 1.1, "{row}");
}

/// Its packets wait in the kernel while it is stopped, as far as there is room.
#[test]
fn a_watch_that_reads_too_slowly_counts_what_it_missed() {
    let lab = lab_for(Topology::Masquerade, "");
    let watch = Watch::start(&lab, lab.client_side(), &[]);
    watch.signal("STOP");
    // Each of these connections is a SYN at least.
    lab.client.scan(lab.server_address(V4), "10000-29999").unwrap();
    watch.signal("CONT");
    let text = watch.end();
    assert!(text.contains("packets, because ftp-alg read too slowly"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("dropped by the kernel")), "{text}");
}
