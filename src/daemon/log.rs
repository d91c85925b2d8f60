//! The log: one line for each decision, at a limited rate.
//!
//! If standard error is the journal, lines are sent with its native protocol ([`journald`]). Otherwise they are written
//! to standard error with the time, and in colours only if that is a terminal. docs/logs.md says what each level
//! has, and lists the fields.
//!
//! Every line of the levels info, warn and error has the field `event`, a stable name for scripts.

mod batch;
pub(super) mod journald;
pub(super) mod level;

use std::{
    fmt::Display,
    io::{self, IsTerminal},
    net::{IpAddr, SocketAddr},
    sync::Mutex,
    time::{Duration, Instant},
};

use ahash::AHashMap;
use ftp_alg_core::{
    engine::{ClientKey, DecidedAnnouncement, Event, EventKind, PinholeInfo},
    session::Effect,
};
use strum::{EnumCount, EnumMessage, IntoStaticStr, VariantArray};
use tracing::Level;
use tracing_subscriber::{fmt, prelude::*};

use super::{
    DaemonError,
    counted::{counted, was_or_were},
    health::describe_unused,
    shard::lock,
    transfers::Report,
};
use batch::BatchedStderr;
pub(super) use batch::log_at_once;
use journald::Journald;

/// Starts the log. A second call in the same process changes nothing.
pub(super) fn init(level: Option<&str>) -> Result<(), DaemonError> {
    let filter = level::filter(level)?;
    let journald = journald::stderr_is_journal().then(Journald::new).and_then(Result::ok);
    let lines = match journald {
        Some(journald) => journald.boxed(),
        None => stderr_layer().boxed(),
    };
    // Fails only if the process already has a log.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
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
        .with_writer(|| BatchedStderr)
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
    /// Logs the events of a batch, a line each, and counts the `more` events that the engine left out. Others log those
    /// that are `is_reported_later`.
    pub fn log_events(
        &self,
        now: Instant,
        events: &[Event],
        more: u64,
        is_reported_later: impl Fn(&EventKind) -> bool,
    ) {
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
            .filter(|event| !is_reported_later(&event.kind))
            .map(|event| (topic_of(&event.kind), event))
            .filter(|(topic, event)| admits(*topic, event))
            .collect();
        drop(limiter);
        for (topic, event) in admitted {
            let session = (event.session, (event.client, event.server));
            log_line(topic, event, Some(session), Some(event));
        }
    }

    /// Logs that a pinhole expired without a connection.
    pub fn log_unused_pinhole(&self, now: Instant, pinhole: &PinholeInfo) {
        let PinholeInfo { session, client, server, .. } = *pinhole;
        if lock(&self.limiter).admits(now, Topic::Unused, Some(client.ip())) {
            let line = describe_unused(pinhole);
            log_line(Some(Topic::Unused), &line, Some((session, (client, server))), None);
        }
    }

    /// Whether the line of a report is logged now.
    pub fn admits_report(&self, now: Instant, report: &Report) -> bool {
        let topic = match report {
            Report::SessionEnd(_) => return true, // of the level debug
            _ if report.ended_transfer().is_some() => Topic::Transfer,
            _ => Topic::Waiting,
        };
        lock(&self.limiter).admits(now, topic, Some(report.session().client.ip()))
    }

    /// Logs an error of the daemon, which needs a person.
    pub fn log_error(&self, now: Instant, error: &dyn Display) {
        self.log_limited(now, Topic::Error, error);
    }

    /// Logs something that went wrong and that the daemon has repaired.
    pub fn log_repair(&self, now: Instant, what: &dyn Display) {
        self.log_limited(now, Topic::Healed, what);
    }

    fn log_limited(&self, now: Instant, topic: Topic, text: &dyn Display) {
        let admitted = lock(&self.limiter).admits(now, topic, None);
        if admitted {
            log_line(Some(topic), text, None, None);
        }
    }

    /// Logs how many lines were suppressed, at most once a second.
    pub fn log_skipped_if_due(&self, now: Instant) {
        if lock(&self.limiter).is_summary_due(now) {
            self.log_skipped(now);
        }
    }

    /// Logs how many lines were suppressed since the last time.
    pub fn log_skipped(&self, now: Instant) {
        let skipped = lock(&self.limiter).take_skipped(now);
        for (topic, SkippedLines { lines, last }) in skipped {
            let of = last.map_or(String::new(), |client| format!(", the last of client {client}"));
            let text = format!(
                "{} {} not logged: {}{of}",
                counted(lines, "more line"),
                was_or_were(lines),
                topic.get_message().unwrap_or_default()
            );
            log_line(Some(topic), &text, None, None);
        }
    }

    /// How many lines were suppressed since the start.
    pub fn skipped_lines(&self) -> u64 {
        lock(&self.limiter).skipped
    }
}

