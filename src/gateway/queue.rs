//! One NFQUEUE: reads queued packets in batches, and gives verdicts in batches.
//!
//! Does not know what is in a packet. A packet stays in the kernel until its verdict is flushed;
//! verdicts may come in any order and in a later batch.

#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::FileExt,
    },
};

use super::{
    GatewayError,
    features::{CAP_NET_ADMIN, has},
    netlink::{self, Message, Messages, Socket, Start, Writer, be16, be32},
};

const SUBSYSTEM: u8 = libc::NFNL_SUBSYS_QUEUE as u8;
const PACKET: u16 = (libc::NFNL_SUBSYS_QUEUE as u16) << 8 | libc::NFQNL_MSG_PACKET as u16;

/// Datagrams read at once.
const BATCH: usize = 64;
/// The largest packet and its attributes.
const SLOT: usize = (1 << 16) + 1024;
/// Packets waiting for a verdict, beyond which the kernel drops.
const MAXIMUM_WAITING: u32 = 8192;
const SOCKET_BUFFER: i32 = 8 << 20;
/// Verdicts are to be sent when they take this many bytes.
const FLUSH_AT: usize = 256 << 10;
/// What an attribute can hold.
const MAXIMUM_REPLACEMENT: usize = u16::MAX as usize - 4;

/// A packet that waits for its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// What [`Queue::verdict`] wants.
    pub id: u32,
    /// The IP packet, whole and with valid checksums.
    pub payload: &'a [u8],
    /// Netfilter hook: 1 input, 2 forward, 3 output, 4 postrouting.
    pub hook: u8,
    /// Interface that it came in on; 0 if it was made here.
    pub indev: u32,
    /// Interface that it goes out on; 0 if it ends here.
    pub outdev: u32,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// It goes on as it is.
    Accept,
    /// This goes on in its place; checksums must be right.
    Replace(&'a [u8]),
    /// It ends here.
    Drop,
}

/// A queue of which this is the only reader. Closing it is dropping it: packets without a verdict
/// are then dropped by the kernel.
#[derive(Debug)]
pub struct Queue {
    socket: Socket,
    number: u16,
    receiver: Receiver,
    found: Vec<Found>,
    out: Vec<u8>,
    malformed: u64,
    refused: u64,
    overruns: u64,
    /// Where the kernel says what it dropped, to root only. Without that the numbers of packets show
    /// those that the receive buffer had no room for.
    statistics: Option<File>,
    /// The number of the packet read last; the kernel counts from 1.
    last: u32,
}

/// Where in the receive buffer a packet is.
#[derive(Clone, Copy, Debug)]
struct Found {
    id: u32,
    hook: u8,
    indev: u32,
    outdev: u32,
    start: usize,
    length: usize,
}

