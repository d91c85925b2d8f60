//! Verdicts on data connections for rule sets as the usual tools generate them.

use proptest::prelude::*;

use super::{
    PacketClass::{Injected, MarkedData, RelatedData},
    rules_for_tests::{
        ACCEPT, CT_MARK, FIREWALLD, FW4, PLAIN, PORT, STATE, accepts_mark, is, nftables,
    },
    *,
};

const UFW: &str = include_str!("samples/ufw.save");
const DOCKER: &str = include_str!("samples/docker.save");

fn verdict(firewall: &Firewall, hook: Hook, ip: IpVersion, class: PacketClass) -> HookVerdict {
    firewall.verdict(hook, ip, class)
}

fn remedies(verdict: &HookVerdict, class: PacketClass) -> Vec<String> {
    Firewall::new(Gateway::default()).remedies(verdict, class)
}

fn exceptions(verdict: &HookVerdict) -> Vec<&str> {
    let all = verdict.chains.iter().flat_map(|chain| &chain.exceptions);
    all.filter_map(|reason| reason.rule.as_deref()).collect()
}

/// An nftables forward chain with policy drop and one rule, in JSON.
fn one_rule(statements: &str) -> Firewall {
    Firewall::from_nft_chain("inet filter forward 0 drop", &[statements])
}

/// What decides on packets of `class`, the rules that decide otherwise for some, and how to accept them.
fn says(firewall: &Firewall, hook: Hook, ip: IpVersion, class: PacketClass) -> String {
    let verdict = firewall.verdict(hook, ip, class);
    let verb = if verdict.passes() { "pass" } else { "drop" };
    let deciding = verdict.chains.iter().find(|chain| chain.passes == verdict.passes());
    let mut says = deciding.map_or(format!("{verb}: no chain"), |chain| format!("{verb}: {chain}"));
    for rule in exceptions(&verdict) {
        says += &format!("\n        some not: {rule}");
    }
    for command in firewall.remedies(&verdict, class) {
        says += &format!("\n        {command}");
    }
    for chain in verdict.dropping_chains() {
        let advice = chain.location.persistence_advice(class, &firewall.gateway);
        says.extend(advice.map(|advice| format!("\n        {advice}")));
    }
    says
}

/// `samples/verdicts.txt` has what is said of the usual rule sets; `UPDATE=1` writes it.
#[test]
fn usual_rule_sets_are_understood() {
    let mut found = String::new();
    for (name, firewall) in [
        ("plain nftables", nftables(PLAIN)),
        ("firewalld", nftables(FIREWALLD)),
        ("fw4", nftables(FW4)),
        ("ufw", Firewall::from_iptables(UFW)),
        ("Docker", Firewall::from_iptables(DOCKER)),
    ] {
        found += &format!("{name}\n");
        for hook in Hook::FILTERS {
            for class in [MarkedData, RelatedData, Injected] {
                let [v4, v6] = IpVersion::BOTH.map(|ip| says(&firewall, hook, ip, class));
                let packets = class.description();
                found += &format!("    {hook}, {packets}: {v4}\n");
                if v6 != v4 {
                    found += &format!("    {hook}, {packets}, IPv6: {v6}\n");
                }
            }
        }
    }
    if std::env::var_os("UPDATE").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/samples/verdicts.txt");
        std::fs::write(path, &found).unwrap();
    }
    assert_eq!(found, include_str!("samples/verdicts.txt"));
}

