//! The log: one line a decision, at a bounded rate.
//!
//! Lines go to the journal by its own protocol where standard error is the journal ([`journald`]), else to
//! standard error, with the time. A file is no place for colours, so they are left out unless a person
//! watches. docs/commands.md says what each level holds.

pub(super) mod journald;
pub(super) mod level;

use std::{
    fmt::Display,
    io::{self, IsTerminal},
    net::IpAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use ahash::AHashMap;
use ftp_alg_core::engine::{Action, Decision, Event, What};
use strum::{EnumCount, EnumMessage, IntoStaticStr, VariantArray};
use tracing::Level;
use tracing_subscriber::{fmt, prelude::*};

use super::{DaemonError, shard::lock};
use journald::Journald;

/// Starts the log. Once in a process; a second call changes nothing.
pub(super) fn init(level: Option<&str>) -> Result<(), DaemonError> {
    let filter = level::filter(level)?;
    let journald = journald::stderr_is_journal().then(Journald::new).and_then(Result::ok);
    let lines = match journald {
        Some(journald) => journald.boxed(),
        None => stderr_layer().boxed(),
    };
    // Fails only if a log is there already.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
    Ok(())
}

/// Whether `stream` is a terminal whose user wants colours, see <https://no-color.org>.
pub fn wants_colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Lines on standard error: time, level and message. The fields are for journald.
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

/// What is logged about packets: as much as a person may want to read. Peers decide what there is to log, and
/// must not decide how much of it is.
#[derive(Default)]
pub(super) struct EventLog {
    limiter: Mutex<LineLimiter>,
}

impl EventLog {
    /// Logs what an engine decided, one line each, and that there were `more` which it did not keep.
    pub fn log_events(&self, now: Instant, events: &[Event], more: u64) {
        if events.is_empty() {
            return;
        }
        let mut limiter = lock(&self.limiter);
        limiter.skip(Topic::Omitted, more, None);
        let mut admits = |topic: Option<Topic>, event: &Event| {
            topic.is_none_or(|topic| limiter.admits(now, topic, Some(event.client.ip())))
        };
        let admitted: Vec<_> = events
            .iter()
            .map(|event| (topic_of(&event.what), event))
            .filter(|(topic, event)| admits(*topic, event))
            .collect();
        drop(limiter);
        for (topic, event) in admitted {
            match topic {
                Some(topic) => log_line(topic.level(), topic.into(), event, Some(event)),
                None => log_line(Level::DEBUG, "change", event, Some(event)),
            }
        }
    }

    /// Logs that nobody used a pinhole that a client caused.
    pub fn log_unused_pinhole(&self, now: Instant, client: IpAddr, text: &str) {
        let topic = Topic::Unused;
        if lock(&self.limiter).admits(now, topic, Some(client)) {
            log_line(topic.level(), topic.into(), &text, None);
        }
    }

    /// Logs what went wrong on our side, and that a person should look at.
    pub fn log_error(&self, now: Instant, error: &dyn Display) {
        self.log_limited(now, Topic::Machine, error);
    }

    /// Logs what went wrong, and was put right.
    pub fn log_repair(&self, now: Instant, what: &dyn Display) {
        self.log_limited(now, Topic::Healed, what);
    }

    fn log_limited(&self, now: Instant, topic: Topic, text: &dyn Display) {
        let admitted = lock(&self.limiter).admits(now, topic, None);
        if admitted {
            log_line(topic.level(), topic.into(), text, None);
        }
    }

    /// Says how much was not logged, if a second has passed since it was last said.
    pub fn log_skipped_if_due(&self, now: Instant) {
        let skipped = lock(&self.limiter).take_skipped_if_due(now);
        log_skipped_lines(skipped);
    }

    /// Says what was not logged and was not said yet.
    pub fn log_skipped(&self) {
        let skipped = lock(&self.limiter).take_skipped();
        log_skipped_lines(skipped);
    }

    /// How many lines were not logged since the start.
    pub fn skipped_lines(&self) -> u64 {
        lock(&self.limiter).skipped
    }
}

fn log_skipped_lines(skipped: Vec<(Topic, SkippedLines)>) {
    for (topic, SkippedLines { lines, last }) in skipped {
        let of = last.map_or(String::new(), |client| format!(", the last of client {client}"));
        let text = format!(
            "{lines} more lines were not logged: {}{of}",
            topic.get_message().unwrap_or_default()
        );
        log_line(topic.level(), topic.into(), &text, None);
    }
}

/// Logs `text` with the fields of `event`.
fn log_line(level: Level, word: &'static str, text: &dyn Display, event: Option<&Event>) {
    let decision = event.and_then(|event| match &event.what {
        What::Announcement(decision) => Some(decision),
        _ => None,
    });
    macro_rules! log {
        ($level:ident) => {
            tracing::$level!(
                event = word,
                session = event.map(|event| event.session),
                client = event.map(|event| display(event.client)),
                server = event.map(|event| display(event.server)),
                action = decision.map(|decision| display(decision.action)),
                kind = decision.map(|decision| display(decision.kind)),
                announced = decision.and_then(|decision| decision.announced).map(display),
                rewritten = decision.and_then(|decision| decision.rewritten).map(display),
                "{text}"
            )
        };
    }
    match level {
        Level::ERROR => log!(error),
        Level::WARN => log!(warn),
        Level::INFO => log!(info),
        _ => log!(debug),
    }
}

/// What a line is about. Each is limited by itself, so that no one kind keeps out the others. Its name is the field
/// `FTP_ALG_EVENT`, its message what such lines are.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, EnumCount, EnumMessage, IntoStaticStr, VariantArray,
)]
#[strum(serialize_all = "lowercase")]
enum Topic {
    /// Our own trouble.
    #[strum(serialize = "error", message = "errors")]
    Machine,
    /// What others did to us, and was put right.
    #[strum(message = "changes by other programs")]
    Healed,
    #[strum(message = "requests that the kernel refused")]
    Kernel,
    #[strum(message = "refusals")]
    Refusal,
    #[strum(message = "limits that were reached")]
    Limit,
    #[strum(message = "connections that were ended at a limit")]
    Ended,
    /// What was opened, or passed.
    #[strum(message = "announcements")]
    Announcement,
    #[strum(message = "events of one batch of packets beyond the first")]
    Omitted,
    #[strum(message = "sessions that are encrypted")]
    Encrypted,
    #[strum(message = "pinholes that nobody used")]
    Unused,
}

