//! What is a problem of the gateway, what is a warning, and for how long.

use std::net::SocketAddr;

use ftp_alg_core::{
    engine::{Counters, Decision, EventKind, PinholeEnds, Stray, UnusedPinhole},
    ftp::{AnnouncementKind, Padding},
    session::Action,
};

use super::*;
use crate::daemon::snapshot::DaemonCounters;

/// No journal that cannot be written.
const UNWRITTEN: [&Path; 0] = [];

/// The names of problems and of warnings.
fn names(health: &Health, after: Duration, status: &Status) -> [Vec<String>; 2] {
    health.update_traffic(Instant::now() + after, status);
    let Findings { problems, warnings } = health.findings(status, &UNWRITTEN);
    [problems, warnings].map(|all| all.into_iter().map(|one| one.name).collect())
}

fn named(problems: &[&str], warnings: &[&str]) -> [Vec<String>; 2] {
    [problems, warnings].map(|all| all.iter().map(|name| (*name).to_owned()).collect())
}

fn client(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 40_000))
}

fn server(number: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, number], 21))
}

/// An event in a session of the client `number` with the server 198.51.100.1.
fn event(number: u8, kind: EventKind) -> Event {
    let server = server(1);
    Event { session: 1, client: client(number), server, user: None, kind }
}

fn note(health: &Health, number: u8, kind: EventKind) {
    health.note_events(Instant::now(), &[event(number, kind)]);
}

/// Has clients with these numbers cancel a passive transfer each.
fn leave_pinholes_unused(health: &Health, clients: impl IntoIterator<Item = u8>) {
    let pinhole = |number| {
        let (client, server) = (client(number), server(1));
        let ends = PinholeEnds {
            initiator: client.ip(),
            arrival: server,
            target: server,
            source: client.ip(),
        };
        let kind = EventKind::Unused(UnusedPinhole {
            kind: AnnouncementKind::Pasv,
            ends,
            why: "",
            lifetime: [None; 2],
        });
        Event { session: 1, client, server, user: None, kind }
    };
    let unused: Vec<_> = clients.into_iter().map(pinhole).collect();
    lock(&health.state).traffic.note_unused(Instant::now(), &unused);
}

const NO_ROUTE: Stray = Stray { has_no_route: true, text: "no route" };

#[test]
fn a_problem_without_a_remedy_of_its_own_has_the_general_one() {
    let check = Check::problem("kernel", "zone", ProblemName::Zone, "a rule");
    let remedy =
        "systemctl restart ftp-alg; if the rule has a map or a mark, write a rule for each zone";
    assert_eq!(check.finding().unwrap().1.remedy, remedy);
    assert_eq!(check.remedy(["x".to_owned()]).finding().unwrap().1.remedy, "x");
}

#[test]
fn a_daemon_of_another_version_is_restarted_when_its_sessions_may_end() {
    let advice = |record_format| {
        let status = Status { version: "0.9".to_owned(), record_format, ..Status::default() };
        version_check("daemon", &status).unwrap().advice.concat()
    };
    assert_eq!(advice(RECORD_FORMAT), "systemctl restart ftp-alg: sessions survive");
    for other in [0, RECORD_FORMAT - 1, RECORD_FORMAT + 1] {
        assert!(advice(other).contains("adjusted sequence numbers end"), "{other}");
    }
    let same = Status::new("nftables", Duration::ZERO);
    assert!(version_check("daemon", &same).is_none());
}

#[test]
fn limits_are_warnings_for_ten_minutes() {
    let health = Health::default();
    let counters = Counters { uninspected: 2, pinholes_used: 5, ..Counters::default() };
    let counts = Status {
        daemon: DaemonCounters { overruns: 3, ..DaemonCounters::default() },
        counters,
        ..Status::default()
    };
    assert_eq!(names(&health, Duration::ZERO, &counts), named(&[], &["overruns", "max-sessions"]));
    assert_eq!(names(&health, RECENT_WINDOW, &counts), named(&[], &[]));
}

#[test]
fn unused_pinholes_of_several_clients_are_a_problem() {
    let health = Health::default();
    let status = Status::default();
    for clients in [&[1][..], &[1; 50], &[2; 50]] {
        leave_pinholes_unused(&health, clients.iter().copied());
        assert_eq!(names(&health, Duration::ZERO, &status), named(&[], &["unused-pinholes"]));
    }
    leave_pinholes_unused(&health, [3]);
    assert_eq!(names(&health, Duration::ZERO, &status), named(&["unused-pinholes"], &[]));
    assert_eq!(names(&health, RECENT_WINDOW, &status), named(&[], &[]));
}

#[test]
fn a_few_unused_pinholes_among_many_do_not_matter() {
    let health = Health::default();
    leave_pinholes_unused(&health, [1, 2]);
    let used = |used| Status {
        counters: Counters { pinholes_used: used, ..Counters::default() },
        ..Status::default()
    };
    assert_eq!(names(&health, Duration::ZERO, &used(39)), named(&[], &["unused-pinholes"]));
    assert_eq!(names(&health, Duration::ZERO, &used(40)), named(&[], &[]));
}

