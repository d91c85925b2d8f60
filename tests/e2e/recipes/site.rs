//! A lab whose firewall is a recipe, and the checks that every recipe must pass.

use std::net::SocketAddr;

use crate::common::*;

/// A D-Bus configuration that accepts everyone who can reach the socket.
pub const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=HOME/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/>
    <allow send_destination="*"/> <allow receive_sender="*"/>
  </policy>
</busconfig>
"#;

/// Ports for a quick scan.
pub const FEW_PORTS: &str = "1-1024,20000-20200,60000-60200";

const BODY: &[u8] = b"moved through a recipe";

/// Uploads without end: the host, `passive` or `active`, user and password.
const UPLOAD: &str = r#"
import ftplib, sys, time
host, mode, user, password = sys.argv[1:]
session = ftplib.FTP(host, user, password)
session.set_pasv(mode == "passive")
data = session.transfercmd("STOR pub/upload-" + mode)
while True:
    data.sendall(bytes(1000))
    time.sleep(0.02)
"#;

/// The host on which the recipe and `ftp-alg` run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A gateway with the clients behind it.
    Masquerade,
    /// A gateway with the server behind it.
    Published,
    /// The server's own host.
    Server,
    /// The client's own host.
    Client,
}

impl Place {
    pub fn is_gateway(self) -> bool {
        matches!(self, Self::Masquerade | Self::Published)
    }

    /// The argument of recipes for gateways and hosts.
    pub fn argument(self) -> &'static str {
        if self.is_gateway() { "gateway" } else { "host" }
    }
}

/// Values at the top of a recipe for a gateway that is a shell script, as documented and as in the lab.
pub const SHELL_VALUES: [(&str, &str); 4] = [
    ("lan=lan0", "lan=lan"),
    ("wan=wan0", "wan=wan"),
    ("10.0.0.5", "192.168.150.90"),
    ("fd00::5", "fd00:150::5a"),
];

/// A lab without a firewall of its own, and a running server.
pub struct Site {
    pub lab: Lab,
    place: Place,
    server: Server,
}

impl Site {
    pub fn new(place: Place) -> Self {
        let topology = match place {
            Place::Masquerade => Topology::Masquerade,
            Place::Published => Topology::PublishedServer,
            Place::Server | Place::Client => Topology::Routed,
        };
        Self::build(place, LabSpec::new(topology))
    }

    /// As [`Site::new`], with the addresses of `spec`.
    pub fn build(place: Place, spec: LabSpec) -> Self {
        let spec = LabSpec { firewall: FirewallKind::None, nat66: false, ..spec };
        let lab = Lab::build(spec).unwrap();
        let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
        server.put("a", BODY).unwrap();
        Self { lab, place, server }
    }

    /// The host with the firewall.
    pub fn guard(&self) -> &Host {
        match self.place {
            Place::Masquerade | Place::Published => &self.lab.gateway,
            Place::Server => &self.lab.server,
            Place::Client => &self.lab.client,
        }
    }

    /// Starts `ftp-alg run` on the host with the firewall.
    pub fn daemon(&self, configuration: &str) -> Daemon {
        Daemon::start(&executable(), self.guard(), configuration).unwrap()
    }

    /// Asserts that active and passive downloads work over each of `families`.
    pub fn carries(&self, daemon: &Daemon, families: &[Family]) {
        for &family in families {
            for mode in MODES {
                let address = self.lab.server_address(family);
                let (curl, client) = (ClientProgram::Curl, &self.lab.client);
                let transfer = Transfer::new(curl, client, &self.server, address, mode);
                let got = transfer.download("a").unwrap_or_else(|error| {
                    panic!("{:?} {family} {mode}: {error}\n{}", self.place, daemon.log())
                });
                assert_eq!(got, BODY);
            }
        }
    }

