//! An entry of the registry: a pinhole, and who has it.

use std::net::IpAddr;

use crate::engine::{ClientKey, Pinhole, offload::handover::FastPathPinhole};

/// An entry of the registry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegistryEntry {
    pub(crate) pinhole: Pinhole,
    pub(crate) serial: u64,
    /// The client it counts for.
    pub(crate) client: ClientKey,
    pub(crate) is_released: bool,
    /// Whether the kernel may have it open: no connection is known to have consumed it, and its deadline has not
    /// passed. A preliminary reply says neither: the server may be about to connect.
    pub(crate) is_open: bool,
    /// Whether its transfer has started, so that it may be consumed.
    pub(crate) has_started: bool,
    /// Whether its connection is on the fast path, so that the grant counts for the client.
    pub(crate) is_granted: bool,
    /// Identity in the BPF program, if that has it; the rules do not know it then.
    pub(crate) fast_path: Option<FastPathPinhole>,
}

impl RegistryEntry {
    pub(crate) fn new(pinhole: Pinhole, serial: u64, client: ClientKey) -> Self {
        Self {
            pinhole,
            serial,
            client,
            is_released: false,
            is_open: true,
            has_started: false,
            is_granted: false,
            fast_path: None,
        }
    }

    /// One that only the kernel may still have. It counts for nobody.
    pub(crate) fn released(pinhole: Pinhole, serial: u64) -> Self {
        Self { is_released: true, ..Self::new(pinhole, serial, pinhole.target.ip().into()) }
    }

    /// Whether it is this pinhole, and a session holds it.
    pub(crate) fn is_held(&self, pinhole: &Pinhole) -> bool {
        !self.is_released && self.pinhole == *pinhole
    }

    /// From now on the rules have it, not the BPF program.
    pub(crate) fn move_to_rules(&mut self) {
        (self.fast_path, self.is_granted) = (None, false);
    }

    /// Whether it counts for its client's limit.
    pub(crate) fn counts(&self) -> bool {
        self.is_open && !self.is_released && !self.is_granted
    }

    /// Whether a session waits for its data connection, as far as is known.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.is_open && !self.is_released && !self.has_started
    }
}

/// What a pinhole's endpoints are used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndpointUse {
    /// Nothing, or a pinhole with the same target that nobody waits for.
    None,
    /// The pinhole with this serial number and the same target waits for its data connection.
    WaitedFor(u64),
    /// A pinhole with another target, which may be released.
    OtherTarget,
}

/// The entry with the same endpoints that a pinhole replaces until it is opened.
#[derive(Clone, Debug)]
pub(crate) enum ReplacedEntry {
    /// A released one, which only the kernel may still have.
    Released { source: IpAddr, serial: u64 },
    /// One that a session holds, which is rare.
    Held(Box<RegistryEntry>),
}

impl ReplacedEntry {
    pub(crate) fn new(entry: &RegistryEntry) -> Self {
        let RegistryEntry { pinhole: Pinhole { source, .. }, serial, is_released, .. } = *entry;
        if is_released { Self::Released { source, serial } } else { Self::Held(Box::new(*entry)) }
    }

    /// The entry, which `pinhole` replaced.
    pub(crate) fn entry(&self, pinhole: &Pinhole) -> RegistryEntry {
        match *self {
            Self::Released { source, serial } => {
                RegistryEntry::released(Pinhole { source, ..*pinhole }, serial)
            }
            Self::Held(ref entry) => **entry,
        }
    }
}
