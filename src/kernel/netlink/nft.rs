//! Batches of nf_tables messages on a persistent socket: a batch takes effect as a whole, or not at all.
//!
//! Elements are encoded here, because each transfer waits for some. libnftnl builds tables, chains and rules. Its own
//! batch type is not used, because it takes 128 KiB for each, and a pinhole needs a few hundred bytes.

#![allow(unsafe_code)]

use std::{ffi::CStr, io, net::SocketAddr, ops::Range, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Attributes, FAMILY_HEADER, Message, Socket, Writer, address_of, be16, be32, be64,
    family_header, kind_of, octets_of, or_absent, put_message,
};

/// Name of our table.
pub const TABLE: &CStr = c"ftp_alg";

/// Buffer size for one libnftnl object; ours are below 512.
const OBJECT_ROOM: usize = 8192;

// From linux/netfilter/nf_tables.h; libc lacks them.
const NFT_MSG_DESTROYSETELEM: i32 = 30;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
const NFTA_DATA_VALUE: u16 = 1;
/// The first attribute of every message about a table, a chain, a set, an object or a rule.
const NFTA_TABLE_NAME: u16 = 1;
pub const NFTA_TABLE_FLAGS: u16 = 2;
/// Flags: no other socket may change the table, and it stays after its owner has gone.
pub const OWNED: u32 = 0x2 | 0x4;
const NFTA_TABLE_HANDLE: u16 = 4;
const NFTA_GEN_ID: u16 = 1;

/// Message type that announces a changed generation.
const NEW_GENERATION: u16 = kind_of(libc::NFNL_SUBSYS_NFTABLES, libc::NFT_MSG_NEWGEN);

/// An element of a set or map in our table.
#[derive(Clone, Copy, Debug)]
pub struct Element<'a> {
    pub set: &'static CStr,
    pub key: &'a [u8],
    pub data: Option<&'a [u8]>,
    pub timeout: Option<Duration>,
}

impl Element<'_> {
    /// Appends what follows the table's name.
    fn put(&self, message: &mut Writer<'_>) {
        let Self { set, key, data, timeout } = *self;
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
    }
}

/// An endpoint in a concatenation, each part of which takes whole 4-byte words.
pub fn endpoint_key(endpoint: SocketAddr) -> Vec<u8> {
    [&octets_of(endpoint.ip())[..], &endpoint.port().to_be_bytes(), &[0; 2]].concat()
}

/// The endpoint of a concatenation.
pub fn endpoint_of(key: &[u8]) -> Option<SocketAddr> {
    let (address, port) = key.split_at_checked(key.len().checked_sub(4)?)?;
    Some(SocketAddr::new(address_of(address)?, be16(port)?))
}

/// The kernel's answer to a batch.
#[derive(Debug)]
pub struct BatchOutcome {
    /// Message index and error number of failed messages.
    errors: Vec<(usize, i32)>,
    /// Index of the message that the kernel acknowledged.
    acknowledged: Option<usize>,
    /// Whether the batch changed something, if it was requested to report that.
    reported_change: Option<bool>,
}

impl BatchOutcome {
    /// Whether message `index` failed with `errno`.
    pub fn failed_with(&self, index: usize, errno: i32) -> bool {
        self.errors.contains(&(index, errno))
    }

    /// Error number of the first failed message in this range.
    pub fn error_in(&self, messages: Range<usize>) -> Option<i32> {
        self.errors.iter().find(|(failed, _)| messages.contains(failed)).map(|(_, errno)| *errno)
    }

    /// Error number of message `index`, if it failed.
    pub fn error_of(&self, index: usize) -> Option<i32> {
        self.error_in(index..index + 1)
    }

    /// Whether the batch changed something. Without a report, that is assumed unless it failed.
    pub fn changed_something(&self) -> bool {
        self.errors.is_empty() && self.reported_change.unwrap_or(true)
    }

