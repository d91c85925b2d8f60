//! Events: what the engine decided, and why. The log and `replay` print them.

use std::{borrow::Cow, fmt, net::SocketAddr, sync::Arc, time::Instant};

use serde::{Serialize, Serializer};

use crate::{
    engine::{EndedSession, PinholeEnds, RangeInfo, Transfer, TransferResult},
    ftp::{AnnouncementKind, NameInText},
    session::{Action, RefusalReason},
};

/// A decision about an announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The kind of announcement.
    pub kind: AnnouncementKind,
    /// The announced endpoint; `None` if the line could not be parsed.
    pub announced: Option<SocketAddr>,
    /// The line, escaped and cut, if it could not be parsed.
    pub unread_text: Option<String>,
    /// What was done.
    pub action: Action,
    /// Why, in a log line's words.
    pub reason: Cow<'static, str>,
    /// What policy or a limit has against the announcement, also if the line passes all the same.
    pub objection: Option<RefusalReason>,
    /// The pinhole, if one was opened.
    pub pinhole: Option<PinholeEnds>,
}

impl Decision {
    /// The reason of a 227 or 229 that passes because it names no endpoint.
    pub(super) const NAMES_NO_ENDPOINT: &str = "the reply names no endpoint";
    /// The words of [`action_name`](Self::action_name).
    pub const ACTIONS: [&str; 4] = ["open", "rewrite", "refuse", "ignore"];

    /// What was done, in one word.
    pub fn action_name(&self) -> &'static str {
        let [open, rewrite, refuse, ignore] = Self::ACTIONS;
        match self.action {
            Action::Open { .. } if self.rewritten().is_some() => rewrite,
            Action::Open { .. } => open,
            Action::Refuse(_) => refuse,
            Action::Pass => ignore,
        }
    }

    /// Whether it is a reply that passes because it names no endpoint.
    pub fn names_no_endpoint(&self) -> bool {
        self.reason == Self::NAMES_NO_ENDPOINT
    }

    /// The endpoint that was announced instead.
    pub fn rewritten(&self) -> Option<SocketAddr> {
        let Action::Open { endpoint, .. } = self.action else { return None };
        Some(endpoint).filter(|_| self.announced != Some(endpoint))
    }
}

/// What happened, in words. The words are a part of the event's text, and no field of its JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words(pub Cow<'static, str>);

impl<T: Into<Cow<'static, str>>> From<T> for Words {
    fn from(words: T) -> Self {
        Self(words.into())
    }
}

impl Serialize for Words {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

/// How important an event is: the level of its line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Details of one session.
    Debug,
    /// Normal operation.
    Info,
    /// Something that may need the operator.
    Warn,
    /// Something that the daemon cannot do.
    Error,
}

impl Level {
    /// The name of the level in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// The description of a kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventDescription {
    /// The field `event` of its JSON.
    pub name: &'static str,
    /// The level of its lines.
    pub level: Level,
    /// The plural, in words.
    pub several: &'static str,
    /// What has happened, in Markdown.
    pub means: &'static str,
    /// What to do, in Markdown; empty if nothing.
    pub remedy: &'static str,
}

