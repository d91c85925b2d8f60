//! Which modes of data connections are dropped between the interfaces whose control connections pass.

use super::*;
use crate::{
    Routing, data_path_verdicts,
    rules_for_tests::{ACCEPT, DROP, PORT, is, nft_json},
};

/// The flags SYN and ACK, in nft's JSON.
const FLAGS: &str =
    r#"{"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, {"|": ["syn", "ack"]}]}"#;

const CONTROL: &str = "-A FORWARD -i lan -p tcp -m tcp --dport 21 -j ACCEPT\n";
const ESTABLISHED: &str = "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n";
const RELATED: &str = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
const MARK: &str = "-A FORWARD -m connmark --mark 0x40000000/0x40000000 -j ACCEPT\n";

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

/// The dropped modes of admitted connections at `hook`.
fn dropped_modes(firewall: &Firewall, interfaces: &[&str], hook: Hook) -> Vec<DataMode> {
    let modes = modes(firewall, &links(interfaces), hook, PacketClass::MarkedData).into_iter();
    modes.filter(|one| !one.dropping_chains.is_empty()).map(|one| one.mode).collect()
}

/// The dropped modes of connections that are admitted, and of those that are expected, between `lan` and `wan`.
fn dropped(tables: &[(&str, &str)]) -> [Vec<DataMode>; 2] {
    let firewall = Firewall::from_iptables_tables(tables);
    [PacketClass::MarkedData, PacketClass::RelatedData].map(|class| {
        let modes = modes(&firewall, &links(&["lan", "wan"]), Hook::Forward, class).into_iter();
        modes.filter(|one| !one.dropping_chains.is_empty()).map(|one| one.mode).collect()
    })
}

/// The dropped modes of admitted connections that are forwarded by the rules of iptables' table filter.
fn dropped_by_filter(rules: &str) -> Vec<DataMode> {
    let [marked, _] = dropped(&[("filter", &format!(":FORWARD DROP\n{ESTABLISHED}{rules}"))]);
    marked
}

#[test]
fn rules_in_front_of_the_accept_rule_stop_the_mode_whose_connections_they_drop() {
    let accepting = format!(":FORWARD DROP\n{RELATED}{MARK}{CONTROL}");
    let new = "-A FORWARD -i wan -m conntrack --ctstate NEW -j DROP\n";
    let high = "-A FORWARD -i wan -p tcp -m tcp --dport 1024:65535 -j DROP\n";
    let filter = |policy, rules: [&str; 4]| {
        ("raw", String::new(), format!(":FORWARD {policy}\n{ESTABLISHED}{}", rules.concat()))
    };
    let raw =
        |rule| ("raw", format!(":PREROUTING ACCEPT\n-A PREROUTING {rule}"), accepting.clone());
    // A chain for TCP that drops what does not return.
    let returns = |table, rule| {
        let early =
            format!(":PREROUTING ACCEPT\n:C - [0:0]\n-A PREROUTING -p tcp -j C\n-A C {rule}");
        (table, early, accepting.clone())
    };
    let (none, active, passive) = (vec![], vec![DataMode::Active], vec![DataMode::Passive]);
    let both = vec![DataMode::Passive, DataMode::Active];
    for ((table, early, filter), expected) in [
        (("raw", String::new(), accepting.clone()), [&none, &none]),
        (("mangle", format!(":FORWARD ACCEPT\n{new}"), accepting.clone()), [&active, &none]),
        (filter("DROP", [new, MARK, CONTROL, ""]), [&active, &none]),
        (filter("ACCEPT", [new, "", "", ""]), [&active, &none]),
        // The accept rule is before it.
        (filter("DROP", [MARK, new, CONTROL, ""]), [&none, &none]),
        // Both back ends.
        (filter("DROP", [high, RELATED, MARK, CONTROL]), [&active, &active]),
        (raw("-i wan -p tcp -m tcp --tcp-flags SYN,ACK SYN -j DROP"), [&active, &active]),
        // By address or port only some.
        (raw("-i wan -s 10.0.0.0/8 -j DROP"), [&none, &none]),
        (raw("-i wan -p tcp -m tcp --dport 6000:6063 -j DROP"), [&none, &none]),
        // Without connection tracking no rule recognises them.
        (
            raw("-p tcp -m tcp --sport 1024:65535 --dport 1024:65535 -j CT --notrack"),
            [&passive, &passive],
        ),
        // Most packets pass a reverse path filter or a limit.
        (returns("mangle", "-m rpfilter --validmark -j RETURN\n-A C -j DROP"), [&none, &none]),
        (returns("raw", "-m limit --limit 100/s -j RETURN\n-A C -j DROP"), [&none, &none]),
        (
            (
                "mangle",
                ":FORWARD ACCEPT\n-A FORWARD -m limit --limit 9/s -j RETURN\n-A FORWARD -j DROP"
                    .to_owned(),
                ":FORWARD ACCEPT".to_owned(),
            ),
            [&none, &none],
        ),
        (
            returns(
                "mangle",
                "-p tcp -m tcp --dport 21 -j RETURN\n-A C -p tcp -m tcp --syn -j DROP",
            ),
            [&both, &both],
        ),
    ] {
        let tables = [(table, &*early), ("filter", &*filter)];
        assert_eq!(dropped(&tables).each_ref(), expected, "{tables:?}");
    }
}

