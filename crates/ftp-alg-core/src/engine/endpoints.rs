//! How NAT shows a connection to its ends: translations, and pinholes for data connections.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::{
    policy::{PassivePorts, Policy},
    session::Side,
};

/// The translation of a control connection: how NAT shows its two ends to each other.
///
/// At our hooks (forward; input; output after destination NAT) packets carry the real addresses of both ends, `client`
/// and `server`. Without NAT the external addresses equal the real ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translation {
    /// The client's own endpoint (conntrack's original source).
    pub client: SocketAddr,
    /// The client as the server sees it (conntrack's reply destination).
    pub client_external: SocketAddr,
    /// The server's own endpoint (conntrack's reply source).
    pub server: SocketAddr,
    /// The server as the client sees it: the address it connected to (conntrack's original destination).
    pub server_external: SocketAddr,
    /// The operator's bits of its ct mark, which data connections inherit (as in `init_conntrack`).
    pub ct_mark: u32,
}

impl Translation {
    /// The translation of a connection without NAT.
    pub fn identity(client: SocketAddr, server: SocketAddr) -> Self {
        Self { client, client_external: client, server, server_external: server, ct_mark: 0 }
    }

    /// The ports to which this client may connect, if the session is encrypted. `is_server_here`: the server is this machine.
    pub fn passive_ports(&self, policy: &Policy, is_server_here: bool) -> PassivePorts {
        let is_published = self.server.ip() != self.server_external.ip();
        policy.passive_ports(self.server.ip(), is_published || is_server_here)
    }

    /// Source and destination of packets that `to` receives, as it sees them.
    pub fn seen_by(&self, to: Side) -> (SocketAddr, SocketAddr) {
        match to {
            Side::Client => (self.server_external, self.client),
            Side::Server => (self.client_external, self.server),
        }
    }
}

/// Permission for exactly one data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PinholeEnds {
    /// Source address of the connection's first packet, as it arrives at this machine. Its source
    /// port is free.
    pub initiator: IpAddr,
    /// Destination of the connection's first packet, as it arrives at this machine.
    pub arrival: SocketAddr,
    /// Where the connection is sent (destination translation; equal to `arrival` without NAT).
    pub target: SocketAddr,
    /// Source address the target sees (source translation; equal to `initiator` without NAT).
    pub source: IpAddr,
}

impl PinholeEnds {
    /// Initiator and arrival, by which the kernel identifies it.
    pub fn key(&self) -> (IpAddr, SocketAddr) {
        (self.initiator, self.arrival)
    }
}

impl fmt::Display for PinholeEnds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.initiator, self.arrival)?;
        if self.target != self.arrival {
            write!(f, " (to {})", self.target)?;
        }
        if self.source != self.initiator {
            write!(f, " (from {})", self.source)?;
        }
        Ok(())
    }
}

/// A client, as limits count it: an IPv4 address, or the /64 of an IPv6 address, because one host has all of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClientKey {
    /// The address.
    V4(u32),
    /// The upper half of the address.
    V6(u64),
}

impl From<IpAddr> for ClientKey {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

impl fmt::Display for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::V4(address) => Ipv4Addr::from_bits(address).fmt(f),
            Self::V6(half) => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(half) << 64)),
        }
    }
}
