//! Topologies: which host stands on which side of the gateway, and with which addresses.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use super::{
    Family, FirewallKind, Host, LabError, Result, firewall,
    process::{self, register, remove_abandoned},
};

/// Where the lab keeps its files: not below `/tmp`, because ProFTPD refuses password files below a
/// directory that anyone may write to.
const BASE: &str = "/run/ftp-alg-lab";

static LABS: AtomicU32 = AtomicU32::new(0);

/// What the gateway does to addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Clients inside, hidden behind the gateway's outer address.
    Masquerade,
    /// The server inside, published on port 21 of the gateway's outer address.
    PublishedServer,
    /// Clients inside, every address visible everywhere; only the firewall stands between.
    Routed,
}

impl std::fmt::Display for Topology {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Masquerade => "masquerade",
            Self::PublishedServer => "published server (DNAT)",
            Self::Routed => "routed",
        })
    }
}

/// A host's addresses.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// IPv4, in a /24.
    pub v4: Ipv4Addr,
    /// IPv6, in a /64.
    pub v6: Ipv6Addr,
}

impl Ends {
    /// The address of one family.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

/// Everyone's addresses.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The gateway's inner interface.
    pub inside: Ends,
    /// The gateway's outer interface.
    pub outside: Ends,
    /// The client.
    pub client: Ends,
    /// Another client beside it.
    pub client2: Ends,
    /// The server.
    pub server: Ends,
    /// A stranger outside.
    pub third: Ends,
}

impl Plan {
    /// The addresses of the published explanation of FTP behind NAT that everyone quotes
    /// (slacksite.com): client 192.168.150.80, server 192.168.150.90.
    pub fn of(topology: Topology) -> Self {
        let inside = |host: u8| Ends {
            v4: Ipv4Addr::new(192, 168, 150, host),
            v6: Ipv6Addr::new(0xfd00, 0x150, 0, 0, 0, 0, 0, host.into()),
        };
        let outside = |host: u8| Ends {
            v4: Ipv4Addr::new(198, 51, 100, host),
            v6: Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, host.into()),
        };
        let (client, client2, server) = match topology {
            Topology::Masquerade | Topology::Routed => (inside(80), inside(81), outside(10)),
            Topology::PublishedServer => (outside(20), outside(21), inside(90)),
        };
        let third = outside(66);
        Self { inside: inside(1), outside: outside(1), client, client2, server, third }
    }
}

/// What to build.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What the gateway does to addresses.
    pub topology: Topology,
    /// Everyone's addresses.
    pub plan: Plan,
    /// Whether IPv6 is translated as IPv4 is (NAT66), or routed.
    pub nat66: bool,
    /// What the gateway's own firewall is written in.
    pub firewall: FirewallKind,
    /// Whether interfaces leave checksums and segmentation to the next one. Off, so that captures
    /// show whole packets with real checksums; on is what locally created traffic looks like.
    pub offloads: bool,
}

impl Spec {
    /// `topology` with the default addresses, NAT66 and an nftables firewall.
    pub fn new(topology: Topology) -> Self {
        Self {
            topology,
            plan: Plan::of(topology),
            nat66: true,
            firewall: FirewallKind::Nftables,
            offloads: false,
        }
    }
}

/// A built lab.
#[derive(Debug)]
pub struct Lab {
    /// The client.
    pub client: Host,
    /// Another client on the client's side.
    pub client2: Host,
    /// The gateway; its interfaces are `lan` and `wan`.
    pub gateway: Host,
    /// The server.
    pub server: Host,
    /// A stranger outside, who knows a route to the inside.
    pub third: Host,
    spec: Spec,
    directory: PathBuf,
    namespaces: Vec<String>,
}

impl Lab {
    /// Builds `topology` as [`Spec::new`] has it.
    pub fn new(topology: Topology) -> Result<Self> {
        Self::build(Spec::new(topology))
    }

