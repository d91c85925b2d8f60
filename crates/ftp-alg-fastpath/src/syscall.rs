//! The system call bpf(2), for what aya does not offer: access to map elements with flags and by shared reference,
//! and links by an interface's index. And fork(2), because a call that loads a program takes long.
//!
//! This module does not know what the elements mean.

#![allow(unsafe_code)]

use std::{
    collections::BTreeSet,
    ffi::CString,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt as _, net::UnixStream},
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use rustix::{
    fs::{CWD, Dir, Mode, OFlags, openat, readlinkat},
    process::{Pid, Signal, WaitOptions, set_parent_process_death_signal, waitpid},
};

/// Names the commands that this module uses, and lists them.
macro_rules! commands {
    ($($name:ident = $number:literal),+) => {
        $(const $name: u32 = $number;)+
        /// The commands that this module uses. The daemon uses no others after the program is loaded.
        pub const BPF_COMMANDS: [u32; 13] = [$($name),+];
    };
}

// From linux/bpf.h; libc lacks them.
commands! {
    BPF_MAP_LOOKUP_ELEM = 1,
    BPF_MAP_UPDATE_ELEM = 2,
    BPF_MAP_DELETE_ELEM = 3,
    BPF_MAP_GET_NEXT_KEY = 4,
    BPF_OBJ_PIN = 6,
    BPF_OBJ_GET = 7,
    BPF_PROG_ATTACH = 8,
    BPF_PROG_DETACH = 9,
    BPF_OBJ_GET_INFO_BY_FD = 15,
    BPF_PROG_QUERY = 16,
    BPF_MAP_LOOKUP_AND_DELETE_ELEM = 21,
    BPF_LINK_CREATE = 28,
    BPF_LINK_DETACH = 34
}
const BPF_TCX_INGRESS: u32 = 46;

/// The kernel attaches at most this many programs to an interface (BPF_MPROG_MAX).
const MAX_ATTACHED: usize = 64;

/// Flag: whether the element exists or not.
pub(crate) const ANY: u64 = 0;
/// Flag: only if the element does not exist.
pub(crate) const NOEXIST: u64 = 1;
/// Flag: only if the element exists.
pub(crate) const EXIST: u64 = 2;
/// Flag: under the spin lock in the element.
pub(crate) const LOCK: u64 = 4;

/// A map, with its sizes as the kernel reports them.
#[derive(Debug)]
pub(crate) struct BpfMap {
    fd: OwnedFd,
    key_size: usize,
    /// Number of bytes that the kernel reads and writes for one key.
    value_size: usize,
    max_entries: u32,
}

#[repr(C)]
struct ElementAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct PinAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

/// The start of `struct bpf_map_info`, and of `struct bpf_link_info` for a TCX link.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Info {
    kind: u32,
    id: u32,
    /// Size of a map's key, or ID of a link's program.
    key_size_or_program_id: u32,
    /// Size of a map's value; not used for a link.
    value_size: u32,
    /// Most elements of a map, or interface of a link.
    max_entries_or_ifindex: u32,
    map_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    interface: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    pad: u32,
    program_flags: u64,
    link_ids: u64,
    link_flags: u64,
    revision: u64,
}

/// Calls bpf(2). Attributes after the end of `attr` are 0.
///
/// # Safety
///
/// `attr` must be what `command` reads. The memory that its pointers refer to must be large enough for what `command`
/// reads and writes.
unsafe fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i32> {
    let size = size_of::<T>();
    // SAFETY: the address and size are those of `attr`; the caller guarantees the rest.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as i32) }
}

