//! Sessions through a pair of gateways, each of which waits while something happens.

use std::net::IpAddr;

use super::gateways::Pair;
use crate::common::*;

/// More than both ends buffer, so that a download whose client does not read is in its middle.
const BIG: usize = 24 << 20;
const SMALL: &[u8] = b"a small file\r\n";

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// A client inside, by source NAT.
    Out,
    /// A client outside and the published server, by destination NAT.
    In,
    /// A client inside over IPv6, which is routed.
    Six,
}

/// What a session has done when something happens. Its number is that of the steps of a transfer before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stage {
    /// It is logged in and has transferred once.
    Idle,
    /// It has announced a transfer that has not begun.
    Announced,
    /// It downloads.
    Running,
}

pub const STAGES: [Stage; 3] = [Stage::Idle, Stage::Announced, Stage::Running];

/// A client that waits at its gate. There is another gate before its last download.
pub struct Client {
    name: String,
    gated: GatedClient,
    /// The checksums of its downloads.
    sums: [String; 3],
}

/// The servers, with the same files.
pub struct Servers {
    /// The one outside, and the published one.
    all: [Server; 2],
    sums: [String; 2],
}

impl Servers {
    pub fn start(pair: &Pair) -> Self {
        let lab = &pair.lab;
        let big: Vec<u8> = (0..BIG).map(|at| (at * 7 + at / 251) as u8).collect();
        // For a server of this name lines change their length, so sequence numbers are adjusted.
        let outside = (ServerKind::Proftpd, "ServerIdent on \"at your service\"");
        let kinds = [(&lab.server, outside), (&lab.client2, (ServerKind::Vsftpd, ""))];
        let all = kinds.map(|(host, (kind, more))| {
            let server = Server::start_with(kind, host, more).unwrap();
            server.put("small", SMALL).unwrap();
            server.put("big", &big).unwrap();
            server
        });
        let sum = |contents: &[u8]| {
            let path = lab.server.write("summed", contents).unwrap();
            let said = lab.server.run("sha256sum", &[path.to_str().unwrap()]).unwrap();
            said.stdout_text().split_whitespace().next().unwrap().to_owned()
        };
        Self { sums: [sum(SMALL), sum(&big)], all }
    }

    /// Starts a client for each of these.
    pub fn clients(
        &self,
        pair: &Pair,
        all: impl IntoIterator<Item = (Way, &'static str, Stage)>,
    ) -> Vec<Client> {
        let start = |(way, command, stage)| self.client(pair, way, command, stage);
        all.into_iter().map(start).collect()
    }

    /// Starts a client, which stops at this stage.
    pub fn client(&self, pair: &Pair, way: Way, command: &'static str, stage: Stage) -> Client {
        static PORT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(3000);
        let port = PORT.fetch_add(3, std::sync::atomic::Ordering::Relaxed);
        let lab = &pair.lab;
        let (host, family) = match way {
            Way::Out => (&lab.client, V4),
            Way::In => (&lab.outsider, V4),
            Way::Six => (&lab.client, V6),
        };
        let server = match way {
            Way::In => "198.51.100.1".parse().unwrap(),
            _ => lab.server.address(family),
        };
        let kind = |number| Kind { command, port: port + number, client: host.address(family) };
        let [earlier, first, second] = [0, 1, 2].map(kind);
        let [small, big] = self.sums.clone();
        let mut steps = login_as(self.all[usize::from(way == Way::In)].login());
        steps.extend([ask("TYPE I"), earlier.whole("pub/small")].concat());
        let is_running = stage == Stage::Running;
        let path = if is_running { "pub/big" } else { "pub/small" };
        let mut parts = vec![first.announcement(), first.begin(path), first.end()];
        parts.insert(stage as usize, vec![gate()]);
        steps.extend([parts.concat(), ask("NOOP"), vec![gate()]].concat());
        steps.extend(second.whole("pub/small"));
        let plan = json!({"host": server, "steps": steps});
        let name = format!("{way:?} {command} {stage:?}");
        let sums = [small.clone(), if is_running { big } else { small.clone() }, small];
        Client { name, gated: gated_client(host, plan), sums }
    }
}

impl Client {
    /// Lets it finish what it has begun, and waits until it has.
    pub fn finish_first(&mut self) {
        self.gated.reach_next_gate();
    }

    /// Asserts that it came to its end: that all replies came, and all bytes.
    pub fn assert_done(self) {
        let session = self.gated.release().ok_in(&self.name);
        let got = session.steps.iter().map(|(got, _)| got);
        let sums: Vec<_> = got.filter(|got| got.len() == 64 && !got.contains(' ')).collect();
        assert_eq!(sums, self.sums.each_ref(), "{}: {:?}", self.name, session.steps);
    }
}

/// A server outside that speaks TLS, and a client inside that has announced a download, which nobody between can read.
pub fn encrypted_client(pair: &Pair) -> (Server, GatedClient) {
    let host = &pair.lab.server;
    let tls = ServerTls {
        is_implicit: true,
        needs_resumption: false,
        ports: 50000..=50009,
        announced: None,
    };
    let server = Server::start_tls(ServerKind::Vsftpd, host, &tls).unwrap();
    server.put("small", SMALL).unwrap();
    let begin = (json!({"tls": "control"}), login_as(server.login()), ask("PBSZ 0"), ask("PROT P"));
    let transfer = (ask("RETR pub/small"), json!({"tls": "data"}), drain(), reply());
    let mut plan = plan(&pair.lab, (begin, ask("EPSV"), gate(), dial(), transfer));
    plan["port"] = json!(990);
    (server, gated_client(&pair.lab.client, plan))
}

/// Lets all of them go on to their ends, side by side, and asserts that each gets there.
pub fn assert_all_done(clients: Vec<Client>) {
    let mut clients: Vec<_> = clients.into_iter().map(Some).collect();
    side_by_side(8, &mut clients, |client| client.take().unwrap().assert_done());
}

/// How a client announces its transfers.
struct Kind {
    command: &'static str,
    port: u16,
    client: IpAddr,
}

impl Kind {
    fn is_active(&self) -> bool {
        matches!(self.command, "PORT" | "EPRT")
    }

    /// Steps of the announcement.
    fn announcement(&self) -> Vec<Value> {
        let Self { command, port, client } = self;
        match *command {
            "PORT" => {
                let host = client.to_string().replace('.', ",");
                ask(&format!("PORT {host},{},{}", port / 256, port % 256))
            }
            "EPRT" => {
                let protocol = if client.is_ipv4() { 1 } else { 2 };
                ask(&format!("EPRT |{protocol}|{client}|{port}|"))
            }
            command => ask(command),
        }
    }

    /// Steps that begin the download of what was announced.
    fn begin(&self, path: &str) -> Vec<Value> {
        let mut steps = Vec::new();
        if !self.is_active() {
            steps.push(dial());
        }
        steps.extend(ask(&format!("RETR {path}")));
        steps
    }

    /// Steps that read the download, and the reply after it.
    fn end(&self) -> Vec<Value> {
        let mut read = if self.is_active() { accept(self.port) } else { drain() };
        read["sum"] = json!(true);
        vec![read, reply()]
    }

    /// Steps of a whole download.
    fn whole(&self, path: &str) -> Vec<Value> {
        [self.announcement(), self.begin(path), self.end()].concat()
    }
}
