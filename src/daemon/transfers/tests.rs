//! Log lines of transfers, and the limit of those that wait for the thread.

use ftp_alg_core::{
    engine::{SessionEnd, Transfer, TransferEnd, TransferResult},
    ftp::Reply,
    session::TransferVerb,
};

use super::*;

/// Knows no data connection but the `running` ones, which are gone.
#[derive(Default)]
struct FakeConntrack {
    running: Vec<RunningConnection>,
    open: HashSet<u64>,
}

impl DataConntrack for FakeConntrack {
    fn counted(&self, _: SocketAddr, _: SocketAddr) -> Option<[CountedPackets; 2]> {
        None
    }

    fn is_running(&self, _: SocketAddr, _: SocketAddr) -> bool {
        false
    }

    fn knows(&self, _: SocketAddr, _: SocketAddr) -> bool {
        false
    }

    fn running(&self) -> Vec<RunningConnection> {
        self.running.clone()
    }

    fn open_sessions(&self) -> HashSet<u64> {
        self.open.clone()
    }
}

/// An upload with this last reply, and an event of its session.
pub(super) fn finished(user: Option<&str>, code: Option<u16>) -> (Event, Transfer) {
    let end = match code {
        Some(code) => TransferEnd::Replied(Reply { code }),
        None => TransferEnd::SessionEnded,
    };
    let transfer = Transfer {
        verb: TransferVerb::Stor,
        path: Some("/pub/q3.csv".into()),
        announcement: None,
        announced: None,
        duration: Duration::from_millis(200),
        has_started: true,
        ended: None,
        end,
        result: TransferResult::Complete,
        initiator_port: None,
        bytes: Some(5),
        reason: None,
        uncertain: None,
        is_followed: false,
    };
    (event(user, EventKind::Transfer(Box::new(transfer.clone()))), transfer)
}

fn event(user: Option<&str>, kind: EventKind) -> Event {
    let (client, server) = ("10.0.0.7:1035".parse().unwrap(), "198.51.100.9:21".parse().unwrap());
    Event { session: 17, client, server, user: user.map(Into::into), kind }
}

/// The end of a session with so many transfers.
fn session_ended(transfers: u32, duration: Duration) -> EventKind {
    EventKind::SessionEnded(EndedSession {
        end: SessionEnd::Closed,
        transfers,
        bytes: None,
        duration,
    })
}

/// The bytes of the session that an event ends.
fn bytes_of(event: &Event) -> Option<u64> {
    match &event.kind {
        EventKind::SessionEnded(ended) => ended.bytes,
        other => panic!("{other:?}"),
    }
}

fn note(reports: &Reporter, events: &[Event]) {
    reports.note(events.iter().map(|event| (SystemTime::now(), event)));
}

/// Reports what was noted, as the thread does at the end of the daemon.
fn run_to_the_end(reports: &Reporter, publish: impl FnMut(Vec<TimedEvent>)) {
    let (conntrack, stop) = (FakeConntrack::default(), AtomicBool::new(true));
    reports.run(None, RangeFinder::default(), &conntrack, publish, &stop);
}

#[test]
fn a_full_inbox_loses_transfers_and_counts_them() {
    let reports = Reporter::new(true, []);
    let of_client = |client: u8| {
        let (event, _) = finished(None, Some(226));
        let client = SocketAddr::from(([10, 0, 0, client], 1035));
        Event { client, ..event }
    };
    // What one client has no room for is another's.
    note(&reports, &vec![of_client(1); SHARE + 3]);
    for client in 2..=4 {
        note(&reports, &vec![of_client(client); SHARE]);
    }
    reports.count_lost(2, 2);
    assert_eq!(reports.totals().lost, 5);
    note(&reports, &[of_client(5)]);
    assert_eq!(reports.totals().lost, 6);
    run_to_the_end(&reports, |_| {});
    let totals = reports.totals();
    assert_eq!((totals.unknown.complete, totals.bytes_up), (MAX_INBOX as u64, 0));
}

