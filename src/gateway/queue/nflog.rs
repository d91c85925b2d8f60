//! Copies of packets that the rules let pass, in their order: an NFLOG group (nfnetlink_log).
//!
//! A copy is in the socket's buffer before its packet goes on (`nfulnl_log_packet`, with a threshold of one), so
//! whoever reads all copies before deciding about a packet that was queued later knows what passed before it.

use std::{io, ops::Range, os::fd::AsRawFd, time::Duration};

use super::receive::{Receiver, offset_in};
use crate::gateway::{
    GatewayError,
    netlink::{Messages, Socket, Start, Writer},
};

const SUBSYSTEM: u8 = libc::NFNL_SUBSYS_ULOG as u8;
const PACKET: u16 = (libc::NFNL_SUBSYS_ULOG as u16) << 8 | libc::NFULNL_MSG_PACKET as u16;

/// How often copies must be read: the rules let pass no more in this time than the buffer takes, and
/// queue the rest.
pub const READ_EVERY: Duration = Duration::from_millis(50);
/// A copy takes about a kilobyte of it; memory is used for what waits only.
const SOCKET_BUFFER: i32 = 64 << 20;
/// The largest copy with its attributes: what passes is a packet of at most 256 bytes. Slots begin at different
/// places of the processor's cache.
const SLOT: usize = (1 << 10) + 320;

/// A group of which this is the only reader.
#[derive(Debug)]
pub struct Copies {
    socket: Socket,
    group: u16,
    receiver: Receiver,
    found: Vec<Range<usize>>,
    lost: bool,
}

impl Copies {
    /// Becomes the reader of `group`.
    pub fn open(group: u16) -> Result<Self, GatewayError> {
        let failed = |error: io::Error| match error.raw_os_error() {
            // nfnetlink_rcv_msg() knows no such subsystem.
            Some(libc::EINVAL | libc::EOPNOTSUPP) => GatewayError::FeatureMissing {
                what: format!("log group {group}"),
                feature: "nfnetlink_log",
                remedy: "load it with `modprobe nfnetlink_log`",
            },
            _ => GatewayError::system(format!("log group {group}"), error),
        };
        let mut socket = Socket::open().map_err(failed)?;
        let start = Start {
            subsystem: SUBSYSTEM,
            command: libc::NFULNL_MSG_CONFIG as u8,
            flags: libc::NLM_F_ACK as u16,
            sequence: 0,
            family: libc::AF_UNSPEC as u8,
            resource: group,
        };
        let mut buffer = Vec::new();
        let bind = |message: &mut Writer<'_>| {
            message.put(libc::NFULA_CFG_CMD as u16, &[libc::NFULNL_CFG_CMD_BIND as u8]);
        };
        socket.request(&mut buffer, start, bind, |_| {}).map_err(failed)?;
        let configure = |message: &mut Writer<'_>| {
            // struct nfulnl_msg_config_mode: copy range (big-endian), mode, padding.
            let mut mode = [0; 6];
            if let Some((range, rest)) = mode.split_first_chunk_mut() {
                *range = (SLOT as u32).to_be_bytes();
                rest.copy_from_slice(&[libc::NFULNL_COPY_PACKET as u8, 0]);
            }
            message
                .put(libc::NFULA_CFG_MODE as u16, &mode)
                .put(libc::NFULA_CFG_QTHRESH as u16, &1_u32.to_be_bytes())
                .put(libc::NFULA_CFG_NLBUFSIZ as u16, &(SLOT as u32).to_be_bytes());
        };
        socket.request(&mut buffer, start, configure, |_| {}).map_err(failed)?;
        socket.set_buffer(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, SOCKET_BUFFER);
        // The kernel gives twice as much as is asked for.
        let room = socket.option(libc::SOL_SOCKET, libc::SO_RCVBUF).map_err(failed)?;
        if room < SOCKET_BUFFER {
            return Err(GatewayError::System {
                what: format!("log group {group}"),
                source: io::Error::other(format!(
                    "its receive buffer may have {room} bytes, and needs {SOCKET_BUFFER}: set \
                     net.core.rmem_max to that"
                )),
            });
        }
        let (receiver, found) = (Receiver::new(SLOT), Vec::new());
        Ok(Self { socket, group, receiver, found, lost: false })
    }

    /// Reads what has come, up to a batch, without blocking. Returns whether it is worth another call.
    pub fn receive(&mut self) -> Result<bool, GatewayError> {
        self.found.clear();
        let datagrams = match self.receiver.receive(self.socket.as_raw_fd(), libc::MSG_DONTWAIT) {
            Ok(datagrams) => datagrams,
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(false),
                Some(libc::EINTR) => return Ok(true),
                Some(libc::ENOBUFS) => {
                    self.lost = true;
                    return Ok(true);
                }
                _ => {
                    let what = format!("reading log group {}", self.group);
                    return Err(GatewayError::system(what, error));
                }
            },
        };
        for slot in 0..datagrams {
            let Some((start, datagram)) = self.receiver.datagram(slot) else { continue };
            let mut messages = Messages::new(datagram);
            for message in (&mut messages).filter(|message| message.kind == PACKET) {
                match message.attributes().first(libc::NFULA_PAYLOAD as u16) {
                    Some(payload) => {
                        let start = start + offset_in(datagram, payload);
                        self.found.push(start..start + payload.len());
                    }
                    None => self.lost = true,
                }
            }
            self.lost |= messages.malformed();
        }
        Ok(datagrams == self.receiver.batch())
    }

    /// The packets last read, from their IP headers on.
    pub fn packets(&self) -> impl Iterator<Item = &[u8]> {
        self.found.iter().filter_map(|range| self.receiver.bytes(range.clone()))
    }

    /// Whether copies were lost since this was last asked, as the buffer was full.
    pub fn were_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }
}
