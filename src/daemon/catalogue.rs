//! The catalogue of events: what each means, and what to do. The tables of docs/events.md and the help of
//! `ftp-alg events --kind` are made from it.

/// One or several events that are explained together. Texts are Markdown.
pub struct Kind {
    /// The field `event` in JSON, and `FTP_ALG_EVENT` of the journal.
    pub names: &'static [&'static str],
    /// The levels of its lines in the log.
    pub levels: &'static str,
    /// What has happened.
    pub means: &'static str,
    /// What to do, if anything.
    pub remedy: &'static str,
}

/// Events of sessions. `omitted` and `unused` are in the log only.
pub const OF_SESSIONS: [Kind; 22] = [
    Kind {
        names: &["session-started"],
        levels: "debug",
        means: "the first login was accepted. Without a login, a session leaves no start and no end",
        remedy: "",
    },
    Kind {
        names: &["session-ended"],
        levels: "debug",
        means: "`end`: `closed`, `reset`, `expired` (no packet for hours), `replaced` (by another connection on its endpoints), `forgotten` (not followed any more)",
        remedy: "",
    },
    Kind { names: &["login"], levels: "debug", means: "the server accepted a login", remedy: "" },
    Kind {
        names: &["login-refused"],
        levels: "info",
        means: "the server refused a login; `code` is its reply's",
        remedy: "many of one client: somebody guesses passwords",
    },
    Kind {
        names: &["announcement"],
        levels: "info",
        means: "an announcement opened a pinhole, or passed; `action` is `open`, `rewrite` or `ignore`",
        remedy: "the reason is behind the last colon",
    },
    Kind {
        names: &["refusal"],
        levels: "warn",
        means: "an announcement or a command was refused; the client got the [reply](#refusals)",
        remedy: "see the reply",
    },
    Kind {
        names: &["transfer"],
        levels: "info",
        means: "a transfer has ended, if [turned on](#transfers)",
        remedy: "",
    },
    Kind {
        names: &["transfer-unseen"],
        levels: "info",
        means: "a transfer whose end was not seen: packets were missed, the session was forgotten, or the daemon was killed",
        remedy: "",
    },
    Kind {
        names: &["transfer-waiting"],
        levels: "warn",
        means: "no data connection ten seconds after the command; once a transfer, before its `transfer` (if [turned on](#transfers))",
        remedy: "`reason` says who does not answer whom",
    },
    Kind {
        names: &["no-data-connection"],
        levels: "warn",
        means: "a data connection got no answer for ten seconds, or till the session's end, and there is no transfer: curl and lftp connect before they send the command; or the kernel has forgotten it (if [turned on](#transfers))",
        remedy: "`reason` says who does not answer whom",
    },
    Kind {
        names: &["pinhole-closed"],
        levels: "debug",
        means: "an unused pinhole was closed",
        remedy: "",
    },
    Kind {
        names: &["pinhole-expired"],
        levels: "debug",
        means: "a pinhole expired before its transfer began",
        remedy: "",
    },
    Kind {
        names: &["unused"],
        levels: "warn",
        means: "no connection came through an expired pinhole (log only)",
        remedy: "the end that connects came late, or a firewall drops it",
    },
    Kind {
        names: &["encrypted"],
        levels: "warn",
        means: "the dialogue cannot be read any more: nothing is opened. One line of the log a client and day",
        remedy: "[encrypted connections](troubleshooting.md#encrypted-connections)",
    },
    Kind {
        names: &["missed"],
        levels: "info",
        means: "packets were missed, or the dialogue is in step again",
        remedy: "nothing; if it repeats, see `queue-full` and `downtime`",
    },
    Kind {
        names: &["not-ftp"],
        levels: "info",
        means: "the connection is not FTP",
        remedy: "nothing, or `inspect = false` for its network",
    },
    Kind {
        names: &["elsewhere"],
        levels: "info",
        means: "packets of an end arrive on an interface to which no route to it leads",
        remedy: "[where a line may come from](attackers.md#where-a-line-may-come-from)",
    },
    Kind {
        names: &["limit"],
        levels: "warn",
        means: "a [limit](limits.md) was reached",
        remedy: "raise it, or see what the client does",
    },
    Kind {
        names: &["ended"],
        levels: "warn",
        means: "the gateway reset the session at a limit",
        remedy: "raise `policy.memory` or `max-sessions`",
    },
    Kind {
        names: &["kernel"],
        levels: "warn",
        means: "the kernel refused a request for the session",
        remedy: "`ftp-alg doctor`",
    },
    Kind {
        names: &["change"],
        levels: "debug",
        means: "the inspection of the session changed",
        remedy: "",
    },
    Kind {
        names: &["omitted"],
        levels: "warn",
        means: "events of one batch that were left out (log only)",
        remedy: "",
    },
];

