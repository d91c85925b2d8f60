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
    datagram::{self, Layout},
    flow::{Direction, Facts, Flow, Segment, Stage},
    nat::Nat,
    report::Report,
    writer::Writer,
};

/// A capture's clock may jump: no time is further than this from its first.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86400);
/// How often the engine is asked to drop what is over, in the capture's time.
const SWEEP: Duration = Duration::from_secs(1);

/// How many gaps are told one by one.
const TOLD_GAPS: u64 = 10;

/// Both ends of a connection, in order.
pub type Key = (SocketAddr, SocketAddr);

/// Plays.
pub struct Player<W> {
    pub(super) gateway: Standalone<Nat>,
    ports: Vec<u16>,
    flows: HashMap<Key, Flow>,
    pub(super) writer: Option<Writer<W>>,
    base: Instant,
    /// The capture's first time, and its latest so far.
    times: Option<(Duration, Duration)>,
    swept: Duration,
    last_frame: u64,
    pub(super) report: Report,
}

impl<W: Write> Player<W> {
    /// Plays to an engine with `policy` behind `nat`.
    pub fn new(policy: Policy, nat: Nat, writer: Option<Writer<W>>) -> Self {
        let report = Report { written: writer.as_ref().map(|_| 0), ..Report::default() };
        Self {
            ports: policy.control_ports.clone(),
            gateway: Standalone::new(Engine::new(policy, Checksums::Trust), nat),
            flows: HashMap::new(),
            writer,
            base: Instant::now(),
            times: None,
            swept: Duration::ZERO,
            last_frame: 0,
            report,
        }
    }

