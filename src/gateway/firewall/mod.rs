//! The operator's firewall: whether it lets data connections pass, and which line is missing.
//!
//! Reads the rules of nftables and of both kinds of iptables into one form ([`model`]), and follows
//! packets of which only the essential is known through them ([`verdict`]). Nothing is sent and
//! nothing is changed. Rules of our own are left out.

mod control_conflicts;
mod control_path;
mod data_path;
mod expressions;
mod marks;
mod model;
mod nft;
mod remedy;
mod ruleset_reader;
mod sample_packets;
mod sources;
mod translated_ports;
mod traversal;
mod xtables;

pub use control_path::{Acceptance, ControlPathVerdict, InterfacePairVerdict};
pub use data_path::{DataPathVerdict, data_path_verdicts};
pub use marks::MarkChange;
use model::{ChangedMarkBits, SamplePacket, Table};
pub use model::{Hook, Ip, Origin, TableFamily};
pub use remedy::{RulesetManager, condition};
pub use ruleset_reader::RulesetReader;
pub use sample_packets::PacketClass;
use sample_packets::packets_of_class;
pub use sources::interfaces;
pub use translated_ports::TranslatedPorts;
pub use traversal::VerdictSource;
use traversal::{PacketVerdict, base_chains};

use super::RuleParameters;

/// What is loaded, as far as it could be read.
#[derive(Clone, Debug, Default)]
pub struct Firewall {
    ruleset: Ruleset,
    /// What could not be read, and why.
    read_errors: Vec<String>,
}

/// What a parser found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ruleset {
    tables: Vec<Table>,
    conflicts: Vec<ConflictingRule>,
    changed_mark_bits: ChangedMarkBits,
}

impl Ruleset {
    fn add(&mut self, other: Self) {
        self.tables.extend(other.tables);
        self.conflicts.extend(other.conflicts);
        self.changed_mark_bits.ct_mark |= other.changed_mark_bits.ct_mark;
        self.changed_mark_bits.mark |= other.changed_mark_bits.mark;
    }
}

/// A rule that gets in the way, wherever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictingRule {
    /// What it does.
    pub kind: ConflictKind,
    /// The chain that it is in, for people.
    pub chain: String,
    pub rule: String,
    /// The command that removes it.
    pub remedy: Option<String>,
}

/// What a rule does that gets in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictKind {
    /// It gives control connections the kernel's own FTP helper.
    Helper,
    /// It hands connections to a flowtable, past all chains.
    Offload,
    /// It sends packets to the queueing chains of `ftp-alg rules iptables`.
    Queueing,
    /// It takes packets of control connections out of connection tracking.
    Untracked,
    /// It changes bits of the ct mark.
    CtMark { bits: u32 },
}

/// What a firewall does, at one hook, with packets of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookVerdict {
    /// What each base chain there does.
    pub chains: Vec<ChainVerdict>,
}

/// What a base chain does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainVerdict {
    pub location: ChainLocation,
    /// Whether packets pass, by default.
    pub passes: bool,
    /// What decides that.
    pub decided_by: VerdictSource,
    /// Rules that do the opposite to some, by addresses or interfaces that are not known here.
    pub exceptions: Vec<VerdictSource>,
}

impl std::fmt::Display for ChainVerdict {
    /// What decides, and where: a rule, or a policy.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.decided_by.rule {
            Some(rule) if self.decided_by.chain == self.location.chain => {
                write!(f, "`{rule}` in {}", self.location)
            }
            Some(rule) => {
                write!(f, "`{rule}` in {}, by way of {}", self.decided_by.chain, self.location)
            }
            None => write!(f, "the policy of {}", self.location),
        }
    }
}

/// A base chain, and what one needs to know to add a rule to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainLocation {
    /// Whose it is.
    pub origin: Origin,
    /// What it sees.
    pub family: TableFamily,
    pub table: String,
    pub chain: String,
    /// Where rules of an operator belong, if not there: Docker's `DOCKER-USER`.
    pub insert_into: String,
    /// Who writes this table.
    pub manager: Option<RulesetManager>,
    /// Whether only its owner may change it.
    pub has_owner: bool,
}

impl std::fmt::Display for ChainLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { table, chain, .. } = self;
        match (self.origin, self.family) {
            (Origin::Nftables, family) => write!(f, "{family} {table} {chain}"),
            _ => write!(f, "{} {table} {chain}", self.program()),
        }
    }
}

impl ChainLocation {
    /// The kind of iptables that it was written with, if it was.
    fn program(&self) -> &'static str {
        let ip = if self.family == TableFamily::Ip6 { Ip::V6 } else { Ip::V4 };
        xtables::program(self.origin, ip)
    }
}

impl HookVerdict {
    /// Whether packets pass, by default.
    pub fn passes(&self) -> bool {
        self.chains.iter().all(|chain| chain.passes)
    }

    /// The chains that stop them.
    pub fn dropping_chains(&self) -> impl Iterator<Item = &ChainVerdict> {
        self.chains.iter().filter(|chain| !chain.passes)
    }
}

impl Firewall {
    /// Reads what is loaded in this network namespace.
    pub fn read() -> Self {
        sources::read(true)
    }

