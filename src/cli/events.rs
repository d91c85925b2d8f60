//! `ftp-alg events`: what happened recently, and what happens now; or what is in files of `log.events`.

mod openings;
mod since;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
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
use jiff::Timestamp;
use serde_json::{Value, value::RawValue};

use self::openings::{Opening, Openings};
use super::{
    Failure, SocketOption,
    event_reader::{EventReader, NewEvents, fields_of, missed_text},
    output::{self, Lines, Style},
    selection::{Endpoints, Selection, Subject},
};
use crate::{
    config::escape_control_characters,
    daemon::{MAX_ANSWERED, catalogue, counted::counted},
    replay::Compression,
};

/// The kinds of events, with what they mean.
fn kinds() -> impl Iterator<Item = PossibleValue> {
    catalogue::all().map(|event| PossibleValue::new(event.name).help(catalogue::plain(event.means)))
}

/// How often `--follow` asks for more.
const INTERVAL: Duration = Duration::from_millis(200);
/// A transfer is in the file behind later events. So many lines are put into the order of their times.
const WINDOW: usize = 4096;
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
            files => self.print_files(files),
        }
    }

    /// Prints those of the daemon.
    fn print_recent(&self) -> Result<(), Failure> {
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
            output::print(&match self.open {
                true => self.openings(std::mem::take(&mut lines)),
                false => oldest_first(&mut lines),
            })?;
            if !self.follow {
                return Ok(());
            }
            thread::sleep(INTERVAL);
        }
    }

    /// The lines of what was open, from these lines of JSON with their times.
    fn openings(&self, mut lines: Vec<(String, String)>) -> String {
        lines.sort();
        let mut openings = Openings::default();
        let parsed = lines.iter().filter_map(|(_, line)| serde_json::from_str(line).ok());
        let mut ended: Vec<_> = parsed.flat_map(|event: Value| openings.record(&event)).collect();
        ended.extend(openings.left());
        ended.iter().filter_map(|opening| self.opening(opening)).collect()
    }

    /// The line of what was open, if it is selected.
    fn opening(&self, opening: &Opening) -> Option<String> {
        let is_selected = opening.was_open(self.since, self.until)
            && self.selects_subject(opening.announcement());
        is_selected.then(|| opening.line(self.json) + "\n")
    }

    /// Prints those of files, oldest first.
    fn print_files(&self, files: &[PathBuf]) -> Result<(), Failure> {
        let mut lines = Lines::new();
        let (mut window, mut openings) = (BinaryHeap::new(), Openings::default());
        let mut take = |window: &mut BinaryHeap<_>, lines: &mut Lines| {
            let Some(Reverse((_, _, line))) = window.pop() else { return Ok(false) };
            let line: String = line;
            if !self.open {
                return lines.print(&(line + "\n")).map(|()| true);
            }
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            let ended = openings.record(&event);
            ended
                .iter()
                .filter_map(|one| self.opening(one))
                .try_for_each(|line| lines.print(&line))?;
            Ok(true)
        };
        let mut count = 0_u64;
        for path in files {
            let name = escape_control_characters(&path.display().to_string());
            let failed = |error: io::Error| Failure::failed(format!("{name}: {error}"));
            let mut reader: Box<dyn BufRead> = match path == Path::new("-") {
                true => Box::new(io::stdin().lock()),
                false => Box::new(BufReader::new(File::open(path).map_err(failed)?)),
            };
            if let Some(Compression { format, command }) =
                Compression::of(reader.fill_buf().map_err(failed)?)
            {
                return Err(Failure::failed(format!(
                    "{name} is compressed with {format}: {command} {name} | ftp-alg events -"
                )));
            }
            let add = |time, line| {
                count += 1;
                window.push(Reverse((time, count, line)));
                if window.len() > WINDOW { take(&mut window, &mut lines).map(drop) } else { Ok(()) }
            };
            let (read, unread) = self.read_file(reader, add).map_err(|error| match error {
                FileError::Read(error) => failed(error),
                FileError::Print(failure) => failure,
            })?;
            if unread > 0 && read == 0 {
                return Err(Failure::failed(format!("{name} is no file of log.events")));
            }
            if unread > 0 {
                eprintln!("ftp-alg: {name}: {} no event", counted_are(unread));
            }
        }
        while take(&mut window, &mut lines)? {}
        let left = openings.left();
        left.iter().filter_map(|one| self.opening(one)).try_for_each(|line| lines.print(&line))?;
        lines.finish()
    }

    /// Passes the selected lines of a file to `add`, each with its time. Returns how many of its lines are events, and how many
    /// are none.
    fn read_file(
        &self,
        mut reader: impl BufRead,
        mut add: impl FnMut(String, String) -> Result<(), Failure>,
    ) -> Result<(u64, u64), FileError> {
        let (mut events, mut unread, mut line, style) = (0, 0, Vec::new(), Style::of_stdout());
        loop {
            line.clear();
            let read = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line);
            if read.map_err(FileError::Read)? == 0 {
                return Ok((events, unread));
            }
            let event: Option<&RawValue> = serde_json::from_slice(&line).ok();
            let event = event.map(|event| (event, fields_of(event)));
            match event.filter(|(_, fields)| fields["event"].is_string()) {
                Some((event, fields)) => {
                    events += 1;
                    if let Some((time, line)) = self.line(event, &fields, style) {
                        add(time, line).map_err(FileError::Print)?;
                    }
                }
                None => unread += u64::from(!line.trim_ascii().is_empty()),
            }
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
                    "ftp-alg: the daemon was restarted; what happened before that is in the log, and in the file of log.events"
                );
                return true;
            }
        }
        let style = Style::of_stdout();
        lines.extend(events.iter().filter_map(|event| self.line(event, &fields_of(event), style)));
        events.len() == MAX_ANSWERED
    }

    /// That the stored events, of which this is the `first`, do not reach back to `--since`.
    fn note_on_start(&self, first: &Value) -> Option<String> {
        let (since, first) = (self.since?, time_of(first)?);
        let note = format!(
            "stored events begin at {first:.0}: see the file of log.events, or the log, for earlier ones"
        );
        (first > since).then_some(note)
    }

    /// Whether the event is selected. Of what was open, the openings are.
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

    /// Whether it is of the selected sessions and endpoints.
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

    /// The time and the line of an event with these fields, if it is selected. A warning has a colour, where there are colours.
    fn line(&self, event: &RawValue, fields: &Value, style: Style) -> Option<(String, String)> {
        if !self.selects(fields) {
            return None;
        }
        let text = |field: &str| fields[field].as_str().unwrap_or_default();
        let (time, says) = (text("time"), text("text"));
        let line = match is_warning(fields) {
            _ if self.json || self.open => event.get().to_owned(),
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

/// Why a file is not printed.
enum FileError {
    Read(io::Error),
    Print(Failure),
}

/// `1 line is`, `2 lines are`.
fn counted_are(lines: u64) -> String {
    format!("{} {}", counted(lines, "line"), if lines == 1 { "is" } else { "are" })
}

/// Whether it says that something failed: the daemon has decided that.
fn is_failure(event: &Value) -> bool {
    event["failed"] == true
}

/// Whether it is a warning of the log, or says that something failed.
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

    #[test]
    fn lines_of_a_file_that_are_no_events_are_counted() {
        let file =
            b"{\"event\":\"login\"}\n{\"event\":\n\n7\n\xff\n{\"event\":\"ready\",\"text\":\"x\"}";
        let options = options("--kind login");
        assert!(matches!(options.read_file(&file[..], |_, _| Ok(())), Ok((2, 3))));
    }

    #[test]
    fn warnings_have_a_colour() {
        let event = |kind: &str, failed: bool| {
            let fields = json!({"time": "T", "event": kind, "failed": failed, "text": "says"});
            RawValue::from_string(fields.to_string()).unwrap()
        };
        for (kind, failed, is_coloured) in [
            ("refusal", true, true),
            ("limit", false, true),
            ("login", false, false),
            ("transfer", true, true),
            ("transfer", false, false),
        ] {
            for has_colours in [false, true] {
                let style = Style { has_colours, width: None };
                let event = event(kind, failed);
                let (_, line) = options("").line(&event, &fields_of(&event), style).unwrap();
                let expected = match is_coloured && has_colours {
                    true => "T \x1b[1;33msays\x1b[0m",
                    false => "T says",
                };
                assert_eq!(line, expected, "{kind} {failed}");
            }
        }
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
