//! The back end that `auto` selects: `conntrack` (expectations) if the kernel supports helpers in user space, because
//! its data connections are `related` and carry our ct mark as well; otherwise `nftables` (sets). Probes the kernel,
//! not the operator's rules.

use super::{Backend, ConntrackAbilities};

/// The back end that `auto` selects here, and why. `before` is the back end of restored sessions, if there are any.
pub fn automatic_backend(before: Option<Backend>) -> (Backend, &'static str) {
    choose_backend(
        before,
        || ConntrackAbilities::read().supports_expectations(),
        ConntrackAbilities::supports_own_helper,
    )
}

/// As [`automatic`]. `is_possible` says whether the kernel accepts expectations with any helper, `is_good` whether with
/// our own.
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
