//! Whether a route to an address leads to an interface.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ftp_alg::kernel::{LinuxKernel, RuleParameters, table::Commits};
use ftp_alg_core::engine::{Kernel as _, RouteLookup};
use ftp_alg_lab::wait_for;
use rustix::time::{ClockId, clock_gettime};

use super::{
    lab::{CLIENT, CLIENT6, Lab, SERVER, SERVER6},
    program::indices,
};

/// An address that only a default route covers.
const FAR: &str = "203.0.113.7";
const FAR6: &str = "2001:db8:f::7";

fn look_up(kernel: &mut LinuxKernel, address: &str, interface: u32) -> bool {
    let address = address.parse().unwrap();
    kernel.has_route(RouteLookup { address, interface, used: 0, mark: 0 }).unwrap()
}

/// Whether there is a route in the lab's gateway.
fn has_route(lab: &Lab, address: &str, interface: &str) -> bool {
    lab.on_gateway(|| {
        let [interface, _] = indices([interface, "lo"]);
        look_up(
            &mut LinuxKernel::new(&RuleParameters::default(), &Commits::default()).unwrap(),
            address,
            interface,
        )
    })
}

#[track_caller]
fn assert_routes(lab: &Lab, address: &str, expected: &[&str]) {
    let all = ["lan", "wan", "up1", "up2", "up3", "up4", "guests"];
    let found: Vec<_> = all.into_iter().filter(|name| has_route(lab, address, name)).collect();
    assert_eq!(found, expected, "{address}");
}

#[track_caller]
fn assert_far_routes(lab: &Lab, expected: &[&str]) {
    assert_routes(lab, FAR, expected);
    assert_routes(lab, FAR6, expected);
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
    assert_far_routes(&lab, &[]);
    // A default route leads to anywhere, but not to a network that has a route of its own.
    lab.gateway_sh("ip route add default dev wan; ip -6 route add default dev wan");
    for (address, interface) in neighbours {
        assert_routes(&lab, address, &[interface]);
    }
    assert_far_routes(&lab, &["wan"]);
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
    assert_far_routes(&lab, &["wan", "up1", "up2", "up3"]);
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
    assert_far_routes(&lab, &["up1", "up2"]);
}

