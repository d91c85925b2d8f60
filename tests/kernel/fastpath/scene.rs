//! The loaded program, attached to nothing, with its maps, and a control connection to test it with.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf},
    programs::SchedClassifier,
};
use ftp_alg_fastpath::PROGRAM;

use super::{frames::*, layout::*};

pub const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 40000);
pub const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)), 21);
pub const PUBLIC: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
pub const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2));
pub const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9));
pub const PUBLIC6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 1));
pub const ID: u64 = 0x1_0000_0007;
pub const SECOND: u64 = 1_000_000_000;
/// `TCX_NEXT`: other programs and the stack get the packet.
const NEXT: u32 = u32::MAX;
/// Size of `struct __sk_buff`, and the offset of its mark.
const CONTEXT: usize = 192;
const MARK: std::ops::Range<usize> = 8..12;

/// The interface on which packets arrive, of a test run without another one.
pub const LOOPBACK: u32 = 1;
/// An interface on which none arrives.
pub const OTHER_INTERFACE: u32 = 2;

/// A packet after the program ran.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub mark: u32,
    pub bytes: Vec<u8>,
}

pub struct Scene {
    loaded: Ebpf,
    tuples: HashMap<MapData, [u8; PacketTuple::SIZE], [u8; TupleValue::SIZE]>,
    flows: HashMap<MapData, u64, [u8; Flow::SIZE]>,
    pinholes: HashMap<MapData, [u8; PinholeKey::SIZE], [u8; Pinhole::SIZE]>,
    admitted_syns: HashMap<MapData, [u8; SynKey::SIZE], [u8; AdmittedSyn::SIZE]>,
    rules_pinholes: HashMap<MapData, [u8; PinholeKey::SIZE], u64>,
    barred_ports: Array<MapData, u32>,
    counters: PerCpuArray<MapData, u64>,
    pub heartbeat: Array<MapData, u64>,
    pub readmission_start: Array<MapData, u64>,
    ring: RingBuf<MapData>,
}

impl Scene {
    /// Loads the program. Panics without root.
    pub fn new() -> Self {
        let why = "the program is loaded as root, with CAP_BPF and CAP_NET_ADMIN";
        let mut loaded = EbpfLoader::new().btf(None).load(PROGRAM).expect(why);
        let program: &mut SchedClassifier =
            loaded.program_mut("inspect").unwrap().try_into().unwrap();
        program.load().expect(why);
        let mut take = |name| -> Map { loaded.take_map(name).expect(name) };
        // Servers may have any port in these tests.
        let mut control_ports: Array<_, u32> = take("control_ports").try_into().unwrap();
        for word in 0..control_ports.len() {
            control_ports.set(word, u32::MAX, 0).unwrap();
        }
        let mut heartbeat: Array<_, u64> = take("heartbeat").try_into().unwrap();
        heartbeat.set(0, u64::MAX, 0).unwrap();
        Self {
            heartbeat,
            readmission_start: take("readmission_start").try_into().unwrap(),
            tuples: take("tuples").try_into().unwrap(),
            flows: take("flows").try_into().unwrap(),
            pinholes: take("pinholes").try_into().unwrap(),
            admitted_syns: take("admitted_syns").try_into().unwrap(),
            rules_pinholes: take("rules_pinholes").try_into().unwrap(),
            barred_ports: take("barred_ports").try_into().unwrap(),
            counters: take("counters").try_into().unwrap(),
            ring: take("ring").try_into().unwrap(),
            loaded,
        }
    }

    /// Runs the program with the packet. It must return `TCX_NEXT`.
    pub fn run(&self, frame: &Frame) -> Outcome {
        self.run_bytes(&frame.to_bytes(), frame.mark)
    }

