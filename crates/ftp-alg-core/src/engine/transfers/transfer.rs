//! A transfer: what the control connection says of it, and what the packets of its data connection do.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use serde::{Serialize, Serializer};

use crate::{
    engine::{PinholeEnds, UnusedPinhole, activity::in_seconds},
    ftp::{AnnouncementKind, NameInText, Reply},
    session::TransferVerb,
};

/// Replies from this one on refuse a command, if no preliminary reply came before (RFC 959, section 4.2.2).
const REFUSED: u16 = 450;

/// How a transfer ended on the control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferEnd {
    /// By the server's last reply.
    Replied(Reply),
    /// The control connection ended before a reply.
    SessionEnded,
    /// The control connection was reset before a reply.
    SessionReset,
    /// Its end was not seen: packets were missed, or the session was forgotten.
    Unseen,
    /// It has not ended.
    Pending,
    /// The control connection is encrypted.
    Encrypted,
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransferResult {
    /// The server reported success.
    Complete,
    /// It ended after it had begun.
    Aborted,
    /// The server refused the command.
    Refused,
    /// The data connection did not come about.
    NoDataConnection,
    /// The data connection or the control connection was reset.
    Reset,
    /// Its end was not seen.
    Unseen,
    /// It has not ended, and waits for its data connection.
    Waiting,
}

/// A transfer that has ended, or is pending. The engine knows what the control connection says of it; the result, the bytes
/// and the reason come from [`TransferTracker`](super::TransferTracker).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The command.
    pub verb: TransferVerb,
    /// The file or directory: absolute if the client's directory is known; `None` if it is not certain which one it was.
    pub path: Option<Box<str>>,
    /// The announcement of its data connection, if that opened a pinhole.
    pub announcement: Option<(AnnouncementKind, PinholeEnds)>,
    /// When the announcement passed, if that is known.
    pub announced: Option<Instant>,
    /// From the command to the last reply, or from the data connection's SYN-ACK to its last FIN.
    pub duration: Duration,
    /// Whether the server sent a preliminary reply.
    pub has_started: bool,
    /// Whether another command was pending at its last reply.
    pub is_followed: bool,
    /// How it ended.
    pub end: TransferEnd,
    /// When its last reply was seen, or when its data connection ended.
    pub ended: Option<Instant>,
    /// The result, by the reply and the data connection.
    pub result: TransferResult,
    /// The bytes that its receiver got, if the first and the last packets of their sender were seen: modulo 4 GiB, until
    /// the host has completed them.
    pub bytes: Option<u64>,
    /// The port of the data connection's initiator, if it is known which connection that was.
    pub initiator_port: Option<u16>,
    /// Why there was no data connection.
    pub reason: Option<String>,
    /// Why something that is absent is not certain.
    pub uncertain: Option<&'static str>,
}

impl TransferEnd {
    /// Whether the server reported success.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Replied(reply) if reply.is_success())
    }
}

impl TransferResult {
    /// The name that it has in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Aborted => "aborted",
            Self::Refused => "refused",
            Self::NoDataConnection => "no-data-connection",
            Self::Reset => "reset",
            Self::Unseen => "unseen",
            Self::Waiting => "waiting",
        }
    }
}

impl Transfer {
    /// Whether the server opens the data connection; `None` if no announcement opened a pinhole.
    pub fn is_active(&self) -> Option<bool> {
        self.announcement.map(|(kind, _)| kind.is_active())
    }

    /// A transfer of which nothing else is known.
    pub(in crate::engine) fn new(
        verb: TransferVerb,
        announcement: Option<(AnnouncementKind, PinholeEnds)>,
    ) -> Self {
        Self {
            verb,
            path: None,
            announcement,
            announced: None,
            duration: Duration::ZERO,
            has_started: true,
            is_followed: false,
            end: TransferEnd::Unseen,
            ended: None,
            result: TransferResult::Unseen,
            bytes: None,
            initiator_port: None,
            reason: None,
            uncertain: None,
        }
    }

    /// The transfer through a pinhole that was closed at the time `closed` and that no known transfer used. Packets
    /// of data connections are seen `since` that time.
    pub fn without_command(
        unused: &UnusedPinhole,
        closed: Instant,
        since: Option<Instant>,
    ) -> Self {
        let announced = unused.lifetime[0].or(since);
        let duration = announced.map(|at| closed.saturating_duration_since(at)).unwrap_or_default();
        let announcement = Some((unused.kind, unused.ends));
        Self { announced, duration, ..Self::new(TransferVerb::Unread(None), announcement) }
    }

    /// Whether its session is encrypted, so that nothing is known of it but its data connection.
    pub fn is_encrypted(&self) -> bool {
        self.end == TransferEnd::Encrypted
    }

    /// Whether the client sends, if that is known.
    fn is_upload(&self) -> Option<bool> {
        match self.verb {
            TransferVerb::Unread(is_upload) => is_upload,
            verb => Some(verb.is_upload()),
        }
    }

