//! Flows, pinholes and ring of the program: what outlives the daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use ftp_alg_core::engine::{
    FlowChange, Handover, Hole, Login, Pinhole, Shift, Shut, TakenBack, Translation,
};

use super::{
    layout::{Flow, GREETING, HoleKey, LOGIN, NOTHING, Side},
    model::{Expected, Holes, Passed, Segment, decide},
};

/// Source and destination of a packet, as the interface shows them.
type Way = (SocketAddrV4, SocketAddrV4);

/// A judged line, as the ring has it.
#[derive(Clone, Debug)]
pub struct Line {
    pub flow: u64,
    pub line: u32,
    pub at: Duration,
    pub from: Side,
    pub client: SocketAddrV4,
    pub server: SocketAddrV4,
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    pub opened: bool,
    pub consumed: Option<u32>,
    pub ends: bool,
    pub digits: u32,
    pub bytes: Vec<u8>,
}

/// A TCP packet, as the program reads it.
pub struct Seen<'p> {
    /// Source and destination, as the interface shows them.
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// Whether its checksum is right, IP has no options, and it is no fragment.
    pub is_plain: bool,
    /// Whether TCP has no options but timestamps.
    pub has_plain_options: bool,
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    pub payload: &'p [u8],
}

/// Where a pinhole of the program leads, and what opened it.
#[derive(Clone, Copy, Debug)]
struct Opened {
    line: u32,
    until: Duration,
    target: SocketAddrV4,
}

/// What the program did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Lines judged, retransmissions left out.
    pub judged: usize,
    pub retransmitted: usize,
    pub rewritten: usize,
    /// Packets whose numbers or lengths changed.
    pub adjusted: usize,
    pub opened: usize,
    pub admitted: usize,
    pub handed_back: usize,
    pub no_room: usize,
}

/// The program, with its maps.
pub struct Program {
    flows: BTreeMap<u64, Flow>,
    ways: BTreeMap<Way, (u64, Side)>,
    /// By their owners, 0 for those that the daemon has reserved.
    holes: Holes,
    opened: BTreeMap<HoleKey, Opened>,
    barred: BTreeSet<u16>,
    ring: Vec<Line>,
    /// The position of the first line of the ring.
    released: usize,
    /// How many lines it has room for; 0 without a program.
    pub room: usize,
    pub counts: Counts,
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;

impl Default for Program {
    fn default() -> Self {
        Self {
            flows: BTreeMap::new(),
            ways: BTreeMap::new(),
            holes: Holes::new(),
            opened: BTreeMap::new(),
            // As the default policy has the daemon bar them.
            barred: (0..1024).collect(),
            ring: Vec::new(),
            released: 0,
            room: 5461,
            counts: Counts::default(),
        }
    }
}

impl Program {
    /// What goes on at once of a packet. `None`: the packet goes on to the packet selection.
    pub fn judge(&mut self, now: Duration, packet: &Seen<'_>) -> Option<Passed> {
        let (SocketAddr::V4(source), SocketAddr::V4(destination)) =
            (packet.source, packet.destination)
        else {
            return None;
        };
        let (id, side) = *self.ways.get(&(source, destination))?;
        let flow = self.flows.get_mut(&id).filter(|flow| flow.judged)?;
        let has_only_ack_and_push = packet.flags & !(PSH | FIN) == ACK;
        let ends = packet.flags & FIN != 0;
        let length = packet.payload.len();
        let only_acknowledges = length == 0 && packet.flags & (SYN | FIN | RST | URG) == 0;
        let may_be_step = if ends { length == 0 } else { (6..=128).contains(&length) };
        if only_acknowledges && flow.shifts.is_none() {
            return None;
        }
        let may_be_judged = only_acknowledges || may_be_step;
        if !packet.is_plain || !has_only_ack_and_push || !may_be_judged {
            flow.judged = false;
            self.counts.handed_back += 1;
            return None;
        }
        if !only_acknowledges && self.ring.len() >= self.room {
            flow.judged = false;
            self.counts.handed_back += 1;
            self.counts.no_room += 1;
            return None;
        }
        let Seen { seq, ack, window, payload, has_plain_options, .. } = *packet;
        let segment = Segment {
            side,
            seq,
            ack,
            has_only_ack_and_push,
            has_plain_options,
            ends,
            mark: 0,
            payload,
        };
        let digits = flow.digits;
        let expected = decide(id, flow, &mut self.holes, &self.barred, &segment);
        if let Expected::Again(passed) | Expected::Step(passed, ..) = &expected {
            let keeps_numbers = (passed.seq, passed.ack) == (seq, ack);
            let keeps_length = passed.payload.len() == payload.len();
            self.counts.adjusted += usize::from(!(keeps_numbers && keeps_length));
        }
        let holes = &self.holes;
        self.opened.retain(|key, _| holes.contains_key(key));
        let (passed, opened, consumed) = match expected {
            Expected::Unheeded => return None,
            Expected::HandsBack => {
                self.counts.handed_back += 1;
                return None;
            }
            Expected::Again(passed) => {
                self.counts.retransmitted += usize::from(!only_acknowledges);
                return Some(passed);
            }
            Expected::Step(passed, opened, consumed) => (passed, opened, consumed),
        };
        if let Some(key) = opened {
            let own = if side == Side::Client { flow.client } else { flow.server };
            let target = SocketAddrV4::new(*own.ip(), key.port);
            let until = now + Duration::from_nanos(flow.lifetime);
            self.opened.insert(key, Opened { line: flow.steps, until, target });
            self.counts.opened += 1;
        }
        self.counts.judged += 1;
        self.counts.rewritten += usize::from(passed.payload != payload);
        self.ring.push(Line {
            flow: id,
            line: flow.steps,
            at: now,
            from: side,
            client: flow.client,
            server: flow.server,
            seq,
            ack,
            window,
            opened: opened.is_some(),
            consumed,
            ends,
            digits,
            bytes: payload.to_vec(),
        });
        Some(passed)
    }

