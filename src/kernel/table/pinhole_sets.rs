//! Pinholes as elements of the sets and maps in our table.
//!
//! A pinhole has at most four elements, written in one atomic batch: the permission (`pinholes*`, which the kernel
//! deletes when a connection consumes it), the target (`targets*`), the source address there (`sources*`) and the ct
//! mark (`marks*`); the last three only if they change something. They affect only a connection that the permission
//! admits. So leftovers of a closed pinhole have no effect, and expire; opening deletes leftovers with the same keys.
//! Knows nothing of control connections.
//!
//! A transfer waits for its pinhole, so a batch has as few messages as possible. Above all, nothing is deleted that is
//! absent: each deletion ends with work for the kernel that waits for a grace period.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    time::Duration,
};

use ftp_alg_core::engine::{KernelError, Opening, PinholeEnds};

use super::{
    commits::Commits,
    elements::{PinholeElements, TRANSLATION_GRACE, V4, V6, exists_already, read_key},
};
use crate::kernel::{
    NetfilterError,
    netlink::{
        Socket,
        nft::{self, Batch, BatchOutcome},
        repeat_interrupted,
    },
};

/// Number of attempts of a transaction. Each reports everything that is refused; elements may expire between two
/// attempts.
const ATTEMPTS: usize = 8;

/// Maximum number of pinholes closed in one transaction: it fits the default send buffer.
const MAX_CLOSINGS: usize = 128;

/// Opens and closes pinholes. One for each thread.
#[derive(Debug)]
pub struct PinholeSets {
    socket: Socket,
    batch: Batch,
    commits: Commits,
    /// Whether the kernel supports destroy messages (Linux 6.3); its first answer shows it.
    has_destroy: bool,
}

/// A pinhole that is not yet used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenPinhole {
    pub initiator: IpAddr,
    /// Where its connection arrives.
    pub arrival: SocketAddr,
    /// Time until it expires.
    pub remaining: Duration,
}

impl OpenPinhole {
    /// Initiator and arrival, as [`PinholeEnds::ends`].
    pub fn ends(&self) -> (IpAddr, SocketAddr) {
        (self.initiator, self.arrival)
    }
}

impl PinholeSets {
    /// Size of each set of pinholes, minus room for consumed elements that are not collected yet.
    pub(in crate::kernel) const CAPACITY: usize = 65_536 - 4096;

    /// Opens a netlink socket; the table need not exist yet. Counts each transaction in `commits`.
    pub fn new(commits: &Commits) -> Result<Self, NetfilterError> {
        let socket =
            Commits::open_socket().map_err(|e| NetfilterError::system("netlink socket", e))?;
        Ok(Self { socket, batch: Batch::new(), commits: commits.clone(), has_destroy: true })
    }

    /// Without requests that are newer than Linux 6.1.
    pub fn for_older_kernels(self) -> Self {
        Self { has_destroy: false, ..self }
    }

    /// Opens a pinhole for one connection or for its lifetime, after closing `closed`; all in one transaction, unless
    /// there are very many. [`KernelError::Taken`] if an open pinhole has the same initiator and arrival. If any of
    /// `closed` may still be open, the pinhole is not, and the error is [`KernelError::NotClosed`].
    ///
    /// The kernel reports every message that it refuses, and then does nothing. So the transaction is sent once more
    /// without a refused opening.
    pub fn open(&mut self, opening: &Opening, closed: &[PinholeEnds]) -> Result<(), KernelError> {
        let (before, last) = closed.split_at(closed.len().saturating_sub(MAX_CLOSINGS));
        let transacted = self.close(before).and_then(|()| self.transact(last, Some(opening)));
        match transacted {
            Ok(None) => Ok(()),
            Ok(Some(refusal)) => Err(refusal),
            Err(error) if closed.is_empty() => Err(error),
            Err(error) => Err(error.not_closed()),
        }
    }

