//! Crashes, stops and starts of the daemon while control connections go on.

use crate::common::*;

const PORT: &str = "PORT 192,168,150,80,14,178";

/// One worker, so that all is in one journal.
const ONE: &str = "queue.workers = 1\n";

/// How the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// As in a crash.
    Kill,
    /// As an upgrade of the package does.
    Stop,
}

impl Gateway {
    fn end(&mut self, how: End) {
        match how {
            End::Kill => self.daemon.kill(),
            End::Stop => assert!(self.daemon.stop().unwrap().success(), "{}", self.daemon.log()),
        }
    }

    /// A client with these steps after a login, which waits at its gate.
    fn client(&self, steps: &[Vec<Value>]) -> GatedClient {
        hold(&self.lab, (login(), steps.concat()))
    }

    /// A file of the daemon's state directory.
    fn state(&self, name: &str) -> PathBuf {
        self.daemon.socket().with_file_name("state").join(name)
    }
}

fn list() -> Vec<Value> {
    port_transfer().split_off(2)
}

#[test]
fn adjusted_connections_go_on_after_a_crash_and_after_a_stop() {
    // While sessions go on, "auto" keeps the back end.
    for (backend, how, is_auto) in [
        ("nftables", End::Kill, false),
        ("conntrack", End::Stop, false),
        ("conntrack", End::Kill, true),
    ] {
        let configuration = back_end(backend);
        let (mut gateway, _server) = served(Topology::Masquerade, &configuration, json!({}));
        let client = gateway.client(&[port_transfer(), vec![gate()], port_transfer()]);
        gateway.end(how);
        gateway.start_again(if is_auto { "" } else { &configuration });
        assert_eq!(gateway.daemon.status().unwrap()["backend"], backend);
        let log = gateway.daemon.log();
        assert!(log.contains("restored 1 session (1 with sequence adjustment)"), "{log}");
        let session = client.release().ok_in(format!("{backend} {how:?}"));
        assert_eq!(session.got(16), "the body\r\n", "{backend} {how:?}");
        assert_eq!(gateway.lab.gateway.invalid_packets().unwrap(), 0, "{backend} {how:?}");
    }
}

#[test]
fn unadjusted_sessions_are_known_again_too_without_their_table() {
    for how in [End::Kill, End::Stop] {
        let (mut gateway, _server) = served(Topology::Routed, "", json!({}));
        let client = gateway.client(&[vec![gate()], ask(PORT), list()]);
        gateway.end(how);
        // As a firewall does that is loaded meanwhile; a clean stop has removed it already.
        let _ = gateway.lab.gateway.nft("delete table inet ftp_alg");
        gateway.start_again("");
        let session = client.release().ok_in(format!("{how:?}"));
        assert_eq!(session.got(10), "the body\r\n", "{how:?}");
    }
}

#[test]
fn what_was_said_while_the_daemon_was_down_opens_nothing_later() {
    let (mut gateway, server) = served(Topology::Routed, "", json!({}));
    // What is not seen is a REIN: the login does not count any more.
    let gate = || vec![gate()];
    let mut client = gateway.client(&[gate(), ask("REIN"), gate(), ask(PORT)]);
    gateway.end(End::Kill);
    // Up to the heartbeat's deadline the kernel drops it.
    client.open_gate();
    wait_for("the REIN", || server.lines().iter().any(|line| line == "REIN"));
    gateway.start_again("");
    assert_eq!(client.release().error, None);
    assert_eq!(gateway.count("pinholes_opened"), 0, "{}", gateway.daemon.log());
    assert_eq!(gateway.count("unread_sessions"), 1, "{}", gateway.daemon.log());
}

