//! The structure of the file: tables and keys, without their values' rules.
//!
//! Values stay as TOML parses them, with their positions, so that [`super::check`] can check all of them and say what
//! is allowed. [`super::invalid_keys`] refuses keys that are not listed here.

use serde::Deserialize;
use toml::{Spanned, Value};

/// A value with its position, if the key is present.
pub(super) type SpannedValue = Option<Spanned<Value>>;

/// A table of the file, and its keys with `_` for `-`.
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

/// Keys before the first table.
pub(super) const TOP_LEVEL_KEYS: &[&str] = &["control_ports"];

/// A table of the file.
pub(super) struct Table {
    pub name: &'static str,
    /// Whether it may occur several times.
    pub is_list: bool,
    /// Its keys, with `_` for `-`.
    pub keys: &'static [&'static str],
}

/// The tables of the file.
pub(super) const TABLES: [Table; 7] = [
    Table { name: "queue", is_list: false, keys: Queue::KEYS },
    Table { name: "pinhole", is_list: false, keys: Pinhole::KEYS },
    Table { name: "nat", is_list: false, keys: Nat::KEYS },
    Table { name: "policy", is_list: false, keys: Policy::KEYS },
    Table { name: "network", is_list: true, keys: Network::KEYS },
    Table { name: "server", is_list: true, keys: Server::KEYS },
    Table { name: "metrics", is_list: false, keys: Metrics::KEYS },
];

table!(Queue: number, workers, fanout, fast_path);
table!(Pinhole: backend, timeout, mark, mark_mask);
table!(Nat: external_address, port_range);
table!(Policy: foreign_address, min_data_port, deny_ports, require_login, auth_tls, max_sessions,
    max_sessions_per_client, memory, max_pinholes_per_client);
table!(Network: clients, servers, inspect, foreign_address, min_data_port, deny_ports,
    require_login, auth_tls, max_pinholes_per_client);
table!(Server: address, external_address, replace_foreign_address, passive_ports);
table!(Metrics: listen);

/// The keys common to `[policy]` and `[[network]]`.
macro_rules! policy_keys {
    ($($key:ident),+) => {
        pub(super) struct PolicyKeys<'a> {
            pub table: &'static str,
            $(pub $key: &'a SpannedValue),+
        }

        impl<'a> PolicyKeys<'a> {
            /// Names, with `_` for `-`, and values of the keys.
            pub fn entries(&self) -> impl Iterator<Item = (&'static str, &'a SpannedValue)> {
                [$((stringify!($key), self.$key)),+].into_iter()
            }
        }

        impl Policy {
            pub fn policy_keys(&self) -> PolicyKeys<'_> {
                PolicyKeys { table: "policy", $($key: &self.$key),+ }
            }
        }

        impl Network {
            pub fn policy_keys(&self) -> PolicyKeys<'_> {
                PolicyKeys { table: "network", $($key: &self.$key),+ }
            }
        }
    };
}

policy_keys!(
    foreign_address,
    min_data_port,
    deny_ports,
    require_login,
    auth_tls,
    max_pinholes_per_client
);
