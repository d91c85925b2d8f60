//! Log lines of transfers, and the limit of those that wait for the thread.

use ftp_alg_core::{ftp::Reply, session::TransferVerb};

use super::*;

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
        transfer: Transfer {
            user: user.map(Into::into),
            verb: TransferVerb::Stor,
            path: "/pub/q3.csv".into(),
            announcement: None,
            duration: Duration::from_millis(200),
            has_started: true,
            end,
        },
        at: SystemTime::now(),
        result: TransferResult::Complete,
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
}

#[test]
fn a_full_inbox_loses_transfers_and_counts_them() {
    let reports = TransferReports::new(true, []);
    let FinishedTransfer { session, transfer, .. } = finished(None, Some(226));
    let TransferSession { id, client, server } = session;
    let kind = EventKind::Transfer(Box::new(transfer));
    let events = vec![Event { session: id, client, server, kind }; MAX_INBOX + 3];
    reports.record(Instant::now(), &events);
    assert_eq!(reports.totals().lost, 3);
    reports.run(None, |_| {}, &AtomicBool::new(true));
    let totals = reports.totals();
    assert_eq!((totals.unknown.complete, totals.bytes_up), (MAX_INBOX as u64, 0));
}
