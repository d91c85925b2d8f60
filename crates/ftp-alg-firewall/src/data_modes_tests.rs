//! Which modes of data connections are dropped between the interfaces whose control connections pass.

use super::*;
use crate::{
    Routing, data_path_verdicts,
    rules_for_tests::{ACCEPT, DROP, PORT, is, nft_json},
};

/// The flags SYN and ACK, in nft's JSON.
const FLAGS: &str =
    r#"{"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, {"|": ["syn", "ack"]}]}"#;

const CONTROL: &str = "filter FORWARD -i lan -p tcp -m tcp --dport 21 -j ACCEPT";
const ESTABLISHED: &str = "filter FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT";
const RELATED: &str = "filter FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
const MARK: &str = "filter FORWARD -m connmark --mark 0x40000000/0x40000000 -j ACCEPT";

const PASSIVE: &str = "passive lan -> wan";
const ACTIVE: &str = "active wan -> lan";
const BOTH: &str = "passive lan -> wan, active wan -> lan";

/// Rules of iptables, each with its table in front. The table filter drops by default.
fn iptables(rules: &[impl AsRef<str>]) -> Firewall {
    let tables = [("raw", "ACCEPT"), ("mangle", "ACCEPT"), ("filter", "DROP")];
    let tables = tables.map(|(table, policy)| {
        let chains = format!(":PREROUTING ACCEPT\n:FORWARD {policy}\n:INPUT {policy}\n:X - [0:0]");
        let own = rules.iter().filter_map(|rule| rule.as_ref().strip_prefix(table));
        (table, own.fold(chains, |lines, rule| lines + "\n-A" + rule))
    });
    Firewall::from_iptables_tables(&tables.each_ref().map(|(table, lines)| (*table, &**lines)))
}

/// The accept rule for packets that meet `condition`, too.
fn mark_if(condition: &str) -> String {
    MARK.replace("FORWARD", &format!("FORWARD {condition}"))
}

/// Clients are in 192.168.1.0/24, and servers behind `wan`.
fn links(interfaces: &[&str]) -> Links {
    let mut links = Links::between(interfaces);
    links.add("lan", "192.168.1.1/24".parse().unwrap());
    links.add("wan", "198.51.100.1/24".parse().unwrap());
    links.add("guest", "10.7.7.1/24".parse().unwrap());
    links
}

/// The verdicts on both modes with IPv4.
fn modes(firewall: &Firewall, links: &Links, hook: Hook, class: PacketClass) -> Vec<ModeVerdict> {
    let mut paths = firewall.control_verdicts(links, &[hook]);
    paths.retain(|path| path.ip == IpVersion::V4);
    firewall.mode_verdicts(&paths, class, links)
}

/// The dropped modes of `class` at `hook`, with their interfaces.
fn dropped_at(firewall: &Firewall, links: &Links, hook: Hook, class: PacketClass) -> String {
    let end = |name: Option<String>| name.unwrap_or("here".to_owned());
    let modes = modes(firewall, links, hook, class).into_iter();
    let dropped = modes.filter(|one| !one.dropping_chains.is_empty());
    let name = |one: ModeVerdict| format!("{} {} -> {}", one.mode, end(one.from), end(one.to));
    dropped.map(name).collect::<Vec<_>>().join(", ")
}

/// The dropped modes of admitted connections that are forwarded.
fn dropped(firewall: &Firewall, links: &Links) -> String {
    dropped_at(firewall, links, Hook::Forward, PacketClass::MarkedData)
}

#[test]
fn rules_in_front_of_the_accept_rule_stop_the_mode_whose_connections_they_drop() {
    let new = "filter FORWARD -i wan -m conntrack --ctstate NEW -j DROP";
    let early = new.replace("filter", "mangle");
    let (to_x, rest) = ("mangle PREROUTING -p tcp -j X", "mangle X -j DROP");
    for (rules, expected) in [
        (&[][..], ["", ""]),
        (&[&*early], [ACTIVE, ""]),
        (&[new], [ACTIVE, ""]),
        // The accept rule is before it.
        (&[MARK, new], ["", ""]),
        // Both back ends.
        (&["filter FORWARD -i wan -p tcp -m tcp --dport 1024:65535 -j DROP"], [ACTIVE; 2]),
        (&["raw PREROUTING -i wan -p tcp -m tcp --tcp-flags SYN,ACK SYN -j DROP"], [ACTIVE; 2]),
        // By address or port only some.
        (&["raw PREROUTING -i wan -s 10.0.0.0/8 -j DROP"], ["", ""]),
        (&["raw PREROUTING -i wan -p tcp -m tcp --dport 6000:6063 -j DROP"], ["", ""]),
        // Without connection tracking no rule recognises them.
        (
            &["raw PREROUTING -p tcp -m tcp --sport 1024: --dport 1024: -j CT --notrack"],
            [PASSIVE; 2],
        ),
        // Most packets pass a reverse path filter or a limit.
        (&[to_x, "mangle X -m rpfilter --validmark -j RETURN", rest], ["", ""]),
        (&["mangle FORWARD -m limit --limit 9/s -j RETURN", "mangle FORWARD -j DROP"], ["", ""]),
        // What a chain drops that others than control connections do not return from.
        (
            &[
                to_x,
                "mangle X -p tcp -m tcp --dport 21 -j RETURN",
                "mangle X -p tcp -m tcp --syn -j DROP",
            ],
            [BOTH; 2],
        ),
    ] {
        let firewall = iptables(&[&[ESTABLISHED], rules, &[RELATED, MARK, CONTROL]].concat());
        let found = [PacketClass::MarkedData, PacketClass::RelatedData]
            .map(|class| dropped_at(&firewall, &links(&["lan", "wan"]), Hook::Forward, class));
        assert_eq!(found, expected, "{rules:?}");
    }
}

