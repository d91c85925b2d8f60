//! The options with which `events`, `sessions` and `pinholes` select rows.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use clap::Args;
use ipnetwork::{IpNetwork, IpNetworkError, Ipv4Network};

/// The selection. Without an option it has all rows.
#[derive(Args, Debug, Default)]
pub(super) struct Selection {
    /// Only those of clients in this network
    #[arg(long, value_name = "NETWORK", value_parser = network)]
    client: Option<IpNetwork>,
    /// Only those of servers in this network
    #[arg(long, value_name = "NETWORK", value_parser = network)]
    server: Option<IpNetwork>,
    /// Only those of this user, as far as the login was seen
    #[arg(long)]
    user: Option<String>,
    /// Only those of this session
    #[arg(long, value_name = "ID")]
    pub session: Option<u64>,
}

/// The endpoints that `--port` selects: a port of one address, or of any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endpoints {
    address: Option<IpAddr>,
    port: u16,
}

impl Endpoints {
    /// What `--port` accepts.
    pub const FORM: &str = "[ADDRESS:]PORT";

    pub fn parse(text: &str) -> Result<Self, String> {
        if let Ok(port) = text.parse() {
            return Ok(Self { address: None, port });
        }
        match text.parse::<SocketAddr>() {
            Ok(end) => Ok(Self { address: Some(end.ip().to_canonical()), port: end.port() }),
            Err(_) => Err("give a port, or as in 192.0.2.1:2121 and [2001:db8::1]:2121".to_owned()),
        }
    }

    pub fn contains(self, end: SocketAddr) -> bool {
        end.port() == self.port && self.address.is_none_or(|address| address == end.ip())
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => SocketAddr::new(address, self.port).fmt(f),
            None => self.port.fmt(f),
        }
    }
}

/// The values of a row by which it is selected.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Subject<'a> {
    pub client: Option<IpAddr>,
    pub server: Option<IpAddr>,
    pub user: Option<&'a str>,
    pub session: Option<u64>,
}

/// Parses a network. A network of mapped addresses (RFC 4291, section 2.5.5.2), which programs with IPv6 sockets show,
/// becomes the network of their IPv4 addresses.
fn network(text: &str) -> Result<IpNetwork, IpNetworkError> {
    let network = text.parse()?;
    let IpNetwork::V6(wide) = network else { return Ok(network) };
    match (wide.ip().to_ipv4_mapped(), wide.prefix().checked_sub(96)) {
        (Some(mapped), Some(prefix)) => Ipv4Network::new(mapped, prefix).map(IpNetwork::V4),
        _ => Ok(network),
    }
}

impl Selection {
    /// Whether the row has the value of each option that is given.
    pub fn selects(&self, of: Subject<'_>) -> bool {
        let is_in = |network: Option<IpNetwork>, address: Option<IpAddr>| {
            network.is_none_or(|network| address.is_some_and(|address| network.contains(address)))
        };
        is_in(self.client, of.client)
            && is_in(self.server, of.server)
            && self.user.as_deref().is_none_or(|user| of.user == Some(user))
            && self.session.is_none_or(|session| of.session == Some(session))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_those_of_ipv4() {
        for (text, expected) in [
            ("::ffff:10.0.0.7", "10.0.0.7"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::/0", "::/0"),
            ("2001:db8::7", "2001:db8::7"),
        ] {
            assert_eq!(network(text), expected.parse(), "{text}");
        }
        assert!(network("10.0.0.0/33").is_err());
    }

    #[test]
    fn an_endpoint_is_a_port_with_or_without_an_address() {
        for text in ["2121", "192.0.2.1:2121", "[2001:db8::1]:2121"] {
            assert_eq!(Endpoints::parse(text).unwrap().to_string(), text);
        }
        for text in ["", ":21", "192.0.2.1", "2001:db8::1:21", "[2001:db8::1]", "host:21", "65536"]
        {
            let error = Endpoints::parse(text).unwrap_err();
            assert!(error.contains("[2001:db8::1]:2121"), "{text}: {error}");
        }
    }
}
