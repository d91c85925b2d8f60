//! Evaluates passive and active data connections between the interfaces whose control connections pass.
//!
//! A rule that drops new connections from one interface stops one of the two modes, and spares the other.

use std::collections::HashMap;

use super::{
    Acceptance, ChainVerdict, ControlPathVerdict, DataPathVerdict, Firewall, Hook, HookVerdict,
    IpVersion, Links, PacketClass,
    connection::{Connection, ConnectionKind},
    data_path::accepts_some_admitted,
    model::FieldValue,
    sample_packets::EPHEMERAL,
};

/// Which end initiates data connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum DataMode {
    /// The client.
    Passive,
    /// The server.
    Active,
}

impl DataMode {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Passive, Self::Active];
}

/// The verdict on data connections of one mode between two interfaces.
#[derive(Clone, Debug)]
pub struct ModeVerdict {
    /// Which end initiates the data connections.
    pub mode: DataMode,
    /// The hook of the first packet of their control connections.
    pub hook: Hook,
    /// The version of IP.
    pub ip: IpVersion,
    /// The initiator's interface; `None` if this machine is the initiator.
    pub from: Option<String>,
    /// The target's interface; `None` if this machine is the target.
    pub to: Option<String>,
    /// The chains that drop all connections of this mode, except those that other rules accept as well. If both modes
    /// work between other interfaces, only chains that accept by default count, and none that isolates an inner network
    /// from the client's.
    pub dropping_chains: Vec<ChainVerdict>,
}

impl ChainVerdict {
    /// The same verdict on packets of `class`. For data connections, the place is that of a rule that serves all
    /// `modes` of this IP version: modes have known interfaces, so they say more than the verdict on packets of any
    /// interface.
    pub fn placed_for(&self, class: PacketClass, modes: &[ModeVerdict], ip: IpVersion) -> Self {
        let modes = if class == PacketClass::Injected { &[] } else { modes };
        let of_modes = modes.iter().filter(|mode| mode.ip == ip).flat_map(|m| &m.dropping_chains);
        let places = of_modes.filter(|chain| chain.location == self.location);
        let place = places.map(|chain| chain.place.clone()).reduce(|mut all, one| {
            all.merge(&one);
            all
        });
        Self { place: place.unwrap_or_else(|| self.place.clone()), ..self.clone() }
    }
}

impl DataPathVerdict {
    /// Whether `chain` drops data connections that should pass: those of a mode between interfaces whose control
    /// connections pass. Without such interfaces, all dropped data connections should pass.
    pub fn is_problem(&self, chain: &ChainVerdict, modes: &[ModeVerdict]) -> bool {
        let is_forwarded = |hook| hook == Hook::Forward;
        let meets = |mode: &&ModeVerdict| {
            let is_same_task = is_forwarded(mode.hook) == is_forwarded(self.hook);
            mode.ip == self.ip && (is_same_task || !self.hook.is_filter())
        };
        let mut modes = modes.iter().filter(meets).peekable();
        match modes.peek() {
            None => chain.drops_certainly(),
            Some(_) => modes
                .flat_map(|mode| &mode.dropping_chains)
                .any(|stop| stop.location == chain.location),
        }
    }
}

impl Firewall {
    /// The verdicts on data connections of `class` for each pair of interfaces whose control connections pass according
    /// to `paths`.
    pub fn mode_verdicts(
        &self,
        paths: &[ControlPathVerdict],
        class: PacketClass,
        links: &Links,
    ) -> Vec<ModeVerdict> {
        let names = paths.iter().flat_map(|path| &path.pairs);
        let names = names.flat_map(|pair| pair.from.iter().chain(&pair.to)).map(String::as_str);
        let same = self.interchangeable(names.collect(), links);
        let alike = |name: &Option<String>| {
            same.get(name.as_deref().unwrap_or_default()).copied().unwrap_or_default()
        };
        let mut known = HashMap::new();
        let mut verdicts = Vec::new();
        for path in paths {
            // An accept rule for some hosts may be for anything, so pairs that are open count first.
            let best = path.best_acceptance();
            let pairs = path.pairs.iter().filter(|pair| pair.acceptance == best);
            let mut of_path: Vec<ModeVerdict> = Vec::new();
            for pair in pairs.filter(|_| best != Acceptance::Dropped) {
                for mode in DataMode::BOTH {
                    let (from, to) = match mode {
                        DataMode::Passive => (&pair.from, &pair.to),
                        DataMode::Active => (&pair.to, &pair.from),
                    };
                    let is_partly = best == Acceptance::Partly;
                    let key = (path.ip, mode, is_partly, alike(from), alike(to));
                    let dropping_chains = known.entry(key).or_insert_with(|| {
                        let ends = (alike(from), alike(to));
                        self.chains_dropping(class, path.ip, mode, ends, links, is_partly)
                    });
                    of_path.push(ModeVerdict {
                        mode,
                        hook: path.hook,
                        ip: path.ip,
                        from: from.clone(),
                        to: to.clone(),
                        dropping_chains: dropping_chains.clone(),
                    });
                }
            }
            let passes = |mode: &ModeVerdict| mode.dropping_chains.is_empty();
            let pairs = of_path.chunks(DataMode::BOTH.len());
            if pairs.clone().any(|pair| pair.iter().all(passes)) && !of_path.iter().all(passes) {
                // The operator accepts FTP between these interfaces only.
                let verdicts = Hook::ALL.map(|hook| self.verdict(hook, path.ip, class));
                let restricted: Vec<_> =
                    verdicts.iter().flat_map(HookVerdict::dropping_chains).collect();
                let is_restricted = |chain: &ChainVerdict| {
                    restricted.iter().any(|one| one.location == chain.location)
                };
                for mode in &mut of_path {
                    mode.dropping_chains.retain(|chain| !is_restricted(chain));
                }
            }
            spare_isolated(&mut of_path, path, links);
            verdicts.extend(of_path);
        }
        verdicts
    }

