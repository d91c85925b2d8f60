//! The gateway's own firewall: what an operator would have written before `ftp-alg` came.
//!
//! Everything is dropped but ICMP, what is established, and control connections. One line is for
//! `ftp-alg`: connections that carry its mark are accepted. `related` is *not* accepted, so that no
//! helper of the kernel can make a test pass.

use std::time::Duration;

use super::{Family, Host, Result, Spec, Topology};

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

pub(super) fn install(gateway: &Host, spec: &Spec) -> Result<()> {
    match spec.firewall {
        FirewallKind::Nftables => gateway.nft(&nftables(spec)),
        FirewallKind::IptablesNft => restore(gateway, spec, "nft"),
        FirewallKind::IptablesLegacy => restore(gateway, spec, "legacy"),
        FirewallKind::None => Ok(()),
    }
}

fn nftables(spec: &Spec) -> String {
    let plan = &spec.plan;
    let mut nat = String::new();
    match spec.topology {
        Topology::Routed => {}
        Topology::Masquerade => {
            let only4 = if spec.nat66 { "" } else { "meta nfproto ipv4 " };
            nat = format!(
                "    chain source {{
        type nat hook postrouting priority srcnat;
        {only4}oifname \"wan\" masquerade
    }}
"
            );
        }
        Topology::PublishedServer => {
            let (outside, server) = (plan.outside, plan.server);
            nat = format!(
                "    chain destination {{
        type nat hook prerouting priority dstnat;
        ip daddr {} tcp dport 21 dnat ip to {}
",
                outside.v4, server.v4
            );
            if spec.nat66 {
                nat += &format!(
                    "        ip6 daddr {} tcp dport 21 dnat ip6 to {}\n",
                    outside.v6, server.v6
                );
            }
            nat += "    }\n";
        }
    }
    format!(
        "table inet gateway {{
    chain input {{
        type filter hook input priority filter; policy drop;
        meta l4proto {{ icmp, ipv6-icmp }} accept
        ct state established accept
        iifname \"lo\" accept
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        meta l4proto {{ icmp, ipv6-icmp }} accept
        ct state established accept
        tcp dport 21 accept
        ct mark and 0x40000000 != 0 accept comment \"data connections that ftp-alg admitted\"
    }}
{nat}}}
"
    )
}

fn restore(gateway: &Host, spec: &Spec, variant: &str) -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let program = match family {
            Family::V4 => format!("iptables-{variant}-restore"),
            Family::V6 => format!("ip6tables-{variant}-restore"),
        };
        let command = gateway.command(program);
        gateway
            .finish(command, iptables(spec, family).as_bytes(), Duration::from_secs(10))?
            .success()?;
    }
    Ok(())
}

fn iptables(spec: &Spec, family: Family) -> String {
    let icmp = match family {
        Family::V4 => "icmp",
        Family::V6 => "ipv6-icmp",
    };
    let mut rules = format!(
        "*filter
:INPUT DROP
:FORWARD DROP
:OUTPUT ACCEPT
-A INPUT -p {icmp} -j ACCEPT
-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A FORWARD -p {icmp} -j ACCEPT
-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A FORWARD -p tcp --dport 21 -j ACCEPT
-A FORWARD -m connmark --mark 0x40000000/0x40000000 -j ACCEPT
COMMIT
"
    );
    if family == Family::V4 || spec.nat66 {
        let outside = spec.plan.outside.address(family);
        let server = spec.plan.server.address(family);
        rules += &match spec.topology {
            Topology::Routed => String::new(),
            Topology::Masquerade => {
                "*nat\n-A POSTROUTING -o wan -j MASQUERADE\nCOMMIT\n".to_owned()
            }
            Topology::PublishedServer => format!(
                "*nat\n-A PREROUTING -d {outside} -p tcp --dport 21 -j DNAT \
                 --to-destination {server}\nCOMMIT\n"
            ),
        };
    }
    rules
}
