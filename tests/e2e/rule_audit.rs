//! Rule sets put together at random, of nftables and of both kinds of iptables: control connections fare between the
//! gateway's interfaces as the verdicts of `ftp_alg_firewall` say.
//!
//! `FTP_ALG_ROUNDS` says how many rule sets (12), `FTP_ALG_SEED` which (0).

use ftp_alg_firewall::Acceptance;

use crate::{common::*, rng::Rng};

/// Conditions of nftables by what they compare; half of the places for one stay empty.
const NFTABLES: [&[&str]; 8] = [
    &["iifname lan", "iifname != lan", "iifname \"l*\"", "iifname != \"w*\"", "iifname { lan, x }"],
    &[
        "iifname != { wan, x }",
        "iifname @names",
        "iifname != @names",
        "iif lan",
        "iif { lan, wan }",
    ],
    &["oifname wan", "oifname != lan", "oifname \"l*\"", "oifname != { wan, x }", "oif != wan"],
    &["iifname . oifname { lan . wan, x . lan }", "iifname . oifname != { lan . wan }"],
    &["iifname . tcp dport { lan . 21 }", "iifname . meta l4proto { wan . tcp, lan . udp }"],
    &["tcp dport 21", "tcp dport { 20-25 }", "tcp dport != 21", "tcp dport 80", "tcp sport 21"],
    &["ct state new", "ct state { established, related }", "ct state != established"],
    &["ct direction reply", "fib daddr type unicast", "tcp flags & (syn | ack) != syn"],
];
const IPTABLES: [&[&str]; 5] = [
    &["-i lan", "-i wan", "! -i lan", "-i l+", "! -i w+", "-i +"],
    &["-o lan", "-o wan", "! -o lan", "-o l+", "! -o w+"],
    &["-p tcp --dport 21", "-p tcp ! --dport 21", "-p tcp -m multiport ! --ports 21,80", "-p udp"],
    &["-m conntrack --ctstate NEW", "-m conntrack ! --ctstate NEW"],
    &["-m conntrack --ctdir REPLY", "-m addrtype --dst-type UNICAST"],
];

/// Up to two conditions, which compare different things.
fn conditions(rng: &mut Rng, kinds: &[&[&str]]) -> String {
    let mut places = vec![rng.below(2 * kinds.len()), rng.below(2 * kinds.len())];
    places.dedup();
    let conditions = places.iter().filter_map(|at| kinds.get(*at)).map(|kind| *rng.pick(kind));
    conditions.collect::<Vec<_>>().join(" ")
}

fn nftables_rule(rng: &mut Rng, chains: &[&str]) -> String {
    let jump = match chains {
        [] => "accept".to_owned(),
        chains => format!("{} {}", rng.pick(&["jump", "goto"]), rng.pick(chains)),
    };
    let mut verdict = || (*rng.pick(&["accept", "accept", "drop", "return", &jump])).to_owned();
    let (one, other) = (verdict(), verdict());
    let action = match rng.below(7) {
        0 => format!("iifname vmap {{ lan : {one}, wan : {other} }}"),
        1 => format!("iifname . oifname vmap {{ lan . wan : {one}, wan . lan : {other} }}"),
        2 => "counter".to_owned(),
        _ => one,
    };
    format!("{} {action}\n", conditions(rng, &NFTABLES))
}

fn iptables_rule(rng: &mut Rng, chain: &str, chains: &[&str]) -> String {
    let target = match chains {
        [] => "-j ACCEPT".to_owned(),
        chains => format!("{} {}", rng.pick(&["-j", "-g"]), rng.pick(chains)),
    };
    let target = *rng.pick(&["-j ACCEPT", "-j ACCEPT", "-j DROP", "-j RETURN", "", &target]);
    format!("-A {chain} {} {target}\n", conditions(rng, &IPTABLES))
}

/// Chains with the chains behind them, to which they may jump.
const CHAINS: [(&str, &[&str]); 3] =
    [("two", &[]), ("one", &["two"]), ("FORWARD", &["one", "two"])];

/// Shell that loads a rule set.
fn rules(rng: &mut Rng) -> String {
    let drops = rng.chance(0.5);
    if rng.chance(0.4) {
        let mut text =
            "table inet t { set names { type ifname; elements = { lan, x }; }\n".to_owned();
        for (chain, chains) in CHAINS {
            text += &format!("chain {chain} {{\n");
            if chain == "FORWARD" {
                let policy = if drops { "drop" } else { "accept" };
                text += &format!("type filter hook forward priority 0; policy {policy};\n");
            }
            text.extend((0..=rng.below(4)).map(|_| nftables_rule(rng, chains)));
            text += "}\n";
        }
        return format!("nft -f - <<'END'\n{text}}}\nEND\n");
    }
    let policy = if drops { "DROP" } else { "ACCEPT" };
    let mut text = format!("*filter\n:FORWARD {policy}\n:one - [0:0]\n:two - [0:0]\n");
    for (chain, chains) in CHAINS {
        text.extend((0..=rng.below(4)).map(|_| iptables_rule(rng, chain, chains)));
    }
    let program = rng.pick(&["iptables-nft-restore", "iptables-legacy-restore"]);
    format!("{program} <<'END'\n{text}COMMIT\nEND\n")
}

/// Whether a whole command and its reply pass within `limit` each, behind the greeting.
fn passes(from: &Host, to: &Host, limit: Duration) -> bool {
    let dialogue = "import socket, sys
with socket.create_connection((sys.argv[1], 21), float(sys.argv[2])) as control:
    control.sendall(b'NOOP\\r\\n')
    heard = b''
    while heard.count(b'\\n') < 2:
        heard += control.recv(100) or sys.exit(1)";
    let mut command = from.command("python3");
    let limit = limit.as_secs_f64().to_string();
    command.args(["-c", dialogue, &to.address(V4).to_string(), &limit]);
    from.finish(command, b"", Duration::from_secs(60)).unwrap().status.success()
}

#[test]
fn random_rules_do_what_is_said_of_them() {
    let seed = std::env::var("FTP_ALG_SEED").map_or(0, |text| text.parse().unwrap());
    let mut rng = Rng::new(seed);
    let lab = Lab::new(Topology::Routed).unwrap();
    let _servers = [&lab.server, &lab.client].map(|host| scripted_server(host, &json!({})));
    for round in 0..rounds(12) {
        let rules = rules(&mut rng);
        lab.gateway
            .shell(&format!(
                "nft flush ruleset; iptables-legacy -P FORWARD ACCEPT; iptables-legacy -F
                iptables-legacy -X; conntrack -F 2>/dev/null\n{rules}"
            ))
            .unwrap();
        // The lab has no two hosts at one interface.
        for verdict in control(&lab).pairs.into_iter().filter(|pair| pair.from != pair.to) {
            let (from, to) = match verdict.from.as_deref() {
                Some("lan") => (&lab.client, &lab.server),
                _ => (&lab.server, &lab.client),
            };
            let said = verdict.acceptance != Acceptance::Dropped;
            let limit = match said {
                true => scaled_timeout(Duration::from_secs(8)),
                false => Duration::from_millis(600),
            };
            assert_eq!(passes(from, to, limit), said, "round {round}: {verdict:?}\n{rules}");
        }
    }
}