/// As [`bpf`], for a command that returns a new descriptor.
///
/// # Safety
///
/// As for [`bpf`].
unsafe fn bpf_returning_fd<T>(command: u32, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller guarantees it.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw_fd(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn pointer_value<T>(of: *const T) -> u64 {
    of.expose_provenance() as u64
}

impl BpfMap {
    /// Opens a pinned map. `copies` is the number of values that the kernel reads and writes for one key: one, or one
    /// for each possible processor if it is a per-CPU map.
    pub(crate) fn open(path: &Path, copies: usize) -> io::Result<Self> {
        Self::new(open_pinned(path)?, copies)
    }

    /// As [`BpfMap::open`], for an open map.
    pub(crate) fn new(fd: OwnedFd, copies: usize) -> io::Result<Self> {
        let info = object_info(fd.as_fd())?;
        let size = |number: u32| number as usize;
        let value = if copies == 1 {
            size(info.value_size)
        } else {
            size(info.value_size).next_multiple_of(8) * copies
        };
        Ok(Self {
            fd,
            key_size: size(info.key_size_or_program_id),
            value_size: value,
            max_entries: info.max_entries_or_ifindex,
        })
    }

    /// The most elements of the map, or the size of a ring in bytes.
    pub(crate) fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// Calls a command for the element with this key; without a key, for the start of the map.
    fn call(&self, command: u32, key: Option<&[u8]>, value: u64, flags: u64) -> io::Result<()> {
        if key.is_some_and(|key| key.len() != self.key_size) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let map = raw_fd(self.fd.as_fd());
        let key = key.map_or(0, |key| pointer_value(key.as_ptr()));
        let mut attr = ElementAttr { map, pad: 0, key, value, flags };
        // SAFETY: key and value have the sizes of the map's: the key was checked above, and each caller checks the
        // value. Where there is no key, the kernel accepts a null pointer.
        unsafe { bpf(command, &mut attr) }.map(drop)
    }

    /// Reads an element into `value`. Returns whether it exists.
    fn read(&self, command: u32, key: &[u8], value: &mut [u8], flags: u64) -> io::Result<bool> {
        self.check_size(value)?;
        was_found(self.call(command, Some(key), pointer_value(value.as_mut_ptr()), flags))
    }

    /// The value of a key, if the element exists.
    pub(crate) fn look_up<const N: usize>(
        &self,
        key: &[u8],
        flags: u64,
    ) -> io::Result<Option<[u8; N]>> {
        let mut value = [0; N];
        let is_found = self.read(BPF_MAP_LOOKUP_ELEM, key, &mut value, flags)?;
        Ok(is_found.then_some(value))
    }

    /// The values of all processors in a per-CPU map, one after the other.
    pub(crate) fn look_up_copies(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        let mut values = vec![0; self.value_size];
        self.read(BPF_MAP_LOOKUP_ELEM, key, &mut values, ANY)?;
        Ok(values)
    }

    /// The value of a key, whose element is deleted, atomically. `None` if it did not exist.
    pub(crate) fn take<const N: usize>(&self, key: &[u8]) -> io::Result<Option<[u8; N]>> {
        let mut value = [0; N];
        let is_found = self.read(BPF_MAP_LOOKUP_AND_DELETE_ELEM, key, &mut value, ANY)?;
        Ok(is_found.then_some(value))
    }

    pub(crate) fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        self.check_size(value)?;
        self.call(BPF_MAP_UPDATE_ELEM, Some(key), pointer_value(value.as_ptr()), flags)
    }

    fn check_size(&self, value: &[u8]) -> io::Result<()> {
        let is_right = value.len() == self.value_size;
        is_right.then_some(()).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Deletes an element. Returns whether it existed.
    pub(crate) fn delete(&self, key: &[u8]) -> io::Result<bool> {
        was_found(self.call(BPF_MAP_DELETE_ELEM, Some(key), 0, ANY))
    }

    /// The keys of all elements. A key that is inserted or deleted meanwhile may be missing.
    pub(crate) fn keys<const N: usize>(&self) -> io::Result<BTreeSet<[u8; N]>> {
        let (mut keys, mut last) = (BTreeSet::new(), None);
        // If a key was deleted before its successor is requested, the kernel starts with the first key again. The
        // limit ends the loop then.
        for _ in 0..self.max_entries.saturating_mul(2) {
            let Some(next) = self.next_key(last.as_ref())? else { break };
            keys.insert(next);
            last = Some(next);
        }
        Ok(keys)
    }

    /// The key after `before`, or the first key.
    pub(crate) fn next_key<const N: usize>(
        &self,
        before: Option<&[u8; N]>,
    ) -> io::Result<Option<[u8; N]>> {
        let mut next = [0; N];
        if N != self.key_size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (before, value) = (before.map(<[u8; N]>::as_slice), pointer_value(next.as_mut_ptr()));
        let is_found = was_found(self.call(BPF_MAP_GET_NEXT_KEY, before, value, ANY))?;
        Ok(is_found.then_some(next))
    }
}

impl AsFd for BpfMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether the element was found.
fn was_found(answer: io::Result<()>) -> io::Result<bool> {
    match answer {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        other => other.map(|()| true),
    }
}

fn object_info(fd: BorrowedFd<'_>) -> io::Result<Info> {
    let mut info = Info::default();
    let length = size_of::<Info>() as u32;
    let mut attr = InfoAttr { fd: raw_fd(fd), length, info: pointer_value(&raw mut info) };
    // SAFETY: the kernel writes at most `length` bytes, and every byte may have any value.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Opens a pinned object.
pub(crate) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = pointer_value(path.as_ptr());
    // SAFETY: the path ends with a zero byte, and lives until the call returns.
    unsafe { bpf_returning_fd(BPF_OBJ_GET, &mut attr) }
}

/// Pins a program, map or link.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PinAttr { path: pointer_value(path.as_ptr()), fd: raw_fd(fd), flags: 0 };
    // SAFETY: the path ends with a zero byte, and lives until the call returns.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Attaches a program to TCX ingress of an interface, after the programs that are there. It takes the interface's
/// index, because another interface may get the name meanwhile.
pub(crate) fn attach_tcx(program: BorrowedFd<'_>, interface: u32) -> io::Result<OwnedFd> {
    let mut attr = [raw_fd(program), interface, BPF_TCX_INGRESS];
    // SAFETY: the attributes are program, interface and type of attachment; they have no pointers.
    unsafe { bpf_returning_fd(BPF_LINK_CREATE, &mut attr) }
}

/// Attaches a program as [`attach_tcx`] does, but without a link. It stays attached until [`detach_tcx`], also when this
/// process has ended.
pub(crate) fn attach_tcx_without_link(program: BorrowedFd<'_>, interface: u32) -> io::Result<()> {
    attach_or_detach(BPF_PROG_ATTACH, program, interface)
}

/// Detaches a program without a link.
pub(crate) fn detach_tcx(program: BorrowedFd<'_>, interface: u32) -> io::Result<()> {
    attach_or_detach(BPF_PROG_DETACH, program, interface)
}

fn attach_or_detach(command: u32, program: BorrowedFd<'_>, interface: u32) -> io::Result<()> {
    let mut attr = [interface, raw_fd(program), BPF_TCX_INGRESS];
    // SAFETY: the attributes are interface, program and type of attachment; they have no pointers.
    unsafe { bpf(command, &mut attr) }.map(drop)
}

/// Whether a program is attached to TCX ingress of an interface, with a link or without.
pub(crate) fn is_attached(program: BorrowedFd<'_>, interface: u32) -> io::Result<bool> {
    Ok(attached_programs(interface)?.contains(&object_info(program)?.id))
}

/// Whether an attached program is not the last one there.
pub(crate) fn has_later_program(program: BorrowedFd<'_>, interface: u32) -> io::Result<bool> {
    let (all, id) = (attached_programs(interface)?, object_info(program)?.id);
    Ok(all.contains(&id) && all.last() != Some(&id))
}

/// The IDs of the programs at TCX ingress of an interface, in their order.
fn attached_programs(interface: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MAX_ATTACHED];
    let mut attr = QueryAttr {
        interface,
        attach_type: BPF_TCX_INGRESS,
        program_ids: pointer_value(ids.as_mut_ptr()),
        count: ids.len() as u32,
        ..QueryAttr::default()
    };
    // SAFETY: the kernel writes at most `count` IDs to the array that `program_ids` refers to.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr) }?;
    Ok(ids.into_iter().take(attr.count as usize).collect())
}

/// The index of the interface that a link is attached to; 0 if the interface is gone or the link was detached.
pub(crate) fn attached_interface(link: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(object_info(link)?.max_entries_or_ifindex)
}

/// Detaches a link, even if other processes have it open, and even if it is pinned.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = raw_fd(link);
    // SAFETY: the attributes have no pointers.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// The cookie of this thread's network namespace. No other namespace has had it since the machine started.
pub(crate) fn namespace_cookie() -> io::Result<u64> {
    /// From asm-generic/socket.h; a few old architectures have another value.
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the address and size are those of `cookie`, which may have any value.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if done == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// A process that does some work on request. Dropping it ends the process.
#[derive(Debug)]
pub(crate) struct ChildProcess {
    id: Pid,
    /// Takes the request, and has the reason if it fails.
    channel: UnixStream,
}

impl ChildProcess {
    /// Starts a copy of this process. It does the `work` in [`ChildProcess::finish`], with `directory` and the open maps,
    /// and ends with this process. This process must have one thread: the copy has no other.
    pub(crate) fn start<E: ToString>(
        directory: BorrowedFd<'_>,
        work: impl FnOnce() -> Result<(), E>,
    ) -> io::Result<Self> {
        let (ours, mut theirs) = UnixStream::pair()?;
        // SAFETY: with one thread, memory and locks of the copy are as here.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let _ = set_parent_process_death_signal(Some(Signal::KILL));
                // The copy's own end would keep the channel open.
                drop(ours);
                let released = release_descriptors(theirs.as_fd(), directory);
                let request = released.and_then(|()| theirs.read_exact(&mut [0]));
                let request = request.map_err(|error| error.to_string());
                let work = || request.and_then(|()| work().map_err(|error| error.to_string()));
                let done = catch_unwind(AssertUnwindSafe(work));
                let done = done.unwrap_or_else(|_| Err("a defect in ftp-alg".to_owned()));
                let code = i32::from(done.is_err());
                let _ = theirs.write_all(done.err().unwrap_or_default().as_bytes());
                // SAFETY: it has no conditions. What the other process would do at its end is not done here.
                unsafe { libc::_exit(code) }
            }
            child => {
                let id = Pid::from_raw(child).ok_or(io::ErrorKind::NotFound)?;
                Ok(Self { id, channel: ours })
            }
        }
    }

    /// Has it do its work, and waits until it is done. The error says why it failed.
    pub(crate) fn finish(mut self) -> Result<(), String> {
        let mut failure = String::new();
        let sent = self.channel.write_all(&[0]);
        let read = sent.and_then(|()| self.channel.read_to_string(&mut failure));
        let ended = waitpid(Some(self.id), WaitOptions::empty());
        match (read, ended) {
            (Ok(_), Ok(Some((_, status)))) if status.exit_status() == Some(0) => Ok(()),
            (Ok(1..), _) => Err(failure),
            (Err(error), _) => Err(error.to_string()),
            (_, Err(error)) => Err(error.to_string()),
            _ => Err("the process that loads it was killed".to_owned()),
        }
    }
}

