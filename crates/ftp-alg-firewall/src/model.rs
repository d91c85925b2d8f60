//! The common form of the rules of nftables and iptables, and how a rule matches a sample packet.
//!
//! A sample packet is only partly known, so a condition answers yes, no or maybe ([`Certainty`]).
//!
//! The module knows nothing of the languages in which rules are written. A parser turns everything that it does not
//! understand into [`Condition::Unknown`]. This condition answers maybe for every packet, so no rule is trusted
//! that was not understood.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;
use strum::{Display, EnumString};

use super::ConflictKind;
pub use super::packet_fields::{Hook, IpVersion};
pub(crate) use super::{
    packet_fields::{Certainty, Comparison, Field, FieldValue, Ranges, Side, state},
    sample_packets::{ChangedMarkBits, MarkWrite, SamplePacket},
};

/// The name of an interface, or the common start of several names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InterfacePattern {
    name: String,
    is_prefix: bool,
}

impl InterfacePattern {
    /// Reads a pattern. `wildcard` at the end stands for any rest: `*` in nftables, `+` in iptables.
    fn new(text: &str, wildcard: char) -> Self {
        match text.strip_suffix(wildcard) {
            Some(start) => Self { name: start.to_owned(), is_prefix: true },
            None => Self { name: text.to_owned(), is_prefix: false },
        }
    }

    /// The interface, if it is a single one.
    pub(crate) fn single(&self) -> Option<&str> {
        (!self.is_prefix).then_some(&*self.name)
    }

    pub(crate) fn matches(&self, interface: &str) -> bool {
        match self.is_prefix {
            true => interface.starts_with(&self.name),
            false => interface == self.name,
        }
    }

    /// An unknown interface is any except `lo`, because the two ends of a connection are on different hosts.
    fn holds(&self, interface: Option<&str>) -> Certainty {
        match interface {
            Some(interface) if self.matches(interface) => Certainty::Yes,
            Some(_) => Certainty::No,
            None if self.name == "lo" && !self.is_prefix => Certainty::No,
            None => Certainty::Maybe,
        }
    }
}

/// A condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Compare(Comparison),
    /// The name of one of the packet's interfaces.
    Interface {
        side: Side,
        pattern: InterfacePattern,
        negated: bool,
    },
    /// One of the packet's addresses is in one of these networks.
    Address {
        side: Side,
        networks: Arc<[IpNetwork]>,
        negated: bool,
    },
    /// Holds if one of these holds.
    Any(Vec<Condition>),
    /// Holds if all of these hold.
    All(Vec<Condition>),
    /// Holds for some hosts that are not known here: by a MAC address, or in a set whose elements change.
    Hosts,
    /// A condition that cannot be decided here, such as one about rates or time.
    Unknown,
}

impl Condition {
    /// Holds if the bits of `field` under `mask` are in one of `ranges`.
    pub(crate) fn field_in(field: Field, mask: u32, ranges: impl Into<Ranges>) -> Self {
        Self::Compare(Comparison { field, mask, ranges: ranges.into(), negated: false })
    }

    /// Holds if `field` has at least one of these bits.
    pub(crate) fn has_any_bit(field: Field, bits: u32) -> Self {
        Self::field_in(field, bits, [(0, 0)]).negated_if(true)
    }

    /// Never holds.
    pub(crate) fn never() -> Self {
        Self::Any(Vec::new())
    }

    /// Holds if the name of the packet's interface is `name`, or begins with it up to a `wildcard`.
    pub(crate) fn interface(side: Side, name: &str, wildcard: char) -> Self {
        Self::Interface { side, pattern: InterfacePattern::new(name, wildcard), negated: false }
    }

    /// Holds if the packet's address is in one of `networks`.
    pub(crate) fn address(side: Side, networks: impl Into<Arc<[IpNetwork]>>) -> Self {
        Self::Address { side, networks: networks.into(), negated: false }
    }

    pub(crate) fn negated_if(self, negate: bool) -> Self {
        match self {
            Self::Compare(test) => {
                Self::Compare(Comparison { negated: test.negated != negate, ..test })
            }
            Self::Interface { side, pattern, negated } => {
                Self::Interface { side, pattern, negated: negated != negate }
            }
            Self::Address { side, networks, negated } => {
                Self::Address { side, networks, negated: negated != negate }
            }
            Self::Any(conditions) if negate => {
                Self::All(conditions.into_iter().map(|one| one.negated_if(true)).collect())
            }
            Self::All(conditions) if negate => {
                Self::Any(conditions.into_iter().map(|one| one.negated_if(true)).collect())
            }
            other => other,
        }
    }

