//! The fast path's program with its maps and ring, as the simulated kernel has them. They outlive the daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ftp_alg_core::{
    engine::{
        FlowChange, Handover, LoginStage, PinholeEnds, PinholeId, SequenceOffset, Translation,
        Withdrawal,
    },
    packet::flags::{ACK, FIN, PSH, RST, SYN, URG},
};

use super::{
    super::segment,
    admitted_syns::{AdmittedSyns, DataSyn},
    layout::{
        self, AddressText, Flow, GREETING_DUE, LOGIN_DUE, LineRecord, PacketTuple, PinholeKey,
        READY, Side, saved_line,
    },
    model::{Expected, Passed, Segment, decide},
};

/// Counters of the program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Inspected lines, without retransmissions.
    pub inspected: usize,
    pub retransmitted: usize,
    pub rewritten: usize,
    /// Packets with changed numbers or a changed length.
    pub adjusted: usize,
    pub opened: usize,
    pub admitted: usize,
}

/// The program, with its maps.
pub struct Program {
    flows: BTreeMap<u64, Flow>,
    tuples: BTreeMap<PacketTuple, (u64, Side)>,
    /// Those that the daemon reserved have flow 0.
    pinholes: BTreeMap<PinholeKey, layout::Pinhole>,
    admitted_syns: AdmittedSyns,
    /// The translated destinations, by the marks of SYNs.
    targets: Vec<IpAddr>,
    barred: BTreeSet<u16>,
    ring: Vec<LineRecord>,
    /// Position of the first line in the ring.
    pub released: usize,
    /// Number of lines that the ring has room for; 0 if there is no program.
    pub ring_capacity: usize,
    pub counts: Counts,
}

impl Default for Program {
    fn default() -> Self {
        Self {
            flows: BTreeMap::new(),
            tuples: BTreeMap::new(),
            pinholes: BTreeMap::new(),
            admitted_syns: AdmittedSyns::default(),
            targets: Vec::new(),
            // The daemon bars these ports with the default policy.
            barred: (0..1024).collect(),
            ring: Vec::new(),
            released: 0,
            ring_capacity: 4854,
            counts: Counts::default(),
        }
    }
}

impl Program {
    /// Inspects a packet between these two, as it arrives at the interface; `is_valid` if its checksum is right. Returns
    /// what bypasses the queue; `None` if the packet continues to the packet selection.
    pub fn inspect(
        &mut self,
        now: Duration,
        (source, destination): (SocketAddr, SocketAddr),
        packet: &segment::Segment,
        is_valid: bool,
    ) -> Option<Passed> {
        let (id, side) = *self.tuples.get(&PacketTuple::new(source, destination))?;
        let flow = self.flows.get_mut(&id).filter(|flow| flow.handed_over != 0)?;
        let (seq, ack, payload) = (packet.seq, packet.ack, &packet.payload[..]);
        let is_fin = packet.has(FIN);
        let only_acknowledges = payload.is_empty() && packet.flags & (SYN | FIN | RST | URG) == 0;
        if only_acknowledges && flow.adjusted == 0 {
            return None;
        }
        let has_only_ack_and_push = packet.flags & !(PSH | FIN) == ACK;
        let is_plain = is_valid && !packet.ip_options && has_only_ack_and_push;
        if !is_plain || !only_acknowledges && self.ring.len() >= self.ring_capacity {
            flow.handed_over = 0;
            return None;
        }
        let segment = Segment {
            side,
            seq,
            ack,
            has_only_ack_and_push,
            has_plain_options: packet.sack.is_empty(),
            is_fin,
            mark: 0,
            payload,
        };
        let port_digits = flow.port_digits;
        let expected = decide(id, flow, &mut self.pinholes, &self.barred, &segment);
        if let Expected::Pass(passed) | Expected::NextLine(passed, ..) = &expected {
            let keeps_numbers = (passed.seq, passed.ack) == (seq, ack);
            let keeps_length = passed.payload.len() == payload.len();
            self.counts.adjusted += usize::from(!(keeps_numbers && keeps_length));
        }
        let (passed, opened, consumed) = match expected {
            Expected::MarkOnly | Expected::HandBack => return None,
            Expected::Pass(passed) => {
                self.counts.retransmitted += usize::from(!only_acknowledges);
                return Some(passed);
            }
            Expected::NextLine(passed, opened, consumed) => (passed, opened, consumed),
        };
        if let Some(pinhole) = opened.and_then(|key| self.pinholes.get_mut(&key)) {
            pinhole.deadline = nanoseconds(now) + flow.pinhole_timeout;
            self.counts.opened += 1;
        }
        self.counts.inspected += 1;
        self.counts.rewritten += usize::from(passed.payload != payload);
        self.ring.push(LineRecord {
            flow: id,
            at_ns: nanoseconds(now),
            number: flow.line_count,
            side: side as u32,
            seq,
            ack,
            client: flow.client,
            server: flow.server,
            client_port: flow.client_port,
            server_port: flow.server_port,
            length: u16::try_from(payload.len()).unwrap(),
            window: packet.window,
            opened_pinhole: opened.is_some().into(),
            is_fin: is_fin.into(),
            port_digits: u8::try_from(port_digits).unwrap(),
            consumed_pinhole: consumed.unwrap_or(0),
            bytes: saved_line(seq, Some(payload)).bytes,
        });
        Some(passed)
    }

