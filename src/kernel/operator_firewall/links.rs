//! Reads this machine's interfaces: their addresses, and whether a default route leads to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
};

use ftp_alg_firewall::Links;
use ipnetwork::IpNetwork;
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags, sys::socket::SockaddrStorage};

use crate::kernel::rtnetlink::Routes;

/// The interfaces, and the networks at them.
pub fn links() -> Links {
    let mut links = Links::default();
    let Ok(all) = getifaddrs() else { return links };
    let ip = |address: SockaddrStorage| match (address.as_sockaddr_in(), address.as_sockaddr_in6())
    {
        (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
        (_, Some(v6)) => Some(IpAddr::V6(v6.ip())),
        _ => None,
    };
    // Bridge ports have no address, so they are left out: rules see their packets on the bridge.
    let is_usable = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    let up = InterfaceFlags::IFF_UP;
    let (mut interfaces, mut indices) = (BTreeSet::new(), BTreeMap::new());
    for one in all {
        if let Some(link) = one.address.as_ref().and_then(SockaddrStorage::as_link_addr) {
            links.existing.insert(one.interface_name.clone());
            indices.insert(one.interface_name.clone(), link.ifindex() as u32); // never that many
        }
        let state = one.flags & (up | InterfaceFlags::IFF_LOOPBACK);
        if state == up && one.address.and_then(ip).as_ref().is_some_and(is_usable) {
            interfaces.insert(one.interface_name.clone());
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
            links.proxies.insert(name.clone());
        }
    }
    links.interfaces = interfaces.into_iter().collect();
    indices.retain(|name, _| links.is_inner(name));
    let mut routes = Routes::new().ok();
    for (name, index) in indices {
        if routes.as_mut().is_none_or(|routes| routes.is_uplink(index)) {
            links.uplinks.insert(name);
        }
    }
    links
}
