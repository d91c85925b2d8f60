//! The kernel that `replay` simulates: a NAT gateway between the hosts inside and all other hosts.
//!
//! From outside, hosts inside have the external address. They have their own port if it is free. This applies to
//! clients (masquerade) and servers (published). A data connection to a pinhole has the announced endpoint. Without an
//! external address nothing is translated.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
};

use ipnetwork::IpNetwork;

use ftp_alg_core::engine::{
    Closing, Kernel, KernelError, Opening, PinholeEnds, QueueMode, Translation,
};

/// How many connections are translated at a time. Older ones are forgotten, as by conntrack.
const MAX_TRANSLATIONS: usize = 1 << 17;

/// A connection: protocol, inner endpoint and outer endpoint.
type NatKey = (u8, SocketAddr, SocketAddr);

/// The simulated NAT gateway.
#[derive(Debug, Default)]
pub struct SimulatedNat {
    external: Option<IpAddr>,
    inside: Vec<IpNetwork>,
    /// The external port of the inner end of each connection.
    ports: HashMap<NatKey, u16>,
    /// The inner endpoint of each connection, by protocol, external port and outer endpoint.
    used_ports: HashMap<(u8, u16, SocketAddr), SocketAddr>,
    /// The connections in `ports`, the oldest first.
    order: VecDeque<NatKey>,
    /// The arrival of each pinhole, by the initiator outside and the target inside.
    pinholes: HashMap<(IpAddr, SocketAddr), SocketAddr>,
}

impl SimulatedNat {
    /// A gateway that translates hosts in `inside` to `external`.
    pub fn new(external: Option<IpAddr>, inside: Vec<IpNetwork>) -> Self {
        Self { external, inside, ..Self::default() }
    }

    /// Whether `address` is inside.
    pub fn is_inside(&self, address: IpAddr) -> bool {
        self.external.is_some_and(|external| external.is_ipv4() == address.is_ipv4())
            && self.inside.iter().any(|network| network.contains(address))
    }

    /// Whether packets between `a` and `b` cross the gateway and are translated.
    pub fn translates_between(&self, a: IpAddr, b: IpAddr) -> bool {
        self.is_inside(a) != self.is_inside(b)
    }

    /// The endpoint that `peer` sees instead of `end` in a connection of `protocol`.
    pub fn seen_endpoint(&mut self, protocol: u8, end: SocketAddr, peer: SocketAddr) -> SocketAddr {
        match self.external {
            Some(external) if self.is_inside(end.ip()) && !self.is_inside(peer.ip()) => {
                SocketAddr::new(external, self.external_port(protocol, end, peer))
            }
            _ => end,
        }
    }

    fn external_port(&mut self, protocol: u8, inside: SocketAddr, outside: SocketAddr) -> u16 {
        if inside.port() == 0 {
            return 0; // the ports were not captured
        }
        if let Some(port) = self.ports.get(&(protocol, inside, outside)) {
            return *port;
        }
        let dialled = self.pinholes.get(&(outside.ip(), inside)).map(|arrival| arrival.port());
        let own = dialled.unwrap_or(inside.port());
        // If two hosts inside use the same port, NAT uses the next free port.
        let port = (0..u16::MAX)
            .map(|step| own.wrapping_add(step))
            .find(|port| *port != 0 && !self.used_ports.contains_key(&(protocol, *port, outside)))
            .unwrap_or(own);
        if self.order.len() >= MAX_TRANSLATIONS {
            self.forget_oldest();
        }
        self.used_ports.insert((protocol, port, outside), inside);
        self.ports.insert((protocol, inside, outside), port);
        self.order.push_back((protocol, inside, outside));
        port
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.order.pop_front() else { return };
        let (protocol, inside, outside) = oldest;
        if let Some(port) = self.ports.remove(&oldest)
            && self.used_ports.get(&(protocol, port, outside)) == Some(&inside)
        {
            self.used_ports.remove(&(protocol, port, outside));
        }
    }
}

impl Kernel for SimulatedNat {
    fn lookup_translation(
        &mut self,
        a: SocketAddr,
        b: SocketAddr,
    ) -> Result<Option<Translation>, KernelError> {
        Ok(Some(Translation {
            client_external: self.seen_endpoint(super::datagram::TCP, a, b),
            server_external: self.seen_endpoint(super::datagram::TCP, b, a),
            ..Translation::identity(a, b)
        }))
    }

