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
    FastPathUnavailable,
    interfaces::{EthernetInterface, list_ethernet_interfaces},
    pin_directory::{PinDirectory, PinnedLink},
    syscall,
};
use crate::gateway::netlink::Socket;

/// How long after its last use the program is detached.
const DETACH_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Attachments {
    /// Socket for rtnetlink, in the namespace of the program.
    socket: Socket,
    /// Links by the interface's index.
    links: BTreeMap<u32, PinnedLink>,
    /// Names of the interfaces with a link.
    interface_names: Vec<String>,
    /// Whether the program is to be attached.
    is_needed: bool,
    unused_since: Option<Instant>,
}

impl Attachments {
    /// Starts with the links of an earlier daemon. The program is needed at first, so that the daemon finds out
    /// whether it can be attached.
    pub(super) fn open(pinned: Vec<PinnedLink>) -> io::Result<Self> {
        let mut links = BTreeMap::new();
        for link in pinned {
            match syscall::attached_interface(link.fd.as_fd())? {
                0 => link.remove()?,
                interface => drop(links.insert(interface, link)),
            }
        }
        let socket = Socket::open_route()?;
        Ok(Self { socket, links, interface_names: Vec::new(), is_needed: true, unused_since: None })
    }

    pub(super) fn interface_names(&self) -> &[String] {
        &self.interface_names
    }

    pub(super) fn has_any(&self) -> bool {
        !self.links.is_empty()
    }

    pub(super) fn is_needed(&self) -> bool {
        self.is_needed
    }

    /// Records whether the program is in use `now`. After [`DETACH_AFTER`] without use it is not needed any more.
    pub(super) fn record_use(&mut self, is_used: bool, now: Instant) {
        self.unused_since = (!is_used).then(|| self.unused_since.unwrap_or(now));
        self.is_needed = self
            .unused_since
            .is_none_or(|since| now.saturating_duration_since(since) < DETACH_AFTER);
    }

    /// Attaches the program, unless it is needed already.
    pub(super) fn ensure_attached(
        &mut self,
        program: BorrowedFd<'_>,
        pins: &PinDirectory,
    ) -> Result<(), FastPathUnavailable> {
        if self.is_needed {
            return Ok(());
        }
        (self.is_needed, self.unused_since) = (true, None);
        self.sync_with_interfaces(program, pins)
    }

    /// Attaches the program to all current interfaces if it is needed, and detaches it from all others.
    pub(super) fn sync_with_interfaces(
        &mut self,
        program: BorrowedFd<'_>,
        pins: &PinDirectory,
    ) -> Result<(), FastPathUnavailable> {
        let interfaces = if self.is_needed {
            list_ethernet_interfaces(&mut self.socket).map_err(|error| {
                FastPathUnavailable::from_io_error("list the interfaces", &error)
            })?
        } else {
            Vec::new()
        };
        let is_current = |index: u32, link: &PinnedLink| {
            interfaces.iter().any(|interface| interface.index == index)
                && syscall::attached_interface(link.fd.as_fd()).is_ok_and(|found| found == index)
        };
        self.links.retain(|index, link| {
            let stays = is_current(*index, link);
            if !stays && let Err(error) = link.remove() {
                tracing::warn!("cannot remove {}: {error}", link.path.display());
            }
            stays
        });
        let before = std::mem::take(&mut self.interface_names);
        for EthernetInterface { index, name } in interfaces {
            if let Entry::Vacant(free) = self.links.entry(index) {
                match attach_and_pin(program, index, pins) {
                    Ok(link) => _ = free.insert(link),
                    // The interface was deleted meanwhile.
                    Err(error) if error.raw_os_error() == Some(libc::ENODEV) => continue,
                    Err(error) => {
                        let what = format!("attach the program to interface {name}");
                        return Err(FastPathUnavailable::from_io_error(&what, &error));
                    }
                }
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
    pub(super) fn detach_all(&mut self) -> io::Result<()> {
        self.interface_names.clear();
        // All links are detached, even if one fails: a detached program inspects nothing, even if its pin stays.
        let links = std::mem::take(&mut self.links);
        links.values().map(PinnedLink::remove).fold(Ok(()), io::Result::and)
    }
}

fn attach_and_pin(
    program: BorrowedFd<'_>,
    interface: u32,
    pins: &PinDirectory,
) -> io::Result<PinnedLink> {
    let fd = syscall::attach_tcx(program, interface)?;
    let path = pins.link_path(interface);
    match syscall::pin(fd.as_fd(), &path) {
        // Somebody removed the directory. The link lasts as long as this daemon.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        pinned => pinned?,
    }
    Ok(PinnedLink { fd, path })
}