impl Queue {
    /// Becomes the reader of queue `number`.
    pub fn open(number: u16) -> Result<Self, GatewayError> {
        let opening = || format!("queue {number}");
        let mut socket = Socket::open().map_err(|e| GatewayError::system(opening(), e))?;
        configure(&mut socket, number, |message| {
            message.put(libc::NFQA_CFG_CMD as u16, &[libc::NFQNL_CFG_CMD_BIND as u8, 0, 0, 0]);
        })
        .map_err(|error| refused(number, error))?;
        configure(&mut socket, number, |message| {
            // struct nfqnl_msg_config_params: copy range (big-endian), mode.
            let mut parameters = [0; 5];
            if let Some((range, mode)) = parameters.split_first_chunk_mut() {
                *range = 0xffff_u32.to_be_bytes();
                mode.fill(libc::NFQNL_COPY_PACKET as u8);
            }
            message
                .put(libc::NFQA_CFG_PARAMS as u16, &parameters)
                .put(libc::NFQA_CFG_QUEUE_MAXLEN as u16, &MAXIMUM_WAITING.to_be_bytes());
            // Neither fail-open nor GSO: a packet that passed a full queue unseen would tear the
            // stream of its connection, while TCP repeats one that was dropped; and what is
            // rewritten must come as it goes on the wire.
        })
        .map_err(|e| GatewayError::system(opening(), e))?;
        // Without the right to exceed rmem_max, what it allows must do.
        for (force, polite) in
            [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
        {
            if socket.set_option(libc::SOL_SOCKET, force, SOCKET_BUFFER).is_err() {
                let _ = socket.set_option(libc::SOL_SOCKET, polite, SOCKET_BUFFER);
            }
        }
        // A socket that reports an overrun is refused all further packets until it has been read
        // empty (netlink_overrun sets NETLINK_S_CONGESTED); the drops are counted in /proc.
        socket
            .set_option(libc::SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, 1)
            .map_err(|e| GatewayError::system(opening(), e))?;
        let statistics = File::open(STATISTICS);
        if let Err(error) = &statistics {
            tracing::info!(
                "queue {number}: {STATISTICS}: {error}; overruns are counted by the numbers of packets"
            );
        }
        Ok(Self {
            socket,
            number,
            receiver: Receiver::new(),
            found: Vec::with_capacity(BATCH),
            out: Vec::with_capacity(FLUSH_AT),
            malformed: 0,
            refused: 0,
            overruns: 0,
            statistics: statistics.ok(),
            last: 0,
        })
    }

    /// The queue's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Reads the packets that wait, up to a batch, without blocking. Returns how many; they stay
    /// readable by [`Queue::packet`] until the next call.
    pub fn receive(&mut self) -> Result<usize, GatewayError> {
        self.found.clear();
        let datagrams = loop {
            match self.receiver.receive(self.socket.as_fd().as_raw_fd()) {
                Ok(datagrams) => break datagrams,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => break 0,
                    Some(libc::EINTR) => {}
                    Some(libc::ENOBUFS) => self.overruns += 1,
                    _ => {
                        let what = format!("reading queue {}", self.number);
                        return Err(GatewayError::system(what, error));
                    }
                },
            }
        };
        let malformed_before = self.malformed;
        for slot in 0..datagrams {
            let Some((start, datagram)) = self.receiver.datagram(slot) else { continue };
            let mut messages = Messages::new(datagram);
            for message in &mut messages {
                match message.kind {
                    PACKET => {
                        let Some((mut packet, payload)) = parse(&message) else {
                            self.malformed += 1;
                            continue;
                        };
                        if self.statistics.is_none() {
                            self.overruns += between(self.last, packet.id);
                            self.last = packet.id;
                        }
                        if let Some(payload) = payload {
                            packet.start = start + offset_in(datagram, payload);
                            packet.length = payload.len();
                            self.found.push(packet);
                        } else {
                            // Nothing to judge it by; TCP repeats it.
                            self.malformed += 1;
                            put_verdict(&mut self.out, self.number, packet.id, Decision::Drop);
                        }
                    }
                    netlink::ERROR if message.errno() != 0 => self.refused += 1,
                    _ => {}
                }
            }
            self.malformed += u64::from(messages.malformed());
        }
        if self.malformed != malformed_before {
            self.flush()?;
        }
        Ok(self.found.len())
    }

    /// Packet `index` of the batch last received.
    pub fn packet(&self, index: usize) -> Option<Packet<'_>> {
        self.found.get(index).and_then(|found| self.receiver.packet(found))
    }

    /// The packets of the batch last received, and what takes the verdicts on them.
    pub fn batch(&mut self) -> (impl Iterator<Item = Packet<'_>>, Verdicts<'_>) {
        let receiver = &self.receiver;
        (
            self.found.iter().filter_map(|found| receiver.packet(found)),
            Verdicts { socket: &self.socket, number: self.number, out: &mut self.out },
        )
    }

    /// Decides on a packet, of this batch or an earlier one. Takes effect with [`Queue::flush`].
    pub fn verdict(&mut self, id: u32, decision: Decision<'_>) -> Result<(), GatewayError> {
        self.verdicts().verdict(id, decision)
    }

    /// Sends the verdicts given so far.
    pub fn flush(&mut self) -> Result<(), GatewayError> {
        self.verdicts().flush()
    }

    fn verdicts(&mut self) -> Verdicts<'_> {
        Verdicts { socket: &self.socket, number: self.number, out: &mut self.out }
    }

    /// Packets that the kernel dropped, as the queue or our receive buffer was full.
    pub fn overruns(&self) -> u64 {
        let mut text = [0; 4096];
        let read =
            self.statistics.as_ref().and_then(|f| f.read_at(&mut text, 0).ok()).unwrap_or_default();
        let text = String::from_utf8_lossy(text.get(..read).unwrap_or_default());
        self.overruns + row(&text, self.number).map_or(0, |row| row.dropped)
    }

    /// Messages of the kernel that made no sense; their packets were dropped.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Verdicts that the kernel refused, as on a packet it no longer had.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