macro_rules! event_kinds {
    ($(
        $(#[doc = $means:literal])+
        #[event($name:literal, $level:ident, $several:literal, $remedy:literal)]
        $kind:ident $(($data:ty))?,
    )+) => {
        /// The kind of an event, with its fields. The log, the JSON, the help and docs/events.md are made from this
        /// list.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize)]
        #[serde(untagged)]
        pub enum EventKind {
            $($(#[doc = $means])+ $kind $(($data))?,)+
        }

        impl EventKind {
            /// All kinds.
            pub const ALL: &[EventDescription] = &[$(EventDescription {
                name: $name,
                level: Level::$level,
                several: $several,
                means: concat!($($means),+).trim_ascii_start(),
                remedy: $remedy,
            }),+];

            /// The description of this kind.
            pub fn description(&self) -> &'static EventDescription {
                enum Place { $($kind),+ }
                let place = match self { $(Self::$kind { .. } => Place::$kind,)+ };
                &Self::ALL[place as usize]
            }
        }
    };
}

event_kinds! {
    /// an announcement opened a pinhole, or passed; `action` is `open`, `rewrite` or `ignore`
    #[event("announcement", Info, "announcements", "the reason is behind the last colon")]
    Announcement(Decision),
    /// an announcement or a command was refused; the client got the [reply](counters.md#refusals)
    #[event("refusal", Warn, "refusals", "see the reply")]
    Refusal(Refusal),
    /// a transfer has ended, if [turned on](#transfers)
    #[event("transfer", Info, "transfers", "")]
    Transfer(Box<Transfer>),
    /// a transfer whose end was not seen, because packets were missed or the daemon was killed; or whose [command was not
    /// read](#without-a-command)
    #[event("transfer-unseen", Info, "transfers without an end", "")]
    TransferUnseen(Box<Transfer>),
    /// no data connection ten seconds after the command; once a transfer, before its `transfer` (if [turned on](#transfers))
    #[event("transfer-waiting", Warn, "transfers that wait", "`reason` says who does not answer whom")]
    TransferWaiting(Box<Transfer>),
    /// a data connection got no answer for ten seconds, or till its pinhole was closed, before the command of a transfer, as
    /// of curl and lftp; or the kernel has forgotten it (if [turned on](#transfers))
    #[event("no-data-connection", Warn, "missing data connections", "`reason` says who does not answer whom")]
    NoDataConnection(MissingConnection),
    /// the server accepted a login
    #[event("login", Debug, "logins", "")]
    Login,
    /// the server refused a login; `code` is its reply's
    #[event("login-refused", Info, "refused logins", "many of one client: somebody guesses passwords")]
    LoginRefused(RefusedLogin),
    /// the first login was accepted. Without a login, a session leaves no start and no end
    #[event("session-started", Debug, "starts of sessions", "")]
    SessionStarted,
    /// `end`: `closed`, `reset`, `expired` (no packet for hours), `replaced` (by another connection on its endpoints), `forgotten` (not followed any more)
    #[event("session-ended", Debug, "ends of sessions", "")]
    SessionEnded(EndedSession),
    /// an unused pinhole was closed
    #[event("pinhole-closed", Debug, "closed pinholes", "")]
    PinholeClosed(UnusedPinhole),
    /// a pinhole expired before its transfer began
    #[event("pinhole-expired", Debug, "expired pinholes", "")]
    PinholeExpired(UnusedPinhole),
    /// no connection came through an expired pinhole
    #[event("unused", Warn, "unused pinholes", "the end that connects came late, or a firewall drops it")]
    Unused(UnusedPinhole),
    /// the dialogue cannot be read any more, and the server has no [passive ports](encrypted.md): nothing is opened. One line of
    /// the log a client and day
    #[event("encrypted", Warn, "encrypted sessions", "[encrypted connections](encrypted.md#check)")]
    Encrypted,
    /// both ends of an encrypted session speak TLS: its client may connect to the server's [passive ports](encrypted.md)
    #[event("range-opened", Debug, "opened ranges", "")]
    RangeOpened(RangeInfo),
    /// the passive ports are closed to the client again: `reason`
    #[event("range-closed", Debug, "closed ranges", "")]
    RangeClosed(ClosedRange),
    /// packets were missed, or the dialogue is in step again
    #[event("missed", Info, "sessions with missed packets", "nothing; if it repeats, see `queue-full` and `downtime`")]
    Missed(Words),
    /// the connection [is not FTP](what-opens.md#what-is-not-ftp)
    #[event("not-ftp", Info, "connections that are not FTP", "nothing, or `inspect = false` for its network")]
    NotFtp(Words),
    /// packets of an end arrive on an interface to which no route to it leads
    #[event("elsewhere", Info, "sessions with packets from elsewhere", "[where a line may come from](security.md#where-a-line-may-come-from)")]
    Elsewhere(Stray),
    /// a [limit](limits.md) was reached
    #[event("limit", Warn, "limits that were reached", "raise it, or see what the client does")]
    Limit(Words),
    /// the gateway reset the session at a limit
    #[event("ended", Warn, "sessions that were reset at a limit", "raise `policy.memory` or `max-sessions`")]
    Ended(Words),
    /// the kernel refused a request for the session
    #[event("kernel", Warn, "requests that the kernel refused", "`ftp-alg doctor`")]
    Kernel(Words),
    /// the inspection of the session changed
    #[event("change", Debug, "changes of sessions", "")]
    Change(Words),
}

/// A line that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Refusal {
    /// An announcement.
    Announcement(Decision),
    /// Another command.
    Command(Words),
}

/// A login that the server refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RefusedLogin {
    /// The code of the server's reply.
    pub code: u16,
}

/// A pinhole that no transfer used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct UnusedPinhole {
    /// The kind of its announcement.
    pub kind: AnnouncementKind,
    /// Its ends.
    #[serde(flatten)]
    pub ends: PinholeEnds,
    /// Why it was closed; empty if it expired.
    #[serde(rename = "reason", skip_serializing_if = "str::is_empty")]
    pub why: &'static str,
    /// When it was opened, `None` if by an earlier daemon, and when it was closed, `None` if unknown.
    #[serde(skip)]
    pub lifetime: [Option<Instant>; 2],
}

/// A range that was closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClosedRange {
    /// The range.
    #[serde(flatten)]
    pub range: RangeInfo,
    /// Why.
    #[serde(rename = "reason")]
    pub why: &'static str,
}

