//! `ftp-alg watch`: what the gateway would do with the traffic of an interface, while nothing is changed.

use std::process::Command;

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

#[test]
fn a_watch_shows_each_announcement_and_changes_nothing() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    let state = || (lab.gateway.ruleset().unwrap(), lab.gateway.connections().unwrap());
    let before = state();
    let arguments = ["--json", "--transfers", "--external", "198.51.100.1"];
    let watch = Watch::start(lab, lab.client_side(), &arguments);
    assert_eq!(state(), before);
    let link = lab.gateway.run("ip", &["-d", "link", "show", lab.client_side()]).unwrap();
    assert!(link.stdout_text().contains("promiscuity 0"), "{}", link.stdout_text());
    let transfers = FAMILIES.map(|family| MODES.map(|mode| (family, mode))).concat();
    for (family, mode) in &transfers {
        let address = lab.server_address(*family);
        let transfer = Transfer::new(ClientProgram::Curl, &lab.client, &server, address, *mode);
        transfer.upload(&mode.to_string(), b"12345").unwrap();
    }
    wait_for("the transfers", || watch.rows(true).len() == transfers.len());
    for (row, (_, mode)) in watch.rows(true).iter().zip(&transfers) {
        let shown = [&row["verb"], &row["mode"], &row["bytes"], &row["user"]];
        let expected = [json!("STOR"), json!(mode.to_string()), json!(5), json!(server.login().0)];
        assert_eq!(shown, expected.each_ref(), "{row}");
    }
    let steps = ["PORT 192,168,150,80,14,178", "PASV", "EPRT |1|192.168.150.80|3763|"].map(ask);
    talk(lab, (login_as(server.login()), steps, ask("QUIT"))).ok();
    let announced = |rows: Vec<Value>| {
        let mut all: Vec<_> = rows.iter().map(|row| row["announced"].to_string()).collect();
        all.sort();
        all
    };
    wait_for("what the daemon saw", || {
        let of_daemon = announced(gateway.events("announcement"));
        of_daemon.len() == transfers.len() + 3 && announced(watch.rows(false)) == of_daemon
    });
    let active = watch.rows(false).into_iter().filter(|row| row["from"] == "client");
    for row in active.filter(|row| !row["announced"].as_str().unwrap().starts_with('[')) {
        assert_eq!(row["action"], "rewrite", "{row}");
        assert!(row["rewritten"].as_str().unwrap().starts_with("198.51.100.1:"), "{row}");
    }
    let printed = watch.end();
    assert!(!printed.contains("dropped"), "{printed}");
}

/// The packets of a host have partial checksums, which are no fault. `--count` and `--seconds` end it.
#[test]
fn a_watch_ends_with_a_summary() {
    let gateway = gateway(Topology::Masquerade);
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    for limit in ["--count=5", "--seconds=86400"] {
        let mut watch = Watch::start(&gateway.lab, gateway.lab.client_side(), &[limit]);
        curl(&gateway.lab, &server, Mode::Passive).upload("q3.csv", b"12345").unwrap();
        let text = if limit == "--count=5" {
            wait_for("its end", || watch.0.exit_status().is_some());
            watch.0.log()
        } else {
            wait_for("the announcement", || watch.0.log().contains("PASV"));
            watch.end()
        };
        let packets = text.lines().find(|line| line.starts_with("of control connections"));
        assert!(packets.is_some_and(|line| limit != "--count=5" || line.ends_with(" 5")), "{text}");
        for fault in ["wrong checksum", "dropped", "captured in part", "gaps"] {
            assert!(!text.contains(fault), "{fault}: {text}");
        }
    }
    let program = executable();
    let words = ["60", program.to_str().unwrap(), "watch", "-i", "lo", "--seconds=1"];
    let done = gateway.lab.gateway.run("timeout", &words).unwrap();
    assert!(done.stdout_text().starts_with("no announcements"));
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
    lab.gateway.shell("ip link add brief up type veth peer name other").unwrap();
    let mut watch = Watch::start(&lab, "brief", &[]);
    // One that is only down may come back.
    lab.gateway.shell("ip link set brief down\nip link set brief up\nip link del brief\n").unwrap();
    wait_for("its end", || watch.0.exit_status().is_some());
    assert_eq!(watch.0.exit_status().unwrap().code(), Some(1));
    assert!(watch.0.log().contains("brief has disappeared"), "{}", watch.0.log());
}

/// A watch that is stopped for a while reads later what passed.
#[test]
fn packets_have_the_time_at_which_they_passed() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    server.put("file", b"12345").unwrap();
    let watch = Watch::start(lab, lab.client_side(), &["--json", "--transfers"]);
    let retrieve = (ask("TYPE I"), ask("EPSV"), dial(), ask("RETR pub/file"));
    let download = || hold(lab, (login_as(server.login()), &retrieve, gate(), [drain(), reply()]));
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
    assert!(text.lines().any(|line| line.starts_with("dropped by the kernel")), "{text}");
}
