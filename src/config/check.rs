//! Converts the file's values to a [`Config`], and checks each of them.
//!
//! All problems are found in one pass, each with its key, position, value and what is allowed. Values that are valid
//! but not supported by this version are reported separately.

use std::{
    collections::HashSet, net::IpAddr, ops::RangeInclusive, path::Path, sync::Arc, time::Duration,
};

use ftp_alg_core::policy::{AuthTls, ForeignAddress, NetworkPolicy, Policy};
use serde::Deserialize;
use toml::{Spanned, Value, de::DeTable};

use super::{
    Backend, Config, ExternalSetting, Fanout, FastPath, MAX_WORKERS, Nat, Pinhole, Problem, Queue,
    Server,
    error::{self, InvalidKey},
    file::{self, File, SpannedValue},
    hint, invalid_keys, text,
};

const TIMEOUT_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const MAX_CONTROL_PORTS: usize = 64;
const MAX_SESSIONS: i64 = 1 << 24;
/// Default share of one client: a sixteenth.
const DEFAULT_SHARE_DIVISOR: usize = 16;
/// The minimum allows a few sessions at their own limit (docs/limits.md).
const MEMORY_RANGE: RangeInclusive<usize> = 1 << 20..=1 << 40;
/// Each session is compared with all of them, once.
const MAX_NETWORKS: usize = 1024;
/// Each announced port is compared with all of them.
const MAX_DENY_PORTS: usize = 64;
const MAX_PINHOLES_PER_CLIENT: i64 = 65536;
/// Queue numbers are 16 bits wide.
const QUEUE_COUNT: u32 = 65536;

const SERVER_ADDRESS: &str = "server.address";
const SERVER_EXTERNAL: &str = "server.external-address";
const SERVER_PORTS: &str = "server.passive-ports";
const EXTERNAL: &str = "\"auto\", the address of a host, or \"dns:NAME\"";
const HOST: &str = "the address of a host, such as \"10.0.0.5\"";
const NETWORKS: &str =
    "a network without host bits, such as \"192.168.150.0/24\", or a list of them";
const FREE_PORTS: &str = "a range of ports from 1024 to 65535, such as \"49152-65535\"";

/// Checks `text`; problems name it `path`.
pub(super) fn check(text: &str, path: &Path) -> Result<Config, Vec<Problem>> {
    let syntax = |errors: Vec<toml::de::Error>| -> Vec<Problem> {
        errors.iter().map(|error| error::syntax_problem(path, text, error)).collect()
    };
    let (mut document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let mut problems = syntax(errors);
        problems.sort_by_key(|problem| (problem.line, problem.column));
        // A problem caused by an earlier one in the same line is redundant.
        problems.dedup_by_key(|problem| problem.line);
        return Err(problems);
    }
    let invalid = invalid_keys::remove_invalid_keys(document.get_mut());
    let problems = invalid.into_iter().map(|InvalidKey { key, offset, message }| {
        error::problem_at(path, text, offset, Some(error::shown_value(&key, 0..key.len())), message)
    });
    let problems = problems.collect();
    let file = File::deserialize(toml::Deserializer::from(document))
        .map_err(|error| syntax(vec![error]))?;
    let mut checker = Checker { path, text, problems, unsupported: Vec::new() };
    let mut config = checker.check_file(&file);
    if checker.problems.is_empty() {
        config.unsupported = checker.unsupported;
        Ok(config)
    } else {
        checker.problems.sort_by_key(|problem| (problem.line, problem.column));
        Err(checker.problems)
    }
}

struct Checker<'a> {
    path: &'a Path,
    text: &'a str,
    problems: Vec<Problem>,
    unsupported: Vec<Problem>,
}