    pub fn run_bytes(&self, bytes: &[u8], mark: u32) -> Outcome {
        let program: &SchedClassifier = self.loaded.program("inspect").unwrap().try_into().unwrap();
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

    pub fn set_tuple(&mut self, tuple: PacketTuple, flow: u64, side: Side) {
        let value = TupleValue { flow, side: side as u32 };
        self.tuples.insert(tuple.to_bytes(), value.to_bytes(), 0).unwrap();
    }

    pub fn remove_tuple(&mut self, tuple: PacketTuple) {
        self.tuples.remove(&tuple.to_bytes()).unwrap();
    }

    pub fn set_flow(&mut self, id: u64, flow: &Flow) {
        self.flows.insert(id, flow.to_bytes(), 0).unwrap();
    }

    pub fn remove_flow(&mut self, id: u64) {
        self.flows.remove(&id).unwrap();
    }

    pub fn flow(&self, id: u64) -> Flow {
        let flow = Flow::from_bytes(&self.flows.get(&id, 0).unwrap());
        assert_eq!(flow.opening, 0, "no processor opens a pinhole now");
        flow
    }

    pub fn set_pinhole(&mut self, key: PinholeKey, pinhole: Pinhole) {
        self.pinholes.insert(key.to_bytes(), pinhole.to_bytes(), 0).unwrap();
    }

    pub fn remove_pinhole(&mut self, key: PinholeKey) {
        self.pinholes.remove(&key.to_bytes()).unwrap();
    }

    pub fn pinhole(&self, key: PinholeKey) -> Option<Pinhole> {
        self.pinholes.get(&key.to_bytes(), 0).ok().map(|pinhole| Pinhole::from_bytes(&pinhole))
    }

    pub fn pinholes(&self) -> BTreeMap<PinholeKey, Pinhole> {
        let entries = self.pinholes.iter().map(Result::unwrap);
        let read = |(key, pinhole)| {
            let read = PinholeKey::from_bytes(&key);
            assert_eq!(read.to_bytes(), key, "its padding");
            (read, Pinhole::from_bytes(&pinhole))
        };
        entries.map(read).collect()
    }

    /// What is remembered of this SYN.
    pub fn admitted_syn(&self, frame: &Frame) -> Option<AdmittedSyn> {
        self.admitted_syns.get(&syn_key(frame), 0).ok().map(|syn| AdmittedSyn::from_bytes(&syn))
    }

    pub fn set_admitted_syn(&mut self, frame: &Frame, syn: AdmittedSyn) {
        self.admitted_syns.insert(syn_key(frame), syn.to_bytes(), 0).unwrap();
    }

    /// Tells the program of a pinhole of the rules, whose SYN is expected for some time.
    pub fn set_rules_pinhole(&mut self, key: PinholeKey, until: u64) {
        self.rules_pinholes.insert(key.to_bytes(), until, 0).unwrap();
    }

    pub fn bar(&mut self, port: u16) {
        let word = u32::from(port) / 32;
        let bits = self.barred_ports.get(&word, 0).unwrap();
        self.barred_ports.set(word, bits | 1 << (port % 32), 0).unwrap();
    }

    pub fn counts(&self) -> [u64; 6] {
        [0, 1, 2, 3, 4, 5].map(|which| self.counters.get(&which, 0).unwrap().iter().sum())
    }

    /// Takes all records from the ring.
    pub fn records(&mut self) -> Vec<[u8; LineRecord::SIZE]> {
        let mut records = Vec::new();
        while let Some(record) = self.ring.next() {
            records.push((*record).try_into().unwrap());
        }
        records
    }

    pub fn lines(&mut self) -> Vec<LineRecord> {
        let read = |record: &_| {
            let read = LineRecord::from_bytes(record);
            let line = saved_line(read.seq, Some(read.line()));
            assert_eq!((read.to_bytes(), read.bytes), (*record, line.bytes), "padding");
            read
        };
        self.records().iter().map(read).collect()
    }
}

fn syn_key(frame: &Frame) -> [u8; SynKey::SIZE] {
    SynKey { port: frame.destination.port(), seq: frame.seq }.to_bytes()
}

/// Source and destination of packets from `side`, as they arrive at the interface.
pub fn tuple(flow: &Flow, side: Side) -> (SocketAddr, SocketAddr) {
    let Flow { client, client_port, server, server_port, .. } = *flow;
    let (source, destination) = match side {
        Side::Client => ((client, client_port), (flow.passive_arrival, server_port)),
        Side::Server => ((server, server_port), (flow.active_arrival, client_port)),
    };
    (source.into(), destination.into())
}

/// The clock of the pinholes' deadlines, in nanoseconds.
pub fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * SECOND + u64::try_from(now.tv_nsec).unwrap()
}

