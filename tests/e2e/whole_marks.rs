//! Rules of the operator that write the whole ct mark of connections, as for QoS and several uplinks.

use std::collections::BTreeSet;

use crate::common::*;

const PORT: u16 = 3762;

/// A filter that accepts each packet of a data connection by the mark alone.
const BY_MARK_ALONE: &str = "nft 'table inet strict { chain forward { \
     type filter hook forward priority 5; policy drop; meta l4proto icmp accept; tcp dport 21 accept; \
     tcp sport 21 accept; ct mark and 0x40000000 != 0 accept; }; }'";

/// Commands that load rules which write the mark 5 into all connections of the gateway, or none.
const RULES: [(&str, &str, u32); 9] = [
    ("forward", "type filter hook forward priority mangle; ct mark set 5", 5),
    ("forward, new", "type filter hook forward priority mangle; ct state new ct mark set 5", 5),
    ("forward, saved", "type filter hook forward priority mangle; ct mark set meta mark", 0),
    ("prerouting", "type filter hook prerouting priority mangle; ct mark set 5", 5),
    ("postrouting", "type filter hook postrouting priority mangle; ct mark set 5", 5),
    ("iptables forward", "iptables-nft -t mangle -A FORWARD -j CONNMARK --set-mark 5", 5),
    ("legacy forward", "iptables-legacy -t mangle -A FORWARD -j CONNMARK --set-mark 5", 5),
    ("iptables postrouting", "iptables-nft -t mangle -A POSTROUTING -j CONNMARK --save-mark", 0),
    (
        "restored and saved",
        "iptables-nft -t mangle -A PREROUTING -j CONNMARK --restore-mark
         iptables-nft -t mangle -A PREROUTING -m mark --mark 0 -j MARK --set-mark 5
         iptables-nft -t mangle -A POSTROUTING -j CONNMARK --save-mark",
        5,
    ),
];

/// The command of a row: rules of nftables are a chain.
fn command(rules: &str) -> String {
    if !rules.starts_with("type ") {
        return rules.to_owned();
    }
    format!("nft 'table inet qos {{ chain qos {{ {rules}; }}; }}'")
}

/// Transfers in both modes, also with a line that changes its length.
fn transfers(lab: &Lab) -> Vec<Value> {
    let client = lab.client.address(V4);
    let mut extended = active_transfer(client, PORT + 1);
    extended[0] = say(&format!("EPRT |1|{client}|{}|", PORT + 1));
    [passive_transfer("PASV"), active_transfer(client, PORT), passive_transfer("EPSV"), extended]
        .concat()
}

/// A gateway with these rules, of whose table it has the chains.
fn gateway_behind(topology: Topology, configuration: &str, rules: &str) -> Gateway {
    let lab = lab_for(topology, configuration);
    lab.gateway.shell(&command(rules)).unwrap();
    let gateway = Gateway::on(lab, configuration);
    wait_until_marked_again(&gateway);
    gateway
}

/// If rules are read late, the table is loaded again.
fn wait_until_marked_again(gateway: &Gateway) {
    let table = || gateway.lab.gateway.shell("nft list table inet ftp_alg").unwrap().stdout_text();
    wait_for("the chains", || table().contains("chain mark_again_forward"));
}

fn assert_no_problem(gateway: &Gateway, case: &str) {
    wait_for("the audit", || !gateway.daemon.status().unwrap()["problems"].is_null());
    let status = gateway.daemon.status().unwrap();
    assert_eq!(status["problems"], json!([]), "{case}");
}

/// Asserts that all connections have the operator's mark, and that data connections have ours.
fn assert_marks(gateway: &Gateway, expected: u32, case: &str) {
    let text = gateway.lab.gateway.shell("conntrack -L -p tcp").unwrap().stdout_text();
    let marks = text.split_whitespace().filter_map(|word| word.strip_prefix("mark="));
    let marks: BTreeSet<u32> = marks.map(|mark| mark.parse().unwrap()).collect();
    let operators: BTreeSet<u32> = marks.iter().map(|mark| mark & 0x8fff_ffff).collect();
    assert_eq!(operators, [expected].into(), "{case}: {text}");
    assert!(marks.iter().any(|mark| mark & 0x4000_0000 != 0), "{case}: {text}");
}