    /// The chains that drop all data connections of a mode between two interfaces, except those that other rules accept
    /// as well. `is_partly` says that only some of their control connections pass.
    fn chains_dropping(
        &self,
        class: PacketClass,
        ip: IpVersion,
        mode: DataMode,
        ends: (&str, &str),
        links: &Links,
        is_partly: bool,
    ) -> Vec<ChainVerdict> {
        let source_port = match mode {
            DataMode::Passive => EPHEMERAL,
            // Some servers use port 20, and some do not.
            DataMode::Active => FieldValue::ANY_PORT,
        };
        let verdict = |class, admitted| {
            let kind = ConnectionKind::Data { class, admitted, source_port };
            HookVerdict::new(self.follow(&Connection::between(ends, links, kind, ip)))
        };
        let unmarked = verdict(PacketClass::MarkedData, 0);
        let control = is_partly.then(|| self.control_verdict(ip, ends, links).1).flatten();
        let mut chains = verdict(class, self.gateway.data_mark).chains;
        chains.retain(|chain| {
            chain.drops_certainly()
                && !accepts_some_admitted(chain, &unmarked)
                && !(is_partly && may_accept(chain, &unmarked, control.as_ref()))
        });
        chains
    }
}

/// Whether `chain` may accept data connections of those hosts whose control connections it accepts: by a rule for
/// admitted ones only, or by all rules that may accept control connections of this direction.
fn may_accept(
    chain: &ChainVerdict,
    unmarked: &HookVerdict,
    control: Option<&ChainVerdict>,
) -> bool {
    let control = control.filter(|control| control.location == chain.location);
    chain.exceptions.iter().any(|rule| !unmarked.has_exception(chain, rule))
        || !chain.exceptions.is_empty()
            && control.is_some_and(|control| {
                control.exceptions.iter().all(|rule| chain.exceptions.contains(rule))
            })
}

/// Clears the verdicts on active mode from servers in an inner network that the operator isolates from the client's
/// network. Not even control connections pass from such a network, and the client has both modes with servers outside.
fn spare_isolated(modes: &mut [ModeVerdict], path: &ControlPathVerdict, links: &Links) {
    let is_inner = |name: &Option<String>| name.as_deref().is_some_and(|name| links.is_inner(name));
    let reach_outside: Vec<Option<String>> = modes
        .chunks(DataMode::BOTH.len())
        .filter(|pair| pair.iter().all(|mode| mode.dropping_chains.is_empty()))
        .filter_map(<[_]>::first) // passive mode, which the client initiates
        .filter(|passive| !is_inner(&passive.to))
        .map(|passive| passive.from.clone())
        .collect();
    for mode in modes.iter_mut().filter(|mode| mode.mode == DataMode::Active) {
        let (server, client) = (&mode.from, &mode.to);
        let is_dropped = path.pairs.iter().any(|pair| {
            (&pair.from, &pair.to) == (server, client) && pair.acceptance == Acceptance::Dropped
        });
        if is_dropped && is_inner(server) && is_inner(client) && reach_outside.contains(client) {
            mode.dropping_chains.clear();
        }
    }
}

#[cfg(test)]
#[path = "data_modes_tests.rs"]
mod tests;
