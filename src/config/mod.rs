//! The configuration file: reading it, judging it, and saying what is wrong with it.
//!
//! Everything that leaves this module has been checked: a [`Config`] holds only values that the
//! rest may use without asking again. Knows nothing of who runs it or of the kernel; whether an
//! external name resolves or a queue is free is not asked here.
//!
//! `file` is the shape of the file, `shape` refuses what has another, `check` turns it into a
//! [`Config`], `text` reads the values that TOML has no type for, `hint` says what was meant by one that is
//! not allowed, `error` places what was found.

mod check;
mod error;
mod file;
mod hint;
mod invalid_keys;
mod text;

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

pub(crate) use error::plain;
pub use error::{ConfigError, Problem};
use ftp_alg_core::policy::{
    ExternalAddress, ExternalAddresses, KnownServer, NetworkPolicy, Policy,
};
use strum::{Display, EnumString, IntoStaticStr};

/// Where the configuration is when no other place is named.
pub const DEFAULT_PATH: &str = "/etc/ftp-alg.toml";

/// The most bytes that a configuration may have; a file beyond it is not one of ours.
const MAX_BYTES: u64 = 1 << 20;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `control-ports`: server ports whose connections are read.
    pub control_ports: Vec<u16>,
    /// `[queue]`.
    pub queue: Queue,
    /// `[pinhole]`.
    pub pinhole: Pinhole,
    /// `[nat]`.
    pub nat: Nat,
    /// `[policy]`: what is allowed, and how much of it. What the other tables say, [`Config::policy`] adds.
    pub limits: Policy,
    /// `[[network]]`, likewise.
    pub networks: Vec<NetworkPolicy>,
    /// `[[server]]`.
    pub servers: Vec<Server>,
    /// `metrics.listen`.
    pub metrics: Option<SocketAddr>,
    unsupported: Vec<Problem>,
}

/// `[queue]`: which netfilter queues are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The first queue's number.
    pub number: u16,
    /// How many there are, one worker each; `None` is one for each processor.
    pub workers: Option<u16>,
    /// How packets are spread over them.
    pub fanout: Fanout,
    /// Whether recurring lines are judged in the kernel.
    pub fast_path: FastPath,
}

/// How packets are spread over several queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display)]
#[strum(serialize_all = "lowercase")]
pub enum Fanout {
    /// All packets of a connection by one queue.
    Connection,
    /// Each by the queue of the processor that it is on, where its worker runs.
    Cpu,
}

/// Whether recurring lines of control connections are judged in the kernel (docs/fastpath.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display)]
#[strum(serialize_all = "lowercase")]
pub enum FastPath {
    /// Where the kernel can run the program.
    Auto,
    /// Never: every packet with payload is queued.
    Off,
}

/// `queue.fast-path` of a file that does not have it.
pub const DEFAULT_FAST_PATH: FastPath = FastPath::Auto;

/// As many workers may there be.
const MAX_WORKERS: u16 = 64;

impl Queue {
    /// How many there are on this machine.
    pub fn workers(&self) -> u16 {
        self.workers.unwrap_or_else(|| {
            let processors = thread::available_parallelism().map_or(1, usize::from);
            let most = MAX_WORKERS.min(u16::MAX - self.number);
            u16::try_from(processors).map_or(most, |processors| processors.min(most)).max(1)
        })
    }

    /// The numbers of all queues.
    pub fn numbers(&self) -> impl Iterator<Item = u16> + use<> {
        // The check holds number + workers <= 65536.
        let first = self.number;
        (0..self.workers()).map(move |index| first.saturating_add(index))
    }
}

/// `[pinhole]`: how a pinhole is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinhole {
    /// What holds the pinholes; `None` is the best one that the kernel offers.
    pub backend: Option<Backend>,
    /// How long an unused pinhole lives.
    pub timeout: Duration,
    /// The ct mark bit on data connections that we admitted; one bit, within `mark_mask`.
    pub mark: u32,
    /// The three ct mark bits that are ours.
    pub mark_mask: u32,
}

/// What holds the pinholes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Display, EnumString, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Backend {
    /// Sets and maps of our nftables table; a firewall accepts the mark.
    #[default]
    Nftables,
    /// Expectations of the connection tracker; a firewall accepts `related`.
    Conntrack,
}

/// `[nat]`: what is announced in place of an address that NAT hides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nat {
    pub external_address: ExternalSetting,
    /// The ports, used when the announced one is already taken.
    pub port_range: RangeInclusive<u16>,
}

/// The address to announce in place of one that NAT hides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExternalSetting {
    /// The one that the control connection's own translation shows.
    Auto,
    Address(IpAddr),
    Dns(String),
}

