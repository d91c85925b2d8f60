//! Plays a capture to the engine, and shows what the outer side sees.
//!
//! A capture shows a conversation without a gateway: each end acknowledges what the other sent,
//! which here the engine may have changed on the way. So there are two kinds of numbers (see
//! `session`): those of the packets in the capture are all *sent* numbers, and an acknowledgement
//! becomes one in *delivered* numbers before the engine takes it, as a peer behind a gateway would
//! have sent it.
//!
//! The *outer* side is the one beyond the gateway: the server's where nothing is translated. What
//! it sees of the inner end's packets is what the engine makes of them; what it sends itself is
//! seen before the engine takes it.

use std::{
    collections::HashMap,
    io::{self, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{Checksums, Engine, Fate, Standalone},
    packet::{self, Edit, Malformed, Packet, Seq, flags},
    policy::Policy,
    session::Side,
};

use super::{
    capture::Record,
    connection::{
        CapturedConnection, CapturedDirection, CapturedSegment, FollowState, SegmentHeader,
    },
    datagram::{self, DatagramLayout},
    nat::SimulatedNat,
    report::ReplayReport,
    writer::PcapWriter,
};

/// A capture's clock may jump: no time is further than this from its first.
const MAX_ELAPSED: Duration = Duration::from_secs(100 * 365 * 86400);
/// How often the engine is asked to drop what is over, in the capture's time.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How many gaps are told one by one.
const MAX_REPORTED_GAPS: u64 = 10;

/// Both ends of a connection, in order.
pub type ConnectionKey = (SocketAddr, SocketAddr);

/// Plays.
pub struct Player<W> {
    pub(super) gateway: Standalone<SimulatedNat>,
    ports: Vec<u16>,
    connections: HashMap<ConnectionKey, CapturedConnection>,
    pub(super) writer: Option<PcapWriter<W>>,
    engine_start: Instant,
    /// The capture's first time, and its latest so far.
    time_span: Option<(Duration, Duration)>,
    last_sweep: Duration,
    last_frame: u64,
    pub(super) report: ReplayReport,
}

impl<W: Write> Player<W> {
    /// Plays to an engine with `policy` behind `nat`.
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

    /// Takes the next packet of the capture.
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
        match Packet::parse(&bytes).map(|packet| SegmentHeader::of(&packet)) {
            Ok(facts) => {
                self.handle_segment(facts, CapturedSegment { frame: record.frame, time, bytes })?;
                self.sweep();
                Ok(())
            }
            Err(error) => {
                if whole && error != Malformed::Fragment {
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

    /// The capture is over.
    pub fn finish(mut self) -> io::Result<ReplayReport> {
        let mut keys: Vec<ConnectionKey> = self.connections.keys().copied().collect();
        keys.sort();
        for key in keys {
            self.flush_queues(key)?;
        }
        if let Some(more) = self.report.gaps.checked_sub(MAX_REPORTED_GAPS).filter(|more| *more > 0)
        {
            self.report.warnings.push(format!("{more} more gaps"));
        }
        if let Some(writer) = self.writer.take() {
            writer.finish()?;
        }
        self.report.rows.sort_by_key(|row| row.frame);
        Ok(self.report)
    }

    /// Takes a segment of a control connection.
    fn handle_segment(&mut self, facts: SegmentHeader, segment: CapturedSegment) -> io::Result<()> {
        let (key, from) = key_of(&facts);
        if facts.has(flags::SYN | flags::ACK) {
            return self.handle_syn_ack(key, from, facts, segment);
        }
        let flow = self.connections.entry(key).or_default();
        if facts.has(flags::SYN) {
            let again = flow.syn == Some(facts.seq)
                || flow.initial_numbers.is_some_and(|(client, _)| client == facts.seq + 1);
            if !again {
                self.end_connection(key)?;
            }
            self.connection(key).syn = Some(facts.seq);
            return self.write_as_captured(&segment);
        }
        if flow.stage == FollowState::Unfollowed
            && !flow.is_finished
            && facts.length > 0
            && let Some(ack) = facts.ack
        {
            flow.stage = FollowState::Followed;
            flow.directions[from] = CapturedDirection::new(facts.seq);
            flow.directions[1 - from] = CapturedDirection::new(ack);
            self.report.sessions += 1;
        }
        match self.connection(key).stage {
            FollowState::Unfollowed => return self.write_as_captured(&segment),
            FollowState::Lost => return self.deliver_to_engine(key, from, &segment),
            FollowState::Followed => {}
        }
        if let Some(ack) = facts.ack {
            self.note_acknowledgement(key, 1 - from, ack)?;
        }
        let time = segment.time;
        let direction = self.direction(key, from);
        if facts.seq.is_after(direction.next) && !facts.has(flags::RST) {
            if direction.enqueue(&facts, segment) {
                return Ok(());
            }
            if let Some(seq) = self.direction(key, from).first_queued() {
                self.note_gap(key, from, seq);
            }
        } else {
            self.deliver_segment(key, from, segment)?;
        }
        self.deliver_queued(key, from, time)
    }

    /// A SYN-ACK tells both first numbers, and may begin a connection anew.
    fn handle_syn_ack(
        &mut self,
        key: ConnectionKey,
        from: usize,
        facts: SegmentHeader,
        segment: CapturedSegment,
    ) -> io::Result<()> {
        let Some(ack) = facts.ack else { return Ok(()) };
        let start = Some((ack, facts.seq + 1));
        let flow = self.connections.entry(key).or_default();
        if flow.initial_numbers != start && flow.syn == Some(ack - 1) {
            self.end_connection(key)?;
        }
        let bytes = segment.bytes.clone();
        self.deliver_segment(key, from, segment)?;
        let began =
            match (self.gateway.engine.sessions.between(key.0, key.1), Packet::parse(&bytes)) {
                (Some((session, _)), Ok(packet)) => session.began_with(&packet),
                _ => false,
            };
        let flow = self.connection(key);
        if began && (flow.stage != FollowState::Followed || flow.initial_numbers != start) {
            let mut directions = [CapturedDirection::new(ack), CapturedDirection::new(ack)];
            directions[from].next = facts.seq + 1;
            let syn = flow.syn;
            *flow = CapturedConnection {
                stage: FollowState::Followed,
                is_finished: false,
                syn,
                initial_numbers: start,
                directions,
            };
            self.report.sessions += 1;
        }
        Ok(())
    }

    /// The connection gives way to another one with the same ends.
    fn end_connection(&mut self, key: ConnectionKey) -> io::Result<()> {
        self.flush_queues(key)?;
        self.gateway.engine.sessions.forget_between(key.0, key.1);
        *self.connection(key) = CapturedConnection::default();
        Ok(())
    }

    /// The receiver of direction `of` acknowledged `ack`: what is not there by now never will be.
    fn note_acknowledgement(&mut self, key: ConnectionKey, of: usize, ack: Seq) -> io::Result<()> {
        let time = self.latest_time();
        while ack.is_after(self.direction(key, of).next)
            && self.connection(key).stage == FollowState::Followed
        {
            let first = self.direction(key, of).first_queued();
            self.note_gap(key, of, first.map_or(ack, |first| first.min(ack)));
            self.deliver_queued(key, of, time)?;
        }
        Ok(())
    }

    /// No more segments come: hands over what waits.
    fn flush_queues(&mut self, key: ConnectionKey) -> io::Result<()> {
        for of in [0, 1] {
            while let Some(first) = self.direction(key, of).first_queued() {
                let time = self.latest_time();
                self.note_gap(key, of, first);
                self.deliver_queued(key, of, time)?;
            }
        }
        Ok(())
    }

    /// The bytes of direction `of` up to `until` are not in the capture. The engine learns it as it
    /// does from a receiver that has them: by an acknowledgement.
    fn note_gap(&mut self, key: ConnectionKey, of: usize, until: Seq) {
        let next = self.direction(key, of).next;
        if !until.is_after(next) {
            return;
        }
        let (sender, receiver) = if of == 0 { key } else { (key.1, key.0) };
        let seq = self.direction(key, 1 - of).next;
        if self.connection(key).stage == FollowState::Followed
            && let Some((session, side)) = self.gateway.engine.sessions.between(sender, receiver)
        {
            let ack = session.map(side).deliver(until);
            let mut bytes = Vec::new();
            packet::acknowledgement(receiver, sender, seq, ack, u16::MAX, None, &mut bytes);
            self.run_engine(&bytes, self.last_frame);
        }
        let direction = self.direction(key, of);
        direction.next = until;
        direction.line_frame = 0;
        self.report.gaps += 1;
        if self.report.gaps <= MAX_REPORTED_GAPS {
            self.report.warnings.push(format!(
                "before frame {}: {} bytes from {sender} to {receiver} are not in the capture",
                self.last_frame,
                until - next
            ));
        }
    }

    /// Hands over what has waited and is next now, with the time at which that came to be.
    fn deliver_queued(
        &mut self,
        key: ConnectionKey,
        from: usize,
        time: Duration,
    ) -> io::Result<()> {
        loop {
            let flow = self.connection(key);
            let any = flow.stage != FollowState::Followed;
            let Some(mut segment) = flow.directions[from].take_ready(any) else { return Ok(()) };
            segment.time = segment.time.max(time);
            self.deliver_segment(key, from, segment)?;
        }
    }

    /// Hands over the next segment. If it completes a line of which a part came in a later frame,
    /// that frame completed the line.
    fn deliver_segment(
        &mut self,
        key: ConnectionKey,
        from: usize,
        mut segment: CapturedSegment,
    ) -> io::Result<()> {
        let Ok(packet) = Packet::parse(&segment.bytes) else { return Ok(()) };
        let (facts, payload) = (SegmentHeader::of(&packet), packet.payload());
        let direction = self.direction(key, from);
        if let Some(end) = direction.completed_later(&facts, payload, segment.frame) {
            let frame = direction.line_frame;
            if end == payload.len() {
                segment.frame = frame;
            } else {
                let part = |seq, payload, flags| {
                    let urgent = packet.urgent().unwrap_or(0);
                    let edit =
                        Edit { seq, ack: packet.ack(), payload: Some(payload), flags, urgent };
                    let mut bytes = Vec::new();
                    packet.rebuild(&edit, Some, &mut bytes);
                    bytes
                };
                let (line, rest) = payload.split_at(end);
                let flags = facts.flags & !(flags::FIN | flags::PSH);
                let bytes = part(facts.seq, line, flags);
                self.deliver_to_engine(
                    key,
                    from,
                    &CapturedSegment { frame, bytes, time: segment.time },
                )?;
                segment.bytes = part(facts.seq + end as u32, rest, facts.flags);
            }
        }
        self.deliver_to_engine(key, from, &segment)
    }

    fn deliver_to_engine(
        &mut self,
        key: ConnectionKey,
        from: usize,
        segment: &CapturedSegment,
    ) -> io::Result<()> {
        let Ok(packet) = Packet::parse(&segment.bytes) else { return Ok(()) };
        let facts = SegmentHeader::of(&packet);
        let flow = self.connection(key);
        if flow.stage == FollowState::Lost {
            flow.directions[from].advance(&facts, packet.payload(), segment.frame);
            return self.write_lost(segment, &facts);
        }
        let before = self.side(&facts);
        let input = self.with_delivered_acknowledgements(&packet);
        let fate = self.run_engine(&input, segment.frame);
        let after = self.side(&facts);
        let flow = self.connection(key);
        flow.directions[from].advance(&facts, packet.payload(), segment.frame);
        if flow.stage == FollowState::Followed && after.is_none() {
            (flow.stage, flow.is_finished) = (FollowState::Unfollowed, true);
        }
        if fate == Fate::Drop {
            flow.stage = FollowState::Lost;
            self.report.warnings.push(format!(
                "frame {}: a gateway would wait for this segment to be sent again; the connection \
                 from {} to {} is not followed from here on",
                segment.frame, facts.source, facts.destination
            ));
            return self.write_lost(segment, &facts);
        }
        match after.or(before) {
            Some(side) if self.is_from_inner_side(&facts, side) => {
                self.write_inner(segment, &facts, side, fate, input)
            }
            _ => self.write_outer(key, from, segment, &facts, input),
        }
    }

    /// A captured packet with its acknowledgements in delivered numbers.
    fn with_delivered_acknowledgements(&mut self, packet: &Packet<'_>) -> Vec<u8> {
        let found = self.gateway.engine.sessions.between(packet.source(), packet.destination());
        let Some((session, side)) = found.filter(|_| !packet.has(flags::SYN)) else {
            return packet.bytes().to_vec();
        };
        let map = session.map(side.peer());
        if map.is_identity() {
            return packet.bytes().to_vec();
        }
        let ack = if packet.has(flags::ACK) { map.deliver(packet.ack()) } else { packet.ack() };
        let urgent = packet.urgent().unwrap_or(0);
        let edit = Edit { seq: packet.seq(), ack, payload: None, flags: packet.flags(), urgent };
        let sack = |block: [Seq; 2]| {
            let [left, right] = block.map(|edge| map.deliver(edge));
            left.is_before(right).then_some([left, right])
        };
        let mut bytes = Vec::new();
        packet.rebuild(&edit, sack, &mut bytes);
        bytes
    }

    /// Hands `bytes` to the engine; what it decides is due to `frame`.
    fn run_engine(&mut self, bytes: &[u8], frame: u64) -> Fate {
        let now = self.now();
        let fate = self.gateway.packet(now, bytes);
        for event in self.gateway.take_events().0 {
            self.report.add(frame, event);
        }
        fate
    }

    /// Lets the engine drop what is over.
    fn sweep(&mut self) {
        let latest = self.latest_time();
        if latest.saturating_sub(self.last_sweep) >= SWEEP_INTERVAL {
            self.last_sweep = latest;
            let now = self.now();
            self.gateway.expire(now);
            self.gateway.take_events(); // no announcement is decided about by time
        }
    }

    fn side(&mut self, facts: &SegmentHeader) -> Option<Side> {
        self.gateway.engine.sessions.between(facts.source, facts.destination).map(|(_, side)| side)
    }

    /// The latest time so far, of which the engine's is made.
    fn latest_time(&self) -> Duration {
        self.time_span.map_or(Duration::ZERO, |(_, last)| last)
    }

    fn now(&self) -> Instant {
        let elapsed =
            self.time_span.map_or(Duration::ZERO, |(first, last)| last.saturating_sub(first));
        self.engine_start.checked_add(elapsed.min(MAX_ELAPSED)).unwrap_or(self.engine_start)
    }

    pub(super) fn connection(&mut self, key: ConnectionKey) -> &mut CapturedConnection {
        self.connections.entry(key).or_default()
    }

    pub(super) fn direction(&mut self, key: ConnectionKey, of: usize) -> &mut CapturedDirection {
        &mut self.connection(key).directions[of]
    }
}

/// The connection that a segment is of, and which of its directions.
fn key_of(facts: &SegmentHeader) -> (ConnectionKey, usize) {
    let (source, destination) = (facts.source, facts.destination);
    if source < destination { ((source, destination), 0) } else { ((destination, source), 1) }
}
