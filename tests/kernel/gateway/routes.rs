//! Whether a route to an address leads to an interface.

use ftp_alg::gateway::{LinuxKernel, RuleParameters};
use ftp_alg_core::engine::{Kernel as _, RouteLookup};

use super::{
    fastpath::indices,
    lab::{CLIENT, CLIENT6, Lab, SERVER, SERVER6},
};

/// An address that only a default route covers.
const FAR: &str = "203.0.113.7";
const FAR6: &str = "2001:db8:f::7";

/// Whether there is a route in the lab's gateway.
fn has_route(lab: &Lab, address: &str, interface: &str) -> bool {
    lab.on_gateway(|| {
        let [interface, _] = indices([interface, "lo"]);
        let lookup = RouteLookup { address: address.parse().unwrap(), interface, used: 0, mark: 0 };
        LinuxKernel::new(&RuleParameters::default()).unwrap().has_route(lookup).unwrap()
    })
}

#[track_caller]
fn assert_routes(lab: &Lab, address: &str, expected: &[&str]) {
    let all = ["lan", "wan", "up1", "up2", "up3", "up4", "guests"];
    let found: Vec<_> = all.into_iter().filter(|name| has_route(lab, address, name)).collect();
    assert_eq!(found, expected, "{address}");
}

/// A gateway with four uplinks next to its own interfaces, and a network of guests.
fn lab_with_uplinks() -> Lab {
    let lab = Lab::new();
    for (number, name) in ["up1", "up2", "up3", "up4", "guests"].iter().enumerate() {
        lab.gateway_sh(&format!(
            "ip link add {name} type veth peer name p-{name}; ip link set {name} up; \
             ip link set p-{name} up; \
             ip address add 198.18.{number}.1/24 dev {name}; \
             ip address add fd00:{number}::1/64 dev {name} nodad"
        ));
    }
    lab
}

#[test]
fn each_end_is_on_its_own_network_only() {
    let lab = lab_with_uplinks();
    let neighbours = [(CLIENT, "lan"), (CLIENT6, "lan"), (SERVER, "wan"), (SERVER6, "wan")];
    for (address, interface) in neighbours {
        assert_routes(&lab, address, &[interface]);
    }
    assert_routes(&lab, FAR, &[]);
    assert_routes(&lab, FAR6, &[]);
    // A default route leads to anywhere, but not to a network that has a route of its own.
    lab.gateway_sh("ip route add default dev wan; ip -6 route add default dev wan");
    for (address, interface) in neighbours {
        assert_routes(&lab, address, &[interface]);
    }
    assert_routes(&lab, FAR, &["wan"]);
    assert_routes(&lab, FAR6, &["wan"]);
}

#[test]
fn every_uplink_leads_to_what_only_default_routes_cover() {
    let lab = lab_with_uplinks();
    lab.gateway_sh(
        "for ip in 'ip' 'ip -6'; do \
             $ip route add default dev wan metric 100; \
             $ip route add default dev up1 metric 200; \
             $ip route add default dev up2 table 102; $ip rule add fwmark 2 lookup 102; \
             $ip route add default dev up3 table 1003; \
         done; \
         ip rule add from 198.18.2.1 lookup 1003; ip -6 rule add from fd00:2::1 lookup 1003",
    );
    for address in [FAR, FAR6] {
        assert_routes(&lab, address, &["wan", "up1", "up2", "up3"]);
    }
    for (address, interface) in [(CLIENT, "lan"), (CLIENT6, "lan"), (SERVER, "wan")] {
        assert_routes(&lab, address, &[interface]);
    }
}

#[test]
fn every_next_hop_of_a_route_counts() {
    let lab = lab_with_uplinks();
    lab.gateway_sh(
        "ip route add 203.0.113.0/24 nexthop via 198.18.0.9 dev up1 nexthop via 198.18.1.9 dev up2; \
         ip -6 route add 2001:db8:f::/64 nexthop via fd00:0::9 dev up1 nexthop via fd00:1::9 dev up2; \
         ip route add default dev up3",
    );
    assert_routes(&lab, FAR, &["up1", "up2"]);
    assert_routes(&lab, FAR6, &["up1", "up2"]);
}

#[test]
fn a_route_that_refuses_leads_nowhere() {
    let lab = lab_with_uplinks();
    lab.gateway_sh("ip route add default dev wan; ip -6 route add default dev wan");
    for kind in ["unreachable", "prohibit", "blackhole"] {
        lab.gateway_sh(&format!(
            "ip route replace {kind} {FAR}/32; ip -6 route replace {kind} {FAR6}/128"
        ));
        assert_routes(&lab, FAR, &[]);
        assert_routes(&lab, FAR6, &[]);
    }
    let absent =
        RouteLookup { address: SERVER.parse().unwrap(), interface: 60_000, used: 0, mark: 0 };
    lab.on_gateway(|| {
        let mut kernel = LinuxKernel::new(&RuleParameters::default()).unwrap();
        assert!(!kernel.has_route(absent).unwrap());
    });
}

/// A provider's prefix may be known by one uplink only. Its packets may come by another one all the same.
#[test]
fn uplinks_are_interchangeable_beyond_their_routers() {
    let lab = lab_with_uplinks();
    lab.gateway_sh(
        "ip route add default via 198.18.0.9 dev up1 metric 10; \
         ip route add default via 198.18.1.9 dev up2 metric 20; \
         ip route add 203.0.113.0/24 via 198.18.0.9 dev up1; \
         ip -6 route add default via fd00:0::9 dev up1 metric 10; \
         ip -6 route add default via fd00:1::9 dev up2 metric 20; \
         ip -6 route add 2001:db8:f::/64 via fd00:0::9 dev up1",
    );
    for address in [FAR, FAR6] {
        assert_routes(&lab, address, &["up1", "up2"]);
    }
    // An inner network behind a router, and what is directly connected, are not reached by uplinks.
    lab.gateway_sh(
        "ip route replace 203.0.113.0/24 via 198.18.2.9 dev up3; \
         ip -6 route replace 2001:db8:f::/64 via fd00:2::9 dev up3",
    );
    for (address, interface) in [(FAR, "up3"), (FAR6, "up3"), (CLIENT, "lan"), (SERVER6, "wan")] {
        assert_routes(&lab, address, &[interface]);
    }
}

/// Otherwise a client of a server on this machine could forge it by an uplink.
#[test]
fn this_machines_own_address_is_on_no_interface() {
    let lab = lab_with_uplinks();
    lab.gateway_sh(
        "ip rule add from 198.18.1.1 lookup 102; ip route add default dev up2 table 102; \
         ip -6 rule add from fd00:1::1 lookup 102; ip -6 route add default dev up2 table 102",
    );
    for address in ["198.18.0.1", "fd00:0::1"] {
        assert_routes(&lab, address, &[]);
    }
}
