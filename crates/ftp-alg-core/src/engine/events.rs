//! Events: what the engine decided, and why. The log and `replay` print them.

use std::{borrow::Cow, fmt, net::SocketAddr, sync::Arc};

use crate::{
    engine::{EndedSession, PinholeEnds, Transfer},
    ftp::{AnnouncementKind, NameInText},
    session::{Decision, Effect},
};

/// A decision about one announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecidedAnnouncement {
    /// The kind of announcement.
    pub kind: AnnouncementKind,
    /// The announced endpoint; `None` if the line could not be parsed.
    pub announced: Option<SocketAddr>,
    /// The line, escaped and cut, if it could not be parsed.
    pub unread_text: Option<String>,
    /// The decision.
    pub decision: Decision,
}

impl DecidedAnnouncement {
    /// The words of [`action`](Self::action).
    pub const ACTIONS: [&str; 4] = ["open", "rewrite", "refuse", "ignore"];

    /// What was done, in one word.
    pub fn action(&self) -> &'static str {
        let [open, rewrite, refuse, ignore] = Self::ACTIONS;
        match self.decision.effect {
            Effect::Open { .. } if self.rewritten().is_some() => rewrite,
            Effect::Open { .. } => open,
            Effect::Refuse(_) => refuse,
            Effect::Pass => ignore,
        }
    }

    /// The endpoint that was announced instead.
    pub fn rewritten(&self) -> Option<SocketAddr> {
        let Effect::Open { endpoint, .. } = self.decision.effect else { return None };
        Some(endpoint).filter(|_| self.announced != Some(endpoint))
    }
}

/// The kind of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A decision about an announcement.
    Announcement(DecidedAnnouncement),
    /// A 227 or 229 without an endpoint was forwarded; its text is escaped and cut.
    UnreadableReply(String),
    /// An unused pinhole was closed for this reason.
    PinholeClosed(PinholeEnds, &'static str),
    /// A pinhole expired before a transfer started.
    PinholeExpired(PinholeEnds, AnnouncementKind),
    /// The connection is encrypted from here on.
    Encrypted,
    /// A command other than an announcement was refused.
    CommandRefused(&'static str),
    /// A limit was reached.
    LimitReached(Cow<'static, str>),
    /// The session was reset because of a limit.
    Reset(String),
    /// The server accepted the user's login.
    LoggedIn,
    /// The server refused the user's login with this code.
    LoginRefused(u16),
    /// The server has accepted the session's first login.
    SessionStarted,
    /// A session with a login has ended.
    SessionEnded(EndedSession),
    /// A transfer has ended.
    Transfer(Arc<Transfer>),
    /// A transfer has been pending for a while. It may wait for its data connection.
    TransferWaiting(Arc<Transfer>),
    /// An announcement had no transfer for a while, or until the session's end. The client may wait for the data
    /// connection before it requests one.
    PinholeWaiting(PinholeEnds),
    /// The inspection of the connection changed.
    StateChanged(&'static str),
    /// The connection is not FTP, or the client does not speak it.
    NotFtp(&'static str),
    /// Packets were missed, or the dialogue is in step again after that.
    Missed(&'static str),
    /// Packets with an end's address arrive where no route to it leads. They are not read.
    FromElsewhere(&'static str),
    /// All packets of an end arrive where no route to it leads, so the session opens nothing.
    RouteMissing(&'static str),
    /// The kernel refused a request.
    KernelRefused(String),
}

impl EventKind {
    /// The names of all kinds, which scripts match.
    pub const NAMES: [&str; 20] = [
        "announcement",
        "change",
        "elsewhere",
        "encrypted",
        "ended",
        "kernel",
        "limit",
        "login",
        "login-refused",
        "missed",
        "no-data-connection",
        "not-ftp",
        "pinhole-closed",
        "pinhole-expired",
        "refusal",
        "session-ended",
        "session-started",
        "transfer",
        "transfer-unseen",
        "transfer-waiting",
    ];

    /// The name of the kind. Refused announcements and other refused commands have one name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Announcement(DecidedAnnouncement { decision, .. })
                if matches!(decision.effect, Effect::Refuse(_)) =>
            {
                "refusal"
            }
            Self::Announcement(_) | Self::UnreadableReply(_) => "announcement",
            Self::PinholeClosed(..) => "pinhole-closed",
            Self::PinholeExpired(..) => "pinhole-expired",
            Self::Encrypted => "encrypted",
            Self::CommandRefused(_) => "refusal",
            Self::LimitReached(_) => "limit",
            Self::Reset(_) => "ended",
            Self::LoggedIn => "login",
            Self::LoginRefused(_) => "login-refused",
            Self::SessionStarted => "session-started",
            Self::SessionEnded(_) => "session-ended",
            Self::Transfer(_) => "transfer",
            Self::TransferWaiting(_) => "transfer-waiting",
            Self::PinholeWaiting(_) => "no-data-connection",
            Self::StateChanged(_) => "change",
            Self::NotFtp(_) => "not-ftp",
            Self::Missed(_) => "missed",
            Self::FromElsewhere(_) | Self::RouteMissing(_) => "elsewhere",
            Self::KernelRefused(_) => "kernel",
        }
    }
}

/// An event on one control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The session number, from 1.
    pub session: u64,
    /// The client.
    pub client: SocketAddr,
    /// The server.
    pub server: SocketAddr,
    /// The user, whose name is escaped, if a login was seen; or the one that was refused.
    pub user: Option<Arc<str>>,
    /// The kind of event, with its data.
    pub kind: EventKind,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {} -> {}: ", self.session, self.client, self.server)?;
        match &self.kind {
            EventKind::Announcement(decision) => decision.fmt(f),
            EventKind::UnreadableReply(text) => write!(f, "pass \"{text}\": the reply names no endpoint"),
            EventKind::PinholeClosed(pinhole, reason) => write!(f, "pinhole closed: {pinhole}: {reason}"),
            EventKind::PinholeExpired(pinhole, kind) => {
                write!(f, "pinhole expired before its transfer began: {pinhole} for {kind}")
            }
            EventKind::Encrypted => f.write_str(
                "encrypted: the dialogue cannot be read, so no pinhole is opened and nothing is rewritten; open the server's \
                 passive ports in the firewall, or set [policy] auth-tls = \"refuse\" so that clients use plain FTP",
            ),
            EventKind::CommandRefused(what) => write!(f, "refuse {what}"),
            EventKind::LoggedIn => match &self.user {
                Some(user) => write!(f, "logged in: {}", NameInText::User(user)),
                None => f.write_str("logged in"),
            },
            EventKind::LoginRefused(code) => {
                f.write_str("login refused: ")?;
                self.user.iter().try_for_each(|user| write!(f, "{}: ", NameInText::User(user)))?;
                write!(f, "{code}")
            }
            EventKind::SessionStarted => f.write_str("session started"),
            EventKind::SessionEnded(session) => session.fmt(f),
            EventKind::PinholeWaiting(pinhole) => write!(f, "no transfer through the pinhole {pinhole}"),
            EventKind::Transfer(transfer) | EventKind::TransferWaiting(transfer) => transfer.fmt(f),
            EventKind::LimitReached(what) => f.write_str(what),
            EventKind::Reset(reason) => write!(f, "session reset at both ends: {reason}"),
            EventKind::StateChanged(what)
            | EventKind::NotFtp(what)
            | EventKind::Missed(what)
            | EventKind::FromElsewhere(what)
            | EventKind::RouteMissing(what) => f.write_str(what),
            EventKind::KernelRefused(what) => write!(f, "failed: {what}"),
        }
    }
}

impl fmt::Display for DecidedAnnouncement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action(), self.kind)?;
        if let Some(announced) = self.announced {
            write!(f, " {announced}")?;
        }
        if let Some(text) = &self.unread_text {
            write!(f, " \"{text}\"")?;
        }
        if let Some(rewritten) = self.rewritten() {
            write!(f, " as {rewritten}")?;
        }
        write!(f, ": {}", self.decision.reason)
    }
}

