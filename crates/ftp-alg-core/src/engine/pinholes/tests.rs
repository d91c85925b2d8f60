//! Limits of pinholes: of one client, of one IPv6 network, of all; and closings that meet other pinholes.

use super::{proposal::*, *};
use crate::{engine::Translation, ftp::Padding};

fn open(table: &mut PinholeTable, client: &str, port: u16) -> Result<HeldPinhole, OpenError> {
    let (proposal, closed) = propose(table, client, port, &[])?;
    table.registry.update_kernel(closed.into_iter(), |_| Ok::<_, ()>(())).unwrap();
    Ok(proposal.opened(Instant::now()))
}

fn propose(
    table: &mut PinholeTable,
    client: &str,
    port: u16,
    own: &[HeldPinhole],
) -> Result<(Proposal, Vec<PinholeClosing>), OpenError> {
    let (control, pinhole) = announced(client, port);
    propose_for(table, &Policy::default(), own, &control, pinhole, None)
}

/// The control connection of a client, and the pinhole for this port of the client.
fn announced(client: &str, port: u16) -> (Translation, Pinhole) {
    let client: IpAddr = client.parse().unwrap();
    let server: IpAddr =
        if client.is_ipv4() { "203.0.113.9" } else { "2001:db8:9::9" }.parse().unwrap();
    let arrival = SocketAddr::new(client, port);
    let control = Translation::identity((client, 4000).into(), (server, 21).into());
    (control, Pinhole { initiator: server, arrival, target: arrival, source: server })
}

fn propose_for(
    table: &mut PinholeTable,
    policy: &Policy,
    own: &[HeldPinhole],
    control: &Translation,
    pinhole: Pinhole,
    room: Option<usize>,
) -> Result<(Proposal, Vec<PinholeClosing>), OpenError> {
    let format = PortFormat { kind: AnnouncementKind::Port, room, padding: Padding::None };
    let mut closed = Vec::new();
    let place = (Instant::now(), 0, own);
    let mut proposal = Proposal::new(pinhole, control, format, policy);
    table.propose(place, policy, &mut proposal, &mut closed)?;
    Ok((proposal, closed))
}

/// Holds a pinhole of the BPF program with the endpoints of one that [`open`] opens for 192.0.2.1.
fn hold_fast_path(table: &mut PinholeTable, port: u16) -> HeldPinhole {
    let (control, pinhole) = announced("192.0.2.1", port);
    let opened = (FastPathPinhole { flow: u64::from(port), line: 1 }, Instant::now());
    let announced = (AnnouncementKind::Port, Duration::from_secs(30));
    table.hold_fast_path_pinhole(opened, (1, true), control.client.ip(), announced, pinhole)
}

/// Has the kernel carry out `closings`. Returns how many pinholes it closes.
fn update(registry: &PinholeRegistry, closings: &mut Vec<PinholeClosing>) -> usize {
    registry.update_kernel(closings.drain(..), |due| Ok::<_, ()>(due.len())).unwrap()
}

/// Closes a pinhole. Returns what the kernel is to close.
fn closings_of(table: &mut PinholeTable, held: HeldPinhole) -> Vec<PinholeClosing> {
    let mut closings = Vec::new();
    table.close(held);
    table.take_closings(&mut closings);
    closings
}

fn table_with(capacity: usize) -> PinholeTable {
    let mut table = PinholeTable::default();
    table.set_capacity(capacity);
    table
}

fn refusal(result: Result<HeldPinhole, OpenError>) -> String {
    format!("{:?}", result.map(drop).unwrap_err())
}

#[test]
fn addresses_of_one_ipv6_network_share_a_limit() {
    let mut table = table_with(60_000);
    let address = |host: u16| format!("2001:db8:1:2:{host:x}::1");
    let mut held: Vec<_> =
        (1..=1024).map(|n| open(&mut table, &address(n), 4000).unwrap()).collect();
    assert_eq!(refusal(open(&mut table, &address(1025), 4000)), "Limit(1024)");
    held.push(open(&mut table, "2001:db8:1:3::1", 4000).unwrap());
    held.push(open(&mut table, "192.0.2.1", 4000).unwrap());
    held.drain(..1).for_each(|held| table.close(held));
    open(&mut table, &address(1025), 4000).unwrap();
}

/// Each of them waits for a data connection or two.
#[test]
fn an_office_of_500_behind_one_address_has_room() {
    for per_user in [1, 2] {
        let mut table = table_with(61_440);
        for port in 0..500 * per_user {
            open(&mut table, "192.0.2.1", 20_000 + port).unwrap();
        }
    }
}

