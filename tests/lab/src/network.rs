//! Builds a lab: namespaces, switches, cables, addresses and routes for a [`LabSpec`].

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::{
    DualAddress, Family, Host, LabError, LabSpec, Result, SecondRouter, Topology, firewall,
    process::{self, register, remove_abandoned},
    topology::{NetworkSegment, Role},
};

/// The directory for the files of labs. It is not below `/tmp`, because ProFTPD refuses password files below a
/// world-writable directory.
const BASE: &str = "/run/ftp-alg-lab";

static LABS: AtomicU32 = AtomicU32::new(0);

/// A built lab.
#[derive(Debug)]
pub struct Lab {
    /// The client.
    pub client: Host,
    /// Another client in the client's network.
    pub client2: Host,
    /// The gateway. Its interfaces are `lan` and `wan`.
    pub gateway: Host,
    /// The server.
    pub server: Host,
    /// A host outside that is neither client nor server, with a route to the inside.
    pub outsider: Host,
    /// The server's own gateway, or a router further out, if the topology has one. Its interfaces are also `lan` and
    /// `wan`.
    pub far: Option<Host>,
    spec: LabSpec,
    directory: PathBuf,
    namespaces: Vec<String>,
}

impl Lab {
    /// Builds a lab with the default [`LabSpec`] of `topology`.
    pub fn new(topology: Topology) -> Result<Self> {
        Self::build(LabSpec::new(topology))
    }

    /// Builds a lab.
    pub fn build(spec: LabSpec) -> Result<Self> {
        super::requirements()?;
        mount_bpf();
        // With this variable, the files of a failed run stay for inspection.
        if std::env::var_os("FTP_ALG_LAB_KEEP").is_none() {
            remove_abandoned(Path::new(BASE));
        }
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("fa-{}-{number}", std::process::id());
        let directory = PathBuf::from(BASE).join(&prefix);
        let host = |role, at: &str, ends| {
            let (namespace, directory) = (format!("{prefix}-{at}"), directory.clone());
            Host { role, namespace, ends, directory }
        };
        let (plan, topology) = (&spec.plan, spec.topology);
        let client = if topology == Topology::OnClient { "gateway" } else { "client" };
        let server = if topology == Topology::OnServer { "gateway" } else { "server" };
        let mut lab = Self {
            client: host("client", client, plan.client),
            client2: host("client2", "client2", plan.client2),
            gateway: host("gateway", "gateway", plan.outside),
            server: host("server", server, plan.server),
            outsider: host("third", "third", plan.outsider),
            far: plan.far.map(|far| host("far", "far", far.outside)),
            directory: directory.clone(),
            namespaces: Vec::new(),
            spec,
        };
        let machines = lab.machines();
        lab.namespaces = machines.iter().map(|machine| machine.host.namespace().into()).collect();
        lab.namespaces.push(format!("{prefix}-switch"));
        // From here on, dropping `lab` removes everything that exists already.
        register(&lab.namespaces, &lab.directory);
        fs::create_dir_all(&lab.directory).map_err(LabError::file(&lab.directory))?;
        lab.wire(&machines)?;
        for machine in &machines {
            machine.tune(lab.spec.offloads)?;
            firewall::install(&machine.host, &lab.spec)?;
            ip(&["-n", machine.host.namespace()], &machine.addresses())?;
        }
        Ok(lab)
    }

    /// The description of this lab.
    pub fn spec(&self) -> &LabSpec {
        &self.spec
    }

    /// The directory of the lab's files: captures, logs and directories of servers. It is removed with the lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The namespace of the switches. A switch port is named after the host and the interface that it leads to, as in
    /// `gateway-lan`.
    pub fn switches(&self) -> &str {
        self.namespaces.last().map_or("", String::as_str)
    }

    /// Whether the lab translates addresses of this IP version.
    pub fn translates(&self, family: Family) -> bool {
        self.spec.translates(family)
    }

