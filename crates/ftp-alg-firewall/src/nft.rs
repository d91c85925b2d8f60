//! Parses the output of `nft --json list` (libnftables-json(5)).
//!
//! The output differs between versions of nft. So an unknown statement is no error: it becomes a condition that may
//! or may not hold.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
};

use serde_json::{Deserializer, Map, Value as Json};

use super::{
    ConflictKind,
    expressions::{
        Operand, field, implied_condition, is_set, mark_write, networks, number, range, ranges,
        without_options,
    },
    model::{
        BaseChain, Chain, Condition, DestinationNat, Field, Hook, MarkWrite, Origin, Ranges, Rule,
        RuleVerdict, Side, Table, TableFamily,
    },
};

/// A statement or an object in nft's JSON.
type Object = Map<String, Json>;

/// The family and the name of a table.
type TableKey<'a> = (TableFamily, &'a str);

/// Parses the JSON output of any number of commands.
///
/// `listing` is the output of `nft --handle` for the same tables. It is used for the texts of rules, and for the
/// devices of chains at ingress and egress. Returns the names of tables that are not evaluated, too.
pub(crate) fn parse(
    json: &str,
    listing: &str,
) -> Result<(Vec<Table>, BTreeSet<String>), serde_json::Error> {
    let documents = Deserializer::from_str(json).into_iter::<HashMap<String, Vec<Object>>>();
    let documents = documents.collect::<Result<Vec<_>, _>>()?;
    let objects = documents.into_iter().filter_map(|mut document| document.remove("nftables"));
    let objects: Vec<Object> = objects.flatten().collect();
    let mut reader = NftReader { listing: Listing::read(listing), ..NftReader::default() };
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
    let tables = reader.tables.into_values().filter(|table| !table.chains.is_empty()).collect();
    Ok((tables, unread_tables(&objects)))
}

#[derive(Default)]
struct NftReader<'a> {
    listing: Listing<'a>,
    tables: BTreeMap<TableKey<'a>, Table>,
    /// The elements of named sets and maps.
    sets: HashMap<(TableKey<'a>, &'a str), &'a Json>,
    /// The devices of chains at ingress and egress. Each of their rules has this condition.
    devices: HashMap<(TableKey<'a>, &'a str), Condition>,
    /// The helper objects of type `ftp`.
    helpers: Vec<(TableKey<'a>, &'a str)>,
    /// Cache of named sets as ranges, because sets may be large and many rules may use one.
    ranges: HashMap<(TableKey<'a>, &'a str, Field), Option<Ranges>>,
}

