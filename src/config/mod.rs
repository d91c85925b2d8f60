//! The configuration file: reads and checks it, and reports problems.
//!
//! A [`Config`] holds only checked values that other modules may use without checks. This module knows nothing of who
//! runs it or of the kernel. It does not check whether an external name resolves or a queue is free.
//!
//! - `file` has the tables and keys, and refuses all others.
//! - `check` builds a [`Config`]; `text` parses the values that TOML has no type for.
//! - `shadowed` finds tables without effect, and `warnings` finds what an operator may not expect.
//! - `error` adds positions to problems, and `hint` adds suggestions.
//! - `changes` compares two texts of the file.

mod changes;
mod check;
mod error;
mod file;
mod hint;
mod shadowed;
mod text;
mod warnings;

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

pub use changes::{Change, changes};
pub use error::ConfigError;
pub(crate) use error::escaped;
use ftp_alg_core::policy::{
    ExternalAddress, ExternalAddresses, KnownServer, NetworkPolicy, PassivePorts, Policy,
};
use strum::{Display, EnumString, IntoStaticStr};
pub use warnings::{MAX_EXPECTED_PORTS, may_have_services};

/// Default path of the configuration.
pub const DEFAULT_PATH: &str = "/etc/ftp-alg.toml";

/// Maximum size of a configuration in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `control-ports`: server ports of control connections.
    pub control_ports: Vec<u16>,
    /// The control ports on which TLS comes first.
    pub implicit_tls_ports: Vec<u16>,
    /// `[queue]`.
    pub queue: QueueSettings,
    /// `[pinhole]`.
    pub pinhole: PinholeSettings,
    /// `[nat]`.
    pub nat: NatSettings,
    /// `[policy]`. [`Config::policy`] adds the values of other tables.
    pub limits: Policy,
    /// `[[network]]`: policies of certain connections.
    pub networks: Vec<NetworkPolicy>,
    /// `[[server]]`.
    pub servers: Vec<ServerSettings>,
    /// `[metrics]`.
    pub metrics: MetricsSettings,
    /// `[log]`.
    pub log: LogSettings,
    /// `[pair]`, if this is one of two gateways.
    pub pair: Option<PairSettings>,
}

/// `[queue]`: our netfilter queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// The first queue's number.
    pub number: u16,
    /// Number of queues, one for each worker; `None` is one for each processor.
    pub workers: Option<u16>,
    /// Whether the fast path is used.
    pub fast_path: FastPathMode,
}

/// Whether the kernel inspects lines of control connections (docs/fastpath.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display)]
#[strum(serialize_all = "lowercase")]
pub enum FastPathMode {
    /// If the kernel supports the BPF program.
    Auto,
    /// Never: every packet with payload is queued.
    Off,
    /// The same, because this gateway is one of a pair.
    OffInPair,
}

/// Default of `queue.fast-path`.
pub const DEFAULT_FAST_PATH: FastPathMode = FastPathMode::Auto;

/// Limit of workers.
const MAX_WORKERS: u16 = 64;

impl QueueSettings {
    /// Number of workers on this machine.
    pub fn workers(&self) -> u16 {
        self.workers.unwrap_or_else(|| {
            let processors = thread::available_parallelism().map_or(1, usize::from);
            let most = MAX_WORKERS.min(u16::MAX - self.number);
            u16::try_from(processors).map_or(most, |processors| processors.min(most)).max(1)
        })
    }

    /// The numbers of all queues.
    pub fn numbers(&self) -> impl Iterator<Item = u16> + use<> {
        // The check ensures number + workers <= 65536.
        let first = self.number;
        (0..self.workers()).map(move |index| first.saturating_add(index))
    }
}

/// `[pinhole]`: how pinholes are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinholeSettings {
    /// The back end; `None` is the best one that kernel and firewall support.
    pub backend: Option<Backend>,
    /// Lifetime of an unused pinhole.
    pub timeout: Duration,
    /// The ct mark bit of admitted data connections; within `mark_mask`.
    pub mark: u32,
    /// The three ct mark bits that are ours.
    pub mark_mask: u32,
}

/// What implements pinholes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Display, EnumString, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Backend {
    /// Sets and maps in our nftables table; the firewall accepts the mark.
    #[default]
    Nftables,
    /// Conntrack expectations; the firewall accepts `related`.
    Conntrack,
}

/// `[nat]`: external addresses and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatSettings {
    pub external_address: ExternalSetting,
    /// External ports, used if the announced port is taken.
    pub port_range: RangeInclusive<u16>,
}

/// The external address to announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExternalSetting {
    /// The address in the control connection's own translation.
    Auto,
    Address(IpAddr),
    Dns(String),
}

