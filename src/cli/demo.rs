//! `ftp-alg demo`: each case, working, in network namespaces.

use clap::Args;

use super::Failure;

/// Show each case working: gateway, clients and servers in network namespaces, with default drop
#[derive(Args, Debug)]
pub struct Demo {}

impl Demo {
    /// Builds the lab, runs every row, and takes it down.
    pub fn run(&self) -> Result<(), Failure> {
        Err(Failure::Failed("the demo is not part of this build".to_owned()))
    }
}
