//! The log: one line for each decision, at a limited rate.
//!
//! If standard error is the journal, lines are sent with its native protocol ([`journald`]). Otherwise they are written
//! to standard error with the time, and in colours only if that is a terminal. docs/events.md says what each level
//! has, and lists the fields.
//!
//! Every line of the levels info, warn and error has the field `event`, a stable name for scripts.

pub(super) mod daemon_lines;
pub(super) mod journald;
pub(super) mod level;

use std::{
    collections::BTreeMap,
    fmt::Display,
    io::{self, IsTerminal},
    net::IpAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use ahash::AHashMap;
use ftp_alg_core::engine::{ClientKey, Event, EventDescription, Level};
use tracing_subscriber::{fmt, prelude::*};

use super::{
    DaemonError, catalogue,
    counted::{counted, was_or_were},
    shard::lock,
};
use daemon_lines::DaemonLines;
use journald::Journald;

/// Logs at a level that is not constant.
macro_rules! at_level {
    ($level:expr, $($rest:tt)+) => {
        match $level {
            Level::Error => tracing::error!($($rest)+),
            Level::Warn => tracing::warn!($($rest)+),
            Level::Info => tracing::info!($($rest)+),
            Level::Debug => tracing::debug!($($rest)+),
        }
    };
}

/// The level of the lines of an event.
pub(super) const fn level_of(event: &EventDescription) -> tracing::Level {
    match event.level {
        Level::Error => tracing::Level::ERROR,
        Level::Warn => tracing::Level::WARN,
        Level::Info => tracing::Level::INFO,
        Level::Debug => tracing::Level::DEBUG,
    }
}

/// Starts the log. A second call in the same process changes nothing.
pub(super) fn init(level: Option<&str>) -> Result<(), DaemonError> {
    let filter = level::filter(level)?;
    let journald = journald::stderr_is_journal().then(Journald::new).and_then(Result::ok);
    let lines = match journald {
        Some(journald) => journald.boxed(),
        None => stderr_layer().boxed(),
    };
    // Fails only if the process already has a log.
    let for_file = DaemonLines.with_filter(daemon_lines::filter());
    let _ =
        tracing_subscriber::registry().with(lines.with_filter(filter)).with(for_file).try_init();
    Ok(())
}

/// Whether `stream` is a terminal whose user wants colours. See <https://no-color.org>.
pub fn wants_colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Writes lines to standard error: time, level and message. Only journald gets the fields.
fn stderr_layer<S>() -> impl tracing_subscriber::Layer<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    fmt::layer()
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(wants_colours(&io::stderr()))
        .fmt_fields(fmt::format::debug_fn(|writer, field, value| match field.name() {
            "message" => write!(writer, "{value:?}"),
            _ => Ok(()),
        }))
        // A closed standard error must not end the daemon (eprintln! panics).
        .log_internal_errors(false)
}

/// The log of decisions about packets. Its rate is limited, because peers cause the lines and must not be able to fill
/// the log.
#[derive(Default)]
pub(super) struct EventLog {
    limiter: Mutex<LineLimiter>,
}

impl EventLog {
    /// Logs those of these events that are to be logged now, a line each, and counts the `more` events that the engine left
    /// out.
    pub fn log_events<'e>(&self, now: Instant, events: impl Iterator<Item = &'e Event>, more: u64) {
        let mut events = events.peekable();
        if events.peek().is_none() && more == 0 {
            return;
        }
        let mut limiter = lock(&self.limiter);
        if more > 0 {
            limiter.skip(&catalogue::OMITTED, more, None);
        }
        let is_admitted = |event: &&Event| {
            // Lines of the level debug have no limit, because somebody asked for them.
            let description = event.kind.description();
            description.level == Level::Debug
                || limiter.admits(now, description, Some(event.client.ip()))
        };
        let admitted: Vec<_> = events.filter(is_admitted).collect();
        drop(limiter);
        admitted.into_iter().for_each(log_line);
    }

    /// Logs an error of the daemon, which needs a person.
    pub fn log_error(&self, now: Instant, error: &dyn Display) {
        if lock(&self.limiter).admits(now, &catalogue::ERROR, None) {
            log_event!(ERROR, "{error}");
        }
    }

    /// Logs something that went wrong and that the daemon has repaired.
    pub fn log_repair(&self, now: Instant, what: &dyn Display) {
        if lock(&self.limiter).admits(now, &catalogue::HEALED, None) {
            log_event!(HEALED, "{what}");
        }
    }

    /// Logs how many lines were suppressed since the last time.
    pub fn log_skipped(&self) {
        let skipped = std::mem::take(&mut lock(&self.limiter).since_summary);
        for (name, SkippedLines { of, lines, last }) in skipped {
            let client =
                last.map_or(String::new(), |client| format!(", the last of client {client}"));
            let text = format!(
                "{} {} not logged: {}{client}",
                counted(lines, "more line"),
                was_or_were(lines),
                of.several
            );
            at_level!(of.level, event = name, not_logged = lines, "{text}");
        }
    }

    /// How many lines were suppressed since the start.
    pub fn skipped_lines(&self) -> u64 {
        lock(&self.limiter).skipped
    }
}

