//! What the engine wishes of the fast path, where the kernel refuses it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use ftp_alg::kernel::{
    LinuxKernel, RuleParameters,
    offload::{Offload, Translations},
    table::{Commits, Table},
};
use ftp_alg_core::{
    engine::{
        FlowChange, Handover, InstalledIn, Kernel as _, LoginStage, Opening, PinholeEnds,
        PinholeId, Translation, Withdrawal,
    },
    ftp::{AnnouncementKind, Padding},
};
use ftp_alg_fastpath::layout::PinholeKey;

use super::lab::{Lab, OneAtATime as _};
use super::program::{CLIENT, SERVER, frame, lab_with_pins, receive};
use super::stacked::syn;
use crate::fastpath::scene::{CLIENT6, SERVER6};

/// Runs `test` where a table and a program are loaded. At the end nothing may have failed.
fn with_offload(test: impl FnOnce(&Lab, &Arc<Offload>) + Send) {
    let Some((lab, pins)) = lab_with_pins() else { return };
    lab.on_gateway(|| {
        let (parameters, commits) = (RuleParameters::default(), Commits::default());
        let _table = Table::install(&parameters, &commits).unwrap();
        let translations = Translations::new(&parameters, &commits).unwrap();
        let offload = Arc::new(Offload::new(pins.load(), translations, &parameters));
        test(&lab, &offload);
        assert_eq!(offload.take_failures(), None);
        offload.program().remove().unwrap();
    });
}

fn kernel(offload: &Arc<Offload>) -> LinuxKernel {
    let kernel = LinuxKernel::new(&RuleParameters::default(), &Commits::default()).unwrap();
    kernel.with_offload(Some(offload))
}

fn handover(number: u32, login: LoginStage, translation: Translation) -> FlowChange {
    FlowChange::Handover(Handover {
        flow: number.into(),
        lines: 0,
        next_seq: [1000, 2000],
        login,
        translation,
        interfaces: [1; 2], // lo, as in `receive`
        client_ports: [0, u16::MAX],
        announced_addresses: [translation.client.ip(), translation.server.ip()],
        seq_offsets: None,
        padding: Padding::None,
        pinhole_timeout: Some(Duration::from_secs(30)),
    })
}

fn withdraw(flow: u32, translation: Translation) -> FlowChange {
    FlowChange::Withdraw(Withdrawal { flow: flow.into(), translation })
}

/// Has the program open a pinhole at port 1025 of the server, which knows the client as `reply.1`.
fn open_passive(offload: &Offload, client: SocketAddr, reply: (SocketAddr, SocketAddr)) {
    receive(offload.program(), &frame(client, reply.0, 1000, 2000, b"EPSV\r\n"));
    let line = b"229 x (|||1025|)\r\n";
    receive(offload.program(), &frame(reply.0, reply.1, 2000, 1006, line));
}

/// As behind each announcement that is queued.
#[test]
fn a_connection_that_is_taken_back_and_handed_over_has_its_new_state() {
    with_offload(|_, offload| {
        let mut kernel = kernel(offload);
        let control = Translation::identity(CLIENT, SERVER);
        let other = Translation::identity(SocketAddr::new(CLIENT.ip(), 40_001), SERVER);
        let again = |translation, next_seq| {
            let mut change = handover(1, LoginStage::LoggedIn, translation);
            let FlowChange::Handover(handover) = &mut change else { unreachable!() };
            handover.next_seq = next_seq;
            change
        };
        let inspected = || offload.program().counters().unwrap().inspected;
        kernel.apply_flow_changes(&[again(control, [1000, 2000])]);
        for (before, after, client, next_seq) in
            [(control, control, CLIENT, [1500, 2500]), (control, other, other.client, [3000, 4000])]
        {
            // It is returned at a line that is not the next one.
            receive(offload.program(), &frame(before.client, SERVER, 1, 2, b"NOOP\r\n"));
            kernel.apply_flow_changes(&[withdraw(1, before), again(after, next_seq)]);
            assert_eq!(offload.program().flow_ids().unwrap(), [1]);
            let (seen, [seq, ack]) = (inspected(), next_seq);
            receive(offload.program(), &frame(client, SERVER, seq, ack, b"NOOP\r\n"));
            assert_eq!(inspected(), seen + 1, "{after:?}");
        }
        kernel.apply_flow_changes(&[withdraw(1, other)]);
        assert_eq!(offload.program().flow_ids().unwrap(), [0; 0]);
    });
}