#[test]
fn a_client_may_hold_a_quarter_of_a_small_capacity() {
    let mut table = table_with(128);
    for port in 4000..4032 {
        open(&mut table, "192.0.2.1", port).unwrap();
    }
    assert_eq!(refusal(open(&mut table, "192.0.2.1", 5000)), "Limit(32)");
    open(&mut table, "192.0.2.2", 4000).unwrap();
}

/// A connection on the fast path counts, with its pinhole or without.
#[test]
fn a_pinhole_of_the_fast_path_counts_once() {
    let mut table = table_with(60_000);
    let policy = Policy { max_pinholes_per_client: 4, ..Policy::default() };
    let client: IpAddr = "192.0.2.1".parse().unwrap();
    let open_count = |table: &mut PinholeTable| {
        let check = |limit| table.registry.lock().check(client.into(), limit, 60_000).is_err();
        (1..9).take_while(|limit| check(*limit)).count()
    };
    assert!((0..2).all(|_| table.grant_fast_path(&policy, client)));
    assert!(!table.grant_fast_path(&policy, client), "half of the limit is left to others");
    let held = [5000, 5001].map(|port| hold_fast_path(&mut table, port));
    assert_eq!(open_count(&mut table), 2);
    // Back in the queue, a pinhole that is open counts itself.
    table.revoke_fast_path_grant(client, &held[..1]);
    assert_eq!(open_count(&mut table), 2);
    table.record_closed(&held[0]);
    assert_eq!(open_count(&mut table), 1);
    table.record_closed(&held[1]);
    assert_eq!(open_count(&mut table), 1, "the grant");
    table.revoke_fast_path_grant(client, &held[1..]);
    assert_eq!(open_count(&mut table), 0);
}

#[test]
fn pinholes_in_use_count_for_the_clients_fraction() {
    let mut table = table_with(16_384);
    let mut held: Vec<_> = (2000..4048)
        .map(|port| {
            let mut held = open(&mut table, "192.0.2.1", port).unwrap();
            table.mark_in_use(&mut held);
            table.record_closed(&held);
            held
        })
        .collect();
    assert!(refusal(open(&mut table, "192.0.2.1", 5000)).contains("share"));
    open(&mut table, "192.0.2.2", 5000).unwrap();
    table.close(held.remove(0));
    table.close_ended(Instant::now(), 1, held.remove(0));
    open(&mut table, "192.0.2.1", 5000).unwrap();
    open(&mut table, "192.0.2.1", 5001).unwrap();
    assert!(refusal(open(&mut table, "192.0.2.1", 5002)).contains("share"));
}

#[test]
fn the_capacity_limits_open_pinholes() {
    let mut table = table_with(8);
    for host in 1..=8 {
        open(&mut table, &format!("192.0.2.{host}"), 4000).unwrap();
    }
    assert!(refusal(open(&mut table, "192.0.2.9", 4000)).starts_with("Full"));
    table.set_capacity(9);
    open(&mut table, "192.0.2.9", 4000).unwrap();
}

/// Two clients behind one address that use the same port, in turn.
#[test]
fn an_end_keeps_to_the_external_port_that_it_had_last() {
    for room in [None, Some(6)] {
        let first = table_with(1024);
        // Their sessions are in different shards.
        let mut shards = [first.new_shard(), first.new_shard()];
        let open = |shard: &mut PinholeTable, client: &str| {
            let (control, mut pinhole) = announced(client, 50_000);
            pinhole.arrival = "198.51.100.1:50000".parse().unwrap();
            let policy = Policy::default();
            let proposed = propose_for(shard, &policy, &[], &control, pinhole, room);
            let (proposal, mut closed) = proposed.unwrap();
            update(&shard.registry, &mut closed);
            proposal.opened(Instant::now())
        };
        let port = |held: &HeldPinhole| held.pinhole.arrival.port();
        let of_first = open(&mut shards[0], "192.0.2.1");
        let of_second = open(&mut shards[0], "192.0.2.2");
        assert_eq!(port(&of_first), 50_000);
        assert_ne!(port(&of_second), 50_000);
        let last = port(&of_second);
        closings_of(&mut shards[0], of_second);
        for shard in [0, 1, 0] {
            let again = open(&mut shards[shard], "192.0.2.2");
            assert_eq!(port(&again), last, "{room:?}");
            closings_of(&mut shards[shard], again);
        }
        // Also when the announced port is free.
        closings_of(&mut shards[0], of_first);
        for shard in [0, 0, 1] {
            let again = open(&mut shards[shard], "192.0.2.2");
            assert_eq!(port(&again), last, "{room:?}");
            closings_of(&mut shards[shard], again);
        }
    }
}

