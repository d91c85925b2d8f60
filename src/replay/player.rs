//! Plays a capture to the engine, and produces the packets that the outer side sees.
//!
//! A capture has a conversation without a gateway: each end acknowledges exactly the bytes that the other end sent. In
//! the replay, the engine may change these bytes. So there are two kinds of sequence numbers (see `session`). All
//! numbers in the capture are *sent* numbers. Before the engine gets a packet, its acknowledgement number is converted
//! to a *delivered* number, because a peer behind a gateway would have sent that number.
//!
//! The *outer* side is the side beyond the gateway. Without translation it is the server's side. It sees packets of the
//! inner end after the engine, and its own packets before the engine.

use std::{
    collections::HashMap,
    io::{self, Write},
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{Checksums, Engine, Event, EventKind, PacketOutcome, Standalone},
    ftp::AnnouncementKind,
    packet::{self, MalformedPacket, Packet, PacketEdit, Seq, flags},
    policy::Policy,
    session::{Session, Side},
};
use serde::Serialize;

use super::{
    capture::{PcapWriter, Record},
    captured_connection::{
        CapturedConnection, CapturedDirection, CapturedSegment, Flow, FollowState, SegmentHeader,
    },
    datagram::{self, DatagramLayout},
    nat::SimulatedNat,
};

/// The maximum time after the first frame. The clock of a capture may jump.
const MAX_ELAPSED: Duration = Duration::from_secs(100 * 365 * 86400);
/// The interval, in the capture's time, at which the engine removes expired sessions and pinholes.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How many gaps get a warning of their own.
const MAX_REPORTED_GAPS: u64 = 10;

/// An announcement and the decision about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AnnouncementRow {
    /// The frame that completed the line.
    pub frame: u64,
    pub kind: AnnouncementKind,
    /// The sender: `client` or `server`.
    pub from: &'static str,
    /// The announced endpoint, if it could be parsed.
    pub announced: Option<String>,
    /// The action: `open`, `rewrite`, `refuse` or `ignore`.
    pub action: &'static str,
    /// The endpoint after the rewrite.
    pub rewritten: Option<String>,
    pub reason: String,
    /// The number of the session.
    #[serde(skip)]
    pub session: u64,
    /// The line, if its endpoint could not be parsed.
    #[serde(skip)]
    pub unread_line: Option<String>,
}

/// The announcements, warnings and counters of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayReport {
    pub rows: Vec<AnnouncementRow>,
    /// Warnings in the order of the capture.
    pub warnings: Vec<String>,
    /// All frames of the capture.
    pub packets: u64,
    /// Packets of control connections.
    pub control_packets: u64,
    /// Control connections that the engine followed.
    pub sessions: u64,
    /// Frames without an IP packet.
    pub not_ip: u64,
    /// Inconsistent IP packets, and inconsistent segments of control connections.
    pub malformed: u64,
    /// Packets of control connections that were captured only in part.
    pub incomplete: u64,
    /// Gaps in control connections that nothing in the capture fills.
    pub gaps: u64,
    /// Packets that were written; `None` without `--write`.
    pub written: Option<u64>,
    /// Packets between hosts inside, which do not cross the gateway and were not written.
    pub inside_only: u64,
}

impl ReplayReport {
    /// Adds an event of the engine. `frame` is the frame that completed the line.
    fn add(&mut self, frame: u64, event: Event) {
        let EventKind::Announcement(decided) = event.kind else { return };
        self.rows.push(AnnouncementRow {
            frame,
            kind: decided.kind,
            from: if decided.kind.is_active() { "client" } else { "server" },
            announced: decided.announced.map(|endpoint| endpoint.to_string()),
            action: decided.action(),
            rewritten: decided.rewritten().map(|endpoint| endpoint.to_string()),
            reason: decided.decision.reason.into_owned(),
            session: event.session,
            unread_line: decided.unread_text,
        });
    }
}

