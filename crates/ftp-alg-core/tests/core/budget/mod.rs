//! Limits that hold for all connections together: the memory that they use, and how many each client has.

mod ended;
mod network;
mod released;
mod resident;
mod shares;

use crate::support;
