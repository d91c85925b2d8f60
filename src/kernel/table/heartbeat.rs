//! The heartbeat: an element with a deadline in our table, without which the rules bypass the queue.
//!
//! While the element exists, the kernel drops packets for a queue that has no reader, and TCP retransmits them. After
//! the deadline, packets of unadjusted connections bypass the queue, even if a hanging daemon still has it open. Knows
//! nothing of workers' progress.
//!
//! The element is deleted and added in one transaction, because kernels before Linux 6.12 cannot change an element's
//! deadline. Each generation is complete, so every packet finds the element. If it existed before it is deleted, no
//! packet has bypassed the queue since the last renewal.

use std::{ffi::CStr, io, time::Duration};

use super::commits::Commits;
use crate::kernel::{
    NetfilterError,
    netlink::{
        Socket,
        nft::{Batch, Element},
        or_absent,
    },
};

const SET: &CStr = c"heartbeat";
/// The set holds protocol numbers, because its rule looks up a packet's protocol.
const KEY: &[u8] = &[libc::IPPROTO_TCP as u8];

/// Time without renewal after which the rules bypass the queue. The rules contain it as well, for a newly loaded table.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(5);

/// Renews the heartbeat.
#[derive(Debug)]
pub struct Heartbeat {
    socket: Socket,
    batch: Batch,
    commits: Commits,
}

impl Heartbeat {
    /// Opens a netlink socket; the table need not exist yet. Counts each transaction in `commits`.
    pub fn new(commits: &Commits) -> Result<Self, NetfilterError> {
        let socket = Commits::open_socket().map_err(failed)?;
        Ok(Self { socket, batch: Batch::new(), commits: commits.clone() })
    }

    /// Sets the deadline to `remaining` from now, if the element still exists. If not, packets have bypassed the queue, and
    /// the heartbeat must [begin again](Self::start). Returns whether it existed.
    pub fn renew(&mut self, remaining: Duration) -> Result<bool, NetfilterError> {
        self.batch.clear();
        let deleted = self.batch.delete_element(SET, KEY);
        self.batch.add_element(&element(remaining));
        let outcome = self.commits.send(&mut self.batch, &mut self.socket).map_err(failed)?;
        if outcome.failed_with(deleted, libc::ENOENT) {
            return Ok(false);
        }
        outcome.result().map(|()| true).map_err(failed)
    }

    /// Sets the deadline to `remaining` from now, whether the element exists or not. Without our table nothing happens.
    pub fn start(&mut self, remaining: Duration) -> Result<(), NetfilterError> {
        self.batch.clear();
        self.batch.clear_element(&element(remaining));
        self.batch.add_element(&element(remaining));
        let outcome = self.commits.send(&mut self.batch, &mut self.socket).map_err(failed)?;
        or_absent(outcome.result()).map(drop).map_err(failed)
    }
}

fn element(remaining: Duration) -> Element<'static> {
    Element { set: SET, key: KEY, data: None, timeout: Some(remaining) }
}

fn failed(error: io::Error) -> NetfilterError {
    NetfilterError::system("heartbeat in table inet ftp_alg", error)
}
