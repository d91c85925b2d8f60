//! Session records as another gateway reads them from a store, where anybody may have written them, and the packets that
//! follow.
//!
//! The input has the number of records, then each record behind its length, two bytes in little-endian order. What follows
//! is said in pieces, by both ends of each session that was restored. What holds, whatever the records say:
//! - a pinhole that is opened again is for the two ends of its control connection, at ports that policy allows, and no
//!   longer than policy says;
//! - no more pinholes than policy allows;
//! - the engine goes on, and another gateway can read its records.

#![no_main]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{
        Checksums, Engine, FakeKernel, Opening, PinholeEnds, SessionRecords, Standalone,
        Translation,
    },
    packet::{Header, build_segment, flags},
    policy::Policy,
    session::Side,
};
use libfuzzer_sys::fuzz_target;

const UPTIME: Duration = Duration::from_secs(5000);
const LIMIT: usize = 6;
/// No packet of the input is longer.
const PIECE: usize = 24;

fuzz_target!(|input: &[u8]| {
    let Some((count, mut rest)) = input.split_first() else { return };
    let mut read = Vec::new();
    for _ in 0..count % 8 {
        let Some(([low, high], behind)) = rest.split_first_chunk() else { break };
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(behind.len());
        let (record, behind) = behind.split_at(length);
        read.push(record);
        rest = behind;
    }
    let policy = Policy {
        require_login: count & 8 != 0,
        max_pinholes_per_client: LIMIT,
        ..Policy::default()
    };
    let (mut records, _) = SessionRecords::read_each(read.into_iter());
    records.leave_machine(&policy);
    let mut gateway =
        Standalone::new(Engine::new(policy.clone(), Checksums::Trust), FakeKernel::default());
    let now = Instant::now();
    let sessions = &mut gateway.engine.sessions;
    sessions.restore_sessions(records, now, now.checked_sub(UPTIME).unwrap_or(now));
    sessions.track_changes(now);
    sessions.close_forbidden_pinholes();
    for opening in sessions.missing_pinholes(now, |_| true) {
        check(&opening, &policy);
    }
    let known: Vec<_> = sessions.list().map(|session| session.translation).collect();
    for (number, piece) in rest.chunks(PIECE).enumerate() {
        let now = now + Duration::from_millis(40 * number as u64); // of an input
        for control in &known {
            speak(&mut gateway, now, control, piece);
        }
    }
    let mut written = Vec::new();
    let all = gateway.engine.sessions.write_all_records(|one| written.push(one.portable.to_vec()));
    all.expect("it is encoded");
    let (_, damaged) = SessionRecords::read_each(written.iter().map(Vec::as_slice));
    assert_eq!(damaged, 0, "another gateway can read what it goes on from");
    for later in [now + Duration::from_secs(3600), now + Duration::from_secs(86_400 * 30)] {
        gateway.expire(later);
    }
});

/// A piece is said by one end: its first byte says by which, and what of its numbers is as they are.
fn speak(gateway: &mut Standalone<FakeKernel>, now: Instant, control: &Translation, piece: &[u8]) {
    let Some((how, payload)) = piece.split_first() else { return };
    let (client, server) = (control.client, control.server);
    let Some((session, _)) = gateway.engine.sessions.session_between(client, server) else {
        return;
    };
    let next = |side: Side| session.reset_numbers(side.peer())[1] - session.sequence_offset(side).0;
    let from = match how & 1 {
        0 => Side::Client,
        _ => Side::Server,
    };
    let shift = [0, 0, 0, 1, 7, 1 << 17, u32::MAX, 1 << 31][usize::from(how >> 1 & 7)];
    let seq = next(from) + shift;
    let ack = session.reset_numbers(from)[usize::from(how >> 4 & 1)];
    let flags = match how >> 5 {
        0 => flags::ACK | flags::FIN,
        1 => flags::ACK | flags::RST,
        2 => flags::ACK | flags::SYN,
        3 => flags::ACK | flags::URG,
        _ => flags::ACK,
    };
    let (source, destination) = match from {
        Side::Client => (client, server),
        Side::Server => (server, client),
    };
    let header = Header { source, destination, seq, ack, window: 4096, flags };
    let mut packet = Vec::new();
    build_segment(&header, payload, &mut packet);
    gateway.packet(now, &packet);
}

fn check(opening: &Opening, policy: &Policy) {
    let Opening { ends: pinhole, control, lifetime, .. } = *opening;
    let PinholeEnds { initiator, arrival, target, source } = pinhole;
    let Translation { client, client_external, server, server_external, .. } = control;
    let ((from, seen_from), (to, seen_to)): ((SocketAddr, _), (SocketAddr, SocketAddr)) =
        match opening.is_from_client() {
            true => ((client, client_external), (server, server_external)),
            false => ((server, server_external), (client, client_external)),
        };
    assert_eq!((initiator, source), (from.ip(), seen_from.ip()), "who opens {pinhole}");
    assert_eq!((target.ip(), arrival.ip()), (to.ip(), seen_to.ip()), "whose is {pinhole}");
    assert!(target.port() >= policy.min_data_port, "{pinhole} is too low");
    let is_chosen = policy.may_choose(None, arrival.port());
    assert!(arrival.port() == target.port() || is_chosen, "{pinhole} arrives out of range");
    assert!(lifetime <= policy.pinhole_timeout, "{pinhole} lives for {lifetime:?}");
}
