//! `ftp-alg events`: what happened recently, and what happens now; or what is in files of `log.events`.

mod openings;
mod since;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
    mem,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser},
};
use ftp_alg_core::{
    engine::{EventDescription, Level},
    session::TransferVerb,
};
use jiff::{SignedDuration, Timestamp};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, value::RawValue};

use self::openings::{Opening, Openings};
use super::{
    Failure, SocketOption,
    event_reader::{EventReader, NewEvents, fields_of, missed_text},
    output::{Lines, Style},
    replay,
    selection::{Endpoints, Selection, Subject},
};
use crate::{
    config::escaped,
    daemon::{MAX_ANSWERED, catalogue, counted::counted},
    replay::Compression,
};

/// The kinds of events, with what they mean.
fn kinds() -> impl Iterator<Item = PossibleValue> {
    catalogue::all().map(|event| PossibleValue::new(event.name).help(catalogue::plain(event.means)))
}

/// How often `--follow` asks for more.
const INTERVAL: Duration = Duration::from_millis(200);
/// How many events are put into the order of their times. The daemon stores a transfer when all of it is known, so later
/// events may come before it.
const WINDOW: usize = 4096;
/// How long the command waits for the next line of a pipe before it prints what was read.
const PIPE_PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// How far lines of a file may be out of the order of their times: a transfer waits for the end of its data connection.
const DISORDER: SignedDuration = SignedDuration::from_hours(1);
/// No line of a file of events is longer: names are limited.
const MAX_LINE: u64 = 1 << 20;

/// Show what was decided and transferred, oldest first
///
/// The daemon stores the last 4096 events since its start in memory. With
/// --follow the command waits for more; if it reads too slowly, it says how
/// many events it missed. With FILEs it reads these in place of the daemon:
/// the files of log.events have all events, and `-` is standard input.
///
/// --json prints one object a line. docs/events.md lists all events and their
/// fields, which do not change between versions.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct EventOptions {
    /// Read these files of log.events, in this order; - for standard input
    #[arg(value_name = "FILE", conflicts_with_all = ["follow", "socket"])]
    files: Vec<PathBuf>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Wait for more events
    #[arg(long, short)]
    follow: bool,
    /// Print what was open between --since and --until: each pinhole with its
    /// data connection, when it was opened and closed, for whom, and by what
    #[arg(long, conflicts_with_all = ["follow", "kind", "failed", "verb", "direction"])]
    open: bool,
    // The hyphen is that of `-5m`.
    #[arg(long, value_name = "TIME", help = since::help(), value_parser = since::parse, allow_hyphen_values = true)]
    since: Option<Timestamp>,
    /// Only events before this time, in the same forms
    #[arg(long, value_name = "TIME", value_parser = since::parse, allow_hyphen_values = true)]
    until: Option<Timestamp>,
    #[command(flatten)]
    selection: Selection,
    /// Only events of this kind; may be given several times
    #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(kinds()))]
    kind: Vec<String>,
    /// Only what failed: transfers, refused commands and logins, data connections
    #[arg(long)]
    failed: bool,
    /// Only transfers by this command; may be given several times
    #[arg(long, value_name = "COMMAND", ignore_case = true, value_parser = PossibleValuesParser::new(TransferVerb::ALL.map(|(name, _)| name)))]
    verb: Vec<String>,
    /// Only transfers in this direction: up to the server, or down
    #[arg(long, value_parser = ["up", "down"])]
    direction: Option<String>,
    /// Only events with this endpoint: announced, rewritten, or of a data connection
    #[arg(long, value_name = Endpoints::FORM, value_parser = Endpoints::parse)]
    port: Option<Endpoints>,
    #[command(flatten)]
    socket: SocketOption,
}

impl EventOptions {
    /// Prints events until there are none, or without end.
    pub(super) fn run(&self) -> Result<(), Failure> {
        if self.since.zip(self.until).is_some_and(|(since, until)| until <= since) {
            return Err(Failure::Usage("--until is not later than --since".to_owned()));
        }
        let of_daemon = |kind: &&String| catalogue::OF_DAEMON.iter().any(|one| one.name == **kind);
        match &self.files[..] {
            [] => match self.kind.iter().find(of_daemon) {
                Some(kind) => Err(Failure::Usage(format!(
                    "{kind} is an event of the daemon, which is in the file of log.events only: ftp-alg events FILE"
                ))),
                None => self.print_recent(),
            },
            files => {
                let mut printer = Printer::new(self);
                files.iter().try_for_each(|path| take_file(path, &mut printer))?;
                printer.finish()
            }
        }
    }