/// Events of the daemon, in the log only.
pub const OF_DAEMON: [Kind; 31] = [
    Kind {
        names: &["problem", "warning", "solved"],
        levels: "warn, info",
        means: "what is wrong, or is no more",
        remedy: "[health](health.md)",
    },
    Kind {
        names: &["error"],
        levels: "error",
        means: "the daemon could not do something",
        remedy: "the line says what; `ftp-alg doctor`",
    },
    Kind {
        names: &["healed"],
        levels: "warn",
        means: "another program changed the table, and it is loaded again",
        remedy: "`nft monitor` shows which program",
    },
    Kind { names: &["ready"], levels: "info", means: "the daemon gives verdicts", remedy: "" },
    Kind { names: &["stopped"], levels: "info", means: "it has ended", remedy: "" },
    Kind {
        names: &["restored"],
        levels: "info",
        means: "sessions of an earlier daemon continue",
        remedy: "",
    },
    Kind {
        names: &["transfers-unreported"],
        levels: "info",
        means: "so many transfers, or less, had ended and were not reported yet when the last daemon was killed",
        remedy: "",
    },
    Kind {
        names: &["transfers-interrupted"],
        levels: "info",
        means: "how many sessions had a transfer when the last daemon ended",
        remedy: "",
    },
    Kind {
        names: &["takeover"],
        levels: "info",
        means: "another daemon ends, and this one continues",
        remedy: "",
    },
    Kind {
        names: &["back-end", "fast-path-off"],
        levels: "info",
        means: "how pinholes open; why the fast path is off",
        remedy: "[firewalls](firewalls.md#back-ends), [fast path](fastpath.md)",
    },
    Kind {
        names: &["unconfined"],
        levels: "warn",
        means: "a confinement that this kernel lacks",
        remedy: "",
    },
    Kind {
        names: &["journal-refused"],
        levels: "warn",
        means: "the state is damaged or of another version: it starts without sessions",
        remedy: "clients log in again",
    },
    Kind {
        names: &["broker-ended", "broker-started"],
        levels: "warn, info",
        means: "the [broker](security.md#the-broker) has ended, and is started again within a minute",
        remedy: "the kernel's log, if it happens again",
    },
    Kind {
        names: &["state-file-refused"],
        levels: "warn",
        means: "what stands in place of a state file is none, is too long, or cannot be read: it is renamed",
        remedy: "",
    },
    Kind {
        names: &["journal-recovered"],
        levels: "info",
        means: "the state is written again",
        remedy: "",
    },
    Kind {
        names: &["table-replaced"],
        levels: "warn",
        means: "another daemon's table is replaced",
        remedy: "use one `--state-dir`",
    },
    Kind {
        names: &["table-not-owned"],
        levels: "info",
        means: "other programs can remove the table: owners need Linux 6.9",
        remedy: "",
    },
    Kind {
        names: &["table-left"],
        levels: "warn, info",
        means: "the table stays after the end, for sessions",
        remedy: "start `ftp-alg`, or delete the table",
    },
    Kind {
        names: &["table-updated", "table-intact"],
        levels: "info",
        means: "the table was loaded again",
        remedy: "",
    },
    Kind {
        names: &["reloaded"],
        levels: "info",
        means: "the new configuration is in use",
        remedy: "",
    },
    Kind {
        names: &["reload-refused"],
        levels: "error",
        means: "the file is invalid, or cannot be read now; the old configuration stays",
        remedy: "`ftp-alg check`, `ftp-alg status`",
    },
    Kind {
        names: &["reload-key-fixed"],
        levels: "warn",
        means: "a key that changes only at a restart",
        remedy: "restart",
    },
    Kind { names: &["log-level"], levels: "info", means: "the level was changed", remedy: "" },
    Kind {
        names: &["downtime", "stale-dropped"],
        levels: "warn",
        means: "the daemon did not run for a while: packets may have passed unread",
        remedy: "what else uses the processors?",
    },
    Kind {
        names: &["queue-full"],
        levels: "warn",
        means: "the kernel dropped packets, and their senders retransmit them",
        remedy: "`queue.workers`; the processors",
    },
    Kind {
        names: &["name-resolved", "name-absent", "name-failed"],
        levels: "info, warn",
        means: "an external address that is a name",
        remedy: "[names](names-and-ports.md)",
    },
    Kind {
        names: &["transfer-file-failed"],
        levels: "warn",
        means: "the file of `log.transfers` cannot be written",
        remedy: "room, or rights of the daemon's user; then a reload",
    },
    Kind {
        names: &["data-log-off", "data-log-ended"],
        levels: "info, warn",
        means: "transfers have no bytes",
        remedy: "another program may read the group of nfnetlink_log",
    },
    Kind {
        names: &["metrics-exposed", "metrics-failed"],
        levels: "info, error",
        means: "who can read the metrics and the page; the endpoint does not work",
        remedy: "[metrics](metrics.md)",
    },
    Kind {
        names: &["control-accept-failed", "notify-failed"],
        levels: "warn",
        means: "a command or systemd does not reach the daemon",
        remedy: "",
    },
    Kind {
        names: &["fast-path-not-removed"],
        levels: "warn",
        means: "the BPF program stays pinned",
        remedy: "remove the directory that is named",
    },
];

impl Kind {
    /// Its row in a table of docs/events.md.
    pub fn row(&self) -> String {
        let names: Vec<_> = self.names.iter().map(|name| format!("`{name}`")).collect();
        let Self { levels, means, remedy, .. } = self;
        let remedy = if remedy.is_empty() { String::new() } else { format!("{remedy} ") };
        format!("| {} | {levels} | {means} | {remedy}|\n", names.join(", "))
    }

    /// What has happened, without Markdown.
    pub fn plain_meaning(&self) -> String {
        let mut plain = String::new();
        let mut rest = self.means;
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
}
