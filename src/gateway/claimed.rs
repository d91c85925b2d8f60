//! Ports of this machine's addresses that something else uses: the operator's rules translate them, or a program
//! here has bound them. A translated data connection must not arrive at such a port, as its initiator would
//! then reach the other end of the pinhole where it wants the service.

use std::{
    io,
    net::{SocketAddr, SocketAddrV6},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, socket_with},
};

use super::{
    Commits, GatewayError,
    firewall::{Claims, Firewall, Ip, uses_legacy},
    netlink::Socket,
};

/// Between two readings of the rules, however often they change.
const AT_MOST_EVERY: Duration = Duration::from_secs(2);
/// Rules of iptables-legacy change without a sign.
const LEGACY_EVERY: Duration = Duration::from_secs(60);

/// What is known of such ports; all copies know the same.
#[derive(Clone, Debug, Default)]
pub struct ClaimedPorts {
    claims: Arc<RwLock<Claims>>,
}

impl ClaimedPorts {
    /// Whether something else than a pinhole to `target` decides what becomes of a connection to `arrival`.
    pub(super) fn is_claimed(&self, arrival: SocketAddr, target: SocketAddr) -> io::Result<bool> {
        let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
        if claims.claim(arrival, target) {
            return Ok(true);
        }
        drop(claims);
        is_bound(arrival)
    }
}

/// Whether a program of this machine has bound `address`, as the kernel says when one tries.
fn is_bound(address: SocketAddr) -> io::Result<bool> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let bound = match address {
        SocketAddr::V4(address) => bind(&socket, &address),
        SocketAddr::V6(address) => {
            bind(&socket, &SocketAddrV6::new(*address.ip(), address.port(), 0, 0))
        }
    };
    match bound {
        // Where the address is not this machine's, nothing here listens on it.
        Ok(()) | Err(Errno::ADDRNOTAVAIL) => Ok(false),
        // The ports below ip_unprivileged_port_start are for services.
        Err(Errno::ADDRINUSE | Errno::ACCESS) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Reads the operator's rules again when they have changed.
#[derive(Debug)]
pub struct ClaimsReader {
    ports: ClaimedPorts,
    commits: Commits,
    socket: Socket,
    /// The transactions of others at the last reading, and when that was.
    read: Option<(Option<u32>, Instant)>,
    noted: Vec<String>,
}

impl ClaimsReader {
    /// A reader for `ports`; the transactions counted in `commits` are no reason to read.
    pub fn new(ports: &ClaimedPorts, commits: &Commits) -> Result<Self, GatewayError> {
        let socket = Socket::open().map_err(|e| GatewayError::system("netlink socket", e))?;
        let (ports, commits) = (ports.clone(), commits.clone());
        Ok(Self { ports, commits, socket, read: None, noted: Vec::new() })
    }

    /// Reads the rules if they may be others than before, which may take a while; gives them then.
    pub fn look(&mut self) -> Option<Firewall> {
        let others = self.commits.of_others(&mut self.socket).ok().flatten();
        let now = Instant::now();
        if let Some((before, at)) = self.read {
            let age = now.saturating_duration_since(at);
            let is_same = others.is_none() || others == before;
            let legacy = || Ip::BOTH.into_iter().any(|ip| uses_legacy(ip).unwrap_or(false));
            if age < AT_MOST_EVERY || is_same && (age < LEGACY_EVERY || !legacy()) {
                return None;
            }
        }
        self.read = Some((others, now));
        let firewall = Firewall::read_without_texts();
        let claims = firewall.claims();
        let mut notes = Vec::new();
        notes.extend(firewall.unread().iter().map(|what| {
            format!("published ports are not all known, and a data connection may take one: {what}")
        }));
        notes.extend(claims.unlimited().iter().map(|rule| {
            format!("a data connection may take any port that this rule translates: {rule}")
        }));
        if notes != self.noted {
            notes.iter().for_each(|note| tracing::info!("{note}"));
            self.noted = notes;
        }
        *self.ports.claims.write().unwrap_or_else(PoisonError::into_inner) = claims;
        Some(firewall)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_port_that_a_program_has_bound_is_taken() {
        for (address, other) in [("127.0.0.1:0", "127.0.0.2"), ("[::1]:0", "::2")] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let bound = listener.local_addr().unwrap();
            assert!(is_bound(bound).unwrap());
            assert!(!is_bound(SocketAddr::new(other.parse().unwrap(), bound.port())).unwrap());
            drop(listener);
            assert!(!is_bound(bound).unwrap());
        }
    }

    #[test]
    fn a_port_that_a_program_has_bound_for_all_addresses_is_taken() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(is_bound(SocketAddr::new("127.0.0.1".parse().unwrap(), port)).unwrap());
        // Not this machine's.
        assert!(!is_bound(SocketAddr::new("192.0.2.1".parse().unwrap(), port)).unwrap());
    }
}