    /// Prints the events that the daemon has in memory.
    fn print_recent(&self) -> Result<(), Failure> {
        let mut printer = Printer::new(self);
        let (mut reader, mut has_begun) = (EventReader::default(), false);
        loop {
            let take = |new: NewEvents<'_>| self.take(&new, !has_begun, &mut printer);
            let has_more = match reader.read(&self.socket, take) {
                Ok(taken) => taken?,
                // It is restarted: sessions survive, and so does this.
                Err(_) if self.follow && has_begun => false,
                Err(error) => return Err(error.into()),
            };
            has_begun = true;
            if has_more {
                continue;
            }
            if !self.follow {
                return printer.finish();
            }
            printer.print_down_to(0)?;
            printer.lines.finish()?;
            thread::sleep(INTERVAL);
        }
    }

    /// Prints the events of an answer, and before them a note if events were missed. Returns whether the daemon has
    /// more.
    fn take(
        &self,
        NewEvents { events, missed }: &NewEvents<'_>,
        is_start: bool,
        printer: &mut Printer<'_>,
    ) -> Result<bool, Failure> {
        let first = events.first().filter(|_| is_start);
        if let Some(note) = first.and_then(|first| self.note_on_start(&fields_of(first))) {
            eprintln!("ftp-alg: {note}");
        }
        match missed {
            Some(0) => {}
            Some(missed) => eprintln!("ftp-alg: {}", missed_text(*missed)),
            None => {
                eprintln!(
                    "ftp-alg: the daemon was restarted; what happened before that is in the log, and in the file of log.events"
                );
                return Ok(true);
            }
        }
        events.iter().try_for_each(|event| printer.add(event, fields_of(event)))?;
        Ok(events.len() == MAX_ANSWERED)
    }

    /// The note that the stored events, of which this is the `first`, do not reach back to `--since`.
    fn note_on_start(&self, first: &Value) -> Option<String> {
        let (since, first) = (self.since?, time_of(first)?);
        let note = format!(
            "stored events begin at {first:.0}: see the file of log.events, or the log, for earlier ones"
        );
        (first > since).then_some(note)
    }

    /// Whether the event is selected. With `--open`, openings are selected and not single events.
    fn selects(&self, event: &Value) -> bool {
        let text = |field: &str| event[field].as_str();
        let is_one_of = |wanted: &[String], field: &str| {
            wanted.is_empty()
                || text(field)
                    .is_some_and(|value| wanted.iter().any(|one| one.eq_ignore_ascii_case(value)))
        };
        let is_in_time = |is: &dyn Fn(Timestamp) -> bool| time_of(event).is_some_and(is);
        self.open
            || self.since.is_none_or(|since| is_in_time(&|at| at >= since))
                && self.until.is_none_or(|until| is_in_time(&|at| at < until))
                && self.selects_subject(event)
                && is_one_of(&self.kind, "event")
                && is_one_of(&self.verb, "verb")
                && self.direction.as_ref().is_none_or(|wanted| text("direction") == Some(wanted))
                && (!self.failed || is_failure(event))
    }

    /// Whether the event belongs to the selected sessions and endpoints.
    fn selects_subject(&self, event: &Value) -> bool {
        let text = |field: &str| event[field].as_str();
        let address = |field: &str| text(field)?.parse().ok();
        let subject = Subject {
            client: address("client"),
            server: address("server"),
            user: text("user"),
            session: event["session"].as_u64(),
        };
        let endpoint = |field: &str| text(field)?.parse::<SocketAddr>().ok();
        let initiator = || {
            let port = event["initiator_port"].as_u64()?.try_into().ok()?;
            Some(SocketAddr::new(address("initiator")?, port))
        };
        let has_port = |wanted: Endpoints| {
            let endpoints = ["announced", "rewritten", "arrival", "target"].map(endpoint);
            let mut all = endpoints.into_iter().chain([initiator()]).flatten();
            all.any(|end| wanted.contains(end))
        };
        self.port.is_none_or(has_port) && self.selection.selects(subject)
    }

    /// The line of the event with these fields. A warning has a colour if the output has colours.
    fn line(&self, json: &str, fields: &Value, style: Style) -> String {
        if self.json {
            return plain_json(json) + "\n";
        }
        let text = |field: &str| escaped(fields[field].as_str().unwrap_or_default());
        let (time, says) = (text("time"), text("text"));
        match is_warning(fields) {
            true => format!("{time} {}\n", style.yellow(&says)),
            false => format!("{time} {says}\n"),
        }
    }
}

/// Prints the selected events in the order of their times, or what was open.
struct Printer<'a> {
    options: &'a EventOptions,
    lines: Lines,
    style: Style,
    /// The last events, by time and in the order in which they came: fields, and JSON. All times have the same number
    /// of digits.
    window: BTreeMap<(String, u64), (Value, String)>,
    count: u64,
    openings: Openings,
    /// The time of the last line of a file.
    last: Option<Timestamp>,
}