impl Checker<'_> {
    fn check_file(&mut self, file: &File) -> Config {
        let default = Config::default();
        let control_ports = self.control_ports(&file.control_ports, default.control_ports);
        let servers = self.servers(&file.server, &control_ports);
        let nat = self.nat(&file.nat, default.nat);
        let limits = self.limits(&file.policy, default.limits, &nat);
        Config {
            queue: self.queue(&file.queue, default.queue),
            pinhole: self.pinhole(&file.pinhole, default.pinhole),
            networks: self.networks(&file.network, &limits, &nat),
            nat,
            limits,
            metrics: self.metrics(&file.metrics),
            control_ports,
            servers,
            unsupported: Vec::new(),
        }
    }

    fn control_ports(&mut self, entry: &SpannedValue, default: Vec<u16>) -> Vec<u16> {
        let key = "control-ports";
        let allowed = "a list of ports from 1 to 65535, such as [21, 2121]";
        let ports = self.value(key, entry, default, allowed, |value| {
            let items = value.as_array()?.iter();
            items.map(|item| integer_in(item, 1..=65535)?.try_into().ok()).collect()
        });
        let Some(entry) = entry else { return ports };
        if ports.is_empty() {
            self.refuse(key, entry, "is empty: give at least one port");
        }
        if ports.len() > MAX_CONTROL_PORTS {
            let message = format!("has {} ports: give at most {MAX_CONTROL_PORTS}", ports.len());
            self.refuse(key, entry, &message);
        }
        let mut seen = HashSet::new();
        if let Some(twice) = ports.iter().find(|&port| !seen.insert(port)) {
            self.refuse(key, entry, &format!("contains port {twice} twice: remove one"));
        }
        ports
    }

    fn queue(&mut self, file: &file::Queue, default: Queue) -> Queue {
        let number = self.number("queue.number", &file.number, default.number, 0..=65535);
        let allowed = format!("a whole number from 1 to {MAX_WORKERS}, or \"auto\"");
        let workers =
            self.value("queue.workers", &file.workers, default.workers, &allowed, |value| {
                if value.as_str() == Some("auto") {
                    return Some(None);
                }
                integer_in(value, 1..=MAX_WORKERS.into())?.try_into().ok().map(Some)
            });
        let count = workers.unwrap_or(1);
        let end = u32::from(number) + u32::from(count);
        if let (true, Some(entry)) =
            (end > QUEUE_COUNT, file.number.as_ref().or(file.workers.as_ref()))
        {
            let message = format!(
                "leaves fewer than {count} queue numbers up to 65535: choose a lower number or fewer workers"
            );
            self.refuse("queue.number", entry, &message);
        }
        let fanout = self.choice("queue.fanout", &file.fanout, default.fanout, &FANOUTS);
        let fast_path =
            self.choice("queue.fast-path", &file.fast_path, default.fast_path, &FAST_PATHS);
        Queue { number, workers, fanout, fast_path }
    }

    fn pinhole(&mut self, file: &file::Pinhole, default: Pinhole) -> Pinhole {
        let backend = self.choice("pinhole.backend", &file.backend, default.backend, &BACKENDS);
        let allowed = "a duration from 1s to 1h, such as \"30s\", \"1500ms\" or \"2m\"";
        let timeout = self.value("pinhole.timeout", &file.timeout, default.timeout, allowed, |v| {
            text::duration(v.as_str()?).filter(|timeout| TIMEOUT_RANGE.contains(timeout))
        });
        let problems_before = self.problems.len();
        let mark_mask = self.mark_bits("pinhole.mark-mask", &file.mark_mask, default.mark_mask, 3);
        let mark = self.mark_bits("pinhole.mark", &file.mark, default.mark, 1);
        if mark & !mark_mask != 0 && self.problems.len() == problems_before {
            match (&file.mark, &file.mark_mask) {
                (Some(entry), _) => {
                    let message = format!("is not a bit of mark-mask {mark_mask:#x}");
                    self.refuse("pinhole.mark", entry, &message);
                }
                (None, Some(entry)) => {
                    let message =
                        format!("does not contain the default mark {mark:#x}: set mark as well");
                    self.refuse("pinhole.mark-mask", entry, &message);
                }
                (None, None) => {}
            }
        }
        Pinhole { backend, timeout, mark, mark_mask }
    }

    fn nat(&mut self, file: &file::Nat, default: Nat) -> Nat {
        let key = "nat.external-address";
        let external_address =
            self.external_address(key, &file.external_address).unwrap_or(default.external_address);
        let port_range =
            self.value("nat.port-range", &file.port_range, default.port_range, FREE_PORTS, ports);
        Nat { external_address, port_range }
    }

    fn limits(&mut self, file: &file::Policy, default: Policy, nat: &Nat) -> Policy {
        let max_sessions = self.number(
            "policy.max-sessions",
            &file.max_sessions,
            default.max_sessions,
            1..=MAX_SESSIONS,
        );
        let max_sessions_per_client = self.number(
            "policy.max-sessions-per-client",
            &file.max_sessions_per_client,
            (max_sessions / DEFAULT_SHARE_DIVISOR).max(1),
            1..=MAX_SESSIONS,
        );
        let allowed = "a size from 1MiB to 1TiB, such as \"64MiB\", \"1536KiB\", \"1GiB\" or a number of bytes";
        let memory = self.value("policy.memory", &file.memory, default.memory, allowed, |value| {
            text::bytes(value).filter(|bytes| MEMORY_RANGE.contains(bytes))
        });
        let keys = self.policy_keys(&file.policy_keys(), &default, nat);
        Policy { max_sessions, max_sessions_per_client, memory, ..keys }
    }

    /// The keys that `[policy]` and each `[[network]]` may have.
    fn policy_keys(&mut self, file: &file::PolicyKeys<'_>, default: &Policy, nat: &Nat) -> Policy {
        let key = |name| format!("{}.{name}", file.table);
        Policy {
            foreign: self.choice(
                &key("foreign-address"),
                file.foreign_address,
                default.foreign,
                &[
                    ("refuse", ForeignAddress::Refuse),
                    ("pass", ForeignAddress::Pass),
                    ("allow", ForeignAddress::Allow),
                ],
            ),
            min_data_port: self.number(
                &key("min-data-port"),
                file.min_data_port,
                default.min_data_port,
                1..=65535,
            ),
            deny_ports: self
                .deny_ports(&key("deny-ports"), file.deny_ports, nat)
                .unwrap_or_else(|| Arc::clone(&default.deny_ports)),
            require_login: self.flag(
                &key("require-login"),
                file.require_login,
                default.require_login,
            ),
            auth_tls: self.choice(
                &key("auth-tls"),
                file.auth_tls,
                default.auth_tls,
                &[("pass", AuthTls::Pass), ("refuse", AuthTls::Refuse)],
            ),
            max_pinholes_per_client: self.number(
                &key("max-pinholes-per-client"),
                file.max_pinholes_per_client,
                default.max_pinholes_per_client,
                1..=MAX_PINHOLES_PER_CLIENT,
            ),
            ..default.clone()
        }
    }

    fn deny_ports(
        &mut self,
        key: &str,
        entry: &SpannedValue,
        nat: &Nat,
    ) -> Option<Arc<[RangeInclusive<u16>]>> {
        let allowed = "a list of ports and ranges of ports, such as [1433, \"5900-5999\"]";
        let ranges: Arc<[_]> = self.optional(key, entry, allowed, |value| {
            value.as_array()?.iter().map(text::ports).collect()
        })?;
        let entry = entry.as_ref()?;
        if ranges.len() > MAX_DENY_PORTS {
            let message = format!("has {} entries: give at most {MAX_DENY_PORTS}", ranges.len());
            self.refuse(key, entry, &message);
        }
        let denied = |port| ranges.iter().any(|range: &RangeInclusive<u16>| range.contains(&port));
        if nat.port_range.clone().all(denied) {
            self.refuse(key, entry, "denies every port of nat.port-range: leave at least one");
        }
        Some(ranges)
    }

    /// A network without a key inherits `[policy]`, which is `default`.
    fn networks(
        &mut self,
        files: &[Spanned<file::Network>],
        default: &Policy,
        nat: &Nat,
    ) -> Vec<NetworkPolicy> {
        if let Some(beyond) = files.get(MAX_NETWORKS) {
            let message = format!(
                "the file has {} of these tables: give at most {MAX_NETWORKS}",
                files.len()
            );
            self.refuse_table("network", beyond.span().start, message);
        }
        let mut networks = Vec::new();
        for spanned in files {
            let (file, place) = (spanned.get_ref(), spanned.span().start);
            let sides = [("network.clients", &file.clients), ("network.servers", &file.servers)];
            if sides.iter().all(|(_, entry)| entry.is_none()) {
                let message = "clients and servers are missing: give at least one of them";
                self.refuse_table("network", place, message.to_owned());
            }
            let [clients, servers] = sides
                .map(|(key, entry)| self.value(key, entry, Vec::new(), NETWORKS, text::networks));
            let inspect = self.flag("network.inspect", &file.inspect, true);
            let keys = file.policy_keys();
            for (name, entry) in keys.entries() {
                if let (false, Some(entry)) = (inspect, entry) {
                    let message = "has no effect with inspect = false: remove one of the two keys";
                    self.refuse(&format!("network.{}", name.replace('_', "-")), entry, message);
                }
            }
            let policy = self.policy_keys(&keys, default, nat);
            networks.push(NetworkPolicy { clients, servers, inspect, policy });
        }
        networks
    }

    fn servers(&mut self, files: &[Spanned<file::Server>], control_ports: &[u16]) -> Vec<Server> {
        let mut servers: Vec<Server> = Vec::new();
        for spanned in files {
            let file = spanned.get_ref();
            let Some(entry) = &file.address else {
                let message = format!("is missing: give {HOST}");
                self.refuse_table(SERVER_ADDRESS, spanned.span().start, message);
                continue;
            };
            let Some(address) = self.optional(SERVER_ADDRESS, &file.address, HOST, host) else {
                continue;
            };
            if servers.iter().any(|server| server.address == address) {
                self.refuse(
                    SERVER_ADDRESS,
                    entry,
                    "already has a [[server]]: give each address once",
                );
            }
            servers.push(Server {
                address,
                external_address: self.server_external(file, address),
                replace_foreign_address: self.flag(
                    "server.replace-foreign-address",
                    &file.replace_foreign_address,
                    false,
                ),
                passive_ports: self.passive_ports(file, control_ports),
            });
        }
        servers
    }

    fn server_external(&mut self, file: &file::Server, address: IpAddr) -> Option<ExternalSetting> {
        let external = self.external_address(SERVER_EXTERNAL, &file.external_address);
        if let (Some(ExternalSetting::Address(external)), Some(entry)) =
            (&external, &file.external_address)
            && external.is_ipv4() != address.is_ipv4()
        {
            let message =
                format!("is not of the same address family as the server's address {address}");
            self.refuse(SERVER_EXTERNAL, entry, &message);
        }
        external
    }

    fn passive_ports(
        &mut self,
        file: &file::Server,
        control_ports: &[u16],
    ) -> Option<RangeInclusive<u16>> {
        let entry = file.passive_ports.as_ref()?;
        let range = self.optional(SERVER_PORTS, &file.passive_ports, FREE_PORTS, ports)?;
        if let Some(port) = control_ports.iter().find(|port| range.contains(port)) {
            self.refuse(
                SERVER_PORTS,
                entry,
                &format!("contains the control port {port}: choose other ports"),
            );
        }
        let message = "is not supported by this version: encrypted sessions pass without inspection; remove the key";
        self.unsupported(SERVER_PORTS, entry, message);
        Some(range)
    }

    fn metrics(&mut self, file: &file::Metrics) -> Option<std::net::SocketAddr> {
        let key = "metrics.listen";
        let allowed = "an address and a port, such as \"127.0.0.1:9821\"";
        let entry = file.listen.as_ref()?;
        let listen =
            self.optional(key, &file.listen, allowed, |value| value.as_str()?.parse().ok())?;
        self.unsupported(key, entry, "is not supported by this version: remove the key");
        Some(listen)
    }

    fn external_address(&mut self, key: &str, entry: &SpannedValue) -> Option<ExternalSetting> {
        self.optional(key, entry, EXTERNAL, |value| text::external_address(value.as_str()?))
    }

    /// A mark or mask of exactly `count` bits.
    fn mark_bits(&mut self, key: &str, entry: &SpannedValue, default: u32, count: u32) -> u32 {
        let bits = if count == 1 { "one bit" } else { "three bits" };
        let allowed = format!("a 32-bit number with exactly {bits} set, such as {default:#x}");
        self.value(key, entry, default, &allowed, |value| {
            let number = u32::try_from(value.as_integer()?).ok()?;
            (number.count_ones() == count).then_some(number)
        })
    }

    fn flag(&mut self, key: &str, entry: &SpannedValue, default: bool) -> bool {
        self.value(key, entry, default, "true or false", Value::as_bool)
    }

    fn number<T: TryFrom<i64>>(
        &mut self,
        key: &str,
        entry: &SpannedValue,
        default: T,
        range: RangeInclusive<i64>,
    ) -> T {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        self.value(key, entry, default, &allowed, |value| {
            integer_in(value, range.clone())?.try_into().ok()
        })
    }

    fn choice<T: Copy>(
        &mut self,
        key: &str,
        entry: &SpannedValue,
        default: T,
        choices: &[(&str, T)],
    ) -> T {
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let allowed = format!("one of {}", names.join(", "));
        self.value(key, entry, default, &allowed, |value| {
            let text = value.as_str()?;
            choices.iter().find(|(name, _)| *name == text).map(|&(_, choice)| choice)
        })
    }

    /// The value of `key`. If it is absent, or `read` refuses it, which is reported, the result is `default`.
    fn value<T>(
        &mut self,
        key: &str,
        entry: &SpannedValue,
        default: T,
        allowed: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> T {
        self.optional(key, entry, allowed, read).unwrap_or(default)
    }

    fn optional<T>(
        &mut self,
        key: &str,
        entry: &SpannedValue,
        allowed: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Option<T> {
        let entry = entry.as_ref()?;
        let value = read(entry.get_ref());
        if value.is_none() {
            let meant = hint::suggestion(entry.get_ref(), |value| read(value).is_some());
            let meant = meant.map_or(String::new(), |text| {
                format!("; did you mean {}?", error::shown_value(&text, 0..text.len()))
            });
            self.refuse(key, entry, &format!("is not {allowed}{meant}"));
        }
        value
    }

    fn refuse(&mut self, key: &str, entry: &Spanned<Value>, message: &str) {
        let problem = self.problem(key, entry, message);
        self.problems.push(problem);
    }

    /// Refuses a whole table that starts at byte `place`.
    fn refuse_table(&mut self, key: &str, place: usize, message: String) {
        let problem = error::problem_at(self.path, self.text, place, Some(key.to_owned()), message);
        self.problems.push(problem);
    }

    fn unsupported(&mut self, key: &str, entry: &Spanned<Value>, message: &str) {
        let problem = self.problem(key, entry, message);
        self.unsupported.push(problem);
    }

    fn problem(&self, key: &str, entry: &Spanned<Value>, message: &str) -> Problem {
        let message = format!("{} {message}", error::shown_value(self.text, entry.span()));
        error::problem_at(self.path, self.text, entry.span().start, Some(key.to_owned()), message)
    }
}

const FANOUTS: [(&str, Fanout); 2] = [("connection", Fanout::Connection), ("cpu", Fanout::Cpu)];
const FAST_PATHS: [(&str, FastPath); 2] = [("auto", FastPath::Auto), ("off", FastPath::Off)];
const BACKENDS: [(&str, Option<Backend>); 3] = [
    ("auto", None),
    ("nftables", Some(Backend::Nftables)),
    ("conntrack", Some(Backend::Conntrack)),
];

fn integer_in(value: &Value, range: RangeInclusive<i64>) -> Option<i64> {
    value.as_integer().filter(|number| range.contains(number))
}

fn host(value: &Value) -> Option<IpAddr> {
    text::host(value.as_str()?)
}

/// A range above 1023; data connections never use lower ports.
fn ports(value: &Value) -> Option<RangeInclusive<u16>> {
    text::port_range(value.as_str()?).filter(|range| *range.start() >= 1024)
}