/// A data connection that did not come about, and for which there is no transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissingConnection {
    /// The ends of its pinhole.
    #[serde(flatten)]
    pub ends: PinholeEnds,
    /// Which end does not answer the other. The engine leaves it empty. The host, which sees packets of data
    /// connections, sets it.
    pub reason: String,
    /// Whether its session is encrypted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// Whether its server has passive ports, and the connection goes to another port.
    #[serde(skip)]
    pub misses_range: bool,
}

impl MissingConnection {
    /// A missing connection of a session that is not encrypted.
    pub fn new(ends: PinholeEnds, reason: String) -> Self {
        Self { ends, reason, encrypted: false, misses_range: false }
    }
}

/// Packets with an end's address that arrive where no route to it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Stray {
    /// Whether all packets of the end arrive there, so that the session opens nothing.
    #[serde(skip)]
    pub has_no_route: bool,
    /// The consequence, in words.
    #[serde(skip)]
    pub text: &'static str,
}

impl EventKind {
    /// The field `event` of its JSON, which scripts match.
    pub fn name(&self) -> &'static str {
        self.description().name
    }

    /// Whether it says that something failed: a transfer, an announcement, a command, a login or a data connection.
    pub fn is_failure(&self) -> bool {
        match self {
            Self::Transfer(transfer) | Self::TransferUnseen(transfer) => {
                transfer.result != TransferResult::Complete
            }
            Self::Refusal(_)
            | Self::LoginRefused(_)
            | Self::TransferWaiting(_)
            | Self::NoDataConnection(_)
            | Self::Unused(_)
            | Self::Ended(_)
            | Self::Kernel(_) => true,
            _ => false,
        }
    }

    /// The kind of event that reports this transfer.
    pub fn of_transfer(transfer: Box<Transfer>) -> Self {
        match transfer.result {
            TransferResult::Waiting => Self::TransferWaiting(transfer),
            TransferResult::Unseen => Self::TransferUnseen(transfer),
            _ => Self::Transfer(transfer),
        }
    }

    /// The transfer that the event reports, if any.
    fn transfer(&self) -> Option<&Transfer> {
        match self {
            Self::Transfer(transfer)
            | Self::TransferUnseen(transfer)
            | Self::TransferWaiting(transfer) => Some(transfer),
            _ => None,
        }
    }

    /// The ended transfer that the event reports, if any.
    pub fn ended_transfer(&self) -> Option<&Transfer> {
        match self {
            Self::TransferWaiting(_) => None,
            _ => self.transfer(),
        }
    }
}

/// An event on one control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<Kind = EventKind> {
    /// The session number, from 1.
    pub session: u64,
    /// The client.
    pub client: SocketAddr,
    /// The server.
    pub server: SocketAddr,
    /// The user of the last login, or of a refused one, if known. The name is escaped.
    pub user: Option<Arc<str>>,
    /// The kind of event, with its data.
    pub kind: Kind,
}

impl<Kind> Event<Kind> {
    /// Converts the kind of the event.
    pub fn map<Other>(self, become_other: impl FnOnce(Kind) -> Other) -> Event<Other> {
        let Self { session, client, server, user, kind } = self;
        Event { session, client, server, user, kind: become_other(kind) }
    }
}

impl Event {
    /// What has happened, without the session.
    pub fn text(&self) -> String {
        EventText(self).to_string()
    }
}

/// The line of the log.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = if self.kind.transfer().is_some() { "transfer " } else { "" };
        write!(f, "{of}#{} {}", self.session, EventText(self))
    }
}

/// What has happened, without the session.
struct EventText<'e>(&'e Event);

