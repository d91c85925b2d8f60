//! The rules that kube-proxy writes on each node for Services of FTP pods, in the structure that its own unit tests expect
//! (`TestOverallIPTablesRules`, `TestOverallNFTablesRules`), without its comments, and with fixed names in place of hashes.
//! Left out are chains that are empty here, and rules for what a node itself sends or is sent.

use std::net::SocketAddr;

use super::cluster::{Node, PODS};

/// The addresses of all Services, `--service-cluster-ip-range`.
const CLUSTER_IPS: &str = "10.96.0.0/12";
/// Who may use the external address, `loadBalancerSourceRanges`.
const CLIENTS: &str = "198.51.100.0/24";

/// `--proxy-mode` of kube-proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    Iptables,
    Nftables,
}

/// `externalTrafficPolicy` of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Only a node with a pod of the Service takes connections, and the pod sees the client.
    Local,
    /// Each node takes connections, and the pod sees the node.
    Cluster,
}

/// A Service of type LoadBalancer that publishes port 21 alone.
pub struct Service {
    /// Part of the names of its chains.
    pub name: &'static str,
    pub policy: Policy,
    /// `status.loadBalancer.ingress`.
    pub external: &'static str,
    pub cluster_ip: &'static str,
    pub node_port: u16,
}

/// Loads the rules of `mode` on `node` for `services`, each of them with all `pods`.
pub fn load(mode: ProxyMode, node: &Node, services: &[Service], pods: &[SocketAddr]) {
    match mode {
        ProxyMode::Iptables => node.restore(&iptables(node, services, pods)),
        ProxyMode::Nftables => node.host.nft(&nftables(node, services, pods)).unwrap(),
    }
}

/// The input of `iptables-restore --noflush`.
fn iptables(node: &Node, services: &[Service], pods: &[SocketAddr]) -> String {
    let local_pods = node.local(pods);
    let [mut filter, mut chains, mut nat] = [const { String::new() }; 3];
    for Service { name, policy, external, cluster_ip, node_port } in services {
        let [svc, ext, fw, svl] = ["SVC", "EXT", "FW", "SVL"].map(|of| format!("KUBE-{of}-{name}"));
        // One of the pods by chance, the last one if it is none of the others.
        let choose = |chain: &str, pods: &[SocketAddr]| {
            let rules = pods.iter().enumerate().map(|(at, pod)| {
                let left = u8::try_from(pods.len() - at).unwrap();
                let chance = 1.0 / f64::from(left);
                let chance = format!("-m statistic --mode random --probability {chance:.10} ");
                let chance = if left > 1 { &chance } else { "" };
                format!("-A {chain} {chance}-j KUBE-SEP-{name}-{}\n", pod.ip())
            });
            rules.collect::<String>()
        };
        let outside = match policy {
            Policy::Cluster => format!("-A {ext} -j KUBE-MARK-MASQ\n-A {ext} -j {svc}"),
            Policy::Local => format!(
                "-A {ext} -s {PODS} -j {svc}
-A {ext} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ
-A {ext} -m addrtype --src-type LOCAL -j {svc}
-A {ext} -j {svl}"
            ),
        };
        filter += &format!("-A KUBE-PROXY-FIREWALL -d {external} -p tcp --dport 21 -j DROP\n");
        chains += &format!(":{svc} -\n:{ext} -\n:{fw} -\n:{svl} -\n");
        nat += &format!(
            "-A KUBE-SERVICES -d {cluster_ip} -p tcp --dport 21 -j {svc}
-A KUBE-SERVICES -d {external} -p tcp --dport 21 -j {fw}
-A KUBE-NODEPORTS -p tcp --dport {node_port} -j {ext}
-A {fw} -s {CLIENTS} -j {ext}
{outside}
-A {svc} -d {cluster_ip} ! -s {PODS} -p tcp --dport 21 -j KUBE-MARK-MASQ
"
        );
        nat += &(choose(&svc, pods) + &choose(&svl, &local_pods));
        for pod in pods {
            let ip = pod.ip();
            chains += &format!(":KUBE-SEP-{name}-{ip} -\n");
            nat += &format!(
                "-A KUBE-SEP-{name}-{ip} -s {ip} -j KUBE-MARK-MASQ
-A KUBE-SEP-{name}-{ip} -p tcp -j DNAT --to-destination {pod}
"
            );
        }
    }
    format!(
        "*filter
:KUBE-FORWARD -
:KUBE-PROXY-FIREWALL -
-A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
{filter}\
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-MARK-MASQ -
:KUBE-NODEPORTS -
:KUBE-POSTROUTING -
:KUBE-SERVICES -
{chains}\
-A PREROUTING -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
{nat}\
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
"
    )
}

