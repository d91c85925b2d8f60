//! FTP in a Kubernetes cluster: Services that publish port 21 alone, and `ftp-alg` on each node, with the configuration and
//! the rights of `packaging/kubernetes`. No cluster runs here. The nodes are namespaces with the rules that kube-proxy and a
//! CNI write.

mod cluster;
mod kube_proxy;

use std::{collections::BTreeSet, net::SocketAddr};

use cluster::{CLUSTER, Cluster, Cni, LOCAL, Node, OTHER_POD, POD};
use kube_proxy::{ProxyMode, Service};

use crate::common::*;

const CONFIGURATION: &str = include_str!("../../../packaging/kubernetes/ftp-alg.toml");
/// The back end of the manifest, and its configuration.
const MANIFEST: (&str, &str) = ("conntrack", CONFIGURATION);
const DAEMON_SET: &str = include_str!("../../../packaging/kubernetes/daemonset.yaml");
const VERBS: [Verb; 4] = [Verb::Pasv, Verb::Epsv, Verb::Port, Verb::Eprt];

/// Where clients outside connect to a Service, and at which node that is.
struct Entry<'a> {
    service: &'a Service,
    node: &'a Node<'a>,
}

impl Entry<'_> {
    /// The external address at this node.
    fn external(&self, cluster: &Cluster) -> SocketAddr {
        cluster.announce(self.service, self.node);
        SocketAddr::new(self.service.external.parse().unwrap(), 21)
    }

    fn node_port(&self) -> SocketAddr {
        SocketAddr::new(self.node.address.into(), self.service.node_port)
    }
}

/// The ways in that kube-proxy offers: the Local policy needs the pod on the node itself.
fn entries<'a>([one, two]: &'a [Node<'a>; 2]) -> [Entry<'a>; 3] {
    [(&LOCAL, two), (&CLUSTER, two), (&CLUSTER, one)].map(|(service, node)| Entry { service, node })
}

fn transfer<'a>(host: &'a Host, server: &Server, endpoint: SocketAddr, verb: Verb) -> Transfer<'a> {
    // curl connects to the address that a 227 names; if EPSV or EPRT fails, it tries PASV or PORT.
    let client = if verb.is_extended() { ClientProgram::Ftplib } else { ClientProgram::Curl };
    let (login, tls) = (server.login(), ClientTls::Off);
    Transfer { client, host, endpoint, verb, login, tls }
}

/// A download with each of these commands: one line for what does not work.
fn failures(host: &Host, server: &Server, endpoint: SocketAddr, verbs: &[Verb]) -> Vec<String> {
    let body = endpoint.to_string().repeat(3000).into_bytes();
    server.put("down", &body).unwrap();
    let mut failures = Vec::new();
    for &verb in verbs {
        match transfer(host, server, endpoint, verb).download("down") {
            Ok(downloaded) => assert_eq!(downloaded, body),
            Err(error) => failures.push(format!("{endpoint} {verb}: {error}")),
        }
    }
    failures
}

/// Transfers from outside through each way in, and from a pod of the other node.
fn assert_all_ways_work(
    mode: ProxyMode,
    cni: Cni,
    kind: ServerKind,
    (backend, configuration): (&str, &str),
) {
    let cluster = Cluster::new(mode, cni);
    let lab = &cluster.lab;
    let server = Server::start(kind, &lab.server).unwrap();
    let daemons = daemons_of(lab, configuration);
    let nodes = cluster.nodes();
    let outside = Capture::start(&lab.outsider, "eth0", "tcp").unwrap();
    let mut failed = Vec::new();
    for entry in entries(&nodes) {
        let external = entry.external(&cluster);
        failed.extend(failures(&lab.outsider, &server, external, &VERBS));
        let two = [Verb::Pasv, Verb::Port];
        failed.extend(failures(&lab.outsider, &server, entry.node_port(), &two));
        for verb in two {
            let (name, body) = (format!("up-{verb}-{external}"), vec![b'u'; 60_000]);
            let upload = transfer(&lab.outsider, &server, external, verb).upload(&name, &body);
            failed.extend(upload.err().map(|error| format!("{name}: {error}")));
            assert_eq!(server.stored(&name).unwrap_or_default(), body);
        }
    }
    for service in [LOCAL, CLUSTER] {
        let cluster_ip = SocketAddr::new(service.cluster_ip.parse().unwrap(), 21);
        failed.extend(failures(&lab.client, &server, cluster_ip, &[Verb::Pasv, Verb::Port]));
    }
    assert_all_carried(lab, &daemons, backend, &failed);

    // The client sees nothing but the addresses to which it connected.
    let outside = outside.finish().unwrap();
    assert_eq!(outside.faults().unwrap(), [""; 0]);
    let rows = outside.fields("tcp", &["ip.src", "ip.dst"]).unwrap();
    let seen: BTreeSet<String> = rows.into_iter().flatten().collect();
    let own = lab.outsider.address(V4).to_string();
    let [one, two] = nodes.map(|node| node.address.to_string());
    let dialled = [LOCAL.external.to_owned(), CLUSTER.external.to_owned(), one, two];
    assert_eq!(seen, dialled.into_iter().chain([own]).collect());
}

