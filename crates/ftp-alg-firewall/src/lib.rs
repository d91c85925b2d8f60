//! The operator's firewall: does it accept control and data connections, and which rule is missing?
//!
//! Texts go in: what `nft` and `iptables-save` print, and the rules of policy routing. They become one form ([`model`]),
//! in which the rules are followed for sample packets ([`sample_packets`], [`traversal`]). A sample packet has only the
//! properties that are known in advance, so a verdict may depend on conditions that nobody can decide here.
//!
//! The crate knows nothing of the protocol FTP, nor of the program that asks, except how rules can recognise its packets
//! ([`Gateway`]). It does no I/O: who has read the rules leaves out the tables of that program, because the verdicts are
//! about the rules of others.

#![forbid(unsafe_code)]

mod conflicts;
mod connection;
mod control_path;
mod data_modes;
mod data_path;
mod expressions;
mod marks;
mod model;
mod networks;
mod nft;
mod packet_fields;
mod remedy;
mod sample_packets;
mod translated_ports;
mod traversal;
mod xtables;

use std::collections::BTreeSet;

pub use conflicts::{ConflictKind, ConflictingRule};
use connection::{Connection, ConnectionKind};
pub use control_path::{Acceptance, ControlPathVerdict, InterfacePairVerdict};
pub use data_modes::{DataMode, ModeVerdict};
pub use data_path::{AcceptedData, DataPathVerdict, accepted_data, data_path_verdicts};
pub use marks::{CtMarkUse, RoutingRule};
use model::{ChangedMarkBits, FieldValue, LocatedChain, LocatedRule, Table, chain_name};
pub use model::{Hook, IpVersion, Origin, RulesetManager, TableFamily};
pub use networks::Links;
pub use remedy::RulePlace;
pub use sample_packets::PacketClass;
pub use translated_ports::PortClaim;
pub use traversal::VerdictSource;

/// How rules can recognise the connections and packets of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// The ports of control connections, ascending.
    pub control_ports: Vec<u16>,
    /// The ct mark bit of an admitted data connection.
    pub data_mark: u32,
    /// The ct mark bit of a control connection whose packets all go to the queue.
    pub queue_all_mark: u32,
    /// The ct mark bit of a control connection none of whose packets goes to the queue.
    pub queue_none_mark: u32,
    /// The packet mark bits that may hold the number of a translation.
    pub slot_mask: u32,
}

impl Gateway {
    /// All of the gateway's ct mark bits; also the packet mark of packets that it injects.
    pub fn mask(&self) -> u32 {
        self.data_mark | self.control_bits()
    }

    /// The ct mark bits of control connections.
    pub(crate) fn control_bits(&self) -> u32 {
        self.queue_all_mark | self.queue_none_mark
    }
}

/// How this machine handles packets of other hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Whether it forwards IPv4.
    pub v4: bool,
    /// Whether it forwards IPv6, and has a route to other networks.
    pub v6: bool,
    /// Whether it has an IPv6 address other than on `lo`.
    pub has_v6: bool,
    /// Whether a local program listens on a control port.
    pub has_local_server: bool,
}

/// The rules of a network namespace, as far as they could be read.
#[derive(Clone, Debug)]
pub struct Firewall {
    /// The gateway whose packets are followed.
    pub gateway: Gateway,
    ruleset: Ruleset,
    /// The rules of policy routing that compare the packet mark.
    pub routing_rules: Vec<RoutingRule>,
    /// One line for each source that could not be read, with the reason. If there is one, all verdicts are incomplete.
    pub read_errors: Vec<String>,
}

/// The result of a parser.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ruleset {
    tables: Vec<Table>,
    changed_mark_bits: ChangedMarkBits,
    /// The tables that are not evaluated.
    unread: BTreeSet<String>,
}

impl Ruleset {
    fn add(&mut self, tables: Vec<Table>) {
        let rules = tables.iter().flat_map(Table::rules);
        let writes = rules.flat_map(|one| &one.rule.mark_writes);
        writes.for_each(|write| self.changed_mark_bits.add(write));
        self.tables.extend(tables);
    }

    fn rules(&self) -> impl Iterator<Item = LocatedRule<'_>> {
        self.tables.iter().flat_map(Table::rules)
    }

    /// The base chains that packets of this version of IP may pass.
    fn base_chains(&self, ip: IpVersion) -> impl Iterator<Item = LocatedChain<'_>> {
        let tables = self.tables.iter().filter(move |table| table.family.sees(ip));
        tables.flat_map(Table::base_chains)
    }
}

/// What the firewall does with packets of one class at one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookVerdict {
    /// The verdict of each base chain at the hook, by priority.
    pub chains: Vec<ChainVerdict>,
}

