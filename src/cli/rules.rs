//! `ftp-alg rules`: the rules that select packets for the gateway.

use clap::{Args, ValueEnum};

use super::{ConfigOption, Failure, output};
use crate::{config::Config, daemon, gateway::rules};

/// Print the rules that `run` loads, to look at
///
/// The text is what `nft -f -` (nftables) or `iptables-restore --noflush` (iptables) takes, with
/// the ports, queues and marks of the configuration. Those of nftables are for the back end that
/// the configuration names (for nftables, if that is `auto`), and load where the kernel has the
/// queue statement of nftables; `run` finds another way where it has not.
///
/// Those of iptables are for a kernel on which nftables cannot queue at all. Never load them beside
/// a `run` that queues itself: each packet would be queued twice, and connections would break.
#[derive(Args, Debug)]
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
    /// For ip6tables-restore --noflush
    Ip6tables,
}

impl Rules {
    pub fn run(&self) -> Result<(), Failure> {
        let config = self.config.load()?;
        output::print(&render(self.flavour, &config)?)
    }
}

fn render(flavour: Flavour, config: &Config) -> Result<String, Failure> {
    let parameters = daemon::rule_parameters(config).map_err(Failure::failed)?;
    Ok(match flavour {
        Flavour::Nftables => rules::render(&parameters),
        Flavour::Iptables => rules::render_iptables(&parameters),
        Flavour::Ip6tables => rules::render_ip6tables(&parameters),
    })
}
