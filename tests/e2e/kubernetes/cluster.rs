//! Two nodes of a cluster in namespaces, with the networks and rules of a container network interface (CNI).
//!
//! ```text
//!   client pod             node 1                  node 2             FTP pod
//!   10.244.1.80 --- .1 | 198.51.100.1 --- 198.51.100.2 | .1 --- 10.244.2.90
//!                                 |
//!                      198.51.100.66 outsider
//! ```

use std::net::{Ipv4Addr, SocketAddr};

use super::kube_proxy::{self, Policy, ProxyMode, Service};
use crate::common::*;

/// The addresses of all pods, `--cluster-cidr`.
pub const PODS: &str = "10.244.0.0/16";
/// The address of the FTP pod, on the second node.
pub const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 90);
/// The address of a pod on the first node, a client or another FTP pod.
pub const OTHER_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 80);

pub const LOCAL: Service = Service {
    name: "LOCAL",
    policy: Policy::Local,
    external: "198.51.100.21",
    cluster_ip: "10.96.0.21",
    node_port: 30021,
};
pub const CLUSTER: Service = Service {
    name: "CLUSTER",
    policy: Policy::Cluster,
    external: "198.51.100.22",
    cluster_ip: "10.96.0.22",
    node_port: 30022,
};

/// How the CNI connects pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cni {
    /// As flannel: a bridge with br_netfilter, and VXLAN between nodes. The node's FORWARD chain drops by default, and
    /// accepts the addresses of pods.
    Bridge,
    /// As Calico: a route to each pod, whose neighbour is the node by proxy ARP, and routes between nodes. The FTP pod has a
    /// NetworkPolicy that admits port 21 alone.
    Routed,
}

/// A node, whose pods have addresses of 10.244.NUMBER.0/24.
pub struct Node<'a> {
    number: u8,
    pub host: &'a Host,
    /// Its address, which is also that of its node ports.
    pub address: Ipv4Addr,
    /// Its only pod, and the namespace of that.
    pod: Ipv4Addr,
    pod_host: &'a Host,
}

impl Node<'_> {
    /// Those of `pods` that run on it.
    pub fn local(&self, pods: &[SocketAddr]) -> Vec<SocketAddr> {
        pods.iter().copied().filter(|pod| pod.ip() == self.pod).collect()
    }

    /// Adds rules to those of iptables.
    pub fn restore(&self, rules: &str) {
        let mut command = self.host.command("iptables-nft-restore");
        command.arg("--noflush");
        let limit = Duration::from_secs(20);
        self.host.finish(command, rules.as_bytes(), limit).unwrap().success().unwrap();
    }
}

/// The cluster, and an outsider that reaches the external addresses.
pub struct Cluster {
    pub lab: Lab,
}

impl Cluster {
    /// A cluster with both Services, whose pod listens on port 21.
    pub fn new(mode: ProxyMode, cni: Cni) -> Self {
        Self::with(mode, cni, &[SocketAddr::new(POD.into(), 21)])
    }

    /// A cluster with both Services, which have these FTP pods.
    pub fn with(mode: ProxyMode, cni: Cni, pods: &[SocketAddr]) -> Self {
        let topology = Topology::BothSides;
        let mut plan = AddressPlan::for_topology(topology);
        plan.inside.v4 = Ipv4Addr::new(10, 244, 1, 1);
        plan.client.v4 = OTHER_POD;
        plan.client2.v4 = Ipv4Addr::new(10, 244, 1, 81);
        plan.server.v4 = POD;
        plan.far.as_mut().unwrap().inside.v4 = Ipv4Addr::new(10, 244, 2, 1);
        let spec = LabSpec { plan, firewall: FirewallKind::None, ..LabSpec::new(topology) };
        let cluster = Self { lab: Lab::build(spec).unwrap() };
        let [one, two] = cluster.nodes();
        for (node, other) in [(&one, &two), (&two, &one)] {
            match cni {
                Cni::Bridge => bridge(node, other),
                Cni::Routed => route(node, other),
            }
            kube_proxy::load(mode, node, &[LOCAL, CLUSTER], pods);
        }
        // Nobody outside has a route to pods.
        cluster
            .lab
            .outsider
            .shell("ip route del 10.244.1.0/24; ip route del 10.244.2.0/24")
            .unwrap();
        cluster
    }

    /// Both nodes.
    pub fn nodes(&self) -> [Node<'_>; 2] {
        let lab = &self.lab;
        [
            (1, &lab.gateway, OTHER_POD, &lab.client),
            (2, lab.far.as_ref().unwrap(), POD, &lab.server),
        ]
        .map(|(number, host, pod, pod_host)| Node {
            number,
            host,
            address: Ipv4Addr::new(198, 51, 100, number),
            pod,
            pod_host,
        })
    }

