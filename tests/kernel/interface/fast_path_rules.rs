//! The rules for packets that the fast path's program has marked: inspected packets bypass the queue, and SYNs of
//! data connections are admitted and translated.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use ftp_alg::kernel::{
    RuleParameters,
    offload::{TranslationLease, Translations},
    table::{Commits, Table, TableCondition},
};
use ftp_alg_fastpath::{
    FastPath,
    layout::{Flow, PacketTuple},
};

use socket2::{Domain, Socket, Type};

use super::{
    attachments::update_attachments,
    lab::{self, EXTERNAL, EXTERNAL2, Lab, at, connect, exchange, inside, is_silent, listen},
    program::{self, Pins, frame, read, receive_at},
};
use crate::{fastpath::scene, layout::Side};

/// The MAC address of both interfaces.
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A gateway that drops by default, with the table and the program.
struct Ready {
    table: Table,
    translations: Translations,
    path: Option<FastPath>,
    /// How many translations were replaced by other ones.
    replaced: usize,
    pins: Pins,
    lab: Lab,
}

impl Ready {
    fn new() -> Self {
        Self::with(|| Commits::through_one_socket().unwrap())
    }

    /// With a table without an owner, which other programs can remove.
    fn without_owner() -> Self {
        Self::with(Commits::default)
    }

    fn with(commits: impl FnOnce() -> Commits + Send) -> Self {
        let (lab, pins) = (Lab::new(), Pins::new());
        lab.masquerade();
        lab.drop_by_default();
        for interface in ["lan", "wan"] {
            lab.gateway_sh(&format!("ip link set {interface} address 02:00:00:00:00:01"));
        }
        let (table, translations, path) = lab.on_gateway(|| {
            let (parameters, commits) = (RuleParameters::default(), commits());
            let table = Table::install(&parameters, &commits).unwrap();
            let mut translations = Translations::new(&parameters, &commits).unwrap();
            translations.restore_elements().unwrap();
            let path = pins.load();
            update_attachments(&path);
            (table, translations, Some(path))
        });
        Self { table, translations, replaced: 0, path, pins, lab }
    }

    fn path(&self) -> &FastPath {
        self.path.as_ref().unwrap()
    }

    /// Has the program open a pinhole at port 4001, by this line of the client or by the reply to EPSV.
    fn open(&self, id: u64, flow: &Flow, line: Option<&[u8]>) {
        let path = self.path();
        self.lab.on_gateway(|| {
            let interfaces = program::indices(["lan", "wan"]);
            let receive = |interface, mut frame: Vec<u8>| {
                frame[..6].copy_from_slice(&OWN);
                receive_at(path, interface, &frame);
            };
            let flow = Flow { interface: interfaces, ..*flow };
            let ends = [Side::Client, Side::Server].map(|side| scene::tuple(&flow, side));
            let tuples = ends.map(|(from, to)| PacketTuple::new(from, to));
            path.hand_over(id, tuples, &flow).unwrap();
            let answer: &[u8] =
                if line.is_some() { b"200 ok\r\n" } else { b"229 Entering (|||4001|)\r\n" };
            let line = line.unwrap_or(b"EPSV\r\n");
            let [(client, to_server), (server, to_client)] = ends;
            receive(interfaces[0], frame(client, to_server, 1000, 2000, line));
            let next = 1000 + line.len() as u32;
            receive(interfaces[1], frame(server, to_client, 2000, next, answer));
            let lines = read(path);
            assert!(
                lines.len() == 2 && lines.iter().any(|line| line.opened_pinhole == 1),
                "{lines:?}"
            );
            path.ring().release(path.ring().position());
            path.take_back(id, tuples).unwrap();
        });
    }

    fn acquire(
        &mut self,
        target: Option<&str>,
        source: Option<(&str, &str, &str)>,
    ) -> Option<TranslationLease> {
        let (initiator, to, source) = source.unwrap_or(UNCHANGED);
        let pair = (lab::ip(initiator), lab::ip(to));
        let replaces = || self.replaced += 1;
        self.translations.acquire(target.map(lab::ip), pair, lab::ip(source), replaces).unwrap()
    }

