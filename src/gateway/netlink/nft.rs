//! Batches of nf_tables messages on a persistent socket: all of one batch happens, or nothing.
//!
//! Elements are written here, as each transfer waits for some; libnftnl builds tables, chains and rules.
//! Its own batch is not used: it takes 128 KiB for each, and a pinhole is a few hundred bytes.

#![allow(unsafe_code)]

use std::{
    ffi::CStr,
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    ptr::NonNull,
    time::Duration,
};

use nftnl_sys as sys;
use serde::{Deserialize, Serialize};

use super::{
    self as netlink, Attributes, FAMILY_HEADER, Message, MessageHead, Socket, Writer, be32, be64,
    found,
};

/// Our table, for libnftnl.
pub const TABLE: &CStr = c"ftp_alg";

/// Room for one object of libnftnl; ours are below 512.
const OBJECT_ROOM: usize = 8192;

// From linux/netfilter/nf_tables.h; libc lacks them.
const NFT_MSG_DESTROYSETELEM: i32 = 30;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
pub const NFTA_TABLE_FLAGS: u16 = 2;
/// Flags: that no other socket may change the table, and that it stays when its owner has gone.
pub const OWNED: u32 = 0x2 | 0x4;
const NFTA_TABLE_HANDLE: u16 = 4;
const NFTA_GEN_ID: u16 = 1;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_TARGET_NAME: u16 = 1;

/// The kind of message that tells that a transaction has changed something.
const NEW_GENERATION: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | libc::NFT_MSG_NEWGEN as u16;

/// An element of a set or map in our table.
#[derive(Clone, Copy, Debug)]
pub struct Element<'a> {
    pub set: &'static CStr,
    pub key: &'a [u8],
    pub data: Option<&'a [u8]>,
    pub timeout: Option<Duration>,
}

/// What a key is put together of. Each part takes whole 4-byte words.
pub struct KeyParts<'a> {
    pub rest: &'a [u8],
}

impl<'a> KeyParts<'a> {
    /// Those of a key that is as long with addresses of IPv4 or of IPv6, and whether it is IPv6's.
    pub fn of(key: &'a [u8], v4: usize, v6: usize) -> Option<(Self, bool)> {
        let is_v6 = key.len() == v6;
        (is_v6 || key.len() == v4).then_some((Self { rest: key }, is_v6))
    }

    pub fn address(&mut self, v6: bool) -> Option<IpAddr> {
        Some(if v6 { self.take::<16>()?.into() } else { self.take::<4>()?.into() })
    }

    pub fn endpoint(&mut self, v6: bool) -> Option<SocketAddr> {
        let address = self.address(v6)?;
        let [high, low, _, _] = self.take()?;
        Some(SocketAddr::new(address, u16::from_be_bytes([high, low])))
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (part, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*part)
    }
}

/// What the kernel said to a batch.
#[derive(Debug)]
pub struct BatchOutcome {
    /// Index of the message and error number, of those that failed.
    errors: Vec<(usize, i32)>,
    /// Whether the batch was asked to tell changes, and if so, told of some.
    told: Option<bool>,
}

impl BatchOutcome {
    /// Whether message `index` failed with `errno`.
    pub fn failed_with(&self, index: usize, errno: i32) -> bool {
        self.errors.contains(&(index, errno))
    }

    /// With which error message `index` failed, if it did.
    pub fn error_of(&self, index: usize) -> Option<i32> {
        self.errors.iter().find(|(failed, _)| *failed == index).map(|(_, errno)| *errno)
    }

    /// With which error the first of these messages failed that did.
    pub fn error_in(&self, messages: &Range<usize>) -> Option<i32> {
        self.errors.iter().find(|(failed, _)| messages.contains(failed)).map(|(_, errno)| *errno)
    }

    /// Whether the batch changed something, taking it that one which did not tell did so unless it
    /// failed.
    pub fn changed(&self) -> bool {
        self.errors.is_empty() && self.told.unwrap_or(true)
    }

    /// Which message failed first, and why, if the batch did not take effect.
    pub fn first_failure(&self) -> Option<(usize, i32)> {
        self.errors.first().copied()
    }

    /// Why the batch did not take effect, if it did not.
    pub fn first_error(&self) -> Option<i32> {
        self.errors.first().map(|(_, errno)| *errno)
    }
}

