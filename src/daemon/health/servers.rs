//! Servers whose announcements of one mode open nothing: a few of the last minutes, with the reason and the setting that
//! would change it. Clients use another mode if one fails, but not all of them do.
//!
//! Invariant: at most [`MAX_RECORDS`] modes of servers are stored for each half of the window.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Instant, SystemTime},
};

use ftp_alg_core::{
    engine::Decision,
    ftp::AnnouncementKind,
    session::{Action, RefusalReason},
};

use super::{WITHIN, names::ProblemName, recent::Halves};
use crate::daemon::snapshot::Finding;

/// How many modes of servers are stored. Those without an announcement for the longest time are forgotten.
pub(super) const MAX_RECORDS: usize = 128;
/// How many announcements of one mode must open nothing, and none open a pinhole, until the server is named. A single
/// one may be a client's mistake.
pub(super) const MIN_REFUSED: u32 = 3;

/// The announcements of one mode, of a server or its clients.
#[derive(Clone, Debug)]
struct ModeRecord {
    server: SocketAddr,
    kind: AnnouncementKind,
    /// Whether one opened a pinhole.
    opened: bool,
    refused: u32,
    /// When the last one opened nothing, and why, with the announcement in a log line's words.
    last: Option<(SystemTime, RefusalReason, String)>,
}

/// The servers that announced something in the last minutes.
#[derive(Debug, Default)]
pub(super) struct RecentServers(Halves<Vec<ModeRecord>>);

impl RecentServers {
    /// Notes a decision about an announcement of `server` or its clients. Does not count a client's refused
    /// announcements, or what a client's commands caused.
    pub(super) fn note(&mut self, now: Instant, server: SocketAddr, decided: &Decision) {
        let opened = matches!(decided.action, Action::Open { .. });
        let counts =
            |why: &RefusalReason| *why != RefusalReason::EpsvOnly && !decided.kind.is_active();
        let objection = decided.objection.filter(counts);
        let refused = objection.map(|objection| {
            let (kind, reason) = (decided.kind, &decided.reason);
            let announced = decided.announced.map(|one| format!(" {one}")).unwrap_or_default();
            (SystemTime::now(), objection, format!("{kind}{announced}: {reason}"))
        });
        if !opened && refused.is_none() {
            return;
        }
        let record = record_of(self.0.this_mut(now), server, decided.kind, MAX_RECORDS);
        record.opened |= opened;
        record.refused = record.refused.saturating_add(refused.is_some().into());
        record.last = refused.or(record.last.take());
    }

    /// Whether pinholes were opened for another server than this one.
    pub(super) fn others_work(&mut self, now: Instant, server: IpAddr) -> bool {
        let is_other = |one: &ModeRecord| one.opened && one.server.ip() != server;
        self.0.both(now).into_iter().flatten().any(is_other)
    }

    /// Forgets the announcements that opened nothing.
    pub(super) fn forget_refused(&mut self) {
        for record in self.0.both_mut().into_iter().flatten() {
            (record.refused, record.last) = (0, None);
        }
    }

    /// The warning about servers whose announcements of a mode all open nothing, and the time of the last such
    /// announcement.
    pub(super) fn finding(&mut self, now: Instant) -> Option<(SystemTime, Finding)> {
        let mut modes: Vec<ModeRecord> = Vec::new();
        for half in self.0.both(now) {
            for one in half {
                let record = record_of(&mut modes, one.server, one.kind, 2 * MAX_RECORDS);
                record.opened |= one.opened;
                record.refused = record.refused.saturating_add(one.refused);
                record.last = one.last.clone().or(record.last.take());
            }
        }
        modes.retain(|one| !one.opened && one.refused >= MIN_REFUSED);
        // The worst one is named, and for the same counts always the same one.
        modes.sort_by_key(|one| (std::cmp::Reverse(one.refused), one.server, one.kind.to_string()));
        let ModeRecord { server, kind, refused, last, .. } = modes.first()?;
        let (at, objection, last) = last.as_ref()?;
        let others = match &modes[1..] {
            [] => String::new(),
            [other] => format!("; the same holds for {} of {}", other.kind, other.server),
            others => format!("; the same holds for {} other modes and servers", others.len()),
        };
        let text = format!(
            "all {refused} {kind} announcements of the server {server} {WITHIN} opened nothing; the last: {last}{others}"
        );
        let name = ProblemName::RefusedAnnouncements;
        Some((*at, name.finding_with(text, objection.remedy())))
    }
}

/// The record of a server's mode, which is then the last one of at most `limit`.
fn record_of(
    records: &mut Vec<ModeRecord>,
    server: SocketAddr,
    kind: AnnouncementKind,
    limit: usize,
) -> &mut ModeRecord {
    let record = match records.iter().position(|one| (one.server, one.kind) == (server, kind)) {
        Some(at) => records.remove(at),
        None => {
            if records.len() >= limit {
                records.remove(0);
            }
            ModeRecord { server, kind, opened: false, refused: 0, last: None }
        }
    };
    records.push(record);
    let at = records.len() - 1;
    &mut records[at]
}

