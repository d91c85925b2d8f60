//! External addresses given by name: they are looked up at the start, and again when their records expire.
//!
//! Invariants:
//! - One thread serves all names, with a task for each name, so a name server that does not answer delays no other
//!   name. Without names there is no thread.
//! - No packet waits for a look-up. The main thread gets an event for a changed address, and gives the engines a new
//!   policy.
//! - The last known address stays in use while a name cannot be resolved. Before the first answer nothing can be
//!   announced for it ([`ExternalAddress::Unresolved`]).
//! - Each look-up reads `/etc/resolv.conf` and `/etc/hosts`, because a program that changes the address (a dial-up
//!   daemon, a DHCP client) may change these files too.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::{Arc, Mutex, mpsc::Sender},
    time::{Duration, Instant},
};

use ftp_alg_core::policy::ExternalAddress;
use hickory_resolver::{
    Hosts, Resolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{op::ResponseCode, rr::RecordType},
    system_conf::parse_resolv_conf,
};
use tokio::{
    runtime::{self, Runtime},
    time::sleep,
};

use super::{DaemonEvent, shard::lock, snapshot::NameRow};
use crate::{
    config::{ExternalName, is_host},
    kernel::broker,
};

/// The bounds for the time until the next look-up, which otherwise follows the record's TTL.
const REFRESH_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// The pause after the first failure. It doubles with each further one, up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_secs(1);
/// The longest pause after failures.
const MAX_RETRY: Duration = Duration::from_secs(60);
/// The file with the name servers. Programs replace it by renaming, so the broker opens it each time.
pub(super) const RESOLVER: &str = "/etc/resolv.conf";
/// The file with names that need no name server.
pub(super) const HOSTS: &str = "/etc/hosts";
/// The name server if `/etc/resolv.conf` names none, as in the C library.
const DEFAULT_SERVER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// All external names, with the state of each.
pub(super) struct ExternalNames {
    known: Arc<Mutex<NameStates>>,
    /// What the policy announces now.
    announced: Mutex<Addresses>,
    events: Sender<DaemonEvent>,
    thread: Mutex<Option<Runtime>>,
}

type NameStates = BTreeMap<ExternalName, NameState>;

/// The address to announce for each name.
#[derive(Default)]
pub(super) struct Addresses(BTreeMap<ExternalName, ExternalAddress>);

impl Addresses {
    pub fn of(&self, name: &ExternalName) -> ExternalAddress {
        self.0.get(name).copied().unwrap_or(ExternalAddress::Unresolved)
    }
}

/// The state of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct NameState {
    /// The last address that a name server gave.
    address: Option<IpAddr>,
    /// When a name server last gave that address.
    resolved_at: Option<Instant>,
    /// Whether the last answer was that the name has no address of this family.
    is_absent: bool,
    /// Why the last look-up failed, if it failed.
    error: Option<String>,
}

/// The answer to a look-up.
enum LookUpResult {
    /// The addresses, and their TTL.
    Addresses(Vec<IpAddr>, Duration),
    /// The name has no address of this family. With the TTL of that answer, if it has one.
    Absent(Option<Duration>),
}

impl ExternalNames {
    /// Starts without names. Changed addresses are sent to `events`.
    pub fn new(events: Sender<DaemonEvent>) -> Self {
        let (known, announced) = (Arc::default(), Mutex::default());
        Self { known, announced, events, thread: Mutex::new(None) }
    }

    /// Looks up `names` from now on. Known addresses of these names stay in use.
    pub fn watch(&self, names: BTreeSet<ExternalName>) -> io::Result<()> {
        let mut thread = lock(&self.thread);
        drop(thread.take());
        let mut known = lock(&self.known);
        *known = names
            .iter()
            .map(|name| (name.clone(), known.remove(name).unwrap_or_default()))
            .collect();
        drop(known);
        if !names.is_empty() {
            *thread = Some(start_look_ups(names, &self.known, &self.events)?);
        }
        Ok(())
    }