impl AsFd for Queue {
    /// Readable when packets wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes verdicts while the packets of the batch are still borrowed.
#[derive(Debug)]
pub struct Verdicts<'a> {
    socket: &'a Socket,
    number: u16,
    out: &'a mut Vec<u8>,
}

impl Verdicts<'_> {
    /// As [`Queue::verdict`].
    pub fn verdict(&mut self, id: u32, decision: Decision<'_>) -> Result<(), GatewayError> {
        match decision {
            Decision::Replace(payload) if payload.len() > MAXIMUM_REPLACEMENT => {
                put_verdict(self.out, self.number, id, Decision::Drop);
                let length = payload.len();
                return Err(GatewayError::Parameters(format!(
                    "a packet of {length} bytes is above what a verdict can carry, \
                     {MAXIMUM_REPLACEMENT}; it was dropped"
                )));
            }
            decision => put_verdict(self.out, self.number, id, decision),
        }
        Ok(())
    }

    /// Whether so much was decided that it is to be flushed before more is.
    pub fn is_full(&self) -> bool {
        self.out.len() >= FLUSH_AT
    }

    /// As [`Queue::flush`].
    pub fn flush(&mut self) -> Result<(), GatewayError> {
        if self.out.is_empty() {
            return Ok(());
        }
        let sent = self.socket.send(self.out);
        self.out.clear();
        sent.map_err(|e| GatewayError::system(format!("verdicts of queue {}", self.number), e))
    }
}

fn put_verdict(out: &mut Vec<u8>, number: u16, id: u32, decision: Decision<'_>) {
    let (verdict, payload) = match decision {
        Decision::Accept => (libc::NF_ACCEPT, None),
        Decision::Replace(payload) => (libc::NF_ACCEPT, Some(payload)),
        Decision::Drop => (libc::NF_DROP, None),
    };
    let mut header = [0; 8];
    if let Some((first, rest)) = header.split_first_chunk_mut() {
        *first = (verdict as u32).to_be_bytes();
        rest.copy_from_slice(&id.to_be_bytes());
    }
    let mut message = Writer::new(
        out,
        Start {
            subsystem: SUBSYSTEM,
            command: libc::NFQNL_MSG_VERDICT as u8,
            flags: 0,
            sequence: 0,
            family: libc::AF_UNSPEC as u8,
            resource: number,
        },
    );
    message.put(libc::NFQA_VERDICT_HDR as u16, &header);
    if let Some(payload) = payload {
        message.put(libc::NFQA_PAYLOAD as u16, payload);
    }
}

/// Sends one configuration message and waits for the kernel's answer.
fn configure(
    socket: &mut Socket,
    number: u16,
    fill: impl FnOnce(&mut Writer<'_>),
) -> io::Result<()> {
    let mut request = Vec::new();
    let start = Start {
        subsystem: SUBSYSTEM,
        command: libc::NFQNL_MSG_CONFIG as u8,
        flags: libc::NLM_F_ACK as u16,
        sequence: socket.next_sequence(),
        family: libc::AF_UNSPEC as u8,
        resource: number,
    };
    fill(&mut Writer::new(&mut request, start));
    let mut answer = None;
    socket.ask(&request, |message| {
        if message.kind == netlink::ERROR && message.sequence == start.sequence {
            answer = Some(message.errno());
        }
    })?;
    match answer {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel did not answer")),
    }
}

/// How many packets there were between two that came one after the other.
fn between(last: u32, id: u32) -> u64 {
    u64::from(id.wrapping_sub(last).wrapping_sub(1))
}

/// The kernel says EPERM both when the queue has a reader and when we may not ask.
fn refused(number: u16, error: io::Error) -> GatewayError {
    let taken = || match std::fs::read_to_string(STATISTICS) {
        Ok(table) => {
            let owner = format!(" ({})", owner(row(&table, number)?.port));
            Some(GatewayError::QueueTaken { number, owner })
        }
        // Only root may read it; who has the capability was refused for the reader.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && has(CAP_NET_ADMIN) => {
            Some(GatewayError::QueueTaken { number, owner: String::new() })
        }
        Err(_) => None,
    };
    let missing = || GatewayError::FeatureMissing {
        what: format!("queue {number}"),
        feature: "nfnetlink_queue",
        remedy: "load it with `modprobe nfnetlink_queue`",
    };
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EBUSY) => {
            taken().unwrap_or_else(|| GatewayError::system(format!("queue {number}"), error))
        }
        // nfnetlink_rcv_msg() knows no such subsystem.
        Some(libc::EINVAL | libc::EOPNOTSUPP) => missing(),
        _ => GatewayError::system(format!("queue {number}"), error),
    }
}

