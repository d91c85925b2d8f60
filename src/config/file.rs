//! The shape of the file: its tables and keys, and nothing of what their values must be.
//!
//! Values stay as TOML gives them, with their place, so that [`super::check`] can judge all of
//! them and say of each what is allowed. [`super::shape`] refuses what is not listed here.

use serde::Deserialize;
use toml::{Spanned, Value};

/// One value and its place, if its key is given.
pub(super) type SpannedValue = Option<Spanned<Value>>;

/// A table of the file, and the names of its keys with `_` for `-`.
macro_rules! table {
    ($name:ident: $($key:ident),+) => {
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "kebab-case", default)]
        pub(super) struct $name {
            $(pub $key: SpannedValue),+
        }

        impl $name {
            const KEYS: &'static [&'static str] = &[$(stringify!($key)),+];
        }
    };
}

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct File {
    pub control_ports: SpannedValue,
    pub queue: Queue,
    pub pinhole: Pinhole,
    pub nat: Nat,
    pub policy: Policy,
    pub network: Vec<Spanned<Network>>,
    pub server: Vec<Spanned<Server>>,
    pub metrics: Metrics,
}

/// The keys that stand before the first table.
pub(super) const TOP_LEVEL_KEYS: &[&str] = &["control_ports"];

/// One of the file's tables.
pub(super) struct Table {
    pub name: &'static str,
    /// Whether there may be several.
    pub is_list: bool,
    /// With `_` for `-`.
    pub keys: &'static [&'static str],
}

/// All of them.
pub(super) const TABLES: [Table; 7] = [
    Table { name: "queue", is_list: false, keys: Queue::KEYS },
    Table { name: "pinhole", is_list: false, keys: Pinhole::KEYS },
    Table { name: "nat", is_list: false, keys: Nat::KEYS },
    Table { name: "policy", is_list: false, keys: Policy::KEYS },
    Table { name: "network", is_list: true, keys: Network::KEYS },
    Table { name: "server", is_list: true, keys: Server::KEYS },
    Table { name: "metrics", is_list: false, keys: Metrics::KEYS },
];

table!(Queue: number, workers, fanout, fast_path, calm);
table!(Pinhole: backend, timeout, mark, mark_mask);
table!(Nat: external_address, port_range);
table!(Policy: foreign_address, min_data_port, deny_ports, require_login, auth_tls, max_sessions,
    max_sessions_per_client, memory, max_pinholes_per_client);
table!(Network: clients, servers, inspect, foreign_address, min_data_port, deny_ports,
    require_login, auth_tls, max_pinholes_per_client);
table!(Server: address, external_address, heal_address, passive_ports);
table!(Metrics: listen);

/// The keys that `[policy]` and `[[network]]` have in common.
macro_rules! rules {
    ($($key:ident),+) => {
        pub(super) struct Rules<'a> {
            pub table: &'static str,
            $(pub $key: &'a SpannedValue),+
        }

        impl<'a> Rules<'a> {
            /// All of them, by name with `_` for `-`.
            pub fn leaves(&self) -> impl Iterator<Item = (&'static str, &'a SpannedValue)> {
                [$((stringify!($key), self.$key)),+].into_iter()
            }
        }

        impl Policy {
            pub fn rules(&self) -> Rules<'_> {
                Rules { table: "policy", $($key: &self.$key),+ }
            }
        }

        impl Network {
            pub fn rules(&self) -> Rules<'_> {
                Rules { table: "network", $($key: &self.$key),+ }
            }
        }
    };
}

rules!(
    foreign_address,
    min_data_port,
    deny_ports,
    require_login,
    auth_tls,
    max_pinholes_per_client
);