/// What a base chain does with packets of one class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainVerdict {
    /// The base chain.
    pub location: ChainLocation,
    /// Whether packets pass if every condition that cannot be decided here is false.
    pub passes: bool,
    /// The rule or the policy that decides `passes`.
    pub decided_by: VerdictSource,
    /// Rules that decide otherwise for some packets, by addresses or interfaces that are not known here.
    pub exceptions: Vec<VerdictSource>,
    /// Rules that accept some of the packets, and for which only their hosts are not known.
    pub accepted_by_address: Vec<VerdictSource>,
    /// Where a rule that accepts the packets belongs.
    pub place: RulePlace,
    /// The rule before this chain because of which no rule here can recognise the packets.
    pub hidden_by: Option<HidingRule>,
}

/// A rule because of which later rules cannot recognise data connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HidingRule {
    /// The chain of the rule, as in `inet filter forward`.
    pub chain: String,
    /// The text of the rule.
    pub rule: String,
    /// Whether the rule takes packets out of connection tracking. Otherwise it overwrites the ct mark.
    pub untracks: bool,
}

impl std::fmt::Display for ChainVerdict {
    /// The deciding rule or policy with its chain.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.decided_by.rule {
            Some(rule) if self.decided_by.chain == self.location.chain => {
                write!(f, "`{rule}` in {}", self.location)
            }
            Some(rule) => {
                write!(f, "`{rule}` in {}, reached from {}", self.decided_by.chain, self.location)
            }
            None => write!(f, "the policy of {}", self.location),
        }
    }
}

/// A base chain with everything that is needed to add a rule to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainLocation {
    /// The program that the table belongs to.
    pub origin: Origin,
    /// The address family of the table.
    pub family: TableFamily,
    /// The name of the table.
    pub table: String,
    /// The name of the chain.
    pub chain: String,
    /// The chain for rules of the operator: `DOCKER-USER` with Docker, otherwise `chain`.
    pub insert_into: String,
    /// The program that generates this table.
    pub manager: Option<RulesetManager>,
    /// Whether the table has the flag `owner`, so that only its owner may change it.
    pub has_owner: bool,
    /// The hook of the chain.
    pub hook: Hook,
    /// The priority of the chain at its hook.
    pub priority: i32,
}

impl std::fmt::Display for ChainLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&chain_name(self.origin, self.family, &self.table, &self.chain))
    }
}

impl ChainVerdict {
    /// Which of the packets the chain accepts.
    pub fn acceptance(&self) -> Acceptance {
        match (self.passes, self.exceptions.is_empty()) {
            (true, _) => Acceptance::Accepted,
            (false, false) => Acceptance::Partly,
            (false, true) => Acceptance::Dropped,
        }
    }

    /// Whether the chain certainly drops the packets. Outside the chains for filters, conditions that cannot be decided
    /// here are those of reverse path filters and limits, which most packets meet.
    pub fn drops_certainly(&self) -> bool {
        !self.passes && (self.location.is_for_filters() || self.exceptions.is_empty())
    }
}

impl ChainLocation {
    /// Whether the chain is one in which firewalls accept single connections.
    fn is_for_filters(&self) -> bool {
        self.hook.is_filter() && (self.origin == Origin::Nftables || self.table == "filter")
    }
}

impl HookVerdict {
    fn new(mut chains: Vec<ChainVerdict>) -> Self {
        chains.sort_by_cached_key(|chain| (chain.location.priority, chain.location.clone()));
        Self { chains }
    }

    /// Whether packets pass every base chain by default.
    pub fn passes(&self) -> bool {
        self.chains.iter().all(|chain| chain.passes)
    }

    /// Whether every base chain accepts some of the packets.
    pub fn may_pass(&self) -> bool {
        self.chains.iter().all(|chain| chain.acceptance() != Acceptance::Dropped)
    }

    /// Whether `rule` decides otherwise for some packets in the base chain of the verdict `chain`.
    fn has_exception(&self, chain: &ChainVerdict, rule: &VerdictSource) -> bool {
        let here = self.chains.iter().find(|other| other.location == chain.location);
        here.is_some_and(|here| here.exceptions.contains(rule))
    }

    /// The base chains that drop the packets by default.
    pub fn dropping_chains(&self) -> impl Iterator<Item = &ChainVerdict> {
        self.chains.iter().filter(|chain| !chain.passes)
    }
}

impl Firewall {
    /// The tables that are not evaluated, and that may drop packets: those of bridges.
    pub fn unread_tables(&self) -> impl Iterator<Item = &str> {
        self.ruleset.unread.iter().map(String::as_str)
    }

