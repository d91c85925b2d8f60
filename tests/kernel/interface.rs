//! The kernel's edge against the real kernel, with real traffic in network namespaces.
//!
//! Needs root; without it each test fails and says so.

/// Ends a test of the fast path where the kernel has no TCX.
macro_rules! need_tcx {
    () => {
        if !ftp_alg_lab::has_tcx() {
            return;
        }
    };
}

mod attachments;
mod changes;
mod consumption;
mod fast_path_rules;
mod injected;
mod lab;
mod loading;
mod offload;
mod packets;
mod program;
mod ranges;
mod routes;
mod runs;
mod stacked;
mod translations;

use std::{
    cell::Cell,
    io::{Read as _, Write as _},
    time::{Duration, Instant},
};

use ftp_alg::kernel::{
    LinuxKernel, RuleParameters,
    inject::Injector,
    parameters::QueueStatement,
    probe::HostSettings,
    queue::{Queue, QueueCounts},
    table::{Commits, Table, rule_files},
};
use ftp_alg_core::engine::{Kernel as _, KernelError, PinholeEnds, QueueMode, Translation};
use ftp_alg_firewall::IpVersion;
use ftp_alg_lab::wait_for;
use packets::{PacketAction, serve, tcp, with_payload};

use lab::*;

const LIFETIME: Duration = Duration::from_secs(20);

/// A gateway with our table loaded.
struct Ready {
    lab: Lab,
    kernel: LinuxKernel,
    _table: Table,
}

impl Ready {
    fn new() -> Self {
        let lab = Lab::new();
        let (kernel, table) = lab.on_gateway(|| {
            let parameters = RuleParameters::default();
            (
                LinuxKernel::new(&parameters, &Commits::default()).unwrap(),
                Table::install(&parameters, &Commits::default()).unwrap(),
            )
        });
        Self { lab, kernel, _table: table }
    }

    fn open(&mut self, pinhole: &PinholeEnds, lifetime: Duration) -> Result<(), KernelError> {
        self.kernel.open_one(&opening(*pinhole, lifetime))
    }
}

/// Counts without the packets that wait now.
fn counts(queue: &Queue) -> QueueCounts {
    QueueCounts { waiting: None, ..queue.counts() }
}

#[test]
fn all_ways_of_queueing_load() {
    let lab = Lab::new();
    let detect = |commits: &Commits| {
        Table::install(&RuleParameters::default(), commits).unwrap().statement()
    };
    let detected = lab.on_gateway(|| detect(&Commits::default()));
    lab.on_gateway(|| {
        // By a probe instead of a run of nft, where that is possible. It leaves no draft.
        let commits = Commits::through_one_socket().unwrap();
        assert_eq!(detect(&commits), detected);
        assert_eq!(lab.gateway_sh("nft list tables"), "");
    });
    eprintln!("this kernel queues by {detected:?}");
    let ways = match detected {
        QueueStatement::Native => &[QueueStatement::Native, QueueStatement::Xtables][..],
        _ => &[QueueStatement::Xtables],
    };
    let install = |parameters: &RuleParameters, way| {
        Table::install_with(parameters, way, &Commits::default(), false).unwrap()
    };
    let listed = || lab.gateway_sh("nft list chain inet ftp_alg to_queue");
    for way in ways {
        lab.on_gateway(|| {
            let parameters = RuleParameters::default();
            let table = install(&parameters, *way);
            let text = listed();
            assert!(text.contains("2100") && !text.contains("drop"), "{text}");
            assert!(HostSettings::read(&parameters).table_queues, "{way:?}");
            table.remove().unwrap();
            assert!(!HostSettings::read(&parameters).table_queues);
            let two = RuleParameters::new(&[21], 2100, 2, 0x4000_0000, 0x7000_0000);
            let _table = install(&two, *way);
            let text = listed();
            assert!(text.contains("2100") && !text.contains("bypass"), "{text}");
            let _table = install(&parameters, QueueStatement::Operator);
            assert!(!HostSettings::read(&parameters).table_queues, "the operator's rules do");
        });
    }
    assert_eq!(lab.gateway_sh("nft list ruleset"), "");
}