#[test]
fn a_pinhole_outlives_the_daemon_and_is_used_once() {
    for backend in ["nftables", "conntrack"] {
        let configuration = back_end(backend);
        let (mut gateway, server) = served(Topology::Masquerade, &configuration, json!({}));
        let client = gateway.client(&[ask(PORT), vec![gate()], list()]);
        let (address, port) = host_port(server.lines().last().unwrap());
        let before = gateway.daemon.pinholes().unwrap();
        gateway.end(End::Kill);
        gateway.start_again(&configuration);
        let after = gateway.daemon.pinholes().unwrap();
        let key =
            |rows: &[Value]| rows.iter().map(|row| row["arrival"].clone()).collect::<Vec<_>>();
        assert_eq!((key(&after), after.len()), (key(&before), 1), "{backend}");
        let session = client.release().ok_in(backend);
        assert_eq!(session.got(10), "the body\r\n", "{backend}");
        // Used before the next end, it is not opened by the next start.
        gateway.end(End::Kill);
        gateway.start_again(&configuration);
        assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0], "{backend}");
        assert_eq!(connect_in_vain(&gateway.lab.server, &address, port), "silent", "{backend}");
    }
}

#[test]
fn a_table_of_other_rules_is_replaced_and_its_pinholes_stay() {
    let (mut gateway, _server) = served(Topology::Masquerade, "", json!({}));
    let client = gateway.client(&[ask(PORT), vec![gate()], list(), ask(PORT), list()]);
    let host = gateway.lab.gateway.clone();
    let table = || {
        let listed =
            host.run("nft", &["-a", "list", "table", "inet", "ftp_alg"]).unwrap().stdout_text();
        listed.lines().find(|line| line.contains("table inet")).unwrap().to_owned()
    };
    let (before, same) = (table(), gateway.state("table.json"));
    gateway.end(End::Kill);
    gateway.start_again("");
    assert_eq!(table(), before, "rules that are the same stay");
    gateway.end(End::Kill);
    // As if the version before had other rules.
    let text = fs::read_to_string(&same).unwrap().replace("policy accept", "policy accept ");
    fs::write(&same, text).unwrap();
    gateway.start_again("");
    assert_ne!(table(), before);
    assert_eq!(gateway.daemon.open_pinholes().unwrap().len(), 1);
    let session = client.release().ok();
    assert_eq!([session.got(10), session.got(16)], ["the body\r\n"; 2]);
    let said = "table inet ftp_alg is replaced: this state directory has no record of it";
    assert!(!gateway.daemon.log().contains(said), "{}", gateway.daemon.log());
    gateway.end(End::Kill);
    fs::remove_file(&same).unwrap();
    gateway.start_again("");
    assert!(gateway.daemon.log().contains(said), "{}", gateway.daemon.log());
}

#[test]
fn what_a_crash_left_open_without_a_session_is_closed() {
    let configuration = NFTABLES;
    let (mut gateway, _server) = served(Topology::Routed, configuration, json!({}));
    let client = gateway.client(&[vec![gate()]]);
    gateway.end(End::Kill);
    let element = "{ 198.51.100.10 . 192.168.150.80 . 4000 timeout 30s }";
    gateway.lab.gateway.nft(&format!("add element inet ftp_alg pinholes4 {element}")).unwrap();
    assert_eq!(gateway.daemon.open_pinholes().unwrap().len(), 1);
    gateway.start_again(NFTABLES);
    assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0]);
    assert_eq!(client.release().error, None);
}

#[test]
fn pinholes_that_the_next_configuration_forbids_are_closed() {
    for (backend, end) in [("nftables", End::Stop), ("conntrack", End::Kill)] {
        let configuration = back_end(backend);
        let (mut gateway, server) = served(Topology::Masquerade, &configuration, json!({}));
        let _client = gateway.client(&[ask(PORT), vec![gate()], list()]);
        let (address, port) = host_port(server.lines().last().unwrap());
        assert_eq!(gateway.daemon.open_pinholes().unwrap().len(), 1, "{backend}");
        gateway.end(end);
        gateway.start_again(&format!("{configuration}[policy]\ndeny-ports = [3762]\n"));
        assert_eq!(gateway.daemon.open_pinholes().unwrap(), [""; 0], "{backend} {end:?}");
        assert_eq!(gateway.daemon.pinholes().unwrap(), [json!(null); 0], "{backend} {end:?}");
        assert_eq!(connect_in_vain(&gateway.lab.server, &address, port), "silent", "{backend}");
    }
}

