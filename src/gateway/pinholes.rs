//! Pinholes as elements of the sets and maps in our table.
//!
//! A pinhole is at most three elements, written in one atomic batch: the permission (`pinholes*`, which
//! the kernel deletes when a connection uses it), where the connection goes (`targets*`) and the
//! source it shows there (`sources*`); the latter two only where they change something. They mean
//! something only for a connection that the permission admitted, so what is left of them when it is gone
//! does nothing, and expires; opening deletes what an earlier pinhole left under the same keys. Knows
//! nothing of the connection that asked for the pinhole.
//!
//! A transfer waits for its pinhole, so that as little is asked as can be. Above all nothing is deleted
//! that is not there: each deletion ends with work for the kernel that waits for a grace period.

use std::{
    ffi::CStr,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use ftp_alg_core::engine::{KernelError, Opening, Pinhole};

use super::{
    Commits, GatewayError,
    netlink::Socket,
    nft::{self, Batch, Element},
};

/// Translations outlive the permission, so that a connection admitted in its last moment finds
/// them.
const TRANSLATIONS_LONGER: Duration = Duration::from_secs(5);

/// Batches tried before opening gives up: elements may expire between one and the next.
const ATTEMPTS: usize = 4;

/// Opens and closes pinholes, each in one transaction. One for each thread.
#[derive(Debug)]
pub struct Pinholes {
    socket: Socket,
    batch: Batch,
    commits: Commits,
    /// Whether the kernel deletes what may not be there (Linux 6.3); told by its first answer.
    destroys: bool,
}

/// How to be rid of a translation that an earlier pinhole may have left, where the kernel cannot
/// destroy: its data is guessed, then learned from errors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Old {
    /// None, or one with the new one's data.
    Same,
    /// One with other data.
    Other,
    /// It has expired meanwhile.
    Absent,
}

/// A pinhole that nothing has used yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenPinhole {
    /// Who may connect.
    pub initiator: IpAddr,
    /// Where its connection arrives.
    pub arrival: SocketAddr,
    /// When it closes by itself.
    pub remaining: Duration,
}

struct Sets {
    pinholes: &'static CStr,
    targets: &'static CStr,
    sources: &'static CStr,
}

const V4: Sets = Sets { pinholes: c"pinholes4", targets: c"targets4", sources: c"sources4" };
const V6: Sets = Sets { pinholes: c"pinholes6", targets: c"targets6", sources: c"sources6" };

impl Pinholes {
    /// The size of each set of pinholes, with some room for what was used up and is not collected yet.
    pub(super) const CAPACITY: usize = 65_536 - 4096;

    /// Opens a netlink socket; the table need not be there yet.
    pub fn new() -> Result<Self, GatewayError> {
        let socket = Socket::open().map_err(|e| GatewayError::system("netlink socket", e))?;
        Ok(Self { socket, batch: Batch::new(), commits: Commits::default(), destroys: true })
    }

    /// As [`Pinholes::new`], with no request that is newer than Linux 6.1.
    pub fn for_older_kernels() -> Result<Self, GatewayError> {
        Ok(Self { destroys: false, ..Self::new()? })
    }

    /// Counts each transaction in `commits`.
    pub fn counted_in(self, commits: &Commits) -> Self {
        Self { commits: commits.clone(), ..self }
    }

    /// Opens a pinhole for one connection, within its lifetime. [`KernelError::Taken`] if initiator
    /// and arrival are those of an open pinhole.
    pub fn open(&mut self, opening: &Opening<'_>) -> Result<(), KernelError> {
        self.close_and_open(&[], opening)
    }

