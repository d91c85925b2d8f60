//! What the packet path asks of the operator's rules: which ports are in use, and which connections are dropped.
//!
//! A port of this machine's addresses is in use if the rules translate it, or if a local program has bound it. A translated
//! data connection must not arrive at such a port. Otherwise its initiator would reach the pinhole's target instead of
//! that service.

use std::{
    mem,
    net::SocketAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use ftp_alg_core::engine::KernelError;
use ftp_alg_firewall::{Firewall, IpVersion, PortClaim};
use nix::net::if_::if_nameindex;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, socket_with},
};

/// The rules at the last reading; clones share them.
#[derive(Clone, Debug, Default)]
pub struct KnownRules {
    read: Arc<RwLock<Option<Arc<ReadRules>>>>,
    /// Whether the log says that ports are not looked at, for lack of a descriptor.
    lacks_descriptors: Arc<AtomicBool>,
}

/// Rules that were read, and the ports that they translate.
#[derive(Debug)]
struct ReadRules {
    firewall: Firewall,
    claims: Vec<PortClaim>,
}

impl KnownRules {
    /// Returns [`KernelError::Taken`] if a rule or a program other than a pinhole to `target` handles a connection to
    /// `arrival`. A port that cannot be bound belongs to a program. Without a translation nothing is checked.
    pub(super) fn check_free(
        &self,
        arrival: SocketAddr,
        target: SocketAddr,
    ) -> Result<(), KernelError> {
        if arrival == target {
            return Ok(());
        }
        if self.claims_any(|claim| claim.diverts(arrival, target)) {
            return Err(KernelError::Taken);
        }
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
        self.claims_any(|claim| claim.has_port(port))
    }

    /// Whether the rules certainly drop connections to this port of `server` between the interfaces with these indices,
    /// of which 0 is this machine.
    pub(super) fn drop_connection(&self, interfaces: [u32; 2], server: SocketAddr) -> bool {
        let (Some(read), Ok(names)) = (self.read(), if_nameindex()) else { return false };
        let name = |index: u32| match index {
            0 => Some(""),
            _ => names.iter().find(|one| one.index() == index)?.name().to_str().ok(),
        };
        let [Some(from), Some(to)] = interfaces.map(name) else { return false };
        let ip = if server.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
        // Where they translate the port, it is another one in the filter's chains.
        !self.is_translated(server.port())
            && read.firewall.drops_unadmitted(ip, (from, to), server.port())
    }

    /// Sets the rules that were read.
    pub(super) fn set(&self, firewall: &Firewall) {
        let read = Some(Arc::new(ReadRules {
            firewall: firewall.clone(),
            claims: firewall.translated_ports(),
        }));
        let before =
            mem::replace(&mut *self.read.write().unwrap_or_else(PoisonError::into_inner), read);
        drop(before);
    }

    fn claims_any(&self, is_it: impl Fn(&PortClaim) -> bool) -> bool {
        self.read().is_some_and(|read| read.claims.iter().any(is_it))
    }

    /// The rules, without holding the lock while they are used.
    fn read(&self) -> Option<Arc<ReadRules>> {
        self.read.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn is_taken(arrival: SocketAddr) -> bool {
        let checked = KnownRules::default().check_free(arrival, "[::]:0".parse().unwrap());
        assert!(matches!(checked, Ok(()) | Err(KernelError::Taken)), "{checked:?}");
        checked.is_err()
    }

    #[test]
    fn a_port_that_a_program_has_bound_is_taken() {
        for (bound, taken, free) in [
            ("127.0.0.1:0", "127.0.0.1", "127.0.0.2"),
            ("[::1]:0", "::1", "::2"),
            // The free one is no address of this machine.
            ("0.0.0.0:0", "127.0.0.1", "192.0.2.1"),
        ] {
            let Ok(listener) = TcpListener::bind(bound) else { continue };
            let port = listener.local_addr().unwrap().port();
            let [taken, free] = [taken, free].map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
            assert!(is_taken(taken), "{taken}");
            assert!(!is_taken(free), "{free}");
            drop(listener);
            assert!(!is_taken(taken), "{taken}");
        }
    }
}
