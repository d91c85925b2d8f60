//! The testbed: a lab with a contestant on its gateway. Each measurement has its own, so that none finds conntrack
//! entries of another.

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use ftp_alg_lab::{
    BackgroundProcess, Daemon, Family, Host, Lab, LabError, LabSpec, Result, Topology, wait_at_most,
};

use crate::{
    accept,
    contestant::Contestant,
    figure::Figure,
    forward::{DATA_PORT, FORWARDED_PORTS},
    placement::Placement,
    proxies,
};

/// The queue of the accept loop, which is not the daemon's.
const QUEUE: u16 = 2500;

/// Rules that assign the kernel's helper to every control connection.
const HELPER: &str = "
table inet helper {
    ct helper ftp { type \"ftp\" protocol tcp; }
    chain assign {
        type filter hook prerouting priority filter;
        tcp dport 21 ct helper set \"ftp\"
    }
}
table inet gateway {
    chain forward { ct state related accept; }
}
";

/// A rule for the back end `conntrack`.
const ACCEPT_RELATED: &str =
    "table inet gateway {\nchain forward {\nct state related accept\n}\n}\n";

/// Rules that replace the lab's firewall: every connection passes, with its source translated.
const ACCEPT_ALL: &str = "
table inet gateway {
    chain source {
        type nat hook postrouting priority srcnat;
        meta nfproto ipv4 oifname \"wan\" masquerade
    }
}
";

/// Settings of the hosts, in their namespaces only.
const HOST_SETTINGS: &str = "
echo 10000 60999 > /proc/sys/net/ipv4/ip_local_port_range
echo 4194304 > /proc/sys/net/core/wmem_max 2>/dev/null || true
";

/// Makes the client acknowledge at once on connections to the gateway itself.
const QUICK_ACK: &str = "
route=$(ip -4 route show dev eth0 scope link)
ip route replace $route dev eth0 quickack 1
";

/// A lab with a contestant on its gateway, and an FTP server behind it.
pub struct Testbed {
    /// The lab.
    pub lab: Lab,
    /// The address that clients connect to.
    pub target: SocketAddr,
    /// On which cores processes run.
    pub placement: Placement,
    // Dropped before the lab is removed.
    running: Vec<BackgroundProcess>,
    daemon: Option<Daemon>,
    /// The process that reads the queue, if there is one.
    program: Option<u32>,
    _server: BackgroundProcess,
}

impl Testbed {
    /// Builds a lab with `contestant` on its gateway.
    pub fn build(contestant: &Contestant, figure: Figure, pin: Placement) -> Result<Self> {
        // Offloads, as on real interfaces and for local traffic: the kernel computes checksums and segments as late as
        // possible.
        let topology = match figure {
            Figure::Published(_) => Topology::PublishedServer,
            Figure::Cycles6(..) => Topology::Routed,
            _ => Topology::Masquerade,
        };
        // So that little but the gateway takes time.
        let direct = figure.clients().is_some();
        let lab = Lab::build(LabSpec { offloads: true, direct, ..LabSpec::new(topology) })?;
        for host in [&lab.client, &lab.server, &lab.gateway] {
            host.shell(HOST_SETTINGS)?;
        }
        // The bridges of the lab are not part of the gateway, so its firewall must not see their packets.
        lab.gateway.shell(&format!(
            "nsenter --net=/run/netns/{} sh -c '\
             for file in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $file ] || echo 0 > $file; done'",
            lab.switches()
        ))?;
        let family = if let Figure::Cycles6(..) = figure { Family::V6 } else { Family::V4 };
        let target = SocketAddr::new(lab.server_address(family), 21);
        let at = pin.for_clients(figure.clients());
        let serve = at.traffic_command(lab.server.command(at.program()), &["serve", "21"]);
        let server = lab.server.start(serve, "serve")?;
        lab.server.wait_for_port(21, Duration::from_secs(10))?;
        let mut testbed = Self {
            lab,
            target,
            placement: pin,
            running: Vec::new(),
            daemon: None,
            program: None,
            _server: server,
        };
        testbed.install(contestant, figure)?;
        Ok(testbed)
    }

    fn install(&mut self, contestant: &Contestant, figure: Figure) -> Result<()> {
        let gateway = &self.lab.gateway;
        if let Figure::Forward(_) = figure {
            gateway.nft(&admitted(&FORWARDED_PORTS))?;
        }
        match contestant {
            Contestant::Daemon { executable, configuration, .. } => {
                if contestant.expects() {
                    gateway.nft(ACCEPT_RELATED)?;
                }
                let daemon = Daemon::start(executable, gateway, configuration)?;
                self.placement.pin_gateway(daemon.id())?;
                self.program = Some(daemon.id());
                self.daemon = Some(daemon);
            }
            Contestant::KernelHelper => gateway.nft(HELPER)?,
            Contestant::AcceptLoop => {
                // Without announcements, the loop is measured without the kernel's helper.
                if matches!(figure, Figure::Cycles(..) | Figure::Sessions(..)) {
                    gateway.nft(HELPER)?;
                }
                self.accept_loop()?;
            }
            Contestant::SuseProxy { hurried } => {
                self.proxy(proxies::suse)?;
                if *hurried {
                    self.lab.client.shell(QUICK_ACK)?;
                }
            }
            Contestant::Proftpd => self.proxy(proxies::proftpd)?,
            Contestant::Firewall => {
                if let Figure::Forward(_) = figure {
                    gateway.nft(&admitted(&[DATA_PORT]))?;
                }
            }
            Contestant::NoHelper => {
                gateway.nft("delete table inet gateway")?;
                gateway.nft(ACCEPT_ALL)?;
            }
        }
        Ok(())
    }

    /// Runs a proxy that clients connect to instead of the server. Every connection to it is accepted.
    fn proxy(&mut self, prepare: fn(&Host, SocketAddr) -> Result<Command>) -> Result<()> {
        let gateway = &self.lab.gateway;
        gateway.nft("delete table inet gateway")?;
        let running = gateway.start(prepare(gateway, self.target)?, "proxy")?;
        self.placement.pin_gateway(running.id())?;
        gateway
            .wait_for_port(21, Duration::from_secs(10))
            .map_err(|error| LabError::Unexpected(format!("{error}: {}", running.log())))?;
        self.target.set_ip(self.lab.spec().plan.inside.v4.into());
        self.running.push(running);
        Ok(())
    }

    /// Runs the accept loop, and queues every packet of control connections for it, at the hook that the daemon uses.
    fn accept_loop(&mut self) -> Result<()> {
        let gateway = &self.lab.gateway;
        let program = accept::build()?;
        let mut command = gateway.command(program);
        command.arg(QUEUE.to_string());
        let running = gateway.start(command, "accept")?;
        wait_at_most(5, "the accept loop", || running.log().contains("ready"));
        self.placement.pin_gateway(running.id())?;
        self.program = Some(running.id());
        for port in ["--dport", "--sport"] {
            gateway.shell(&format!(
                "iptables -w -t mangle -A FORWARD -p tcp {port} 21 -j NFQUEUE --queue-num {QUEUE}"
            ))?;
        }
        self.running.push(running);
        Ok(())
    }

    /// Processor time of the gateway's program until now. `None` if it is not one process.
    pub fn processor_time(&self) -> Option<Duration> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.program?)).ok()?.flatten();
        let used = threads.filter_map(|thread| {
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Some(Duration::from_nanos(used.sum()))
    }

    /// The daemon's count of packets. `None` without a daemon.
    pub fn packets(&self) -> Result<Option<u64>> {
        self.daemon.as_ref().map(|daemon| daemon.counter("packets")).transpose()
    }

    /// The log of the gateway's program, for a measurement that failed.
    pub fn log(&self) -> String {
        let daemon = self.daemon.as_ref().map(Daemon::log);
        daemon.into_iter().chain(self.running.iter().map(BackgroundProcess::log)).collect()
    }
}

/// Rules that accept connections to `ports`.
fn admitted(ports: &[u16]) -> String {
    let rule = |port: &u16| format!("meta l4proto {{ tcp, udp }} th dport {port} accept\n");
    let rules: String = ports.iter().map(rule).collect();
    format!("table inet gateway {{\nchain forward {{\n{rules}}}\n}}\n")
}