/// Logs `text` with the name of its `topic`, the number and the ends of its `session`, and what else is known of the
/// `event`. A line without a topic has the level debug.
fn log_line(
    topic: Option<Topic>,
    text: &dyn Display,
    session: Option<(u64, (SocketAddr, SocketAddr))>,
    event: Option<&Event>,
) {
    let decided = match event.map(|event| &event.kind) {
        Some(EventKind::Announcement(decided)) => Some(decided),
        _ => None,
    };
    macro_rules! log {
        ($level:ident) => {
            tracing::$level!(
                event =
                    event.map_or_else(|| topic.map_or("", Topic::into), |event| event.kind.name()),
                session = session.map(|(number, _)| number),
                client = session.map(|(_, (client, _))| display(client)),
                server = session.map(|(_, (_, server))| display(server)),
                user = event.and_then(|event| event.user.as_deref()),
                action = decided.map(|decided| display(decided.action())),
                kind = decided.map(|decided| display(decided.kind)),
                announced = decided.and_then(|decided| decided.announced).map(display),
                rewritten = decided.and_then(|decided| decided.rewritten()).map(display),
                "{text}"
            )
        };
    }
    match topic.map_or(Level::DEBUG, Topic::level) {
        Level::ERROR => log!(error),
        Level::WARN => log!(warn),
        Level::INFO => log!(info),
        _ => log!(debug),
    }
}

/// The kind of a line. Each kind has rate limits of its own, so that no kind suppresses another. The variant's name is
/// the field `FTP_ALG_EVENT`, and its message names such lines in the summary of suppressed ones.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, EnumCount, EnumMessage, IntoStaticStr, VariantArray,
)]
#[strum(serialize_all = "lowercase")]
enum Topic {
    /// An error of the daemon.
    #[strum(message = "errors")]
    Error,
    /// A change by another program that the daemon has undone.
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
    /// An announcement that opened a pinhole, or that passed.
    #[strum(message = "announcements")]
    Announcement,
    #[strum(message = "further events of the same batch of packets")]
    Omitted,
    #[strum(message = "encrypted sessions")]
    Encrypted,
    #[strum(message = "unused pinholes")]
    Unused,
    #[strum(message = "transfers")]
    Transfer,
    #[strum(serialize = "transfer-waiting", message = "transfers without a data connection")]
    Waiting,
    #[strum(message = "sessions with packets from elsewhere")]
    Elsewhere,
    #[strum(message = "sessions with missed packets")]
    Missed,
    #[strum(serialize = "not-ftp", message = "connections that are not FTP")]
    NotFtp,
    #[strum(serialize = "login-refused", message = "refused logins")]
    LoginRefused,
}

impl Topic {
    fn level(self) -> Level {
        match self {
            Self::Error => Level::ERROR,
            Self::Healed | Self::Kernel => Level::WARN,
            Self::Refusal | Self::Limit | Self::Ended => Level::WARN,
            Self::Omitted | Self::Encrypted | Self::Unused | Self::Waiting => Level::WARN,
            Self::Announcement | Self::Transfer | Self::Elsewhere => Level::INFO,
            Self::Missed | Self::NotFtp | Self::LoginRefused => Level::INFO,
        }
    }

