//! The passive ports of encrypted sessions' servers, as elements of the sets and maps in our table.
//!
//! The ports change seldom, and the kernel copies a set with intervals at each change of it. So ports are written when
//! an address gets other ports, and what each session needs is in hashes: client and dialled address, with the server's
//! own address. Ports that no range needs any more stay until there are many of them.

use std::{
    collections::BTreeMap,
    ffi::CStr,
    net::IpAddr,
    ops::RangeInclusive,
    sync::{Arc, PoisonError},
};

use ftp_alg_core::engine::{KernelError, OpenRange, RANGE_LIFETIME};

use super::{
    commits::{PortsByKey, PortsKey, WrittenPorts},
    pinholes::{PinholeSets, SetElement},
};
use crate::kernel::netlink::{
    nft::{Batch, endpoint_key},
    octets_of,
};

/// The sets of one address family.
struct FamilySets {
    sessions: &'static CStr,
    /// The keys of that map.
    ends: &'static CStr,
    /// Ports at servers' own addresses.
    ports: &'static CStr,
    /// Ports at the addresses that clients dial.
    dialled_ports: &'static CStr,
    /// Sessions without ports.
    watched: &'static CStr,
    sources: &'static CStr,
    marks: &'static CStr,
}

const V4: FamilySets = FamilySets {
    sessions: c"encrypted4",
    ends: c"encrypted_ends4",
    ports: c"passive_ports4",
    dialled_ports: c"dialled_ports4",
    watched: c"watched4",
    sources: c"encrypted_sources4",
    marks: c"encrypted_marks4",
};
const V6: FamilySets = FamilySets {
    sessions: c"encrypted6",
    ends: c"encrypted_ends6",
    ports: c"passive_ports6",
    dialled_ports: c"dialled_ports6",
    watched: c"watched6",
    sources: c"encrypted_sources6",
    marks: c"encrypted_marks6",
};

/// How many more addresses may have ports that no range needs than addresses have ports that a range needs.
const SPARE_ADDRESSES: usize = 64;

fn sets_of(address: IpAddr) -> &'static FamilySets {
    if address.is_ipv6() { &V6 } else { &V4 }
}

impl PinholeSets {
    /// Opens a range for its lifetime from now.
    pub fn open_range(&mut self, range: &OpenRange) -> Result<(), KernelError> {
        if range.has_ports() {
            self.write_ports(range)?;
        }
        self.set_range(range, true)
    }

    /// Closes a range.
    pub fn close_range(&mut self, range: &OpenRange) -> Result<(), KernelError> {
        let written = self.commits.written_ports();
        let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
        for key in ports_keys(range) {
            let ports = written.of.get_mut(&key).into_iter().flatten();
            let removed = ports.filter_map(|(_, open)| open.take(&range.key())).count();
            written.open -= removed;
        }
        drop(written);
        self.set_range(range, false)
    }

    /// Closes all ranges, and forgets which ports the table has.
    pub fn close_all_ranges(&mut self) -> Result<(), KernelError> {
        let written = self.commits.written_ports();
        let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
        *written = WrittenPorts::default();
        let mut batch = Batch::new();
        // All may be empty.
        batch.report_changes();
        for sets in [&V4, &V6] {
            let of_sessions = [sets.sessions, sets.ends, sets.watched, sets.sources, sets.marks];
            for set in of_sessions.into_iter().chain([sets.ports, sets.dialled_ports]) {
                batch.flush_set(set);
            }
        }
        let sent = self.commits.send(&mut batch, &mut self.socket).and_then(|sent| sent.result());
        sent.map_err(|source| KernelError::System { what: "close passive ports".into(), source })
    }

