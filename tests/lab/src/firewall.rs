//! The gateways' own firewalls: rules as an operator without `ftp-alg` has them.
//!
//! The firewall accepts only ICMP, established connections, control connections, and data connections that `ftp-alg`
//! admitted. It recognises these by the mark or as `related` ([`Admission`]). If it uses the mark, it does not accept
//! `related`, so that no helper of the kernel can make a test pass.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{Family, Host, LabSpec, Result, Topology};

/// The program of a gateway's firewall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirewallKind {
    /// nftables, family `inet`.
    Nftables,
    /// iptables-nft and ip6tables-nft.
    IptablesNft,
    /// iptables-legacy and ip6tables-legacy.
    IptablesLegacy,
    /// No firewall: the caller loads its own rules.
    None,
}

impl FirewallKind {
    /// All programs.
    pub const ALL: [Self; 3] = [Self::Nftables, Self::IptablesNft, Self::IptablesLegacy];
}

/// How a gateway's firewall recognises data connections that `ftp-alg` admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// By the ct mark.
    Mark,
    /// By the conntrack state `related`. The firewall ignores the mark.
    Related,
}

/// Rules that use the kernel's FTP helper in place of `ftp-alg`. The lab itself is tested with them.
///
/// The rules set the mark of `ftp-alg` on the connections that the helper expects, so that the same firewall admits
/// them.
pub const KERNEL_HELPER: &str = r#"
table inet ftp_helper {
    ct helper ftp {
        type "ftp" protocol tcp;
    }
    chain assign {
        type filter hook prerouting priority filter;
        tcp dport 21 ct helper set "ftp"
        ct state related ct mark set ct mark or 0x40000000
    }
}
"#;

/// Loads the firewall of `host` if it is a gateway.
pub(super) fn install(host: &Host, spec: &LabSpec) -> Result<()> {
    let Some(firewall) = GatewayFirewall::of(host, spec) else { return Ok(()) };
    match spec.firewall {
        FirewallKind::Nftables => host.nft(&firewall.nftables()),
        FirewallKind::IptablesNft => firewall.restore(host, "nft"),
        FirewallKind::IptablesLegacy => firewall.restore(host, "legacy"),
        FirewallKind::None => Ok(()),
    }
}

/// The filtering and the translation of one gateway.
struct GatewayFirewall {
    /// How the filter recognises admitted connections; `None` if there is no filter.
    drops: Option<Admission>,
    /// The destination port of control connections in the filter chains.
    port: u16,
    /// The chain, in addition to `forward`, that accepts control connections of the gateway itself.
    local: Option<&'static str>,
    nat: Vec<NatRule>,
}

/// One translation.
enum NatRule {
    /// Masquerade with the address of the outer interface.
    Masquerade(Family),
    /// Source NAT to one of these addresses; see [`GatewayFirewall::pool_expression`].
    Pool(Vec<IpAddr>),
    /// Destination NAT of one port.
    Publish { at: SocketAddr, server: SocketAddr },
    /// NAT of one address to another, in both directions.
    Map { public: IpAddr, private: IpAddr },
}