#[test]
fn an_accept_rule_for_some_hosts_is_for_their_modes() {
    let (both, none) = (vec![DataMode::Passive, DataMode::Active], vec![]);
    let (passive, active) = (vec![DataMode::Passive], vec![DataMode::Active]);
    for (hosts, expected) in [
        (&[][..], &both),
        (&["-s 192.168.1.80/32", "-s 198.51.100.90/32"], &none),
        (&["-s 192.168.1.80/32", "-d 192.168.1.80/32"], &none),
        (&["-s 203.0.113.0/24"], &none),
        (&["-s 192.168.1.0/24"], &active),
        (&["-d 192.168.1.0/24"], &passive),
        (&["! -s 192.168.1.0/24"], &none),
        (&["-m iprange --src-range 192.168.1.9-192.168.1.99"], &active),
        (&["-m set --match-set ftp src"], &none),
        (&["-m mac --mac-source 02:00:00:00:00:01"], &none),
        // A limit is no restriction by addresses.
        (&["-s 192.168.1.80/32 -m limit --limit 2/min"], &both),
    ] {
        let of = |host: &&str| MARK.replace("FORWARD", &format!("FORWARD {host}"));
        let rules: String = hosts.iter().map(of).collect();
        let found =
            dropped_by_filter(&format!("-A FORWARD -s 10.0.0.0/8 -j ACCEPT\n{rules}{CONTROL}"));
        assert_eq!(&found, expected, "{hosts:?}");
    }
}

#[test]
fn hosts_whose_control_connections_pass_may_have_data_connections_by_the_same_rules() {
    let both = vec![DataMode::Passive, DataMode::Active];
    let (lan, back) = ("-s 192.168.1.0/24 -j ACCEPT", "-d 192.168.1.0/24 -j ACCEPT");
    let portal = "-m mark --mark 0x20000/0x30000 -j PORTAL";
    let admin = "-s 192.168.1.9/32 -j ACCEPT";
    let ftp = "-s 192.168.1.0/24 -p tcp -m tcp --dport 21 -j ACCEPT";
    for (rules, expected) in [
        (vec![lan, back], vec![]),
        (vec![lan], vec![DataMode::Active]),
        (vec![portal], vec![]),
        (vec![ftp], both.clone()),
        // It may log in as well, and others may, too.
        (vec![ftp, admin], both),
    ] {
        let rules: String = rules.iter().map(|rule| format!("-A FORWARD {rule}\n")).collect();
        let chains = format!(":FORWARD DROP\n:PORTAL - [0:0]\n{ESTABLISHED}");
        let portal =
            CONTROL.replace("FORWARD -i lan", "PORTAL") + &MARK.replace("FORWARD", "PORTAL");
        let mark = ":PREROUTING ACCEPT\n-A PREROUTING -m mac --mac-source 02:00:00:00:00:01 \
                    -j MARK --set-xmark 0x20000/0x30000";
        let filter = format!("{chains}{portal}{rules}");
        let [marked, _] = dropped(&[("mangle", mark), ("filter", &filter)]);
        assert_eq!(marked, expected, "{rules}");
    }
}

