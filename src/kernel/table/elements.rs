//! Encodes a pinhole's elements for the sets of our table.

use std::{
    ffi::CStr,
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use ftp_alg_core::engine::Pinhole;

use crate::kernel::netlink::nft::{Element, KeyParts};

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

/// The keys and data of one pinhole's elements.
pub(super) struct PinholeElements {
    sets: &'static FamilySets,
    key: KeyBytes,
    target: KeyBytes,
    source_key: KeyBytes,
    source: KeyBytes,
    has_other_target: bool,
    has_other_source: bool,
    /// The ct mark that the connection inherits, in host order.
    mark: [u8; 4],
    has_mark: bool,
}

/// What an admitted connection gets from a map.
pub(super) struct GrantElement<'a> {
    pub(super) element: Element<'a>,
    pub(super) is_needed: bool,
    /// Whether an earlier pinhole may have left such an element.
    pub(super) may_be_left: bool,
}

/// Number of a pinhole's [`GrantElement`]s.
pub(super) const GRANTS: usize = 3;

impl PinholeElements {
    pub(super) fn for_pinhole(pinhole: &Pinhole) -> io::Result<Self> {
        let Pinhole { initiator, arrival, target, source } = *pinhole;
        Ok(Self {
            sets: if is_ipv6(pinhole)? { &V6 } else { &V4 },
            key: KeyBytes::default().address(initiator).endpoint(arrival),
            target: KeyBytes::default().endpoint(target),
            source_key: KeyBytes::default().address(initiator).endpoint(target),
            source: KeyBytes::default().address(source),
            has_other_target: target != arrival,
            has_other_source: source != initiator,
            mark: [0; 4],
            has_mark: USES_MARKS.load(Relaxed),
        })
    }

    /// The elements of a pinhole whose connection inherits `mark`, unless that is 0.
    pub(super) fn with_mark(self, mark: u32) -> Self {
        let has_mark = mark != 0;
        if has_mark {
            USES_MARKS.store(true, Relaxed);
        }
        Self { mark: mark.to_ne_bytes(), has_mark, ..self }
    }

    pub(super) fn permission(&self, timeout: Option<Duration>) -> Element<'_> {
        Element { set: self.sets.pinholes, key: self.key.as_ref(), data: None, timeout }
    }

    /// Its destination, its source and its ct mark. `lifetime` is that of the permission.
    pub(super) fn grants(&self, lifetime: Option<Duration>) -> [GrantElement<'_>; GRANTS] {
        let timeout = lifetime.map(|lifetime| lifetime.saturating_add(TRANSLATION_GRACE));
        let of = |set, key, data, is_needed| {
            let element = Element { set, key, data: Some(data), timeout };
            GrantElement { element, is_needed, may_be_left: true }
        };
        let FamilySets { targets, sources, marks, .. } = *self.sets;
        let may_be_left = USES_MARKS.load(Relaxed);
        [
            of(targets, self.key.as_ref(), self.target.as_ref(), self.has_other_target),
            of(sources, self.source_key.as_ref(), self.source.as_ref(), self.has_other_source),
            GrantElement { may_be_left, ..of(marks, self.key.as_ref(), &self.mark, self.has_mark) },
        ]
    }
}

/// The family of the pinhole's addresses, which must all have one.
pub(super) fn is_ipv6(pinhole: &Pinhole) -> io::Result<bool> {
    let Pinhole { initiator, arrival, target, source } = *pinhole;
    let v6 = initiator.is_ipv6();
    if [arrival.ip(), target.ip(), source].iter().all(|address| address.is_ipv6() == v6) {
        return Ok(v6);
    }
    let text = "IPv4 and IPv6 addresses in one pinhole; all must be of one family";
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// A concatenated key: each part takes whole 4-byte words. The longest has two addresses and a port.
#[derive(Clone, Copy, Default)]
struct KeyBytes {
    words: [[u8; 4]; 9],
    length: usize,
}

impl KeyBytes {
    fn push(mut self, word: [u8; 4]) -> Self {
        if let Some(free) = self.words.get_mut(self.length) {
            *free = word;
            self.length += 1;
        }
        self
    }

    fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.push(address.octets()),
            IpAddr::V6(address) => {
                let octets = address.octets();
                octets.as_chunks().0.iter().fold(self, |bytes, word| bytes.push(*word))
            }
        }
    }

    fn endpoint(self, endpoint: SocketAddr) -> Self {
        let [high, low] = endpoint.port().to_be_bytes();
        self.address(endpoint.ip()).push([high, low, 0, 0])
    }

    fn as_ref(&self) -> &[u8] {
        self.words.get(..self.length).unwrap_or_default().as_flattened()
    }
}

/// Initiator and arrival of the pinhole with this permission key.
pub(super) fn read_key(key: &[u8]) -> Option<(IpAddr, SocketAddr)> {
    let (mut parts, v6) = KeyParts::parse(key, 12, 36)?;
    Some((parts.address(v6)?, parts.endpoint(v6)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pinhole(initiator: &str, arrival: &str) -> Pinhole {
        let (initiator, arrival) = (initiator.parse().unwrap(), arrival.parse().unwrap());
        Pinhole { initiator, arrival, target: arrival, source: initiator }
    }

    #[test]
    fn keys_are_read_as_written() {
        for (initiator, arrival) in
            [("10.0.0.1", "192.0.2.7:4000"), ("2001:db8::1", "[2001:db8::2]:65535")]
        {
            let pinhole = pinhole(initiator, arrival);
            let elements = PinholeElements::for_pinhole(&pinhole).unwrap();
            assert_eq!(read_key(elements.key.as_ref()), Some((pinhole.initiator, pinhole.arrival)));
        }
    }

    #[test]
    fn a_key_has_whole_words() {
        let elements = PinholeElements::for_pinhole(&pinhole("10.0.0.1", "192.0.2.7:258")).unwrap();
        assert_eq!(elements.key.as_ref(), [10, 0, 0, 1, 192, 0, 2, 7, 1, 2, 0, 0]);
        assert_eq!(elements.target.as_ref(), [192, 0, 2, 7, 1, 2, 0, 0]);
    }

    #[test]
    fn families_are_not_mixed() {
        assert!(PinholeElements::for_pinhole(&pinhole("10.0.0.1", "[2001:db8::2]:1")).is_err());
    }

    proptest! {
        #[test]
        fn no_key_panics(key in proptest::collection::vec(any::<u8>(), 0..60)) {
            read_key(&key);
        }
    }
}
