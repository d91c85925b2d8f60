//! Everything that once was called well and was not: `status`, `doctor`, the log and the service manager tell it, each by
//! the same name.

use std::os::unix::net::UnixDatagram;

use crate::common::*;

/// What `command --json` says, and its exit code.
fn said(daemon: &Daemon, command: &str) -> (Value, i32) {
    let file = configuration_file(daemon);
    let mut arguments = vec![command, "--json"];
    if command == "doctor" {
        arguments.extend(["--config", &file]);
    }
    let done = daemon.ask(&arguments).unwrap();
    let said: Value = serde_json::from_str(&done.stdout_text())
        .unwrap_or_else(|error| panic!("{error}: {}{}", done.stdout_text(), done.stderr_text()));
    let code = done.status.code().unwrap();
    assert_eq!(code, i32::from(!names(&said, "problems").is_empty()), "{command}: {said}");
    (said, code)
}

/// The names in the list `list` of a report.
fn names(said: &Value, list: &str) -> Vec<String> {
    let all = said[list].as_array().unwrap();
    for one in all {
        for field in ["name", "text", "remedy"] {
            let text = one[field].as_str().unwrap();
            assert!(!text.is_empty() && !text.contains('\n'), "{field} of {one}");
        }
    }
    all.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

pub fn problems(daemon: &Daemon, command: &str) -> Vec<String> {
    names(&said(daemon, command).0, "problems")
}

pub fn warnings(daemon: &Daemon, command: &str) -> Vec<String> {
    names(&said(daemon, command).0, "warnings")
}

/// `status` and `doctor` name the problem of a daemon that does not answer. That for people has its remedy, and ends with
/// the error.
fn does_not_answer(daemon: &Daemon, name: &str, remedy: &str, error: &str) {
    for command in ["status", "doctor"] {
        assert_eq!(problems(daemon, command), [name], "{command}");
    }
    let done = daemon.ask(&["status"]).unwrap();
    assert_fails(&done, 1, error);
    let text = done.stdout_text();
    assert!(text.starts_with(&format!("PROBLEM {name}\n  ")), "{text}");
    assert!(text.contains(&format!("\n  {remedy}")), "{text}");
}

/// `name` is a warning alone: the gateway is not red.
fn is_warning(daemon: &Daemon, name: &str) {
    for command in ["status", "doctor"] {
        let (said, code) = said(daemon, command);
        assert_eq!((names(&said, "warnings"), code), (vec![name.to_owned()], 0), "{said}");
    }
}

/// The problem or warning `name` is reported by `status`, `doctor` and the log, and by nobody once it is solved.
fn is_reported_until_solved(daemon: &Daemon, (severity, name): (&str, &str), solve: impl FnOnce()) {
    let list = |command| names(&said(daemon, command).0, &format!("{severity}s"));
    wait_for(name, || list("status") == [name]);
    assert_eq!(list("doctor"), [name]);
    let line = format!("WARN {severity} {name}: ");
    wait_for("a line in the log", || daemon.log().contains(&line));
    let text = daemon.ask(&["status"]).unwrap().stdout_text();
    let title = format!("{} {name}\n  ", severity.to_uppercase());
    assert!(text.starts_with(&title), "{text}");
    if severity == "warning" {
        is_warning(daemon, name);
    }
    solve();
    wait_for("the solution", || list("status").is_empty());
    assert!(list("doctor").is_empty(), "{:?}", said(daemon, "doctor"));
    let solved = format!("INFO {severity} {name} is solved");
    wait_for("its line in the log", || daemon.log().contains(&solved));
}

#[test]
fn a_healthy_gateway_reports_no_problem() {
    let firewalls =
        FirewallKind::ALL.map(|firewall| ("", lab_behind(firewall, Topology::Masquerade)));
    let others = [(CONNTRACK, Topology::PublishedServer), (NFTABLES, Topology::OnServer)];
    let others = others.map(|(setup, topology)| (setup, lab_for(topology, setup)));
    for (setup, lab) in firewalls.into_iter().chain(others) {
        let Gateway { daemon, lab } = &Gateway::on(lab, setup);
        let running = lab.gateway.ruleset().unwrap();
        for command in ["status", "doctor"] {
            let (report, _) = said(daemon, command);
            for list in ["problems", "warnings"] {
                assert_eq!(names(&report, list), [""; 0], "{report}");
            }
        }
        assert_eq!(lab.gateway.ruleset().unwrap(), running);
        for word in ["problem", "warning"] {
            assert!(!daemon.log().contains(word), "{}", daemon.log());
        }
    }
}

/// Who asks on the wrong socket learns which daemon runs, and nothing about FTP.
#[test]
fn a_daemon_that_is_asked_elsewhere_hangs_or_is_killed() {
    let Gateway { daemon, lab } = &mut gateway(Topology::Masquerade);
    let file = configuration_file(daemon);
    for command in [vec!["status"], vec!["doctor", "--config", &file]] {
        let elsewhere = ["--json", "--socket", "/nonexistent/ftp-alg.sock"];
        let done = lab.gateway.try_run(executable(), &[&command[..], &elsewhere].concat()).unwrap();
        let said: Value = serde_json::from_str(&done.stdout_text()).unwrap();
        assert_eq!(names(&said, "problems"), ["other-socket"], "{said}");
        let process = format!("process {}", daemon.id());
        assert!(said["problems"][0]["text"].as_str().unwrap().contains(&process), "{said}");
        assert!(!said.to_string().contains("FTP will not work"), "{said}");
    }
    signal(daemon, "STOP");
    does_not_answer(daemon, "daemon-hung", "systemctl restart ftp-alg", "does not answer");
    signal(daemon, "CONT");
    wait_for("the daemon", || problems(daemon, "status").is_empty());
    daemon.kill();
    let (start, error) = ("systemctl start ftp-alg", "no daemon answers on ");
    does_not_answer(daemon, "table-without-daemon", start, error);
    lab.gateway.shell("nft delete table inet ftp_alg").unwrap();
    does_not_answer(daemon, "daemon-absent", start, error);
}

#[test]
fn a_daemon_without_a_free_descriptor_says_so_at_once() {
    let lab = &Lab::new(Topology::Masquerade).unwrap();
    let program = executable_after(lab, "ulimit -S -n 48;");
    let daemon = &Daemon::start(&program, &lab.gateway, "").unwrap();
    let (id, name) = (daemon.id(), "file-descriptors");
    // With a worker for each processor and an interface for each VLAN the usual soft limit is too low.
    let limits = fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let [soft, hard] = [3, 4].map(|at| limit.split_whitespace().nth(at));
    assert_eq!(soft, hard, "{limit}");
    let limit_to = |soft: usize| {
        let arguments = ["--pid", &id.to_string(), &format!("--nofile={soft}:")];
        lab.gateway.run("prlimit", &arguments).unwrap();
    };
    // The only free one is the next client's: accept takes it before it waits.
    let is_open = |number: &usize| fs::symlink_metadata(format!("/proc/{id}/fd/{number}")).is_ok();
    wait_for("the problem", || {
        limit_to((0..).find(|number| !is_open(number)).unwrap() + 1);
        problems(daemon, "status") == [name]
    });
    let problem = daemon.status().unwrap()["problems"][0].to_string();
    assert!(problem.contains(&format!("prlimit --pid {id} ")), "{problem}");
    assert!(!problem.contains("restart"), "{problem}");
    is_reported_until_solved(daemon, ("problem", name), || limit_to(1024));
    // With a limit below all of them it cannot answer. Root sees why.
    limit_to(3);
    wait_for("its silence", || !daemon.ask(&["log-level"]).unwrap().status.success());
    let done = daemon.ask(&["status", "--json"]).unwrap();
    assert!(done.stdout_text().contains(name), "{}", done.stdout_text());
    limit_to(1024);
    wait_for("the daemon", || problems(daemon, "status").is_empty());
}

/// Loads a firewall that masquerades, drops by default, and has these rules for what is forwarded.
fn load_firewall(gateway: &Host, forwarded: &str, more: &str) {
    let rules = format!(
        "table inet filter
        delete table inet filter
        table inet filter {{
            chain source {{ type nat hook postrouting priority srcnat; oifname wan masquerade; }}
            chain forward {{
                type filter hook forward priority filter; policy drop;
                ct state established accept
                {forwarded}
            }}
            {more}
        }}"
    );
    gateway.nft(&rules).unwrap();
}

#[test]
fn what_is_wrong_with_the_firewall() {
    const DATA: &str = "ct mark and 0x40000000 != 0 accept\n";
    const CONTROL: &str = "iifname lan tcp dport 21 accept";
    let healthy = format!("{DATA}{CONTROL}");
    let lab = lab_behind(FirewallKind::None, Topology::Masquerade);
    load_firewall(&lab.gateway, &healthy, "");
    let daemon = Daemon::start(&executable(), &lab.gateway, "").unwrap();
    for (name, forwarded, more) in [
        ("data-connections", CONTROL, ""),
        ("control-connections", DATA, ""),
        (
            "notrack",
            &healthy,
            "chain early { type filter hook prerouting priority raw; tcp dport 21 notrack; }",
        ),
    ] {
        load_firewall(&lab.gateway, forwarded, more);
        let solve = || load_firewall(&lab.gateway, &healthy, "");
        is_reported_until_solved(&daemon, ("problem", name), solve);
    }
    let checks = said(&daemon, "doctor").0["checks"].to_string();
    assert!(checks.contains("accepted lan -> wan; all others: dropped"), "{checks}");
}

/// The service manager hears of it as well.
#[test]
fn a_journal_that_cannot_be_written() {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    let path = lab.directory().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let program = executable_after(&lab, &format!("NOTIFY_SOCKET={}", path.display()));
    let daemon = Daemon::start(&program, &lab.gateway, "").unwrap();
    let hear = |words: &str| {
        let mut heard = [0; 4096];
        while !String::from_utf8_lossy(&heard).contains(words) {
            heard.fill(0);
            manager.recv(&mut heard).unwrap();
        }
    };
    let [state, aside] = ["state", "aside"].map(|name| daemon.socket().with_file_name(name));
    fs::rename(&state, &aside).unwrap();
    is_reported_until_solved(&daemon, ("warning", "state"), || {
        hear("STATUS=warning state: ");
        fs::rename(&aside, &state).unwrap()
    });
    hear("STATUS=FTP works");
}

#[test]
fn a_configuration_file_that_is_not_in_use() {
    let Gateway { daemon, .. } = &gateway(Topology::Masquerade);
    let file = configuration_file(daemon);
    let valid = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("control-ports = []\n{valid}")).unwrap();
    signal(daemon, "HUP");
    // Nothing is reloaded when it is valid again.
    is_reported_until_solved(daemon, ("problem", "config"), || fs::write(&file, &valid).unwrap());
    let remedy = || daemon.status().unwrap()["warnings"][0]["remedy"].clone();
    for (text, verb) in [("", "reload"), ("queue.number = 2300\n", "restart")] {
        fs::write(&file, format!("pinhole.timeout = \"9s\"\n{text}{valid}")).unwrap();
        wait_for(verb, || remedy() == format!("systemctl {verb} ftp-alg"));
        is_warning(daemon, "config-pending");
        let reloads = || daemon.log().matches("the new configuration is in use").count();
        let before = reloads();
        signal(daemon, "HUP");
        wait_for("the reload", || reloads() > before);
        assert_eq!(warnings(daemon, "status").is_empty(), verb == "reload");
    }
}