    /// Asserts that all transfers work with `configuration`, and that nothing else is open.
    pub fn works(&self, configuration: &str, families: &[Family]) {
        let daemon = self.daemon(configuration);
        self.carries(&daemon, families);
        self.assert_outsider_finds_only_published_ports(&daemon, FEW_PORTS);
    }

    /// Asserts that a running upload stops in both modes when `block` has blocked the client, and goes on after
    /// `unblock`. `dropped` is the number of packets that were dropped because of it.
    pub fn stops_uploads(&self, block: impl Fn(), unblock: impl Fn(), dropped: impl Fn() -> u64) {
        for mode in MODES {
            let name = format!("upload-{mode}");
            let size = || self.server.stored(&name).map_or(0, |bytes| bytes.len());
            let (user, password) = self.server.login();
            let mut command = self.lab.client.command("python3");
            let address = self.lab.server_address(V4).to_string();
            command.args(["-c", UPLOAD, &address, &mode.to_string(), user, password]);
            let mut upload = self.lab.client.start(command, &name).unwrap();
            let grows = |upload: &mut BackgroundProcess, from: usize| {
                wait_for("the upload", || {
                    assert!(upload.exit_status().is_none(), "{mode}: {}", upload.log());
                    size() > from + 5000
                });
            };
            grows(&mut upload, 0);
            let before = dropped();
            block();
            wait_for("a dropped packet", || dropped() > before);
            // What was on the way has arrived when the next retransmission is dropped.
            wait_for("the end of the upload", || {
                let (packets, bytes) = (dropped(), size());
                wait_for("a retransmission", || dropped() > packets);
                size() == bytes
            });
            let bytes = size();
            unblock();
            grows(&mut upload, bytes);
        }
    }

    /// Asserts that an announcement gets its reply and its pinhole, but that the firewall drops the data connection.
    pub fn stops(&self, daemon: &Daemon, family: Family, mode: Mode) {
        let mut steps = login_as(self.server.login());
        let own = self.lab.client.address(family).to_string();
        let announcement = match (mode, family) {
            (Mode::Passive, V4) => "PASV".to_owned(),
            (Mode::Passive, V6) => "EPSV".to_owned(),
            (Mode::Active, V4) => format!("PORT {},14,178", own.replace('.', ",")),
            (Mode::Active, V6) => format!("EPRT |2|{own}|3762|"),
        };
        steps.extend([say(&announcement), reply()]);
        match mode {
            Mode::Passive => steps.push(json!({"dial": true})),
            Mode::Active => steps.extend([say("LIST"), accept(3762)]),
        }
        let host = self.lab.server_address(family);
        let plan = json!({"host": host, "timeout": 2, "steps": steps});
        let opened = daemon.counter("pinholes_opened").unwrap();
        let session = scripted_client(&self.lab.client, &plan);
        let what = format!("{:?} {family} {mode}: {session:?}", self.place);
        let step = format!("step {} ", steps.len() - 1);
        assert!(session.error.as_ref().is_some_and(|error| error.starts_with(&step)), "{what}");
        assert_eq!(daemon.counter("pinholes_opened").unwrap(), opened + 1, "{what}");
    }

    /// The time that a client with Nagle's algorithm waits for the reply to an announcement that it sends in two
    /// segments.
    pub fn reply_time_of_split_announcement(&self) -> Duration {
        let mut steps = login_as(self.server.login());
        let own = self.lab.client.address(V4).to_string().replace('.', ",");
        let line = format!("PORT {own},14,178\r\n");
        steps.extend([json!({"send": line, "cut": [9], "pause": 0.05}), reply()]);
        let host = self.lab.server_address(V4).to_string();
        let plan = json!({"host": host, "nodelay": false, "steps": steps});
        let session = scripted_client(&self.lab.client, &plan);
        assert!(session.got(6).starts_with("200 "), "{session:?}");
        Duration::from_secs_f64(session.steps[6].1 / 1000.0)
    }

