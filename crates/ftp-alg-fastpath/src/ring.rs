//! The ring buffer into which the program writes each inspected line, read through a mapping of our own.
//!
//! The program reserves a record before it decides about a line, and commits or discards the record afterwards. So
//! when a packet is read from the queue, every line that was inspected before has at least a reserved record. A
//! reader that waits for the reserved records therefore knows all earlier lines.
//!
//! A record that was read stays in the ring until it is [released](Ring::release), so that the next daemon reads it
//! if this one is killed.
//!
//! The layout is that of the kernel (`kernel/bpf/ringbuf.c`): a page with the consumer's position, a page with the
//! producer's position, and the data. The data is mapped twice, one after the other, so that every record is
//! contiguous.

#![allow(unsafe_code)]

use std::{
    hint, io,
    os::fd::{AsRawFd as _, BorrowedFd},
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

use super::{layout::LineRecord, lock};

// From linux/bpf.h: bits of a record's length, and the size of a record's header.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
const RECORD_HEADER: usize = 8;

/// How often to look at a record before yielding to other threads, and how long to wait for its commit. The program
/// commits within microseconds, unless a hypervisor stops its virtual processor meanwhile.
const SPINS: u32 = 1000;
const COMMIT_TIMEOUT: Duration = Duration::from_secs(1);

/// The ring. Threads may share it, and one reads at a time.
#[derive(Debug)]
pub struct Ring {
    consumer: Mapping,
    producer: Mapping,
    page: usize,
    size: usize,
    /// All records before this position were read.
    position: AtomicUsize,
    read_lock: Mutex<()>,
}

impl Ring {
    /// Maps the ring, which has `size` bytes of data. Reading starts with the first record that was not released.
    pub(crate) fn open(map: BorrowedFd<'_>, size: u32) -> io::Result<Self> {
        let (page, size) = (page_size()?, size as usize);
        let consumer = Mapping::new(map, 0, page, libc::PROT_READ | libc::PROT_WRITE)?;
        let producer = Mapping::new(map, page, page + 2 * size, libc::PROT_READ)?;
        let position = AtomicUsize::new(consumer.position_at(0).load(Acquire));
        Ok(Self { consumer, producer, page, size, position, read_lock: Mutex::new(()) })
    }

    /// Appends all lines whose records are reserved by now, in the order of their reservation, and waits for records
    /// that another processor is about to commit. Returns `false` if a record was not committed within a second; the
    /// lines before it were read.
    #[must_use]
    pub fn read(&self, into: &mut Vec<LineRecord>) -> bool {
        // After a panic the position is that of the last record that was read.
        let _reading = lock(&self.read_lock);
        while self.has_unread() {
            let position = self.position.load(Relaxed);
            let at = self.page + (position & (self.size - 1));
            let Some(length) = self.wait_for_commit(at) else { return false };
            let size = (length & !DISCARDED) as usize;
            if length & DISCARDED == 0 && size == LineRecord::SIZE {
                into.push(LineRecord::from_bytes(&self.producer.copy_bytes(at + RECORD_HEADER)));
            }
            let next = position.wrapping_add((RECORD_HEADER + size).next_multiple_of(8));
            self.position.store(next, Release);
        }
        true
    }

    /// Waits until the record at `at` is committed, and returns its length.
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

    /// Whether there is a reserved record that was not read.
    pub fn has_unread(&self) -> bool {
        self.producer.position_at(0).load(Acquire) != self.position.load(Acquire)
    }

    /// The position up to which the ring was read.
    pub fn position(&self) -> u64 {
        self.position.load(Acquire) as u64
    }

    /// Releases the records before `position`, which must have been read. No later daemon reads them.
    pub fn release(&self, position: u64) {
        let _reading = lock(&self.read_lock);
        let consumer = self.consumer.position_at(0);
        // Positions wrap around if they have 32 bits.
        let position = position as usize;
        let released = position.wrapping_sub(consumer.load(Relaxed));
        let read = self.position.load(Relaxed).wrapping_sub(consumer.load(Relaxed));
        if released <= read {
            consumer.store(position, Release);
        }
    }

    /// How many bytes were not released.
    pub fn unreleased_bytes(&self) -> usize {
        let consumer = self.consumer.position_at(0).load(Relaxed);
        self.producer.position_at(0).load(Acquire).wrapping_sub(consumer)
    }
}

fn page_size() -> io::Result<usize> {
    // SAFETY: it only returns a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).map_err(io::Error::other)
}

/// A part of the map's memory, which the kernel shares with this process.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory belongs to no thread, and all accesses to values that may change meanwhile are atomic.
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

    /// The position of the consumer or producer, at offset `at`.
    fn position_at(&self, at: usize) -> &AtomicUsize {
        assert!(at.is_multiple_of(align_of::<AtomicUsize>()) && at + 8 <= self.length);
        // SAFETY: the value is within the mapping, which lives as long as `self`, and is aligned, because the mapping
        // is aligned to a page. The kernel changes it atomically (smp_store_release), and this process writes only
        // the consumer's page.
        unsafe { AtomicUsize::from_ptr(self.start.as_ptr().add(at).cast()) }
    }

    /// The length in the header of the record at `at`.
    fn record_length_at(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(align_of::<AtomicU32>()) && at + 4 <= self.length);
        // SAFETY: within the mapping and aligned, as above. The kernel changes it atomically (xchg), and this process
        // never writes it.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(at).cast()) }
    }

    /// Copies bytes of a committed record.
    fn copy_bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        assert!(at + N <= self.length);
        let mut bytes = [0; N];
        // SAFETY: within the mapping. The kernel does not write into a record between its commit and its release.
        unsafe {
            std::ptr::copy_nonoverlapping(self.start.as_ptr().add(at), bytes.as_mut_ptr(), N);
        }
        bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the memory was mapped with this length, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
