//! The Ethernet interfaces of this network namespace, by rtnetlink, which needs neither sysfs nor rights.

use std::io;

use crate::gateway::netlink::{Attributes, DONE, ERROR, Socket, request_message};

// From linux/rtnetlink.h, linux/if_link.h and linux/if_arp.h; libc lacks some of them.
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const ARPHRD_ETHER: u16 = 1;
/// Size of `struct ifinfomsg`.
const IFINFOMSG_SIZE: usize = 16;
/// How often to read the list, if interfaces are created or deleted meanwhile.
const ATTEMPTS: usize = 5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EthernetInterface {
    pub(super) index: u32,
    pub(super) name: String,
}

/// The interfaces that receive Ethernet frames, except for ports of a bridge or a bond. The bridge or bond receives
/// the packets of its ports, and the program is attached there.
pub(super) fn list_ethernet_interfaces(socket: &mut Socket) -> io::Result<Vec<EthernetInterface>> {
    for _ in 0..ATTEMPTS {
        match dump_links(socket) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

fn dump_links(socket: &mut Socket) -> io::Result<Vec<EthernetInterface>> {
    let sequence = socket.next_sequence();
    let (mut found, mut errno, mut is_consistent) = (Vec::new(), 0, true);
    let dump = libc::NLM_F_DUMP as u16;
    let request = request_message(RTM_GETLINK, dump, sequence, &[0; IFINFOMSG_SIZE]);
    socket.ask(&request, |message| {
        if message.sequence != sequence {
            return;
        }
        is_consistent &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
        match message.kind {
            ERROR | DONE => errno = errno.max(message.errno()),
            RTM_NEWLINK => found.extend(parse_link(message.body)),
            _ => {}
        }
    })?;
    match (errno, is_consistent) {
        (0, true) => Ok(found),
        (0, false) => Err(io::ErrorKind::Interrupted.into()),
        _ => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn parse_link(body: &[u8]) -> Option<EthernetInterface> {
    let (head, attributes) = body.split_at_checked(IFINFOMSG_SIZE)?;
    let kind = u16::from_ne_bytes(*head.get(2..)?.first_chunk()?);
    let index = u32::from_ne_bytes(*head.get(4..)?.first_chunk()?);
    let attributes = Attributes::new(attributes);
    if kind != ARPHRD_ETHER || attributes.first(IFLA_MASTER).is_some() {
        return None;
    }
    let name = attributes.first(IFLA_IFNAME)?;
    let name = String::from_utf8_lossy(name.strip_suffix(b"\0").unwrap_or(name)).into_owned();
    Some(EthernetInterface { index, name })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn link(kind: u16, attributes: &[(u16, &[u8; 4])]) -> Vec<u8> {
        let mut body = vec![0, 0];
        body.extend(kind.to_ne_bytes());
        body.extend(7_u32.to_ne_bytes());
        body.resize(IFINFOMSG_SIZE, 0);
        for (kind, content) in attributes {
            body.extend(8_u16.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*content);
        }
        body
    }

    #[test]
    fn ethernet_interfaces_without_a_master_are_listed() {
        let name = (IFLA_IFNAME, b"wan\0");
        let wan = Some(EthernetInterface { index: 7, name: "wan".into() });
        assert_eq!(parse_link(&link(ARPHRD_ETHER, &[name])), wan);
        assert_eq!(parse_link(&link(ARPHRD_ETHER, &[name, (IFLA_MASTER, &[3, 0, 0, 0])])), None);
        assert_eq!(parse_link(&link(772, &[name])), None, "the loopback interface");
    }

    proptest! {
        #[test]
        fn no_message_makes_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..60)) {
            parse_link(&body);
        }
    }
}
