//! What the engine costs a packet: `cargo bench --bench engine`.
//!
//! Each benchmark hands a fresh engine a whole recorded conversation and counts its packets, so
//! that a figure is the time of one packet, verdict and new packet included, kernel excluded.
//!
//! `-- many` instead has a thousand to a million sessions at once, see [`many`]; `make
//! bench-instructions` counts instructions, see [`instructions`].

#![allow(clippy::unwrap_used)]

mod conversation;
mod instructions;
mod many;

use std::time::Instant;

use conversation::{ACTIVE, BYPASSABLE, CLIENT, Conversation, PORT, arrival, gateway};
use divan::{Bencher, counter::ItemsCount};
use etherparse::TransportSlice;
use ftp_alg_core::engine::{Released, Verdict};

const LINES: usize = 1000;
/// How many packets a queue worker may read in one go.
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

/// The yardstick: only parsing the packet and its checksum, by etherparse.
#[divan::bench]
fn baseline(bencher: Bencher) {
    let mut talk = Conversation::logged_in(CLIENT);
    for (line, server) in BYPASSABLE.repeat(LINES / 2) {
        talk.send_line(line, server);
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
    run(bencher, &BYPASSABLE.repeat(LINES / 2), LINES);
}

/// A `PORT` and its answer in turn, through masquerade: a rewrite and an adjusted packet.
#[divan::bench]
fn active_transfer(bencher: Bencher) {
    run(bencher, &ACTIVE.repeat(LINES / 4), LINES);
}

/// The same, with the records that are written of each batch.
#[divan::bench]
fn active_transfer_recorded(bencher: Bencher) {
    let mut talk = Conversation::logged_in(CLIENT);
    for (line, server) in ACTIVE.repeat(LINES / 4) {
        talk.send_line(line, server);
    }
    bench_with(bencher, &talk.packets, LINES, true);
}

/// Nothing but the `PORT`: the second of each of a thousand connections.
#[divan::bench]
fn rewriting(bencher: Bencher) {
    run_on_each(bencher, &[PORT]);
}

/// The same, cut in three: the first two are held back, and acknowledged.
#[divan::bench]
fn rewriting_split(bencher: Bencher) {
    run_on_each(bencher, &[&PORT[..3], &PORT[3..20], &PORT[20..]]);
}

/// A 227 through masquerade: a pinhole and no rewrite.
#[divan::bench]
fn passive_transfer(bencher: Bencher) {
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
    let mut talk = Conversation::logged_in(CLIENT);
    talk.send_line(PORT, false);
    for _ in 0..LINES {
        talk.send_line("", true);
    }
    bench_packets(bencher, &talk.packets, LINES);
}

fn run(bencher: Bencher, lines: &[(&str, bool)], counted: usize) {
    let mut talk = Conversation::logged_in(CLIENT);
    for (line, server) in lines {
        talk.send_line(line, *server);
    }
    bench_packets(bencher, &talk.packets, counted);
}

/// Times what clients say, each segment in turn, after a transfer of each.
fn run_on_each(bencher: Bencher, segments: &[&str]) {
    let (mut stage, mut timed) = (Vec::new(), vec![Vec::new(); segments.len()]);
    for port in 0..LINES {
        let mut talk = Conversation::logged_in(&format!("192.168.150.80:{}", 2000 + port));
        for (line, server) in ACTIVE {
            talk.send_line(line, server);
        }
        stage.append(&mut talk.packets);
        for segment in segments {
            talk.send_line(segment, false);
        }
        timed.iter_mut().zip(talk.packets).for_each(|(all, packet)| all.push(packet));
    }
    let counted = LINES * segments.len();
    stage.extend(timed.into_iter().flatten());
    bench_packets(bencher, &stage, counted);
}

/// Times the last `counted` packets; those before set the stage.
fn bench_packets(bencher: Bencher, packets: &[Vec<u8>], counted: usize) {
    bench_with(bencher, packets, counted, false);
}

/// As [`bench_packets`], with records if it `records`.
fn bench_with(bencher: Bencher, packets: &[Vec<u8>], counted: usize, records: bool) {
    let (stage, timed) = packets.split_at(packets.len() - counted);
    let now = Instant::now();
    bencher
        .counter(ItemsCount::new(counted))
        .with_inputs(|| {
            let mut gateway = gateway();
            if records {
                gateway.engine.sessions.note_changes(now);
            }
            for batch in stage.chunks(BATCH) {
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
                    gateway.given().len() == batch.len() && !gateway.given().iter().any(dropped)
                );
                gateway.take_events();
                gateway.journal.clear();
            }
            gateway
        });
}