    /// Has this node answer for the external address, as MetalLB does.
    pub fn announce(&self, service: &Service, node: &Node) {
        let lines = format!("ip route replace {} via {}", service.external, node.address);
        self.lab.outsider.shell(&lines).unwrap();
    }
}

fn route(node: &Node, other: &Node) {
    let (own, theirs, via) = (node.pod, other.number, other.address);
    let lines = format!(
        "ip -4 address flush dev lan
ip link set lan down
ip link set lan name cali-pod
ip link set cali-pod up
echo 1 > /proc/sys/net/ipv4/conf/cali-pod/proxy_arp
ip route add {own} dev cali-pod scope link
ip route add 10.244.{theirs}.0/24 via {via}
ip route add default via 198.51.100.66"
    );
    node.host.shell(&lines).unwrap();
    let lines = format!(
        "ip -4 address flush dev eth0
ip address add {own}/32 dev eth0
ip route add 169.254.1.1 dev eth0 scope link
ip route add default via 169.254.1.1 dev eth0"
    );
    node.pod_host.shell(&lines).unwrap();
    // Behind its NetworkPolicy, a pod has the profile of its namespace, which admits everything.
    let admits = if node.pod == POD { "-p tcp --dport 21 " } else { "" };
    let endpoint = |chain: &str, admits: &str| {
        format!(
            "-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A {chain} -m conntrack --ctstate INVALID -j DROP
-A {chain} -j MARK --set-xmark 0x0/0x10000
-A {chain} {admits}-j MARK --set-xmark 0x10000/0x10000
-A {chain} -m mark --mark 0x10000/0x10000 -j RETURN
-A {chain} -j DROP
"
        )
    };
    let (from, to) = (endpoint("cali-fw-pod", ""), endpoint("cali-tw-pod", admits));
    node.restore(&format!(
        "*filter
:cali-FORWARD -
:cali-from-wl-dispatch -
:cali-to-wl-dispatch -
:cali-fw-pod -
:cali-tw-pod -
-I FORWARD -j cali-FORWARD
-A FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT
-A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000
-A cali-FORWARD -i cali+ -j cali-from-wl-dispatch
-A cali-FORWARD -o cali+ -j cali-to-wl-dispatch
-A cali-from-wl-dispatch -i cali-pod -g cali-fw-pod
-A cali-from-wl-dispatch -j DROP
-A cali-to-wl-dispatch -o cali-pod -g cali-tw-pod
-A cali-to-wl-dispatch -j DROP
{from}{to}COMMIT
*nat
:cali-POSTROUTING -
:cali-nat-outgoing -
-I POSTROUTING -j cali-POSTROUTING
-A cali-POSTROUTING -j cali-nat-outgoing
-A cali-nat-outgoing -s {PODS} ! -d {PODS} -j MASQUERADE --random-fully
COMMIT
"
    ));
}

fn bridge(node: &Node, other: &Node) {
    let (own, at, remote, to) = (node.address, node.number, other.address, other.number);
    let lines = format!(
        "ip -4 address flush dev lan
ip link add cni0 type bridge
ip link set lan master cni0
ip address add 10.244.{at}.1/24 dev cni0
ip link set cni0 up
echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables
ip link add flannel.1 type vxlan id 1 local {own} remote {remote} dstport 8472 dev wan
ip address add 10.244.{at}.0/32 dev flannel.1
ip link set flannel.1 up
ip route add 10.244.{to}.0/24 via 10.244.{to}.0 dev flannel.1 onlink"
    );
    node.host.shell(&lines).unwrap();
    let pods = format!("10.244.{at}.0/24");
    node.restore(&format!(
        "*filter
:FORWARD DROP
:FLANNEL-FWD -
-A FORWARD -j FLANNEL-FWD
-A FLANNEL-FWD -s {PODS} -j ACCEPT
-A FLANNEL-FWD -d {PODS} -j ACCEPT
COMMIT
*nat
:FLANNEL-POSTRTG -
-A POSTROUTING -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
-A FLANNEL-POSTRTG -s {pods} -d {PODS} -j RETURN
-A FLANNEL-POSTRTG -s {PODS} -d {pods} -j RETURN
-A FLANNEL-POSTRTG ! -s {PODS} -d {pods} -j RETURN
-A FLANNEL-POSTRTG -s {PODS} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s {PODS} -d {PODS} -j MASQUERADE --random-fully
COMMIT
"
    ));
}
