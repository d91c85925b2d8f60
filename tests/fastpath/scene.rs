//! The program, loaded but attached to nothing, its maps, and a control connection to try it with.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf},
    programs::SchedClassifier,
};
use ftp_alg::gateway::fastpath;

use crate::{
    frames::{ACK, FIN, Frame, PSH, payload},
    layout::{
        FLOW, Flow, HANDED_BACK, Hole, HoleKey, JUDGED, NOTHING, REWRITTEN, STEP, Side, Step, way,
        way_key,
    },
};

pub const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 40000);
pub const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 9), 21);
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const ID: u64 = 0x1_0000_0007;
pub const SECOND: u64 = 1_000_000_000;
/// `TCX_NEXT`: other programs and the stack see the packet.
const NEXT: u32 = u32::MAX;
/// Of `struct __sk_buff`, and where it has the mark.
const CONTEXT: usize = 192;
const MARK: std::ops::Range<usize> = 8..12;

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub mark: u32,
    pub bytes: Vec<u8>,
}

pub struct Scene {
    loaded: Ebpf,
    ways: HashMap<MapData, [u8; 12], [u8; 16]>,
    flows: HashMap<MapData, u64, [u8; FLOW]>,
    holes: HashMap<MapData, [u8; 12], [u8; 24]>,
    ports: Array<MapData, u32>,
    counts: PerCpuArray<MapData, u64>,
    ring: RingBuf<MapData>,
}

impl Scene {
    /// Fails where the kernel permits it not: only root may.
    pub fn new() -> Self {
        let why = "the program is loaded as root, with CAP_BPF and CAP_NET_ADMIN";
        let mut loaded = EbpfLoader::new().btf(None).load(fastpath::PROGRAM).expect(why);
        let program: &mut SchedClassifier =
            loaded.program_mut("judge").unwrap().try_into().unwrap();
        program.load().expect(why);
        let mut take = |name| -> Map { loaded.take_map(name).expect(name) };
        // Servers may have any port.
        let mut control_ports: Array<_, u32> = take("control_ports").try_into().unwrap();
        for word in 0..control_ports.len() {
            control_ports.set(word, u32::MAX, 0).unwrap();
        }
        Self {
            ways: take("ways").try_into().unwrap(),
            flows: take("flows").try_into().unwrap(),
            holes: take("holes").try_into().unwrap(),
            ports: take("ports").try_into().unwrap(),
            counts: take("counts").try_into().unwrap(),
            ring: take("ring").try_into().unwrap(),
            loaded,
        }
    }

    /// Runs the program with the packet. It must let others see it.
    pub fn run(&self, frame: &Frame) -> Outcome {
        self.run_bytes(&frame.to_bytes(), frame.mark)
    }

    pub fn run_bytes(&self, bytes: &[u8], mark: u32) -> Outcome {
        let program: &SchedClassifier = self.loaded.program("judge").unwrap().try_into().unwrap();
        let (mut context, mut after, mut out) = ([0; CONTEXT], [0; CONTEXT], [0; 2048]);
        context[MARK].copy_from_slice(&mark.to_ne_bytes());
        let mut options = TestRunOptions::new();
        options.data_in = Some(bytes);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(&context);
        options.ctx_out = Some(&mut after);
        let result = program.test_run(options).unwrap();
        assert_eq!(result.return_value, NEXT);
        let mark = u32::from_ne_bytes(*after[MARK].first_chunk().unwrap());
        Outcome { mark, bytes: out[..result.data_size_out as usize].to_vec() }
    }

    pub fn set_way(&mut self, key: [u8; 12], flow: u64, side: Side) {
        self.ways.insert(key, way(flow, side), 0).unwrap();
    }

    pub fn remove_way(&mut self, key: [u8; 12]) {
        self.ways.remove(&key).unwrap();
    }

    pub fn set_flow(&mut self, id: u64, flow: &Flow) {
        self.flows.insert(id, flow.to_bytes(), 0).unwrap();
    }

    pub fn remove_flow(&mut self, id: u64) {
        self.flows.remove(&id).unwrap();
    }

    pub fn flow(&self, id: u64) -> Flow {
        Flow::read(&self.flows.get(&id, 0).unwrap())
    }

    pub fn set_hole(&mut self, key: HoleKey, hole: Hole) {
        self.holes.insert(key.to_bytes(), hole.to_bytes(), 0).unwrap();
    }

    pub fn hole(&self, key: HoleKey) -> Option<Hole> {
        self.holes.get(&key.to_bytes(), 0).ok().map(|hole| Hole::read(&hole))
    }

