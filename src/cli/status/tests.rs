//! Tests of the text of `ftp-alg status`.

use serde_json::Value;

use super::*;
use crate::cli::output::PLAIN;

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
fn rates_have_a_column_for_each_window_that_differs() {
    let window = |seconds| WindowCounts { seconds, ..WindowCounts::default() };
    for (seconds, expected) in [
        ([9.3, 60.0, 3571.0], "in the last                10s          1m          1h"),
        ([10.0, 40.4, 40.4], "in the last                10s         40s"),
        ([30.0, 59.0, 900.0], "in the last                30s          1m      15m 0s"),
    ] {
        let [ten_seconds, minute, hour] = seconds.map(window);
        let shown = rates(&Rates { ten_seconds, minute, hour });
        assert_eq!(shown.lines().nth(1), Some(expected));
    }
    assert_eq!(rates(&Rates::default()), "");
}