#[test]
fn a_route_that_refuses_leads_nowhere() {
    let lab = lab_with_uplinks();
    lab.gateway_sh("ip route add default dev wan; ip -6 route add default dev wan");
    for kind in ["unreachable", "prohibit", "blackhole"] {
        lab.gateway_sh(&format!(
            "ip route replace {kind} {FAR}/32; ip -6 route replace {kind} {FAR6}/128"
        ));
        assert_far_routes(&lab, &[]);
    }
    lab.on_gateway(|| {
        let mut kernel = LinuxKernel::new(&RuleParameters::default(), &Commits::default()).unwrap();
        assert!(!look_up(&mut kernel, SERVER, 60_000), "no such interface");
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
    assert_far_routes(&lab, &["up1", "up2"]);
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

/// How the kernel describes nexthop objects: by nothing but their identifiers, or as other next hops as well.
const COMPAT_MODES: [&str; 2] = ["0", "1"];

/// A lab with uplinks, and a nexthop object with a router on each of four interfaces: 1 to 4 (IPv6: 11 to 14). Of the
/// groups 9 and 19 the second and the third are members.
fn lab_with_nexthops(compat_mode: &str) -> Lab {
    let lab = lab_with_uplinks();
    let mut script = format!("sysctl -qw net.ipv4.nexthop_compat_mode={compat_mode}; ");
    for id in 1..=4 {
        let network = id - 1;
        write!(
            script,
            "ip nexthop add id {id} via 198.18.{network}.9 dev up{id}; \
             ip nexthop add id 1{id} via fd00:{network}::9 dev up{id}; "
        )
        .unwrap();
    }
    lab.gateway_sh(&(script + "ip nexthop add id 9 group 2/3; ip nexthop add id 19 group 12/13"));
    assert_eq!(lab.gateway_sh("ip nexthop show | wc -l").trim(), "10");
    lab
}

#[test]
fn nexthop_objects_lead_to_their_interfaces() {
    for mode in COMPAT_MODES {
        let lab = lab_with_nexthops(mode);
        lab.gateway_sh("ip route add default nhid 1; ip -6 route add default nhid 11");
        assert_far_routes(&lab, &["up1"]);
        assert_routes(&lab, CLIENT, &["lan"]);
        // A group of several.
        lab.gateway_sh(
            "ip route add 203.0.113.0/24 nhid 9; ip -6 route add 2001:db8:f::/64 nhid 19",
        );
        assert_far_routes(&lab, &["up2", "up3"]);
        // An object that drops.
        lab.gateway_sh(
            "ip nexthop add id 5 blackhole; ip -6 nexthop add id 15 blackhole; \
             ip route replace 203.0.113.0/24 nhid 5; ip -6 route replace 2001:db8:f::/64 nhid 15",
        );
        assert_far_routes(&lab, &[]);
    }
}

#[test]
fn nexthop_objects_of_several_metrics_count() {
    for mode in COMPAT_MODES {
        let lab = lab_with_nexthops(mode);
        lab.gateway_sh(&format!(
            "ip route add {FAR}/32 nhid 1; ip route add {FAR}/32 nhid 2 metric 10; \
             ip route add {FAR}/32 via 198.18.2.9 dev up3 metric 20; \
             ip route add 203.0.113.0/24 nhid 4; \
             ip -6 route add {FAR6}/128 nhid 11 metric 5; \
             ip -6 route add {FAR6}/128 nhid 12 metric 10; \
             ip -6 route add {FAR6}/128 via fd00:2::9 dev up3 metric 20; \
             ip -6 route add 2001:db8:f::/64 nhid 14"
        ));
        // A shorter prefix leads elsewhere.
        assert_far_routes(&lab, &["up1", "up2", "up3"]);
    }
}

#[test]
fn uplinks_by_nexthop_objects_are_interchangeable() {
    for mode in COMPAT_MODES {
        let lab = lab_with_nexthops(mode);
        lab.gateway_sh(
            "ip route add default nhid 1 metric 10; ip route add default nhid 2 metric 20; \
             ip -6 route add default nhid 11 metric 10; ip -6 route add default nhid 12 metric 20; \
             ip route add default nhid 4 table 104; ip rule add fwmark 4 lookup 104; \
             ip -6 route add default nhid 14 table 104; ip -6 rule add fwmark 4 lookup 104",
        );
        assert_far_routes(&lab, &["up1", "up2", "up4"]);
        // A prefix that one provider alone knows, by an object or without.
        for (hop, hop6) in
            [("nhid 2", "nhid 12"), ("via 198.18.1.9 dev up2", "via fd00:1::9 dev up2")]
        {
            lab.gateway_sh(&format!(
                "ip route replace 203.0.113.0/24 {hop}; \
                 ip -6 route replace 2001:db8:f::/64 {hop6}"
            ));
            assert_far_routes(&lab, &["up1", "up2"]);
        }
        // An inner network behind a router is reached by no uplink.
        lab.gateway_sh(
            "ip route replace 203.0.113.0/24 nhid 3; ip -6 route replace 2001:db8:f::/64 nhid 13",
        );
        assert_far_routes(&lab, &["up3"]);
    }
}

/// A rule's table of so many routes to single addresses by `up2`, after a default route.
fn add_large_table(lab: &Lab, family: &str, count: u32) {
    let mut batch = String::from("route add default dev up2 table 102\n");
    for number in 0..count {
        let address: IpAddr = match family {
            "-4" => Ipv4Addr::from_bits(Ipv4Addr::new(11, 0, 0, 0).to_bits() + number).into(),
            _ => Ipv6Addr::from_bits((0x2001_0db8_000e << 80) + u128::from(number)).into(),
        };
        writeln!(batch, "route add {address} dev up2 table 102").unwrap();
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, batch).unwrap();
    lab.gateway_sh(&format!("ip {family} -batch {}", file.path().display()));
    lab.gateway_sh(&format!("ip {family} rule add iif lan lookup 102"));
}

/// That of this thread: other load on the machine does not count.
fn processor_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

/// A forged packet of each of many sessions costs little, whether or not the table leads to the forger.
#[test]
fn look_ups_in_a_large_table_take_a_bounded_time() {
    const COUNT: u32 = 40_000;
    const FORGED: u8 = 200;
    for family in ["-4", "-6"] {
        let lab = lab_with_uplinks();
        add_large_table(&lab, family, COUNT);
        let (forged, far, stem) = match family {
            "-4" => (CLIENT, FAR, "10.0.0."),
            _ => (CLIENT6, FAR6, "2001:db8:1::"),
        };
        lab.on_gateway(|| {
            let [up2, up3] = indices(["up2", "up3"]);
            let mut kernel =
                LinuxKernel::new(&RuleParameters::default(), &Commits::default()).unwrap();
            let mut ask = |address: &str, interface| look_up(&mut kernel, address, interface);
            let start = processor_time();
            assert!(!ask(forged, up2) && !ask(forged, up3));
            let pair = processor_time() - start;
            let start = processor_time();
            for number in 10..10 + FORGED {
                for interface in [up2, up3] {
                    assert!(!ask(&format!("{stem}{number}"), interface));
                }
            }
            let all = processor_time() - start;
            println!("{family}: {pair:?}, {all:?}");
            assert!(all < pair * u32::from(FORGED) / 4, "{family}: {pair:?}, {all:?}");
            // The table is read again later. The default route of an IPv4 table is at its beginning.
            if family == "-4" {
                wait_for("the next look into the table", || ask(far, up2));
            }
        });
    }
}

/// Tables that a mark or an own address chooses are not read, so forged packets do not hide them.
#[test]
fn forged_packets_do_not_hide_uplinks_of_rules() {
    for (family, forged, far, own) in
        [("-4", CLIENT, FAR, "198.18.3.1"), ("-6", CLIENT6, FAR6, "fd00:3::1")]
    {
        let lab = lab_with_uplinks();
        add_large_table(&lab, family, 20_000);
        lab.gateway_sh(&format!(
            "ip {family} route add default dev up3 table 103; \
             ip {family} rule add fwmark 3 lookup 103; \
             ip {family} route add default dev up4 table 104; \
             ip {family} rule add from {own} lookup 104"
        ));
        lab.on_gateway(|| {
            let [up2, up3] = indices(["up2", "up3"]);
            let [up4, _] = indices(["up4", "lo"]);
            let mut kernel =
                LinuxKernel::new(&RuleParameters::default(), &Commits::default()).unwrap();
            let mut ask = |address: &str, interface| look_up(&mut kernel, address, interface);
            // Until the large table is not read any more.
            let forge = |_| (!ask(forged, up2) && !ask(far, up2)).then_some(());
            assert_eq!((0..1000).find_map(forge), Some(()), "{family}");
            let found = [(far, up3), (far, up4), (forged, up3)].map(|(to, by)| ask(to, by));
            assert_eq!(found, [true, true, false], "{family}");
        });
    }
}
