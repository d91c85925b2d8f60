//! The back end that `auto` selects: `nftables` (sets) has the fast path, and its data connections have our ct mark.
//! With `conntrack` (expectations) they are also `related`, which many firewalls accept, if the kernel supports helpers
//! in user space. So the operator's rules decide between them.

use super::{
    Backend, ConntrackAbilities,
    firewall::{DataPathVerdict, Firewall, PacketClass},
};

/// The data connections that the firewall lets pass at all hooks that they use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassingData {
    marked: bool,
    related: bool,
}

impl PassingData {
    /// Summarises the verdicts of a firewall; `None` if not all of its rules could be read.
    pub fn new(firewall: &Firewall, paths: &[DataPathVerdict]) -> Option<Self> {
        let pass = |class| {
            let used = paths.iter().filter(|path| path.is_used_by(class));
            used.filter_map(|path| path.verdict_for(class)).all(|verdict| verdict.passes())
        };
        firewall.read_errors().is_empty().then(|| Self {
            marked: pass(PacketClass::MarkedData),
            related: pass(PacketClass::RelatedData),
        })
    }
}

/// The back end that `auto` selects here, and why. `before` is the back end of restored sessions, if there are any.
pub fn automatic_backend(
    before: Option<Backend>,
    passing: impl FnOnce() -> Option<PassingData>,
) -> (Backend, &'static str) {
    choose_backend(
        before,
        || ConntrackAbilities::read().supports_expectations(),
        ConntrackAbilities::supports_own_helper,
        passing,
    )
}

/// As [`automatic_backend`]. `is_possible` says whether the kernel accepts expectations with any helper, `is_good`
/// whether with our own.
fn choose_backend(
    before: Option<Backend>,
    is_possible: impl FnOnce() -> bool,
    is_good: impl FnOnce() -> bool,
    passing: impl FnOnce() -> Option<PassingData>,
) -> (Backend, &'static str) {
    match before {
        Some(Backend::Nftables) => {
            return (Backend::Nftables, "sessions go on that began with it");
        }
        Some(Backend::Conntrack) if is_possible() => {
            return (Backend::Conntrack, "sessions go on that began with it");
        }
        _ if !is_good() => {
            return (Backend::Nftables, "this kernel has no nfnetlink_cthelper");
        }
        _ => {}
    }
    match passing() {
        Some(PassingData { marked: true, .. }) => {
            (Backend::Nftables, "the firewall accepts the mark of data connections")
        }
        Some(PassingData { related: true, .. }) => (
            Backend::Conntrack,
            "the firewall accepts related connections, but not the mark of data connections: with the accept rule, and \
             a restart, nftables and its fast path are possible",
        ),
        Some(_) => {
            (Backend::Nftables, "the firewall accepts no data connections: it lacks the accept rule")
        }
        None => (Backend::Conntrack, "the firewall's rules could not be read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEITHER: PassingData = PassingData { marked: false, related: false };

    fn choice(before: Option<Backend>, is_possible: bool, is_good: bool) -> Backend {
        let passing = || Some(PassingData { related: true, ..NEITHER });
        choose_backend(before, || is_possible, || is_good, passing).0
    }

    #[test]
    fn expectations_need_a_helper_in_user_space() {
        assert_eq!(choice(None, true, true), Backend::Conntrack);
        assert_eq!(choice(None, true, false), Backend::Nftables);
        assert_eq!(choice(None, false, false), Backend::Nftables);
    }

    #[test]
    fn the_rules_decide() {
        for (passing, backend) in [
            (Some(PassingData { marked: true, related: true }), Backend::Nftables),
            (Some(PassingData { marked: true, ..NEITHER }), Backend::Nftables),
            (Some(PassingData { related: true, ..NEITHER }), Backend::Conntrack),
            (Some(NEITHER), Backend::Nftables),
            (None, Backend::Conntrack),
        ] {
            assert_eq!(
                choose_backend(None, || true, || true, || passing).0,
                backend,
                "{passing:?}"
            );
        }
    }

    #[test]
    fn sessions_keep_their_back_end_where_the_kernel_has_it() {
        assert_eq!(choice(Some(Backend::Nftables), true, true), Backend::Nftables);
        assert_eq!(choice(Some(Backend::Conntrack), true, false), Backend::Conntrack);
        assert_eq!(choice(Some(Backend::Conntrack), false, false), Backend::Nftables);
    }
}
