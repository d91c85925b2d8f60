//! What the operator allows, as plain data that the engine reads.
//!
//! Knows nothing of where it comes from: not of files, keys or text (`config` makes it from a
//! checked configuration), and not of packets. Every field but `keeps_length` has the default of an empty
//! configuration: `Policy::default()` is what `replay` uses.

use std::{net::IpAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use ipnetwork::IpNetwork;

/// What the engine may do for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Server ports whose connections are read as FTP control connections; never empty.
    pub control_ports: Vec<u16>,
    /// How long an unused pinhole lives.
    pub pinhole_lifetime: Duration,
    /// External ports to announce when the announced one is already taken.
    pub port_range: RangeInclusive<u16>,
    /// Whether a client's announcement that is rewritten keeps its length where zeros before its port or another port of these
    /// make it so. The daemon's do, `replay` shows the plain form.
    pub keeps_length: bool,
    /// The address to announce in place of one that NAT hides.
    pub external: Externals,
    /// Servers of which more is known than their connections show; each network's policy shares them.
    pub servers: Arc<[KnownServer]>,
    /// What becomes of an announcement that names a third host.
    pub foreign: Foreign,
    /// The lowest port that an announcement may name.
    pub min_data_port: u16,
    /// Other ports that no announcement may name, and that are never chosen to be announced.
    pub deny_ports: Arc<[RangeInclusive<u16>]>,
    /// Whether a pinhole needs a login that the server accepted.
    pub require_login: bool,
    /// What becomes of `AUTH TLS`.
    pub auth_tls: AuthTls,
    /// The most control connections that are followed at a time.
    pub max_sessions: usize,
    /// How many of these one client may have before others go first, where there are nearly as many as may be.
    pub max_sessions_per_client: usize,
    /// The most bytes that all sessions hold together until they are acknowledged, or complete.
    pub memory: usize,
    /// The most pinholes that one client may have open at a time.
    pub max_pinholes_per_client: usize,
    /// Connections for which another policy holds: the first that matches, of at most 65535.
    pub networks: Vec<Network>,
}

/// The address to announce in place of one that NAT hides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum External {
    /// The one that the control connection's own translation shows.
    #[default]
    Auto,
    /// A given one.
    Fixed(IpAddr),
    /// That of a name which is not known yet. The translation shows another one, or the name would
    /// not have been given, so nothing can be announced.
    Unresolved,
}

/// The addresses to announce to peers of either family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Externals {
    /// Over IPv4.
    pub v4: External,
    /// Over IPv6.
    pub v6: External,
}

/// A server of which more is known than its connections show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownServer {
    /// The server's own address.
    pub address: IpAddr,
    /// The address to announce for it; `None` means what [`Policy::external`] says.
    pub external: Option<External>,
    /// Whether it means itself when it announces another address: it stands in a container or
    /// behind another NAT, and does not know how it is reached.
    pub heal: bool,
}

/// Connections for which another policy holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Where their clients are; anywhere if empty.
    pub clients: Vec<IpNetwork>,
    /// Where their servers are; anywhere if empty.
    pub servers: Vec<IpNetwork>,
    /// Whether they are followed at all.
    pub inspect: bool,
    /// All of the policy that holds for them, without networks.
    pub policy: Policy,
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
            keeps_length: false,
            external: Externals::default(),
            servers: Arc::default(),
            foreign: Foreign::Refuse,
            min_data_port: 1024,
            deny_ports: Arc::default(),
            require_login: true,
            auth_tls: AuthTls::Pass,
            max_sessions: 65536,
            max_sessions_per_client: 4096,
            memory: 64 << 20,
            max_pinholes_per_client: 64,
            networks: Vec::new(),
        }
    }
}

impl Policy {
    /// Whether `AUTH` is kept from servers.
    pub fn refuses_auth(&self) -> bool {
        self.auth_tls == AuthTls::Refuse
    }

    /// What is known of the server at `address`.
    pub fn server(&self, address: IpAddr) -> Option<&KnownServer> {
        self.servers.iter().find(|server| server.address == address)
    }

    /// The address to announce for `server` to a peer of the same family: its own first, then the
    /// one for all. Where no translation hides it (`is_hidden`), only for a server that is known,
    /// as one published by another gateway in front of this one; the address for all is not that
    /// of a server which is known only for what it announces.
    pub fn external_of(&self, server: IpAddr, is_hidden: bool) -> External {
        let known = self.server(server);
        match known.and_then(|known| known.external) {
            Some(external) => external,
            None if is_hidden || known.is_some_and(|known| !known.heal) => {
                self.external.of_family(server)
            }
            None => External::Auto,
        }
    }

    /// Whether `port` is one of those that nothing is opened at.
    pub fn denies(&self, port: u16) -> bool {
        self.deny_ports.iter().any(|range| range.contains(&port))
    }

    /// An external port to announce in place of one that is taken, chosen by `random`.
    pub fn external_port(&self, random: u64) -> Option<u16> {
        let first = *self.port_range.start();
        let width = u64::from(self.port_range.end() - first) + 1;
        (0..width)
            .map(|step| first + ((random % width + step) % width) as u16) // within the range
            .find(|port| !self.denies(*port) && !self.control_ports.contains(port))
    }

    /// Which of [`Policy::networks`] a control connection is in, if any.
    pub fn network_of(&self, client: IpAddr, server: IpAddr) -> Option<u16> {
        let at = self.networks.iter().position(|network| network.contains(client, server))?;
        at.try_into().ok()
    }

