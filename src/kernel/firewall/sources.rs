//! Reads the loaded rules with the programs that print them: `nft` and `iptables-save`. Changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags, sys::socket::SockaddrStorage};

use serde_json::json;

use super::{Firewall, IpVersion, Links, Origin, routing_rules, xtables::program};
use crate::kernel::{
    broker::programs::{run_for_output, run_with_input},
    ip_version::uses_legacy,
    netlink::{Socket, nft},
    routes::Routes,
    rules::TABLE as OURS,
};

/// The address families whose chains may see control or data connections.
const FAMILIES: [(i32, &str); 5] = [
    (libc::NFPROTO_IPV4, "ip"),
    (libc::NFPROTO_IPV6, "ip6"),
    (libc::NFPROTO_INET, "inet"),
    (libc::NFPROTO_NETDEV, "netdev"),
    (libc::NFPROTO_BRIDGE, "bridge"),
];

/// Reads the loaded rules, with the texts of nftables rules if `texts` is set. Errors go to
/// [`Firewall::read_errors`].
pub(super) fn read(texts: bool) -> Firewall {
    let json = list_tables(&["--json", "--file", "-"], |family, name| {
        let table = json!({"family": family, "name": name});
        Some(json!({"nftables": [{"list": {"table": table}}]}).to_string())
    });
    // The listing is mostly for display, so its absence is no error. It has the devices of chains at ingress and
    // egress.
    let listing = list_tables(&["--stateless", "--handle", "--file", "-"], |family, name| {
        // nft does not read a name with other characters as one word.
        let is_in_word = |one: char| one.is_ascii_alphanumeric() || "_-./".contains(one);
        let is_wanted = texts || family == "netdev";
        (is_wanted && name.chars().all(is_in_word)).then(|| format!("list table {family} {name}\n"))
    });
    let read = json.and_then(|json| {
        Firewall::from_nft(&json, &listing.unwrap_or_default())
            .map_err(|error| io::Error::other(format!("cannot parse the output of nft: {error}")))
    });
    let routing_rules = routing_rules::read();
    let mut firewall = read.unwrap_or_else(|error| Firewall {
        read_errors: vec![format!("nftables: {error}")],
        ..Firewall::default()
    });
    match routing_rules {
        Ok(rules) => firewall.routing_rules = rules,
        Err(error) => firewall.read_errors.push(format!("ip rule: {error}")),
    }
    for ip in IpVersion::BOTH {
        let over_nft = firewall.has_iptables_tables(ip).then_some(Origin::IptablesNft);
        let legacy = uses_legacy(ip).unwrap_or_else(|error| {
            let program = program(Origin::IptablesLegacy, ip);
            firewall
                .read_errors
                .push(format!("{program}: cannot see if it is in use: {error}; run this as root"));
            false
        });
        let legacy = legacy.then_some(Origin::IptablesLegacy);
        for origin in over_nft.into_iter().chain(legacy) {
            match iptables_save(origin, ip) {
                Ok(text) => firewall.add_iptables_save(origin, ip, &text),
                Err(error) => {
                    firewall.read_errors.push(format!("{}: {error}", program(origin, ip)));
                }
            }
        }
    }
    firewall
}

/// The output of nft for every table except ours. `command` makes the nft command for one table.
///
/// Our table is left out because its sets may hold very many elements and change while nft lists them. Listing them
/// can take seconds.
fn list_tables(
    arguments: &[&str],
    command: impl Fn(&str, &str) -> Option<String>,
) -> io::Result<String> {
    let mut socket = Socket::open()?;
    let mut all = String::new();
    for (number, family) in FAMILIES {
        for name in nft::table_names(&mut socket, number)? {
            if (family, name.as_str()) == ("inet", OURS) {
                continue;
            }
            let Some(command) = command(family, &name) else { continue };
            match run_with_input("nft", arguments, &command) {
                Ok(listing) => all.push_str(&listing),
                // The table was deleted in the meantime.
                Err(_) if !nft::table_names(&mut socket, number)?.contains(&name) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(all)
}

/// The interfaces that are up and have an address that is not link-local, without `lo`.
///
/// Bridge ports have no address, so they are left out: rules see their packets on the bridge.
pub fn interfaces() -> Vec<String> {
    let Ok(all) = getifaddrs() else { return Vec::new() };
    let is_own =
        |address: SockaddrStorage| match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => !v4.ip().is_link_local(),
            (_, Some(v6)) => !v6.ip().is_unicast_link_local(),
            _ => false,
        };
    let names: BTreeSet<String> = all
        .filter(|one| one.flags.contains(InterfaceFlags::IFF_UP))
        .filter(|one| !one.flags.contains(InterfaceFlags::IFF_LOOPBACK))
        .filter(|one| one.address.is_some_and(is_own))
        .map(|one| one.interface_name)
        .collect();
    names.into_iter().collect()
}

/// The networks at this machine's interfaces.
pub fn links() -> Links {
    let mut links = Links::default();
    let Ok(all) = getifaddrs() else { return links };
    let ip = |address: SockaddrStorage| match (address.as_sockaddr_in(), address.as_sockaddr_in6())
    {
        (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
        (_, Some(v6)) => Some(IpAddr::V6(v6.ip())),
        _ => None,
    };
    let mut indices = BTreeMap::new();
    for one in all {
        if let Some(link) = one.address.as_ref().and_then(SockaddrStorage::as_link_addr) {
            indices.insert(one.interface_name.clone(), link.ifindex() as u32); // never that many
        }
        let network = one.address.and_then(ip).zip(one.netmask.and_then(ip));
        if let Some(Ok(network)) = network.map(|(ip, mask)| IpNetwork::with_netmask(ip, mask)) {
            links.add(&one.interface_name, network);
        }
        let name = &one.interface_name;
        let settings =
            [format!("ipv4/conf/{name}/proxy_arp"), format!("ipv6/conf/{name}/proxy_ndp")];
        if settings.iter().any(|setting| {
            fs::read_to_string(format!("/proc/sys/net/{setting}"))
                .is_ok_and(|text| text.trim() == "1")
        }) {
            links.add_proxy(name);
        }
    }
    indices.retain(|name, _| links.is_inner(name));
    let mut routes = Routes::new().ok();
    for (name, index) in indices {
        if routes.as_mut().is_none_or(|routes| routes.is_uplink(index)) {
            links.add_uplink(&name);
        }
    }
    links
}

/// The output of `iptables-save` of this variant. A system with only one variant has no suffix in the program's name.
fn iptables_save(origin: Origin, ip: IpVersion) -> io::Result<String> {
    let program = program(origin, ip);
    match run_for_output(&format!("{program}-save"), &[]) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let plain = if ip == IpVersion::V4 { "iptables" } else { "ip6tables" };
            let over_nft = run_for_output(plain, &["--version"])?.contains("nf_tables");
            if over_nft != (origin == Origin::IptablesNft) {
                return Err(io::Error::other(format!(
                    "in use, but its rules cannot be read: install {program}-save"
                )));
            }
            run_for_output(&format!("{plain}-save"), &[])
        }
        other => other,
    }
}
