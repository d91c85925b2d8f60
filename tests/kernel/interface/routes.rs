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

/// An address that only default routes cover.
const FAR: &str = "203.0.113.7";
const FAR6: &str = "2001:db8:f::7";

fn new_kernel() -> LinuxKernel {
    LinuxKernel::new(&RuleParameters::default(), &Commits::default()).unwrap()
}

fn look_up(kernel: &mut LinuxKernel, address: &str, interface: u32) -> bool {
    let address = address.parse().unwrap();
    kernel.has_route(RouteLookup { address, interface, used: 0, mark: 0 }).unwrap()
}

const INTERFACES: [&str; 7] = ["lan", "wan", "up1", "up2", "up3", "up4", "guests"];

/// What is on a network of the gateway, and its interface.
const NEIGHBOURS: [(&str, &str); 4] =
    [(CLIENT, "lan"), (CLIENT6, "lan"), (SERVER, "wan"), (SERVER6, "wan")];

/// Asserts which interfaces lead to an address.
#[track_caller]
fn assert_routes(lab: &Lab, address: &str, expected: &[&str], what: &str) {
    let found: Vec<_> = lab.on_gateway(|| {
        let mut kernel = new_kernel();
        let has_route = |name: &&str| look_up(&mut kernel, address, indices([name, "lo"])[0]);
        INTERFACES.into_iter().filter(has_route).collect()
    });
    assert_eq!(found, expected, "{address}: {what}");
}

/// A gateway with four uplinks next to its own interfaces, and a network of guests.
fn lab_with_uplinks() -> Lab {
    let lab = Lab::new();
    for (number, name) in INTERFACES[2..].iter().enumerate() {
        lab.gateway_sh(&format!(
            "ip link add {name} type veth peer name p-{name}; ip link set {name} up; \
             ip link set p-{name} up; \
             ip address add 198.18.{number}.1/24 dev {name}; \
             ip address add fd00:{number}::1/64 dev {name} nodad"
        ));
    }
    lab
}

/// Runs a line of the shell for IPv4 and for IPv6. It has `$far` and its network, the router and the gateway's address on
/// `up3`, and what the numbers of nexthop objects begin with.
fn for_each_family(lab: &Lab, line: &str) {
    let v4 = "ip=ip far=203.0.113.7 network=203.0.113.0/24 id= own=198.18.2.1 \
              via1=198.18.0.9 via2=198.18.1.9 via3=198.18.2.9 via4=198.18.3.9";
    let v6 = "ip='ip -6' far=2001:db8:f::7 network=2001:db8:f::/64 id=1 own=fd00:2::1 \
              via1=fd00:0::9 via2=fd00:1::9 via3=fd00:2::9 via4=fd00:3::9";
    for family in [v4, v6] {
        lab.gateway_sh(&format!("{family}; {line}"));
    }
}

/// Commands for each family, and the interfaces that lead to what is far then.
type Steps = &'static [(&'static str, &'static [&'static str])];

/// Whatever the far routes are, the neighbours stay on their own networks.
fn assert_steps(lab: &Lab, steps: Steps) {
    for (line, expected) in steps {
        for_each_family(lab, line);
        for far in [FAR, FAR6] {
            assert_routes(lab, far, expected, line);
        }
        for (address, interface) in NEIGHBOURS {
            assert_routes(lab, address, &[interface], line);
        }
    }
}

const ROUTES: [Steps; 5] = [
    // A default route leads to anywhere, but not to a network that has a route of its own.
    &[("", &[]), ("$ip route add default dev wan", &["wan"])],
    // Every uplink leads to what only default routes cover.
    &[(
        "$ip route add default dev wan metric 100; $ip route add default dev up1 metric 200; \
         $ip route add default dev up2 table 102; $ip rule add fwmark 2 lookup 102; \
         $ip route add default dev up3 table 1003; $ip rule add from $own lookup 1003",
        &["wan", "up1", "up2", "up3"],
    )],
    // Every next hop counts.
    &[(
        "$ip route add $network nexthop via $via1 dev up1 nexthop via $via2 dev up2; \
         $ip route add default dev up3",
        &["up1", "up2"],
    )],
    // A route that refuses leads nowhere.
    &[
        ("$ip route add default dev wan; $ip route add unreachable $far", &[]),
        ("$ip route replace prohibit $far", &[]),
        ("$ip route replace blackhole $far", &[]),
    ],
    // A provider's prefix may be known by one uplink only, and its packets may come by another one all the same. An inner
    // network behind a router is not reached by uplinks.
    &[
        (
            "$ip route add default via $via1 dev up1 metric 10; \
             $ip route add default via $via2 dev up2 metric 20; \
             $ip route add $network via $via1 dev up1",
            &["up1", "up2"],
        ),
        ("$ip route replace $network via $via3 dev up3", &["up3"]),
    ],
];

