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

use ftp_alg_core::engine::{KernelError, Opening, Pinhole};

use super::{
    commits::Commits,
    elements::{GRANTS, GrantElement, PinholeElements, TRANSLATION_GRACE, V4, V6, read_key},
};
use crate::kernel::{
    NetfilterError,
    netlink::{
        Socket,
        nft::{self, Batch, BatchOutcome, Element},
    },
};

/// Number of attempts of a transaction. Each reports everything that is refused; elements may expire between two
/// attempts.
const ATTEMPTS: usize = 8;

/// Maximum number of pinholes opened, and of pinholes closed, in one transaction: it fits the default send buffer.
const MAX_PER_TRANSACTION: usize = 128;

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
    /// Initiator and arrival, as [`Pinhole::ends`].
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

    /// Closes `closed`, whether they are open, consumed or expired, and opens each of `openings` for one connection or
    /// for its lifetime; all in one transaction, unless there are very many. An established connection stays when its
    /// pinhole is closed.
    ///
    /// `outcomes` receives the outcome of each opening, [`KernelError::Taken`] if an open pinhole has the same
    /// initiator and arrival. The kernel reports every message that it refuses, and then does nothing. So the
    /// transaction is sent once more without the refused openings. If this fails, any of `closed` may still be open,
    /// and none of `openings` is. If only a later transaction fails, its openings have the error, and the earlier ones
    /// stay.
    pub fn change(
        &mut self,
        closed: &[Pinhole],
        openings: &[Opening],
        outcomes: &mut Vec<Result<(), KernelError>>,
    ) -> Result<(), KernelError> {
        change_in_parts(closed, openings, outcomes, |closed, openings, outcomes| {
            self.transact(closed, openings, outcomes)
        })
    }

    /// One transaction of [`PinholeSets::change`], repeated until the kernel accepts it.
    fn transact(
        &mut self,
        closed: &[Pinhole],
        openings: &[Opening],
        outcomes: &mut Vec<Result<(), KernelError>>,
    ) -> Result<(), KernelError> {
        let failed = |source| KernelError::System { what: "change pinholes".into(), source };
        // A pinhole that has no elements is not open.
        let closed = closed.iter().filter_map(|pinhole| PinholeElements::for_pinhole(pinhole).ok());
        let mut revoked: Vec<_> = closed.map(ClosingElements::new).collect();
        let mut opened = Vec::with_capacity(openings.len());
        for opening in openings {
            match PinholeElements::for_pinhole(&opening.pinhole) {
                Ok(elements) => {
                    let elements = elements.with_mark(opening.control.ct_mark);
                    opened.push(OpeningElements::new(opening, elements, outcomes.len()));
                    outcomes.push(Ok(()));
                }
                Err(source) => outcomes.push(Err(not_opened(&opening.pinhole, source))),
            }
        }
        for _ in 0..ATTEMPTS {
            if revoked.is_empty() && opened.is_empty() {
                return Ok(());
            }
            self.batch.clear();
            if opened.is_empty() {
                self.batch.report_changes();
            }
            revoked.iter_mut().for_each(|revoked| revoked.put(&mut self.batch, self.has_destroy));
            opened.iter_mut().for_each(|opened| opened.put(&mut self.batch, self.has_destroy));
            let outcome = self.commits.send(&mut self.batch, &mut self.socket).map_err(failed)?;
            let Some(error) = outcome.first_error() else { return Ok(()) };
            let removals = revoked.iter().map(|revoked| &revoked.removal);
            let removals = removals.chain(opened.iter().flat_map(|opened| &opened.removals));
            if self.learns_to_delete(&outcome, removals) {
                continue;
            }
            let mut learned = false;
            for ClosingElements { removal, .. } in &mut revoked {
                learned |= removal.learn_from(&outcome, usize::MAX);
            }
            // Without our table there are no pinholes.
            revoked.retain(|revoked| revoked.removal.existing != ExistingElement::Absent);
            let before = opened.len();
            opened.retain_mut(|opened| match opened.learn_from(&outcome) {
                Ok(more) => {
                    learned |= more;
                    true
                }
                Err(error) => {
                    if let Some(outcome) = outcomes.get_mut(opened.index) {
                        *outcome = Err(error);
                    }
                    false
                }
            });
            if !learned && opened.len() == before {
                return Err(failed(table_error(error)));
            }
        }
        Err(failed(io::ErrorKind::ResourceBusy.into()))
    }

    /// Whether one of `removals` failed because this kernel lacks NFT_MSG_DESTROYSETELEM. From then on elements are
    /// deleted.
    fn learns_to_delete<'a>(
        &mut self,
        outcome: &BatchOutcome,
        removals: impl IntoIterator<Item = &'a ElementRemoval>,
    ) -> bool {
        let is_refused =
            |removal: &ElementRemoval| outcome.failed_with(removal.message, libc::EINVAL);
        let learns = self.has_destroy && removals.into_iter().any(is_refused);
        self.has_destroy &= !learns;
        learns
    }

    /// Keeps a pinhole open for its lifetime from now, unless it is consumed or expired. Returns whether it is open.
    pub fn renew(&mut self, opening: &Opening) -> Result<bool, KernelError> {
        let failed = |source| KernelError::System {
            what: format!("renew pinhole {}", opening.pinhole),
            source,
        };
        let elements = PinholeElements::for_pinhole(&opening.pinhole).map_err(failed)?;
        let elements = elements.with_mark(opening.control.ct_mark);
        let mut renewed = OpeningElements::new(opening, elements, 0);
        for _ in 0..ATTEMPTS {
            self.batch.clear();
            // The timeout of an element cannot be changed before Linux 6.12. The kernel deletes only what is there:
            // the rule that admits a connection has deleted a consumed one.
            let permission = renewed.elements.permission(None);
            let deletion = self.batch.delete_element(permission.set, permission.key);
            renewed.put(&mut self.batch, self.has_destroy);
            let outcome = self.commits.send(&mut self.batch, &mut self.socket).map_err(failed)?;
            let Some(error) = outcome.first_error() else { return Ok(true) };
            if outcome.failed_with(deletion, libc::ENOENT) {
                // Without our table, which is loaded again, everything is absent.
                return Ok(outcome.failed_with(renewed.permission, libc::ENOENT));
            }
            if !self.learns_to_delete(&outcome, &renewed.removals)
                && !renewed.learn_from(&outcome)?
            {
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
            for _ in 0..ATTEMPTS {
                open.truncate(before);
                let consistent =
                    nft::dump_set(&mut self.socket, sets.pinholes, |key, remaining| {
                        open.extend(read_key(key).map(|(initiator, arrival)| OpenPinhole {
                            initiator,
                            arrival,
                            remaining: remaining.unwrap_or_default(),
                        }));
                    });
                match consistent {
                    Ok(false) => {}
                    Ok(true) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(NetfilterError::system("list of pinholes", error)),
                }
            }
        }
        Ok(Some(open))
    }
}

