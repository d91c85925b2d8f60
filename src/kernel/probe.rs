//! Probes what the kernel supports in this network namespace, without leaving anything behind.
//!
//! Rules and objects are tested in transactions that the kernel checks and never commits. The kernel may load a module
//! when it is probed, as with any use.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    path::Path,
};

use ftp_alg_firewall::Routing;

use super::{
    NetfilterError, RuleParameters,
    broker::{CAP_NET_ADMIN, CAP_NET_RAW, has_capability, run_for_output},
    conntrack::{
        CTA_HELP, CTA_HELP_NAME, CTA_TUPLE_ORIG, IPCTNL_MSG_CT_GET, IPCTNL_MSG_EXP_GET, Tuple, dump,
    },
    netlink::{Attributes, Socket, is_answered, kind_of},
    parameters::QueueStatement,
    queue,
    table::{
        compiled::as_draft,
        helper::OwnHelper,
        loading::nft,
        queue_rules::{queues_of_table, try_queue_rule},
        rule_files::render_nftables,
    },
};

// From linux/netfilter/nfnetlink_conntrack.h; libc lacks it.
const IPCTNL_MSG_CT_GET_STATS: u16 = kind_of(libc::NFNL_SUBSYS_CTNETLINK, 5);

/// A table that contains only an object of the kernel's helper for scanners.
const SCANNER_HELPER: &str =
    "table inet ftp_alg_probe { ct helper scanner { type \"sane\" protocol tcp; }; }\n";
/// A table with a NAT chain.
const NAT: &str = "table inet ftp_alg_probe {
    chain nat { type nat hook postrouting priority 0; masquerade; }; }\n";

/// The result of the probe.
#[derive(Debug)]
pub struct KernelFeatures {
    /// Whether this process has CAP_NET_ADMIN. Without it nothing else is known.
    pub net_admin: bool,
    pub net_raw: bool,
    /// The version of the program `nft`.
    pub nft: Result<String, String>,
    /// How packets can be queued, if the kernel accepts our rules.
    pub rules: Result<QueueStatement, NetfilterError>,
    /// Whether queues can be read (nfnetlink_queue).
    pub queue: bool,
    /// Configured queues that already have a reader, and the reader.
    pub readers: Vec<(u16, String)>,
    /// Conntrack's abilities.
    pub conntrack: ConntrackAbilities,
    /// Number of conntrack entries, and the limit.
    pub connections: Option<(u64, u64)>,
    /// Whether conntrack counts the bytes of connections (`nf_conntrack_acct`).
    pub counts_bytes: Option<bool>,
    /// Number of control connections that have the kernel's FTP helper.
    pub helped_connections: usize,
    /// Settings outside the rules that conflict with ours.
    pub host: HostSettings,
}

/// Settings outside the rules that affect connections.
#[derive(Clone, Copy, Debug)]
pub struct HostSettings {
    /// Whether our table is loaded and queues packets itself.
    pub table_queues: bool,
    /// Whether the kernel assigns its helpers by port (`nf_conntrack_helper`).
    pub automatic_helpers: bool,
    /// Whether helpers can run in user space (nfnetlink_cthelper).
    pub cthelper: bool,
    /// How this machine routes.
    pub routing: Routing,
}

impl HostSettings {
    /// Reads the present settings.
    pub fn read(parameters: &RuleParameters) -> Self {
        Self {
            table_queues: Socket::open()
                .and_then(|mut socket| queues_of_table(&mut socket))
                .is_ok_and(|queues| !queues.is_empty()),
            automatic_helpers: read_number("/proc/sys/net/netfilter/nf_conntrack_helper")
                == Some(1),
            cthelper: OwnHelper::is_supported(),
            routing: read_routing(&parameters.gateway.control_ports),
        }
    }
}

/// How this machine routes at present.
pub fn read_routing(control_ports: &[u16]) -> Routing {
    let addresses = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    Routing {
        v4: read_number("/proc/sys/net/ipv4/ip_forward") == Some(1),
        v6: forwards_v6() && routes_v6(),
        has_v6: addresses.lines().any(|line| !line.trim_end().ends_with(" lo")),
        has_local_server: ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
            .into_iter()
            .filter_map(|path| File::open(path).ok())
            .any(|file| is_listened_on(BufReader::new(file), control_ports)),
    }
}

