//! Detects whether others have changed nf_tables since the last look.
//!
//! The kernel counts the transactions of a network namespace (its generation), including ours; each pinhole is one. We
//! count ours, so the difference is the number of others' transactions, plus a constant. Knows nothing of what a
//! transaction changes.
//!
//! The kernel also sends notices to those who subscribe. It then builds one for each pinhole as well; those are filtered
//! before they wake anyone. So only a daemon that needs notices subscribes. A change that no notice shows, because it
//! follows elements in its transaction or was lost, is found at the next check.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

use ftp_alg_core::policy::PassivePorts;
use rustix::{
    io::{Errno, retry_on_intr},
    net::{RecvFlags, recv},
};
use socket2::{SockFilter, SockRef};

use super::compiled::{self, Abilities};
use crate::kernel::{
    NetfilterError,
    netlink::{
        Socket, kind_of,
        nft::{self, Batch, BatchOutcome},
    },
    parameters::QueueStatement,
};

/// The group of all notices.
const GROUP: i32 = libc::NFNLGRP_NFTABLES;
/// Notices of elements, and of the generation.
const IGNORED: [i32; 3] =
    [libc::NFT_MSG_NEWSETELEM, libc::NFT_MSG_DELSETELEM, libc::NFT_MSG_NEWGEN];
/// Offset of the message type: `nlmsg_type` of `struct nlmsghdr`.
const TYPE_OFFSET: u32 = 4;
/// Buffer for notices that arrive during a check; an overflow counts as a notice.
const BUFFER: usize = 1 << 16;

