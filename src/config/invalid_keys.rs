//! Refuses unknown tables and keys, and those of the wrong type, and removes them so that the rest can be checked.

use toml::de::{DeTable, DeValue};

use super::{
    error::InvalidKey,
    file::{TABLES, TOP_LEVEL_KEYS, Table},
};

/// Finds what is not a known table or key. A table of the wrong type is removed; serde ignores unknown keys.
pub(super) fn remove_invalid_keys(document: &mut DeTable<'_>) -> Vec<InvalidKey> {
    let mut invalid = Vec::new();
    let mut wrong_type = Vec::new();
    for (key, value) in document.iter() {
        let (name, offset) = (key.get_ref().as_ref(), key.span().start);
        let message = match TABLES.iter().find(|table| table.name == name) {
            None if contains_key(TOP_LEVEL_KEYS, name) => continue,
            None => unknown_key_message(None, name),
            Some(table) => match tables_of(table, value.get_ref()) {
                Ok(tables) => {
                    tables.into_iter().for_each(|keys| check(table, keys, &mut invalid));
                    continue;
                }
                Err(message) => {
                    wrong_type.push(name.to_owned());
                    message
                }
            },
        };
        invalid.push(InvalidKey { key: name.to_owned(), offset, message });
    }
    for name in wrong_type {
        document.remove(name.as_str());
    }
    invalid
}

/// The tables in `value`, or why it has the wrong type.
fn tables_of<'a, 'i>(
    table: &Table,
    value: &'a DeValue<'i>,
) -> Result<Vec<&'a DeTable<'i>>, String> {
    let title = title(table);
    match (value, table.is_list) {
        (DeValue::Table(keys), false) => Ok(vec![keys]),
        (DeValue::Table(_), true) => {
            Err(format!("this table may occur several times: write {title}, with two brackets"))
        }
        (DeValue::Array(items), _) if items.iter().all(|item| item.get_ref().is_table()) => {
            if table.is_list {
                Ok(items.iter().filter_map(|item| item.get_ref().as_table()).collect())
            } else {
                Err(format!("this table may occur only once: write {title}, with one bracket"))
            }
        }
        _ => Err(format!("this is a table, not a value: write {title}, and its keys below")),
    }
}

fn check(table: &Table, keys: &DeTable<'_>, invalid: &mut Vec<InvalidKey>) {
    let unknown = keys.keys().filter(|key| !contains_key(table.keys, key.get_ref()));
    invalid.extend(unknown.map(|key| InvalidKey {
        key: format!("{}.{}", table.name, key.get_ref()),
        offset: key.span().start,
        message: self::unknown_key_message(Some(table), key.get_ref()),
    }));
}

/// Whether `name` is among `keys`, which have `_` for `-`.
fn contains_key(keys: &[&str], name: &str) -> bool {
    keys.iter().any(|key| key.len() == name.len() && key.replace('_', "-") == name)
}

fn title(table: &Table) -> String {
    if table.is_list { format!("[[{}]]", table.name) } else { format!("[{}]", table.name) }
}

/// The message about `name`, which is not a key of the table `here`, or of the top level.
fn unknown_key_message(here: Option<&Table>, name: &str) -> String {
    let own: Vec<&str> = match here {
        Some(table) => table.keys.to_vec(),
        None => {
            TOP_LEVEL_KEYS.iter().copied().chain(TABLES.iter().map(|table| table.name)).collect()
        }
    };
    let meant = name.replace('-', "_").to_ascii_lowercase();
    let homes: Vec<String> =
        TABLES.iter().filter(|table| table.keys.contains(&&*meant)).map(title).collect();
    if own.contains(&&*meant) || (homes.is_empty() && !TOP_LEVEL_KEYS.contains(&&*meant)) {
        let nearest = own.iter().map(|key| (strsim::levenshtein(&meant, key), *key)).min();
        return match nearest.filter(|(edits, key)| *edits <= key.len().max(meant.len()) / 3 + 1) {
            Some((_, key)) => format!("unknown key; did you mean `{}`?", key.replace('_', "-")),
            None => format!("unknown key; allowed: {}", own.join(", ").replace('_', "-")),
        };
    }
    match homes.as_slice() {
        [] => "unknown key; it belongs at the top of the file, before the first [table]".to_owned(),
        homes => format!("unknown key; it belongs in {}", homes.join(" or ")),
    }
}
