//! Tests of the text of `ftp-alg status`.

use serde_json::Value;

use super::*;
use crate::{cli::output::PLAIN, daemon::snapshot::ResultCounts};

/// A status in which each number is another one.
fn numbered() -> (Status, Vec<(String, u64)>) {
    let mut status = serde_json::to_value(Status::default()).unwrap();
    status["rates"] = serde_json::to_value(Rates::default()).unwrap();
    let (mut numbers, mut next) = (Vec::new(), 10_001);
    number(&mut status, "", &mut next, &mut numbers);
    for of in ["10s", "1m", "1h"] {
        for field in ["transfers", "failed_transfers", "bytes_up", "bytes_down"] {
            status["rates"][of][field] = next.into();
            numbers.push((format!("rates.{of}.{field}"), next));
            next += 1;
        }
    }
    status["fast_path"]["state"] = "on".into();
    (serde_json::from_value(status).unwrap(), numbers)
}

fn number(value: &mut Value, name: &str, next: &mut u64, numbers: &mut Vec<(String, u64)>) {
    match value {
        Value::Object(parts) => {
            let dot = if name.is_empty() { "" } else { "." };
            for (part, value) in parts {
                number(value, &format!("{name}{dot}{part}"), next, numbers);
            }
        }
        Value::Number(_) => {
            *value = (*next).into();
            numbers.push((name.to_owned(), *next));
            *next += 1;
        }
        _ => {}
    }
}

/// Fields whose text has no such number: spans and bytes; and those that another field includes.
const OTHERS: [&str; 10] = [
    // Of the version.
    "record_format",
    "uptime_seconds",
    "memory",
    "queue_waiting",
    "transfers.bytes_up",
    "transfers.bytes_down",
    // `unread.malformed` and `unread.checksum`.
    "malformed",
    // As `fast_path.lines`.
    "fast_path_lines",
    "rates",
    "seconds",
];

#[test]
fn each_number_has_one_place() {
    let (status, numbers) = numbered();
    let shown = text(&status, PLAIN);
    let words: Vec<&str> = shown.split(|one: char| !one.is_ascii_alphanumeric()).collect();
    for (name, number) in &numbers {
        let is_other = OTHERS.contains(&name.as_str())
            || name.ends_with(".seconds")
            || (name.starts_with("rates.") && name.contains("bytes"));
        if !is_other {
            let number = number.to_string();
            let times = words.iter().filter(|word| **word == number).count();
            assert_eq!(times, 1, "{name} {number}:\n{shown}");
        }
    }
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
}

#[test]
fn a_daemon_without_traffic_has_a_short_text() {
    let window = WindowCounts { seconds: 5.25, ..WindowCounts::default() };
    let status = Status {
        host: "gw".to_owned(),
        version: "0.1.0".to_owned(),
        uptime_seconds: 5,
        backend: "nftables".to_owned(),
        backend_reason: "the configuration says so".to_owned(),
        rates: Rates { ten_seconds: window, minute: window, hour: window },
        fast_path: FastPathStatus::off(FastPathStatus::OFF_BY_CONFIGURATION),
        ..Status::default()
    };
    let expected = "\
host       gw
version    0.1.0
uptime     5s
back end   nftables: the configuration says so
fast path  off: the configuration says so
now        0 sessions, 0 pinholes open, 0 B held

in the last                 5s
new sessions                 0
refusals                     0
drops                        0
decisions                    0

totals since this daemon started, 5s ago

transfers
  not reported            log.transfers is false
sessions
  started                 0
announcements and commands
  rewritten               0
  pinholes refused        0
pinholes
  opened                  0
  used                    0
  expired                 0
packets
  queued                  0
daemon
  errors                  0
";
    assert_eq!(text(&status, PLAIN), expected);
}

#[test]
fn rates_have_a_column_for_each_window_that_differs() {
    let window = |seconds, transfers, bytes_up| WindowCounts {
        seconds,
        sessions: 1,
        transfers: Some(transfers),
        failed_transfers: Some(0),
        bytes_up: Some(bytes_up),
        bytes_down: Some(0),
        refusals: 123_456,
        ..WindowCounts::default()
    };
    let of = |ten_seconds, minute, hour| rates(&Rates { ten_seconds, minute, hour });
    let full = of(window(9.3, 2, 1023), window(60.0, 30, 1 << 20), window(3571.0, 400, 5 << 30));
    let expected = "
in the last                10s          1m          1h
new sessions                 1           1           1
transfers ended              2          30         400
  failed                     0           0           0
  up                    1023 B     1.0 MiB     5.0 GiB
  down                     0 B         0 B         0 B
refusals                  123k        123k        123k
drops                        0           0           0
decisions                    0           0           0
";
    assert_eq!(full, expected);
    let young = of(window(10.0, 2, 0), window(40.4, 2, 0), window(40.4, 2, 0));
    assert_eq!(young.lines().nth(1), Some("in the last                10s         40s"));
    let late = of(window(30.0, 2, 0), window(59.0, 2, 0), window(900.0, 2, 0));
    assert_eq!(late.lines().nth(1), Some("in the last                30s          1m      15m 0s"));
    assert_eq!(rates(&Rates::default()), "");
}

