//! Encrypted sessions: what the gateway opens to whom, from when on and until when.

mod accounts;
mod matrix;
mod outages;
mod plain_again;
mod scans;

use std::{collections::BTreeSet, net::SocketAddr};

use crate::common::*;

/// The passive ports of the servers, as configured at both ends.
const PORTS: std::ops::RangeInclusive<u16> = 50000..=50009;
const SETTING: &str = "passive-ports = \"50000-50009\"\n";

/// The control port with implicit TLS.
const IMPLICIT: u16 = 990;

/// The configuration of the gateways of `lab`, with the passive ports of its server.
fn configuration(lab: &Lab, backend: &str) -> String {
    let servers = FAMILIES.map(|family| lab.server.address(family));
    let dialled = FAMILIES.map(|family| lab.server_address(family).to_string());
    let tables = servers.map(|address| format!("[[server]]\naddress = \"{address}\"\n{SETTING}"));
    // A gateway of the clients knows no more than the address that they dial.
    let network = format!("[[network]]\nservers = {dialled:?}\n{SETTING}");
    let of_lab = lab.configuration(backend);
    format!("implicit-tls-ports = [{IMPLICIT}]\n{of_lab}{}{network}", tables.concat())
}

/// Has the firewalls of `lab` accept control connections with implicit TLS, and publish them as the other ones.
fn accept_implicit(lab: &Lab) {
    let is_published = |family| lab.server_address(family) != lab.server.address(family);
    for gateway in lab.gateways() {
        let hook = match lab.spec().topology {
            Topology::OnServer => "input",
            Topology::OnClient => "output",
            _ => "forward",
        };
        let accept = format!("insert rule inet gateway {hook} tcp dport {IMPLICIT} accept");
        gateway.nft(&accept).unwrap();
        for (family, ip) in [(V4, "ip"), (V6, "ip6")] {
            let dialled = lab.server_address(family);
            if is_published(family) && gateway.address(family) == dialled {
                let server = SocketAddr::new(lab.server.address(family), IMPLICIT);
                let publish = format!(
                    "add rule inet gateway destination {ip} daddr {dialled} tcp dport {IMPLICIT} \
                     dnat {ip} to {server}"
                );
                gateway.nft(&publish).unwrap();
            }
        }
    }
}

/// Where clients reach the server of `lab`.
fn endpoint(lab: &Lab, family: Family, tls: ClientTls) -> SocketAddr {
    let mut endpoint = lab.server_endpoint(family);
    if tls == ClientTls::Implicit {
        endpoint.set_port(IMPLICIT);
    }
    endpoint
}

/// A server of `lab` that announces the address that clients dial, because nobody can correct it.
fn server_tls(lab: &Lab, tls: ClientTls, needs_resumption: bool) -> ServerTls {
    let (own, dialled) = (lab.server.address(V4), lab.server_address(V4));
    ServerTls {
        is_implicit: tls == ClientTls::Implicit,
        needs_resumption,
        ports: PORTS,
        announced: (own != dialled).then_some(dialled),
    }
}

/// A gateway with passive ports, and a server behind it.
struct Scene {
    gateway: Gateway,
    server: Server,
    tls: ClientTls,
}

impl Scene {
    fn new(topology: Topology, kind: ServerKind, tls: ClientTls) -> Self {
        Self::with(topology, kind, tls, "")
    }

    /// As [`Scene::new`], with these lines at the top of the configuration.
    fn with(topology: Topology, kind: ServerKind, tls: ClientTls, lines: &str) -> Self {
        let lab = Lab::new(topology).unwrap();
        accept_implicit(&lab);
        let server = Server::start_tls(kind, &lab.server, &server_tls(&lab, tls, true)).unwrap();
        let configuration = format!("{lines}{}", configuration(&lab, "nftables"));
        Self { gateway: Gateway::on(lab, &configuration), server, tls }
    }

    fn lab(&self) -> &Lab {
        &self.gateway.lab
    }

    /// A client that logs in, has its data connections encrypted, and goes on with `steps` to its first gate.
    fn client(&self, family: Family, steps: impl serde::Serialize) -> GatedClient {
        self.client_on(&self.lab().client, family, steps)
    }

    /// The same on `host`.
    fn client_on(&self, host: &Host, family: Family, steps: impl serde::Serialize) -> GatedClient {
        let begin = match self.tls {
            ClientTls::Implicit => vec![json!({"tls": "control"}), reply()],
            _ => [vec![reply()], ask("AUTH TLS"), vec![json!({"tls": "control"})]].concat(),
        };
        // The greeting is in `begin`.
        let login = login_as(self.server.login()).split_off(1);
        let protect = [ask("PBSZ 0"), ask("PROT P"), ask("TYPE I")];
        let endpoint = endpoint(self.lab(), family, self.tls);
        let mut plan = plan(self.lab(), (begin, login, protect, steps));
        plan["host"] = json!(endpoint.ip());
        plan["port"] = json!(endpoint.port());
        gated_client(host, plan)
    }

    /// The passive ports, their neighbours and a few others: those at which the server answers `host`.
    fn answers(&self, host: &Host, source: &str) -> Vec<u16> {
        let knocked = (PORTS.start() - 1..=PORTS.end() + 1).chain([20, 22, 1024, 40000, 60000]);
        let ports: Vec<String> = knocked.map(|port| port.to_string()).collect();
        let target = self.lab().server_address(V4).to_string();
        let mut arguments = vec![&*target, source];
        arguments.extend(ports.iter().map(String::as_str));
        let answered = python(host, "knock.py", include_bytes!("knock.py"), &arguments);
        let ports: BTreeSet<u16> = answered.lines().map(|line| line.parse().unwrap()).collect();
        ports.into_iter().collect()
    }

    /// The server's passive ports are open to the client, and to nobody else.
    #[track_caller]
    fn assert_open(&self, case: &str) {
        let lab = self.lab();
        assert_eq!(self.answers(&lab.client, "-"), PORTS.collect::<Vec<_>>(), "{case}");
        assert_eq!(self.answers(&lab.client2, "-"), [0; 0], "{case}");
    }

    /// They are open to nobody.
    #[track_caller]
    fn assert_closed(&self, case: &str) {
        assert_eq!(self.gateway.daemon.open_pinholes().unwrap(), [""; 0], "{case}");
        assert_eq!(self.answers(&self.lab().client, "-"), [0; 0], "{case}");
    }

    /// Waits until they are closed.
    #[track_caller]
    fn wait_until_closed(&self, case: &str) {
        self.gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
        self.assert_closed(case);
    }
}

/// Steps that request a file of the server, and begin to receive it.
fn begin_download(verb: &str, name: &str) -> Vec<Value> {
    let retr = format!("RETR pub/{name}");
    let tls = json!({"tls": "data"});
    [ask(verb), vec![dial()], ask(&retr), vec![tls]].concat()
}

/// The step that receives the rest, and returns the checksum.
fn end_download() -> Value {
    json!({"drain": true, "sum": true})
}

/// More than the buffers of two sockets hold.
fn large_file() -> Vec<u8> {
    b"no part of this file is like another one, it seems".repeat(400_000)
}

/// The checksum that [`end_download`] returns of these bytes.
fn checksum(host: &Host, bytes: &[u8]) -> String {
    let mut sum = host.command("sha256sum");
    sum.arg("-");
    let done = host.finish(sum, bytes, Duration::from_secs(60)).unwrap().success().unwrap();
    done.stdout_text().split(' ').next().unwrap().to_owned()
}
