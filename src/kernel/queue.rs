//! One NFQUEUE: reads packets in batches, and sends verdicts in batches.
//!
//! Does not read the content of packets. A packet stays in the kernel until its verdict is flushed. Verdicts may come
//! in any order and in a later batch.

#![allow(unsafe_code)]

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    fs::{self, File},
    io, mem,
    ops::{Range, RangeInclusive},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::FileExt,
    },
    time::Duration,
};

use ftp_alg_core::packet::Offload;

use super::{
    NetfilterError,
    broker::{CAP_NET_ADMIN, has_capability},
    netlink::{self, Message, Messages, Socket, Writer, be32, family_header, kind_of, put_message},
};

const PACKET: u16 = kind_of(libc::NFNL_SUBSYS_QUEUE, libc::NFQNL_MSG_PACKET);
const CONFIG: u16 = kind_of(libc::NFNL_SUBSYS_QUEUE, libc::NFQNL_MSG_CONFIG);

/// Statistics of all queues, in the thread's own network namespace, not in that of the process's first thread.
pub(super) const STATISTICS: &str = "/proc/thread-self/net/netfilter/nfnetlink_queue";

/// Limit of packets in a queue; the kernel drops further ones.
pub const MAXIMUM_WAITING: u32 = 8192;
const SOCKET_BUFFER: i32 = 8 << 20;
/// Maximum number of datagrams in one call.
const BATCH_SIZE: usize = 64;
/// The largest queued packet with its attributes. Slots start at different cache sets: with a power of two between
/// them, sixty headers would evict each other.
const SLOT_SIZE: usize = (1 << 16) + 1024 + 320;
/// Maximum length of a netlink attribute.
const MAXIMUM_REPLACEMENT: usize = u16::MAX as usize - 4;
/// Number of bytes at which verdicts are sent.
const FLUSH_AT: usize = 256 << 10;

/// A packet that waits for its verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueuePacket<'a> {
    /// Packet number, for [`Verdicts::verdict`].
    pub id: u32,
    /// The complete IP packet.
    pub payload: &'a [u8],
    /// Netfilter hook: 1 input, 2 forward, 3 output, 4 postrouting.
    pub hook: u8,
    /// The packet mark.
    pub mark: u32,
    /// Input interface; 0 for a local packet.
    pub indev: u32,
    /// Output interface; 0 if the packet is delivered locally.
    pub outdev: u32,
    /// The offload state, with [`Queue::open_with_super_packets`].
    pub offload: Offload,
}

impl QueuePacket<'_> {
    /// The packet with other bytes.
    pub fn with_payload(self, payload: &[u8]) -> QueuePacket<'_> {
        QueuePacket { payload, ..self }
    }
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueVerdict<'a> {
    /// It is forwarded unchanged.
    Accept,
    /// These bytes are forwarded in its place, with correct checksums. A shorter replacement of a super-packet would be
    /// lost: tcp_gso_segment() refuses one that is not longer than a segment.
    Replace(&'a [u8]),
    /// It is dropped.
    Drop,
}

/// Counters of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Packets that the kernel dropped because the queue or our receive buffer was full.
    pub overruns: u64,
    /// Packets that were dropped unread: longer than a message, or in a malformed one.
    pub dropped: u64,
    /// Verdicts that the kernel refused, for example because it no longer had the packet.
    pub refused: u64,
    /// Packets that wait in the kernel for a verdict. `None` if the kernel's statistics cannot be read.
    pub waiting: Option<u64>,
}

/// A queue whose only reader this is. Dropping it closes it; the kernel then drops packets without a verdict.
pub struct Queue {
    socket: Socket,
    number: u16,
    receiver: Receiver,
    packets: Vec<ReceivedPacket>,
    pending: PendingVerdicts,
    takes_super_packets: bool,
    counts: QueueCounts,
    /// The kernel's statistics, readable for root only. Otherwise gaps in the packet numbers show the packets that the
    /// receive buffer had no room for.
    statistics_file: Option<File>,
    /// Number of the last packet read; the kernel counts from 1.
    last_id: u32,
}

