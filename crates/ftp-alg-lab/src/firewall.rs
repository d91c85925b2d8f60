//! The gateways' own firewalls: what an operator would have written before `ftp-alg` came.
//!
//! Everything is dropped but ICMP, what is established, control connections, and data connections
//! that `ftp-alg` admitted, which are known by its mark or as `related` ([`Admission`]). With the
//! mark `related` is *not* accepted, so that no helper of the kernel can make a test pass.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{Family, Host, LabSpec, Result, Topology};

/// What a gateway's firewall is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirewallKind {
    /// nftables, family `inet`.
    Nftables,
    /// iptables and ip6tables over nftables.
    IptablesNft,
    /// iptables and ip6tables of old.
    IptablesLegacy,
    /// Nothing: whoever builds the lab brings its own.
    None,
}

/// By what a gateway's firewall knows data connections that `ftp-alg` admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// By the mark on them.
    Mark,
    /// As connections that conntrack calls related; the mark means nothing to it.
    Related,
}

/// Stands in for `ftp-alg` with the kernel's own FTP helper; the lab is tested with it.
///
/// It marks what the helper expects as `ftp-alg` would, so that the same firewall admits it.
pub const KERNEL_HELPER: &str = "
table inet ftp_alg {
    ct helper ftp {
        type \"ftp\" protocol tcp;
    }
    chain assign {
        type filter hook prerouting priority filter;
        tcp dport 21 ct helper set \"ftp\"
        ct state related ct mark set ct mark or 0x40000000
    }
}
";

/// Loads what `host` needs: nothing unless it is a gateway.
pub(super) fn install(host: &Host, spec: &LabSpec) -> Result<()> {
    let Some(firewall) = GatewayFirewall::of(host, spec) else { return Ok(()) };
    match spec.firewall {
        FirewallKind::Nftables => host.nft(&firewall.nftables()),
        FirewallKind::IptablesNft => firewall.restore(host, "nft"),
        FirewallKind::IptablesLegacy => firewall.restore(host, "legacy"),
        FirewallKind::None => Ok(()),
    }
}

/// What one gateway drops and translates.
struct GatewayFirewall {
    /// By what admitted connections are known; `None` means that nothing is dropped.
    drops: Option<Admission>,
    /// Where control connections go, as its filter sees them.
    port: u16,
    /// The chain that lets control connections of this host itself pass, besides `forward`.
    local: Option<&'static str>,
    nat: Vec<NatRule>,
}

/// One translation.
enum NatRule {
    /// Sources become the outer interface's address.
    Masquerade(Family),
    /// Sources become one of these; see [`Firewall::choice`].
    Pool(Vec<IpAddr>),
    /// One port is published.
    Publish { at: SocketAddr, server: SocketAddr },
    /// One address is another, both ways.
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

    /// How nftables is to choose an address of `pool`.
    ///
    /// In turn; but conntrack's own translation of what is related cannot change the server's port, so
    /// there two transfers to one port of a client through two addresses clash. A client keeps its
    /// address then.
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
            host.finish(command, rules.as_bytes(), Duration::from_secs(10))?.success()?;
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
