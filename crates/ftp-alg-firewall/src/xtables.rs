//! Parses the output of `iptables-save`, for both IP versions and both variants.
//!
//! Only the extensions that say something about our packets are known. Every other option becomes a condition that
//! may or may not hold.

use std::{collections::BTreeMap, iter::Peekable, slice::Iter};

use super::{
    ConflictKind,
    model::{
        BaseChain, Chain, Condition, DestinationNat, Field, Hook, IpVersion, MarkWrite, Origin,
        Ranges, Rule, RuleVerdict, Side, Table, TableFamily,
    },
    networks::spanning,
    packet_fields::number,
    sample_packets::WrittenMark,
};

/// The priorities of the tables' base chains (linux/netfilter_ipv4.h).
const PRIORITIES: [(&str, i32); 5] =
    [("raw", -300), ("mangle", -150), ("nat", -100), ("filter", 0), ("security", 50)];

/// The start of the names of the chains of `ftp-alg rules iptables`, which an operator may have loaded.
const OURS: &str = "FTP_ALG";

/// Parses the output of `iptables-save` for one IP version.
pub(crate) fn parse(text: &str, origin: Origin, ip: IpVersion) -> Vec<Table> {
    let mut tables = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix('*') else { continue };
        let body: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != "COMMIT").collect();
        tables.push(table(name.trim(), &body, origin, ip));
    }
    tables
}

fn table(name: &str, lines: &[&str], origin: Origin, ip: IpVersion) -> Table {
    let mut chains: BTreeMap<String, Chain> = BTreeMap::new();
    let priority = PRIORITIES.iter().find(|(table, _)| *table == name).map_or(0, |(_, at)| *at);
    for line in lines {
        let mut words = line.strip_prefix(':').unwrap_or_default().split_whitespace();
        let (Some(chain), Some(policy)) = (words.next(), words.next()) else { continue };
        // Only built-in chains have a policy. They are named after their hooks.
        let hook = chain.parse::<Hook>().ok().filter(|_| policy != "-");
        let is_nat = name == "nat";
        let policy_drops = policy == "DROP";
        let base = hook.map(|hook| BaseChain { hook, priority, is_nat, policy_drops });
        chains.insert(chain.to_owned(), Chain { base, rules: Vec::new() });
    }
    // Only chains of the first lines are targets of jumps.
    let mut rules = Vec::new();
    for line in lines {
        // With counters (`-c`), a line starts with `[12:345]`.
        let start = if line.starts_with('[') { line.find("-A ").unwrap_or(0) } else { 0 };
        let Some(rest) = line.get(start..).and_then(|line| line.strip_prefix("-A ")) else {
            continue;
        };
        let words = split_words(rest);
        let Some((chain, options)) = words.split_first() else { continue };
        let mut rule = Rule { text: format!("-A {rest}"), ..Rule::default() };
        read_options(&mut rule, options, |name| chains.contains_key(name));
        if chain.starts_with(OURS) {
            rule.mark_writes.clear();
        } else if matches!(&rule.action, RuleVerdict::Jump(to) if to.starts_with(OURS)) {
            rule.conflicts.push(ConflictKind::Queueing);
        }
        rules.push((chain.clone(), rule));
    }
    for (chain, rule) in rules {
        chains.entry(chain).or_default().rules.push(rule);
    }
    let (family, name) = (TableFamily::from(ip), name.to_owned());
    Table { origin, family, name, has_owner: false, chains }
}

