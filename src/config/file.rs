//! The structure of the file: tables and keys, without their values' rules.
//!
//! Values stay as TOML parses them, with their positions, so that [`super::check`] can check all of them and say what
//! is allowed. [`super::invalid_keys`] refuses keys that are not listed here.

use std::collections::HashMap;

use serde::Deserialize;
use toml::{Spanned, Value};

/// The keys of a table, with their values and positions.
pub(super) type Keys = HashMap<String, Spanned<Value>>;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct File {
    pub control_ports: Option<Spanned<Value>>,
    pub queue: Keys,
    pub pinhole: Keys,
    pub nat: Keys,
    pub policy: Keys,
    pub network: Vec<Spanned<Keys>>,
    pub server: Vec<Spanned<Keys>>,
    pub metrics: Keys,
}

/// Keys before the first table.
pub(super) const TOP_LEVEL_KEYS: &[&str] = &["control-ports"];

/// A table of the file.
pub(super) struct FileTable {
    pub name: &'static str,
    /// Whether it may occur several times.
    pub is_list: bool,
    /// Its keys, separated by blanks.
    keys: &'static str,
}

impl FileTable {
    const fn new(name: &'static str, is_list: bool, keys: &'static str) -> Self {
        Self { name, is_list, keys }
    }

    pub fn keys(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.keys.split(' ')
    }
}

/// The tables of the file.
pub(super) const TABLES: [FileTable; 7] = [
    FileTable::new("queue", false, "number workers fanout fast-path"),
    FileTable::new("pinhole", false, "backend timeout mark mark-mask"),
    FileTable::new("nat", false, "external-address port-range"),
    FileTable::new(
        "policy",
        false,
        "foreign-address min-data-port deny-ports require-login auth-tls max-sessions max-sessions-per-client \
         memory max-pinholes-per-client",
    ),
    FileTable::new(
        "network",
        true,
        "clients servers inspect foreign-address min-data-port deny-ports require-login auth-tls \
         max-pinholes-per-client",
    ),
    FileTable::new(
        "server",
        true,
        "address external-address replace-foreign-address passive-ports",
    ),
    FileTable::new("metrics", false, "listen"),
];
