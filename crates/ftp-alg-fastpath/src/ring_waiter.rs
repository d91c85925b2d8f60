//! Waits until the ring fills, until a time is over, or until another thread ends the wait.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{EventfdFlags, Timespec, epoll, eventfd},
    io::Errno,
};

use super::Ring;

/// Lets the reader of a ring wait. Threads may share it, and one waits at a time.
#[derive(Debug)]
pub struct RingWaiter {
    epoll: OwnedFd,
    wake_event: OwnedFd,
}

impl RingWaiter {
    /// Creates a waiter for the reader of this ring.
    pub fn new(ring: &Ring) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waking = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Edge-triggered: the ring is readable after every record, but the program wakes the reader only if room gets
        // scarce.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, ring, epoll::EventData::new_u64(0), flags)?;
        epoll::add(&epoll, &waking, epoll::EventData::new_u64(1), flags)?;
        Ok(Self { epoll, wake_event: waking })
    }

    /// Waits for `at_most`, or until a quarter of the ring is full, or until [`wake`](Self::wake) is called.
    pub fn wait(&self, at_most: Duration) -> io::Result<()> {
        let at_most = Timespec::try_from(at_most).map_err(io::Error::other)?;
        let mut events = Vec::with_capacity(2);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&at_most))
        {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends the current wait, or the next one if no thread waits now.
    pub fn wake(&self) -> io::Result<()> {
        rustix::io::write(&self.wake_event, &1_u64.to_ne_bytes())?;
        Ok(())
    }
}
