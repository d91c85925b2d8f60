//! The interfaces of this network namespace, by rtnetlink, which needs neither sysfs nor rights: which of them the
//! program is attached to.
//!
//! The program is attached to none on which the rules run before it. If br_netfilter is loaded, the kernel runs the
//! prerouting rules for IP packets of a bridge at the bridge's port (br_nf_pre_routing() in br_netfilter_hooks.c), and
//! not a second time when the bridge receives them. There the program would set its packet mark after the rules that
//! read it. Nor is the program attached where a tc filter behind it may change that mark.

use std::{fs, io, os::fd::OwnedFd};

use ftp_alg_fastpath::{Interface, Interfaces};
use libc::{ARPHRD_ETHER, ARPHRD_NONE, ARPHRD_PPP, RTM_GETLINK};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, recv,
        socket_with,
    },
};

use super::{tc_filters::find_mark_writer, without_zero};
use crate::kernel::netlink::{Attributes, Socket, repeat_interrupted};

// From linux/if_link.h; libc lacks them.
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BR_NF_CALL_IPTABLES: u16 = 36;
/// Size of `struct ifinfomsg`.
const IFINFOMSG_SIZE: usize = 16;
/// The setting for all bridges of a network namespace. The file exists if br_netfilter is loaded.
const BRIDGE_SETTING: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
/// From linux/if_arp.h; libc lacks it.
const ARPHRD_RAWIP: u16 = 519;
/// The types of interfaces whose packets the program can read: with an Ethernet header, or with none (tun, WireGuard, PPP,
/// mobile modems).
const READABLE_TYPES: [u16; 4] = [ARPHRD_ETHER, ARPHRD_NONE, ARPHRD_PPP, ARPHRD_RAWIP];
/// How many interfaces may be upon each other.
const MAX_LAYERS: usize = 8;

/// What a message says about an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    index: u32,
    name: String,
    is_readable: bool,
    /// Whether it is a port of a bridge or another interface.
    has_master: bool,
    kind: LinkKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkKind {
    /// A bridge, and whether its own setting runs the rules at its ports.
    Bridge {
        calls_iptables: bool,
    },
    /// An interface that gets packets from the one with this index, such as a VLAN's.
    Upon(u32),
    Other,
}

/// Tells when interfaces of a network namespace, or their tc filters, were made, changed or removed.
#[derive(Debug)]
pub struct LinkChanges(OwnedFd);

impl LinkChanges {
    /// Watches the network namespace of this thread.
    pub fn subscribe() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, (libc::RTMGRP_LINK | libc::RTMGRP_TC) as u32))?;
        Ok(Self(socket))
    }

    /// Whether there were changes since the last call.
    pub fn take(&self) -> bool {
        let mut has_changed = false;
        // An error is a change as well: the socket's buffer was full.
        while !matches!(recv(&self.0, &mut [0; 1], RecvFlags::empty()), Err(Errno::AGAIN)) {
            has_changed = true;
        }
        has_changed
    }
}

/// Lists the interfaces in the network namespace of this thread.
pub fn list_interfaces() -> io::Result<Interfaces> {
    let mut socket = Socket::open_route()?;
    let links = repeat_interrupted(|| dump_links(&mut socket))?;
    let mut interfaces = classify(links, bridge_setting());
    for interface in std::mem::take(&mut interfaces.usable) {
        match find_mark_writer(&mut socket, interface.index)? {
            Some(filter) => interfaces.mark_writers.push((interface, filter)),
            None => interfaces.usable.push(interface),
        }
    }
    Ok(interfaces)
}

/// Whether the setting for all bridges runs the rules at their ports; `None` if br_netfilter is not loaded.
fn bridge_setting() -> Option<bool> {
    fs::read_to_string(BRIDGE_SETTING).ok().map(|text| text.trim() != "0")
}

fn classify(links: Vec<Link>, setting: Option<bool>) -> Interfaces {
    let find = |index: u32| links.iter().find(|link| link.index == index);
    let is_filtered_early = |link: &Link| {
        let mut kind = link.kind;
        for _ in 0..MAX_LAYERS {
            match kind {
                LinkKind::Bridge { calls_iptables } => {
                    return setting.is_some_and(|of_all| of_all || calls_iptables);
                }
                LinkKind::Upon(lower) => kind = find(lower).map_or(LinkKind::Other, |l| l.kind),
                LinkKind::Other => return false,
            }
        }
        false
    };
    let mut interfaces = Interfaces::default();
    for link in &links {
        let candidate = (link.is_readable && !link.has_master)
            .then(|| Interface { index: link.index, name: link.name.clone() });
        let is_early = is_filtered_early(link);
        let list = if is_early { &mut interfaces.filtered_early } else { &mut interfaces.usable };
        list.extend(candidate);
    }
    interfaces
}