#[test]
fn an_accept_rule_for_some_hosts_is_for_their_modes() {
    for (hosts, expected) in [
        (&[][..], BOTH),
        (&["-s 192.168.1.80/32", "-s 198.51.100.90/32"], ""),
        (&["-s 203.0.113.0/24"], ""),
        (&["-s 192.168.1.0/24"], ACTIVE),
        (&["-d 192.168.1.0/24"], PASSIVE),
        (&["! -s 192.168.1.0/24"], ""),
        (&["-m iprange --src-range 192.168.1.9-192.168.1.99"], ACTIVE),
        (&["-m set --match-set ftp src"], ""),
        (&["-m mac --mac-source 02:00:00:00:00:01"], ""),
        // A limit is no restriction by addresses.
        (&["-s 192.168.1.80/32 -m limit --limit 2/min"], BOTH),
    ] {
        let others = "filter FORWARD -s 10.0.0.0/8 -j ACCEPT";
        let mut rules = vec![ESTABLISHED.to_owned(), others.to_owned(), CONTROL.to_owned()];
        rules.extend(hosts.iter().map(|host| mark_if(host)));
        assert_eq!(dropped(&iptables(&rules), &links(&["lan", "wan"])), expected, "{hosts:?}");
    }
}

#[test]
fn hosts_whose_control_connections_pass_may_have_data_connections_by_the_same_rules() {
    let lan = "filter FORWARD -s 192.168.1.0/24 -j ACCEPT";
    let back = "filter FORWARD -d 192.168.1.0/24 -j ACCEPT";
    let ftp = "filter FORWARD -s 192.168.1.0/24 -p tcp -m tcp --dport 21 -j ACCEPT";
    let admin = "filter FORWARD -s 192.168.1.9/32 -j ACCEPT";
    let portal = [
        "mangle PREROUTING -m mac --mac-source 02:00:00:00:00:01 -j MARK --set-xmark 0x2/0x2",
        "filter FORWARD -m mark --mark 0x2/0x2 -j X",
        &CONTROL.replace("FORWARD -i lan", "X"),
        &MARK.replace("FORWARD", "X"),
    ];
    for (rules, expected) in [
        (&[lan, back][..], ""),
        (&[lan], ACTIVE),
        (&portal, ""),
        (&[ftp], BOTH),
        // It may log in as well, and others may, too.
        (&[ftp, admin], BOTH),
    ] {
        let firewall = iptables(&[&[ESTABLISHED], rules].concat());
        assert_eq!(dropped(&firewall, &links(&["lan", "wan"])), expected, "{rules:?}");
    }
}

#[test]
fn accept_rules_for_some_interfaces_are_a_problem_if_no_pair_has_both_modes() {
    let links = links(&["lan", "wan", "guest"]);
    for (conditions, is_problem) in [
        (&["-i lan", "-i wan"][..], false),
        (&["-i lan -o wan", "-i wan -o lan"], false),
        (&["-i lan"], true),
        (&["-i lan -o wan", "-i guest"], true),
    ] {
        let mut rules = vec![ESTABLISHED.to_owned(), CONTROL.to_owned()];
        rules.extend(conditions.iter().map(|condition| mark_if(condition)));
        let firewall = iptables(&rules);
        let modes = modes(&firewall, &links, Hook::Forward, PacketClass::MarkedData);
        let routing = Routing { v4: true, v6: false, has_v6: false, has_local_server: false };
        let data = data_path_verdicts(&firewall, routing);
        let path = data.iter().find(|path| path.hook == Hook::Forward).unwrap();
        let stop = path.mark.dropping_chains().next().unwrap();
        // Without known interfaces the chain drops all.
        let found = [&*modes, &[]].map(|modes| path.is_problem(stop, modes));
        assert_eq!(found, [is_problem, true], "{conditions:?}");
        assert_eq!(dropped(&firewall, &links).is_empty(), !is_problem, "{conditions:?}");
    }
}