    pub fn holes(&self) -> BTreeMap<HoleKey, Hole> {
        let entries = self.holes.iter().map(Result::unwrap);
        entries.map(|(key, hole)| (HoleKey::read(&key), Hole::read(&hole))).collect()
    }

    pub fn bar(&mut self, port: u16) {
        let word = u32::from(port) / 32;
        let bits = self.ports.get(&word, 0).unwrap();
        self.ports.set(word, bits | 1 << (port % 32), 0).unwrap();
    }

    pub fn counts(&self) -> [u64; 6] {
        [0, 1, 2, 3, 4, 5].map(|which| self.counts.get(&which, 0).unwrap().iter().sum())
    }

    /// What the ring has, taken out.
    pub fn records(&mut self) -> Vec<[u8; STEP]> {
        let mut records = Vec::new();
        while let Some(record) = self.ring.next() {
            records.push((*record).try_into().unwrap());
        }
        records
    }

    pub fn steps(&mut self) -> Vec<Step> {
        self.records().iter().map(Step::read).collect()
    }
}

/// Nanoseconds of the clock that pinholes expire by.
pub fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * SECOND + u64::try_from(now.tv_nsec).unwrap()
}

/// A flow without any translation, from its first command on.
pub fn routed() -> Flow {
    Flow {
        judged: true,
        next: [1000, 0xffff_ffe0],
        steps: 0,
        awaits: NOTHING,
        client: CLIENT,
        server: SERVER,
        client_named: *CLIENT.ip(),
        server_named: *SERVER.ip(),
        client_arrival: *CLIENT.ip(),
        server_arrival: *SERVER.ip(),
        active_initiator: *SERVER.ip(),
        passive_initiator: *CLIENT.ip(),
        active_mark: 0x5_0000,
        passive_mark: 0x9_0000,
        judged_mark: 0x6_0000,
        digits: 3,
        shifts: None,
        hole: None,
        hole_step: 0,
        lifetime: 30 * SECOND,
        last: [(0, Some(Vec::new())), (0, Some(Vec::new()))],
    }
}

/// One whose client, 192.168.150.80, is behind a masquerade.
pub fn masqueraded() -> Flow {
    let client = SocketAddrV4::new(Ipv4Addr::new(192, 168, 150, 80), 40000);
    let passive_initiator = *client.ip();
    Flow { client, client_named: PUBLIC, client_arrival: PUBLIC, passive_initiator, ..routed() }
}

/// One whose server, 192.168.150.90, is behind destination NAT.
pub fn published() -> Flow {
    let server = SocketAddrV4::new(Ipv4Addr::new(192, 168, 150, 90), 21);
    let active_initiator = *server.ip();
    Flow { server, server_named: PUBLIC, server_arrival: PUBLIC, active_initiator, ..routed() }
}

/// A control connection that was handed over, and what the program has judged of it.
pub struct Talk {
    pub scene: Scene,
    pub before: Flow,
}

impl Talk {
    pub fn new(flow: Flow) -> Self {
        let mut talk = Self { scene: Scene::new(), before: flow };
        talk.hand_over();
        talk
    }

    /// Hands `before` over (again).
    pub fn hand_over(&mut self) {
        for side in [Side::Client, Side::Server] {
            let (source, destination) = self.ends(side);
            self.scene.set_way(way_key(source, destination), ID, side);
        }
        self.before.judged = true;
        self.scene.set_flow(ID, &self.before);
    }

    /// Source and destination of packets from `side`, as the interface shows them.
    pub fn ends(&self, side: Side) -> (SocketAddrV4, SocketAddrV4) {
        let Flow { client, server, client_named, server_named, .. } = self.before;
        match side {
            Side::Client => (client, SocketAddrV4::new(server_named, server.port())),
            Side::Server => (server, SocketAddrV4::new(client_named, client.port())),
        }
    }

    /// By how much the numbers of `side` are shifted, and those of the other side.
    fn shifts(&self, side: Side) -> [u32; 2] {
        let by = |side: Side| self.before.shifts.map_or(0, |shifts| shifts[side.index()].0);
        [by(side), by(side.other())]
    }

    /// The next line of `side`, in step.
    pub fn frame(&self, side: Side, line: impl AsRef<[u8]>) -> Frame {
        let (source, destination) = self.ends(side);
        let mut frame = Frame::new(source, destination, ACK | PSH);
        frame.seq = self.before.next[side.index()];
        let [_, shifted] = self.shifts(side);
        frame.ack = self.before.next[side.other().index()].wrapping_add(shifted);
        frame.payload = line.as_ref().to_vec();
        frame
    }

