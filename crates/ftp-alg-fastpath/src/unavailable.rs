//! Why the fast path cannot run: the error of everything that is needed for it. Knows no other module.

use std::{fmt::Display, io};

/// Why the fast path cannot run here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FastPathUnavailable(pub(crate) String);

impl FastPathUnavailable {
    /// The reason in a build without the program.
    pub const NOT_BUILT: &str = "this build has no fast path";

    pub(crate) const REQUIRED_RIGHTS: &str =
        "; run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN";
}

/// An outcome that decides whether the fast path can run.
pub(crate) trait OrUnavailable<T> {
    /// The error says what failed.
    fn or_unavailable(self, what: impl Display) -> Result<T, FastPathUnavailable>;
}

impl<T> OrUnavailable<T> for io::Result<T> {
    fn or_unavailable(self, what: impl Display) -> Result<T, FastPathUnavailable> {
        self.map_err(|error| {
            FastPathUnavailable(match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => {
                    format!("{what}: not permitted{}", FastPathUnavailable::REQUIRED_RIGHTS)
                }
                Some(libc::ENOSYS) => format!("{what}: the kernel has no bpf(2)"),
                _ => format!("{what}: {error}"),
            })
        })
    }
}
