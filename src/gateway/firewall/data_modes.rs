//! Evaluates passive and active data connections between the interfaces whose control connections pass.
//!
//! A rule that drops new connections from one interface stops one of the two modes, and spares the other.

use std::collections::HashMap;

use super::{
    Acceptance, ChainVerdict, ControlPathVerdict, Firewall, HookVerdict, IpVersion, Links,
    PacketClass,
    data_connection::{DataConnection, FORWARDED, RECEIVED, SENT},
    data_path::accepts_some_admitted,
    hook_verdict,
    model::FieldValue,
    sample_packets::EPHEMERAL,
};
use crate::gateway::RuleParameters;

/// Which end initiates data connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum DataMode {
    /// The client.
    Passive,
    /// The server.
    Active,
}

impl DataMode {
    const BOTH: [Self; 2] = [Self::Passive, Self::Active];
}

/// The verdict on data connections of one mode between two interfaces.
#[derive(Clone, Debug)]
pub struct ModeVerdict {
    pub mode: DataMode,
    pub ip: IpVersion,
    /// The initiator's interface; `None` if this machine is the initiator.
    pub from: Option<String>,
    /// The target's interface; `None` if this machine is the target.
    pub to: Option<String>,
    /// The chains that drop all connections of this mode, except those that other rules accept as well.
    pub dropping_chains: Vec<ChainVerdict>,
}

impl Firewall {
    /// The verdicts on data connections of `class` for each pair of interfaces whose control connections pass according
    /// to `paths`.
    pub fn mode_verdicts(
        &self,
        paths: &[ControlPathVerdict],
        class: PacketClass,
        links: &Links,
        parameters: &RuleParameters,
    ) -> Vec<ModeVerdict> {
        // An accept rule for some addresses may be for anything, so pairs that are open count first.
        let pairs = paths.iter().flat_map(|path| {
            let best = path.best_acceptance();
            let pairs = path.pairs.iter().filter(move |pair| pair.acceptance == best);
            pairs.filter(move |_| best != Acceptance::Dropped).map(move |pair| (path, pair))
        });
        let names = pairs.clone().flat_map(|(_, pair)| pair.from.iter().chain(&pair.to));
        let same = self.interchangeable(names.map(String::as_str).collect());
        let alike = |name: &Option<String>| match name {
            Some(name) => same.get(name.as_str()).copied().unwrap_or_default(),
            None => "",
        };
        let mut known = HashMap::new();
        let mut verdicts = Vec::new();
        for (path, pair) in pairs {
            for mode in DataMode::BOTH {
                let (from, to) = match mode {
                    DataMode::Passive => (&pair.from, &pair.to),
                    DataMode::Active => (&pair.to, &pair.from),
                };
                let key = (path.ip, mode, alike(from), alike(to));
                let dropping_chains = known.entry(key).or_insert_with(|| {
                    let verdict = |class, admitted| {
                        let (ip, mode, from, to) = key;
                        let ends = (from, to, links);
                        self.mode_verdict((class, admitted), ip, mode, ends, parameters)
                    };
                    let unmarked = verdict(PacketClass::MarkedData, 0);
                    let mut chains = verdict(class, parameters.data_mark()).chains;
                    chains.retain(|one| {
                        one.drops_certainly() && !accepts_some_admitted(one, &unmarked)
                    });
                    chains
                });
                verdicts.push(ModeVerdict {
                    mode,
                    ip: path.ip,
                    from: from.clone(),
                    to: to.clone(),
                    dropping_chains: dropping_chains.clone(),
                });
            }
        }
        verdicts
    }

    /// What the firewall does with data connections of a mode that get the ct mark bits `admitted`. The name of an
    /// interface is empty if this machine is the end there.
    fn mode_verdict(
        &self,
        (class, admitted): (PacketClass, u32),
        ip: IpVersion,
        mode: DataMode,
        (from, to, links): (&str, &str, &Links),
        parameters: &RuleParameters,
    ) -> HookVerdict {
        let source_port = match mode {
            DataMode::Passive => EPHEMERAL,
            // Some servers use port 20, and some do not.
            DataMode::Active => FieldValue::Within(0, u16::MAX.into()),
        };
        let connection = DataConnection {
            ip,
            class,
            admitted,
            from: Some(from),
            to: Some(to),
            source_port,
            links: Some(links),
        };
        let (there, back) = match (from, to) {
            ("", _) => (SENT, RECEIVED),
            (_, "") => (RECEIVED, SENT),
            _ => (FORWARDED, FORWARDED),
        };
        hook_verdict(self.follow(&connection, there, back, parameters).into_iter())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Hook, *};

