//! A SYN consumes a pinhole of the rules only if it reaches its target. One that the kernel or the operator's filter
//! drops leaves the pinhole to the next SYN: it may be forged.

use std::net::SocketAddr;

use super::{
    consumed_pinholes::{Announced, SOURCE},
    forged_ends::forge_syn,
};
use crate::common::*;

/// An announced pinhole of the rules.
#[derive(Clone, Copy, Debug)]
struct Case {
    topology: Topology,
    family: Family,
    is_active: bool,
}

impl Case {
    const fn new(topology: Topology, family: Family, is_active: bool) -> Self {
        Self { topology, family, is_active }
    }

    /// The announcement is queued, so the rules have the pinhole.
    fn announced(self) -> Announced {
        let in_two_segments = |line: &str| json!({"send": format!("{line}\r\n"), "cut": [4]});
        let Self { topology, family, is_active } = self;
        Announced::announced_by(in_two_segments, NFTABLES, topology, family, is_active)
    }

    /// Asserts that the pinhole is open, and admits one connection.
    fn assert_open(self, announced: &Announced) {
        assert_eq!(announced.connect_from(SOURCE + 1, "r", "8"), "open", "{self:?}");
        assert_eq!(announced.connect_from(SOURCE + 2, "r", "0.7"), "silent", "{self:?}");
        assert_eq!(announced.scene.gateway.daemon.status().unwrap()["errors"], 0);
    }
}

/// Adds a chain of the operator to a table of its own.
fn filter(announced: &Announced, chain: &str) {
    let gateway = &announced.scene.gateway.lab.gateway;
    gateway.nft(&format!("table inet operator {{ chain filter {{\n{chain}\n}}\n}}\n")).unwrap();
}

/// Sends a forged SYN from the other side of the gateway. The operator's rules or rp_filter drop it.
fn assert_forged_syn_consumes_nothing(case: Case, prepare: &str, chain: &str) {
    let announced = case.announced();
    let lab = &announced.scene.gateway.lab;
    lab.gateway.shell(prepare).unwrap();
    let seen = format!(
        "table inet seen {{ chain seen {{\ntype filter hook prerouting priority -300;\n\
         tcp sport {SOURCE} tcp flags syn counter\n}}\n}}\n"
    );
    lab.gateway.nft(&seen).unwrap();
    if !chain.is_empty() {
        filter(&announced, chain);
    }
    let forger = if case.is_active { &lab.client2 } else { &lab.server };
    let arrival = SocketAddr::new(announced.address.parse().unwrap(), announced.port);
    let initiator = SocketAddr::new(announced.initiator().address(case.family), SOURCE);
    forge_syn(lab, forger, [initiator, arrival]);
    let count = || lab.gateway.run("nft", &["list", "table", "inet", "seen"]).unwrap();
    wait_for("the forged SYN", || count().stdout_text().contains("packets 1 "));
    case.assert_open(&announced);
}

#[test]
fn a_syn_that_rp_filter_drops_consumes_no_pinhole() {
    let strict =
        "for name in all lan wan; do echo 1 > /proc/sys/net/ipv4/conf/$name/rp_filter; done";
    for case in
        [Case::new(Topology::Masquerade, V4, true), Case::new(Topology::PublishedServer, V4, false)]
    {
        assert_forged_syn_consumes_nothing(case, strict, "");
    }
}

/// IPv6 has no rp_filter, so operators write such a rule.
#[test]
fn an_ipv6_syn_from_the_wrong_interface_consumes_no_pinhole() {
    for (hook, is_active) in [("prerouting", true), ("forward", true), ("forward", false)] {
        let case = Case::new(Topology::Routed, V6, is_active);
        let chain = format!(
            "type filter hook {hook} priority filter;\n\
             tcp flags syn fib saddr . iif oif missing drop"
        );
        assert_forged_syn_consumes_nothing(case, ":", &chain);
    }
}

#[test]
fn a_syn_that_the_operator_drops_consumes_no_pinhole() {
    use Topology::{Masquerade, OnClient, OnServer, PublishedServer, Routed};
    thread::scope(|scope| {
        for (hook, verdict, case) in [
            ("forward", "drop", Case::new(Masquerade, V4, true)),
            ("forward", "drop", Case::new(PublishedServer, V4, false)),
            ("forward", "reject with tcp reset", Case::new(Masquerade, V4, true)),
            ("forward", "drop", Case::new(Routed, V6, true)),
            ("postrouting", "drop", Case::new(Routed, V6, false)),
            ("input", "drop", Case::new(OnServer, V4, false)),
            ("input", "drop", Case::new(OnServer, V6, false)),
            ("input", "drop", Case::new(OnClient, V4, true)),
            ("output", "drop", Case::new(OnClient, V4, false)),
        ] {
            scope.spawn(move || {
                let announced = case.announced();
                let kind = format!("type filter hook {hook} priority filter + 1;");
                filter(&announced, &format!("{kind}\ntcp sport {SOURCE} {verdict}"));
                assert_ne!(announced.connect_from(SOURCE, "r", "0.7"), "open", "{hook} {case:?}");
                case.assert_open(&announced);
            });
        }
    });
}

/// Its TTL ends there.
#[test]
fn a_syn_that_ends_at_the_gateway_consumes_no_pinhole_of_the_rules() {
    for case in [
        Case::new(Topology::Masquerade, V4, true),
        Case::new(Topology::PublishedServer, V4, false),
        Case::new(Topology::Routed, V6, true),
    ] {
        let announced = case.announced();
        let mut near = announced.connecting(SOURCE, "r", "0.7");
        near.arg("1");
        let near = announced.initiator().finish(near, b"", Duration::from_secs(30)).unwrap();
        assert_ne!(near.success().unwrap().stdout_text().trim(), "open", "{case:?}");
        case.assert_open(&announced);
    }
}
