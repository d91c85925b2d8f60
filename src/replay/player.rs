//! Plays captures to the engine, and produces the packets that the outer side sees.
//!
//! A capture has a conversation without a gateway: each end acknowledges exactly the bytes that the other end sent. In
//! the replay, the engine may change these bytes. So there are two kinds of sequence numbers (see `session`). All
//! numbers in the capture are *sent* numbers. Before the engine gets a packet, its acknowledgement number is converted
//! to a *delivered* number, because a peer behind a gateway would have sent that number.
//!
//! The *outer* side is the side beyond the gateway. Without translation it is the server's side. It sees packets of the
//! inner end after the engine, and its own packets before the engine.
//!
//! Several captures are one stream of packets, in the given order.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{Checksums, Engine, Event, EventKind, PacketOutcome, Standalone},
    packet::{self, MalformedPacket, Packet, Seq, flags},
    policy::Policy,
    session::{Session, Side},
};

use super::{
    capture::{CaptureError, CaptureReader, PcapWriter, Record},
    captured_connection::{
        CapturedConnection, CapturedDirection, CapturedSegment, Flow, FollowState, SegmentHeader,
    },
    datagram::{self, DatagramLayout},
    nat::SimulatedNat,
    played_transfers::PlayedConnections,
    report::{FramePosition, Report},
};

/// The maximum time after the first frame. The clock of a capture may jump.
const MAX_ELAPSED: Duration = Duration::from_secs(100 * 365 * 86400);

/// How many control connections are followed at a time.
const MAX_CONNECTIONS: usize = 1 << 16;
/// How many bytes wait after gaps at most, in all connections together.
const MAX_QUEUED_BYTES: usize = 16 << 20;

/// The interval, in the capture's time, at which the engine removes expired sessions and pinholes.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How many gaps get a warning of their own.
const MAX_REPORTED_GAPS: u64 = 10;

/// Plays captures to an engine.
pub struct Player<W> {
    pub(super) gateway: Standalone<SimulatedNat>,
    ports: Vec<u16>,
    /// The connections, by [`Flow::connection`].
    pub(super) connections: HashMap<Flow, CapturedConnection>,
    /// An upper bound of the bytes that wait after gaps.
    pub(super) queued_bytes: usize,
    pub(super) writer: Option<PcapWriter<W>>,
    engine_start: Instant,
    /// The first and the latest time in the captures so far.
    time_span: Option<(Duration, Duration)>,
    last_sweep: Duration,
    last_frame: FramePosition,
    /// The number of captures that were begun.
    captures: usize,
    /// Whether the current capture has a packet whose link type is supported.
    is_readable: bool,
    /// Whether checksums are as on the wire. Copies on this machine lack them, because it computes them later or has
    /// verified them.
    pub has_checksums: bool,
    transfers: PlayedConnections,
    pub report: Report,
}

impl<W: Write> Player<W> {
    /// A player with an engine with `policy` and the simulated gateway `nat`.
    pub fn new(policy: Policy, nat: SimulatedNat) -> Self {
        Self {
            ports: policy.control_ports.clone(),
            gateway: Standalone::new(Engine::new(policy, Checksums::Trust), nat),
            connections: HashMap::new(),
            queued_bytes: 0,
            writer: None,
            engine_start: Instant::now(),
            time_span: None,
            last_sweep: Duration::ZERO,
            last_frame: FramePosition::default(),
            captures: 0,
            is_readable: false,
            has_checksums: true,
            transfers: PlayedConnections::default(),
            report: Report::default(),
        }
    }

    /// Writes the packets that the outer side sees to `sink`, from now on.
    pub fn write_to(&mut self, sink: W, nanoseconds: bool) -> io::Result<()> {
        self.writer = Some(PcapWriter::new(sink, nanoseconds)?);
        self.report.summary.written = Some(0);
        Ok(())
    }

    /// Begins the next capture.
    pub fn begin_capture(&mut self) {
        self.captures += 1;
        self.is_readable = false;
    }