/// A bounded list of events.
#[derive(Debug, Default)]
pub struct Events {
    list: Vec<Event>,
    omitted: OmittedEvents,
}

/// Events that were left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OmittedEvents {
    /// All of them.
    pub all: u64,
    /// Those that are transfers that have ended.
    pub ended_transfers: u64,
}

/// Limit of stored events. One segment can contain hundreds of commands. The ring buffer of the fast path can have 5461
/// lines, for example after a restart.
pub(super) const MAX_EVENTS: usize = 6144;
/// Room for events that stays for the next ones.
const RETAINED_EVENTS: usize = 1024;
/// Limit of the events of a session's end: of its transfers, and of itself.
const MAX_OF_END: usize = 8;

fn is_ended_transfer(event: &Event) -> bool {
    matches!(event.kind, EventKind::Transfer(_))
}

impl Events {
    /// Adds an event, or counts it as omitted.
    pub fn push(&mut self, event: Event) {
        if self.list.len() < MAX_EVENTS {
            self.list.push(event);
        } else {
            self.omitted.all += 1;
            self.omitted.ended_transfers += u64::from(is_ended_transfer(&event));
        }
    }

    /// The stored events.
    pub fn stored(&self) -> &[Event] {
        &self.list
    }

    /// The number of transfers that have ended, with those that are omitted.
    pub fn ended_transfers(&self) -> u64 {
        let stored = self.list.iter().filter(|event| is_ended_transfer(event)).count();
        stored as u64 + self.omitted.ended_transfers
    }

    /// Whether there is room for the events of another session's end. If not, the session can end later.
    pub fn has_room(&self) -> bool {
        self.list.len() + MAX_OF_END <= MAX_EVENTS
    }

    /// Takes the stored events and the omitted ones. The next ones are stored in the memory of `emptied`, but for the room
    /// that is seldom needed.
    pub fn replace(&mut self, mut emptied: Vec<Event>) -> (Vec<Event>, OmittedEvents) {
        emptied.clear();
        emptied.shrink_to(RETAINED_EVENTS);
        (std::mem::replace(&mut self.list, emptied), std::mem::take(&mut self.omitted))
    }
}
