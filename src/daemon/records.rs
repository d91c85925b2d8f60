//! Where the records of a shard are written before the verdicts that they belong to.

use ftp_alg_core::engine::{Batch, Engine};

/// What follows the writing of a batch's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Verdicts: what the records say must survive from then on.
    Confirmed,
    /// Nothing that a peer sees.
    Written,
}

/// A place for records.
pub(super) trait Records {
    /// Writes the records of a batch. Must be called before the verdicts that they belong to are given. The error says what
    /// it costs.
    fn write(&mut self, batch: &Batch, need: Need) -> Result<(), String>;

    /// Does the work of each second, for instance writes all records of `engine` if most of the written ones are superseded.
    fn maintain(&mut self, engine: &mut Engine) -> Result<(), String>;
}