    /// Whether it has begun, by the server's word.
    pub fn has_begun(&self) -> bool {
        self.has_started || self.end.is_success()
    }

    /// Whether the server refused the command.
    pub(in crate::engine) fn is_refused(&self) -> bool {
        !self.has_started && self.code().is_some_and(|code| code >= REFUSED)
    }

    /// Whether another command may have used its data connection, or another announcement may have been its.
    pub(in crate::engine) fn may_share(&self) -> bool {
        self.is_followed || self.uncertain.is_some() && self.end == TransferEnd::Unseen
    }

    /// Whether the target of the data connection sends what is transferred, not its initiator.
    pub fn target_sends(&self) -> bool {
        self.announcement.is_some_and(|(kind, _)| self.verb.is_sent_by_target(kind))
    }

    /// The data connection, if it is known which one that was: its initiator, and what this dialled.
    pub fn connection(&self) -> Option<(SocketAddr, SocketAddr)> {
        let (_, PinholeEnds { initiator, arrival, .. }) = self.announcement?;
        Some((SocketAddr::new(initiator, self.initiator_port?), arrival))
    }

    /// The code of the server's last reply.
    pub fn code(&self) -> Option<u16> {
        match self.end {
            TransferEnd::Replied(reply) => Some(reply.code),
            _ => None,
        }
    }

    /// Writes what the log says behind its session: `bob@10.0.0.7 STOR /pub/q3.csv 5 B in 0.2 s: 226`.
    pub(in crate::engine) fn write_text(
        &self,
        f: &mut fmt::Formatter<'_>,
        client: IpAddr,
        user: Option<&str>,
    ) -> fmt::Result {
        if let Some(user) = user {
            write!(f, "{}@", NameInText::User(user))?;
        }
        let verb = match self.verb {
            TransferVerb::Unread(_) if self.is_encrypted() => "encrypted",
            TransferVerb::Unread(_) => "unknown command",
            verb => verb.name(),
        };
        write!(f, "{client} {verb}")?;
        if let Some(path) = self.path.as_ref().filter(|path| !path.is_empty()) {
            write!(f, " {}", NameInText::Path(path))?;
        }
        if let Some(bytes) = self.bytes {
            write!(f, " {bytes} B")?;
        }
        let (seconds, result) = (self.duration.as_secs_f64(), self.result);
        if result == TransferResult::Waiting {
            write!(f, " has waited {seconds:.1} s for its data connection")?;
        } else {
            write!(f, " in {seconds:.1} s: ")?;
            match self.end {
                TransferEnd::Replied(reply) => write!(f, "{}", reply.code)?,
                TransferEnd::SessionEnded | TransferEnd::SessionReset => {
                    f.write_str("the control connection ended")?;
                }
                TransferEnd::Encrypted if result != TransferResult::Unseen => {
                    f.write_str("the data connection ended")?;
                }
                TransferEnd::Unseen | TransferEnd::Pending | TransferEnd::Encrypted => {
                    f.write_str("its end was not seen")?;
                }
            }
            if !matches!(result, TransferResult::Complete | TransferResult::Unseen) {
                write!(f, ", {}", result.name().replace('-', " "))?;
            }
        }
        self.reason.as_ref().map_or(Ok(()), |reason| write!(f, ": {reason}"))?;
        self.uncertain.map_or(Ok(()), |why| write!(f, "; uncertain: {why}"))
    }
}

/// The fields that docs/events.md lists.
impl Serialize for Transfer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields<'a> {
            verb: Option<&'static str>,
            path: Option<&'a str>,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            encrypted: bool,
            direction: Option<&'static str>,
            mode: Option<&'static str>,
            bytes: Option<u64>,
            #[serde(serialize_with = "in_seconds")]
            seconds: Duration,
            result: &'static str,
            code: Option<u16>,
            reason: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            uncertain: Option<&'a str>,
            #[serde(flatten)]
            pinhole: Option<PinholeEnds>,
            #[serde(skip_serializing_if = "Option::is_none")]
            initiator_port: Option<u16>,
        }
        let Self { verb, path, duration, result, bytes, reason, initiator_port, .. } = self;
        Fields {
            verb: Some(verb.name()).filter(|name| !name.is_empty()),
            path: path.as_deref(),
            encrypted: self.is_encrypted(),
            direction: self.is_upload().map(|up| if up { "up" } else { "down" }),
            mode: self.is_active().map(|active| if active { "active" } else { "passive" }),
            bytes: *bytes,
            seconds: *duration,
            result: result.name(),
            code: self.code(),
            reason: reason.as_deref(),
            uncertain: self.uncertain,
            pinhole: self.announcement.map(|(_, ends)| ends),
            initiator_port: *initiator_port,
        }
        .serialize(serializer)
    }
}