#[test]
fn the_clients_with_the_most_bytes_are_listed() {
    let mut status = Status::default();
    let client = |number| ClientBytes { client: format!("10.0.0.{number}"), bytes: 5000 };
    status.transfers.top_clients = (1..=7).map(client).collect();
    let shown = text(&status, PLAIN);
    let (_, listed) = shown.split_once("\nmost bytes in the last hour\n").unwrap();
    let listed: Vec<_> = listed.lines().take_while(|line| !line.is_empty()).collect();
    assert_eq!(listed.len(), 5, "{shown}");
    assert!(listed[0].starts_with("  10.0.0.1  ") && listed[0].ends_with("B"), "{shown}");
}

#[test]
fn problems_come_first_then_warnings() {
    let one = |name| vec![Problem::new(name, "text", "remedy")];
    let mut findings = Findings { problems: one("table"), warnings: one("state") };
    findings.problems[0].since = Some("2026-12-01T10:00:00Z".to_owned());
    findings.problems[0].last = Some("2026-12-01T10:02:03Z".to_owned());
    let status = Status { findings, ..Status::default() };
    let start = "PROBLEM table\n  text\n  remedy\n  since 2026-12-01T10:00:00Z, last seen 2026-12-01T10:02:03Z\n\nWARNING state\n  text\n  remedy\n\nhost";
    assert!(text(&status, PLAIN).starts_with(start), "{}", text(&status, PLAIN));
}

#[test]
fn the_fast_path_has_its_state() {
    let mut fast_path = FastPathStatus::off("Linux 6.1 has no TCX");
    assert_eq!(fast_path_state(&fast_path), ["off: Linux 6.1 has no TCX"]);
    fast_path.state = FastPathState::On;
    fast_path.interfaces = vec!["lan0".into(), "wan0".into()];
    fast_path.connections = 3;
    let on = "on: lan0, wan0; 3 connections";
    assert_eq!(fast_path_state(&fast_path), [on]);
    fast_path.filtered_early = vec!["br0".into(), "br0.7".into()];
    let inline = "not at br0, br0.7: bridge-nf-call-iptables; connections there are queued";
    assert_eq!(fast_path_state(&fast_path), [on, inline]);
    fast_path.mark_writers = vec!["wan0: tc filter bpf".into()];
    let writer = "not at wan0: tc filter bpf may change packet marks; connections there are queued";
    assert_eq!(fast_path_state(&fast_path), [on, inline, writer]);
}

#[test]
fn reasons_and_results_are_lists_of_those_that_occurred() {
    let results = ResultCounts { complete: 3, no_data_connection: 1, ..ResultCounts::default() };
    let hour = WindowCounts { transfers: Some(4), seconds: 60.0, ..WindowCounts::default() };
    let status = Status {
        transfers: TransferTotals { passive: results, bytes_down: 1536, ..Default::default() },
        rates: Rates { hour, ..Rates::default() },
        ..Status::default()
    };
    let expected = [
        ("passive", "3\u{a0}complete, 1\u{a0}no\u{a0}data\u{a0}connection".to_owned()),
        ("up", "0 B".to_owned()),
        ("down", "1.5 KiB".to_owned()),
    ];
    assert_eq!(of_transfers(&status), expected);
    // A daemon that does not say whether it reports them.
    assert_eq!(of_transfers(&Status::default()), []);
}

#[test]
fn name_shows_its_address_and_its_error() {
    let row = |address: Option<&str>, age_seconds, error: Option<&str>| NameRow {
        name: "ftp.example.net".into(),
        family: "ipv4".into(),
        address: address.map(|text| text.parse().unwrap()),
        age_seconds,
        error: error.map(str::to_owned),
    };
    let late = Some("request timed out");
    for (row, text) in [
        (row(Some("198.51.100.7"), Some(65), None), Some("198.51.100.7, 1m 5s ago")),
        (row(Some("198.51.100.7"), Some(5), late), Some("198.51.100.7, 5s ago; request timed out")),
        (row(None, None, late), Some("no ipv4 address: request timed out")),
        (row(None, None, None), None),
    ] {
        assert_eq!(name_text(&row).as_deref(), text);
    }
}
