//! Parameters of the rules, and the meaning of marks.
//!
//! Knows only numbers, not the rules that use them.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    sync::{Arc, PoisonError, RwLock},
};

use ftp_alg_core::{engine::Side, policy::Policy};
pub use ftp_alg_firewall::CtMarkUse;
use ftp_alg_firewall::Gateway;
use serde::{Deserialize, Serialize};

pub use crate::config::Backend;
use crate::config::Config;

/// Name of our table, of family `inet`.
pub const TABLE: &str = "ftp_alg";

/// The highest slot number in a packet mark.
pub const MAX_SLOT: u32 = 0xfff;

/// Parameters of the rules.
///
/// The configuration has checked the values: at least one port and one queue, and a mask of exactly three bits, one of
/// which is the mark.
#[derive(Clone, Debug)]
pub struct RuleParameters {
    /// How rules can recognise our packets.
    pub gateway: Gateway,
    /// The back end that implements pinholes.
    pub backend: Backend,
    /// What was learned from the operator's rules.
    pub learned: SharedLearned,
    /// Whether the rules copy the first and the last packets of data connections.
    pub logs_data: bool,
    /// How many data connections of encrypted sessions a client may have at a time. `None`: the kernel cannot count them.
    pub max_encrypted: Option<usize>,
    queue_first: u16,
    queue_count: u16,
    source_ports: Option<(u16, u16)>,
}

/// What the operator's rules demand of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Learned {
    /// The conntrack zones of control connections, ascending. Zone 0 always is among them.
    pub zones: Vec<u16>,
    /// The first and the last of the ports to which they translate source ports, if that is one set.
    pub source_ports: Option<(u16, u16)>,
    /// What they do with the ct mark.
    pub ct_mark_use: CtMarkUse,
    /// Whether they may overwrite the ct mark bit of data connections.
    pub overwrites_data_mark: bool,
}

impl Default for Learned {
    fn default() -> Self {
        Self {
            zones: vec![0],
            source_ports: None,
            ct_mark_use: CtMarkUse::None,
            overwrites_data_mark: false,
        }
    }
}

impl Learned {
    /// The same parameters with these zones, too.
    pub fn with_zones(self, more: impl IntoIterator<Item = u16>) -> Self {
        let all: BTreeSet<u16> = self.zones.iter().copied().chain(more).chain([0]).collect();
        Self { zones: all.into_iter().collect(), ..self }
    }
}

/// What was learned from the operator's rules, shared by all clones: the rules may be read when threads work with the
/// parameters already.
#[derive(Clone, Debug, Default)]
pub struct SharedLearned(Arc<RwLock<Arc<Learned>>>);

impl SharedLearned {
    /// What was learned by now.
    pub fn now(&self) -> Arc<Learned> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces what was learned. Zones stay, because there may be connections in them.
    pub fn set(&self, learned: Learned) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *known = Arc::new(learned.with_zones(known.zones.iter().copied()));
    }
}

impl Default for RuleParameters {
    fn default() -> Self {
        Self::new(&[21], 2100, 1, 0x4000_0000, 0x7000_0000)
    }
}

impl From<&Config> for RuleParameters {
    fn from(config: &Config) -> Self {
        let (queue, pinhole) = (&config.queue, &config.pinhole);
        let ports = &config.control_ports;
        Self::new(ports, queue.number, queue.workers(), pinhole.mark, pinhole.mark_mask)
            .with_source_ports(config.restricts_ports().then(|| config.nat.port_range.clone()))
            .with_backend(pinhole.backend.unwrap_or_default())
            .with_data_log(config.reports_transfers())
            .with_max_encrypted(Some(config.limits.max_pinholes_per_client))
    }
}

impl RuleParameters {
    /// Parameters for values that the configuration allows. `mark` is the ct mark bit of admitted data connections;
    /// `mark_mask` includes it and the two bits of control connections.
    pub fn new(
        control_ports: &[u16],
        queue_first: u16,
        queue_count: u16,
        mark: u32,
        mark_mask: u32,
    ) -> Self {
        let mut control_ports = control_ports.to_vec();
        control_ports.sort_unstable();
        let others = mark_mask & !mark;
        let queue_all_mark = 1 << others.ilog2();
        let gateway = Gateway {
            control_ports,
            data_mark: mark,
            queue_all_mark,
            queue_none_mark: others & !queue_all_mark,
            slot_mask: slot_bits(mark_mask).fold(0, |bits, bit| bits | bit),
        };
        Self {
            gateway,
            backend: Backend::Nftables,
            learned: SharedLearned::default(),
            logs_data: true,
            max_encrypted: Some(Policy::default().max_pinholes_per_client),
            queue_first,
            queue_count,
            source_ports: None,
        }
    }

