//! Parses the output of `iptables-save`, for both IP versions and both variants.
//!
//! Only the extensions that say something about our packets are known. Every other option becomes a condition that
//! may or may not hold.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ConflictKind, ConflictingRule, Ruleset,
    mark_writes::{MarkTarget, MarkWrite, WrittenMark},
    model::{
        AddressSide, BaseChain, Chain, Condition, DestinationNat, Field, Hook, InterfaceDirection,
        InterfacePattern, IpVersion, Origin, Ranges, Rule, RuleVerdict, Table, TableFamily, state,
    },
    networks::spanning,
};

/// The priorities of the tables' base chains (linux/netfilter_ipv4.h).
const PRIORITIES: [(&str, i32); 5] =
    [("raw", -300), ("mangle", -150), ("nat", -100), ("filter", 0), ("security", 50)];

/// The start of the names of the chains of `ftp-alg rules iptables`, which an operator may have loaded.
const OURS: &str = "FTP_ALG";

/// Parses the output of `iptables-save` for one IP version.
pub(crate) fn parse(text: &str, origin: Origin, ip: IpVersion) -> Ruleset {
    let mut rules = Ruleset::default();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix('*') else { continue };
        let body: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != "COMMIT").collect();
        rules.add(table(name.trim(), &body, origin, ip));
    }
    rules
}

fn table(name: &str, lines: &[&str], origin: Origin, ip: IpVersion) -> Ruleset {
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
    let names: BTreeSet<String> = chains.keys().cloned().collect();
    let mut found = Ruleset::default();
    for line in lines {
        // With counters (`-c`), a line starts with `[12:345]`.
        let start = if line.starts_with('[') { line.find("-A ").unwrap_or(0) } else { 0 };
        let Some(rest) = line.get(start..).and_then(|line| line.strip_prefix("-A ")) else {
            continue;
        };
        let words = split_words(rest);
        let Some((chain, options)) = words.split_first() else { continue };
        let mut parsed = RuleOptions::parse(options, &names);
        if chain.starts_with(OURS) {
            (parsed.changed_ct_mark_bits, parsed.changed_mark_bits) = (0, 0);
            (parsed.restored_mark_bits, parsed.mark_write) = (0, None);
        }
        found.changed_mark_bits.ct_mark |= parsed.changed_ct_mark_bits;
        found.changed_mark_bits.mark |= parsed.changed_mark_bits;
        found.changed_mark_bits.restored |= parsed.restored_mark_bits;
        let queues = matches!(&parsed.action, RuleVerdict::Jump(to) if to.starts_with(OURS));
        let kinds = [
            (queues && !chain.starts_with(OURS)).then_some(ConflictKind::Queueing),
            parsed.helper.then_some(ConflictKind::Helper),
            (parsed.changed_ct_mark_bits != 0)
                .then_some(ConflictKind::CtMark { bits: parsed.changed_ct_mark_bits }),
        ];
        let concern = |kind| ConflictingRule {
            kind,
            chain: format!("{} {name} {chain}", program(origin, ip)),
            rule: format!("-A {rest}"),
            remedy: Some(format!("{} -t {name} -D {}", program(origin, ip), shell_quoted(&words))),
        };
        found.conflicts.extend(kinds.into_iter().flatten().map(concern));
        let concern = parsed.hides.map(|kind| Box::new(concern(kind)));
        let RuleOptions {
            conditions,
            action,
            destination_nat: diversion,
            source_ports,
            changed_mark_bits: mark,
            mark_write,
            ..
        } = parsed;
        let text = format!("-A {rest}");
        let rule = Rule {
            conditions,
            action,
            destination_nat: diversion,
            source_ports,
            conflict: concern,
            changed_mark_bits: mark,
            mark_writes: mark_write.into_iter().collect(),
            text,
        };
        chains.entry(chain.clone()).or_default().rules.push(rule);
    }
    let family = if ip == IpVersion::V4 { TableFamily::Ip } else { TableFamily::Ip6 };
    found.tables.push(Table { origin, family, name: name.to_owned(), has_owner: false, chains });
    found
}