/// Messages to be sent as one.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    messages: usize,
    /// Where the last message starts.
    last: usize,
    tells_changes: bool,
}

impl Batch {
    pub fn new() -> Self {
        let mut batch = Self { bytes: Vec::new(), messages: 0, last: 0, tells_changes: false };
        batch.clear();
        batch
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.messages
    }

    /// Starts again, keeping the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.messages = 0;
        self.tells_changes = false;
        self.boundary(libc::NFNL_MSG_BATCH_BEGIN);
    }

    /// Has the outcome tell whether the batch changes anything: one that only destroys what is not there
    /// does not. Costs a message more of the kernel.
    pub fn subscribe_to_changes(&mut self) {
        self.tells_changes = true;
        self.add_flag(0, libc::NLM_F_ECHO);
    }

    /// Adds an element that must not be there. Returns the message's index.
    pub fn add_element(&mut self, element: &Element<'_>) -> usize {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        self.element(libc::NFT_MSG_NEWSETELEM, flags, element)
    }

    /// Deletes an element that must be there. Returns the message's index.
    pub fn delete_element(&mut self, set: &'static CStr, key: &[u8]) -> usize {
        let element = Element { set, key, data: None, timeout: None };
        self.element(libc::NFT_MSG_DELSETELEM, 0, &element)
    }

    /// Deletes an element whether it is there or not; kernels before Linux 6.3 refuse it with EINVAL.
    /// Returns the message's index.
    ///
    /// What is not there costs a look-up, and nothing to be done after the batch. (Deleting it fails the
    /// batch, and then the kernel waits for an RCU grace period: a millisecond, not microseconds.)
    pub fn destroy_element(&mut self, set: &'static CStr, key: &[u8]) -> usize {
        let element = Element { set, key, data: None, timeout: None };
        self.element(NFT_MSG_DESTROYSETELEM, 0, &element)
    }

    /// Deletes an element whether it is there or not, on any kernel. Returns the index of the message
    /// that fails when it is there with other data.
    ///
    /// It is added first, which changes nothing if it is there; what one batch adds and deletes is
    /// never seen.
    pub fn clear_element(&mut self, element: &Element<'_>) -> usize {
        let index = self.element(libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, element);
        self.delete_element(element.set, element.key);
        index
    }

    fn element(&mut self, command: i32, flags: i32, element: &Element<'_>) -> usize {
        let Element { set, key, data, timeout } = *element;
        self.message(command, flags, |message| {
            message.put(NFTA_SET_ELEM_LIST_TABLE, TABLE.to_bytes_with_nul());
            message.put(NFTA_SET_ELEM_LIST_SET, set.to_bytes_with_nul());
            message.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                list.nest(NFTA_LIST_ELEM, |element| {
                    element.nest(NFTA_SET_ELEM_KEY, |content| {
                        content.put(NFTA_DATA_VALUE, key);
                    });
                    if let Some(data) = data {
                        element.nest(NFTA_SET_ELEM_DATA, |content| {
                            content.put(NFTA_DATA_VALUE, data);
                        });
                    }
                    if let Some(timeout) = timeout {
                        let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                        element.put(NFTA_SET_ELEM_TIMEOUT, &milliseconds.max(1).to_be_bytes());
                    }
                });
            });
        })
    }

    /// Adds an object, or deletes it. Returns the message's index.
    pub fn object(&mut self, object: &impl nftnl::NlMsg, kind: nftnl::MsgType) -> usize {
        // libnftnl writes through pointers to structures, and does not check for the end.
        let mut room = vec![0_u64; OBJECT_ROOM / size_of::<u64>()];
        let (sequence, whole) = (self.next_sequence(), size_of_val(&room[..]));
        // SAFETY: `NlMsg` asks for room for the largest message there is, which a table, a chain or a
        // rule never takes: ours hold two names and at most one expression. Any initialised words are
        // valid bytes, of the same memory and extent.
        let bytes: &[u8] = unsafe {
            object.write(room.as_mut_ptr().cast(), sequence, kind);
            std::slice::from_raw_parts(room.as_ptr().cast(), whole)
        };
        let length = bytes.first_chunk().map_or(0, |length| u32::from_ne_bytes(*length)) as usize;
        let message = bytes.get(..length.next_multiple_of(4)).unwrap_or_default();
        self.append(|out| out.extend_from_slice(message))
    }

    /// Adds a message about `table`, or a part of it, with attributes that are whole. Returns its index.
    pub fn copied(&mut self, command: i32, flags: i32, table: &str, attributes: &[u8]) -> usize {
        let mut name = table.as_bytes().to_vec();
        name.push(0);
        self.message(command, flags, |message| {
            message.put(NFTA_TABLE_NAME, &name).put_whole(attributes);
        })
    }

    /// Removes all rules of a chain of our table. Returns the message's index.
    pub fn flush_chain(&mut self, chain: &CStr) -> usize {
        self.message(libc::NFT_MSG_DELRULE, 0, |message| {
            message.put(NFTA_RULE_TABLE, TABLE.to_bytes_with_nul());
            message.put(NFTA_RULE_CHAIN, chain.to_bytes_with_nul());
        })
    }

    /// Sends the batch; the kernel does all of it or nothing. It has to say that it did.
    pub fn send(&mut self, socket: &mut Socket) -> io::Result<BatchOutcome> {
        // The kernel answers each message that fails, and those that ask for it: the last one.
        self.add_flag(self.last, libc::NLM_F_ACK);
        let last = self.messages - 1;
        let (outcome, answered) = self.give_to_owner(socket, Some(last))?;
        if !answered && outcome.errors.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel did not answer"));
        }
        Ok(outcome)
    }

    /// As [`send`](Self::send), where time matters: the kernel says only what it refused. For batches
    /// of elements alone. Their messages are whole, which is all that nfnetlink_rcv_batch() would pass over
    /// in silence, and what else fails is told before the system call returns.
    pub fn send_unacknowledged(&mut self, socket: &mut Socket) -> io::Result<BatchOutcome> {
        self.give_to_owner(socket, None).map(|(outcome, _)| outcome)
    }

    /// Sends it. Gives what the kernel said, and whether it acknowledged the message `last`.
    fn give_to_owner(
        &mut self,
        socket: &mut Socket,
        last: Option<usize>,
    ) -> io::Result<(BatchOutcome, bool)> {
        self.boundary(libc::NFNL_MSG_BATCH_END);
        let mut answered = false;
        let (mut errors, mut told) = (Vec::new(), self.tells_changes.then_some(false));
        socket.ask(&self.bytes, |message| {
            if message.kind == NEW_GENERATION {
                told = Some(true);
            }
            if message.kind != netlink::ERROR {
                return;
            }
            let index = (message.sequence as usize).wrapping_sub(FIRST_SEQUENCE as usize);
            answered |= Some(index) == last;
            match message.errno() {
                0 => {}
                errno => errors.push((index, errno)),
            }
        })?;
        Ok((BatchOutcome { errors, told }, answered))
    }

    /// Sets a flag of the message that starts at `start`.
    fn add_flag(&mut self, start: usize, flag: i32) {
        // struct nlmsghdr: behind length and type.
        if let Some(flags) = self.bytes.get_mut(start + 6..start + 8) {
            let asked = flags.first_chunk().map_or(0, |flags| u16::from_ne_bytes(*flags));
            flags.copy_from_slice(&(asked | flag as u16).to_ne_bytes());
        }
    }

    fn next_sequence(&self) -> u32 {
        FIRST_SEQUENCE.wrapping_add(self.messages as u32)
    }

    /// The message that begins or ends a batch, and is of no table.
    fn boundary(&mut self, command: i32) -> usize {
        let start = MessageHead {
            subsystem: libc::NFNL_SUBSYS_NONE as u8,
            command: command as u8,
            flags: 0,
            sequence: self.next_sequence(),
            family: libc::AF_UNSPEC as u8,
            resource: libc::NFNL_SUBSYS_NFTABLES as u16,
        };
        self.append(|out| {
            Writer::new(out, start);
        })
    }

    fn message(&mut self, command: i32, flags: i32, fill: impl FnOnce(&mut Writer<'_>)) -> usize {
        let sequence = self.next_sequence();
        self.append(|out| fill(&mut Writer::new(out, start(command, flags, sequence))))
    }

    fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        self.last = self.bytes.len();
        write(&mut self.bytes);
        self.messages += 1;
        self.messages - 1
    }
}

