//! Ports of this machine's addresses that are in use: the operator's rules translate them, or a local program has bound
//! them. A translated data connection must not arrive at such a port. Otherwise its initiator would reach the pinhole's
//! target instead of that service.

use std::{
    net::SocketAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use ftp_alg_core::engine::KernelError;
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
    /// [`KernelError::Taken`] if a rule or a program other than a pinhole to `target` handles a connection to `arrival`.
    /// A port that cannot be bound is a program's. Where nothing is translated, nothing is checked.
    pub(super) fn check_free(
        &self,
        arrival: SocketAddr,
        target: SocketAddr,
    ) -> Result<(), KernelError> {
        if arrival == target {
            return Ok(());
        }
        let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
        if claims.iter().any(|claim| claim.diverts(arrival, target)) {
            return Err(KernelError::Taken);
        }
        drop(claims);
        let failed = |error: Errno| KernelError::System {
            what: format!("look whether {arrival} is free"),
            source: error.into(),
        };
        let family = if arrival.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = match socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None) {
            // As the kernel's own helper, which never looks.
            Err(error @ (Errno::MFILE | Errno::NFILE)) => {
                if !self.lacks_descriptors.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "cannot look whether a program here has bound {arrival}: {error}; until \
                         descriptors are free, pinholes are opened without this look"
                    );
                }
                return Ok(());
            }
            opened => opened.map_err(failed)?,
        };
        match bind(&socket, &SocketAddr::new(arrival.ip(), arrival.port())) {
            // The address is not local, so nothing here listens on it.
            Ok(()) | Err(Errno::ADDRNOTAVAIL) => Ok(()),
            // Ports below ip_unprivileged_port_start are reserved for services.
            Err(Errno::ADDRINUSE | Errno::ACCESS) => Err(KernelError::Taken),
            Err(error) => Err(failed(error)),
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn is_taken(arrival: SocketAddr) -> bool {
        match ClaimedPorts::default().check_free(arrival, "[::]:0".parse().unwrap()) {
            Err(KernelError::Taken) => true,
            outcome => {
                outcome.unwrap();
                false
            }
        }
    }

    #[test]
    fn a_port_that_a_program_has_bound_is_taken() {
        for (address, other) in [("127.0.0.1:0", "127.0.0.2"), ("[::1]:0", "::2")] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let bound = listener.local_addr().unwrap();
            assert!(is_taken(bound));
            assert!(!is_taken(SocketAddr::new(other.parse().unwrap(), bound.port())));
            drop(listener);
            assert!(!is_taken(bound));
        }
    }

    #[test]
    fn a_port_that_a_program_has_bound_for_all_addresses_is_taken() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(is_taken(SocketAddr::new("127.0.0.1".parse().unwrap(), port)));
        // Not a local address.
        assert!(!is_taken(SocketAddr::new("192.0.2.1".parse().unwrap(), port)));
    }
}