    /// Ends a capture after its last record. Returns why nothing in it could be read.
    pub fn end_capture(&mut self, reader: &CaptureReader<impl Read>) -> Option<CaptureError> {
        if let Some(link) = reader.unsupported_link() {
            if !self.is_readable {
                return Some(CaptureError::Link(link));
            }
            self.warn(format!(
                "packets of link type {link} were skipped: the link type is not supported"
            ));
        }
        if reader.is_truncated() {
            self.warn("the capture ends within its last record".to_owned());
        }
        None
    }

    /// Plays the next packet of the capture.
    pub fn handle_record(&mut self, record: &Record) -> io::Result<()> {
        let position = FramePosition { capture: self.current_capture(), frame: record.frame };
        self.last_frame = position;
        self.report.summary.packets += 1;
        self.advance_time(record);
        self.is_readable |= record.link.is_some();
        let time = record.time;
        let Some(ip) = record.link.and_then(|link| link.ip(record.data)) else {
            self.report.summary.not_ip += 1;
            return Ok(());
        };
        let mut bytes = ip.to_vec();
        datagram::fill_in_length(&mut bytes);
        let Some(layout) = DatagramLayout::parse(&bytes) else {
            self.report.summary.malformed += 1;
            return Ok(());
        };
        bytes.truncate(layout.length);
        let is_control = layout.protocol == datagram::TCP
            && [layout.source, layout.destination].iter().any(|e| self.ports.contains(&e.port()))
            && layout.source != layout.destination;
        if !is_control {
            self.transfers.observe(self.now(), &layout, &bytes);
            self.report_transfers(false);
            return self.write_packet(time, bytes);
        }
        self.report.summary.control_packets += 1;
        let whole = layout.is_whole(&bytes);
        let read = |packet: Packet<'_>| (SegmentHeader::read(&packet), packet.checksum_is_valid());
        match Packet::parse(&bytes).map(read) {
            Ok((header, is_valid)) => {
                let is_wrong = self.has_checksums && !is_valid;
                self.report.summary.wrong_checksums += u64::from(is_wrong);
                self.handle_segment(CapturedSegment { position, time, bytes, header })?;
                self.sweep();
                Ok(())
            }
            Err(error) => {
                if whole && error != MalformedPacket::Fragment {
                    self.report.summary.malformed += 1;
                } else {
                    self.report.summary.incomplete += 1;
                }
                self.write_renumbered(time, bytes)
            }
        }
    }

    /// Plays the queued segments at the end of the last capture, and writes the last packets.
    pub fn finish(&mut self) -> io::Result<()> {
        self.flush_all_queues()?;
        self.report_transfers(true);
        let more = self.report.summary.gaps.saturating_sub(MAX_REPORTED_GAPS);
        if more > 0 {
            self.warn(format!("{more} more gaps are not listed"));
        }
        self.writer.take().map_or(Ok(()), PcapWriter::finish)
    }

    /// Adds a warning about the current capture.
    fn warn(&mut self, warning: String) {
        self.report.warn(self.current_capture(), warning);
    }

    fn current_capture(&self) -> usize {
        self.captures.saturating_sub(1)
    }

    fn advance_time(&mut self, record: &Record) {
        let time = record.time;
        if record.frame == 1 && time < self.latest_time() {
            self.warn(
                "it begins before the end of the capture before it; name captures in the order of time"
                    .to_owned(),
            );
        }
        self.time_span =
            Some(self.time_span.map_or((time, time), |(first, last)| (first, last.max(time))));
    }