impl GatewayFirewall {
    fn of(host: &Host, spec: &LabSpec) -> Option<Self> {
        let LabSpec { topology, plan, .. } = spec;
        let local = match topology {
            Topology::OnServer => Some("input"),
            Topology::OnClient => Some("output"),
            _ => None,
        };
        let families = [Family::V4, Family::V6].into_iter().filter(|of| spec.translates(*of));
        let publish = |family, at: super::DualAddress| NatRule::Publish {
            at: SocketAddr::new(at.address(family), topology.public_port()),
            server: SocketAddr::new(plan.server.address(family), 21),
        };
        let translation = |family: Family| match (host.role(), topology, plan.far) {
            ("gateway", Topology::Masquerade | Topology::BothSides, _) => {
                Some(NatRule::Masquerade(family))
            }
            ("gateway", Topology::SnatPool, _) => {
                Some(NatRule::Pool(plan.pool.iter().map(|ends| ends.address(family)).collect()))
            }
            (
                "gateway",
                Topology::PublishedServer | Topology::PortForward | Topology::OneToOne,
                _,
            ) => Some(publish(family, plan.outside)),
            ("far", Topology::BothSides, Some(far)) => Some(publish(family, far.outside)),
            ("far", Topology::OneToOne, Some(router)) => Some(NatRule::Map {
                public: router.outside.address(family),
                private: plan.outside.address(family),
            }),
            _ => None,
        };
        let drops = match (host.role(), topology) {
            ("far", Topology::OneToOne) => None,
            ("gateway" | "far", _) => Some(spec.admission),
            _ => return None,
        };
        let towards_public = (host.role(), *topology) == ("gateway", Topology::BothSides);
        let port = if towards_public { topology.public_port() } else { 21 };
        Some(Self { drops, port, local, nat: families.filter_map(translation).collect() })
    }

    fn nftables(&self) -> String {
        let mut text = String::from("table inet gateway {\n");
        let mut chain = |hook: &str, kind: &str, policy: &str, rules: &[String]| {
            text += &format!("    chain {hook} {{\n        type {kind}; policy {policy};\n");
            for rule in rules {
                text += &format!("        {rule}\n");
            }
            text += "    }\n";
        };
        if let Some(admission) = self.drops {
            let states = match admission {
                Admission::Mark => "established",
                Admission::Related => "established,related",
            };
            for hook in ["input", "forward", "output"] {
                let own = self.local.is_some();
                if hook == "output" && !own {
                    continue;
                }
                let mut rules = vec![
                    "meta l4proto { icmp, ipv6-icmp } accept".to_owned(),
                    format!("ct state {states} accept"),
                ];
                match hook {
                    "input" => rules.push("iifname \"lo\" accept".to_owned()),
                    "output" => rules.extend([
                        "oifname \"lo\" accept".to_owned(),
                        "meta mark 0x70000000 accept".to_owned(),
                    ]),
                    _ => {}
                }
                if hook == "forward" || self.local == Some(hook) {
                    rules.push(format!("tcp dport {} accept", self.port));
                }
                if admission == Admission::Mark && (hook == "forward" || own) {
                    rules.push("ct mark and 0x40000000 != 0 accept".to_owned());
                }
                chain(hook, &format!("filter hook {hook} priority filter"), "drop", &rules);
            }
        }
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for nat in &self.nat {
            match nat {
                NatRule::Masquerade(family) => {
                    let protocol = if *family == Family::V4 { "ipv4" } else { "ipv6" };
                    after.push(format!("meta nfproto {protocol} oifname \"wan\" masquerade"));
                }
                NatRule::Pool(pool) => {
                    let ip = pool.first().map_or("ip", |address| ip_of(*address));
                    let protocol = if ip == "ip" { "ipv4" } else { "ipv6" };
                    let choice = self.pool_expression(pool);
                    after.push(format!(
                        "meta nfproto {protocol} oifname \"wan\" snat {ip} to {choice}"
                    ));
                }
                NatRule::Publish { at, server } => before.push(format!(
                    "{ip} daddr {} tcp dport {} dnat {ip} to {server}",
                    at.ip(),
                    at.port(),
                    ip = ip_of(at.ip())
                )),
                NatRule::Map { public, private } => {
                    let ip = ip_of(*public);
                    before.push(format!("{ip} daddr {public} dnat {ip} to {private}"));
                    after.push(format!("{ip} saddr {private} snat {ip} to {public}"));
                }
            }
        }
        for (name, kind, rules) in [
            ("destination", "nat hook prerouting priority dstnat", before),
            ("source", "nat hook postrouting priority srcnat", after),
        ] {
            if !rules.is_empty() {
                chain(name, kind, "accept", &rules);
            }
        }
        text + "}\n"
    }

