//! Many sessions at once: measures the memory of a session, and the time of a packet that belongs to a random session.
//!
//! Each number of sessions has a process of its own. Memory is the growth of `VmRSS`, so it includes tables and the
//! allocator. Timed packets are built just before, a few at a time. So the packets are in the cache, like packets that
//! a kernel has just delivered, but the engine's data about their sessions is not.

use std::{
    net::SocketAddrV4,
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{PacketOutcome, Standalone, Verdict};

use super::conversation::{GrantingKernel, arrival, build, gateway};

const COUNTS: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// Packets at once, as a worker reads them.
const BATCH: usize = 64;
/// Packets timed in one round. The result is the median of the rounds.
const TIMED: usize = 1 << 20;
const ROUNDS: usize = 7;
const SERVER: [u8; 4] = [203, 0, 113, 9];
const LOGIN: [(bool, &[u8]); 5] = [
    (true, b"220 ready\r\n"),
    (false, b"USER joe\r\n"),
    (true, b"331 password\r\n"),
    (false, b"PASS x\r\n"),
    (true, b"230 in\r\n"),
];
const EXCHANGE: [(bool, &[u8]); 2] = [(false, b"NOOP\r\n"), (true, b"200 Zzz...\r\n")];

/// Measures each number of sessions in a process of its own.
pub fn each_count() {
    for count in COUNTS {
        let program = std::env::current_exe().unwrap();
        let child = std::process::Command::new(program).args(["many", &count.to_string()]).status();
        assert!(child.unwrap().success());
    }
}

/// Measures one number of sessions, and prints a line.
pub fn one_count(count: usize) {
    let mut sent = vec![1_u32; count]; // written to, so that it is resident before memory is measured
    sent.fill(0);
    let now = Instant::now();
    let before = resident();
    let mut gateway = gateway();
    for session in 0..count {
        log_in(&mut gateway, now, session);
    }
    assert_eq!(gateway.engine.sessions.count(), count);
    let bytes = resident().saturating_sub(before) / count;
    let mut random = 0x9e37_79b9_7f4a_7c15;
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let spent = time_round(&mut gateway, now, &mut sent, &mut random);
            spent.as_nanos() as f64 / TIMED as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    let (least, median) = (rounds[0], rounds[ROUNDS / 2]);
    println!(
        "{count:>9} sessions: {median:6.1} ns a packet (at least {least:.1}), {bytes} bytes a session"
    );
}

fn log_in(gateway: &mut Standalone<GrantingKernel>, now: Instant, session: usize) {
    let mut numbers = [first_sequence(session), !first_sequence(session)];
    let syn_ack = packet(session, true, [numbers[0], numbers[1] - 1], true, b"");
    gateway.packet(now, &syn_ack);
    for (server, line) in LOGIN {
        let packet = packet(session, server, numbers, false, line);
        assert_eq!(gateway.packet(now, &packet), PacketOutcome::Accept);
        numbers[usize::from(server)] += line.len() as u32;
    }
    if session.is_multiple_of(1024) {
        gateway.take_events();
    }
}

/// Hands the engine packets of random sessions, each the next one of its session. Returns the time that this took.
fn time_round(
    gateway: &mut Standalone<GrantingKernel>,
    now: Instant,
    sent: &mut [u32],
    random: &mut u64,
) -> Duration {
    let mut batch = vec![Vec::new(); BATCH];
    let mut spent = Duration::ZERO;
    for _ in 0..TIMED / BATCH {
        for packet in &mut batch {
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            let session = (*random % sent.len() as u64) as usize;
            *packet = next_packet(session, sent[session]);
            sent[session] += 1;
        }
        let start = Instant::now();
        gateway.take(now, batch.iter().map(|packet| arrival(packet)));
        spent += start.elapsed();
        assert!(gateway.verdicts().iter().all(|released| released.verdict == Verdict::Accept));
    }
    spent
}

/// Builds the next packet of a session that sent `sent` packets since its login.
fn next_packet(session: usize, sent: u32) -> Vec<u8> {
    let mut numbers = [first_sequence(session), !first_sequence(session)];
    for (server, line) in LOGIN {
        numbers[usize::from(server)] += line.len() as u32;
    }
    let (server, line) = EXCHANGE[sent as usize % 2];
    numbers[0] += sent.div_ceil(2) * EXCHANGE[0].1.len() as u32;
    numbers[1] += sent / 2 * EXCHANGE[1].1.len() as u32;
    packet(session, server, numbers, false, line)
}

fn first_sequence(session: usize) -> u32 {
    (session as u32).wrapping_mul(0x9e37_79b1) >> 1
}

/// A packet of the client or the server.
fn packet(session: usize, server: bool, numbers: [u32; 2], syn: bool, payload: &[u8]) -> Vec<u8> {
    // A few connections of each client.
    let client = [10, (session >> 18) as u8, (session >> 10) as u8, (session >> 2) as u8];
    let client = SocketAddrV4::new(client.into(), 40_000 + (session & 3) as u16);
    let mut ends = [client, SocketAddrV4::new(SERVER.into(), 21)];
    let mut numbers = numbers;
    if server {
        ends.reverse();
        numbers.reverse();
    }
    build(ends, numbers, syn, payload)
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}