    /// Index and error number of the first failed message, if the batch did not take effect.
    pub fn first_failure(&self) -> Option<(usize, i32)> {
        self.errors.first().copied()
    }

    /// Whether the batch took effect, or the first error.
    pub fn result(&self) -> io::Result<()> {
        let error = |(_, errno)| Err(io::Error::from_raw_os_error(errno));
        self.first_failure().map_or(Ok(()), error)
    }
}

/// Messages that are sent as one transaction.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    messages: usize,
    /// Offset of the last message.
    last: usize,
    reports_changes: bool,
}

impl Batch {
    pub fn new() -> Self {
        let mut batch = Self { bytes: Vec::new(), messages: 0, last: 0, reports_changes: false };
        batch.clear();
        batch
    }

    /// Number of messages.
    pub fn len(&self) -> usize {
        self.messages
    }

    /// Clears the batch but keeps its memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.messages = 0;
        self.reports_changes = false;
        self.boundary(libc::NFNL_MSG_BATCH_BEGIN);
    }

    /// Requests that the outcome reports whether the batch changes anything. A batch that only destroys absent elements
    /// does not. Costs one more message from the kernel.
    pub fn report_changes(&mut self) {
        self.reports_changes = true;
        self.add_flag(0, libc::NLM_F_ECHO);
    }

    /// Adds an element that must not exist. Returns the message index.
    pub fn add_element(&mut self, element: &Element<'_>) -> usize {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        self.element(libc::NFT_MSG_NEWSETELEM, flags, element)
    }

    /// Deletes an element that must exist. Returns the message index.
    pub fn delete_element(&mut self, set: &'static CStr, key: &[u8]) -> usize {
        let element = Element { set, key, data: None, timeout: None };
        self.element(libc::NFT_MSG_DELSETELEM, 0, &element)
    }

    /// Deletes an element whether it exists or not. Kernels before Linux 6.3 refuse this with EINVAL. Returns the
    /// message index.
    ///
    /// An absent element costs a lookup and nothing after the batch. (A delete message would fail the batch, and then
    /// the kernel waits for an RCU grace period: a millisecond instead of microseconds.)
    pub fn destroy_element(&mut self, set: &'static CStr, key: &[u8]) -> usize {
        let element = Element { set, key, data: None, timeout: None };
        self.element(NFT_MSG_DESTROYSETELEM, 0, &element)
    }

    /// Deletes an element whether it exists or not, on any kernel. Returns the index of the message that fails if it
    /// exists with other data.
    ///
    /// The element is added first, which changes nothing if it exists. An element that one batch adds and deletes is
    /// never visible.
    pub fn clear_element(&mut self, element: &Element<'_>) -> usize {
        let index = self.element(libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, element);
        self.delete_element(element.set, element.key);
        index
    }

    /// Deletes all elements of a set.
    pub fn flush_set(&mut self, set: &'static CStr) {
        self.part_of_table(libc::NFT_MSG_DELSETELEM, 0, TABLE, |message| {
            message.put(NFTA_SET_ELEM_LIST_SET, set.to_bytes_with_nul());
        });
    }

    /// Adds an interval of concatenations: each part of a key is from that of `first` to that of `last`.
    pub fn add_interval(&mut self, set: &'static CStr, first: &[u8], last: &[u8]) {
        self.part_of_table(libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, TABLE, |message| {
            message.put(NFTA_SET_ELEM_LIST_SET, set.to_bytes_with_nul());
            message.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                list.nest(NFTA_LIST_ELEM, |element| {
                    for (kind, key) in [(NFTA_SET_ELEM_KEY, first), (NFTA_SET_ELEM_KEY_END, last)] {
                        element.nest(kind, |content| {
                            content.put(NFTA_DATA_VALUE, key);
                        });
                    }
                });
            });
        });
    }

    fn element(&mut self, command: i32, flags: i32, element: &Element<'_>) -> usize {
        self.part_of_table(command, flags, TABLE, |message| element.put(message))
    }

    /// Adds or deletes an object. Returns the message index.
    pub fn object(&mut self, object: &impl nftnl::NlMsg, kind: nftnl::MsgType) -> usize {
        // libnftnl writes through struct pointers and does not check for the end.
        let mut room = vec![0_u64; OBJECT_ROOM / size_of::<u64>()];
        self.append(|out, sequence| {
            // SAFETY: `NlMsg` asks for room for the largest message there is, which a table, a chain or a
            // rule never takes: ours hold two names and at most one expression. Any initialised words are
            // valid bytes, of the same memory and extent.
            let bytes: &[u8] = unsafe {
                object.write(room.as_mut_ptr().cast(), sequence, kind);
                std::slice::from_raw_parts(room.as_ptr().cast(), OBJECT_ROOM)
            };
            let length = bytes.first_chunk().map_or(0, |length| u32::from_ne_bytes(*length));
            let message = bytes.get(..(length as usize).next_multiple_of(4));
            out.extend_from_slice(message.unwrap_or_default());
        })
    }

    /// Adds a message about `table` or a part of the table. `fill` writes the other attributes. Returns the message
    /// index.
    pub fn part_of_table(
        &mut self,
        command: i32,
        flags: i32,
        table: &CStr,
        fill: impl FnOnce(&mut Writer<'_>),
    ) -> usize {
        let (kind, header) = (kind_of(libc::NFNL_SUBSYS_NFTABLES, command), INET);
        self.append(|out, sequence| {
            put_message(out, kind, flags, sequence, &header, |message| {
                fill(message.put(NFTA_TABLE_NAME, table.to_bytes_with_nul()));
            });
        })
    }

    /// Sends the batch; it takes effect as a whole or not at all. The kernel acknowledges it.
    pub fn send(&mut self, socket: &mut Socket) -> io::Result<BatchOutcome> {
        // The kernel answers each failed message, and those that request it: the last one.
        self.add_flag(self.last, libc::NLM_F_ACK);
        let last = self.messages - 1;
        let outcome = self.send_unacknowledged(socket)?;
        if outcome.errors.is_empty() && outcome.acknowledged != Some(last) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no answer from the kernel"));
        }
        Ok(outcome)
    }

    /// As [`send`](Self::send), but without acknowledgement, where time matters: the kernel reports only refusals. Only
    /// for batches of elements. Their messages are complete, so nfnetlink_rcv_batch() skips none silently, and any
    /// other failure is reported before the system call returns.
    pub fn send_unacknowledged(&mut self, socket: &mut Socket) -> io::Result<BatchOutcome> {
        self.boundary(libc::NFNL_MSG_BATCH_END);
        let reported_change = self.reports_changes.then_some(false);
        let mut outcome = BatchOutcome { errors: Vec::new(), acknowledged: None, reported_change };
        socket.ask(&self.bytes, |message| {
            let index = (message.sequence as usize).wrapping_sub(FIRST_SEQUENCE as usize);
            match (message.kind, message.errno()) {
                (NEW_GENERATION, _) => outcome.reported_change = Some(true),
                (super::ERROR, 0) => outcome.acknowledged = Some(index),
                (super::ERROR, errno) => outcome.errors.push((index, errno)),
                _ => {}
            }
        })?;
        Ok(outcome)
    }

    /// Sets a flag of the message at `start`.
    fn add_flag(&mut self, start: usize, flag: i32) {
        // struct nlmsghdr: behind length and type.
        if let Some(flags) = self.bytes.get_mut(start + 6..start + 8) {
            let asked = flags.first_chunk().map_or(0, |flags| u16::from_ne_bytes(*flags));
            flags.copy_from_slice(&(asked | flag as u16).to_ne_bytes());
        }
    }

    /// The message that begins or ends a batch; it belongs to no table.
    fn boundary(&mut self, command: i32) -> usize {
        let kind = kind_of(libc::NFNL_SUBSYS_NONE, command);
        let header = family_header(libc::AF_UNSPEC, libc::NFNL_SUBSYS_NFTABLES as u16);
        self.append(|out, sequence| put_message(out, kind, 0, sequence, &header, |_| {}))
    }

    /// Adds the message that `write` appends with a sequence number. Returns its index.
    fn append(&mut self, write: impl FnOnce(&mut Vec<u8>, u32)) -> usize {
        self.last = self.bytes.len();
        write(&mut self.bytes, FIRST_SEQUENCE.wrapping_add(self.messages as u32));
        self.messages += 1;
        self.messages - 1
    }
}