/// A DNS name, and the address family to resolve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExternalName {
    pub name: String,
    /// Whether to resolve an IPv6 address.
    pub v6: bool,
}

impl ExternalSetting {
    /// The policy's address of one family; `resolve` resolves names.
    fn external(
        &self,
        v6: bool,
        resolve: &impl Fn(&ExternalName) -> ExternalAddress,
    ) -> ExternalAddress {
        match self {
            Self::Address(address) if address.is_ipv6() == v6 => ExternalAddress::Fixed(*address),
            Self::Auto | Self::Address(_) => ExternalAddress::Auto,
            Self::Dns(name) => resolve(&ExternalName { name: name.clone(), v6 }),
        }
    }
}

/// A `[[server]]`: a published server with settings of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSettings {
    pub address: IpAddr,
    /// Its external address; `None` for `[nat]`.
    pub external_address: Option<ExternalSetting>,
    /// Whether a foreign address that it announces is replaced.
    pub replace_foreign_address: bool,
    /// The ports to which clients with an encrypted session may connect.
    pub passive_ports: PassivePorts,
}

/// `[metrics]`: the endpoint for Prometheus and browsers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsSettings {
    /// The endpoint's address and port. `None` turns it off.
    pub listen: Option<SocketAddr>,
    /// Whether the endpoint has a page for browsers.
    pub page: bool,
    /// The file with the user and password that clients of the endpoint need.
    pub password_file: Option<PathBuf>,
}

/// `[log]`: what is logged in addition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Whether transfers are reported.
    pub transfers: bool,
    /// The file with a line for each transfer.
    pub transfer_file: Option<PathBuf>,
    /// The format of these lines.
    pub transfer_format: LineFormat,
    /// The file with a line for each event.
    pub events: Option<PathBuf>,
}

/// The format of the lines of the file of transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineFormat {
    /// A JSON object: the event.
    Json,
    /// The format of wu-ftpd's xferlog(5), which many programs evaluate. It has transfers of files only.
    Xferlog,
}

/// `[pair]`: this gateway is one of two, of which one is active.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairSettings {
    /// The socket of this machine's store, a Redis or Valkey.
    pub store: PathBuf,
    /// The store of the other gateway.
    pub peer: SocketAddr,
    pub confirm: Confirm,
}

/// Which packets wait until the other gateway's store has the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display)]
#[strum(serialize_all = "lowercase")]
pub enum Confirm {
    /// Every packet that changes a session.
    All,
    /// Packets that the gateway changes, and announcements. If others are missing, a session cannot be read until its next
    /// command in step.
    Announcements,
    /// None: a failure costs sessions that are in use at that moment.
    None,
}

impl Default for Config {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            control_ports: policy.control_ports,
            implicit_tls_ports: Vec::new(),
            queue: QueueSettings { number: 2100, workers: None, fast_path: DEFAULT_FAST_PATH },
            pinhole: PinholeSettings {
                backend: None,
                timeout: policy.pinhole_timeout,
                mark: 0x4000_0000,
                mark_mask: 0x7000_0000,
            },
            nat: NatSettings {
                external_address: ExternalSetting::Auto,
                port_range: policy.port_range,
            },
            limits: Policy::default(),
            networks: Vec::new(),
            servers: Vec::new(),
            metrics: MetricsSettings { listen: None, page: true, password_file: None },
            log: LogSettings {
                transfers: true,
                transfer_file: None,
                transfer_format: LineFormat::Json,
                events: None,
            },
            pair: None,
        }
    }
}