    fn holds(&self, packet: &SamplePacket<'_>) -> Certainty {
        match self {
            Self::Compare(test) => test.holds(packet.value(test.field)),
            Self::Interface { side, pattern, negated } => {
                pattern.holds(packet.interface(*side)).negated_if(*negated)
            }
            Self::Address { side, networks, negated } => {
                // The source may be translated already.
                let may_differ = *side == Side::Source && packet.hook == Hook::Postrouting;
                let interface = packet.interface(*side).filter(|_| !may_differ);
                let are_elsewhere =
                    packet.links.zip(interface).is_some_and(|(links, interface)| {
                        networks.iter().all(|network| links.are_elsewhere(network, interface))
                    });
                if are_elsewhere { Certainty::No.negated_if(*negated) } else { Certainty::Maybe }
            }
            Self::All(conditions) => all_hold(conditions, packet),
            Self::Any(conditions) => {
                conditions.iter().map(|one| one.holds(packet)).max().unwrap_or(Certainty::No)
            }
            Self::Hosts | Self::Unknown => Certainty::Maybe,
        }
    }

    /// Whether the condition holds, or holds for some hosts and nothing else about it is unknown.
    pub(crate) fn holds_for_some_hosts(&self, packet: &SamplePacket<'_>) -> bool {
        match (self.holds(packet), self) {
            (Certainty::Yes, _) | (Certainty::Maybe, Self::Address { .. } | Self::Hosts) => true,
            (Certainty::Maybe, Self::All(conditions)) => {
                conditions.iter().all(|one| one.holds_for_some_hosts(packet))
            }
            (Certainty::Maybe, Self::Any(conditions)) => {
                conditions.iter().any(|one| one.holds_for_some_hosts(packet))
            }
            _ => false,
        }
    }
}

/// The verdict statement of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum RuleVerdict {
    Accept,
    /// Drop or reject.
    Drop,
    /// A program in user space decides.
    Queue,
    Return,
    Jump(String),
    Goto(String),
    /// Evaluation continues with the next rule.
    #[default]
    Continue,
    /// A verdict map: the verdict of the element whose key matches.
    Map(Vec<(Condition, RuleVerdict)>),
    /// The parser does not know the statement.
    Unknown,
}

/// A rule: its verdict applies if all conditions hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) action: RuleVerdict,
    /// The destination translation that the rule sets up.
    pub(crate) destination_nat: Option<DestinationNat>,
    /// The range of source ports to which the rule translates, if it names one.
    pub(crate) source_ports: Option<(u16, u16)>,
    /// How the rule interferes with us, besides what it writes into the ct mark.
    pub(crate) conflicts: Vec<ConflictKind>,
    /// What the rule writes into the marks, in order.
    pub(crate) mark_writes: Vec<MarkWrite>,
    /// The rule as the operator wrote it.
    pub(crate) text: String,
    /// The number by which nft names the rule.
    pub(crate) handle: Option<u64>,
}

/// A destination translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DestinationNat {
    /// The new destination address, if it is a single known address.
    pub(crate) address: Option<IpAddr>,
    /// The range of new destination ports, if the rule names one.
    pub(crate) ports: Option<(u16, u16)>,
}

impl Rule {
    /// The bits of the packet mark that the rule may change.
    pub(crate) fn changed_mark_bits(&self) -> u32 {
        let mut changed = ChangedMarkBits::default();
        self.mark_writes.iter().for_each(|write| changed.add(write));
        changed.mark
    }

    /// Whether the rule may act otherwise on the packet `other` than on `packet`.
    pub(crate) fn tells_apart(&self, packet: &SamplePacket<'_>, other: &SamplePacket<'_>) -> bool {
        let elements = match &self.action {
            RuleVerdict::Map(elements) => elements.as_slice(),
            _ => &[],
        };
        let is_other = |condition: &Condition| condition.holds(packet) != condition.holds(other);
        self.conditions.iter().chain(elements.iter().map(|(key, _)| key)).any(is_other)
            && self.applies(packet).max(self.applies(other)) != Certainty::No
    }

    pub(crate) fn applies(&self, packet: &SamplePacket<'_>) -> Certainty {
        all_hold(&self.conditions, packet)
    }

    /// Whether the rule applies to the packets of some hosts, and nothing else about them is unknown.
    pub(crate) fn applies_to_some_hosts(&self, packet: &SamplePacket<'_>) -> bool {
        self.conditions.iter().all(|condition| condition.holds_for_some_hosts(packet))
    }
}

/// Whether all conditions hold for `packet`.
pub(crate) fn all_hold(conditions: &[Condition], packet: &SamplePacket<'_>) -> Certainty {
    conditions.iter().map(|condition| condition.holds(packet)).min().unwrap_or(Certainty::Yes)
}

/// The program that a table belongs to, and that can change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// `nft`.
    Nftables,
    /// `iptables-nft`.
    IptablesNft,
    /// `iptables-legacy`.
    IptablesLegacy,
}

