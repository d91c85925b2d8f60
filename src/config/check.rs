//! Converts the file's values to a [`Config`], and checks each of them.
//!
//! All problems are found in one pass, each with its key, position, value and what is allowed. Values that are valid
//! but never apply are reported separately.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry as MapEntry},
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ftp_alg_core::policy::{AuthTls, ForeignAddress, NetworkPolicy, PassivePorts, Policy};
use serde::Deserialize;
use toml::{Spanned, Value, de::DeTable};

use super::{
    Backend, Config, Confirm, ExternalSetting, FastPathMode, LineFormat, LogSettings, MAX_WORKERS,
    MetricsSettings, NatSettings, PairSettings, PinholeSettings, QueueSettings, ServerSettings,
    error::{self, ConfigProblem},
    file::{self, File, FileTable, Keys, TABLES},
    hint, shadowed, text,
};

const TIMEOUT_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const MAX_CONTROL_PORTS: usize = 64;
const MAX_SESSIONS: i64 = 1 << 24;
/// Default share of one client: a sixteenth.
const DEFAULT_SHARE_DIVISOR: usize = 16;
/// The minimum allows a few sessions at their own limit (docs/limits.md).
const MEMORY_RANGE: RangeInclusive<usize> = 1 << 20..=1 << 40;
/// Limit of networks, because each session is compared with all of them once.
const MAX_NETWORKS: usize = 1024;
/// Limit of denied ports, because each announced port is compared with all of them.
const MAX_DENY_PORTS: usize = 64;
const MAX_PINHOLES_PER_CLIENT: i64 = 65536;
/// Limit of ranges of passive ports, because the kernel compares each of a server's.
const MAX_PASSIVE_RANGES: usize = 64;
/// Queue numbers are 16 bits wide.
const QUEUE_COUNT: u32 = 65536;

/// How many wrong entries of a list a message names.
const MAX_NAMED: usize = 3;

const EXTERNAL: &str = "\"auto\", the address of a host, or \"dns:NAME\"";
const HOST: &str = "the address of a host, such as \"10.0.0.5\"";
const NETWORKS: &str =
    "a network without host bits, such as \"192.168.150.0/24\", or a list of them";
const EVENT_FILE: &str = "an absolute path of a file";
const LOG_FILE: &str =
    "true, false, or an absolute path of a file, such as \"/var/log/ftp-alg/transfers.json\"";
const PASSWORD_FILE: &str = "an absolute path of a file, such as \"/etc/ftp-alg.password\"";
const STORE: &str =
    "the absolute path of the own store's socket, such as \"/run/redis-ftp-alg/redis.sock\"";
const PEER: &str = "address and port of the other gateway's store, such as \"10.99.0.2:6379\"";
const LISTEN: &str = "an address of this machine and a port, such as \"127.0.0.1:9821\" or \"[::1]:9821\", or a \
                      port of 127.0.0.1, such as 9821";
const PASSIVE_PORTS: &str = "a port, a range of ports or a list of them, from 1024 to 65535, such as \"50000-50100\" or [50000, \"50010-50020\"], or \"any\" for all of them";
/// The passive ports `any`: only a server of others may have all of them.
const ANY_PORT: RangeInclusive<u16> = 1024..=65535;
const FREE_PORTS: &str = "a range of ports from 1024 to 65535, such as \"49152-65535\"";

/// Checks `text`.
pub(super) fn check(text: &str) -> Result<Config, Vec<ConfigProblem>> {
    let (mut document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let problems = errors.iter().map(|error| error::syntax_problem(text, error));
        let mut problems: Vec<_> = problems.collect();
        problems.sort_by_key(|problem| problem.offset);
        // A problem caused by an earlier one in the same line is redundant.
        problems.dedup_by_key(|problem| error::line_number(text, problem.offset));
        return Err(problems);
    }
    let problems = file::remove_invalid_keys(document.get_mut());
    let file = File::deserialize(toml::Deserializer::from(document))
        .map_err(|error| vec![error::syntax_problem(text, &error)])?;
    let checker = Checker { text, problems: problems.into() };
    let config = checker.file(&file);
    let mut problems = checker.problems.into_inner();
    problems.sort_by_key(|problem| problem.offset);
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

/// A table with its name.
#[derive(Clone, Copy)]
struct Section<'a> {
    checker: &'a Checker<'a>,
    name: &'static str,
    keys: &'a Keys,
}