impl fmt::Display for EventText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Event { client, server, user, kind, .. } = self.0;
        if kind.transfer().is_none() {
            write!(f, "{client} -> {server}: ")?;
        }
        match kind {
            EventKind::Announcement(decided)
            | EventKind::Refusal(Refusal::Announcement(decided)) => decided.fmt(f),
            EventKind::Refusal(Refusal::Command(Words(what))) => write!(f, "refuse {what}"),
            EventKind::PinholeClosed(UnusedPinhole { ends, why, .. }) => {
                write!(f, "pinhole closed: {ends}: {why}")
            }
            EventKind::PinholeExpired(UnusedPinhole { ends, kind, .. }) => {
                write!(f, "pinhole expired before its transfer began: {ends} for {kind}")
            }
            EventKind::Unused(UnusedPinhole { ends, kind, .. }) => write!(
                f,
                "pinhole expired unused: {ends}, opened for {kind}: the end that connects came late or not at all, or its data \
                 connection was dropped before this gateway"
            ),
            EventKind::Encrypted => f.write_str(
                "encrypted: the dialogue cannot be read; give the server its passive-ports in [[server]] or [[network]], and its \
                 data connections are admitted; in active mode none is, unless the client goes back to plain text (CCC)",
            ),
            EventKind::RangeOpened(range) => write!(f, "range open: {range}"),
            EventKind::RangeClosed(ClosedRange { range, why }) => {
                write!(f, "range closed: {range}: {why}")
            }
            EventKind::Login => match user {
                Some(user) => write!(f, "logged in: {}", NameInText::User(user)),
                None => f.write_str("logged in"),
            },
            EventKind::LoginRefused(RefusedLogin { code }) => {
                f.write_str("login refused: ")?;
                user.iter().try_for_each(|user| write!(f, "{}: ", NameInText::User(user)))?;
                write!(f, "{code}")
            }
            EventKind::SessionStarted => f.write_str("session started"),
            EventKind::SessionEnded(ended) => ended.write(f, user.as_deref()),
            EventKind::NoDataConnection(MissingConnection { ends, reason, .. })
                if reason.is_empty() =>
            {
                write!(f, "no transfer through the pinhole {ends}")
            }
            EventKind::NoDataConnection(MissingConnection { reason, .. }) => {
                write!(f, "no data connection: {reason}")
            }
            EventKind::Ended(Words(reason)) => write!(f, "session reset at both ends: {reason}"),
            EventKind::Kernel(Words(what)) => write!(f, "failed: {what}"),
            EventKind::Elsewhere(Stray { text, .. }) => f.write_str(text),
            EventKind::Limit(Words(what))
            | EventKind::Change(Words(what))
            | EventKind::NotFtp(Words(what))
            | EventKind::Missed(Words(what)) => f.write_str(what),
            EventKind::Transfer(transfer)
            | EventKind::TransferUnseen(transfer)
            | EventKind::TransferWaiting(transfer) => {
                transfer.write_text(f, client.ip(), user.as_deref())
            }
        }
    }
}

impl Serialize for Decision {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields {
            kind: AnnouncementKind,
            action: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            announced: Option<SocketAddr>,
            #[serde(skip_serializing_if = "Option::is_none")]
            rewritten: Option<SocketAddr>,
            #[serde(flatten)]
            pinhole: Option<PinholeEnds>,
        }
        let Self { kind, announced, pinhole, .. } = *self;
        let (action, rewritten) = (self.action_name(), self.rewritten());
        Fields { kind, action, announced, rewritten, pinhole }.serialize(serializer)
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action_name(), self.kind)?;
        if let Some(announced) = self.announced {
            write!(f, " {announced}")?;
        }
        if let Some(text) = &self.unread_text {
            write!(f, " \"{text}\"")?;
        }
        if let Some(rewritten) = self.rewritten() {
            write!(f, " as {rewritten}")?;
        }
        write!(f, ": {}", self.reason)
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
    /// How many of them report ended transfers.
    pub ended_transfers: u64,
}

/// Limit of stored events. One segment can contain hundreds of commands. The ring buffer of the fast path can have 4854
/// lines, for example after a restart.
pub(super) const MAX_EVENTS: usize = 6144;
/// When so many events are stored, each session has a quarter of the rest at most.
const SHARED: usize = MAX_EVENTS / 2;
/// Capacity that is reused for later events.
const RETAINED_EVENTS: usize = 1024;
/// Limit of the events of a session's end: of its transfers, of its eight pinholes, and of itself.
const MAX_OF_END: usize = crate::engine::activity::MAX_PENDING + 8 + 1;

impl Events {
    /// Adds an event, or counts it as omitted.
    pub fn push(&mut self, event: Event) {
        match self.list.len() {
            ..SHARED => self.list.push(event),
            _ => self.push_if_shared(event),
        }
    }

    /// Adds an event unless its session has used its part of the rest.
    #[cold]
    fn push_if_shared(&mut self, event: Event) {
        let of_session = self.list[SHARED..].iter().filter(|one| one.session == event.session);
        if self.list.len() < MAX_EVENTS && of_session.count() < (MAX_EVENTS - SHARED) / 4 {
            return self.list.push(event);
        }
        self.omitted.all += 1;
        self.omitted.ended_transfers += u64::from(event.kind.ended_transfer().is_some());
    }

    /// The stored events.
    pub fn stored(&self) -> &[Event] {
        &self.list
    }

    /// Whether there is room for the events of another session's end. If not, the session can end later.
    pub fn has_room(&self) -> bool {
        self.list.len() + MAX_OF_END <= MAX_EVENTS
    }

    /// Takes the stored events and the omitted ones. Later events reuse the memory of `emptied`, but for the room
    /// that is seldom needed.
    pub fn replace(&mut self, mut emptied: Vec<Event>) -> (Vec<Event>, OmittedEvents) {
        emptied.clear();
        emptied.shrink_to(RETAINED_EVENTS);
        (std::mem::replace(&mut self.list, emptied), std::mem::take(&mut self.omitted))
    }
}