impl<'a> Printer<'a> {
    fn new(options: &'a EventOptions) -> Self {
        Self {
            options,
            lines: Lines::new(),
            style: Style::of_stdout(),
            window: BTreeMap::new(),
            count: 0,
            openings: Openings::default(),
            last: None,
        }
    }

    /// The note about the time of the next line of a file: the first line is later than `--since`, or a newer file came
    /// before an older one, so that ends are read before their openings.
    fn note_on_time(&mut self, fields: &Value) -> Option<String> {
        let time = time_of(fields)?;
        match (self.last.replace(time), self.options.since) {
            (None, Some(since)) if since < time => {
                Some(format!("begins at {time:.0}: no file that was given has earlier events"))
            }
            (Some(last), _) if last.duration_since(time) > DISORDER => Some(format!(
                "goes back from {last:.0} to {time:.0}: the oldest file has to come first"
            )),
            _ => None,
        }
    }

    /// Adds the next event, which has these fields.
    fn add(&mut self, event: &RawValue, fields: Value) -> Result<(), Failure> {
        if !self.options.selects(&fields) {
            return Ok(());
        }
        self.count += 1;
        let time = fields["time"].as_str().unwrap_or_default().to_owned();
        self.window.insert((time, self.count), (fields, event.get().to_owned()));
        self.print_down_to(WINDOW)
    }

    /// Prints the oldest events until `count` remain.
    fn print_down_to(&mut self, count: usize) -> Result<(), Failure> {
        while self.window.len() > count
            && let Some((_, (fields, json))) = self.window.pop_first()
        {
            if self.options.open {
                let ended = self.openings.note(&fields);
                self.print_openings(&ended)?;
            } else {
                self.lines.print(&self.options.line(&json, &fields, self.style))?;
            }
        }
        Ok(())
    }

    fn print_openings(&mut self, openings: &[Opening]) -> Result<(), Failure> {
        let EventOptions { since, until, json, .. } = *self.options;
        for one in openings {
            if one.was_open(since, until) && self.options.selects_subject(one.announcement()) {
                let plain = if json { plain_json } else { escaped };
                self.lines.print(&(plain(&one.line(json)) + "\n"))?;
            }
        }
        Ok(())
    }

    /// Prints the remaining events and openings.
    fn finish(mut self) -> Result<(), Failure> {
        self.print_down_to(0)?;
        let open = mem::take(&mut self.openings).still_open();
        self.print_openings(&open)?;
        self.lines.finish()
    }
}

/// Equivalent JSON without anything that a terminal interprets, because anybody may have written the file.
fn plain_json(json: &str) -> String {
    let mut plain = String::with_capacity(json.len());
    for char in json.chars() {
        match char {
            // Between two values; a string has none.
            '\0'..' ' => plain.push(' '),
            _ if char.escape_debug().len() > 2 => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    plain += &format!("\\u{unit:04x}");
                }
            }
            _ => plain.push(char),
        }
    }
    plain
}

/// Passes the events of a file to `printer`.
fn take_file(path: &Path, printer: &mut Printer<'_>) -> Result<(), Failure> {
    let name = escaped(&path.display().to_string());
    let failed = |error: io::Error| Failure::failed(format!("{name}: {error}"));
    let mut reader = BufReader::new(replay::open(path).map_err(failed)?);
    if let Some(compression) = Compression::of(reader.fill_buf().map_err(failed)?) {
        return Err(Failure::Failed(replay::compressed(path, &name, compression, "events")));
    }
    let (mut events, mut unread, mut line) = (0, 0, Vec::new());
    while (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).map_err(failed)? > 0 {
        let event: Option<&RawValue> = serde_json::from_slice(&line).ok();
        let event = event.map(|event| (event, fields_of(event)));
        match event.filter(|(_, fields)| fields["event"].is_string()) {
            Some((event, fields)) => {
                events += 1;
                if let Some(note) = printer.note_on_time(&fields) {
                    eprintln!("ftp-alg: {name}: {note}");
                }
                printer.add(event, fields)?;
            }
            None => unread += u64::from(!line.trim_ascii().is_empty()),
        }
        line.clear();
        // Such as the pipe of `tail -f`.
        if reader.buffer().is_empty() && waits(reader.get_ref()) {
            printer.print_down_to(0)?;
        }
    }
    if unread > 0 && events == 0 {
        return Err(Failure::failed(format!("{name} is no file of log.events")));
    }
    if unread > 0 {
        let are = if unread == 1 { "is" } else { "are" };
        eprintln!("ftp-alg: {name}: {} {are} no event", counted(unread, "line"));
    }
    Ok(())
}