impl Queue {
    /// Opens queue `number` as its reader.
    pub fn open(number: u16) -> Result<Self, NetfilterError> {
        Self::open_with(number, false)
    }

    /// As [`Queue::open`], with packets as the kernel handles them: super-packets, without checksums. After the verdict
    /// the kernel resegments them and computes their checksums, also of replaced ones: nfqnl_mangle() leaves their
    /// segment length, and tcp_gso_segment() sums a packet that is not marked as partly summed.
    pub fn open_with_super_packets(number: u16) -> Result<Self, NetfilterError> {
        Self::open_with(number, true)
    }

    fn open_with(number: u16, takes_super_packets: bool) -> Result<Self, NetfilterError> {
        let failed = |error| NetfilterError::system(format!("queue {number}"), error);
        let mut socket = Socket::open().map_err(failed)?;
        configure(&mut socket, number, |message| {
            message.put(libc::NFQA_CFG_CMD as u16, &[libc::NFQNL_CFG_CMD_BIND as u8, 0, 0, 0]);
        })
        .map_err(|error| refused(number, error))?;
        configure(&mut socket, number, |message| {
            message.put(libc::NFQA_CFG_QUEUE_MAXLEN as u16, &MAXIMUM_WAITING.to_be_bytes());
            // No fail-open: a packet that passes a full queue unread breaks the stream of its connection, while TCP
            // retransmits a dropped one.
            if takes_super_packets {
                put_super_packet_flag(message, true);
            }
        })
        .map_err(failed)?;
        socket.set_buffer(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, SOCKET_BUFFER);
        socket.set_buffer(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SOCKET_BUFFER);
        // A socket that reports an overrun gets no further packets until it has been read empty (netlink_overrun sets
        // NETLINK_S_CONGESTED). The drops are counted in /proc.
        socket.set_option(libc::SOL_NETLINK, libc::NETLINK_NO_ENOBUFS, 1).map_err(failed)?;
        start_delivery(&socket, number).map_err(failed)?;
        let statistics = File::open(STATISTICS);
        match &statistics {
            Ok(_) => {}
            // It is root's alone, and with the package's unit the daemon is not root.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                tracing::debug!("queue {number}: overruns are counted from gaps in the packet ids");
            }
            Err(error) => tracing::info!(
                "queue {number}: {STATISTICS}: {error}; overruns are counted from gaps in the packet ids"
            ),
        }
        Ok(Self {
            socket,
            number,
            receiver: Receiver::new(),
            packets: Vec::with_capacity(BATCH_SIZE),
            pending: PendingVerdicts::new(number),
            takes_super_packets,
            counts: QueueCounts::default(),
            statistics_file: statistics.ok(),
            last_id: 0,
        })
    }

    /// The queue number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Reads the waiting packets, up to a batch, without blocking. Returns their number; [`Queue::batch`] has them until
    /// the next call.
    pub fn receive(&mut self) -> Result<usize, NetfilterError> {
        self.read(libc::MSG_DONTWAIT)
    }

    /// Sets the timeout of [`Queue::wait`].
    pub fn set_receive_timeout(&mut self, patience: Duration) -> Result<(), NetfilterError> {
        let failed = |error| NetfilterError::system(format!("queue {}", self.number), error);
        socket2::SockRef::from(&self.socket).set_read_timeout(Some(patience)).map_err(failed)
    }

    /// As [`Queue::receive`], but waits for a packet, a wake-up or the timeout. Reading at once saves a poll() for
    /// each.
    pub fn wait(&mut self) -> Result<usize, NetfilterError> {
        self.read(libc::MSG_WAITFORONE)
    }

    /// Ends [`Queue::wait`] from another thread.
    pub fn waker(&self) -> Result<Waker, NetfilterError> {
        let waking = |e| NetfilterError::system(format!("queue {}", self.number), e);
        Ok(Waker { socket: Socket::open().map_err(waking)?, port: self.socket.port() })
    }

    fn read(&mut self, flags: libc::c_int) -> Result<usize, NetfilterError> {
        self.packets.clear();
        let datagrams = loop {
            match self.receiver.receive(self.socket.as_fd().as_raw_fd(), flags) {
                Ok(datagrams) => break datagrams,
                Err(error) => match error.raw_os_error() {
                    // EINTR: the process was stopped, and continues (signal(7)). The caller has to see at once how late
                    // it is.
                    Some(libc::EAGAIN | libc::EINTR) => break 0,
                    Some(libc::ENOBUFS) => self.counts.overruns += 1,
                    _ => {
                        let what = format!("reading queue {}", self.number);
                        return Err(NetfilterError::system(what, error));
                    }
                },
            }
        };
        let dropped_before = self.counts.dropped;
        let mut is_any_cut = false;
        for slot in 0..datagrams {
            let Some((start, datagram)) = self.receiver.datagram(slot) else { continue };
            let mut messages = Messages::new(datagram);
            for message in &mut messages {
                match message.kind {
                    PACKET => {
                        let Some((packet, is_cut)) = parse(&message) else {
                            self.counts.dropped += 1;
                            self.pending.note_unreadable();
                            continue;
                        };
                        if self.statistics_file.is_none() {
                            self.counts.overruns += count_between(self.last_id, packet.id);
                            self.last_id = packet.id;
                        }
                        self.pending.note_read(packet.id);
                        // Longer than a message (BIG TCP). TCP retransmits it in parts.
                        let is_cut = is_cut && packet.offload.is_super_packet;
                        is_any_cut |= is_cut;
                        if is_cut || packet.payload.is_empty() {
                            // The packet cannot be handled. TCP retransmits it.
                            self.counts.dropped += 1;
                            self.pending.set_verdict(packet.id, QueueVerdict::Drop, None)?;
                            continue;
                        }
                        let at = start + offset_in(datagram, packet.payload);
                        let bytes = at..at + packet.payload.len();
                        self.packets
                            .push(ReceivedPacket { packet: packet.with_payload(&[]), bytes });
                    }
                    netlink::ERROR if message.errno() != 0 => {
                        self.counts.refused += 1;
                        let error = io::Error::from_raw_os_error(message.errno());
                        tracing::debug!("queue {}: a verdict was refused: {error}", self.number);
                    }
                    _ => {}
                }
            }
            if messages.is_malformed() {
                self.counts.dropped += 1;
                self.pending.note_unreadable();
            }
        }
        if is_any_cut && self.takes_super_packets {
            self.disable_super_packets()?;
        }
        if self.counts.dropped != dropped_before {
            self.verdicts().flush()?;
        }
        Ok(self.packets.len())
    }

    /// Undoes [`Queue::open_with_super_packets`] between packets.
    fn disable_super_packets(&mut self) -> Result<(), NetfilterError> {
        self.takes_super_packets = false;
        let number = self.number;
        tracing::warn!(
            "queue {number}: a packet is longer than 64 KiB: this queue gets no super-packets (GSO) any more"
        );
        configure_unacknowledged(&self.socket, number, |message| {
            put_super_packet_flag(message, false)
        })
        .map_err(|e| NetfilterError::system(format!("queue {number}"), e))
    }

    /// The packets of the last batch, and the verdicts on them.
    pub fn batch(&mut self) -> (impl Iterator<Item = QueuePacket<'_>> + Clone, Verdicts<'_>) {
        let receiver = &self.receiver;
        (
            self.packets.iter().filter_map(|found| receiver.packet(found)),
            Verdicts { socket: &self.socket, pending: &mut self.pending },
        )
    }

    /// Drops the packets that wait.
    pub fn drop_waiting(&mut self) -> Result<(), NetfilterError> {
        let mut dropped = 0;
        while dropped < MAXIMUM_WAITING as usize && self.receive()? > 0 {
            let (packets, mut verdicts) = self.batch();
            for packet in packets {
                verdicts.verdict(packet.id, QueueVerdict::Drop, None)?;
                dropped += 1;
            }
            verdicts.flush()?;
        }
        Ok(())
    }

    /// Takes verdicts on packets of earlier batches.
    pub fn verdicts(&mut self) -> Verdicts<'_> {
        Verdicts { socket: &self.socket, pending: &mut self.pending }
    }

    /// Counters since the queue was opened.
    pub fn counts(&self) -> QueueCounts {
        let mut text = [0; 4096];
        let read = self
            .statistics_file
            .as_ref()
            .and_then(|f| f.read_at(&mut text, 0).ok())
            .unwrap_or_default();
        let text = String::from_utf8_lossy(text.get(..read).unwrap_or_default());
        let row = find_row(&text, self.number);
        let by_kernel = row.as_ref().map_or(0, |row| row.dropped);
        let waiting = row.map(|row| row.waiting);
        QueueCounts { overruns: self.counts.overruns + by_kernel, waiting, ..self.counts }
    }
}