    /// Says a line that is judged and passes as it is.
    #[track_caller]
    pub fn says(&mut self, side: Side, line: &str) {
        let frame = self.frame(side, format!("{line}\r\n"));
        self.judged(&frame, &frame.payload.clone());
    }

    /// Sends a packet that is judged and leaves as `heard`. Returns its record.
    #[track_caller]
    pub fn judged(&mut self, frame: &Frame, heard: &[u8]) -> Step {
        let counts = self.scene.counts();
        self.passes(frame, heard);
        let flow = self.scene.flow(ID);
        let steps = self.scene.steps();
        let [step] = &steps[..] else { panic!("{steps:?}") };
        let side = if step.side == 0 { Side::Client } else { Side::Server };
        assert_eq!((step.flow, step.step), (ID, self.before.steps + 1));
        assert_eq!((step.seq, step.ack, &step.line), (frame.seq, frame.ack, &frame.payload));
        let mut expected = self.before.clone();
        expected.steps += 1;
        let ends = frame.flags & FIN != 0;
        let length = if ends { 1 } else { u32::try_from(frame.payload.len()).unwrap() };
        expected.next[side.index()] = frame.seq.wrapping_add(length);
        expected.last[side.index()] = (frame.seq, (!ends).then(|| frame.payload.clone()));
        // Who looks at these tests them.
        expected.awaits = flow.awaits;
        (expected.hole, expected.hole_step) = (flow.hole, flow.hole_step);
        expected.shifts = flow.shifts;
        assert_eq!(flow, expected);
        let counted = self.scene.counts();
        assert_eq!(counted[JUDGED], counts[JUDGED] + 1);
        assert_eq!(counted[HANDED_BACK], counts[HANDED_BACK]);
        let rewritten = u64::from(heard != frame.payload);
        assert_eq!(counted[REWRITTEN], counts[REWRITTEN] + rewritten);
        self.before = flow;
        step.clone()
    }

    /// Sends a packet that passes with its mark, as `heard`.
    #[track_caller]
    pub fn passes(&self, frame: &Frame, heard: &[u8]) {
        let outcome = self.scene.run(frame);
        let line = frame.payload.escape_ascii();
        assert_eq!(outcome.mark, self.before.judged_mark, "{line}");
        let text = payload(&outcome.bytes);
        assert_eq!(text.escape_ascii().to_string(), heard.escape_ascii().to_string());
        // Nothing else of the packet changes.
        let is_client = frame.source == self.before.client;
        let [own, other] = self.shifts(if is_client { Side::Client } else { Side::Server });
        let (seq, ack) = (frame.seq.wrapping_add(own), frame.ack.wrapping_sub(other));
        let expected = Frame { seq, ack, payload: heard.to_vec(), ..frame.clone() };
        assert_eq!(outcome.bytes, expected.to_bytes(), "{line}");
    }

    /// Sends a packet at which the flow is handed back, then hands it over again.
    #[track_caller]
    pub fn hands_back(&mut self, frame: &Frame) {
        self.hands_back_bytes(&frame.to_bytes(), frame.mark);
    }

    #[track_caller]
    pub fn hands_back_bytes(&mut self, bytes: &[u8], mark: u32) {
        let counts = self.scene.counts();
        let holes = self.scene.holes();
        let outcome = self.scene.run_bytes(bytes, mark);
        let text = bytes.escape_ascii();
        assert_eq!(outcome, Outcome { mark, bytes: bytes.to_vec() }, "{text}");
        let expected = Flow { judged: false, ..self.before.clone() };
        assert_eq!(self.scene.flow(ID), expected, "{text}");
        assert_eq!(self.scene.steps(), [], "{text}");
        assert_eq!(self.scene.holes(), holes, "{text}");
        let mut expected = counts;
        expected[HANDED_BACK] += 1;
        assert_eq!(self.scene.counts(), expected, "{text}");
        self.hand_over();
    }

    /// Sends a packet that the program leaves alone, with its flow.
    #[track_caller]
    pub fn left_alone(&mut self, frame: &Frame) {
        let counts = self.scene.counts();
        let outcome = self.scene.run(frame);
        assert_eq!(outcome, Outcome { mark: frame.mark, bytes: frame.to_bytes() });
        assert_eq!(self.scene.flow(ID), self.before);
        assert_eq!(self.scene.steps(), []);
        assert_eq!(self.scene.counts(), counts);
    }

    #[track_caller]
    pub fn line_hands_back(&mut self, side: Side, line: impl AsRef<[u8]>) {
        let frame = self.frame(side, line);
        self.hands_back(&frame);
    }
}
