//! `ftp-alg doctor` on real firewalls: what it says, what it says to do, and that transfers fare
//! as it says, before and after.

use crate::common::*;

/// How long a connection may take that passes or does not: its SYN may be retransmitted once.
const EITHER: Duration = Duration::from_secs(2);

/// What `doctor --json` said, and whether it ended well.
struct Opinion {
    well: bool,
    report: Value,
}

impl Opinion {
    fn of(daemon: &Daemon) -> Self {
        let done =
            daemon.ask(&["doctor", "--json", "--config", &configuration_file(daemon)]).unwrap();
        let report: Value = serde_json::from_str(&done.stdout_text()).unwrap_or_else(|error| {
            panic!("{error}: {}{}", done.stdout_text(), done.stderr_text())
        });
        let well = done.status.success();
        assert_eq!(report["ok"], well, "{report}");
        assert_eq!(done.status.code(), Some(if well { 0 } else { 1 }));
        Self { well, report }
    }

    fn with_mark(&self, mark: &str) -> impl Iterator<Item = &Value> {
        let checks = self.report["checks"].as_array().unwrap();
        checks.iter().filter(move |check| check["mark"] == mark)
    }

    /// Names of the checks with this mark.
    fn names(&self, mark: &str) -> Vec<&str> {
        self.with_mark(mark).map(|check| check["name"].as_str().unwrap()).collect()
    }

    /// The commands that solve problems and warnings.
    fn remedies(&self) -> Vec<String> {
        let all = self.with_mark("problem").chain(self.with_mark("warning"));
        let lines = all.flat_map(|check| check["remedy"].as_array().unwrap());
        lines.map(|line| line.as_str().unwrap().to_owned()).collect()
    }
}

/// A gateway that masquerades, with `rules` (shell) as its firewall, and the daemon on it.
fn firewalled(rules: &str) -> (Lab, Daemon) {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    lab.gateway.shell(&format!("nft flush ruleset\n{NAT}\n{rules}")).unwrap();
    let daemon = Daemon::start(&executable(), &lab.gateway, NFTABLES).unwrap();
    (lab, daemon)
}

const NAT: &str = "nft -f - <<END
table inet nat {
    chain source {
        type nat hook postrouting priority srcnat;
        oifname wan masquerade
    }
}
END";

/// What becomes of the server's connection to what a client announced.
fn active(lab: &Lab) -> String {
    let server = scripted_server(&lab.server, &json!({}));
    let steps = (login(), ask("PORT 192,168,150,80,14,178"), gate());
    let client = hold_listening(lab, 3762, steps);
    let (address, port) = host_port(server.lines().last().unwrap());
    let outcome = connect_within(&lab.server, &address, port, EITHER);
    assert_eq!(client.release().error, None);
    outcome
}

/// What becomes of the client's connection to what the server announced.
fn passive(lab: &Lab) -> String {
    let _server = scripted_server(&lab.server, &json!({"passive_port": 50069}));
    let host = lab.server_address(V4).to_string();
    let client = hold(lab, (login(), ask("PASV"), gate()));
    let outcome = connect_within(&lab.client, &host, 50069, EITHER);
    assert_eq!(client.release().error, None);
    outcome
}

/// The firewall is in the way; the lines that doctor prints, and nothing else, change that.
fn cured_by_its_own_lines(case: &str, rules: &str, lines: &[&str]) {
    let (lab, daemon) = firewalled(rules);
    let firewalld = rules.contains("table inet firewalld");
    // firewalld accepts what is destination translated, as an active connection is here.
    let transfer = || if firewalld { passive(&lab) } else { active(&lab) };
    let before = lab.gateway.ruleset().unwrap();
    let opinion = Opinion::of(&daemon);
    assert_eq!(lab.gateway.ruleset().unwrap(), before, "{case}: doctor changed the rules");
    let hooks = ["forward", "postrouting", "active mode"];
    let is_of_data = |name: &&str| hooks.iter().any(|hook| name.starts_with(hook));
    let is_data_alone = opinion.names("problem").iter().all(is_of_data);
    assert!(!opinion.well && is_data_alone, "{case}: {}", opinion.report);
    assert_eq!(opinion.remedies(), lines, "{case}: {}", opinion.report);
    assert_ne!(transfer(), "open", "{case}: doctor said that it is blocked");
    for line in lines {
        lab.gateway.shell(line).unwrap();
    }
    let opinion = Opinion::of(&daemon);
    assert!(opinion.well, "{case}: {}", opinion.report);
    assert_eq!(transfer(), "open", "{case}: doctor said that it passes");
}

const NFT_LINE: &str =
    "nft add rule inet filter forward index 0 ct mark and 0x40000000 != 0 accept";
const DROPPING: &str = "nft -f - <<END
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established accept
        tcp dport 21 accept
    }
}
END";

/// Rules of legacy iptables, and the lines that cure them.
fn legacy_iptables() -> (String, [String; 2]) {
    let mut rules = String::new();
    let lines = ["iptables-legacy", "ip6tables-legacy"].map(|program| {
        rules += &format!(
            "{program} -P FORWARD DROP\n\
             {program} -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
             {program} -A FORWARD -p tcp --dport 21 -j ACCEPT\n"
        );
        format!("{program} -I FORWARD 2 -m connmark --mark 0x40000000/0x40000000 -j ACCEPT")
    });
    (rules, lines)
}

