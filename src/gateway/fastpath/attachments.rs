//! What the program is attached to, and when. Its hook delays every packet of an interface, also those of other protocols, so it
//! is attached only while it has something to judge.
//!
//! Does not know what that is.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    os::fd::{AsFd as _, BorrowedFd},
    time::{Duration, Instant},
};

use super::{
    FastPathUnavailable,
    interfaces::{self, EthernetInterface},
    pin_directory::{PinDirectory, PinnedLink},
    syscall,
};
use crate::gateway::netlink::Socket;

/// So long after its last use the program is taken off the interfaces.
const DETACH_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Attachments {
    /// For questions, in the namespace of the program.
    socket: Socket,
    /// By interface.
    links: BTreeMap<u32, PinnedLink>,
    /// Of the interfaces with a link.
    interface_names: Vec<String>,
    /// Whether it is to be attached.
    is_needed: bool,
    unused_since: Option<Instant>,
}

impl Attachments {
    /// With the links that another daemon left. It is wanted at first, so that it shows whether it can be attached.
    pub(super) fn open(left: Vec<PinnedLink>) -> io::Result<Self> {
        let mut links = BTreeMap::new();
        for link in left {
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

    /// Whether it is used `now`. After [`UNUSED`] without use it is not wanted any more.
    pub(super) fn record_use(&mut self, is_used: bool, now: Instant) {
        self.unused_since = (!is_used).then(|| self.unused_since.unwrap_or(now));
        self.is_needed = self
            .unused_since
            .is_none_or(|since| now.saturating_duration_since(since) < DETACH_AFTER);
    }

    /// Attaches it unless it is wanted already.
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

    /// Attaches the program to the interfaces that there are now, if it is wanted, and takes it off all others.
    pub(super) fn sync_with_interfaces(
        &mut self,
        program: BorrowedFd<'_>,
        pins: &PinDirectory,
    ) -> Result<(), FastPathUnavailable> {
        let there = if self.is_needed {
            interfaces::list_ethernet_interfaces(&mut self.socket)
                .map_err(|error| FastPathUnavailable::from_io_error("list of interfaces", &error))?
        } else {
            Vec::new()
        };
        let is_there = |index: u32, link: &PinnedLink| {
            there.iter().any(|one| one.index == index)
                && syscall::attached_interface(link.fd.as_fd()).is_ok_and(|found| found == index)
        };
        self.links.retain(|index, link| {
            let stays = is_there(*index, link);
            if !stays && let Err(error) = link.remove() {
                tracing::warn!("{} is not removed: {error}", link.path.display());
            }
            stays
        });
        let before = std::mem::take(&mut self.interface_names);
        for EthernetInterface { index, name } in there {
            if let Entry::Vacant(free) = self.links.entry(index) {
                match attach_and_pin(program, index, pins) {
                    Ok(link) => _ = free.insert(link),
                    // It has gone again.
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
            [] => tracing::debug!("fast path: detached, as no connection is judged"),
            names => tracing::debug!("fast path: attached to {}", names.join(", ")),
        }
        Ok(())
    }

    /// Takes it off all interfaces.
    pub(super) fn detach_all(&mut self) -> io::Result<()> {
        self.interface_names.clear();
        // All are tried: what is detached judges nothing, whatever becomes of its pin.
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
    syscall::pin(fd.as_fd(), &path)?;
    Ok(PinnedLink { fd, path })
}
