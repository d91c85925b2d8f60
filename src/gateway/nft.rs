//! Batches of nf_tables messages on a persistent socket: all of one batch happens, or nothing.
//!
//! libnftnl builds the objects. Its own batch is not used: it takes 128 KiB for each, and a
//! pinhole is a few hundred bytes.

#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_char},
    io,
    ptr::NonNull,
    time::Duration,
};

use nftnl_sys::{self as sys, libc as sys_libc};

use serde::{Deserialize, Serialize};

use super::netlink::{self, Attributes, FAMILY_HEADER, Message, Socket, Start, Writer, be32, be64};

/// Our table, for libnftnl.
pub(super) const TABLE: &CStr = c"ftp_alg";

/// Room for one message. libnftnl does not check; ours are below 512 but for the rules that tell lines
/// (`selection`), which are below 5000.
const MESSAGE_ROOM: usize = 8192;

// From linux/netfilter/nf_tables.h; libc lacks them.
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_TABLE_HANDLE: u16 = 4;
const NFTA_RULE_TABLE: u16 = 1;

/// An element of a set or map in our table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a> {
    pub(super) set: &'static CStr,
    pub(super) key: &'a [u8],
    pub(super) data: Option<&'a [u8]>,
    pub(super) timeout: Option<Duration>,
}

/// What the kernel said to a batch.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Index of the message and error number, of those that failed.
    errors: Vec<(usize, i32)>,
}

impl Outcome {
    /// Whether message `index` failed with `errno`.
    pub(super) fn failed_with(&self, index: usize, errno: i32) -> bool {
        self.errors.contains(&(index, errno))
    }

    /// With which error message `index` failed, if it did.
    pub(super) fn error_of(&self, index: usize) -> Option<i32> {
        self.errors.iter().find(|(failed, _)| *failed == index).map(|(_, errno)| *errno)
    }

    /// Why the batch did not take effect, if it did not.
    pub(super) fn first_error(&self) -> Option<i32> {
        self.errors.first().map(|(_, errno)| *errno)
    }
}