/// Whether this machine has IPv6 routes, and does not forward IPv6.
pub fn has_unforwarded_v6() -> bool {
    !forwards_v6() && routes_v6()
}

fn forwards_v6() -> bool {
    read_number("/proc/sys/net/ipv6/conf/all/forwarding") == Some(1)
}

fn routes_v6() -> bool {
    File::open("/proc/thread-self/net/ipv6_route")
        .is_ok_and(|routes| has_v6_route(BufReader::new(routes)))
}

/// Whether a route leads to more than the hosts of a link: the routes of the kernel, except those of link-local and
/// multicast addresses. `lo` has the route that rejects everything.
fn has_v6_route(routes: impl BufRead) -> bool {
    let leads_elsewhere = |line: String| {
        let is_own = ["fe8", "fe9", "fea", "feb", "ff"].iter().any(|own| line.starts_with(own));
        !is_own && line.split_whitespace().next_back().is_some_and(|device| device != "lo")
    };
    routes.lines().map_while(Result::ok).any(leads_elsewhere)
}

/// Whether a socket listens on one of `ports`. Listening sockets come first (tcp_get_idx() in tcp_ipv4.c).
fn is_listened_on(sockets: impl BufRead, ports: &[u16]) -> bool {
    let listening = |line: io::Result<String>| {
        let line = line.ok()?;
        let mut words = line.split_whitespace().skip(1);
        let (local, state) = (words.next()?, words.nth(1)?);
        let port = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
        (state == "0A").then_some(port)
    };
    sockets.lines().skip(1).map_while(listening).any(|port| ports.contains(&port))
}

impl KernelFeatures {
    /// Probes the kernel.
    pub fn probe(parameters: &RuleParameters) -> Self {
        let net_admin = has_capability(CAP_NET_ADMIN);
        let conntrack = ConntrackAbilities::read();
        Self {
            net_admin,
            net_raw: has_capability(CAP_NET_RAW),
            nft: run_for_output("nft", &["--version"])
                .map(|text| nft_version(&text).to_owned())
                .map_err(|error| error.to_string()),
            rules: supported_statement(parameters, net_admin),
            queue: Path::new(queue::STATISTICS).exists(),
            readers: queue::readers(parameters.queues()),
            conntrack,
            connections: read_number("/proc/sys/net/netfilter/nf_conntrack_count")
                .zip(read_number("/proc/sys/net/netfilter/nf_conntrack_max")),
            counts_bytes: read_number("/proc/sys/net/netfilter/nf_conntrack_acct")
                .map(|value| value != 0),
            helped_connections: count_helped_connections(parameters).unwrap_or(0),
            host: HostSettings::read(parameters),
        }
    }
}

/// Conntrack's abilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackAbilities {
    /// Whether entries can be queried (nf_conntrack_netlink).
    pub ctnetlink: bool,
    /// Whether user space can create expectations.
    pub expectations: bool,
    /// Whether NAT is available (nf_nat, and with it `nat-follow-master`).
    pub nat: bool,
    /// Whether helpers can run in user space (nfnetlink_cthelper).
    pub cthelper: bool,
    /// Whether the kernel has its helper for scanners (nf_conntrack_sane) as an nftables object.
    pub scanner_helper: bool,
}

impl ConntrackAbilities {
    /// Whether pinholes can be expectations of our own helper in user space. Starts no program if the kernel does not
    /// support such helpers.
    pub fn supports_own_helper() -> bool {
        OwnHelper::is_supported() && Self::read().supports_expectations()
    }

    /// Probes the kernel. Without CAP_NET_ADMIN it shows none.
    pub fn read() -> Self {
        let takes = |rules: &str| check_rules(rules).is_ok();
        // Usually the kernel accepts both, which takes one run of nft to find out.
        let takes_both = takes(&format!("{NAT}{SCANNER_HELPER}"));
        Self {
            ctnetlink: is_answered(IPCTNL_MSG_CT_GET_STATS, 0),
            expectations: is_answered(IPCTNL_MSG_EXP_GET, libc::NLM_F_DUMP),
            cthelper: OwnHelper::is_supported(),
            nat: takes_both || takes(NAT),
            scanner_helper: takes_both || takes(SCANNER_HELPER),
        }
    }

