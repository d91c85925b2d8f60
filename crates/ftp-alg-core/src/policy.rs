//! The operator's policy, as plain data that the engine reads.
//!
//! It knows nothing of files, keys or text (`config` builds it from a checked configuration), nor of packets.
//! `Policy::default()` is the policy of an empty configuration, except `preserves_length`; `replay` uses it.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use ipnetwork::IpNetwork;

/// Passive ports of a server: ranges that ascend and do not touch.
pub type PassivePorts = Arc<[RangeInclusive<u16>]>;

/// What the engine allows, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Server ports of FTP control connections; never empty.
    pub control_ports: Vec<u16>,
    /// Lifetime of an unused pinhole.
    pub pinhole_timeout: Duration,
    /// External ports to announce if the announced port is already taken.
    pub port_range: RangeInclusive<u16>,
    /// The sets of ports to which the gateway may translate source ports. A client whose control connection has an
    /// external port in one announces no port outside of it, because a provider may forward no other.
    pub port_sets: Arc<[RangeInclusive<u16>]>,
    /// Whether a client's rewritten announcement keeps its length if leading zeros or another port of `port_range` make
    /// that possible. Set in the daemon; `replay` shows the plain form.
    pub preserves_length: bool,
    /// The external address to announce.
    pub external: ExternalAddresses,
    /// Published servers with settings of their own; all network policies share them.
    pub servers: Arc<[KnownServer]>,
    /// What to do with an announcement of a foreign address.
    pub foreign_address: ForeignAddress,
    /// The lowest port that an announcement may name.
    pub min_data_port: u16,
    /// Ports that no announcement may name, and that are never chosen as external ports.
    pub deny_ports: Arc<[RangeInclusive<u16>]>,
    /// Whether a pinhole requires an accepted login.
    pub require_login: bool,
    /// What to do with `AUTH TLS`.
    pub auth_tls: AuthTls,
    /// Limit of control connections at a time.
    pub max_sessions: usize,
    /// Number of sessions of one client beyond which its sessions are evicted first, if `max_sessions` is nearly
    /// reached.
    pub max_sessions_per_client: usize,
    /// Limit in bytes of unacknowledged and incomplete data of all sessions together.
    pub memory: usize,
    /// Limit of open pinholes of one client.
    pub max_pinholes_per_client: usize,
    /// Whether packets count on whatever interface they arrive (asymmetric and one-way links).
    pub any_interface: bool,
    /// The ports to which clients with an encrypted session may connect, if their server has none of its own.
    pub passive_ports: PassivePorts,
    /// Whether `passive_ports` are all that servers of others may have. They are then not for servers of ours.
    pub passive_ports_are_any: bool,
    /// Policies for certain connections, at most 65535. The first match counts.
    pub networks: Vec<NetworkPolicy>,
}

/// The address to announce for an endpoint that NAT hides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExternalAddress {
    /// The address in the control connection's own translation.
    #[default]
    Auto,
    /// A fixed address.
    Fixed(IpAddr),
    /// The address of a DNS name that is not resolved yet. Nothing can be announced, because the translation shows
    /// another address.
    Unresolved,
}

/// The external addresses of both families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExternalAddresses {
    /// The IPv4 address.
    pub v4: ExternalAddress,
    /// The IPv6 address.
    pub v6: ExternalAddress,
}

/// A published server with settings of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownServer {
    /// The server's own address.
    pub address: IpAddr,
    /// Its external address; `None` for [`Policy::external`].
    pub external: Option<ExternalAddress>,
    /// Whether the server means itself when it announces another address: it runs in a container or behind another NAT,
    /// and does not know its public address.
    pub replace_foreign_address: bool,
    /// The ports to which clients with an encrypted session may connect; empty for [`Policy::passive_ports`].
    pub passive_ports: PassivePorts,
}

/// A policy for certain connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Networks of the clients; any if empty.
    pub clients: Vec<IpNetwork>,
    /// Networks of the servers; any if empty.
    pub servers: Vec<IpNetwork>,
    /// Whether these connections are inspected.
    pub inspect: bool,
    /// Their complete policy; its own `networks` are empty.
    pub policy: Policy,
}

/// What to do with an announcement of an address that is not its sender's (RFC 2577 section 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForeignAddress {
    /// Refuse it.
    Refuse,
    /// Open nothing. A server's reply is forwarded, because its client may be allowed to go there without us, or connect
    /// to the address that it dialled. A command is refused.
    #[default]
    Pass,
    /// Treat it like any other.
    Allow,
}

