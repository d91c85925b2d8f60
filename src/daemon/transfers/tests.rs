//! Log lines of transfers, and the limit of those that wait for the thread.

use ftp_alg_core::{
    engine::{SessionEnd, Transfer, TransferEnd},
    ftp::Reply,
    session::TransferVerb,
};

use ftp_alg_core::engine::TransferResult;

use super::*;

struct NoConntrack;

impl DataConntrack for NoConntrack {
    fn counted(&self, _: SocketAddr, _: SocketAddr) -> Option<[CountedPackets; 2]> {
        None
    }

    fn is_running(&self, _: SocketAddr, _: SocketAddr) -> bool {
        false
    }
}

pub(super) fn finished(user: Option<&str>, code: Option<u16>) -> FinishedTransfer {
    let end = match code {
        Some(code) => TransferEnd::Replied(Reply { code }),
        None => TransferEnd::SessionEnded,
    };
    FinishedTransfer {
        session: TransferSession {
            id: 17,
            client: "10.0.0.7:1035".parse().unwrap(),
            server: "198.51.100.9:21".parse().unwrap(),
        },
        transfer: Arc::new(Transfer {
            user: user.map(Into::into),
            verb: TransferVerb::Stor,
            path: "/pub/q3.csv".into(),
            announcement: None,
            duration: Duration::from_millis(200),
            has_started: true,
            ended: None,
            end,
        }),
        at: SystemTime::now(),
        result: TransferResult::Complete,
        connection: None,
        bytes: Some(5),
        duration: Duration::from_millis(200),
        reason: None,
    }
}

#[test]
fn a_transfer_is_one_line() {
    let complete = finished(Some("bob"), Some(226));
    let line = "transfer #17 bob@10.0.0.7 STOR /pub/q3.csv 5 B in 0.2 s: 226";
    assert_eq!(complete.to_string(), line);
    let spoofed = finished(Some("x@1.2.3.4 STOR /a: 226"), Some(226)).to_string();
    assert!(spoofed.starts_with("transfer #17 \"x@1.2.3.4 STOR /a: 226\"@10.0.0.7 STOR "));
    let failed = FinishedTransfer {
        result: TransferResult::NoDataConnection,
        bytes: None,
        reason: Some("SYN of 198.51.100.9 seen, no answer from 10.0.0.7:50069".to_owned()),
        ..finished(None, Some(425))
    };
    let line = "transfer #17 10.0.0.7 STOR /pub/q3.csv in 0.2 s: 425, no data connection: \
                SYN of 198.51.100.9 seen, no answer from 10.0.0.7:50069";
    assert_eq!(failed.to_string(), line);
    let ended = FinishedTransfer { result: TransferResult::Aborted, ..finished(None, None) };
    assert!(ended.to_string().ends_with(": the control connection ended, aborted"));
    let unseen = FinishedTransfer { result: TransferResult::Unseen, ..finished(None, None) };
    let transfer = Transfer { end: TransferEnd::Unseen, ..Transfer::clone(&unseen.transfer) };
    let unseen = FinishedTransfer { transfer: Arc::new(transfer), ..unseen };
    assert!(unseen.to_string().ends_with(" in 0.2 s: its end was not seen"), "{unseen}");
    let waiting = FinishedTransfer { result: TransferResult::Waiting, bytes: None, ..failed };
    let line = "transfer #17 10.0.0.7 STOR /pub/q3.csv has waited 0.2 s for its data connection: \
                SYN of 198.51.100.9 seen, no answer from 10.0.0.7:50069";
    assert_eq!(waiting.to_string(), line);
}

#[test]
fn a_full_inbox_loses_transfers_and_counts_them() {
    let reports = TransferReports::new(true, []);
    let FinishedTransfer { session, transfer, .. } = finished(None, Some(226));
    let TransferSession { id, client, server } = session;
    let kind = EventKind::Transfer(transfer);
    let events = vec![Event { session: id, client, server, user: None, kind }; MAX_INBOX + 3];
    assert_eq!(reports.record(Instant::now(), &events, 2), 5);
    assert_eq!(reports.totals().lost, 5);
    reports.run(TransferTracker::default(), None, &NoConntrack, |_| {}, &AtomicBool::new(true));
    let totals = reports.totals();
    assert_eq!((totals.unknown.complete, totals.bytes_up), (MAX_INBOX as u64, 0));
}