/// An operator may call a table `fw4`, too.
#[test]
fn only_openwrts_own_table_is_fw4s() {
    let of_family = |family: &str| {
        let renamed = FW4.0.replace(r#""inet""#, &format!(r#""{family}""#));
        let verdict = Firewall::from_nft(&renamed, FW4.1).unwrap().forward(MarkedData);
        verdict.dropping_chains().next().unwrap().location.manager
    };
    assert_eq!(of_family("inet"), Some(RulesetManager::Fw4));
    assert_eq!(of_family("ip"), None);
}

#[test]
fn rule_in_docker_user_is_enough() {
    let line = "-A DOCKER-USER -m connmark --mark 0x40000000/0x40000000 -j ACCEPT";
    let jump = "-A FORWARD -j DOCKER-USER";
    let added = DOCKER.replacen(jump, &format!("{jump}\n{line}"), 1);
    assert!(Firewall::from_iptables(&added).forward(MarkedData).passes());
}

#[test]
fn flowtable_is_a_conflict() {
    let firewall = one_rule(
        r#"{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}},
        {"flow": {"op": "add", "flowtable": "@ft"}}"#,
    );
    let conflicts: Vec<_> = firewall.conflicting_rules();
    assert_eq!((conflicts[0].kind, &*conflicts[0].chain), (ConflictKind::Offload, "inet t c"));
}

#[test]
fn flowtable_without_control_connections_is_no_conflict() {
    let ports = [PORT.replace("dport", "sport"), PORT.to_owned()];
    let ports = ports.map(|port| is("!=", &port, "21")).join(", ");
    let recipe =
        accepts_mark().replace(ACCEPT, &is("in", r#"{"ct": {"key": "status"}}"#, r#""assured""#));
    for condition in [ports, recipe] {
        let flow = r#"{"flow": {"op": "add", "flowtable": "@ft"}}"#;
        let firewall = one_rule(&format!("{condition}, {flow}"));
        assert_eq!(firewall.conflicting_rules().len(), 0, "{condition}");
    }
}

#[test]
fn manually_loaded_queueing_is_a_conflict_with_delete_commands() {
    let printed = include_str!("../../../rules/ftp-alg.iptables");
    let built_in = ":POSTROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FTP_ALG - [0:0]\n";
    let saved = printed.replace(":FTP_ALG - [0:0]\n", built_in);
    let firewall = Firewall::from_iptables(&saved);
    let conflicts = firewall.conflicting_rules();
    let remedies: Vec<_> = conflicts.iter().map(|c| c.remedy.as_deref()).collect();
    assert_eq!(
        remedies,
        [
            Some("iptables-legacy -t mangle -D INPUT -p tcp ! -i lo -j FTP_ALG"),
            Some("iptables-legacy -t mangle -D POSTROUTING -p tcp -j FTP_ALG"),
        ]
    );
}

#[test]
fn kernel_helper_rule_is_a_conflict_with_a_delete_command() {
    let firewall = nftables(FIREWALLD);
    let conflicts = firewall.conflicting_rules();
    let [conflict] = conflicts.as_slice() else { panic!("{conflicts:?}") };
    assert_eq!(conflict.kind, ConflictKind::Helper);
    assert_eq!(conflict.rule, "tcp dport 21 ct helper set \"helper-ftp-tcp\"");
    let remedy = conflict.remedy.as_deref().unwrap();
    assert!(
        remedy.starts_with("nft delete rule inet firewalld filter_IN_public_allow handle "),
        "{remedy}"
    );
}

#[test]
fn iptables_save_output_replaces_tables_listed_by_nft() {
    let json = r#"{"nftables": [{"table": {"family": "ip", "name": "filter", "handle": 1}},
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1,
        "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
        {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": 2, "expr":
        [{"xt": {"type": "match", "name": "connmark"}}, {"counter": null}, {"accept": null}]}}]}"#;
    let mut firewall = Firewall::from_nft(json, "").unwrap();
    assert!(
        firewall.has_iptables_tables(IpVersion::V4) && !firewall.has_iptables_tables(IpVersion::V6)
    );
    let unknown = firewall.forward(MarkedData);
    assert!(!unknown.passes() && exceptions(&unknown).len() == 1);
    let text = "*filter\n:FORWARD DROP [0:0]\n\
        -A FORWARD -m connmark --mark 0x40000000/0x40000000 -j ACCEPT\nCOMMIT\n";
    firewall.add_iptables_save(Origin::IptablesNft, IpVersion::V4, text);
    let known = firewall;
    let forward = known.forward(MarkedData);
    assert!(forward.passes() && forward.chains.len() == 1);
    assert!(verdict(&known, Hook::Forward, IpVersion::V6, MarkedData).chains.is_empty());
}