/// Plays a capture to an engine.
pub struct Player<W> {
    pub(super) gateway: Standalone<SimulatedNat>,
    ports: Vec<u16>,
    /// By [`Flow::connection`].
    connections: HashMap<Flow, CapturedConnection>,
    pub(super) writer: Option<PcapWriter<W>>,
    engine_start: Instant,
    /// The first and the latest time in the capture so far.
    time_span: Option<(Duration, Duration)>,
    last_sweep: Duration,
    last_frame: u64,
    pub(super) report: ReplayReport,
}

impl<W: Write> Player<W> {
    /// A player with an engine with `policy` and the simulated gateway `nat`.
    pub fn new(policy: Policy, nat: SimulatedNat, writer: Option<PcapWriter<W>>) -> Self {
        let report =
            ReplayReport { written: writer.as_ref().map(|_| 0), ..ReplayReport::default() };
        Self {
            ports: policy.control_ports.clone(),
            gateway: Standalone::new(Engine::new(policy, Checksums::Trust), nat),
            connections: HashMap::new(),
            writer,
            engine_start: Instant::now(),
            time_span: None,
            last_sweep: Duration::ZERO,
            last_frame: 0,
            report,
        }
    }

    /// Plays the next packet of the capture.
    pub fn handle_record(&mut self, record: &Record) -> io::Result<()> {
        self.last_frame = record.frame;
        self.report.packets = record.frame;
        let time = record.time;
        self.time_span =
            Some(self.time_span.map_or((time, time), |(first, last)| (first, last.max(time))));
        let Some(ip) = record.link.and_then(|link| link.ip(record.data)) else {
            self.report.not_ip += 1;
            return Ok(());
        };
        let mut bytes = ip.to_vec();
        datagram::fill_in_length(&mut bytes);
        let Some(layout) = DatagramLayout::parse(&bytes) else {
            self.report.malformed += 1;
            return Ok(());
        };
        bytes.truncate(layout.length);
        let is_control = layout.protocol == datagram::TCP
            && [layout.source, layout.destination].iter().any(|e| self.ports.contains(&e.port()))
            && layout.source != layout.destination;
        if !is_control {
            return self.write(time, bytes, &layout);
        }
        self.report.control_packets += 1;
        let whole = layout.is_whole(&bytes);
        match Packet::parse(&bytes).map(|packet| SegmentHeader::read(&packet)) {
            Ok(header) => {
                self.handle_segment(CapturedSegment { frame: record.frame, time, bytes, header })?;
                self.sweep();
                Ok(())
            }
            Err(error) => {
                if whole && error != MalformedPacket::Fragment {
                    self.report.malformed += 1;
                } else {
                    self.report.incomplete += 1;
                }
                self.write_partial(time, bytes, &layout)
            }
        }
    }

    /// Adds a warning to the report.
    pub fn warn(&mut self, warning: String) {
        self.report.warnings.push(warning);
    }

    /// Plays the queued segments at the end of the capture, and returns the report.
    pub fn finish(mut self) -> io::Result<ReplayReport> {
        let mut flows: Vec<Flow> = self.connections.keys().copied().collect();
        flows.sort();
        for flow in flows {
            self.flush_queues(flow)?;
        }
        if let Some(more) = self.report.gaps.checked_sub(MAX_REPORTED_GAPS).filter(|more| *more > 0)
        {
            self.report.warnings.push(format!("{more} more gaps are not listed"));
        }
        if let Some(writer) = self.writer.take() {
            writer.finish()?;
        }
        self.report.rows.sort_by_key(|row| row.frame);
        Ok(self.report)
    }