    /// The rate limits for one client, and for all clients together. Announcements and transfers have higher ones, because
    /// operators look for them.
    fn rates(self) -> [RateLimit; 2] {
        let limit =
            |burst, milliseconds| RateLimit { burst, each: Duration::from_millis(milliseconds) };
        match self {
            Self::Announcement | Self::Transfer => [limit(100, 200), limit(1000, 10)],
            // A client that encrypts does so each time, and one line a day says what that means.
            Self::Encrypted => [limit(1, 86_400_000), limit(200, 50)],
            _ => [limit(20, 1000), limit(200, 50)],
        }
    }
}

/// How many lines may be logged.
#[derive(Clone, Copy)]
struct RateLimit {
    /// At once.
    burst: u32,
    /// After that, one in this time.
    each: Duration,
}

/// The topic of an event. `None` for lines of the level debug, which have no rate limit because somebody asked for
/// them.
fn topic_of(what: &EventKind) -> Option<Topic> {
    match what {
        EventKind::KernelRefused(_) => Some(Topic::Kernel),
        EventKind::CommandRefused(_) => Some(Topic::Refusal),
        EventKind::Announcement(DecidedAnnouncement { decision, .. })
            if matches!(decision.effect, Effect::Refuse(_)) =>
        {
            Some(Topic::Refusal)
        }
        EventKind::Announcement(_) | EventKind::UnreadableReply(_) => Some(Topic::Announcement),
        EventKind::LimitReached(_) => Some(Topic::Limit),
        EventKind::Reset(_) => Some(Topic::Ended),
        EventKind::Encrypted => Some(Topic::Encrypted),
        EventKind::FromElsewhere(_) | EventKind::RouteMissing(_) => Some(Topic::Elsewhere),
        EventKind::Missed(_) => Some(Topic::Missed),
        EventKind::NotFtp(_) => Some(Topic::NotFtp),
        EventKind::LoginRefused(_) => Some(Topic::LoginRefused),
        EventKind::LoggedIn
        | EventKind::SessionStarted
        | EventKind::SessionEnded(_)
        | EventKind::Transfer(_)
        | EventKind::TransferWaiting(_)
        | EventKind::PinholeWaiting(_)
        | EventKind::PinholeClosed(..)
        | EventKind::PinholeExpired(..)
        | EventKind::StateChanged(_) => None,
    }
}

/// Suppressed lines of one topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SkippedLines {
    lines: u64,
    /// The client of the last one.
    last: Option<IpAddr>,
}

/// How many clients have a limit of their own. Further clients have only the common limit.
const MAX_CLIENTS: usize = 1024;
/// Interval between two summaries of suppressed lines.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(1);

/// The rate limits of all topics.
#[derive(Default)]
struct LineLimiter {
    clients: AHashMap<(Topic, ClientKey), LeakyBucket>,
    all: [LeakyBucket; Topic::COUNT],
    since_summary: [SkippedLines; Topic::COUNT],
    summary: Option<Instant>,
    /// How many lines were suppressed since the start.
    skipped: u64,
}

impl LineLimiter {
    /// Whether a line may be logged now. Counts it as suppressed if not.
    fn admits(&mut self, now: Instant, topic: Topic, client: Option<IpAddr>) -> bool {
        let [of_one, of_all] = topic.rates();
        let admitted =
            client.is_none_or(|client| match self.client_bucket(now, (topic, client.into())) {
                Some(bucket) => bucket.admits(now, of_one),
                None => true,
            }) && self.all[topic as usize].admits(now, of_all);
        if !admitted {
            self.skip(topic, 1, client);
        }
        admitted
    }

