//! `ftp-alg doctor` on real firewalls: what it says, what it says to do, and that transfers fare
//! as it says, before and after.

use ftp_alg::kernel::probe::ConntrackAbilities;

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

    fn with_mark(&self, mark: &str) -> Vec<&Value> {
        let checks = self.report["checks"].as_array().unwrap();
        checks.iter().filter(|check| check["mark"] == mark).collect()
    }

    /// Names of the checks that found a problem.
    fn problems(&self) -> Vec<&str> {
        let problems = self.with_mark("problem");
        problems.into_iter().map(|check| check["name"].as_str().unwrap()).collect()
    }

    /// Names of the checks that found something that does not stop FTP.
    fn warnings(&self) -> Vec<&str> {
        let warnings = self.with_mark("warning");
        warnings.into_iter().map(|check| check["name"].as_str().unwrap()).collect()
    }

    /// The commands that solve both.
    fn remedies(&self) -> Vec<String> {
        let all = [self.with_mark("problem"), self.with_mark("warning")].concat();
        let lines = all.into_iter().flat_map(|check| check["remedy"].as_array().unwrap());
        lines.map(|line| line.as_str().unwrap().to_owned()).collect()
    }

    fn check(&self, name: &str) -> &Value {
        let checks = self.report["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name}"))
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

/// Removes what an earlier session in this lab left: its open gate, and what its ends said.
fn forget(lab: &Lab) {
    for file in ["client.gate", "client-gated-client.log", "server-scripted-server.log"] {
        let _ = fs::remove_file(lab.directory().join(file));
    }
}

/// What becomes of the server's connection to what a client announced.
fn active(lab: &Lab) -> String {
    forget(lab);
    let server = scripted_server(&lab.server, &json!({}));
    let steps = (login(), ask("PORT 192,168,150,80,14,178"), gate());
    let client = hold_listening(lab, 3762, steps);
    let (address, port) = host_port(server.lines().last().unwrap());
    let outcome = connect_within(&lab.server, &address, port, EITHER);
    assert_eq!(client.release().error, None);
    outcome
}

/// What becomes of the client's connection to what the server announced; and meanwhile doctor's
/// opinion.
fn passive(lab: &Lab, daemon: &Daemon) -> (String, Opinion) {
    forget(lab);
    let _server = scripted_server(&lab.server, &json!({"passive_port": 50069}));
    let host = lab.server_address(V4).to_string();
    let client = hold(lab, (login(), ask("PASV"), gate()));
    let opinion = Opinion::of(daemon);
    let outcome = connect_within(&lab.client, &host, 50069, EITHER);
    assert_eq!(client.release().error, None);
    (outcome, opinion)
}