    /// What the rules do with the ct mark.
    pub fn ct_mark_use(&self) -> CtMarkUse {
        let (changed, ours) = (self.ruleset.changed_mark_bits, self.gateway.mask());
        let compares = |rule: &RoutingRule| rule.comparison().mask & changed.restored & ours != 0;
        match () {
            () if self.routing_rules.iter().any(compares) => CtMarkUse::Compared,
            // As with several uplinks.
            () if changed.ct_mark & !ours != 0 || changed.restored != 0 => CtMarkUse::Restored,
            () => CtMarkUse::None,
        }
    }

    /// Whether rules may overwrite the ct mark bit of data connections.
    pub fn overwrites_data_mark(&self) -> bool {
        self.ruleset.changed_mark_bits.ct_mark & self.gateway.data_mark != 0
    }

    /// Whether `ip rule` compares bits that rules set in packet marks from the ct mark.
    pub fn routes_by_restored_marks(&self) -> bool {
        let restored = self.ruleset.changed_mark_bits.restored;
        self.routing_rules.iter().any(|rule| rule.comparison().mask & restored != 0)
    }

    /// What the firewall does with packets of `class` at `hook`.
    pub fn verdict(&self, hook: Hook, ip: IpVersion, class: PacketClass) -> HookVerdict {
        match class {
            PacketClass::Injected => {
                HookVerdict::new(self.follow(&Connection::new(ConnectionKind::Injected, hook, ip)))
            }
            _ => self.data_verdict(hook, ip, class, self.gateway.data_mark),
        }
    }

    /// What the firewall does at `hook` with data connections that have the ct mark bits `admitted`.
    fn data_verdict(
        &self,
        hook: Hook,
        ip: IpVersion,
        class: PacketClass,
        admitted: u32,
    ) -> HookVerdict {
        let kind = ConnectionKind::Data { class, admitted, source_port: FieldValue::ANY_PORT };
        let hooks = [hook, hook];
        let mut chains = self.follow(&Connection { hooks, ..Connection::new(kind, hook, ip) });
        chains.retain(|chain| chain.location.hook == hook);
        HookVerdict::new(chains)
    }

    /// The verdicts of all chains that packets of `connection` pass.
    fn follow(&self, connection: &Connection<'_>) -> Vec<ChainVerdict> {
        connection.follow(&self.ruleset, &self.gateway).verdicts
    }

    /// The commands that make dropping chains of `verdict` accept packets of `class`: one for each chain in which a
    /// rule can recognise these packets.
    pub fn remedies(&self, verdict: &HookVerdict, class: PacketClass) -> Vec<String> {
        verdict
            .dropping_chains()
            .filter_map(|chain| chain.accept_command(class, &self.gateway).ok())
            .collect()
    }

    /// No rules, and the gateway whose packets will be followed.
    pub fn new(gateway: Gateway) -> Self {
        let (ruleset, routing_rules, read_errors) = Default::default();
        Self { gateway, ruleset, routing_rules, read_errors }
    }

    /// Adds the tables that nft lists, in JSON and as text. They include those of iptables-nft.
    pub fn add_nft(&mut self, json: &str, listing: &str) -> Result<(), serde_json::Error> {
        let (tables, unread) = nft::parse(json, listing)?;
        self.ruleset.add(tables);
        self.ruleset.unread.extend(unread);
        Ok(())
    }

    /// Whether nft lists tables that look like those of iptables-nft. Their contents must be read with
    /// `iptables-nft-save`, because nft knows only the names of xtables matches.
    pub fn has_iptables_tables(&self, ip: IpVersion) -> bool {
        let built_in = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
        self.ruleset.tables.iter().any(|table| {
            table.origin == Origin::Nftables
                && table.family != TableFamily::Inet
                && table.family.sees(ip)
                && built_in.iter().any(|name| table.chains.contains_key(*name))
        })
    }

    /// Adds the output of `iptables-save`. For iptables-nft it replaces the tables that nft listed, because nft knows
    /// only the names of xtables matches.
    pub fn add_iptables_save(&mut self, origin: Origin, ip: IpVersion, text: &str) {
        let read = xtables::parse(text, origin, ip);
        if origin == Origin::IptablesNft {
            let same = |table: &Table, other: &Table| {
                (other.family, &other.name) == (table.family, &table.name)
            };
            self.ruleset.tables.retain(|table| {
                table.origin != Origin::Nftables || !read.iter().any(|other| same(table, other))
            });
        }
        self.ruleset.add(read);
    }
}

#[cfg(test)]
mod rules_for_tests;
#[cfg(test)]
mod tests;