    /// Whether pinholes can be expectations. The kernel accepts these only for a control connection that has a helper
    /// of any kind.
    pub fn supports_expectations(&self) -> bool {
        self.ctnetlink && self.expectations && self.nat && (self.cthelper || self.scanner_helper)
    }
}

/// Checks `rules` with nft and the kernel, without loading them.
fn check_rules(rules: &str) -> Result<(), NetfilterError> {
    nft(&["--check", "--file", "-"], rules)
}

/// How our rules can queue packets, determined by checking the whole table.
fn supported_statement(
    parameters: &RuleParameters,
    net_admin: bool,
) -> Result<QueueStatement, NetfilterError> {
    let not_permitted = || NetfilterError::NotPermitted { what: "nf_tables".into() };
    let mut socket = Socket::open().ok().filter(|_| net_admin).ok_or_else(not_permitted)?;
    // These are loaded without what a kernel may lack.
    let parameters = &parameters.clone().with_data_log(false).with_max_encrypted(None);
    let mut refused = None;
    for statement in QueueStatement::BY_PREFERENCE {
        // Under another name, because the table itself may have an owner.
        match check_rules(&as_draft(&render_nftables(parameters, statement))) {
            Ok(()) if statement == QueueStatement::Native => {}
            Ok(()) => try_queue_rule(parameters, &mut socket)?,
            Err(error @ NetfilterError::RulesRefused { .. }) => {
                refused = Some(error);
                continue;
            }
            Err(other) => return Err(other),
        }
        return Ok(statement);
    }
    Err(refused.unwrap_or_else(not_permitted))
}

/// Number of control connections that have the kernel's helper.
fn count_helped_connections(parameters: &RuleParameters) -> io::Result<usize> {
    let mut found = 0;
    let is_helped = |connection: &Attributes<'_>| {
        let name = connection.nested(CTA_HELP)?.first(CTA_HELP_NAME)?;
        let port = Tuple::read(connection, CTA_TUPLE_ORIG)?.destination.port();
        let is_ftp = name.strip_suffix(b"\0").unwrap_or(name) == b"ftp";
        Some(is_ftp && parameters.gateway.control_ports.contains(&port))
    };
    let each = |connection: &Attributes<'_>| {
        found += usize::from(is_helped(connection) == Some(true));
    };
    dump(&mut Socket::open()?, IPCTNL_MSG_CT_GET, |_| {}, each)?;
    Ok(found)
}

fn read_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Extracts `1.0.6` from `nftables v1.0.6 (Lester Gooch #5)`.
fn nft_version(text: &str) -> &str {
    let word = text.split_whitespace().nth(1).unwrap_or(text.trim());
    word.strip_prefix('v').unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sockets_that_listen_are_read() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue\n   \
            0: 00000000:0016 00000000:0000 0A 00000000:00000000\n   \
            1: 00000000:0015 00000000:0000 0A 00000000:00000000\n   \
            2: 0100007F:1234 0100007F:0050 01 00000000:00000000\n";
        for (port, answer) in [(21, true), (22, true), (0x1234, false), (80, false)] {
            assert_eq!(is_listened_on(text.as_bytes(), &[port]), answer, "{port}");
        }
        assert!(!is_listened_on(&b"nonsense\nmore of it\n"[..], &[21]));
    }

    #[test]
    fn routes_of_links_alone_lead_nowhere() {
        let route = |network: &str, device: &str| {
            format!(
                "{network:0<32} 40 {:032} 00 {:032} 00000100 00000001 00000000 00000001 {device:>8}\n",
                0, 0
            )
        };
        let own = [("fe80", "eth0"), ("ff", "eth0"), ("0", "lo"), ("fd00", "lo")];
        let mut routes: String = own.map(|(network, device)| route(network, device)).concat();
        assert!(!has_v6_route(routes.as_bytes()));
        routes += &route("20010db8", "eth0");
        assert!(has_v6_route(routes.as_bytes()));
        assert!(has_v6_route(route("0", "eth0").as_bytes()));
    }
}