/// The firewall is in the way; the lines that doctor prints, and nothing else, change that.
fn cured_by_its_own_lines(case: &str, rules: &str, lines: &[&str]) {
    let (lab, daemon) = firewalled(rules);
    let firewalld = rules.contains("table inet firewalld");
    // firewalld accepts what is destination translated, as an active connection is here.
    let transfer = || if firewalld { passive(&lab, &daemon).0 } else { active(&lab) };
    let before = lab.gateway.ruleset().unwrap();
    let opinion = Opinion::of(&daemon);
    assert_eq!(lab.gateway.ruleset().unwrap(), before, "{case}: doctor changed the rules");
    let hooks = ["forward", "postrouting", "active mode"];
    let is_of_data = |name: &&str| hooks.iter().any(|hook| name.starts_with(hook));
    let is_data_alone = opinion.problems().iter().all(is_of_data);
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

fn iptables(variant: &str) -> (String, [String; 2]) {
    let mut rules = String::new();
    let lines = ["iptables", "ip6tables"].map(|program| {
        let program = format!("{program}-{variant}");
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
        "{DROPPING}\n{NFT_LINE}\nnft -f - <<END\ntable inet other {{ chain c {{ {chain}\n}}\n}}\nEND\n"
    )
}

/// Rules of nftables, as shell commands that load them.
fn nft(rules: &str) -> String {
    format!("nft -f - <<'END'\n{rules}\nEND\n")
}

#[test]
fn firewalls_are_cured_by_the_lines_that_doctor_prints() {
    let [(nft_rules, nft_lines), (legacy_rules, legacy_lines)] = ["nft", "legacy"].map(iptables);
    let two_firewalls = format!("{DROPPING}\n{legacy_rules}");
    let of_two = [NFT_LINE, &legacy_lines[0], &legacy_lines[1]];
    let trailing_reject = nft("table ip mine {
            chain last { reject with icmp admin-prohibited; }
            chain outside { ct state vmap { established : accept, invalid : drop }; goto last; }
            chain f {
                type filter hook forward priority 5; policy accept;
                iifname lan tcp dport 21 accept
                jump outside
            }
        }
        ");
    let at_postrouting = accepting_and(
        "type filter hook postrouting priority 0; policy drop
         ct state established accept
         tcp dport 21 accept",
    );
    // Active mode alone is in the way.
    let from_outside = accepting_and(
        "type filter hook forward priority 10; policy accept
         iifname wan ct state new drop",
    );
    let writes_mark = accepting_and(
        "type filter hook forward priority 10; policy drop
         ct mark set 5
         ct state established accept
         tcp dport 21 accept",
    );
    let first_packets =
        "nft insert rule inet other c ct state new,related ct mark and 0x40000000 != 0 accept";
    let of_forward = |chains: &str, rules: &str| {
        let hook = "type filter hook forward priority filter; policy drop;";
        nft(&format!("table inet filter {{ {chains}\nchain forward {{ {hook}\n{rules}\n}}\n}}"))
    };
    let established = "ct state established accept";
    let drops_first = of_forward(
        "",
        &format!("iifname wan ct state new drop\n{established}\ntcp dport 21 accept"),
    );
    let returns = of_forward(
        &format!("chain pre {{ ct state new return\n{established}\ndrop\n}}"),
        "jump pre\ntcp dport 21 accept",
    );
    let by_interface = of_forward(
        &format!(
            "chain of_lan {{ {established}\ntcp dport 21 accept\ndrop\n}}
            chain of_wan {{ {established}\ndrop\n}}"
        ),
        "iifname lan goto of_lan\niifname wan goto of_wan",
    );
    let first_in = |chain: &str| first_packets.replace("other c", &format!("filter {chain}"));
    let docker = format!(
        "iptables-nft-restore <<END\n{}END\n\
         iptables-nft -A DOCKER-USER -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
         iptables-nft -A DOCKER-USER -p tcp --dport 21 -j ACCEPT\n",
        include_str!("../../crates/ftp-alg-firewall/src/samples/docker.save")
    );
    let ufw = format!(
        "iptables-legacy-restore <<'END'\n{}END\n",
        include_str!("../../crates/ftp-alg-firewall/src/samples/ufw.save")
    );
    let fw4 = include_str!("../../crates/ftp-alg-firewall/src/samples/fw4.txt");
    let fw4 = nft(&fw4.replace("br-lan", "lan").replace("eth1", "wan"));
    let firewalld = include_str!("../../crates/ftp-alg-firewall/src/samples/firewalld.txt");
    let helper = firewalld.lines().find(|line| line.contains("ct helper set")).unwrap();
    let firewalld = nft(&firewalld.replace(helper, ""))
        + "nft add rule inet firewalld filter_FWD_public_allow tcp dport 21 accept\n";
    let mark = "-m connmark --mark 0x40000000/0x40000000 -j ACCEPT";
    let at = |place: &str| {
        let verb = if place.contains("index") { "add" } else { "insert" };
        format!("nft {verb} rule {place} ct mark and 0x40000000 != 0 accept")
    };
    let cases: [(&str, &str, &[&str]); 15] = [
        ("nftables", DROPPING, &[NFT_LINE]),
        ("a reject at the end", &trailing_reject, &[&at("ip mine outside index 0")]),
        ("iptables-nft", &nft_rules, &nft_lines.each_ref().map(String::as_str)),
        ("iptables-legacy", &legacy_rules, &legacy_lines.each_ref().map(String::as_str)),
        ("two firewalls", &two_firewalls, &of_two),
        ("postrouting", &at_postrouting, &[&at("inet other c index 0")]),
        ("new connections from outside", &from_outside, &[first_packets]),
        ("a rule that writes the whole ct mark", &writes_mark, &[first_packets]),
        ("a drop before established", &drops_first, &[&first_in("forward")]),
        ("a chain that new connections leave", &returns, &[&first_in("pre")]),
        ("a chain for each interface", &by_interface, &[&first_in("forward")]),
        ("Docker", &docker, &[&format!("iptables-nft -I DOCKER-USER 2 {mark}")]),
        ("ufw", &ufw, &[&format!("iptables-legacy -I ufw-before-forward 2 {mark}")]),
        ("fw4", &fw4, &[&at("inet fw4 forward index 0")]),
        ("firewalld", &firewalld, &[&at("inet firewalld filter_FORWARD index 0")]),
    ];
    for some in cases.chunks(4) {
        thread::scope(|scope| {
            for (case, rules, lines) in some {
                scope.spawn(|| cured_by_its_own_lines(case, rules, lines));
            }
        });
    }
}

/// The LAN may reach guests, but not the other way round; FTP with the internet works in both modes.
#[test]
fn a_guest_network_that_is_isolated_from_the_lan_is_no_problem() {
    let chain = "type filter hook forward priority 10; policy accept
        ct state established accept
        iifname guest oifname lan drop";
    let guests = "ip link add guest up type veth peer name guests
        ip link set guests up
        ip address add 10.7.7.1/24 dev guest";
    let (lab, daemon) = firewalled(&format!("{guests}\n{}", accepting_and(chain)));
    let opinion = Opinion::of(&daemon);
    assert!(opinion.well, "{}", opinion.report);
    assert_eq!(active(&lab), "open");
    // The internet is behind another router, and then by the interface of the guests.
    lab.gateway.shell("ip address flush dev wan; ip address add 172.16.0.2/24 dev wan").unwrap();
    for (uplink, problems) in
        [("wan via 172.16.0.1", &[][..]), ("guest via 10.7.7.2", &["active mode"])]
    {
        let (interface, gateway) = uplink.split_once(' ').unwrap();
        lab.gateway.shell(&format!("ip route replace default {gateway} dev {interface}")).unwrap();
        let opinion = Opinion::of(&daemon);
        assert_eq!(opinion.problems(), problems, "{uplink}: {}", opinion.report);
    }
}

/// Doctor finds the rules in the way, and has no rule to add. `cure` does what it advises.
fn cured_by_advice(rules: &str, problem: &str, advice: &str, cure: &str) {
    let (lab, daemon) = firewalled(rules);
    let opinion = Opinion::of(&daemon);
    assert_eq!(opinion.problems(), [problem], "{}", opinion.report);
    assert_eq!(opinion.remedies(), [""; 0]);
    let found = opinion.check(problem)["advice"].to_string();
    assert!(found.contains(advice), "{found}");
    assert_ne!(active(&lab), "open", "doctor said that it is blocked");
    lab.gateway.shell(cure).unwrap();
    let opinion = Opinion::of(&daemon);
    assert!(opinion.well, "{}", opinion.report);
    assert_eq!(active(&lab), "open", "doctor said that it passes");
}

#[test]
fn default_drop_before_the_admission_gets_advice() {
    let chain = "type filter hook prerouting priority -140; policy drop
        ct state established,related accept
        ct mark and 0x40000000 != 0 accept
        tcp dport 21 accept";
    let rule = "tcp dport 1024-65535 accept";
    let cure = format!("nft insert rule inet other c {rule}");
    cured_by_advice(&accepting_and(chain), "prerouting", rule, &cure);
}

#[test]
fn a_rule_that_overwrites_the_ct_mark_before_the_filter_gets_advice() {
    let chain = "type filter hook forward priority -1
        ct state new ct mark set 5";
    let mask = "ct mark set ct mark & 0x70000000 | ";
    let cure = format!("nft 'flush chain inet other c; add rule inet other c {mask}5'");
    cured_by_advice(&accepting_and(chain), "forward", mask, &cure);
}

#[test]
fn a_firewall_that_drops_only_ipv6_gets_a_message() {
    let (rules, [_, v6]) = iptables("legacy");
    let rules: Vec<&str> = rules.lines().filter(|line| line.starts_with("ip6tables")).collect();
    let (lab, daemon) = firewalled(&rules.join("\n"));
    let opinion = Opinion::of(&daemon);
    assert_eq!(opinion.problems(), ["forward IPv6"]);
    assert_eq!(opinion.remedies(), [v6]);
    assert_eq!(active(&lab), "open");
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
    assert_eq!((opinion.warnings(), opinion.well), (vec!["our own packets"], true));
    let line = "nft add rule inet filter out meta mark 0x70000000 accept";
    assert_eq!(opinion.remedies(), [line]);
    lab.gateway.shell(line).unwrap();
    assert_eq!(Opinion::of(&daemon).warnings(), [""; 0]);
}

/// It is in use as far as the configuration says, so `ok` would be wrong.
#[test]
fn a_control_port_that_is_dropped_and_an_interface_that_is_gone_are_noted() {
    let (_lab, daemon) = firewalled(
        "nft -f - <<END
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct mark & 0x40000000 != 0 accept
        ct state established accept
        iifname { lan, lan7 } tcp dport 21 accept
    }
}
END",
    );
    let file = configuration_file(&daemon);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("implicit-tls-ports = [990]\n{text}")).unwrap();
    // The file of no daemon, so that what it says is checked.
    let other = format!("{file}.other");
    fs::rename(&file, &other).unwrap();
    let done = daemon.ask(&["doctor", "--json", "--config", &other]).unwrap();
    let report: Value = serde_json::from_str(&done.stdout_text()).unwrap();
    let opinion = Opinion { well: done.status.success(), report };
    let port = opinion.check("control port 990");
    assert_eq!(port["says"], "all control connections to it are dropped");
    assert_eq!(port["details"], json!(["dropped by the policy of inet filter forward"]));
    let forward = opinion.check("control forward");
    assert_eq!((&port["mark"], &forward["mark"]), (&json!("note"), &json!("note")));
    let details = forward["details"].to_string();
    assert!(
        details.contains("rules accept them at lan7, and no interface has that name"),
        "{details}"
    );
}

