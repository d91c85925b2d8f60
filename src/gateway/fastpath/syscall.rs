//! The system call bpf(2), as far as aya does not make it: elements of maps with flags and by shared reference, and
//! links by the number of an interface.
//!
//! Knows nothing of what the elements are.

#![allow(unsafe_code)]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

// From linux/bpf.h; libc lacks them.
const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_MAP_DELETE_ELEM: u32 = 3;
const BPF_MAP_GET_NEXT_KEY: u32 = 4;
const BPF_OBJ_PIN: u32 = 6;
const BPF_OBJ_GET: u32 = 7;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: u32 = 21;
const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_DETACH: u32 = 34;
const BPF_TCX_INGRESS: u32 = 46;

/// All that this makes, which is all that is called once the program is loaded.
pub const BPF_COMMANDS: [u32; 10] = [
    BPF_MAP_LOOKUP_ELEM,
    BPF_MAP_UPDATE_ELEM,
    BPF_MAP_DELETE_ELEM,
    BPF_MAP_GET_NEXT_KEY,
    BPF_OBJ_PIN,
    BPF_OBJ_GET,
    BPF_OBJ_GET_INFO_BY_FD,
    BPF_MAP_LOOKUP_AND_DELETE_ELEM,
    BPF_LINK_CREATE,
    BPF_LINK_DETACH,
];

/// Whether an element is there or not.
pub(super) const ANY: u64 = 0;
/// Only if there is no such element.
pub(super) const NOEXIST: u64 = 1;
/// Only if there is such an element.
pub(super) const EXIST: u64 = 2;
/// Under the lock in the element.
pub(super) const LOCK: u64 = 4;

