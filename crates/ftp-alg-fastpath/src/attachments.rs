//! The interfaces that the program is attached to.
//!
//! The kernel's hook delays every packet of an interface, also those of other protocols. So the program is attached
//! only while it is in use: while a connection is handed over or a pinhole is open. This module does not know about
//! connections and pinholes.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    os::fd::{AsFd as _, BorrowedFd},
    time::{Duration, Instant},
};

use super::{
    FastPathUnavailable, OrUnavailable as _,
    pin_directory::{PinDirectory, PinnedLink},
    syscall,
};

/// How long after its last use the program is detached.
const DETACH_AFTER: Duration = Duration::from_secs(10);

/// An interface that receives Ethernet frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EthernetInterface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// The interfaces of a network namespace that receive Ethernet frames, except for ports of a bridge or a bond. The bridge
/// or bond receives the packets of its ports, and the program is attached there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// Those that can have the program.
    pub usable: Vec<EthernetInterface>,
    /// The names of those for whose packets the rules run before the program.
    pub filtered_early: Vec<String>,
    /// Those behind whose program something may change packet marks: `wan0: tc filter bpf`.
    pub mark_writers: Vec<String>,
}

/// Lists the interfaces in the network namespace of this thread.
pub type ListInterfaces = fn() -> io::Result<Interfaces>;

#[derive(Debug)]
pub(crate) struct Attachments {
    list_interfaces: ListInterfaces,
    /// The links, by the interface's index.
    pub(crate) attached: BTreeMap<u32, PinnedLink>,
    /// Names of the interfaces with an attachment.
    pub(crate) interface_names: Vec<String>,
    /// The interfaces of the last reading.
    pub(crate) interfaces: Interfaces,
    usable: UsableInterfaces,
    /// Whether the program is to be attached.
    pub(crate) is_needed: bool,
    unused_since: Option<Instant>,
}

/// The interfaces that can have the program.
#[derive(Clone, Debug, Default)]
pub struct UsableInterfaces {
    /// Their indices, in order.
    pub indices: Vec<u32>,
    /// The indices of those that were such interfaces when this was last taken, and are none now. A connection or a
    /// pinhole may be there.
    pub lost: Vec<u32>,
}

/// Attaches the program to an interface by a link, which lasts as long as its pin.
fn attach(program: BorrowedFd<'_>, interface: u32, pins: &PinDirectory) -> io::Result<PinnedLink> {
    let fd = syscall::attach_tcx(program, interface)?;
    let (name, pins) = (PinDirectory::link_name(interface), pins.clone());
    match syscall::pin(fd.as_fd(), &pins.pin_path(&name)) {
        // Somebody removed the directory. The link lasts as long as this daemon.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        pinned => pinned?,
    }
    Ok(PinnedLink { fd, name, pins })
}

impl Attachments {
    /// Starts with the `pinned` links of an earlier daemon. The program is needed at first, so that the daemon finds out
    /// whether it can be attached.
    pub(crate) fn open(
        pinned: Vec<PinnedLink>,
        list_interfaces: ListInterfaces,
    ) -> io::Result<Self> {
        let mut attached = BTreeMap::new();
        for link in pinned {
            match syscall::attached_interface(link.fd.as_fd())? {
                0 => link.remove()?,
                interface => drop(attached.insert(interface, link)),
            }
        }
        let indices = attached.keys().copied().collect();
        Ok(Self {
            list_interfaces,
            interface_names: Vec::new(),
            interfaces: Interfaces::default(),
            usable: UsableInterfaces { indices, lost: Vec::new() },
            attached,
            is_needed: true,
            unused_since: None,
        })
    }

    /// Reads which interfaces there are.
    pub(crate) fn find_usable_interfaces(
        &mut self,
        program: BorrowedFd<'_>,
    ) -> Result<UsableInterfaces, FastPathUnavailable> {
        self.read_interfaces(program)?;
        let lost = std::mem::take(&mut self.usable.lost);
        Ok(UsableInterfaces { lost, ..self.usable.clone() })
    }