    /// The hosts on which `ftp-alg` runs.
    pub fn gateways(&self) -> Vec<&Host> {
        let second = self.far.as_ref().filter(|_| self.spec.topology == Topology::BothSides);
        std::iter::once(&self.gateway).chain(second).collect()
    }

    /// The configuration that `ftp-alg` needs in this lab, with this back end.
    pub fn configuration(&self, backend: &str) -> String {
        let LabSpec { topology, plan, .. } = &self.spec;
        let (keys, tables) = (topology.keys(), topology.tables(plan));
        format!("{keys}[pinhole]\nbackend = \"{backend}\"\n\n{tables}")
    }

    /// The address to which clients connect.
    pub fn server_address(&self, family: Family) -> IpAddr {
        self.server_endpoint(family).ip()
    }

    /// The address and port to which clients connect.
    pub fn server_endpoint(&self, family: Family) -> SocketAddr {
        let LabSpec { topology, plan, .. } = &self.spec;
        if !topology.publishes_server() || !self.translates(family) {
            return SocketAddr::new(self.server.address(family), 21);
        }
        let public = plan.far.map_or(plan.outside, |far| far.outside);
        SocketAddr::new(public.address(family), topology.public_port())
    }

    /// The interface of `host` (the client or the server) towards the other one.
    pub fn interface(&self, host: &Host) -> &'static str {
        if host.namespace() == self.gateway.namespace() { "wan" } else { "eth0" }
    }

    /// The gateway's interface towards the client.
    pub fn client_side(&self) -> &'static str {
        self.interface_towards(Role::Client)
    }

    /// The gateway's interface towards the server.
    pub fn server_side(&self) -> &'static str {
        self.interface_towards(Role::Server)
    }

    fn interface_towards(&self, role: Role) -> &'static str {
        if self.spec.topology.segment(role) == NetworkSegment::Lan { "lan" } else { "wan" }
    }

    /// Adds a second gateway next to the first one, between the same networks, with these addresses.
    pub fn add_second_gateway(&mut self, ends: SecondRouter) -> Result<Host> {
        let namespace = format!("{}2", self.gateway.namespace());
        let directory = self.directory.clone();
        let host =
            Host { role: "gateway2", namespace: namespace.clone(), ends: ends.outside, directory };
        let port = |name, segment, ends| MachineInterface { name, segment, ends: vec![ends] };
        let ports = vec![
            port("lan", NetworkSegment::Lan, ends.inside),
            port("wan", NetworkSegment::Wan, ends.outside),
        ];
        let machine = Machine { host: host.clone(), ports, forwards: true, routes: String::new() };
        register(std::slice::from_ref(&namespace), &self.directory);
        // The last one is the namespace of the switches.
        self.namespaces.insert(0, namespace.clone());
        ip(&[], &format!("netns add {namespace}\n"))?;
        // With it, no interface has the index that it has on the first one.
        ip(&["-n", &namespace], "link add spare type bridge\n")?;
        ip(&["-n", self.switches()], &machine.plugs())?;
        machine.tune(self.spec.offloads)?;
        ip(&["-n", &namespace], &machine.addresses())?;
        Ok(host)
    }

    /// All hosts with an address, each namespace once.
    fn machines(&self) -> Vec<Machine> {
        let LabSpec { topology, plan, .. } = &self.spec;
        let leaf = |host: &Host, role, ends| {
            let segment = topology.segment(role);
            let ports = vec![MachineInterface { name: "eth0", segment, ends: vec![ends] }];
            Machine { host: host.clone(), ports, forwards: false, routes: self.routes(host, role) }
        };
        let router = |host: &Host, inner, inside, outer, outside, routes| {
            let ports = vec![
                MachineInterface { name: "lan", segment: inner, ends: vec![inside] },
                MachineInterface { name: "wan", segment: outer, ends: outside },
            ];
            Machine { host: host.clone(), ports, forwards: true, routes }
        };
        let mut outside = vec![plan.outside];
        outside.extend(&plan.pool);
        let mut machines = vec![
            router(
                &self.gateway,
                NetworkSegment::Lan,
                plan.inside,
                NetworkSegment::Wan,
                outside,
                self.gateway_routes(),
            ),
            leaf(&self.client2, Role::Client, plan.client2),
            leaf(&self.outsider, Role::Outsider, plan.outsider),
        ];
        if *topology != Topology::OnClient {
            machines.push(leaf(&self.client, Role::Client, plan.client));
        }
        if *topology != Topology::OnServer {
            machines.push(leaf(&self.server, Role::Server, plan.server));
        }
        if let (Some(host), Some(far)) = (&self.far, plan.far) {
            let (inner, outer) = match topology {
                Topology::OneToOne => (NetworkSegment::Wan, NetworkSegment::Far),
                _ => (NetworkSegment::Far, NetworkSegment::Wan),
            };
            let routes = self.inner_routes(*topology == Topology::OneToOne, plan.outside);
            machines.push(router(host, inner, far.inside, outer, vec![far.outside], routes));
        }
        machines
    }

    /// The routes of a host that is not a gateway.
    fn routes(&self, host: &Host, role: Role) -> String {
        let LabSpec { topology, plan, .. } = &self.spec;
        // There is no name service in the lab. With this route, a lookup fails at once.
        let mut batch: String = nameservers()
            .into_iter()
            .map(|server| format!("route add unreachable {server}\n"))
            .collect();
        let segment = topology.segment(role);
        if segment != topology.public() {
            let far = plan.far.filter(|_| segment == NetworkSegment::Far);
            batch += &default_route(far.map_or(plan.inside, |far| far.inside));
        } else {
            // The outsider has a route to the inside. Other hosts have one only if addresses are not translated.
            let is_outsider = host.role() == "third";
            let way = match (topology, plan.far) {
                (Topology::OneToOne, Some(router)) => router.outside,
                _ => plan.outside,
            };
            batch += &self.inner_routes(is_outsider, way);
            batch += &self.far_routes(is_outsider);
        }
        batch
    }

    fn gateway_routes(&self) -> String {
        match (self.spec.topology, self.spec.plan.far) {
            (Topology::OneToOne, Some(router)) => default_route(router.inside),
            _ => self.far_routes(false),
        }
    }

    /// Routes to the network inside the gateway: always, or only if its addresses are not translated.
    fn inner_routes(&self, always: bool, way: DualAddress) -> String {
        self.network_routes(self.spec.plan.inside, always, way)
    }

    /// Routes to the network inside the server's own gateway, if there is one.
    fn far_routes(&self, always: bool) -> String {
        match self.spec.plan.far {
            Some(far) if self.spec.topology == Topology::BothSides => {
                self.network_routes(far.inside, always, far.outside)
            }
            _ => String::new(),
        }
    }

    fn network_routes(&self, inside: DualAddress, always: bool, way: DualAddress) -> String {
        let mut batch = String::new();
        if always || !self.translates(Family::V4) {
            batch += &format!("route add {}/24 via {}\n", network4(inside.v4), way.v4);
        }
        if always || !self.translates(Family::V6) {
            batch += &format!("route add {}/64 via {}\n", network6(inside.v6), way.v6);
        }
        batch
    }

    /// Makes namespaces, switches and cables. All cables are made in the namespace of the switches, so that they never
    /// appear in the namespace of the machine.
    fn wire(&self, machines: &[Machine]) -> Result<()> {
        let all: String =
            self.namespaces.iter().map(|name| format!("netns add {name}\n")).collect();
        ip(&[], &all)?;
        let Some(switch) = self.namespaces.last() else { return Ok(()) };
        let mut batch = String::new();
        for segment in NetworkSegment::ALL {
            batch += &format!("link add {segment} type bridge\nlink set {segment} up\n");
        }
        for machine in machines {
            let host = &machine.host;
            if !self.spec.direct || !matches!(host.role(), "client" | "server") {
                batch += &machine.plugs();
                continue;
            }
            for MachineInterface { name, segment, .. } in &machine.ports {
                let namespace = host.namespace();
                // The plug of the gateway, which is the first machine.
                batch += &format!("link set gateway-{segment} netns {namespace} name {name}\n");
            }
        }
        ip(&["-n", switch], &batch)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        process::remove(&self.namespaces, &self.directory);
    }
}