/// Wakes a queue's reader, by an empty message to its socket.
#[derive(Debug)]
pub struct Waker {
    socket: Socket,
    port: u32,
}

impl Waker {
    /// Wakes the reader. Not necessary if there is none any more, or if its buffer is full, because then it has packets
    /// to read. This must never block, because the reader may wait for the caller.
    pub fn wake(&self) {
        let mut nothing = Vec::new();
        put_message(&mut nothing, libc::NLMSG_NOOP as u16, 0, 0, &[], |_| {});
        let _ = self.socket.send_to(&nothing, self.port);
    }
}

/// A packet in the receive buffer.
#[derive(Clone, Debug)]
struct ReceivedPacket {
    /// The packet without its bytes.
    packet: QueuePacket<'static>,
    bytes: Range<usize>,
}

/// Preallocated buffers for one batch.
struct Receiver {
    bytes: Vec<u8>,
    calls: Box<ReceiveCall>,
}

/// The arguments of recvmmsg(); their pointers are valid only during a call.
struct ReceiveCall {
    vectors: [libc::iovec; BATCH_SIZE],
    headers: [libc::mmsghdr; BATCH_SIZE],
}

// SAFETY: only recvmmsg() dereferences its pointers, and all of them are set before each call.
unsafe impl Send for ReceiveCall {}