#[test]
fn rules_of_nftables_and_iptables_queue_the_same_packets() {
    pass_replace_drop(&Ready::new().lab);
    let lab = Lab::new();
    let parameters = RuleParameters::default();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("rules");
    for (version, restore) in
        [(IpVersion::V4, "iptables-restore"), (IpVersion::V6, "ip6tables-restore")]
    {
        std::fs::write(&file, rule_files::render_iptables(&parameters, version)).unwrap();
        // They may be loaded twice.
        let load = format!("{restore} --noflush {}", file.display());
        lab.gateway_sh(&format!("{load} && {load}"));
    }
    pass_replace_drop(&lab);
}

/// Needs rules that queue on the gateway.
fn pass_replace_drop(lab: &Lab) {
    let mut queue = lab.on_gateway(|| Queue::open(2100)).unwrap();
    let listener = listen(&lab.server, at(SERVER, 21));
    let (mut dropped, mut replaced) = (false, false);
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut client = connect(&lab.client, CLIENT, at(SERVER, 21));
            let (mut server, _) = exchange(&mut client, &listener);
            client.write_all(b"hello").unwrap();
            let mut text = [0; 5];
            server.read_exact(&mut text).unwrap();
            // A pure acknowledgement takes the way of the next payload.
            wait_for("the acknowledgement", || unacknowledged_bytes(&client) == 0);
            server.write_all(b"z").unwrap();
            drop(server);
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).unwrap();
            (text, rest)
        });
        let mut ending = false;
        let decide = |packet: &[u8]| {
            let segment = tcp(packet);
            ending |= segment.fin;
            assert!(!segment.pure || ending, "a pure acknowledgement was queued before any FIN");
            match segment.payload.as_slice() {
                b"hello" if !dropped => {
                    dropped = true;
                    PacketAction::Drop
                }
                b"hello" => {
                    replaced = true;
                    PacketAction::Replace(with_payload(packet, b"HELLO"))
                }
                _ => PacketAction::Pass,
            }
        };
        serve(&mut queue, decide, || traffic.is_finished());
        assert_eq!(traffic.join().unwrap(), (*b"HELLO", b"z".to_vec()));
    });
    assert!(dropped && replaced);
    // The kernel empties a queue whenever a hook of the namespace goes (nf_queue_nf_hook_drop). Just behind the loading of a
    // table that may take the first packet, which its sender retransmits: its verdict is refused with ENOENT.
    let counted = QueueCounts { refused: 0, ..counts(&queue) };
    assert_eq!(counted, QueueCounts::default());
}

#[test]
fn without_a_reader_control_connections_pass_unless_they_need_one() {
    let mut ready = Ready::new();
    let lab = &ready.lab;
    let listener = listen(&lab.server, at(SERVER, 21));
    assert!(is_silent(&lab.client, CLIENT, at(SERVER, 21)), "there is a heartbeat");
    ready.lab.pass_by();
    let mut client = connect(&lab.client, CLIENT, at(SERVER, 21));
    let (mut server, peer) = exchange(&mut client, &listener);
    let control = Translation::identity(peer, at(SERVER, 21));
    ready.kernel.set_queue_mode(&control, QueueMode::EveryPacket).unwrap();
    client.write_all(b"held").unwrap();
    server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut text = [0; 4];
    assert!(server.read(&mut text).is_err(), "it passed unseen");
    let mut queue = lab.on_gateway(|| Queue::open(2100)).unwrap();
    let (has_acknowledgement, mut read) = (Cell::new(false), 0);
    server.set_nonblocking(true).unwrap();
    serve(
        &mut queue,
        |packet| {
            has_acknowledgement.set(has_acknowledgement.get() || tcp(packet).pure);
            PacketAction::Pass
        },
        || {
            read += server.read(&mut text).unwrap_or_default();
            read == 4 && has_acknowledgement.get()
        },
    );
    drop(queue);
    ready.kernel.set_queue_mode(&control, QueueMode::None).unwrap();
    let mut queue = ready.lab.on_gateway(|| Queue::open(2100)).unwrap();
    server.set_nonblocking(false).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    client.write_all(b"free").unwrap();
    server.read_exact(&mut text).unwrap();
    assert_eq!(queue.receive().unwrap(), 0);
}

