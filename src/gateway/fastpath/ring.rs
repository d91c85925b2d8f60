//! The ring that the program writes each judged line to, read through a mapping of our own.
//!
//! A record is reserved before the program decides, and committed or discarded after. So a line that was judged
//! before a packet reached the queue has its record here, if not yet committed, when the packet is read there: who waits for the
//! records that are reserved knows all that was judged. What is read stays in the ring until it is [released](Ring::release);
//! a daemon that is killed before leaves it to the next.
//!
//! The layout is that of the kernel (`kernel/bpf/ringbuf.c`): a page with the consumer's position, one with the
//! producer's, and the data, mapped twice so that no record is in two parts.

#![allow(unsafe_code)]

use std::{
    hint, io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Mutex,
        atomic::{
            AtomicU32, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    layout::{LINE_RECORD, LineRecord},
    lock,
};

// From linux/bpf.h: bits of a record's length, and the size of what is before it.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
const RECORD_HEADER: usize = 8;

/// How often to look before another thread may run, and how long a record may take. The program commits within
/// microseconds, unless its processor is taken away from a virtual machine.
const SPINS: u32 = 1000;
const COMMIT_TIMEOUT: Duration = Duration::from_millis(200);

/// The ring. Threads may share it; one reads at a time.
#[derive(Debug)]
pub struct Ring {
    map: OwnedFd,
    consumer: Mapping,
    producer: Mapping,
    page: usize,
    size: usize,
    /// What is before it was read.
    position: AtomicUsize,
    read_lock: Mutex<()>,
}

impl Ring {
    /// Maps the ring of this many bytes, and starts with what nobody has released.
    pub(super) fn open(map: OwnedFd, size: u32) -> io::Result<Self> {
        let (page, size) = (page_size()?, size as usize);
        let consumer = Mapping::new(map.as_fd(), 0, page, libc::PROT_READ | libc::PROT_WRITE)?;
        let producer = Mapping::new(map.as_fd(), page, page + 2 * size, libc::PROT_READ)?;
        let position = consumer.position_at(0).load(Acquire);
        let position = AtomicUsize::new(position);
        Ok(Self { map, consumer, producer, page, size, position, read_lock: Mutex::new(()) })
    }

    /// Reads every line whose record is reserved by now, in the order in which they were reserved, and waits for those that
    /// another processor is about to commit. `false` if one of them was not committed for a long time: then those before it
    /// were read.
    #[must_use]
    pub fn read(&self, into: &mut Vec<LineRecord>) -> bool {
        // A panic leaves the position at the last record that was read.
        let _reading = lock(&self.read_lock);
        while self.has_unread() {
            let position = self.position.load(Relaxed);
            let at = self.page + (position & (self.size - 1));
            let Some(length) = self.wait_for_commit(at) else { return false };
            let room = (length & !DISCARDED) as usize;
            if length & DISCARDED == 0 && room == LINE_RECORD {
                into.push(LineRecord::read(&self.producer.copy_bytes(at + RECORD_HEADER)));
            }
            let next = position.wrapping_add((RECORD_HEADER + room).next_multiple_of(8));
            self.position.store(next, Release);
        }
        true
    }

    /// The length of the record at `at`, as soon as it is committed.
    fn wait_for_commit(&self, at: usize) -> Option<u32> {
        let length = self.producer.record_length_at(at);
        let mut since = None;
        loop {
            for _ in 0..SPINS {
                let length = length.load(Acquire);
                if length & BUSY == 0 {
                    return Some(length);
                }
                hint::spin_loop();
            }
            if since.get_or_insert_with(Instant::now).elapsed() > COMMIT_TIMEOUT {
                return None;
            }
            thread::yield_now();
        }
    }

    /// Whether a record was reserved that is not read.
    pub fn has_unread(&self) -> bool {
        self.producer.position_at(0).load(Acquire) != self.position.load(Acquire)
    }

    /// How far it was read.
    pub fn position(&self) -> u64 {
        self.position.load(Acquire) as u64
    }

    /// Gives back the room before `position`, which was read to there: what is in it will not be read again by anyone.
    pub fn release(&self, position: u64) {
        let _reading = lock(&self.read_lock);
        let consumer = self.consumer.position_at(0);
        // Positions wrap around where they are of 32 bits.
        let position = position as usize;
        let given = position.wrapping_sub(consumer.load(Relaxed));
        let read = self.position.load(Relaxed).wrapping_sub(consumer.load(Relaxed));
        if given <= read {
            consumer.store(position, Release);
        }
    }

    /// How many bytes are not given back.
    pub fn unreleased_bytes(&self) -> usize {
        let consumer = self.consumer.position_at(0).load(Relaxed);
        self.producer.position_at(0).load(Acquire).wrapping_sub(consumer)
    }
}

/// Readable while any room is not given back. The program wakes who waits when a quarter is full.
impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

fn page_size() -> io::Result<usize> {
    // SAFETY: it only tells.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).map_err(io::Error::other)
}

/// A part of the map's memory, which the kernel shares.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory is no thread's own, and all that is read or written while it may change is atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(map: BorrowedFd<'_>, offset: usize, length: usize, protection: i32) -> io::Result<Self> {
        // SAFETY: the kernel chooses an address that nothing uses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { start, length }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The position that is kept here.
    fn position_at(&self, at: usize) -> &AtomicUsize {
        assert!(at.is_multiple_of(align_of::<AtomicUsize>()) && at + 8 <= self.length);
        // SAFETY: within the mapping, which lives as long as `self`, and aligned, as the mapping is to a page. The
        // kernel changes it in one piece (smp_store_release), and only the consumer's page is written here.
        unsafe { AtomicUsize::from_ptr(self.start.as_ptr().add(at).cast()) }
    }

    /// The length with which a record starts.
    fn record_length_at(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(align_of::<AtomicU32>()) && at + 4 <= self.length);
        // SAFETY: as above; the kernel changes it in one piece (xchg), and it is never written here.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(at).cast()) }
    }

    /// The bytes of a committed record.
    fn copy_bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        assert!(at + N <= self.length);
        let mut bytes = [0; N];
        // SAFETY: within the mapping. Nobody writes into a record between its commit and the release of its room.
        unsafe {
            std::ptr::copy_nonoverlapping(self.start.as_ptr().add(at), bytes.as_mut_ptr(), N);
        }
        bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