    fn list(&self, map: &str) -> String {
        self.lab.gateway_sh(&format!("nft list map inet ftp_alg {map}"))
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        let path = self.path.take().unwrap();
        self.lab.on_gateway(|| path.remove().unwrap());
        assert!(self.pins.is_empty());
    }
}

/// Another initiator and target, and a source that stays as it is.
const UNCHANGED: (&str, &str, &str) = ("10.9.0.1", "10.9.0.2", "10.9.0.1");

#[test]
fn only_an_admitted_connection_passes_with_its_translation() {
    need_tcx!();
    const EXTERNAL2_6: &str = "2001:db8:2::77";
    let mut ready = Ready::new();
    // Later rules must not see the marks.
    ready.lab.gateway_sh(
        "nft 'table inet later { chain last { type filter hook postrouting priority 300; \
            meta l4proto tcp meta mark != 0 counter drop; }; }'",
    );
    for (client, server, other_source) in
        [(lab::CLIENT, lab::SERVER, EXTERNAL2), (lab::CLIENT6, lab::SERVER6, EXTERNAL2_6)]
    {
        let [own, other] = [client, server].map(lab::ip);
        let flow = Flow { next_seq: [1000, 2000], ..scene::between(own, own, other, other) };
        let to = at(server, 4001);
        let listener = listen(&ready.lab.server, to);
        assert!(is_silent(&ready.lab.client, client, to));
        // The source stays although the operator masquerades, and then it is translated as requested.
        for (id, source) in [(1, client), (2, other_source)] {
            let admitted = ready.path().counters().unwrap().admitted;
            let slot = ready.acquire(None, Some((client, server, source))).unwrap();
            ready.open(id, &Flow { passive_mark: slot.mark, ..flow }, None);
            let mut stream = connect(&ready.lab.client, client, to);
            let (_, peer) = exchange(&mut stream, &listener);
            assert_eq!(peer.ip(), lab::ip(source));
            assert!(is_silent(&ready.lab.client, client, to), "one pinhole, one connection");
            assert_eq!(ready.path().counters().unwrap().admitted, admitted + 1);
            ready.translations.release(&slot);
        }
    }
    let [client, server, external] = [lab::CLIENT6, lab::SERVER6, lab::EXTERNAL6].map(lab::ip);
    let source = (lab::SERVER6, lab::CLIENT6, "2001:db8:1::1");
    let slot = ready.acquire(Some(lab::CLIENT6), Some(source)).unwrap();
    let flow = scene::between(client, external, server, server);
    let active = Flow { next_seq: [1000, 2000], active_mark: slot.mark, adjusted: 1, ..flow };
    let listener = listen(&ready.lab.client, at(lab::CLIENT6, 4001));
    ready.open(3, &active, Some(b"EPRT |2|2001:db8:1::2|4001|\r\n"));
    let mut stream = connect(&ready.lab.server, lab::SERVER6, at(lab::EXTERNAL6, 4001));
    let (_, peer) = exchange(&mut stream, &listener);
    assert_eq!(peer.ip(), lab::ip(source.2));
    let later = ready.lab.gateway_sh("nft list table inet later");
    assert!(later.contains("packets 0 bytes 0"), "{later}");
}

