//! Pinholes as elements of the sets and maps in our table.
//!
//! A pinhole is three elements, written in one atomic batch: the permission (`pinholes*`, which
//! the kernel deletes when a connection uses it), where the connection goes (`targets*`) and the
//! source it shows there (`sources*`). The latter two mean something only for a connection that
//! the permission admitted, so what is left of them when it is gone does nothing; opening writes
//! them anew whatever they were. Knows nothing of the connection that asked for the pinhole.

use std::{
    collections::HashMap,
    ffi::CStr,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use super::{
    GatewayError,
    netlink::Socket,
    nft::{self, Batch, Element},
};
use crate::engine::{KernelError, Opening, Pinhole};

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
    leftovers: Leftovers,
}

type MapKey = (&'static CStr, Vec<u8>);

/// Translations that we wrote and that may still be in the kernel, by map and key. Without this
/// opening is as right, but needs a failing batch to learn what is there.
#[derive(Debug, Default)]
struct Leftovers {
    written: HashMap<MapKey, (Vec<u8>, Instant)>,
    /// When the expired ones are looked for again.
    prune_above: usize,
}

impl Leftovers {
    fn data(&self, map: &'static CStr, key: &[u8]) -> Option<Vec<u8>> {
        self.written.get(&(map, key.to_vec())).map(|(data, _)| data.clone())
    }

    fn wrote(&mut self, map: &'static CStr, key: &[u8], data: &[u8], lifetime: Duration) {
        let now = Instant::now();
        if self.written.len() > self.prune_above {
            self.written.retain(|_, (_, expiry)| *expiry > now);
            self.prune_above = (self.written.len() * 2).max(1024);
        }
        if let Some(expiry) = now.checked_add(lifetime) {
            self.written.insert((map, key.to_vec()), (data.to_vec(), expiry));
        }
    }

    fn deleted(&mut self, map: &'static CStr, key: &[u8]) {
        self.written.remove(&(map, key.to_vec()));
    }
}

/// How to be rid of what is under a translation's key.
enum Old {
    /// Nothing is there.
    Absent,
    /// What we wrote may be there.
    Written(Vec<u8>),
    /// Something is there.
    Present,
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
    /// Opens a netlink socket; the table need not be there yet.
    pub fn new() -> Result<Self, GatewayError> {
        let socket = Socket::open().map_err(|e| GatewayError::system("netlink socket", e))?;
        Ok(Self { socket, batch: Batch::new(), leftovers: Leftovers::default() })
    }

    /// Opens a pinhole for one connection, within its lifetime. [`KernelError::Taken`] if initiator
    /// and arrival are those of an open pinhole.
    pub fn open(&mut self, opening: &Opening<'_>) -> Result<(), KernelError> {
        let Opening { pinhole, lifetime, .. } = *opening;
        let failed =
            |source| KernelError::System { what: format!("open pinhole {pinhole}"), source };
        let elements = Elements::of(pinhole).map_err(failed)?;
        let sets = elements.sets;
        let longer = lifetime.saturating_add(TRANSLATIONS_LONGER);
        // An element cannot be overwritten. What is there is guessed, then learned from errors.
        let mut old = [(sets.targets, &elements.key), (sets.sources, &elements.source_key)]
            .map(|(map, key)| self.leftovers.data(map, key).map_or(Old::Absent, Old::Written));
        let translations = [
            (sets.targets, &elements.key, &elements.target),
            (sets.sources, &elements.source_key, &elements.source),
        ]
        .map(|(set, key, data)| Element {
            set,
            key,
            data: Some(data),
            timeout: Some(longer),
        });
        for _ in 0..ATTEMPTS {
            self.batch.clear();
            let permission = self.batch.add_element(&Element {
                set: sets.pinholes,
                key: &elements.key,
                data: None,
                timeout: Some(lifetime),
            });
            let [mut target, mut source] = [(usize::MAX, usize::MAX); 2];
            for ((element, old), at) in
                translations.iter().zip(&old).zip([&mut target, &mut source])
            {
                at.0 = match old {
                    Old::Absent => usize::MAX,
                    Old::Written(data) => {
                        self.batch.clear_element(&Element { data: Some(data), ..*element })
                    }
                    Old::Present => self.batch.delete_element(element.set, element.key),
                };
                at.1 = self.batch.add_element(element);
            }
            let outcome = self.batch.send(&mut self.socket).map_err(failed)?;
            let Some(error) = outcome.first_error() else {
                for Element { set, key, data, .. } in translations {
                    self.leftovers.wrote(set, key, data.unwrap_or_default(), longer);
                }
                return Ok(());
            };
            let there =
                |at| outcome.failed_with(at, libc::EEXIST) || outcome.failed_with(at, libc::EBUSY);
            if there(permission) {
                return Err(KernelError::Taken);
            }
            let mut learned = false;
            for (old, (clear, add)) in old.iter_mut().zip([target, source]) {
                if outcome.failed_with(clear, libc::ENOENT) && matches!(old, Old::Present) {
                    *old = Old::Absent;
                    learned = true;
                } else if (there(clear) || there(add)) && !matches!(old, Old::Present) {
                    *old = Old::Present;
                    learned = true;
                }
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
        let sets = elements.sets;
        self.leftovers.deleted(sets.targets, &elements.key);
        // The source stays until it expires: its key has no arrival, so another pinhole to the
        // same target may be using it. The timeout is that of an element that is never seen.
        let timeout = Some(TRANSLATIONS_LONGER);
        let permission = Element { set: sets.pinholes, key: &elements.key, data: None, timeout };
        let target = Element { set: sets.targets, data: Some(&elements.target), ..permission };
        self.batch.clear();
        self.batch.clear_element(&permission);
        self.batch.clear_element(&target);
        match self.batch.send(&mut self.socket).map_err(failed)?.first_error() {
            // Without our table there are no pinholes.
            None | Some(libc::ENOENT) => return Ok(()),
            // The target is that of a later pinhole, which replaced this one.
            Some(libc::EBUSY | libc::EEXIST) => {}
            Some(error) => return Err(failed(io::Error::from_raw_os_error(error))),
        }
        for set in [sets.pinholes, sets.targets] {
            self.batch.clear();
            self.batch.delete_element(set, &elements.key);
            match self.batch.send(&mut self.socket).map_err(failed)?.first_error() {
                None | Some(libc::ENOENT) => {}
                Some(error) => return Err(failed(io::Error::from_raw_os_error(error))),
            }
        }
        Ok(())
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
    key: Vec<u8>,
    target: Vec<u8>,
    source_key: Vec<u8>,
    source: Vec<u8>,
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
            key: bytes(&[initiator], arrival),
            target: bytes(&[], target),
            source_key: bytes(&[initiator], target),
            source: address(source),
        })
    }
}

fn address(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A concatenation: each part takes whole 4-byte words.
fn bytes(before: &[IpAddr], endpoint: SocketAddr) -> Vec<u8> {
    let mut bytes: Vec<u8> = before.iter().copied().flat_map(address).collect();
    bytes.extend(address(endpoint.ip()));
    bytes.extend(endpoint.port().to_be_bytes());
    bytes.extend([0, 0]);
    bytes
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
            assert_eq!(read_key(&elements.key), Some((pinhole.initiator, pinhole.arrival)));
        }
    }

    #[test]
    fn a_key_has_whole_words() {
        let elements = Elements::of(&pinhole("10.0.0.1", "192.0.2.7:258")).unwrap();
        assert_eq!(elements.key, [10, 0, 0, 1, 192, 0, 2, 7, 1, 2, 0, 0]);
        assert_eq!(elements.target, [192, 0, 2, 7, 1, 2, 0, 0]);
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