#[test]
fn all_ways_to_accept_our_mark_in_nftables_are_understood() {
    let mark = r#"{"&": [{"ct": {"key": "mark"}}, 1073741824]}"#;
    let (whole, state, port) = (CT_MARK, STATE, PORT);
    let address = r#"{"payload": {"protocol": "ip", "field": "saddr"}}"#;
    let cases = [
        (is("!=", mark, "0"), true),
        (is("==", mark, "1073741824"), true),
        (is("==", mark, "0"), false),
        (is("==", whole, "1073741824"), true),
        (is(">", whole, "4"), true),
        (is(">=", whole, "1073741824"), true),
        (is("<", whole, "1073741824"), false),
        (is("<=", whole, "4294967295"), true),
        (is("==", whole, r#"{"set": [1, {"range": [1073741824, 2147483647]}]}"#), true),
        (is("==", whole, r#"{"set": [1, {"range": [1073741824, 1342177279]}]}"#), true),
        (is("==", whole, r#"{"prefix": {"addr": 1073741824, "len": 2}}"#), true),
        (is("==", whole, r#"{"prefix": {"addr": 1073741824, "len": 4}}"#), true),
        (is("==", whole, r#""@absent""#), false),
        (is("in", state, r#"["established", "new"]"#), true),
        (is("==", state, r#"{"set": ["established", "related"]}"#), false),
        (is("==", port, r#"{"range": [1024, 65535]}"#), false),
        (is("==", address, r#""10.0.0.1""#), false),
        (is("==", r#"{"meta": {"key": "l4proto"}}"#, r#"{"set": ["tcp", "udp"]}"#), true),
        (is("==", r#"{"meta": {"key": "nfproto"}}"#, r#""ipv6""#), false),
        (is("!=", r#"{"meta": {"key": "iifname"}}"#, r#""lo""#), true),
        (r#"{"limit": {"rate": 3, "per": "second"}}"#.to_owned(), false),
        (r#"{"something new": {"x": [1]}}"#.to_owned(), false),
        (r#"{"log": {"prefix": "x"}}, {"counter": null}"#.to_owned(), true),
    ];
    for (condition, passes) in cases {
        let firewall = one_rule(&format!(r#"{condition}, {{"accept": null}}"#));
        let verdict = firewall.forward(MarkedData);
        assert_eq!(verdict.passes(), passes, "{condition}");
    }
}

#[test]
fn state_map_decides_by_state() {
    let firewall = one_rule(
        r#"{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["invalid", {"drop": null}],
        ["established", {"accept": null}], ["related", {"accept": null}]]}}}"#,
    );
    assert!(firewall.forward(RelatedData).passes());
    assert!(!firewall.forward(MarkedData).passes());
}

#[test]
fn later_packets_must_be_accepted_too() {
    let only_new = format!("{}, {ACCEPT}", is("in", STATE, r#""new""#));
    assert!(!one_rule(&only_new).forward(MarkedData).passes());
}

#[test]
fn remedy_quotes_comments_for_the_shell() {
    let firewall = Firewall::from_iptables(
        "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -m tcp --dport 21 -m comment \
         --comment \"it's $(reboot) `reboot`\" -j CT --helper ftp\nCOMMIT\n",
    );
    let conflict = &firewall.conflicting_rules()[0];
    assert_eq!(
        conflict.remedy.as_deref(),
        Some(
            "iptables-legacy -t raw -D PREROUTING -p tcp -m tcp --dport 21 -m comment \
             --comment 'it'\\''s $(reboot) `reboot`' -j CT --helper ftp"
        )
    );
}

#[test]
fn rules_that_change_our_ct_mark_bits_are_conflicts() {
    let ct = CT_MARK;
    let change =
        |value: &str| one_rule(&format!(r#"{{"mangle": {{"key": {ct}, "value": {value}}}}}"#));
    let cases = [
        ("1".to_owned(), 1),
        (r#"{"meta": {"key": "mark"}}"#.to_owned(), 1),
        (format!(r#"{{"|": [{ct}, 4]}}"#), 0),
        (format!(r#"{{"|": [{{"&": [{ct}, 4294967040]}}, 4]}}"#), 0),
        (format!(r#"{{"&": [{ct}, 255]}}"#), 1),
    ];
    for (value, expected) in cases {
        assert_eq!(change(&value).conflicting_rules().len(), expected, "{value}");
    }
    let text =
        |target: &str| format!("*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j {target}\n");
    for (target, expected) in [
        ("CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff", 1),
        ("CONNMARK --save-mark --nfmask 0xff00 --ctmask 0xff00", 0),
        ("CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", 0),
        ("CONNMARK --set-xmark 0x5/0xffffffff", 1),
        ("CONNMARK --set-xmark 0x5/0x7", 0),
    ] {
        assert_eq!(
            Firewall::from_iptables(&text(target)).conflicting_rules().len(),
            expected,
            "{target}"
        );
    }
}

#[test]
fn foreign_ct_mark_bits_are_unknown_if_a_rule_sets_them() {
    let accept = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m connmark --mark 0x40000000/0x4000ffff \
        -j ACCEPT\nCOMMIT\n";
    let passes = |text: &str| Firewall::from_iptables(text).forward(MarkedData).passes();
    assert!(passes(accept));
    let others = "*mangle\n:PREROUTING ACCEPT [0:0]\n\
        -A PREROUTING -j CONNMARK --set-xmark 0x1/0xff\nCOMMIT\n";
    assert!(!passes(&format!("{others}{accept}")));
}

#[test]
fn iptables_options_are_conditions() {
    let one = |options: &str| {
        let text =
            format!("*filter\n:FORWARD DROP [0:0]\n-A FORWARD {options} -j ACCEPT\nCOMMIT\n");
        Firewall::from_iptables(&text).forward(MarkedData).passes()
    };
    for options in [
        "",
        "-p tcp",
        "! -p udp",
        "! -i lo",
        "-m comment --comment \"-j DROP \\\" ! x\"",
        "-m connmark ! --mark 0x0/0x40000000",
        "-m conntrack --ctstate NEW,ESTABLISHED",
        "-m mark --mark 0x0/0xff",
    ] {
        assert!(one(options), "{options}");
    }
    for options in [
        "-p udp",
        "! -p tcp",
        "-i eth0",
        "-i lo",
        "-s 10.0.0.0/8",
        "-m connmark --mark 0x20000000/0x20000000",
        "-m conntrack --ctstate NEW,DNAT",
        "-m limit --limit 3/min",
        "-m nobody --knows",
        "-p tcp -m tcp --dport 1024:65535",
        "-p tcp -m tcp --tcp-flags SYN,ACK SYN",
        "-m helper --helper ftp",
    ] {
        assert!(!one(options), "{options}");
    }
}

#[test]
fn verdicts_differ_by_ip_version() {
    let firewall = one_rule(
        r#"{"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv4"}},
        {"accept": null}"#,
    );
    assert!(firewall.forward(MarkedData).passes());
    assert!(!verdict(&firewall, Hook::Forward, IpVersion::V6, MarkedData).passes());
}

#[test]
fn dormant_tables_are_left_out() {
    let json = r#"{"nftables": [{"table": {"family": "inet", "name": "t", "flags": ["dormant"]}},
        {"chain": {"family": "inet", "table": "t", "name": "f", "type": "filter",
        "hook": "forward", "prio": 0, "policy": "drop"}}]}"#;
    let firewall = Firewall::from_nft(json, "").unwrap();
    assert!(firewall.forward(MarkedData).chains.is_empty());
}

fn evaluate_all(firewall: &Firewall) {
    for hook in Hook::ALL {
        for ip in IpVersion::BOTH {
            for class in [MarkedData, RelatedData, Injected] {
                let verdict = verdict(firewall, hook, ip, class);
                let lines = remedies(&verdict, class);
                assert_eq!(lines.is_empty(), verdict.passes());
            }
        }
    }
    firewall.conflicting_rules();
    let links = Links::between(&["lan0", "wan0"]);
    for verdict in firewall.control_verdicts(&links, &Hook::FILTERS) {
        let is_open = verdict.dropping_chains().is_empty();
        let summary = verdict.summary();
        let all = summary.starts_with("accepted") && summary.ends_with("all interfaces");
        assert_eq!(is_open, all, "{summary}");
    }
}

/// Some of the words that nft uses.
const WORDS: &str = "accept match left right op == ct key mark state new set range prefix addr len & vmap data jump \
                     target f @s elem val";
const NUMBERS: &str = "0 -1 4294967296 1e99 null true";
const KEYS: &str = "match,left,right,op,ct,key,set,range,prefix,addr,len,&,|,vmap,data,jump,target,mangle,value,\
                    ct helper,xt,limit,payload,protocol,field,fib,flags,elem,val";

/// Random JSON made of them.
fn json() -> impl Strategy<Value = String> {
    let words = WORDS.split(' ').map(|word| format!("\"{word}\""));
    let words = words.chain(NUMBERS.split(' ').map(str::to_owned)).collect::<Vec<_>>();
    let leaf = prop::sample::select(words);
    leaf.prop_recursive(6, 40, 4, |inner| {
        let key = prop::sample::select(KEYS.split(',').collect::<Vec<_>>());
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec((key, inner), 0..4).prop_map(|items| {
                let items: Vec<String> =
                    items.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
                format!("{{{}}}", items.join(","))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_statement_gets_a_verdict(statements in prop::collection::vec(json(), 0..4)) {
        evaluate_all(&one_rule(&statements.join(",")));
    }

    #[test]
    fn damaged_json_does_not_panic(at in 0usize..9000, with in "[\\[\\]{}\":,a-z0-9]{0,3}") {
        for (json, listing) in [PLAIN, FIREWALLD, FW4] {
            let (mut json, mut listing) = (json.to_owned(), listing.to_owned());
            for text in [&mut json, &mut listing] {
                let at = at % text.len();
                text.replace_range(at..at + 1, &with);
            }
            if let Ok(firewall) = Firewall::from_nft(&json, &listing) {
                evaluate_all(&firewall);
            }
        }
    }

    #[test]
    fn any_iptables_text_gets_a_verdict(
        lines in prop::collection::vec("(-A FORWARD|:FORWARD|\\*filter|COMMIT|-A X)( !)?( -[a-z]| --[a-z]{1,9}|[ -~]{0,8}){0,4}( -[jg] [A-Z]{1,7})?", 0..12),
        noise in "\\PC{0,40}",
    ) {
        let text = format!("*filter\n:FORWARD DROP [0:0]\n{}\n{noise}\n", lines.join("\n"));
        evaluate_all(&Firewall::from_iptables(&text));
    }

    #[test]
    fn damaged_iptables_text_does_not_panic(at in 0usize..2000, with in "\\PC{0,3}") {
        for text in [UFW, DOCKER] {
            let mut text = text.to_owned();
            let at = at % text.len();
            text.replace_range(at..at + 1, &with);
            evaluate_all(&Firewall::from_iptables(&text));
        }
    }
}
