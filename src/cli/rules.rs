//! `ftp-alg rules`: prints the rules that queue packets for the gateway.

use clap::{Args, ValueEnum};

use super::{ConfigOption, Failure, output};
use crate::kernel::{RuleParameters, table::rule_files};

/// Print the rules that `run` loads, for inspection
///
/// Prints input for `nft -f -` (nftables) or `iptables-restore --noflush`
/// (iptables), with the ports, queues and marks of the configuration.
///
/// The nftables rules are those for the configured back end; `auto` means
/// nftables. They need a kernel with the queue statement of nftables. `run` also
/// works without this statement.
///
/// The iptables rules are for a kernel on which nftables cannot queue packets.
/// Do not load them while `run` queues packets itself: every packet would be
/// queued twice, and connections would break.
#[derive(Args, Debug)]
pub struct Rules {
    /// The language of the rules
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
    /// For ip6tables-restore --noflush
    Ip6tables,
}

impl Rules {
    pub fn run(&self) -> Result<(), Failure> {
        let config = self.config.load()?;
        let parameters = RuleParameters::from(&config);
        output::print(&match self.flavour {
            Flavour::Nftables => rule_files::render(&parameters),
            Flavour::Iptables => rule_files::render_iptables(&parameters),
            Flavour::Ip6tables => rule_files::render_ip6tables(&parameters),
        })
    }
}