    /// Whether [`Policy::network_of`] is as in `other` for every connection.
    pub fn tells_networks_as(&self, other: &Self) -> bool {
        self.networks.iter().map(Network::ends).eq(other.networks.iter().map(Network::ends))
    }

    /// Whether connections in the network at `index` are followed at all; those outside of all are.
    pub fn inspects(&self, index: Option<u16>) -> bool {
        let network = index.and_then(|index| self.networks.get(usize::from(index)));
        network.is_none_or(|network| network.inspect)
    }

    /// The policy that holds in the network at `index`; this one outside of all.
    #[inline]
    pub fn within(&self, index: Option<u16>) -> &Self {
        let network = index.and_then(|index| self.networks.get(usize::from(index)));
        network.map_or(self, |network| &network.policy)
    }
}

impl Network {
    fn ends(&self) -> (&[IpNetwork], &[IpNetwork]) {
        (&self.clients, &self.servers)
    }

    fn contains(&self, client: IpAddr, server: IpAddr) -> bool {
        let holds = |networks: &[IpNetwork], address| {
            networks.is_empty() || networks.iter().any(|network| network.contains(address))
        };
        holds(&self.clients, client) && holds(&self.servers, server)
    }
}

impl Externals {
    /// The one to announce to peers of the same family as `like`.
    pub fn of_family(&self, like: IpAddr) -> External {
        if like.is_ipv4() { self.v4 } else { self.v6 }
    }
}

impl From<IpAddr> for Externals {
    /// A given address; the other family follows the translation.
    fn from(address: IpAddr) -> Self {
        let fixed = External::Fixed(address);
        if address.is_ipv4() {
            Self { v4: fixed, ..Self::default() }
        } else {
            Self { v6: fixed, ..Self::default() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn server(external: Option<External>, heal: bool) -> KnownServer {
        KnownServer { address: ip("10.0.0.5"), external, heal }
    }

    #[test]
    fn a_servers_own_external_address_comes_before_the_common_one() {
        let (common, own) =
            (External::Fixed(ip("198.51.100.1")), External::Fixed(ip("198.51.100.2")));
        let cases = [
            (None, true, common),
            (None, false, External::Auto),
            (Some(server(None, false)), true, common),
            (Some(server(None, false)), false, common),
            (Some(server(Some(own), false)), false, own),
            (Some(server(Some(own), true)), false, own),
            (Some(server(Some(External::Auto), false)), true, External::Auto),
            // A server outside, which clients inside use.
            (Some(server(None, true)), false, External::Auto),
            (Some(server(None, true)), true, common),
        ];
        for (known, is_hidden, expected) in cases {
            let policy = Policy {
                external: ip("198.51.100.1").into(),
                servers: known.into_iter().collect(),
                ..Policy::default()
            };
            let external = policy.external_of(ip("10.0.0.5"), is_hidden);
            assert_eq!(external, expected, "{known:?} {is_hidden}");
        }
    }

    #[test]
    fn a_family_without_a_given_address_follows_the_translation() {
        let external = Externals::from(ip("198.51.100.1"));
        assert_eq!(external.of_family(ip("::1")), External::Auto);
        assert_eq!(external.of_family(ip("10.0.0.5")), External::Fixed(ip("198.51.100.1")));
        assert_eq!(Externals::default().of_family(ip("10.0.0.5")), External::Auto);
    }

    #[test]
    fn an_external_port_is_neither_denied_nor_a_control_port() {
        let policy = Policy {
            control_ports: vec![50002],
            port_range: 50000..=50005,
            deny_ports: [50000..=50000, 50004..=60000].into(),
            ..Policy::default()
        };
        let chosen: Vec<_> = (0..6).map(|random| policy.external_port(random).unwrap()).collect();
        assert_eq!(chosen, [50001, 50001, 50003, 50003, 50001, 50001]);
        let policy = Policy { port_range: 65535..=65535, ..Policy::default() };
        assert_eq!(policy.external_port(u64::MAX), Some(65535));
        let policy = Policy { deny_ports: [1..=65535].into(), ..policy };
        assert_eq!(policy.external_port(7), None);
    }

    #[test]
    fn the_first_network_that_holds_both_ends_counts() {
        let network = |clients: &[&str], servers: &[&str], min_data_port| Network {
            clients: clients.iter().map(|text| text.parse().unwrap()).collect(),
            servers: servers.iter().map(|text| text.parse().unwrap()).collect(),
            inspect: true,
            policy: Policy { min_data_port, ..Policy::default() },
        };
        let policy = Policy {
            networks: vec![
                network(&["10.1.0.0/16"], &["203.0.113.9/32", "2001:db8::/32"], 1),
                network(&["10.1.0.0/16", "fd00::/8"], &[], 2),
                network(&[], &["203.0.113.9/32"], 3),
            ],
            ..Policy::default()
        };
        for (client, server, port) in [
            ("10.1.2.3", "203.0.113.9", 1),
            ("10.1.2.3", "203.0.113.10", 2),
            ("10.2.2.3", "203.0.113.9", 3),
            ("10.2.2.3", "203.0.113.10", 1024),
            ("fd00::1", "2001:db8::1", 2),
            ("2001:db8::2", "2001:db8::1", 1024),
        ] {
            let index = policy.network_of(ip(client), ip(server));
            assert_eq!(policy.within(index).min_data_port, port, "{client} {server}");
        }
    }
}
