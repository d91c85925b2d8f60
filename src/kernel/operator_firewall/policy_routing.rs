//! The rules of policy routing (`ip rule`) that compare the packet mark, by rtnetlink, which needs no rights.
//!
//! Only those of IPv4, because the fast path has no other connections.

use std::io;

use ftp_alg_firewall::RoutingRule;

use crate::kernel::netlink::{Attributes, Socket};

// From linux/rtnetlink.h and linux/fib_rules.h; libc lacks some of them.
const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_FWMASK: u16 = 16;
const FRA_IP_PROTO: u16 = 22;
const FIB_RULE_INVERT: u32 = 2;
const TCP: u8 = 6;
/// Size of `struct fib_rule_hdr`. It begins with the family and ends with the flags.
const HEADER_SIZE: usize = 12;

/// The rules of this network namespace.
pub(super) fn read() -> io::Result<Vec<RoutingRule>> {
    let mut socket = Socket::open_route()?;
    let mut header = [0; HEADER_SIZE];
    header[0] = libc::AF_INET as u8;
    let mut rules = Vec::new();
    let read = socket.dump(RTM_GETRULE, &header, |message| {
        rules.extend((message.kind == RTM_NEWRULE).then(|| parse(message.body)).flatten());
    });
    match read {
        // A kernel without policy routing has none.
        Err(error) if error.raw_os_error() != Some(libc::EOPNOTSUPP) => Err(error),
        _ => Ok(rules),
    }
}

/// A rule that compares the packet mark of TCP packets; `None` for others.
fn parse(body: &[u8]) -> Option<RoutingRule> {
    let (head, attributes) = body.split_at_checked(HEADER_SIZE)?;
    let flags = u32::from_ne_bytes(*head.last_chunk()?);
    let attributes = Attributes::new(attributes);
    let number = |kind| Some(u32::from_ne_bytes(*attributes.first(kind)?.first_chunk()?));
    let mask = number(FRA_FWMASK).unwrap_or(0);
    let protocol = attributes.first(FRA_IP_PROTO).and_then(|bytes| bytes.first());
    (mask != 0 && protocol.is_none_or(|protocol| *protocol == TCP)).then(|| RoutingRule {
        priority: number(FRA_PRIORITY).unwrap_or(0),
        mark: number(FRA_FWMARK).unwrap_or(0),
        mask,
        is_inverted: flags & FIB_RULE_INVERT != 0,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::netlink::put_attribute;

    fn message(flags: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![libc::AF_INET as u8, 0, 0, 0, 254, 0, 0, 1];
        body.extend(flags.to_ne_bytes());
        for (kind, content) in attributes {
            put_attribute(&mut body, *kind, content);
        }
        body
    }

    #[test]
    fn rules_that_compare_the_packet_mark_are_read() {
        let (one, whole, byte) =
            (1_u32.to_ne_bytes(), u32::MAX.to_ne_bytes(), 0xff_u32.to_ne_bytes());
        let text = |flags, attributes: &[(u16, &[u8])]| {
            parse(&message(flags, attributes)).map(|rule| rule.to_string())
        };
        let marked = [(FRA_PRIORITY, &one[..]), (FRA_FWMARK, &one), (FRA_FWMASK, &whole)];
        assert_eq!(text(0, &marked).as_deref(), Some("1: fwmark 0x1"));
        let masked = [(FRA_FWMASK, &byte[..])];
        assert_eq!(text(2, &masked).as_deref(), Some("0: not fwmark 0x0/0xff"));
        let of = |protocol: &'static [u8]| [&marked[..], &[(FRA_IP_PROTO, protocol)]].concat();
        assert!(text(0, &of(&[6])).is_some());
        assert_eq!((text(0, &of(&[17])), text(0, &marked[..1])), (None, None));
    }

    proptest! {
        #[test]
        fn no_message_makes_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..60)) {
            parse(&body);
        }
    }
}
