//! What the operator allows, as plain data that the engine reads.
//!
//! Knows nothing of where it comes from: not of files, keys or text (`config` makes it from a
//! checked configuration), and not of packets. Every field has the default of an empty
//! configuration, so `Policy::default()` is what `ftp-alg run` uses when there is no file.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    time::Duration,
};

/// What the engine may do for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Server ports whose connections are read as FTP control connections; never empty.
    pub control_ports: Vec<u16>,
    /// How long an unused pinhole lives.
    pub pinhole_lifetime: Duration,
    /// External ports to announce when the announced one is already taken.
    pub port_range: RangeInclusive<u16>,
    /// The address to announce in place of one that NAT hides.
    pub external: External,
    /// Servers that this gateway publishes.
    pub servers: Vec<PublishedServer>,
    /// What becomes of an announcement that names a third host.
    pub foreign: Foreign,
    /// The lowest port that an announcement may name.
    pub min_data_port: u16,
    /// Whether a pinhole needs a login that the server accepted.
    pub require_login: bool,
    /// What becomes of `AUTH TLS`.
    pub auth_tls: AuthTls,
    /// The most control connections that are followed at a time.
    pub max_sessions: usize,
    /// The most pinholes that one client may have open at a time.
    pub max_pinholes_per_client: usize,
}

/// The address to announce in place of one that NAT hides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum External {
    /// The one that the control connection's own translation shows.
    #[default]
    Auto,
    /// A given one; a family that has none falls back to [`External::Auto`].
    Fixed {
        /// For control connections over IPv4.
        v4: Option<Ipv4Addr>,
        /// For control connections over IPv6.
        v6: Option<Ipv6Addr>,
    },
}

/// A server that this gateway publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedServer {
    /// The server's own address.
    pub address: IpAddr,
    /// The address to announce for it; `None` means what [`Policy::external`] says.
    pub external: Option<IpAddr>,
}

/// What becomes of an announcement that names another host than its sender (RFC 2577, section 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Foreign {
    /// It is refused.
    #[default]
    Refuse,
    /// It is treated as any other.
    Allow,
}

/// What becomes of `AUTH TLS`, after which nothing can be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthTls {
    /// It goes to the server.
    #[default]
    Pass,
    /// It is refused, so that the dialogue stays readable.
    Refuse,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            control_ports: vec![21],
            pinhole_lifetime: Duration::from_secs(30),
            port_range: 49152..=65535,
            external: External::Auto,
            servers: Vec::new(),
            foreign: Foreign::Refuse,
            min_data_port: 1024,
            require_login: true,
            auth_tls: AuthTls::Pass,
            max_sessions: 65536,
            max_pinholes_per_client: 64,
        }
    }
}

impl Policy {
    /// The published server at `address`, if it is one.
    pub fn server(&self, address: IpAddr) -> Option<&PublishedServer> {
        self.servers.iter().find(|server| server.address == address)
    }

    /// The address to announce for `server` to a peer of the same family, where one is configured:
    /// its own first, then the one for all. `None` means the translation's.
    pub fn external_of(&self, server: IpAddr) -> Option<IpAddr> {
        self.server(server)
            .and_then(|published| published.external)
            .or_else(|| self.external.of_family(server))
    }
}

impl External {
    /// The fixed address of the same family as `like`, if there is one.
    pub fn of_family(&self, like: IpAddr) -> Option<IpAddr> {
        match (self, like) {
            (Self::Auto, _) => None,
            (Self::Fixed { v4, .. }, IpAddr::V4(_)) => v4.map(IpAddr::V4),
            (Self::Fixed { v6, .. }, IpAddr::V6(_)) => v6.map(IpAddr::V6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 6));
    const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    const OWN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

    #[test]
    fn a_published_servers_own_external_address_comes_before_the_common_one() {
        let policy = Policy {
            external: External::Fixed { v4: Some(PUBLIC), v6: None },
            servers: vec![PublishedServer { address: INSIDE, external: Some(OWN.into()) }],
            ..Policy::default()
        };
        assert_eq!(policy.external_of(INSIDE), Some(OWN.into()));
        assert_eq!(policy.external_of(OTHER), Some(PUBLIC.into()));
    }

    #[test]
    fn a_family_without_a_fixed_address_follows_the_translation() {
        let external = External::Fixed { v4: Some(PUBLIC), v6: None };
        assert_eq!(external.of_family(IpAddr::V6(Ipv6Addr::LOCALHOST)), None);
        assert_eq!(External::Auto.of_family(INSIDE), None);
    }
}
