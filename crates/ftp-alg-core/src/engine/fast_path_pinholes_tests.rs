//! Pinholes of the BPF program that move to the rules.

use super::*;

impl Conversation {
    /// A conversation with a pinhole of the BPF program that opened again, because its data connection was refused. The
    /// record of its session was written before.
    fn with_reopened_pinhole() -> (Self, Vec<u8>) {
        let mut talk = Self::handed_over();
        talk.gateway.engine.sessions.track_changes(talk.now);
        let (IpAddr::V4(client), IpAddr::V4(server)) = (talk.client.ip(), talk.server.ip()) else {
            panic!()
        };
        talk.fast_path_line(1, PASV[0], false);
        let reply = "227 Entering Passive Mode (203,0,113,9,78,53)\r\n";
        talk.fast_path_line(2, (Side::Server, reply), true);
        assert!(talk.is_handed_over());
        talk.gateway.kernel.open.clear();
        let record = talk.record();
        let rst = PacketBuilder::ipv4(server.octets(), client.octets(), 64).tcp(20_021, 4711, 0, 0);
        let mut bytes = Vec::new();
        rst.ack(1).rst().write(&mut bytes, b"").unwrap();
        talk.gateway.queued(talk.now, &bytes, PacketMeta::default());
        assert_eq!(talk.gateway.kernel.open.len(), 1);
        (talk, record)
    }

    fn record(&mut self) -> Vec<u8> {
        let mut record = Vec::new();
        let sessions = &mut self.gateway.engine.sessions;
        sessions.write_all_records(|session| record = session.to_vec()).unwrap();
        record
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
    let mut next = Engine::new(Policy::default(), Checksums::Verify);
    next.sessions.restore([&record[..]].into_iter(), talk.now, talk.now).unwrap();
    assert_in_rules(&next.sessions, talk.now);

    talk.fast_path_line(3, (Side::Client, "RETR second\r\n"), false);
    talk.now += Duration::from_secs(28);
    talk.gateway.expire(talk.now);
    let [renewal] = &talk.gateway.kernel.renewals[..] else { panic!() };
    assert_eq!(renewal.fast_path, None);
    // It is closed in the rules.
    talk.fast_path_line(4, (Side::Server, "426 closed\r\n"), false);
    talk.now += Duration::from_secs(31);
    talk.gateway.expire(talk.now);
    assert_eq!(talk.gateway.kernel.open, []);
}

#[test]
fn a_restored_pinhole_is_where_the_kernel_has_it() {
    let (talk, record) = Conversation::with_reopened_pinhole();
    for is_in_rules in [false, true] {
        let mut next = Engine::new(Policy::default(), Checksums::Verify);
        next.sessions.restore([&record[..]].into_iter(), talk.now, talk.now).unwrap();
        next.sessions.record_rule_pinholes(|initiator, arrival| {
            is_in_rules
                && (initiator, arrival) == (talk.client.ip(), "203.0.113.9:20021".parse().unwrap())
        });
        assert_eq!(next.sessions.rule_pinholes().count(), usize::from(is_in_rules));
        assert_eq!(next.sessions.fast_path_pinholes().count(), usize::from(!is_in_rules));
    }
}
