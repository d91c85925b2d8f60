//! Keys and values of the program's maps, and the records of the ring. build.rs generates them from `program/layout.h`,
//! which documents them: each structure, its fields in Rust's types, and each macro and enumerator. Clang has checked
//! the offsets.
//!
//! This module does not know the calls that read and write the maps.

#![allow(missing_docs, reason = "program/layout.h has what they mean")]

use std::{
    io::Write as _,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

include!(concat!(env!("OUT_DIR"), "/layout.rs"));

/// The bytes of a field.
fn take<const N: usize, const SIZE: usize>(bytes: &[u8; SIZE], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

/// Writes the bytes of a field.
fn put<const N: usize, const SIZE: usize>(bytes: &mut [u8; SIZE], at: usize, field: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&field);
}

/// `struct address`: an IPv4 address as IPv6 maps it.
trait Mapped {
    fn from_mapped(octets: [u8; 16]) -> Self;
    fn mapped(&self) -> [u8; 16];
}

impl Mapped for IpAddr {
    fn from_mapped(octets: [u8; 16]) -> Self {
        Ipv6Addr::from(octets).to_canonical()
    }

    fn mapped(&self) -> [u8; 16] {
        match self {
            Self::V4(address) => address.to_ipv6_mapped().octets(),
            Self::V6(address) => address.octets(),
        }
    }
}

impl AddressText {
    /// The text of an address.
    pub fn new(address: IpAddr) -> Self {
        let mut bytes = [0; LONGEST_ADDRESS];
        let mut rest = &mut bytes[..];
        let _ = write!(rest, "{address}"); // has room for the longest one
        let length = (LONGEST_ADDRESS - rest.len()) as u8; // at most 39
        Self { protocol: if address.is_ipv4() { b'1' } else { b'2' }, length, bytes }
    }

    /// The text to announce for an end, if it is not its own one.
    pub fn announced(own: IpAddr, announced: IpAddr) -> Self {
        if announced == own { Self::default() } else { Self::new(announced) }
    }
}

impl PacketTuple {
    /// The tuple of packets from `source` to `destination`.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source: source.ip(),
            destination: destination.ip(),
            source_port: source.port(),
            destination_port: destination.port(),
        }
    }
}

impl PinholeKey {
    /// The key of a data connection from `initiator` to `arrival`.
    pub fn new(initiator: IpAddr, arrival: SocketAddr) -> Self {
        Self { initiator, arrival: arrival.ip(), port: arrival.port() }
    }

    /// Destination address and port of the data connection's SYN.
    pub fn arrival(&self) -> SocketAddr {
        SocketAddr::new(self.arrival, self.port)
    }
}

impl LineRecord {
    /// The line as it arrived, before any rewrite.
    pub fn line(&self) -> &[u8] {
        self.bytes.get(..self.length.into()).unwrap_or(&self.bytes)
    }

    /// The client's own endpoint, without NAT.
    pub fn client(&self) -> SocketAddr {
        SocketAddr::new(self.client, self.client_port)
    }

    /// The server's own endpoint, without NAT.
    pub fn server(&self) -> SocketAddr {
        SocketAddr::new(self.server, self.server_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_in_the_byte_order_of_the_program() {
        let client: SocketAddr = "10.0.0.2:4660".parse().unwrap();
        let server: SocketAddr = "[2001:db8::9]:21".parse().unwrap();
        let client_bytes = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2];
        let server_bytes = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
        let addresses = [client_bytes, server_bytes].concat();
        let tuple = PacketTuple::new(client, server);
        assert_eq!(tuple.to_bytes(), *[&addresses[..], &[0x12, 0x34, 0, 21]].concat());
        let flow = Flow {
            announced: [AddressText::default(), AddressText::new(server.ip())],
            seq_offset: [1, 2],
            pinhole: PinholeKey::new(client.ip(), server),
            first_client_port: 0x0f,
            last_line: [SavedLine::default(), SavedLine { seq: 3, length: 4, bytes: [5; 128] }],
            ..Flow::default()
        };
        let bytes = flow.to_bytes();
        assert_eq!(bytes[186..200], *b"2\x0b2001:db8::9\0");
        assert_eq!(bytes[312..320], [1_u32.to_ne_bytes(), 2_u32.to_ne_bytes()].concat());
        assert_eq!(bytes[332..334], 0x0f_u16.to_ne_bytes());
        assert_eq!(bytes[344..380], *[&addresses[..], &[0, 21, 0, 0]].concat());
        assert_eq!(bytes[536..], [5; 128]);
        assert_eq!(Flow::from_bytes(&bytes), flow);
    }

    #[test]
    fn the_longest_address_has_room() {
        let text = "fd00:1111:2222:3333:4444:5555:6666:7777";
        let AddressText { protocol, length, bytes } = AddressText::new(text.parse().unwrap());
        assert_eq!((protocol, usize::from(length), &bytes[..]), (b'2', 39, text.as_bytes()));
    }

    #[test]
    fn the_own_address_is_not_announced() {
        let [own, other] = ["10.0.0.2", "10.0.0.3"].map(|text| text.parse().unwrap());
        assert_eq!(AddressText::announced(own, own).length, 0);
        assert_eq!(AddressText::announced(own, other), AddressText::new(other));
    }

    #[test]
    fn a_length_beyond_the_longest_line_is_limited() {
        let record = LineRecord { length: u16::MAX, ..LineRecord::default() };
        assert_eq!(record.line().len(), LONGEST_LINE);
    }
}
