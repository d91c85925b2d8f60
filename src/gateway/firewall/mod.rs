//! The operator's firewall: whether it lets data connections pass, and which line is missing.
//!
//! Reads the rules of nftables and of both kinds of iptables into one form ([`model`]), and follows
//! packets of which only the essential is known through them ([`verdict`]). Nothing is sent and
//! nothing is changed. Rules of our own are left out.

mod claims;
mod control;
mod expressions;
mod marks;
mod model;
mod nft;
mod outlook;
mod probe;
mod reached;
mod reader;
mod remedy;
mod sources;
mod verdict;
mod xtables;

pub use claims::Claims;
pub use control::{ControlJudgement, ControlOutlook, Passage};
pub use marks::MarkChange;
use model::{Changes, Packet, Table};
pub use model::{Hook, Ip, Origin, TableFamily};
pub use outlook::{Outlook, outlooks};
pub use probe::Sign;
use probe::packets;
pub use reader::ClaimsReader;
pub use remedy::{Manager, condition};
pub use sources::interfaces;
pub use verdict::Reason;
use verdict::{Fate, base_chains};

use super::RuleParameters;

/// What is loaded, as far as it could be read.
#[derive(Clone, Debug, Default)]
pub struct Firewall {
    rules: Rules,
    /// What could not be read, and why.
    unread: Vec<String>,
}

/// What a parser found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rules {
    tables: Vec<Table>,
    concerns: Vec<Concern>,
    changes: Changes,
}

impl Rules {
    fn add(&mut self, other: Self) {
        self.tables.extend(other.tables);
        self.concerns.extend(other.concerns);
        self.changes.ct_mark |= other.changes.ct_mark;
        self.changes.mark |= other.changes.mark;
    }
}

/// A rule that gets in the way, wherever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concern {
    /// What it does.
    pub kind: ConcernKind,
    /// The chain that it is in, for people.
    pub chain: String,
    pub rule: String,
    /// The command that removes it.
    pub remedy: Option<String>,
}

/// What a rule does that gets in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConcernKind {
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
pub struct Judgement {
    /// What each base chain there does.
    pub chains: Vec<ChainJudgement>,
}

/// What a base chain does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainJudgement {
    pub place: Place,
    /// Whether packets pass, by default.
    pub passes: bool,
    /// What decides that.
    pub by: Reason,
    /// Rules that do the opposite to some, by addresses or interfaces that are not known here.
    pub except: Vec<Reason>,
}

impl std::fmt::Display for ChainJudgement {
    /// What decides, and where: a rule, or a policy.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.by.rule {
            Some(rule) if self.by.chain == self.place.chain => {
                write!(f, "`{rule}` in {}", self.place)
            }
            Some(rule) => write!(f, "`{rule}` in {}, by way of {}", self.by.chain, self.place),
            None => write!(f, "the policy of {}", self.place),
        }
    }
}

/// A base chain, and what one needs to know to add a rule to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Whose it is.
    pub origin: Origin,
    /// What it sees.
    pub family: TableFamily,
    pub table: String,
    pub chain: String,
    /// Where rules of an operator belong, if not there: Docker's `DOCKER-USER`.
    pub insert_into: String,
    /// Who writes this table.
    pub manager: Option<Manager>,
    /// Whether only its owner may change it.
    pub owned: bool,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { table, chain, .. } = self;
        match (self.origin, self.family) {
            (Origin::Nftables, family) => write!(f, "{family} {table} {chain}"),
            _ => write!(f, "{} {table} {chain}", self.program()),
        }
    }
}

impl Place {
    /// The kind of iptables that it was written with, if it was.
    fn program(&self) -> &'static str {
        let ip = if self.family == TableFamily::Ip6 { Ip::V6 } else { Ip::V4 };
        xtables::program(self.origin, ip)
    }
}

impl Judgement {
    /// Whether packets pass, by default.
    pub fn passes(&self) -> bool {
        self.chains.iter().all(|chain| chain.passes)
    }