/// The bytes of a session that has ended after such events, and the text.
fn reported_session(before: &[EventKind], counted: u32) -> (Option<u64>, String) {
    let reports = Reporter::new(true, []);
    let end = session_ended(counted, Duration::from_secs(3));
    let kinds = before.iter().cloned().chain([end]);
    note(&reports, &kinds.map(|kind| event(Some("bob"), kind)).collect::<Vec<_>>());
    let mut published = Vec::new();
    run_to_the_end(&reports, |reports| published.extend(reports));
    let (_, last) = published.pop().unwrap();
    (bytes_of(&last), last.to_string())
}

#[test]
fn a_session_ends_after_its_transfers_with_their_bytes() {
    let text =
        "#17 10.0.0.7:1035 -> 198.51.100.9:21: session ended after 3.0 s: closed, user bob, ";
    assert_eq!(reported_session(&[], 0), (Some(0), format!("{text}0 transfers, 0 B")));
    let refused = Transfer { has_started: false, ..finished(None, Some(550)).1 };
    let refused = EventKind::Transfer(Box::new(refused));
    let one = format!("{text}1 transfer, 0 B");
    assert_eq!(reported_session(std::slice::from_ref(&refused), 1), (Some(0), one));
    // The bytes of the second one are not known, or another daemon reported it.
    let complete = finished(None, Some(226)).0.kind;
    assert_eq!(reported_session(&[refused.clone(), complete], 2).0, None);
    assert_eq!(reported_session(&[refused], 2), (None, format!("{text}2 transfers")));
    // Nobody knows how many there were: the end of one may be reported before them.
    assert_eq!(reported_session(&[EventKind::Encrypted], 0).0, None);
}

/// What is published from the first look at conntrack to the end.
fn reported_with(reports: &Reporter, conntrack: &FakeConntrack) -> Vec<Event> {
    let (mut published, stop) = (Vec::new(), AtomicBool::new(false));
    let publish = |reports: Vec<TimedEvent>| {
        published.extend(reports.into_iter().map(|(_, event)| event));
        stop.store(true, Ordering::Release);
    };
    reports.run(None, RangeFinder::default(), conntrack, publish, &stop);
    published
}

/// Sessions that are encrypted before the login, or picked up, have no report that would take theirs.
#[test]
fn a_long_session_keeps_its_bytes_while_many_others_end() {
    let reports = Reporter::new(true, []);
    for session in [17].into_iter().chain(100..=66_000) {
        reports.session_bytes().add(session, &finished(None, Some(226)).1);
    }
    note(&reports, &[event(None, session_ended(1, Duration::ZERO))]);
    let conntrack = FakeConntrack { open: [17, 66_000].into(), ..FakeConntrack::default() };
    let [ended] = &reported_with(&reports, &conntrack)[..] else { panic!() };
    assert_eq!(bytes_of(ended), Some(5));
    assert_eq!([100, 66_000].map(|session| reports.session_bytes().of(session)), [0, 5]);
}

#[test]
fn a_transfer_of_an_earlier_daemon_that_conntrack_forgets_is_reported() {
    let reports = Reporter::new(true, []);
    let (initiator, arrival) = ("10.0.0.7".parse().unwrap(), "198.51.100.9:50069".parse().unwrap());
    let ends = PinholeEnds { initiator, arrival, target: arrival, source: initiator };
    let running = (event(Some("bob"), EventKind::Login).map(|_| ends), 40001);
    let conntrack = FakeConntrack { running: vec![running], ..FakeConntrack::default() };
    let [event] = &reported_with(&reports, &conntrack)[..] else { panic!() };
    assert_eq!((event.kind.name(), event.user.as_deref()), ("no-data-connection", Some("bob")));
    let reason = "the kernel has forgotten the connection of 10.0.0.7:40001 to 198.51.100.9:50069";
    assert!(event.text().ends_with(reason), "{event}");
}

#[test]
fn only_reports_that_are_on_take_the_ends_of_sessions() {
    let ended = session_ended(0, Duration::ZERO);
    assert_eq!([true, false].map(|is_on| Reporter::new(is_on, []).reports(&ended)), [true, false]);
}
