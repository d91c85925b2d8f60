//! The daemon's start and end: what it leaves behind, what passes without it, why it cannot start.

use crate::common::*;

#[test]
fn a_clean_stop_leaves_all_rules_as_they_were_also_after_a_crash() {
    for firewall in FirewallKind::ALL {
        let lab = lab_behind(firewall, Topology::Masquerade);
        let legacy = || {
            let saved = lab.gateway.shell("iptables-legacy-save; ip6tables-legacy-save").unwrap();
            let saved = saved.stdout_text();
            let lines = saved.lines().filter(|line| !line.starts_with('#'));
            // `:INPUT DROP [12:3456]`
            lines.map(|line| line.split(" [").next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let rules = || (lab.gateway.ruleset().unwrap(), legacy());
        let before = rules();
        let mut daemon = Daemon::start(&executable(), &lab.gateway, "").unwrap();
        let running = rules();
        assert_ne!(running.0, before.0, "{firewall:?}");
        assert_eq!(running.1, before.1, "{firewall:?}");
        // Every program that it asks for the firewall is one that the broker runs.
        wait_for("what it found", || !daemon.status().unwrap()["problems"].is_null());
        assert!(!daemon.log().contains("cannot read all rules"), "{}", daemon.log());
        daemon.kill();
        let mut daemon = Daemon::start(&executable(), &lab.gateway, "").unwrap();
        assert_eq!(rules(), running, "{firewall:?}");
        let status = daemon.stop().unwrap();
        assert!(status.success(), "{status}: {}", daemon.log());
        assert_eq!(rules(), before, "{firewall:?}");
    }
}

#[test]
fn a_stop_during_the_start_is_clean_as_well() {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    let before = lab.gateway.ruleset().unwrap();
    let mut daemon = Daemon::launch(&executable(), &lab.gateway, "").unwrap();
    let children = format!("/proc/{0}/task/{0}/children", daemon.id());
    let is_keeper = |id: &str| {
        fs::read_to_string(format!("/proc/{id}/cmdline")).is_ok_and(|line| line.contains("keeper"))
    };
    // Before that it is in the daemon's process group, which gets the signal.
    wait_for("the keeper", || {
        fs::read_to_string(&children).is_ok_and(|list| list.split_whitespace().any(is_keeper))
    });
    let status = daemon.stop().unwrap();
    assert!(status.success(), "{status}: {}", daemon.log());
    assert_eq!(lab.gateway.ruleset().unwrap(), before);
}

#[test]
fn a_table_that_others_remove_or_change_is_loaded_again() {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    let firewall = lab.gateway.ruleset().unwrap();
    let mut daemon = Daemon::start(&executable_without_owner(&lab), &lab.gateway, "").unwrap();
    let _server = scripted_server(&lab.server, &json!({}));
    // Without the translations of connections that the fast path has just now.
    let rules_of_gateway = || without_elements(&lab.gateway.ruleset().unwrap());
    let running = rules_of_gateway();
    // As a firewall's reload does, which knows nothing of our table.
    let reload = format!("flush ruleset\n{firewall}");
    for (number, rules) in (1..).zip([
        &*reload,
        "flush table inet ftp_alg",
        "add rule inet ftp_alg select_forward drop",
        "flush chain inet ftp_alg untracked\nadd rule inet ftp_alg untracked accept",
    ]) {
        let client = hold(&lab, (login(), port_transfer(), gate(), port_transfer()));
        lab.gateway.nft(rules).unwrap();
        wait_for("the table", || rules_of_gateway() == running);
        // The connection, whose numbers are adjusted, goes on.
        let session = client.release().ok_in(rules);
        assert_eq!(session.got(16), "the body\r\n", "{rules}");
        wait_for("one line", || daemon.log().matches("it is loaded again").count() == number);
        assert_eq!(daemon.counter("errors").unwrap(), 0, "{rules}: {}", daemon.log());
        wait_for("the session's end", || daemon.sessions().unwrap().is_empty());
    }
    daemon.stop().unwrap();
    assert_eq!(lab.gateway.ruleset().unwrap(), firewall);
}

#[test]
fn connections_that_conntrack_forgot_go_on() {
    let list = port_transfer().split_off(2);
    let port = |cut: &[usize]| {
        let line = "PORT 192,168,150,80,14,178\r\n";
        vec![json!({"send": line, "cut": cut, "pause": 0.1}), reply()]
    };
    let gate = vec![gate()];
    let adjusted = [&port(&[])[..], &list, &gate, &port(&[]), &list].concat();
    let held = [&gate[..], &port(&[2]), &list].concat();
    // Not known at its first packet, it is refused rather than announced untranslated.
    let first = [&gate[..], &port(&[]), &port(&[]), &list].concat();
    // The kernel expects nothing of a connection whose helper it forgot, and a new one works.
    let expecting = [&port(&[])[..], &list, &gate, &port(&[]), &port(&[])].concat();
    let without_fast_path = format!("{NFTABLES}[queue]\nfast-path = \"off\"\n");
    for (what, setup, steps, got) in [
        ("adjusted", NFTABLES, adjusted, [(9, "the body"), (16, "the body")]),
        ("held", NFTABLES, held, [(7, "200 PORT"), (10, "the body")]),
        // The fast path asks for the translation before.
        (
            "first",
            &*without_fast_path,
            first,
            [(7, "425 Refused by the gateway: "), (9, "200 PORT")],
        ),
        ("expecting", CONNTRACK, expecting, [(13, "425"), (15, "425")]),
    ] {
        let (gateway, _server) = served(Topology::Masquerade, setup, json!({}));
        let lab = &gateway.lab;
        let client = hold(lab, (login(), steps));
        // The delayed acknowledgement of the last reply would make it known again.
        thread::sleep(Duration::from_millis(300));
        lab.gateway.run("conntrack", &["-F"]).unwrap();
        let session = client.release().ok_in(what);
        for (step, start) in got {
            let text = session.got(step);
            assert!(text.starts_with(start), "{what} {step}: {text}");
        }
        talk(lab, (login(), port_transfer())).ok_in(what);
    }
}

#[test]
fn without_root_or_nftables_it_does_not_start_and_says_why() {
    let lab = Lab::new(Topology::Routed).unwrap();
    let before = lab.gateway.ruleset().unwrap();
    let program = executable_for_everyone(&lab);
    let hide = "mount -t tmpfs none /usr/sbin; \
        [ -L /sbin ] || mount -t tmpfs none /sbin; exec \"$@\"";
    let without_nftables = ["unshare", "--mount", "sh", "-c", hide, "sh"];
    for (under, why) in [(&AS_NOBODY[..], "root"), (&without_nftables, "nft")] {
        // A directory of its own, because each runs as another user.
        let state = lab.directory().join("elsewhere").join(why);
        let words = ["--state-dir", state.to_str().unwrap()];
        let done = run_another(&lab, under, &program, &words, "");
        assert_fails(&done, 1, why);
        assert_eq!(done.stderr_text().trim_end().lines().count(), 1, "{}", done.stderr_text());
        assert_eq!(lab.gateway.ruleset().unwrap(), before, "{why}");
    }
}

/// Without the right to use the socket, and with it: only root and the daemon's own user change the daemon.
#[test]
fn a_user_without_permission_gets_an_error() {
    let gateway = gateway(Topology::Routed);
    let program = executable_for_everyone(&gateway.lab);
    let socket = gateway.daemon.socket();
    let [program, socket] = [&program, &socket].map(|path| path.to_str().unwrap());
    let ask = |arguments: &[&str]| {
        let words = [&AS_NOBODY[..], &[program], arguments, &["--socket", socket]].concat();
        gateway.lab.gateway.try_run("env", &words).unwrap()
    };
    assert_fails(&ask(&["status"]), 1, "run this as the daemon's user");
    gateway.lab.gateway.run("chmod", &["666", socket]).unwrap();
    assert_eq!(ask(&["log-level"]).success().unwrap().stdout_text(), "info\n");
    assert_fails(&ask(&["log-level", "debug"]), 1, "only root and the daemon's own user");
}
