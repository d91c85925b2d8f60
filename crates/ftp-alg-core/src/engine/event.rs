//! What the engine decided and why, for logs, `replay` and whoever wants to know.

use std::{borrow::Cow, fmt, net::SocketAddr};

use super::Pinhole;
use crate::{ftp::Kind, session::Side};

/// What was done about an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A pinhole was opened; the announcement went on as it was.
    Open,
    /// A pinhole was opened; the announcement went on naming another endpoint.
    Rewrite,
    /// Nothing was opened; a command was kept from the server.
    Refuse,
    /// Nothing was opened; the announcement went on as it was.
    Ignore,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Rewrite => "rewrite",
            Self::Refuse => "refuse",
            Self::Ignore => "ignore",
        })
    }
}

/// A decision about one announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The form of the announcement.
    pub kind: Kind,
    /// Who announced.
    pub from: Side,
    /// What was announced; `None` when it could not be read.
    pub announced: Option<SocketAddr>,
    /// What was done.
    pub action: Action,
    /// What is announced instead.
    pub rewritten: Option<SocketAddr>,
    /// Why.
    pub reason: Cow<'static, str>,
    /// The line, escaped and cut, where it could not be read.
    pub said: Option<String>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// An announcement was decided about.
    Announcement(Decision),
    /// This reply, escaped and cut, should have announced, names no endpoint, and passed.
    Unread(String),
    /// A pinhole was closed before it was used, because of this.
    Closed(Pinhole, &'static str),
    /// A pinhole's deadline passed before a transfer began through it.
    Expired(Pinhole, Kind),
    /// The connection is encrypted from here on.
    Encrypted,
    /// Another command than an announcement was kept from the server.
    Refused(&'static str),
    /// This was not done, as a limit is reached.
    Limit(Cow<'static, str>),
    /// The connection was ended at a limit.
    Ended(String),
    /// The connection is treated otherwise from here on.
    Turned(&'static str),
    /// The kernel did not do what was asked.
    Failed(String),
}

/// Something that happened on one control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The session's number, counted from 1 since start.
    pub session: u64,
    /// The client.
    pub client: SocketAddr,
    /// The server.
    pub server: SocketAddr,
    /// What happened.
    pub what: What,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {} -> {}: ", self.session, self.client, self.server)?;
        match &self.what {
            What::Announcement(decision) => decision.fmt(f),
            What::Unread(said) => write!(f, "pass \"{said}\": it names no endpoint"),
            What::Closed(pinhole, why) => write!(f, "closed pinhole {pinhole}: {why}"),
            What::Expired(pinhole, kind) => {
                write!(f, "closed pinhole {pinhole} for {kind}: nobody connected in time")
            }
            What::Encrypted => f.write_str(
                "encrypted: nothing is opened or rewritten for its data connections, as it cannot be read; open the \
                 server's passive ports in the firewall, or have clients use plain FTP by [policy] auth-tls = \"refuse\"",
            ),
            What::Refused(what) => write!(f, "refuse {what}"),
            What::Limit(what) => f.write_str(what),
            What::Ended(why) => write!(f, "ended, both ends are reset: {why}"),
            What::Turned(what) => f.write_str(what),
            What::Failed(what) => write!(f, "failed: {what}"),
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action, self.kind)?;
        if let Some(announced) = self.announced {
            write!(f, " {announced}")?;
        }
        if let Some(said) = &self.said {
            write!(f, " \"{said}\"")?;
        }
        if let Some(rewritten) = self.rewritten {
            write!(f, " as {rewritten}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// Events that wait to be taken.
#[derive(Debug, Default)]
pub struct Events {
    list: Vec<Event>,
    more: u64,
}

/// How many wait at most. One segment can hold hundreds of commands.
const MAX_EVENTS: usize = 1024;

impl Events {
    /// One more.
    pub fn push(&mut self, event: Event) {
        if self.list.len() < MAX_EVENTS {
            self.list.push(event);
        } else {
            self.more += 1;
        }
    }

    /// Several, and as many as `more` of which only the number is known.
    pub fn add(&mut self, events: &mut Vec<Event>, more: u64) {
        events.drain(..).for_each(|event| self.push(event));
        self.more += more;
    }

    /// Those that wait, to be emptied, and how many more there were.
    pub fn all(&mut self) -> (&mut Vec<Event>, u64) {
        (&mut self.list, std::mem::take(&mut self.more))
    }

    /// Those that wait, and how many more there were.
    pub fn take(&mut self) -> (Vec<Event>, u64) {
        (std::mem::take(&mut self.list), std::mem::take(&mut self.more))
    }
}