fn nftables(node: &Node, services: &[Service], pods: &[SocketAddr]) -> String {
    let local_pods = node.local(pods);
    let mut chains = String::new();
    let [mut clusters, mut external_ips, mut ports, mut firewall] = [const { Vec::new() }; 4];
    for Service { name, policy, external, cluster_ip, node_port } in services {
        clusters.push((*cluster_ip).to_owned());
        external_ips.push(format!("{cluster_ip} . tcp . 21 : goto service-{name}"));
        external_ips.push(format!("{external} . tcp . 21 : goto external-{name}"));
        ports.push(format!("tcp . {node_port} : goto external-{name}"));
        firewall.push(format!("{external} . tcp . 21 : goto firewall-{name}"));
        let choose = |pods: &[SocketAddr]| {
            let goto = |(at, pod): (usize, &SocketAddr)| {
                format!("{at} : goto endpoint-{name}-{}", pod.ip())
            };
            let all: Vec<_> = pods.iter().enumerate().map(goto).collect();
            format!("numgen random mod {} vmap {{ {} }}", pods.len(), all.join(", "))
        };
        for pod in pods {
            let ip = pod.ip();
            chains += &format!(
                "chain endpoint-{name}-{ip} {{
ip saddr {ip} jump mark-for-masquerade
meta l4proto tcp dnat to {pod}
}}
"
            );
        }
        let outside = match policy {
            Policy::Cluster => format!("jump mark-for-masquerade\ngoto service-{name}"),
            Policy::Local => {
                let local = (!local_pods.is_empty()).then(|| choose(&local_pods));
                format!(
                    "ip saddr {PODS} goto service-{name}
fib saddr type local jump mark-for-masquerade
fib saddr type local goto service-{name}
{}",
                    local.unwrap_or_default()
                )
            }
        };
        chains += &format!(
            "chain service-{name} {{
ip daddr {cluster_ip} ip saddr != {PODS} jump mark-for-masquerade
{}
}}
chain external-{name} {{
{outside}
}}
chain firewall-{name} {{
ip saddr != {{ {CLIENTS} }} drop
}}
",
            choose(pods)
        );
    }
    let [clusters, external_ips, ports, firewall] = [clusters, external_ips, ports, firewall]
        .map(|all| format!("elements = {{ {} }}", all.join(", ")));
    let address = node.address;
    format!(
        "table ip kube-proxy {{
set cluster-ips {{ type ipv4_addr; {clusters}; }}
set nodeport-ips {{ type ipv4_addr; elements = {{ {address} }}; }}
chain mark-for-masquerade {{ mark set mark or 0x4000; }}
{chains}
map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; {firewall}; }}
map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; {external_ips}; }}
map service-nodeports {{ type inet_proto . inet_service : verdict; {ports}; }}
chain filter-prerouting-pre-dnat {{
type filter hook prerouting priority -110
ct state new ip daddr . meta l4proto . th dport vmap @firewall-ips
}}
chain cluster-ips-check {{
ip daddr @cluster-ips reject
ip daddr {{ {CLUSTER_IPS} }} drop
}}
chain filter-forward {{
type filter hook forward priority 0
ct state new jump cluster-ips-check
}}
chain nat-prerouting {{
type nat hook prerouting priority -100
ip daddr . meta l4proto . th dport vmap @service-ips
ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
}}
chain nat-postrouting {{
type nat hook postrouting priority 100
mark and 0x4000 == 0 return
mark set mark xor 0x4000
masquerade fully-random
}}
}}
"
    )
}