/// A later session between the same ends has another source, for example from a pool.
#[test]
fn a_source_stays_while_the_pinhole_of_its_flow_is_open() {
    let [client6, server6] = [(CLIENT6, CLIENT), (SERVER6, SERVER)]
        .map(|(address, of)| SocketAddr::new(address, of.port()));
    has_source_while_open((CLIENT, SERVER), ["203.0.113.1", "203.0.113.2"], "sources4");
    has_source_while_open((client6, server6), ["2001:db8:7::1", "2001:db8:7::2"], "sources6");
}

fn has_source_while_open(
    (client, server): (SocketAddr, SocketAddr),
    sources: [&str; 2],
    map: &str,
) {
    with_offload(|lab, offload| {
        let mut kernel = kernel(offload);
        let by = |number: usize| Translation {
            client_external: SocketAddr::new(sources[number - 1].parse().unwrap(), client.port()),
            ..Translation::identity(client, server)
        };
        let translated = by(1).client_external;
        let is_handed_over = |flow| offload.program().flow_ids().unwrap().contains(&flow);
        let source = || {
            let shown = lab.gateway_sh(&format!("nft list map inet ftp_alg fast_path_{map}"));
            sources.map(|address| shown.contains(address))
        };
        for end in ["consumed", "closed"] {
            kernel.apply_flow_changes(&[handover(1, LoginStage::LoggedIn, by(1))]);
            open_passive(offload, client, (server, translated));
            let pinholes = offload.program().list_open_pinholes().unwrap();
            let [(key, _)] = pinholes[..] else { panic!("{pinholes:?}") };
            kernel.apply_flow_changes(&[
                withdraw(1, by(1)),
                handover(2, LoginStage::LoggedIn, by(2)),
            ]);
            assert!(!is_handed_over(2), "{end}");
            assert_eq!(source(), [true, false], "{end}");
            // The table is loaded again.
            offload.restore_translations().unwrap();
            assert_eq!(source(), [true, false], "{end}");
            match end {
                "closed" => {
                    assert!(offload.program().close_pinhole(&key, 1, 2).unwrap());
                }
                _ => receive(
                    offload.program(),
                    &syn(SocketAddr::new(key.initiator, 1), key.arrival()),
                ),
            }
            assert_eq!(offload.program().list_open_pinholes().unwrap(), []);
            kernel.apply_flow_changes(&[handover(2, LoginStage::LoggedIn, by(2))]);
            assert!(is_handed_over(2), "{end}");
            assert_eq!(source(), [false, true], "{end}");
            kernel.apply_flow_changes(&[withdraw(2, by(2))]);
        }
    });
}

#[test]
fn no_more_connections_are_handed_over_than_there_is_room_for() {
    with_offload(|_, offload| {
        let mut kernel = kernel(offload);
        let most = 16_384;
        let ends = |number: u32| {
            let client = IpAddr::from(Ipv4Addr::from(0x0a00_0000 + number));
            Translation::identity(SocketAddr::new(client, 40_000), SERVER)
        };
        let handed_over = |number: u32, login| handover(number, login, ends(number));
        // Half of them for those that have not logged in.
        let all: Vec<_> =
            (1..=most).map(|number| handed_over(number, LoginStage::Greeted)).collect();
        kernel.apply_flow_changes(&all);
        assert_eq!(offload.program().flow_ids().unwrap().len(), most as usize / 2);
        let over = |number| handed_over(number, LoginStage::LoggedIn);
        let others: Vec<_> = (most / 2 + 1..=most).map(over).collect();
        kernel.apply_flow_changes(&others);
        assert_eq!(offload.take_failures(), None);
        kernel.apply_flow_changes(&[over(most + 1), over(most + 2)]);
        let last =
            "cannot hand a connection over: limit of 16384 connections reached; others are queued"
                .into();
        assert_eq!(offload.take_failures(), Some((2, last)));
        kernel.apply_flow_changes(&[withdraw(1, ends(1)), over(most + 1)]);
        assert_eq!(offload.program().flow_ids().unwrap().len(), most as usize);
    });
}

/// How many connections have an open pinhole when pinholes move to the rules: more than one transaction opens.
const MOVED: u8 = 200;