/// A server with one passive port, or a client that always announces the same.
#[test]
fn a_port_at_which_another_session_waits_is_left_to_it() {
    let mut first = table_with(64);
    let mut second = first.new_shard();
    let port = |held: &HeldPinhole| held.pinhole.arrival.port();
    let mut of_first = open(&mut first, "192.0.2.1", 4000).unwrap();
    let of_second = open(&mut second, "192.0.2.1", 4000).unwrap();
    assert_ne!(port(&of_second), 4000);
    assert_eq!(of_second.pinhole.target, of_first.pinhole.target);
    // The session itself announces it again.
    let (again, closed) =
        propose(&mut first, "192.0.2.1", 4000, std::slice::from_ref(&of_first)).unwrap();
    assert_eq!((again.opening.pinhole.arrival.port(), closed.len()), (4000, 1));
    first.withdraw(&again, &mut Vec::new());
    // The transfer has started, so the port may be announced for the next one.
    first.mark_in_use(&mut of_first);
    let (third, _) = propose(&mut second, "192.0.2.1", 4000, &[]).unwrap();
    assert_eq!(
        third.opening.pinhole.arrival.port(),
        4000,
        "as before, not that of the second session"
    );
}

#[test]
fn a_port_at_which_another_session_waits_is_used_if_there_is_no_other() {
    let mut table = table_with(64);
    let policy = Policy { port_range: 4000..=4000, ..Policy::default() };
    let ports: Vec<_> = (0..2)
        .map(|_| {
            let (control, pinhole) = announced("192.0.2.1", 4000);
            let (proposal, _) =
                propose_for(&mut table, &policy, &[], &control, pinhole, None).unwrap();
            proposal.opened(Instant::now()).pinhole.arrival.port()
        })
        .collect();
    assert_eq!(ports, [4000, 4000]);
}

/// Two external ports of one target: one element translates the source of both.
#[test]
fn a_source_translation_stays_while_another_pinhole_uses_it() {
    let mut table = table_with(1024);
    let mut open = |port: u16| {
        let (control, mut pinhole) = announced("192.0.2.1", 5000);
        pinhole.arrival = SocketAddr::new("198.51.100.1".parse().unwrap(), port);
        pinhole.source = "10.0.0.1".parse().unwrap();
        let policy = Policy::default();
        let (proposal, _) = propose_for(&mut table, &policy, &[], &control, pinhole, None).unwrap();
        proposal.opened(Instant::now())
    };
    let (one, other) = (open(6000), open(6001));
    for (held, is_shared) in [(one, true), (other, false)] {
        let Pinhole { initiator, source, .. } = held.pinhole;
        let closed = closings_of(&mut table, held);
        let due = table.registry.update_kernel(closed.into_iter(), |due| Ok::<_, ()>(due.to_vec()));
        let due = due.unwrap();
        let [due] = due[..] else { panic!("{due:?}") };
        assert_eq!(due.source, if is_shared { initiator } else { source });
    }
    assert!(table.registry.lock().is_empty());
}

/// A client announces a port again, on another connection in another shard. The closing of the first pinhole may come
/// before, between and after.
#[test]
fn a_closing_spares_a_pinhole_that_replaced_the_entry() {
    for after_reserving in [false, true] {
        for after_opening in [false, true] {
            let mut first = table_with(8);
            let mut second = first.new_shard();
            let registry = first.registry.clone();
            let update = |closings: &mut Vec<_>| update(&registry, closings);
            let held = open(&mut first, "192.0.2.1", 4000).unwrap();
            let mut closings = closings_of(&mut first, held);
            if !after_reserving {
                assert_eq!(update(&mut closings), 1);
            }
            let (proposal, mut closed_first) =
                propose(&mut second, "192.0.2.1", 4000, &[]).unwrap();
            assert_eq!(proposal.opening.pinhole.arrival.port(), 4000);
            if !after_opening {
                // Before the new one opens: not necessary, and without effect.
                assert_eq!(update(&mut closings), 0);
            }
            assert_eq!(update(&mut closed_first), usize::from(after_reserving));
            let held = proposal.opened(Instant::now());
            assert_eq!(update(&mut closings), 0, "the new one stays");
            assert_eq!(update(&mut closings_of(&mut second, held)), 1);
            assert!(registry.lock().is_empty());
        }
    }
}

#[test]
fn the_entry_of_a_refused_pinhole_is_free() {
    let mut table = table_with(8);
    let (proposal, _) = propose(&mut table, "192.0.2.1", 4000, &[]).unwrap();
    let mut closings = Vec::new();
    table.withdraw(&proposal, &mut closings);
    assert!(closings.is_empty() && table.registry.lock().is_empty());
}

