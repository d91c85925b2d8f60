//! The transfers of the captures: their bytes come from the data connections, as far as these were captured.

use std::time::{Duration, Instant};

use ftp_alg_core::{
    engine::{DataFlags, DataPacket, Event, TransferTracker},
    packet::flags,
};

use super::{
    datagram::{DatagramLayout, TCP},
    report::FramePosition,
};

/// How often the tracker is asked, in the capture's time. A look at each packet would be slow if many transfers wait.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Joins the transfers of control connections with their data connections. A transfer's tag is where its end was seen.
#[derive(Default)]
pub struct PlayedConnections {
    pub(super) tracker: TransferTracker<FramePosition>,
    /// When the tracker was last asked for transfers.
    last_look: Option<Instant>,
}

impl PlayedConnections {
    /// Notes a packet of another connection than a control connection.
    pub fn observe(&mut self, now: Instant, layout: &DatagramLayout, bytes: &[u8]) {
        if let Some(packet) = data_packet(now, layout, bytes) {
            // Without any SYN, the capture has only control connections.
            self.tracker.sees_packets |= packet.flags.syn;
            self.tracker.observe(&packet);
        }
    }

    /// The transfers that need not wait any more; at the end of the captures, all.
    pub fn take_finished(&mut self, now: Instant, is_end: bool) -> Vec<(FramePosition, Event)> {
        let is_early = self.last_look.is_some_and(|last| now < last + LOOK_INTERVAL);
        if is_early && !is_end {
            return Vec::new();
        }
        self.last_look = Some(now);
        let finished = match is_end {
            true => self.tracker.take_all(),
            // A capture has the ends of data connections.
            false => self.tracker.take_finished(now, |_, _| true),
        };
        finished.into()
    }
}

/// The packet, if it is a TCP segment with SYN, FIN or RST.
fn data_packet(now: Instant, layout: &DatagramLayout, bytes: &[u8]) -> Option<DataPacket> {
    if layout.protocol != TCP || layout.is_later_fragment {
        return None;
    }
    let header = bytes.get(layout.transport..)?.first_chunk::<14>()?;
    let has = |flag: u8| header[13] & flag != 0;
    let flags = DataFlags {
        syn: has(flags::SYN),
        ack: has(flags::ACK),
        fin: has(flags::FIN),
        rst: has(flags::RST),
    };
    if !(flags.syn || flags.fin || flags.rst) {
        return None;
    }
    let number = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let data_at = layout.transport + usize::from(header[12] >> 4) * 4;
    let length = layout.length.checked_sub(data_at)? as u32; // an IP packet's
    let (source, destination) = (layout.source, layout.destination);
    let (end, acknowledged) = (number(4).wrapping_add(length), number(8));
    let passed = [now; 2];
    Some(DataPacket { passed, source, destination, flags, end, acknowledged, interface: 0 })
}
