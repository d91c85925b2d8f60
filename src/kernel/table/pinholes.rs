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
    ffi::CStr,
    io, mem,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use ftp_alg_core::engine::{KernelError, Opening, PinholeEnds};

use super::commits::Commits;
use crate::kernel::{
    NetfilterError,
    netlink::{
        Socket, address_of,
        nft::{self, Batch, BatchOutcome, Element, endpoint_key, endpoint_of},
        octets_of, repeat_interrupted,
    },
};

/// Number of attempts of a transaction. Each reports everything that is refused; elements may expire between two
/// attempts.
const ATTEMPTS: usize = 8;

/// Maximum number of pinholes closed, or opened, in one transaction: it fits the default send buffer.
const MAX_CHANGES: usize = 128;

/// Translations outlive the permission, so that a connection admitted at the last moment finds them.
const TRANSLATION_GRACE: Duration = Duration::from_secs(5);

/// Whether any pinhole of this process had a ct mark, so that there may be such an element. Few gateways have any.
static USES_MARKS: AtomicBool = AtomicBool::new(false);

/// The sets of one address family.
struct FamilySets {
    pinholes: &'static CStr,
    targets: &'static CStr,
    sources: &'static CStr,
    marks: &'static CStr,
}

const V4: FamilySets = FamilySets {
    pinholes: c"pinholes4",
    targets: c"targets4",
    sources: c"sources4",
    marks: c"marks4",
};
const V6: FamilySets = FamilySets {
    pinholes: c"pinholes6",
    targets: c"targets6",
    sources: c"sources6",
    marks: c"marks6",
};

/// Opens and closes pinholes. One for each thread.
#[derive(Debug)]
pub struct PinholeSets {
    pub(super) socket: Socket,
    batch: Batch,
    pub(super) commits: Commits,
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
    /// Initiator and arrival, as [`PinholeEnds::key`].
    pub fn key(&self) -> (IpAddr, SocketAddr) {
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
        let (before, last) = closed.split_at(closed.len().saturating_sub(MAX_CHANGES));
        let opening = std::slice::from_ref(opening);
        let transacted = self.close(before).and_then(|()| self.transact(last, opening));
        let failed =
            |error: KernelError| if closed.is_empty() { error } else { error.not_closed() };
        transacted.map_err(failed)?.pop().map_or(Ok(()), Err)
    }

    /// As [`open`](Self::open), for many pinholes in few transactions. Returns why some are not open.
    pub fn open_many(&mut self, openings: &[Opening]) -> Vec<KernelError> {
        let open = |part| self.transact(&[], part).unwrap_or_else(|error| vec![error]);
        openings.chunks(MAX_CHANGES).flat_map(open).collect()
    }

    /// Closes pinholes, whether they are open, consumed or expired. An established connection stays. After an error any
    /// of them may still be open.
    pub fn close(&mut self, closed: &[PinholeEnds]) -> Result<(), KernelError> {
        closed.chunks(MAX_CHANGES).try_for_each(|part| self.transact(part, &[]).map(drop))
    }