/// The kernel refuses the second pinhole. The first is still to be closed, and then its entry is free.
#[test]
fn a_withdrawn_replacement_leaves_the_old_pinhole_to_close() {
    for updated_meanwhile in [false, true] {
        let mut first = table_with(8);
        let mut second = first.new_shard();
        let registry = first.registry.clone();
        let held = open(&mut first, "192.0.2.1", 4000).unwrap();
        let mut closings = closings_of(&mut first, held);
        let (proposal, _) = propose(&mut second, "192.0.2.1", 4000, &[]).unwrap();
        let update = |closings: &mut Vec<_>| update(&registry, closings);
        let before = if updated_meanwhile { update(&mut closings) } else { 0 };
        let mut left = Vec::new();
        second.withdraw(&proposal, &mut left);
        assert_eq!((before, update(&mut left), update(&mut closings)), (0, 1, 0));
        assert!(registry.lock().is_empty());
    }
}

#[test]
fn a_failed_closing_is_tried_again_but_not_for_ever() {
    for replaced in [false, true] {
        let mut table = table_with(8);
        let held = open(&mut table, "192.0.2.1", 4000).unwrap();
        let (pinhole, registry) = (held.pinhole, table.registry.clone());
        let update = |closings: &mut Vec<_>| update(&registry, closings);
        let mut closings = closings_of(&mut table, held);
        let mut attempts = 0;
        while !closings.is_empty() {
            let failing = |due: &[Pinhole]| {
                assert_eq!(due, [pinhole]);
                Err::<(), _>(())
            };
            registry.update_kernel(closings.drain(..), failing).unwrap_err();
            attempts += 1;
            table.take_failed_closings(&mut closings);
            if replaced && attempts == 2 {
                // Announced again meanwhile: the new pinhole closes the old one, and stays.
                let (proposal, mut closed_first) =
                    propose(&mut table, "192.0.2.1", 4000, &[]).unwrap();
                assert_eq!((update(&mut closed_first), update(&mut closings)), (1, 0));
                let held = proposal.opened(Instant::now());
                closings.extend(closings_of(&mut table, held));
                assert_eq!(update(&mut closings), 1);
            }
        }
        assert_eq!(attempts, if replaced { 2 } else { 11 });
        assert!(table.registry.lock().is_empty());
    }
}

/// The earlier one is another session's, in another shard.
#[test]
fn a_pinhole_of_the_program_replaces_one_that_the_rules_need_no_more() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Earlier {
        Open,
        Consumed,
        Closed,
    }
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Later {
        Open,
        Closed,
        InRules,
    }
    for earlier in [Earlier::Open, Earlier::Consumed, Earlier::Closed] {
        for later in [Later::Open, Later::Closed, Later::InRules] {
            let mut first = table_with(8);
            let mut second = first.new_shard();
            let registry = first.registry.clone();
            let mut closings = Vec::new();
            let mut held = open(&mut first, "192.0.2.1", 4000).unwrap();
            let (initiator, arrival) = held.pinhole.ends();
            match earlier {
                Earlier::Open => {}
                Earlier::Consumed => {
                    first.mark_in_use(&mut held);
                    first.close_ended(Instant::now(), 1, held);
                }
                Earlier::Closed => {
                    first.close(held);
                    first.take_closings(&mut closings);
                }
            }
            let mut held = hold_fast_path(&mut second, 4000);
            assert!(second.has_fast_path(&held));
            let mut replaced = Vec::new();
            second.take_closings(&mut replaced);
            let is_replaced = earlier != Earlier::Open;
            assert_eq!(registry.lock().is_held(initiator, arrival), !is_replaced);
            assert_eq!(replaced.len(), usize::from(is_replaced), "{earlier:?} {later:?}");
            match later {
                Later::Open => {}
                Later::Closed => second.close(held),
                Later::InRules => drop(second.move_to_rules(&mut held)),
            }
            second.take_closings(&mut replaced);
            first.close_all_ended();
            first.take_closings(&mut closings);
            // The rules have only one with these endpoints; if it is the later one, it stays.
            let is_due = is_replaced && later != Later::InRules;
            let closed = [&mut closings, &mut replaced].map(|all| update(&registry, all));
            assert_eq!(closed, [0, usize::from(is_due)], "{earlier:?} {later:?}");
        }
    }
}

#[test]
fn the_closing_of_a_replaced_pinhole_is_tried_again() {
    let mut table = table_with(8);
    let held = open(&mut table, "192.0.2.1", 4000).unwrap();
    table.close(held);
    let held = hold_fast_path(&mut table, 4000);
    let (mut closings, mut attempts) = (Vec::new(), 0);
    table.take_closings(&mut closings);
    while !closings.is_empty() {
        let failing = |due: &[Pinhole]| if due.is_empty() { Ok(()) } else { Err(()) };
        attempts += usize::from(table.registry.update_kernel(closings.drain(..), failing).is_err());
        table.take_failed_closings(&mut closings);
    }
    assert_eq!(attempts, 11);
    table.close(held);
    table.take_closings(&mut closings);
    assert!(closings.is_empty() && table.registry.lock().is_empty());
}
