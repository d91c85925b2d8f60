//! What differs between two texts of the file, for people: tables and keys as they are written, values as text.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

/// A key, or one of several tables of a name, that has another value than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// As in `policy.memory`, `[[server]] 10.0.0.5 passive-ports`, `[[server]] 10.0.0.5`.
    pub key: String,
    /// `None` if it was absent.
    pub before: Option<String>,
    /// `None` if it is absent now.
    pub now: Option<String>,
    /// All of this, for people.
    pub text: String,
}

/// The changes from one valid text to another.
pub fn changes(before: &str, now: &str) -> Vec<Change> {
    let [before, now] = [before, now].map(tables);
    let of_table = |name: &String| {
        let (old, new) = (before.get(name), now.get(name));
        let is_list = name.starts_with("[[");
        if is_list && old.is_none() != new.is_none() {
            let [before, now] = [old, new].map(|keys| keys.map(all));
            let text = match &now {
                Some(keys) => format!("{name} added: {keys}"),
                None => format!("{name} removed"),
            };
            return vec![Change { key: name.clone(), before, now, text }];
        }
        let prefix = match &**name {
            "" => String::new(),
            name if is_list => format!("{name} "),
            name => format!("{name}."),
        };
        let change = |key: &String| {
            let [before, now] = [old, new].map(|keys| keys.and_then(|keys| keys.get(key).cloned()));
            let [was, is] = [&before, &now].map(|one| one.as_deref().unwrap_or("(default)"));
            let key = format!("{prefix}{key}");
            let text = format!("{key} {was} -> {is}");
            (before != now).then_some(Change { key, before, now, text })
        };
        let keys: BTreeSet<_> = old.into_iter().chain(new).flat_map(Keys::keys).collect();
        keys.into_iter().filter_map(change).collect()
    };
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    names.into_iter().flat_map(of_table).collect()
}

type Keys = BTreeMap<String, String>;

/// The keys of each table, by its title; those before the first table have the title "".
fn tables(text: &str) -> BTreeMap<String, Keys> {
    let mut tables = BTreeMap::<String, Keys>::new();
    for (name, value) in text.parse::<Table>().unwrap_or_default() {
        match value {
            Value::Table(keys) => drop(tables.insert(name, texts(&keys))),
            Value::Array(all) if all.iter().any(Value::is_table) => {
                for keys in all.iter().filter_map(Value::as_table).map(texts) {
                    let of = ["address", "clients", "servers"].map(|key| keys.get(key).cloned());
                    let of: Vec<_> = of.into_iter().flatten().collect();
                    let title = format!("[[{name}]] {}", of.join(" "));
                    let nth = (2..).map(|nth| format!("{title} ({nth})"));
                    let mut titles = std::iter::once(title.clone()).chain(nth);
                    let free = titles.find(|title| !tables.contains_key(title));
                    tables.insert(free.unwrap_or(title), keys);
                }
            }
            other => drop(tables.entry(String::new()).or_default().insert(name, text_of(&other))),
        }
    }
    tables
}

fn texts(keys: &Table) -> Keys {
    keys.iter().map(|(key, value)| (key.clone(), text_of(value))).collect()
}

/// The value on one line, as the file has it, but a single text without quotes.
fn text_of(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    super::escaped(&text)
}

fn all(keys: &Keys) -> String {
    let keys: Vec<_> = keys.iter().map(|(key, value)| format!("{key} {value}")).collect();
    keys.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_has_its_key_and_both_values() {
        let before = "control-ports = [21]\npolicy.memory = \"64MiB\"\n\
                      [[server]]\naddress = \"10.0.1.5\"\n\
                      [[server]]\naddress = \"10.0.1.6\"\npassive-ports = \"50000-50100\"\n\
                      [[network]]\nclients = \"10.0.0.0/8\"\ninspect = false\n\
                      [[network]]\nclients = \"10.0.0.0/8\"\ninspect = true\n";
        let now = "control-ports = [21, 2121]\n[pinhole]\ntimeout = \"5s\"\n\
                   [[server]]\naddress = \"10.0.1.6\"\npassive-ports = \"50000-50050\"\n\
                   [[server]]\naddress = \"10.0.1.7\"\npassive-ports = [3000, \"4000-4001\"]\n\
                   [[network]]\nclients = \"10.0.0.0/8\"\ninspect = false\n\
                   [[network]]\nclients = \"10.0.0.0/8\"\ninspect = false\n";
        let texts: Vec<_> = changes(before, now).into_iter().map(|one| one.text).collect();
        let expected = [
            "control-ports [21] -> [21, 2121]",
            "[[network]] 10.0.0.0/8 (2) inspect true -> false",
            "[[server]] 10.0.1.5 removed",
            "[[server]] 10.0.1.6 passive-ports 50000-50100 -> 50000-50050",
            "[[server]] 10.0.1.7 added: address 10.0.1.7, passive-ports [3000, \"4000-4001\"]",
            "pinhole.timeout (default) -> 5s",
            "policy.memory 64MiB -> (default)",
        ];
        assert_eq!(texts, expected);
        assert_eq!(changes(now, &format!("# a comment\n{now}")), []);
        assert_eq!(changes("", ""), []);
    }
}