    fn set_range(&mut self, range: &OpenRange, is_open: bool) -> Result<(), KernelError> {
        let control = &range.control;
        let [client, source, server, dialled] =
            [control.client, control.client_external, control.server, control.server_external]
                .map(|end| end.ip());
        let sets = sets_of(server);
        let pair = |one, other| [octets_of(one), octets_of(other)].concat();
        let timeout = |is_needed: bool| (is_open && is_needed).then_some(RANGE_LIFETIME);
        let what = format!("passive ports of {server} for {client}");
        if !range.has_ports() {
            let watched = SetElement::set(sets.watched, pair(client, dialled), None, timeout(true));
            return self.set_elements(&what, &mut [watched]);
        }
        let mark = control.ct_mark;
        let elements = [
            (sets.sources, pair(client, dialled), octets_of(source), timeout(source != client)),
            (sets.marks, pair(client, dialled), mark.to_ne_bytes().to_vec(), timeout(mark != 0)),
            (sets.sessions, pair(client, dialled), octets_of(server), timeout(true)),
        ]
        .map(|(set, key, data, timeout)| SetElement::set(set, key, Some(data), timeout));
        let ends = SetElement::set(sets.ends, pair(client, dialled), None, timeout(true));
        let [sources, marks, sessions] = elements;
        self.set_elements(&what, &mut [sources, marks, sessions, ends])
    }

    /// Writes the ports of the range to the sets, unless the sets have them: at the dialled address, and at the
    /// server's own.
    fn write_ports(&mut self, range: &OpenRange) -> Result<(), KernelError> {
        let written = self.commits.written_ports();
        let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
        let WrittenPorts { of, open, is_known } = &mut *written;
        let (mut new, mut has_others) = (BTreeMap::new(), !std::mem::replace(is_known, true));
        for key in ports_keys(range) {
            let known = of.entry(key).or_default();
            match known.iter_mut().find(|(ports, _)| *ports == range.ports) {
                Some((_, of_ports)) => *open += usize::from(of_ports.insert(range.key())),
                None => {
                    *open += 1;
                    has_others |= !known.is_empty();
                    known.push((Arc::clone(&range.ports), [range.key()].into()));
                    new.insert(key, known.clone());
                }
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        if has_others || of.len() > 2 * *open + SPARE_ADDRESSES {
            of.retain(|_, all| {
                all.retain(|(_, open)| !open.is_empty());
                !all.is_empty()
            });
            new.clone_from(of);
            for sets in [&V4, &V6] {
                batch.flush_set(sets.ports);
                batch.flush_set(sets.dialled_ports);
            }
        }
        for ((set, address), range) in intervals(&new) {
            let at = |port: u16| endpoint_key((address, port).into());
            batch.add_interval(set, &at(*range.start()), &at(*range.end()));
        }
        let sent = self.commits.send(&mut batch, &mut self.socket).and_then(|sent| sent.result());
        if sent.is_err() {
            // The next one empties the sets, and those of others come back with their renewals.
            *written = WrittenPorts::default();
        }
        sent.map_err(|source| KernelError::System { what: "write passive ports".into(), source })
    }
}

/// The keys at which the rules compare the ports of a range: after the translation, and before it.
fn ports_keys(OpenRange { control, .. }: &OpenRange) -> [PortsKey; 2] {
    let (server, dialled) = (control.server.ip(), control.server_external.ip());
    [(sets_of(server).ports, server), (sets_of(dialled).dialled_ports, dialled)]
}

/// The ports of each key, without overlaps.
fn intervals(written: &PortsByKey) -> Vec<(PortsKey, RangeInclusive<u16>)> {
    let each = written.iter().flat_map(|(key, all)| all.iter().map(move |one| (key, one)));
    let ranges = each.flat_map(|(key, (ports, _))| ports.iter().map(|range| (*key, range.clone())));
    let mut all: Vec<_> = ranges.collect();
    all.sort_unstable_by_key(|(key, range)| (*key, *range.start()));
    let mut merged: Vec<(PortsKey, RangeInclusive<u16>)> = Vec::new();
    for (key, range) in all {
        match merged.last_mut() {
            Some((last, before))
                if *last == key && *range.start() <= before.end().saturating_add(1) =>
            {
                *before = *before.start()..=*before.end().max(range.end());
            }
            _ => merged.push((key, range)),
        }
    }
    merged
}
