//! Parses the output of `nft --json list` (libnftables-json(5)).
//!
//! The output differs between versions of nft. So an unknown statement is no error: it becomes a condition that may
//! or may not hold.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
};

use serde::Deserialize;
use serde_json::{Deserializer, Map, Value as Json};

use super::{
    ConflictKind, ConflictingRule, Ruleset,
    devices::{DeviceHook, TableKey, listed_devices},
    expressions::{
        address_side, equals, field, implied_condition, is_set, mark_write, networks, number,
        range, ranges, reads_interface, unchanged_bits, undecidable,
    },
    mark_writes::MarkWrite,
    model::{
        BaseChain, Chain, ChangedMarkBits, Condition, DestinationNat, Field, Origin, Ranges, Rule,
        RuleVerdict, Table, TableFamily,
    },
};

/// A statement or an object in nft's JSON.
type Object = Map<String, Json>;

/// The output of nft for one command.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    nftables: Vec<Object>,
}

/// Parses the JSON output of any number of commands.
///
/// `listing` is the output of `nft --handle` for the same tables. It is used for the texts of rules, and for the
/// devices of chains at ingress and egress.
pub(crate) fn parse(json: &str, listing: &str) -> Result<Ruleset, serde_json::Error> {
    let mut objects = Vec::new();
    for document in Deserializer::from_str(json).into_iter() {
        let Document { nftables } = document?;
        objects.extend(nftables);
    }
    let (texts, listed) = (rule_texts(listing), listed_devices(listing));
    let mut reader = NftReader { texts, listed, ..NftReader::default() };
    // Rules refer to sets and helpers, which may be listed after them.
    for (kind, object) in objects.iter().flat_map(|object| object.iter()) {
        if let Some(object) = object.as_object() {
            reader.read_declaration(kind, object);
        }
    }
    for object in &objects {
        if let Some(rule) = object.get("rule").and_then(Json::as_object) {
            reader.read_rule(rule);
        }
    }
    reader.limit_policies_of_devices();
    Ok(Ruleset {
        unread: unread_tables(&objects),
        tables: reader.tables.into_values().filter(|table| !table.chains.is_empty()).collect(),
        conflicts: reader.conflicts,
        changed_mark_bits: reader.changed_mark_bits,
    })
}

