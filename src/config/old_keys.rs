//! Keys of earlier versions: renamed keys under their old names, and keys without effect.
//!
//! A renamed key also works under its old name for one version, because an upgrade must not break a configuration.
//! `check` and `run` print a warning about it. The next version removes its row from [`RENAMED_KEYS`], so the old name
//! is then an unknown key. A key without effect stays valid for the same reason.
//!
//! The other modules know nothing of old names, because these are replaced before anything else is checked. This
//! module knows nothing of the values of renamed keys.

use std::borrow::Cow;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::error::InvalidKey;

/// Old and new names of renamed keys, both with the same table.
pub(super) const RENAMED_KEYS: &[(&str, &str)] =
    &[("server.heal-address", "server.replace-foreign-address")];

/// Flags that have no effect any more.
const FLAGS_WITHOUT_EFFECT: &[&str] = &["queue.calm"];

/// An old name that a file uses.
pub(super) struct OldName {
    pub old: &'static str,
    pub new: &'static str,
    /// Byte offset of the first use.
    pub offset: usize,
    /// Number of uses; above 1 only in a table that may occur several times.
    pub uses: usize,
}

/// Replaces old names by new ones in `document`, and removes keys without effect. A table with the old and the new
/// name is an error, because it is unclear which value counts.
pub(super) fn replace_old_keys(document: &mut DeTable<'_>) -> (Vec<OldName>, Vec<InvalidKey>) {
    let mut invalid = Vec::new();
    let mut old_names = Vec::new();
    for &(old, new) in RENAMED_KEYS {
        let ((table, old_key), (_, new_key)) = (split(old), split(new));
        let mut offsets = Vec::new();
        for keys in tables(document, table) {
            let Some((key, value)) = keys.remove_entry(old_key) else { continue };
            let span = key.span();
            if keys.contains_key(new_key) {
                let message = format!(
                    "this is the old name of {new_key}, which is given as well: remove {old_key}"
                );
                invalid.push(InvalidKey { key: old.to_owned(), offset: span.start, message });
                continue;
            }
            offsets.push(span.start);
            keys.insert(Spanned::new(span, Cow::Borrowed(new_key)), value);
        }
        if let Some(offset) = offsets.iter().copied().min() {
            old_names.push(OldName { old, new, offset, uses: offsets.len() });
        }
    }
    for name in FLAGS_WITHOUT_EFFECT {
        let (table, key) = split(name);
        for keys in tables(document, table) {
            let Some(value) = keys.remove(key) else { continue };
            if !matches!(value.get_ref(), DeValue::Boolean(_)) {
                let message =
                    "this key has no effect any more, and is not true or false: remove it";
                let (key, offset) = ((*name).to_owned(), value.span().start);
                invalid.push(InvalidKey { key, offset, message: message.to_owned() });
            }
        }
    }
    (old_names, invalid)
}

/// The new name of `key`, if that is the old name of a key in any table. Both names have `_` for `-`.
pub(super) fn new_name(key: &str) -> Option<String> {
    let plain = |name| split(name).1.replace('-', "_");
    let renamed = RENAMED_KEYS.iter().find(|(old, _)| plain(old) == key);
    renamed.map(|(_, new)| plain(new))
}

/// Table and key of a full name. A key before the first table has no table.
fn split(name: &'static str) -> (Option<&'static str>, &'static str) {
    name.split_once('.').map_or((None, name), |(table, key)| (Some(table), key))
}