    /// Closes `closed`, whether they are open, used or expired, and opens a pinhole as
    /// [`Pinholes::open`] does; all of it or nothing.
    pub fn close_and_open(
        &mut self,
        closed: &[Pinhole],
        opening: &Opening<'_>,
    ) -> Result<(), KernelError> {
        let Opening { pinhole, lifetime, .. } = *opening;
        let failed =
            |source| KernelError::System { what: format!("open pinhole {pinhole}"), source };
        let elements = Elements::of(pinhole).map_err(failed)?;
        let permission = elements.permission(Some(lifetime));
        let translations =
            elements.translations(Some(lifetime.saturating_add(TRANSLATIONS_LONGER)));
        let mut old = [Old::Same; 2];
        for _ in 0..ATTEMPTS {
            self.batch.clear();
            let mut destroyed = usize::MAX;
            for pinhole in closed {
                destroyed = self.revoke(&Elements::of(pinhole).map_err(failed)?);
            }
            let permitted = self.batch.add_element(&permission);
            let [mut cleared, mut added] = [[usize::MAX; 2]; 2];
            for (index, Translation { element, changes }) in translations.iter().enumerate() {
                match old[index] {
                    _ if self.destroys => {
                        destroyed = self.batch.destroy_element(element.set, element.key);
                    }
                    Old::Same => cleared[index] = self.batch.clear_element(element),
                    Old::Other => {
                        cleared[index] = self.batch.delete_element(element.set, element.key);
                    }
                    Old::Absent => {}
                }
                if *changes {
                    added[index] = self.batch.add_element(element);
                }
            }
            let outcome = self.commits.send(&mut self.batch, &mut self.socket).map_err(failed)?;
            let Some(error) = outcome.first_error() else { return Ok(()) };
            if self.destroys && outcome.failed_with(destroyed, libc::EINVAL) {
                self.destroys = false;
                continue;
            }
            let there =
                |at| outcome.failed_with(at, libc::EEXIST) || outcome.failed_with(at, libc::EBUSY);
            if there(permitted) {
                return Err(KernelError::Taken);
            }
            if error == libc::ENFILE {
                return Err(KernelError::Full { what: "a set of pinholes in table ftp_alg" });
            }
            let mut learned = false;
            for ((old, cleared), added) in old.iter_mut().zip(cleared).zip(added) {
                let now = if outcome.failed_with(cleared, libc::ENOENT) && *old == Old::Other {
                    Old::Absent
                } else if there(cleared) || there(added) {
                    Old::Other
                } else {
                    *old
                };
                learned |= now != *old;
                *old = now;
            }
            if !learned {
                return Err(failed(table_error(error)));
            }
        }
        Err(failed(io::ErrorKind::ResourceBusy.into()))
    }

    /// Closes `pinhole`, whether it is open, used or expired. A connection through it goes on.
    pub fn close(&mut self, pinhole: &Pinhole) -> Result<(), KernelError> {
        let failed =
            |source| KernelError::System { what: format!("close pinhole {pinhole}"), source };
        let elements = Elements::of(pinhole).map_err(failed)?;
        for _ in 0..ATTEMPTS {
            self.batch.clear();
            self.batch.tell_changes();
            let revoked = self.revoke(&elements);
            let outcome = self.commits.send(&mut self.batch, &mut self.socket).map_err(failed)?;
            match outcome.first_error() {
                // Without our table there are no pinholes.
                None | Some(libc::ENOENT) => return Ok(()),
                Some(libc::EINVAL)
                    if self.destroys && outcome.failed_with(revoked, libc::EINVAL) =>
                {
                    self.destroys = false;
                }
                Some(error) => return Err(failed(io::Error::from_raw_os_error(error))),
            }
        }
        Err(failed(io::ErrorKind::ResourceBusy.into()))
    }

    /// Adds to the batch that a pinhole is closed, with its translations: whoever opens many leaves no more behind
    /// than it holds. Returns the index of the message that an older kernel refuses; there translations stay
    /// until they expire.
    fn revoke(&mut self, elements: &Elements) -> usize {
        if self.destroys {
            for Translation { element, changes } in elements.translations(None) {
                if changes {
                    self.batch.destroy_element(element.set, element.key);
                }
            }
            self.batch.destroy_element(elements.sets.pinholes, elements.key.as_ref())
        } else {
            // The timeout is that of an element that is never seen.
            self.batch.clear_element(&elements.permission(Some(TRANSLATIONS_LONGER)))
        }
    }

    /// The pinholes that are open now, as the kernel says.
    pub fn list_open(&mut self) -> Result<Vec<OpenPinhole>, GatewayError> {
        let mut open = Vec::new();
        for sets in [V4, V6] {
            let before = open.len();
            for _ in 0..ATTEMPTS {
                open.truncate(before);
                let consistent = nft::dump(&mut self.socket, sets.pinholes, |key, remaining| {
                    open.extend(read_key(key).map(|(initiator, arrival)| OpenPinhole {
                        initiator,
                        arrival,
                        remaining: remaining.unwrap_or_default(),
                    }));
                });
                match consistent {
                    Ok(false) => {}
                    Ok(true) => break,
                    // Without our table there are no pinholes.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) => return Err(GatewayError::system("list of pinholes", error)),
                }
            }
        }
        Ok(open)
    }
}