/// The kernel's own messages have 0.
const FIRST_SEQUENCE: u32 = 1;

fn start(command: i32, flags: i32, sequence: u32) -> MessageHead {
    MessageHead {
        subsystem: libc::NFNL_SUBSYS_NFTABLES as u8,
        command: command as u8,
        flags: flags as u16,
        sequence,
        family: libc::NFPROTO_INET as u8,
        resource: 0,
    }
}

/// Aborts without memory, as Rust itself does; libnftnl's allocations fail for no other reason.
pub fn allocated<T>(object: *mut T) -> NonNull<T> {
    NonNull::new(object).unwrap_or_else(|| std::process::abort())
}

/// A target of iptables as an nftables expression; only nft_compat knows it. `info` is its structure in
/// the kernel's headers, padded as XT_ALIGN does.
pub fn target(name: &CStr, revision: u32, info: &[u8]) -> NonNull<sys::nftnl_expr> {
    // SAFETY: strings are copied. libnftnl frees the information with free(3) when it frees the
    // expression, so it must come from malloc(3), with room for what is copied there.
    unsafe {
        let expression = allocated(sys::nftnl_expr_alloc(c"target".as_ptr()));
        let memory = allocated(libc::malloc(info.len()).cast::<u8>());
        std::ptr::copy_nonoverlapping(info.as_ptr(), memory.as_ptr(), info.len());
        let raw = expression.as_ptr();
        sys::nftnl_expr_set_str(raw, sys::NFTNL_EXPR_TG_NAME as u16, name.as_ptr());
        sys::nftnl_expr_set_u32(raw, sys::NFTNL_EXPR_TG_REV as u16, revision);
        let memory = memory.as_ptr().cast();
        sys::nftnl_expr_set(raw, sys::NFTNL_EXPR_TG_INFO as u16, memory, info.len() as u32);
        expression
    }
}