#[test]
fn accept_rules_for_some_interfaces_are_a_problem_if_no_pair_has_both_modes() {
    let links = links(&["lan", "wan", "guest"]);
    let problems = |rules: &[&str]| {
        let of = |rule: &&str| MARK.replace("FORWARD", &format!("FORWARD {rule}"));
        let rules: String = rules.iter().map(of).collect();
        let filter = format!(":FORWARD DROP\n{ESTABLISHED}{rules}{CONTROL}");
        let firewall = Firewall::from_iptables_tables(&[("filter", &filter)]);
        let modes = modes(&firewall, &links, Hook::Forward, PacketClass::MarkedData);
        let routing = Routing { v4: true, v6: false, has_v6: false, has_local_server: false };
        let data = data_path_verdicts(&firewall, routing);
        let path = data.iter().find(|path| path.hook == Hook::Forward).unwrap();
        let stop = path.mark.dropping_chains().next().unwrap();
        let dropped = modes.iter().filter(|mode| !mode.dropping_chains.is_empty()).count();
        // Without known interfaces the chain drops all.
        (path.is_problem(stop, &modes), dropped, path.is_problem(stop, &[]))
    };
    assert_eq!(problems(&["-i lan", "-i wan"]), (false, 0, true));
    assert_eq!(problems(&["-i lan -o wan", "-i wan -o lan"]), (false, 0, true));
    assert_eq!(problems(&["-i lan"]), (true, 2, true));
    assert_eq!(problems(&["-i lan -o wan", "-i guest"]), (true, 2, true));
}

#[test]
fn a_host_is_the_end_of_its_data_connections() {
    let rules = ":INPUT DROP\n-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
                 -A INPUT -p tcp -m tcp --dport 21 -j ACCEPT\n:OUTPUT ACCEPT\n";
    let dropped = |rules: &str, hook| {
        let firewall = Firewall::from_iptables_tables(&[("filter", rules)]);
        dropped_modes(&firewall, &["eth0"], hook)
    };
    // A server, and a client.
    assert_eq!(dropped(rules, Hook::Input), [DataMode::Passive]);
    assert_eq!(dropped(rules, Hook::Output), [DataMode::Active]);
    let accepting = format!("{rules}{}", MARK.replace("FORWARD", "INPUT"));
    assert_eq!(dropped(&accepting, Hook::Input), []);
}

#[test]
fn tables_of_bridges_are_unread() {
    let firewall = Firewall::from_nft_chain("bridge filter input 0 drop", &[ACCEPT]);
    assert_eq!(firewall.unread_tables().collect::<Vec<_>>(), ["bridge t"]);
}

