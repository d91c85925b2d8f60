//! The wire cases: what clients, servers and attackers send, through the whole engine.
//!
//! Each test checks what both ends receive and which pinholes are open. A packet that needs no change must be accepted
//! byte for byte. `crates/ftp-alg-core/tests/core/support` has the simulated network.

mod ambiguous_lines;
mod announcements;
mod attacks;
mod crafted_segments;
mod dialects;
mod downtime;
mod encrypted_ranges;
mod encryption;
mod fast_path;
mod greetings;
mod limits;
mod line_ends;
mod long_lines;
mod missed;
mod network_conditions;
mod offloads;
mod picked_up;
mod pinhole_limits;
mod pinholes;
mod policies;
mod queue_modes;
mod refusal_replies;
mod refusals;
mod restarts;
mod routes;
mod split_replies;
mod streams;
mod transfers;
mod urgent;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{PacketMeta, PacketOutcome, QueueMode, Translation},
    ftp::{Command, Text},
    packet::flags,
    policy::{AuthTls, ExternalAddress, ForeignAddress, KnownServer, Policy},
    session::Side::{self, Client, Server},
};

use crate::support::{
    self, Rng,
    ftp::{ServerModel, active, at, crossed_out, passive, text},
    scenario::{NATS, Nat, Scenario},
    script::{AUTH, GREETING, LOGIN, USER_PASS, cases, messages, words},
    segment::Segment,
    sim::{Connection, Sim},
};

/// Runs `test` with every kind of NAT, over IPv4 and IPv6.
fn everywhere(test: impl Fn(Scenario)) {
    for nat in NATS {
        for v6 in [false, true] {
            test(Scenario { nat, v6, ..Scenario::default() });
        }
    }
}

/// As [`everywhere`], after a login.
fn logged_in_everywhere(test: impl Fn(Sim)) {
    everywhere(|scenario| test(Sim::logged_in(scenario)));
}

/// Runs `test` with every kind of NAT over IPv4.
fn everywhere_v4(test: impl Fn(Scenario)) {
    for nat in NATS {
        test(Scenario { nat, ..Scenario::default() });
    }
}

fn with(nat: Nat) -> Scenario {
    Scenario { nat, ..Scenario::default() }
}

/// Plays each script of a table everywhere, after a login. The numbers behind `::` are the ports whose pinholes are open
/// then.
#[track_caller]
fn assert_open(table: &str) {
    for case in cases(table) {
        let (script, ports) = case.split_once("::").unwrap();
        logged_in_everywhere(|mut sim| {
            sim.play(script);
            let open: Vec<_> = sim.kernel.pinholes().iter().map(|p| p.target.port()).collect();
            let expected: Vec<u16> =
                ports.split_whitespace().map(|port| port.parse().unwrap()).collect();
            assert_eq!(open, expected, "{script}: {}", sim.summary());
        });
    }
}

/// The announcement of a third host.
fn third(v6: bool) -> String {
    active(if v6 { "[fd99::9]:2200" } else { "10.99.99.99:2200" }.parse().unwrap())
}

/// As [`with`], and the client sends each write at once, without Nagle's algorithm.
fn without_nagle(nat: Nat) -> Scenario {
    let mut scenario = with(nat);
    scenario.client.nagle = false;
    scenario
}

/// Asserts that no packet was changed or dropped, and that none must be.
fn assert_untouched(sim: &Sim) {
    assert_eq!((sim.replaced, sim.dropped), (0, 0), "{}", sim.summary());
    assert!(matches!(sim.kernel.queue_mode, None | Some(QueueMode::WithAcknowledgements)));
}