/// The kernel's own messages have sequence number 0.
const FIRST_SEQUENCE: u32 = 1;
/// The family of our table.
const INET: [u8; FAMILY_HEADER] = family_header(libc::NFPROTO_INET, 0);

/// Identifies our table and its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFingerprint {
    /// The kernel never reuses it.
    pub handle: u64,
    /// Such as `dormant`, without the owner flags.
    flags: u32,
    /// Checksum of all rules with their order and handles.
    rules: u32,
}

/// The generation: the number of transactions in this network namespace. It wraps, and is never 0.
pub fn generation(socket: &mut Socket) -> io::Result<u32> {
    let mut generation = None;
    let each =
        |message: &Message<'_>| generation = message.attributes().first(NFTA_GEN_ID).and_then(be32);
    ask(socket, libc::NFT_MSG_GETGEN, 0, |_| {}, each)?;
    generation.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The fingerprint of our table, if it exists.
pub fn fingerprint(socket: &mut Socket) -> io::Result<Option<TableFingerprint>> {
    let mut table = None;
    or_absent(ask(socket, libc::NFT_MSG_GETTABLE, 0, named(TABLE), |message| {
        let attributes = message.attributes();
        let handle = attributes.first(NFTA_TABLE_HANDLE).and_then(be64);
        table = handle.zip(attributes.first(NFTA_TABLE_FLAGS).and_then(be32));
    }))?;
    let Some((handle, flags)) = table else { return Ok(None) };
    // The owner changes with the daemon that runs.
    let flags = flags & !OWNED;
    let mut rules = crc32fast::Hasher::new();
    // The bytes before the attributes contain the generation.
    for_each_rule(socket, |attributes| rules.update(attributes.rest))?;
    Ok(Some(TableFingerprint { handle, flags, rules: rules.finalize() }))
}

/// The attributes of each rule of our table, if it exists.
pub fn for_each_rule(socket: &mut Socket, mut each: impl FnMut(Attributes<'_>)) -> io::Result<()> {
    let each = |message: &Message<'_>| each(message.attributes());
    or_absent(ask(socket, libc::NFT_MSG_GETRULE, libc::NLM_F_DUMP, named(TABLE), each)).map(drop)
}

/// Whether a table with this name exists.
pub fn has_table(socket: &mut Socket, table: &CStr) -> io::Result<bool> {
    Ok(or_absent(ask(socket, libc::NFT_MSG_GETTABLE, 0, named(table), |_| {}))?.is_some())
}

/// Names of all tables of `family` (`NFPROTO_*`).
pub fn table_names(socket: &mut Socket, family: i32) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    let kind = kind_of(libc::NFNL_SUBSYS_NFTABLES, libc::NFT_MSG_GETTABLE);
    let each = |message: &Message<'_>| {
        let name = message.attributes().first(NFTA_TABLE_NAME).map(CStr::from_bytes_until_nul);
        names.extend(name.and_then(Result::ok).map(|name| name.to_string_lossy().into_owned()));
    };
    socket.request(kind, libc::NLM_F_DUMP, &family_header(family, 0), |_| {}, each)?;
    Ok(names)
}