#[test]
fn ingress_and_egress_chains_count_for_their_interface() {
    let syn = format!("{}, {DROP}", is("==", FLAGS, r#""syn""#));
    let high_port = format!("{}, {syn}", is("==", PORT, r#"{"range": [1024, 65535]}"#));
    for (hook, rule, expected) in [
        ("egress", &high_port, &[DataMode::Passive, DataMode::Active][..]),
        ("ingress", &syn, &[DataMode::Active]),
    ] {
        let chain = format!("netdev filter {hook} 0 accept wan");
        let firewall = Firewall::from_nft_chain(&chain, &[rule]);
        let dropped = |names: &[&str]| dropped_modes(&firewall, names, Hook::Forward);
        assert_eq!(dropped(&["lan", "wan"]), expected, "{hook}");
        assert_eq!(dropped(&["lan", "dmz"]), [], "{hook}");
    }
    let firewall = Firewall::from_nft_chain("netdev filter egress 0 accept wan", &[&high_port]);
    let verdicts = firewall.verdict(Hook::Postrouting, IpVersion::V4, PacketClass::MarkedData);
    // Rules of the family netdev see no ct mark.
    let (class, gateway) = (PacketClass::MarkedData, &firewall.gateway);
    assert!(verdicts.chains[0].accept_command(class, gateway).is_err());
    let json = nft_json("netdev filter ingress 0 accept wan", "", "c", &[&syn]);
    // nft 1.0.6 names the device only in its listing.
    let without = json.replace(r#", "dev": "wan""#, "");
    for (device, expected) in
        [("device \"wan\"", 1), ("devices = { \"x\", \"wan\" }", 1), ("device \"x\"", 0)]
    {
        let listing = format!(
            "table netdev t {{\n\tchain c {{ # handle 1\n\t\ttype filter hook ingress {device} \
             priority 0; policy accept;\n\t}}\n}}\n"
        );
        let firewall = Firewall::from_nft(&without, &listing).unwrap();
        let dropped = dropped_modes(&firewall, &["lan", "wan"], Hook::Forward);
        assert_eq!(dropped.len(), expected, "{device}");
    }
    let policy = json.replace(r#""policy": "accept""#, r#""policy": "drop""#);
    let firewall = Firewall::from_nft(&policy.replace(DROP, ACCEPT), "").unwrap();
    let dropped = |names: &[&str]| dropped_modes(&firewall, names, Hook::Forward).len();
    // Not even control connections pass the policy.
    assert_eq!((dropped(&["lan", "wan"]), dropped(&["lan", "dmz"])), (0, 0));
}

/// Guests may use FTP in the internet, and the LAN may reach guests.
#[test]
fn isolation_of_inner_networks_is_no_problem() {
    let to_lan = "-A FORWARD -i guest -o lan -j DROP\n";
    let from_wan = "-A FORWARD -i wan -m conntrack --ctstate NEW -j DROP\n";
    let to_others = "-A FORWARD -i guest ! -o wan -j DROP\n";
    let high_ports = "-A FORWARD -i guest -o lan -p tcp -m tcp --dport 1024:65535 -j DROP\n";
    let from_guests = CONTROL.replace("lan", "guest");
    let dropped = |rules: &[&str], links: &Links| {
        let filter = format!(":FORWARD DROP\n{ESTABLISHED}{}{MARK}{CONTROL}", rules.concat());
        let firewall = Firewall::from_iptables_tables(&[("filter", &filter)]);
        let modes = modes(&firewall, links, Hook::Forward, PacketClass::MarkedData);
        let dropped = modes.into_iter().filter(|mode| !mode.dropping_chains.is_empty());
        let name = |mode: ModeVerdict| {
            format!("{} {} -> {}", mode.mode, mode.from.unwrap(), mode.to.unwrap())
        };
        dropped.map(name).collect::<Vec<_>>()
    };
    let names = ["lan", "wan", "guest"];
    let (wan, guest) = ("active wan -> lan", "active guest -> lan");
    for (rules, expected) in [
        (&[][..], &[][..]),
        (&[to_lan], &[]),
        (&[to_others], &[]),
        (&["-A FORWARD -i guest -j DROP\n"], &[]),
        // The internet is no inner network.
        (&[from_wan], &[wan]),
        (&["-A FORWARD -i wan -o lan -j DROP\n"], &[wan]),
        // No path is left.
        (&[to_lan, from_wan], &[wan, guest]),
        // Guests may log in to servers of the LAN.
        (&[&*from_guests, high_ports], &[guest, "passive guest -> lan"]),
    ] {
        assert_eq!(dropped(rules, &links(&names)), expected, "{rules:?}");
    }

    // Behind another router.
    let mut links = Links::between(&names);
    for (name, network) in
        [("lan", "192.168.1.1/24"), ("wan", "172.16.0.2/24"), ("guest", "10.7.7.1/24")]
    {
        links.add(name, network.parse().unwrap());
    }
    assert_eq!(dropped(&[to_lan], &links), [guest]);
    links.uplinks.insert("wan".to_owned());
    assert_eq!(dropped(&[to_lan], &links), [""; 0]);
    assert_eq!(dropped(&[from_wan], &links), [wan]);
}
