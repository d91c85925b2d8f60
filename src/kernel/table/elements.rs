//! Encodes a pinhole's elements for the sets of our table.

use std::{
    ffi::CStr,
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use ftp_alg_core::engine::PinholeEnds;

use crate::kernel::netlink::{
    address_of,
    nft::{Batch, BatchOutcome, Element, endpoint_key, endpoint_of},
    octets_of,
};

/// Whether any pinhole of this process had a ct mark, so that there may be such an element. Few gateways have any.
static USES_MARKS: AtomicBool = AtomicBool::new(false);

/// Translations outlive the permission, so that a connection admitted at the last moment finds them.
pub(super) const TRANSLATION_GRACE: Duration = Duration::from_secs(5);

/// The sets of one address family.
pub(super) struct FamilySets {
    pub(super) pinholes: &'static CStr,
    targets: &'static CStr,
    sources: &'static CStr,
    marks: &'static CStr,
}

pub(super) const V4: FamilySets = FamilySets {
    pinholes: c"pinholes4",
    targets: c"targets4",
    sources: c"sources4",
    marks: c"marks4",
};
pub(super) const V6: FamilySets = FamilySets {
    pinholes: c"pinholes6",
    targets: c"targets6",
    sources: c"sources6",
    marks: c"marks6",
};

/// An element of a pinhole: its permission, or what an admitted connection gets from a map.
pub(super) struct PinholeElement {
    set: &'static CStr,
    key: Vec<u8>,
    data: Option<Vec<u8>>,
    /// Whether the pinhole needs it.
    pub(super) is_needed: bool,
    /// Whether an earlier pinhole may have left such an element.
    pub(super) may_be_left: bool,
    existing: ExistingElement,
    /// The messages of the last transaction that remove and add it.
    removal: usize,
    pub(super) addition: usize,
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

impl PinholeElement {
    fn new(set: &'static CStr, key: Vec<u8>, data: Option<Vec<u8>>, is_needed: bool) -> Self {
        let existing = ExistingElement::AsGuessed;
        let (removal, addition) = (usize::MAX, usize::MAX);
        Self { set, key, data, is_needed, may_be_left: true, existing, removal, addition }
    }

    fn element(&self, timeout: Duration) -> Element<'_> {
        let data = self.data.as_deref();
        Element { set: self.set, key: &self.key, data, timeout: Some(timeout) }
    }

    pub(super) fn add(&mut self, batch: &mut Batch, timeout: Duration) {
        self.addition = batch.add_element(&self.element(timeout));
    }

    /// Deletes it, which must exist. Returns the message index.
    pub(super) fn delete(&self, batch: &mut Batch) -> usize {
        batch.delete_element(self.set, &self.key)
    }

    /// Deletes it, whether it exists or not. Only if the kernel has destroy messages.
    pub(super) fn destroy(&self, batch: &mut Batch) -> usize {
        batch.destroy_element(self.set, &self.key)
    }

    /// Deletes it, whether it exists or not, as far as is known.
    pub(super) fn remove(&mut self, batch: &mut Batch, destroys: bool) {
        self.removal = match self.existing {
            ExistingElement::Absent => usize::MAX,
            _ if destroys => self.destroy(batch),
            // The timeout is that of an element that is never visible.
            ExistingElement::AsGuessed => batch.clear_element(&self.element(TRANSLATION_GRACE)),
            ExistingElement::Different => self.delete(batch),
        };
    }

    /// Whether the removal failed because this kernel has no destroy messages.
    pub(super) fn needs_deletion(&self, outcome: &BatchOutcome) -> bool {
        outcome.failed_with(self.removal, libc::EINVAL)
    }

    /// Whether the next transaction will differ.
    pub(super) fn learn_from(&mut self, outcome: &BatchOutcome) -> bool {
        let now = if outcome.failed_with(self.removal, libc::ENOENT) {
            ExistingElement::Absent
        } else if exists_already(outcome, self.removal)
            || outcome.failed_with(self.removal, libc::ENFILE)
            || exists_already(outcome, self.addition)
        {
            ExistingElement::Different
        } else {
            self.existing
        };
        std::mem::replace(&mut self.existing, now) != now
    }

    pub(super) fn is_absent(&self) -> bool {
        self.existing == ExistingElement::Absent
    }
}

/// Whether a message failed because such an element exists.
pub(super) fn exists_already(outcome: &BatchOutcome, at: usize) -> bool {
    outcome.failed_with(at, libc::EEXIST) || outcome.failed_with(at, libc::EBUSY)
}

/// The elements of one pinhole.
pub(super) struct PinholeElements {
    pub(super) permission: PinholeElement,
    /// Its target, its source and its ct mark.
    pub(super) grants: [PinholeElement; 3],
}

impl PinholeElements {
    /// For a pinhole whose connection inherits `mark`, unless that is 0. `None` if it may have any mark.
    pub(super) fn new(pinhole: &PinholeEnds, mark: Option<u32>) -> io::Result<Self> {
        let PinholeEnds { initiator, arrival, target, source } = *pinhole;
        let sets = if is_ipv6(pinhole)? { &V6 } else { &V4 };
        let FamilySets { pinholes, targets, sources, marks } = *sets;
        if mark.is_some_and(|mark| mark != 0) {
            USES_MARKS.store(true, Relaxed);
        }
        let uses_marks = USES_MARKS.load(Relaxed);
        let has_mark = mark.map_or(uses_marks, |mark| mark != 0);
        let key = [octets_of(initiator), endpoint_key(arrival)].concat();
        let source_key = [octets_of(initiator), endpoint_key(target)].concat();
        let (to, from) = (Some(endpoint_key(target)), Some(octets_of(source)));
        let mark = Some(mark.unwrap_or(0).to_ne_bytes().to_vec());
        let mark = PinholeElement::new(marks, key.clone(), mark, has_mark);
        Ok(Self {
            grants: [
                PinholeElement::new(targets, key.clone(), to, target != arrival),
                PinholeElement::new(sources, source_key, from, source != initiator),
                PinholeElement { may_be_left: uses_marks, ..mark },
            ],
            permission: PinholeElement::new(pinholes, key, None, true),
        })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &PinholeElement> {
        self.grants.iter().chain([&self.permission])
    }
}

/// The family of the pinhole's addresses, which must all have one.
pub(super) fn is_ipv6(pinhole: &PinholeEnds) -> io::Result<bool> {
    let PinholeEnds { initiator, arrival, target, source } = *pinhole;
    let v6 = initiator.is_ipv6();
    if [arrival.ip(), target.ip(), source].iter().all(|address| address.is_ipv6() == v6) {
        return Ok(v6);
    }
    let text = "IPv4 and IPv6 addresses in one pinhole; all must be of one family";
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// Initiator and arrival of the pinhole with this permission key.
pub(super) fn read_key(key: &[u8]) -> Option<(IpAddr, SocketAddr)> {
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
    fn keys_are_read_as_written() {
        for (initiator, arrival) in
            [("10.0.0.1", "192.0.2.7:4000"), ("2001:db8::1", "[2001:db8::2]:65535")]
        {
            let pinhole = pinhole(initiator, arrival);
            let key = PinholeElements::new(&pinhole, None).unwrap().permission.key;
            assert_eq!(read_key(&key), Some((pinhole.initiator, pinhole.arrival)));
        }
    }

    #[test]
    fn a_key_has_whole_words() {
        let pinhole = pinhole("10.0.0.1", "192.0.2.7:258");
        let elements = PinholeElements::new(&pinhole, None).unwrap();
        assert_eq!(elements.permission.key, [10, 0, 0, 1, 192, 0, 2, 7, 1, 2, 0, 0]);
        assert_eq!(elements.grants[0].data.as_deref(), Some(&[192, 0, 2, 7, 1, 2, 0, 0][..]));
    }

    #[test]
    fn families_are_not_mixed() {
        assert!(PinholeElements::new(&pinhole("10.0.0.1", "[2001:db8::2]:1"), None).is_err());
    }

    proptest! {
        #[test]
        fn no_key_panics(key in proptest::collection::vec(any::<u8>(), 0..60)) {
            read_key(&key);
        }
    }
}