    /// Takes the next packet of the capture.
    pub fn record(&mut self, record: &Record) -> io::Result<()> {
        self.last_frame = record.frame;
        self.report.packets = record.frame;
        let time = record.time;
        self.times = Some(self.times.map_or((time, time), |(first, last)| (first, last.max(time))));
        let Some(ip) = record.link.and_then(|link| link.ip(record.data)) else {
            self.report.other += 1;
            return Ok(());
        };
        let mut bytes = ip.to_vec();
        datagram::complete(&mut bytes);
        let Some(layout) = Layout::of(&bytes) else {
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
        self.report.control += 1;
        let whole = layout.is_whole(&bytes);
        match Packet::parse(&bytes).map(|packet| Facts::of(&packet)) {
            Ok(facts) => {
                self.segment(facts, Segment { frame: record.frame, time, bytes })?;
                self.sweep();
                Ok(())
            }
            Err(error) => {
                if whole && error != Malformed::Fragment {
                    self.report.malformed += 1;
                } else {
                    self.report.cut += 1;
                }
                self.write_part(time, bytes, &layout)
            }
        }
    }

    /// Adds a warning to the report.
    pub fn warn(&mut self, warning: String) {
        self.report.warnings.push(warning);
    }

    /// The capture is over.
    pub fn finish(mut self) -> io::Result<Report> {
        let mut keys: Vec<Key> = self.flows.keys().copied().collect();
        keys.sort();
        for key in keys {
            self.give_up(key)?;
        }
        if let Some(more) = self.report.missing.checked_sub(TOLD_GAPS).filter(|more| *more > 0) {
            self.report.warnings.push(format!("{more} more gaps"));
        }
        if let Some(writer) = self.writer.take() {
            writer.finish()?;
        }
        self.report.rows.sort_by_key(|row| row.frame);
        Ok(self.report)
    }

    /// Takes a segment of a control connection.
    fn segment(&mut self, facts: Facts, segment: Segment) -> io::Result<()> {
        let (key, from) = key_of(&facts);
        if facts.has(flags::SYN | flags::ACK) {
            return self.syn_ack(key, from, facts, segment);
        }
        let flow = self.flows.entry(key).or_default();
        if facts.has(flags::SYN) {
            let again = flow.syn == Some(facts.seq)
                || flow.start.is_some_and(|(client, _)| client == facts.seq + 1);
            if !again {
                self.end(key)?;
            }
            self.flow(key).syn = Some(facts.seq);
            return self.write_as_captured(&segment);
        }
        if flow.stage == Stage::Outside
            && !flow.is_over
            && facts.length > 0
            && let Some(ack) = facts.ack
        {
            flow.stage = Stage::Followed;
            flow.directions[from] = Direction::new(facts.seq);
            flow.directions[1 - from] = Direction::new(ack);
            self.report.sessions += 1;
        }
        match self.flow(key).stage {
            Stage::Outside => return self.write_as_captured(&segment),
            Stage::Adrift => return self.hand_one(key, from, &segment),
            Stage::Followed => {}
        }
        if let Some(ack) = facts.ack {
            self.has_received(key, 1 - from, ack)?;
        }
        let time = segment.time;
        let direction = self.direction(key, from);
        if facts.seq.is_after(direction.next) && !facts.has(flags::RST) {
            if direction.wait(&facts, segment) {
                return Ok(());
            }
            if let Some(seq) = self.direction(key, from).first_waiting() {
                self.missed(key, from, seq);
            }
        } else {
            self.hand(key, from, segment)?;
        }
        self.hand_ready(key, from, time)
    }

    /// A SYN-ACK tells both first numbers, and may begin a connection anew.
    fn syn_ack(&mut self, key: Key, from: usize, facts: Facts, segment: Segment) -> io::Result<()> {
        let Some(ack) = facts.ack else { return Ok(()) };
        let start = Some((ack, facts.seq + 1));
        let flow = self.flows.entry(key).or_default();
        if flow.start != start && flow.syn == Some(ack - 1) {
            self.end(key)?;
        }
        let bytes = segment.bytes.clone();
        self.hand(key, from, segment)?;
        let began =
            match (self.gateway.engine.sessions.between(key.0, key.1), Packet::parse(&bytes)) {
                (Some((session, _)), Ok(packet)) => session.began_with(&packet),
                _ => false,
            };
        let flow = self.flow(key);
        if began && (flow.stage != Stage::Followed || flow.start != start) {
            let mut directions = [Direction::new(ack), Direction::new(ack)];
            directions[from].next = facts.seq + 1;
            let syn = flow.syn;
            *flow = Flow { stage: Stage::Followed, is_over: false, syn, start, directions };
            self.report.sessions += 1;
        }
        Ok(())
    }

    /// The connection gives way to another one with the same ends.
    fn end(&mut self, key: Key) -> io::Result<()> {
        self.give_up(key)?;
        self.gateway.engine.sessions.forget_between(key.0, key.1);
        *self.flow(key) = Flow::default();
        Ok(())
    }

    /// The receiver of direction `of` acknowledged `ack`: what is not there by now never will be.
    fn has_received(&mut self, key: Key, of: usize, ack: Seq) -> io::Result<()> {
        let time = self.latest();
        while ack.is_after(self.direction(key, of).next) && self.flow(key).stage == Stage::Followed
        {
            let first = self.direction(key, of).first_waiting();
            self.missed(key, of, first.map_or(ack, |first| first.min(ack)));
            self.hand_ready(key, of, time)?;
        }
        Ok(())
    }

    /// No more segments come: hands over what waits.
    fn give_up(&mut self, key: Key) -> io::Result<()> {
        for of in [0, 1] {
            while let Some(first) = self.direction(key, of).first_waiting() {
                let time = self.latest();
                self.missed(key, of, first);
                self.hand_ready(key, of, time)?;
            }
        }
        Ok(())
    }

    /// The bytes of direction `of` up to `until` are not in the capture. The engine learns it as it
    /// does from a receiver that has them: by an acknowledgement.
    fn missed(&mut self, key: Key, of: usize, until: Seq) {
        let next = self.direction(key, of).next;
        if !until.is_after(next) {
            return;
        }
        let (sender, receiver) = if of == 0 { key } else { (key.1, key.0) };
        let seq = self.direction(key, 1 - of).next;
        if self.flow(key).stage == Stage::Followed
            && let Some((session, side)) = self.gateway.engine.sessions.between(sender, receiver)
        {
            let ack = session.map(side).deliver(until);
            let mut bytes = Vec::new();
            packet::acknowledgement(receiver, sender, seq, ack, u16::MAX, None, &mut bytes);
            self.tell_engine(&bytes, self.last_frame);
        }
        let direction = self.direction(key, of);
        direction.next = until;
        direction.line_frame = 0;
        self.report.missing += 1;
        if self.report.missing <= TOLD_GAPS {
            self.report.warnings.push(format!(
                "before frame {}: {} bytes from {sender} to {receiver} are not in the capture",
                self.last_frame,
                until - next
            ));
        }
    }

    /// Hands over what has waited and is next now, with the time at which that came to be.
    fn hand_ready(&mut self, key: Key, from: usize, time: Duration) -> io::Result<()> {
        loop {
            let flow = self.flow(key);
            let any = flow.stage != Stage::Followed;
            let Some(mut segment) = flow.directions[from].take_ready(any) else { return Ok(()) };
            segment.time = segment.time.max(time);
            self.hand(key, from, segment)?;
        }
    }

    /// Hands over the next segment. If it completes a line of which a part came in a later frame,
    /// that frame completed the line.
    fn hand(&mut self, key: Key, from: usize, mut segment: Segment) -> io::Result<()> {
        let Ok(packet) = Packet::parse(&segment.bytes) else { return Ok(()) };
        let (facts, payload) = (Facts::of(&packet), packet.payload());
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
                self.hand_one(key, from, &Segment { frame, bytes, time: segment.time })?;
                segment.bytes = part(facts.seq + end as u32, rest, facts.flags);
            }
        }
        self.hand_one(key, from, &segment)
    }

    fn hand_one(&mut self, key: Key, from: usize, segment: &Segment) -> io::Result<()> {
        let Ok(packet) = Packet::parse(&segment.bytes) else { return Ok(()) };
        let facts = Facts::of(&packet);
        let flow = self.flow(key);
        if flow.stage == Stage::Adrift {
            flow.directions[from].advance(&facts, packet.payload(), segment.frame);
            return self.write_adrift(segment, &facts);
        }
        let before = self.side(&facts);
        let input = self.as_delivered(&packet);
        let fate = self.tell_engine(&input, segment.frame);
        let after = self.side(&facts);
        let flow = self.flow(key);
        flow.directions[from].advance(&facts, packet.payload(), segment.frame);
        if flow.stage == Stage::Followed && after.is_none() {
            (flow.stage, flow.is_over) = (Stage::Outside, true);
        }
        if fate == Fate::Drop {
            flow.stage = Stage::Adrift;
            self.report.warnings.push(format!(
                "frame {}: a gateway would wait for this segment to be sent again; the connection \
                 from {} to {} is not followed from here on",
                segment.frame, facts.source, facts.destination
            ));
            return self.write_adrift(segment, &facts);
        }
        match after.or(before) {
            Some(side) if self.is_inner(&facts, side) => {
                self.write_inner(segment, &facts, side, fate, input)
            }
            _ => self.write_outer(key, from, segment, &facts, input),
        }
    }

    /// A captured packet with its acknowledgements in delivered numbers.
    fn as_delivered(&mut self, packet: &Packet<'_>) -> Vec<u8> {
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
    fn tell_engine(&mut self, bytes: &[u8], frame: u64) -> Fate {
        let now = self.now();
        let fate = self.gateway.packet(now, bytes);
        for event in self.gateway.take_events().0 {
            self.report.add(frame, event);
        }
        fate
    }

    /// Lets the engine drop what is over.
    fn sweep(&mut self) {
        let latest = self.latest();
        if latest.saturating_sub(self.swept) >= SWEEP {
            self.swept = latest;
            let now = self.now();
            self.gateway.expire(now);
            self.gateway.take_events(); // no announcement is decided about by time
        }
    }

    fn side(&mut self, facts: &Facts) -> Option<Side> {
        self.gateway.engine.sessions.between(facts.source, facts.destination).map(|(_, side)| side)
    }

    /// The latest time so far, of which the engine's is made.
    fn latest(&self) -> Duration {
        self.times.map_or(Duration::ZERO, |(_, last)| last)
    }

    fn now(&self) -> Instant {
        let elapsed = self.times.map_or(Duration::ZERO, |(first, last)| last.saturating_sub(first));
        self.base.checked_add(elapsed.min(LONGEST)).unwrap_or(self.base)
    }

    pub(super) fn flow(&mut self, key: Key) -> &mut Flow {
        self.flows.entry(key).or_default()
    }

    pub(super) fn direction(&mut self, key: Key, of: usize) -> &mut Direction {
        &mut self.flow(key).directions[of]
    }
}

/// The connection that a segment is of, and which of its directions.
fn key_of(facts: &Facts) -> (Key, usize) {
    let (source, destination) = (facts.source, facts.destination);
    if source < destination { ((source, destination), 0) } else { ((destination, source), 1) }
}
