//! All counters. Field names are those of `ftp-alg status --json`.

use std::{collections::BTreeMap, ops::AddAssign};

use serde::{Deserialize, Serialize};

use crate::{engine::DropReason, session::RefusalReason};

/// What is to be said of a counter. `ftp-alg status`, the metrics, and the tables of docs/counters.md and docs/metrics.md are
/// made from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterDescription {
    /// The field of `status --json`.
    pub field: &'static str,
    /// The metric, without the `_total`; empty if another one has the number.
    pub metric: &'static str,
    /// The label of its parts, if it has any.
    pub label: &'static str,
    /// The group of `ftp-alg status`, and its name there; empty if another line has the number.
    pub shown: [&'static str; 2],
    /// Whether it is shown even if it is 0.
    pub is_always_shown: bool,
    /// What it counts, in Markdown.
    pub means: &'static str,
    /// What to do, in Markdown.
    pub remedy: &'static str,
}

/// The value of a counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Count {
    /// A number.
    Number(u64),
    /// Several, by name.
    Parts(Vec<(&'static str, u64)>),
}

/// What a struct of counters may have.
pub trait Countable {
    /// Its value.
    fn read(&self) -> Count;
}

impl Countable for u64 {
    fn read(&self) -> Count {
        Count::Number(*self)
    }
}

/// A struct of counters that can be added to another: with what is to be said of each, or as the parts of one.
#[macro_export]
macro_rules! counters {
    ($(#[$of:meta])* $name:ident {$(
        $(#[doc = $means:literal])+
        #[counter($metric:literal $(by $label:literal)?, $group:literal: $shown:literal $(, $always:ident)? $(; $remedy:literal)?)]
        $field:ident: $kind:ty,
    )+}) => {
        $crate::counters!(@struct $(#[$of])* $name {$($(#[doc = $means])+ $field: $kind,)+});

        impl $name {
            /// What is to be said of each.
            pub const ALL: &[$crate::engine::CounterDescription] = &[$($crate::engine::CounterDescription {
                field: stringify!($field),
                metric: $metric,
                label: concat!($($label)?),
                shown: [$group, $shown],
                is_always_shown: !concat!($(stringify!($always))?).is_empty(),
                means: concat!($($means),+).trim_ascii_start(),
                remedy: concat!($($remedy)?),
            }),+];

            /// The value of each.
            pub fn counts(&self) -> Vec<$crate::engine::Count> {
                vec![$($crate::engine::Countable::read(&self.$field)),+]
            }
        }
    };
    ($(#[$of:meta])* parts $name:ident { $($(#[doc = $means:literal])+ $field:ident,)+ }) => {
        $crate::counters!(@struct $(#[$of])* $name {$($(#[doc = $means])+ $field: u64,)+});

        impl $name {
            /// The name of each, what it means, in Markdown, and what to do.
            pub const MEANINGS: &[[&str; 3]] =
                &[$([stringify!($field), concat!($($means),+).trim_ascii_start(), ""]),+];
        }

        impl $crate::engine::Countable for $name {
            fn read(&self) -> $crate::engine::Count {
                $crate::engine::Count::Parts(vec![$((stringify!($field), self.$field)),+])
            }
        }
    };
    (@struct $(#[$of:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $kind:ty,)+ }) => {
        $(#[$of])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct $name { $($(#[$doc])* pub $field: $kind,)+ }

        impl std::ops::AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                $(self.$field += other.$field;)+
            }
        }
    };
}

counters! {
    /// Counters of engines since the start.
    Counters {
        /// sessions that began, or were picked up mid-stream
        #[counter("ftp_alg_sessions_started", "sessions": "started", always)]
        sessions_started: u64,
        /// sessions whose start was not seen: nothing is opened for them
        #[counter("ftp_alg_sessions_picked_up", "sessions": "picked up mid-stream")]
        sessions_picked_up: u64,
        /// logins that servers refused
        #[counter("ftp_alg_logins_refused", "sessions": "logins refused")]
        logins_refused: u64,
        /// sessions that became unreadable, because they are encrypted
        #[counter("ftp_alg_sessions_encrypted", "sessions": "became encrypted"; "[encrypted connections](encrypted.md#check)")]
        encrypted: u64,
        /// encrypted sessions for which the server's passive ports were opened to the client
        #[counter("ftp_alg_ranges_opened", "sessions": "passive ports opened")]
        ranges_opened: u64,
        /// sessions of which packets certainly passed unread
        #[counter("ftp_alg_sessions_unread", "sessions": "missed packets"; "nothing is opened for them until their dialogue is [in step again](what-opens.md#after-missed-packets)")]
        unread_sessions: u64,
        /// announcements whose endpoint was replaced
        #[counter("ftp_alg_rewrites", "announcements and commands": "rewritten", always)]
        rewrites: u64,
        /// announcements that were refused because of the policy, a limit or an error. Not replies that passed and opened nothing
        #[counter("ftp_alg_pinholes_refused", "announcements and commands": "pinholes refused", always)]
        pinholes_refused: u64,
        /// other commands that the policy did not let through
        #[counter("ftp_alg_commands_refused", "announcements and commands": "commands refused")]
        commands_refused: u64,
        /// announcements and other commands that the gateway refused, by reason
        #[counter("ftp_alg_refusals" by "reason", "announcements and commands": "reasons")]
        refusals: Refusals,
        /// pinholes opened
        #[counter("ftp_alg_pinholes_opened", "pinholes": "opened", always)]
        pinholes_opened: u64,
        /// pinholes whose transfer began, as the server said
        #[counter("ftp_alg_pinholes_used", "pinholes": "used", always)]
        pinholes_used: u64,
        /// packets that were queued and got a verdict, or wait for one
        #[counter("ftp_alg_packets", "packets": "queued", always)]
        packets: u64,
        /// packets that the engine dropped, by reason; TCP retransmits what is needed
        #[counter("ftp_alg_drops" by "reason", "packets": "dropped")]
        drops: Drops,
        /// queued packets that passed without inspection, by reason
        #[counter("ftp_alg_packets_unread" by "reason", "packets": "passed unread")]
        unread: Unread,
        /// packets of connections above `max-sessions`, which passed
        #[counter("ftp_alg_packets_uninspected", "packets": "above max-sessions"; "raise `max-sessions`")]
        uninspected: u64,
        /// packets that could not be read, and passed; in `unread`, too
        #[counter("ftp_alg_packets_malformed", "packets": "")]
        malformed: u64,
        /// lines that took the [fast path](fastpath.md)
        #[counter("", "fast path": "")]
        fast_path_lines: u64,
        /// lines that the engine would have treated differently from the fast path; 0 without a bug
        #[counter("ftp_alg_fast_path_mismatches", "fast path": "mismatches"; "report it")]
        fast_path_mismatches: u64,
        /// errors of the daemon: the kernel refused a request, or a packet could not be handled. Not a table that was removed and is loaded again
        #[counter("ftp_alg_errors", "daemon": "errors", always; "the log says what")]
        errors: u64,
        /// how often each [limit](limits.md) was reached
        #[counter("ftp_alg_limits_reached" by "limit", "daemon": "limits reached")]
        limits: Limits,
    }
}

counters! {
    /// Packets that passed unread, by what each of them does.
    parts Unread {
        /// is no TCP over IPv4 or IPv6, or not whole
        malformed,
        /// has a wrong TCP checksum: its receiver discards it
        checksum,
        /// belongs to no session and begins none: it has no data, or the client is not known
        no_session,
        /// is of a connection above `max-sessions`, or of a `[[network]]` with `inspect = false`
        not_followed,
        /// is of another connection than the one that is followed between its endpoints
        other_connection,
        /// is as in `drops.elsewhere`, but passed
        elsewhere,
    }
}

counters! {
    /// How often each limit was reached. `max-sessions` also counts in [`Counters::uninspected`].
    parts Limits {
        /// connections evicted for newer ones, at `max-sessions`
        sessions,
        /// connections ended for their client's share
        client_sessions,
        /// connections ended for the memory that they held
        memory,
        /// announcements that opened nothing: too many unused pinholes of one client
        client_pinholes,
        /// the same: too many pinholes of one session
        session_pinholes,
        /// the same: no room for another pinhole, or none in the client's part
        pinholes,
        /// connections whose end was not noted, because the set `closing` was full
        closing_set,
        /// announcements that opened nothing: no external port was free
        ports,
        /// lines that may announce, and are too long to be held
        line,
        /// segments dropped until earlier rewrites are acknowledged
        rewrites,
        /// segments dropped until the client's earlier data is acknowledged
        unacknowledged_data,
        /// pending commands whose kind was forgotten
        commands,
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

        impl Countable for $name {
            fn read(&self) -> Count {
                Count::Parts(self.by_name().collect())
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
    /// Takes one packet back, because the packet will be handled again.
    pub(crate) fn uncount(&mut self, reason: DropReason) {
        self.0[reason as usize] -= 1;
    }
}