impl<'a> Section<'a> {
    fn entry(self, key: &str) -> Entry<'a> {
        let is_listed =
            |table: &FileTable| table.name == self.name && table.keys().any(|k| k == key);
        debug_assert!(TABLES.iter().any(is_listed), "{key}");
        let value = self.keys.get(key);
        Entry { checker: self.checker, key: format!("{}.{key}", self.name), value }
    }
}

/// The text, and what is wrong in it so far.
struct Checker<'a> {
    text: &'a str,
    problems: RefCell<Vec<ConfigProblem>>,
}

impl Checker<'_> {
    fn file(&self, file: &File) -> Config {
        let default = Config::default();
        let section = |name, keys| Section { checker: self, name, keys };
        let ports = |key: &str, value| Entry { checker: self, key: key.to_owned(), value };
        let [entry, implicit] = [
            ports("control-ports", file.control_ports.as_ref()),
            ports("implicit-tls-ports", file.implicit_tls_ports.as_ref()),
        ];
        let implicit_tls_ports = control_ports(&implicit, Vec::new());
        let mut control_ports = control_ports(&entry, default.control_ports);
        if control_ports.is_empty() {
            entry.refuse("is empty: give at least one port");
        }
        if let Some(port) = implicit_tls_ports.iter().find(|port| control_ports.contains(port)) {
            implicit.refuse(&format!("contains port {port}, as control-ports does: remove one"));
        }
        control_ports.extend(&implicit_tls_ports);
        let nat = nat(section("nat", &file.nat), default.nat);
        let limits = limits(section("policy", &file.policy), &default.limits, &nat);
        let mut queue = queue(section("queue", &file.queue), default.queue);
        let pinhole = pinhole(section("pinhole", &file.pinhole), default.pinhole);
        let networks = self.networks(&file.network, &limits, &nat, &control_ports);
        let servers = self.servers(&file.server, &control_ports, &limits);
        let metrics = metrics(section("metrics", &file.metrics));
        let log = log(section("log", &file.log));
        let pair = file.pair.as_ref().and_then(|table| self.pair(table));
        if pair.is_some() {
            queue.fast_path = FastPathMode::OffInPair;
        }
        if self.problems.borrow().is_empty() {
            self.refuse_without_effect(&networks, &file.network);
        }
        Config {
            control_ports,
            implicit_tls_ports,
            queue,
            pinhole,
            nat,
            limits,
            networks,
            servers,
            metrics,
            log,
            pair,
        }
    }

    fn pair(&self, table: &Spanned<Keys>) -> Option<PairSettings> {
        let file = Section { checker: self, name: "pair", keys: table.get_ref() };
        let [store, peer] = ["store", "peer"].map(|key| file.entry(key));
        for (entry, allowed) in [(&store, STORE), (&peer, PEER)] {
            if entry.value.is_none() {
                self.refuse_table(&entry.key, table, format!("is missing: give {allowed}"));
            }
        }
        let store = store.optional(STORE, file_path);
        let peer = peer.optional(PEER, |value| {
            let peer: SocketAddr = value.as_str()?.parse().ok()?;
            (peer.port() != 0 && !peer.ip().is_unspecified()).then_some(peer)
        });
        let confirms = [
            ("all", Confirm::All),
            ("announcements", Confirm::Announcements),
            ("none", Confirm::None),
        ];
        let confirm = file.entry("confirm").choice(Confirm::All, &confirms);
        Some(PairSettings { store: store?, peer: peer?, confirm })
    }

    /// A network without a key inherits `[policy]`, which is `default`.
    fn networks(
        &self,
        files: &[Spanned<Keys>],
        default: &Policy,
        nat: &NatSettings,
        control_ports: &[u16],
    ) -> Vec<NetworkPolicy> {
        if let Some(beyond) = files.get(MAX_NETWORKS) {
            let message = format!(
                "the file has {} of these tables: give at most {MAX_NETWORKS}",
                files.len()
            );
            self.refuse_table("network", beyond, message);
        }
        let network = |table: &Spanned<Keys>| {
            let file = Section { checker: self, name: "network", keys: table.get_ref() };
            let sides = ["clients", "servers"].map(|key| file.entry(key));
            if sides.iter().all(|entry| entry.value.is_none()) {
                let message = "clients and servers are missing: give at least one of them";
                self.refuse_table("network", table, message.to_owned());
            }
            let [clients, servers] =
                sides.map(|entry| entry.value(Vec::new(), NETWORKS, text::networks));
            let inspect = file.entry("inspect").flag(true);
            let is_policy = |key: &&String| !["clients", "servers", "inspect"].contains(&&***key);
            for key in table.get_ref().keys().filter(|key| !inspect && is_policy(key)) {
                let message = "has no effect with inspect = false: remove one of the two keys";
                file.entry(key).refuse(message);
            }
            let any_interface = file.entry("any-interface").flag(false);
            let keys = policy_keys(file, default, nat);
            let (passive_ports, passive_ports_are_any) =
                passive_ports(&file.entry("passive-ports"), control_ports, &keys);
            let policy = Policy { any_interface, passive_ports, passive_ports_are_any, ..keys };
            NetworkPolicy { clients, servers, inspect, policy }
        };
        files.iter().map(network).collect()
    }

    /// Refuses valid tables that never apply, or contradict others.
    fn refuse_without_effect(&self, networks: &[NetworkPolicy], files: &[Spanned<Keys>]) {
        let line = |at: usize| error::line_number(self.text, files[at].span().start);
        for (earlier, later) in shadowed::shadowed(networks) {
            let message = match earlier {
                Some(one) => format!(
                    "never applies, because the [[network]] of line {} has all of its connections: move it before that \
                     one, or remove it",
                    line(one)
                ),
                None => "never applies, because the [[network]] tables before it together have all of its connections: \
                         move it before them, or remove it"
                    .to_owned(),
            };
            self.refuse_table("network", &files[later], message);
        }
        for (earlier, later) in shadowed::other_ports(networks) {
            let message = format!(
                "differs from that of the [[network]] of line {}, which has other clients of the same servers: give the same \
                 ports, because the rules know one set of them for each server",
                line(earlier)
            );
            self.refuse_table("network.passive-ports", &files[later], message);
        }
    }

    fn servers(
        &self,
        files: &[Spanned<Keys>],
        control_ports: &[u16],
        limits: &Policy,
    ) -> Vec<ServerSettings> {
        let mut servers: Vec<ServerSettings> = Vec::new();
        for table in files {
            let file = Section { checker: self, name: "server", keys: table.get_ref() };
            let entry = file.entry("address");
            if entry.value.is_none() {
                self.refuse_table(&entry.key, table, format!("is missing: give {HOST}"));
            }
            let host = |value: &Value| text::host(value.as_str()?);
            let Some(address) = entry.optional(HOST, host) else { continue };
            if servers.iter().any(|server| server.address == address) {
                entry.refuse("already has a [[server]]: give each address once");
            }
            let external = file.entry("external-address");
            let external_address = external.external_address();
            if let Some(ExternalSetting::Address(other)) = external_address
                && other.is_ipv4() != address.is_ipv4()
            {
                external.refuse(&format!(
                    "is not of the same address family as the server's address {address}"
                ));
            }
            let passive_ports = file.entry("passive-ports");
            servers.push(ServerSettings {
                address,
                external_address,
                replace_foreign_address: file.entry("replace-foreign-address").flag(false),
                passive_ports: self::passive_ports(&passive_ports, control_ports, limits).0,
            });
        }
        servers
    }

    /// Refuses a whole table.
    fn refuse_table(&self, key: &str, table: &Spanned<Keys>, message: String) {
        let (offset, key) = (table.span().start, Some(key.to_owned()));
        self.problems.borrow_mut().push(ConfigProblem { offset, key, message });
    }
}

