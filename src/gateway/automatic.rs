//! Which back end `auto` means: expectations where the kernel takes helpers in user space, as their data connections are
//! `related` and bear our ct mark, too; otherwise sets. Asks the kernel, and nothing about the operator's rules.

use super::{Backend, ConntrackAbilities};

/// The back end that `auto` means here, and why. `before` is that of the sessions that go on, if any do.
pub fn automatic(before: Option<Backend>) -> (Backend, &'static str) {
    choose_backend(
        before,
        || ConntrackAbilities::read().possible(),
        ConntrackAbilities::by_own_helper,
    )
}

/// As [`automatic`]. `is_possible` says whether the kernel takes expectations for whatever helper, `is_good` whether it does
/// for one of ours.
fn choose_backend(
    before: Option<Backend>,
    is_possible: impl FnOnce() -> bool,
    is_good: impl FnOnce() -> bool,
) -> (Backend, &'static str) {
    match before {
        Some(Backend::Nftables) => (Backend::Nftables, "sessions go on that began with it"),
        Some(Backend::Conntrack) if is_possible() => {
            (Backend::Conntrack, "sessions go on that began with it")
        }
        _ if is_good() => (Backend::Conntrack, "this kernel has nfnetlink_cthelper"),
        _ => (Backend::Nftables, "this kernel has no nfnetlink_cthelper"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(before: Option<Backend>, is_possible: bool, is_good: bool) -> Backend {
        choose_backend(before, || is_possible, || is_good).0
    }

    #[test]
    fn expectations_need_a_helper_in_user_space() {
        assert_eq!(choice(None, true, true), Backend::Conntrack);
        assert_eq!(choice(None, true, false), Backend::Nftables);
        assert_eq!(choice(None, false, false), Backend::Nftables);
    }

    #[test]
    fn sessions_keep_their_back_end_where_the_kernel_has_it() {
        assert_eq!(choice(Some(Backend::Nftables), true, true), Backend::Nftables);
        assert_eq!(choice(Some(Backend::Conntrack), true, false), Backend::Conntrack);
        assert_eq!(choice(Some(Backend::Conntrack), false, false), Backend::Nftables);
    }
}
