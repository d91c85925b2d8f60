//! The rules that kube-proxy writes on each node for Services of FTP pods, in the structure that its own unit tests expect
//! (`TestOverallIPTablesRules`, `TestOverallNFTablesRules`), without its comments, and with fixed names in place of hashes.

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
    let mut chains = String::new();
    let [mut externally, mut firewall, mut portals, mut ports, mut own] =
        [const { String::new() }; 5];
    for Service { name, policy, external, cluster_ip, node_port } in services {
        let [svc, ext, fw, svl] = ["SVC", "EXT", "FW", "SVL"].map(|of| format!("KUBE-{of}-{name}"));
        for chain in [&svc, &ext, &fw, &svl] {
            chains += &format!(":{chain} -\n");
        }
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
        portals += &format!("-A KUBE-SERVICES -d {cluster_ip} -p tcp --dport 21 -j {svc}\n");
        portals += &format!("-A KUBE-SERVICES -d {external} -p tcp --dport 21 -j {fw}\n");
        ports += &format!("-A KUBE-NODEPORTS -p tcp --dport {node_port} -j {ext}\n");
        own += &format!("-A {fw} -s {CLIENTS} -j {ext}\n");
        firewall += &format!("-A KUBE-PROXY-FIREWALL -d {external} -p tcp --dport 21 -j DROP\n");
        match policy {
            Policy::Cluster => own += &format!("-A {ext} -j KUBE-MARK-MASQ\n-A {ext} -j {svc}\n"),
            Policy::Local => {
                own += &format!("-A {ext} -s {PODS} -j {svc}\n");
                own += &format!("-A {ext} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ\n");
                own += &format!("-A {ext} -m addrtype --src-type LOCAL -j {svc}\n");
                if !local_pods.is_empty() {
                    own += &format!("-A {ext} -j {svl}\n{}", choose(&svl, &local_pods));
                } else {
                    let drop = format!("-d {external} -p tcp --dport 21 -j DROP");
                    externally += &format!("-A KUBE-EXTERNAL-SERVICES {drop}\n");
                }
            }
        }
        let masquerade = "-p tcp --dport 21 -j KUBE-MARK-MASQ";
        own += &format!("-A {svc} -d {cluster_ip} ! -s {PODS} {masquerade}\n");
        own += &choose(&svc, pods);
        for pod in pods {
            let sep = format!("KUBE-SEP-{name}-{}", pod.ip());
            chains += &format!(":{sep} -\n");
            own += &format!("-A {sep} -s {} -j KUBE-MARK-MASQ\n", pod.ip());
            own += &format!("-A {sep} -p tcp -j DNAT --to-destination {pod}\n");
        }
    }
    format!(
        "*filter
:KUBE-EXTERNAL-SERVICES -
:KUBE-FIREWALL -
:KUBE-FORWARD -
:KUBE-NODEPORTS -
:KUBE-PROXY-FIREWALL -
:KUBE-SERVICES -
-A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A INPUT -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
{externally}{firewall}\
-A KUBE-FIREWALL -d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
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
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
{ports}{portals}\
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
{own}COMMIT
"
    )
}

fn nftables(node: &Node, services: &[Service], pods: &[SocketAddr]) -> String {
    let local_pods = node.local(pods);
    let mut chains = String::new();
    let [mut clusters, mut external_ips, mut ports, mut firewall, mut absent] =
        [const { Vec::new() }; 5];
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
            chains += &format!(
                "chain endpoint-{name}-{} {{
ip saddr {} jump mark-for-masquerade
meta l4proto tcp dnat to {pod}
}}
",
                pod.ip(),
                pod.ip()
            );
        }
        let outside = match policy {
            Policy::Cluster => format!("jump mark-for-masquerade\ngoto service-{name}"),
            Policy::Local => {
                let local = if local_pods.is_empty() {
                    absent.push(format!("{external} . tcp . 21 : drop"));
                    String::new()
                } else {
                    chains += &format!("chain local-{name} {{ {}; }}\n", choose(&local_pods));
                    format!("goto local-{name}")
                };
                format!(
                    "ip saddr {PODS} goto service-{name}
fib saddr type local jump mark-for-masquerade
fib saddr type local goto service-{name}
{local}"
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
    let elements = |all: &[String]| match all {
        [] => String::new(),
        all => format!("elements = {{ {} }}", all.join(", ")),
    };
    let [clusters, external_ips, ports, firewall, absent] =
        [clusters, external_ips, ports, firewall, absent].map(|all| elements(&all));
    let address = node.address;
    format!(
        "table ip kube-proxy {{
set cluster-ips {{ type ipv4_addr; {clusters}; }}
set nodeport-ips {{ type ipv4_addr; elements = {{ {address} }}; }}
chain mark-for-masquerade {{ mark set mark or 0x4000; }}
chain reject-chain {{ reject; }}
{chains}
map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; {firewall}; }}
map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; {absent}; }}
map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; {external_ips}; }}
map service-nodeports {{ type inet_proto . inet_service : verdict; {ports}; }}
chain cluster-ips-check {{
ip daddr @cluster-ips reject
ip daddr {{ {CLUSTER_IPS} }} drop
}}
chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}
chain service-endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
chain nodeport-endpoints-check {{
ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
}}
chain services {{
ip daddr . meta l4proto . th dport vmap @service-ips
ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
}}
chain masquerading {{
mark and 0x4000 == 0 return
mark set mark xor 0x4000
masquerade fully-random
}}
chain filter-prerouting-pre-dnat {{
type filter hook prerouting priority -110
ct state new jump firewall-check
}}
chain filter-output-pre-dnat {{
type filter hook output priority -110
ct state new jump firewall-check
}}
chain filter-input {{
type filter hook input priority 0
ct state new jump nodeport-endpoints-check
ct state new jump service-endpoints-check
}}
chain filter-forward {{
type filter hook forward priority 0
ct state new jump service-endpoints-check
ct state new jump cluster-ips-check
}}
chain filter-output {{
type filter hook output priority 0
ct state new jump service-endpoints-check
ct state new jump cluster-ips-check
}}
chain nat-prerouting {{
type nat hook prerouting priority -100
jump services
}}
chain nat-output {{
type nat hook output priority -100
jump services
}}
chain nat-postrouting {{
type nat hook postrouting priority 100
jump masquerading
}}
}}
"
    )
}