fn control_ports(entry: &Entry<'_>, default: Vec<u16>) -> Vec<u16> {
    let port = |item: &Value| u16::try_from(integer_in(item, 1..=65535)?).ok();
    let wrong = wrong_entries(entry, |item| port(item).is_some());
    let allowed = format!("a list of ports from 1 to 65535, such as [21, 2121]{wrong}");
    let read = |value: &Value| value.as_array()?.iter().map(port).collect();
    let ports: Vec<_> = entry.value(default, &allowed, read);
    if ports.len() > MAX_CONTROL_PORTS {
        entry.refuse(&format!("has {} ports: give at most {MAX_CONTROL_PORTS}", ports.len()));
    }
    let mut first = HashMap::new();
    for (number, item) in numbered_items(entry).take(MAX_CONTROL_PORTS) {
        let Some(port) = port(item) else { continue };
        match first.entry(port) {
            MapEntry::Vacant(vacant) => drop(vacant.insert(number)),
            MapEntry::Occupied(known) => {
                let entries = format!("entries {} and {number}", known.get());
                entry.refuse(&format!("contains port {port} twice, as {entries}: remove one"));
            }
        }
    }
    ports
}

fn queue(file: Section<'_>, default: QueueSettings) -> QueueSettings {
    let [first, queues] = ["number", "workers"].map(|key| file.entry(key));
    let number = first.number(default.number, 0..=65535);
    let allowed = format!("a whole number from 1 to {MAX_WORKERS}, or \"auto\"");
    let workers = queues.value(default.workers, &allowed, |value| {
        if value.as_str() == Some("auto") {
            return Some(None);
        }
        integer_in(value, 1..=MAX_WORKERS.into())?.try_into().ok().map(Some)
    });
    let count = workers.unwrap_or(1);
    if u32::from(number) + u32::from(count) > QUEUE_COUNT {
        let value = first.value.or(queues.value);
        Entry { value, ..first }.refuse(&format!(
            "leaves fewer than {count} queue numbers up to 65535: choose a lower number or fewer workers"
        ));
    }
    // Earlier versions had this key. It has no effect any more.
    file.entry("fanout").choice((), &[("connection", ()), ("cpu", ())]);
    let fast_paths = [("auto", FastPathMode::Auto), ("off", FastPathMode::Off)];
    let fast_path = file.entry("fast-path").choice(default.fast_path, &fast_paths);
    QueueSettings { number, workers, fast_path }
}