impl<'a> NftReader<'a> {
    fn read_declaration(&mut self, kind: &str, object: &'a Object) {
        let table = if kind == "table" { "name" } else { "table" };
        let Some(key) = table_key(object, table) else { return };
        let name = text(object, "name");
        match kind {
            "table" if has_flag(object, "dormant") => {}
            "table" => {
                let table = Table {
                    origin: Origin::Nftables,
                    family: key.0,
                    name: key.1.to_owned(),
                    has_owner: has_flag(object, "owner"),
                    chains: BTreeMap::new(),
                };
                self.tables.insert(key, table);
            }
            "chain" => {
                if let (Some(table), Some(name)) = (self.tables.get_mut(&key), name) {
                    table.chains.entry(name.to_owned()).or_default().base = base_chain(object);
                    let side = match text(object, "hook") {
                        Some("ingress") => Side::Source,
                        Some("egress") => Side::Destination,
                        _ => return,
                    };
                    let listed = self.listing.devices.get(&(key, name));
                    self.devices.insert((key, name), on_devices(side, object, listed));
                }
            }
            "set" | "map" => {
                let changing = has_flag(object, "dynamic") || has_flag(object, "timeout");
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
        let key = table_key(object, "table").filter(|key| self.tables.contains_key(key));
        let statements = object.get("expr").and_then(Json::as_array);
        let (Some(key), Some(chain), Some(statements)) = (key, text(object, "chain"), statements)
        else {
            return;
        };
        let handle = object.get("handle").and_then(Json::as_u64);
        let text = match handle {
            Some(handle) => match self.listing.texts.get(&(key, handle)) {
                Some(text) => (*text).to_owned(),
                None => format!("rule with handle {handle}"),
            },
            None => "a rule".to_owned(),
        };
        let mut rule = Rule { text, handle, ..Rule::default() };
        rule.conditions.extend(self.devices.get(&(key, chain)).cloned());
        for statement in statements {
            match statement.as_object().and_then(|one| one.iter().next()) {
                Some((kind, content)) => self.read_statement(&mut rule, key, kind, content),
                None => rule.conditions.push(Condition::Unknown),
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
                let text = "policy drop".to_owned();
                rules.push(Rule { conditions, action, text, ..Rule::default() });
            }
        }
    }

    /// Adds what a statement does to `rule`, and how it interferes with us.
    fn read_statement(
        &mut self,
        rule: &mut Rule,
        key: TableKey<'a>,
        kind: &str,
        content: &'a Json,
    ) {
        let read = ["left", "key"].iter().find_map(|part| content.get(part));
        rule.conditions.extend(read.and_then(implied_condition));
        rule.conditions.extend(self.looked_up_port(key, kind, content));
        match kind {
            "dnat" => {
                let address = content.get("addr").and_then(Json::as_str);
                let ports = content.get("port").and_then(port_range);
                let address = address.and_then(|text| text.parse().ok());
                rule.destination_nat.get_or_insert(DestinationNat { address, ports });
            }
            "redirect" | "tproxy" => {
                rule.destination_nat.get_or_insert_default();
            }
            "snat" | "masquerade" => rule.source_ports = content.get("port").and_then(port_range),
            _ => {}
        }
        match kind {
            "match" => {
                let left = Operand::read(content.get("left").unwrap_or(&Json::Null));
                let condition = self.comparison(key, &left, content);
                rule.conditions.push(condition.unwrap_or_else(|| left.undecidable()));
            }
            "vmap" => rule.action = self.verdict_map(key, content),
            "mangle" => {
                rule.mark_writes.extend(written_mark(content));
                rule.conflicts.extend(conntrack_zone(content));
            }
            "ct helper" if self.assigns_ftp(key, content) => {
                rule.conflicts.push(ConflictKind::Helper);
            }
            "flow" => rule.conflicts.push(ConflictKind::Offload),
            "notrack" => rule.conflicts.push(ConflictKind::Untracked),
            "xt" => read_xtables_extension(rule, content),
            // Statements after which the next statement always runs.
            "counter" | "log" | "comment" | "ct helper" | "ct timeout" | "ct expectation"
            | "set" | "map" | "dup" | "last" | "secmark" => {}
            _ => match verdict(kind, content) {
                Some(action) => rule.action = action,
                None => rule.conditions.push(Condition::Unknown),
            },
        }
    }

    /// The elements of a set, by its name or as they stand here. A value that is no set is returned as it is.
    fn elements(&self, key: TableKey<'a>, value: &'a Json) -> Option<&'a Json> {
        match value.as_str().and_then(|name| name.strip_prefix('@')) {
            Some(name) => self.sets.get(&(key, name)).copied(),
            None => Some(value.get("set").unwrap_or(value)),
        }
    }

    fn comparison(
        &mut self,
        key: TableKey<'a>,
        left: &Operand,
        content: &'a Json,
    ) -> Option<Condition> {
        let right = content.get("right")?;
        let op = content.get("op").and_then(Json::as_str).unwrap_or("==");
        let negated = match op {
            "==" | "in" => Some(false),
            "!=" => Some(true),
            _ => None,
        };
        if left.reads_interface() {
            let elements = self.elements(key, right)?;
            let one = |element| left.equals(element).unwrap_or_else(|| left.undecidable());
            let condition = match elements.as_array() {
                Some(elements) => Condition::Any(elements.iter().map(one).collect()),
                None => left.equals(elements)?,
            };
            return Some(condition.negated_if(negated?));
        }
        let (field, mask) = match *left {
            Operand::Field(field, mask) => (field, mask),
            Operand::Address(side) => {
                let networks = networks(self.elements(key, right)?)?;
                return Some(Condition::address(side, networks).negated_if(negated?));
            }
            _ => return None,
        };
        let ranges = match right.as_str().and_then(|name| name.strip_prefix('@')) {
            Some(name) => self.set_ranges(key, name, field)?,
            None => ranges(field, right)?,
        };
        let one = || match *ranges {
            [(from, to)] if from == to => Some(from),
            _ => None,
        };
        let range = match op {
            // With a set, `in` looks up the whole value. Without one it asks for at least one of the bits.
            "in" if !is_set(right) => return Some(Condition::has_any_bit(field, one()?)),
            // Every state is a single bit, and `!= a,b` holds if none of them is set.
            "!=" if field == Field::State && !is_set(right) => {
                return Some(Condition::has_any_bit(field, one()?).negated_if(true));
            }
            "==" | "in" | "!=" => {
                return Some(Condition::field_in(field, mask, ranges).negated_if(negated?));
            }
            ">" => one()?.checked_add(1).map(|first| (first, u32::MAX)),
            ">=" => Some((one()?, u32::MAX)),
            "<" => one()?.checked_sub(1).map(|last| (0, last)),
            "<=" => Some((0, one()?)),
            _ => return None,
        };
        Some(Condition::field_in(field, mask, range.into_iter().collect::<Ranges>()))
    }

    fn set_ranges(&mut self, key: TableKey<'a>, name: &'a str, field: Field) -> Option<Ranges> {
        let at = (key, name, field);
        if let Some(known) = self.ranges.get(&at) {
            return known.clone();
        }
        let found = self.sets.get(&(key, name)).and_then(|set| ranges(field, set));
        self.ranges.insert(at, found.clone());
        found
    }

    fn verdict_map(&self, key: TableKey<'a>, content: &'a Json) -> RuleVerdict {
        let looked_up = content.get("key").map(Operand::read);
        let elements = content.get("data").and_then(|data| self.elements(key, data)?.as_array());
        let Some(elements) = elements else { return RuleVerdict::Unknown };
        let element = |element: &Json| {
            let pair = element.as_array()?;
            let (key, verdicts) = (pair.first()?, pair.get(1)?.as_object()?);
            let condition = looked_up.as_ref().and_then(|looked_up| looked_up.equals(key));
            let condition = condition.unwrap_or(Condition::Unknown);
            let (kind, content) = verdicts.iter().next()?;
            Some((condition, verdict(kind, content).unwrap_or(RuleVerdict::Unknown)))
        };
        let unknown = || (Condition::Unknown, RuleVerdict::Unknown);
        RuleVerdict::Map(elements.iter().map(|one| element(one).unwrap_or_else(unknown)).collect())
    }

    /// The destination ports in a concatenation, or in the keys of a translation map. The statement does nothing for
    /// packets with other ports.
    fn looked_up_port(
        &self,
        key: TableKey<'a>,
        kind: &str,
        content: &'a Json,
    ) -> Option<Condition> {
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
        let elements = self.elements(key, elements)?;
        let port_operand = Operand::Field(Field::DestinationPort, u32::MAX);
        let place = match Operand::read(looked_up) {
            Operand::Concatenation(parts) => Some(parts.iter().position(|p| *p == port_operand)?),
            operand if operand == port_operand => None,
            _ => return None,
        };
        let port = |element: &Json| {
            let element = match (kind, element.as_array()) {
                ("dnat", Some(pair)) => pair.first()?,
                _ => element,
            };
            let element = without_options(element);
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

    /// Whether a `ct helper set` statement may assign the kernel's FTP helper, by name or by a map.
    fn assigns_ftp(&self, key: TableKey<'a>, content: &Json) -> bool {
        let mut of_table = self.helpers.iter().filter(|(table, _)| *table == key);
        match content.as_str() {
            Some(name) => of_table.any(|(_, helper)| *helper == name),
            None => of_table.next().is_some(),
        }
    }
}

fn text<'a>(object: &'a Object, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str()
}

/// The table of an object; `None` for families that see no FTP connection.
fn table_key<'a>(object: &'a Object, table: &str) -> Option<TableKey<'a>> {
    Some((text(object, "family")?.parse().ok()?, text(object, table)?))
}

