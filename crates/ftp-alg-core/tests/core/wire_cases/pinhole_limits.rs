//! Which pinholes count as open: a preliminary reply says only that the server is about to connect.

use super::*;

/// A connection whose client may have `limit` open pinholes.
fn limited(limit: usize) -> Sim {
    let policy = Policy { max_pinholes_per_client: limit, ..Policy::default() };
    Sim::logged_in(Scenario { policy, ..with(Nat::Routed) })
}

impl Sim {
    /// Another connection of the client logs in.
    fn log_in_again(&mut self) -> Connection {
        let before = self.begin_next();
        self.play(LOGIN);
        before
    }

    /// Announces a port and starts a transfer, up to the preliminary reply. Returns whether the pinhole was opened.
    fn start_transfer(&mut self, port: u16) -> bool {
        let [line, _] = self.active(port);
        let is_open = self.tell(Client, &line) == line;
        self.play(if is_open { "< 200 ok > RETR x < 150 wait" } else { "" });
        is_open
    }

    fn listed(&mut self) -> usize {
        self.engine().sessions.list_pinholes().count()
    }

    /// Whether the kernel has a pinhole for this port open.
    fn has_open(&mut self, port: u16) -> bool {
        self.kernel.pinholes().iter().any(|pinhole| pinhole.arrival.port() == port)
    }

    /// Whether this pinhole of an ended transfer is listed.
    fn lists_ended(&mut self, port: u16) -> bool {
        let now = self.clock();
        let mut ended = self.engine().sessions.list_ended_pinholes(now);
        ended.any(|info| info.ends.arrival.port() == port)
    }

    /// The data connection to this port comes.
    fn use_port(&mut self, port: u16) {
        let Translation { client, server, .. } = self.translation;
        assert!(self.kernel.connect(server.ip(), at(client, port)).is_some());
    }
}

#[test]
fn a_consumed_pinhole_does_not_count_once_the_limit_is_reached() {
    let mut sim = limited(2);
    for port in 40_001..40_100 {
        assert!(sim.start_transfer(port), "{port}");
        assert!(sim.listed() <= 2);
        sim.use_port(port);
        sim.log_in_again();
    }
    let lookups = sim.kernel.consumed_lookups;
    assert!((40..=50).contains(&lookups), "{lookups}");
}

/// A transfer has ended, although its data connection, to this port, has not come.
fn with_early_end(limit: usize, port: u16) -> Sim {
    let mut sim = limited(limit);
    assert!(sim.start_transfer(port));
    sim.play("< 226 done");
    sim
}

/// The reply of an earlier transfer may come late, and a server may end a transfer before its client has connected.
#[test]
fn an_unused_pinhole_outlives_the_last_reply_for_a_while() {
    let mut sim = with_early_end(4, 40_001);
    let end = sim.now() + Duration::from_secs(8);
    // Other sessions of the client announce ports, which are used, and end.
    for port in 40_002..40_012 {
        sim.log_in_again();
        assert!(sim.start_transfer(port));
        sim.use_port(port);
        sim.play("< 226 done");
        sim.close_both();
        assert!(sim.has_open(40_001), "{port}");
    }
    sim.advance(end - sim.now() - Duration::from_millis(500));
    assert!(sim.has_open(40_001) && sim.lists_ended(40_001));
    sim.wait(1);
    assert!(!sim.has_open(40_001) && !sim.lists_ended(40_001));
}