#[test]
fn a_connection_is_translated_to_the_target_of_its_slot() {
    need_tcx!();
    let mut ready = Ready::without_owner();
    let source = (lab::SERVER, lab::CLIENT, lab::GATEWAY_INSIDE);
    let others = ["198.51.100.1", "198.51.100.2"];
    let others_slots: Vec<_> = others.map(|one| ready.acquire(Some(one), None).unwrap()).into();
    let slot = ready.acquire(Some(lab::CLIENT), Some(source)).unwrap();
    assert!(others_slots.iter().all(|other| other.mark != slot.mark));
    let active = Flow {
        active_arrival: EXTERNAL.parse().unwrap(),
        active_mark: slot.mark,
        ..program::flow()
    };
    let listener = listen(&ready.lab.client, at(lab::CLIENT, 4001));
    let to = at(EXTERNAL, 4001);
    let port: &[u8] = b"PORT 10,0,0,2,15,161\r\n";
    ready.open(1, &active, Some(port));
    let mut server = connect(&ready.lab.server, lab::SERVER, to);
    let (_, peer) = exchange(&mut server, &listener);
    assert_eq!(peer.ip().to_string(), lab::GATEWAY_INSIDE);

    // Without the element the SYN is dropped, even if this machine listens at the destination.
    ready.lab.gateway_sh("nft flush ruleset");
    ready.lab.on_gateway(|| {
        assert_eq!(ready.table.condition().unwrap(), TableCondition::Gone);
        ready.table.restore().unwrap();
    });
    ready.open(2, &active, Some(port));
    let _here = listen(&ready.lab.gateway, at(EXTERNAL, 4001));
    assert!(is_silent(&ready.lab.server, lab::SERVER, to));
    drop(_here);
    ready.translations.restore_elements().unwrap();
    ready.open(3, &active, Some(port));
    let mut server = connect(&ready.lab.server, lab::SERVER, to);
    exchange(&mut server, &listener);
    drop(others_slots);
}

#[test]
fn translations_are_shared_and_read_by_the_next_daemon() {
    need_tcx!();
    let mut ready = Ready::without_owner();
    let pair = |source| Some(("10.0.0.2", "192.0.2.9", source));
    let one = ready.acquire(Some("10.0.0.2"), pair(EXTERNAL)).unwrap();
    let same = ready.acquire(Some("10.0.0.2"), pair(EXTERNAL)).unwrap();
    assert_eq!(one, same);
    assert_eq!(
        ready.acquire(Some("10.0.0.3"), pair(EXTERNAL2)),
        None,
        "the pair has another source"
    );
    assert!(!ready.list("fast_path_targets4").contains("10.0.0.3"));
    ready.translations.release(&one);
    assert_eq!(ready.acquire(None, pair(EXTERNAL2)), None, "the source is in use");
    ready.translations.release(&same);
    let other = ready.acquire(None, pair(EXTERNAL2)).unwrap();
    assert!(ready.list("fast_path_sources4").contains("10.0.0.2 . 192.0.2.9 : 192.0.2.77"));

    // Another daemon reads the elements, and none of them is in use.
    let targets = ready.list("fast_path_targets4");
    ready.lab.on_gateway(|| {
        let commits = Commits::default();
        let mut next = Translations::new(&RuleParameters::default(), &commits).unwrap();
        next.restore_elements().unwrap();
    });
    let condition = ready.lab.on_gateway(|| ready.table.check_condition().unwrap());
    assert_eq!(condition, TableCondition::Intact, "elements do not belong to the fingerprint");
    assert_eq!(ready.list("fast_path_targets4"), targets);
    assert_eq!(ready.replaced, 1);
    let reacquired = ready.acquire(Some("10.0.0.2"), None).unwrap();
    assert_eq!(reacquired.mark, one.mark);
    ready.translations.release(&other);

    // A connection between the same ends whose source does not change.
    let plain = ready.acquire(None, pair("10.0.0.2")).unwrap();
    assert!(!ready.list("fast_path_sources4").contains("10.0.0.2 . 192.0.2.9"));
    assert_eq!(ready.acquire(None, pair(EXTERNAL)), None, "the source is in use");
    ready.translations.release(&plain);
    assert!(ready.acquire(None, pair(EXTERNAL)).is_some());
}

/// One socket after another attempts to connect, without waiting for an answer, until `end` is set.
fn attempt(to: SocketAddr, end: &AtomicBool, attempts: &AtomicUsize) {
    while !end.load(Ordering::Relaxed) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        // In progress, or no port is free for a moment.
        let _ = socket.connect(&to.into());
        attempts.fetch_add(1, Ordering::Relaxed);
    }
}

