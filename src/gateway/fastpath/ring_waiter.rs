//! Waiting for the ring to fill, as long as nobody is in a hurry.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{EventfdFlags, Timespec, epoll, eventfd},
    io::Errno,
};

use super::Ring;

/// What the reader of a ring waits by. Threads may share it; one waits at a time.
#[derive(Debug)]
pub struct RingWaiter {
    epoll: OwnedFd,
    wake_event: OwnedFd,
}

impl RingWaiter {
    /// For the reader of this ring.
    pub fn new(ring: &Ring) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waking = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // By edges: the ring is readable after any record, but the program wakes its reader only where room gets scarce.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, ring, epoll::EventData::new_u64(0), flags)?;
        epoll::add(&epoll, &waking, epoll::EventData::new_u64(1), flags)?;
        Ok(Self { epoll, wake_event: waking })
    }

    /// Waits for so long, or until a quarter of the ring is full, or [`wake`](Self::wake) is called.
    pub fn wait(&self, at_most: Duration) -> io::Result<()> {
        let at_most = Timespec::try_from(at_most).map_err(io::Error::other)?;
        let mut events = Vec::with_capacity(2);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&at_most))
        {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a wait, or the next one if there is none.
    pub fn wake(&self) -> io::Result<()> {
        rustix::io::write(&self.wake_event, &1_u64.to_ne_bytes())?;
        Ok(())
    }
}
