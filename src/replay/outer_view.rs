//! Writes the packets of a played capture as the outer side sees them (see `player`).

use std::{
    io::{self, Write},
    time::Duration,
};

use ftp_alg_core::{
    engine::PacketOutcome,
    packet::{Packet, PacketEdit, flags},
    session::Side,
};

use super::{
    captured_connection::{CapturedSegment, Flow, SegmentHeader},
    datagram::{self, DatagramLayout},
    player::{Player, unchanged},
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
        let edit = PacketEdit {
            seq: sent.seq() + sent.payload().len() as u32, // an IP packet's
            payload: Some(rest),
            flags: header.flags,
            urgent: 0,
            ..unchanged(sent)
        };
        let mut bytes = Vec::new();
        packet.rebuild(&edit, Some, &mut bytes);
        Some(bytes)
    }

    /// Writes a packet of the outer end (`input`) as it was sent. An acknowledgement only of held bytes is left out,
    /// because the outer end did not receive them.
    pub(super) fn write_outer(
        &mut self,
        segment: &CapturedSegment,
        input: Vec<u8>,
    ) -> io::Result<()> {
        let header = segment.header;
        let written = Packet::parse(&input).ok().map(|packet| packet.ack());
        if let (Some(captured), Some(written)) = (header.ack, written) {
            let last = self.direction(header.flow).last_written_ack.replace((captured, written));
            let bare = !header.occupies_sequence_space() && header.flags == flags::ACK;
            let advances_only_there =
                last.is_some_and(|(c, w)| captured.is_after(c) && written == w);
            if bare && advances_only_there {
                return Ok(());
            }
        }
        self.write_packet(segment.time, input)
    }

    /// Writes a packet of a connection that the engine has lost. Its numbers match the rewrites before the loss.
    pub(super) fn write_lost(&mut self, segment: CapturedSegment) -> io::Result<()> {
        let CapturedSegment { time, mut bytes, header, .. } = segment;
        if let Some(layout) = DatagramLayout::parse(&bytes) {
            self.renumber(&mut bytes, &layout, &header);
        }
        self.write_packet(time, bytes)
    }

    /// Writes an incomplete packet of a control connection.
    pub(super) fn write_partial(
        &mut self,
        time: Duration,
        mut bytes: Vec<u8>,
        layout: &DatagramLayout,
    ) -> io::Result<()> {
        if let Some(header) = partial_header(&bytes, layout) {
            self.renumber(&mut bytes, layout, &header);
        }
        self.write(time, bytes, layout)
    }

    fn renumber(&mut self, bytes: &mut [u8], layout: &DatagramLayout, header: &SegmentHeader) {
        let Some((session, side)) = self.session(header.flow) else { return };
        let seq = session.map(side).to_delivered(header.seq);
        let ack = header.ack.map(|ack| session.map(side.peer()).to_delivered(ack));
        if self.is_from_inner_side(header.flow, side) {
            datagram::overwrite(bytes, layout, layout.transport + 4, &seq.0.to_be_bytes());
        } else if let Some(ack) = ack {
            datagram::overwrite(bytes, layout, layout.transport + 8, &ack.0.to_be_bytes());
        }
    }

    /// Writes a complete packet.
    pub(super) fn write_packet(&mut self, time: Duration, bytes: Vec<u8>) -> io::Result<()> {
        match DatagramLayout::parse(&bytes) {
            Some(layout) => self.write(time, bytes, &layout),
            None => Ok(()),
        }
    }

    /// Writes a packet with the endpoints that the outer side sees.
    pub(super) fn write(
        &mut self,
        time: Duration,
        mut bytes: Vec<u8>,
        layout: &DatagramLayout,
    ) -> io::Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
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
        datagram::readdress(&mut bytes, layout, source_seen, destination_seen);
        writer.packet(time, &bytes, layout.length)?;
        *self.report.summary.written.get_or_insert(0) += 1;
        Ok(())
    }
}

/// The header of an incomplete segment.
fn partial_header(bytes: &[u8], layout: &DatagramLayout) -> Option<SegmentHeader> {
    let long = |at: usize| {
        let at = layout.transport + at;
        let four = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(ftp_alg_core::packet::Seq(u32::from_be_bytes(four)))
    };
    let flags = *bytes.get(layout.transport + 13)?;
    let seq = long(4)?;
    Some(SegmentHeader {
        flow: Flow { source: layout.source, destination: layout.destination },
        seq,
        end: seq,
        ack: long(8).filter(|_| flags & flags::ACK != 0),
        flags,
        length: 0,
    })
}
