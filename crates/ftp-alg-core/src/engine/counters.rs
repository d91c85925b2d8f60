//! All counters. Field names are those of `ftp-alg status --json`.

use std::{collections::BTreeMap, ops::AddAssign};

use serde::{Deserialize, Serialize};

use crate::engine::DropReason;

/// A struct of counters that can be added to another.
macro_rules! counters {
    ($(#[$of:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$of])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $name { $($(#[$doc])* pub $field: $kind,)* }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                $(self.$field += other.$field;)*
            }
        }
    };
}

counters! {
    /// Counters since the start.
    Counters {
        /// Packets that got a verdict, or wait for one.
        packets: u64,
        /// Lines that the BPF program inspected and let pass.
        fast_path_lines: u64,
        /// Lines that the engine would have decided differently. Always 0 unless there is a bug.
        fast_path_mismatches: u64,
        /// Announcements whose endpoint was rewritten.
        rewrites: u64,
        /// Pinholes opened.
        pinholes_opened: u64,
        /// Pinholes whose transfer started, according to the server's replies.
        pinholes_used: u64,
        /// Announcements for which policy refused a pinhole.
        pinholes_refused: u64,
        /// Commands other than announcements that policy refused.
        commands_refused: u64,
        /// Sessions that became encrypted, so they can no longer be read.
        encrypted: u64,
        /// Sessions that missed packets, so nothing is opened for them until they are in step again.
        unread_sessions: u64,
        /// Packets of connections beyond the limit of sessions.
        uninspected: u64,
        /// Packets that could not be parsed and passed.
        malformed: u64,
        /// Failures of the gateway: the kernel refused a request, or a packet could not be handled.
        errors: u64,
        /// Packets dropped, by reason.
        drops: Drops,
        /// Packets that passed unread, by reason.
        unread: Unread,
        /// How often each limit was reached; docs/limits.md describes what happens then.
        limits: Limits,
    }
}

counters! {
    /// Packets that passed unread, by reason.
    Unread {
        /// Not a complete TCP packet.
        malformed: u64,
        /// Wrong checksum: the receiver discards it.
        checksum: u64,
        /// No session exists, and the packet starts none.
        no_session: u64,
        /// The limit of sessions is reached, or the connection's `[[network]]` is not inspected.
        not_followed: u64,
        /// It belongs to another connection on the endpoints of a session.
        other_connection: u64,
        /// It arrived where no route to its sender leads.
        elsewhere: u64,
    }
}

counters! {
    /// How often each limit was reached. `max-sessions` also counts in [`Counters::uninspected`].
    Limits {
        /// Sessions evicted for newer ones.
        sessions: u64,
        /// Sessions evicted because their client had more than its share.
        client_sessions: u64,
        /// Sessions reset because of the memory budget.
        memory: u64,
        /// Announcements refused because of the client's limit of pinholes.
        client_pinholes: u64,
        /// Announcements refused because of the session's limit of pinholes.
        session_pinholes: u64,
        /// Announcements refused because of the limit of all pinholes, or of the client's part of it.
        pinholes: u64,
        /// Connections whose FIN could not be recorded in the rules' set `closing`, because it was full.
        closing_set: u64,
        /// Announcements refused because no external port was free.
        ports: u64,
        /// Possible announcements that were too long to be held back.
        line: u64,
        /// Segments dropped until rewrites are acknowledged.
        rewrites: u64,
        /// Segments dropped until the client's data is acknowledged.
        unacknowledged_data: u64,
        /// Pending commands whose kind was forgotten.
        commands: u64,
    }
}

/// Packets dropped, by reason: in JSON an object with the reasons' names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, u64>", into = "BTreeMap<String, u64>")]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    /// Counts one packet.
    pub fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    /// Takes one packet back, because it will be decided again.
    pub(crate) fn uncount(&mut self, reason: DropReason) {
        self.0[reason as usize] -= 1;
    }

    /// The count for this reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }
}

impl AddAssign for Drops {
    fn add_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(own, other)| *own += other);
    }
}

impl From<Drops> for BTreeMap<String, u64> {
    fn from(drops: Drops) -> Self {
        DropReason::ALL
            .iter()
            .map(|reason| (reason.name().to_owned(), drops.get(*reason)))
            .collect()
    }
}

impl From<BTreeMap<String, u64>> for Drops {
    fn from(counts: BTreeMap<String, u64>) -> Self {
        Self(DropReason::ALL.map(|reason| counts.get(reason.name()).copied().unwrap_or(0)))
    }
}