impl Receiver {
    fn new() -> Self {
        // Zeroed pages that are never touched take no memory.
        let bytes = vec![0; BATCH_SIZE * SLOT_SIZE];
        // SAFETY: plain data for which zero is a valid value.
        let calls = Box::new(unsafe { mem::zeroed() });
        Self { bytes, calls }
    }

    /// Receives datagrams, at most a batch. Returns their number.
    fn receive(&mut self, fd: i32, flags: libc::c_int) -> io::Result<usize> {
        let (vectors, headers) = (&mut self.calls.vectors, &mut self.calls.headers);
        for ((vector, header), slot) in
            vectors.iter_mut().zip(headers.iter_mut()).zip(self.bytes.chunks_exact_mut(SLOT_SIZE))
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
                BATCH_SIZE as libc::c_uint,
                flags as _, // unsigned in musl
                std::ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// A datagram of the last call and its offset.
    fn datagram(&self, slot: usize) -> Option<(usize, &[u8])> {
        let start = slot.checked_mul(SLOT_SIZE)?;
        let length = (self.calls.headers.get(slot)?.msg_len as usize).min(SLOT_SIZE);
        Some((start, self.bytes.get(start..start.checked_add(length)?)?))
    }

    fn packet(&self, found: &ReceivedPacket) -> Option<QueuePacket<'_>> {
        Some(found.packet.with_payload(self.bytes.get(found.bytes.clone())?))
    }
}