    /// Closes pinholes, whether they are open, consumed or expired. An established connection stays. After an error any
    /// of them may still be open.
    pub fn close(&mut self, closed: &[PinholeEnds]) -> Result<(), KernelError> {
        closed.chunks(MAX_CLOSINGS).try_for_each(|part| self.transact(part, None).map(drop))
    }

    /// One transaction, repeated until the kernel accepts it. Returns why it refuses the opening.
    fn transact(
        &mut self,
        closed: &[PinholeEnds],
        opening: Option<&Opening>,
    ) -> Result<Option<KernelError>, KernelError> {
        let failed = |source| KernelError::System { what: "change pinholes".into(), source };
        // A pinhole that has no elements is not open.
        let elements = closed.iter().filter_map(|pinhole| PinholeElements::new(pinhole, None).ok());
        let mut changes: Vec<_> = elements.map(PinholeChange::close).collect();
        let mut refusal = None;
        match opening.map(PinholeChange::open).transpose() {
            Ok(change) => changes.extend(change),
            Err(error) => refusal = Some(error),
        }
        for _ in 0..ATTEMPTS {
            if changes.is_empty() {
                return Ok(refusal);
            }
            self.batch.clear();
            if changes.iter().all(|change| change.opening.is_none()) {
                self.batch.report_changes();
            }
            changes.iter_mut().for_each(|change| change.put(&mut self.batch, self.has_destroy));
            let outcome = self.commits.send(&mut self.batch, &mut self.socket).map_err(failed)?;
            let Some(error) = outcome.first_error() else { return Ok(refusal) };
            if self.learns_to_delete(&outcome, &changes) {
                continue;
            }
            let (before, mut learned) = (changes.len(), false);
            changes.retain_mut(|change| match change.learn_from(&outcome) {
                Ok(more) => {
                    learned |= more;
                    // Without our table there are no pinholes to close.
                    !change.elements.permission.is_absent()
                }
                Err(error) => {
                    refusal = Some(error);
                    false
                }
            });
            if !learned && changes.len() == before {
                return Err(failed(table_error(error)));
            }
        }
        Err(failed(io::ErrorKind::ResourceBusy.into()))
    }

    /// Whether a removal failed because this kernel lacks NFT_MSG_DESTROYSETELEM. From then on elements are deleted.
    fn learns_to_delete<'a>(
        &mut self,
        outcome: &BatchOutcome,
        changes: impl IntoIterator<Item = &'a PinholeChange<'a>>,
    ) -> bool {
        let mut elements = changes.into_iter().flat_map(|change| change.elements.iter());
        let learns = self.has_destroy && elements.any(|element| element.needs_deletion(outcome));
        self.has_destroy &= !learns;
        learns
    }

    /// Keeps a pinhole open for its lifetime from now, unless it is consumed or expired. Returns whether it is open.
    pub fn renew(&mut self, opening: &Opening) -> Result<bool, KernelError> {
        let failed = |source| KernelError::System {
            what: format!("renew pinhole {}", opening.ends),
            source,
        };
        let mut change = PinholeChange::open(opening)?;
        for _ in 0..ATTEMPTS {
            self.batch.clear();
            // The timeout of an element cannot be changed before Linux 6.12. The kernel deletes only what is there:
            // the rule that admits a connection has deleted a consumed one.
            let deletion = change.elements.permission.delete(&mut self.batch);
            change.put(&mut self.batch, self.has_destroy);
            let outcome = self.commits.send(&mut self.batch, &mut self.socket).map_err(failed)?;
            let Some(error) = outcome.first_error() else { return Ok(true) };
            if outcome.failed_with(deletion, libc::ENOENT) {
                // Without our table, which is loaded again, everything is absent.
                return Ok(outcome.failed_with(change.elements.permission.addition, libc::ENOENT));
            }
            if !self.learns_to_delete(&outcome, [&change]) && !change.learn_from(&outcome)? {
                return Err(failed(table_error(error)));
            }
        }
        Err(failed(io::ErrorKind::ResourceBusy.into()))
    }

    /// The open pinholes, according to the kernel; `None` if our table is not loaded.
    pub fn list_open(&mut self) -> Result<Option<Vec<OpenPinhole>>, NetfilterError> {
        let mut open = Vec::new();
        for sets in [V4, V6] {
            let before = open.len();
            let dumped = repeat_interrupted(|| {
                open.truncate(before);
                nft::dump_elements(&mut self.socket, sets.pinholes, |key, element| {
                    open.extend(read_key(key).map(|(initiator, arrival)| OpenPinhole {
                        initiator,
                        arrival,
                        remaining: nft::remaining_time(element).unwrap_or_default(),
                    }));
                })
            });
            match dumped {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(NetfilterError::system("list of pinholes", error));
                }
                // Of a set that never rests, what the last attempt found.
                _ => {}
            }
        }
        Ok(Some(open))
    }
}