/// A set of passive ports, and an address in it.
pub(super) type PortsKey = (&'static CStr, IpAddr);
/// The passive ports there, each with the client and the dialled address of those open ranges that need them.
pub(super) type PortsByKey = BTreeMap<PortsKey, Vec<(PassivePorts, BTreeSet<(IpAddr, IpAddr)>)>>;

/// The passive ports in our table.
#[derive(Debug, Default)]
pub(super) struct WrittenPorts {
    /// The ports, at the servers' own addresses and at the addresses that clients dial.
    pub of: PortsByKey,
    /// How many open ranges need the ports, in each set.
    pub open: usize,
    /// Whether the table has no other passive ports.
    pub is_known: bool,
}

/// The transactions of this process in one network namespace. All users share it.
#[derive(Clone, Debug, Default)]
pub struct Commits {
    counts: Arc<CommitCounts>,
    /// The socket for all transactions, if it is to own our table.
    shared_socket: Option<Arc<Mutex<Socket>>>,
    /// Whether the kernel is known to support no `queue` statements.
    lacks_queue: bool,
    /// The passive ports in our table.
    written_ports: Arc<Mutex<WrittenPorts>>,
}

/// The counts wrap, as the generation does.
#[derive(Debug, Default)]
struct CommitCounts {
    started: AtomicU32,
    changed: AtomicU32,
    ended: AtomicU32,
}

impl Commits {
    /// Uses one socket for all transactions, so that it can own our table; the kernel runs one transaction at a time
    /// anyway. If the kernel does not support table owners, each thread has its own socket, as in [`Commits::default`].
    pub fn through_one_socket() -> Result<Self, NetfilterError> {
        let failed = |error| NetfilterError::system("netlink socket", error);
        let mut socket = Self::open_socket().map_err(failed)?;
        let Abilities { owners, queue } = compiled::probe(&mut socket).map_err(failed)?;
        let writer = owners.then(|| Arc::new(Mutex::new(socket)));
        Ok(Self { shared_socket: writer, lacks_queue: !queue, ..Self::default() })
    }

    /// Opens a socket for transactions.
    pub(in crate::kernel) fn open_socket() -> io::Result<Socket> {
        let socket = Socket::open()?;
        compiled::configure_socket(&socket);
        Ok(socket)
    }

    /// The passive ports in our table.
    pub(super) fn written_ports(&self) -> Arc<Mutex<WrittenPorts>> {
        Arc::clone(&self.written_ports)
    }

    /// Whether there is a socket that can own our table.
    pub(super) fn can_own(&self) -> bool {
        self.shared_socket.is_some()
    }

    /// The ways to queue that are worth trying, best first.
    pub(super) fn queue_statements(&self) -> &'static [QueueStatement] {
        if self.lacks_queue { &[QueueStatement::Xtables] } else { &QueueStatement::BY_PREFERENCE }
    }

    /// Sends a batch that is not counted, with acknowledgement; through `socket` if there is no common one.
    pub(super) fn send_acknowledged(
        &self,
        batch: &mut Batch,
        socket: &mut Socket,
    ) -> io::Result<BatchOutcome> {
        self.with_socket(socket, |socket| batch.send(socket))
    }

    fn with_socket<T>(&self, other: &mut Socket, send: impl FnOnce(&mut Socket) -> T) -> T {
        match &self.shared_socket {
            // A panic leaves no half-sent batch.
            Some(writer) => send(&mut writer.lock().unwrap_or_else(PoisonError::into_inner)),
            None => send(other),
        }
    }

    /// Sends a batch of elements, through `socket` if there is no common one. Unless it is refused, it must change
    /// something, or [report](Batch::report_changes) whether it does.
    pub(in crate::kernel) fn send(
        &self,
        batch: &mut Batch,
        socket: &mut Socket,
    ) -> io::Result<BatchOutcome> {
        self.counts.started.fetch_add(1, SeqCst);
        let outcome = self.with_socket(socket, |socket| batch.send_unacknowledged(socket));
        // If the outcome is unknown, and the kernel did change something, that counts as others' change.
        let changed = outcome.as_ref().is_ok_and(BatchOutcome::changed_something);
        self.counts.changed.fetch_add(u32::from(changed), SeqCst);
        self.counts.ended.fetch_add(1, SeqCst);
        outcome
    }

    /// Number of others' transactions plus a constant; `None` while one of ours is in progress, because the kernel may
    /// or may not have counted it.
    pub(in crate::kernel) fn count_by_others(
        &self,
        socket: &mut Socket,
    ) -> io::Result<Option<u32>> {
        let CommitCounts { started, changed, ended } = &*self.counts;
        // In this order: a transaction that has ended has started.
        let over = ended.load(SeqCst);
        let begun = started.load(SeqCst);
        let generation = nft::generation(socket)?;
        let ours = changed.load(SeqCst);
        let is_certain = over == begun && started.load(SeqCst) == begun;
        Ok(is_certain.then(|| generation.wrapping_sub(ours)))
    }
}

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
    let statement = |code: u32, k| SockFilter::new(code as u16, 0, 0, k);
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, TYPE_OFFSET)];
    let last = IGNORED.len();
    for (index, message) in IGNORED.into_iter().enumerate() {
        // A socket filter reads numbers in network order.
        let kind = kind_of(libc::NFNL_SUBSYS_NFTABLES, message).to_ne_bytes();
        let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        let (jump, k) = ((last - index) as u8, u16::from_be_bytes(kind).into());
        program.push(SockFilter::new(code, jump, 0, k));
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, u32::MAX));
    program.push(statement(libc::BPF_RET | libc::BPF_K, 0));
    SockRef::from(socket).attach_filter(&program)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise no change by others would ever be known again.
    #[test]
    fn a_transaction_that_cannot_be_sent_is_over() {
        let (commits, mut batch) = (Commits::default(), Batch::new());
        let mut socket = Socket::open().unwrap();
        socket.set_option(libc::SOL_SOCKET, libc::SO_SNDBUF, 1).unwrap();
        for _ in 0..1000 {
            batch.delete_element(c"pinholes4", &[0; 12]);
        }
        let error = commits.send(&mut batch, &mut socket).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        let CommitCounts { started, changed, ended } = &*commits.counts;
        assert_eq!([started, changed, ended].map(|count| count.load(SeqCst)), [1, 0, 1]);
    }
}
