//! Pinholes of the BPF program that follow one of the rules with the same endpoints, or are restored.

use super::*;

#[test]
fn a_restored_pinhole_is_where_the_kernel_has_it() {
    let mut talk = Conversation::handed_over();
    talk.gateway.engine.sessions.track_changes(talk.now);
    talk.fast_path(1, PASV_OPENED);
    assert!(talk.is_handed_over());
    let record = talk.record();
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

/// A transfer that the queue inspected: its pinhole is closed a second later, or with the next one.
#[test]
fn a_consumed_pinhole_of_the_queue_is_replaced() {
    let mut talk = Conversation::handed_over();
    assert_eq!(talk.gateway.kernel.open.len(), 1);
    talk.fast_path(1, &format!("{PASV} @opened"));
    talk.now += Duration::from_secs(2);
    talk.gateway.expire(talk.now);
    assert_eq!(talk.gateway.kernel.open, []);
    assert_eq!(talk.pinholes().len(), 1);
}