/// Logs an event of a session. The event's own fields are in the field `details`, a JSON object.
fn log_line(event: &Event) {
    let Event { session, client, server, user, kind } = event;
    let EventDescription { name, level, .. } = *kind.description();
    at_level!(
        level,
        event = name,
        session,
        client = %client,
        server = %server,
        user = user.as_deref(),
        failed = kind.is_failure().then_some(true),
        details = serde_json::to_string(kind).unwrap_or_default(),
        "{event}"
    );
}

/// The rate limits for one client, and for all clients together, of the lines of an event.
fn rates(event: &EventDescription) -> [RateLimit; 2] {
    match event.name {
        "announcement" | "transfer" => WANTED,
        ENCRYPTED => DAILY,
        LINES_LEFT_OUT => OF_A_FILE,
        _ => USUAL,
    }
}

const USUAL: [RateLimit; 2] = [RateLimit::new(20, 1000), RateLimit::new(200, 50)];
/// The limits for lines that operators look for.
const WANTED: [RateLimit; 2] = [RateLimit::new(100, 200), RateLimit::new(1000, 10)];
/// The limits for encrypted sessions: a client that encrypts does so each time, and one line a day is enough.
const DAILY: [RateLimit; 2] = [RateLimit::new(1, 86_400_000), RateLimit::new(200, 50)];
/// The name of the event whose limits last a day.
const ENCRYPTED: &str = "encrypted";
/// The limits for a file, which has all events of each client that does not try to fill the disk. The common limit is
/// far more than a gateway can do.
const OF_A_FILE: [RateLimit; 2] = [RateLimit::new(10_000, 1), RateLimit::new(1_000_000, 1)];
/// The name of the event whose limits are those of the lines of a file.
const LINES_LEFT_OUT: &str = catalogue::LINES_LEFT_OUT.name;

/// How many lines may be logged.
#[derive(Clone, Copy)]
struct RateLimit {
    /// At once.
    burst: u32,
    /// After that, one in this time.
    each: Duration,
}

impl RateLimit {
    const fn new(burst: u32, milliseconds: u64) -> Self {
        Self { burst, each: Duration::from_millis(milliseconds) }
    }
}

/// Suppressed lines of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SkippedLines {
    of: &'static EventDescription,
    pub lines: u64,
    /// The client of the last one.
    pub last: Option<IpAddr>,
}

/// How many clients have a limit of their own. Further clients have only the common limit.
const MAX_CLIENTS: usize = 1024;

/// The rate limits. Each event has its own, so that none suppresses another.
#[derive(Debug, Default)]
pub(super) struct LineLimiter {
    clients: AHashMap<(&'static str, ClientKey), LeakyBucket>,
    all: AHashMap<&'static str, LeakyBucket>,
    since_summary: BTreeMap<&'static str, SkippedLines>,
    /// How many lines were suppressed since the start.
    skipped: u64,
}

impl LineLimiter {
    /// Takes the suppressed lines of `event` since the last time.
    pub fn take_skipped(&mut self, event: &EventDescription) -> Option<SkippedLines> {
        self.since_summary.remove(event.name)
    }

    /// Whether a line may be logged now. Counts it as suppressed if not.
    pub fn admits(
        &mut self,
        now: Instant,
        event: &'static EventDescription,
        client: Option<IpAddr>,
    ) -> bool {
        let [of_one, of_all] = rates(event);
        let bucket = client.and_then(|one| self.client_bucket(now, (event.name, one.into())));
        let admitted = bucket.is_none_or(|bucket| bucket.admits(now, of_one))
            && self.all.entry(event.name).or_insert(LeakyBucket(now)).admits(now, of_all);
        if !admitted {
            self.skip(event, 1, client);
        }
        admitted
    }

    fn client_bucket(
        &mut self,
        now: Instant,
        key: (&'static str, ClientKey),
    ) -> Option<&mut LeakyBucket> {
        if self.clients.len() >= MAX_CLIENTS && !self.clients.contains_key(&key) {
            // Buckets of encrypted sessions last a day, and would leave no room for other events.
            self.clients.retain(|(name, _), bucket| *name != ENCRYPTED && !bucket.is_empty(now));
            if self.clients.len() >= MAX_CLIENTS {
                return None;
            }
        }
        Some(self.clients.entry(key).or_insert(LeakyBucket(now)))
    }

    fn skip(&mut self, event: &'static EventDescription, lines: u64, client: Option<IpAddr>) {
        let none = SkippedLines { of: event, lines: 0, last: None };
        let skipped = self.since_summary.entry(event.name).or_insert(none);
        skipped.lines += lines;
        skipped.last = client.or(skipped.last);
        self.skipped += lines;
    }
}

/// A leaky bucket, as the moment at which it will be empty.
#[derive(Clone, Copy, Debug)]
struct LeakyBucket(Instant);

impl LeakyBucket {
    /// Whether another line fits into the bucket.
    fn admits(&mut self, now: Instant, limit: RateLimit) -> bool {
        let empty = self.0.max(now);
        let fits = empty - now <= limit.each * (limit.burst - 1);
        if fits {
            self.0 = empty + limit.each;
        }
        fits
    }

