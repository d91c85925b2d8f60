//! What is counted, in one place. Field names are those of `ftp-alg status --json`.

use std::{collections::BTreeMap, ops::AddAssign};

use serde::{Deserialize, Serialize};

use super::DropReason;

/// Counters with a name each, that are added to each other.
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
    /// What was done since the start.
    Counters {
        /// Packets that got a verdict, or wait for one.
        packets: u64,
        /// Lines that were judged in the kernel, by the fast path.
        judged: u64,
        /// Lines that the engine would have judged otherwise. There are none.
        judged_otherwise: u64,
        /// Announcements whose endpoint was replaced.
        rewrites: u64,
        /// Pinholes opened.
        pinholes_opened: u64,
        /// Pinholes whose transfer began, as the server said.
        pinholes_used: u64,
        /// Announcements for which policy refused a pinhole.
        pinholes_refused: u64,
        /// Commands other than announcements that policy kept from the server.
        commands_refused: u64,
        /// Connections that became unreadable, as they are encrypted.
        encrypted: u64,
        /// Connections of which packets were missed, so that nothing is opened for them any more.
        lost: u64,
        /// Packets of connections that were too many to be followed.
        uninspected: u64,
        /// Packets that could not be read and passed.
        malformed: u64,
        /// What went wrong on our side: the kernel refused, a packet could not be answered.
        errors: u64,
        /// Packets dropped, by reason.
        drops: Drops,
        /// Packets that passed unread, by reason.
        unread: Unread,
        /// How often each limit was reached; docs/configuration.md says what happens then.
        limits: Limits,
    }
}

counters! {
    /// Packets that passed unread, by reason.
    Unread {
        /// No TCP packet, or not whole.
        malformed: u64,
        /// A wrong checksum: its receiver discards it.
        checksum: u64,
        /// No session is known, and it begins none.
        no_session: u64,
        /// There are as many sessions as there may be, or its `[[network]]` is not inspected.
        not_followed: u64,
        /// It is of another connection than the one that is followed between its endpoints.
        other_connection: u64,
    }
}

counters! {
    /// How often each limit was reached. Of `max-sessions` [`Counters::uninspected`] tells as well.
    Limits {
        /// Connections given up for newer ones.
        sessions: u64,
        /// Connections given up for others, of clients that had more than their share.
        client_sessions: u64,
        /// Connections ended for the memory that they held.
        memory: u64,
        /// Announcements refused for the pinholes of their client.
        client_pinholes: u64,
        /// Announcements refused for the pinholes of their session.
        session_pinholes: u64,
        /// Announcements refused as there is no room for another pinhole, or none for the client's part.
        pinholes: u64,
        /// Connections whose end could not be noted by the packet selection, as its set was full.
        endings: u64,
        /// Announcements refused as no external port was found free.
        ports: u64,
        /// Lines that may announce, too long to be held back.
        line: u64,
        /// Segments that waited for rewrites to be acknowledged.
        rewrites: u64,
        /// Segments that waited for a client's bytes to be acknowledged.
        kept: u64,
        /// Unanswered commands whose kind was forgotten.
        commands: u64,
    }
}

/// Packets dropped, by reason: in JSON an object with each reason's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, u64>", into = "BTreeMap<String, u64>")]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    /// One more.
    pub fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    /// One less: the same packet is decided about again.
    pub(super) fn uncount(&mut self, reason: DropReason) {
        self.0[reason as usize] -= 1;
    }

    /// How many for this reason.
    pub fn of(&self, reason: DropReason) -> u64 {
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
        DropReason::ALL.iter().map(|reason| (reason.name().to_owned(), drops.of(*reason))).collect()
    }
}

impl From<BTreeMap<String, u64>> for Drops {
    fn from(counts: BTreeMap<String, u64>) -> Self {
        Self(DropReason::ALL.map(|reason| counts.get(reason.name()).copied().unwrap_or(0)))
    }
}
