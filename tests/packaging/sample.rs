//! The sample configuration: valid as it is, valid with every key, and complete.

use std::{collections::BTreeMap, fs};

use crate::{PROGRAM, output, packaging, root};

/// The sample with the commented keys in force. `#key` is a key, `# text` is text.
fn uncommented() -> String {
    let sample = fs::read_to_string(packaging("ftp-alg.toml")).unwrap();
    let line = |line: &str| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') => format!("{key}\n"),
        _ => format!("{line}\n"),
    };
    sample.lines().map(line).collect()
}

/// Its keys, by table and name, with their values; the table of those outside any is empty.
pub fn keys() -> BTreeMap<(String, String), String> {
    let file: toml::Table = uncommented().parse().unwrap();
    let mut keys = BTreeMap::new();
    for (name, value) in &file {
        let table = value.as_array().and_then(|list| list.first()?.as_table()).or(value.as_table());
        match table {
            Some(table) => keys.extend(
                table.iter().map(|(key, value)| ((name.clone(), key.clone()), value.to_string())),
            ),
            None => drop(keys.insert((String::new(), name.clone()), value.to_string())),
        }
    }
    keys
}

/// The rows of the tables of keys in docs/configuration.md: cells without the first, empty one.
fn rows() -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let mut rows = Vec::new();
    let mut is_wanted = false;
    for line in text.lines() {
        is_wanted = line.starts_with("| key |") || is_wanted && line.starts_with('|');
        if is_wanted && line.starts_with("| `") {
            rows.push(line.split('|').skip(1).map(str::to_owned).collect());
        }
    }
    rows
}

/// The names in backquotes of `cell`.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The keys of the tables in docs/configuration.md. A cell may name several; then the first has the table.
fn documented() -> Vec<(String, String)> {
    let mut keys = Vec::new();
    for row in rows() {
        let mut table = String::new();
        for name in quoted(&row[0]) {
            let (of, key) = name.split_once('.').unwrap_or((&table, name));
            keys.push((of.to_owned(), key.to_owned()));
            table = of.to_owned();
        }
    }
    keys.sort();
    keys
}

#[test]
fn the_documented_defaults_are_the_samples() {
    let keys = keys();
    for row in rows() {
        let name = quoted(&row[0]).next().unwrap();
        let (table, key) = name.split_once('.').unwrap_or(("", name));
        // Those of the other tables are examples.
        if !matches!(table, "network" | "server" | "metrics" | "pair") && key != "events" {
            let value = &keys[&(table.to_owned(), key.to_owned())];
            let number = value.parse::<i64>().map(|number| format!("{number:#x}"));
            let default = quoted(&row[1]).next().unwrap();
            assert!(default == value || number.is_ok_and(|number| default == number), "{name}");
        }
    }
}

#[test]
fn the_sample_is_valid_with_its_keys_and_sets_none() {
    let directory = tempfile::tempdir().unwrap();
    let all = directory.path().join("ftp-alg.toml");
    fs::write(&all, uncommented()).unwrap();
    let sample = packaging("ftp-alg.toml");
    for file in [&sample, &all] {
        output(PROGRAM, &["check".as_ref(), "--config".as_ref(), file.as_os_str()]);
    }
    let sample: toml::Table = fs::read_to_string(sample).unwrap().parse().unwrap();
    let is_empty = |value: &toml::Value| value.as_table().is_some_and(toml::Table::is_empty);
    assert!(sample.values().all(is_empty), "{sample:?}");
}

#[test]
fn the_sample_has_every_documented_key() {
    let keys: Vec<_> = keys().into_keys().collect();
    assert_eq!(keys, documented());
}