    fn is_empty(&self, now: Instant) -> bool {
        self.0 <= now
    }
}

#[cfg(test)]
mod tests {
    use ftp_alg_core::engine::EventKind;

    use super::*;

    fn named(name: &str) -> &'static EventDescription {
        EventKind::ALL.iter().find(|event| event.name == name).unwrap()
    }

    fn client(last: u16) -> Option<IpAddr> {
        let [high, low] = last.to_be_bytes();
        Some(IpAddr::from([192, 0, high, low]))
    }

    fn admitted(
        limiter: &mut LineLimiter,
        now: Instant,
        event: &'static EventDescription,
        who: u16,
        times: u64,
    ) -> u64 {
        (0..times).filter(|_| limiter.admits(now, event, client(who))).count() as u64
    }

    #[test]
    fn a_client_has_a_burst_then_a_line_a_second() {
        let (mut limiter, now) = (LineLimiter::default(), Instant::now());
        assert_eq!(admitted(&mut limiter, now, named("refusal"), 1, 1000), 20);
        assert_eq!(admitted(&mut limiter, now, named("refusal"), 2, 5), 5, "another client");
        assert_eq!(admitted(&mut limiter, now, named("limit"), 1, 1000), 20, "another topic");
        let mut later = 0;
        for tenth in 1..=100 {
            let now = now + Duration::from_millis(100 * tenth);
            later += admitted(&mut limiter, now, named("refusal"), 1, 100);
        }
        assert_eq!(later, 10);
        let much_later = now + Duration::from_secs(3600);
        assert_eq!(admitted(&mut limiter, much_later, named("refusal"), 1, 1000), 20);
    }

    #[test]
    fn addresses_of_one_ipv6_network_share_a_limit() {
        let (mut limiter, now) = (LineLimiter::default(), Instant::now());
        let mut of = |network: u16, host: u16| {
            let address = IpAddr::from([0x2001, 0xdb8, 0, network, 0, 0, 0, host]);
            (0..20).filter(|_| limiter.admits(now, named("refusal"), Some(address))).count()
        };
        assert_eq!((0..150).map(|host| of(0, host)).sum::<usize>(), 20);
        assert_eq!([of(1, 0), of(2, 7)], [20, 20], "other networks");
        assert_eq!(admitted(&mut limiter, now, named("refusal"), 1, 9), 9, "other clients");
        assert_eq!(admitted(&mut limiter, now, named("refusal"), 2, 9), 9, "an IPv4 neighbour");
    }

    #[test]
    fn all_clients_together_have_a_limit() {
        let (mut limiter, now) = (LineLimiter::default(), Instant::now());
        let refused = |limiter: &mut LineLimiter, now| -> u64 {
            (0..3000).map(|who| admitted(limiter, now, named("refusal"), who, 1)).sum()
        };
        assert_eq!(refused(&mut limiter, now), 200);
        assert_eq!(refused(&mut limiter, now + Duration::from_secs(1)), 20);
        assert!(limiter.clients.len() <= MAX_CLIENTS, "{}", limiter.clients.len());
        assert!(limiter.admits(now, &catalogue::ERROR, None), "errors are still logged");
    }

    #[test]
    fn encrypted_sessions_leave_room_for_other_topics() {
        let (mut limiter, now) = (LineLimiter::default(), Instant::now());
        for who in 0..2 * MAX_CLIENTS as u16 {
            let later = now + Duration::from_secs(who.into());
            limiter.admits(later, named(ENCRYPTED), client(who));
        }
        let later = now + Duration::from_secs(4 * MAX_CLIENTS as u64);
        assert_eq!(admitted(&mut limiter, later, named("refusal"), 5, 100), 20);
        assert_eq!(admitted(&mut limiter, later, named(ENCRYPTED), 5, 100), 1);
    }

    #[test]
    fn suppressed_lines_are_counted_by_event() {
        let (mut limiter, now) = (LineLimiter::default(), Instant::now());
        admitted(&mut limiter, now, named("refusal"), 7, 432);
        limiter.skip(&catalogue::OMITTED, 5, None);
        let skipped = limiter.since_summary.into_values();
        let skipped: Vec<_> = skipped.map(|one| (one.of.name, one.lines, one.last)).collect();
        assert_eq!(skipped, [("omitted", 5, None), ("refusal", 412, client(7))]);
        assert_eq!(limiter.skipped, 417);
    }
}