    fn open(&mut self, opening: &Opening, closings: &[Closing]) -> Result<(), KernelError> {
        self.close(closings)?;
        let PinholeEnds { initiator, target, arrival, .. } = opening.ends;
        self.pinholes.insert((initiator, target), arrival);
        Ok(())
    }

    fn close(&mut self, closings: &[Closing]) -> Result<(), KernelError> {
        for PinholeEnds { initiator, target, .. } in closings.iter().filter_map(Closing::ends) {
            self.pinholes.remove(&(initiator, target));
        }
        Ok(())
    }

    fn set_queue_mode(&mut self, _: &Translation, _: QueueMode) -> Result<(), KernelError> {
        Ok(()) // replay passes every packet to the engine
    }

    fn inject(&mut self, _: &[u8], _: IpAddr, _: u32) -> Result<(), KernelError> {
        Ok(()) // the capture has the acknowledgements already
    }
}

#[cfg(test)]
mod tests {
    use ftp_alg_core::ftp::AnnouncementKind;

    use std::time::Duration;

    use super::*;

    fn nat() -> SimulatedNat {
        SimulatedNat::new(Some([198, 51, 100, 1].into()), vec!["10.0.0.0/8".parse().unwrap()])
    }

    fn end(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn inner_host_has_its_own_port_if_it_is_free() {
        let mut nat = nat();
        let server = end("203.0.113.9:21");
        let ends = [("10.0.0.1:4000", "198.51.100.1:4000"), ("10.0.0.2:4000", "198.51.100.1:4001")];
        for (inside, seen) in ends.repeat(2) {
            assert_eq!(nat.seen_endpoint(6, end(inside), server), end(seen));
        }
        assert_eq!(nat.seen_endpoint(6, server, end("10.0.0.1:4000")), server);
    }

    #[test]
    fn oldest_translations_are_forgotten() {
        let mut nat = nat();
        for host in 0..MAX_TRANSLATIONS as u32 + 10 {
            let inside = SocketAddr::from((std::net::Ipv4Addr::from_bits(10 << 24 | host), 4000));
            let server = SocketAddr::from((std::net::Ipv4Addr::from_bits(90 << 24 | host), 21));
            nat.seen_endpoint(6, inside, server);
        }
        let sizes = [nat.ports.len(), nat.used_ports.len(), nat.order.len()];
        assert_eq!(sizes, [MAX_TRANSLATIONS; 3]);
        assert!(!nat.ports.contains_key(&(6, end("10.0.0.9:4000"), end("90.0.0.9:21"))));
        assert!(nat.ports.contains_key(&(6, end("10.0.0.10:4000"), end("90.0.0.10:21"))));
    }

    #[test]
    fn other_ip_versions_and_inner_connections_are_not_translated() {
        let mut nat = nat();
        let (a, b) = (end("10.0.0.1:4000"), end("10.0.0.2:21"));
        assert_eq!(nat.seen_endpoint(6, a, b), a);
        assert!(
            !nat.translates_between(a.ip(), b.ip()) && !nat.is_inside("fd00::1".parse().unwrap())
        );
        assert_eq!(SimulatedNat::default().seen_endpoint(6, a, b), a);
    }

    #[test]
    fn pinhole_target_has_the_announced_endpoint() {
        let mut nat = nat();
        let pinhole = PinholeEnds {
            initiator: [203, 0, 113, 9].into(),
            arrival: end("198.51.100.1:50000"),
            target: end("10.0.0.1:3762"),
            source: [203, 0, 113, 9].into(),
        };
        let opening = Opening {
            ends: pinhole,
            control: Translation::identity(end("10.0.0.1:4000"), end("203.0.113.9:21")),
            kind: AnnouncementKind::Port,
            lifetime: Duration::ZERO,
        };
        nat.open(&opening, &[]).unwrap();
        let initiator = end("203.0.113.9:20");
        assert_eq!(nat.seen_endpoint(6, pinhole.target, initiator), pinhole.arrival);
    }
}
