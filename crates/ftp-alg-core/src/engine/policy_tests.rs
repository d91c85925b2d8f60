//! Policies that change while sessions go on.

use super::*;

#[test]
fn a_new_policy_closes_the_pinholes_that_it_forbids() {
    let denies = |deny_ports: [std::ops::RangeInclusive<u16>; 1]| Policy {
        deny_ports: deny_ports.into(),
        ..Policy::default()
    };
    for (policy, stays) in [
        (Policy { min_data_port: 3762, ..Policy::default() }, true),
        (denies([3763..=4000]), true),
        (Policy { min_data_port: 3763, ..Policy::default() }, false),
        (denies([3000..=3762]), false),
    ] {
        let mut talk = Conversation::logged_in();
        talk.play("> PORT 192,168,150,80,14,178");
        talk.set_policy(policy);
        let is_open = !talk.gateway.kernel.open.is_empty();
        let is_listed = talk.gateway.engine.sessions.list_pinholes().next().is_some();
        assert_eq!((is_open, is_listed), (stays, stays));
    }
}

#[test]
fn a_policy_that_requires_a_login_closes_the_pinholes_of_sessions_without_one() {
    let requires_login = |require_login| Policy { require_login, ..Policy::default() };
    for (logs_in, stays) in [(false, false), (true, true)] {
        let mut talk = Conversation::masqueraded();
        talk.set_policy(requires_login(false));
        talk.play("< 220 ready");
        if logs_in {
            talk.play("> USER u < 230 ok");
        }
        talk.play("> PORT 192,168,150,80,14,178");
        assert_eq!(talk.gateway.kernel.open.len(), 1);
        talk.set_policy(requires_login(true));
        assert_eq!(!talk.gateway.kernel.open.is_empty(), stays);
    }
}
