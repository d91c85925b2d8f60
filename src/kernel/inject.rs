//! Sends IP packets from this machine. Their packet mark makes our rules exclude them from conntrack and from the
//! queue. Reads nothing of a packet but its destination.
//!
//! The kernel routes such a packet by its destination, a source address, and its packet mark when it is sent. Rules of
//! policy routing that compare the interface where packets arrive, or ports, do not apply to it.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
};

use ftp_alg_core::engine::KernelError;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};

use super::{NetfilterError, RuleParameters};

/// Raw sockets for both families.
#[derive(Debug)]
pub struct Injector {
    v4: RawSocket,
    /// `None` if IPv6 is disabled.
    v6: Option<RawSocket>,
    /// The bits by which our rules know the packets.
    mask: u32,
}

/// A socket with the packet mark of its next packet.
#[derive(Debug)]
struct RawSocket {
    socket: Socket,
    mark: u32,
}

impl Injector {
    /// Opens the sockets.
    pub fn new(parameters: &RuleParameters) -> Result<Self, NetfilterError> {
        let mark = parameters.mask();
        let open = |domain| -> io::Result<RawSocket> {
            // IPPROTO_RAW: the sender writes the IP header, in both families.
            let raw = Protocol::from(libc::IPPROTO_RAW);
            let socket = Socket::new(domain, Type::RAW, Some(raw))?;
            socket.set_mark(mark)?;
            socket.set_nonblocking(true)?;
            if domain == Domain::IPV6 {
                // The source address is as a rule one of another machine. For IPv4 the header is enough
                // (inet_sk_flowi_flags()).
                socket.set_freebind_v6(true)?;
            }
            Ok(RawSocket { socket, mark })
        };
        let v4 = open(Domain::IPV4).map_err(|e| NetfilterError::system("raw IPv4 socket", e))?;
        let v6 = match open(Domain::IPV6) {
            Ok(socket) => Some(socket),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(NetfilterError::system("raw IPv6 socket", error)),
        };
        Ok(Self { v4, v6, mask: mark })
    }

    /// Sends `packet`, which starts with its IP header, by the route of packets with the source address `source` and
    /// the operator's bits `ct_mark` in the packet mark. Our rules take these bits away after the routing decision.
    pub fn inject(
        &mut self,
        packet: &[u8],
        source: IpAddr,
        ct_mark: u32,
    ) -> Result<(), KernelError> {
        let mark = self.mask | ct_mark;
        let sent = match destination(packet) {
            Some(address @ IpAddr::V4(_)) => Some((Some(&mut self.v4), address)),
            Some(address @ IpAddr::V6(_)) => Some((self.v6.as_mut(), address)),
            None => None,
        };
        let invalid = |text| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        let result = match sent {
            Some((Some(socket), address)) => socket.send(packet, address, source, mark),
            Some((None, _)) => invalid("this machine has no IPv6"),
            None => invalid("neither IPv4 nor IPv6"),
        };
        result.map_err(|source| KernelError::System {
            what: format!("send a packet of {} bytes", packet.len()),
            source,
        })
    }
}

impl RawSocket {
    fn send(&mut self, packet: &[u8], to: IpAddr, source: IpAddr, mark: u32) -> io::Result<()> {
        if mark != self.mark {
            self.socket.set_mark(mark)?;
            self.mark = mark;
        }
        // The port must be 0: rawv6_sendmsg() takes it as a protocol number.
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        // The kernel finds the route of a packet with this source address (ip(7), ipv6(7)).
        let (v4, v6);
        let info = match source {
            IpAddr::V4(source) => {
                let [source, any] = [source, Ipv4Addr::UNSPECIFIED]
                    .map(|address| libc::in_addr { s_addr: address.to_bits().to_be() });
                v4 = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: any };
                ControlMessage::Ipv4PacketInfo(&v4)
            }
            IpAddr::V6(source) => {
                let source = libc::in6_addr { s6_addr: source.octets() };
                v6 = libc::in6_pktinfo { ipi6_addr: source, ipi6_ifindex: 0 };
                ControlMessage::Ipv6PacketInfo(&v6)
            }
        };
        let (fd, buffers) = (self.socket.as_raw_fd(), [IoSlice::new(packet)]);
        match sendmsg(fd, &buffers, &[info], MsgFlags::empty(), Some(&to))? {
            sent if sent == packet.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(Ipv4Addr::from(*packet.get(16..20)?.first_chunk::<4>()?).into()),
        6 => Some(Ipv6Addr::from(*packet.get(24..40)?.first_chunk::<16>()?).into()),
        _ => None,
    }
}