impl Topic {
    fn level(self) -> Level {
        match self {
            Self::Machine => Level::ERROR,
            Self::Healed | Self::Kernel => Level::WARN,
            Self::Refusal | Self::Limit | Self::Ended => Level::WARN,
            Self::Omitted | Self::Encrypted | Self::Unused => Level::WARN,
            Self::Announcement => Level::INFO,
        }
    }

    /// How many lines come at once, and how long one takes that follows them: of one client, and
    /// of all. What is opened is what an operator looks for.
    fn rates(self) -> [(u32, Duration); 2] {
        let (of_one, of_all) = ((20, Duration::from_secs(1)), (200, Duration::from_millis(50)));
        match self {
            Self::Announcement => [of_one, of_all].map(|(burst, each)| (5 * burst, each / 5)),
            // Who encrypts will do so again, and it is said once what that means.
            Self::Encrypted => [(1, Duration::from_secs(86400)), of_all],
            _ => [of_one, of_all],
        }
    }
}

/// What an event is about, if its lines are limited: those of the level debug are what someone asked for.
fn topic_of(what: &What) -> Option<Topic> {
    match what {
        What::Failed(_) => Some(Topic::Kernel),
        What::Refused(_) => Some(Topic::Refusal),
        What::Announcement(Decision { action: Action::Refuse, .. }) => Some(Topic::Refusal),
        What::Announcement(_) | What::Unread(_) => Some(Topic::Announcement),
        What::Limit(_) => Some(Topic::Limit),
        What::Ended(_) => Some(Topic::Ended),
        What::Encrypted => Some(Topic::Encrypted),
        What::Closed(..) | What::Expired(..) | What::Turned(_) => None,
    }
}