fn dump_links(socket: &mut Socket) -> io::Result<Vec<Link>> {
    let mut found = Vec::new();
    let is_consistent = socket.dump(RTM_GETLINK, &[0; IFINFOMSG_SIZE], |message| {
        found.extend(parse_link(message.body));
    })?;
    if is_consistent { Ok(found) } else { Err(io::ErrorKind::Interrupted.into()) }
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let (head, attributes) = body.split_at_checked(IFINFOMSG_SIZE)?;
    let kind = u16::from_ne_bytes(*head.get(2..)?.first_chunk()?);
    let index = u32::from_ne_bytes(*head.get(4..)?.first_chunk()?);
    let attributes = Attributes::new(attributes);
    let name = attributes.first(IFLA_IFNAME)?;
    Some(Link {
        index,
        name: String::from_utf8_lossy(without_zero(name)).into_owned(),
        is_readable: READABLE_TYPES.contains(&kind),
        has_master: attributes.first(IFLA_MASTER).is_some(),
        kind: link_kind(&attributes).unwrap_or(LinkKind::Other),
    })
}

fn link_kind(attributes: &Attributes<'_>) -> Option<LinkKind> {
    let info = attributes.nested(IFLA_LINKINFO)?;
    match without_zero(info.first(IFLA_INFO_KIND)?) {
        b"bridge" => {
            let setting = info.nested(IFLA_INFO_DATA)?.first(IFLA_BR_NF_CALL_IPTABLES);
            let calls_iptables = setting.is_some_and(|value| value.first() != Some(&0));
            Some(LinkKind::Bridge { calls_iptables })
        }
        b"vlan" | b"macvlan" | b"ipvlan" if attributes.first(IFLA_LINK_NETNSID).is_none() => {
            let lower = attributes.first(IFLA_LINK)?.first_chunk()?;
            Some(LinkKind::Upon(u32::from_ne_bytes(*lower)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::netlink::attribute;

    fn message(kind: u16, index: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![0, 0];
        body.extend(kind.to_ne_bytes());
        body.extend(index.to_ne_bytes());
        body.resize(IFINFOMSG_SIZE, 0);
        body.extend(attributes.concat());
        body
    }

    fn of_kind(kind: &str, data: Vec<u8>) -> Vec<u8> {
        let kind = attribute(IFLA_INFO_KIND, kind.as_bytes());
        attribute(IFLA_LINKINFO, &[kind, attribute(IFLA_INFO_DATA, &data)].concat())
    }

    fn bridge(own_setting: u8) -> Vec<u8> {
        of_kind("bridge", attribute(IFLA_BR_NF_CALL_IPTABLES, &[own_setting]))
    }

    fn ethernet(index: u32, name: &str, more: Vec<u8>) -> Link {
        let name = attribute(IFLA_IFNAME, format!("{name}\0").as_bytes());
        parse_link(&message(ARPHRD_ETHER, index, &[name, more])).unwrap()
    }

    fn names(interfaces: &[Interface]) -> Vec<&str> {
        interfaces.iter().map(|one| one.name.as_str()).collect()
    }

    #[test]
    fn a_bridge_whose_ports_run_the_rules_has_no_program() {
        let upon = |kind, index: u32| {
            [attribute(IFLA_LINK, &index.to_ne_bytes()), of_kind(kind, Vec::new())].concat()
        };
        let links = |own_setting| {
            vec![
                ethernet(2, "wan", Vec::new()),
                ethernet(3, "br0", bridge(own_setting)),
                ethernet(4, "br0.7", upon("vlan", 3)),
                ethernet(5, "own", upon("macvlan", 4)),
                ethernet(6, "wan.7", upon("vlan", 2)),
                // A peer is not below.
                ethernet(7, "veth", upon("veth", 3)),
                ethernet(8, "loop", upon("vlan", 8)),
            ]
        };
        let early = ["br0", "br0.7", "own"];
        for (setting, own_setting, is_early) in [
            (None, 0, false),
            (None, 1, false),
            (Some(false), 0, false),
            (Some(false), 1, true),
            (Some(true), 0, true),
        ] {
            let found = classify(links(own_setting), setting);
            let case = format!("{setting:?} {own_setting}");
            assert_eq!(names(&found.filtered_early) == early, is_early, "{case}");
            assert_eq!(found.filtered_early.is_empty(), !is_early, "{case}");
            let is_here = |name| names(&found.usable).contains(&name);
            assert!(early.iter().all(|name| is_here(*name) != is_early), "{case}");
            assert!(["wan", "wan.7", "veth", "loop"].into_iter().all(is_here), "{case}");
        }
    }

    proptest! {
        #[test]
        fn no_message_makes_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..60)) {
            parse_link(&body);
        }
    }
}