    /// The address that may be announced for each name.
    pub fn addresses(&self) -> Addresses {
        let known = lock(&self.known);
        let address = |name: &ExternalName| (name.clone(), external_address_of(&known, name));
        Addresses(known.keys().map(address).collect())
    }

    /// Notes the addresses that the policy announces from now on, for `status`.
    pub fn note_announced(&self, addresses: Addresses) {
        *lock(&self.announced) = addresses;
    }

    /// The state of all names, for `status`.
    pub fn rows(&self) -> Vec<NameRow> {
        let (known, announced) = (lock(&self.known), lock(&self.announced));
        let row = |(name, answer): (&ExternalName, &NameState)| {
            let external = announced.of(name);
            let why = if answer.is_absent {
                format!("the name has no {} record", record_type(name))
            } else {
                "the name is not resolved yet".to_owned()
            };
            let is_known = external == ExternalAddress::Auto
                || answer.is_resolved() && answer.resolved_at.is_some();
            NameRow {
                name: name.name.clone(),
                family: if name.v6 { "ipv6" } else { "ipv4" }.to_owned(),
                address: match external {
                    ExternalAddress::Fixed(address) => Some(address),
                    ExternalAddress::Auto | ExternalAddress::Unresolved => None,
                },
                age_seconds: answer.resolved_at.map(|heard| heard.elapsed().as_secs()),
                error: answer.error.clone().or_else(|| (!is_known).then_some(why)),
            }
        };
        known.iter().map(row).collect()
    }
}

/// The address for `name`. If the name has only addresses of the other family, translation decides for this one.
fn external_address_of(known: &NameStates, name: &ExternalName) -> ExternalAddress {
    let Some(answer) = known.get(name) else { return ExternalAddress::Unresolved };
    let other = known.get(&ExternalName { v6: !name.v6, ..name.clone() });
    let other_is_known = other.is_some_and(|one| one.address.is_some() && !one.is_absent);
    match answer.address {
        _ if answer.is_absent && other_is_known => ExternalAddress::Auto,
        Some(address) => ExternalAddress::Fixed(address),
        None => ExternalAddress::Unresolved,
    }
}

impl NameState {
    fn is_resolved(&self) -> bool {
        self.error.is_none() && !self.is_absent
    }

    /// Notes the result of a look-up. Returns the TTL, if it has one.
    fn note_result(
        &mut self,
        found: Result<LookUpResult, String>,
        now: Instant,
    ) -> Option<Duration> {
        match found {
            Ok(LookUpResult::Addresses(addresses, ttl)) => {
                // Of several addresses, as with a round robin, the address in use stays in use.
                let in_use = self.address.filter(|address| addresses.contains(address));
                let address = in_use.or_else(|| addresses.first().copied())?;
                *self = Self { address: Some(address), resolved_at: Some(now), ..Self::default() };
                Some(ttl)
            }
            Ok(LookUpResult::Absent(ttl)) => {
                (self.is_absent, self.error) = (true, None);
                ttl
            }
            Err(error) => {
                self.error = Some(error);
                None
            }
        }
    }
}

/// Looks up `names` on a thread of its own, until the returned runtime is dropped.
fn start_look_ups(
    names: BTreeSet<ExternalName>,
    known: &Arc<Mutex<NameStates>>,
    events: &Sender<DaemonEvent>,
) -> io::Result<Runtime> {
    let mut builder = runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).thread_name("names").enable_all().build()?;
    for name in names {
        let task = runtime.spawn(watch_name(name, Arc::clone(known), events.clone()));
        let events = events.clone();
        runtime.spawn(async move {
            if task.await.is_err_and(|error| error.is_panic()) {
                let why = "the look-up of names ended: a defect in ftp-alg; please report the \
                           lines above";
                let _ = events.send(DaemonEvent::Failed(why.to_owned()));
            }
        });
    }
    Ok(runtime)
}

