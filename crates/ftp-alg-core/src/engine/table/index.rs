//! The hash index of the session table: from the hash of the endpoints to a table slot.
//!
//! The endpoints are stored only in the table entry. An index slot holds 32 bits of the hash and a table slot in eight
//! bytes. The index slots of a search are adjacent, so a lookup reads one cache line however many entries there are.
//! There are many small hash tables instead of one large table, so no packet waits for a large table to grow.

/// The upper bits of a hash select the part, the lower ones the slot.
const PARTS: u32 = 64;

/// Low half of the hash, then a table slot plus one; 0 is free.
type Slot = u64;

/// Table slots by hash. Knows neither keys nor entries.
pub struct Index {
    parts: [Part; PARTS as usize],
}

#[derive(Default)]
struct Part {
    /// Length is a power of two, or zero.
    slots: Vec<Slot>,
    taken: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self { parts: std::array::from_fn(|_| Part::default()) }
    }
}

impl Index {
    /// The table slot with this hash for which `is` returns true.
    pub fn find(&self, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let part = &self.parts[part_of(hash)];
        part.position(hash, &mut is).map(|at| table_slot(part.slots[at]))
    }

    /// Reads the index slot where a search for this hash starts, so that it is cached afterwards.
    pub fn first_slot(&self, hash: u64) -> u64 {
        let part = &self.parts[part_of(hash)];
        let mask = part.slots.len().wrapping_sub(1);
        part.slots.get(hash as usize & mask).copied().unwrap_or_default()
    }

    /// Inserts a table slot.
    pub fn insert(&mut self, hash: u64, table_slot: u32) {
        self.parts[part_of(hash)].insert(hash << 32 | (u64::from(table_slot) + 1));
    }

    /// Removes a table slot.
    pub fn remove(&mut self, hash: u64, table_slot: u32) {
        let part = &mut self.parts[part_of(hash)];
        if let Some(at) = part.position(hash, &mut |found| found == table_slot) {
            part.remove(at);
        }
    }
}

impl Part {
    fn position(&self, hash: u64, is: &mut impl FnMut(u32) -> bool) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = hash as usize & mask;
        loop {
            let slot = *self.slots.get(at)?;
            if slot == 0 {
                return None; // a part always has a free slot
            }
            if slot >> 32 == hash & 0xffff_ffff && is(table_slot(slot)) {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
    }

    fn insert(&mut self, slot: Slot) {
        self.taken += 1;
        if self.taken * 4 > self.slots.len() * 3 {
            let more = vec![0; (self.slots.len() * 2).max(8)];
            for slot in std::mem::replace(&mut self.slots, more) {
                if slot != 0 {
                    self.put(slot);
                }
            }
        }
        self.put(slot);
    }

    fn put(&mut self, slot: Slot) {
        let mask = self.slots.len() - 1;
        let mut at = home(slot) & mask;
        while self.slots[at] != 0 {
            at = (at + 1) & mask;
        }
        self.slots[at] = slot;
    }

    /// Frees a slot, and moves a later one into it that would otherwise not be found any more.
    fn remove(&mut self, mut free: usize) {
        let mask = self.slots.len() - 1;
        let mut at = free;
        loop {
            at = (at + 1) & mask;
            let slot = self.slots[at];
            if slot == 0 {
                break;
            }
            let from_home = at.wrapping_sub(home(slot)) & mask;
            if from_home >= at.wrapping_sub(free) & mask {
                self.slots[free] = slot;
                free = at;
            }
        }
        self.slots[free] = 0;
        self.taken -= 1;
    }
}

fn part_of(hash: u64) -> usize {
    (hash >> (u64::BITS - PARTS.ilog2())) as usize
}

fn home(slot: Slot) -> usize {
    (slot >> 32) as usize
}

fn table_slot(slot: Slot) -> u32 {
    (slot as u32).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slots_are_found_after_any_inserts_and_removals(
            steps in proptest::collection::vec((0u64..40, any::<bool>()), 0..400),
        ) {
            // Few hashes, some of which wrap and all of which are in two parts, so that as many as possible collide.
            let hash = |n: u64| ((n % 2) << 63) | ((n / 2) % 5) | ((n % 3) << 31);
            let mut index = Index::default();
            let mut known = BTreeMap::new();
            for (n, comes) in steps {
                if comes && known.insert(n, ()).is_none() {
                    index.insert(hash(n), n as u32);
                } else if !comes {
                    index.remove(hash(n), n as u32);
                    known.remove(&n);
                }
                for n in 0..40 {
                    let found = index.find(hash(n), |table_slot| table_slot == n as u32);
                    prop_assert_eq!(found.is_some(), known.contains_key(&n));
                }
            }
        }
    }
}
