//! The sign of life in our table: an element with a deadline, without which the queue is passed by.
//!
//! While the element is there, the kernel drops what is to be queued and has no reader, and TCP sends it again. When
//! the deadline has passed, packets of connections that are not adjusted pass by the queue, although someone who
//! hangs may still have it open. Knows nothing of who makes progress.
//!
//! The element is deleted and added in one transaction, as kernels before Linux 6.12 cannot give an element another
//! deadline. Both generations are whole: no packet ever finds none. That it is there before it is deleted shows that
//! nothing has passed by since it was renewed the last time.

use std::{ffi::CStr, io, time::Duration};

use super::commits::Commits;
use crate::gateway::{
    GatewayError,
    netlink::{
        Socket,
        nft::{Batch, Element},
    },
};

const SET: &CStr = c"heartbeat";
/// The set holds protocol numbers, as its rule looks up a packet's.
const KEY: &[u8] = &[libc::IPPROTO_TCP as u8];

/// How long the daemon may be away before the queue is passed by. Also in the rules, for a table that was just loaded.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(5);

/// Renews the sign of life.
#[derive(Debug)]
pub struct Heartbeat {
    socket: Socket,
    batch: Batch,
    commits: Commits,
}

impl Heartbeat {
    /// Opens a netlink socket; the table need not be there yet. Counts each transaction in `commits`.
    pub fn new(commits: &Commits) -> Result<Self, GatewayError> {
        let socket = Socket::open().map_err(failed)?;
        Ok(Self { socket, batch: Batch::new(), commits: commits.clone() })
    }

    /// From now on the sign of life lasts for `left`, if it is still there. Otherwise packets have passed by, and it
    /// is to be given [anew](Self::begin). Whether it was there.
    pub fn renew(&mut self, left: Duration) -> Result<bool, GatewayError> {
        self.batch.clear();
        let deleted = self.batch.delete_element(SET, KEY);
        self.batch.add_element(&element(left));
        let outcome = self.commits.send(&mut self.batch, &mut self.socket).map_err(failed)?;
        match outcome.first_error() {
            None => Ok(true),
            Some(_) if outcome.failed_with(deleted, libc::ENOENT) => Ok(false),
            Some(error) => Err(failed(io::Error::from_raw_os_error(error))),
        }
    }

    /// The sign of life lasts for `left`, whether it was there or not. Without our table nothing happens.
    pub fn begin(&mut self, left: Duration) -> Result<(), GatewayError> {
        self.batch.clear();
        self.batch.clear_element(&element(left));
        self.batch.add_element(&element(left));
        let outcome = self.commits.send(&mut self.batch, &mut self.socket).map_err(failed)?;
        match outcome.first_error() {
            None | Some(libc::ENOENT) => Ok(()),
            Some(error) => Err(failed(io::Error::from_raw_os_error(error))),
        }
    }
}

fn element(left: Duration) -> Element<'static> {
    Element { set: SET, key: KEY, data: None, timeout: Some(left) }
}

fn failed(error: io::Error) -> GatewayError {
    GatewayError::system("sign of life in table inet ftp_alg", error)
}