/// Looks up `name` again and again.
async fn watch_name(
    name: ExternalName,
    known: Arc<Mutex<NameStates>>,
    events: Sender<DaemonEvent>,
) {
    let mut retry = RETRY;
    loop {
        let found = look_up(&name).await;
        let Some((again, changed)) = note_look_up(&mut lock(&known), &name, found) else {
            return;
        };
        if changed && events.send(DaemonEvent::PolicyChanged).is_err() {
            return;
        }
        let pause = match again {
            Some(ttl) => ttl.clamp(REFRESH_BOUNDS.0, REFRESH_BOUNDS.1),
            None => retry,
        };
        retry = if again.is_some() { RETRY } else { (retry * 2).min(MAX_RETRY) };
        sleep(pause).await;
    }
}

/// Notes the result of a look-up. Returns its TTL, and whether another address is to be announced now; `None` for a
/// name that is not watched any more.
fn note_look_up(
    known: &mut NameStates,
    name: &ExternalName,
    found: Result<LookUpResult, String>,
) -> Option<(Option<Duration>, bool)> {
    let before = known.clone();
    let again = known.get_mut(name)?.note_result(found, Instant::now());
    log_changes(name, &before, known);
    let changed = known
        .keys()
        .any(|name| external_address_of(&before, name) != external_address_of(known, name));
    Some((again, changed))
}

/// Logs only what has changed, so a name that keeps failing does not fill the log.
fn log_changes(name: &ExternalName, before: &NameStates, after: &NameStates) {
    let (Some(old), Some(new)) = (before.get(name), after.get(name)) else { return };
    let (text, record) = (&name.name, record_type(name));
    let rest = match external_address_of(after, name) {
        ExternalAddress::Fixed(address) => format!("{address} stays in use"),
        ExternalAddress::Auto => "the translated address of each connection is used".to_owned(),
        ExternalAddress::Unresolved => "announcements that need its address are refused".to_owned(),
    };
    if let (None, Some(error)) = (&old.error, &new.error) {
        log_event!(
            NAME_FAILED,
            name = text,
            record = %record,
            "dns:{text}: no {record} record: {error}; {rest}. Check /etc/resolv.conf and the name server"
        );
    }
    if new.is_absent && !old.is_absent {
        let other = after.get(&ExternalName { v6: !name.v6, ..name.clone() });
        // Many names have addresses of one family only.
        let more = match other {
            Some(other) if !other.is_absent => String::new(),
            _ => format!("; {rest}. Check the spelling in external-address"),
        };
        log_event!(
            NAME_ABSENT,
            name = text,
            record = %record,
            "dns:{text}: the name has no {record} record{more}"
        );
    }
    match new.address {
        Some(address) if old.address != new.address => {
            log_event!(
                NAME_RESOLVED,
                name = text,
                record = %record,
                address = %address,
                "dns:{text}: the external address is {address}"
            );
        }
        Some(_) if !old.is_resolved() && new.is_resolved() => {
            log_event!(
                NAME_RESOLVED,
                name = text,
                record = %record,
                "dns:{text}: resolved again; {rest}"
            );
        }
        _ => {}
    }
}

fn record_type(name: &ExternalName) -> RecordType {
    if name.v6 { RecordType::AAAA } else { RecordType::A }
}