    /// The same parameters with another back end.
    pub fn with_backend(self, backend: Backend) -> Self {
        Self { backend, ..self }
    }

    /// The same parameters with translated data connections from these source ports only.
    pub fn with_source_ports(self, ports: Option<RangeInclusive<u16>>) -> Self {
        Self { source_ports: ports.map(RangeInclusive::into_inner), ..self }
    }

    /// The first and the last source port of translated data connections; `None`: they keep theirs.
    pub fn source_ports(&self) -> Option<(u16, u16)> {
        self.source_ports.or(self.learned.now().source_ports)
    }

    /// The same parameters with this, learned from the operator's rules.
    pub fn with_learned(self, learned: Learned) -> Self {
        Self { learned: SharedLearned(Arc::new(RwLock::new(Arc::new(learned)))), ..self }
    }

    /// The same parameters with control connections in these conntrack zones, too.
    pub fn with_zones(self, zones: impl IntoIterator<Item = u16>) -> Self {
        let learned = Learned::clone(&self.learned.now()).with_zones(zones);
        self.with_learned(learned)
    }

    /// The same parameters with the chains that this use of the ct mark needs.
    pub fn with_ct_mark_use(self, ct_mark_use: CtMarkUse) -> Self {
        let learned = Learned::clone(&self.learned.now());
        self.with_learned(Learned { ct_mark_use, ..learned })
    }

    /// Whether the rules let data connections inherit the ct mark before rules of others see their first packet. With
    /// the back end `conntrack` the kernel does it.
    pub fn inherits_marks_early(&self) -> bool {
        self.backend == Backend::Nftables && self.learned.now().ct_mark_use >= CtMarkUse::Restored
    }

    /// Whether our bits are cleared in packet marks that rules of others set from the ct mark.
    pub fn clears_restored_marks(&self) -> bool {
        let learned = self.learned.now();
        learned.ct_mark_use == CtMarkUse::Compared || learned.overwrites_data_mark
    }

    /// The same parameters, and whether the rules copy the first and the last packets of data connections to the group
    /// of nfnetlink_log.
    pub fn with_data_log(self, logs_data: bool) -> Self {
        Self { logs_data, ..self }
    }

    /// The same parameters with another limit of data connections of encrypted sessions.
    pub fn with_max_encrypted(self, max_encrypted: Option<usize>) -> Self {
        Self { max_encrypted, ..self }
    }

    /// The group of nfnetlink_log.
    pub fn data_log_group(&self) -> u16 {
        self.queue_first
    }

    /// The queues' numbers.
    pub fn queues(&self) -> RangeInclusive<u16> {
        self.queue_first..=self.queue_first.saturating_add(self.queue_count.saturating_sub(1))
    }

    /// The end that sent a packet with this packet mark, if the rules say so.
    pub fn sender(&self, mark: u32) -> Option<Side> {
        match mark & self.mask() {
            bits if bits == self.gateway.queue_all_mark => Some(Side::Client),
            bits if bits == self.gateway.data_mark => Some(Side::Server),
            _ => None,
        }
    }

    /// Whether a packet with this packet mark was queued because every packet of its connection is.
    pub fn queues_all(&self, mark: u32) -> bool {
        mark & self.mask() == self.gateway.queue_none_mark
    }

    /// Whether this packet mark belongs to the FIN of a connection that did not fit into the set `closing`.
    pub fn overflowed_closing_set(&self, mark: u32) -> bool {
        mark & self.mask() == self.gateway.data_mark | self.gateway.queue_all_mark
    }

    /// The packet mark of a packet that was queued with `mark`, after its verdict, if it changes: our bits are cleared,
    /// so no later rule sees them.
    pub fn clear_own_mark_bits(&self, mark: u32) -> Option<u32> {
        (mark & self.mask() != 0).then_some(mark & !self.mask())
    }

    /// The packet mark of a packet that the BPF program inspected and let pass.
    pub fn inspected_mark(&self) -> u32 {
        self.gateway.queue_all_mark | self.gateway.queue_none_mark
    }

