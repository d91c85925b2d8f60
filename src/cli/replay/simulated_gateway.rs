//! The options of the gateway that `replay` and `watch` simulate.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use clap::Args;
use ftp_alg_core::policy::{ExternalAddress, Policy};
use ipnetwork::IpNetwork;

use crate::{
    cli::Failure,
    config::{Config, ExternalSetting},
    replay::SimulatedNat,
};

use super::notes::warn;

/// Address ranges that are not routed in the Internet (RFC 1918, RFC 6598, RFC 4193).
const PRIVATE: [&str; 5] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"];

/// The simulated gateway.
#[derive(Args, Debug)]
pub struct SimulatedGateway {
    /// Use policy, networks, servers, control ports and external address of this configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ports of control connections [default: control-ports of --config, or 21]
    #[arg(
        long,
        value_name = "PORT,..",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    ports: Option<Vec<u16>>,
    /// The external address of the simulated NAT [default: nat.external-address of --config]
    #[arg(long, value_name = "ADDR")]
    external: Option<IpAddr>,
    /// The network behind the simulated NAT [default: all private addresses]
    #[arg(long, value_name = "CIDR")]
    inside: Option<IpNetwork>,
}

impl SimulatedGateway {
    /// The policy, and the external address of the simulated NAT, for `command`.
    pub fn policy(&self, command: &str) -> Result<(Policy, Option<IpAddr>), Failure> {
        let Some(path) = &self.config else {
            let default = Policy::default();
            let control_ports = self.ports.clone().unwrap_or(default.control_ports);
            return Ok((Policy { control_ports, ..default }, self.external));
        };
        let mut config = Config::load(Some(path))?;
        if let Some(ports) = &self.ports {
            config.control_ports.clone_from(ports);
        }
        if let Some(external) = self.external {
            config.nat.external_address = ExternalSetting::Address(external);
        }
        let external = match &config.nat.external_address {
            ExternalSetting::Auto => None,
            ExternalSetting::Address(address) => Some(*address),
            ExternalSetting::Dns(name) => {
                return Err(Failure::Usage(format!(
                    "{}: nat.external-address is the name {name}, and {command} looks up no names; give its address with --external",
                    path.display()
                )));
            }
        };
        for name in config.external_names() {
            warn(
                &path.display().to_string(),
                &format!(
                    "{command} looks up no names, so what is to be announced as {} is refused; write its address into a copy of this file",
                    name.name
                ),
            );
        }
        Ok((config.policy(|_| ExternalAddress::Unresolved, &Arc::default()), external))
    }

    pub fn nat(&self, external: Option<IpAddr>) -> Result<SimulatedNat, Failure> {
        let inside = match (external, self.inside) {
            (Some(external), Some(inside)) if external.is_ipv4() != inside.is_ipv4() => {
                return Err(Failure::Usage(format!(
                    "address families differ: --external {external}, --inside {inside}; use two IPv4 or two IPv6 values"
                )));
            }
            (None, Some(inside)) => {
                return Err(Failure::Usage(format!(
                    "--inside {inside} has no external address; add --external ADDR"
                )));
            }
            (_, Some(inside)) => vec![inside],
            (Some(_), None) => PRIVATE.iter().filter_map(|network| network.parse().ok()).collect(),
            (None, None) => Vec::new(),
        };
        Ok(SimulatedNat::new(external, inside))
    }
}
