//! A look with something in each panel, for the tests of several files.

use super::look::{Event, Look};
use crate::{
    cli::listings::samples::{summary, transfer as running},
    daemon::snapshot::{
        Findings, Problem, Rates, SessionRow, SessionSummary, Status, WindowCounts,
    },
};

fn session(id: u64, client: &str, state: &str) -> SessionRow {
    let server = "203.0.113.9:21";
    let is_first = id == 1;
    let summary = SessionSummary {
        id,
        user: is_first.then(|| "bob".to_owned()),
        state: state.into(),
        age_seconds: 65 * id,
        fast_path: true,
        transfer: is_first.then(|| running(Some(3 << 20))),
        transfers: 2 * u32::from(is_first),
        bytes: Some(4 << 20),
        ..summary(client, "198.51.100.1:35394", server, server)
    };
    SessionRow { summary, pinholes: 1 }
}

fn event(id: u64, session: u64, kind: &str) -> Event {
    Event {
        id,
        time: format!("2026-11-28T10:46:{:02}.128328Z", id % 60),
        event: kind.into(),
        session,
        client: "10.0.0.7".into(),
        server: "203.0.113.9".into(),
        ..Event::default()
    }
}

fn transfer(id: u64, path: &str, result: &str) -> Event {
    Event {
        user: Some("bob".into()),
        verb: "STOR".into(),
        path: path.into(),
        direction: "up".into(),
        mode: Some("passive".into()),
        bytes: Some(5_000_000),
        seconds: 0.2,
        result: result.into(),
        code: Some(226),
        ..event(id, 1, "transfer")
    }
}

pub(super) fn look() -> Look {
    let mut failed = transfer(3, "/pub/b", "no-data-connection");
    (failed.bytes, failed.code, failed.session) = (None, Some(425), 2);
    failed.failed = true;
    failed.reason = Some("SYN of 198.51.100.9 seen, no answer from 10.0.0.7:50069".into());
    let refusal = Event {
        text: "#1 10.0.0.7:1035 -> 203.0.113.9:21: refuse PORT 10.0.0.9:4000: not your own address"
            .into(),
        failed: true,
        ..event(5, 1, "refusal")
    };
    let mut status = Status {
        host: "gw".into(),
        version: "0.1.0".into(),
        uptime_seconds: 7200,
        backend: "nftables".into(),
        findings: Findings {
            problems: vec![Problem::new(
                "table",
                "the table is not loaded, because it is another's",
                "remove the other",
            )],
            warnings: vec![Problem::new("encrypted", "10.0.0.8 uses TLS", "open the ports")],
        },
        ..Status::default()
    };
    let window = WindowCounts {
        seconds: 10.0,
        sessions: 12,
        transfers: Some(40),
        failed_transfers: Some(1),
        bytes_up: Some(15_728_640),
        bytes_down: Some(0),
        ..WindowCounts::default()
    };
    status.rates = Rates {
        ten_seconds: window,
        minute: WindowCounts { seconds: 60.0, ..window },
        hour: WindowCounts { seconds: 3600.0, drops: 7_654_321, ..window },
    };
    Look {
        status,
        sessions: vec![
            session(1, "10.0.0.7:1035", "logged-in"),
            session(2, "[2001:db8:1:2:3:4:5:6]:50000", "login"),
        ],
        events: vec![
            event(1, 1, "login"),
            transfer(2, "/pub/q3.csv", "complete"),
            failed,
            transfer(4, "/pub/2026/november/a-long-report.csv", "complete"),
            refusal,
        ],
        missed: 0,
        is_another: false,
    }
}