    /// The packet mark of the first packet of a data connection that the fast path admits. `slot` selects the
    /// translated destination; 0 means none. `None` if the slot is out of range.
    pub fn admitted_mark(&self, slot: u32) -> Option<u32> {
        let bits = slot_bits(self.mask()).enumerate();
        let set = bits.filter(|(place, _)| slot & 1 << place != 0);
        (slot <= MAX_SLOT).then(|| {
            self.gateway.data_mark
                | self.gateway.queue_none_mark
                | set.fold(0, |mark, (_, bit)| mark | bit)
        })
    }

    /// The slot in this packet mark.
    pub(super) fn slot_of(&self, admitted_mark: u32) -> Option<u32> {
        let bits = slot_bits(self.mask()).enumerate();
        let set = bits.filter(|(_, bit)| admitted_mark & bit != 0);
        let slot = set.fold(0, |slot, (place, _)| slot | 1 << place);
        (self.admitted_mark(slot) == Some(admitted_mark)).then_some(slot)
    }

    /// All our ct mark bits; also the packet mark of injected packets.
    pub fn mask(&self) -> u32 {
        self.gateway.mask()
    }
}

/// The packet mark bits that encode a slot, outside of our bits in `mask`. Few slots use few bits, from the highest,
/// because other programs use the lowest first.
fn slot_bits(mask: u32) -> impl Iterator<Item = u32> {
    let free = (0..u32::BITS).rev().map(|place| 1 << place).filter(move |bit| bit & mask == 0);
    free.take(MAX_SLOT.count_ones() as usize)
}

/// What puts packets into the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueStatement {
    /// The `queue` statement of nftables.
    Native,
    /// The iptables target NFQUEUE in our nftables table, through nft_compat.
    Xtables,
    /// The operator's own rules (`ftp-alg rules iptables`); our table does not queue.
    Operator,
}

impl QueueStatement {
    /// The statements that need no operator, best first: not every kernel supports nftables' own.
    pub const BY_PREFERENCE: [Self; 2] = [Self::Native, Self::Xtables];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_with_a_packet_is_read_as_the_rules_write_it() {
        for parameters in
            [RuleParameters::default(), RuleParameters::new(&[21], 7, 4, 0x10, 0x4000_0011)]
        {
            let Gateway { data_mark: data, queue_all_mark: every, queue_none_mark: none, .. } =
                parameters.gateway;
            let read = |mark| {
                let mark = mark | 0x8000; // the operator's
                let overflowed = parameters.overflowed_closing_set(mark);
                (parameters.sender(mark), overflowed, parameters.queues_all(mark))
            };
            assert_eq!(read(0), (None, false, false), "an operator's rules say nothing");
            assert_eq!(read(every), (Some(Side::Client), false, false));
            assert_eq!(read(data), (Some(Side::Server), false, false));
            assert_eq!(read(data | every), (None, true, false));
            assert_eq!(read(none), (None, false, true));
            assert_eq!(parameters.clear_own_mark_bits(0x8000), None);
            for mark in [every, data, data | every, none] {
                assert_eq!(parameters.clear_own_mark_bits(0x8000 | mark), Some(0x8000));
            }
        }
    }

    #[test]
    fn slots_are_in_bits_of_the_packet_mark_that_are_not_ours() {
        let defaults = RuleParameters::default();
        assert_eq!(
            (defaults.inspected_mark(), defaults.gateway.slot_mask),
            (0x3000_0000, 0x8ffe_0000)
        );
        let marks = [0, 1, 2, 3, MAX_SLOT].map(|slot| defaults.admitted_mark(slot).unwrap());
        assert_eq!(marks, [0x5000_0000, 0xd000_0000, 0x5800_0000, 0xd800_0000, 0xdffe_0000]);
        let others = RuleParameters::new(&[21], 7, 4, 0x10, 0x4000_0011);
        for parameters in [defaults, others] {
            let fixed = parameters.gateway.data_mark | parameters.gateway.queue_none_mark;
            for slot in 0..=MAX_SLOT {
                let mark = parameters.admitted_mark(slot).unwrap();
                assert_eq!(mark & parameters.mask(), fixed);
                assert_eq!(mark & !parameters.mask() & !parameters.gateway.slot_mask, 0);
                assert_eq!(parameters.slot_of(mark), Some(slot));
                assert_eq!(parameters.slot_of(mark ^ 0x100), None);
            }
            assert_eq!(parameters.admitted_mark(MAX_SLOT + 1), None);
        }
    }
}