/// The tables of the family `bridge`, which are not evaluated. Packets of the bridge's own addresses pass its chains at
/// input and output.
fn unread_tables(objects: &[Object]) -> BTreeSet<String> {
    let tables = objects.iter().filter_map(|object| object.get("table")?.as_object());
    let of_bridges = tables.filter(|table| text(table, "family") == Some("bridge"));
    of_bridges.map(|one| format!("bridge {}", text(one, "name").unwrap_or_default())).collect()
}

/// Whether the flags of an object, a name or a list of names, contain `flag`.
fn has_flag(object: &Object, flag: &str) -> bool {
    object.get("flags").is_some_and(|flags| match flags {
        Json::Array(list) => list.iter().any(|one| one == flag),
        other => other == flag,
    })
}

fn base_chain(chain: &Object) -> Option<BaseChain> {
    let priority = chain.get("prio").and_then(Json::as_i64).unwrap_or(0) as i32;
    // Hooks of network devices have the packets of single ones. A chain there is evaluated before all chains at
    // prerouting, or behind all chains at postrouting, and each of its rules has the condition of `on_devices`.
    let (hook, priority) = match text(chain, "hook")? {
        "ingress" => (Hook::Prerouting, priority.saturating_add(i32::MIN / 2)),
        "egress" => (Hook::Postrouting, priority.saturating_add(i32::MAX / 2)),
        hook => (hook.parse().ok()?, priority),
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

/// The conntrack zone into which a `mangle` statement puts packets, if it does.
fn conntrack_zone(content: &Json) -> Option<ConflictKind> {
    let is_zone = content.get("key")?.get("ct")?.get("key")? == "zone";
    let value = content.get("value").and_then(Json::as_u64);
    let zone = value.and_then(|zone| u16::try_from(zone).ok());
    (is_zone && zone != Some(0)).then_some(ConflictKind::Zone(zone))
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

/// Reads an xtables match or target. nft knows only its name.
fn read_xtables_extension(rule: &mut Rule, content: &Json) {
    let part = |name| content.get(name).and_then(Json::as_str);
    match (part("type"), part("name")) {
        (Some("match"), Some("comment")) => {}
        (Some("target"), Some(name)) => rule.action = super::xtables::target_verdict(name),
        _ => rule.conditions.push(Condition::Unknown),
    }
}

/// The condition that a packet arrives at one of the devices of `chain`, or leaves there. `listed` has their names, if the
/// listing has.
fn on_devices(side: Side, chain: &Object, listed: Option<&Vec<&str>>) -> Condition {
    let names = match chain.get("dev") {
        Some(Json::Array(names)) => names.iter().filter_map(Json::as_str).collect(),
        name => name.and_then(Json::as_str).into_iter().collect::<Vec<_>>(),
    };
    let names = if names.is_empty() { listed } else { Some(&names) };
    let Some(names) = names else { return Condition::Unknown };
    let device = |name: &&str| Condition::interface(side, name, '*');
    Condition::Any(names.iter().map(device).collect())
}

/// What only the listing has.
#[derive(Default)]
struct Listing<'a> {
    /// The texts of rules by their handles.
    texts: HashMap<(TableKey<'a>, u64), &'a str>,
    /// The devices of chains at ingress and egress: nft 1.0.6 leaves them out in JSON.
    devices: HashMap<(TableKey<'a>, &'a str), Vec<&'a str>>,
}

impl<'a> Listing<'a> {
    fn read(listing: &'a str) -> Self {
        let mut found = Self::default();
        let (mut table, mut chain) = (None, "");
        for line in listing.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("table") => {
                    table = words.next().and_then(|word| word.parse().ok()).zip(words.next());
                }
                Some("chain") => chain = words.next().unwrap_or_default(),
                _ => {}
            }
            let Some(table) = table else { continue };
            let devices = [" hook ingress device", " hook egress device"];
            if let Some((_, devices)) = devices.iter().find_map(|hook| line.split_once(hook)) {
                // `"a"`, or `s = { "a", "b" }`.
                let end = devices.find(" priority ").unwrap_or(devices.len());
                let names = devices[..end].split('"').skip(1).step_by(2).collect();
                found.devices.insert((table, chain), names);
            }
            // `chain x { # handle 1`: chains have handles of their own.
            if let Some((text, handle)) = line.rsplit_once(" # handle ")
                && let (false, Ok(handle)) = (text.ends_with('{'), handle.trim().parse())
            {
                found.texts.insert((table, handle), text.trim());
            }
        }
        found
    }
}