/// Calls `transact` for parts that fit a transaction: first closings, then openings.
fn change_in_parts(
    closed: &[Pinhole],
    openings: &[Opening],
    outcomes: &mut Vec<Result<(), KernelError>>,
    mut transact: impl FnMut(
        &[Pinhole],
        &[Opening],
        &mut Vec<Result<(), KernelError>>,
    ) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    outcomes.clear();
    let (mut closed, mut openings) = (closed, openings);
    while !closed.is_empty() || !openings.is_empty() {
        let (closed_now, closed_later) = closed.split_at(closed.len().min(MAX_PER_TRANSACTION));
        let room = if closed_later.is_empty() { MAX_PER_TRANSACTION } else { 0 };
        let (openings_now, openings_later) = openings.split_at(openings.len().min(room));
        let done = outcomes.len();
        match transact(closed_now, openings_now, outcomes) {
            Err(error) if closed_now.is_empty() => {
                outcomes.truncate(done);
                outcomes.extend(openings_now.iter().map(|_| Err(error.again())));
            }
            transacted => transacted?,
        }
        (closed, openings) = (closed_later, openings_later);
    }
    Ok(())
}

fn not_opened(pinhole: &Pinhole, source: io::Error) -> KernelError {
    KernelError::System { what: format!("open pinhole {pinhole}"), source }
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

/// State of an element to delete, for a kernel without destroy messages: its data is guessed, then learned from errors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ExistingElement {
    /// Not in the set, or present with the guessed data.
    AsGuessed,
    /// Present with other data, or in a full set.
    Different,
    /// Not in the set.
    Absent,
}

/// The deletion of an element that may be absent.
struct ElementRemoval {
    existing: ExistingElement,
    /// Message index in the last transaction.
    message: usize,
}

impl ElementRemoval {
    fn new() -> Self {
        Self { existing: ExistingElement::AsGuessed, message: usize::MAX }
    }

    fn add_to_batch(&mut self, batch: &mut Batch, destroys: bool, element: &Element<'_>) {
        self.message = match self.existing {
            ExistingElement::Absent => usize::MAX,
            _ if destroys => batch.destroy_element(element.set, element.key),
            ExistingElement::AsGuessed => batch.clear_element(element),
            ExistingElement::Different => batch.delete_element(element.set, element.key),
        };
    }

    /// Whether the next transaction will differ; `added` is the message that adds an element with this key.
    fn learn_from(&mut self, outcome: &BatchOutcome, added: usize) -> bool {
        let now = if outcome.failed_with(self.message, libc::ENOENT) {
            ExistingElement::Absent
        } else if exists_already(outcome, self.message)
            || outcome.failed_with(self.message, libc::ENFILE)
            || exists_already(outcome, added)
        {
            ExistingElement::Different
        } else {
            self.existing
        };
        std::mem::replace(&mut self.existing, now) != now
    }
}

/// Whether a message failed because such an element exists.
fn exists_already(outcome: &BatchOutcome, at: usize) -> bool {
    outcome.failed_with(at, libc::EEXIST) || outcome.failed_with(at, libc::EBUSY)
}