    /// A data connection's first packet: where it is sent, if it is admitted. Uses the pinhole up.
    pub fn admit(
        &mut self,
        now: Duration,
        initiator: IpAddr,
        arrival: SocketAddr,
    ) -> Option<SocketAddr> {
        let key = key(initiator, arrival)?;
        let Opened { until, target, .. } = *self.opened.get(&key)?;
        if until < now {
            return None;
        }
        self.remove(key);
        self.counts.admitted += 1;
        Some(target.into())
    }

    /// Takes connections over, and leaves others alone.
    pub fn change(&mut self, changes: &[FlowChange]) {
        for change in changes {
            match change {
                FlowChange::Over(handover) => self.hand_over(handover),
                FlowChange::Back(TakenBack { flow, translation }) => {
                    self.take_back(*flow, translation);
                }
            }
        }
    }

    fn hand_over(&mut self, handover: &Handover) {
        let Handover { flow, lines, next, login, translation, named, zeros, shifts, lifetime } =
            *handover;
        // Taken back by another worker, which has not told yet.
        if self.flows.contains_key(&flow) {
            self.take_back(flow, &translation);
        }
        let ends = ends(&translation);
        let ways = [(ends[0], ends[3]), (ends[2], ends[1])];
        assert!(ways.iter().all(|way| !self.ways.contains_key(way)), "another has {ways:?}");
        for (way, side) in ways.into_iter().zip([Side::Client, Side::Server]) {
            self.ways.insert(way, (flow, side));
        }
        let [client, client_external, server, server_external] = ends;
        let [client_named, server_named] = named;
        let handed = Flow {
            judged: true,
            next,
            steps: lines,
            awaits: match login {
                Login::Silent => GREETING,
                Login::Greeted => LOGIN,
                Login::Done => NOTHING,
            },
            client,
            server,
            client_named,
            server_named,
            client_arrival: *client_external.ip(),
            server_arrival: *server_external.ip(),
            active_initiator: *server.ip(),
            passive_initiator: *client.ip(),
            active_mark: 0,
            passive_mark: 0,
            judged_mark: 0,
            digits: u32::try_from(zeros.digits()).unwrap(),
            shifts: shifts.map(|shifts| shifts.map(|Shift { by, since }| (by, since))),
            hole: None,
            hole_step: 0,
            lifetime: u64::try_from(lifetime.as_nanos()).unwrap(),
            last: [(0, Some(Vec::new())), (0, Some(Vec::new()))],
        };
        self.flows.insert(flow, handed);
    }

    fn take_back(&mut self, flow: u64, translation: &Translation) {
        let [client, client_external, server, server_external] = ends(translation);
        for way in [(client, server_external), (server, client_external)] {
            if self.ways.get(&way).is_some_and(|(owner, _)| *owner == flow) {
                self.ways.remove(&way);
            }
        }
        self.flows.remove(&flow);
    }

    /// Ends what another daemon left.
    pub fn drop_flow(&mut self, flow: u64) {
        self.ways.retain(|_, (owner, _)| *owner != flow);
        self.flows.remove(&flow);
    }