    /// Plays a segment of a control connection.
    fn handle_segment(&mut self, segment: CapturedSegment) -> io::Result<()> {
        let header = segment.header;
        let flow = header.flow;
        self.evict_idle()?;
        self.connection(flow).last_frame = segment.position;
        if header.has(flags::SYN | flags::ACK) {
            return self.handle_syn_ack(segment);
        }
        let connection = self.connection(flow);
        if header.has(flags::SYN) {
            let known = connection.initial_numbers;
            if known.is_none_or(|(client, _)| client != header.seq + 1) {
                self.end_connection(flow)?;
            }
            return self.write_packet(segment.time, segment.bytes);
        }
        if connection.stage == FollowState::Unfollowed
            && header.length > 0
            && let Some(ack) = header.ack
        {
            connection.follow(flow, header.seq, ack);
            self.report.summary.sessions += 1;
        }
        match self.connection(flow).stage {
            FollowState::Unfollowed | FollowState::Ended => {
                return self.write_packet(segment.time, segment.bytes);
            }
            FollowState::Lost => return self.deliver(segment),
            FollowState::Followed => {}
        }
        if let Some(ack) = header.ack {
            self.note_acknowledgement(flow.reversed(), ack)?;
        }
        let time = segment.time;
        let direction = self.direction(flow);
        if header.seq.is_after(direction.next) && !header.has(flags::RST) {
            let length = segment.bytes.len();
            let has_room = direction.enqueue(segment);
            self.queued_bytes += length;
            if self.queued_bytes > MAX_QUEUED_BYTES {
                return self.flush_all_queues();
            }
            if has_room {
                return Ok(());
            }
            if let Some(seq) = self.direction(flow).first_queued() {
                self.note_gap(flow, seq);
            }
        } else {
            self.deliver(segment)?;
        }
        self.deliver_queued(flow, time)
    }

    /// Plays a SYN-ACK. It has the initial sequence numbers of both directions, and may start a new connection.
    fn handle_syn_ack(&mut self, segment: CapturedSegment) -> io::Result<()> {
        let SegmentHeader { flow, seq, ack, .. } = segment.header;
        let Some(ack) = ack else { return Ok(()) };
        let start = Some((ack, seq + 1));
        let bytes = segment.bytes.clone();
        self.deliver(segment)?;
        let began = match (self.session(flow), Packet::parse(&bytes)) {
            (Some((session, _)), Ok(packet)) => session.is_syn_ack_retransmission(&packet),
            _ => false,
        };
        let connection = self.connection(flow);
        if began
            && (connection.stage != FollowState::Followed || connection.initial_numbers != start)
        {
            connection.follow(flow, seq + 1, ack);
            connection.initial_numbers = start;
            self.report.summary.sessions += 1;
        }
        Ok(())
    }

    /// Ends a connection because of tuple reuse.
    fn end_connection(&mut self, flow: Flow) -> io::Result<()> {
        self.flush_queues(flow.connection())?;
        let now = self.now();
        self.gateway.run(now, |engine, _| {
            engine.sessions.forget_between(flow.source, flow.destination);
        });
        self.report_events(self.last_frame);
        let connection = self.connection(flow);
        let last_frame = connection.last_frame;
        *connection = CapturedConnection::default();
        connection.last_frame = last_frame;
        Ok(())
    }

    /// Removes the half of the connections that is idle for longer, if there are too many.
    fn evict_idle(&mut self) -> io::Result<()> {
        if self.connections.len() < MAX_CONNECTIONS {
            return Ok(());
        }
        let mut frames: Vec<_> = self.connections.values().map(|one| one.last_frame).collect();
        let middle = frames.len() / 2;
        let median = *frames.select_nth_unstable(middle).1;
        let idle = self.connections.iter().filter(|(_, one)| one.last_frame <= median);
        for flow in idle.map(|(flow, _)| *flow).collect::<Vec<_>>() {
            self.flush_queues(flow)?;
            self.connections.remove(&flow);
        }
        Ok(())
    }

    /// Notes that the receiver of `flow` acknowledged `ack`. Bytes before `ack` that were not captured by now are a
    /// permanent gap.
    fn note_acknowledgement(&mut self, flow: Flow, ack: Seq) -> io::Result<()> {
        let time = self.latest_time();
        while ack.is_after(self.direction(flow).next)
            && self.connection(flow).stage == FollowState::Followed
        {
            let first = self.direction(flow).first_queued();
            self.note_gap(flow, first.map_or(ack, |first| first.min(ack)));
            self.deliver_queued(flow, time)?;
        }
        Ok(())
    }

