//! Which pinholes count as open: a preliminary reply says only that the server is about to connect.

use super::*;

impl Conversation {
    /// A conversation whose client may have `limit` open pinholes.
    fn with_limit(limit: usize) -> Self {
        let policy = Policy { max_pinholes_per_client: limit, ..Policy::default() };
        let mut talk = Self::under(policy);
        talk.gateway.kernel.translation = None;
        talk.log_in()
    }

    /// The next control connection of the same client.
    pub(super) fn connect_again(mut self) -> Self {
        self.client.set_port(self.client.port() + 1);
        (self.next, self.received) = ([100, 500], [500, 100]);
        let syn_ack = self.syn_ack();
        self.pass(&syn_ack);
        self.log_in()
    }

    /// Announces a port and starts a transfer, up to the preliminary reply. Returns whether the pinhole was opened.
    fn start_transfer(&mut self, port: u16) -> bool {
        let [high, low] = port.to_be_bytes();
        let (_, forwarded) =
            self.say(Side::Client, &format!("PORT 192,168,150,80,{high},{low}\r\n"));
        let is_open = forwarded.starts_with("PORT");
        if is_open {
            self.play("< 200 ok > RETR x < 150 wait");
        }
        is_open
    }

    fn listed(&self) -> usize {
        self.gateway.engine.sessions.list_pinholes().count()
    }

    /// Time passes, and the engine renews and closes what is due.
    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            self.gateway.expire(self.now);
        }
    }
}

#[test]
fn a_consumed_pinhole_does_not_count_once_the_limit_is_reached() {
    let mut talk = Conversation::with_limit(2);
    for port in 40_001..40_100 {
        assert!(talk.start_transfer(port), "{port}");
        assert!(talk.listed() <= 2);
        talk.gateway.kernel.open.clear(); // its data connection has come
        talk.now += Duration::from_millis(10);
        talk = talk.connect_again();
    }
    let lookups = talk.gateway.kernel.consumed_lookups;
    assert!((40..=50).contains(&lookups), "{lookups}");
}

impl Conversation {
    /// A conversation whose transfer has ended, although its data connection, to this port, has not come.
    fn with_early_end(limit: usize, port: u16) -> Self {
        let mut talk = Self::with_limit(limit);
        assert!(talk.start_transfer(port));
        talk.play("< 226 done");
        talk
    }

    /// Whether this pinhole of an ended transfer is listed.
    fn lists_ended(&self, port: u16) -> bool {
        let mut ended = self.gateway.engine.sessions.list_ended_pinholes(self.now);
        ended.any(|info| info.ends.arrival.port() == port)
    }

    fn has_open(&self, port: u16) -> bool {
        self.gateway.kernel.open.iter().any(|pinhole| pinhole.arrival.port() == port)
    }

    /// Another session of the client announces this port, which is used, and ends.
    fn pass_other_session(self, port: u16) -> Self {
        let mut other = self.connect_again();
        assert!(other.start_transfer(port));
        other.gateway.kernel.open.retain(|pinhole| pinhole.arrival.port() != port);
        other.play("< 226 done");
        other.end();
        other
    }
}

/// The reply of an earlier transfer may come late, and a server may end a transfer before its client has connected.
#[test]
fn an_unused_pinhole_outlives_the_last_reply_for_a_while() {
    let mut talk = Conversation::with_early_end(4, 40_001);
    for port in 40_002..40_040 {
        talk = talk.pass_other_session(port);
        assert!(talk.has_open(40_001), "{port}");
    }
    talk.wait(7);
    assert!(talk.has_open(40_001) && talk.lists_ended(40_001));
    talk.wait(1);
    assert!(!talk.has_open(40_001) && !talk.lists_ended(40_001));
}

