//! All counters. Field names are those of `ftp-alg status --json`.

use std::{collections::BTreeMap, ops::AddAssign};

use serde::{Deserialize, Serialize};

use crate::{engine::DropReason, session::RefusalReason};

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
        /// Sessions that began, or were picked up mid-stream.
        sessions_started: u64,
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
        /// The announcements and commands of both, by reason.
        refusals: Refusals,
        /// Logins that servers refused.
        logins_refused: u64,
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

/// Counts by reason: in JSON an object with the reasons' names.
macro_rules! counts_by_reason {
    ($(#[$of:meta])* $name:ident of $reason:ident) => {
        $(#[$of])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(from = "BTreeMap<String, u64>", into = "BTreeMap<String, u64>")]
        pub struct $name([u64; $reason::ALL.len()]);

        impl $name {
            /// Counts one more.
            pub fn count(&mut self, reason: $reason) {
                self.0[reason as usize] += 1;
            }

            /// The count for this reason.
            pub fn get(&self, reason: $reason) -> u64 {
                self.0[reason as usize]
            }

            /// The names of all reasons, with their counts.
            pub fn by_name(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
                $reason::ALL.iter().map(|reason| (reason.name(), self.get(*reason)))
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                self.0.iter_mut().zip(other.0).for_each(|(own, other)| *own += other);
            }
        }

        impl From<$name> for BTreeMap<String, u64> {
            fn from(counts: $name) -> Self {
                counts.by_name().map(|(name, count)| (name.to_owned(), count)).collect()
            }
        }

        impl From<BTreeMap<String, u64>> for $name {
            fn from(counts: BTreeMap<String, u64>) -> Self {
                Self($reason::ALL.map(|reason| counts.get(reason.name()).copied().unwrap_or(0)))
            }
        }
    };
}

counts_by_reason! {
    /// Packets dropped, by reason.
    Drops of DropReason
}

counts_by_reason! {
    /// Announcements and other commands refused, by reason.
    Refusals of RefusalReason
}

impl Drops {
    /// Takes one packet back, because it will be decided again.
    pub(crate) fn uncount(&mut self, reason: DropReason) {
        self.0[reason as usize] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_count_and_a_name_of_its_own() {
        let mut refusals = Refusals::default();
        for (times, reason) in RefusalReason::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| refusals.count(reason));
        }
        for (times, reason) in RefusalReason::ALL.into_iter().enumerate() {
            assert_eq!(refusals.get(reason), times as u64, "{}", reason.name());
        }
        let by_name = BTreeMap::from(refusals);
        assert_eq!(by_name.len(), RefusalReason::ALL.len());
        assert_eq!(Refusals::from(by_name), refusals);
        assert_eq!(BTreeMap::from(Drops::default()).len(), DropReason::ALL.len());
    }
}