/// Rules that accept data connections at forward, and another chain.
fn accepting_and(chain: &str) -> String {
    format!(
        "{DROPPING}\n{NFT_LINE}\nnft -f - <<END\ntable inet other {{
            ct helper ftp-standard {{ type \"ftp\" protocol tcp; }}
            chain c {{ {chain}\n}}\n}}\nEND\n"
    )
}

#[test]
fn firewalls_are_cured_by_the_lines_that_doctor_prints() {
    let (legacy_rules, legacy_lines) = legacy_iptables();
    let two_firewalls = format!("{DROPPING}\n{legacy_rules}");
    let of_two = [NFT_LINE, &legacy_lines[0], &legacy_lines[1]];
    let at_postrouting = accepting_and(
        "type filter hook postrouting priority 0; policy drop
         ct state established accept
         tcp dport 21 accept",
    );
    let writes_mark = accepting_and(
        "type filter hook forward priority 10; policy drop
         ct mark set 5
         ct state established accept
         tcp dport 21 accept",
    );
    let first_packets =
        "nft insert rule inet other c ct state new,related ct mark and 0x40000000 != 0 accept";
    let docker = format!(
        "iptables-nft-restore <<END\n{}END\n\
         iptables-nft -A DOCKER-USER -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
         iptables-nft -A DOCKER-USER -p tcp --dport 21 -j ACCEPT\n",
        include_str!("../../crates/ftp-alg-firewall/src/samples/docker.save")
    );
    let firewalld = include_str!("../../crates/ftp-alg-firewall/src/samples/firewalld.txt");
    let helper = firewalld.lines().find(|line| line.contains("ct helper set")).unwrap();
    let firewalld = format!("nft -f - <<'END'\n{}\nEND\n", firewalld.replace(helper, ""))
        + "nft add rule inet firewalld filter_FWD_public_allow tcp dport 21 accept\n";
    let mark = "-m connmark --mark 0x40000000/0x40000000 -j ACCEPT";
    let at =
        |place: &str| format!("nft add rule {place} index 0 ct mark and 0x40000000 != 0 accept");
    let cases: [(&str, &str, &[&str]); 5] = [
        ("two firewalls", &two_firewalls, &of_two),
        ("postrouting", &at_postrouting, &[&at("inet other c")]),
        ("a rule that writes the whole ct mark", &writes_mark, &[first_packets]),
        ("Docker", &docker, &[&format!("iptables-nft -I DOCKER-USER 2 {mark}")]),
        ("firewalld", &firewalld, &[&at("inet firewalld filter_FORWARD")]),
    ];
    for some in cases.chunks(3) {
        thread::scope(|scope| {
            for (case, rules, lines) in some {
                scope.spawn(|| cured_by_its_own_lines(case, rules, lines));
            }
        });
    }
}

#[test]
fn output_that_drops_what_ftp_alg_sends_is_cured() {
    let (lab, daemon) = firewalled(
        "nft -f - <<END
table inet filter {
    chain out { type filter hook output priority filter; policy drop; ct state established accept; }
}
END",
    );
    let opinion = Opinion::of(&daemon);
    assert_eq!((opinion.names("warning"), opinion.well), (vec!["our own packets"], true));
    let line = "nft add rule inet filter out meta mark 0x70000000 accept";
    assert_eq!(opinion.remedies(), [line]);
    lab.gateway.shell(line).unwrap();
    assert_eq!(Opinion::of(&daemon).names("warning"), [""; 0]);
}

#[test]
fn the_kernels_helper_of_others_is_in_the_way_until_its_rule_is_deleted() {
    let (lab, daemon) = firewalled(&accepting_and(
        "type filter hook prerouting priority filter
         tcp dport 21 ct helper set \"ftp-standard\"",
    ));
    let server = scripted_server(&lab.server, &json!({}));
    let client = hold(&lab, (login(), gate()));
    let opinion = Opinion::of(&daemon);
    client.release().ok();
    drop(server);
    assert_eq!((opinion.names("warning"), opinion.well), (vec!["rule"], true));
    assert!(opinion.names("note").contains(&"connections with it"), "{}", opinion.report);
    let remedies = opinion.remedies();
    assert!(remedies[0].starts_with("nft delete rule inet other c handle "), "{remedies:?}");
    lab.gateway.shell(&remedies[0]).unwrap();
    let opinion = Opinion::of(&daemon);
    assert_eq!(opinion.names("warning"), [""; 0], "{}", opinion.report);
    assert_eq!(passive(&lab), "open");
}

#[test]
fn without_rights_it_says_so_and_guesses_nothing() {
    let lab = Lab::new(Topology::Routed).unwrap();
    let program = executable().display().to_string();
    let rights = ["--bounding-set=-all", "--inh-caps=-all", &program];
    let words = ["doctor", "--socket", "/nonexistent", "--config", "/dev/null"];
    let words = [&rights[..], &words].concat();
    let done = lab.gateway.try_run("setpriv", &words).unwrap();
    let said = done.stdout_text();
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("CAP_NET_ADMIN is missing") && !said.contains("firewall\n"), "{said}");
}