/// The verdict of a target that is not a chain.
pub(crate) fn target_verdict(name: &str) -> RuleVerdict {
    match name {
        "ACCEPT" | "DNAT" | "SNAT" | "MASQUERADE" | "REDIRECT" | "NETMAP" => RuleVerdict::Accept,
        "DROP" | "REJECT" => RuleVerdict::Drop,
        "QUEUE" | "NFQUEUE" => RuleVerdict::Queue,
        "RETURN" => RuleVerdict::Return,
        "AUDIT" | "CHECKSUM" | "CLASSIFY" | "CONNMARK" | "CONNSECMARK" | "CT" | "DSCP" | "ECN"
        | "HL" | "HMARK" | "IDLETIMER" | "LED" | "LOG" | "MARK" | "NFLOG" | "NOTRACK"
        | "RATEEST" | "SECMARK" | "SET" | "TCPMSS" | "TCPOPTSTRIP" | "TEE" | "TOS" | "TRACE"
        | "TTL" | "ULOG" => RuleVerdict::Continue,
        _ => RuleVerdict::Unknown,
    }
}

/// Reads the options of a rule. `is_chain` says whether a target is a chain.
fn read_options(rule: &mut Rule, words: &[String], is_chain: impl Fn(&str) -> bool) {
    let mut extension = "";
    let mut rest = words.iter().peekable();
    while let Some(word) = rest.next() {
        let negated = word == "!";
        let Some(option) = (if negated { rest.next() } else { Some(word) }) else { break };
        if option == "--comment" {
            rest.next();
            continue;
        }
        let values = values(&mut rest);
        let value = values.first().copied().unwrap_or_default();
        match option.as_str() {
            "-m" | "--match" => {
                extension = value;
                // An unknown extension may be a condition by its name alone.
                if !NO_CONDITIONS.split(' ').any(|known| known == value) {
                    rule.conditions.push(Condition::Unknown);
                }
            }
            "-j" | "--jump" => {
                rule.action = match is_chain(value) {
                    true => RuleVerdict::Jump(value.to_owned()),
                    false => target_verdict(value),
                };
                let words: Vec<&str> = rest.map(String::as_str).collect();
                return apply_target(rule, value, &words);
            }
            "-g" | "--goto" => rule.action = RuleVerdict::Goto(value.to_owned()),
            option => {
                let one = condition(extension, option, &values).unwrap_or(Condition::Unknown);
                rule.conditions.push(one.negated_if(negated));
            }
        }
    }
}

/// The values of an option: all words up to the next option.
fn values<'a>(rest: &mut Peekable<Iter<'a, String>>) -> Vec<&'a str> {
    let mut values = Vec::new();
    while let Some(value) = rest.next_if(|next| !is_option(next) && *next != "!") {
        values.push(value.as_str());
    }
    values
}

/// The word behind `option`.
fn word_after<'a>(words: &[&'a str], option: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| *word == option)?;
    words.get(at + 1).copied()
}

/// Adds what a target does to marks and addresses, and how it interferes with us.
fn apply_target(rule: &mut Rule, name: &str, words: &[&str]) {
    rule.mark_writes.extend(mark_write(name, words));
    let value = |option| word_after(words, option);
    match name {
        "DNAT" => {
            let target = value("--to-destination").map(parse_destination);
            rule.destination_nat = Some(target.unwrap_or_default());
        }
        "REDIRECT" | "TPROXY" | "NETMAP" => rule.destination_nat = Some(DestinationNat::default()),
        "SNAT" => {
            rule.source_ports = value("--to-source").and_then(|to| parse_destination(to).ports);
        }
        "MASQUERADE" => rule.source_ports = value("--to-ports").and_then(parse_ports),
        "CT" => {
            let helper = value("--helper").is_some_and(|helper| helper.starts_with("ftp"));
            let untracked = words.contains(&"--notrack").then_some(ConflictKind::Untracked);
            let zone = ["--zone", "--zone-orig", "--zone-reply"].into_iter().find_map(value);
            let zone = zone.filter(|zone| *zone != "0");
            let zone = zone.map(|zone| ConflictKind::Zone(zone.parse().ok()));
            rule.conflicts.extend(helper.then_some(ConflictKind::Helper));
            rule.conflicts.extend(untracked.or(zone));
        }
        "NOTRACK" => rule.conflicts.push(ConflictKind::Untracked),
        _ => {}
    }
}

