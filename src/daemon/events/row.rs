//! The JSON of an event. docs/events.md lists the events and their fields.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use ftp_alg_core::{
    engine::{EndedSession, Event, EventKind, TransferFields, TransferSession},
    ftp::AnnouncementKind,
};
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::What;
use crate::daemon::transfers::Report;

/// One event.
#[derive(Serialize)]
struct EventRow<'a> {
    id: u64,
    /// In UTC (RFC 3339).
    #[serde(serialize_with = "in_utc")]
    time: SystemTime,
    event: &'static str,
    session: u64,
    client: IpAddr,
    server: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(flatten)]
    details: Option<Details<'a>>,
    /// The line of the log.
    #[serde(serialize_with = "as_text")]
    text: &'a dyn Display,
}

/// The fields that only some events have.
#[derive(Serialize)]
#[serde(untagged)]
enum Details<'a> {
    Announcement {
        kind: AnnouncementKind,
        action: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        announced: Option<SocketAddr>,
        #[serde(skip_serializing_if = "Option::is_none")]
        rewritten: Option<SocketAddr>,
    },
    ExpiredPinhole {
        kind: AnnouncementKind,
    },
    RefusedLogin {
        code: u16,
    },
    Transfer(TransferFields<'a>),
    /// Who does not answer whom.
    MissingConnection {
        reason: &'a str,
    },
    EndedSession {
        /// How it ended.
        end: &'static str,
        transfers: u32,
        /// The bytes of its transfers; `None` if they are not known of each.
        bytes: Option<u64>,
        seconds: f64,
    },
}

/// The JSON of the event with this ID, which was seen at the time `at`.
pub(super) fn json_of(id: u64, at: SystemTime, what: &What) -> Box<RawValue> {
    let (event, session, user, details, text): (_, TransferSession, _, _, &dyn Display) = match what
    {
        What::Session(event) => {
            let Event { session, client, server, user, kind } = event;
            let session = TransferSession { id: *session, client: *client, server: *server };
            (kind.name(), session, user, details_of(kind), event)
        }
        What::Report(Report::Transfer(finished)) => {
            let details = Details::Transfer(finished.fields());
            let (session, user) = (finished.session, &finished.transfer.user);
            (finished.event(), session, user, Some(details), &**finished)
        }
        What::Report(Report::NoDataConnection(missing)) => {
            let details = Details::MissingConnection { reason: &missing.reason };
            ("no-data-connection", missing.session, &missing.user, Some(details), &**missing)
        }
        What::Report(Report::SessionEnd(report)) => {
            let details = session_end(&report.ended, report.bytes);
            ("session-ended", report.session, &report.ended.user, Some(details), &**report)
        }
    };
    let TransferSession { id: number, client, server } = session;
    let row = EventRow {
        id,
        time: at,
        event,
        session: number,
        client: client.ip(),
        server: server.ip(),
        user: user.as_deref(),
        details,
        text,
    };
    serde_json::value::to_raw_value(&row).unwrap_or_default()
}

fn details_of(kind: &EventKind) -> Option<Details<'_>> {
    Some(match kind {
        EventKind::Announcement(decided) => Details::Announcement {
            kind: decided.kind,
            action: decided.action(),
            announced: decided.announced,
            rewritten: decided.rewritten(),
        },
        EventKind::PinholeExpired(_, kind) => Details::ExpiredPinhole { kind: *kind },
        EventKind::LoginRefused(code) => Details::RefusedLogin { code: *code },
        EventKind::SessionEnded(ended) => session_end(ended, None),
        _ => return None,
    })
}

fn session_end(ended: &EndedSession, bytes: Option<u64>) -> Details<'static> {
    let EndedSession { end, transfers, duration, .. } = ended;
    Details::EndedSession {
        end: end.name(),
        transfers: *transfers,
        bytes,
        seconds: seconds(*duration),
    }
}

fn in_utc<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let at = Timestamp::try_from(*at).unwrap_or_default();
    serializer.collect_str(&format_args!("{at:.6}"))
}

fn as_text<S: Serializer>(text: &&dyn Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(text)
}

/// To a microsecond.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e6
}