    /// Plays the queued segments of all connections.
    fn flush_all_queues(&mut self) -> io::Result<()> {
        let mut flows: Vec<Flow> = self.connections.keys().copied().collect();
        flows.sort();
        for flow in flows {
            self.flush_queues(flow)?;
        }
        self.queued_bytes = 0;
        Ok(())
    }

    /// Plays the queued segments of a connection, because no more segments follow.
    fn flush_queues(&mut self, flow: Flow) -> io::Result<()> {
        for flow in [flow, flow.reversed()] {
            while let Some(first) = self.direction(flow).first_queued() {
                let time = self.latest_time();
                self.note_gap(flow, first);
                self.deliver_queued(flow, time)?;
            }
        }
        Ok(())
    }

    /// Notes that the bytes of `flow` before `until` are not in the capture.
    ///
    /// The engine gets an acknowledgement for them, as from a receiver that has received these bytes.
    fn note_gap(&mut self, flow: Flow, until: Seq) {
        let next = self.direction(flow).next;
        if !until.is_after(next) {
            return;
        }
        let Flow { source, destination } = flow;
        let seq = self.direction(flow.reversed()).next;
        if self.connection(flow).stage == FollowState::Followed
            && let Some((session, side)) = self.session(flow)
        {
            let ack = session.map(side).to_delivered(until);
            let mut bytes = Vec::new();
            let header = packet::Header {
                source: destination,
                destination: source,
                seq,
                ack,
                window: u16::MAX,
                flags: packet::flags::ACK,
            };
            packet::build_acknowledgement(&header, None, &mut bytes);
            self.run_engine(&bytes, self.last_frame);
        }
        let direction = self.direction(flow);
        direction.next = until;
        direction.line_frame = FramePosition::default();
        self.report.summary.gaps += 1;
        if self.report.summary.gaps <= MAX_REPORTED_GAPS {
            let position = self.last_frame;
            let warning = format!(
                "gap before frame {}: {} bytes from {source} to {destination} are not in the capture",
                position.frame,
                until - next
            );
            self.report.warn(position.capture, warning);
        }
    }

    /// Passes queued segments to the engine that are in order now. They get the time of the segment that filled the gap.
    fn deliver_queued(&mut self, flow: Flow, time: Duration) -> io::Result<()> {
        loop {
            let connection = self.connection(flow);
            let any = connection.stage != FollowState::Followed;
            let Some(mut segment) = connection.direction(flow).take_ready(any) else {
                return Ok(());
            };
            self.queued_bytes = self.queued_bytes.saturating_sub(segment.bytes.len());
            segment.time = segment.time.max(time);
            self.deliver(segment)?;
        }
    }

    /// Passes the next segment to the engine. The events of a line are reported at the last of the line's frames. If
    /// segments are out of order, this may be the frame of an earlier segment.
    fn deliver(&mut self, segment: CapturedSegment) -> io::Result<()> {
        let Ok(packet) = Packet::parse(&segment.bytes) else { return Ok(()) };
        let header = segment.header;
        let flow = header.flow;
        let connection = self.connection(flow);
        let position = segment.position.max(connection.direction(flow).line_frame);
        if connection.stage == FollowState::Lost {
            connection.direction(flow).advance(&header, packet.payload(), position);
            return self.write_renumbered(segment.time, segment.bytes);
        }
        let before = self.side(flow);
        let input = self.with_delivered_acknowledgements(&packet);
        let verdict = self.run_engine(&input, position);
        let after = self.side(flow);
        let connection = self.connection(flow);
        connection.direction(flow).advance(&header, packet.payload(), position);
        if connection.stage == FollowState::Followed && after.is_none() {
            connection.stage = FollowState::Ended;
        }
        if verdict == PacketOutcome::Drop {
            connection.stage = FollowState::Lost;
            self.report.summary.lost += 1;
            let position = segment.position;
            let warning = format!(
                "frame {}: a gateway would wait for a retransmission of this segment; the \
                 connection from {} to {} is not followed any more",
                position.frame, flow.source, flow.destination
            );
            self.report.warn(position.capture, warning);
            return self.write_renumbered(segment.time, segment.bytes);
        }
        match after.or(before) {
            Some(side) if self.is_from_inner_side(flow, side) => {
                self.write_inner(&segment, side, verdict, input)
            }
            _ => self.write_outer(&segment, input),
        }
    }

