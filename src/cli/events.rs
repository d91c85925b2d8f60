//! `ftp-alg events`: what happened recently, and what happens now.

mod since;

use std::{thread, time::Duration};

use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser},
};
use ftp_alg_core::engine::EventKind;
use jiff::Timestamp;
use serde_json::{Value, value::RawValue};

use super::{
    Failure, SocketOption,
    event_reader::{EventReader, NewEvents, fields_of, missed_text},
    output::{self, Style},
    selection::{Endpoints, Selection, Subject},
};
use crate::daemon::{
    MAX_ANSWERED,
    catalogue::{self, Kind},
};

/// The kinds of the events that the daemon stores, with what they mean.
fn kinds() -> impl Iterator<Item = PossibleValue> {
    EventKind::NAMES.into_iter().map(|name| {
        let kind = catalogue::OF_SESSIONS.iter().find(|kind| kind.names == [name]);
        let meaning = kind.map(Kind::plain_meaning).unwrap_or_default();
        PossibleValue::new(name).help(meaning)
    })
}

/// How often `--follow` asks for more.
const INTERVAL: Duration = Duration::from_millis(200);

/// Show what was decided and transferred, oldest first
///
/// The daemon stores the last 4096 events in memory. With --follow the command
/// waits for more; if it reads too slowly, it says how many events it missed.
///
/// --json prints one object a line. docs/events.md lists all events and their
/// fields, which do not change between versions.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct EventOptions {
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Wait for more events
    #[arg(long, short)]
    follow: bool,
    // The hyphen is that of `-5m`.
    #[arg(long, value_name = "TIME", help = since::help(), value_parser = since::parse, allow_hyphen_values = true)]
    since: Option<Timestamp>,
    #[command(flatten)]
    selection: Selection,
    /// Only events of this kind; may be given several times
    #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(kinds()))]
    kind: Vec<String>,
    /// Only events with an endpoint, announced or rewritten, of this port
    #[arg(long, value_name = Endpoints::FORM, value_parser = Endpoints::parse)]
    port: Option<Endpoints>,
    #[command(flatten)]
    socket: SocketOption,
}

impl EventOptions {
    /// Prints events until there are none, or without end.
    pub(super) fn run(&self) -> Result<(), Failure> {
        let (mut reader, mut has_begun, mut lines) = (EventReader::default(), false, Vec::new());
        loop {
            let add = |new: NewEvents<'_>| self.add_lines(&new, !has_begun, &mut lines);
            let has_more = match reader.read(&self.socket, add) {
                Ok(has_more) => has_more,
                // It is restarted: sessions survive, and so does this.
                Err(_) if self.follow && has_begun => false,
                Err(error) => return Err(error.into()),
            };
            has_begun = true;
            if has_more {
                continue;
            }
            output::print(&oldest_first(&mut lines))?;
            if !self.follow {
                return Ok(());
            }
            thread::sleep(INTERVAL);
        }
    }

    /// Adds the lines of the events that are selected, each with its time. Says what is to be said before them. Returns
    /// whether more are stored.
    fn add_lines(
        &self,
        NewEvents { events, missed }: &NewEvents<'_>,
        is_start: bool,
        lines: &mut Vec<(String, String)>,
    ) -> bool {
        let first = events.first().filter(|_| is_start);
        if let Some(note) = first.and_then(|first| self.note_on_start(&fields_of(first))) {
            eprintln!("ftp-alg: {note}");
        }
        match missed {
            Some(0) => {}
            Some(missed) => eprintln!("ftp-alg: {}", missed_text(*missed)),
            None => {
                eprintln!(
                    "ftp-alg: the IDs of events begin again, because the state directory was removed or is another one: some may \
                     be missing"
                );
                return true;
            }
        }
        let style = Style::of_stdout();
        lines.extend(events.iter().filter_map(|event| self.line(event, style)));
        events.len() == MAX_ANSWERED
    }

    /// That the stored events, of which this is the `first`, do not reach back to `--since`.
    fn note_on_start(&self, first: &Value) -> Option<String> {
        let (since, first) = (self.since?, time_of(first)?);
        let note = format!("stored events begin at {first:.0}: see the log for earlier ones");
        (first > since).then_some(note)
    }

    fn selects(&self, event: &Value) -> bool {
        let text = |field: &str| event[field].as_str();
        let address = |field: &str| text(field)?.parse().ok();
        let subject = Subject {
            client: address("client"),
            server: address("server"),
            user: text("user"),
            session: event["session"].as_u64(),
        };
        let endpoints = ["announced", "rewritten"].map(|field| text(field)?.parse().ok());
        let has_port =
            |wanted: Endpoints| endpoints.iter().flatten().any(|end| wanted.contains(*end));
        self.since.is_none_or(|since| time_of(event).is_some_and(|at| at >= since))
            && self.port.is_none_or(has_port)
            && self.selection.selects(subject)
            && (self.kind.is_empty()
                || text("event").is_some_and(|kind| self.kind.iter().any(|wanted| wanted == kind)))
    }