/// A bridge without network policies accepts all that goes to pods, so that it needs no back end `conntrack`.
#[test]
fn services_need_port_21_alone() {
    for (mode, cni, kind, setup) in [
        (ProxyMode::Iptables, Cni::Bridge, ServerKind::Vsftpd, MANIFEST),
        (ProxyMode::Iptables, Cni::Routed, ServerKind::PureFtpd, MANIFEST),
        (ProxyMode::Nftables, Cni::Bridge, ServerKind::Vsftpd, MANIFEST),
        (ProxyMode::Nftables, Cni::Routed, ServerKind::Pyftpdlib, MANIFEST),
        (ProxyMode::Iptables, Cni::Bridge, ServerKind::Vsftpd, ("nftables", NFTABLES)),
    ] {
        assert_all_ways_work(mode, cni, kind, setup);
    }
}

/// With the back end `nftables`, a data connection is new to every rule.
#[test]
fn a_network_policy_for_port_21_drops_passive_data_connections_by_mark() {
    for mode in telling(&[ProxyMode::Iptables], &[ProxyMode::Iptables, ProxyMode::Nftables]) {
        let cluster = Cluster::new(*mode, Cni::Routed);
        let lab = &cluster.lab;
        let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
        server.put("file", b"the body").unwrap();
        let daemons = daemons_of(lab, NFTABLES);
        let nodes = cluster.nodes();
        let [local, ..] = entries(&nodes);
        let endpoint = local.external(&cluster);
        let download = |verb| transfer(&lab.outsider, &server, endpoint, verb).download("file");
        assert_eq!(download(Verb::Port).unwrap(), b"the body");

        let steps = [login_as(server.login()), ask("PASV"), vec![dial()]].concat();
        let plan = json!({"host": endpoint.ip(), "timeout": 2, "steps": steps});
        let session = scripted_client(&lab.outsider, &plan);
        assert!(session.error.as_ref().is_some_and(|at| at.starts_with("step 7 ")), "{session:?}");

        // In front of the chains of the CNI, and of kube-proxy.
        let accept = "iptables-nft -I FORWARD -m connmark --mark 0x40000000/0x40000000 -j ACCEPT";
        nodes[1].host.shell(accept).unwrap();
        assert_eq!(download(Verb::Pasv).unwrap(), b"the body");
        assert_eq!(daemons[1].counter("errors").unwrap(), 0);
    }
}

/// Steps of a passive and an active transfer of the outsider, which listens on `port`.
fn both_transfers(lab: &Lab, port: u16) -> Vec<Value> {
    let active = active_transfer(lab.outsider.address(V4), port);
    [passive_transfer("PASV"), active].concat()
}

/// Control ports are those of pods, whatever the Service and its node port are.
#[test]
fn a_pod_that_listens_on_another_port_needs_that_control_port() {
    let cluster =
        Cluster::with(ProxyMode::Nftables, Cni::Bridge, &[SocketAddr::new(POD.into(), 2121)]);
    let lab = &cluster.lab;
    let server = scripted_server(&lab.server, &json!({"port": 2121}));
    let configuration = CONFIGURATION.replace("[21]", "[2121]");
    assert_ne!(configuration, CONFIGURATION);
    let daemons = daemons_of(lab, &configuration);
    let mut port = 3762;
    for entry in entries(&cluster.nodes()) {
        for endpoint in [entry.external(&cluster), entry.node_port()] {
            let steps = [login(), both_transfers(lab, port), ask("QUIT")].concat();
            let (host, at) = (endpoint.ip(), endpoint.port());
            let plan = json!({"host": host, "port": at, "steps": steps});
            scripted_client(&lab.outsider, &plan).ok_in(endpoint);
            port += 1;
        }
    }
    assert_eq!(server.data_peers().len(), 12);
    assert_all_carried(lab, &daemons, "conntrack", &[""; 0]);
}