    const CONTROL: &str = "-A FORWARD -i lan -p tcp -m tcp --dport 21 -j ACCEPT\n";
    const ESTABLISHED: &str = "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n";
    const RELATED: &str = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
    const MARK: &str = "-A FORWARD -m connmark --mark 0x40000000/0x40000000 -j ACCEPT\n";

    /// Clients are in 192.168.1.0/24, and servers behind `wan`.
    fn links() -> Links {
        let mut links = Links::default();
        links.add("lan", "192.168.1.1/24".parse().unwrap());
        links.add("wan", "198.51.100.1/24".parse().unwrap());
        links
    }

    /// The modes that are dropped at `hook`, each with the chain that drops it.
    fn dropped_modes(
        firewall: &Firewall,
        interfaces: &[&str],
        hook: Hook,
        class: PacketClass,
    ) -> Vec<(DataMode, String)> {
        let parameters = RuleParameters::default();
        let interfaces: Vec<String> = interfaces.iter().map(|one| (*one).to_owned()).collect();
        let mut paths = firewall.control_verdicts(&parameters, &interfaces, &[hook]);
        paths.retain(|path| path.ip == IpVersion::V4);
        let verdicts = firewall.mode_verdicts(&paths, class, &links(), &parameters).into_iter();
        let dropped = verdicts.filter_map(|one| {
            let chain = one.dropping_chains.first()?.location.to_string();
            Some((one.mode, chain))
        });
        dropped.collect()
    }

    /// The dropped modes of connections that are admitted, and of those that are expected, between `lan` and `wan`.
    fn dropped(tables: &[(&str, &str)]) -> [Vec<DataMode>; 2] {
        let firewall = Firewall::from_iptables_tables(tables);
        [PacketClass::MarkedData, PacketClass::RelatedData].map(|class| {
            let dropped = dropped_modes(&firewall, &["lan", "wan"], Hook::Forward, class);
            dropped.into_iter().map(|(mode, _)| mode).collect()
        })
    }

    #[test]
    fn new_connections_dropped_from_outside_stop_active_mode() {
        let accepting = format!(":FORWARD DROP\n{RELATED}{MARK}{CONTROL}");
        assert_eq!(dropped(&[("filter", &accepting)]), [vec![], vec![]]);
        let new = "-A FORWARD -i wan -m conntrack --ctstate NEW -j DROP\n";
        for (tables, expected) in [
            (
                vec![("mangle", format!(":FORWARD ACCEPT\n{new}")), ("filter", accepting.clone())],
                [vec![DataMode::Active], vec![]],
            ),
            (
                vec![("filter", format!(":FORWARD DROP\n{ESTABLISHED}{new}{MARK}{CONTROL}"))],
                [vec![DataMode::Active], vec![]],
            ),
            (
                vec![("filter", format!(":FORWARD ACCEPT\n{ESTABLISHED}{new}"))],
                [vec![DataMode::Active], vec![]],
            ),
            // The accept rule is before it.
            (
                vec![("filter", format!(":FORWARD DROP\n{ESTABLISHED}{MARK}{new}{CONTROL}"))],
                [vec![], vec![]],
            ),
            // Both back ends.
            (
                vec![(
                    "filter",
                    format!(
                        ":FORWARD DROP\n{ESTABLISHED}-A FORWARD -i wan -p tcp -m tcp --dport 1024:65535 -j DROP\n\
                         {RELATED}{MARK}{CONTROL}"
                    ),
                )],
                [vec![DataMode::Active], vec![DataMode::Active]],
            ),
            (
                vec![
                    (
                        "raw",
                        ":PREROUTING ACCEPT\n-A PREROUTING -i wan -p tcp -m tcp --tcp-flags SYN,ACK SYN -j DROP"
                            .to_owned(),
                    ),
                    ("filter", accepting.clone()),
                ],
                [vec![DataMode::Active], vec![DataMode::Active]],
            ),
            // By address or port only some.
            (
                vec![
                    ("raw", ":PREROUTING ACCEPT\n-A PREROUTING -i wan -s 10.0.0.0/8 -j DROP".to_owned()),
                    ("filter", accepting.clone()),
                ],
                [vec![], vec![]],
            ),
            (
                vec![
                    (
                        "raw",
                        ":PREROUTING ACCEPT\n-A PREROUTING -i wan -p tcp -m tcp --dport 6000:6063 -j DROP"
                            .to_owned(),
                    ),
                    ("filter", accepting.clone()),
                ],
                [vec![], vec![]],
            ),
        ] {
            let tables: Vec<(&str, &str)> =
                tables.iter().map(|(name, rules)| (*name, rules.as_str())).collect();
            assert_eq!(dropped(&tables), expected, "{tables:?}");
        }
    }

