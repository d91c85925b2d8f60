//! Tables of fields, states, problems, events and refusals are complete.

use std::{collections::BTreeSet, fs, process::Command};

use ftp_alg::daemon::{
    catalogue,
    health::{FoundBy, ProblemName},
    snapshot::{
        ClientBytes, DaemonCounters, FastPathCounters, Findings, NameRow, PairStatus, PinholeRow,
        Problem, ServerTotals, SessionDetail, SessionRow, Status, TransferTotals,
    },
};
use ftp_alg_core::{
    engine::{CounterDescription, Counters, DropReason, EventKind, Limits, Unread},
    session::RefusalReason,
};
use regex::Regex;
use serde_json::{Value, json};

use super::pages::{first_column, root, text};
use crate::replay::{LOGIN, replay, slacksite};

/// The fields of `value`, each with the objects and lists that it is in, as in `drops.stale` and `names[].name`.
fn fields(value: &Value, prefix: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(parts) => {
            for (name, part) in parts {
                let dot = if prefix.is_empty() { "" } else { "." };
                fields(part, &format!("{prefix}{dot}{name}"), into);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for one in list {
                fields(one, &format!("{prefix}[]"), into);
            }
        }
        _ => drop(into.insert(prefix.to_owned())),
    }
}

#[test]
fn the_page_of_counters_says_of_each_what_its_description_says() {
    let row = |of: &str, one: &CounterDescription| {
        let CounterDescription { field, means, remedy, .. } = one;
        let remedy = if remedy.is_empty() { String::new() } else { format!("{remedy} ") };
        format!("| `{of}{field}` | {means} | {remedy}|\n")
    };
    let counters = [Counters::ALL, DaemonCounters::ALL].concat();
    for (section, of, counters) in [
        ("## What is counted\n", "", &counters[..]),
        ("## `fast_path`\n", "fast_path.", FastPathCounters::ALL),
    ] {
        // Those with parts have tables of their own.
        let all = counters.iter().filter(|one| one.label.is_empty());
        let table: String = all.map(|one| row(of, one)).collect();
        generated("docs/counters.md", section, "| --- | --- | --- |\n", "\n", &table);
    }
    for (of, all) in [
        ("drops", DropReason::MEANINGS),
        ("unread", Unread::MEANINGS),
        ("limits", Limits::MEANINGS),
    ] {
        let row = |[name, means, _]: &[&str; 3]| format!("| `{of}.{name}` | {means} |\n");
        let table: String = all.iter().map(row).collect();
        let section = format!("## `{of}`\n");
        generated("docs/counters.md", &section, "| --- | --- |\n", "\n", &table);
    }
    let row = |(reason, [name, means, remedy]): (&RefusalReason, &[&str; 3])| {
        let replies = [true, false].map(|passive| {
            let reply = reason.reply(passive, None, 45);
            format!("`{}`", String::from_utf8_lossy(&reply[4..]).trim_end())
        });
        let replies = BTreeSet::from(replies).into_iter().collect::<Vec<_>>().join(", ");
        format!("| `refusals.{name}` | {replies} | {means} | {remedy} |\n")
    };
    let table: String = RefusalReason::ALL.iter().zip(RefusalReason::MEANINGS).map(row).collect();
    generated("docs/counters.md", "## `refusals`\n", "| --- | --- | --- | --- |\n", "\n", &table);
}

#[test]
fn the_page_of_counters_has_every_field_of_status() {
    let name = NameRow {
        name: "ftp.example.net".to_owned(),
        family: "ipv4".to_owned(),
        address: None,
        age_seconds: None,
        error: None,
    };
    let transfers = TransferTotals {
        servers: vec![ServerTotals::new("10.0.0.9".parse().unwrap())],
        top_clients: vec![ClientBytes { client: "10.0.0.7".to_owned(), bytes: 5 }],
        ..TransferTotals::default()
    };
    let problem = |name| {
        let [since, last] = ["2026-12-01T10:00:00Z"; 2].map(|at| Some(at.to_owned()));
        Problem { since, last, ..Problem::new(name, "text", "remedy") }
    };
    let status = Status {
        transfers,
        names: vec![name],
        unconfined: vec!["landlock".to_owned()],
        pair: Some(PairStatus {
            role: "active".to_owned(),
            epoch: 7,
            since_seconds: 60,
            store: "ok".to_owned(),
            replica: true,
            shards_behind: 0,
            unconfirmed: 0,
            lag: Some(0.0),
            peer: "10.99.0.2:6379".parse().unwrap(),
            peer_failure: None,
            peer_version: None,
            clocks_apart: None,
            same_configuration: None,
        }),
        findings: Findings { problems: vec![problem("table")], warnings: vec![problem("state")] },
        ..Status::default()
    };
    let mut printed = BTreeSet::new();
    fields(&serde_json::to_value(&status).unwrap(), "", &mut printed);
    let documented = first_column("docs/counters.md", "| field |");
    let unique: BTreeSet<_> = documented.iter().cloned().collect();
    assert_eq!(unique.len(), documented.len(), "a field has two rows");
    assert_eq!(unique, printed);
}