/// A TLS handshake record, with the line end that a script puts behind it.
const HANDSHAKE: &str = "\x16\x03\x01\x00\x03\x01";

/// Nobody connects to pinholes of one client, its sessions are encrypted, and all announcements of one server pass and
/// open nothing: other clients and servers may have none of that.
#[test]
fn what_one_client_or_one_server_lacks_is_a_warning() {
    let foreign = "227 Entering Passive Mode (10,9,8,7,195,149)";
    let extra = json!({"AUTH TLS": "234 go", HANDSHAKE: HANDSHAKE, "PASV": foreign});
    let setup = "[pinhole]\ntimeout = \"1s\"\n";
    let (gateway, _server) = served(Topology::Masquerade, setup, json!({"extra": extra}));
    let Gateway { daemon, lab } = &gateway;
    let mut client = hold(lab, (login(), vec![(ask("EPSV"), gate()); 2]));
    for expired in 1..=2 {
        wait_for("the end of the pinhole", || gateway.count("pinholes_expired") == expired);
        client.open_gate();
    }
    client.release().ok();
    talk(lab, (login(), vec![ask("PASV"); 3])).ok();
    let record = json!({"read": HANDSHAKE.len() + 2});
    for _ in 0..2 {
        talk(lab, (reply(), ask("AUTH TLS"), say(HANDSHAKE), &record)).ok();
    }
    let warned = |command| {
        let (said, code) = said(daemon, command);
        let mut warnings = names(&said, "warnings");
        warnings.sort();
        (warnings.join(" "), code, said.to_string())
    };
    let all = "encrypted refused-announcements unused-pinholes";
    wait_for("the warnings", || warned("status").0 == all);
    for command in ["status", "doctor"] {
        let (warnings, code, said) = warned(command);
        assert_eq!((&*warnings, code), (all, 0), "{said}");
        assert!(said.contains("replace-foreign-address = true in a [[server]]"), "{said}");
    }
    let lines = |part: &str| {
        let log = daemon.log();
        log.lines().filter(|line| line.contains("WARN #") && line.contains(part)).count()
    };
    wait_for("a line of each pinhole", || lines("opened for EPSV") == 2);
    assert_eq!(lines("passive-ports"), 1, "one of the client, not one each: {}", daemon.log());
    // Who lets encrypted sessions pass by other means has no problem; they are counted all the same.
    let rule = "insert rule inet gateway forward tcp dport 50000-51000 accept";
    lab.gateway.nft(rule).unwrap();
    wait_for("the firewall to be read", || !warned("status").0.contains("encrypted"));
    assert_eq!(gateway.count("encrypted"), 2);
}