/// Passes all objects of one kind in `table`, restricted to what `of` names, to `each`. `Interrupted` if they changed
/// meanwhile: some may be missing or repeated.
pub fn dump_objects(
    socket: &mut Socket,
    command: i32,
    table: &CStr,
    of: Option<(u16, &[u8])>,
    mut each: impl FnMut(&Attributes<'_>),
) -> io::Result<()> {
    let fill = |message: &mut Writer<'_>| {
        named(table)(message);
        if let Some((kind, content)) = of {
            message.put(kind, content);
        }
    };
    let is_consistent = ask(socket, command, libc::NLM_F_DUMP, fill, |message| {
        let attributes = message.attributes();
        // Not all kernels restrict the dump to one table.
        if attributes.first(NFTA_TABLE_NAME) == Some(table.to_bytes_with_nul()) {
            each(&attributes);
        }
    })?;
    if is_consistent { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
}

/// Passes key and attributes of each element of a set or map of our table to `each`; see [`remaining_time`] and
/// [`data_of`]. Errors as [`dump_objects`].
pub fn dump_elements(
    socket: &mut Socket,
    set: &'static CStr,
    mut each: impl FnMut(&[u8], &Attributes<'_>),
) -> io::Result<()> {
    let of_set = Some((NFTA_SET_ELEM_LIST_SET, set.to_bytes_with_nul()));
    dump_objects(socket, libc::NFT_MSG_GETSETELEM, TABLE, of_set, |attributes| {
        for_each_element(attributes, &mut each);
    })
}

/// The data of one element of a map of our table, if it exists.
pub fn map_data(
    socket: &mut Socket,
    map: &'static CStr,
    key: &[u8],
) -> io::Result<Option<Vec<u8>>> {
    let element = Element { set: map, key, data: None, timeout: None };
    let mut found = None;
    let fill = |message: &mut Writer<'_>| {
        named(TABLE)(message);
        element.put(message);
    };
    or_absent(ask(socket, libc::NFT_MSG_GETSETELEM, 0, fill, |message| {
        for_each_element(&message.attributes(), |_, element| {
            found = data_of(element).map(Vec::from);
        });
    }))?;
    Ok(found)
}

/// The time until an element expires.
pub fn remaining_time(element: &Attributes<'_>) -> Option<Duration> {
    element.first(NFTA_SET_ELEM_EXPIRATION).and_then(be64).map(Duration::from_millis)
}

/// The data of a map's element.
pub fn data_of<'a>(element: &Attributes<'a>) -> Option<&'a [u8]> {
    element.nested(NFTA_SET_ELEM_DATA)?.first(NFTA_DATA_VALUE)
}

/// Passes key and attributes of each element in a message to `each`.
fn for_each_element(message: &Attributes<'_>, mut each: impl FnMut(&[u8], &Attributes<'_>)) {
    let elements = message.nested(NFTA_SET_ELEM_LIST_ELEMENTS);
    for (_, element) in elements.into_iter().flatten() {
        let element = Attributes::new(element);
        let key = element.nested(NFTA_SET_ELEM_KEY).and_then(|key| key.first(NFTA_DATA_VALUE));
        if let Some(key) = key {
            each(key, &element);
        }
    }
}

/// Writes the name of a table, which begins a request about it.
fn named(table: &CStr) -> impl FnOnce(&mut Writer<'_>) {
    |message| _ = message.put(NFTA_TABLE_NAME, table.to_bytes_with_nul())
}

/// Sends a request about our family, whose attributes `fill` writes, and passes each message of the answer to `each`.
fn ask(
    socket: &mut Socket,
    command: i32,
    flags: i32,
    fill: impl FnOnce(&mut Writer<'_>),
    each: impl FnMut(&Message<'_>),
) -> io::Result<bool> {
    socket.request(kind_of(libc::NFNL_SUBSYS_NFTABLES, command), flags, &INET, fill, each)
}
