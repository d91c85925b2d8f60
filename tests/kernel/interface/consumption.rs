//! A SYN is admitted when it arrives, and consumes its pinhole when it leaves.

use std::{cell::Cell, net::SocketAddr, time::Duration};

use ftp_alg::kernel::{
    RuleParameters,
    parameters::{CtMarkUse, Learned},
    queue::Queue,
};
use ftp_alg_core::engine::PinholeEnds;
use ftp_alg_lab::wait_for;
use socket2::{Domain, SockRef, Socket, Type};

use super::{
    changes::{Place, open},
    lab::*,
    packets::{PacketAction, serve},
};

/// The queue of the operator's own program.
const OPERATORS_QUEUE: u16 = 7;

/// The operator's program holds the SYNs until all have arrived.
#[test]
fn syns_that_are_held_together_share_no_pinhole() {
    let place = Place::new();
    for program in ["iptables", "ip6tables"] {
        let queue = format!("NFQUEUE --queue-num {OPERATORS_QUEUE}");
        place.lab.gateway_sh(&format!("{program} -t mangle -I FORWARD -p tcp --syn -j {queue}"));
    }
    place.lab.drop_by_default();
    let [mut writer, _] = place.writers();
    let translated =
        PinholeEnds { target: at(CLIENT, 4000), ..pinhole(SERVER, at(EXTERNAL, 50_000)) };
    for hole in [translated, pinhole(SERVER6, at(CLIENT6, 4000))] {
        open(&mut writer, hole);
        let _listener = listen(&place.lab.client, hole.target);
        let mut queue = place.lab.on_gateway(|| Queue::open(OPERATORS_QUEUE)).unwrap();
        let sockets: Vec<_> = inside(&place.lab.server, || {
            let socket = || {
                let domain = Domain::for_address(hole.arrival);
                let socket = Socket::new(domain, Type::STREAM, None).unwrap();
                socket.bind(&SocketAddr::new(hole.initiator, 0).into()).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket.connect(&hole.arrival.into()).unwrap_err(); // in progress
                socket
            };
            (0..4).map(|_| socket()).collect()
        });
        wait_for("all four SYNs", || queue.counts().waiting >= Some(4));
        assert_eq!(writer.list_open().unwrap().unwrap().len(), 1);
        let held = Cell::new(0);
        let pass = |_: &[u8]| {
            held.set(held.get() + 1);
            PacketAction::Pass
        };
        serve(&mut queue, pass, || held.get() >= 4);
        let came_in = || sockets.iter().filter(|socket| socket.peer_addr().is_ok()).count();
        wait_for("a connection", || came_in() > 0);
        // The others were dropped with their verdicts, and their retransmissions wait.
        assert_eq!(came_in(), 1, "{hole}");
        assert_eq!(writer.list_open().unwrap().unwrap(), []);
    }
}

/// The next one also inherits the ct mark of the control connection.
#[test]
fn a_syn_that_is_dropped_consumes_no_pinhole() {
    const OPERATORS: u32 = 0x8000_0015;
    // The firewall drops it, or rp_filter does for another reason.
    for (ct_mark_use, hook, is_here) in [
        (CtMarkUse::None, "forward priority 1", false),
        (CtMarkUse::Restored, "forward priority 1", false),
        (CtMarkUse::Compared, "postrouting priority 1", false),
        (CtMarkUse::None, "prerouting priority 1", false),
        (CtMarkUse::None, "input priority 1", true),
    ] {
        let place = Place::with(&RuleParameters::default().with_ct_mark_use(ct_mark_use));
        place.lab.drop_by_default();
        place.lab.gateway_sh(&format!(
            "nft 'table inet operator {{ chain lose {{ type filter hook {hook}; \
               tcp sport 2020 drop; }}; }}'"
        ));
        let [mut writer, _] = place.writers();
        let ends = match is_here {
            true => [(CLIENT, EXTERNAL), (CLIENT6, EXTERNAL6)],
            false => [(CLIENT, SERVER), (CLIENT6, SERVER6)],
        };
        for (from, to) in ends {
            let hole = pinhole(from, at(to, 4000));
            place.open_with_mark(&mut writer, hole, OPERATORS);
            let target = if is_here { &place.lab.gateway } else { &place.lab.server };
            let listener = listen(target, hole.target);
            let limit = Duration::from_millis(700);
            let dropped = connect_within(&place.lab.client, at(from, 2020), hole.arrival, limit);
            assert!(dropped.is_err(), "{ct_mark_use:?} {hook}");
            assert_eq!(writer.list_open().unwrap().unwrap().len(), 1, "{ct_mark_use:?} {hook}");
            let mut client = connect(&place.lab.client, from, hole.arrival);
            exchange(&mut client, &listener);
            assert_eq!(place.lab.ct_mark_of(&client), OPERATORS | 0x4000_0000, "{ct_mark_use:?}");
            assert_eq!(writer.list_open().unwrap().unwrap(), [], "{ct_mark_use:?}");
            // The lab has no filter at input.
            assert!(is_here || is_silent(&place.lab.client, from, hole.arrival), "{ct_mark_use:?}");
        }
    }
}

/// As a rule for several uplinks does that saves the whole packet mark.
#[test]
fn a_connection_that_lost_its_ct_mark_consumes_its_pinhole() {
    let place = Place::new();
    place.lab.drop_by_default();
    place.lab.gateway_sh(
        "nft 'table inet operator { chain save { type filter hook postrouting priority mangle; \
           ct mark set meta mark; }; }'",
    );
    let [mut writer, _] = place.writers();
    for (from, to) in [(CLIENT, SERVER), (CLIENT6, SERVER6)] {
        let hole = pinhole(from, at(to, 4000));
        open(&mut writer, hole);
        let listener = listen(&place.lab.server, hole.target);
        let mut client = connect(&place.lab.client, from, hole.arrival);
        exchange(&mut client, &listener);
        assert_eq!(place.lab.ct_mark_of(&client), 0);
        assert_eq!(writer.list_open().unwrap().unwrap(), []);
        assert!(is_silent(&place.lab.client, from, hole.arrival));
    }
}

/// Rules of others overwrite the mark of each packet. Once conntrack has forgotten a connection, another one may have its
/// place, and so its ID.
#[test]
fn a_mark_that_is_set_again_is_set_on_no_other_connection() {
    let learned = Learned { overwrites_data_mark: true, ..Learned::default() };
    let place = Place::with(&RuleParameters::default().with_learned(learned));
    place.lab.drop_by_default();
    place.lab.gateway_sh(
        "nft 'table inet operator { \
           chain before { type filter hook prerouting priority mangle; ct mark set 5; }; \
           chain qos { type filter hook forward priority mangle; ct mark set 5; }; }'",
    );
    let [mut writer, _] = place.writers();
    for (from, to) in [(CLIENT, SERVER), (CLIENT6, SERVER6)] {
        let hole = pinhole(from, at(to, 4000));
        for round in 0..3 {
            open(&mut writer, hole);
            let listener = listen(&place.lab.server, hole.target);
            let connect =
                |limit| connect_within(&place.lab.client, at(from, 2020), hole.arrival, limit);
            let mut client = connect(Duration::from_secs(8)).unwrap();
            exchange(&mut client, &listener);
            assert_eq!(place.lab.ct_mark_of(&client), 0x4000_0005);
            SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            drop(client);
            for forget in ["true", "conntrack -F"] {
                place.lab.gateway_sh(forget);
                let second = connect(Duration::from_millis(700));
                assert!(second.is_err(), "{from} {round} {forget}");
            }
        }
    }
}
