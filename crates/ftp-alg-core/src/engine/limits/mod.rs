//! What bounds the sessions: their number, each client's share of it, their memory, and how long one is watched.

pub(crate) mod admission;
pub(crate) mod client_shares;
pub(crate) mod memory;
pub(crate) mod watched;