#[test]
fn an_unused_pinhole_ends_with_its_session_a_later_one_or_the_policy() {
    let denies = Policy { deny_ports: [40_001..=40_001].into(), ..Policy::default() };
    type End<'a> = &'a dyn Fn(&mut Sim);
    let ends: [(&str, End<'_>); 5] = [
        ("a later announcement", &|sim| assert!(sim.start_transfer(40_002))),
        ("its end", &Sim::close_both),
        ("a removal", &Sim::forget),
        ("a reload", &|sim| sim.reload(denies.clone())),
        ("the end of all", &|sim| sim.engine().sessions.close_all_pinholes()),
    ];
    for (why, end) in ends {
        let mut sim = with_early_end(4, 40_001);
        end(&mut sim);
        sim.settle();
        sim.expire();
        assert!(!sim.has_open(40_001), "{why}");
    }
}

/// It prevents no other one, and the client has no more open than its limit.
#[test]
fn an_ended_transfers_pinhole_is_evicted_at_the_clients_limit() {
    let mut sim = with_early_end(2, 40_001);
    for (port, is_opened, has_first) in
        [(40_002, true, true), (40_003, true, false), (40_004, false, false)]
    {
        sim.log_in_again();
        assert_eq!((sim.start_transfer(port), sim.has_open(40_001)), (is_opened, has_first));
    }
}

/// An earlier session announces the port that a later one has used.
#[test]
fn a_restored_pinhole_replaces_earlier_ones_with_its_endpoints() {
    let mut sim = limited(4);
    let mut earlier = sim.log_in_again();
    assert!(sim.start_transfer(40_001));
    sim.use_port(40_001);
    sim.switch(&mut earlier);
    sim.exchange(&sim.active(40_001)[0], "200 ok\r\n");
    assert!(sim.has_open(40_001));
    sim.crash();
    sim.switch(&mut earlier);
    sim.play("< 226 done");
    sim.tell(Client, &sim.active(40_002)[0]);
    assert!(sim.has_open(40_001) && sim.has_open(40_002));
    sim.wait(9);
    assert!(sim.has_open(40_001));
}

/// After a restart that lasted so long, or where the transfer is requested late.
#[test]
fn a_pinhole_is_renewed_that_was_not_renewed_in_time() {
    for restarts in [false, true] {
        let mut sim = limited(1);
        sim.exchange(&sim.active(40_001)[0], "200 ok\r\n");
        if restarts {
            sim.play("> RETR x");
            sim.crash_for(Duration::from_secs(28));
            sim.expire();
        } else {
            sim.wait(28);
            assert_eq!(sim.kernel.renewals, 0);
            sim.play("> RETR x");
        }
        assert_eq!(sim.kernel.renewals, 1, "{restarts}");
        sim.wait(20);
        assert_eq!(sim.listed(), 1);
    }
}

#[test]
fn a_pinhole_with_a_short_lifetime_is_renewed() {
    for seconds in [1, 2, 3, 5, 30] {
        let mut sim = limited(2);
        sim.reload(Policy { pinhole_timeout: Duration::from_secs(seconds), ..Policy::default() });
        assert!(sim.start_transfer(40_001));
        let interval = sim.engine().sessions.expiry_interval();
        let end = sim.now() + Duration::from_secs(100);
        while sim.now() < end {
            sim.advance(interval);
            let [(_, deadline)] = sim.kernel.open[..] else { panic!("{seconds}") };
            assert!(deadline >= sim.now() + interval, "{seconds}: {deadline:?}");
        }
        assert_eq!(sim.listed(), 1);
    }
}

/// A pinhole that nobody was to use says nothing about firewalls.
#[test]
fn a_pinhole_whose_command_was_refused_does_not_count_as_unused() {
    let (refused, expired) = ("pinhole-closed", "pinhole-expired");
    for (script, expected) in [
        ("> RETR a < 550 no", refused),
        ("> RETR a < 450 no > NOOP < 200 ok", refused),
        ("> NOOP < 200 ok", expired),
        // It did not arrive in time.
        ("> RETR a < 425 no", expired),
        ("> RETR a < 150 x < 426 y", expired),
        // The client uses the same port again.
        ("> RETR a < 550 no > RETR b < 425 no", expired),
        ("> RETR a < 425 no > RETR b < 550 no", refused),
    ] {
        let mut sim = limited(2);
        sim.play(&format!("> PASV < 227 ok (203,0,113,9,195,80) {script}"));
        sim.take_events();
        assert_eq!(sim.listed(), 1, "{script}: it stays open");
        sim.advance(Duration::from_secs(60));
        let names = sim.take_events().into_iter().map(|event| event.kind.name());
        let names: Vec<_> = names.filter(|name| name.starts_with("pinhole-")).collect();
        assert_eq!(names, [expected], "{script}");
    }
}

/// Another session of the same client announces a port whose transfer is over.
#[test]
fn a_port_that_another_session_takes_over_is_listed_once() {
    let mut sim = with_early_end(2, 3762);
    assert_eq!((sim.listed(), sim.lists_ended(3762)), (0, true));
    sim.log_in_again();
    assert!(sim.start_transfer(3762));
    assert_eq!((sim.listed(), sim.lists_ended(3762), sim.kernel.open.len()), (1, false, 1));
}