    /// The flows that are handed over, among them those that were handed back.
    pub fn flows(&self) -> Vec<u64> {
        self.flows.keys().copied().collect()
    }

    /// Closes pinholes, if they are still those that are meant.
    pub fn shut(&mut self, shut: &[Shut]) {
        for Shut { pinhole, hole } in shut {
            let Some(key) = key(pinhole.initiator, pinhole.arrival) else { continue };
            let is_it = self.holes.get(&key) == Some(&hole.flow)
                && self.opened.get(&key).is_some_and(|opened| opened.line == hole.line);
            if is_it {
                self.remove(key);
            }
        }
    }

    /// Keeps the program from opening one with the endpoints of this translated one. Whether it has none.
    pub fn reserve(&mut self, pinhole: &Pinhole) -> bool {
        let Some(key) = translated(pinhole).filter(|_| self.room > 0) else { return true };
        *self.holes.entry(key).or_insert(0) == 0
    }

    /// It may open such a one again.
    pub fn free(&mut self, pinhole: &Pinhole) {
        if let Some(key) = translated(pinhole)
            && self.holes.get(&key) == Some(&0)
        {
            self.holes.remove(&key);
        }
    }

    /// Closes pinholes, and ends reservations, but for those that `is_kept` knows: by initiator, arrival, flow and line.
    pub fn keep_holes(&mut self, is_kept: impl Fn(IpAddr, SocketAddr, u64, u32) -> bool) {
        let Self { holes, opened, .. } = self;
        holes.retain(|key, owner| {
            let arrival = SocketAddrV4::new(key.arrival, key.port);
            let line = opened.get(key).map_or(0, |opened| opened.line);
            is_kept(key.initiator.into(), arrival.into(), *owner, line)
        });
        opened.retain(|key, _| holes.contains_key(key));
    }

    fn remove(&mut self, key: HoleKey) {
        self.holes.remove(&key);
        self.opened.remove(&key);
    }

    /// The pinholes that it has, used by nobody, each with its initiator and arrival.
    pub fn holes(&self) -> Vec<(Hole, (IpAddr, SocketAddr))> {
        let ends =
            |key: &HoleKey| (key.initiator.into(), SocketAddrV4::new(key.arrival, key.port).into());
        let hole = |(key, opened): (&HoleKey, &Opened)| {
            (Hole { flow: self.holes[key], line: opened.line }, ends(key))
        };
        self.opened.iter().map(hole).collect()
    }

    /// What is in none of its maps when all is over.
    pub fn assert_empty(&self) {
        assert!(self.flows.is_empty() && self.ways.is_empty(), "flows left: {:?}", self.flows);
        assert!(self.holes.is_empty(), "pinholes left: {:?} {:?}", self.holes, self.opened);
        assert!(self.ring.is_empty(), "lines left: {:?}", self.ring);
    }

    /// The position behind the last line, and before the first that was not given back.
    pub fn positions(&self) -> (usize, usize) {
        (self.released + self.ring.len(), self.released)
    }

    /// Whether there are lines that were not given back.
    pub fn has_lines(&self) -> bool {
        !self.ring.is_empty()
    }

    /// The lines from `position` on.
    pub fn lines(&self, position: usize) -> &[Line] {
        &self.ring[position - self.released..]
    }

    /// Gives the room before `position` back.
    pub fn release(&mut self, position: usize) {
        if position > self.released {
            self.ring.drain(..position - self.released);
            self.released = position;
        }
    }
}

fn key(initiator: IpAddr, arrival: SocketAddr) -> Option<HoleKey> {
    match (initiator, arrival) {
        (IpAddr::V4(initiator), SocketAddr::V4(arrival)) => {
            Some(HoleKey { initiator, arrival: *arrival.ip(), port: arrival.port() })
        }
        _ => None,
    }
}

/// The key of a pinhole that is translated.
fn translated(pinhole: &Pinhole) -> Option<HoleKey> {
    key(pinhole.initiator, pinhole.arrival).filter(|_| pinhole.arrival != pinhole.target)
}

/// Client and server, each as it is and as the other sees it.
fn ends(translation: &Translation) -> [SocketAddrV4; 4] {
    let Translation { client, client_external, server, server_external } = *translation;
    [client, client_external, server, server_external].map(|end| match end {
        SocketAddr::V4(end) => end,
        SocketAddr::V6(_) => panic!("only IPv4 is handed over"),
    })
}