/// A namespace to configure.
struct Machine {
    host: Host,
    ports: Vec<MachineInterface>,
    forwards: bool,
    routes: String,
}

/// A network interface of a machine.
struct MachineInterface {
    name: &'static str,
    segment: NetworkSegment,
    ends: Vec<DualAddress>,
}

impl Machine {
    /// The commands for `ip -batch` that connect it to the switches.
    fn plugs(&self) -> String {
        let mut batch = String::new();
        for MachineInterface { name, segment, .. } in &self.ports {
            let (role, namespace) = (self.host.role(), self.host.namespace());
            batch += &format!(
                "link add {role}-{name} type veth peer name {name} netns {namespace}\n\
                 link set {role}-{name} master {segment} up\n"
            );
        }
        batch
    }

    /// Sets sysctls and offloads. `/proc/sys/net` belongs to the namespace of the process, so nothing else changes.
    fn tune(&self, offloads: bool) -> Result<()> {
        // Duplicate address detection is off, so that addresses work at once.
        let mut lines = String::from(
            "echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad\n\
             echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad\n\
             echo 0 > /proc/sys/net/ipv6/conf/default/accept_ra\n",
        );
        if self.forwards {
            lines += "echo 1 > /proc/sys/net/ipv4/ip_forward\n\
                      echo 1 > /proc/sys/net/ipv6/conf/all/forwarding\n";
        }
        // On a busy machine a neighbour may answer only after the kernel's three seconds.
        for MachineInterface { name, .. } in &self.ports {
            for version in ["ipv4", "ipv6"] {
                let neighbour = format!("/proc/sys/net/{version}/neigh/{name}");
                lines += &format!("echo 10 > {neighbour}/mcast_solicit\n");
                lines += &format!("echo 10 > {neighbour}/ucast_solicit\n");
            }
        }
        for MachineInterface { name, .. } in self.ports.iter().filter(|_| !offloads) {
            lines += &format!("ethtool -K {name} tx off sg off tso off gso off gro off\n");
        }
        self.host.shell(&lines).map(drop)
    }

