//! Packet in, verdict and wishes out; the table of sessions.

mod kernel;

pub use kernel::{Attention, Kernel, KernelError, Pinhole, Translation};

/// What becomes of a queued packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as it is.
    Accept,
    /// It goes on with the content that the engine wrote to its output buffer.
    Replace,
    /// It ends here.
    Drop,
}