impl Config {
    /// Reads and checks the file at `path`, or the one at [`DEFAULT_PATH`] when none is named.
    /// Only the default file may be absent; that means the defaults.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::from_read(path, read_text(path.unwrap_or(Path::new(DEFAULT_PATH))))
    }

    /// As [`Config::load`], from what the file has.
    pub fn from_read(path: Option<&Path>, read: io::Result<String>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        match read {
            Ok(text) => Self::parse(&text, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_none() => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Read { path: file.to_owned(), source }),
        }
    }

    /// Checks `text`. Errors name the file `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        check::check(text).map_err(|problems| {
            let lines: Vec<_> = problems.iter().map(|one| one.line(path, text)).collect();
            ConfigError::Invalid(lines.join("\n"))
        })
    }

    /// The names whose addresses are needed.
    pub fn external_names(&self) -> BTreeSet<ExternalName> {
        let mut names = BTreeSet::new();
        let mut add = |external: &ExternalSetting, v6| {
            if let ExternalSetting::Dns(name) = external {
                names.insert(ExternalName { name: name.clone(), v6 });
            }
        };
        add(&self.nat.external_address, false);
        add(&self.nat.external_address, true);
        for server in &self.servers {
            if let Some(external) = &server.external_address {
                add(external, server.address.is_ipv6());
            }
        }
        names
    }

    /// Whether external ports are only those of `nat.port-range`: it is not the default.
    pub fn restricts_ports(&self) -> bool {
        self.nat.port_range != Policy::default().port_range
    }

    /// The engine's part of the configuration. `resolve` returns what is known of a name. `port_sets` are the sets of
    /// the operator's rules, which count if `nat.port-range` has its default.
    pub fn policy(
        &self,
        resolve: impl Fn(&ExternalName) -> ExternalAddress,
        port_sets: &Arc<[RangeInclusive<u16>]>,
    ) -> Policy {
        let port_sets = match self.restricts_ports() {
            true => [self.nat.port_range.clone()].into(),
            false => Arc::clone(port_sets),
        };
        let external = |v6| self.nat.external_address.external(v6, &resolve);
        let server = |server: &ServerSettings| KnownServer {
            address: server.address,
            external: server
                .external_address
                .as_ref()
                .map(|external| external.external(server.address.is_ipv6(), &resolve)),
            replace_foreign_address: server.replace_foreign_address,
            passive_ports: Arc::clone(&server.passive_ports),
        };
        let servers: Arc<[KnownServer]> = self.servers.iter().map(server).collect();
        let complete = |limits: &Policy| Policy {
            control_ports: self.control_ports.clone(),
            pinhole_timeout: self.pinhole.timeout,
            port_range: self.nat.port_range.clone(),
            port_sets: Arc::clone(&port_sets),
            preserves_length: true,
            external: ExternalAddresses { v4: external(false), v6: external(true) },
            servers: Arc::clone(&servers),
            ..limits.clone()
        };
        let network = |network: &NetworkPolicy| {
            let policy = complete(&network.policy);
            NetworkPolicy { policy, ..network.clone() }
        };
        let networks = self.networks.iter().map(network).collect();
        Policy { networks, ..complete(&self.limits) }
    }

    /// The own address of each `[[server]]`.
    pub fn server_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.servers.iter().map(|server| server.address)
    }

    /// Whether transfers are reported: in the log, the events, the totals, the metrics.
    pub fn reports_transfers(&self) -> bool {
        self.log.transfers || self.metrics.listen.is_some()
    }

    /// The keys whose value in `next` differs and cannot change under a running daemon: rules,
    /// queues and marks of live connections depend on them.
    pub fn fixed_keys_changed(&self, next: &Self) -> Vec<&'static str> {
        let (old, new) = (&self.pinhole, &next.pinhole);
        [
            ("control-ports", self.control_ports != next.control_ports),
            ("implicit-tls-ports", self.implicit_tls_ports != next.implicit_tls_ports),
            ("queue.number", self.queue.number != next.queue.number),
            ("queue.workers", self.queue.workers != next.queue.workers),
            ("queue.fast-path", self.queue.fast_path != next.queue.fast_path),
            ("pinhole.backend", old.backend != new.backend),
            ("pinhole.mark", old.mark != new.mark),
            ("pinhole.mark-mask", old.mark_mask != new.mark_mask),
            ("nat.port-range (for source ports)", self.nat.port_range != next.nat.port_range),
            ("metrics.listen", self.metrics.listen != next.metrics.listen),
            ("metrics.page", self.metrics.page != next.metrics.page),
            ("metrics.password-file", self.metrics.password_file != next.metrics.password_file),
            (
                "log.transfers",
                (self.log.transfers, &self.log.transfer_file)
                    != (next.log.transfers, &next.log.transfer_file),
            ),
            ("log.transfers-format", self.log.transfer_format != next.log.transfer_format),
            ("log.events", self.log.events != next.log.events),
            ("pair", self.pair != next.pair),
        ]
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
    }

    /// This configuration, with `old`'s values of keys that a running daemon cannot change.
    pub fn with_fixed_keys_of(self, old: &Self) -> Self {
        Self {
            control_ports: old.control_ports.clone(),
            implicit_tls_ports: old.implicit_tls_ports.clone(),
            queue: old.queue,
            pinhole: PinholeSettings { timeout: self.pinhole.timeout, ..old.pinhole },
            metrics: old.metrics.clone(),
            log: old.log.clone(),
            pair: old.pair.clone(),
            ..self
        }
    }
}

/// Text of the file. A file without end, such as a device, is an error.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let length = File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text);
    let length = length.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => {
            io::Error::other("the file is not UTF-8 text; save it as UTF-8")
        }
        _ => error,
    })?;
    if length as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("the file has more than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

/// Whether an address can belong to one host: not unspecified, multicast or broadcast.
pub(crate) fn is_host(address: IpAddr) -> bool {
    !address.is_unspecified()
        && !address.is_multicast()
        && address != IpAddr::V4(Ipv4Addr::BROADCAST)
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod slips_tests;