/// The program that changes tables of this origin.
pub fn program(origin: Origin, ip: IpVersion) -> &'static str {
    match (origin, ip) {
        (Origin::Nftables, _) => "nft",
        (Origin::IptablesNft, IpVersion::V4) => "iptables-nft",
        (Origin::IptablesNft, IpVersion::V6) => "ip6tables-nft",
        (Origin::IptablesLegacy, IpVersion::V4) => "iptables-legacy",
        (Origin::IptablesLegacy, IpVersion::V6) => "ip6tables-legacy",
    }
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

/// The options of a rule.
struct RuleOptions {
    conditions: Vec<Condition>,
    action: RuleVerdict,
    /// Whether the target assigns the kernel's FTP helper.
    helper: bool,
    /// How the target hides connections that it gets: no connection tracking, or a conntrack zone.
    hides: Option<ConflictKind>,
    /// The bits of the ct mark that the target may change.
    changed_ct_mark_bits: u32,
    changed_mark_bits: u32,
    /// Those that it sets from the ct mark.
    restored_mark_bits: u32,
    mark_write: Option<MarkWrite>,
    destination_nat: Option<DestinationNat>,
    source_ports: Option<(u16, u16)>,
}

impl RuleOptions {
    fn parse(words: &[String], chains: &BTreeSet<String>) -> Self {
        let mut options = Self {
            conditions: Vec::new(),
            action: RuleVerdict::Continue,
            helper: false,
            hides: None,
            changed_ct_mark_bits: 0,
            changed_mark_bits: 0,
            restored_mark_bits: 0,
            mark_write: None,
            destination_nat: None,
            source_ports: None,
        };
        let mut extension = String::new();
        let mut rest = words.iter().map(String::as_str).peekable();
        while let Some(word) = rest.next() {
            let negated = word == "!";
            let Some(option) = (if negated { rest.next() } else { Some(word) }) else { break };
            if option == "--comment" {
                rest.next();
                continue;
            }
            // The values of the option: all words up to the next option.
            let mut values = Vec::new();
            while let Some(value) = rest.next_if(|next| !is_option(next) && *next != "!") {
                values.push(value);
            }
            let value = values.first().copied().unwrap_or_default();
            match option {
                "-m" | "--match" => extension = value.to_owned(),
                "-j" | "--jump" => {
                    options.action = match chains.contains(value) {
                        true => RuleVerdict::Jump(value.to_owned()),
                        false => target_verdict(value),
                    };
                    options.apply_target(value, rest);
                    break;
                }
                "-g" | "--goto" => options.action = RuleVerdict::Goto(value.to_owned()),
                _ => {
                    let one = condition(&extension, option, &values);
                    options.conditions.push(one.unwrap_or(Condition::Unknown).negated_if(negated));
                }
            }
            // An unknown extension may be a condition by its name alone.
            if matches!(option, "-m" | "--match") && !has_only_known_options(value) {
                options.conditions.push(Condition::Unknown);
            }
        }
        options
    }

    /// Reads what a target does to marks, helpers and addresses.
    fn apply_target<'a>(&mut self, name: &str, words: impl Iterator<Item = &'a str>) {
        let words: Vec<&str> = words.collect();
        let value = |option: &str| {
            let at = words.iter().position(|word| *word == option)?;
            words.get(at + 1).copied()
        };
        let changed = match name {
            "MARK" | "CONNMARK" => ["--set-xmark", "--set-mark"]
                .into_iter()
                .find_map(value)
                .map(|mark| mark_and_mask(mark).map_or(u32::MAX, |(value, mask)| value | mask)),
            _ => None,
        };
        self.mark_write = mark_write(name, &words);
        let has = |option: &str| words.contains(&option);
        let mask = |option: &str| value(option).and_then(number).unwrap_or(u32::MAX);
        match name {
            "DNAT" => {
                self.destination_nat = Some(
                    value("--to-destination").map_or_else(Default::default, parse_destination),
                );
            }
            "REDIRECT" | "TPROXY" | "NETMAP" => {
                self.destination_nat = Some(DestinationNat::default())
            }
            "SNAT" => {
                self.source_ports = value("--to-source").and_then(|to| parse_destination(to).ports);
            }
            "MASQUERADE" => {
                self.source_ports = value("--to-ports").and_then(parse_ports);
            }
            "CT" => {
                self.helper = value("--helper").is_some_and(|helper| helper.starts_with("ftp"));
                let zones = ["--zone", "--zone-orig", "--zone-reply"].into_iter().find_map(value);
                let zone = zones.filter(|zone| zone != &"0").map(|zone| zone.parse().ok());
                let untracked = has("--notrack").then_some(ConflictKind::Untracked);
                self.hides = untracked.or(zone.map(ConflictKind::Zone));
            }
            "NOTRACK" => self.hides = Some(ConflictKind::Untracked),
            "MARK" => self.changed_mark_bits = changed.unwrap_or(u32::MAX),
            // The bits of one mark are cleared, and those of the other are inverted there.
            "CONNMARK" if has("--save-mark") => {
                self.changed_ct_mark_bits = mask("--ctmask") | mask("--nfmask");
            }
            "CONNMARK" if has("--restore-mark") => {
                self.changed_mark_bits = mask("--nfmask") | mask("--ctmask");
                self.restored_mark_bits = mask("--ctmask");
            }
            "CONNMARK" => self.changed_ct_mark_bits = changed.unwrap_or(u32::MAX),
            _ => {}
        }
    }
}