/// ENOENT means nothing to an operator.
fn table_error(errno: i32) -> io::Error {
    match errno {
        libc::ENOENT => io::Error::new(
            io::ErrorKind::NotFound,
            "table inet ftp_alg is gone; ftp-alg will load it again",
        ),
        _ => io::Error::from_raw_os_error(errno),
    }
}

/// A pinhole to open or to close.
struct PinholeChange<'a> {
    elements: PinholeElements,
    opening: Option<&'a Opening>,
    /// Its messages in the last transaction.
    messages: Range<usize>,
}

impl<'a> PinholeChange<'a> {
    fn close(elements: PinholeElements) -> Self {
        Self { elements, opening: None, messages: 0..0 }
    }

    fn open(opening: &'a Opening) -> Result<Self, KernelError> {
        let elements = PinholeElements::new(&opening.ends, Some(opening.control.ct_mark))
            .map_err(|source| not_opened(opening, source))?;
        Ok(Self { opening: Some(opening), ..Self::close(elements) })
    }

    fn put(&mut self, batch: &mut Batch, destroys: bool) {
        let PinholeElements { permission, grants } = &mut self.elements;
        let first = batch.len();
        let Some(Opening { lifetime, .. }) = self.opening else {
            // Translations are deleted as well, so that a client that opens many leaves none behind. On an older kernel
            // they stay until they expire.
            for grant in grants.iter().filter(|grant| destroys && grant.is_needed) {
                grant.destroy(batch);
            }
            return permission.remove(batch, destroys);
        };
        permission.add(batch, *lifetime);
        for grant in grants {
            if grant.may_be_left {
                grant.remove(batch, destroys);
            }
            if grant.is_needed {
                grant.add(batch, lifetime.saturating_add(TRANSLATION_GRACE));
            }
        }
        self.messages = first..batch.len();
    }

    /// Whether the next transaction will differ. An error if the pinhole cannot be opened.
    fn learn_from(&mut self, outcome: &BatchOutcome) -> Result<bool, KernelError> {
        let PinholeElements { permission, grants } = &mut self.elements;
        let Some(opening) = self.opening else {
            return Ok(permission.learn_from(outcome));
        };
        if exists_already(outcome, permission.addition) {
            return Err(KernelError::Taken);
        }
        let mut added = grants.iter().map(|grant| grant.addition).chain([permission.addition]);
        if added.any(|at| outcome.failed_with(at, libc::ENFILE)) {
            return Err(KernelError::Full { what: "a set of pinholes in table ftp_alg" });
        }
        let mut learned = false;
        grants.iter_mut().for_each(|grant| learned |= grant.learn_from(outcome));
        match outcome.error_in(self.messages.clone()) {
            Some(errno) if !learned => Err(not_opened(opening, table_error(errno))),
            _ => Ok(learned),
        }
    }
}

fn not_opened(opening: &Opening, source: io::Error) -> KernelError {
    KernelError::System { what: format!("open pinhole {}", opening.ends), source }
}