    /// Admits the SYN of a data connection, and consumes the pinhole. Returns the translated destination, or `None`.
    pub fn admit(
        &mut self,
        now: Duration,
        source: SocketAddr,
        arrival: SocketAddr,
        seq: u32,
    ) -> Option<SocketAddr> {
        let syn = DataSyn { source, destination: arrival, seq };
        let key = PinholeKey::new(source.ip(), arrival);
        let mark = match self.pinholes.get(&key).filter(|pinhole| pinhole.flow != 0) {
            Some(pinhole) => {
                let is_open = pinhole.deadline >= nanoseconds(now);
                let mark = is_open.then_some(pinhole.mark);
                mark.filter(|_| !self.admitted_syns.has(now, &syn)).inspect(|mark| {
                    self.pinholes.remove(&key);
                    self.admitted_syns.insert(now, &syn, Some(*mark));
                    self.counts.admitted += 1;
                })
            }
            None => {
                let readmission = self.admitted_syns.readmission(now, &syn);
                self.admitted_syns.insert_if_of_rules(now, &syn);
                readmission
            }
        };
        mark.map(|mark| SocketAddr::new(self.targets[mark as usize], arrival.port()))
    }

    /// Hands connections over, and takes others back.
    pub fn apply_changes(&mut self, changes: &[FlowChange]) {
        for change in changes {
            match change {
                FlowChange::Handover(handover) => self.hand_over(handover),
                FlowChange::Withdraw(Withdrawal { flow, translation }) => {
                    self.take_back(*flow, translation);
                }
            }
        }
    }

    fn hand_over(&mut self, handover: &Handover) {
        let Handover {
            flow,
            lines,
            next_seq,
            login,
            translation,
            interfaces,
            client_ports: [first_client_port, last_client_port],
            announced_addresses: [announced_client, announced_server],
            padding,
            seq_offsets,
            pinhole_timeout,
        } = *handover;
        // Another worker took the connection back, and has not reported it yet.
        if self.flows.contains_key(&flow) {
            self.take_back(flow, &translation);
        }
        let tuples = tuples(&translation);
        assert!(
            tuples.iter().all(|tuple| !self.tuples.contains_key(tuple)),
            "another has {tuples:?}"
        );
        for (tuple, side) in tuples.into_iter().zip([Side::Client, Side::Server]) {
            self.tuples.insert(tuple, (flow, side));
        }
        let Translation { client, client_external, server, server_external, .. } = translation;
        let offsets = seq_offsets.unwrap_or([SequenceOffset { offset: 0, first_seq: 0 }; 2]);
        let handed = Flow {
            handed_over: 1,
            next_seq,
            line_count: lines,
            dialogue: match login {
                LoginStage::NotGreeted => GREETING_DUE,
                LoginStage::Greeted => LOGIN_DUE,
                LoginStage::LoggedIn => READY,
            },
            client: client.ip(),
            server: server.ip(),
            client_port: client.port(),
            server_port: server.port(),
            own: [client, server].map(|end| AddressText::new(end.ip())),
            announced: [
                AddressText::announced(client.ip(), announced_client),
                AddressText::announced(server.ip(), announced_server),
            ],
            active_arrival: client_external.ip(),
            passive_arrival: server_external.ip(),
            active_initiator: server.ip(),
            passive_initiator: client.ip(),
            // The rules find the translated destination by the mark.
            active_mark: self.mark_of(client.ip()),
            passive_mark: self.mark_of(server.ip()),
            port_digits: u32::try_from(padding.digits()).unwrap(),
            adjusted: seq_offsets.is_some().into(),
            seq_offset: offsets.map(|offset| offset.offset),
            offset_since: offsets.map(|offset| offset.first_seq),
            pinhole_timeout: pinhole_timeout
                .map_or(0, |timeout| u64::try_from(timeout.as_nanos()).unwrap()),
            first_client_port,
            last_client_port,
            interface: interfaces,
            ..Flow::default()
        };
        self.flows.insert(flow, handed);
    }

    /// The mark by which the rules find a translated destination.
    fn mark_of(&mut self, target: IpAddr) -> u32 {
        let known = self.targets.iter().position(|known| *known == target);
        let place = known.unwrap_or_else(|| {
            self.targets.push(target);
            self.targets.len() - 1
        });
        u32::try_from(place).unwrap()
    }

    fn take_back(&mut self, flow: u64, translation: &Translation) {
        for tuple in tuples(translation) {
            if self.tuples.get(&tuple).is_some_and(|(owner, _)| *owner == flow) {
                self.tuples.remove(&tuple);
            }
        }
        self.flows.remove(&flow);
    }

    /// Inspects no more lines of this flow.
    pub fn stop(&mut self, flow: u64) {
        if let Some(flow) = self.flows.get_mut(&flow) {
            flow.handed_over = 0;
        }
    }