#[test]
fn data_connections_keep_the_mark_that_other_rules_overwrite() {
    let at_the_gateway = ["input", "output", "prerouting", "postrouting"]
        .map(|hook| format!("type filter hook {hook} priority mangle; ct mark set 5"));
    let behind_it = RULES.map(|(_, rules, mark)| (Topology::Masquerade, rules, mark));
    let on_it = at_the_gateway.each_ref().map(|rules| (Topology::OnServer, &**rules, 5));
    for (at, (topology, rules, mark)) in behind_it.into_iter().chain(on_it).enumerate() {
        let all = [FAST_PATH, CONNTRACK];
        for configuration in telling(&all[at % 2..][..1], &all) {
            let case = format!("{topology} {rules} {configuration}");
            let gateway = gateway_behind(topology, configuration, rules);
            gateway.lab.gateway.shell(BY_MARK_ALONE).unwrap();
            let lab = &gateway.lab;
            let _server = scripted_server(&lab.server, &json!({}));
            talk(lab, (login(), transfers(lab), transfers(lab))).ok_in(&case);
            assert_marks(&gateway, mark, &case);
            wait_for("the reports", || gateway.events("transfer").len() == 8);
            for event in gateway.events("transfer") {
                assert_eq!(event["result"], "complete", "{case}: {event}");
            }
            assert_no_problem(&gateway, &case);
            gateway.assert_tidy();
        }
    }
}

/// The fast path takes connections without bits of the operator alone. It admits their data connections, and finds the
/// translation of their source by the ct mark.
#[test]
fn the_fast_path_goes_on_when_a_rule_overwrites_ct_marks() {
    let Some(gateway) = fast_path_gateway(Topology::Masquerade) else { return };
    let lab = &gateway.lab;
    lab.gateway.shell(&command(RULES[2].1)).unwrap();
    wait_until_marked_again(&gateway);
    let _server = scripted_server(&lab.server, &json!({}));
    let transfers = [passive_transfer("PASV"), active_transfer(lab.client.address(V4), PORT)];
    let steps = (login(), &transfers, &transfers, gate(), &transfers);
    let client = until_on_fast_path(&gateway, ("admitted", 1), || hold(lab, &steps));
    client.release().ok();
    assert_eq!(fast_path(&gateway.daemon)["state"], "on");
    gateway.assert_tidy();
}

/// As the kernel's helper does: the connection goes on being expected.
#[test]
fn a_retransmitted_syn_has_the_mark_again() {
    for ((name, rules, _), configuration) in
        [(RULES[0], FAST_PATH), (RULES[3], NFTABLES), (RULES[4], CONNTRACK)]
    {
        let gateway = gateway_behind(Topology::Masquerade, configuration, rules);
        let lab = &gateway.lab;
        let syn = format!("tcp dport {PORT} tcp flags & (syn | ack) == syn");
        lab.client.nft(&lose_once("prerouting", &syn)).unwrap();
        let _server = scripted_server(&lab.server, &json!({}));
        let steps = (login(), active_transfer(lab.client.address(V4), PORT));
        talk(lab, steps).ok_in(format!("{name} {configuration}"));
        gateway.assert_tidy();
    }
}

/// The rules come after the start. Then the table is loaded again, with what is open.
#[test]
fn rules_that_come_later_overwrite_no_mark_either() {
    for configuration in [FAST_PATH, CONNTRACK] {
        let gateway = gateway_with(Topology::Masquerade, configuration);
        let lab = &gateway.lab;
        let _server = scripted_server(&lab.server, &json!({}));
        let client = hold(lab, (login(), transfers(lab), gate(), transfers(lab)));
        lab.gateway.shell(&command(RULES[0].1)).unwrap();
        wait_until_marked_again(&gateway);
        client.release().ok_in(configuration);
        assert_no_problem(&gateway, configuration);
        gateway.assert_tidy();
    }
}