/// Whether the file is a pipe in which nothing has come for a while.
fn waits(file: &File) -> bool {
    let mut input = [PollFd::new(file, PollFlags::IN)];
    poll(&mut input, Some(&PIPE_PATIENCE)).is_ok_and(|ready| ready == 0)
}

/// Whether the event is a failure, as the daemon decided.
fn is_failure(event: &Value) -> bool {
    event["failed"] == true
}

/// Whether the event is a warning of the log, or a failure.
fn is_warning(event: &Value) -> bool {
    let is_of = |kind: &EventDescription| kind.level >= Level::Warn && event["event"] == kind.name;
    catalogue::all().any(is_of) || is_failure(event)
}

fn time_of(event: &Value) -> Option<Timestamp> {
    event["time"].as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::json;

    use super::*;
    use crate::cli::output::PLAIN;

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
                "client": "2001:db8::7", "server": "2001:db8::9", "verb": "STOR", "direction": "up",
                "result": "aborted", "failed": true, "initiator": "2001:db8::7", "initiator_port": 40001, "target": "[2001:db8::9]:50070"}),
            json!({"id": 3, "time": "2020-11-28T10:00:00.000000Z", "event": "announcement", "session": 3,
                "announced": "10.0.0.7:2121", "rewritten": "198.51.100.1:50069"}),
            json!({"id": 4, "time": "2020-11-28T10:00:00.000000Z", "event": "refusal", "session": 3, "failed": true,
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
            ("--until 2020-11-28T10:30:00Z", vec![1, 3, 4]),
            ("--failed", vec![2, 4]),
            ("--verb stor", vec![2]),
            ("--verb RETR", vec![]),
            ("--direction up", vec![2]),
            ("--direction down", vec![]),
            ("--port [2001:db8::7]:40001", vec![2]),
            ("--port 50070", vec![2]),
        ] {
            assert_eq!(selected(arguments), expected, "{arguments}");
        }
    }

    /// ESC, DEL, CSI in one character, a change of direction, and one beyond the basic plane.
    #[test]
    fn nothing_of_a_file_reaches_the_terminal_as_a_command() {
        let hostile = "\u{1b}[2J\u{7f}\u{9b}2J\u{202e}\u{e0001}é\"";
        let event = json!({"time": hostile, "event": "login", "text": hostile});
        let text = options("").line("", &event, PLAIN);
        assert_eq!(
            text.matches("\\u{1b}[2J\\u{7f}\\u{9b}2J\\u{202e}\\u{e0001}é\"").count(),
            2,
            "{text}"
        );
        let json = event.to_string().replacen(',', ",\r\t", 1);
        let line = options("--json").line(&json, &event, PLAIN);
        let is_plain = |char: char| char == 'é' || char == ' ' || char.is_ascii_graphic();
        assert!(line.trim_end_matches('\n').chars().all(is_plain), "{line}");
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), event);
    }

    #[test]
    fn files_that_begin_late_or_come_in_the_wrong_order_are_noted() {
        let notes = |arguments: &str, times: &[&str]| {
            let options = options(arguments);
            let mut printer = Printer::new(&options);
            let of =
                |time: &&str| printer.note_on_time(&json!({"time": format!("2020-11-{time}Z")}));
            times.iter().map(of).collect::<Vec<_>>()
        };
        let begins = "begins at 2020-11-28T10:00:00Z: no file that was given has earlier events";
        let times = ["28T10:00:00", "28T10:30:00", "28T09:40:00"];
        assert_eq!(notes("--since 2020-11-27", &times), [Some(begins.to_owned()), None, None]);
        assert_eq!(notes("--since 2020-11-28T10:00:00Z", &times), [None, None, None]);
        let back = "goes back from 2020-11-28T10:00:00Z to 2020-11-27T10:00:00Z: the oldest file has to come first";
        let times = ["28T10:00:00", "27T10:00:00", "27T11:00:00"];
        assert_eq!(notes("", &times), [None, Some(back.to_owned()), None]);
    }

    #[test]
    fn what_is_not_stored_any_more_is_noted() {
        let first = |time: &str| json!({"time": time});
        let note = |arguments: &str, time| options(arguments).note_on_start(&first(time));
        let time = "2020-11-28T10:00:00.123456Z";
        let expected = "stored events begin at 2020-11-28T10:00:00Z: see the file of log.events, or the log, for earlier ones";
        assert_eq!(note("--since 2020-11-28T09:00:00Z", time).as_deref(), Some(expected));
        for (arguments, time) in [("", time), ("--since 1h", time), ("--since 2020-11-28", "")] {
            assert_eq!(note(arguments, time), None, "{arguments}");
        }
    }
}