/// Lines that were not logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SkippedLines {
    lines: u64,
    /// Whose the last was.
    last: Option<IpAddr>,
}

/// How many clients are told apart; the lines of more count for all together only.
const MAX_CLIENTS: usize = 1024;
/// How often is said what was not logged.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(1);

/// Decides what is logged.
#[derive(Default)]
struct LineLimiter {
    clients: AHashMap<(Topic, IpAddr), LeakyBucket>,
    all: [LeakyBucket; Topic::COUNT],
    since_summary: [SkippedLines; Topic::COUNT],
    summary: Option<Instant>,
    /// All that was ever skipped.
    skipped: u64,
}

impl LineLimiter {
    /// Whether a line may be logged now. One that may not is counted.
    fn admits(&mut self, now: Instant, topic: Topic, client: Option<IpAddr>) -> bool {
        let [of_one, of_all] = topic.rates();
        let admitted = client.is_none_or(|client| match self.client_bucket(now, (topic, client)) {
            Some(bucket) => bucket.admits(now, of_one),
            None => true,
        }) && self.all[topic as usize].admits(now, of_all);
        if !admitted {
            self.skip(topic, 1, client);
        }
        admitted
    }

    fn client_bucket(&mut self, now: Instant, key: (Topic, IpAddr)) -> Option<&mut LeakyBucket> {
        if self.clients.len() >= MAX_CLIENTS && !self.clients.contains_key(&key) {
            // Those of a day would be in the way of all others.
            let is_long = |topic| topic == Topic::Encrypted;
            self.clients.retain(|(topic, _), bucket| !is_long(*topic) && !bucket.is_empty(now));
            if self.clients.len() >= MAX_CLIENTS {
                return None;
            }
        }
        Some(self.clients.entry(key).or_default())
    }

    fn skip(&mut self, topic: Topic, lines: u64, client: Option<IpAddr>) {
        let skipped = &mut self.since_summary[topic as usize];
        skipped.lines += lines;
        skipped.last = client.or(skipped.last);
        self.skipped += lines;
    }

    /// What was skipped since this last gave something, at most once a second.
    fn take_skipped_if_due(&mut self, now: Instant) -> Vec<(Topic, SkippedLines)> {
        if self.summary.is_some_and(|last| now.saturating_duration_since(last) < SUMMARY_INTERVAL) {
            return Vec::new();
        }
        let skipped = self.take_skipped();
        if !skipped.is_empty() {
            self.summary = Some(now);
        }
        skipped
    }

    fn take_skipped(&mut self) -> Vec<(Topic, SkippedLines)> {
        let skipped = Topic::VARIANTS.iter().copied().zip(std::mem::take(&mut self.since_summary));
        skipped.filter(|(_, skipped)| skipped.lines > 0).collect()
    }
}

/// A leaky bucket: the moment at which it is empty again.
#[derive(Clone, Copy, Default)]
struct LeakyBucket(Option<Instant>);

impl LeakyBucket {
    /// Whether one more fits into a bucket of `burst`, each of which takes so long to leak.
    fn admits(&mut self, now: Instant, (burst, each): (u32, Duration)) -> bool {
        let empty = self.0.filter(|at| *at > now).unwrap_or(now);
        let fits = empty - now <= each * (burst - 1);
        if fits {
            self.0 = Some(empty + each);
        }
        fits
    }

