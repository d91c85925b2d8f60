//! What the engine asks of the kernel and orders it to do, who carries that out, and what comes back.
//!
//! | file | is |
//! | --- | --- |
//! | `kernel` | the kernel as the engine knows it: a trait, and the types of its requests |
//! | `effects` | the requests and orders of a batch |
//! | `drive` | carries them out, in the only safe order |
//! | `answers` | continues with the packets that waited |

pub(crate) mod answers;
pub(crate) mod drive;
pub(crate) mod effects;
pub(crate) mod kernel;