    /// Its time and its line, if it is selected. A warning has a colour, where there are colours.
    fn line(&self, event: &RawValue, style: Style) -> Option<(String, String)> {
        let fields = fields_of(event);
        if !self.selects(&fields) {
            return None;
        }
        let text = |field: &str| fields[field].as_str().unwrap_or_default();
        let (time, says) = (text("time"), text("text"));
        let line = match is_warning(&fields) {
            _ if self.json => event.get().to_owned(),
            true => format!("{time} {}", style.yellow(says)),
            false => format!("{time} {says}"),
        };
        Some((time.to_owned(), line))
    }
}

/// The text of these lines, which are taken. Transfers are stored when all is known of them, so behind later events. Each
/// time has as many digits, so that of an earlier event is the lesser text.
fn oldest_first(lines: &mut Vec<(String, String)>) -> String {
    lines.sort_by(|(one, _), (other, _)| one.cmp(other));
    lines.drain(..).map(|(_, line)| line + "\n").collect()
}

/// Whether it is a warning of the log, or a transfer that failed.
fn is_warning(event: &Value) -> bool {
    let is_of = |kind: &Kind| {
        kind.levels == "warn" && kind.names.iter().any(|name| event["event"] == *name)
    };
    catalogue::OF_SESSIONS.iter().any(is_of)
        || event["result"].as_str().is_some_and(|result| result != "complete")
}

fn time_of(event: &Value) -> Option<Timestamp> {
    event["time"].as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::json;

    use super::*;

    #[derive(clap::Parser)]
    struct Test {
        #[command(flatten)]
        options: EventOptions,
    }

    fn options(arguments: &str) -> EventOptions {
        let words = ["events"].into_iter().chain(arguments.split_whitespace());
        Test::try_parse_from(words).unwrap().options
    }

    fn selected(arguments: &str) -> Vec<u64> {
        let options = options(arguments);
        let events = [
            json!({"id": 1, "time": "2020-11-28T10:00:00.000000Z", "event": "login", "session": 1,
                "client": "10.0.0.7", "server": "203.0.113.9", "user": "bob"}),
            json!({"id": 2, "time": "2020-11-28T11:00:00.000000Z", "event": "transfer", "session": 2,
                "client": "2001:db8::7", "server": "2001:db8::9"}),
            json!({"id": 3, "time": "2020-11-28T10:00:00.000000Z", "event": "announcement", "session": 3,
                "announced": "10.0.0.7:2121", "rewritten": "198.51.100.1:50069"}),
            json!({"id": 4, "time": "2020-11-28T10:00:00.000000Z", "event": "refusal", "session": 3,
                "announced": "[2001:db8::7]:2121", "rewritten": null}),
        ];
        let ids = events.iter().filter(|event| options.selects(event));
        ids.map(|event| event["id"].as_u64().unwrap()).collect()
    }

    #[test]
    fn each_option_selects() {
        for (arguments, expected) in [
            ("", vec![1, 2, 3, 4]),
            ("--client 10.0.0.0/8", vec![1]),
            ("--client 10.0.0.8", vec![]),
            ("--server 2001:db8::/32 --json", vec![2]),
            ("--user bob", vec![1]),
            ("--kind login --kind transfer", vec![1, 2]),
            ("--kind transfer", vec![2]),
            ("--session 2", vec![2]),
            ("--port 2121", vec![3, 4]),
            ("--port 50069", vec![3]),
            ("--port 21", vec![]),
            ("--port 10.0.0.7:2121", vec![3]),
            ("--port [::ffff:10.0.0.7]:2121", vec![3]),
            ("--port [2001:db8::7]:2121", vec![4]),
            ("--port 198.51.100.1:50069", vec![3]),
            ("--port 198.51.100.1:2121", vec![]),
            ("--since 2020-11-28T10:30:00Z", vec![2]),
        ] {
            assert_eq!(selected(arguments), expected, "{arguments}");
        }
    }

    #[test]
    fn warnings_have_a_colour() {
        let event = |kind: &str, result: Option<&str>| {
            let fields = json!({"time": "T", "event": kind, "result": result, "text": "says"});
            RawValue::from_string(fields.to_string()).unwrap()
        };
        for (kind, result, is_coloured) in [
            ("refusal", None, true),
            ("login", None, false),
            ("transfer", Some("aborted"), true),
            ("transfer", Some("complete"), false),
        ] {
            for has_colours in [false, true] {
                let style = Style { has_colours, width: None };
                let (_, line) = options("").line(&event(kind, result), style).unwrap();
                let expected = match is_coloured && has_colours {
                    true => "T \x1b[1;33msays\x1b[0m",
                    false => "T says",
                };
                assert_eq!(line, expected, "{kind} {result:?}");
            }
        }
    }

    #[test]
    fn what_is_not_stored_any_more_is_noted() {
        let first = |time: &str| json!({"time": time});
        let note = |arguments: &str, time| options(arguments).note_on_start(&first(time));
        let time = "2020-11-28T10:00:00.123456Z";
        let expected = "stored events begin at 2020-11-28T10:00:00Z: see the log for earlier ones";
        assert_eq!(note("--since 2020-11-28T09:00:00Z", time).as_deref(), Some(expected));
        for (arguments, time) in [("", time), ("--since 1h", time), ("--since 2020-11-28", "")] {
            assert_eq!(note(arguments, time), None, "{arguments}");
        }
    }
}