/// Closes the sockets and locks that a copy of the daemon has open, and unlocks `directory` for the copy. A killed copy
/// ends only when the kernel has verified the program. If it had sockets and locks until then, the next daemon would find
/// them in use.
fn release_descriptors(channel: BorrowedFd<'_>, directory: BorrowedFd<'_>) -> io::Result<()> {
    let needed = [channel.as_raw_fd(), directory.as_raw_fd()];
    let open =
        |path: &str, flags: OFlags| openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty());
    let own = open("/proc/self/fd", OFlags::DIRECTORY)?;
    let mut others = Vec::new();
    for entry in Dir::read_from(&own)? {
        let Ok(number) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
        let target = readlinkat(&own, number.to_string(), Vec::new())?;
        let is_of_program =
            [&b"anon_inode:bpf-map"[..], b"anon_inode:btf"].contains(&target.to_bytes());
        if number > 2 && !needed.contains(&number) && !is_of_program {
            others.push(number);
        }
    }
    // A lock belongs to the open file, which the daemon has as well, and not to its descriptor.
    let unlocked = open(&format!("/proc/self/fd/{}", directory.as_raw_fd()), OFlags::PATH)?;
    // SAFETY: the copy uses none of these descriptors after this but the replaced one, and ends without dropping their
    // owners.
    unsafe {
        libc::dup2(unlocked.as_raw_fd(), directory.as_raw_fd());
        others.into_iter().for_each(|number| _ = libc::close(number));
    }
    std::mem::forget((own, unlocked));
    Ok(())
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        let _ = self.channel.shutdown(Shutdown::Both);
        let _ = waitpid(Some(self.id), WaitOptions::empty());
    }
}
