//! Sends IP packets from this machine. Their packet mark makes our rules exclude them from conntrack and from the
//! queue. Reads nothing of a packet but its destination.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ftp_alg_core::engine::KernelError;
use socket2::{Domain, Protocol, Socket, Type};

use super::{GatewayError, RuleParameters};

/// Raw sockets for both families.
#[derive(Debug)]
pub struct Injector {
    v4: Socket,
    /// `None` if IPv6 is disabled.
    v6: Option<Socket>,
}

impl Injector {
    /// Opens the sockets.
    pub fn new(parameters: &RuleParameters) -> Result<Self, GatewayError> {
        let open = |domain| -> io::Result<Socket> {
            // IPPROTO_RAW: the sender writes the IP header, in both families.
            let raw = Protocol::from(libc::IPPROTO_RAW);
            let socket = Socket::new(domain, Type::RAW, Some(raw))?;
            socket.set_mark(parameters.mask())?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let v4 = open(Domain::IPV4).map_err(|e| GatewayError::system("raw IPv4 socket", e))?;
        let v6 = match open(Domain::IPV6) {
            Ok(socket) => Some(socket),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(GatewayError::system("raw IPv6 socket", error)),
        };
        Ok(Self { v4, v6 })
    }

    /// Sends `packet`, which starts with its IP header.
    pub fn inject(&self, packet: &[u8]) -> Result<(), KernelError> {
        let sent = match destination(packet) {
            Some(address @ IpAddr::V4(_)) => Some((Some(&self.v4), address)),
            Some(address @ IpAddr::V6(_)) => Some((self.v6.as_ref(), address)),
            None => None,
        };
        let invalid = |text| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        let result = match sent {
            // The port must be 0: rawv6_sendmsg() takes it as a protocol number.
            Some((Some(socket), address)) => socket
                .send_to(packet, &SocketAddr::new(address, 0).into())
                .and_then(|sent| match sent {
                    _ if sent == packet.len() => Ok(()),
                    _ => Err(io::ErrorKind::WriteZero.into()),
                }),
            Some((None, _)) => invalid("this machine has no IPv6"),
            None => invalid("neither IPv4 nor IPv6"),
        };
        result.map_err(|source| KernelError::System {
            what: format!("send a packet of {} bytes", packet.len()),
            source,
        })
    }
}

fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(Ipv4Addr::from(*packet.get(16..20)?.first_chunk::<4>()?).into()),
        6 => Some(Ipv6Addr::from(*packet.get(24..40)?.first_chunk::<16>()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destination_is_read_and_nonsense_is_not() {
        let mut packet = [0; 40];
        packet[0] = 0x45;
        packet[16..20].copy_from_slice(&[10, 0, 0, 1]);
        assert_eq!(destination(&packet), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(destination(&packet[..19]), None);
        packet[0] = 0x60;
        packet[39] = 1;
        let v6 = destination(&packet).unwrap();
        assert!(v6.is_ipv6());
        packet[0] = 0;
        assert_eq!(destination(&packet), None);
        assert_eq!(destination(&[]), None);
    }
}
