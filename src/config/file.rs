//! The shape of the file: its tables and keys, and nothing of what their values must be.
//!
//! Values stay as TOML gives them, with their place, so that [`super::check`] can judge all of
//! them and say of each what is allowed. An unknown key is refused here.

use serde::Deserialize;
use toml::{Spanned, Value};

/// One value and its place, if its key is given.
pub(super) type Leaf = Option<Spanned<Value>>;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default, expecting = "a table")]
pub(super) struct File {
    pub control_ports: Leaf,
    pub queue: Queue,
    pub pinhole: Pinhole,
    pub nat: Nat,
    pub policy: Policy,
    pub network: Vec<Spanned<Network>>,
    pub server: Vec<Spanned<Server>>,
    pub metrics: Metrics,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Queue {
    pub number: Leaf,
    pub workers: Leaf,
    pub fanout: Leaf,
    pub calm: Leaf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Pinhole {
    pub backend: Leaf,
    pub timeout: Leaf,
    pub mark: Leaf,
    pub mark_mask: Leaf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Nat {
    pub external_address: Leaf,
    pub port_range: Leaf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Policy {
    pub foreign_address: Leaf,
    pub min_data_port: Leaf,
    pub deny_ports: Leaf,
    pub require_login: Leaf,
    pub auth_tls: Leaf,
    pub max_sessions: Leaf,
    pub max_sessions_per_client: Leaf,
    pub memory: Leaf,
    pub max_pinholes_per_client: Leaf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Network {
    pub clients: Leaf,
    pub servers: Leaf,
    pub inspect: Leaf,
    pub foreign_address: Leaf,
    pub min_data_port: Leaf,
    pub deny_ports: Leaf,
    pub require_login: Leaf,
    pub auth_tls: Leaf,
    pub max_pinholes_per_client: Leaf,
}

/// The keys that `[policy]` and `[[network]]` have in common.
pub(super) struct Rules<'a> {
    pub table: &'static str,
    pub foreign_address: &'a Leaf,
    pub min_data_port: &'a Leaf,
    pub deny_ports: &'a Leaf,
    pub require_login: &'a Leaf,
    pub auth_tls: &'a Leaf,
    pub max_pinholes_per_client: &'a Leaf,
}

impl<'a> Rules<'a> {
    /// All of them, by name.
    pub fn leaves(&self) -> [(&'static str, &'a Leaf); 6] {
        [
            ("foreign-address", self.foreign_address),
            ("min-data-port", self.min_data_port),
            ("deny-ports", self.deny_ports),
            ("require-login", self.require_login),
            ("auth-tls", self.auth_tls),
            ("max-pinholes-per-client", self.max_pinholes_per_client),
        ]
    }
}

impl Policy {
    pub fn rules(&self) -> Rules<'_> {
        Rules {
            table: "policy",
            foreign_address: &self.foreign_address,
            min_data_port: &self.min_data_port,
            deny_ports: &self.deny_ports,
            require_login: &self.require_login,
            auth_tls: &self.auth_tls,
            max_pinholes_per_client: &self.max_pinholes_per_client,
        }
    }
}

impl Network {
    pub fn rules(&self) -> Rules<'_> {
        Rules {
            table: "network",
            foreign_address: &self.foreign_address,
            min_data_port: &self.min_data_port,
            deny_ports: &self.deny_ports,
            require_login: &self.require_login,
            auth_tls: &self.auth_tls,
            max_pinholes_per_client: &self.max_pinholes_per_client,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Server {
    pub address: Leaf,
    pub external_address: Leaf,
    pub heal_address: Leaf,
    pub passive_ports: Leaf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Metrics {
    pub listen: Leaf,
}