#[test]
fn the_page_of_commands_has_every_state_of_a_session() {
    let output = Command::new(env!("CARGO_BIN_EXE_ftp-alg")).args(["help", "sessions"]).output();
    let help = String::from_utf8(output.unwrap().stdout).unwrap();
    let states = help.lines().skip_while(|line| *line != "The states are:").skip(1);
    let states = states.take_while(|line| !line.is_empty());
    let row = |line: &str| {
        let (state, means) = line.trim_start().split_once(' ').unwrap();
        format!("| `{state}` | {} |\n", means.trim_start())
    };
    let table: String = states.map(row).collect();
    generated("docs/commands.md", "| state | means |\n", "| --- | --- |\n", "\n", &table);
}

#[test]
fn the_page_of_commands_has_every_field_of_sessions_and_pinholes() {
    let pinhole = json!({
        "session": 17, "client": "10.0.0.7:35394", "server": "198.51.100.9:21", "user": null,
        "initiator": "10.0.0.7", "arrival": "198.51.100.9:15975",
        "target": "198.51.100.9:15975", "source": "198.51.100.1", "kind": "PASV",
        "remaining_seconds": 29,
    });
    let mut session = json!({
        "id": 17, "client": "10.0.0.7:35394", "server": "198.51.100.9:21",
        "client_external": "198.51.100.1:35394", "server_external": "198.51.100.9:21",
        "state": "logged-in", "age_seconds": 1, "adjusted": true, "pinholes": 1,
        "transfer": {"verb": "RETR", "path": "/a", "seconds": 1, "started": true},
    });
    // What the program prints of them, which is all that it has.
    let row: SessionRow = serde_json::from_value(session.clone()).unwrap();
    session["pinholes"] = json!([pinhole]);
    session["events"] = json!([]);
    (session["offset_to_server"], session["offset_to_client"]) = (json!(3), json!(0));
    session["data_connection"] = pinhole.clone();
    session["data_connection"]["pending"] = json!(true);
    let detail: SessionDetail<Value> = serde_json::from_value(session).unwrap();
    let pinhole: PinholeRow = serde_json::from_value(pinhole).unwrap();
    let mut printed = BTreeSet::new();
    fields(&serde_json::to_value(&row).unwrap(), "", &mut printed);
    fields(&serde_json::to_value(&pinhole).unwrap(), "", &mut printed);
    let mut detailed = BTreeSet::new();
    fields(&serde_json::to_value(&detail).unwrap(), "", &mut detailed);
    // Those of pinholes are in their own table.
    printed.extend(detailed.into_iter().filter(|field| !field.starts_with("pinholes[]")));
    let documented = first_column("docs/commands.md", "| field of `--json` |");
    assert_eq!(documented.into_iter().collect::<BTreeSet<_>>(), printed);
}

#[test]
fn the_page_of_commands_has_every_field_of_replay() {
    let place = tempfile::tempdir().unwrap();
    let capture = place.path().join("a.pcap");
    let transfer = [(true, "RETR /f"), (false, "150 here"), (false, "226 done")];
    let lines = [&LOGIN[..], &[(true, "PORT 10,0,0,1,14,178")], &transfer[..]].concat();
    fs::write(&capture, slacksite([10, 0, 0, 1], [192, 0, 2, 1], &lines)).unwrap();
    let capture = capture.to_str().unwrap();
    let mut printed = BTreeSet::new();
    // It begins before its end.
    let output = replay(&[capture, capture, "--json", "--transfers"]);
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        fields(&serde_json::from_str(line).unwrap(), "", &mut printed);
    }
    let documented = first_column("docs/commands.md", "| field of a line of `--json` |");
    assert_eq!(documented.into_iter().collect::<BTreeSet<_>>(), printed);
}