/// While the kernel replaces a table, packets that are in its chains find no element of any map. A SYN that left without
/// its translation would be lost for good, because conntrack translates its retransmissions as it did the first one.
#[test]
fn no_syn_leaves_untranslated_while_the_table_is_replaced() {
    need_tcx!();
    let mut ready = Ready::without_owner();
    let source = (lab::CLIENT, lab::SERVER, EXTERNAL2);
    let mark = ready.acquire(None, Some(source)).unwrap().mark;
    ready.lab.gateway_sh(&format!(
        "nft 'table ip test {{
            counter untranslated {{ }}
            chain marks {{
                type filter hook prerouting priority raw
                iifname \"lan\" tcp flags & (syn | ack) == syn meta mark set {mark}
            }}
            chain last {{
                type filter hook postrouting priority 300
                oifname \"wan\" ip saddr {} counter name untranslated
            }}
        }}'",
        lab::CLIENT
    ));
    let listed = ready.lab.gateway_sh("nft list table inet ftp_alg");
    // Not every kernel has this statement.
    let without_queue = listed.lines().filter(|line| !line.trim_start().starts_with("queue"));
    let lines: Vec<_> = ["delete table inet ftp_alg"].into_iter().chain(without_queue).collect();
    let replacement = lines.join("\n");
    let (end, attempts, to) = (AtomicBool::new(false), AtomicUsize::new(0), at(lab::SERVER, 4001));
    thread::scope(|scope| {
        let sender = scope.spawn(|| inside(&ready.lab.client, || attempt(to, &end, &attempts)));
        let is_short = || attempts.load(Ordering::Relaxed) < 10_000 && !sender.is_finished();
        let replaced = (0..)
            .take_while(|round| *round < 300 || is_short())
            .try_for_each(|_| ready.lab.gateway.nft(&replacement).map(drop));
        end.store(true, Ordering::Relaxed);
        replaced.unwrap();
    });
    let counted = ready.lab.gateway_sh("nft list counter ip test untranslated");
    assert!(counted.contains("packets 0 bytes 0"), "{attempts:?} SYNs: {counted}");
    println!("{attempts:?} SYNs");
}

#[test]
fn there_are_as_many_slots_as_the_mark_has_bits_for() {
    need_tcx!();
    let mut ready = Ready::new();
    let address = |number: u32| IpAddr::from(Ipv4Addr::from(0x0a01_0000 + number));
    let acquire = |ready: &mut Ready, number| {
        let (own, other) = (address(0x1_0000), address(0x1_0001));
        let replaces = || ready.replaced += 1;
        ready.translations.acquire(Some(address(number)), (own, other), own, replaces).unwrap()
    };
    let slots: Vec<_> = (0..0xfff).map(|number| acquire(&mut ready, number).unwrap()).collect();
    assert_eq!(acquire(&mut ready, 0xfff), None);
    let marks: std::collections::BTreeSet<_> = slots.iter().map(|slot| slot.mark).collect();
    assert_eq!(marks.len(), 0xfff);
    ready.translations.release(&slots[7]);
    assert_eq!(ready.replaced, 0);
    let last = acquire(&mut ready, 0xfff).unwrap();
    assert_eq!(ready.replaced, 1);
    assert_eq!(last.mark, slots[7].mark);
    assert_eq!(acquire(&mut ready, 7), None);
    assert_eq!(ready.list("fast_path_targets4").matches(" : 10.1.").count(), 0xfff);
}

/// No program reads the queue, so queued packets are lost.
#[test]
fn inspected_packets_bypass_the_queue_and_lose_their_mark() {
    let ready = super::Ready::new();
    let mark = RuleParameters::default().inspected_mark();
    ready.lab.gateway_sh(&format!(
        "nft 'table inet others {{
            chain program {{ type filter hook prerouting priority raw; meta mark set {mark}; }}
            chain last {{ type filter hook postrouting priority 300; meta mark != 0 drop; }}
        }}'"
    ));
    let listener = listen(&ready.lab.server, at(lab::SERVER, 21));
    let mut client = connect(&ready.lab.client, lab::CLIENT, at(lab::SERVER, 21));
    let (mut server, _) = exchange(&mut client, &listener);
    ready.lab.gateway_sh("nft flush chain inet others program");
    client.write_all(b"AUTH TLS\r\n").unwrap();
    server.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
    assert!(server.read(&mut [0]).is_err(), "it is in the queue");
}