/// Messages to be sent as one.
#[derive(Debug)]
pub(super) struct Batch {
    /// Words, as libnftnl writes through pointers to structures.
    words: Vec<u32>,
    /// In bytes; always whole words.
    length: usize,
    messages: usize,
    /// Where the last message starts, in words.
    last: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut batch = Self { words: Vec::new(), length: 0, messages: 0, last: 0 };
        batch.clear();
        batch
    }

    /// Starts again, keeping the memory.
    pub(super) fn clear(&mut self) {
        (self.length, self.messages, self.last) = (0, 0, 0);
        self.append(|buffer, sequence| {
            // SAFETY: `append` gives room for a message, aligned for its header.
            unsafe { sys::nftnl_batch_begin(buffer, sequence) }
        });
    }

    /// Adds an element that must not be there. Returns the message's index.
    pub(super) fn add_element(&mut self, element: &Element<'_>) -> usize {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        self.element(libc::NFT_MSG_NEWSETELEM, flags, element)
    }

    /// Deletes an element that must be there. Returns the message's index.
    pub(super) fn delete_element(&mut self, set: &'static CStr, key: &[u8]) -> usize {
        let element = Element { set, key, data: None, timeout: None };
        self.element(libc::NFT_MSG_DELSETELEM, 0, &element)
    }

    /// Deletes an element whether it is there or not. Returns the index of the message that fails
    /// when it is there with other data.
    ///
    /// It is added first, which changes nothing if it is there; what one batch adds and deletes is
    /// never seen. (NFT_MSG_DESTROYSETELEM needs Linux 6.3. Deleting what is not there fails the
    /// batch, and then the kernel waits for an RCU grace period: a millisecond, not microseconds.)
    pub(super) fn clear_element(&mut self, element: &Element<'_>) -> usize {
        let index = self.element(libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, element);
        self.delete_element(element.set, element.key);
        index
    }

    fn element(&mut self, message: i32, flags: i32, element: &Element<'_>) -> usize {
        let list = element.to_list();
        self.append(|buffer, sequence| {
            // SAFETY: `append` gives room for a message, and one element's is far below it; the
            // list lives until the message is built.
            unsafe {
                let header = nf_tables_header(buffer, message, flags, sequence);
                sys::nftnl_set_elems_nlmsg_build_payload(header, list.as_ptr());
                header
            }
        })
    }

    /// Adds an object, or deletes it. Returns the message's index.
    pub(super) fn object(&mut self, object: &impl nftnl::NlMsg, kind: nftnl::MsgType) -> usize {
        self.append(|buffer, sequence| {
            // SAFETY: `NlMsg` asks for room for the largest message there is, which a table, a
            // chain or a rule never takes: ours hold two names and at most one expression.
            unsafe { object.write(buffer.cast(), sequence, kind) };
            buffer.cast()
        })
    }

    /// Removes all rules of a chain of our table. Returns the message's index.
    pub(super) fn flush_chain(&mut self, chain: &CStr) -> usize {
        // SAFETY: it allocates, and is freed by the function that belongs to it.
        let rule = unsafe { Owned::new(sys::nftnl_rule_alloc(), sys::nftnl_rule_free) };
        self.append(|buffer, sequence| {
            // SAFETY: the rule is alive and copies the strings; `append` gives the room.
            unsafe {
                let raw = rule.as_ptr();
                sys::nftnl_rule_set_str(raw, sys::NFTNL_RULE_TABLE as u16, TABLE.as_ptr());
                sys::nftnl_rule_set_str(raw, sys::NFTNL_RULE_CHAIN as u16, chain.as_ptr());
                let header = nf_tables_header(buffer, libc::NFT_MSG_DELRULE, 0, sequence);
                sys::nftnl_rule_nlmsg_build_payload(header, raw);
                header
            }
        })
    }

    /// Sends the batch; the kernel does all of it or nothing.
    pub(super) fn send(&mut self, socket: &mut Socket) -> io::Result<Outcome> {
        // The kernel answers each message that fails, and those that ask for it: the last one.
        // struct nlmsghdr: length, then type and flags as two 16-bit halves.
        if let Some(flags) = self.words.get_mut(self.last + 1) {
            let [a, b, c, d] = flags.to_ne_bytes();
            let [c, d] = (u16::from_ne_bytes([c, d]) | libc::NLM_F_ACK as u16).to_ne_bytes();
            *flags = u32::from_ne_bytes([a, b, c, d]);
        }
        let last = self.messages - 1;
        self.append(|buffer, sequence| {
            // SAFETY: `append` gives room for a message, aligned for its header.
            unsafe { sys::nftnl_batch_end(buffer, sequence) }
        });
        let bytes: &[u8] = {
            let words = self.words.get(..self.length / size_of::<u32>()).unwrap_or_default();
            // SAFETY: any initialised words are valid bytes, of the same memory and extent.
            unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
        };
        let mut answered = false;
        let mut errors = Vec::new();
        socket.ask(bytes, |message| {
            if message.kind != netlink::ERROR {
                return;
            }
            let index = (message.sequence as usize).wrapping_sub(FIRST_SEQUENCE as usize);
            answered |= index == last;
            match message.errno() {
                0 => {}
                errno => errors.push((index, errno)),
            }
        })?;
        if !answered && errors.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel did not answer"));
        }
        Ok(Outcome { errors })
    }

    fn append(&mut self, build: impl FnOnce(*mut c_char, u32) -> *mut sys_libc::nlmsghdr) -> usize {
        self.last = self.length / size_of::<u32>();
        self.words.resize(self.words.len().max(self.last + MESSAGE_ROOM / size_of::<u32>()), 0);
        let index = self.messages;
        let Some(room) = self.words.get_mut(self.last..) else { return index };
        let header = build(room.as_mut_ptr().cast(), FIRST_SEQUENCE.wrapping_add(index as u32));
        // SAFETY: `build` returns the header that it wrote at the start of the room.
        let length = unsafe { (*header).nlmsg_len } as usize;
        self.length += length.next_multiple_of(size_of::<u32>());
        self.messages += 1;
        index
    }
}

/// The kernel's own messages have 0.
const FIRST_SEQUENCE: u32 = 1;

/// # Safety
/// There must be room for a message at `buffer`, aligned for its header.
unsafe fn nf_tables_header(
    buffer: *mut c_char,
    message: i32,
    flags: i32,
    sequence: u32,
) -> *mut sys_libc::nlmsghdr {
    // SAFETY: the caller's promise.
    unsafe {
        sys::nftnl_nlmsg_build_hdr(
            buffer,
            message as u16,
            libc::NFPROTO_INET as u16,
            flags as u16,
            sequence,
        )
    }
}

impl Element<'_> {
    /// The element as a list of one, which libnftnl calls a set.
    fn to_list(self) -> Owned<sys::nftnl_set> {
        let put = |element: *mut sys::nftnl_set_elem, attribute: u32, bytes: &[u8]| {
            // SAFETY: the element is alive; the bytes are copied, and those beyond 80, the size
            // of libnftnl's register, would be refused there: ours have at most 36.
            unsafe {
                sys::nftnl_set_elem_set(
                    element,
                    attribute as u16,
                    bytes.as_ptr().cast(),
                    bytes.len() as u32,
                )
            };
        };
        // SAFETY: it allocates, and is freed by the function that belongs to it.
        let list = unsafe { Owned::new(sys::nftnl_set_alloc(), sys::nftnl_set_free) };
        // SAFETY: it only allocates.
        let element = allocated(unsafe { sys::nftnl_set_elem_alloc() });
        put(element.as_ptr(), sys::NFTNL_SET_ELEM_KEY, self.key);
        if let Some(data) = self.data {
            put(element.as_ptr(), sys::NFTNL_SET_ELEM_DATA, data);
        }
        // SAFETY: list and element are alive, and strings are copied; the list takes the element
        // and frees it with itself.
        unsafe {
            if let Some(timeout) = self.timeout {
                let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
                sys::nftnl_set_elem_set_u64(
                    element.as_ptr(),
                    sys::NFTNL_SET_ELEM_TIMEOUT as u16,
                    milliseconds,
                );
            }
            let raw = list.as_ptr();
            sys::nftnl_set_set_str(raw, sys::NFTNL_SET_TABLE as u16, TABLE.as_ptr());
            sys::nftnl_set_set_str(raw, sys::NFTNL_SET_NAME as u16, self.set.as_ptr());
            sys::nftnl_set_elem_add(raw, element.as_ptr());
        }
        list
    }
}