#[test]
fn each_end_is_where_routes_lead() {
    ROUTES.iter().for_each(|steps| assert_steps(&lab_with_uplinks(), steps));
}

/// Otherwise a client of a server on this machine could forge it by an uplink.
#[test]
fn this_machines_own_address_is_on_no_interface() {
    let lab = lab_with_uplinks();
    for_each_family(
        &lab,
        "$ip rule add from $own lookup 102; $ip route add default dev up2 table 102",
    );
    for address in ["198.18.0.1", "fd00:0::1"] {
        assert_routes(&lab, address, &[], "an own address");
    }
    lab.on_gateway(|| {
        let mut kernel = new_kernel();
        assert!(!look_up(&mut kernel, SERVER, 60_000), "no such interface");
    });
}

/// By nexthop objects: one with the router of each uplink, and a group of the second and the third.
const NEXTHOPS: [Steps; 3] = [
    &[
        ("$ip route add default nhid ${id}1", &["up1"]),
        ("$ip route add $network nhid ${id}9", &["up2", "up3"]),
        ("$ip nexthop add id ${id}5 blackhole; $ip route replace $network nhid ${id}5", &[]),
    ],
    // Routes of several metrics count, and one with a shorter prefix does not.
    &[(
        "$ip route add $far nhid ${id}1 metric 5; $ip route add $far nhid ${id}2 metric 10; \
         $ip route add $far via $via3 dev up3 metric 20; $ip route add $network nhid ${id}4",
        &["up1", "up2", "up3"],
    )],
    &[
        (
            "$ip route add default nhid ${id}1 metric 10; $ip route add default nhid ${id}2 metric 20; \
             $ip route add default nhid ${id}4 table 104; $ip rule add fwmark 4 lookup 104",
            &["up1", "up2", "up4"],
        ),
        // A prefix that one provider alone knows, by an object or without.
        ("$ip route add $network nhid ${id}2", &["up1", "up2"]),
        ("$ip route replace $network via $via2 dev up2", &["up1", "up2"]),
        ("$ip route replace $network nhid ${id}3", &["up3"]),
    ],
];

#[test]
fn nexthop_objects_lead_to_their_interfaces() {
    // The kernel describes them by nothing but their identifiers, or as other next hops as well.
    for (mode, steps) in [0, 1].into_iter().flat_map(|mode| NEXTHOPS.map(|steps| (mode, steps))) {
        let lab = lab_with_uplinks();
        lab.gateway_sh(&format!("sysctl -qw net.ipv4.nexthop_compat_mode={mode}"));
        for_each_family(
            &lab,
            "$ip nexthop add id ${id}1 via $via1 dev up1; $ip nexthop add id ${id}2 via $via2 dev up2; \
             $ip nexthop add id ${id}3 via $via3 dev up3; $ip nexthop add id ${id}4 via $via4 dev up4; \
             ip nexthop add id ${id}9 group ${id}2/${id}3",
        );
        assert_steps(&lab, steps);
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
            let mut kernel = new_kernel();
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
            let mut kernel = new_kernel();
            let mut ask = |address: &str, interface| look_up(&mut kernel, address, interface);
            // Until the large table is not read any more.
            let forge = |_| (!ask(forged, up2) && !ask(far, up2)).then_some(());
            assert_eq!((0..1000).find_map(forge), Some(()), "{family}");
            let found = [(far, up3), (far, up4), (forged, up3)].map(|(to, by)| ask(to, by));
            assert_eq!(found, [true, true, false], "{family}");
        });
    }
}