/// ENOENT says nothing to an operator.
fn table_error(errno: i32) -> io::Error {
    match errno {
        libc::ENOENT => io::Error::new(
            io::ErrorKind::NotFound,
            "table inet ftp_alg is gone; ftp-alg will load it again",
        ),
        _ => io::Error::from_raw_os_error(errno),
    }
}

/// The bytes of a pinhole's elements, as the sets' types want them.
struct Elements {
    sets: &'static Sets,
    key: Bytes,
    target: Bytes,
    source_key: Bytes,
    source: Bytes,
    changes_target: bool,
    changes_source: bool,
}

/// An element that translates, and whether there is need of it.
struct Translation<'a> {
    element: Element<'a>,
    changes: bool,
}

impl Elements {
    fn of(pinhole: &Pinhole) -> io::Result<Self> {
        let Pinhole { initiator, arrival, target, source } = *pinhole;
        let families = [initiator, arrival.ip(), target.ip(), source].map(|a| a.is_ipv4());
        let sets = match families {
            [true, true, true, true] => &V4,
            [false, false, false, false] => &V6,
            _ => {
                let text = "IPv4 and IPv6 addresses in one pinhole; all must be of one family";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        };
        Ok(Self {
            sets,
            key: Bytes::default().address(initiator).endpoint(arrival),
            target: Bytes::default().endpoint(target),
            source_key: Bytes::default().address(initiator).endpoint(target),
            source: Bytes::default().address(source),
            changes_target: target != arrival,
            changes_source: source != initiator,
        })
    }

    fn permission(&self, timeout: Option<Duration>) -> Element<'_> {
        Element { set: self.sets.pinholes, key: self.key.as_ref(), data: None, timeout }
    }

    fn translations(&self, timeout: Option<Duration>) -> [Translation<'_>; 2] {
        let of = |set, key, data, changes| {
            let element = Element { set, key, data: Some(data), timeout };
            Translation { element, changes }
        };
        let Sets { targets, sources, .. } = *self.sets;
        [
            of(targets, self.key.as_ref(), self.target.as_ref(), self.changes_target),
            of(sources, self.source_key.as_ref(), self.source.as_ref(), self.changes_source),
        ]
    }
}

/// A concatenation: each part takes whole 4-byte words. The longest has two addresses and a port.
#[derive(Clone, Copy, Default)]
struct Bytes {
    words: [[u8; 4]; 9],
    length: usize,
}

impl Bytes {
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

fn read_key(key: &[u8]) -> Option<(IpAddr, SocketAddr)> {
    fn split<const N: usize>(key: &[u8]) -> Option<([u8; N], [u8; N], [u8; 2])> {
        let (initiator, rest) = key.split_first_chunk()?;
        let (arrival, rest) = rest.split_first_chunk()?;
        (rest.len() == 4).then_some((*initiator, *arrival, *rest.first_chunk()?))
    }
    let (initiator, arrival, port): (IpAddr, IpAddr, _) =
        if let Some((a, b, port)) = split::<4>(key) {
            (Ipv4Addr::from(a).into(), Ipv4Addr::from(b).into(), port)
        } else {
            let (a, b, port) = split::<16>(key)?;
            (Ipv6Addr::from(a).into(), Ipv6Addr::from(b).into(), port)
        };
    Some((initiator, SocketAddr::new(arrival, u16::from_be_bytes(port))))
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
            let elements = Elements::of(&pinhole).unwrap();
            assert_eq!(read_key(elements.key.as_ref()), Some((pinhole.initiator, pinhole.arrival)));
        }
    }

    #[test]
    fn a_key_has_whole_words() {
        let elements = Elements::of(&pinhole("10.0.0.1", "192.0.2.7:258")).unwrap();
        assert_eq!(elements.key.as_ref(), [10, 0, 0, 1, 192, 0, 2, 7, 1, 2, 0, 0]);
        assert_eq!(elements.target.as_ref(), [192, 0, 2, 7, 1, 2, 0, 0]);
    }

    #[test]
    fn families_are_not_mixed() {
        assert!(Elements::of(&pinhole("10.0.0.1", "[2001:db8::2]:1")).is_err());
    }

    proptest! {
        #[test]
        fn no_key_panics(key in proptest::collection::vec(any::<u8>(), 0..60)) {
            read_key(&key);
        }
    }
}