fn pinhole(file: Section<'_>, default: PinholeSettings) -> PinholeSettings {
    let backends = [
        ("auto", None),
        ("nftables", Some(Backend::Nftables)),
        ("conntrack", Some(Backend::Conntrack)),
    ];
    let backend = file.entry("backend").choice(default.backend, &backends);
    let allowed = "a duration from 1s to 1h, such as \"30s\", \"1500ms\" or \"2m\"";
    let timeout = file.entry("timeout").value(default.timeout, allowed, |value| {
        text::duration(value.as_str()?).filter(|timeout| TIMEOUT_RANGE.contains(timeout))
    });
    let [mask, bit] = ["mark-mask", "mark"].map(|key| file.entry(key));
    let (given_mask, given) =
        (mask.mark_bits(default.mark_mask, 3), bit.mark_bits(default.mark, 1));
    let [mark_mask, mark] = [given_mask.unwrap_or_default(), given.unwrap_or_default()];
    if mark & !mark_mask != 0 && given_mask.is_some() {
        match bit.value {
            Some(_) => bit.refuse(&format!("is not a bit of mark-mask {mark_mask:#x}")),
            None => mask
                .refuse(&format!("does not contain the default mark {mark:#x}: set mark as well")),
        }
    }
    PinholeSettings { backend, timeout, mark, mark_mask }
}

fn nat(file: Section<'_>, default: NatSettings) -> NatSettings {
    let external_address = file.entry("external-address").external_address();
    NatSettings {
        external_address: external_address.unwrap_or(default.external_address),
        port_range: file.entry("port-range").value(default.port_range, FREE_PORTS, ports),
    }
}

fn limits(file: Section<'_>, default: &Policy, nat: &NatSettings) -> Policy {
    let limit = 1..=MAX_SESSIONS;
    let max_sessions = file.entry("max-sessions").number(default.max_sessions, limit.clone());
    let share = (max_sessions / DEFAULT_SHARE_DIVISOR).max(1);
    let allowed =
        "a size from 1MiB to 1TiB, such as \"64MiB\", \"1536KiB\", \"1GiB\" or a number of bytes";
    Policy {
        max_sessions,
        max_sessions_per_client: file.entry("max-sessions-per-client").number(share, limit),
        memory: file.entry("memory").value(default.memory, allowed, |value| {
            text::bytes(value).filter(|bytes| MEMORY_RANGE.contains(bytes))
        }),
        ..policy_keys(file, default, nat)
    }
}