/// Aborts without memory, as Rust itself does; libnftnl's allocations fail for no other reason.
pub(super) fn allocated<T>(object: *mut T) -> NonNull<T> {
    NonNull::new(object).unwrap_or_else(|| std::process::abort())
}

/// An object of libnftnl.
struct Owned<T> {
    object: NonNull<T>,
    free: unsafe extern "C" fn(*const T),
}

impl<T> Owned<T> {
    /// # Safety
    /// `object` is of no one else, and `free` is what frees it.
    unsafe fn new(object: *mut T, free: unsafe extern "C" fn(*const T)) -> Self {
        Self { object: allocated(object), free }
    }

    fn as_ptr(&self) -> *mut T {
        self.object.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the promise made to `new`.
        unsafe { (self.free)(self.object.as_ptr()) }
    }
}

/// What tells our table from one that was changed, or put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    /// Never given twice.
    pub(super) handle: u64,
    /// Such as `dormant`.
    flags: u32,
    /// Checksum of all rules, with their order and handles.
    rules: u32,
    /// Elements of the set of control ports.
    ports: usize,
}

/// The shape of our table, if there is one.
pub(super) fn shape(socket: &mut Socket) -> io::Result<Option<Shape>> {
    let name = TABLE.to_bytes_with_nul();
    // What is not there counts as none.
    let absent = |asked: io::Result<()>| match asked {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    };
    let (mut table, mut rules, mut ports) = (None, crc32fast::Hasher::new(), 0);
    absent(ask(socket, libc::NFT_MSG_GETTABLE, 0, &[(NFTA_TABLE_NAME, name)], |message| {
        let attributes = message.attributes();
        let handle = attributes.first(NFTA_TABLE_HANDLE).and_then(be64);
        table = handle.zip(attributes.first(NFTA_TABLE_FLAGS).and_then(be32));
    }))?;
    let Some((handle, flags)) = table else { return Ok(None) };
    let of_table = [(NFTA_RULE_TABLE, name)];
    absent(ask(socket, libc::NFT_MSG_GETRULE, libc::NLM_F_DUMP, &of_table, |message| {
        // What precedes the attributes has the number of the last transaction.
        rules.update(message.body.get(FAMILY_HEADER..).unwrap_or_default());
    }))?;
    absent(dump(socket, c"control_ports", |_, _| ports += 1).map(drop))?;
    Ok(Some(Shape { handle, flags, rules: rules.finalize(), ports }))
}

/// The elements of a set of our table: key and what is left of the timeout. Returns whether the
/// set stayed the same meanwhile; otherwise some may be missing or come twice.
pub(super) fn dump(
    socket: &mut Socket,
    set: &'static CStr,
    mut each: impl FnMut(&[u8], Option<Duration>),
) -> io::Result<bool> {
    let mut consistent = true;
    let attributes = [
        (NFTA_SET_ELEM_LIST_TABLE, TABLE.to_bytes_with_nul()),
        (NFTA_SET_ELEM_LIST_SET, set.to_bytes_with_nul()),
    ];
    ask(socket, libc::NFT_MSG_GETSETELEM, libc::NLM_F_DUMP, &attributes, |message| {
        consistent &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
        let elements = message.attributes().nested(NFTA_SET_ELEM_LIST_ELEMENTS);
        for (_, element) in elements.into_iter().flatten() {
            let element = Attributes::new(element);
            let expiration = element.first(NFTA_SET_ELEM_EXPIRATION);
            let key = element.nested(NFTA_SET_ELEM_KEY).and_then(|key| key.first(NFTA_DATA_VALUE));
            if let Some(key) = key {
                each(key, expiration.and_then(be64).map(Duration::from_millis));
            }
        }
    })?;
    Ok(consistent)
}

/// Asks nf_tables, and hands each message of the answer to `each`.
fn ask(
    socket: &mut Socket,
    command: i32,
    flags: i32,
    attributes: &[(u16, &[u8])],
    each: impl FnMut(&Message<'_>),
) -> io::Result<()> {
    let start = Start {
        subsystem: libc::NFNL_SUBSYS_NFTABLES as u8,
        command: command as u8,
        flags: flags as u16,
        sequence: 0,
        family: libc::NFPROTO_INET as u8,
        resource: 0,
    };
    let fill = |writer: &mut Writer<'_>| {
        for (kind, content) in attributes {
            writer.put(*kind, content);
        }
    };
    socket.request(&mut Vec::new(), start, fill, each)
}
