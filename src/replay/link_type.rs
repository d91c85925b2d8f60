//! Finds the IP header in a captured packet, by link type (<https://www.tcpdump.org/linktypes.html>).
//!
//! The module knows nothing of the IP packet itself.

/// The link-layer header of captured packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    /// Ethernet, with or without VLAN tags and PPPoE.
    Ethernet,
    /// Linux cooked, version 1.
    Cooked,
    /// Linux cooked, version 2.
    Cooked2,
    /// A BSD loopback interface: four bytes of address family.
    Loopback,
    /// No link-layer header.
    Raw,
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];
const PPPOE: u16 = 0x8864;

impl LinkType {
    /// The link type with this number in capture files; `None` if it is not supported.
    pub fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 | 108 => Self::Loopback,
            1 => Self::Ethernet,
            12 | 14 | 101 | 228 | 229 => Self::Raw,
            113 => Self::Cooked,
            276 => Self::Cooked2,
            _ => return None,
        })
    }

    /// The bytes from the IP header to the end of the frame; `None` if it is not IP.
    pub fn ip(self, data: &[u8]) -> Option<&[u8]> {
        let ip = match self {
            Self::Ethernet => typed(data.get(14..)?, word(data, 12)?)?,
            Self::Cooked => typed(data.get(16..)?, word(data, 14)?)?,
            Self::Cooked2 => typed(data.get(20..)?, word(data, 0)?)?,
            // The number of the address family and its byte order depend on the machine, so the IP header decides.
            Self::Loopback => data.get(4..)?,
            Self::Raw => data,
        };
        matches!(ip.first()? >> 4, 4 | 6).then_some(ip)
    }
}

/// Skips VLAN tags and PPPoE up to the IP header.
fn typed(mut data: &[u8], mut ethertype: u16) -> Option<&[u8]> {
    while VLAN.contains(&ethertype) {
        ethertype = word(data, 2)?;
        data = data.get(4..)?;
    }
    match ethertype {
        IPV4 | IPV6 => Some(data),
        PPPOE => matches!(word(data, 6)?, 0x21 | 0x57).then_some(data.get(8..)?),
        _ => None,
    }
}

fn word(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*data.get(at)?, *data.get(at + 1)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlan_tags_and_pppoe_are_skipped() {
        let ip = [0x45, 1, 2];
        let with = |start: &[u8]| [start, &ip].concat();
        let macs = [0; 12];
        let cases = [
            (LinkType::Ethernet, with(&[&macs[..], &[8, 0]].concat())),
            (
                LinkType::Ethernet,
                with(&[&macs[..], &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 8, 0]].concat()),
            ),
            (LinkType::Ethernet, with(&[&macs[..], &[0x88, 0x64], &[0; 6], &[0, 0x21]].concat())),
            (LinkType::Cooked, with(&[&[0; 14][..], &[8, 0]].concat())),
            (LinkType::Cooked2, with(&[&[8, 0][..], &[0; 18]].concat())),
            (LinkType::Loopback, with(&[2, 0, 0, 0])),
            (LinkType::Raw, with(&[])),
        ];
        for (link, data) in cases {
            assert_eq!(link.ip(&data), Some(&ip[..]), "{link:?}");
            for cut in 0..data.len() - ip.len() {
                assert_eq!(link.ip(&data[..cut]), None, "{link:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn other_protocols_are_not_ip() {
        let mut arp = vec![0; 42];
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(LinkType::Ethernet.ip(&arp), None);
    }
}