#[test]
fn a_host_is_the_end_of_its_data_connections() {
    let established = ESTABLISHED.replace("FORWARD", "INPUT");
    let control = CONTROL.replace("FORWARD -i lan", "INPUT");
    let mark = MARK.replace("FORWARD", "INPUT");
    for (hook, mark, expected) in [
        (Hook::Input, "", "passive eth0 -> here"),
        (Hook::Output, "", "active eth0 -> here"),
        (Hook::Input, &mark, ""),
    ] {
        let firewall = iptables(&[&established, &control, mark]);
        let found = dropped_at(&firewall, &links(&["eth0"]), hook, PacketClass::MarkedData);
        assert_eq!(found, expected, "{hook}");
    }
}

#[test]
fn ingress_and_egress_chains_count_for_their_interface() {
    let syn = format!("{}, {DROP}", is("==", FLAGS, r#""syn""#));
    let high_port = format!("{}, {syn}", is("==", PORT, r#"{"range": [1024, 65535]}"#));
    let [lan_wan, lan_dmz] = [&["lan", "wan"], &["lan", "dmz"]].map(|names| links(names));
    for (chain, rule, expected) in [
        ("egress 0 accept", &*high_port, "passive lan -> wan, active lan -> wan"),
        ("ingress 0 accept", &syn, "active wan -> lan"),
        // Not even control connections pass the policy.
        ("ingress 0 drop", ACCEPT, ""),
    ] {
        let firewall = Firewall::from_nft_chain(&format!("netdev filter {chain} wan"), &[rule]);
        assert_eq!(dropped(&firewall, &lan_wan), expected, "{chain}");
        assert_eq!(dropped(&firewall, &lan_dmz), "", "{chain}");
        // Rules of the family netdev see no ct mark.
        let class = PacketClass::MarkedData;
        for hook in [Hook::Prerouting, Hook::Postrouting] {
            for one in firewall.verdict(hook, IpVersion::V4, class).chains {
                assert!(one.accept_command(class, &firewall.gateway).is_err());
            }
        }
    }
    // nft 1.0.6 names the device only in its listing.
    let json = nft_json("netdev filter ingress 0 accept", "", &[&syn]);
    for (device, expected) in [
        ("device \"wan\"", "active wan -> lan"),
        ("devices = { \"x\", \"wan\" }", "active wan -> lan"),
        ("device \"x\"", ""),
    ] {
        let listing = format!(
            "table netdev t {{\n\tchain c {{ # handle 1\n\t\ttype filter hook ingress {device} \
             priority 0; policy accept;\n\t}}\n}}\n"
        );
        let firewall = Firewall::from_nft(&json, &listing).unwrap();
        assert_eq!(dropped(&firewall, &lan_wan), expected, "{device}");
    }
}

/// Guests may use FTP in the internet, and the LAN may reach guests.
#[test]
fn isolation_of_inner_networks_is_no_problem() {
    let to_lan = "filter FORWARD -i guest -o lan -j DROP";
    let from_wan = "filter FORWARD -i wan -m conntrack --ctstate NEW -j DROP";
    let high_ports = "filter FORWARD -i guest -o lan -p tcp -m tcp --dport 1024:65535 -j DROP";
    let from_guests = CONTROL.replace("lan", "guest");
    let firewall = |rules: &[&str]| iptables(&[&[ESTABLISHED], rules, &[MARK, CONTROL]].concat());
    let names = ["lan", "wan", "guest"];
    for (rules, expected) in [
        (&[][..], ""),
        (&[to_lan], ""),
        (&["filter FORWARD -i guest ! -o wan -j DROP"], ""),
        // The internet is no inner network.
        (&[from_wan], ACTIVE),
        (&["filter FORWARD -i wan -o lan -j DROP"], ACTIVE),
        // No path is left.
        (&[to_lan, from_wan], "active wan -> lan, active guest -> lan"),
        // Guests may log in to servers of the LAN.
        (&[&*from_guests, high_ports], "active guest -> lan, passive guest -> lan"),
    ] {
        assert_eq!(dropped(&firewall(rules), &links(&names)), expected, "{rules:?}");
    }

    // Behind another router.
    let mut links = Links::between(&names);
    for (name, network) in
        [("lan", "192.168.1.1/24"), ("wan", "172.16.0.2/24"), ("guest", "10.7.7.1/24")]
    {
        links.add(name, network.parse().unwrap());
    }
    assert_eq!(dropped(&firewall(&[to_lan]), &links), "active guest -> lan");
    links.uplinks.insert("wan".to_owned());
    assert_eq!(dropped(&firewall(&[to_lan]), &links), "");
    assert_eq!(dropped(&firewall(&[from_wan]), &links), ACTIVE);
}