    /// The nftables expression that chooses an address of `pool`.
    ///
    /// The addresses are used in turn. With [`Admission::Related`] each client always gets the same address. The kernel
    /// translates related connections and cannot change the server's port, so two transfers to one port of a client
    /// through two addresses would clash.
    fn pool_expression(&self, pool: &[IpAddr]) -> String {
        match (self.drops, pool) {
            (Some(Admission::Related), [first, .., last]) => format!("{first}-{last} persistent"),
            _ => {
                let pool: Vec<String> =
                    pool.iter().enumerate().map(|(at, to)| format!("{at} : {to}")).collect();
                format!("numgen inc mod {} map {{ {} }}", pool.len(), pool.join(", "))
            }
        }
    }

    fn restore(&self, host: &Host, variant: &str) -> Result<()> {
        for family in [Family::V4, Family::V6] {
            let program = match family {
                Family::V4 => format!("iptables-{variant}-restore"),
                Family::V6 => format!("ip6tables-{variant}-restore"),
            };
            let command = host.command(program);
            let rules = self.iptables(family);
            host.finish(command, rules.as_bytes(), Duration::from_secs(60))?.success()?;
        }
        Ok(())
    }

    fn iptables(&self, family: Family) -> String {
        let icmp = if family == Family::V4 { "icmp" } else { "ipv6-icmp" };
        let own = self.local.is_some();
        let mut rules = String::from("*filter\n");
        if let Some(admission) = self.drops {
            let states = match admission {
                Admission::Mark => "ESTABLISHED",
                Admission::Related => "ESTABLISHED,RELATED",
            };
            let output = if own { "DROP" } else { "ACCEPT" };
            rules += &format!(":INPUT DROP\n:FORWARD DROP\n:OUTPUT {output}\n");
            rules += "-A INPUT -i lo -j ACCEPT\n-A OUTPUT -o lo -j ACCEPT\n";
            rules += "-A OUTPUT -m mark --mark 0x70000000 -j ACCEPT\n";
            for hook in ["INPUT", "FORWARD", "OUTPUT"] {
                rules += &format!("-A {hook} -p {icmp} -j ACCEPT\n");
                rules += &format!("-A {hook} -m conntrack --ctstate {states} -j ACCEPT\n");
                if hook == "FORWARD"
                    || self.local.is_some_and(|local| local.eq_ignore_ascii_case(hook))
                {
                    rules += &format!("-A {hook} -p tcp --dport {} -j ACCEPT\n", self.port);
                }
                if admission == Admission::Mark && (hook == "FORWARD" || own) {
                    rules +=
                        &format!("-A {hook} -m connmark --mark 0x40000000/0x40000000 -j ACCEPT\n");
                }
            }
        }
        rules += "COMMIT\n";
        let mut translations = String::new();
        for nat in &self.nat {
            match nat {
                NatRule::Masquerade(of) if *of == family => {
                    translations += "-A POSTROUTING -o wan -j MASQUERADE\n";
                }
                NatRule::Pool(pool) if pool.iter().all(|address| is_of(*address, family)) => {
                    if let [first, .., last] = pool.as_slice() {
                        translations +=
                            &format!("-A POSTROUTING -o wan -j SNAT --to-source {first}-{last}\n");
                    }
                }
                NatRule::Publish { at, server } if is_of(at.ip(), family) => {
                    translations += &format!(
                        "-A PREROUTING -d {} -p tcp --dport {} -j DNAT --to-destination {server}\n",
                        at.ip(),
                        at.port()
                    );
                }
                NatRule::Map { public, private } if is_of(*public, family) => {
                    translations += &format!(
                        "-A PREROUTING -d {public} -j DNAT --to-destination {private}\n\
                         -A POSTROUTING -s {private} -j SNAT --to-source {public}\n"
                    );
                }
                _ => {}
            }
        }
        if !translations.is_empty() {
            rules += &format!("*nat\n{translations}COMMIT\n");
        }
        rules
    }
}

fn ip_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

fn is_of(address: IpAddr, family: Family) -> bool {
    address.is_ipv4() == (family == Family::V4)
}