/// The bytes of a session that has ended after such transfers, and the text.
fn reported_session(transfers: &[Arc<Transfer>], counted: u32) -> (Option<u64>, String) {
    let reports = TransferReports::new(true, []);
    let TransferSession { id, client, server } = finished(None, None).session;
    let event = |kind| Event { session: id, client, server, user: None, kind };
    let transfers = transfers.iter().cloned().map(EventKind::Transfer).map(event);
    let mut events: Vec<_> = transfers.collect();
    let (end, user) = (SessionEnd::Closed, Some("bob".into()));
    let duration = Duration::from_secs(3);
    let ended = EndedSession { end, user, transfers: counted, duration };
    events.push(event(EventKind::SessionEnded(ended)));
    assert_eq!(reports.record(Instant::now(), &events, 0), 0);
    let mut published = Vec::new();
    let publish = |reports| published.extend(reports);
    reports.run(TransferTracker::default(), None, &NoConntrack, publish, &AtomicBool::new(true));
    assert_eq!(published.len(), events.len());
    match published.pop() {
        Some(Report::SessionEnd(report)) => (report.bytes, report.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_session_ends_after_its_transfers_with_their_bytes() {
    let text =
        "#17 10.0.0.7:1035 -> 198.51.100.9:21: session ended after 3.0 s: closed, user bob, ";
    assert_eq!(reported_session(&[], 0), (Some(0), format!("{text}0 transfers, 0 B")));
    let refused = finished(None, Some(550)).transfer;
    let refused = Arc::new(Transfer { has_started: false, ..Transfer::clone(&refused) });
    let one = format!("{text}1 transfer, 0 B");
    assert_eq!(reported_session(std::slice::from_ref(&refused), 1), (Some(0), one));
    // The bytes of the second one are not known, or another daemon reported it.
    let complete = finished(None, Some(226)).transfer;
    assert_eq!(reported_session(&[refused.clone(), complete], 2).0, None);
    assert_eq!(reported_session(&[refused], 2), (None, format!("{text}2 transfers")));
}

/// Its last transfer may be on another thread's way.
#[test]
fn a_session_end_waits_for_its_transfers() {
    let now = Instant::now();
    let transfer = finished(None, Some(226));
    let (end, duration) = (SessionEnd::Closed, Duration::ZERO);
    let ended = EndedSession { end, user: None, transfers: 1, duration };
    let session = SessionReport { session: transfer.session, ended, at: transfer.at, bytes: None };
    let ended_sessions = || VecDeque::from([(now + TRANSFER_PATIENCE, Box::new(session.clone()))]);
    let known = || Known {
        tracker: TransferTracker::default(),
        conntrack: &NoConntrack,
        session_bytes: SessionBytes::default(),
        ended_sessions: ended_sessions(),
        waiting_pinholes: VecDeque::new(),
        running: HashMap::new(),
        next_look: Instant::now(),
        received: Vec::new(),
        reports: Vec::new(),
    };
    let bytes_of_last = |known: &Known<'_>| match known.reports.last() {
        Some(Report::SessionEnd(report)) => Some(report.bytes),
        _ => None,
    };
    let mut in_time = known();
    in_time.report_ended_sessions(Some(now));
    assert_eq!(bytes_of_last(&in_time), None);
    TransferReports::new(true, []).report(Box::new(transfer), &mut in_time);
    in_time.report_ended_sessions(Some(now));
    assert_eq!(bytes_of_last(&in_time), Some(Some(5)));
    // It does not come.
    let mut late = known();
    late.report_ended_sessions(Some(now + TRANSFER_PATIENCE));
    assert_eq!(bytes_of_last(&late), Some(None));
}

#[test]
fn only_reports_that_are_on_take_the_ends_of_sessions() {
    let (end, duration) = (SessionEnd::Closed, Duration::ZERO);
    let ended = EventKind::SessionEnded(EndedSession { end, user: None, transfers: 0, duration });
    assert_eq!(
        [true, false].map(|is_on| TransferReports::new(is_on, []).reports(&ended)),
        [true, false]
    );
}