/// A flow before its first command. The announced addresses are those that the other end connects to.
pub fn between(
    client: IpAddr,
    announced_client: IpAddr,
    server: IpAddr,
    announced_server: IpAddr,
) -> Flow {
    Flow {
        handed_over: 1,
        next_seq: [1000, 0xffff_ffe0],
        dialogue: READY,
        client,
        server,
        client_port: CLIENT.port(),
        server_port: SERVER.port(),
        own: [client, server].map(AddressText::new),
        announced: [
            AddressText::announced(client, announced_client),
            AddressText::announced(server, announced_server),
        ],
        active_arrival: announced_client,
        passive_arrival: announced_server,
        active_initiator: server,
        passive_initiator: client,
        active_mark: 0x5_0000,
        passive_mark: 0x9_0000,
        inspected_mark: 0x6_0000,
        port_digits: 3,
        pinhole_timeout: 30 * SECOND,
        last_client_port: u16::MAX,
        interface: [LOOPBACK; 2],
        ..Flow::default()
    }
}

/// A flow without NAT.
pub fn routed() -> Flow {
    between(CLIENT.ip(), CLIENT.ip(), SERVER.ip(), SERVER.ip())
}

pub fn routed6() -> Flow {
    between(CLIENT6, CLIENT6, SERVER6, SERVER6)
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A control connection that was handed over, and its state before the next packet.
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

    /// Hands the flow `before` over.
    pub fn hand_over(&mut self) {
        for side in [Side::Client, Side::Server] {
            let (source, destination) = tuple(&self.before, side);
            self.scene.set_tuple(PacketTuple::new(source, destination), ID, side);
        }
        self.before.handed_over = 1;
        self.scene.set_flow(ID, &self.before);
    }

    /// A packet with the next line of `side`.
    pub fn frame(&self, side: Side, line: impl AsRef<[u8]>) -> Frame {
        let (source, destination) = tuple(&self.before, side);
        let mut frame = Frame::new(source, destination, ACK | PSH);
        frame.seq = self.before.next_seq[side.index()];
        frame.ack = self.before.next_seq[side.other().index()];
        frame.payload = line.as_ref().to_vec();
        frame
    }

    /// Sends a line that the program lets pass without a rewrite.
    #[track_caller]
    pub fn says(&mut self, side: Side, line: &str) {
        let frame = self.frame(side, format!("{line}\r\n"));
        self.inspected(&frame);
    }

    /// Sends a packet with the next line, which the program lets pass without a rewrite.
    #[track_caller]
    pub fn inspected(&mut self, frame: &Frame) {
        let marked = Outcome { mark: self.before.inspected_mark, bytes: frame.to_bytes() };
        assert_eq!(self.scene.run(frame), marked, "{}", frame.payload.escape_ascii());
        assert_eq!(self.scene.lines().len(), 1);
        self.before = self.scene.flow(ID);
    }

    /// Sends a packet at which the program hands the flow back. Then hands the flow over again.
    #[track_caller]
    pub fn hands_back(&mut self, frame: &Frame) {
        self.hands_back_bytes(&frame.to_bytes(), frame.mark);
    }

    #[track_caller]
    pub fn hands_back_bytes(&mut self, bytes: &[u8], mark: u32) {
        let counts = self.scene.counts();
        let pinholes = self.scene.pinholes();
        let outcome = self.scene.run_bytes(bytes, mark);
        let text = bytes.escape_ascii();
        assert_eq!(outcome, Outcome { mark, bytes: bytes.to_vec() }, "{text}");
        let expected = Flow { handed_over: 0, ..self.before };
        assert_eq!(self.scene.flow(ID), expected, "{text}");
        assert_eq!(self.scene.lines(), [], "{text}");
        assert_eq!(self.scene.pinholes(), pinholes, "{text}");
        let mut expected = counts;
        expected[HANDED_BACK] += 1;
        assert_eq!(self.scene.counts(), expected, "{text}");
        self.hand_over();
    }

    /// Sends a packet that changes nothing, and that the program does not change.
    #[track_caller]
    pub fn is_ignored(&mut self, frame: &Frame) {
        self.ignores_bytes(&frame.to_bytes(), frame.mark);
    }

    #[track_caller]
    pub fn ignores_bytes(&mut self, bytes: &[u8], mark: u32) {
        let counts = self.scene.counts();
        let outcome = self.scene.run_bytes(bytes, mark);
        assert_eq!(outcome, Outcome { mark, bytes: bytes.to_vec() });
        assert_eq!(self.scene.flow(ID), self.before);
        assert_eq!(self.scene.lines(), []);
        assert_eq!(self.scene.counts(), counts);
    }

    #[track_caller]
    pub fn line_hands_back(&mut self, side: Side, line: impl AsRef<[u8]>) {
        let frame = self.frame(side, line);
        self.hands_back(&frame);
    }
}