    fn is_empty(&self, now: Instant) -> bool {
        self.0.is_none_or(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(last: u16) -> Option<IpAddr> {
        let [high, low] = last.to_be_bytes();
        Some(IpAddr::from([192, 0, high, low]))
    }

    fn admitted(
        limiter: &mut LineLimiter,
        now: Instant,
        topic: Topic,
        who: u16,
        times: u64,
    ) -> u64 {
        (0..times).filter(|_| limiter.admits(now, topic, client(who))).count() as u64
    }

    #[test]
    fn a_client_has_a_burst_and_then_a_line_a_second() {
        let (mut limiter, now) = (LineLimiter::default(), Instant::now());
        assert_eq!(admitted(&mut limiter, now, Topic::Refusal, 1, 1000), 20);
        assert_eq!(admitted(&mut limiter, now, Topic::Refusal, 2, 5), 5, "another client");
        assert_eq!(admitted(&mut limiter, now, Topic::Limit, 1, 1000), 20, "another topic");
        let mut later = 0;
        for tenth in 1..=100 {
            let now = now + Duration::from_millis(100 * tenth);
            later += admitted(&mut limiter, now, Topic::Refusal, 1, 100);
        }
        assert_eq!(later, 10);
        let much_later = now + Duration::from_secs(3600);
        assert_eq!(admitted(&mut limiter, much_later, Topic::Refusal, 1, 1000), 20);
    }

    #[test]
    fn all_clients_together_have_one_as_well() {
        let (mut limiter, now) = (LineLimiter::default(), Instant::now());
        let refused = |limiter: &mut LineLimiter, now| -> u64 {
            (0..3000).map(|who| admitted(limiter, now, Topic::Refusal, who, 1)).sum()
        };
        assert_eq!(refused(&mut limiter, now), 200);
        assert_eq!(refused(&mut limiter, now + Duration::from_secs(1)), 20);
        assert!(limiter.clients.len() <= MAX_CLIENTS, "{}", limiter.clients.len());
        assert!(limiter.admits(now, Topic::Machine, None), "our own trouble is still told");
    }

    #[test]
    fn clients_that_encrypt_keep_no_others_from_their_limits() {
        let (mut limiter, now) = (LineLimiter::default(), Instant::now());
        for who in 0..2 * MAX_CLIENTS as u16 {
            let later = now + Duration::from_secs(who.into());
            limiter.admits(later, Topic::Encrypted, client(who));
        }
        let later = now + Duration::from_secs(4 * MAX_CLIENTS as u64);
        assert_eq!(admitted(&mut limiter, later, Topic::Refusal, 5, 100), 20);
        assert_eq!(admitted(&mut limiter, later, Topic::Encrypted, 5, 100), 1);
    }

    #[test]
    fn what_is_skipped_is_said_once_a_second() {
        let (mut limiter, now) = (LineLimiter::default(), Instant::now());
        assert_eq!(limiter.take_skipped_if_due(now), []);
        admitted(&mut limiter, now, Topic::Refusal, 7, 432);
        limiter.skip(Topic::Omitted, 5, None);
        let of = |lines, last| SkippedLines { lines, last };
        let expected = [(Topic::Refusal, of(412, client(7))), (Topic::Omitted, of(5, None))];
        assert_eq!(limiter.take_skipped_if_due(now), expected);
        admitted(&mut limiter, now, Topic::Refusal, 7, 1);
        assert_eq!(limiter.take_skipped_if_due(now + SUMMARY_INTERVAL / 2), [], "not yet");
        assert_eq!(
            limiter.take_skipped_if_due(now + SUMMARY_INTERVAL),
            [(Topic::Refusal, of(1, client(7)))]
        );
        assert_eq!(
            (limiter.take_skipped_if_due(now + 9 * SUMMARY_INTERVAL), limiter.skipped),
            (vec![], 418)
        );
    }

    #[test]
    fn topics_have_their_own_places() {
        for (place, &topic) in Topic::VARIANTS.iter().enumerate() {
            assert_eq!(topic as usize, place);
        }
    }
}
