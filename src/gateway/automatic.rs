//! The back end that `auto` selects: `nftables` (sets) has the fast path, and its data connections have our ct mark.
//! With `conntrack` (expectations) they are also `related`, which many firewalls accept, if the kernel supports helpers
//! in user space. So the operator's rules decide between them.

use std::{sync::mpsc, thread, time::Duration};

use super::{
    Backend, ConntrackAbilities, Routing, RuleParameters,
    firewall::{DataPathVerdict, Firewall, PacketClass, data_path_verdicts},
};

/// How long the rules are waited for. Packets wait in the queue meanwhile.
const READING_LIMIT: Duration = Duration::from_secs(1);

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

    /// Reads the rules of this network namespace; `None` if that fails, or takes too long.
    pub fn read(parameters: &RuleParameters) -> Option<Self> {
        let (sender, receiver) = mpsc::channel();
        let parameters = parameters.clone();
        thread::spawn(move || {
            let firewall = Firewall::read_without_texts();
            let routing = Routing::read(parameters.control_ports());
            let paths = data_path_verdicts(&firewall, routing, &parameters);
            let _ = sender.send(Self::new(&firewall, &paths));
        });
        receiver.recv_timeout(READING_LIMIT).ok().flatten()
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
            (Backend::Nftables, "the firewall lets data connections with our mark pass")
        }
        Some(PassingData { related: true, .. }) => (
            Backend::Conntrack,
            "the firewall lets related connections pass. With the accept rule for our mark, and a restart, there is a \
             fast path",
        ),
        Some(_) => (
            Backend::Nftables,
            "the firewall lets no data connections pass: it lacks the accept rule",
        ),
        None => (Backend::Conntrack, "the firewall's rules are not known"),
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