/// A name among the external addresses, and the family of the address that is wanted of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExternalName {
    pub name: String,
    /// Whether the address is to be an IPv6 one.
    pub v6: bool,
}

impl ExternalSetting {
    /// What the policy is to say over one family, where `resolve` knows the addresses of names.
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

/// One `[[server]]`: a server of which more is known than its connections show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub address: IpAddr,
    /// What is announced for it; `None` means what `[nat]` says.
    pub external_address: Option<ExternalSetting>,
    /// Whether it means itself whatever address it announces.
    pub heal_address: bool,
    /// The ports opened for encrypted sessions.
    pub passive_ports: Option<RangeInclusive<u16>>,
}

impl Default for Config {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            control_ports: policy.control_ports,
            queue: Queue {
                number: 2100,
                workers: None,
                fanout: Fanout::Connection,
                fast_path: DEFAULT_FAST_PATH,
            },
            pinhole: Pinhole {
                backend: None,
                timeout: policy.pinhole_lifetime,
                mark: 0x4000_0000,
                mark_mask: 0x7000_0000,
            },
            nat: Nat { external_address: ExternalSetting::Auto, port_range: policy.port_range },
            limits: Policy::default(),
            networks: Vec::new(),
            servers: Vec::new(),
            metrics: None,
            unsupported: Vec::new(),
        }
    }
}

impl Config {
    /// Reads and checks the file at `path`, or the one at [`DEFAULT_PATH`] when none is named.
    /// Only the default file may be absent; that means the defaults.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_with(path, read_text)
    }

    /// As [`Config::load`], with a text that `read` gives.
    pub fn load_with(
        path: Option<&Path>,
        read: impl Fn(&Path) -> io::Result<String>,
    ) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        match read(file) {
            Ok(text) => Self::parse(&text, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_none() => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Read { path: file.to_owned(), source }),
        }
    }

    /// Checks `text`, which errors call `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        check::check(text, path).map_err(ConfigError::Invalid)
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

    /// What the engine needs of this. `resolve` says what is known of a name.
    pub fn policy(&self, resolve: impl Fn(&ExternalName) -> ExternalAddress) -> Policy {
        let external = |v6| self.nat.external_address.external(v6, &resolve);
        let server = |server: &Server| KnownServer {
            address: server.address,
            external: server
                .external_address
                .as_ref()
                .map(|external| external.external(server.address.is_ipv6(), &resolve)),
            heal: server.heal_address,
        };
        let servers: Arc<[KnownServer]> = self.servers.iter().map(server).collect();
        let complete = |limits: &Policy| Policy {
            control_ports: self.control_ports.clone(),
            pinhole_lifetime: self.pinhole.timeout,
            port_range: self.nat.port_range.clone(),
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

    /// What is valid but not served by this version; `run` and `check` refuse it rather than
    /// leave an operator to believe that it works.
    pub fn unsupported(&self) -> Result<(), ConfigError> {
        if self.unsupported.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Invalid(self.unsupported.clone()))
        }
    }

    /// The keys whose value in `next` differs and cannot change under a running daemon: rules,
    /// queues and marks of live connections depend on them.
    pub fn fixed_keys_changed(&self, next: &Self) -> Vec<&'static str> {
        let (old, new) = (&self.pinhole, &next.pinhole);
        [
            ("control-ports", self.control_ports != next.control_ports),
            ("queue.number", self.queue.number != next.queue.number),
            ("queue.workers", self.queue.workers != next.queue.workers),
            ("queue.fanout", self.queue.fanout != next.queue.fanout),
            ("queue.fast-path", self.queue.fast_path != next.queue.fast_path),
            ("pinhole.backend", old.backend != new.backend),
            ("pinhole.mark", old.mark != new.mark),
            ("pinhole.mark-mask", old.mark_mask != new.mark_mask),
            ("metrics.listen", self.metrics != next.metrics),
        ]
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
    }

    /// This configuration, but with `old`'s values of the keys that a running daemon cannot change.
    pub fn with_fixed_keys_of(self, old: &Self) -> Self {
        Self {
            control_ports: old.control_ports.clone(),
            queue: old.queue,
            pinhole: Pinhole { timeout: self.pinhole.timeout, ..old.pinhole },
            metrics: old.metrics,
            ..self
        }
    }
}

/// The file's text. A file that never ends, such as a device, is an error as any other.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let length = File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text);
    let length = length.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => io::Error::other("it is no text in UTF-8; save it as that"),
        _ => error,
    })?;
    if length as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

/// Whether an address can be that of one host: neither unspecified, multicast nor broadcast.
pub(crate) fn is_host(address: IpAddr) -> bool {
    !address.is_unspecified()
        && !address.is_multicast()
        && address != IpAddr::V4(Ipv4Addr::BROADCAST)
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod slips_tests;