#[test]
fn an_unused_pinhole_ends_with_its_session_a_later_one_or_the_policy() {
    let denies = Policy { deny_ports: [40_001..=40_001].into(), ..Policy::default() };
    type End<'a> = &'a dyn Fn(&mut Conversation);
    let ends: [(&str, End<'_>); 5] = [
        ("a later announcement", &|talk| assert!(talk.start_transfer(40_002))),
        ("its end", &Conversation::end),
        ("a removal", &|talk| {
            let (client, server) = (talk.client, talk.server);
            talk.gateway.run(talk.now, |engine, _| engine.sessions.forget_between(client, server));
        }),
        ("a reload", &|talk| talk.set_policy(denies.clone())),
        ("the end of all", &|talk| {
            talk.gateway.run(talk.now, |engine, _| engine.sessions.close_all_pinholes());
        }),
    ];
    for (why, end) in ends {
        let mut talk = Conversation::with_early_end(4, 40_001);
        end(&mut talk);
        assert!(!talk.has_open(40_001), "{why}");
    }
}

/// It prevents no other one, and the client has no more open than its limit.
#[test]
fn an_ended_transfers_pinhole_is_evicted_at_the_clients_limit() {
    let talk = Conversation::with_early_end(2, 40_001);
    let mut talk = talk.connect_again();
    assert!(talk.start_transfer(40_002) && talk.has_open(40_001));
    talk = talk.connect_again();
    assert!(talk.start_transfer(40_003) && !talk.has_open(40_001));
    talk = talk.connect_again();
    assert!(!talk.start_transfer(40_004));
}

/// An earlier session announces the port that a later one has used.
#[test]
fn a_restored_pinhole_replaces_earlier_ones_with_its_endpoints() {
    let talk = Conversation::with_limit(4);
    let (client, next, received) = (talk.client, talk.next, talk.received);
    let mut talk = talk.connect_again();
    assert!(talk.start_transfer(40_001));
    talk.gateway.kernel.open.clear();
    let later = (talk.client, talk.next, talk.received);
    (talk.client, talk.next, talk.received) = (client, next, received);
    talk.play("> PORT 192,168,150,80,156,65 < 200 ok");
    assert!(talk.has_open(40_001));
    let records = talk.records();
    let policy = Policy { max_pinholes_per_client: 4, ..Policy::default() };
    talk.gateway.engine = talk.restored(policy, records.iter().map(Vec::as_slice));
    (talk.client, talk.next, talk.received) = later;
    talk.play("< 226 done > PORT 192,168,150,80,156,66");
    assert!(talk.has_open(40_001) && talk.has_open(40_002));
    talk.wait(9);
    assert!(talk.has_open(40_001));
}

impl Conversation {
    /// The daemon restarts, and is back after some seconds.
    fn restart(&mut self, seconds: u64) {
        let (record, epoch) = (self.record(), self.now);
        self.now += Duration::from_secs(seconds);
        let policy = self.gateway.engine.sessions.policy().clone();
        self.gateway.engine = Engine::new(policy, Checksums::Verify);
        let records = [&record[..]].into_iter();
        self.gateway.engine.sessions.restore(records, self.now, epoch).unwrap();
        self.gateway.expire(self.now);
    }
}

#[test]
fn a_pinhole_is_renewed_that_no_daemon_could_renew_in_time() {
    let mut talk = Conversation::with_limit(1);
    talk.play("> PORT 192,168,150,80,156,65 < 200 ok > RETR x");
    talk.restart(28);
    assert_eq!(talk.gateway.kernel.renewals.len(), 1);
}

#[test]
fn a_transfer_that_is_requested_late_renews_its_pinhole() {
    let mut talk = Conversation::with_limit(1);
    talk.play("> PORT 192,168,150,80,156,65 < 200 ok");
    talk.wait(28);
    assert_eq!(talk.gateway.kernel.renewals.len(), 0);
    talk.play("> RETR x");
    assert_eq!(talk.gateway.kernel.renewals.len(), 1);
    talk.wait(20);
    assert_eq!(talk.listed(), 1);
}

#[test]
fn a_pinhole_with_a_short_lifetime_is_renewed() {
    for seconds in [1, 2, 3, 5, 30] {
        let lifetime = Duration::from_secs(seconds);
        let mut talk = Conversation::with_limit(2);
        talk.set_policy(Policy { pinhole_timeout: lifetime, ..Policy::default() });
        assert!(talk.start_transfer(40_001));
        let interval = talk.gateway.engine.sessions.expiry_interval();
        let (start, mut deadline) = (talk.now, talk.now + lifetime);
        while talk.now < start + Duration::from_secs(100) {
            talk.now += interval;
            talk.gateway.expire(talk.now);
            if !talk.gateway.kernel.renewals.is_empty() {
                assert!(deadline - talk.now >= interval, "{seconds}: late");
                talk.gateway.kernel.renewals.clear();
                deadline = talk.now + lifetime;
            }
            assert!(talk.now < deadline, "{seconds}: it expired");
        }
        assert_eq!(talk.listed(), 1);
    }
}

/// A pinhole that nobody was to use says nothing about firewalls.
#[test]
fn a_pinhole_whose_command_was_refused_does_not_count_as_unused() {
    let pasv = "> PASV < 227 ok (203,0,113,9,195,80)";
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
        let mut talk = Conversation::logged_in();
        talk.play(&format!("{pasv} {script}"));
        talk.gateway.take_events();
        let open = talk.gateway.engine.sessions.list_pinholes().count();
        assert_eq!(open, 1, "{script}: it stays open");
        talk.now += Duration::from_secs(60);
        talk.gateway.expire(talk.now);
        let (events, _) = talk.gateway.take_events();
        let names = events.iter().map(|event| event.kind.name());
        let names: Vec<_> = names.filter(|name| name.starts_with("pinhole-")).collect();
        assert_eq!(names, [expected], "{script}");
    }
}

/// Another session of the same client announces a port whose transfer is over.
#[test]
fn a_port_that_another_session_takes_over_is_listed_once() {
    let mut talk = Conversation::with_limit(2);
    assert!(talk.start_transfer(3762));
    talk.play("< 226 done");
    let ended =
        |talk: &Conversation| talk.gateway.engine.sessions.list_ended_pinholes(talk.now).count();
    assert_eq!((talk.listed(), ended(&talk)), (0, 1));
    talk = talk.connect_again();
    assert!(talk.start_transfer(3762));
    assert_eq!((talk.listed(), ended(&talk), talk.gateway.kernel.open.len()), (1, 0, 1));
}
