//! The daemon's own events as lines of JSON, for the file of `log.events`. It knows nothing of what is logged: an event of
//! the log that has no session is one of the daemon's.

use std::{fmt, sync::Mutex, time::SystemTime};

use serde_json::{Map, Value};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    filter::{FilterFn, filter_fn},
    layer::Context,
};

use crate::daemon::{events::in_utc, shard::lock};

/// Limit of lines that wait to be written, also while there is no file.
const MAX_WAITING: usize = 1024;

static WAITING: Mutex<Waiting> = Mutex::new(Waiting { lines: Vec::new(), left_out: 0 });

/// Lines that wait to be written.
#[derive(Default)]
pub(in crate::daemon) struct Waiting {
    /// Each with its end.
    pub lines: Vec<String>,
    /// How many had no room.
    pub left_out: u64,
}

/// Takes the lines that are to be written, oldest first.
pub(in crate::daemon) fn take() -> Waiting {
    std::mem::take(&mut *lock(&WAITING))
}

/// Selects the daemon's events, once for each place that logs. Summaries of suppressed lines are not selected, because
/// the file has those lines.
pub(super) fn filter() -> FilterFn {
    filter_fn(|metadata| {
        let has = |name| metadata.fields().field(name).is_some();
        let is_of_daemon = has("event") && !has("session") && !has("not_logged");
        is_of_daemon && *metadata.level() <= Level::INFO
    })
}

/// Collects the lines.
pub(super) struct DaemonLines;

impl<S: Subscriber> Layer<S> for DaemonLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line(Map::new());
        line.0.insert("time".to_owned(), in_utc(SystemTime::now()).into());
        event.record(&mut line);
        let line = format!("{}\n", Value::Object(line.0));
        let mut waiting = lock(&WAITING);
        match waiting.lines.len() {
            ..MAX_WAITING => waiting.lines.push(line),
            _ => waiting.left_out += 1,
        }
    }
}

struct Line(Map<String, Value>);

impl Line {
    fn set(&mut self, field: &Field, value: Value) {
        let name = if field.name() == "message" { "text" } else { field.name() };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }
}