/// A pinhole to close. Its translations are deleted as well, so that a client that opens many leaves none behind. On an
/// older kernel they stay until they expire.
struct ClosingElements {
    elements: PinholeElements,
    removal: ElementRemoval,
}

impl ClosingElements {
    fn new(elements: PinholeElements) -> Self {
        Self { elements, removal: ElementRemoval::new() }
    }

    fn put(&mut self, batch: &mut Batch, destroys: bool) {
        if destroys {
            for GrantElement { element, is_needed, .. } in self.elements.grants(None) {
                if is_needed {
                    batch.destroy_element(element.set, element.key);
                }
            }
        }
        // The timeout is that of an element that is never visible.
        let permission = self.elements.permission(Some(TRANSLATION_GRACE));
        self.removal.add_to_batch(batch, destroys, &permission);
    }
}

/// A pinhole to open.
struct OpeningElements<'a> {
    pinhole: &'a Pinhole,
    lifetime: Duration,
    elements: PinholeElements,
    /// Index of its outcome.
    index: usize,
    /// Deletion of grants that an earlier pinhole may have left.
    removals: [ElementRemoval; GRANTS],
    /// Its messages in the last transaction: all, the permission, the grants.
    messages: Range<usize>,
    permission: usize,
    grants: [usize; GRANTS],
}

impl<'a> OpeningElements<'a> {
    fn new(opening: &'a Opening, elements: PinholeElements, index: usize) -> Self {
        Self {
            pinhole: &opening.pinhole,
            lifetime: opening.lifetime,
            elements,
            index,
            removals: std::array::from_fn(|_| ElementRemoval::new()),
            messages: 0..0,
            permission: usize::MAX,
            grants: [usize::MAX; GRANTS],
        }
    }

    fn put(&mut self, batch: &mut Batch, destroys: bool) {
        self.permission = batch.add_element(&self.elements.permission(Some(self.lifetime)));
        let grants = self.elements.grants(Some(self.lifetime));
        for ((grant, removal), added) in grants.iter().zip(&mut self.removals).zip(&mut self.grants)
        {
            if grant.may_be_left {
                removal.add_to_batch(batch, destroys, &grant.element);
            }
            if grant.is_needed {
                *added = batch.add_element(&grant.element);
            }
        }
        self.messages = self.permission..batch.len();
    }

    /// Whether the next transaction will differ, unless the pinhole is refused for good.
    fn learn_from(&mut self, outcome: &BatchOutcome) -> Result<bool, KernelError> {
        if exists_already(outcome, self.permission) {
            return Err(KernelError::Taken);
        }
        let mut added = self.grants.iter().chain([&self.permission]);
        if added.any(|at| outcome.failed_with(*at, libc::ENFILE)) {
            return Err(KernelError::Full { what: "a set of pinholes in table ftp_alg" });
        }
        let mut learned = false;
        for (removal, added) in self.removals.iter_mut().zip(self.grants) {
            learned |= removal.learn_from(outcome, added);
        }
        match outcome.error_in(&self.messages) {
            Some(error) if !learned => Err(not_opened(self.pinhole, table_error(error))),
            _ => Ok(learned),
        }
    }
}

#[cfg(test)]
mod tests {
    use ftp_alg_core::engine::Translation;

    use super::*;

    /// The outcomes of 300 openings, and of closing `closed` pinholes first, if the transaction with this index fails.
    fn change(closed: usize, failing: usize) -> Option<Vec<bool>> {
        let at: SocketAddr = "192.0.2.1:21".parse().unwrap();
        let pinhole = Pinhole { initiator: at.ip(), arrival: at, target: at, source: at.ip() };
        let control = Translation::identity(at, at);
        let opening = Opening { pinhole, control, from_client: true, lifetime: Duration::ZERO };
        let (mut outcomes, mut transactions) = (Vec::new(), 0);
        let transact = |_: &[Pinhole], now: &[Opening], outcomes: &mut Vec<_>| {
            assert!(now.len() <= MAX_PER_TRANSACTION);
            outcomes.extend(now.iter().map(|_| Ok(())));
            transactions += 1;
            if transactions == failing + 1 { Err(KernelError::Unknown) } else { Ok(()) }
        };
        change_in_parts(&vec![pinhole; closed], &[opening; 300], &mut outcomes, transact).ok()?;
        assert_eq!(transactions, 3 + closed.saturating_sub(1) / MAX_PER_TRANSACTION);
        Some(outcomes.iter().map(Result::is_ok).collect())
    }

    #[test]
    fn a_transaction_that_fails_spares_the_openings_of_others() {
        let all_but =
            |failed: Range<usize>| Some((0..300).map(|at| !failed.contains(&at)).collect());
        assert_eq!(change(0, 9), all_but(0..0));
        assert_eq!(change(0, 0), all_but(0..128));
        assert_eq!(change(0, 1), all_but(128..256));
        assert_eq!(change(200, 2), all_but(128..256));
        assert_eq!(change(200, 3), all_but(256..300));
        // Nothing is opened while something that must be closed first may be open.
        assert_eq!((change(200, 0), change(200, 1)), (None, None));
    }
}