/// The keys that `[policy]` and each `[[network]]` may have.
fn policy_keys(file: Section<'_>, default: &Policy, nat: &NatSettings) -> Policy {
    let foreign = [
        ("refuse", ForeignAddress::Refuse),
        ("pass", ForeignAddress::Pass),
        ("allow", ForeignAddress::Allow),
    ];
    let auth_tls = [("pass", AuthTls::Pass), ("refuse", AuthTls::Refuse)];
    let deny_ports = deny_ports(&file.entry("deny-ports"), nat);
    Policy {
        foreign_address: file.entry("foreign-address").choice(default.foreign_address, &foreign),
        min_data_port: file.entry("min-data-port").number(default.min_data_port, 1..=65535),
        deny_ports: deny_ports.unwrap_or_else(|| Arc::clone(&default.deny_ports)),
        require_login: file.entry("require-login").flag(default.require_login),
        auth_tls: file.entry("auth-tls").choice(default.auth_tls, &auth_tls),
        max_pinholes_per_client: file
            .entry("max-pinholes-per-client")
            .number(default.max_pinholes_per_client, 1..=MAX_PINHOLES_PER_CLIENT),
        ..default.clone()
    }
}

fn deny_ports(entry: &Entry<'_>, nat: &NatSettings) -> Option<Arc<[RangeInclusive<u16>]>> {
    let wrong = wrong_entries(entry, |item| text::ports(item).is_some());
    let allowed =
        format!("a list of ports and ranges of ports, such as [1433, \"5900-5999\"]{wrong}");
    let read = |value: &Value| value.as_array()?.iter().map(text::ports).collect();
    let ranges: Arc<[_]> = entry.optional(&allowed, read)?;
    if ranges.len() > MAX_DENY_PORTS {
        entry.refuse(&format!("has {} entries: give at most {MAX_DENY_PORTS}", ranges.len()));
    }
    let denied = |port| ranges.iter().any(|range: &RangeInclusive<u16>| range.contains(&port));
    if nat.port_range.clone().all(denied) {
        entry.refuse("denies every port of nat.port-range: leave at least one");
    }
    Some(ranges)
}

/// The ports to which clients with an encrypted session may connect, without those of `deny-ports`, and whether they are
/// `any`; none without the key.
fn passive_ports(
    entry: &Entry<'_>,
    control_ports: &[u16],
    Policy { deny_ports, .. }: &Policy,
) -> (PassivePorts, bool) {
    let read = |value: &Value| match value.as_str() {
        Some("any") => Some(vec![ANY_PORT]),
        _ => text::port_list(value)
            .filter(|list| list.iter().all(|range| ANY_PORT.contains(range.start()))),
    };
    let Some(mut ranges) = entry.optional(PASSIVE_PORTS, read) else { return Default::default() };
    let are_any = ranges == [ANY_PORT];
    let is_in = |port: &&u16| ranges.iter().any(|range| range.contains(port));
    if let Some(port) = control_ports.iter().find(is_in).filter(|_| !are_any) {
        entry.refuse(&format!("contains the control port {port}: choose other ports"));
    }
    if ranges.len() > MAX_PASSIVE_RANGES {
        entry.refuse(&format!("has {} ranges: give at most {MAX_PASSIVE_RANGES}", ranges.len()));
    }
    let control_ports = control_ports.iter().filter(|_| are_any).map(|port| *port..=*port);
    for removed in deny_ports.iter().cloned().chain(control_ports) {
        text::remove_ports(&mut ranges, &removed);
    }
    if ranges.is_empty() {
        entry.refuse("has no port that deny-ports leaves: choose other ports");
    }
    (ranges.into(), are_any)
}

fn metrics(file: Section<'_>) -> MetricsSettings {
    MetricsSettings {
        listen: file.entry("listen").optional(LISTEN, text::listen_address),
        page: file.entry("page").flag(true),
        password_file: file.entry("password-file").optional(PASSWORD_FILE, file_path),
    }
}

fn log(file: Section<'_>) -> LogSettings {
    let read = |value: &Value| match value.as_bool() {
        Some(transfers) => Some((transfers, None)),
        None => Some((true, Some(file_path(value)?))),
    };
    let (transfers, transfer_file) = file.entry("transfers").value((true, None), LOG_FILE, read);
    let [format, entry] = ["transfers-format", "events"].map(|key| file.entry(key));
    let formats = [("json", LineFormat::Json), ("xferlog", LineFormat::Xferlog)];
    let transfer_format = format.choice(LineFormat::Json, &formats);
    if transfer_format == LineFormat::Xferlog && transfer_file.is_none() {
        format.refuse("needs log.transfers to be the path of a file");
    }
    let events = entry.optional(EVENT_FILE, file_path);
    if events.is_some() && events == transfer_file {
        entry.refuse("is the file of log.transfers, too");
    }
    LogSettings { transfers, transfer_file, transfer_format, events }
}