/// The text of a page between `begin`, the first one behind `section`, and `end` is this. With UPDATE it is made so.
fn generated(page: &str, section: &str, begin: &str, end: &str, expected: &str) {
    let is = text(page);
    let behind =
        |from: usize, words: &str| is[from..].find(words).map(|at| from + at + words.len());
    let start = behind(0, section).and_then(|from| behind(from, begin));
    let start = start.unwrap_or_else(|| panic!("{page} has no {section}"));
    let length = is[start..].find(&format!("\n{end}")).map_or(is.len() - start, |at| at + 1);
    let (found, rest) = is[start..].split_at(length);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(root().join(page), [&is[..start], expected, rest].concat()).unwrap();
    } else {
        assert_eq!(found, expected, "make it so: UPDATE=1 cargo test --test repo docs");
    }
}

#[test]
fn the_page_of_events_has_every_event() {
    for (heading, events) in
        [("Of sessions", EventKind::ALL), ("Of the daemon", catalogue::OF_DAEMON)]
    {
        let table: String = events.iter().map(catalogue::row).collect();
        generated(
            "docs/events.md",
            &format!("## {heading}\n"),
            "| --- | --- | --- | --- |\n",
            "\n",
            &table,
        );
    }
}

#[test]
fn the_page_of_health_has_every_problem() {
    let page = "docs/health.md";
    for (heading, names) in ProblemName::SECTIONS {
        let table: String = names.iter().map(|name| name.row()).collect();
        let section = format!("## {heading}\n");
        generated(page, &section, "| --- | --- | --- |\n", "\n", &table);
    }
    let row = |(who, found_by)| {
        let found = ProblemName::all().filter(|name| name.found_by() == found_by);
        let names: Vec<_> = found.map(|name| format!("`{}`", name.as_str())).collect();
        format!("| {who} | {} |\n", names.join(", "))
    };
    let commands = [("`status` and `doctor`", FoundBy::Commands), ("`doctor`", FoundBy::Doctor)];
    let table: String = commands.into_iter().map(row).collect();
    generated(page, "## Which command finds what\n", "| --- | --- |\n", "\n", &table);
}

/// The end-to-end tests compare each event that they read with it.
#[test]
fn the_schema_of_events_has_each_kind_and_no_other_field() {
    let names: Vec<_> =
        EventKind::ALL.iter().map(|kind| format!("        \"{}\"", kind.name)).collect();
    let names = names.join(",\n") + "\n";
    generated("docs/events.schema.json", "\"event\": {\n", "\"enum\": [\n", "      ]", &names);
    let schema: Value = serde_json::from_str(&text("docs/events.schema.json")).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    let page = text("docs/events.md");
    let sample = page.lines().find(|line| line.starts_with("{\"id\"")).unwrap();
    let sample: Value = serde_json::from_str(sample).unwrap();
    assert!(schema.is_valid(&sample), "{:?}", schema.validate(&sample));
    for (field, value) in [
        ("secret", json!("x")),
        ("end", json!("closed")),
        ("event", json!("upload")),
        ("bytes", json!("5")),
        ("client", json!("10.0.0.7:4000")),
        ("time", json!("yesterday")),
        ("code", json!(1000)),
    ] {
        let mut wrong = sample.clone();
        wrong[field] = value;
        assert!(!schema.is_valid(&wrong), "{wrong}");
    }
    for field in ["id", "text", "bytes", "reason"] {
        let mut wrong = sample.clone();
        wrong.as_object_mut().unwrap().remove(field);
        assert!(!schema.is_valid(&wrong), "{wrong}");
    }
}

/// Limits that have a number of their own, whose constants are private.
#[test]
fn limits_are_those_of_the_code() {
    let limits = text("docs/limits.md");
    for (row, constant, file) in [
        ("events of one batch of packets", "MAX_EVENTS", "engine/events.rs"),
        ("transfers that wait for the end", "MAX_WAITING", "engine/transfers/tracker.rs"),
        (
            "data connections whose first packets are remembered",
            "MAX_CONNECTIONS",
            "engine/transfers/data_connections.rs",
        ),
        ("other unfinished line", "MAX_LINE", "session/mod.rs"),
    ] {
        let source = fs::read_to_string(root().join("crates/ftp-alg-core/src").join(file)).unwrap();
        let pattern = format!(r"const {constant}: usize = (?:1 << (\d+)|([\d_]+));");
        let found = Regex::new(&pattern).unwrap().captures(&source).expect(constant);
        let number = |at: usize| found.get(at).map(|text| text.as_str().replace('_', ""));
        let value = match number(1) {
            Some(shift) => (1_u64 << shift.parse::<u32>().unwrap()).to_string(),
            None => number(2).unwrap(),
        };
        let line = limits.lines().find(|line| line.starts_with(&format!("| {row}"))).expect(row);
        assert_eq!(
            line.split(" | ").nth(1).unwrap().split([' ', ',']).next(),
            Some(&*value),
            "{row}"
        );
    }
}