    /// As [`Firewall::read`], in less time: rules of nftables are told by their handles.
    pub(super) fn read_without_texts() -> Self {
        sources::read(false)
    }

    /// What could not be read, and why: judgements are then incomplete.
    pub fn read_errors(&self) -> &[String] {
        &self.read_errors
    }

    /// What the rules translate.
    pub fn translated_ports(&self) -> TranslatedPorts {
        TranslatedPorts::from_ruleset(&self.ruleset)
    }

    /// The rules that get in the way: those that assign the kernel's FTP helper, that queue, that
    /// change bits of the ct mark that are ours, or that hand control connections to a flowtable or
    /// take them out of connection tracking.
    pub fn conflicting_rules(
        &self,
        parameters: &RuleParameters,
    ) -> impl Iterator<Item = &ConflictingRule> {
        let ours = parameters.mask();
        let found = self.ruleset.conflicts.iter().filter(move |concern| match concern.kind {
            ConflictKind::CtMark { bits } => bits & ours != 0,
            _ => true,
        });
        found.chain(control_conflicts::conflicts_with_control(&self.ruleset, parameters))
    }

    /// The rules by which the packet mark of a data connection's first packet may be lost, with which the fast path has
    /// it admitted.
    pub fn packet_mark_changes(&self, parameters: &RuleParameters) -> Vec<MarkChange> {
        marks::packet_mark_changes(&self.ruleset, parameters)
    }

    /// What becomes of packets with `sign` at `hook`.
    pub fn verdict(
        &self,
        hook: Hook,
        ip: Ip,
        sign: PacketClass,
        parameters: &RuleParameters,
    ) -> HookVerdict {
        let changes = self.ruleset.changed_mark_bits;
        self.verdict_on_packets(
            ip,
            &packets_of_class(hook, ip, sign, parameters.data(), parameters, changes),
        )
    }

    /// What becomes of packets of one connection, each at its hook.
    fn verdict_on_packets(&self, ip: Ip, packets: &[SamplePacket<'_>]) -> HookVerdict {
        let mut chains = Vec::new();
        for table in self.ruleset.tables.iter().filter(|table| table.family.sees(ip)) {
            for (name, base) in base_chains(table) {
                let here = packets.iter().filter(|packet| packet.hook == base.hook);
                let fates = here.map(|packet| traversal::evaluate(table, name, base, packet));
                let Some(fate) = fates.reduce(PacketVerdict::and) else { continue };
                let place = remedy::chain_location(table, name, base.hook);
                chains.push((base.priority, chain_verdict(place, fate)));
            }
        }
        chains.sort_by(|(a, one), (b, other)| (a, &one.location).cmp(&(b, &other.location)));
        HookVerdict { chains: chains.into_iter().map(|(_, chain)| chain).collect() }
    }

    /// Whether some data connection may pass at `hook` that has no sign of ours.
    pub fn may_accept_unmarked(&self, hook: Hook, ip: Ip, parameters: &RuleParameters) -> bool {
        let packets = packets_of_class(
            hook,
            ip,
            PacketClass::MarkedData,
            0,
            parameters,
            self.ruleset.changed_mark_bits,
        );
        let judged = self.verdict_on_packets(ip, &packets);
        judged.chains.iter().all(|chain| chain.passes || !chain.exceptions.is_empty())
    }

    /// The commands that let packets with `sign` pass where `judgement` stops them.
    pub fn remedies(
        judgement: &HookVerdict,
        sign: PacketClass,
        parameters: &RuleParameters,
    ) -> Vec<String> {
        judgement
            .dropping_chains()
            .map(|stop| stop.location.accept_command(sign, parameters))
            .collect()
    }

    /// The tables that nft shows, in JSON and as text; those of iptables-nft are among them.
    fn from_nft(json: &str, listing: &str) -> Result<Self, serde_json::Error> {
        Ok(Self { ruleset: nft::parse(json, listing)?, read_errors: Vec::new() })
    }

    /// Whether there are tables like those of iptables-nft, so that it has to say what is in them.
    fn has_iptables_tables(&self, ip: Ip) -> bool {
        let built_in = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
        self.ruleset.tables.iter().any(|table| {
            table.origin == Origin::Nftables
                && table.family != TableFamily::Inet
                && table.family.sees(ip)
                && built_in.iter().any(|name| table.chains.contains_key(*name))
        })
    }

    /// Adds what `iptables-save` printed. Of the tables of iptables-nft it takes the place of what
    /// nft shows, which knows only the names of their matches.
    pub(super) fn add_iptables_save(&mut self, origin: Origin, ip: Ip, text: &str) {
        let read = xtables::parse(text, origin, ip);
        if origin == Origin::IptablesNft {
            let same = |table: &Table, other: &Table| {
                (other.family, &other.name) == (table.family, &table.name)
            };
            self.ruleset.tables.retain(|table| {
                table.origin != Origin::Nftables
                    || !read.tables.iter().any(|other| same(table, other))
            });
        }
        self.ruleset.add(read);
    }
}

fn chain_verdict(place: ChainLocation, fate: PacketVerdict) -> ChainVerdict {
    let PacketVerdict { passes, decided_by: by, exceptions: except } = fate;
    ChainVerdict { location: place, passes, decided_by: by, exceptions: except }
}

#[cfg(test)]
mod tests;