    /// Passes `bytes` to the engine. Its decisions are reported for the frame at `position`.
    fn run_engine(&mut self, bytes: &[u8], position: FramePosition) -> PacketOutcome {
        let now = self.now();
        let verdict = self.gateway.packet(now, bytes);
        self.report_events(position);
        verdict
    }

    /// Notes that no packet came until `time`, which counts from 1970.
    pub fn pass_time(&mut self, time: Duration) {
        if let Some((_, last)) = &mut self.time_span {
            *last = time.max(*last);
        }
        self.sweep();
    }

    /// Makes the engine remove expired sessions and pinholes.
    fn sweep(&mut self) {
        let latest = self.latest_time();
        if latest.saturating_sub(self.last_sweep) >= SWEEP_INTERVAL {
            self.last_sweep = latest;
            let now = self.now();
            self.gateway.expire(now);
            self.report_events(self.last_frame);
        }
        self.report_transfers(false);
    }

    /// Reports what the engine found in the frame at `position`.
    fn report_events(&mut self, position: FramePosition) {
        let now = self.now();
        let (events, omitted) = self.gateway.take_events();
        self.report.summary.omitted += omitted;
        for event in events {
            let Event { session, client, server, user, kind } = event;
            let head = Event { session, client, server, user, kind: () };
            match kind {
                EventKind::Transfer(transfer) => {
                    let ended = self.transfers.tracker.end(now, position, head.map(|()| transfer));
                    ended.into_iter().for_each(|(at, event)| self.report.add(at, event));
                }
                kind => self.report.add(position, head.map(|()| kind)),
            }
        }
    }

    /// Reports the transfers of which nothing more is to be known; at the end of the captures, all.
    fn report_transfers(&mut self, is_end: bool) {
        for (position, event) in self.transfers.take_finished(self.now(), is_end) {
            self.report.add(position, event);
        }
    }

    /// A captured packet with its acknowledgement numbers and SACK blocks as delivered numbers.
    fn with_delivered_acknowledgements(&mut self, packet: &Packet<'_>) -> Vec<u8> {
        let found = self.session(SegmentHeader::read(packet).flow);
        let Some((session, side)) = found.filter(|_| !packet.has(flags::SYN)) else {
            return packet.bytes().to_vec();
        };
        let map = session.map(side.peer());
        if map.is_identity() {
            return packet.bytes().to_vec();
        }
        let mut edit = packet.unchanged();
        if packet.has(flags::ACK) {
            edit.ack = map.to_delivered(edit.ack);
        }
        let sack = |block: [Seq; 2]| {
            let [left, right] = block.map(|edge| map.to_delivered(edge));
            left.is_before(right).then_some([left, right])
        };
        let mut bytes = Vec::new();
        packet.append_rebuilt(&edit, None, sack, &mut bytes);
        bytes
    }

    /// The engine's session of a connection, and the side that sends `flow`.
    pub(super) fn session(&mut self, flow: Flow) -> Option<(&Session, Side)> {
        self.gateway.engine.sessions.session_between(flow.source, flow.destination)
    }

    pub(super) fn side(&mut self, flow: Flow) -> Option<Side> {
        self.session(flow).map(|(_, side)| side)
    }

    /// The latest time in the capture so far. The time of the engine follows it.
    fn latest_time(&self) -> Duration {
        self.time_span.map_or(Duration::ZERO, |(_, last)| last)
    }

    fn now(&self) -> Instant {
        let elapsed =
            self.time_span.map_or(Duration::ZERO, |(first, last)| last.saturating_sub(first));
        self.engine_start.checked_add(elapsed.min(MAX_ELAPSED)).unwrap_or(self.engine_start)
    }

    fn connection(&mut self, flow: Flow) -> &mut CapturedConnection {
        self.connections.entry(flow.connection()).or_default()
    }

    pub(super) fn direction(&mut self, flow: Flow) -> &mut CapturedDirection {
        self.connection(flow).direction(flow)
    }
}
