//! The figures: who takes part in each, and what is compared with what.

use crate::{contestant::Contestant, forward::Traffic, load::Verb};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Transfers of a small file, by so many clients at a time; announced in one way, or in those that were chosen, in
    /// turn.
    Cycles(usize, Option<Verb>),
    /// Transfers as with PASV, from a server that is published by destination NAT, so that each 227 is rewritten.
    Published(usize),
    /// Whole sessions with one such transfer: connection, login, transfer, `QUIT`.
    Sessions(usize, Option<Verb>),
    /// Commands and replies through the queue, without data connections.
    Packets,
    /// Small packets of other traffic.
    Forward(Traffic),
    /// A data connection.
    Bulk,
    /// A control connection that carries a reply without end.
    Control,
}

/// A ratio that has a goal.
pub struct Goal {
    /// Ours is compared with the best of these.
    pub with: &'static [&'static str],
    /// At least.
    pub least: f64,
}

impl Figure {
    /// What the table calls it.
    pub fn title(self) -> String {
        match self {
            Self::Cycles(clients, verb) => format!("{} cycles/s, {}", kind(verb), counted(clients)),
            Self::Published(clients) => format!("PASV cycles/s, DNAT, {}", counted(clients)),
            Self::Sessions(clients, verb) => {
                format!("{} sessions/s, {}", kind(verb), counted(clients))
            }
            Self::Packets => "control packets/s of the reader's processor time".to_owned(),
            Self::Forward(traffic) => format!("forwarded packets/s, {}", traffic.name()),
            Self::Bulk => "data connection, Gbit/s".to_owned(),
            Self::Control => "control connection, Gbit/s".to_owned(),
        }
    }

    /// What a rate is divided by to be printed.
    pub fn unit(self) -> f64 {
        if matches!(self, Self::Bulk | Self::Control) { 1e9 } else { 1.0 }
    }

    /// Whether it says something of `contestant`.
    pub fn is_for(self, contestant: &Contestant) -> bool {
        if contestant.name() == Contestant::FLOWTABLE {
            return self == Self::Bulk;
        }
        // One connection, or one core, shows nothing of several workers.
        let ours = matches!(contestant, Contestant::Daemon { name, .. }
            if *name != Contestant::ONE_WORKER);
        let named = |names: &[&str]| ours || names.contains(&contestant.name());
        match self {
            // An endpoint that the client announces is of no use without a helper.
            Self::Cycles(_, Some(verb)) | Self::Sessions(_, Some(verb)) if verb.is_active() => {
                !matches!(contestant, Contestant::NoHelper | Contestant::Firewall)
            }
            Self::Cycles(..) | Self::Sessions(..) => *contestant != Contestant::Firewall,
            Self::Published(_) => named(&["helper"]),
            Self::Forward(_) => named(&["helper", "firewall"]),
            Self::Packets | Self::Control => named(&["loop", "none"]),
            Self::Bulk => named(&["helper", "none"]),
        }
    }

    /// Its goals.
    pub fn goals(self) -> &'static [Goal] {
        match self {
            Self::Cycles(..) => &[
                Goal { with: &["helper"], least: 0.95 },
                Goal { with: &["suse", "proftpd"], least: 1.8 },
            ],
            Self::Sessions(..) => &[
                Goal { with: &["helper"], least: 0.8 },
                Goal { with: &["suse", "proftpd"], least: 1.8 },
            ],
            Self::Published(_) => &[Goal { with: &["helper"], least: 0.9 }],
            Self::Forward(_) => &[], // of what it takes beyond the firewall
            Self::Packets => &[Goal { with: &["loop"], least: 2.0 }],
            Self::Bulk => &[Goal { with: &["none"], least: 0.99 }],
            Self::Control => &[Goal { with: &["loop"], least: 5.0 }],
        }
    }
}

fn kind(verb: Option<Verb>) -> &'static str {
    verb.map_or("transfer", Verb::name)
}

fn counted(clients: usize) -> String {
    if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") }
}