/// Most programs have their process id as netlink port.
fn owner(port: u32) -> String {
    std::fs::read_to_string(format!("/proc/{port}/comm")).map_or_else(
        |_| format!("netlink port {port}"),
        |name| format!("{}, pid {port}", name.trim_end()),
    )
}

/// Of these queues those that someone reads, and who does.
pub(super) fn readers(numbers: std::ops::RangeInclusive<u16>) -> Vec<(u16, String)> {
    let table = std::fs::read_to_string(STATISTICS).unwrap_or_default();
    numbers.filter_map(|number| Some((number, owner(row(&table, number)?.port)))).collect()
}

/// The thread's own network namespace, not that of the process's first thread.
pub(super) const STATISTICS: &str = "/proc/thread-self/net/netfilter/nfnetlink_queue";

struct Row {
    port: u32,
    dropped: u64,
}

/// Columns (seq_show in nfnetlink_queue.c): queue, port, waiting, copy mode, copy range, dropped,
/// dropped at the socket, last id, 1.
fn row(table: &str, number: u16) -> Option<Row> {
    table.lines().find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        if columns.next()?.parse::<u16>().ok()? != number {
            return None;
        }
        let port = columns.next()?.parse().ok()?;
        let full: u64 = columns.nth(3)?.parse().ok()?;
        let socket: u64 = columns.next()?.parse().ok()?;
        Some(Row { port, dropped: full.saturating_add(socket) })
    })
}

fn parse<'a>(message: &Message<'a>) -> Option<(Found, Option<&'a [u8]>)> {
    let mut found = None;
    let (mut payload, mut indev, mut outdev) = (None, 0, 0);
    for (kind, content) in message.attributes() {
        match i32::from(kind) {
            libc::NFQA_PACKET_HDR => {
                found = Some((be32(content)?, content.get(4..).and_then(be16)?, *content.get(6)?));
            }
            libc::NFQA_IFINDEX_INDEV => indev = be32(content)?,
            libc::NFQA_IFINDEX_OUTDEV => outdev = be32(content)?,
            libc::NFQA_PAYLOAD => payload = Some(content),
            _ => {}
        }
    }
    let (id, _protocol, hook) = found?;
    Some((Found { id, hook, indev, outdev, start: 0, length: 0 }, payload))
}

/// Where `part`, a part of `whole`, starts.
fn offset_in(whole: &[u8], part: &[u8]) -> usize {
    (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize)
}

/// Buffers for one batch, made once.
struct Receiver {
    bytes: Vec<u8>,
    lengths: Vec<usize>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("lengths", &self.lengths).finish_non_exhaustive()
    }
}

impl Receiver {
    fn new() -> Self {
        // Zeroed pages that are never touched take no memory.
        Self { bytes: vec![0; BATCH * SLOT], lengths: Vec::with_capacity(BATCH) }
    }