#[test]
fn a_pinhole_admits_one_connection_of_its_initiator_to_its_target() {
    let mut ready = Ready::new();
    ready.lab.masquerade();
    ready.lab.drop_by_default();
    let server = &ready.lab.server.clone();
    for (inside, initiator, other, external) in
        [(CLIENT, SERVER, SERVER2, EXTERNAL), (CLIENT6, SERVER6, SERVER2_6, EXTERNAL6)]
    {
        let arrival = at(external, 50_000);
        let hole = PinholeEnds { target: at(inside, 4000), ..pinhole(initiator, arrival) };
        ready.open(&hole, LIFETIME).unwrap();
        let listener = listen(&ready.lab.client, hole.target);
        assert!(is_silent(server, other, arrival), "another initiator came in");
        let open = ready.kernel.list_open().unwrap();
        assert!(open.len() == 1 && open[0].arrival == arrival, "{open:?}");
        let mut first = connect(server, initiator, arrival);
        assert!(ready.kernel.list_open().unwrap().is_empty());
        assert_eq!(ready.kernel.find_consumed(&[hole]).unwrap(), [hole]);
        assert_eq!(exchange(&mut first, &listener).1.ip(), hole.source);
        assert!(is_silent(server, initiator, arrival), "a second connection came in");
        // Used pinholes close without complaint, and established connections stay.
        ready.kernel.close_one(&hole).unwrap();
        first.write_all(b"on").unwrap();
        // What is left of the first does not translate the second.
        let other = PinholeEnds { target: at(inside, 4001), ..hole };
        ready.open(&other, LIFETIME).unwrap();
        let listener = listen(&ready.lab.client, other.target);
        assert_eq!(ready.kernel.find_consumed(&[other]).unwrap(), []);
        exchange(&mut connect(server, initiator, arrival), &listener);
        assert_eq!(ready.kernel.find_consumed(&[other]).unwrap(), [other]);
    }
    // The daemon loads it again, and then opens them.
    ready.lab.gateway_sh("nft delete table inet ftp_alg");
    let hole = PinholeEnds { target: at(CLIENT, 4001), ..pinhole(SERVER, at(EXTERNAL, 50_000)) };
    assert_eq!(ready.kernel.find_consumed(&[hole]).unwrap(), []);
}

#[test]
fn a_pinhole_s_ends_are_as_it_says_whatever_the_operator_translates() {
    let mut ready = Ready::new();
    ready.lab.masquerade();
    ready.lab.gateway_sh(
        "nft 'table ip bent { chain pre { type nat hook prerouting priority -100; \
            tcp dport 5000-5001 dnat to 192.0.2.10:22; }; }'",
    );
    ready.lab.drop_by_default();
    let (client, gateway) = (ready.lab.client.clone(), ready.lab.gateway.clone());
    for (port, host, initiator, source) in [
        (5000, &client, CLIENT, EXTERNAL2),
        (5001, &client, CLIENT, CLIENT),
        (5002, &gateway, EXTERNAL, EXTERNAL2),
    ] {
        let arrival = at(SERVER, port);
        let hole = PinholeEnds { source: ip(source), ..pinhole(initiator, arrival) };
        ready.open(&hole, LIFETIME).unwrap();
        let listener = listen(&ready.lab.server, arrival);
        let mut stream = connect(host, initiator, arrival);
        assert_eq!(exchange(&mut stream, &listener).1.ip(), hole.source);
        assert!(ready.kernel.list_open().unwrap().is_empty());
        assert_eq!(ready.lab.ct_mark_of(&stream), 0x4000_0000);
    }
}

