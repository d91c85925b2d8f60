//! Writes the packets of a played capture as the outer side sees them (see `player`).

use std::{
    io::{self, Write},
    time::Duration,
};

use ftp_alg_core::{
    engine::PacketOutcome,
    packet::{HeaderEdit, Packet, Seq, flags},
    session::Side,
};

use super::{
    captured_connection::{CapturedSegment, Flow},
    datagram::{self, DatagramLayout},
    player::Player,
};

impl<W: Write> Player<W> {
    /// Whether `side`, which sent a segment of `flow`, is the inner end. The outer side sees the packets of the inner
    /// end as the engine changes them.
    pub(super) fn is_from_inner_side(&self, flow: Flow, side: Side) -> bool {
        let (source, destination) = (flow.source.ip(), flow.destination.ip());
        if self.gateway.kernel.translates_between(source, destination) {
            self.gateway.kernel.is_inside(source)
        } else {
            side == Side::Client
        }
    }

    /// Writes a packet of the inner end after the engine's verdict. `input` is the packet that the engine got.
    pub(super) fn write_inner(
        &mut self,
        segment: &CapturedSegment,
        side: Side,
        verdict: PacketOutcome,
        input: Vec<u8>,
    ) -> io::Result<()> {
        if verdict != PacketOutcome::Replace {
            return self.write_packet(segment.time, input);
        }
        let bytes = self.gateway.replacement().to_vec();
        let Ok(packet) = Packet::parse(&bytes) else { return Ok(()) };
        let rest = self.remainder(segment, side, &packet);
        let is_held = segment.header.length > 0 && packet.payload().is_empty();
        if !is_held || packet.has(flags::FIN) {
            self.write_packet(segment.time, bytes)?;
        }
        match rest {
            Some(rest) => self.write_packet(segment.time, rest),
            None => Ok(()),
        }
    }

    /// The rest of a rewritten segment that became too long.
    ///
    /// A gateway forwards only the first part, and the rest with the sender's retransmission. A capture has no such
    /// retransmission, so the rest is made here.
    fn remainder(
        &mut self,
        segment: &CapturedSegment,
        side: Side,
        sent: &Packet<'_>,
    ) -> Option<Vec<u8>> {
        let packet = Packet::parse(&segment.bytes).ok()?;
        let header = segment.header;
        let fin = header.has(flags::FIN);
        let (session, _) = self.session(header.flow)?;
        let mut whole = Vec::new();
        let placeholder: &[u8] = if fin { &[0] } else { &[] };
        let payload = [packet.payload(), placeholder].concat();
        session.map(side).render(header.seq, &payload, &mut whole);
        whole.truncate(whole.len() - usize::from(fin && !whole.is_empty()));
        let rest = whole.get(sent.payload().len()..).filter(|rest| !rest.is_empty())?;
        let edit = HeaderEdit {
            seq: sent.seq() + sent.payload().len() as u32, // an IP packet's
            flags: header.flags,
            urgent: 0,
            ..sent.unchanged()
        };
        let mut bytes = Vec::new();
        packet.append_rebuilt(&edit, Some(rest), Some, &mut bytes);
        Some(bytes)
    }

    /// Writes a packet of the outer end (`input`) as it was sent. The outer end does not receive bytes that the engine
    /// holds, so an acknowledgement of nothing else is left out.
    pub(super) fn write_outer(
        &mut self,
        segment: &CapturedSegment,
        input: Vec<u8>,
    ) -> io::Result<()> {
        let header = segment.header;
        let written = Packet::parse(&input).ok().map(|packet| packet.ack());
        if let (Some(captured), Some(written)) = (header.ack, written) {
            let last = self.direction(header.flow).last_written_ack.replace((captured, written));
            let bare = header.length == 0 && header.flags == flags::ACK;
            let advances_only_there =
                last.is_some_and(|(c, w)| captured.is_after(c) && written == w);
            if bare && advances_only_there {
                return Ok(());
            }
        }
        self.write_packet(segment.time, input)
    }

    /// Writes a packet that the engine does not get, because it has lost the connection or the packet is incomplete. Its
    /// numbers match the rewrites before.
    pub(super) fn write_renumbered(
        &mut self,
        time: Duration,
        mut bytes: Vec<u8>,
    ) -> io::Result<()> {
        let Some(layout) = DatagramLayout::parse(&bytes) else { return Ok(()) };
        let flow = Flow { source: layout.source, destination: layout.destination };
        let inner = self.side(flow).map(|side| self.is_from_inner_side(flow, side));
        if let (Some((session, side)), Some(is_inner)) = (self.session(flow), inner) {
            let (at, map) = match is_inner {
                true => (layout.transport + 4, session.map(side)),
                false => (layout.transport + 8, session.map(side.peer())),
            };
            let flags = bytes.get(layout.transport + 13).copied().unwrap_or(0);
            if let Some(number) = bytes.get(at..).and_then(<[u8]>::first_chunk)
                && (is_inner || flags & flags::ACK != 0)
            {
                let delivered = map.to_delivered(Seq(u32::from_be_bytes(*number)));
                datagram::overwrite(&mut bytes, &layout, at, &delivered.0.to_be_bytes());
            }
        }
        self.write_packet(time, bytes)
    }

    /// Writes a packet with the endpoints that the outer side sees.
    pub(super) fn write_packet(&mut self, time: Duration, mut bytes: Vec<u8>) -> io::Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let Some(layout) = DatagramLayout::parse(&bytes) else { return Ok(()) };
        let (source, destination) = (layout.source, layout.destination);
        if self.gateway.kernel.is_inside(source.ip())
            && self.gateway.kernel.is_inside(destination.ip())
        {
            self.report.summary.inside_only += 1;
            return Ok(());
        }
        let protocol = layout.protocol;
        let source_seen = self.gateway.kernel.seen_endpoint(protocol, source, destination);
        let destination_seen = self.gateway.kernel.seen_endpoint(protocol, destination, source);
        datagram::readdress(&mut bytes, &layout, source_seen, destination_seen);
        writer.packet(time, &bytes, layout.length)?;
        *self.report.summary.written.get_or_insert(0) += 1;
        Ok(())
    }
}