    /// The chains that stop them.
    pub fn stops(&self) -> impl Iterator<Item = &ChainJudgement> {
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
    pub fn unread(&self) -> &[String] {
        &self.unread
    }

    /// What the rules translate.
    pub fn claims(&self) -> Claims {
        Claims::of(&self.rules)
    }

    /// The rules that get in the way: those that assign the kernel's FTP helper, that queue, that
    /// change bits of the ct mark that are ours, or that hand control connections to a flowtable or
    /// take them out of connection tracking.
    pub fn concerns(&self, parameters: &RuleParameters) -> impl Iterator<Item = &Concern> {
        let ours = parameters.mask();
        let found = self.rules.concerns.iter().filter(move |concern| match concern.kind {
            ConcernKind::CtMark { bits } => bits & ours != 0,
            _ => true,
        });
        found.chain(reached::concerns(&self.rules, parameters))
    }

    /// The rules by which the packet mark of a data connection's first packet may be lost, with which the fast path has
    /// it admitted.
    pub fn packet_mark_changes(&self, parameters: &RuleParameters) -> Vec<MarkChange> {
        marks::changes(&self.rules, parameters)
    }

    /// What becomes of packets with `sign` at `hook`.
    pub fn judge(&self, hook: Hook, ip: Ip, sign: Sign, parameters: &RuleParameters) -> Judgement {
        let changes = self.rules.changes;
        self.follow(ip, &packets(hook, ip, sign, parameters.data(), parameters, changes))
    }

    /// What becomes of packets of one connection, each at its hook.
    fn follow(&self, ip: Ip, packets: &[Packet<'_>]) -> Judgement {
        let mut chains = Vec::new();
        for table in self.rules.tables.iter().filter(|table| table.family.sees(ip)) {
            for (name, base) in base_chains(table) {
                let here = packets.iter().filter(|packet| packet.hook == base.hook);
                let fates = here.map(|packet| verdict::judge(table, name, base, packet));
                let Some(fate) = fates.reduce(Fate::and) else { continue };
                let place = remedy::place(table, name, base.hook);
                chains.push((base.priority, judgement(place, fate)));
            }
        }
        chains.sort_by(|(a, one), (b, other)| (a, &one.place).cmp(&(b, &other.place)));
        Judgement { chains: chains.into_iter().map(|(_, chain)| chain).collect() }
    }

    /// Whether some data connection may pass at `hook` that has no sign of ours.
    pub fn may_pass_unmarked(&self, hook: Hook, ip: Ip, parameters: &RuleParameters) -> bool {
        let packets = packets(hook, ip, Sign::Mark, 0, parameters, self.rules.changes);
        let judged = self.follow(ip, &packets);
        judged.chains.iter().all(|chain| chain.passes || !chain.except.is_empty())
    }

    /// The commands that let packets with `sign` pass where `judgement` stops them.
    pub fn remedies(judgement: &Judgement, sign: Sign, parameters: &RuleParameters) -> Vec<String> {
        judgement.stops().map(|stop| stop.place.command(sign, parameters)).collect()
    }

    /// The tables that nft shows, in JSON and as text; those of iptables-nft are among them.
    fn of_nft(json: &str, listing: &str) -> Result<Self, serde_json::Error> {
        Ok(Self { rules: nft::parse(json, listing)?, unread: Vec::new() })
    }

    /// Whether there are tables like those of iptables-nft, so that it has to say what is in them.
    fn has_iptables_tables(&self, ip: Ip) -> bool {
        let built_in = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
        self.rules.tables.iter().any(|table| {
            table.origin == Origin::Nftables
                && table.family != TableFamily::Inet
                && table.family.sees(ip)
                && built_in.iter().any(|name| table.chains.contains_key(*name))
        })
    }

    /// Adds what `iptables-save` printed. Of the tables of iptables-nft it takes the place of what
    /// nft shows, which knows only the names of their matches.
    pub(super) fn add_saved(&mut self, origin: Origin, ip: Ip, text: &str) {
        let read = xtables::parse(text, origin, ip);
        if origin == Origin::IptablesNft {
            let same = |table: &Table, other: &Table| {
                (other.family, &other.name) == (table.family, &table.name)
            };
            self.rules.tables.retain(|table| {
                table.origin != Origin::Nftables
                    || !read.tables.iter().any(|other| same(table, other))
            });
        }
        self.rules.add(read);
    }
}

fn judgement(place: Place, fate: Fate) -> ChainJudgement {
    let Fate { passes, by, except } = fate;
    ChainJudgement { place, passes, by, except }
}

#[cfg(test)]
mod tests;