#[test]
fn an_unused_pinhole_expires_or_is_closed() {
    let mut ready = Ready::new();
    ready.lab.drop_by_default();
    let hole = pinhole(CLIENT, at(SERVER, 5000));
    let _listener = listen(&ready.lab.server, hole.arrival);
    let lifetime = Duration::from_secs(3);
    let before = Instant::now();
    ready.open(&hole, lifetime).unwrap();
    assert!(matches!(ready.open(&hole, LIFETIME), Err(KernelError::Taken)));
    let open = ready.kernel.list_open().unwrap();
    assert_eq!((open.len(), open[0].initiator, open[0].arrival), (1, hole.initiator, hole.arrival));
    assert!(open[0].remaining <= lifetime);
    wait_for("the end of its lifetime", || ready.kernel.list_open().unwrap().is_empty());
    // The kernel counts in jiffies.
    assert!(before.elapsed() + Duration::from_millis(10) >= lifetime);
    assert!(is_silent(&ready.lab.client, CLIENT, hole.arrival));
    ready.kernel.close_one(&hole).unwrap();
    ready.open(&hole, LIFETIME).unwrap();
    ready.kernel.close_one(&hole).unwrap();
    assert!(is_silent(&ready.lab.client, CLIENT, hole.arrival));
    ready.kernel.close_one(&hole).unwrap();
    ready.kernel.close_one(&pinhole(CLIENT6, at(SERVER6, 1))).unwrap();
}

#[test]
fn queue_mode_changes_only_our_mark_bits() {
    let mut ready = Ready::new();
    ready.lab.pass_by();
    ready.lab.gateway_sh(
        "nft 'table ip marks { chain c { type filter hook forward priority 0; \
            tcp dport 21 ct state new ct mark set 0x80000a5f; }; }'",
    );
    let listener = listen(&ready.lab.server, at(SERVER, 21));
    let mut stream = connect(&ready.lab.client, CLIENT, at(SERVER, 21));
    let (_server, peer) = exchange(&mut stream, &listener);
    let control = ready.kernel.lookup_translation(peer, at(SERVER, 21)).unwrap().unwrap();
    for (queue_mode, bit) in [
        (QueueMode::EveryPacket, 0x2000_0000),
        (QueueMode::None, 0x1000_0000),
        (QueueMode::WithAcknowledgements, 0x3000_0000),
        (QueueMode::EveryPacket, 0x2000_0000),
    ] {
        ready.kernel.set_queue_mode(&control, queue_mode).unwrap();
        assert_eq!(ready.lab.ct_mark_of(&stream), 0x8000_0a5f | bit);
    }
    let gone = Translation::identity(at(CLIENT, 1), at(SERVER, 21));
    let error = ready.kernel.set_queue_mode(&gone, QueueMode::None).unwrap_err();
    assert!(matches!(error, KernelError::Unknown), "{error}");
}

#[test]
fn a_connection_that_needs_every_packet_is_be_liberal() {
    let mut ready = Ready::new();
    // The queue is not read here, so `hold` must not have these packets.
    ready.lab.gateway_sh("nft flush chain inet ftp_alg to_queue");
    ready.lab.gateway_sh(
        "nft 'table ip seen { chain c { type filter hook prerouting priority 0; \
            ct state invalid counter; tcp dport 21 @th,160,64 0x6661722061776179 counter; }; }'",
    );
    // Invalid packets, and all of these.
    let counts = |ready: &Ready| {
        let text = ready.lab.gateway_sh("nft list table ip seen");
        let count = |after: &str| after.split(' ').next().unwrap().parse::<u32>().unwrap();
        text.split("packets ").skip(1).map(count).collect::<Vec<_>>()
    };
    let listener = listen(&ready.lab.server, at(SERVER, 21));
    let mut stream = connect(&ready.lab.client, CLIENT, at(SERVER, 21));
    let (_server, peer) = exchange(&mut stream, &listener);
    let outside_the_window = || {
        let mut injector =
            inside(&ready.lab.client, || Injector::new(&RuleParameters::default())).unwrap();
        for from_client in [1_u32, 1 << 31] {
            let mut packet = Vec::new();
            etherparse::PacketBuilder::ipv4([10, 0, 0, 2], [192, 0, 2, 9], 64)
                .tcp(peer.port(), 21, from_client, 1000)
                .ack(from_client)
                .write(&mut packet, b"far away")
                .unwrap();
            injector.inject(&packet, ip(CLIENT), 0).unwrap();
        }
    };
    outside_the_window();
    wait_for("both packets", || counts(&ready)[1] == 2);
    let before = counts(&ready)[0];
    assert!(before > 0);
    let control = Translation::identity(peer, at(SERVER, 21));
    ready.kernel.set_queue_mode(&control, QueueMode::EveryPacket).unwrap();
    outside_the_window();
    wait_for("both packets", || counts(&ready)[1] == 4);
    assert_eq!(counts(&ready)[0], before);
}