    #[test]
    fn the_accept_rule_for_one_direction_stops_the_other_mode() {
        let from_wan = MARK.replace("FORWARD", "FORWARD -i wan");
        let filter = format!(":FORWARD DROP\n{ESTABLISHED}{from_wan}{CONTROL}");
        let [marked, _] = dropped(&[("filter", &filter)]);
        assert_eq!(marked, [DataMode::Passive]);
    }

    #[test]
    fn an_accept_rule_for_some_hosts_is_for_their_modes() {
        let dropped = |hosts: &[&str]| {
            let rules: String = hosts
                .iter()
                .map(|host| MARK.replace("FORWARD", &format!("FORWARD {host}")))
                .collect();
            let others = "-A FORWARD -s 10.0.0.0/8 -j ACCEPT\n";
            let filter = format!(":FORWARD DROP\n{ESTABLISHED}{others}{rules}{CONTROL}");
            let [marked, _] = dropped(&[("filter", &filter)]);
            marked
        };
        let (both, passive) = (vec![DataMode::Passive, DataMode::Active], vec![DataMode::Passive]);
        assert_eq!(dropped(&[]), both);
        assert_eq!(dropped(&["-s 192.168.1.80/32", "-s 198.51.100.90/32"]), []);
        assert_eq!(dropped(&["-s 192.168.1.80/32", "-d 192.168.1.80/32"]), []);
        assert_eq!(dropped(&["-s 203.0.113.0/24"]), []);
        assert_eq!(dropped(&["-s 192.168.1.0/24"]), [DataMode::Active]);
        assert_eq!(dropped(&["-d 192.168.1.0/24"]), passive);
        assert_eq!(dropped(&["! -s 192.168.1.0/24"]), []);
        // A limit is no restriction by addresses.
        assert_eq!(dropped(&["-s 192.168.1.80/32 -m limit --limit 2/min"]), both);
    }

    #[test]
    fn a_reverse_path_filter_and_a_limit_at_prerouting_stop_no_mode() {
        let filter = format!(":FORWARD DROP\n{RELATED}{MARK}{CONTROL}");
        let early = ":PREROUTING ACCEPT\n:C - [0:0]\n-A PREROUTING -p tcp -j C\n";
        for (table, rules) in [
            ("mangle", "-A C -m rpfilter --validmark -j RETURN\n-A C -j DROP"),
            ("raw", "-A C -m limit --limit 100/s -j RETURN\n-A C -j DROP"),
        ] {
            let tables = [(table, &*format!("{early}{rules}")), ("filter", &filter)];
            assert_eq!(dropped(&tables), [vec![], vec![]], "{rules}");
        }
        let open = ":FORWARD ACCEPT\n";
        let limited =
            format!("{open}-A FORWARD -m limit --limit 9/s -j RETURN\n-A FORWARD -j DROP");
        assert_eq!(dropped(&[("mangle", &limited), ("filter", open)]), [vec![], vec![]]);
        let both = vec![DataMode::Passive, DataMode::Active];
        let certain = format!(
            "{early}-A C -p tcp -m tcp --dport 21 -j RETURN\n-A C -p tcp -m tcp --syn -j DROP"
        );
        assert_eq!(dropped(&[("mangle", &certain), ("filter", &filter)]), [both.clone(), both]);
    }