/// What a target writes into a mark (xt_mark.c, xt_connmark.c).
fn mark_write(name: &str, words: &[&str]) -> Option<MarkWrite> {
    let after = |option: &str| {
        let at = words.iter().position(|word| *word == option)?;
        words.get(at + 1).copied()
    };
    let target = match name {
        "CONNMARK" if !words.contains(&"--restore-mark") => MarkTarget::CtMark,
        "MARK" | "CONNMARK" => MarkTarget::PacketMark,
        _ => return None,
    };
    if words.contains(&"--save-mark") || words.contains(&"--restore-mark") {
        let masks = ["--ctmask", "--nfmask"].map(|one| after(one).or(after("--mask")));
        let [ct, packet] = masks.map(|mask| mask.and_then(number).unwrap_or(u32::MAX));
        let value = if ct == packet { WrittenMark::OtherMark } else { WrittenMark::Unknown };
        return Some(MarkWrite { target, bits: ct | packet, value });
    }
    let set = ["--set-xmark", "--set-mark"].into_iter().find_map(after).and_then(mark_and_mask);
    Some(match set {
        // A bit outside the mask is inverted.
        Some((bits, mask)) if bits & !mask == 0 => {
            MarkWrite { target, bits: mask, value: WrittenMark::Constant(bits) }
        }
        Some((bits, mask)) => MarkWrite { target, bits: bits | mask, value: WrittenMark::Unknown },
        None => MarkWrite { target, bits: u32::MAX, value: WrittenMark::Unknown },
    })
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

/// Whether an extension is no condition without its options.
fn has_only_known_options(extension: &str) -> bool {
    matches!(
        extension,
        "tcp"
            | "udp"
            | "comment"
            | "conntrack"
            | "state"
            | "mark"
            | "connmark"
            | "multiport"
            | "helper"
            | "icmp"
            | "icmp6"
            | "addrtype"
            | "set"
            | "pkttype"
            | "iprange"
            | "mac"
    )
}

fn is_option(word: &str) -> bool {
    word.len() > 1
        && word.starts_with('-')
        && word.trim_start_matches('-').starts_with(|c: char| c.is_ascii_alphabetic())
}

/// The condition of an option of `extension`; `None` if the option is not known.
fn condition(extension: &str, option: &str, values: &[&str]) -> Option<Condition> {
    let value = values.first().copied().unwrap_or_default();
    let test = |field, ranges: Ranges| Some(Condition::field_in(field, u32::MAX, ranges));
    match (extension, option) {
        (_, "-p" | "--protocol") => match value {
            "all" | "0" => test(Field::Protocol, [(0, u32::MAX)].into()),
            "tcp" | "6" => test(Field::Protocol, [(6, 6)].into()),
            "" => None,
            _ => test(Field::Protocol, [(255, 255)].into()),
        },
        (_, "-i" | "--in-interface") => {
            Some(Condition::interface(InterfaceDirection::Input, InterfacePattern::new(value, '+')))
        }
        (_, "-o" | "--out-interface") => Some(Condition::interface(
            InterfaceDirection::Output,
            InterfacePattern::new(value, '+'),
        )),
        ("iprange", "--src-range") => address_range(AddressSide::Source, value),
        ("iprange", "--dst-range") => address_range(AddressSide::Destination, value),
        ("mac", "--mac-source") | ("set", "--match-set") => Some(Condition::Hosts),
        (_, "-s" | "--source") => address(AddressSide::Source, value),
        (_, "-d" | "--destination") => address(AddressSide::Destination, value),
        ("conntrack" | "state", "--ctstate" | "--state") => Some(states(value)),
        ("conntrack", "--ctdir") => {
            let direction = u32::from(value != "ORIGINAL");
            test(Field::Direction, [(direction, direction)].into())
        }
        ("connmark", "--mark") => mark(Field::CtMark, value),
        ("mark", "--mark") => mark(Field::PacketMark, value),
        ("helper", "--helper") => {
            let other = u32::from(value != "ftp") * 254 + 1;
            test(Field::FtpHelper, [(other, other)].into())
        }
        ("tcp", "--tcp-flags") => {
            let (mask, set) = (tcp_flags(value)?, tcp_flags(values.get(1)?)?);
            Some(Condition::field_in(Field::TcpFlags, mask, [(set, set)]))
        }
        ("addrtype", "--dst-type") => {
            let kinds = value.split(',').map(|kind| match kind {
                "LOCAL" => (1, 1),
                "UNICAST" => (2, 2),
                _ => (255, 255),
            });
            test(Field::DestinationType, kinds.collect())
        }
        ("pkttype", "--pkt-type") => {
            let other = u32::from(value != "unicast" && value != "host");
            test(Field::PacketType, [(other, other)].into())
        }
        ("tcp", "--syn") => Some(Condition::field_in(Field::TcpFlags, 0x17, [(2, 2)])),
        (_, "--dport" | "--dports" | "--destination-port" | "--destination-ports") => {
            test(Field::DestinationPort, ports(value)?)
        }
        (_, "--sport" | "--sports" | "--source-port" | "--source-ports") => {
            test(Field::SourcePort, ports(value)?)
        }
        ("multiport", "--ports") => Some(Condition::Any(vec![
            Condition::field_in(Field::SourcePort, u32::MAX, ports(value)?),
            Condition::field_in(Field::DestinationPort, u32::MAX, ports(value)?),
        ])),
        _ => None,
    }
}

fn address(side: AddressSide, network: &str) -> Option<Condition> {
    Some(Condition::Address { side, networks: [network.parse().ok()?].into(), negated: false })
}

fn address_range(side: AddressSide, range: &str) -> Option<Condition> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let network = spanning(first.parse().ok()?, last.parse().ok()?)?;
    Some(Condition::Address { side, networks: [network].into(), negated: false })
}