/// kube-proxy chooses a pod for each connection, by chance.
#[test]
fn data_connections_go_to_the_replica_of_their_session() {
    let pods = [POD, OTHER_POD].map(|pod| SocketAddr::new(pod.into(), 21));
    for mode in telling(&[ProxyMode::Iptables], &[ProxyMode::Iptables, ProxyMode::Nftables]) {
        let cluster = Cluster::with(*mode, Cni::Routed, &pods);
        let lab = &cluster.lab;
        let _servers = [(&lab.server, "of the second node"), (&lab.client, "of the first node")]
            .map(|(pod, body)| scripted_server(pod, &json!({"body": body})));
        let daemons = daemons_of(lab, CONFIGURATION);
        let nodes = cluster.nodes();
        let [_, _, both] = entries(&nodes);
        let host = both.external(&cluster).ip();
        let mut seen = BTreeSet::new();
        // The same one thirty times in a row is no chance.
        for port in 3762..3792 {
            let steps = [login(), both_transfers(lab, port), ask("QUIT")].concat();
            let session = scripted_client(&lab.outsider, &json!({"host": host, "steps": steps}));
            let session = session.ok_in(port);
            assert_eq!(session.got(10), session.got(16), "both transfers of one session");
            seen.insert(session.got(10).to_owned());
            if seen.len() == 2 {
                break;
            }
        }
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert_all_carried(lab, &daemons, "conntrack", &[""; 0]);
    }
}

/// Starts the daemon as the container runtime does: process 1 and user 0, with the capabilities of the manifest alone, no new
/// privileges, a root file system that is read-only but for its mounts.
#[test]
fn the_rights_of_the_manifest_are_enough() {
    let added = DAEMON_SET.split("add: [").nth(1).unwrap().split(']').next().unwrap();
    let added = added.to_lowercase().replace(", ", ",+");
    for mount in
        ["mountPath: /run/ftp-alg\n", "mountPath: /sys/fs/bpf\n", "readOnlyRootFilesystem: true"]
    {
        assert!(DAEMON_SET.contains(mount), "{mount}");
    }
    let cluster = Cluster::new(ProxyMode::Nftables, Cni::Routed);
    let lab = &cluster.lab;
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    let nodes = cluster.nodes();
    let home = lab.directory().join("far-ftp-alg");
    let lines = format!(
        "[ \"$1\" = run ] || exec {program} \"$@\"
exec unshare --mount --pid --fork --kill-child --mount-proc sh -ec '
mount --bind {home} {home}
mount --bind /sys/fs/bpf /sys/fs/bpf
mount -o remount,bind,ro /
exec setpriv --bounding-set=-all,+{added} --inh-caps=-all --no-new-privs {program} \"$@\"' sh \"$@\"",
        program = executable().display(),
        home = home.display()
    );
    let program = shell_program(nodes[1].host, "ftp-alg-in-pod", &lines);
    let daemon = Daemon::start(&program, nodes[1].host, CONFIGURATION).unwrap();
    let [local, ..] = entries(&nodes);
    let endpoint = local.external(&cluster);
    assert_eq!(failures(&lab.outsider, &server, endpoint, &VERBS), [""; 0]);
    let state = fast_path(&daemon);
    assert!(state["state"] == "on" || !has_tcx(), "{state}");
    // What its probes ask.
    for words in [&["status"][..], &["status", "--wait", "1"]] {
        let asked = daemon.ask(words).unwrap();
        assert!(asked.status.success(), "{}", asked.stdout_text());
        let probe = words.iter().map(|word| word.replace('1', "\"1\"")).collect::<Vec<_>>();
        let probe = format!("command: [ftp-alg, {}]", probe.join(", "));
        assert!(DAEMON_SET.contains(&probe), "{probe}");
    }
    daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
    assert_eq!(daemon.status().unwrap()["unconfined"], json!([]));
}