/// A key, and its value if the file has one.
struct Entry<'a> {
    checker: &'a Checker<'a>,
    /// The key with its table.
    key: String,
    value: Option<&'a Spanned<Value>>,
}

impl Entry<'_> {
    fn external_address(&self) -> Option<ExternalSetting> {
        self.optional(EXTERNAL, |value| text::external_address(value.as_str()?))
    }

    /// A mark or mask of exactly `count` bits; `None` if it is refused.
    fn mark_bits(&self, default: u32, count: u32) -> Option<u32> {
        let bits = if count == 1 { "one bit" } else { "three bits" };
        let allowed = format!("a 32-bit number with exactly {bits} set, such as {default:#x}");
        let given = self.optional(&allowed, |value| {
            let number = u32::try_from(value.as_integer()?).ok()?;
            (number.count_ones() == count).then_some(number)
        });
        given.or_else(|| self.value.is_none().then_some(default))
    }

    fn flag(&self, default: bool) -> bool {
        self.value(default, "true or false", Value::as_bool)
    }

    fn number<T: TryFrom<i64>>(&self, default: T, range: RangeInclusive<i64>) -> T {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        self.value(default, &allowed, |value| integer_in(value, range.clone())?.try_into().ok())
    }

    fn choice<T: Copy>(&self, default: T, choices: &[(&str, T)]) -> T {
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let allowed = format!("one of {}", names.join(", "));
        self.value(default, &allowed, |value| {
            let text = value.as_str()?;
            choices.iter().find(|(name, _)| *name == text).map(|&(_, choice)| choice)
        })
    }

    /// The value, or `default` if the key is absent, or its value one that `read` refuses.
    fn value<T>(&self, default: T, allowed: &str, read: impl Fn(&Value) -> Option<T>) -> T {
        self.optional(allowed, read).unwrap_or(default)
    }

    fn optional<T>(&self, allowed: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let given = self.value?.get_ref();
        let value = read(given);
        if value.is_none() {
            let meant = hint::suggestion(given, |value| read(value).is_some());
            let meant = meant.map_or(String::new(), |text| {
                format!("; did you mean {}?", error::shown_value(&text, 0..text.len()))
            });
            self.refuse(&format!("is not {allowed}{meant}"));
        }
        value
    }

    /// Refuses the value, if the file has it.
    fn refuse(&self, message: &str) {
        let Some(span) = self.value.map(Spanned::span) else { return };
        let (offset, key) = (span.start, Some(self.key.clone()));
        let message = format!("{} {message}", error::shown_value(self.checker.text, span));
        self.checker.problems.borrow_mut().push(ConfigProblem { offset, key, message });
    }
}

/// The items of a list, counted from 1.
fn numbered_items<'a>(entry: &Entry<'a>) -> impl Iterator<Item = (usize, &'a Value)> {
    let items = entry.value.and_then(|value| value.get_ref().as_array());
    (1..).zip(items.into_iter().flatten())
}

/// The end of a message about a list, which names the first invalid items.
fn wrong_entries(entry: &Entry<'_>, is_valid: impl Fn(&Value) -> bool) -> String {
    let wrong = numbered_items(entry).filter(|(_, item)| !is_valid(item)).take(MAX_NAMED);
    let named = wrong.map(|(number, item)| {
        let text = item.to_string();
        format!("entry {number} is {}", error::shown_value(&text, 0..text.len()))
    });
    let named: Vec<String> = named.collect();
    if named.is_empty() { String::new() } else { format!(": {}", named.join(", ")) }
}

fn integer_in(value: &Value, range: RangeInclusive<i64>) -> Option<i64> {
    value.as_integer().filter(|number| range.contains(number))
}

/// The absolute path of a file.
fn file_path(value: &Value) -> Option<PathBuf> {
    let path = Path::new(value.as_str()?);
    (path.is_absolute() && path.file_name().is_some()).then(|| path.to_owned())
}

/// A range above 1023; data connections never use lower ports.
fn ports(value: &Value) -> Option<RangeInclusive<u16>> {
    text::port_range(value.as_str()?).filter(|range| *range.start() >= 1024)
}