/// What to do with `AUTH TLS`, after which nothing can be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthTls {
    /// Forward it to the server.
    #[default]
    Pass,
    /// Refuse it, so that the dialogue stays readable.
    Refuse,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            control_ports: vec![21],
            pinhole_timeout: Duration::from_secs(30),
            port_range: 49152..=65535,
            port_sets: Arc::default(),
            preserves_length: false,
            external: ExternalAddresses::default(),
            servers: Arc::default(),
            foreign_address: ForeignAddress::Pass,
            min_data_port: 1024,
            deny_ports: Arc::default(),
            require_login: true,
            auth_tls: AuthTls::Pass,
            max_sessions: 65536,
            max_sessions_per_client: 4096,
            memory: 64 << 20,
            max_pinholes_per_client: 1024,
            any_interface: false,
            passive_ports: Arc::default(),
            passive_ports_are_any: false,
            networks: Vec::new(),
        }
    }
}

impl Policy {
    /// Whether `AUTH` is refused.
    pub fn refuses_auth(&self) -> bool {
        self.auth_tls == AuthTls::Refuse
    }

    /// The settings of the server at `address`.
    pub fn server(&self, address: IpAddr) -> Option<&KnownServer> {
        self.servers.iter().find(|server| server.address == address)
    }

    /// The address to announce for `server` to a peer of the same family: the server's own setting first, then the
    /// general one. If no translation hides the server (`is_hidden`), only its own setting counts, for example for a
    /// server that another gateway in front of this one publishes. The general address does not apply to a server that
    /// is listed only for what it announces.
    pub fn external_of(&self, server: IpAddr, is_hidden: bool) -> ExternalAddress {
        let known = self.server(server);
        match known.and_then(|known| known.external) {
            Some(external) => external,
            None if is_hidden || known.is_some_and(|known| !known.replace_foreign_address) => {
                self.external.of_family(server)
            }
            None => ExternalAddress::Auto,
        }
    }

    /// The ports to which clients with an encrypted session with the server at `address` may connect. `is_ours` says
    /// whether this gateway publishes the server, or is its machine.
    pub fn passive_ports(&self, address: IpAddr, is_ours: bool) -> PassivePorts {
        match self.server(address) {
            Some(known) if !known.passive_ports.is_empty() => Arc::clone(&known.passive_ports),
            known if self.passive_ports_are_any && (is_ours || known.is_some()) => Arc::default(),
            _ => Arc::clone(&self.passive_ports),
        }
    }

    /// Whether `port` is in `deny_ports`.
    pub fn denies(&self, port: u16) -> bool {
        self.deny_ports.iter().any(|range| range.contains(&port))
    }

    /// Whether a pinhole to `target` is forbidden that an end with the address `own` announced.
    pub fn forbids(&self, target: SocketAddr, own: IpAddr) -> bool {
        target.ip() != own && self.foreign_address != ForeignAddress::Allow
            || self.forbids_port(target.port())
    }

    /// Whether no pinhole to `port` may be open.
    pub fn forbids_port(&self, port: u16) -> bool {
        port < self.min_data_port || self.denies(port)
    }

    /// The first and the last port that a translated client may announce, if it is restricted to a set of ports.
    /// `external` is the external port of its control connection.
    pub fn port_set(&self, external: u16) -> Option<(u16, u16)> {
        let set = self.port_sets.iter().find(|set| set.contains(&external));
        set.map(|set| set.clone().into_inner())
    }

    /// Whether an announced port may be replaced by this external one, from `set` if there is one.
    pub fn may_choose(&self, set: Option<(u16, u16)>, port: u16) -> bool {
        let (first, last) = set.unwrap_or_else(|| self.port_range.clone().into_inner());
        (first..=last).contains(&port) && !self.denies(port) && !self.control_ports.contains(&port)
    }

    /// An external port in place of one that is taken, selected by `random`; in `set`, if there is one.
    pub fn external_port(&self, set: Option<(u16, u16)>, random: u64) -> Option<u16> {
        let (first, last) = set.unwrap_or_else(|| self.port_range.clone().into_inner());
        let width = u64::from(last.saturating_sub(first)) + 1;
        (0..width)
            .map(|step| first + ((random % width + step) % width) as u16) // within the range
            .find(|port| !self.denies(*port) && !self.control_ports.contains(port))
    }

    /// Index of the network policy for a control connection, if any.
    pub fn network_of(&self, client: IpAddr, server: IpAddr) -> Option<u16> {
        let at = self.networks.iter().position(|network| network.contains(client, server))?;
        at.try_into().ok()
    }

    /// Whether [`Policy::network_of`] gives the same result as in `other` for every connection.
    pub fn has_same_networks_as(&self, other: &Self) -> bool {
        self.networks
            .iter()
            .map(NetworkPolicy::ranges)
            .eq(other.networks.iter().map(NetworkPolicy::ranges))
    }

