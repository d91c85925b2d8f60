//! The checks of `doctor` on one of two gateways: whether the other one can take over, and whether connections survive that.

use std::{fs, path::Path};

use ftp_alg_firewall::Firewall;

use crate::daemon::{
    health::{Check, ProblemName},
    snapshot::PairStatus,
};

const PAIR: &str = "two gateways";
const CONNTRACKD: &str = "conntrackd.conf";
const KEEPALIVED: &str = "keepalived.conf";
/// What keepalived.conf needs.
const NOTIFY: &str = "notify \"/usr/lib/ftp-alg/notify\" root";

/// What conntrackd.conf needs in its filter.
const STATES: &str =
    "State Accept { ESTABLISHED FIN_WAIT CLOSE_WAIT LAST_ACK TIME_WAIT CLOSED for TCP }";

/// What a pair needs of this machine. A file that cannot be read is empty.
#[derive(Default)]
pub(super) struct Machine {
    conntrackd: String,
    /// With the scripts and files that it names.
    keepalived: String,
    answers_arp: bool,
    drops_unknown: bool,
    tracks_link: bool,
    masquerades: bool,
}

impl Machine {
    pub(super) fn read(firewall: &Firewall) -> Self {
        let is_off = |name: &str| {
            let value = fs::read_to_string(Path::new("/proc/sys/net").join(name));
            value.is_ok_and(|value| value.trim() == "0")
        };
        Self {
            conntrackd: read("/etc/conntrackd/conntrackd.conf"),
            keepalived: with_named_files(&read("/etc/keepalived/keepalived.conf")),
            answers_arp: is_off("ipv4/conf/all/arp_ignore"),
            drops_unknown: is_off("netfilter/nf_conntrack_tcp_loose")
                || firewall.has_rule_with(&["invalid", "drop"]),
            tracks_link: !firewall.has_rule_with(&["notrack"]),
            masquerades: firewall.has_rule_with(&["masquerade"]),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A configuration of keepalived, with the files that it names.
fn with_named_files(text: &str) -> String {
    let text: Vec<_> = text.lines().filter(|line| !line.trim().starts_with(['#', '!'])).collect();
    let words = text.iter().flat_map(|line| line.split_whitespace());
    let paths = words.map(|word| word.trim_matches('"')).filter(|word| word.starts_with('/'));
    text.join("\n") + &paths.map(read).collect::<String>()
}

/// All checks of the gateway of `pair`, whose daemon is of this version.
pub(super) fn checks(pair: &PairStatus, version: &str, machine: &Machine) -> Vec<Check> {
    let mut checks = faults(pair, version, machine);
    if checks.is_empty() {
        let says = format!("this one is {}, and the other one can take over", pair.role);
        checks.push(Check::ok(PAIR, "pair", says));
    }
    checks
}

fn faults(pair: &PairStatus, version: &str, machine: &Machine) -> Vec<Check> {
    use ProblemName::{PairAlone as Alone, PairSetup as Setup};

    let Machine { conntrackd, keepalived, .. } = machine;
    let other = pair.peer_version.as_deref();
    // The daemon reports a store of its own that it cannot use.
    let is_connected = if pair.role == "active" { pair.replica } else { pair.lag.is_some() };
    let lacks_replica = pair.store == "ok" && !is_connected;
    let is_other_version = other.is_some_and(|other| other != version);
    let is_other_configuration = pair.same_configuration == Some(false);
    let lacks_mode = !conntrackd.contains("Mode FTFW");
    let sends_half_open = !conntrackd.contains("State Accept");
    let tracks_windows = conntrackd.contains("TCPWindowTracking On");
    let lacks_script = !keepalived.contains("ftp-alg activate");
    let cuts_link = machine.drops_unknown && machine.tracks_link;
    let rows = [
        (
            pair.peer_failure.is_some(),
            Alone,
            "link",
            "the other store is silent",
            "ping its address",
        ),
        (lacks_replica, Alone, "replica", "there is none", "systemctl status redis-ftp-alg"),
        (other.is_none(), Alone, "other ftp-alg", "is not seen", "systemctl status ftp-alg, there"),
        (is_other_version, Alone, "version", "it differs", "upgrade the standby first"),
        (is_other_configuration, Setup, "configuration", "it differs", "compare /etc/ftp-alg.toml"),
        (lacks_mode, Setup, CONNTRACKD, "has no mode FTFW", "Mode FTFW"),
        (tracks_windows, Setup, CONNTRACKD, "tracks windows", "TCPWindowTracking Off"),
        (sends_half_open, Setup, CONNTRACKD, "sends half-open connections", STATES),
        (lacks_script, Setup, KEEPALIVED, "does not call ftp-alg activate", NOTIFY),
        (machine.masquerades, Setup, "masquerade", "ends connections", "use snat to"),
        (cuts_link, Setup, "ct state invalid", "cuts off the store", "notrack, on the link"),
        (machine.answers_arp, Setup, "arp_ignore", "is 0", "net.ipv4.conf.all.arp_ignore = 1"),
    ];
    let wrong = rows.into_iter().filter(|(is_wrong, ..)| *is_wrong);
    let check = |(_, problem, name, says, mend): (_, _, &str, &str, &str)| {
        Check::problem(PAIR, name, problem, says).advice([mend.to_owned()])
    };
    wrong.map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of all checks.
    fn found(change: impl Fn(&mut PairStatus, &mut Machine)) -> Vec<String> {
        let mut pair = PairStatus::healthy();
        let mut machine = Machine {
            conntrackd: include_str!("../setup/pair/conntrackd.conf").to_owned(),
            keepalived: "notify_master \"/usr/sbin/ftp-alg activate\"".to_owned(),
            ..Machine::default()
        };
        change(&mut pair, &mut machine);
        checks(&pair, "1.0", &machine).into_iter().map(|check| check.name).collect()
    }

    #[test]
    fn each_fault_of_a_pair_is_found() {
        assert_eq!(found(|_, _| ()), ["pair"]);
        let standby = |pair: &mut PairStatus| {
            (pair.role, pair.replica) = ("standby".to_owned(), false);
        };
        assert_eq!(found(|pair, _| standby(pair)), ["pair"]);
        type Change<'a> = &'a dyn Fn(&mut PairStatus, &mut Machine);
        let cases: [(&str, Change<'_>); 13] = [
            ("link", &|pair, _| pair.peer_failure = Some("refused".to_owned())),
            ("replica", &|pair, _| pair.replica = false),
            ("replica", &|pair, _| {
                standby(pair);
                pair.lag = None;
            }),
            ("other ftp-alg", &|pair, _| pair.peer_version = None),
            ("version", &|pair, _| pair.peer_version = Some("1.1".to_owned())),
            ("configuration", &|pair, _| pair.same_configuration = Some(false)),
            (CONNTRACKD, &|_, machine| {
                machine.conntrackd = machine.conntrackd.replace("FTFW", "NOTRACK")
            }),
            (CONNTRACKD, &|_, machine| {
                machine.conntrackd = machine.conntrackd.replace("State Accept", "#")
            }),
            (CONNTRACKD, &|_, machine| machine.conntrackd += "TCPWindowTracking On"),
            (KEEPALIVED, &|_, machine| machine.keepalived.clear()),
            ("masquerade", &|_, machine| machine.masquerades = true),
            ("ct state invalid", &|_, machine| {
                (machine.drops_unknown, machine.tracks_link) = (true, true)
            }),
            ("arp_ignore", &|_, machine| machine.answers_arp = true),
        ];
        for (expected, change) in cases {
            assert_eq!(found(change), [expected]);
        }
        // The daemon reports such a store, and nothing else is known then.
        let lost = |pair: &mut PairStatus, _: &mut Machine| {
            (pair.store, pair.replica) = ("refused".to_owned(), false);
        };
        assert_eq!(found(lost), ["pair"]);
    }

    #[test]
    fn scripts_that_keepalived_calls_are_read() {
        let script = tempfile::NamedTempFile::new().unwrap();
        fs::write(script.path(), "ftp-alg activate").unwrap();
        let path = script.path().display();
        for (line, is_called) in [
            (format!("  notify \"{path}\" root"), true),
            (format!("notify_master {path}"), true),
            (format!(" # notify {path}"), false),
            (format!("! notify {path}"), false),
        ] {
            assert_eq!(with_named_files(&line).contains("ftp-alg activate"), is_called, "{line}");
        }
    }
}