/// A server that no data connection reaches is no problem of a gateway through which others work.
#[test]
fn what_only_one_server_has_is_a_warning_if_others_work() {
    let health = Health::default();
    leave_pinholes_unused(&health, 1..=5);
    let (now, status) = (Instant::now(), Status::default());
    assert_eq!(names(&health, Duration::ZERO, &status), named(&["unused-pinholes"], &[]));
    let endpoint = SocketAddr::from(([198, 51, 100, 2], 50_069));
    let decided = Decision {
        kind: AnnouncementKind::Pasv,
        announced: None,
        unread_text: None,
        action: Action::Open { endpoint, padding: Padding::Blanks },
        reason: "allowed".into(),
        objection: None,
        pinhole: None,
    };
    let opened = Event { server: server(2), ..event(1, EventKind::Announcement(decided)) };
    health.note_events(now, std::slice::from_ref(&opened));
    assert_eq!(names(&health, Duration::ZERO, &status), named(&[], &["unused-pinholes"]));
    let [warning] = &health.findings(&status, &UNWRITTEN).warnings[..] else { panic!() };
    assert!(warning.text.contains("clients with the server 198.51.100.1 did"), "{warning:?}");
    note(&health, 1, EventKind::Elsewhere(NO_ROUTE));
    for number in 1..=3 {
        let missing = event(number, EventKind::Elsewhere(NO_ROUTE));
        let elsewhere = Event { server: server(number), ..missing };
        health.note_events(now, &[elsewhere]);
    }
    let both = named(&["no-route"], &["unused-pinholes"]);
    assert_eq!(names(&health, Duration::ZERO, &status), both, "several servers");
}

#[test]
fn sessions_without_a_route_matter_if_there_are_several() {
    let health = Health::default();
    let status = Status::default();
    let (warning, problem) = (named(&[], &["no-route"]), named(&["no-route"], &[]));
    for (client, expected) in
        [(1, named(&[], &[])), (1, warning.clone()), (2, warning), (3, problem)]
    {
        note(&health, client, EventKind::Elsewhere(NO_ROUTE));
        assert_eq!(names(&health, Duration::ZERO, &status), expected, "{client}");
    }
    assert_eq!(names(&health, RECENT_WINDOW, &status), named(&[], &[]));
}

#[test]
fn a_table_that_is_not_intact_is_a_problem_until_it_is() {
    let health = Health::default();
    health.set(ProblemName::Table, Some("it is another's".to_owned()));
    assert_eq!(names(&health, Duration::ZERO, &Status::default()), named(&["table"], &[]));
    health.set(ProblemName::Table, None);
    assert_eq!(names(&health, Duration::ZERO, &Status::default()), named(&[], &[]));
}

#[test]
fn a_problem_says_since_when_and_when_it_was_last_seen() {
    let health = Health::default();
    let dated = |names: &[ProblemName]| {
        let mut findings: Findings = names.iter().map(|name| name.finding("text")).collect();
        health.date(&mut findings);
        health.report_changes(&findings);
        let of = |(_, one): (_, &Problem)| [one.since.clone().unwrap(), one.last.clone().unwrap()];
        findings.iter().map(of).collect::<Vec<_>>()
    };
    let start = in_utc_seconds(SystemTime::now());
    lock(&health.state).since.insert("table".to_owned(), "2026-12-01T10:00:00Z".to_owned());
    let [table, state] = &dated(&[ProblemName::Table, ProblemName::State])[..] else { panic!() };
    assert!(table[0] == "2026-12-01T10:00:00Z" && table[1] >= start, "{table:?}");
    assert!(state.iter().all(|at| *at >= start), "{state:?}");
    assert!(dated(&[]).is_empty());
    let [table] = &dated(&[ProblemName::Table])[..] else { panic!() };
    assert!(table[0] >= start, "it was solved meanwhile: {table:?}");
    // What traffic says was last seen with the last event.
    note(&health, 1, EventKind::Elsewhere(NO_ROUTE));
    note(&health, 2, EventKind::Elsewhere(NO_ROUTE));
    health.update_traffic(Instant::now(), &Status::default());
    let warnings = health.findings(&Status::default(), &UNWRITTEN).warnings;
    assert!(warnings[0].last.as_deref() >= Some(&*start));
}

/// Not after ten minutes.
#[test]
fn what_a_configuration_caused_goes_with_it_and_the_rest_stays() {
    let health = Health::default();
    let status = Status {
        counters: Counters { uninspected: 2, ..Counters::default() },
        ..Status::default()
    };
    leave_pinholes_unused(&health, [1]);
    for number in 1..=3 {
        note(&health, number, EventKind::Elsewhere(NO_ROUTE));
    }
    let before = named(&["no-route"], &["max-sessions", "unused-pinholes"]);
    assert_eq!(names(&health, Duration::ZERO, &status), before);
    health.forget_configured();
    assert_eq!(names(&health, Duration::ZERO, &status), named(&[], &["unused-pinholes"]));
    // It is back if it was not cured.
    for number in 1..=3 {
        note(&health, number, EventKind::Elsewhere(NO_ROUTE));
    }
    let again = named(&["no-route"], &["unused-pinholes"]);
    assert_eq!(names(&health, Duration::ZERO, &status), again);
}