/// The packet of a message, and whether it is truncated. The payload is empty if the message has none.
fn parse<'a>(message: &Message<'a>) -> Option<(QueuePacket<'a>, bool)> {
    let (mut has_header, mut is_cut) = (false, false);
    let mut packet = QueuePacket::default();
    for (kind, content) in message.attributes() {
        match i32::from(kind) {
            libc::NFQA_PACKET_HDR => {
                // struct nfqnl_msg_packet_hdr: number, protocol, hook.
                (packet.id, packet.hook) = (be32(content)?, *content.get(6)?);
                has_header = true;
            }
            libc::NFQA_MARK => packet.mark = be32(content)?,
            libc::NFQA_IFINDEX_INDEV => packet.indev = be32(content)?,
            libc::NFQA_IFINDEX_OUTDEV => packet.outdev = be32(content)?,
            libc::NFQA_SKB_INFO => {
                let flags = be32(content)?.cast_signed();
                packet.offload.is_super_packet = flags & libc::NFQA_SKB_GSO != 0;
                packet.offload.lacks_checksum = flags & libc::NFQA_SKB_CSUMNOTREADY != 0;
            }
            libc::NFQA_CAP_LEN => is_cut = true,
            libc::NFQA_PAYLOAD => packet.payload = content,
            _ => {}
        }
    }
    has_header.then_some((packet, is_cut))
}

/// Offset of `part` in `whole`.
fn offset_in(whole: &[u8], part: &[u8]) -> usize {
    (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize)
}

/// Verdicts that were not sent yet, and packets without a verdict. Several verdicts are sent at once, and a run of
/// accepts with the same packet mark in one message.
///
/// `NFQNL_MSG_VERDICT_BATCH` applies to every waiting packet up to a number, so it must not be sent while one of those
/// awaits its own verdict. The kernel counts packets upwards and delivers them in that order (`__nfqnl_enqueue_packet`,
/// under the queue's lock), so the packets that await verdicts have rising numbers. A run is continued only by the first of
/// them. All others, and all packets that are read later, have numbers above the end of the run. A packet with an unknown
/// number, or out of order, would break this, so runs end for good then.
#[derive(Debug)]
struct PendingVerdicts {
    number: u16,
    /// The numbers of packets that were read and have no verdict yet, rising.
    awaiting_verdict: VecDeque<u32>,
    /// Whether `awaiting_verdict` may be incomplete.
    may_lack_packets: bool,
    /// Number of the last packet read.
    last_id: Option<u32>,
    /// Accepted packets with the same packet mark that are not in `out` yet.
    run: Vec<u32>,
    run_mark: Option<u32>,
    /// Messages to send.
    out: Vec<u8>,
}

impl PendingVerdicts {
    fn new(number: u16) -> Self {
        Self {
            number,
            awaiting_verdict: VecDeque::new(),
            may_lack_packets: false,
            last_id: None,
            run: Vec::new(),
            run_mark: None,
            out: Vec::with_capacity(4096),
        }
    }

    /// Notes a packet that was read.
    fn note_read(&mut self, id: u32) {
        // As nfq_id_after() compares: numbers wrap.
        self.may_lack_packets |=
            self.last_id.is_some_and(|last| id.wrapping_sub(last).cast_signed() <= 0);
        self.last_id = Some(id);
        self.awaiting_verdict.push_back(id);
    }

    /// Notes that a packet's number could not be read. It never gets a verdict.
    fn note_unreadable(&mut self) {
        self.may_lack_packets = true;
    }

    /// As [`Verdicts::verdict`].
    fn set_verdict(
        &mut self,
        id: u32,
        decision: QueueVerdict<'_>,
        mark: Option<u32>,
    ) -> Result<(), NetfilterError> {
        let is_first = self.awaiting_verdict.front() == Some(&id);
        if is_first {
            self.awaiting_verdict.pop_front();
            if decision == QueueVerdict::Accept {
                if mark != self.run_mark {
                    self.close_run();
                    self.run_mark = mark;
                }
                self.run.push(id);
                return Ok(());
            }
        } else if let Some(at) =
            self.awaiting_verdict.iter().position(|awaiting_verdict| *awaiting_verdict == id)
        {
            self.awaiting_verdict.remove(at);
        }
        self.close_run();
        let (verdict, payload) = match decision {
            QueueVerdict::Accept => (libc::NF_ACCEPT, None),
            QueueVerdict::Replace(payload) if payload.len() > MAXIMUM_REPLACEMENT => {
                self.put(libc::NFQNL_MSG_VERDICT, libc::NF_DROP, id, None, None);
                let length = payload.len();
                return Err(NetfilterError::Parameters(format!(
                    "a packet of {length} bytes is above what a verdict can carry, \
                     {MAXIMUM_REPLACEMENT}; it was dropped"
                )));
            }
            QueueVerdict::Replace(payload) => (libc::NF_ACCEPT, Some(payload)),
            QueueVerdict::Drop => (libc::NF_DROP, None),
        };
        self.put(libc::NFQNL_MSG_VERDICT, verdict, id, payload, mark);
        Ok(())
    }

