//! The daemon's own events, which are in the log and in the file of `log.events`. Those of sessions are
//! [`EventKind`](ftp_alg_core::engine::EventKind). The tables of docs/events.md and the help of `ftp-alg events --kind` are
//! made from both.

use ftp_alg_core::engine::{EventDescription, EventKind, Level};

macro_rules! daemon_events {
    ($(
        $(#[doc = $means:literal])+
        $constant:ident: $name:literal, $level:ident, $remedy:literal $(, $several:literal)?;
    )+) => {
        $(
            $(#[doc = $means])+
            pub const $constant: EventDescription = EventDescription {
                name: $name,
                level: Level::$level,
                several: concat!($($several)?),
                means: concat!($($means),+).trim_ascii_start(),
                remedy: $remedy,
            };
        )+

        /// All of them.
        pub const OF_DAEMON: &[EventDescription] = &[$($constant),+];
    };
}

/// Logs an event of the daemon: one of [`OF_DAEMON`], its fields, and its text.
macro_rules! log_event {
    ($event:ident, $($rest:tt)+) => {
        tracing::event!(
            $crate::daemon::log::level_of(&$crate::daemon::catalogue::$event),
            event = $crate::daemon::catalogue::$event.name,
            $($rest)+
        )
    };
}

daemon_events! {
    /// something keeps the gateway from its work
    PROBLEM: "problem", Warn, "[health](health.md)";
    /// something does not stop FTP, or concerns a few peers
    WARNING: "warning", Warn, "[health](health.md)";
    /// a problem or a warning is no more
    SOLVED: "solved", Info, "[health](health.md)";
    /// the daemon could not do something
    ERROR: "error", Error, "the line says what; `ftp-alg doctor`", "errors";
    /// another program changed the table, and it is loaded again
    HEALED: "healed", Warn, "`nft monitor` shows which program", "changes by other programs";
    /// the daemon gives verdicts
    READY: "ready", Info, "";
    /// it has ended
    STOPPED: "stopped", Info, "";
    /// sessions of an earlier daemon continue
    RESTORED: "restored", Info, "";
    /// how many sessions had a transfer when the last daemon ended
    TRANSFERS_INTERRUPTED: "transfers-interrupted", Info, "";
    /// another daemon ends, and this one continues
    TAKEOVER: "takeover", Info, "";
    /// the other gateway's sessions continue here
    ACTIVATED: "activated", Info, "";
    /// the other gateway continues the sessions
    DEACTIVATED: "deactivated", Info, "";
    /// how pinholes open
    BACK_END: "back-end", Info, "[firewalls](firewalls.md#back-ends)";
    /// why the fast path is off
    FAST_PATH_OFF: "fast-path-off", Info, "[fast path](fastpath.md)";
    /// a confinement that this kernel lacks
    UNCONFINED: "unconfined", Warn, "";
    /// the state is damaged or of another version: it starts without sessions
    JOURNAL_REFUSED: "journal-refused", Warn, "clients log in again";
    /// another daemon's table is replaced
    TABLE_REPLACED: "table-replaced", Warn, "use one `--state-dir`";
    /// other programs can remove the table: owners need Linux 6.9
    TABLE_NOT_OWNED: "table-not-owned", Info, "";
    /// the table stays after the end, for sessions
    TABLE_LEFT: "table-left", Warn, "start `ftp-alg`, or delete the table";
    /// the table was loaded again, because something has changed
    TABLE_UPDATED: "table-updated", Info, "";
    /// a change of the configuration: `key`, and its value `before` and `now` (absent: the default, or no such table)
    RELOAD_CHANGED: "reload-changed", Info, "";
    /// the new configuration is in use
    RELOADED: "reloaded", Info, "";
    /// the file is invalid, or cannot be read now; the old configuration stays
    RELOAD_REFUSED: "reload-refused", Error, "`ftp-alg check`, `ftp-alg status`";
    /// a key that changes only at a restart
    RELOAD_KEY_FIXED: "reload-key-fixed", Warn, "restart";
    /// a valid configuration opens or exposes much; at a start and a reload
    CONFIG_WARNING: "config-warning", Warn, "the line says what; also `ftp-alg check`";
    /// the level was changed
    LOG_LEVEL: "log-level", Info, "";
    /// the daemon did not run for a while: packets may have passed unread
    DOWNTIME: "downtime", Warn, "what else uses the processors?";
    /// packets had waited while the daemon did not run: they were dropped, and their senders retransmit them
    STALE_DROPPED: "stale-dropped", Warn, "what else uses the processors?";
    /// the kernel dropped packets, and their senders retransmit them
    QUEUE_FULL: "queue-full", Warn, "`queue.workers`; the processors";
    /// an external address that is a name has an address
    NAME_RESOLVED: "name-resolved", Info, "[names](names-and-ports.md)";
    /// the name has no address
    NAME_ABSENT: "name-absent", Warn, "[names](names-and-ports.md)";
    /// no name server answers for the name
    NAME_FAILED: "name-failed", Warn, "[names](names-and-ports.md)";
    /// the file of `log.events` is written again; `events` of it are missing, which were not written meanwhile
    EVENTS_MISSING: "events-missing", Warn, "";
    /// a file lacks `lines` of one client, which has 1,000 a second, and 10,000 at once; `file` is the key
    LINES_LEFT_OUT: "lines-left-out", Warn, "`ftp-alg events --follow --client` shows what `client` does";
    /// transfers have no bytes: the group of nfnetlink_log cannot be read
    DATA_LOG_OFF: "data-log-off", Info, "another program may read the group of nfnetlink_log";
    /// the group of nfnetlink_log cannot be read any more: transfers have no bytes
    DATA_LOG_ENDED: "data-log-ended", Warn, "another program may read the group of nfnetlink_log";
    /// copies of packets were lost: transfers of that time have no bytes
    DATA_LOG_LOSS: "data-log-loss", Warn, "what else uses the processors?";
    /// other machines can read the metrics and the page without a password
    METRICS_EXPOSED: "metrics-exposed", Warn, "[a password](metrics.md#a-password)";
    /// all users of the machine can read the password of the endpoint
    PASSWORD_EXPOSED: "password-exposed", Warn, "`chmod o-r`";
    /// the endpoint of the metrics and the page does not work, or a new password is refused
    METRICS_FAILED: "metrics-failed", Error, "[metrics](metrics.md)";
    /// a command does not reach the daemon
    CONTROL_ACCEPT_FAILED: "control-accept-failed", Warn, "";
    /// the service manager does not hear of the daemon
    NOTIFY_FAILED: "notify-failed", Warn, "";
    /// the BPF program stays pinned
    FAST_PATH_NOT_REMOVED: "fast-path-not-removed", Warn, "remove the directory that is named";
    /// events of one batch that were left out
    OMITTED: "omitted", Warn, "", "further events of the same batch of packets";
}

/// The events of sessions and the daemon's.
pub fn all() -> impl Iterator<Item = &'static EventDescription> {
    EventKind::ALL.iter().chain(OF_DAEMON)
}

/// The row of an event in a table of docs/events.md.
pub fn row(event: &EventDescription) -> String {
    let EventDescription { name, level, means, remedy, .. } = event;
    let remedy = if remedy.is_empty() { String::new() } else { format!("{remedy} ") };
    format!("| `{name}` | {} | {means} | {remedy}|\n", level.name())
}

/// `text` without the links and code spans of Markdown.
pub fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once('[')
        && let Some((text, after)) = link.split_once("](")
        && let Some((_, after)) = after.split_once(')')
    {
        plain += before;
        plain += text;
        rest = after;
    }
    (plain + rest).replace('`', "")
}