    fn client_bucket(&mut self, now: Instant, key: (Topic, ClientKey)) -> Option<&mut LeakyBucket> {
        if self.clients.len() >= MAX_CLIENTS && !self.clients.contains_key(&key) {
            // Buckets of encrypted sessions last a day, and would leave no room for other topics.
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

    /// Whether the last summary is a second ago.
    fn is_summary_due(&self, now: Instant) -> bool {
        self.summary.is_none_or(|last| now.saturating_duration_since(last) >= SUMMARY_INTERVAL)
    }

    /// The lines that were suppressed since the last summary, for the next one.
    fn take_skipped(&mut self, now: Instant) -> Vec<(Topic, SkippedLines)> {
        let skipped = Topic::VARIANTS.iter().copied().zip(std::mem::take(&mut self.since_summary));
        let skipped: Vec<_> = skipped.filter(|(_, skipped)| skipped.lines > 0).collect();
        if !skipped.is_empty() {
            self.summary = Some(now);
        }
        skipped
    }
}

/// A leaky bucket, as the moment at which it will be empty.
#[derive(Clone, Copy, Default)]
struct LeakyBucket(Option<Instant>);

impl LeakyBucket {
    /// Whether another line fits into the bucket.
    fn admits(&mut self, now: Instant, limit: RateLimit) -> bool {
        let empty = self.0.filter(|at| *at > now).unwrap_or(now);
        let fits = empty - now <= limit.each * (limit.burst - 1);
        if fits {
            self.0 = Some(empty + limit.each);
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
    fn a_client_has_a_burst_then_a_line_a_second() {
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
    fn addresses_of_one_ipv6_network_share_a_limit() {
        let (mut limiter, now) = (LineLimiter::default(), Instant::now());
        let mut of = |network: u16, host: u16| {
            let address = IpAddr::from([0x2001, 0xdb8, 0, network, 0, 0, 0, host]);
            (0..20).filter(|_| limiter.admits(now, Topic::Refusal, Some(address))).count()
        };
        assert_eq!((0..150).map(|host| of(0, host)).sum::<usize>(), 20);
        assert_eq!([of(1, 0), of(2, 7)], [20, 20], "other networks");
        assert_eq!(admitted(&mut limiter, now, Topic::Refusal, 1, 9), 9, "other clients");
        assert_eq!(admitted(&mut limiter, now, Topic::Refusal, 2, 9), 9, "an IPv4 neighbour");
    }

    #[test]
    fn all_clients_together_have_a_limit() {
        let (mut limiter, now) = (LineLimiter::default(), Instant::now());
        let refused = |limiter: &mut LineLimiter, now| -> u64 {
            (0..3000).map(|who| admitted(limiter, now, Topic::Refusal, who, 1)).sum()
        };
        assert_eq!(refused(&mut limiter, now), 200);
        assert_eq!(refused(&mut limiter, now + Duration::from_secs(1)), 20);
        assert!(limiter.clients.len() <= MAX_CLIENTS, "{}", limiter.clients.len());
        assert!(limiter.admits(now, Topic::Error, None), "errors are still logged");
    }

    #[test]
    fn encrypted_sessions_leave_room_for_other_topics() {
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
    fn suppressed_lines_are_summarised_once_a_second() {
        let (mut limiter, now) = (LineLimiter::default(), Instant::now());
        assert_eq!(limiter.take_skipped(now), []);
        assert!(limiter.is_summary_due(now));
        admitted(&mut limiter, now, Topic::Refusal, 7, 432);
        limiter.skip(Topic::Omitted, 5, None);
        let of = |lines, last| SkippedLines { lines, last };
        let expected = [(Topic::Refusal, of(412, client(7))), (Topic::Omitted, of(5, None))];
        assert_eq!(limiter.take_skipped(now), expected);
        admitted(&mut limiter, now, Topic::Refusal, 7, 1);
        assert!(!limiter.is_summary_due(now + SUMMARY_INTERVAL / 2), "not yet");
        let due = now + SUMMARY_INTERVAL;
        assert!(limiter.is_summary_due(due));
        assert_eq!(limiter.take_skipped(due), [(Topic::Refusal, of(1, client(7)))]);
        assert_eq!((limiter.take_skipped(due), limiter.skipped), (vec![], 418));
    }

    #[test]
    fn each_topic_has_its_own_index() {
        for (place, &topic) in Topic::VARIANTS.iter().enumerate() {
            assert_eq!(topic as usize, place);
        }
    }
}