    fn close_run(&mut self) {
        let mut run = mem::take(&mut self.run);
        match run.as_slice() {
            [_, .., last] if !self.may_lack_packets => {
                let mark = self.run_mark;
                self.put(libc::NFQNL_MSG_VERDICT_BATCH, libc::NF_ACCEPT, *last, None, mark);
            }
            each => each.iter().for_each(|id| {
                self.put(libc::NFQNL_MSG_VERDICT, libc::NF_ACCEPT, *id, None, self.run_mark);
            }),
        }
        run.clear();
        self.run = run;
    }

    fn put(
        &mut self,
        kind: libc::c_int,
        verdict: libc::c_int,
        id: u32,
        payload: Option<&[u8]>,
        mark: Option<u32>,
    ) {
        let header = [(verdict as u32).to_be_bytes(), id.to_be_bytes()];
        let kind = kind_of(libc::NFNL_SUBSYS_QUEUE, kind);
        let queue = family_header(libc::AF_UNSPEC, self.number);
        put_message(&mut self.out, kind, 0, 0, &queue, |message| {
            message.put(libc::NFQA_VERDICT_HDR as u16, header.as_flattened());
            if let Some(payload) = payload {
                message.put(libc::NFQA_PAYLOAD as u16, payload);
            }
            if let Some(mark) = mark {
                message.put(libc::NFQA_MARK as u16, &mark.to_be_bytes());
            }
        });
    }
}

/// Takes verdicts while the packets of the batch are still borrowed.
#[derive(Debug)]
pub struct Verdicts<'a> {
    socket: &'a Socket,
    pending: &'a mut PendingVerdicts,
}

impl Verdicts<'_> {
    /// Decides on a packet of this or an earlier batch, and sets its packet mark to `mark` if given. Takes effect with
    /// [`Verdicts::flush`].
    pub fn verdict(
        &mut self,
        id: u32,
        decision: QueueVerdict<'_>,
        mark: Option<u32>,
    ) -> Result<(), NetfilterError> {
        self.pending.set_verdict(id, decision, mark)
    }

    /// Whether verdicts should be flushed before more are given.
    pub fn is_full(&self) -> bool {
        self.pending.out.len() >= FLUSH_AT
    }

    /// Sends the verdicts given so far.
    pub fn flush(&mut self) -> Result<(), NetfilterError> {
        self.pending.close_run();
        let out = &mut self.pending.out;
        if out.is_empty() {
            return Ok(());
        }
        let sent = self.socket.send(out);
        out.clear();
        out.shrink_to(FLUSH_AT);
        // The packets still wait in the kernel.
        self.pending.may_lack_packets |= sent.is_err();
        let number = self.pending.number;
        sent.map_err(|e| NetfilterError::system(format!("verdicts of queue {number}"), e))
    }
}

/// Sets whether the kernel passes super-packets.
fn put_super_packet_flag(message: &mut Writer<'_>, yes: bool) {
    let mask = libc::NFQA_CFG_F_GSO as u32;
    let flags = if yes { mask } else { 0 };
    message
        .put(libc::NFQA_CFG_FLAGS as u16, &flags.to_be_bytes())
        .put(libc::NFQA_CFG_MASK as u16, &mask.to_be_bytes());
}

/// Starts the delivery of packets, which the kernel drops until then. Does not wait for the answer: packets could be
/// read before it, and every packet that is read must get a verdict.
fn start_delivery(socket: &Socket, number: u16) -> io::Result<()> {
    // struct nfqnl_msg_config_params: copy range (big-endian), mode.
    let [a, b, c, d] = 0xffff_u32.to_be_bytes();
    let parameters = [a, b, c, d, libc::NFQNL_COPY_PACKET as u8];
    configure_unacknowledged(socket, number, |message| {
        message.put(libc::NFQA_CFG_PARAMS as u16, &parameters);
    })
}