    #[test]
    fn high_ports_without_connection_tracking_stop_passive_mode() {
        let raw = ":PREROUTING ACCEPT\n\
                   -A PREROUTING -p tcp -m tcp --sport 1024:65535 --dport 1024:65535 -j CT --notrack";
        let filter = format!(":FORWARD DROP\n{RELATED}{MARK}{CONTROL}");
        let [marked, related] = dropped(&[("raw", raw), ("filter", &filter)]);
        assert_eq!((marked, related), (vec![DataMode::Passive], vec![DataMode::Passive]));
    }

    #[test]
    fn a_host_is_the_end_of_its_data_connections() {
        let rules = ":INPUT DROP\n-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n\
                     -A INPUT -p tcp -m tcp --dport 21 -j ACCEPT\n:OUTPUT ACCEPT\n";
        let dropped = |rules: &str, hook| {
            let firewall = Firewall::from_iptables_tables(&[("filter", rules)]);
            let dropped = dropped_modes(&firewall, &["eth0"], hook, PacketClass::MarkedData);
            dropped.into_iter().map(|(mode, _)| mode).collect::<Vec<_>>()
        };
        // A server, and a client.
        assert_eq!(dropped(rules, Hook::Input), [DataMode::Passive]);
        assert_eq!(dropped(rules, Hook::Output), [DataMode::Active]);
        let accepting = format!("{rules}{}", MARK.replace("FORWARD", "INPUT"));
        assert_eq!(dropped(&accepting, Hook::Input), []);
    }

    #[test]
    fn ingress_chains_count_for_their_interface() {
        let json = r#"{"nftables": [{"table": {"family": "netdev", "name": "n"}},
            {"chain": {"family": "netdev", "table": "n", "name": "i", "type": "filter", "hook": "ingress",
              "dev": "wan", "prio": 0, "policy": "accept"}},
            {"rule": {"family": "netdev", "table": "n", "chain": "i", "expr": [
              {"match": {"op": "==", "left": {"&": [{"payload": {"protocol": "tcp", "field": "flags"}},
                {"|": ["syn", "ack"]}]}, "right": "syn"}}, {"drop": null}]}}]}"#;
        let firewall = Firewall::from_nft(json, "").unwrap();
        let dropped = |names: &[&str]| {
            dropped_modes(&firewall, names, Hook::Forward, PacketClass::MarkedData)
        };
        assert_eq!(dropped(&["lan", "wan"]), [(DataMode::Active, "netdev n i".to_owned())]);
        assert_eq!(dropped(&["lan", "dmz"]), []);
        // nft 1.0.6 names the device only in its listing.
        let without = json.replace(r#""dev": "wan", "#, "");
        for (device, expected) in
            [("device \"wan\"", 1), ("devices = { \"x\", \"wan\" }", 1), ("device \"x\"", 0)]
        {
            let listing = format!(
                "table netdev n {{\n\tchain i {{ # handle 1\n\t\ttype filter hook ingress {device} \
                 priority 0; policy accept;\n\t}}\n}}\n"
            );
            let firewall = Firewall::from_nft(&without, &listing).unwrap();
            let dropped =
                dropped_modes(&firewall, &["lan", "wan"], Hook::Forward, PacketClass::MarkedData);
            assert_eq!(dropped.len(), expected, "{device}");
        }
        let policy = json.replace(r#""policy": "accept""#, r#""policy": "drop""#);
        let firewall =
            Firewall::from_nft(&policy.replace(r#"{"drop": null}"#, r#"{"accept": null}"#), "");
        let dropped = |names: &[&str]| {
            let firewall = firewall.as_ref().unwrap();
            dropped_modes(firewall, names, Hook::Forward, PacketClass::MarkedData).len()
        };
        // Not even control connections pass the policy.
        assert_eq!((dropped(&["lan", "wan"]), dropped(&["lan", "dmz"])), (0, 0));
    }
}