    /// Whether connections with network policy `index` are inspected; those without one always are.
    pub fn inspects(&self, index: Option<u16>) -> bool {
        let network = index.and_then(|index| self.networks.get(usize::from(index)));
        network.is_none_or(|network| network.inspect)
    }

    /// The network policy `index`, or this policy for `None`.
    #[inline]
    pub fn for_network(&self, index: Option<u16>) -> &Self {
        let network = index.and_then(|index| self.networks.get(usize::from(index)));
        network.map_or(self, |network| &network.policy)
    }
}

impl KnownServer {
    /// The server at this address, without settings.
    pub fn new(address: IpAddr) -> Self {
        let passive_ports = Arc::default();
        Self { address, external: None, replace_foreign_address: false, passive_ports }
    }
}

impl NetworkPolicy {
    fn ranges(&self) -> (&[IpNetwork], &[IpNetwork]) {
        (&self.clients, &self.servers)
    }

    fn contains(&self, client: IpAddr, server: IpAddr) -> bool {
        let holds = |networks: &[IpNetwork], address| {
            networks.is_empty() || networks.iter().any(|network| network.contains(address))
        };
        holds(&self.clients, client) && holds(&self.servers, server)
    }
}

impl ExternalAddresses {
    /// The external address of the same family as `like`.
    pub fn of_family(&self, like: IpAddr) -> ExternalAddress {
        if like.is_ipv4() { self.v4 } else { self.v6 }
    }
}

impl From<IpAddr> for ExternalAddresses {
    /// A fixed address; the other family follows the translation.
    fn from(address: IpAddr) -> Self {
        let fixed = ExternalAddress::Fixed(address);
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

    fn server(external: Option<ExternalAddress>, heal: bool) -> KnownServer {
        let server = KnownServer::new(ip("10.0.0.5"));
        KnownServer { external, replace_foreign_address: heal, ..server }
    }

    #[test]
    fn a_servers_own_external_address_precedes_the_general_one() {
        let (common, own) = (
            ExternalAddress::Fixed(ip("198.51.100.1")),
            ExternalAddress::Fixed(ip("198.51.100.2")),
        );
        let cases = [
            (None, true, common),
            (None, false, ExternalAddress::Auto),
            (Some(server(None, false)), true, common),
            (Some(server(None, false)), false, common),
            (Some(server(Some(own), false)), false, own),
            (Some(server(Some(own), true)), false, own),
            (Some(server(Some(ExternalAddress::Auto), false)), true, ExternalAddress::Auto),
            // A server outside that clients inside use.
            (Some(server(None, true)), false, ExternalAddress::Auto),
            (Some(server(None, true)), true, common),
        ];
        for (known, is_hidden, expected) in cases {
            let policy = Policy {
                external: ip("198.51.100.1").into(),
                servers: known.clone().into_iter().collect(),
                ..Policy::default()
            };
            let external = policy.external_of(ip("10.0.0.5"), is_hidden);
            assert_eq!(external, expected, "{known:?} {is_hidden}");
        }
    }

    #[test]
    fn a_family_without_a_fixed_address_uses_the_translation() {
        let external = ExternalAddresses::from(ip("198.51.100.1"));
        assert_eq!(external.of_family(ip("::1")), ExternalAddress::Auto);
        assert_eq!(external.of_family(ip("10.0.0.5")), ExternalAddress::Fixed(ip("198.51.100.1")));
        assert_eq!(ExternalAddresses::default().of_family(ip("10.0.0.5")), ExternalAddress::Auto);
    }

    #[test]
    fn an_external_port_is_neither_denied_nor_a_control_port() {
        let policy = Policy {
            control_ports: vec![50002],
            port_range: 50000..=50005,
            deny_ports: [50000..=50000, 50004..=60000].into(),
            ..Policy::default()
        };
        let chosen: Vec<_> =
            (0..6).map(|random| policy.external_port(None, random).unwrap()).collect();
        assert_eq!(chosen, [50001, 50001, 50003, 50003, 50001, 50001]);
        let policy = Policy { port_range: 65535..=65535, ..Policy::default() };
        assert_eq!(policy.external_port(None, u64::MAX), Some(65535));
        let policy = Policy { deny_ports: [1..=65535].into(), ..policy };
        assert_eq!(policy.external_port(None, 7), None);
    }

    #[test]
    fn the_first_network_policy_that_matches_both_endpoints_applies() {
        let network = |clients: &[&str], servers: &[&str], min_data_port| NetworkPolicy {
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
            assert_eq!(policy.for_network(index).min_data_port, port, "{client} {server}");
        }
    }
}
