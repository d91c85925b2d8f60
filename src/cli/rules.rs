//! `ftp-alg rules`: the rules that select packets for the gateway.

use clap::{Args, ValueEnum};

use super::{ConfigOption, Failure, output};
use crate::{config::Config, daemon, gateway::rules};

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
    /// For ip6tables-restore --noflush
    Ip6tables,
}

impl Rules {
    /// Prints them.
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