    /// Takes back a connection of an earlier daemon.
    pub fn take_back_any(&mut self, flow: u64) {
        self.tuples.retain(|_, (owner, _)| *owner != flow);
        self.flows.remove(&flow);
    }

    /// The IDs of all flows, including those that were handed back.
    pub fn flow_ids(&self) -> Vec<u64> {
        self.flows.keys().copied().collect()
    }

    /// The pinhole that this line opened, if it is open.
    fn open_pinhole(&mut self, pinhole: &PinholeEnds, id: PinholeId) -> Option<PinholeKey> {
        let key = key(pinhole);
        self.pinholes.get(&key).filter(|open| pinhole_id(open) == id).map(|_| key)
    }

    /// Closes a pinhole, unless it was consumed or replaced.
    pub fn close_pinhole(&mut self, pinhole: &PinholeEnds, id: PinholeId) {
        let open = self.open_pinhole(pinhole, id);
        open.map(|key| self.pinholes.remove(&key));
    }

    /// Sets the deadline of an open pinhole. Returns whether it is open.
    pub fn renew_pinhole(
        &mut self,
        pinhole: &PinholeEnds,
        id: PinholeId,
        deadline: Duration,
    ) -> bool {
        let open = self.open_pinhole(pinhole, id);
        let open = open.and_then(|key| self.pinholes.get_mut(&key));
        open.map(|open| open.deadline = nanoseconds(deadline)).is_some()
    }

    /// Closes a pinhole that no session has.
    pub fn close_lost_pinhole(&mut self, lost: PinholeId) {
        self.pinholes.retain(|_, open| lost != pinhole_id(open));
    }

    /// Reserves the key of a translated pinhole. Returns `false` if the program has it open.
    pub fn reserve_pinhole(&mut self, pinhole: &PinholeEnds) -> bool {
        let Some(key) = translated_key(pinhole).filter(|_| self.ring_capacity > 0) else {
            return true;
        };
        self.pinholes.entry(key).or_default().flow == 0
    }

    /// The rules have a pinhole until then.
    pub fn note_rules_pinhole(&mut self, pinhole: &PinholeEnds, until: Duration) {
        self.admitted_syns.insert_rules_pinhole(key(pinhole), until);
    }

    /// Ends the reservation of a pinhole.
    pub fn release_pinhole(&mut self, pinhole: &PinholeEnds) {
        if let Some(key) = translated_key(pinhole)
            && self.pinholes.get(&key).is_some_and(|pinhole| pinhole.flow == 0)
        {
            self.pinholes.remove(&key);
        }
    }

    /// Closes pinholes and ends reservations, except those for which `is_retained` returns true. Its arguments are
    /// initiator, arrival, flow and line.
    pub fn retain_pinholes(&mut self, is_retained: impl Fn(IpAddr, SocketAddr, u64, u32) -> bool) {
        self.pinholes.retain(|key, pinhole| {
            is_retained(key.initiator, key.arrival(), pinhole.flow, pinhole.line)
        });
    }

    /// The open pinholes, each with its initiator and arrival.
    pub fn open_pinholes(&self) -> Vec<(PinholeId, (IpAddr, SocketAddr))> {
        let open = self.pinholes.iter().filter(|(_, pinhole)| pinhole.flow != 0);
        let ends = |key: &PinholeKey| (key.initiator, key.arrival());
        open.map(|(key, pinhole)| (pinhole_id(pinhole), ends(key))).collect()
    }

    /// Asserts that the maps and the ring are empty.
    pub fn assert_empty(&self) {
        assert!(self.flows.is_empty() && self.tuples.is_empty(), "flows left: {:?}", self.flows);
        assert!(self.pinholes.is_empty(), "pinholes left: {:?}", self.pinholes);
        assert!(self.ring.is_empty(), "lines left: {:?}", self.ring);
    }

    /// Whether there are lines that were not released.
    pub fn has_lines(&self) -> bool {
        !self.ring.is_empty()
    }

    /// The lines from `position` on.
    pub fn lines(&self, position: usize) -> &[LineRecord] {
        &self.ring[position - self.released..]
    }

    /// Releases the lines before `position`.
    pub fn release_lines(&mut self, position: usize) {
        if position > self.released {
            self.ring.drain(..position - self.released);
            self.released = position;
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap()
}

fn pinhole_id(open: &layout::Pinhole) -> PinholeId {
    PinholeId { flow: open.flow, line: open.line }
}

fn key(pinhole: &PinholeEnds) -> PinholeKey {
    PinholeKey::new(pinhole.initiator, pinhole.arrival)
}

/// The key of a translated pinhole; `None` for others.
fn translated_key(pinhole: &PinholeEnds) -> Option<PinholeKey> {
    (pinhole.arrival != pinhole.target).then(|| key(pinhole))
}

/// The tuples of the packets of client and server.
fn tuples(translation: &Translation) -> [PacketTuple; 2] {
    let Translation { client, client_external, server, server_external, .. } = *translation;
    [PacketTuple::new(client, server_external), PacketTuple::new(server, client_external)]
}