    /// The commands for `ip -batch` that set addresses and routes.
    fn addresses(&self) -> String {
        let mut batch = String::from("link set lo up\n");
        for MachineInterface { name, ends, .. } in &self.ports {
            for DualAddress { v4, v6 } in ends {
                batch += &format!("address add {v4}/24 dev {name}\n");
                batch += &format!("address add {v6}/64 dev {name} nodad\n");
            }
            batch += &format!("link set {name} up\n");
        }
        batch + &self.routes
    }
}

fn default_route(way: DualAddress) -> String {
    format!("route add default via {}\nroute add ::/0 via {}\n", way.v4, way.v6)
}

/// The name servers of the machine that are not on a loopback address.
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
    process::run(command, batch.as_bytes(), Duration::from_secs(60))?.success().map(drop)
}

/// Whether this kernel has TCX, so that the fast path must run. It says so if not.
pub fn has_tcx() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    let has = (numbers.next(), numbers.next()) >= (Some(6), Some(6));
    if !has {
        println!("not tried: Linux {} has no TCX, which came with 6.6", release.trim());
    }
    has
}

/// Mounts the BPF file system, because the fast path needs it. A machine with systemd has it mounted already.
pub fn mount_bpf() {
    static ONCE: Once = Once::new();
    const PLACE: &str = "/sys/fs/bpf";
    ONCE.call_once(|| {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let is_mounted = mounts.lines().any(|line| line.split(' ').nth(1) == Some(PLACE));
        if !is_mounted && Path::new(PLACE).is_dir() {
            // If this fails, the fast path stays off.
            let _ = Command::new("mount").args(["-t", "bpf", "bpf", PLACE]).status();
        }
    });
}
