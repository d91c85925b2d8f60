//! Measures the engine's time for a packet: `cargo bench --bench engine`.
//!
//! Each benchmark hands a new engine a whole recorded conversation and counts its packets. So a figure is the time of
//! one packet, with its verdict and its replacement, but without the kernel.
//!
//! `-- many` measures a thousand to a million sessions at once, see [`many`]. `make bench-instructions` counts
//! instructions, see [`instructions`].

#![allow(clippy::unwrap_used)]

mod conversation;
mod instructions;
mod many;

use std::time::Instant;

use conversation::{ACTIVE, BYPASSABLE, Conversation, PORT, arrival, gateway};
use divan::{Bencher, counter::ItemsCount};
use etherparse::TransportSlice;
use ftp_alg_core::engine::{Released, Verdict};

const LINES: usize = 1000;
/// How many packets a worker reads at once.
const BATCH: usize = 32;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["many"] => many::each_count(),
        ["many", count] => many::one_count(count.parse().unwrap()),
        ["instructions", kind, count, size] => {
            instructions::run(kind, count.parse().unwrap(), size.parse().unwrap());
        }
        _ => divan::main(),
    }
}

/// The baseline: only parsing the packet and checking its checksum, by etherparse.
#[divan::bench]
fn baseline(bencher: Bencher) {
    let conversation = Conversation::with(&BYPASSABLE.repeat(LINES / 2));
    bencher.counter(ItemsCount::new(LINES)).bench_local(|| {
        for packet in conversation.packets.iter().rev().take(LINES) {
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

/// Lines without an announcement, of which most of a dialogue consists.
#[divan::bench]
fn passing(bencher: Bencher) {
    run(bencher, &BYPASSABLE.repeat(LINES / 2));
}

/// Active transfers through masquerade: a rewrite, and packets with adjusted sequence numbers.
#[divan::bench]
fn active_transfer(bencher: Bencher) {
    run(bencher, &ACTIVE.repeat(LINES / 4));
}

/// Active transfers, with the records of each batch for the journal.
#[divan::bench]
fn active_transfer_recorded(bencher: Bencher) {
    bench(bencher, &Conversation::with(&ACTIVE.repeat(LINES / 4)).packets, LINES, true);
}

/// Only `PORT` lines: the second one of each of a thousand connections.
#[divan::bench]
fn rewriting(bencher: Bencher) {
    run_on_each(bencher, &[PORT]);
}

/// `PORT` lines in three segments: the first two are held, and acknowledged to their sender.
#[divan::bench]
fn rewriting_split(bencher: Bencher) {
    run_on_each(bencher, &[&PORT[..3], &PORT[3..20], &PORT[20..]]);
}

/// Passive transfers through masquerade: pinholes without rewrites.
#[divan::bench]
fn passive_transfer(bencher: Bencher) {
    let exchange = [
        ("PASV\r\n", false),
        ("227 Entering Passive Mode (203,0,113,9,195,149).\r\n", true),
        ("LIST\r\n", false),
        ("226 Done.\r\n", true),
    ];
    run(bencher, &exchange.repeat(LINES / 4));
}

/// Packets whose sequence numbers are adjusted, and nothing else: pure acknowledgements after a rewrite.
#[divan::bench]
fn renumbering(bencher: Bencher) {
    run(bencher, &[&[(PORT, false)][..], &[("", true)].repeat(LINES)].concat());
}

/// Times the last [`LINES`] of these.
fn run(bencher: Bencher, lines: &[(&str, bool)]) {
    bench(bencher, &Conversation::with(lines).packets, LINES, false);
}

/// Times `segments` of [`LINES`] clients: the first segment of all, then the second. Each client has done a transfer
/// before.
fn run_on_each(bencher: Bencher, segments: &[&str]) {
    let (mut preparation, mut timed) = (Vec::new(), vec![Vec::new(); segments.len()]);
    for port in 0..LINES {
        let mut conversation = Conversation::logged_in(&format!("192.168.150.80:{}", 2000 + port));
        for (line, server) in ACTIVE {
            conversation.send_line(line, server);
        }
        preparation.append(&mut conversation.packets);
        for segment in segments {
            conversation.send_line(segment, false);
        }
        timed.iter_mut().zip(conversation.packets).for_each(|(all, packet)| all.push(packet));
    }
    let counted = LINES * segments.len();
    preparation.extend(timed.into_iter().flatten());
    bench(bencher, &preparation, counted, false);
}

/// Times the last `counted` packets, with records for the journal if `records`. The packets before them are the
/// preparation.
fn bench(bencher: Bencher, packets: &[Vec<u8>], counted: usize, records: bool) {
    let (preparation, timed) = packets.split_at(packets.len() - counted);
    let now = Instant::now();
    bencher
        .counter(ItemsCount::new(counted))
        .with_inputs(|| {
            let mut gateway = gateway();
            if records {
                gateway.engine.sessions.track_changes(now);
            }
            for batch in preparation.chunks(BATCH) {
                gateway.take(now, batch.iter().map(|packet| arrival(packet)));
            }
            gateway.take_events();
            gateway.journal.clear();
            gateway
        })
        .bench_local_values(|mut gateway| {
            for batch in timed.chunks(BATCH) {
                gateway.take(now, batch.iter().map(|packet| arrival(packet)));
                let dropped = |released: &Released| matches!(released.verdict, Verdict::Drop(_));
                assert!(
                    gateway.verdicts().len() == batch.len()
                        && !gateway.verdicts().iter().any(dropped)
                );
                gateway.take_events();
                gateway.journal.clear();
            }
            gateway
        });
}
