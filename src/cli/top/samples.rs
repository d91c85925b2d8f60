//! A look with something in each panel, for the tests of several files.

use serde_json::{Value, json};

use super::look::Look;
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

/// An event with these fields besides those of each.
fn event(id: u64, session: u64, fields: Value) -> Value {
    let mut event = json!({
        "id": id, "time": format!("2026-11-28T10:46:{:02}.128328Z", id % 60), "session": session,
        "client": "10.0.0.7", "server": "203.0.113.9", "failed": false,
    });
    event.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    event
}

fn transfer(id: u64, session: u64, path: &str, result: &str) -> Value {
    let fields = json!({
        "event": "transfer", "user": "bob", "verb": "STOR", "path": path, "direction": "up", "mode": "passive",
        "bytes": 5_000_000, "seconds": 0.2, "result": result, "code": 226, "encrypted": false, "reason": null,
    });
    event(id, session, fields)
}

pub(super) fn look() -> Look {
    let mut failed = transfer(3, 2, "/pub/b", "no-data-connection");
    (failed["bytes"], failed["code"], failed["failed"]) = (Value::Null, json!(425), json!(true));
    failed["reason"] = json!("SYN of 198.51.100.9 seen, no answer from 10.0.0.7:50069");
    let text =
        "#1 10.0.0.7:1035 -> 203.0.113.9:21: refuse PORT 10.0.0.9:4000: not your own address";
    let refusal = event(5, 1, json!({"event": "refusal", "text": text, "failed": true}));
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
            event(1, 1, json!({"event": "login"})),
            transfer(2, 1, "/pub/q3.csv", "complete"),
            failed,
            transfer(4, 1, "/pub/2026/november/a-long-report.csv", "complete"),
            refusal,
        ],
        missed: 0,
        is_another: false,
    }
}
