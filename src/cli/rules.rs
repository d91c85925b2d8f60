//! `ftp-alg rules`: the rules that select packets for the gateway.

use clap::{Args, ValueEnum};

use super::{ConfigOption, Failure, output};
use crate::config::Config;

/// Print the rules that `run` loads, or that you load by hand
///
/// The text is what `nft -f -` (nftables) or `iptables-restore --noflush` (iptables) takes, with
/// the ports, queues and marks of the configuration.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Rules {
    /// Whose language
    flavour: Flavour,
    #[command(flatten)]
    config: ConfigOption,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Flavour {
    /// For nft -f
    Nftables,
    /// For iptables-restore --noflush
    Iptables,
}

impl Rules {
    /// Prints them.
    pub fn run(&self) -> Result<(), Failure> {
        let config = self.config.load()?;
        output::print(&render(self.flavour, &config)?)
    }
}

/// PLUG IN HERE: `gateway::rules::{nftables, iptables}` with parameters from `config`.
fn render(flavour: Flavour, _config: &Config) -> Result<String, Failure> {
    Err(Failure::Failed(format!("no {flavour:?} rules are built in")))
}