    fn receive(&mut self, fd: i32) -> io::Result<usize> {
        self.lengths.clear();
        // SAFETY: both structures are plain data for which zero is a valid value.
        let mut vectors: [libc::iovec; BATCH] = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        for ((vector, header), slot) in
            vectors.iter_mut().zip(&mut headers).zip(self.bytes.chunks_exact_mut(SLOT))
        {
            vector.iov_base = slot.as_mut_ptr().cast();
            vector.iov_len = slot.len();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: each header points at one vector, and that at its own slot of `bytes`; all live
        // beyond the call, and nothing else refers to them during it.
        let received = unsafe {
            libc::recvmmsg(
                fd,
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        self.lengths.extend(headers.iter().take(received).map(|h| (h.msg_len as usize).min(SLOT)));
        Ok(received)
    }

    /// A datagram and where it starts.
    fn datagram(&self, slot: usize) -> Option<(usize, &[u8])> {
        let start = slot.checked_mul(SLOT)?;
        let length = *self.lengths.get(slot)?;
        Some((start, self.bytes.get(start..start.checked_add(length)?)?))
    }

    fn packet(&self, found: &Found) -> Option<Packet<'_>> {
        Some(Packet {
            id: found.id,
            payload: self.bytes.get(found.start..found.start.checked_add(found.length)?)?,
            hook: found.hook,
            indev: found.indev,
            outdev: found.outdev,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What Linux 6.18 sent: a forwarded packet of 53 bytes, the last of them an `x`.
    const RECORDED: &str = "\
        79000000000300000000000000000000020008340b00010000000002080002000800050000000002\
        080006000000000310000900000600003e0f9080bf7a000039000a0045000035310d40003f063eab\
        0a000002c0000209b1010015d19332784262f1ef8018003ff72f00000101080aa7eac0e31476d480\
        78";

    fn packet_message() -> Vec<u8> {
        let hex = RECORDED;
        let digits = |at| hex.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
        (0..hex.len()).step_by(2).filter_map(digits).collect()
    }

    type Fields = (u32, u8, u32, u32, Option<Vec<u8>>);

    fn parse_all(bytes: &[u8]) -> Vec<Fields> {
        Messages::new(bytes)
            .filter_map(|message| parse(&message))
            .map(|(f, payload)| (f.id, f.hook, f.indev, f.outdev, payload.map(<[u8]>::to_vec)))
            .collect()
    }

    #[test]
    fn a_packet_message_is_read() {
        let all = parse_all(&packet_message());
        let [(id, hook, indev, outdev, Some(payload))] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((*id, *hook, *indev, *outdev), (2, 2, 2, 3));
        assert_eq!(
            (payload.len(), payload.first(), payload.last()),
            (53, Some(&0x45), Some(&b'x'))
        );
    }

    #[test]
    fn verdicts_are_joined_each_with_its_own_header() {
        let mut out = Vec::new();
        put_verdict(&mut out, 2100, 7, Decision::Accept);
        put_verdict(&mut out, 2100, 8, Decision::Replace(b"new"));
        let messages: Vec<_> = Messages::new(&out).collect();
        assert_eq!(messages.len(), 2);
        let attributes = messages[1].attributes();
        assert_eq!(attributes.first(2), Some(&[0, 0, 0, 1, 0, 0, 0, 8][..]));
        assert_eq!(attributes.first(10), Some(&b"new"[..]));
        assert_eq!(messages[0].body.get(2..4), Some(&2100_u16.to_be_bytes()[..]));
    }

    #[test]
    fn the_row_of_a_queue_is_read() {
        let table = " 2100  27402     0 2 65531     3     4       58  1\n  210   1 0 2 0 0 0 0 1\n";
        let row = row(table, 2100).unwrap();
        assert_eq!((row.port, row.dropped), (27402, 7));
        assert!(super::row(table, 2101).is_none());
        assert!(super::row("2100 x", 2100).is_none());
    }

    #[test]
    fn packets_that_are_missing_are_counted_by_their_numbers() {
        assert_eq!([between(0, 1), between(1, 2), between(2, 5)], [0, 0, 2]);
        assert_eq!(between(u32::MAX, 0), 0);
    }

    proptest! {
        #[test]
        fn damaged_packet_messages_do_not_panic(at in 0usize..121, value: u8, cut in 0usize..122) {
            let mut bytes = packet_message();
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
            bytes.truncate(cut);
            parse_all(&bytes);
        }
    }
}
