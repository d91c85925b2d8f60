//! The figures: the contestants of each, and the ratios that have goals.

use crate::{contestant::Contestant, forward::Traffic, load::Verb};

/// A figure: one kind of measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Transfers of a small file, with this number of clients at once.
    Cycles(usize, Verb),
    /// The same over IPv6, routed without translation.
    Cycles6(usize, Verb),
    /// Transfers with `PASV` from a server behind destination NAT, so each 227 is rewritten.
    Published(usize),
    /// Whole sessions with one transfer: connection, login, transfer, `QUIT`.
    Sessions(usize, Verb),
    /// Commands and replies that pass the queue, without data connections.
    Packets,
    /// Small packets of other traffic.
    Forward(Traffic),
    /// A data connection with as many bytes as possible.
    Bulk,
    /// A control connection with a reply without end.
    Control,
}

/// A ratio that has a goal.
pub struct Goal {
    /// The names of contestants. `ftp-alg` is compared with the best of them.
    pub with: &'static [&'static str],
    /// The smallest ratio that reaches the goal.
    pub least: f64,
}

impl Goal {
    /// The smallest ratio that reaches the goal for this contestant.
    pub fn least_of(&self, figure: Figure, contestant: &Contestant) -> f64 {
        match figure.clients().filter(|_| contestant.expects() && self.with == ["helper"]) {
            Some(1) => 0.5,
            Some(_) => 0.7,
            None => self.least,
        }
    }
}

impl Figure {
    /// The title in the table.
    pub fn title(self) -> String {
        match self {
            Self::Cycles(clients, verb) => {
                format!("{} cycles/s, {}", verb.name(), counted(clients))
            }
            Self::Cycles6(clients, verb) => {
                format!("{} cycles/s, IPv6, {}", verb.name(), counted(clients))
            }
            Self::Published(clients) => format!("PASV cycles/s, DNAT, {}", counted(clients)),
            Self::Sessions(clients, verb) => {
                format!("{} sessions/s, {}", verb.name(), counted(clients))
            }
            Self::Packets => "control packets/s of the reader's processor time".to_owned(),
            Self::Forward(traffic) => format!("forwarded packets/s, {}", traffic.name()),
            Self::Bulk => "data connection, Gbit/s".to_owned(),
            Self::Control => "control connection, Gbit/s".to_owned(),
        }
    }

    /// The number of clients that transfer small files.
    pub fn clients(self) -> Option<usize> {
        match self {
            Self::Cycles(clients, _)
            | Self::Cycles6(clients, _)
            | Self::Published(clients)
            | Self::Sessions(clients, _) => Some(clients),
            Self::Packets | Self::Forward(_) | Self::Bulk | Self::Control => None,
        }
    }

    /// The unit in which a rate is printed.
    pub fn unit(self) -> f64 {
        if matches!(self, Self::Bulk | Self::Control) { 1e9 } else { 1.0 }
    }

    /// Whether `contestant` is measured for this figure.
    pub fn is_for(self, contestant: &Contestant) -> bool {
        let ours = matches!(contestant, Contestant::Daemon { .. });
        let named = |names: &[&str]| ours || names.contains(&contestant.name());
        match self {
            // What has no announcements does not depend on the back end.
            _ if contestant.expects() && self.clients().is_none() => false,
            // Without a helper, no connection can reach an endpoint that the client announces.
            Self::Cycles(_, verb) | Self::Sessions(_, verb) if verb.is_active() => {
                !matches!(contestant, Contestant::NoHelper | Contestant::Firewall)
            }
            Self::Cycles(..) | Self::Sessions(..) => *contestant != Contestant::Firewall,
            Self::Cycles6(..) | Self::Published(_) => named(&["helper"]),
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
            Self::Cycles6(1, Verb::Epsv) => &[Goal { with: &["helper"], least: 0.9 }],
            Self::Cycles6(1, _) | Self::Cycles6(_, Verb::Epsv) => {
                &[Goal { with: &["helper"], least: 0.88 }]
            }
            Self::Cycles6(..) => &[Goal { with: &["helper"], least: 0.86 }],
            Self::Published(_) => &[Goal { with: &["helper"], least: 0.9 }],
            Self::Forward(_) => &[], // its goal is for the extra time, see the table
            Self::Packets => &[Goal { with: &["loop"], least: 2.0 }],
            Self::Bulk => &[Goal { with: &["none"], least: 0.99 }],
            Self::Control => &[Goal { with: &["loop"], least: 5.0 }],
        }
    }
}

fn counted(clients: usize) -> String {
    if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") }
}
