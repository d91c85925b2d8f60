//! Pinholes of the BPF program that move to the rules, or follow one of the rules with the same endpoints.

use super::*;

impl Conversation {
    /// A conversation with a pinhole of the BPF program that opened again, because its data connection was refused. The
    /// record of its session was written before.
    fn with_reopened_pinhole() -> (Self, Vec<u8>) {
        let mut talk = Self::handed_over();
        talk.gateway.engine.sessions.track_changes(talk.now);
        talk.fast_path(1, PASV_OPENED);
        assert!(talk.is_handed_over());
        talk.gateway.kernel.open.clear();
        let record = talk.record();
        talk.refuse_passive(20_021);
        assert_eq!(talk.gateway.kernel.open.len(), 1);
        (talk, record)
    }

    /// The server's RST to a SYN of the client to this port.
    fn refuse_passive(&mut self, port: u16) {
        let rst = self.passive_rst(port);
        self.gateway.queued(self.now, &rst, PacketMeta::default());
    }

    fn passive_rst(&self, port: u16) -> Vec<u8> {
        self.rst(Side::Server, [port, 4711], 0, Some(1))
    }
}

#[track_caller]
fn assert_in_rules(sessions: &Sessions, now: Instant) {
    assert_eq!(sessions.rule_pinholes().count(), 1);
    assert_eq!(sessions.fast_path_pinholes().count(), 0);
    assert_eq!(sessions.missing_pinholes(now, |_| true).count(), 1);
}

#[test]
fn a_pinhole_that_opened_again_is_one_of_the_rules() {
    let (mut talk, _) = Conversation::with_reopened_pinhole();
    assert_in_rules(&talk.gateway.engine.sessions, talk.now);
    let record = talk.record();
    let next = talk.restored(Policy::default(), [&record[..]].into_iter());
    assert_in_rules(&next.sessions, talk.now);

    talk.fast_path(3, "> RETR second");
    talk.now += Duration::from_secs(28);
    talk.gateway.expire(talk.now);
    let [renewal] = &talk.gateway.kernel.renewals[..] else { panic!() };
    assert_eq!(renewal.fast_path, None);
    // It is closed in the rules.
    talk.fast_path(4, "< 426 closed");
    talk.now += Duration::from_secs(31);
    talk.gateway.expire(talk.now);
    assert_eq!(talk.gateway.kernel.open, []);
}

#[test]
fn a_restored_pinhole_is_where_the_kernel_has_it() {
    let (talk, record) = Conversation::with_reopened_pinhole();
    for is_in_rules in [false, true] {
        let mut next = talk.restored(Policy::default(), [&record[..]].into_iter());
        next.sessions.record_rule_pinholes(|initiator, arrival| {
            is_in_rules
                && (initiator, arrival) == (talk.client.ip(), "203.0.113.9:20021".parse().unwrap())
        });
        assert_eq!(next.sessions.rule_pinholes().count(), usize::from(is_in_rules));
        assert_eq!(next.sessions.fast_path_pinholes().count(), usize::from(!is_in_rules));
    }
}

/// A server with one passive port that announces before it listens. The engine may read all lines from one announcement
/// to the next at once.
#[test]
fn a_later_announcement_of_the_same_endpoints_replaces_a_reopened_pinhole() {
    let transfer = "> RETR second < 150 here < 226 done ";
    for (before, is_consumed) in [(transfer, true), (transfer, false), ("", false)] {
        for at_once in [true, false] {
            let (mut talk, _) = Conversation::with_reopened_pinhole();
            if is_consumed {
                talk.gateway.kernel.open.clear();
            }
            let script = format!("{before}{PASV_OPENED}");
            if at_once {
                talk.read_fast_path(3, &messages(&script));
            } else {
                talk.fast_path(3, &script);
            }
            assert!(talk.is_handed_over());
            assert_eq!(talk.gateway.kernel.open, [], "the older one is closed");
            assert_eq!(talk.pinholes().len(), 1);
            talk.now += Duration::from_secs(2);
            talk.gateway.expire(talk.now);
            assert_eq!(talk.gateway.engine.sessions.fast_path_pinholes().count(), 1);
            talk.refuse_passive(20_021);
            assert_in_rules(&talk.gateway.engine.sessions, talk.now);
            talk.gateway.expire(talk.now);
            assert_eq!(talk.gateway.kernel.open.len(), 1, "it opens again");
        }
    }
}

/// The older one is still open in the rules, and would expire earlier.
#[test]
fn a_pinhole_opens_again_after_the_older_one_is_closed() {
    let (mut talk, _) = Conversation::with_reopened_pinhole();
    talk.now += Duration::from_secs(29);
    let opened = talk.gateway.kernel.opened;
    let (now, rst) = (talk.now, talk.passive_rst(20_021));
    let said = messages(PASV_OPENED);
    let lines = talk.next_lines(3, &said);
    talk.gateway.run(now, |engine, effects| {
        engine.read_fast_path_lines(lines.into_iter(), effects);
        let (token, meta) = (Token::default(), PacketMeta::default());
        engine.take(now, std::iter::once(QueuedPacket { token, bytes: &rst, meta }), effects);
    });
    assert_in_rules(&talk.gateway.engine.sessions, now);
    assert_eq!((talk.gateway.kernel.open.len(), talk.gateway.kernel.opened), (1, opened + 1));
}

/// A transfer that the queue inspected: its pinhole is closed a second later, or with the next one.
#[test]
fn a_consumed_pinhole_of_the_queue_is_replaced() {
    for is_refused in [false, true] {
        let mut talk = Conversation::handed_over();
        assert_eq!(talk.gateway.kernel.open.len(), 1);
        talk.fast_path(1, &format!("{PASV} @opened"));
        if is_refused {
            talk.refuse_passive(20_020);
        }
        talk.now += Duration::from_secs(2);
        talk.gateway.expire(talk.now);
        assert_eq!(talk.gateway.kernel.open.len(), usize::from(is_refused));
        assert_eq!(talk.pinholes().len(), 1);
    }
}