#[test]
fn a_host_is_audited_by_input_and_output() {
    let (lab, daemon) = firewalled(
        "nft -f - <<END
table inet filter {
    chain forward { type filter hook forward priority filter; policy drop; }
    chain input { type filter hook input priority filter; policy drop; tcp dport 21 accept; }
}
END",
    );
    assert_eq!(Opinion::of(&daemon).problems(), ["forward", "control forward"]);
    lab.gateway
        .shell(
            "echo 0 > /proc/sys/net/ipv4/ip_forward\n\
             echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
        )
        .unwrap();
    let opinion = Opinion::of(&daemon);
    assert_eq!(opinion.problems(), ["input"]);
    assert_eq!(opinion.check("forwarding")["mark"], "note");
}

#[test]
fn the_kernels_helper_of_others_is_in_the_way_until_its_rule_is_deleted() {
    let (lab, daemon) = firewalled(&format!(
        "{DROPPING}
{NFT_LINE}
nft -f - <<END
table inet other {{
    ct helper ftp-standard {{ type \"ftp\" protocol tcp; }}
    chain c {{
        type filter hook prerouting priority filter;
        tcp dport 21 ct helper set \"ftp-standard\"
    }}
}}
END"
    ));
    // It opens what ftp-alg does not, where the dialogue is none.
    let (outcome, opinion) = passive(&lab, &daemon);
    assert_eq!(outcome, "open");
    assert_eq!((opinion.warnings(), opinion.well), (vec!["rule"], true));
    assert_eq!(opinion.check("connections with it")["mark"], "note");
    let remedies = opinion.remedies();
    assert!(remedies[0].starts_with("nft delete rule inet other c handle "), "{remedies:?}");
    lab.gateway.shell(&remedies[0]).unwrap();
    let (outcome, opinion) = passive(&lab, &daemon);
    assert_eq!(opinion.warnings(), [""; 0], "{}", opinion.report);
    assert_eq!(outcome, "open");
}

#[test]
fn helpers_of_iptables_are_in_the_way_until_their_rules_are_deleted() {
    for variant in ["nft", "legacy"] {
        let rule = "-p tcp -m tcp --dport 21 -j CT --helper ftp";
        let (lab, daemon) = firewalled(&format!("iptables-{variant} -t raw -A PREROUTING {rule}"));
        let opinion = Opinion::of(&daemon);
        assert_eq!((opinion.warnings(), opinion.well), (vec!["rule"], true));
        let line = format!("iptables-{variant} -t raw -D PREROUTING {rule}");
        assert_eq!(opinion.remedies(), [line.as_str()]);
        lab.gateway.shell(&line).unwrap();
        assert_eq!(Opinion::of(&daemon).warnings(), [""; 0]);
    }
}

#[test]
fn rules_that_end_connection_tracking_are_in_the_way_until_they_are_deleted() {
    let nft = "nft -f - <<END
table inet mine {
    chain early { type filter hook prerouting priority raw; tcp dport 21 notrack; }
}
END";
    let iptables = |variant: &str, target: &str| {
        format!("iptables-{variant} -t raw -A PREROUTING -p tcp --dport 21 {target}")
    };
    let legacy = iptables("legacy", "-j CT --notrack");
    for rules in [nft, &legacy, &iptables("nft", "-j NOTRACK")] {
        let (lab, daemon) = firewalled(rules);
        let _server = scripted_server(&lab.server, &json!({}));
        let host = lab.server_address(V4).to_string();
        assert_eq!(Opinion::of(&daemon).problems(), ["notrack"], "{rules}");
        assert_ne!(connect_in_vain(&lab.client, &host, 21), "open", "{rules}");
        for line in Opinion::of(&daemon).remedies() {
            lab.gateway.shell(&line).unwrap();
        }
        assert!(Opinion::of(&daemon).well, "{rules}");
        assert_eq!(connect(&lab.client, &host, 21), "open", "{rules}");
    }
}

#[test]
fn control_connections_pass_as_the_audit_of_interfaces_says() {
    let nft = "nft -f - <<END
table inet mine {
    set inner { typeof iifname; flags interval; elements = { \"la*\" }; }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established accept
        iifname @inner oifname wan tcp dport 21 accept
    }
}
END";
    let iptables = |variant: &str| {
        let rules = "-P FORWARD DROP
-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
-N zone
-A FORWARD -i la+ -o wan -j zone
-A zone -p tcp --dport 21 -j ACCEPT";
        let lines = rules.lines().map(|rule| format!("iptables-{variant} {rule}\n"));
        lines.collect::<String>()
    };
    for rules in [nft, &iptables("legacy"), &iptables("nft")] {
        let lab = Lab::new(Topology::Routed).unwrap();
        lab.gateway.shell(&format!("nft flush ruleset\n{rules}")).unwrap();
        let _servers = [&lab.server, &lab.client].map(|host| scripted_server(host, &json!({})));
        let outlook = control(&lab);
        assert_eq!(outlook.summary(), "accepted lan -> wan; all others: dropped", "{rules}");
        assert_eq!(outlook.dropping_chains()[0].decided_by.rule, None, "the policy");
        let [client, server] = [&lab.client, &lab.server].map(|host| host.address(V4));
        assert_eq!(connect(&lab.client, &server.to_string(), 21), "open", "{rules}");
        assert_eq!(connect_in_vain(&lab.server, &client.to_string(), 21), "silent", "{rules}");
    }
}

#[test]
fn auto_selects_the_back_end_that_the_firewall_accepts() {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    let has_helpers = ConntrackAbilities::read().cthelper;
    let choice = |expected: &str| {
        let words = ["doctor", "--json", "--socket", "/nonexistent", "--config", "/dev/null"];
        let done = lab.gateway.try_run(executable(), &words).unwrap();
        let report: Value = serde_json::from_str(&done.stdout_text()).unwrap();
        assert_eq!(report["backend"], expected);
        let problems = report["problems"].as_array().unwrap().iter();
        problems.filter(|problem| problem["name"] != "daemon-absent").count() == 0
    };
    assert!(choice("nftables"), "our mark is accepted");
    lab.gateway.nft("flush ruleset").unwrap();
    assert!(choice("nftables"), "nothing drops");
    lab.gateway.shell(DROPPING).unwrap();
    assert!(!choice("nftables"), "nothing is accepted");
    lab.gateway.shell("nft add rule inet filter forward ct state related accept").unwrap();
    let for_related = if has_helpers { "conntrack" } else { "nftables" };
    assert_eq!(choice(for_related), has_helpers, "related is accepted");
    lab.gateway.shell(NFT_LINE).unwrap();
    assert!(choice("nftables"), "both are accepted");
}

#[test]
fn a_running_daemon_is_no_obstacle_and_another_reader_of_the_queue_is() {
    for firewall in FirewallKind::ALL {
        let lab = lab_behind(firewall, Topology::Masquerade);
        let daemon = Daemon::start(&executable(), &lab.gateway, "").unwrap();
        let running = lab.gateway.ruleset().unwrap();
        let done = daemon.ask(&["doctor"]).unwrap();
        let said = done.stdout_text();
        assert!(done.status.success(), "{firewall:?}: {said}{}", done.stderr_text());
        assert!(said.contains("read by the running ftp-alg"), "{said}");
        assert_eq!(lab.gateway.ruleset().unwrap(), running);
        let words = ["doctor", "--socket", "/nonexistent", "--config", "/dev/null"];
        let done = lab.gateway.try_run(executable(), &words).unwrap();
        assert_eq!(done.status.code(), Some(1));
        let said = done.stdout_text();
        assert!(said.contains("read by an ftp-alg with another control socket"), "{said}");
        // The daemon saw nobody at its table.
        wait_for("the daemon's next look", || daemon.counter("errors").is_ok());
        assert_eq!(daemon.counter("errors").unwrap(), 0);
    }
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

#[test]
fn a_bad_configuration_is_wrong_usage() {
    let file = std::env::temp_dir().join(format!("ftp-alg-doctor-{}.toml", std::process::id()));
    fs::write(&file, "nonsense = 1\n").unwrap();
    let done = std::process::Command::new(executable())
        .args(["doctor", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(done.status.code(), Some(2));
    assert!(done.stdout.is_empty());
}
