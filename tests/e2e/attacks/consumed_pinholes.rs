//! A pinhole admits exactly one connection. After a data connection has ended, the same source port must not open
//! another one through the entry that conntrack retains for a while.

use super::scene::{ANNOUNCED, PASSIVE_PORT, Scene, with_each_back_end};
use crate::common::*;

/// The initiator's source port.
pub(super) const SOURCE: u16 = 2020;

/// The ends of a data connection. `initiator ADDRESS PORT SOURCE HOW LIMIT [TTL]` connects once and prints the
/// outcome.
/// `target PORT` accepts connections and ends each as its first byte says.
const ENDS: &str = r#"
import socket, struct, sys, time
role, *rest = sys.argv[1:]

def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()

def vanish(connection):
    connection.setsockopt(socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR: it ends without a packet
    connection.close()

if role == "target":
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::", int(rest[0])))
    listener.listen(8)
    while True:
        connection, peer = listener.accept()
        how = connection.recv(1)
        print(how, flush=True)
        if how == b"r":
            reset(connection)
        elif how == b"v":
            vanish(connection)
        elif how == b"i":
            connection.close()
        else:
            try:
                connection.recv(1)
            except ConnectionResetError:
                pass
            connection.close()

address, port, source, how = rest[0], int(rest[1]), int(rest[2]), rest[3]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
connection = socket.socket(family)
connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
connection.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", source))
connection.settimeout(float(rest[4]))
if rest[5:]:
    family = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if ":" in address else (socket.IPPROTO_IP, socket.IP_TTL)
    connection.setsockopt(*family, int(rest[5]))
try:
    connection.connect((address, port))
except TimeoutError:
    print("silent")
    sys.exit()
except OSError as error:
    print(error)
    sys.exit()
connection.settimeout(8)
connection.sendall(how.encode())
if how == "v":
    time.sleep(0.2)
    vanish(connection)
elif how == "a":
    time.sleep(0.1)
    reset(connection)
elif how == "c":
    connection.close()
else:
    try:
        connection.recv(1)
    except ConnectionResetError:
        pass
    connection.close()
print("open")
"#;

/// A client and a server after an announcement.
pub(super) struct Announced {
    pub(super) scene: Scene,
    client: Option<GatedClient>,
    is_active: bool,
    /// The arrival address; `port` is the arrival port.
    pub(super) address: String,
    pub(super) port: u16,
    target: BackgroundProcess,
}

impl Announced {
    fn new(back_end: &str, topology: Topology, family: Family, is_active: bool) -> Self {
        Self::announced_by(say, back_end, topology, family, is_active)
    }

    /// The client sends its announcement by the step that `say_it` returns.
    pub(super) fn announced_by(
        say_it: fn(&str) -> Value,
        back_end: &str,
        topology: Topology,
        family: Family,
        is_active: bool,
    ) -> Self {
        let passive = "229 Entering Extended Passive Mode (|||50069|)";
        let plan =
            json!({"passive_port": PASSIVE_PORT, "extra": {"EPSV": passive, "EPRT": "200 fine"}});
        let scene = Scene::with(topology, back_end, &plan);
        let lab = &scene.gateway.lab;
        let own = lab.client.address(family);
        let announcement = match (family, is_active) {
            (V4, true) => {
                format!("PORT {},14,178", own.to_string().replace('.', ","))
            }
            (V6, true) => format!("EPRT |2|{own}|{ANNOUNCED}|"),
            (_, false) => "EPSV".to_owned(),
        };
        let (target, port) =
            if is_active { (&lab.client, ANNOUNCED) } else { (&lab.server, PASSIVE_PORT) };
        let target = start(target, port);
        let steps = [&login()[..], &[say_it(&announcement), reply()]].concat();
        let client =
            scene.client_of(&lab.client, &json!({"host": lab.server_address(family)}), &steps);
        let (address, port) = match (is_active, family) {
            (true, V4) => host_port(scene.server.lines().last().unwrap()),
            (true, V6) => (own.to_string(), ANNOUNCED),
            (false, _) => (lab.server_address(family).to_string(), PASSIVE_PORT),
        };
        Self { scene, client: Some(client), is_active, address, port, target }
    }

    pub(super) fn initiator(&self) -> &Host {
        let lab = &self.scene.gateway.lab;
        if self.is_active { &lab.server } else { &lab.client }
    }

    /// Connects from the initiator's source port. The connection ends as `how` says.
    fn connect(&self, how: &str, limit: &str) -> String {
        self.connect_from(SOURCE, how, limit)
    }

    pub(super) fn connect_from(&self, source: u16, how: &str, limit: &str) -> String {
        let mut outcome = String::new();
        // The last acknowledgement of an earlier connection with these ports may not have come yet (EADDRNOTAVAIL).
        wait_for("the end of the earlier connection", || {
            let command = self.connecting(source, how, limit);
            let done = self.initiator().finish(command, b"", Duration::from_secs(30)).unwrap();
            outcome = done.success().unwrap().stdout_text().trim().to_owned();
            !outcome.starts_with("[Errno 99]")
        });
        outcome
    }

    /// The command that connects from a source port.
    pub(super) fn connecting(&self, source: u16, how: &str, limit: &str) -> std::process::Command {
        let (port, source) = (self.port.to_string(), source.to_string());
        let arguments = ["initiator", &self.address, &port, &source, how, limit];
        command(self.initiator(), &arguments)
    }

    /// The client announces the same endpoint in a new session.
    fn announce_again(&mut self) {
        assert_eq!(self.client.take().unwrap().release().error, None);
        let scene = &self.scene;
        let daemon = &scene.gateway.daemon;
        // Another worker may read its last packets later than those of the new session.
        wait_for("the session's end", || daemon.sessions().unwrap().is_empty());
        let steps = [&login()[..], &[say("PORT 192,168,150,80,14,178"), reply()]].concat();
        self.client = Some(scene.client_of(&scene.gateway.lab.client, &json!({}), &steps));
    }

    fn accepted(&self) -> usize {
        self.target.log().lines().count()
    }
}

fn command(host: &Host, arguments: &[&str]) -> std::process::Command {
    let script = host.write("ends.py", ENDS.as_bytes()).unwrap();
    let mut command = host.command("/usr/bin/python3");
    command.arg(script).args(arguments);
    command
}

fn start(host: &Host, port: u16) -> BackgroundProcess {
    let target = host.start(command(host, &["target", &port.to_string()]), "target").unwrap();
    host.wait_for_port(port, Duration::from_secs(60)).unwrap();
    target
}

/// The ways in which a connection ends: reset by the target, vanished at both ends without a packet, reset by the
/// initiator, closed by the target first, closed by the initiator first.
const ENDINGS: [&str; 5] = ["r", "v", "a", "i", "c"];

#[test]
fn a_consumed_pinhole_admits_no_second_connection() {
    for (topology, family, is_active, endings) in [
        (Topology::Masquerade, V4, true, 5),
        (Topology::Routed, V6, true, 2),
        (Topology::PublishedServer, V4, false, 2),
        (Topology::Routed, V6, false, 2),
    ] {
        with_each_back_end(|back_end| {
            thread::scope(|scope| {
                for how in &ENDINGS[..endings] {
                    scope.spawn(move || {
                        let case = format!("{topology} {family:?} {back_end} {how}");
                        let announced = Announced::new(back_end, topology, family, is_active);
                        assert_admits_one(announced, how, &case);
                    });
                }
            });
        });
    }
}

fn assert_admits_one(mut announced: Announced, how: &str, case: &str) {
    assert_eq!(announced.connect(how, "8"), "open", "{case}");
    wait_for("the target", || announced.accepted() == 1);
    let again = announced.connect("r", "0.7");
    assert_eq!(again, "silent", "{case}, while its session is open");
    assert_eq!(announced.client.take().unwrap().release().error, None, "{case}");
    let daemon = &announced.scene.gateway.daemon;
    daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
    let again = announced.connect("r", "0.7");
    assert_eq!(again, "silent", "{case}, after its session has closed");
    assert_eq!(announced.accepted(), 1, "{case}");
}

/// If the SYN-ACK is lost, the retransmitted SYN belongs to the same connection.
#[test]
fn a_data_connection_survives_a_lost_syn_ack() {
    with_each_back_end(|back_end| {
        let announced = Announced::new(back_end, Topology::Masquerade, V4, true);
        let syn_ack = format!("tcp flags & (syn | ack) == (syn | ack) tcp dport {SOURCE}");
        let server = &announced.scene.gateway.lab.server;
        server.nft(&lose_once("prerouting", &syn_ack)).unwrap();
        assert_eq!(announced.connect("r", "8"), "open");
        assert_eq!(announced.connect("r", "0.7"), "silent");
    });
}

/// The server always connects from the same port, and the client always announces the same port.
#[test]
fn a_second_announcement_admits_another_connection_on_the_same_tuple() {
    with_each_back_end(|back_end| {
        let mut announced = Announced::new(back_end, Topology::Routed, V4, true);
        let gateway = &announced.scene.gateway.lab.gateway;
        let sooner = "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_close=2";
        gateway.shell(sooner).unwrap();
        assert_eq!(announced.connect("r", "8"), "open");
        announced.announce_again();
        // With the conntrack back end, conntrack must first forget the connection that was reset.
        let limit = if back_end.contains("conntrack") { "20" } else { "0.9" };
        assert_eq!(announced.connect("r", limit), "open");
        assert_eq!(announced.connect("r", "0.7"), "silent");
    });
}

/// The client always announces the same port, and the server still retransmits its SYN of before.
#[test]
fn a_retransmitted_syn_leaves_a_second_announcement_to_another_connection() {
    with_each_back_end(|back_end| {
        let mut announced = Announced::new(back_end, Topology::Routed, V4, true);
        assert_syn_leaves_a_second_announcement(&mut announced, back_end);
    });
}

/// The rules have the first pinhole, and the program, of this daemon or of the next one, has the second pinhole.
#[test]
fn the_retransmitted_syn_of_a_queued_line_consumes_no_later_pinhole() {
    for case in ["the same program", "another program"] {
        wait_for(case, || retransmitted_syn_consumes_no_later_pinhole(case));
    }
}

/// Returns whether the program has opened the second pinhole.
fn retransmitted_syn_consumes_no_later_pinhole(case: &str) -> bool {
    let configuration = NFTABLES;
    let in_two_segments = |line: &str| json!({"send": format!("{line}\r\n"), "cut": [4]});
    let (topology, family) = (Topology::Routed, V4);
    let mut announced =
        Announced::announced_by(in_two_segments, configuration, topology, family, true);
    let Gateway { daemon, lab } = &mut announced.scene.gateway;
    if case == "another program" {
        daemon.kill();
        pins(lab).into_iter().for_each(|directory| fs::remove_dir_all(directory).unwrap());
        *daemon = Daemon::start(&executable(), &lab.gateway, configuration).unwrap();
    }
    assert_syn_leaves_a_second_announcement(&mut announced, case);
    let fast_path = fast_path(&announced.scene.gateway.daemon);
    fast_path["state"] != "on" || fast_path["opened"] == 1
}

#[track_caller]
fn assert_syn_leaves_a_second_announcement(announced: &mut Announced, case: &str) {
    let client = &announced.scene.gateway.lab.client;
    let chain = "type filter hook prerouting priority -450;";
    let drop = format!("tcp sport {SOURCE} counter drop");
    client.nft(&format!("table ip loss {{ chain lose {{\n{chain}\n{drop}\n}}\n}}\n")).unwrap();
    let lost = |announced: &Announced| {
        let client = &announced.scene.gateway.lab.client;
        let chain = client.run("nft", &["list", "chain", "ip", "loss", "lose"]).unwrap();
        let chain = chain.success().unwrap().stdout_text();
        let (_, count) = chain.split_once("counter packets ").unwrap();
        count.split_once(' ').unwrap().0.parse::<usize>().unwrap()
    };
    let silent = announced.connecting(SOURCE, "r", "60");
    let _silent = announced.initiator().start(silent, "silent").unwrap();
    wait_for("a SYN", || lost(announced) > 0);
    announced.announce_again();
    let before = lost(announced);
    wait_for("a retransmission", || lost(announced) > before);
    assert_eq!(announced.connect_from(SOURCE + 1, "r", "8"), "open", "{case}");
    assert_eq!(announced.connect_from(SOURCE + 2, "r", "0.7"), "silent", "{case}");
}