#[derive(Default)]
struct NftReader<'a> {
    tables: BTreeMap<TableKey, Table>,
    /// The elements of named sets and maps.
    sets: HashMap<(TableKey, &'a str), &'a Json>,
    /// The devices of chains at ingress and egress. Each of their rules has this condition.
    devices: HashMap<(TableKey, &'a str), Condition>,
    /// The devices of these chains in the listing.
    listed: HashMap<(TableKey, &'a str), Vec<&'a str>>,
    /// The helper objects of type `ftp`.
    helpers: Vec<(TableKey, &'a str)>,
    /// Cache of named sets as ranges, because sets may be large and many rules may use one.
    ranges: HashMap<(TableKey, &'a str, Field), Option<Ranges>>,
    texts: HashMap<(TableFamily, &'a str, u64), &'a str>,
    conflicts: Vec<ConflictingRule>,
    changed_mark_bits: ChangedMarkBits,
}

impl<'a> NftReader<'a> {
    fn read_declaration(&mut self, kind: &str, object: &'a Object) {
        let table = if kind == "table" { "name" } else { "table" };
        let Some(key) = table_key(object, table) else { return };
        let name = text(object, "name");
        match kind {
            "table" => {
                let has = |flag: &str| {
                    object.get("flags").is_some_and(|flags| contains_name(flags, flag))
                };
                if !has("dormant") {
                    let (family, name) = key.clone();
                    let chains = BTreeMap::new();
                    let (origin, owned) = (Origin::Nftables, has("owner"));
                    self.tables
                        .insert(key, Table { origin, family, name, has_owner: owned, chains });
                }
            }
            "chain" => {
                if let (Some(table), Some(name)) = (self.tables.get_mut(&key), name) {
                    table.chains.entry(name.to_owned()).or_default().base = base_chain(object);
                    if let Some(hook) = text(object, "hook").and_then(DeviceHook::new) {
                        let listed = self.listed.get(&(key.clone(), name));
                        self.devices.insert((key, name), hook.on_devices(object, listed));
                    }
                }
            }
            "set" | "map" => {
                let changing = object.get("flags").is_some_and(|flags| {
                    contains_name(flags, "dynamic") || contains_name(flags, "timeout")
                });
                if let (Some(name), Some(elements), false) = (name, object.get("elem"), changing) {
                    self.sets.insert((key, name), elements);
                }
            }
            "ct helper" if text(object, "type") == Some("ftp") => {
                self.helpers.extend(name.map(|name| (key, name)));
            }
            _ => {}
        }
    }

    fn read_rule(&mut self, object: &'a Object) {
        let Some(key) = table_key(object, "table") else { return };
        let (Some(chain), Some(statements)) =
            (text(object, "chain"), object.get("expr").and_then(Json::as_array))
        else {
            return;
        };
        if !self.tables.contains_key(&key) {
            return;
        }
        let handle = object.get("handle").and_then(Json::as_u64);
        let text = handle
            .and_then(|handle| self.texts.get(&(key.0, key.1.as_str(), handle)).copied())
            .map(str::to_owned)
            .unwrap_or_else(|| match handle {
                Some(handle) => format!("rule with handle {handle}"),
                None => "a rule".to_owned(),
            });
        let mut rule = Rule::new(text);
        rule.conditions.extend(self.devices.get(&(key.clone(), chain)).cloned());
        for statement in statements {
            let Some((kind, content)) = statement.as_object().and_then(|one| one.iter().next())
            else {
                rule.conditions.push(Condition::Unknown);
                continue;
            };
            let read = ["left", "key"].iter().find_map(|part| content.get(part));
            rule.conditions.extend(read.and_then(implied_condition));
            rule.conditions.extend(self.looked_up_port(&key, kind, content));
            rule.destination_nat = rule.destination_nat.or_else(|| destination_nat(kind, content));
            if matches!(kind.as_str(), "snat" | "masquerade") {
                rule.source_ports = content.get("port").and_then(port_range);
            }
            if kind == "mangle" {
                rule.mark_writes.extend(written_mark(content));
            }
            match self.read_statement(&key, kind, content) {
                Statement::Nothing => {}
                Statement::Condition(condition) => rule.conditions.push(condition),
                Statement::Verdict(action) => rule.action = action,
                Statement::Mark(bits) => {
                    rule.changed_mark_bits |= bits;
                    self.changed_mark_bits.mark |= bits;
                }
                Statement::Conflict(kind) => {
                    let (family, table) = (key.0, key.1.as_str());
                    let conflict = ConflictingRule {
                        kind,
                        chain: format!("{family} {table} {chain}"),
                        rule: rule.text.clone(),
                        remedy: handle.map(|handle| {
                            format!("nft delete rule {family} {table} {chain} handle {handle}")
                        }),
                    };
                    match kind {
                        ConflictKind::Untracked | ConflictKind::Zone(_) | ConflictKind::Offload => {
                            rule.conflict = Some(Box::new(conflict));
                        }
                        _ => self.conflicts.push(conflict),
                    }
                }
            }
        }
        if let Some(table) = self.tables.get_mut(&key) {
            table.chains.entry(chain.to_owned()).or_default().rules.push(rule);
        }
    }

    /// Turns a dropping policy at ingress or egress into a rule for the devices of its chain.
    fn limit_policies_of_devices(&mut self) {
        for ((table, name), device) in &self.devices {
            let chain = self.tables.get_mut(table).and_then(|table| table.chains.get_mut(*name));
            if let Some(Chain { base: Some(base), rules }) = chain
                && mem::take(&mut base.policy_drops)
            {
                let (conditions, action) = (vec![device.clone()], RuleVerdict::Drop);
                rules.push(Rule { conditions, action, ..Rule::new("policy drop".to_owned()) });
            }
        }
    }

    fn read_statement(&mut self, key: &TableKey, kind: &str, content: &'a Json) -> Statement {
        match kind {
            "match" => {
                let left = content.get("left").unwrap_or(&Json::Null);
                Statement::Condition(
                    self.comparison(key, content).unwrap_or_else(|| undecidable(left)),
                )
            }
            "vmap" => Statement::Verdict(self.verdict_map(key, content)),
            "mangle" => self.mangle(content),
            "ct helper" if self.assigns_ftp(key, content) => {
                Statement::Conflict(ConflictKind::Helper)
            }
            "flow" => Statement::Conflict(ConflictKind::Offload),
            "notrack" => Statement::Conflict(ConflictKind::Untracked),
            "xt" => xtables_extension(content),
            // Statements after which the next statement always runs.
            "counter" | "log" | "comment" | "ct helper" | "ct timeout" | "ct expectation"
            | "set" | "map" | "dup" | "last" | "secmark" => Statement::Nothing,
            _ => match verdict(kind, content) {
                Some(action) => Statement::Verdict(action),
                None => Statement::Condition(Condition::Unknown),
            },
        }
    }

    fn comparison(&mut self, key: &TableKey, content: &'a Json) -> Option<Condition> {
        let (left, right) = (content.get("left")?, content.get("right")?);
        let op = content.get("op").and_then(Json::as_str).unwrap_or("==");
        if reads_interface(left) {
            return self.interfaces(key, left, right, op);
        }
        if let Some(side) = address_side(left) {
            let negate = match op {
                "==" | "in" => false,
                "!=" => true,
                _ => return None,
            };
            let right = match right.as_str().and_then(|name| name.strip_prefix('@')) {
                Some(name) => self.sets.get(&(key.clone(), name)).copied()?,
                None => right,
            };
            let condition = Condition::Address { side, networks: networks(right)?, negated: false };
            return Some(condition.negated_if(negate));
        }
        let (field, mask) = field(left)?;
        let ranges = match right.as_str().and_then(|name| name.strip_prefix('@')) {
            Some(name) => self.set_ranges(key, name, field)?,
            None => ranges(field, right)?,
        };
        let one = || match *ranges {
            [(from, to)] if from == to => Some(from),
            _ => None,
        };
        let above = |from: Option<u32>| match from {
            Some(from) => Condition::field_in(field, mask, [(from, u32::MAX)]),
            None => Condition::Any(Vec::new()),
        };
        Some(match op {
            // With a set, `in` looks up the whole value. Without one it asks for at least one of the bits.
            "in" if !is_set(right) => Condition::has_any_bit(field, one()?),
            "==" | "in" => Condition::field_in(field, mask, ranges),
            // Every state is a single bit, and `!= a,b` holds if none of them is set.
            "!=" if field == Field::State && !is_set(right) => {
                Condition::has_any_bit(field, one()?).negated_if(true)
            }
            "!=" => Condition::field_in(field, mask, ranges).negated_if(true),
            ">" => above(one()?.checked_add(1)),
            ">=" => above(Some(one()?)),
            "<" => above(Some(one()?)).negated_if(true),
            "<=" => match one()?.checked_add(1) {
                Some(from) => above(Some(from)).negated_if(true),
                None => Condition::field_in(field, mask, [(0, u32::MAX)]),
            },
            _ => return None,
        })
    }

    fn interfaces(&self, key: &TableKey, left: &Json, right: &Json, op: &str) -> Option<Condition> {
        let negate = match op {
            "==" | "in" => false,
            "!=" => true,
            _ => return None,
        };
        let elements = match right.as_str().and_then(|name| name.strip_prefix('@')) {
            Some(name) => self.sets.get(&(key.clone(), name)).copied()?,
            None => right.get("set").unwrap_or(right),
        };
        let Some(elements) = elements.as_array() else {
            return Some(equals(left, elements)?.negated_if(negate));
        };
        let one = |element| equals(left, element).unwrap_or_else(|| undecidable(left));
        Some(Condition::Any(elements.iter().map(one).collect()).negated_if(negate))
    }

    fn set_ranges(&mut self, key: &TableKey, name: &'a str, field: Field) -> Option<Ranges> {
        let at = (key.clone(), name, field);
        if let Some(known) = self.ranges.get(&at) {
            return known.clone();
        }
        let found = self.sets.get(&(key.clone(), name)).and_then(|set| ranges(field, set));
        self.ranges.insert(at, found.clone());
        found
    }

    fn verdict_map(&mut self, key: &TableKey, content: &'a Json) -> RuleVerdict {
        let looked_up = content.get("key");
        let data = content.get("data");
        let elements = match data.and_then(Json::as_str).and_then(|name| name.strip_prefix('@')) {
            Some(name) => self.sets.get(&(key.clone(), name)).copied(),
            None => data.and_then(|data| data.get("set")),
        };
        let Some(elements) = elements.and_then(Json::as_array) else { return RuleVerdict::Unknown };
        let element = |element: &Json| {
            let pair = element.as_array()?;
            let (key, verdicts) = (pair.first()?, pair.get(1)?.as_object()?);
            let condition = looked_up.and_then(|looked_up| equals(looked_up, key));
            let condition = condition.unwrap_or(Condition::Unknown);
            let (kind, content) = verdicts.iter().next()?;
            Some((condition, verdict(kind, content).unwrap_or(RuleVerdict::Unknown)))
        };
        RuleVerdict::Map(
            elements
                .iter()
                .map(|one| element(one).unwrap_or((Condition::Unknown, RuleVerdict::Unknown)))
                .collect(),
        )
    }

    /// The destination ports in a concatenation, or in the keys of a translation map. The statement does nothing for
    /// packets with other ports.
    fn looked_up_port(&self, key: &TableKey, kind: &str, content: &'a Json) -> Option<Condition> {
        let (looked_up, elements) = match kind {
            "match" if content.get("op").is_none_or(|op| op == "==") => {
                let left = content.get("left").filter(|left| left.get("concat").is_some())?;
                (left, content.get("right")?)
            }
            "dnat" => {
                let map = ["addr", "port"].iter().find_map(|part| content.get(part)?.get("map"))?;
                (map.get("key")?, map.get("data")?)
            }
            _ => return None,
        };
        let elements = match elements.as_str().and_then(|name| name.strip_prefix('@')) {
            Some(name) => self.sets.get(&(key.clone(), name)).copied()?,
            None => elements.get("set").unwrap_or(elements),
        };
        let is_port = |part: &Json| field(part) == Some((Field::DestinationPort, u32::MAX));
        let place = match looked_up.get("concat").and_then(Json::as_array) {
            Some(parts) => Some(parts.iter().position(is_port)?),
            None if is_port(looked_up) => None,
            None => return None,
        };
        let port = |element: &Json| {
            let element = match (kind, element.as_array()) {
                ("dnat", Some(pair)) => pair.first()?,
                _ => element,
            };
            let element = element.get("elem").and_then(|inner| inner.get("val")).unwrap_or(element);
            let part = match place {
                Some(at) => element.get("concat")?.as_array()?.get(at)?,
                None => element,
            };
            range(Field::DestinationPort, part)
        };
        let ranges: Option<Ranges> = match elements.as_array() {
            Some(elements) => elements.iter().map(port).collect(),
            None => Some([port(elements)?].into()),
        };
        Some(Condition::field_in(Field::DestinationPort, u32::MAX, ranges?))
    }

    fn mangle(&mut self, content: &Json) -> Statement {
        let ct_key = content.get("key").and_then(|key| key.get("ct")?.get("key")?.as_str());
        if ct_key == Some("zone") {
            let value = content.get("value").and_then(Json::as_u64);
            let zone = value.and_then(|zone| u16::try_from(zone).ok());
            return match zone {
                Some(0) => Statement::Nothing,
                _ => Statement::Conflict(ConflictKind::Zone(zone)),
            };
        }
        let Some(changed) = content.get("key").and_then(field) else { return Statement::Nothing };
        let unchanged = content.get("value").map_or(0, |value| unchanged_bits(value, changed.0));
        match changed.0 {
            Field::CtMark => {
                self.changed_mark_bits.ct_mark |= !unchanged;
                Statement::Conflict(ConflictKind::CtMark { bits: !unchanged })
            }
            Field::PacketMark => {
                if content.get("value").is_some_and(reads_ct_mark) {
                    self.changed_mark_bits.restored |= !unchanged;
                }
                Statement::Mark(!unchanged)
            }
            _ => Statement::Nothing,
        }
    }

    /// Whether a `ct helper set` statement may assign the kernel's FTP helper, by name or by a map.
    fn assigns_ftp(&self, key: &TableKey, content: &Json) -> bool {
        let mut of_table = self.helpers.iter().filter(|(table, _)| table == key);
        match content.as_str() {
            Some(name) => of_table.any(|(_, helper)| *helper == name),
            None => of_table.next().is_some(),
        }
    }
}

enum Statement {
    Nothing,
    Condition(Condition),
    Verdict(RuleVerdict),
    /// The statement may change these bits of the packet mark.
    Mark(u32),
    Conflict(ConflictKind),
}

/// Whether an expression, or a part of it, is the ct mark.
fn reads_ct_mark(expression: &Json) -> bool {
    match expression {
        Json::Array(parts) => parts.iter().any(reads_ct_mark),
        Json::Object(parts) => {
            field(expression).is_some_and(|(field, _)| field == Field::CtMark)
                || parts.values().any(reads_ct_mark)
        }
        _ => false,
    }
}

fn text<'a>(object: &'a Object, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str()
}

/// The table of an object; `None` for families that see no FTP connection.
fn table_key(object: &Object, table: &str) -> Option<TableKey> {
    Some((text(object, "family")?.parse().ok()?, text(object, table)?.to_owned()))
}

/// The tables of the family `bridge` with rules or policies that may drop packets, because no chain of a bridge is
/// evaluated here. Packets of the bridge's own addresses pass its chains at input and output.
fn unread_tables(objects: &[Object]) -> BTreeSet<String> {
    let all = objects.iter().flat_map(Object::iter);
    let of_bridges = all.filter_map(|(kind, object)| {
        let object =
            object.as_object().filter(|object| text(object, "family") == Some("bridge"))?;
        let drops = match kind.as_str() {
            "chain" => text(object, "policy") == Some("drop"),
            "rule" => object.get("expr").is_some_and(may_drop),
            _ => false,
        };
        drops.then(|| format!("bridge {}", text(object, "table").unwrap_or_default()))
    });
    of_bridges.collect()
}

/// Whether statements may drop a packet.
fn may_drop(statements: &Json) -> bool {
    match statements {
        Json::Array(parts) => parts.iter().any(may_drop),
        Json::Object(parts) => parts.iter().any(|(kind, content)| {
            matches!(kind.as_str(), "drop" | "reject" | "queue")
                || kind == "data" && content.is_string()
                || may_drop(content)
        }),
        _ => false,
    }
}

/// Whether `value` is `name` or a list that contains it.
fn contains_name(value: &Json, name: &str) -> bool {
    match value {
        Json::Array(list) => list.iter().any(|one| one.as_str() == Some(name)),
        other => other.as_str() == Some(name),
    }
}

fn base_chain(chain: &Object) -> Option<BaseChain> {
    let priority = chain.get("prio").and_then(Json::as_i64).unwrap_or(0) as i32;
    let hook = text(chain, "hook")?;
    let (hook, priority) = match DeviceHook::new(hook) {
        Some(device_hook) => device_hook.place(priority),
        None => (hook.parse().ok()?, priority),
    };
    Some(BaseChain {
        hook,
        priority,
        is_nat: text(chain, "type") == Some("nat"),
        policy_drops: text(chain, "policy") == Some("drop"),
    })
}

/// What a `mangle` statement writes into a mark.
fn written_mark(content: &Json) -> Option<MarkWrite> {
    mark_write(field(content.get("key")?)?.0, content.get("value")?)
}

/// The destination translation of a statement, if it has one.
fn destination_nat(kind: &str, content: &Json) -> Option<DestinationNat> {
    match kind {
        "dnat" => Some(DestinationNat {
            address: content.get("addr").and_then(Json::as_str).and_then(|text| text.parse().ok()),
            ports: content.get("port").and_then(port_range),
        }),
        "redirect" | "tproxy" => Some(DestinationNat::default()),
        _ => None,
    }
}

/// A port, or an inclusive range of ports.
fn port_range(value: &Json) -> Option<(u16, u16)> {
    let ends = value.get("range").and_then(Json::as_array);
    let (first, last) = match ends.map(Vec::as_slice) {
        Some([first, last]) => (first, last),
        _ => (value, value),
    };
    Some((u16::try_from(number(first)?).ok()?, u16::try_from(number(last)?).ok()?))
}

fn verdict(kind: &str, content: &Json) -> Option<RuleVerdict> {
    let target = || Some(content.get("target")?.as_str()?.to_owned());
    Some(match kind {
        "accept" | "snat" | "dnat" | "masquerade" | "redirect" => RuleVerdict::Accept,
        "drop" | "reject" => RuleVerdict::Drop,
        "queue" => RuleVerdict::Queue,
        "return" => RuleVerdict::Return,
        "continue" => RuleVerdict::Continue,
        "jump" => target().map_or(RuleVerdict::Unknown, RuleVerdict::Jump),
        "goto" => target().map_or(RuleVerdict::Unknown, RuleVerdict::Goto),
        "synproxy" | "tproxy" | "fwd" => RuleVerdict::Unknown,
        _ => return None,
    })
}

/// An xtables match or target. nft knows only its name.
fn xtables_extension(content: &Json) -> Statement {
    let part = |name| content.get(name).and_then(Json::as_str);
    match (part("type"), part("name")) {
        (Some("match"), Some("comment")) => Statement::Nothing,
        (Some("target"), Some(name)) => Statement::Verdict(super::xtables::target_verdict(name)),
        _ => Statement::Condition(Condition::Unknown),
    }
}

/// The texts of rules by table and handle.
fn rule_texts(listing: &str) -> HashMap<(TableFamily, &str, u64), &str> {
    let mut texts = HashMap::new();
    let mut table = None;
    for line in listing.lines() {
        let Some((text, handle)) = line.rsplit_once(" # handle ") else { continue };
        if let Some(name) = text.strip_prefix("table ") {
            let mut words = name.split_whitespace();
            table =
                words.next().and_then(|word| word.parse::<TableFamily>().ok()).zip(words.next());
        } else if let (Some((family, name)), Ok(handle)) = (table, handle.trim().parse()) {
            // `chain x { # handle 1`: chains have handles of their own.
            if !text.ends_with('{') {
                texts.insert((family, name, handle), text.trim());
            }
        }
    }
    texts
}