    /// Records whether the program is in use `now`. After [`DETACH_AFTER`] without use it is not needed any more.
    pub(crate) fn record_use(&mut self, is_used: bool, now: Instant) {
        self.unused_since = (!is_used).then(|| self.unused_since.unwrap_or(now));
        self.is_needed = self
            .unused_since
            .is_none_or(|since| now.saturating_duration_since(since) < DETACH_AFTER);
    }

    /// Attaches the program, unless it is needed already.
    pub(crate) fn ensure_attached(
        &mut self,
        program: BorrowedFd<'_>,
        pins: &PinDirectory,
    ) -> Result<(), FastPathUnavailable> {
        if self.is_needed {
            return Ok(());
        }
        (self.is_needed, self.unused_since) = (true, None);
        self.read_interfaces(program)?;
        self.sync_with_interfaces(program, pins)
    }

    fn read_interfaces(&mut self, program: BorrowedFd<'_>) -> Result<(), FastPathUnavailable> {
        let mut interfaces = (self.list_interfaces)().or_unavailable("list the interfaces")?;
        // A program that was attached later may change packet marks as well. After the next reading this one is the last
        // one again.
        interfaces.usable.retain(|EthernetInterface { index, .. }| {
            !self.attached.contains_key(index)
                || !syscall::has_later_program(program, *index).unwrap_or(false)
        });
        for writer in &interfaces.mark_writers {
            if !self.interfaces.mark_writers.contains(writer) {
                tracing::info!("no fast path at {writer} may change packet marks");
            }
        }
        self.interfaces = interfaces;
        let mut indices: Vec<_> = self.interfaces.usable.iter().map(|one| one.index).collect();
        indices.sort_unstable();
        let before = std::mem::replace(&mut self.usable.indices, indices);
        let is_lost = |index: &u32| self.usable.indices.binary_search(index).is_err();
        self.usable.lost.extend(before.into_iter().filter(is_lost));
        Ok(())
    }

    /// Attaches the program to the interfaces of the last reading if it is needed, and detaches it from all others.
    pub(crate) fn sync_with_interfaces(
        &mut self,
        program: BorrowedFd<'_>,
        pins: &PinDirectory,
    ) -> Result<(), FastPathUnavailable> {
        let interfaces = if self.is_needed { self.interfaces.usable.clone() } else { Vec::new() };
        self.attached.retain(|index, link| {
            let is_at =
                || syscall::attached_interface(link.fd.as_fd()).is_ok_and(|at| at == *index);
            let stays = interfaces.iter().any(|interface| interface.index == *index) && is_at();
            if !stays && let Err(error) = link.remove() {
                tracing::warn!("cannot detach the program from interface {index}: {error}");
            }
            stays
        });
        let before = std::mem::take(&mut self.interface_names);
        for EthernetInterface { index, name } in interfaces {
            if let Entry::Vacant(free) = self.attached.entry(index) {
                let link = attach(program, index, pins);
                // The interface was deleted meanwhile.
                if link.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ENODEV)) {
                    continue;
                }
                free.insert(
                    link.or_unavailable(format!("attach the program to interface {name}"))?,
                );
            }
            self.interface_names.push(name);
        }
        match &self.interface_names[..] {
            names if names == before => {}
            [] => tracing::debug!("fast path detached: no connection is handed over"),
            names => tracing::debug!("fast path attached: {}", names.join(", ")),
        }
        Ok(())
    }

    /// Detaches the program from all interfaces.
    pub(crate) fn detach_all(&mut self) -> io::Result<()> {
        self.interface_names.clear();
        // All are removed, even if one fails: a detached program inspects nothing, even if its pin stays.
        let attached = std::mem::take(&mut self.attached);
        attached.values().map(PinnedLink::remove).fold(Ok(()), io::Result::and)
    }
}
