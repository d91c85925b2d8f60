//! Ports of this machine's addresses that are in use: the operator's rules translate them, or a local program has bound
//! them. A translated data connection must not arrive at such a port. Otherwise its initiator would reach the pinhole's
//! target instead of that service.

use std::{
    io,
    net::{SocketAddr, SocketAddrV6},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use ftp_alg_firewall::PortClaim;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, socket_with},
};

/// The known ports; clones share them.
#[derive(Clone, Debug, Default)]
pub struct ClaimedPorts {
    claims: Arc<RwLock<Vec<PortClaim>>>,
    /// Whether the log says that ports are not looked at, for lack of a descriptor.
    lacks_descriptors: Arc<AtomicBool>,
}

impl ClaimedPorts {
    /// Whether a rule or a program other than a pinhole to `target` handles a connection to `arrival`.
    pub(super) fn is_claimed(&self, arrival: SocketAddr, target: SocketAddr) -> io::Result<bool> {
        let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
        if claims.iter().any(|claim| claim.diverts(arrival, target)) {
            return Ok(true);
        }
        drop(claims);
        match is_bound(arrival) {
            // As the kernel's own helper, which never looks.
            Err(error @ (Errno::MFILE | Errno::NFILE)) => {
                if !self.lacks_descriptors.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "cannot look whether a program here has bound {arrival}: {error}; until \
                         descriptors are free, pinholes are opened without this look"
                    );
                }
                Ok(false)
            }
            outcome => Ok(outcome?),
        }
    }

    /// Whether the operator's rules translate this port of any address.
    pub(super) fn is_translated(&self, port: u16) -> bool {
        let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
        claims.iter().any(|claim| claim.has_port(port))
    }

    /// Sets the ports that the operator's rules translate.
    pub(super) fn set(&self, claims: Vec<PortClaim>) {
        *self.claims.write().unwrap_or_else(PoisonError::into_inner) = claims;
    }
}

/// Whether a program on this machine has bound `address`, according to an attempt to bind it.
fn is_bound(address: SocketAddr) -> Result<bool, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let bound = match address {
        SocketAddr::V4(address) => bind(&socket, &address),
        SocketAddr::V6(address) => {
            bind(&socket, &SocketAddrV6::new(*address.ip(), address.port(), 0, 0))
        }
    };
    match bound {
        // The address is not local, so nothing here listens on it.
        Ok(()) | Err(Errno::ADDRNOTAVAIL) => Ok(false),
        // Ports below ip_unprivileged_port_start are reserved for services.
        Err(Errno::ADDRINUSE | Errno::ACCESS) => Ok(true),
        Err(error) => Err(error),
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
        // Not a local address.
        assert!(!is_bound(SocketAddr::new("192.0.2.1".parse().unwrap(), port)).unwrap());
    }
}