/// What a target writes into a mark (xt_mark.c, xt_connmark.c).
fn mark_write(name: &str, words: &[&str]) -> Option<MarkWrite> {
    let has = |option| words.contains(&option);
    let after = |option| word_after(words, option);
    let target = match name {
        "CONNMARK" if !has("--restore-mark") => Field::CtMark,
        "MARK" | "CONNMARK" => Field::PacketMark,
        _ => return None,
    };
    if has("--save-mark") || has("--restore-mark") {
        let masks = ["--ctmask", "--nfmask"].map(|one| after(one).or(after("--mask")));
        let [ct, packet] = masks.map(|mask| mask.and_then(number).unwrap_or(u32::MAX));
        let value = if ct == packet { WrittenMark::OtherMark } else { WrittenMark::Unknown };
        let restored = if target == Field::PacketMark { ct } else { 0 };
        // The bits of one mark are cleared, and those of the other are inverted there.
        return Some(MarkWrite { target, bits: ct | packet, restored, value });
    }
    let set = ["--set-xmark", "--set-mark"].into_iter().find_map(after).and_then(mark_and_mask);
    let (bits, value) = match set {
        // A bit outside the mask is inverted.
        Some((bits, mask)) if bits & !mask == 0 => (mask, WrittenMark::Constant(bits)),
        Some((bits, mask)) => (bits | mask, WrittenMark::Unknown),
        None => (u32::MAX, WrittenMark::Unknown),
    };
    Some(MarkWrite { target, bits, restored: 0, value })
}

/// Parses a target of translations: `10.0.0.5`, `10.0.0.5:80`, `10.0.0.5:80-90`, `[fd00::5]:80`, `10.0.0.5-10.0.0.9`.
fn parse_destination(text: &str) -> DestinationNat {
    if let Ok(address) = text.parse() {
        return DestinationNat { address: Some(address), ports: None };
    }
    let Some((address, ports)) = text.rsplit_once(':') else { return DestinationNat::default() };
    DestinationNat {
        address: address.trim_matches(['[', ']']).parse().ok(),
        ports: parse_ports(ports),
    }
}

/// Parses `80` or `80-90`.
fn parse_ports(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    first.parse().ok().zip(last.parse().ok())
}

/// Extensions that are no conditions without their options.
const NO_CONDITIONS: &str = "tcp udp comment conntrack state mark connmark multiport helper icmp icmp6 addrtype set \
                             pkttype iprange mac";

fn is_option(word: &str) -> bool {
    word.len() > 1
        && word.starts_with('-')
        && word.trim_start_matches('-').starts_with(|c: char| c.is_ascii_alphabetic())
}