    /// Asserts that an outsider finds only the published ports while a pinhole is open. It scans `ports` and the
    /// pinhole's own port.
    pub fn assert_outsider_finds_only_published_ports(&self, daemon: &Daemon, ports: &str) {
        let (mode, published): (_, &[u16]) = match self.place {
            Place::Masquerade | Place::Client => (Mode::Active, &[]),
            Place::Published | Place::Server => (Mode::Passive, &[21]),
        };
        let address = self.lab.server_address(V4);
        let held = HeldClient::start(&self.lab.client, &self.server, address, mode, "a").unwrap();
        let pinholes = daemon.pinholes().unwrap();
        let arrival: SocketAddr = pinholes[0]["arrival"].as_str().unwrap().parse().unwrap();
        let ports = format!("{ports},{}", arrival.port());
        let found = self.lab.outsider.scan(arrival.ip(), &ports).unwrap();
        assert_eq!(found, published, "{:?}", self.place);
        assert_eq!(held.release().unwrap(), BODY.len());
    }
}

/// A file of `rules/recipes` with the names and addresses at its top changed, as an operator does.
pub struct Recipe {
    pub text: String,
}

impl Recipe {
    /// Reads the recipe `name` and replaces each of `values`, given as (documented, used here).
    pub fn read(name: &str, values: &[(&str, &str)]) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("rules/recipes").join(name);
        let mut text = fs::read_to_string(path).unwrap();
        for (from, to) in values {
            assert_eq!(text.matches(from).count(), 1, "{name} must contain {from} once");
            text = text.replace(from, to);
        }
        Self { text }
    }

    /// The recipe, with its rules for data connections disabled.
    pub fn without_its_rule(&self) -> String {
        self.with_rules_disabled("0x40000000")
    }

    /// The recipe, with all rules that match `mark` disabled.
    pub fn with_rules_disabled(&self, mark: &str) -> String {
        let disarm = |line: &str| line.replace(" accept", " continue").replace("-j ACCEPT", "");
        let lines: Vec<String> = self
            .text
            .lines()
            .map(|line| if line.contains(mark) { disarm(line) } else { line.to_owned() })
            .collect();
        let text = lines.join("\n") + "\n";
        assert_ne!(text, self.text, "no rule matches {mark}");
        text
    }
}

/// Runs `text`, a recipe that is a shell script, on `host`. `bin` is first in PATH.
pub fn run_script(host: &Host, text: &str, arguments: &[&str], bin: &str) {
    let script = host.write("recipe.sh", text.as_bytes()).unwrap();
    let mut command = host.command("sh");
    command.arg(script).args(arguments);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{bin}:{path}:/usr/sbin:/sbin"));
    host.finish(command, b"", Duration::from_secs(60)).unwrap().success().unwrap();
}

/// The path of a program that `packaging/provision` unpacked.
pub fn unpacked(path: &str) -> PathBuf {
    let cache = std::env::var("FTP_ALG_LAB_CACHE").unwrap_or("/var/cache/ftp-alg-lab".to_owned());
    let file = PathBuf::from(cache).join("root").join(path);
    assert!(file.exists(), "{} is missing: run packaging/provision", file.display());
    file
}

/// Asserts that without the recipe's rule the `stopped` modes are dropped with the nftables back end, and all transfers
/// work with the conntrack back end; and that with the rule all transfers work with the nftables back end.
pub fn assert_rule_suffices(
    site: &Site,
    recipe: &Recipe,
    families: &[Family],
    stopped: &[Mode],
    apply: impl Fn(&Host, &str),
) {
    apply(site.guard(), &recipe.without_its_rule());
    let daemon = site.daemon(NFTABLES);
    for &family in families {
        for &mode in stopped {
            site.stops(&daemon, family, mode);
        }
    }
    drop(daemon);
    site.works(CONNTRACK, families);
    apply(site.guard(), &recipe.text);
    site.works(NFTABLES, families);
}
