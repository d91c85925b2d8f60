//! One NFQUEUE: reads packets in batches, and sends verdicts in batches.
//!
//! Does not read the content of packets. A packet stays in the kernel until its verdict is flushed. Verdicts may come
//! in any order and in a later batch.

#![allow(unsafe_code)]

mod receive;
mod verdicts;

use std::{
    fs::{self, File},
    io,
    ops::RangeInclusive,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::fs::FileExt,
    },
    time::Duration,
};

use ftp_alg_core::packet::Offload;

use super::{
    NetfilterError,
    broker::{CAP_NET_ADMIN, has_capability},
    netlink::{self, Messages, Socket, Writer, family_header, kind_of, put_message},
};
use receive::{BATCH_SIZE, ReceivedPacket, Receiver, SLOT_SIZE, offset_in, parse};
use verdicts::PendingVerdicts;
pub use verdicts::Verdicts;

const PACKET: u16 = kind_of(libc::NFNL_SUBSYS_QUEUE, libc::NFQNL_MSG_PACKET);
const CONFIG: u16 = kind_of(libc::NFNL_SUBSYS_QUEUE, libc::NFQNL_MSG_CONFIG);

/// Statistics of all queues, in the thread's own network namespace, not in that of the process's first thread.
pub(super) const STATISTICS: &str = "/proc/thread-self/net/netfilter/nfnetlink_queue";

/// Limit of packets in a queue; the kernel drops further ones.
pub const MAXIMUM_WAITING: u32 = 8192;
const SOCKET_BUFFER: i32 = 8 << 20;
/// Maximum length of a netlink attribute.
const MAXIMUM_REPLACEMENT: usize = u16::MAX as usize - 4;

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
#[derive(Debug)]
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

    /// As [`Queue::open`], with packets as the kernel handles them: super-packets, without checksums. The kernel
    /// resegments them and computes their checksums after the verdict, also of changed ones. (nfqnl_mangle() leaves their segment length, and
    /// tcp_gso_segment() sums a packet that is not marked as partly summed.)
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
            receiver: Receiver::new(SLOT_SIZE),
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
                            self.pending.record_unreadable();
                            continue;
                        };
                        if self.statistics_file.is_none() {
                            self.counts.overruns += count_between(self.last_id, packet.id);
                            self.last_id = packet.id;
                        }
                        self.pending.record_read(packet.id);
                        // Longer than a message (BIG TCP). TCP retransmits it in parts.
                        let is_cut = is_cut && packet.offload.is_super_packet;
                        is_any_cut |= is_cut;
                        if is_cut || packet.payload.is_empty() {
                            // Nothing to decide by; TCP retransmits it.
                            self.counts.dropped += 1;
                            self.pending.decide(packet.id, QueueVerdict::Drop, None);
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
                self.pending.record_unreadable();
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

impl AsFd for Queue {
    /// Readable when packets wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
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
    let mut parameters = [0; 5];
    if let Some((range, mode)) = parameters.split_first_chunk_mut() {
        *range = 0xffff_u32.to_be_bytes();
        mode.fill(libc::NFQNL_COPY_PACKET as u8);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_that_are_missing_are_counted_by_their_numbers() {
        assert_eq!([count_between(0, 1), count_between(1, 2), count_between(2, 5)], [0, 0, 2]);
        assert_eq!(count_between(u32::MAX, 0), 0);
    }

    #[test]
    fn the_row_of_a_queue_is_read() {
        let table = " 2100  27402     9 2 65531     3     4       58  1\n  210   1 0 2 0 0 0 0 1\n";
        let row = find_row(table, 2100).unwrap();
        assert_eq!((row.port, row.waiting, row.dropped), (27402, 9, 7));
        assert!(find_row(table, 2101).is_none());
        assert!(find_row("2100 x", 2100).is_none());
    }
}