/// The condition of an option of `extension`; `None` if the option is not known.
fn condition(extension: &str, option: &str, values: &[&str]) -> Option<Condition> {
    let value = values.first().copied().unwrap_or_default();
    let test = |field, ranges: Ranges| Some(Condition::field_in(field, u32::MAX, ranges));
    let named = |field: Field| {
        let one = |name: &str| field.value(&name.to_lowercase()).map(|value| (value, value));
        test(field, value.split(',').map(one).collect::<Option<_>>()?)
    };
    let flags = |names: &str| {
        let one = |name: &str| Field::TcpFlags.value(&name.to_lowercase());
        names.split(',').try_fold(0, |bits, name| Some(bits | one(name)?))
    };
    match (extension, option) {
        (_, "-p" | "--protocol") if matches!(value, "all" | "0") => {
            test(Field::Protocol, [(0, u32::MAX)].into())
        }
        (_, "-p" | "--protocol") if value.is_empty() => None,
        (_, "-p" | "--protocol") => named(Field::Protocol),
        (_, "-i" | "--in-interface") => Some(Condition::interface(Side::Source, value, '+')),
        (_, "-o" | "--out-interface") => Some(Condition::interface(Side::Destination, value, '+')),
        ("iprange", "--src-range") => address_range(Side::Source, value),
        ("iprange", "--dst-range") => address_range(Side::Destination, value),
        ("mac", "--mac-source") | ("set", "--match-set") => Some(Condition::Hosts),
        (_, "-s" | "--source") => address(Side::Source, value),
        (_, "-d" | "--destination") => address(Side::Destination, value),
        ("conntrack" | "state", "--ctstate" | "--state") => Some(states(value)),
        ("conntrack", "--ctdir") => named(Field::Direction),
        ("connmark", "--mark") => mark(Field::CtMark, value),
        ("mark", "--mark") => mark(Field::PacketMark, value),
        ("helper", "--helper") => named(Field::FtpHelper),
        ("addrtype", "--dst-type") => named(Field::DestinationType),
        ("pkttype", "--pkt-type") => named(Field::PacketType),
        ("tcp", "--tcp-flags") => {
            let (mask, set) = (flags(value)?, flags(values.get(1)?)?);
            Some(Condition::field_in(Field::TcpFlags, mask, [(set, set)]))
        }
        ("tcp", "--syn") => Some(Condition::field_in(Field::TcpFlags, 0x17, [(2, 2)])),
        (_, "--dport" | "--dports" | "--destination-port" | "--destination-ports") => {
            test(Field::DestinationPort, ports(value)?)
        }
        (_, "--sport" | "--sports" | "--source-port" | "--source-ports") => {
            test(Field::SourcePort, ports(value)?)
        }
        ("multiport", "--ports") => {
            let fields = [Field::SourcePort, Field::DestinationPort];
            let either = fields.map(|field| test(field, ports(value)?));
            Some(Condition::Any(either.into_iter().collect::<Option<_>>()?))
        }
        _ => None,
    }
}

fn address(side: Side, network: &str) -> Option<Condition> {
    Some(Condition::address(side, [network.parse().ok()?]))
}

fn address_range(side: Side, range: &str) -> Option<Condition> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    Some(Condition::address(side, [spanning(first.parse().ok()?, last.parse().ok()?)?]))
}

/// Parses a list of states, such as `RELATED,ESTABLISHED`: the condition that one of them holds. States that are not
/// known, such as `DNAT`, may or may not hold.
fn states(list: &str) -> Condition {
    let states = list.split(',').map(|name| Field::State.value(&name.to_lowercase()));
    let (mut bits, mut unknown) = (0, false);
    for state in states {
        bits |= state.unwrap_or(0);
        unknown |= state.is_none();
    }
    let known = Condition::has_any_bit(Field::State, bits);
    if unknown { Condition::Any(vec![known, Condition::Unknown]) } else { known }
}

fn mark(field: Field, text: &str) -> Option<Condition> {
    let (value, mask) = mark_and_mask(text)?;
    Some(Condition::field_in(field, mask, [(value, value)]))
}

/// Parses a value with or without a mask, such as `0x40000000/0x40000000`.
fn mark_and_mask(text: &str) -> Option<(u32, u32)> {
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

/// Parses a list of ports, such as `21`, `1024:65535` or `20,21,1024:`.
fn ports(list: &str) -> Option<Ranges> {
    let port = |text: &str, open: u16| match text {
        "" => Some(u32::from(open)),
        _ => text.parse::<u16>().ok().map(u32::from),
    };
    list.split(',')
        .map(|part| match part.split_once(':') {
            Some((from, to)) => Some((port(from, 0)?, port(to, u16::MAX)?)),
            None => part.parse::<u16>().ok().map(|port| (port.into(), port.into())),
        })
        .collect()
}

/// The words quoted for a shell. The double quotes of `iptables-save` are not enough, because a shell would run
/// commands in the text of a comment.
pub(crate) fn shell_quoted(words: &[String]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:/=!@+%".contains(c);
    let quoted = |word: &String| match !word.is_empty() && word.chars().all(is_plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// Splits a line into words. Double quotes group words, and a backslash escapes the next character.
pub(crate) fn split_words(line: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let (mut quoted, mut escaped) = (false, false);
    for c in line.chars() {
        match c {
            _ if escaped => {
                word.get_or_insert_default().push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' | '\t' if !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}
