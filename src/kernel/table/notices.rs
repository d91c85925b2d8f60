//! Notices of changes to nf_tables.
//!
//! If someone subscribes, the kernel builds a notice for each pinhole as well; those are filtered before they wake
//! anyone. So only a daemon that needs notices subscribes. A change that no notice shows, because it follows elements
//! in its transaction or was lost, is found at the next check.

#![allow(unsafe_code)]

use std::{io, os::fd::AsRawFd as _};

use rustix::{
    io::{Errno, retry_on_intr},
    net::{RecvFlags, recv},
};

use crate::kernel::{NetfilterError, netlink::Socket};

const GROUP: i32 = libc::NFNLGRP_NFTABLES;
/// Notices of elements, and of the generation.
const IGNORED: [i32; 3] =
    [libc::NFT_MSG_NEWSETELEM, libc::NFT_MSG_DELSETELEM, libc::NFT_MSG_NEWGEN];
/// Offset of the message type: `nlmsg_type` of `struct nlmsghdr`.
const TYPE_OFFSET: u32 = 4;
/// Buffer for notices that arrive during a check; an overflow counts as a notice.
const BUFFER: usize = 1 << 16;

/// Notices of changes to nf_tables in the network namespace of the thread that opened it, except changes of set
/// elements.
#[derive(Debug)]
pub struct ChangeNotices {
    socket: Socket,
    buffer: Vec<u8>,
}

impl ChangeNotices {
    /// Subscribes to the notices.
    pub fn open() -> Result<Self, NetfilterError> {
        let failed = |error| NetfilterError::system("notices of nf_tables", error);
        let socket = Socket::open().map_err(failed)?;
        ignore_elements(&socket).map_err(failed)?;
        socket
            .set_option(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, GROUP)
            .map_err(failed)?;
        Ok(Self { socket, buffer: vec![0; BUFFER] })
    }

    /// Waits for a notice, and discards all that have arrived.
    pub fn wait(&mut self) -> io::Result<()> {
        let mut flags = RecvFlags::empty();
        loop {
            match retry_on_intr(|| recv(&self.socket, &mut self.buffer[..], flags)) {
                Err(Errno::WOULDBLOCK) => return Ok(()),
                // Some may be lost.
                Ok(_) | Err(Errno::NOBUFS) => flags = RecvFlags::DONTWAIT,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Filters notices that start with an ignored message.
fn ignore_elements(socket: &Socket) -> io::Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, TYPE_OFFSET)];
    let last = IGNORED.len();
    for (index, message) in IGNORED.into_iter().enumerate() {
        let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | message) as u16;
        // A socket filter reads numbers in network order.
        let k = u32::from(u16::from_be_bytes(kind.to_ne_bytes()));
        let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        program.push(libc::sock_filter { code, jt: (last - index) as u8, jf: 0, k });
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, u32::MAX));
    program.push(statement(libc::BPF_RET | libc::BPF_K, 0));
    let filter =
        libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_mut_ptr() };
    // SAFETY: address and size are those of a live structure, which names live statements; the kernel copies both.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
