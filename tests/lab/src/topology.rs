//! Describes topologies: the hosts, their networks and addresses, and the address translation.
//!
//! The module knows nothing of namespaces. `network` builds a topology, and `firewall` writes its rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Admission, Family, FirewallKind};

/// What the gateway does with addresses, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
pub enum Topology {
    /// Clients inside, masqueraded with the gateway's outer address.
    #[strum(to_string = "masquerade")]
    Masquerade,
    /// Clients inside. Each connection gets the next of three outer addresses ([`AddressPlan::pool`]). With
    /// [`Admission::Related`] each client has one of them.
    #[strum(to_string = "SNAT pool")]
    SnatPool,
    /// The server inside, published on port 21 of the gateway's outer address.
    #[strum(to_string = "published server (DNAT)")]
    PublishedServer,
    /// The server inside, port 21, published on port 2121 of the gateway's outer address.
    #[strum(to_string = "DNAT to another port")]
    PortForward,
    /// The server inside, published by a gateway whose outer address is private, too. A router further out maps a
    /// public address to it in both directions. IPv6 is routed.
    #[strum(to_string = "1:1 NAT upstream")]
    OneToOne,
    /// Clients behind a gateway that masquerades, the server behind another that publishes it on
    /// port 2121.
    #[strum(to_string = "NAT on both sides")]
    BothSides,
    /// Clients inside, without translation. The gateway only filters.
    #[strum(to_string = "routed")]
    Routed,
    /// The server runs on the gateway itself, which drops input and output by default.
    #[strum(to_string = "on the server itself")]
    OnServer,
    /// The client runs on the gateway itself, which drops input and output by default.
    #[strum(to_string = "on the client itself")]
    OnClient,
}

impl Topology {
    /// All topologies.
    pub const ALL: [Self; 9] = [
        Self::Masquerade,
        Self::SnatPool,
        Self::PublishedServer,
        Self::PortForward,
        Self::OneToOne,
        Self::BothSides,
        Self::Routed,
        Self::OnServer,
        Self::OnClient,
    ];

    /// The top-level keys that `ftp-alg` needs in its configuration, apart from the back end.
    pub(super) fn keys(self) -> &'static str {
        match self {
            // The server's gateway sees port 21 on its inner side. The clients' gateway sees only port 2121.
            Self::BothSides => "control-ports = [21, 2121]\n",
            _ => "",
        }
    }

    /// The tables that `ftp-alg` needs in its configuration, after the keys of [`Topology::keys`].
    pub(super) fn tables(self, plan: &AddressPlan) -> String {
        match (self, &plan.far) {
            (Self::OneToOne, Some(router)) => format!(
                "[nat]\nexternal-address = \"{}\"\n\n[[server]]\naddress = \"{}\"\n",
                router.outside.v4, plan.server.v4
            ),
            _ => String::new(),
        }
    }

    /// Whether clients connect to another address than the server's own.
    pub(super) fn publishes_server(self) -> bool {
        matches!(self, Self::PublishedServer | Self::PortForward | Self::OneToOne | Self::BothSides)
    }

    /// The port on which the server is published.
    pub(super) fn public_port(self) -> u16 {
        if matches!(self, Self::PortForward | Self::BothSides) { 2121 } else { 21 }
    }

    /// The network of a role.
    pub(super) fn segment(self, role: Role) -> NetworkSegment {
        match (self, role) {
            (Self::OneToOne, Role::Client | Role::Outsider) | (Self::BothSides, Role::Server) => {
                NetworkSegment::Far
            }
            (Self::PublishedServer | Self::PortForward | Self::OneToOne, Role::Server)
            | (Self::Masquerade | Self::SnatPool | Self::BothSides | Self::Routed, Role::Client) => {
                NetworkSegment::Lan
            }
            _ => NetworkSegment::Wan,
        }
    }

    /// The network with public addresses.
    pub(super) fn public(self) -> NetworkSegment {
        if self == Self::OneToOne { NetworkSegment::Far } else { NetworkSegment::Wan }
    }
}

/// The role of a host that is not a gateway. It decides the host's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
    Outsider,
}

/// A network of the lab. Each has its own switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub(super) enum NetworkSegment {
    /// Inside the gateway.
    Lan,
    /// Outside the gateway.
    Wan,
    /// Behind the second gateway, if there is one.
    Far,
}

impl NetworkSegment {
    pub(super) const ALL: [Self; 3] = [Self::Lan, Self::Wan, Self::Far];

    /// The addresses of host number `host` in this network.
    fn host(self, topology: Topology, host: u8) -> DualAddress {
        let number = u16::from(host);
        let private = |v4: [u8; 3], v6: u16| DualAddress {
            v4: Ipv4Addr::new(v4[0], v4[1], v4[2], host),
            v6: Ipv6Addr::new(0xfd00, v6, 0, 0, 0, 0, 0, number),
        };
        match self {
            _ if self == topology.public() => DualAddress {
                v4: Ipv4Addr::new(198, 51, 100, host),
                v6: Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, number),
            },
            Self::Lan => private([192, 168, 150], 0x150),
            Self::Wan => private([10, 9, 0], 0x9),
            Self::Far => private([192, 168, 160], 0x160),
        }
    }
}