#[cfg(test)]
mod tests {
    use ftp_alg_core::ftp::Padding;

    use super::{super::RECENT_WINDOW, *};

    fn server(number: u16) -> SocketAddr {
        let [high, low] = number.to_be_bytes();
        SocketAddr::from(([192, 0, high, low], 21))
    }

    /// A decision with this effect, and with this objection if it is refused.
    fn decided(kind: AnnouncementKind, action: Action, reason: &'static str) -> Decision {
        let objection = match action {
            Action::Refuse(objection) => Some(objection),
            Action::Open { .. } | Action::Pass => None,
        };
        let announced = Some("10.0.0.5:5000".parse().unwrap());
        let (unread_text, reason, pinhole) = (None, reason.into(), None);
        Decision { kind, announced, unread_text, action, reason, objection, pinhole }
    }

    fn low_port_by(kind: AnnouncementKind) -> Decision {
        decided(kind, Action::Refuse(RefusalReason::LowPort), "port 1000 is below 1024")
    }

    fn low_port() -> Decision {
        low_port_by(AnnouncementKind::Pasv)
    }

    fn opened(kind: AnnouncementKind) -> Decision {
        let endpoint = "192.0.0.1:5000".parse().unwrap();
        let action = Action::Open { endpoint, padding: Padding::None };
        decided(kind, action, "both ends see the same endpoint")
    }

    /// The texts and remedies after `announcements`, all of the present moment.
    fn warnings(announcements: &[(SocketAddr, Decision)]) -> Vec<String> {
        let now = Instant::now();
        let mut servers = RecentServers::default();
        announcements.iter().for_each(|(server, one)| servers.note(now, *server, one));
        let found = servers.finding(now);
        let text = |(_, (_, one)): (SystemTime, Finding)| format!("{}: {}", one.text, one.remedy);
        found.into_iter().map(text).collect()
    }

    #[test]
    fn a_server_whose_announcements_are_all_refused_is_named_with_the_setting() {
        let refused = |count: u32| (0..count).map(|_| (server(1), low_port())).collect::<Vec<_>>();
        assert_eq!(warnings(&refused(MIN_REFUSED - 1)), [""; 0]);
        let mut others = refused(MIN_REFUSED + 1);
        others.extend((0..MIN_REFUSED).map(|_| (server(2), low_port())));
        let found = warnings(&others);
        assert!(found[0].starts_with("all 4 PASV announcements of the server 192.0.0.1:21 in"));
        assert!(found[0].contains("; the same holds for PASV of 192.0.0.2:21:"), "{found:?}");
        others.extend((0..MIN_REFUSED).map(|_| (server(2), low_port_by(AnnouncementKind::Epsv))));
        let found = warnings(&others);
        assert!(found[0].contains("; the same holds for 2 other modes and servers:"), "{found:?}");
    }

    #[test]
    fn a_mode_that_works_hides_no_other_mode() {
        use AnnouncementKind::*;
        for (refused, works, is_named) in [
            (Pasv, Epsv, true),
            (Pasv, Port, true),
            (Pasv, Pasv, false),
            (Epsv, Pasv, true),
            (Epsv, Eprt, true),
            (Epsv, Epsv, false),
        ] {
            let mut all: Vec<_> =
                (0..MIN_REFUSED).map(|_| (server(1), low_port_by(refused))).collect();
            all.extend([(server(1), opened(works)), (server(2), opened(refused))]);
            let found = warnings(&all);
            let text = format!("all 3 {refused} announcements of the server 192.0.0.1:21 ");
            let named = found.iter().any(|warning| warning.starts_with(&text));
            assert_eq!((found.len(), named), (is_named.into(), is_named), "{refused} {works}");
        }
    }

    #[test]
    fn what_clients_bring_about_is_not_the_servers() {
        let refuse = |kind, why| decided(kind, Action::Refuse(why), "refused");
        let port = refuse(AnnouncementKind::Port, RefusalReason::LowPort);
        let epsv_all = refuse(AnnouncementKind::Pasv, RefusalReason::EpsvOnly);
        let not_asked = decided(AnnouncementKind::Pasv, Action::Pass, "answers no PASV");
        for one in [port, epsv_all, not_asked] {
            let all: Vec<_> = (0..9).map(|_| (server(1), one.clone())).collect();
            assert_eq!(warnings(&all), [""; 0], "{one}");
        }
    }

    #[test]
    fn servers_are_forgotten_in_time_and_above_the_limit() {
        let start = Instant::now();
        let mut servers = RecentServers::default();
        for number in 0..1000 {
            (0..MIN_REFUSED).for_each(|_| servers.note(start, server(number), &low_port()));
        }
        let [_, this] = servers.0.both(start);
        assert_eq!(this.len(), MAX_RECORDS);
        assert_eq!(servers.finding(start + RECENT_WINDOW), None);
    }
}