#[test]
fn state_that_is_damaged_or_foreign_is_refused_and_the_start_is_clean() {
    let journal = "queue-2100.sessions";
    type Damage = fn(&mut Vec<u8>);
    let cases: [(&str, &str, Damage); 2] = [
        ("a flipped bit", "damaged at byte", |text| {
            let middle = text.iter().position(|b| *b == b'\n').unwrap() + 30;
            text[middle] ^= 1;
        }),
        ("another boot", "another boot", |text| {
            let at = text.windows(5).position(|w| w == b"boot ").unwrap() + 5;
            text[at] = if text[at] == b'0' { b'1' } else { b'0' };
        }),
    ];
    for (what, words, damage) in cases {
        let (mut gateway, _server) = served(Topology::Masquerade, ONE, json!({}));
        let client = gateway.client(&[ask(PORT), list(), vec![gate()]]);
        gateway.end(End::Kill);
        let path = gateway.state(journal);
        let mut content = fs::read(&path).unwrap();
        damage(&mut content);
        fs::write(&path, &content).unwrap();
        gateway.start_again(ONE);
        let log = gateway.daemon.log();
        assert!(log.contains(words) && log.contains("queue-2100.refused"), "{what}: {log}");
        assert_eq!(fs::read(gateway.state("queue-2100.refused")).unwrap(), content, "{what}");
        // One that was heard of since is another.
        let known = gateway.daemon.sessions().unwrap();
        assert!(known.iter().all(|session| session["state"] == "picked-up"), "{what}: {known:?}");
        drop(client);
        // What is new works.
        let second = gateway.client(&[vec![gate()], ask(PORT), list()]).release();
        assert_eq!(second.error, None, "{what}");
    }
}

#[test]
fn what_is_no_file_in_place_of_a_state_file_is_not_followed() {
    let makers = ["mkfifo", "mkdir", "ln -s /dev/zero", "truncate -s 3G"];
    let names = ["queue-2100.new", "restored.new", "table.json", "table.new", "backend"];
    let (mut gateway, _server) = served(Topology::Masquerade, ONE, json!({}));
    for make in makers {
        gateway.end(End::Stop);
        let put = |name| {
            let path = gateway.state(name).display().to_string();
            let shell = format!("rm -rf {path}; {make} {path}");
            gateway.lab.gateway.shell(&shell).unwrap().success().unwrap();
            path
        };
        let paths = names.map(put).join(" ");
        gateway.start_again(ONE);
        let session = gateway.client(&[vec![gate()], port_transfer()]).release();
        assert_eq!(session.error, None, "{make}: {}", gateway.daemon.log());
        gateway.end(End::Stop);
        gateway.lab.gateway.shell(&format!("rm -rf {paths}")).unwrap();
        let journal = gateway.state("queue-2100.sessions").display().to_string();
        gateway.lab.gateway.shell(&format!("rm -f {journal}; {make} {journal}")).unwrap();
        if make.starts_with("truncate") {
            gateway.start_again(ONE);
            assert!(gateway.daemon.log().contains("queue-2100.refused"));
            continue;
        }
        let state = gateway.state("").display().to_string();
        let socket = gateway.daemon.socket().display().to_string();
        let words = ["run", "--config", "/dev/null", "--state-dir", &state, "--socket", &socket];
        let done = gateway.lab.gateway.try_run(executable(), &words).unwrap();
        assert_fails(&done, 1, &format!("{journal} is not a regular file; name another one"));
        gateway.lab.gateway.shell(&format!("rm -rf {journal}")).unwrap();
        gateway.start_again(ONE);
    }
}
