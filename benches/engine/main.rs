//! What the engine costs a packet: `cargo bench --bench engine`.
//!
//! Each benchmark hands a fresh engine a whole recorded conversation and counts its packets, so
//! that a figure is the time of one packet, verdict and new packet included, kernel excluded.

#![allow(clippy::unwrap_used)]

use std::{net::SocketAddr, time::Instant};

use divan::{Bencher, counter::ItemsCount};
use etherparse::{PacketBuilder, TransportSlice};
use ftp_alg::{
    engine::{
        Attention, Checksums, Engine, Kernel, KernelError, Opening, Pinhole, Translation, Verdict,
    },
    policy::Policy,
};

const CLIENT: &str = "192.168.150.80:1035";
const SERVER: &str = "203.0.113.9:21";
const OUTSIDE: &str = "198.51.100.1:1035";
const LINES: usize = 1000;
/// A transfer in active mode: what is said, and whether the server says it.
const ACTIVE: [(&str, bool); 4] = [
    ("PORT 192,168,150,80,14,178\r\n", false),
    ("200 PORT command successful.\r\n", true),
    ("LIST\r\n", false),
    ("226 Done.\r\n", true),
];

fn main() {
    divan::main();
}

/// The yardstick: only parsing the packet and its checksum, by etherparse.
#[divan::bench]
fn baseline(bencher: Bencher) {
    let mut talk = Talk::logged_in();
    for (line, server) in [("NOOP\r\n", false), ("200 Zzz...\r\n", true)].repeat(LINES / 2) {
        talk.say(line, server);
    }
    bencher.counter(ItemsCount::new(LINES)).bench_local(|| {
        for packet in talk.packets.iter().rev().take(LINES) {
            let packet = etherparse::SlicedPacket::from_ip(divan::black_box(packet)).unwrap();
            let (Some(etherparse::NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) =
                (packet.net, packet.transport)
            else {
                panic!("not TCP over IPv4")
            };
            let header = ip.header();
            let checksum = tcp.calc_checksum_ipv4(header.source(), header.destination());
            assert_eq!(checksum.unwrap(), tcp.checksum());
        }
    });
}

/// Lines that concern nobody: what most of a dialogue is.
#[divan::bench]
fn passing(bencher: Bencher) {
    let lines = [("NOOP\r\n", false), ("200 Zzz...\r\n", true)].repeat(LINES / 2);
    run(bencher, &lines, LINES);
}

/// A `PORT` and its answer in turn, through masquerade: a rewrite and an adjusted packet.
#[divan::bench]
fn rewriting(bencher: Bencher) {
    run(bencher, &ACTIVE.repeat(LINES / 4), LINES);
}

/// The same, with the record that is written of each packet.
#[divan::bench]
fn rewriting_recorded(bencher: Bencher) {
    let mut talk = Talk::logged_in();
    for (line, server) in ACTIVE.repeat(LINES / 4) {
        talk.say(line, server);
    }
    let mut written = 0;
    bench_with(bencher, &talk.packets, LINES, |engine| {
        engine.take_changes(|record| written += record.len()).unwrap();
    });
    assert!(written > LINES);
}

/// A 227 through masquerade: a pinhole and no rewrite.
#[divan::bench]
fn opening(bencher: Bencher) {
    let exchange = [
        ("PASV\r\n", false),
        ("227 Entering Passive Mode (203,0,113,9,195,149).\r\n", true),
        ("LIST\r\n", false),
        ("226 Done.\r\n", true),
    ];
    run(bencher, &exchange.repeat(LINES / 4), LINES);
}

/// Packets that only have to be renumbered: pure acknowledgements after a rewrite.
#[divan::bench]
fn renumbering(bencher: Bencher) {
    let mut talk = Talk::logged_in();
    talk.say("PORT 192,168,150,80,14,178\r\n", false);
    for _ in 0..LINES {
        talk.say("", true);
    }
    bench_packets(bencher, &talk.packets, LINES);
}

fn run(bencher: Bencher, lines: &[(&str, bool)], counted: usize) {
    let mut talk = Talk::logged_in();
    for (line, server) in lines {
        talk.say(line, *server);
    }
    bench_packets(bencher, &talk.packets, counted);
}

/// Times the last `counted` packets; those before set the stage.
fn bench_packets(bencher: Bencher, packets: &[Vec<u8>], counted: usize) {
    bench_with(bencher, packets, counted, |_| ());
}

/// As [`bench_packets`], with something that is done after each packet.
fn bench_with(
    bencher: Bencher,
    packets: &[Vec<u8>],
    counted: usize,
    mut after: impl FnMut(&mut Engine),
) {
    let (stage, timed) = packets.split_at(packets.len() - counted);
    let now = Instant::now();
    bencher
        .counter(ItemsCount::new(counted))
        .with_inputs(|| {
            let mut engine = Engine::new(Policy::default(), Checksums::Verify);
            engine.note_changes(now);
            let mut out = Vec::new();
            for packet in stage {
                engine.packet(now, packet, &mut Nowhere, &mut out);
            }
            (engine, out)
        })
        .bench_local_values(|(mut engine, mut out)| {
            for packet in timed {
                let verdict = engine.packet(now, packet, &mut Nowhere, &mut out);
                assert_ne!(verdict, Verdict::Drop);
                engine.settle(&mut Nowhere);
                after(&mut engine);
            }
            engine.take_events();
            engine
        });
}

/// A conversation as the gateway sees it: the server's numbers are those it delivered to.
struct Talk {
    packets: Vec<Vec<u8>>,
    engine: Engine,
    next: [u32; 2],
    received: [u32; 2],
}

impl Talk {
    fn logged_in() -> Self {
        let engine = Engine::new(Policy::default(), Checksums::Verify);
        let mut talk = Self { packets: Vec::new(), engine, next: [100, 499], received: [499, 100] };
        talk.send(b"", true, true);
        talk.next[1] = 500;
        talk.received[0] = 500;
        for (line, server) in [
            ("220 ready\r\n", true),
            ("USER joe\r\n", false),
            ("331 password\r\n", true),
            ("PASS x\r\n", false),
            ("230 in\r\n", true),
        ] {
            talk.say(line, server);
        }
        talk
    }

    fn say(&mut self, line: &str, server: bool) {
        self.send(line.as_bytes(), server, false);
    }

    fn send(&mut self, payload: &[u8], server: bool, syn: bool) {
        let me = usize::from(server);
        let (client, other): (SocketAddr, SocketAddr) =
            (CLIENT.parse().unwrap(), SERVER.parse().unwrap());
        let (from, to) = if server { (other, client) } else { (client, other) };
        let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { return };
        let builder = PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64)
            .tcp(from.port(), to.port(), self.next[me], 512)
            .ack(self.received[me]);
        let builder = if syn { builder.syn() } else { builder };
        let mut packet = Vec::new();
        builder.write(&mut packet, payload).unwrap();
        let mut out = Vec::new();
        let verdict = self.engine.packet(Instant::now(), &packet, &mut Nowhere, &mut out);
        self.engine.settle(&mut Nowhere);
        let shrunk =
            if verdict == Verdict::Replace { packet.len() as i64 - out.len() as i64 } else { 0 };
        self.next[me] += payload.len() as u32;
        self.received[1 - me] += (payload.len() as i64 - shrunk) as u32;
        self.packets.push(packet);
    }
}

/// A kernel that grants everything.
struct Nowhere;

impl Kernel for Nowhere {
    fn translation(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Result<Option<Translation>, KernelError> {
        let client_external = OUTSIDE.parse().unwrap();
        Ok(Some(Translation { client, client_external, server, server_external: server }))
    }

    fn open(&mut self, _: &Opening<'_>) -> Result<(), KernelError> {
        Ok(())
    }

    fn close(&mut self, _: &Pinhole) -> Result<(), KernelError> {
        Ok(())
    }

    fn attend(&mut self, _: &Translation, _: Attention) -> Result<(), KernelError> {
        Ok(())
    }

    fn inject(&mut self, _: &[u8]) -> Result<(), KernelError> {
        Ok(())
    }
}