#[test]
fn a_pinhole_is_in_the_rules_before_it_leaves_the_program() {
    with_offload(|_, offload| {
        let mut kernel = kernel(offload);
        let client = |last| SocketAddr::from(([10, 0, 0, last], 40_000));
        for last in 1..=MOVED {
            let (number, identity) = (last.into(), Translation::identity(client(last), SERVER));
            kernel.apply_flow_changes(&[handover(number, LoginStage::LoggedIn, identity)]);
            open_passive(offload, client(last), (SERVER, client(last)));
        }
        let arrival = SocketAddr::new(SERVER.ip(), 1025);
        let moved = |last: u8| {
            let id = PinholeId { flow: last.into(), line: 2 };
            let initiator = client(last).ip();
            let pinhole = PinholeEnds { initiator, arrival, target: arrival, source: initiator };
            let control = Translation::identity(client(last), SERVER);
            let lifetime = Duration::from_secs(30);
            (id, Opening { ends: pinhole, control, kind: AnnouncementKind::Pasv, lifetime })
        };
        let moved: Vec<_> = (1..=MOVED).map(moved).collect();
        // The first one was consumed before, which the daemon does not know yet.
        receive(offload.program(), &syn(client(1), arrival));
        let expected: BTreeSet<_> = moved[1..].iter().map(|(_, one)| one.ends.initiator).collect();
        let (is_over, count) = (AtomicBool::new(false), usize::from(MOVED) - 1);
        let open = |kernel: &mut LinuxKernel| {
            // The program first: what has left it must be in the rules.
            let of_program = kernel.list_fast_path_pinholes().unwrap();
            let of_rules = kernel.list_open().unwrap();
            let all = of_program.iter().chain(&of_rules).map(|open| open.initiator);
            (of_program.len(), of_rules.len(), all.collect::<BTreeSet<_>>())
        };
        assert_eq!(open(&mut kernel), (count, 0, expected.clone()));
        let mut errors = Vec::new();
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut kernel = self::kernel(offload);
                let mut looks = 0;
                while !is_over.load(Ordering::Acquire) || looks < 2 {
                    let (_, _, all) = open(&mut kernel);
                    // A dump can miss some while a set's hash table shrinks (nft_rhash_walk goes on
                    // after EAGAIN). In the wrong order nearly all would be missing for a while.
                    let missing: Vec<_> = expected.difference(&all).collect();
                    assert!(missing.len() < count / 4, "{missing:?}");
                    looks += 1;
                }
            });
            kernel.move_pinholes_to_rules(&moved, &mut errors);
            is_over.store(true, Ordering::Release);
            reader.join().unwrap();
        });
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(open(&mut kernel), (0, count, expected));
    });
}

/// Each pinhole of the rules, however it came there, is known to the program.
#[test]
fn the_retransmitted_syn_of_a_rules_pinhole_consumes_none_of_the_program() {
    with_offload(|_, offload| {
        let mut kernel = kernel(offload);
        let control = Translation::identity(CLIENT, SERVER);
        let arrival = SocketAddr::new(SERVER.ip(), 1025);
        let key = PinholeKey::new(CLIENT.ip(), arrival);
        let initiator = CLIENT.ip();
        let pinhole = PinholeEnds { initiator, arrival, target: arrival, source: initiator };
        let opening =
            |lifetime| Opening { ends: pinhole, control, kind: AnnouncementKind::Pasv, lifetime };
        let (short, long) = (Duration::ZERO, Duration::from_secs(30));
        let open_in_program = |kernel: &mut LinuxKernel, flow: u32| {
            kernel.apply_flow_changes(&[handover(flow, LoginStage::LoggedIn, control)]);
            open_passive(offload, CLIENT, (SERVER, CLIENT));
            kernel.apply_flow_changes(&[withdraw(flow, control)]);
            PinholeId { flow: flow.into(), line: 2 }
        };
        let count = || offload.program().list_open_pinholes().unwrap().len();
        for (at, how) in (0..).zip(["opened", "renewed", "moved"]) {
            match how {
                "opened" => kernel.open_one(&opening(long)).unwrap(),
                "renewed" => {
                    kernel.open_one(&opening(long)).unwrap();
                    offload.program().note_rules_pinhole(&key, short).unwrap();
                    assert!(kernel.renew(&opening(long), InstalledIn::Rules).unwrap());
                }
                _ => {
                    let id = open_in_program(&mut kernel, 1);
                    let mut errors = Vec::new();
                    kernel.move_pinholes_to_rules(&[(id, opening(long))], &mut errors);
                    assert!(errors.is_empty(), "{errors:?}");
                }
            }
            let source = |port| SocketAddr::new(CLIENT.ip(), port);
            let (old, new) = (syn(source(2000 + at), arrival), syn(source(3000 + at), arrival));
            receive(offload.program(), &old);
            kernel.close_one(&pinhole).unwrap();
            open_in_program(&mut kernel, 2);
            receive(offload.program(), &old);
            assert_eq!(count(), 1, "{how}");
            receive(offload.program(), &new);
            assert_eq!(count(), 0, "{how}");
        }
    });
}