    /// Plays a segment of a control connection.
    fn handle_segment(&mut self, segment: CapturedSegment) -> io::Result<()> {
        let header = segment.header;
        let flow = header.flow;
        if header.has(flags::SYN | flags::ACK) {
            return self.handle_syn_ack(segment);
        }
        let connection = self.connection(flow);
        if header.has(flags::SYN) {
            let is_retransmission = connection.syn == Some(header.seq)
                || connection.initial_numbers.is_some_and(|(client, _)| client == header.seq + 1);
            if !is_retransmission {
                self.end_connection(flow)?;
            }
            self.connection(flow).syn = Some(header.seq);
            return self.write_packet(segment.time, segment.bytes);
        }
        if connection.stage == FollowState::Unfollowed
            && !connection.is_finished
            && header.length > 0
            && let Some(ack) = header.ack
        {
            connection.follow(flow, header.seq, ack);
            self.report.sessions += 1;
        }
        match self.connection(flow).stage {
            FollowState::Unfollowed => return self.write_packet(segment.time, segment.bytes),
            FollowState::Lost => return self.deliver_to_engine(segment),
            FollowState::Followed => {}
        }
        if let Some(ack) = header.ack {
            self.note_acknowledgement(flow.reversed(), ack)?;
        }
        let time = segment.time;
        let direction = self.direction(flow);
        if header.seq.is_after(direction.next) && !header.has(flags::RST) {
            if direction.enqueue(segment) {
                return Ok(());
            }
            if let Some(seq) = self.direction(flow).first_queued() {
                self.note_gap(flow, seq);
            }
        } else {
            self.deliver_segment(segment)?;
        }
        self.deliver_queued(flow, time)
    }

    /// Plays a SYN-ACK. It has the initial sequence numbers of both directions, and may start a new connection.
    fn handle_syn_ack(&mut self, segment: CapturedSegment) -> io::Result<()> {
        let SegmentHeader { flow, seq, ack, .. } = segment.header;
        let Some(ack) = ack else { return Ok(()) };
        let start = Some((ack, seq + 1));
        let connection = self.connection(flow);
        if connection.initial_numbers != start && connection.syn == Some(ack - 1) {
            self.end_connection(flow)?;
        }
        let bytes = segment.bytes.clone();
        self.deliver_segment(segment)?;
        let began = match (self.session(flow), Packet::parse(&bytes)) {
            (Some((session, _)), Ok(packet)) => session.is_syn_ack_retransmission(&packet),
            _ => false,
        };
        let connection = self.connection(flow);
        if began
            && (connection.stage != FollowState::Followed || connection.initial_numbers != start)
        {
            connection.follow(flow, seq + 1, ack);
            (connection.is_finished, connection.initial_numbers) = (false, start);
            self.report.sessions += 1;
        }
        Ok(())
    }

    /// Ends a connection because of tuple reuse.
    fn end_connection(&mut self, flow: Flow) -> io::Result<()> {
        self.flush_queues(flow.connection())?;
        self.gateway.engine.sessions.forget_between(flow.source, flow.destination);
        *self.connection(flow) = CapturedConnection::default();
        Ok(())
    }

    /// Records that the receiver of `flow` acknowledged `ack`. Bytes before `ack` that were not captured by now are a
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

    /// Plays all queued segments, because no more segments follow.
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