/// Parses a list of states, such as `RELATED,ESTABLISHED`: the condition that one of them holds. States that are not
/// known, such as `DNAT`, may or may not hold.
fn states(list: &str) -> Condition {
    let (mut bits, mut unknown) = (0, false);
    for name in list.split(',') {
        bits |= match name {
            "INVALID" => state::INVALID,
            "ESTABLISHED" => state::ESTABLISHED,
            "RELATED" => state::RELATED,
            "NEW" => state::NEW,
            "UNTRACKED" => state::UNTRACKED,
            _ => {
                unknown = true;
                0
            }
        };
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

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
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

fn tcp_flags(list: &str) -> Option<u32> {
    list.split(',').try_fold(0, |bits, name| {
        Some(
            bits | match name {
                "FIN" => 0x01,
                "SYN" => 0x02,
                "RST" => 0x04,
                "PSH" => 0x08,
                "ACK" => 0x10,
                "URG" => 0x20,
                "ALL" => 0x3f,
                "NONE" => 0,
                _ => return None,
            },
        )
    })
}

/// The words quoted for a shell. The double quotes of `iptables-save` are not enough, because a shell would run
/// commands in the text of a comment.
fn shell_quoted(words: &[String]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:/=!@+%".contains(c);
    let quoted = |word: &String| match !word.is_empty() && word.chars().all(is_plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// Splits a line into words. Double quotes group words, and a backslash escapes the next character.
fn split_words(line: &str) -> Vec<String> {
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