/// The IPv4 and the IPv6 address of a host.
#[derive(Clone, Copy, Debug)]
pub struct DualAddress {
    /// The IPv4 address, in a /24 network.
    pub v4: Ipv4Addr,
    /// The IPv6 address, in a /64 network.
    pub v6: Ipv6Addr,
}

impl DualAddress {
    /// The address of one IP version.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

/// The addresses of a second gateway or router.
#[derive(Clone, Copy, Debug)]
pub struct SecondRouter {
    /// The addresses of the inner interface.
    pub inside: DualAddress,
    /// The addresses of the outer interface.
    pub outside: DualAddress,
}

/// The addresses of all hosts.
#[derive(Clone, Debug)]
pub struct AddressPlan {
    /// The gateway's inner interface.
    pub inside: DualAddress,
    /// The gateway's outer interface.
    pub outside: DualAddress,
    /// The client.
    pub client: DualAddress,
    /// Another client in the same network.
    pub client2: DualAddress,
    /// The server.
    pub server: DualAddress,
    /// A host outside that is neither client nor server.
    pub outsider: DualAddress,
    /// The server's gateway ([`Topology::BothSides`]), or the router further out
    /// ([`Topology::OneToOne`]).
    pub far: Option<SecondRouter>,
    /// The additional outer addresses of the gateway for clients ([`Topology::SnatPool`]).
    pub pool: Vec<DualAddress>,
}

impl AddressPlan {
    /// The addresses of a well-known explanation of active and passive FTP (slacksite.com): client 192.168.150.80,
    /// server 192.168.150.90.
    pub fn for_topology(topology: Topology) -> Self {
        let (lan, wan, far) = (
            |host| NetworkSegment::Lan.host(topology, host),
            |host| NetworkSegment::Wan.host(topology, host),
            |host| NetworkSegment::Far.host(topology, host),
        );
        // Hosts inside have the numbers of the explanation. Hosts outside have other numbers.
        let client = |number: u8| match topology.segment(Role::Client) {
            NetworkSegment::Lan => lan(80 + number),
            NetworkSegment::Wan => wan(20 + number),
            NetworkSegment::Far => far(20 + number),
        };
        let server = match topology.segment(Role::Server) {
            NetworkSegment::Lan => lan(90),
            NetworkSegment::Wan => wan(10),
            NetworkSegment::Far => far(90),
        };
        let outside = wan(if topology == Topology::OneToOne { 2 } else { 1 });
        Self {
            inside: lan(1),
            outside,
            client: if topology == Topology::OnClient { outside } else { client(0) },
            client2: client(1),
            server: if topology == Topology::OnServer { outside } else { server },
            outsider: topology.public().host(topology, 66),
            far: match topology {
                Topology::BothSides => Some(SecondRouter { inside: far(1), outside: wan(2) }),
                Topology::OneToOne => Some(SecondRouter { inside: wan(1), outside: far(1) }),
                _ => None,
            },
            pool: match topology {
                Topology::SnatPool => [101, 102, 103].map(wan).to_vec(),
                _ => Vec::new(),
            },
        }
    }
}

/// The description of a lab to build.
#[derive(Clone, Debug)]
pub struct LabSpec {
    /// The topology.
    pub topology: Topology,
    /// The addresses of all hosts.
    pub plan: AddressPlan,
    /// Whether IPv6 is translated (NAT66) or routed.
    pub nat66: bool,
    /// The program of the gateway's own firewall.
    pub firewall: FirewallKind,
    /// How the gateway's own firewall recognises admitted data connections.
    pub admission: Admission,
    /// Whether interfaces leave checksums and segmentation to the next interface.
    ///
    /// It is off by default, so that captures have complete packets with real checksums. Local traffic of a real
    /// machine looks as if it is on.
    pub offloads: bool,
    /// Whether cables lead from the gateway to client and server, without the switches, which take time. Others then reach
    /// nothing.
    pub direct: bool,
}

impl LabSpec {
    /// The description of `topology` with the default addresses, NAT66, and an nftables firewall that accepts the mark
    /// of `ftp-alg`.
    pub fn new(topology: Topology) -> Self {
        Self {
            topology,
            plan: AddressPlan::for_topology(topology),
            nat66: true,
            firewall: FirewallKind::Nftables,
            admission: Admission::Mark,
            offloads: false,
            direct: false,
        }
    }

    /// Whether the lab translates addresses of this IP version.
    pub fn translates(&self, family: Family) -> bool {
        let hides_clients = matches!(self.topology, Topology::Masquerade | Topology::SnatPool);
        let translating = hides_clients || self.topology.publishes_server();
        let v6 = self.nat66 && self.topology != Topology::OneToOne;
        translating && (family == Family::V4 || v6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_hosts_have_different_addresses() {
        for topology in Topology::ALL {
            let plan = AddressPlan::for_topology(topology);
            let mut all = vec![plan.inside, plan.outside, plan.client2, plan.outsider];
            all.extend((topology != Topology::OnClient).then_some(plan.client));
            all.extend((topology != Topology::OnServer).then_some(plan.server));
            all.extend(plan.far.into_iter().flat_map(|far| [far.inside, far.outside]));
            all.extend(&plan.pool);
            for family in [Family::V4, Family::V6] {
                let mut addresses: Vec<_> = all.iter().map(|ends| ends.address(family)).collect();
                addresses.sort_unstable();
                addresses.dedup();
                assert_eq!(addresses.len(), all.len(), "{topology} {family}");
            }
        }
    }
}