impl Origin {
    /// The program that changes tables of this origin and family.
    pub fn program(self, family: TableFamily) -> &'static str {
        match (self, family) {
            (Self::Nftables, _) => "nft",
            (Self::IptablesNft, TableFamily::Ip6) => "ip6tables-nft",
            (Self::IptablesNft, _) => "iptables-nft",
            (Self::IptablesLegacy, TableFamily::Ip6) => "ip6tables-legacy",
            (Self::IptablesLegacy, _) => "iptables-legacy",
        }
    }
}

/// The address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumString)]
#[strum(serialize_all = "lowercase")]
pub enum TableFamily {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Both.
    Inet,
    /// The packets of single network devices.
    Netdev,
}

impl From<IpVersion> for TableFamily {
    /// The family of iptables' tables for this version of IP.
    fn from(ip: IpVersion) -> Self {
        match ip {
            IpVersion::V4 => Self::Ip,
            IpVersion::V6 => Self::Ip6,
        }
    }
}

impl TableFamily {
    pub(crate) fn sees(self, ip: IpVersion) -> bool {
        matches!(
            (self, ip),
            (Self::Inet | Self::Netdev, _) | (Self::Ip, IpVersion::V4) | (Self::Ip6, IpVersion::V6)
        )
    }
}

/// Programs that generate rule sets, and so overwrite rules that others add.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RulesetManager {
    /// Debian's ufw.
    Ufw,
    /// firewalld.
    Firewalld,
    /// Docker, which leaves the chain `DOCKER-USER` to the operator.
    Docker,
    /// OpenWrt's fw4.
    Fw4,
}

/// The properties of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BaseChain {
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
    /// Whether the chain has the type `nat`, so that only the first packet of a connection reaches it.
    pub(crate) is_nat: bool,
    /// Whether the policy drops packets that reach the end of the chain.
    pub(crate) policy_drops: bool,
}

/// A chain: rules in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    /// The properties of a base chain; `None` for other chains, and for hooks that are not evaluated here.
    pub(crate) base: Option<BaseChain>,
    pub(crate) rules: Vec<Rule>,
}

/// A table. Its chains can jump only to chains of the same table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) origin: Origin,
    pub(crate) family: TableFamily,
    pub(crate) name: String,
    /// Whether the table has the flag `owner`, so that nft refuses changes by others.
    pub(crate) has_owner: bool,
    pub(crate) chains: BTreeMap<String, Chain>,
}

impl Table {
    /// The program that generates the table.
    pub(crate) fn manager(&self) -> Option<RulesetManager> {
        let has = |start: &str| self.chains.keys().any(|name| name.starts_with(start));
        match (self.origin, &*self.name) {
            (Origin::Nftables, "firewalld") => Some(RulesetManager::Firewalld),
            (Origin::Nftables, "fw4") if self.family == TableFamily::Inet => {
                Some(RulesetManager::Fw4)
            }
            (Origin::Nftables, _) => None,
            _ if has("ufw-") || has("ufw6-") => Some(RulesetManager::Ufw),
            _ if has("FORWARD_direct") => Some(RulesetManager::Firewalld),
            _ if has("DOCKER") => Some(RulesetManager::Docker),
            _ => None,
        }
    }

    pub(crate) fn rules<'a>(&'a self) -> impl Iterator<Item = LocatedRule<'a>> {
        self.chains.iter().flat_map(move |(chain, Chain { rules, .. })| {
            rules.iter().map(move |rule| LocatedRule { table: self, chain, rule })
        })
    }

    pub(crate) fn base_chains<'a>(&'a self) -> impl Iterator<Item = LocatedChain<'a>> {
        let located = |(name, chain): (&'a String, &'a Chain)| {
            Some(LocatedChain { table: self, name, base: chain.base? })
        };
        self.chains.iter().filter_map(located)
    }
}

pub(crate) fn chain_name(origin: Origin, family: TableFamily, table: &str, chain: &str) -> String {
    match origin {
        Origin::Nftables => format!("{family} {table} {chain}"),
        _ => format!("{} {table} {chain}", origin.program(family)),
    }
}

/// A base chain with its table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocatedChain<'a> {
    pub(crate) table: &'a Table,
    pub(crate) name: &'a str,
    pub(crate) base: BaseChain,
}

/// A rule with its table and chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocatedRule<'a> {
    pub(crate) table: &'a Table,
    pub(crate) chain: &'a str,
    pub(crate) rule: &'a Rule,
}

impl LocatedRule<'_> {
    /// The chain with its table, as in `inet filter forward` or `iptables-nft filter FORWARD`.
    pub(crate) fn chain_name(&self) -> String {
        let Table { origin, family, name, .. } = self.table;
        chain_name(*origin, *family, name, self.chain)
    }
}
