//! The back end that `auto` selects: `nftables` (sets) has the fast path, and its data connections have our ct mark.
//! With `conntrack` (expectations) they have the mark and are `related` as well, so a firewall accepts no fewer of them.
//! It needs a kernel that supports helpers in user space.

use ftp_alg_firewall::AcceptedData;

use super::{parameters::Backend, probe::ConntrackAbilities};

/// Why the back end stays that of the run before.
const OF_RESTORED: &str = "sessions that were restored at the start had it";

/// The back end that `auto` selects here, and why. `before` is the back end of the run before, which restored sessions
/// keep, if there are any. `accepted` says which data connections the firewall accepts; `None` if that is not known.
pub fn automatic_backend(
    before: Option<Backend>,
    has_sessions: bool,
    accepted: impl FnOnce() -> Option<AcceptedData>,
) -> (Backend, &'static str) {
    choose_backend(
        before,
        has_sessions,
        || ConntrackAbilities::read().supports_expectations(),
        ConntrackAbilities::supports_own_helper,
        accepted,
    )
}

/// As [`automatic_backend`]. `is_possible` says whether the kernel accepts expectations with any helper, `is_good`
/// whether with our own.
fn choose_backend(
    before: Option<Backend>,
    has_sessions: bool,
    is_possible: impl FnOnce() -> bool,
    is_good: impl FnOnce() -> bool,
    accepted: impl FnOnce() -> Option<AcceptedData>,
) -> (Backend, &'static str) {
    match before {
        Some(Backend::Nftables) if has_sessions => (Backend::Nftables, OF_RESTORED),
        Some(Backend::Conntrack) if has_sessions && is_possible() => {
            (Backend::Conntrack, OF_RESTORED)
        }
        _ => match accepted() {
            Some(AcceptedData::Marked) => {
                (Backend::Nftables, "no rule drops data connections that have the mark")
            }
            Some(AcceptedData::Nothing) => (
                Backend::Nftables,
                "the firewall accepts no data connections: it lacks the accept rule",
            ),
            _ if !is_good() => (Backend::Nftables, "this kernel has no nfnetlink_cthelper"),
            Some(AcceptedData::Related) => (
                Backend::Conntrack,
                "a rule may drop data connections that are not related: with the accept rule at the start of its chain, \
                 and a restart, nftables and its fast path are possible",
            ),
            None => match before {
                Some(before) => (before, "as before: the firewall's rules could not be read"),
                None => (Backend::Conntrack, "the firewall's rules could not be read"),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(before: Option<Backend>, is_possible: bool, is_good: bool) -> Backend {
        let accepted = || Some(AcceptedData::Related);
        choose_backend(before, before.is_some(), || is_possible, || is_good, accepted).0
    }

    #[test]
    fn expectations_need_a_helper_in_user_space() {
        assert_eq!(choice(None, true, true), Backend::Conntrack);
        assert_eq!(choice(None, true, false), Backend::Nftables);
        assert_eq!(choice(None, false, false), Backend::Nftables);
    }

    #[test]
    fn the_rules_decide_and_the_run_before_if_they_come_late() {
        use Backend::{Conntrack, Nftables};
        for (before, accepted, backend) in [
            (None, Some(AcceptedData::Marked), Nftables),
            (None, Some(AcceptedData::Related), Conntrack),
            (None, Some(AcceptedData::Nothing), Nftables),
            (None, None, Conntrack),
            (Some(Nftables), Some(AcceptedData::Related), Conntrack),
            (Some(Conntrack), Some(AcceptedData::Marked), Nftables),
            (Some(Nftables), None, Nftables),
            (Some(Conntrack), None, Conntrack),
        ] {
            let chosen = choose_backend(before, false, || true, || true, || accepted).0;
            assert_eq!(chosen, backend, "{before:?} {accepted:?}");
        }
    }

    /// What the firewall accepts, unless that leaves conntrack alone.
    #[test]
    fn a_kernel_without_helpers_is_the_reason_only_where_they_would_be_used() {
        for (accepted, reason) in [
            (Some(AcceptedData::Marked), "no rule drops data connections that have the mark"),
            (Some(AcceptedData::Nothing), "the firewall accepts no data connections"),
            (Some(AcceptedData::Related), "this kernel has no nfnetlink_cthelper"),
            (None, "this kernel has no nfnetlink_cthelper"),
        ] {
            let (backend, why) = choose_backend(None, false, || true, || false, || accepted);
            assert_eq!(backend, Backend::Nftables);
            assert!(why.starts_with(reason), "{accepted:?}: {why}");
        }
    }

    #[test]
    fn sessions_keep_their_back_end_where_the_kernel_has_it() {
        assert_eq!(choice(Some(Backend::Nftables), true, true), Backend::Nftables);
        assert_eq!(choice(Some(Backend::Conntrack), true, false), Backend::Conntrack);
        assert_eq!(choice(Some(Backend::Conntrack), false, false), Backend::Nftables);
    }
}