/// What tells our table from one that was changed, or put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFingerprint {
    /// Never given twice.
    pub handle: u64,
    /// Such as `dormant`, but for those about owners.
    flags: u32,
    /// Checksum of all rules, with their order and handles.
    rules: u32,
}

/// How many transactions there were in this network namespace. It wraps around, and is never 0.
pub fn generation(socket: &mut Socket) -> io::Result<u32> {
    let mut generation = None;
    ask(socket, libc::NFT_MSG_GETGEN, 0, &[], |message| {
        generation = message.attributes().first(NFTA_GEN_ID).and_then(be32);
    })?;
    generation.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The shape of our table, if there is one.
pub fn fingerprint(socket: &mut Socket) -> io::Result<Option<TableFingerprint>> {
    let name = TABLE.to_bytes_with_nul();
    let (mut table, mut rules) = (None, crc32fast::Hasher::new());
    found(ask(socket, libc::NFT_MSG_GETTABLE, 0, &[(NFTA_TABLE_NAME, name)], |message| {
        let attributes = message.attributes();
        let handle = attributes.first(NFTA_TABLE_HANDLE).and_then(be64);
        table = handle.zip(attributes.first(NFTA_TABLE_FLAGS).and_then(be32));
    }))?;
    let Some((handle, flags)) = table else { return Ok(None) };
    // Whether a table has an owner changes with the daemon that runs.
    let flags = flags & !OWNED;
    found(ask(
        socket,
        libc::NFT_MSG_GETRULE,
        libc::NLM_F_DUMP,
        &[(NFTA_RULE_TABLE, name)],
        |message| {
            // What precedes the attributes has the number of the last transaction.
            rules.update(message.body.get(FAMILY_HEADER..).unwrap_or_default());
        },
    ))?;
    Ok(Some(TableFingerprint { handle, flags, rules: rules.finalize() }))
}

/// The attributes of each rule of our table, if there is one.
pub fn rules(socket: &mut Socket, mut each: impl FnMut(Attributes<'_>)) -> io::Result<()> {
    let of_table = [(NFTA_RULE_TABLE, TABLE.to_bytes_with_nul())];
    found(ask(socket, libc::NFT_MSG_GETRULE, libc::NLM_F_DUMP, &of_table, |message| {
        each(message.attributes());
    }))
    .map(drop)
}

/// Whether a rule of our table queues packets: by a statement, or by the target of iptables.
pub fn queues(socket: &mut Socket) -> io::Result<bool> {
    let mut found = false;
    rules(socket, |rule| {
        let expressions = rule.nested(NFTA_RULE_EXPRESSIONS);
        for (_, expression) in expressions.into_iter().flatten() {
            let expression = Attributes::new(expression);
            let target =
                || expression.nested(NFTA_EXPR_DATA).and_then(|data| data.first(NFTA_TARGET_NAME));
            found |= match expression.first(NFTA_EXPR_NAME) {
                Some(b"queue\0") => true,
                Some(b"target\0") => target().is_some_and(|name| name.starts_with(b"NFQUEUE\0")),
                _ => false,
            };
        }
    })?;
    Ok(found)
}

/// Whether there is a table of this name.
pub fn is_there(socket: &mut Socket, table: &str) -> io::Result<bool> {
    let mut name = table.as_bytes().to_vec();
    name.push(0);
    let asked = ask(socket, libc::NFT_MSG_GETTABLE, 0, &[(NFTA_TABLE_NAME, &name)], |_| {});
    Ok(found(asked)?.is_some())
}

/// The names of all tables of `family` (`NFPROTO_*`).
pub fn tables(socket: &mut Socket, family: i32) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    let start =
        MessageHead { family: family as u8, ..start(libc::NFT_MSG_GETTABLE, libc::NLM_F_DUMP, 0) };
    socket.request(
        &mut Vec::new(),
        start,
        |_| {},
        |message| {
            let name = message.attributes().first(NFTA_TABLE_NAME).map(CStr::from_bytes_until_nul);
            names.extend(name.and_then(Result::ok).map(|name| name.to_string_lossy().into_owned()));
        },
    )?;
    Ok(names)
}

/// What the kernel tells of all objects of one kind in `table`, of those that `of` names.
pub fn dump_of(
    socket: &mut Socket,
    command: i32,
    table: &str,
    of: Option<(u16, &[u8])>,
    mut each: impl FnMut(&Attributes<'_>),
) -> io::Result<()> {
    let mut name = table.as_bytes().to_vec();
    name.push(0);
    let asked: Vec<_> = std::iter::once((NFTA_TABLE_NAME, &name[..])).chain(of).collect();
    let mut consistent = true;
    ask(socket, command, libc::NLM_F_DUMP, &asked, |message| {
        consistent &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
        let attributes = message.attributes();
        // Not all kernels tell of one table only.
        if attributes.first(NFTA_TABLE_NAME) == Some(&name[..]) {
            each(&attributes);
        }
    })?;
    if consistent { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
}

/// The elements of a set of our table: key and what is left of the timeout. Returns whether the
/// set stayed the same meanwhile; otherwise some may be missing or come twice.
pub fn dump(
    socket: &mut Socket,
    set: &'static CStr,
    mut each: impl FnMut(&[u8], Option<Duration>),
) -> io::Result<bool> {
    dump_elements(socket, set, |key, element| {
        let expiration = element.first(NFTA_SET_ELEM_EXPIRATION);
        each(key, expiration.and_then(be64).map(Duration::from_millis));
    })
}

/// As [`dump`], of a map: key and data.
pub fn dump_map(
    socket: &mut Socket,
    map: &'static CStr,
    mut each: impl FnMut(&[u8], &[u8]),
) -> io::Result<bool> {
    dump_elements(socket, map, |key, element| {
        let data = element.nested(NFTA_SET_ELEM_DATA);
        if let Some(data) = data.and_then(|data| data.first(NFTA_DATA_VALUE)) {
            each(key, data);
        }
    })
}

fn dump_elements(
    socket: &mut Socket,
    set: &'static CStr,
    mut each: impl FnMut(&[u8], &Attributes<'_>),
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
            let key = element.nested(NFTA_SET_ELEM_KEY).and_then(|key| key.first(NFTA_DATA_VALUE));
            if let Some(key) = key {
                each(key, &element);
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
    let fill = |writer: &mut Writer<'_>| {
        for (kind, content) in attributes {
            writer.put(*kind, content);
        }
    };
    socket.request(&mut Vec::new(), start(command, flags, 0), fill, each)
}