    /// Records that the bytes of `flow` before `until` are not in the capture.
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
            packet::build_acknowledgement(
                destination,
                source,
                seq,
                ack,
                u16::MAX,
                None,
                &mut bytes,
            );
            self.run_engine(&bytes, self.last_frame);
        }
        let direction = self.direction(flow);
        direction.next = until;
        direction.line_frame = 0;
        self.report.gaps += 1;
        if self.report.gaps <= MAX_REPORTED_GAPS {
            self.report.warnings.push(format!(
                "gap before frame {}: {} bytes from {source} to {destination} are not in the capture",
                self.last_frame,
                until - next
            ));
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
            segment.time = segment.time.max(time);
            self.deliver_segment(segment)?;
        }
    }

    /// Passes the next segment to the engine. If it completes a line that has a part in a later frame, the later frame
    /// counts as the frame that completed the line.
    fn deliver_segment(&mut self, mut segment: CapturedSegment) -> io::Result<()> {
        let Ok(packet) = Packet::parse(&segment.bytes) else { return Ok(()) };
        let (header, payload) = (segment.header, packet.payload());
        let direction = self.direction(header.flow);
        if let Some(end) = direction.completed_later(&header, payload, segment.frame) {
            let frame = direction.line_frame;
            if end == payload.len() {
                segment.frame = frame;
            } else {
                let part = |frame, seq, payload, flags| {
                    let edit =
                        PacketEdit { seq, payload: Some(payload), flags, ..unchanged(&packet) };
                    let mut bytes = Vec::new();
                    packet.rebuild(&edit, Some, &mut bytes);
                    let header = SegmentHeader::read(&Packet::parse(&bytes).ok()?);
                    Some(CapturedSegment { frame, time: segment.time, bytes, header })
                };
                let (line, rest) = payload.split_at(end);
                let first =
                    part(frame, header.seq, line, header.flags & !(flags::FIN | flags::PSH));
                let second = part(segment.frame, header.seq + end as u32, rest, header.flags);
                let (Some(first), Some(second)) = (first, second) else { return Ok(()) };
                self.deliver_to_engine(first)?;
                return self.deliver_to_engine(second);
            }
        }
        self.deliver_to_engine(segment)
    }

    fn deliver_to_engine(&mut self, segment: CapturedSegment) -> io::Result<()> {
        let Ok(packet) = Packet::parse(&segment.bytes) else { return Ok(()) };
        let header = segment.header;
        let flow = header.flow;
        let connection = self.connection(flow);
        if connection.stage == FollowState::Lost {
            connection.direction(flow).advance(&header, packet.payload(), segment.frame);
            return self.write_lost(segment);
        }
        let before = self.side(flow);
        let input = self.with_delivered_acknowledgements(&packet);
        let verdict = self.run_engine(&input, segment.frame);
        let after = self.side(flow);
        let connection = self.connection(flow);
        connection.direction(flow).advance(&header, packet.payload(), segment.frame);
        if connection.stage == FollowState::Followed && after.is_none() {
            (connection.stage, connection.is_finished) = (FollowState::Unfollowed, true);
        }
        if verdict == PacketOutcome::Drop {
            connection.stage = FollowState::Lost;
            self.report.warnings.push(format!(
                "frame {}: a gateway would wait for a retransmission of this segment; the \
                 connection from {} to {} is not followed any more",
                segment.frame, flow.source, flow.destination
            ));
            return self.write_lost(segment);
        }
        match after.or(before) {
            Some(side) if self.is_from_inner_side(flow, side) => {
                self.write_inner(&segment, side, verdict, input)
            }
            _ => self.write_outer(&segment, input),
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
        let mut edit = unchanged(packet);
        if packet.has(flags::ACK) {
            edit.ack = map.to_delivered(edit.ack);
        }
        let sack = |block: [Seq; 2]| {
            let [left, right] = block.map(|edge| map.to_delivered(edge));
            left.is_before(right).then_some([left, right])
        };
        let mut bytes = Vec::new();
        packet.rebuild(&edit, sack, &mut bytes);
        bytes
    }

    /// Passes `bytes` to the engine. Its decisions are reported for `frame`.
    fn run_engine(&mut self, bytes: &[u8], frame: u64) -> PacketOutcome {
        let now = self.now();
        let verdict = self.gateway.packet(now, bytes);
        for event in self.gateway.take_events().0 {
            self.report.add(frame, event);
        }
        verdict
    }

    /// Makes the engine remove expired sessions and pinholes.
    fn sweep(&mut self) {
        let latest = self.latest_time();
        if latest.saturating_sub(self.last_sweep) >= SWEEP_INTERVAL {
            self.last_sweep = latest;
            let now = self.now();
            self.gateway.expire(now);
            self.gateway.take_events(); // no expiry decides about an announcement
        }
    }

    /// The engine's session of a connection, and the side that sends `flow`.
    pub(super) fn session(&mut self, flow: Flow) -> Option<(&Session, Side)> {
        self.gateway.engine.sessions.session_between(flow.source, flow.destination)
    }

    fn side(&mut self, flow: Flow) -> Option<Side> {
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

/// The edit of a packet that leaves it as it is.
pub(super) fn unchanged<'a>(packet: &Packet<'_>) -> PacketEdit<'a> {
    PacketEdit {
        seq: packet.seq(),
        ack: packet.ack(),
        payload: None,
        flags: packet.flags(),
        window: packet.window(),
        urgent: packet.urgent().unwrap_or(0),
    }
}
