//! Receives datagrams of a queue into preallocated buffers, where packets are read in place.

use std::{io, ops::Range};

use super::{
    super::netlink::{Message, be32},
    QueuePacket,
};

/// Maximum number of datagrams in one call.
pub(super) const BATCH_SIZE: usize = 64;
/// The largest queued packet with its attributes. Slots start at different cache sets: with a power of two between
/// them, sixty headers would evict each other.
pub(super) const SLOT_SIZE: usize = (1 << 16) + 1024 + 320;

/// A packet in the receive buffer.
#[derive(Clone, Debug)]
pub(super) struct ReceivedPacket {
    /// The packet without its bytes.
    pub(super) packet: QueuePacket<'static>,
    pub(super) bytes: Range<usize>,
}

/// Preallocated buffers for one batch.
pub(super) struct Receiver {
    bytes: Vec<u8>,
    /// Size of the buffer for one datagram.
    slot: usize,
    lengths: Vec<usize>,
    calls: Box<ReceiveCall>,
}

/// The arguments of recvmmsg(); their pointers are valid only during a call.
struct ReceiveCall {
    vectors: [libc::iovec; BATCH_SIZE],
    headers: [libc::mmsghdr; BATCH_SIZE],
}

// SAFETY: only recvmmsg() dereferences its pointers, and all of them are set before each call.
unsafe impl Send for ReceiveCall {}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("lengths", &self.lengths).finish_non_exhaustive()
    }
}

impl Receiver {
    /// With `slot` bytes for each datagram.
    pub(super) fn new(slot: usize) -> Self {
        // Zeroed pages that are never touched take no memory.
        let bytes = vec![0; BATCH_SIZE * slot];
        // SAFETY: plain data for which zero is a valid value.
        let calls = Box::new(unsafe { std::mem::zeroed() });
        Self { bytes, slot, lengths: Vec::with_capacity(BATCH_SIZE), calls }
    }

    /// Receives datagrams, at most a batch.
    pub(super) fn receive(&mut self, fd: i32, flags: libc::c_int) -> io::Result<usize> {
        self.lengths.clear();
        let (vectors, headers) = (&mut self.calls.vectors, &mut self.calls.headers);
        for ((vector, header), slot) in
            vectors.iter_mut().zip(headers.iter_mut()).zip(self.bytes.chunks_exact_mut(self.slot))
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
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        self.lengths
            .extend(headers.iter().take(received).map(|h| (h.msg_len as usize).min(self.slot)));
        Ok(received)
    }

    /// A datagram and its offset.
    pub(super) fn datagram(&self, slot: usize) -> Option<(usize, &[u8])> {
        let start = slot.checked_mul(self.slot)?;
        let length = *self.lengths.get(slot)?;
        Some((start, self.bytes.get(start..start.checked_add(length)?)?))
    }

    pub(super) fn packet(&self, found: &ReceivedPacket) -> Option<QueuePacket<'_>> {
        Some(found.packet.with_payload(self.bytes.get(found.bytes.clone())?))
    }
}

/// The packet of a message, and whether it is truncated. Its payload is empty if the message has none.
pub(super) fn parse<'a>(message: &Message<'a>) -> Option<(QueuePacket<'a>, bool)> {
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
pub(super) fn offset_in(whole: &[u8], part: &[u8]) -> usize {
    (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::netlink::Messages;

    /// A message of Linux 6.18 with a forwarded packet of 53 bytes, the last of them an `x`.
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

    fn parse_all(bytes: &[u8]) -> Vec<QueuePacket<'_>> {
        let parsed = Messages::new(bytes).filter_map(|message| parse(&message));
        parsed.map(|(packet, _)| packet).collect()
    }

    #[test]
    fn a_packet_message_is_read() {
        let message = packet_message();
        let all = parse_all(&message);
        let [packet] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((packet.id, packet.hook, packet.indev, packet.outdev), (2, 2, 2, 3));
        let payload = packet.payload;
        assert_eq!((payload.len(), payload[0], payload.last()), (53, 0x45, Some(&b'x')));
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