/// A map, with the sizes that the kernel says it has.
#[derive(Debug)]
pub(super) struct BpfMap {
    fd: OwnedFd,
    key_size: usize,
    /// Size of what the kernel reads and writes for one key.
    value_size: usize,
    max_entries: u32,
}

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_map_info` and `struct bpf_link_info` (of a TCX link), of which this much is read.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Info {
    kind: u32,
    id: u32,
    /// Of a map the size of a key, of a link the program.
    key_size_or_program_id: u32,
    /// Of a map the size of a value.
    value_size: u32,
    /// Of a map how many elements there may be, of a link the interface.
    max_entries_or_ifindex: u32,
    map_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}

/// Makes the call.
///
/// # Safety
///
/// What `attr` points to must be what `command` reads, and large enough for what it writes.
unsafe fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i32> {
    let size = size_of::<T>();
    // SAFETY: the address and size are those of `attr`; the rest is the caller's word.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as i32) }
}

fn raw_fd(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn pointer_value<T>(of: *const T) -> u64 {
    of.expose_provenance() as u64
}

impl BpfMap {
    /// Opens a pinned map. `copies` is how many values the kernel reads and writes for one key: one for each
    /// processor, of a map that has them.
    pub(super) fn open(path: &Path, copies: usize) -> io::Result<Self> {
        let fd = open_pinned(path)?;
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

    /// How many elements, or bytes of a ring, there may be.
    pub(super) fn max_entries(&self) -> u32 {
        self.max_entries
    }

    fn call_on_element(&self, command: u32, key: &[u8], value: u64, flags: u64) -> io::Result<()> {
        if key.len() != self.key_size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let map = raw_fd(self.fd.as_fd());
        let mut attr = ElementAttr { map, pad: 0, key: pointer_value(key.as_ptr()), value, flags };
        // SAFETY: the key has the map's size, and so has the value, if there is one: each caller checks.
        unsafe { bpf(command, &mut attr) }.map(drop)
    }

    fn read(&self, command: u32, key: &[u8], value: &mut [u8], flags: u64) -> io::Result<bool> {
        if value.len() != self.value_size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        was_found(self.call_on_element(
            command,
            key,
            value.as_mut_ptr().expose_provenance() as u64,
            flags,
        ))
    }

    /// Reads an element into `value`; whether it is there.
    pub(super) fn look_up(&self, key: &[u8], value: &mut [u8], flags: u64) -> io::Result<bool> {
        self.read(BPF_MAP_LOOKUP_ELEM, key, value, flags)
    }

    /// Reads an element into `value` and deletes it, at once; whether it was there.
    pub(super) fn look_up_and_delete(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.read(BPF_MAP_LOOKUP_AND_DELETE_ELEM, key, value, ANY)
    }

    pub(super) fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        if value.len() != self.value_size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.call_on_element(
            BPF_MAP_UPDATE_ELEM,
            key,
            value.as_ptr().expose_provenance() as u64,
            flags,
        )
    }

    /// Deletes an element; whether it was there.
    pub(super) fn delete(&self, key: &[u8]) -> io::Result<bool> {
        was_found(self.call_on_element(BPF_MAP_DELETE_ELEM, key, 0, ANY))
    }

    /// The keys that are there. Of those that come or go meanwhile some may be missing, or come twice.
    pub(super) fn keys(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        // Where a key is gone when its successor is asked for, the kernel starts again.
        for _ in 0..self.max_entries.saturating_mul(2) {
            let Some(next) = self.next_key(keys.last())? else { break };
            keys.push(next);
        }
        Ok(keys)
    }

    pub(super) fn is_empty(&self) -> io::Result<bool> {
        Ok(self.next_key(None)?.is_none())
    }

    /// The key after another one, which must be of this map; or the first.
    fn next_key(&self, before: Option<&Vec<u8>>) -> io::Result<Option<Vec<u8>>> {
        let mut next = vec![0; self.key_size];
        let (map, value) = (raw_fd(self.fd.as_fd()), next.as_mut_ptr().expose_provenance() as u64);
        let key = before.map_or(0, |key| pointer_value(key.as_ptr()));
        let mut attr = ElementAttr { map, pad: 0, key, value, flags: 0 };
        // SAFETY: both keys have the map's size, or the first is null, which the kernel takes for none.
        let found = was_found(unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) }.map(drop))?;
        Ok(found.then_some(next))
    }
}

impl From<BpfMap> for OwnedFd {
    fn from(map: BpfMap) -> Self {
        map.fd
    }
}

/// Whether there is such an element.
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
    // SAFETY: the kernel writes at most `length` bytes, all of which may have any value.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

fn path_to_c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Opens what is pinned there.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = path_to_c_string(path)?;
    let mut attr = ObjectAttr { path: pointer_value(path.as_ptr()), fd: 0, flags: 0 };
    // SAFETY: the path ends with a zero byte, and lives until the call is over.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr) }?;
    // SAFETY: the kernel has just made it, for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a program, map or link.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_to_c_string(path)?;
    let mut attr = ObjectAttr { path: pointer_value(path.as_ptr()), fd: raw_fd(fd), flags: 0 };
    // SAFETY: the path ends with a zero byte, and lives until the call is over.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Attaches a program to what an interface receives, behind those that are there. By number, as a name may go to
/// another interface meanwhile.
pub(super) fn attach_tcx(program: BorrowedFd<'_>, interface: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkAttr {
        program: raw_fd(program),
        interface,
        attach_type: BPF_TCX_INGRESS,
        ..LinkAttr::default()
    };
    // SAFETY: there are no pointers in it.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?;
    // SAFETY: the kernel has just made it, for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The interface that a link is attached to; 0 if that is gone, or it was detached.
pub(super) fn attached_interface(link: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(object_info(link)?.max_entries_or_ifindex)
}

/// Detaches a link, whoever has it open or pinned.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = raw_fd(link);
    // SAFETY: there are no pointers in it.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// The number of this thread's network namespace, which no other has had since the machine started.
pub(super) fn namespace_cookie() -> io::Result<u64> {
    /// asm-generic/socket.h, and those of all machines that Rust knows but a few old ones.
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the address and size are those of `cookie`, in which any bytes may be.
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