/// Sends one configuration message that the kernel answers only if it refuses it.
fn configure_unacknowledged(
    socket: &Socket,
    number: u16,
    fill: impl FnOnce(&mut Writer<'_>),
) -> io::Result<()> {
    let mut request = Vec::new();
    put_message(&mut request, CONFIG, 0, 0, &family_header(libc::AF_UNSPEC, number), fill);
    socket.send(&request)
}

/// Sends one configuration message and waits for the kernel's answer.
fn configure(
    socket: &mut Socket,
    number: u16,
    fill: impl FnOnce(&mut Writer<'_>),
) -> io::Result<()> {
    let header = family_header(libc::AF_UNSPEC, number);
    socket.request(CONFIG, libc::NLM_F_ACK, &header, fill, |_| {}).map(drop)
}

/// The kernel returns EPERM both when the queue has a reader and when we lack the capability.
fn refused(number: u16, error: io::Error) -> NetfilterError {
    let taken = || match fs::read_to_string(STATISTICS) {
        Ok(table) => {
            let owner = format!(" ({})", reader_name(find_row(&table, number)?.port));
            Some(NetfilterError::QueueTaken { number, owner })
        }
        // Only root may read it; with the capability, the refusal means that the queue has a reader.
        Err(error)
            if error.kind() == io::ErrorKind::PermissionDenied && has_capability(CAP_NET_ADMIN) =>
        {
            Some(NetfilterError::QueueTaken { number, owner: String::new() })
        }
        Err(_) => None,
    };
    let missing = || NetfilterError::FeatureMissing {
        what: format!("queue {number}"),
        feature: "nfnetlink_queue",
        remedy: "load it with `modprobe nfnetlink_queue`",
    };
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EBUSY) => {
            taken().unwrap_or_else(|| NetfilterError::system(format!("queue {number}"), error))
        }
        // nfnetlink_rcv_msg() does not know the subsystem.
        Some(libc::EINVAL | libc::EOPNOTSUPP) => missing(),
        _ => NetfilterError::system(format!("queue {number}"), error),
    }
}

/// Most programs use their process id as netlink port.
fn reader_name(port: u32) -> String {
    fs::read_to_string(format!("/proc/{port}/comm")).map_or_else(
        |_| format!("netlink port {port}"),
        |name| format!("{}, pid {port}", name.trim_end()),
    )
}

/// The queues among these that have a reader, and the reader.
pub(super) fn readers(numbers: RangeInclusive<u16>) -> Vec<(u16, String)> {
    let table = fs::read_to_string(STATISTICS).unwrap_or_default();
    numbers
        .filter_map(|number| Some((number, reader_name(find_row(&table, number)?.port))))
        .collect()
}

/// Netlink port of the queue's reader.
pub(super) fn reader_port(number: u16) -> Option<u32> {
    let table = fs::read_to_string(STATISTICS).ok()?;
    find_row(&table, number).map(|row| row.port)
}

/// The statistics of a queue.
struct QueueStatistics {
    port: u32,
    waiting: u64,
    dropped: u64,
}

/// Columns (seq_show in nfnetlink_queue.c): queue, port, waiting, copy mode, copy range, dropped,
/// dropped at the socket, last id, 1.
fn find_row(table: &str, number: u16) -> Option<QueueStatistics> {
    table.lines().find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        if columns.next()?.parse::<u16>().ok()? != number {
            return None;
        }
        let port = columns.next()?.parse().ok()?;
        let waiting = columns.next()?.parse().ok()?;
        let full: u64 = columns.nth(2)?.parse().ok()?;
        let socket: u64 = columns.next()?.parse().ok()?;
        Some(QueueStatistics { port, waiting, dropped: full.saturating_add(socket) })
    })
}

/// Number of packets between two consecutive ones.
fn count_between(last: u32, id: u32) -> u64 {
    u64::from(id.wrapping_sub(last).wrapping_sub(1))
}