    /// One transaction, repeated until the kernel accepts it. Returns why it refuses some of the openings.
    fn transact(
        &mut self,
        closed: &[PinholeEnds],
        openings: &[Opening],
    ) -> Result<Vec<KernelError>, KernelError> {
        let failed = |source| KernelError::System { what: "change pinholes".into(), source };
        // A pinhole that has no elements is not open.
        let closings = closed.iter().filter_map(|pinhole| Change::new(pinhole, None).ok());
        let (mut changes, mut refusals) = (closings.collect::<Vec<_>>(), Vec::new());
        for opening in openings {
            match Change::open(opening) {
                Ok(change) => changes.push(change),
                Err(error) => refusals.push(error),
            }
        }
        for _ in 0..ATTEMPTS {
            if changes.is_empty() {
                return Ok(refusals);
            }
            self.batch.clear();
            if changes.iter().all(|change| change.opening.is_none()) {
                self.batch.report_changes();
            }
            changes.iter_mut().for_each(|change| change.put(&mut self.batch, self.has_destroy));
            let outcome = self.commits.send(&mut self.batch, &mut self.socket).map_err(failed)?;
            let Some((_, error)) = outcome.first_failure() else { return Ok(refusals) };
            let elements = changes.iter().flat_map(|change| &change.elements);
            if self.learns_to_delete(&outcome, elements) {
                continue;
            }
            let (before, mut learned) = (changes.len(), false);
            changes.retain_mut(|change| match change.learn_from(&outcome) {
                Ok(more) => {
                    learned |= more;
                    // Without our table there are no pinholes to close.
                    change.opening.is_some() || change.permission().existing != Existing::Absent
                }
                Err(error) => {
                    refusals.push(error);
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
        elements: impl IntoIterator<Item = &'a SetElement>,
    ) -> bool {
        let learns = self.has_destroy
            && elements
                .into_iter()
                .any(|element| outcome.failed_with(element.removal, libc::EINVAL));
        self.has_destroy &= !learns;
        learns
    }

    /// Puts these elements in place of any others with their keys, in one transaction.
    pub(super) fn set_elements(
        &mut self,
        what: &str,
        elements: &mut [SetElement],
    ) -> Result<(), KernelError> {
        let failed = |source| KernelError::System { what: what.to_owned(), source };
        for _ in 0..ATTEMPTS {
            self.batch.clear();
            if elements.iter().all(|element| element.timeout.is_none()) {
                self.batch.report_changes();
            }
            elements.iter_mut().for_each(|one| one.put(&mut self.batch, self.has_destroy));
            let outcome = self.commits.send(&mut self.batch, &mut self.socket).map_err(failed)?;
            let Some((_, error)) = outcome.first_failure() else { return Ok(()) };
            if self.learns_to_delete(&outcome, &*elements) {
                continue;
            }
            let mut learned = false;
            elements.iter_mut().for_each(|element| learned |= element.learn_from(&outcome));
            if !learned {
                return Err(failed(table_error(error)));
            }
        }
        Err(failed(io::ErrorKind::ResourceBusy.into()))
    }

    /// Keeps a pinhole open for its lifetime from now, unless it is consumed or expired. Returns whether it is open.
    pub fn renew(&mut self, opening: &Opening) -> Result<bool, KernelError> {
        let failed = |source| KernelError::System {
            what: format!("renew pinhole {}", opening.ends),
            source,
        };
        let mut change = Change::open(opening)?;
        for _ in 0..ATTEMPTS {
            self.batch.clear();
            // The timeout of an element cannot be changed before Linux 6.12. The kernel deletes only what is there:
            // the rule that admits a connection has deleted a consumed one.
            let SetElement { set, key, .. } = change.permission();
            let deletion = self.batch.delete_element(set, key);
            change.put(&mut self.batch, self.has_destroy);
            let outcome = self.commits.send(&mut self.batch, &mut self.socket).map_err(failed)?;
            let Some((_, error)) = outcome.first_failure() else { return Ok(true) };
            if outcome.failed_with(deletion, libc::ENOENT) {
                // Without our table, which is loaded again, everything is absent.
                return Ok(outcome.failed_with(change.permission().addition, libc::ENOENT));
            }
            if !self.learns_to_delete(&outcome, &change.elements) && !change.learn_from(&outcome)? {
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

/// An error that an operator understands, in place of ENOENT.
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
struct Change<'a> {
    opening: Option<&'a Opening>,
    /// Its permission, and what an admitted connection gets from maps: target, source and ct mark.
    elements: [SetElement; 4],
    /// Its messages in the last transaction.
    messages: Range<usize>,
}

/// An element of a pinhole, or of a range.
pub(super) struct SetElement {
    set: &'static CStr,
    key: Vec<u8>,
    data: Option<Vec<u8>>,
    existing: Existing,
    /// The timeout with which the element is added; `None`: it is not added.
    timeout: Option<Duration>,
    /// The messages of the last transaction that remove and add the element.
    removal: usize,
    addition: usize,
}

/// What may be in the set under an element's key, and must be removed first. The data is guessed, for a kernel without
/// destroy messages, then learned from errors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    /// Nothing.
    Absent,
    /// At most an element with the guessed data.
    AsGuessed,
    /// An element with other data, or one in a full set.
    Different,
    /// At most an element without effect, which only a destroy message removes.
    Ineffective,
}

impl<'a> Change<'a> {
    fn open(opening: &'a Opening) -> Result<Self, KernelError> {
        Self::new(&opening.ends, Some(opening)).map_err(|source| not_opened(opening, source))
    }

    /// Opens the pinhole of `opening`, or closes `pinhole`.
    fn new(pinhole: &PinholeEnds, opening: Option<&'a Opening>) -> io::Result<Self> {
        let PinholeEnds { initiator, arrival, target, source } = *pinhole;
        let sets = if is_ipv6(pinhole)? { V6 } else { V4 };
        // The connection inherits the mark, unless that is 0. A pinhole to close may have any.
        let mark = opening.map(|opening| opening.control.ct_mark);
        if mark.is_some_and(|mark| mark != 0) {
            USES_MARKS.store(true, Relaxed);
        }
        let uses_marks = USES_MARKS.load(Relaxed);
        // What may exist, and the timeout of the new element.
        let permission = match opening {
            Some(opening) => (Existing::Absent, Some(opening.lifetime)),
            None => (Existing::AsGuessed, None),
        };
        let grant = |is_needed: bool| match opening {
            Some(Opening { lifetime, .. }) => {
                let timeout = lifetime.saturating_add(TRANSLATION_GRACE);
                (Existing::AsGuessed, is_needed.then_some(timeout))
            }
            // So that a client that opens many leaves none behind. On an older kernel they stay until they expire.
            None if is_needed => (Existing::Ineffective, None),
            None => (Existing::Absent, None),
        };
        let marking = match uses_marks {
            true => grant(mark != Some(0)),
            false => (Existing::Absent, None),
        };
        let key = [octets_of(initiator), endpoint_key(arrival)].concat();
        let source_key = [octets_of(initiator), endpoint_key(target)].concat();
        let mark_data = mark.unwrap_or(0).to_ne_bytes().to_vec();
        let elements = [
            (sets.pinholes, key.clone(), None, permission),
            (sets.targets, key.clone(), Some(endpoint_key(target)), grant(target != arrival)),
            (sets.sources, source_key, Some(octets_of(source)), grant(source != initiator)),
            (sets.marks, key, Some(mark_data), marking),
        ];
        let elements = elements.map(|(set, key, data, (existing, timeout))| SetElement {
            existing,
            ..SetElement::set(set, key, data, timeout)
        });
        Ok(Self { opening, elements, messages: 0..0 })
    }

    fn permission(&self) -> &SetElement {
        let [permission, ..] = &self.elements;
        permission
    }

    /// Appends its messages: removes what may exist, as far as is known, and adds what the pinhole needs.
    fn put(&mut self, batch: &mut Batch, destroys: bool) {
        let first = batch.len();
        self.elements.iter_mut().for_each(|element| element.put(batch, destroys));
        self.messages = first..batch.len();
    }

    /// Whether the next transaction will differ. An error if the pinhole cannot be opened.
    fn learn_from(&mut self, outcome: &BatchOutcome) -> Result<bool, KernelError> {
        let [permission, grants @ ..] = &mut self.elements;
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

impl SetElement {
    /// An element that is to exist for `lifetime`, or no longer. Another element may have its key.
    pub(super) fn set(
        set: &'static CStr,
        key: Vec<u8>,
        data: Option<Vec<u8>>,
        timeout: Option<Duration>,
    ) -> Self {
        let existing = Existing::AsGuessed;
        let (removal, addition) = (usize::MAX, usize::MAX);
        Self { set, key, data, existing, timeout, removal, addition }
    }

    /// Appends its messages: removes what may exist, as far as is known, and adds it.
    fn put(&mut self, batch: &mut Batch, destroys: bool) {
        self.removal = match self.existing {
            Existing::Absent => usize::MAX,
            _ if destroys => batch.destroy_element(self.set, &self.key),
            Existing::Ineffective => usize::MAX,
            // The timeout is that of an element that is never visible.
            Existing::AsGuessed => batch.clear_element(&self.with(TRANSLATION_GRACE)),
            Existing::Different => batch.delete_element(self.set, &self.key),
        };
        if let Some(timeout) = self.timeout {
            self.addition = batch.add_element(&self.with(timeout));
        }
    }

    fn with(&self, timeout: Duration) -> Element<'_> {
        let data = self.data.as_deref();
        Element { set: self.set, key: &self.key, data, timeout: Some(timeout) }
    }

    /// Whether the next transaction will differ.
    fn learn_from(&mut self, outcome: &BatchOutcome) -> bool {
        let now = if outcome.failed_with(self.removal, libc::ENOENT) {
            Existing::Absent
        } else if exists_already(outcome, self.removal)
            || outcome.failed_with(self.removal, libc::ENFILE)
            || exists_already(outcome, self.addition)
        {
            Existing::Different
        } else {
            self.existing
        };
        mem::replace(&mut self.existing, now) != now
    }
}

/// Whether a message failed because such an element exists.
fn exists_already(outcome: &BatchOutcome, at: usize) -> bool {
    outcome.failed_with(at, libc::EEXIST) || outcome.failed_with(at, libc::EBUSY)
}

fn not_opened(opening: &Opening, source: io::Error) -> KernelError {
    KernelError::System { what: format!("open pinhole {}", opening.ends), source }
}

/// The family of the pinhole's addresses, which must all have one.
pub(super) fn is_ipv6(pinhole: &PinholeEnds) -> io::Result<bool> {
    let PinholeEnds { initiator, arrival, target, source } = *pinhole;
    let is_v6 = initiator.is_ipv6();
    let is_mixed = [arrival.ip(), target.ip(), source].iter().any(|ip| ip.is_ipv6() != is_v6);
    let text = "IPv4 and IPv6 addresses in one pinhole; all must be of one family";
    if is_mixed { Err(io::Error::new(io::ErrorKind::InvalidInput, text)) } else { Ok(is_v6) }
}

/// Initiator and arrival of the pinhole with this permission key.
fn read_key(key: &[u8]) -> Option<(IpAddr, SocketAddr)> {
    let (initiator, arrival) = match key.len() {
        12 => key.split_at(4),
        36 => key.split_at(16),
        _ => return None,
    };
    Some((address_of(initiator)?, endpoint_of(arrival)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pinhole(initiator: &str, arrival: &str) -> PinholeEnds {
        let (initiator, arrival) = (initiator.parse().unwrap(), arrival.parse().unwrap());
        PinholeEnds { initiator, arrival, target: arrival, source: initiator }
    }

    #[test]
    fn families_are_not_mixed() {
        assert!(Change::new(&pinhole("10.0.0.1", "[2001:db8::2]:1"), None).is_err());
    }

    proptest! {
        #[test]
        fn no_key_panics(key in proptest::collection::vec(any::<u8>(), 0..60)) {
            read_key(&key);
        }
    }
}