/// The tables of this name in `document`: none, one, or several for an array of tables.
fn tables<'a, 'i>(document: &'a mut DeTable<'i>, name: Option<&str>) -> Vec<&'a mut DeTable<'i>> {
    let Some(name) = name else { return vec![document] };
    match document.get_mut(name).map(Spanned::get_mut) {
        Some(DeValue::Table(keys)) => vec![keys],
        Some(DeValue::Array(items)) => {
            let tables = items.iter_mut().filter_map(|item| match item.get_mut() {
                DeValue::Table(keys) => Some(keys),
                _ => None,
            });
            tables.collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{
        super::{Config, file::TABLES},
        *,
    };

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("f")).map_err(|error| error.to_string())
    }

    fn warnings(config: &Config) -> Vec<String> {
        config.warnings().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rows_name_a_key_and_no_key_of_one_table() {
        for (old, new) in RENAMED_KEYS {
            assert_eq!(split(old).0, split(new).0);
            let table = TABLES.iter().find(|table| Some(table.name) == split(new).0).unwrap();
            let has = |name| table.keys.iter().any(|key| key.replace('_', "-") == split(name).1);
            assert!(has(new) && !has(old), "{old} -> {new}");
        }
    }

    #[test]
    fn an_old_name_works_like_the_new_one_with_a_warning() {
        let server = "[[server]]\naddress = \"10.0.0.5\"\n";
        for value in [true, false] {
            let old = parse(&format!("{server}heal-address = {value}")).unwrap();
            let new = parse(&format!("{server}replace-foreign-address = {value}")).unwrap();
            assert_eq!(old.servers, new.servers);
            assert_eq!(new.servers[0].replace_foreign_address, value);
            assert_eq!(warnings(&new), [""; 0]);
            assert_eq!(
                warnings(&old),
                [
                    "f:3:1: server.heal-address: this key is now called replace-foreign-address: rename it, because the \
                  next version removes the old name"
                ]
            );
        }
    }

    #[test]
    fn several_uses_of_an_old_name_are_one_warning() {
        let text = "[[server]]\naddress = \"10.0.0.5\"\nheal-address = true\n\
                    [[server]]\naddress = \"10.0.0.6\"\nreplace-foreign-address = true\n\
                    [[server]]\naddress = \"10.0.0.7\"\nheal-address = true\n";
        let config = parse(text).unwrap();
        assert!(config.servers.iter().all(|server| server.replace_foreign_address));
        let warnings = warnings(&config);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].starts_with("f:3:1: server.heal-address: this key (2 uses) is now called ")
        );
    }

    #[test]
    fn both_names_in_one_table_are_an_error() {
        for (first, second) in [("heal", "replace-foreign"), ("replace-foreign", "heal")] {
            let text = format!(
                "[[server]]\naddress = \"10.0.0.5\"\n{first}-address = true\n{second}-address = true\n"
            );
            let line = if first == "heal" { 3 } else { 4 };
            let expected = format!(
                "f:{line}:1: server.heal-address: this is the old name of replace-foreign-address, which is given as \
                 well: remove heal-address"
            );
            assert_eq!(parse(&text).unwrap_err(), expected);
        }
    }

    #[test]
    fn an_invalid_value_of_an_old_name_is_refused_at_its_position() {
        let text = "[[server]]\naddress = \"10.0.0.5\"\nheal-address = \"maybe\"";
        let expected = "f:3:16: server.replace-foreign-address: \"maybe\" is not true or false";
        assert_eq!(parse(text).unwrap_err(), expected);
    }

    #[test]
    fn an_old_name_with_a_slip_gets_the_new_name() {
        for (text, expected) in [
            (
                "[[server]]\naddress = \"10.0.0.5\"\nheal_address = true",
                "f:3:1: server.heal_address: unknown key; did you mean `replace-foreign-address`?",
            ),
            (
                "[policy]\nheal-address = true",
                "f:2:1: policy.heal-address: unknown key; it belongs in [[server]] as `replace-foreign-address`",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), expected);
        }
    }

    #[test]
    fn a_flag_without_effect_is_valid() {
        assert_eq!(parse("queue.calm = false"), Ok(Config::default()));
        assert_eq!(
            parse("[queue]\ncalm = 5").unwrap_err(),
            "f:2:8: queue.calm: this key has no effect any more, and is not true or false: remove it"
        );
    }
}
