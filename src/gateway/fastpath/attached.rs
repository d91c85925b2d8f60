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
    Missing,
    interfaces::{self, Interface},
    pins::{Link, Pins},
    syscall,
};
use crate::gateway::netlink::Socket;

/// So long after its last use the program is taken off the interfaces.
const UNUSED: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Attached {
    /// For questions, in the namespace of the program.
    socket: Socket,
    /// By interface.
    links: BTreeMap<u32, Link>,
    /// Of the interfaces with a link.
    names: Vec<String>,
    /// Whether it is to be attached.
    is_wanted: bool,
    unused_since: Option<Instant>,
}

impl Attached {
    /// With the links that another daemon left. It is wanted at first, so that it shows whether it can be attached.
    pub(super) fn open(left: Vec<Link>) -> io::Result<Self> {
        let mut links = BTreeMap::new();
        for link in left {
            match syscall::interface(link.fd.as_fd())? {
                0 => link.remove()?,
                interface => drop(links.insert(interface, link)),
            }
        }
        let socket = Socket::open_route()?;
        Ok(Self { socket, links, names: Vec::new(), is_wanted: true, unused_since: None })
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    pub(super) fn is_somewhere(&self) -> bool {
        !self.links.is_empty()
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// Whether it is used `now`. After [`UNUSED`] without use it is not wanted any more.
    pub(super) fn note_use(&mut self, is_used: bool, now: Instant) {
        self.unused_since = (!is_used).then(|| self.unused_since.unwrap_or(now));
        self.is_wanted =
            self.unused_since.is_none_or(|since| now.saturating_duration_since(since) < UNUSED);
    }

    /// Attaches it unless it is wanted already.
    pub(super) fn want(&mut self, program: BorrowedFd<'_>, pins: &Pins) -> Result<(), Missing> {
        if self.is_wanted {
            return Ok(());
        }
        (self.is_wanted, self.unused_since) = (true, None);
        self.follow(program, pins)
    }

    /// Attaches the program to the interfaces that there are now, if it is wanted, and takes it off all others.
    pub(super) fn follow(&mut self, program: BorrowedFd<'_>, pins: &Pins) -> Result<(), Missing> {
        let there = if self.is_wanted {
            interfaces::ethernet(&mut self.socket)
                .map_err(|error| Missing::system("list of interfaces", &error))?
        } else {
            Vec::new()
        };
        let is_there = |index: u32, link: &Link| {
            there.iter().any(|one| one.index == index)
                && syscall::interface(link.fd.as_fd()).is_ok_and(|found| found == index)
        };
        self.links.retain(|index, link| {
            let stays = is_there(*index, link);
            if !stays && let Err(error) = link.remove() {
                tracing::warn!("{} is not removed: {error}", link.path.display());
            }
            stays
        });
        let before = std::mem::take(&mut self.names);
        for Interface { index, name } in there {
            if let Entry::Vacant(free) = self.links.entry(index) {
                match attach(program, index, pins) {
                    Ok(link) => _ = free.insert(link),
                    // It has gone again.
                    Err(error) if error.raw_os_error() == Some(libc::ENODEV) => continue,
                    Err(error) => {
                        let what = format!("attach the program to interface {name}");
                        return Err(Missing::system(&what, &error));
                    }
                }
            }
            self.names.push(name);
        }
        match &self.names[..] {
            names if names == before => {}
            [] => tracing::debug!("fast path: detached, as no connection is judged"),
            names => tracing::debug!("fast path: attached to {}", names.join(", ")),
        }
        Ok(())
    }

    /// Takes it off all interfaces.
    pub(super) fn remove(&mut self) -> io::Result<()> {
        self.names.clear();
        // All are tried: what is detached judges nothing, whatever becomes of its pin.
        let links = std::mem::take(&mut self.links);
        links.values().map(Link::remove).fold(Ok(()), io::Result::and)
    }
}

fn attach(program: BorrowedFd<'_>, interface: u32, pins: &Pins) -> io::Result<Link> {
    let fd = syscall::attach(program, interface)?;
    let path = pins.link(interface);
    syscall::pin(fd.as_fd(), &path)?;
    Ok(Link { fd, path })
}
