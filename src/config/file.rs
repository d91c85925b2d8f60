//! The structure of the file: tables and keys, without their values' rules.
//!
//! Values stay as TOML parses them, with their positions, so that [`super::check`] can check all of them and say what
//! is allowed. Unknown tables and keys, and those of the wrong type, are refused here, and removed so that the rest can
//! be checked.

use std::collections::HashMap;

use serde::Deserialize;
use toml::{
    Spanned, Value,
    de::{DeString, DeTable, DeValue},
};

use super::error::{self, ConfigProblem};

/// The keys of a table, with their values and positions.
pub(super) type Keys = HashMap<String, Spanned<Value>>;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct File {
    pub control_ports: Option<Spanned<Value>>,
    pub implicit_tls_ports: Option<Spanned<Value>>,
    pub queue: Keys,
    pub pinhole: Keys,
    pub nat: Keys,
    pub policy: Keys,
    pub network: Vec<Spanned<Keys>>,
    pub server: Vec<Spanned<Keys>>,
    pub metrics: Keys,
    pub log: Keys,
    pub pair: Option<Spanned<Keys>>,
}

/// Keys before the first table.
const TOP_LEVEL_KEYS: &[&str] = &["control-ports", "implicit-tls-ports"];

/// A table of the file.
pub(super) struct FileTable {
    pub name: &'static str,
    /// Whether it may occur several times.
    is_list: bool,
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
pub(super) const TABLES: [FileTable; 9] = [
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
        "clients servers inspect any-interface passive-ports foreign-address min-data-port deny-ports require-login auth-tls \
         max-pinholes-per-client",
    ),
    FileTable::new(
        "server",
        true,
        "address external-address replace-foreign-address passive-ports",
    ),
    FileTable::new("metrics", false, "listen page password-file"),
    FileTable::new("log", false, "events transfers transfers-format"),
    FileTable::new("pair", false, "store peer confirm"),
];

/// Removes what is not a known table or key.
pub(super) fn remove_invalid_keys(document: &mut DeTable<'_>) -> Vec<ConfigProblem> {
    let mut problems = Vec::new();
    let mut invalid = Vec::new();
    for (key, value) in document.iter_mut() {
        let name = key.get_ref().as_ref();
        let message = match TABLES.iter().find(|table| table.name == name) {
            None if TOP_LEVEL_KEYS.contains(&name) => continue,
            None => unknown_key_message(None, name),
            Some(table) => match tables_of(table, value.get_mut()) {
                Ok(tables) => {
                    for keys in tables {
                        remove_unknown_keys(table, keys, &mut problems);
                    }
                    continue;
                }
                Err(message) => message,
            },
        };
        problems.push(problem(name, key.span().start, message));
        invalid.push(name.to_owned());
    }
    for name in invalid {
        document.remove(name.as_str());
    }
    problems
}

fn problem(key: &str, offset: usize, message: String) -> ConfigProblem {
    ConfigProblem { offset, key: Some(error::shown_value(key, 0..key.len())), message }
}

/// The tables in `value`, or why it has the wrong type.
fn tables_of<'a, 'i>(
    table: &FileTable,
    value: &'a mut DeValue<'i>,
) -> Result<Vec<&'a mut DeTable<'i>>, String> {
    let title = title(table);
    match (value, table.is_list) {
        (DeValue::Table(keys), false) => Ok(vec![keys]),
        (DeValue::Table(_), true) => {
            Err(format!("this table may occur several times: write {title}, with two brackets"))
        }
        (DeValue::Array(items), _) if items.iter().all(|item| item.get_ref().is_table()) => {
            if table.is_list {
                let table = |item: &'a mut Spanned<DeValue<'i>>| match item.get_mut() {
                    DeValue::Table(keys) => Some(keys),
                    _ => None,
                };
                Ok(items.iter_mut().filter_map(table).collect())
            } else {
                Err(format!("this table may occur only once: write {title}, with one bracket"))
            }
        }
        _ => Err(format!("this is a table, not a value: write {title}, and its keys below")),
    }
}

fn remove_unknown_keys(
    table: &FileTable,
    keys: &mut DeTable<'_>,
    problems: &mut Vec<ConfigProblem>,
) {
    let is_unknown =
        |key: &&Spanned<DeString<'_>>| table.keys().all(|known| known != key.get_ref());
    let unknown: Vec<_> = keys.keys().filter(is_unknown).cloned().collect();
    for key in unknown {
        let name = key.get_ref();
        let message = unknown_key_message(Some(table), name);
        problems.push(problem(&format!("{}.{name}", table.name), key.span().start, message));
        keys.remove(&key);
    }
}

fn title(table: &FileTable) -> String {
    if table.is_list { format!("[[{}]]", table.name) } else { format!("[{}]", table.name) }
}

/// The message about `name`, which is not a key of the table `here`, or of the top level.
fn unknown_key_message(here: Option<&FileTable>, name: &str) -> String {
    let own: Vec<&str> = match here {
        Some(table) => table.keys().collect(),
        None => {
            TOP_LEVEL_KEYS.iter().copied().chain(TABLES.iter().map(|table| table.name)).collect()
        }
    };
    let meant = name.replace('_', "-").to_ascii_lowercase();
    let homes: Vec<String> =
        TABLES.iter().filter(|table| table.keys().any(|key| key == meant)).map(title).collect();
    if own.contains(&&*meant) || (homes.is_empty() && !TOP_LEVEL_KEYS.contains(&&*meant)) {
        let nearest = own.iter().map(|key| (strsim::levenshtein(&meant, key), *key)).min();
        return match nearest.filter(|(edits, key)| *edits <= key.len().max(meant.len()) / 3 + 1) {
            Some((_, key)) => format!("unknown key; did you mean `{key}`?"),
            None => format!("unknown key; allowed: {}", own.join(", ")),
        };
    }
    match homes.as_slice() {
        [] => "unknown key; it belongs at the top of the file, before the first [table]".to_owned(),
        homes => format!("unknown key; it belongs in {}", homes.join(" or ")),
    }
}
