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

/// An interface whose packets the program can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// The interfaces of a network namespace, except for ports of a bridge or a bond. The bridge or bond receives the packets of its
/// ports, and the program is attached there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// Interfaces that can have the program.
    pub usable: Vec<Interface>,
    /// Interfaces for whose packets the rules run before the program.
    pub filtered_early: Vec<Interface>,
    /// Interfaces behind whose program something may change packet marks, and what that is.
    pub mark_writers: Vec<(Interface, String)>,
}

/// Lists the interfaces in the network namespace of this thread.
pub type ListInterfaces = fn() -> io::Result<Interfaces>;

impl Interfaces {
    /// The interfaces at which an earlier daemon may have attached the program.
    pub(crate) fn into_candidates(self) -> impl Iterator<Item = Interface> {
        let mark_writers = self.mark_writers.into_iter().map(|(interface, _)| interface);
        self.usable.into_iter().chain(self.filtered_early).chain(mark_writers)
    }
}

#[derive(Debug)]
pub(crate) struct Attachments {
    list_interfaces: ListInterfaces,
    /// Whether to attach with links.
    uses_links: bool,
    /// By the interface's index.
    pub(crate) attached: BTreeMap<u32, Attachment>,
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

/// What holds the program at an interface.
#[derive(Debug)]
pub(crate) enum Attachment {
    /// A link, which lasts as long as its pin: not longer than the mount namespace that has the BPF file system. After
    /// `ip netns exec` that ends with the daemon.
    Link(PinnedLink),
    /// Nothing: the program stays until it is detached. Only who has CAP_SYS_ADMIN finds it again.
    WithoutLink,
}

impl Attachment {
    fn with_link(program: BorrowedFd<'_>, interface: u32, pins: &PinDirectory) -> io::Result<Self> {
        let fd = syscall::attach_tcx(program, interface)?;
        let (name, pins) = (PinDirectory::link_name(interface), pins.clone());
        match syscall::pin(fd.as_fd(), &pins.pin_path(&name)) {
            // Somebody removed the directory. The link lasts as long as this daemon.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            pinned => pinned?,
        }
        Ok(Self::Link(PinnedLink { fd, name, pins }))
    }

    fn is_at(&self, program: BorrowedFd<'_>, interface: u32) -> bool {
        match self {
            Self::Link(link) => {
                syscall::attached_interface(link.fd.as_fd()).is_ok_and(|found| found == interface)
            }
            // An earlier daemon's link may have held it, which ended with that one's pins.
            Self::WithoutLink => syscall::is_attached(program, interface).unwrap_or(false),
        }
    }

    fn remove(&self, program: BorrowedFd<'_>, interface: u32) -> io::Result<()> {
        match self {
            Self::Link(link) => link.remove(),
            Self::WithoutLink => match syscall::detach_tcx(program, interface) {
                // The interface was deleted, or the program is not there any more.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => {
                    Ok(())
                }
                detached => detached,
            },
        }
    }
}

impl Attachments {
    /// Starts with the `pinned` links of an earlier daemon, and what it attached without links; with none if the program
    /// is not loaded yet. The program is needed at first, so that the daemon finds out whether it can be attached.
    pub(crate) fn open(
        program: Option<BorrowedFd<'_>>,
        pinned: Vec<PinnedLink>,
        uses_links: bool,
        list_interfaces: ListInterfaces,
    ) -> io::Result<Self> {
        let mut attached = BTreeMap::new();
        for link in pinned {
            match syscall::attached_interface(link.fd.as_fd())? {
                0 => link.remove()?,
                interface => drop(attached.insert(interface, Attachment::Link(link))),
            }
        }
        for Interface { index, .. } in list_interfaces()?.into_candidates() {
            if let (Some(program), Entry::Vacant(free)) = (program, attached.entry(index))
                && syscall::is_attached(program, index)?
            {
                free.insert(Attachment::WithoutLink);
            }
        }
        let indices = attached.keys().copied().collect();
        Ok(Self {
            list_interfaces,
            uses_links,
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

    /// Notes whether the program is in use `now`. After [`DETACH_AFTER`] without use it is not needed any more.
    pub(crate) fn note_use(&mut self, is_used: bool, now: Instant) {
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
        interfaces.usable.retain(|Interface { index, .. }| {
            !self.attached.contains_key(index)
                || !syscall::has_later_program(program, *index).unwrap_or(false)
        });
        for (interface, what) in &interfaces.mark_writers {
            let is_it = |(known, _): &(Interface, String)| known == interface;
            if !self.interfaces.mark_writers.iter().any(is_it) {
                let name = &interface.name;
                tracing::info!("no fast path at {name}: {what} may change packet marks");
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
        self.attached.retain(|index, attachment| {
            let stays = interfaces.iter().any(|interface| interface.index == *index)
                && attachment.is_at(program, *index);
            if !stays && let Err(error) = attachment.remove(program, *index) {
                tracing::warn!("cannot detach the program from interface {index}: {error}");
            }
            stays
        });
        let before = std::mem::take(&mut self.interface_names);
        for Interface { index, name } in interfaces {
            if let Entry::Vacant(free) = self.attached.entry(index) {
                let attachment = if self.uses_links {
                    Attachment::with_link(program, index, pins)
                } else {
                    syscall::attach_tcx_without_link(program, index)
                        .map(|()| Attachment::WithoutLink)
                };
                // The interface was deleted meanwhile.
                if attachment.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::ENODEV)) {
                    continue;
                }
                let what = format!("attach the program to interface {name}");
                free.insert(attachment.or_unavailable(what)?);
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
    pub(crate) fn detach_all(&mut self, program: BorrowedFd<'_>) -> io::Result<()> {
        self.interface_names.clear();
        // All are removed, even if one fails: a detached program inspects nothing, even if its pin stays.
        let attached = std::mem::take(&mut self.attached);
        let removed = attached.iter().map(|(index, attachment)| attachment.remove(program, *index));
        removed.fold(Ok(()), io::Result::and)
    }
}
