//! The back end that `auto` selects: `nftables` (sets) has the fast path, and its data connections have our ct mark.
//! With `conntrack` (expectations) data connections have the mark and are `related` as well, so a firewall accepts no
//! fewer of them. This back end needs a kernel that supports helpers in user space.

use ftp_alg_firewall::AcceptedData;

use super::{parameters::Backend, probe::ConntrackAbilities};

/// Why the back end stays that of the run before.
const OF_RESTORED: &str = "sessions that were restored at the start had it";

/// The back end that `auto` selects here, and why. `before` is the back end of the run before. Restored sessions, if
/// there are any, keep it. `accepted` says which data connections the firewall accepts; `None` if that is not known.
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

    use AcceptedData::{Marked, Nothing, Related};
    use Backend::{Conntrack, Nftables};

    /// What the firewall accepts decides, and the run before if its rules come late. Expectations need a helper.
    #[test]
    fn the_rules_and_the_kernel_decide() {
        let lacks_helper = "this kernel has no nfnetlink_cthelper";
        for (before, accepted, is_good, backend, reason) in [
            (None, Some(Marked), true, Nftables, "no rule drops data connections"),
            (None, Some(Related), true, Conntrack, "a rule may drop data connections"),
            (None, Some(Nothing), true, Nftables, "the firewall accepts no data connections"),
            (None, None, true, Conntrack, "the firewall's rules could not be read"),
            (Some(Nftables), Some(Related), true, Conntrack, "a rule may drop"),
            (Some(Conntrack), Some(Marked), true, Nftables, "no rule drops"),
            (Some(Nftables), None, true, Nftables, "as before"),
            (Some(Conntrack), None, true, Conntrack, "as before"),
            (None, Some(Marked), false, Nftables, "no rule drops data connections"),
            (None, Some(Nothing), false, Nftables, "the firewall accepts no data connections"),
            (None, Some(Related), false, Nftables, lacks_helper),
            (None, None, false, Nftables, lacks_helper),
        ] {
            let (chosen, why) = choose_backend(before, false, || is_good, || is_good, || accepted);
            assert_eq!(chosen, backend, "{before:?} {accepted:?}");
            assert!(why.starts_with(reason), "{before:?} {accepted:?}: {why}");
        }
    }

    #[test]
    fn sessions_keep_their_back_end_where_the_kernel_has_it() {
        for (before, is_possible, is_good, backend) in [
            (Nftables, true, true, Nftables),
            (Conntrack, true, false, Conntrack),
            (Conntrack, false, false, Nftables),
        ] {
            let related = || Some(Related);
            let chosen = choose_backend(Some(before), true, || is_possible, || is_good, related).0;
            assert_eq!(chosen, backend);
        }
    }
}