/// Looks up a name once, as the machine's own resolver does.
async fn look_up(name: &ExternalName) -> Result<LookUpResult, String> {
    let read = |path| broker::read(Path::new(path));
    let configured = read(RESOLVER).map_err(NetError::from).and_then(parse_resolv_conf);
    let (config, mut options) = configured.unwrap_or_else(|error| {
        tracing::debug!("{RESOLVER}: {error}; using the name server {DEFAULT_SERVER}");
        let servers = vec![NameServerConfig::udp_and_tcp(DEFAULT_SERVER)];
        (ResolverConfig::from_parts(None, vec![], servers), ResolverOpts::default())
    });
    // The answers are stored in `NameState`, so a second cache would only delay changes.
    options.cache_size = 0;
    // The resolver would open the file itself, for which the daemon has no right.
    options.use_hosts_file = ResolveHosts::Never;
    let builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    let resolver = builder.with_options(options).build();
    let mut resolver = resolver.map_err(|error| error.to_string())?;
    let mut hosts = Hosts::default();
    if let Err(error) = read(HOSTS).and_then(|text| hosts.read_hosts_conf(text.as_bytes())) {
        tracing::debug!("{HOSTS}: {error}");
    }
    resolver.set_hosts(Arc::new(hosts));
    let lookup = match resolver.lookup(qualify(&name.name).as_str(), record_type(name)).await {
        Ok(lookup) => lookup,
        Err(error) => return interpret_error(error),
    };
    let found = lookup.answers().iter().filter_map(|answer| answer.data.ip_addr());
    let found: Vec<IpAddr> = found.filter(|address| address.is_ipv6() == name.v6).collect();
    let others = found.iter().copied().filter(|ip| is_host(*ip) && !ip.is_loopback());
    let others: Vec<IpAddr> = others.collect();
    match (found.first(), others.is_empty()) {
        (None, _) => Ok(LookUpResult::Absent(None)),
        (Some(address), true) => Err(format!("{address} is not the address of another host")),
        (Some(_), false) => {
            let ttl = lookup.valid_until().saturating_duration_since(Instant::now());
            Ok(LookUpResult::Addresses(others, ttl))
        }
    }
}

/// Ends a name that has a dot in it with another dot, so that no search domain is appended.
fn qualify(name: &str) -> String {
    let dot = if name.contains('.') && !name.ends_with('.') { "." } else { "" };
    format!("{name}{dot}")
}

/// Turns the answer that there is no such record into a result. Everything else is a failure.
fn interpret_error(error: NetError) -> Result<LookUpResult, String> {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none))
            if matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
        {
            Ok(LookUpResult::Absent(none.negative_ttl.map(|ttl| Duration::from_secs(ttl.into()))))
        }
        error => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn name(v6: bool) -> ExternalName {
        ExternalName { name: "ftp.example.net".into(), v6 }
    }

    fn both() -> NameStates {
        [false, true].map(|v6| (name(v6), NameState::default())).into()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn addresses(texts: &[&str]) -> Result<LookUpResult, String> {
        Ok(LookUpResult::Addresses(texts.iter().map(|text| ip(text)).collect(), TTL))
    }

    #[test]
    fn a_family_without_record_follows_the_translation_if_the_other_has_one() {
        let mut known = both();
        assert_eq!(
            note_look_up(&mut known, &name(true), Ok(LookUpResult::Absent(None))),
            Some((None, false))
        );
        assert_eq!(external_address_of(&known, &name(true)), ExternalAddress::Unresolved);
        let found = addresses(&["198.51.100.7"]);
        assert_eq!(note_look_up(&mut known, &name(false), found), Some((Some(TTL), true)));
        assert_eq!(external_address_of(&known, &name(true)), ExternalAddress::Auto);
        note_look_up(&mut known, &name(true), addresses(&["2001:db8::7"]));
        assert_eq!(
            external_address_of(&known, &name(true)),
            ExternalAddress::Fixed(ip("2001:db8::7"))
        );
    }

    #[test]
    fn of_several_addresses_the_one_in_use_stays_in_use() {
        let mut known = both();
        let mut announced = |texts: &[&str]| {
            note_look_up(&mut known, &name(false), addresses(texts));
            external_address_of(&known, &name(false))
        };
        let first = ExternalAddress::Fixed(ip("198.51.100.1"));
        assert_eq!(announced(&["198.51.100.1", "198.51.100.2"]), first);
        assert_eq!(announced(&["198.51.100.2", "198.51.100.1"]), first);
        assert_eq!(announced(&["198.51.100.2"]), ExternalAddress::Fixed(ip("198.51.100.2")));
    }

    #[test]
    fn search_domains_apply_only_to_names_without_a_dot() {
        for (text, whole) in [("ftp", "ftp"), ("ftp.example", "ftp.example."), ("a.", "a.")] {
            assert_eq!(qualify(text), whole);
        }
    }
}
