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
    pub server: Vec<Spanned<Server>>,
    pub metrics: Metrics,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Queue {
    pub number: Leaf,
    pub workers: Leaf,
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
    pub require_login: Leaf,
    pub auth_tls: Leaf,
    pub max_sessions: Leaf,
    pub max_pinholes_per_client: Leaf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Server {
    pub address: Leaf,
    pub external_address: Leaf,
    pub passive_ports: Leaf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Metrics {
    pub listen: Leaf,
}