    /// Builds what `spec` says.
    pub fn build(spec: Spec) -> Result<Self> {
        super::requirements()?;
        // Kept files of a failed run are for looking at.
        if std::env::var_os("FTP_ALG_LAB_KEEP").is_none() {
            remove_abandoned(Path::new(BASE));
        }
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("fa-{}-{number}", std::process::id());
        let directory = PathBuf::from(BASE).join(&prefix);
        let name = |role: &str| format!("{prefix}-{role}");
        let host = |role: &'static str, ends: Ends| {
            Host::new(role, name(role), ends.v4, ends.v6, directory.clone())
        };
        let plan = &spec.plan;
        let lab = Self {
            client: host("client", plan.client),
            client2: host("client2", plan.client2),
            gateway: host("gateway", plan.outside),
            server: host("server", plan.server),
            third: host("third", plan.third),
            directory: directory.clone(),
            namespaces: ["client", "client2", "gateway", "server", "third", "switch"]
                .map(name)
                .to_vec(),
            spec,
        };
        // From here on dropping `lab` removes whatever exists already.
        register(&lab.namespaces, &lab.directory);
        fs::create_dir_all(&lab.directory)
            .map_err(|source| LabError::File { path: lab.directory.clone(), source })?;
        lab.wire()?;
        for host in [&lab.client, &lab.client2, &lab.server, &lab.third] {
            lab.configure_host(host)?;
        }
        lab.configure_gateway()?;
        Ok(lab)
    }

    /// What it was built from.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The lab's files: captures, logs, the servers' directories. Removed with it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether addresses of this family are translated.
    pub fn translates(&self, family: Family) -> bool {
        self.spec.topology != Topology::Routed && (family == Family::V4 || self.spec.nat66)
    }

    /// The address clients dial for the server.
    pub fn dialled(&self, family: Family) -> IpAddr {
        if self.spec.topology == Topology::PublishedServer && self.translates(family) {
            self.spec.plan.outside.address(family)
        } else {
            self.server.address(family)
        }
    }

    /// The gateway's interface towards the client.
    pub fn client_side(&self) -> &'static str {
        if self.is_inside(&self.client) { "lan" } else { "wan" }
    }

    /// The gateway's interface towards the server.
    pub fn server_side(&self) -> &'static str {
        if self.is_inside(&self.server) { "lan" } else { "wan" }
    }

    fn is_inside(&self, host: &Host) -> bool {
        match host.role() {
            "server" => self.spec.topology == Topology::PublishedServer,
            "client" | "client2" => self.spec.topology != Topology::PublishedServer,
            _ => false,
        }
    }

    /// Namespaces, switches and cables. All cables are made inside the switches' namespace, so that
    /// the machine's own never shows one.
    fn wire(&self) -> Result<()> {
        let mut batch = String::new();
        for namespace in &self.namespaces {
            batch += &format!("netns add {namespace}\n");
        }
        ip(&[], &batch)?;
        let switch = &self.namespaces[5];
        let mut batch = String::from("link add lan type bridge\nlink add wan type bridge\n");
        let mut cable = |port: &str, bridge: &str, interface: &str, namespace: &str| {
            batch += &format!(
                "link add {port} type veth peer name {interface} netns {namespace}\n\
                 link set {port} master {bridge} up\n"
            );
        };
        for host in [&self.client, &self.client2, &self.server, &self.third] {
            let bridge = if self.is_inside(host) { "lan" } else { "wan" };
            cable(host.role(), bridge, "eth0", host.namespace());
        }
        cable("gw-lan", "lan", "lan", self.gateway.namespace());
        cable("gw-wan", "wan", "wan", self.gateway.namespace());
        batch += "link set lan up\nlink set wan up\n";
        ip(&["-n", switch], &batch)
    }

    fn configure_host(&self, host: &Host) -> Result<()> {
        let Plan { inside, outside, .. } = &self.spec.plan;
        let (v4, v6) = (host.address(Family::V4), host.address(Family::V6));
        let mut batch = addresses("eth0", v4, v6) + "link set lo up\n";
        if self.is_inside(host) {
            batch += &format!("route add default via {}\n", inside.v4);
            batch += &format!("route add ::/0 via {}\n", inside.v6);
        } else {
            // The stranger may try the inside's own addresses; others only where these are public.
            let stranger = host.role() == "third";
            if stranger || !self.translates(Family::V4) {
                batch += &format!("route add {}/24 via {}\n", network4(inside.v4), outside.v4);
            }
            if stranger || !self.translates(Family::V6) {
                batch += &format!("route add {}/64 via {}\n", network6(inside.v6), outside.v6);
            }
        }
        // There is no name service here: whoever looks up a name learns it at once.
        for server in nameservers() {
            batch += &format!("route add unreachable {server}\n");
        }
        self.tune(host, &["eth0"], "")?;
        ip(&["-n", host.namespace()], &batch)
    }

    fn configure_gateway(&self) -> Result<()> {
        let Plan { inside, outside, .. } = &self.spec.plan;
        let batch = addresses("lan", inside.v4.into(), inside.v6.into())
            + &addresses("wan", outside.v4.into(), outside.v6.into())
            + "link set lo up\n";
        self.tune(
            &self.gateway,
            &["lan", "wan"],
            "echo 1 > /proc/sys/net/ipv4/ip_forward\n\
             echo 1 > /proc/sys/net/ipv6/conf/all/forwarding\n",
        )?;
        firewall::install(&self.gateway, &self.spec)?;
        ip(&["-n", self.gateway.namespace()], &batch)
    }

    /// Settings that take part in the namespace only (`/proc/sys/net` is the reader's own).
    fn tune(&self, host: &Host, interfaces: &[&str], more: &str) -> Result<()> {
        // Addresses must work at once: no duplicate address detection.
        let mut lines = String::from(
            "echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad\n\
             echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad\n\
             echo 0 > /proc/sys/net/ipv6/conf/default/accept_ra\n",
        );
        lines += more;
        for interface in interfaces.iter().filter(|_| !self.spec.offloads) {
            lines += &format!("ethtool -K {interface} tx off sg off tso off gso off gro off\n");
        }
        host.shell(&lines).map(drop)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        process::remove(&self.namespaces, &self.directory);
    }
}

fn addresses(interface: &str, v4: IpAddr, v6: IpAddr) -> String {
    format!(
        "address add {v4}/24 dev {interface}\n\
         address add {v6}/64 dev {interface} nodad\n\
         link set {interface} up\n"
    )
}

/// The machine's name servers, outside any network of the lab.
fn nameservers() -> Vec<Ipv4Addr> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let addresses =
        text.lines().filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok());
    let mut servers: Vec<Ipv4Addr> =
        addresses.filter(|address: &Ipv4Addr| !address.is_loopback()).collect();
    servers.sort_unstable();
    servers.dedup();
    servers
}

fn network4(address: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(address.to_bits() & !0xff)
}

fn network6(address: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))
}

fn ip(options: &[&str], batch: &str) -> Result<()> {
    let mut command = Command::new(process::system_program("ip"));
    command.args(options).args(["-batch", "-"]);
    process::run(command, batch.as_bytes(), Duration::from_secs(10))?.success().map(drop)
}
