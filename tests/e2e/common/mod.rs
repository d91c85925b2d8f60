//! What the end-to-end tests share, and what they all name: a gateway that runs, and scripted ends of a session.
#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

mod captures;
pub mod dialogues;
mod event_schema;
mod fast_load;
mod fast_path;
mod load;
mod names;

pub use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use ftp_alg::kernel::{RuleParameters, operator_firewall};
use ftp_alg_firewall::{ControlPathVerdict, Hook};
pub use ftp_alg_lab::{
    AddressPlan, Admission, BackgroundProcess, Capture, CaptureAnalysis, ClientProgram, ClientTls,
    Daemon,
    Family::{self, V4, V6},
    FirewallKind, HeldClient, Host, KERNEL_HELPER, Lab, LabSpec, Mode, ProgramOutput, Script,
    Server, ServerKind, ServerTls, Topology, Transfer, Verb, has_tcx, scaled_timeout, wait_at_most,
    wait_for,
};
use serde::Serialize;
pub use serde_json::{Value, json};

pub use captures::{captured, captures};
pub use event_schema::event_of;
pub use fast_load::FastLoad;
pub use fast_path::{fast_path, fast_path_gateway, until_on_fast_path};
pub use load::{Load, LoadReport, LoadSpec};
pub use names::{NAME, NameServer, reload, row, shell_program, wait_for_address};

/// The program under test; `FTP_ALG_TEST_EXE` names another, such as an installed one.
pub fn executable() -> PathBuf {
    std::env::var_os("FTP_ALG_TEST_EXE")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_ftp-alg")), PathBuf::from)
}

/// A copy of the program where anyone may run it, also who is not root. Made by another process: a child
/// that a test starts at the same moment would have the copy open, and nobody could run it.
pub fn executable_for_everyone(lab: &Lab) -> PathBuf {
    let (program, copy) = (executable(), lab.directory().join("ftp-alg-copy"));
    let arguments = ["-m", "755", &program.to_string_lossy(), &copy.to_string_lossy()];
    lab.gateway.run("install", &arguments).unwrap();
    copy
}

/// The program, made to have a table that other programs can remove, as on a kernel before Linux 6.9.
pub fn executable_without_owner(lab: &Lab) -> PathBuf {
    executable_after(lab, "FTP_ALG_TABLE_OWNER=no")
}

/// The program, which a shell starts after `preparation`. The script is made by another process, as
/// [`executable_for_everyone`] is.
pub fn executable_after(lab: &Lab, preparation: &str) -> PathBuf {
    let (program, script) = (executable(), lab.directory().join("ftp-alg-prepared"));
    let (program, path) = (program.display(), script.display());
    let lines = format!(
        "printf '#!/bin/sh\\n{preparation} exec {program} \"$@\"\\n' > {path}\nchmod 755 {path}"
    );
    lab.gateway.shell(&lines).unwrap();
    script
}

/// The command `ftp-alg run` of another daemon on the gateway, which `under` starts. Its options are `words`; files that
/// they do not name are in a directory that anyone may use.
pub fn another_daemon(
    lab: &Lab,
    under: &[&str],
    program: &Path,
    words: &[&str],
    configuration: &str,
) -> Command {
    let home = lab.directory().join("elsewhere");
    fs::create_dir_all(&home).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o777)).unwrap();
    let file = lab.gateway.write("another.toml", configuration.as_bytes()).unwrap();
    let mut command = lab.gateway.command("env");
    command.args(under).arg(program).args(["run", "--config"]).arg(file).args(words);
    for (option, name) in [("--state-dir", "state"), ("--socket", "socket")] {
        if !words.contains(&option) {
            command.arg(option).arg(home.join(name));
        }
    }
    command
}

/// What comes of [`another_daemon`], which is not to start.
pub fn run_another(
    lab: &Lab,
    under: &[&str],
    program: &Path,
    words: &[&str],
    configuration: &str,
) -> ProgramOutput {
    let command = another_daemon(lab, under, program, words, configuration);
    lab.gateway.finish(command, b"", Duration::from_secs(20)).unwrap()
}

/// Runs a Python program on `host`, which ends well.
pub fn python(host: &Host, name: &str, program: &[u8], arguments: &[&str]) -> String {
    let script = host.write(name, program).unwrap();
    let arguments = [&[script.to_str().unwrap()], arguments].concat();
    host.run("/usr/bin/python3", &arguments).unwrap().stdout_text()
}

/// Sends the daemon a signal, by its name in kill(1).
pub fn signal(daemon: &Daemon, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &daemon.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

/// Asserts that a program ended with this code and said `why` on standard error.
#[track_caller]
pub fn assert_fails(done: &ProgramOutput, code: i32, why: &str) {
    let said = done.stderr_text();
    assert!(
        done.status.code() == Some(code) && said.contains(why),
        "{why}: {}: {said}",
        done.status
    );
}

/// The words that start a program as the user `nobody`.
pub const AS_NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

/// A lab whose gateway has the lab's rules by this program.
pub fn lab_behind(firewall: FirewallKind, topology: Topology) -> Lab {
    Lab::build(LabSpec { firewall, ..LabSpec::new(topology) }).unwrap()
}

/// Transfers of curl with `server` over IPv4.
pub fn curl<'a>(lab: &'a Lab, server: &Server, mode: Mode) -> Transfer<'a> {
    Transfer::new(ClientProgram::Curl, &lab.client, server, lab.server_address(V4), mode)
}

/// How often to repeat what is repeated: as FTP_ALG_ROUNDS says, or this often.
pub fn rounds(default: u64) -> u64 {
    std::env::var("FTP_ALG_ROUNDS").map_or(default, |text| text.parse().unwrap())
}

/// A moment that is another each round, below `limit` milliseconds.
pub fn moment(round: u64, limit: u64) -> Duration {
    let limit = std::env::var("FTP_ALG_PAUSE_MS").map_or(limit, |text| text.parse().unwrap());
    Duration::from_millis((round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % limit)
}

/// Does `work` with each of `all` once, in so many threads.
pub fn side_by_side<T: Send>(threads: usize, all: &mut [T], work: impl Fn(&mut T) + Sync) {
    let rest = Mutex::new(all.iter_mut());
    let next = || rest.lock().unwrap().next();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(one) = next() {
                    work(one);
                }
            });
        }
    });
}

/// A lab with `ftp-alg run` on its gateway. The daemon goes first when it is dropped.
pub struct Gateway {
    pub daemon: Daemon,
    pub lab: Lab,
}

impl Gateway {
    /// A daemon on the gateway of `lab`.
    pub fn on(lab: Lab, configuration: &str) -> Self {
        let daemon = Daemon::start(&executable(), &lab.gateway, configuration).unwrap();
        Self { daemon, lab }
    }

    /// Starts another daemon in place of the one that has ended.
    pub fn start_again(&mut self, configuration: &str) {
        self.daemon = Daemon::start(&executable(), &self.lab.gateway, configuration).unwrap();
    }

    /// Kills the daemon again and again, at any moment of the two seconds from its fork on, and starts `program` at once,
    /// with the `configuration` of the round. In every fourth round `check` gets one that is ready. After two seconds without
    /// a ready one the next is waited for: after five, packets pass unread.
    pub fn kill_at_any_moment(
        &mut self,
        program: &Path,
        default_rounds: u64,
        configuration: impl Fn(u64) -> String,
        mut check: impl FnMut(&Self, u64),
    ) -> u64 {
        let rounds = rounds(default_rounds);
        let mut ready = Instant::now();
        for round in 0..rounds {
            let is_checked = round % 4 == 3;
            if !is_checked {
                thread::sleep(moment(round, 2000));
            }
            if is_checked || ready.elapsed() > Duration::from_secs(2) {
                self.daemon.wait_until_ready().unwrap();
                ready = Instant::now();
            }
            if is_checked {
                check(self, round);
            }
            self.daemon.kill();
            let gateway = &self.lab.gateway;
            self.daemon = Daemon::launch(program, gateway, &configuration(round)).unwrap();
        }
        self.daemon.wait_until_ready().unwrap();
        check(self, rounds);
        rounds
    }

    /// A counter of `status`.
    pub fn count(&self, name: &str) -> u64 {
        self.daemon.counter(name).unwrap()
    }

    /// The events of this kind that the daemon has.
    pub fn events(&self, kind: &str) -> Vec<Value> {
        let mut events = self.all_events();
        events.retain(|event| event["event"] == kind);
        events
    }

    /// The events that the daemon has. Each is as docs/events.schema.json says.
    fn all_events(&self) -> Vec<Value> {
        let shown = self.daemon.ask(&["events", "--json"]).unwrap().stdout_text();
        shown.lines().map(event_of).collect()
    }

    /// Asserts that nothing is left open, and that nothing failed in the daemon.
    pub fn assert_tidy(&self) {
        self.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
        assert_eq!(self.daemon.counter("errors").unwrap(), 0, "{}", self.daemon.log());
        self.all_events();
    }
}

/// Daemons with this configuration, one on each gateway of `lab`.
pub fn daemons_of(lab: &Lab, configuration: &str) -> Vec<Daemon> {
    let start = |host| Daemon::start(&executable(), host, configuration).unwrap();
    lab.gateways().into_iter().map(start).collect()
}

/// Asserts that there are no `failures`, and that these daemons of `lab` left nothing open.
pub fn assert_all_carried(
    lab: &Lab,
    daemons: &[Daemon],
    backend: &str,
    failures: &[impl std::fmt::Debug + for<'f> PartialEq<&'f str>],
) {
    if !failures.is_empty() {
        for daemon in daemons {
            // Shown by the test harness with the failure.
            println!("a daemon's log:\n{}", daemon.log());
        }
    }
    assert_eq!(failures, [""; 0]);
    for (host, daemon) in lab.gateways().into_iter().zip(daemons) {
        assert_eq!(daemon.status().unwrap()["backend"], backend);
        assert_eq!(host.invalid_packets().unwrap(), 0, "{}", host.role());
        daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
        assert_eq!(daemon.counter("errors").unwrap(), 0, "{}", daemon.log());
    }
}

pub const FAMILIES: [Family; 2] = [V4, V6];
pub const MODES: [Mode; 2] = [Mode::Active, Mode::Passive];

/// With this configuration a firewall needs a rule for data connections, whatever else it accepts.
pub const NFTABLES: &str = "[pinhole]\nbackend = \"nftables\"\n";
/// With this one it needs none, if it accepts `related`.
pub const CONNTRACK: &str = "[pinhole]\nbackend = \"conntrack\"\n";

/// With this one connections use the fast path.
pub const FAST_PATH: &str = "[queue]\nfast-path = \"auto\"\n[pinhole]\nbackend = \"nftables\"\n";
/// The same behind a firewall that accepts `related` alone.
pub const FAST_PATH_EXPECTING: &str =
    "[queue]\nfast-path = \"auto\"\n[pinhole]\nbackend = \"conntrack\"\n";

/// The configuration of a back end.
pub fn back_end(name: &str) -> String {
    format!("[pinhole]\nbackend = \"{name}\"\n")
}

/// A lab with `ftp-alg run` and an empty configuration.
pub fn gateway(topology: Topology) -> Gateway {
    gateway_with(topology, "")
}

/// A lab with `ftp-alg run` and `configuration`, behind a firewall that suits its back end.
pub fn gateway_with(topology: Topology, configuration: &str) -> Gateway {
    Gateway::on(lab_for(topology, configuration), configuration)
}

/// A gateway as [`gateway_with`] makes it, and a server that answers as `plan` says.
pub fn served(topology: Topology, configuration: &str, plan: Value) -> (Gateway, ScriptedServer) {
    let gateway = gateway_with(topology, configuration);
    let server = scripted_server(&gateway.lab.server, &plan);
    (gateway, server)
}

/// A lab behind a firewall that suits the back end in `configuration`.
pub fn lab_for(topology: Topology, configuration: &str) -> Lab {
    let expects = configuration.contains("conntrack");
    let admission = if expects { Admission::Related } else { Admission::Mark };
    Lab::build(LabSpec { admission, ..LabSpec::new(topology) }).unwrap()
}

/// A lab whose gateway has no firewall but `rules`.
pub fn lab_with_rules(topology: Topology, rules: &str) -> Lab {
    let lab = lab_behind(FirewallKind::None, topology);
    lab.gateway.nft(rules).unwrap();
    lab
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if thread::panicking() {
            // Shown by the test harness with the failure.
            let log = self.daemon.log_of_all();
            let lines: Vec<_> = log.lines().collect();
            let name = thread::current().name().unwrap_or("test").replace("::", "-");
            let whole = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name).with_extension("log");
            let retained = fs::write(&whole, &log).is_ok();
            let place = if retained { whole.display().to_string() } else { String::new() };
            println!("the daemon's log, {} lines, all of them in {place}:", lines.len());
            let (first, rest) = lines.split_at(lines.len().min(20));
            let (_, last) = rest.split_at(rest.len().saturating_sub(40));
            println!("{}\n...\n{}", first.join("\n"), last.join("\n"));
        }
    }
}

/// The scripted server of `server.py`.
pub struct ScriptedServer {
    process: BackgroundProcess,
}

/// Starts `server.py` on `host`, on port 21 if `plan` names no other.
pub fn scripted_server(host: &Host, plan: &Value) -> ScriptedServer {
    let command = host.script_command(Script::Server, &[&plan.to_string()]).unwrap();
    let port = plan["port"].as_u64().map_or(21, |port| u16::try_from(port).unwrap());
    let process = host.start(command, &format!("scripted-server-{port}")).unwrap();
    host.wait_for_port(port, Duration::from_secs(60)).unwrap();
    ScriptedServer { process }
}

impl ScriptedServer {
    /// The control lines that it received.
    pub fn lines(&self) -> Vec<String> {
        self.said("line")
    }

    /// Who opened data connections, or to whom it did.
    pub fn data_peers(&self) -> Vec<String> {
        self.said("data")
    }

    fn said(&self, key: &str) -> Vec<String> {
        self.process
            .log()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|entry| Some(entry.get(key)?.as_str()?.to_owned()))
            .collect()
    }
}

/// What became of a scripted client's steps.
#[derive(Debug)]
pub struct Session {
    /// What each step got, and how many milliseconds it took.
    pub steps: Vec<(String, f64)>,
    /// Why it stopped early.
    pub error: Option<String>,
}

impl Session {
    fn parse(line: &str) -> Self {
        let report: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        let steps = report["steps"].as_array().unwrap().iter();
        Self {
            steps: steps
                .map(|step| (step["got"].as_str().unwrap().into(), step["ms"].as_f64().unwrap()))
                .collect(),
            error: report["error"].as_str().map(str::to_owned),
        }
    }

    /// The session, which came to its end.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.ok_in("")
    }

    /// As [`Session::ok`], in a case of several.
    #[track_caller]
    pub fn ok_in(self, case: impl std::fmt::Display) -> Self {
        assert_eq!(self.error, None, "{case}: {:?}", self.steps);
        self
    }

    /// What step number `at` got.
    pub fn got(&self, at: usize) -> &str {
        match self.steps.get(at) {
            Some((got, _)) => got,
            None => panic!("step {at} was not reached: {:?}", self.error),
        }
    }
}

/// Runs a scripted client to its end; `plan` as `client.py` has it.
pub fn scripted_client(host: &Host, plan: &Value) -> Session {
    let limit = Duration::from_secs(120);
    let done = host.script(Script::Client, &[&plan.to_string()], limit).unwrap();
    Session::parse(done.success().unwrap().stdout_text().lines().last().unwrap_or_default())
}

/// A plan of `steps`, which may be lists of steps, with the lab's server, over IPv4.
pub fn plan(lab: &Lab, steps: impl Serialize) -> Value {
    json!({"host": lab.server_address(V4), "steps": one_after_another(json!(steps))})
}

/// Steps in lists of lists as one list.
fn one_after_another(steps: Value) -> Vec<Value> {
    match steps {
        Value::Array(all) => all.into_iter().flat_map(one_after_another).collect(),
        step => vec![step],
    }
}

/// Runs [`plan`] on the lab's client to its end.
pub fn talk(lab: &Lab, steps: impl Serialize) -> Session {
    scripted_client(&lab.client, &plan(lab, steps))
}

/// Runs [`plan`] on the lab's client up to its first gate.
pub fn hold(lab: &Lab, steps: impl Serialize) -> GatedClient {
    gated_client(&lab.client, plan(lab, steps))
}

/// As [`hold`], with a listener on `port` that accepts as the kernel does.
pub fn hold_listening(lab: &Lab, port: u16, steps: impl Serialize) -> GatedClient {
    let mut plan = plan(lab, steps);
    plan["listen"] = json!([port]);
    gated_client(&lab.client, plan)
}

/// A scripted client that waits at its gate.
pub struct GatedClient {
    process: BackgroundProcess,
    gates: Vec<PathBuf>,
}

/// Starts a scripted client whose plan has `{"gate": ...}` steps, and waits until it is at the first one.
pub fn gated_client(host: &Host, mut plan: Value) -> GatedClient {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("gated-client-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let mut gates = Vec::new();
    for step in plan["steps"].as_array_mut().unwrap() {
        if step.get("gate").is_some() {
            gates.push(host.directory().join(format!("{name}.gate-{}", gates.len())));
            *step = json!({"gate": gates.last()});
        }
    }
    let command = host.script_command(Script::Client, &[&plan.to_string()]).unwrap();
    let process = host.start(command, &name).unwrap();
    let client = GatedClient { process, gates };
    // It may wait that long for what its steps expect.
    let patience = plan["timeout"].as_u64().unwrap_or(60).max(60);
    wait_at_most(patience, "the client's gate", || !client.process.log().is_empty());
    let log = client.process.log();
    assert!(log.starts_with("gate"), "{log}");
    client
}

impl GatedClient {
    /// Opens the next gate.
    pub fn open_gate(&mut self) {
        std::fs::write(self.gates.remove(0), b"").unwrap();
    }

    /// Opens the next gate, and waits until the client is at the one behind it.
    pub fn reach_next_gate(&mut self) {
        let reached = self.process.log().lines().count();
        self.open_gate();
        wait_for("the client's next gate", || self.process.log().lines().count() > reached);
    }

    /// Opens all gates, and gives what became of the session.
    pub fn release(mut self) -> Session {
        while !self.gates.is_empty() {
            self.open_gate();
        }
        wait_for("the client's end", || self.process.exit_status().is_some());
        Session::parse(self.process.log().lines().last().unwrap_or_default())
    }
}

/// All of `all` in `make test-nightly`, and the most telling ones on each change.
pub fn telling<'a, T>(telling: &'a [T], all: &'a [T]) -> &'a [T] {
    let is_nightly = std::env::var_os("FTP_ALG_NIGHTLY").is_some();
    if is_nightly { all } else { telling }
}

/// Steps of a login.
pub fn login() -> Vec<Value> {
    login_as(("lab", "lab"))
}

/// Steps of a login with a name and a password.
pub fn login_as((name, password): (&str, &str)) -> Vec<Value> {
    let [name, password] = [say(&format!("USER {name}")), say(&format!("PASS {password}"))];
    vec![reply(), name, reply(), password, reply()]
}

/// A step that sends a line.
pub fn say(line: &str) -> Value {
    json!({"send": format!("{line}\r\n")})
}

/// A step that reads a reply.
pub fn reply() -> Value {
    json!({"reply": true})
}

/// Steps that send a line and read its reply.
pub fn ask(line: &str) -> Vec<Value> {
    vec![say(line), reply()]
}

/// A step at which the client waits.
pub fn gate() -> Value {
    json!({"gate": ""})
}

/// A step that reads a data connection to `port`.
pub fn accept(port: u16) -> Value {
    json!({"accept": port})
}

/// A step that makes the announced data connection, which [`drain`] reads.
pub fn dial() -> Value {
    json!({"dial": true, "later": true})
}

/// A step that reads what [`dial`] connected to.
pub fn drain() -> Value {
    json!({"drain": true})
}

/// Steps of a transfer in active mode, to `port` of the client at `address`.
pub fn active_transfer(address: IpAddr, port: u16) -> Vec<Value> {
    let host = address.to_string().replace('.', ",");
    let port_command = format!("PORT {host},{},{}", port / 256, port % 256);
    vec![say(&port_command), reply(), say("LIST"), reply(), accept(port), reply()]
}

/// Steps of a transfer in active mode to the client's port 3762.
pub fn port_transfer() -> Vec<Value> {
    active_transfer([192, 168, 150, 80].into(), 3762)
}

/// Steps of a transfer in passive mode.
pub fn passive_transfer(command: &str) -> Vec<Value> {
    vec![say(command), reply(), dial(), say("LIST"), reply(), drain(), reply()]
}

/// Plays three sessions, one after the other, each with `rounds` times a transfer by PASV, PORT and EPSV. All announce
/// the same `port`.
pub fn play_sessions(gateway: &Gateway, port: u16, rounds: usize, case: &str) {
    let lab = &gateway.lab;
    let active = active_transfer(lab.client.address(V4), port);
    let round = [passive_transfer("PASV"), active, passive_transfer("EPSV")].concat();
    let steps = [login(), vec![round; rounds].concat()].concat();
    for _ in 0..3 {
        talk(lab, &steps).ok_in(case);
    }
}

/// Rules that drop the first packet that `matching` describes, once.
pub fn lose_once(hook: &str, matching: &str) -> String {
    format!(
        "table inet loss {{
    chain lose {{
        type filter hook {hook} priority -450;
        {matching} limit rate 1/hour burst 1 packets drop
    }}
}}
"
    )
}

/// The directories of pins of the gateway's network namespace, whose number they begin with.
pub fn pins(lab: &Lab) -> Vec<PathBuf> {
    const NUMBER: &str = "import socket; own = socket.socket(socket.AF_UNIX); \
        print('%x-' % int.from_bytes(own.getsockopt(socket.SOL_SOCKET, 71, 8), 'little'))";
    let number = lab.gateway.run("python3", &["-c", NUMBER]).unwrap().stdout_text();
    let Ok(all) = fs::read_dir("/sys/fs/bpf/ftp-alg") else { return Vec::new() };
    let is_own =
        |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(number.trim());
    all.map(|entry| entry.unwrap().path()).filter(is_own).collect()
}

/// What comes of a connection from `host` to `address` that something answers (`open`, `refused`).
pub fn connect(host: &Host, address: &str, port: u16) -> String {
    connect_within(host, address, port, scaled_timeout(Duration::from_secs(8)))
}

/// What comes of a connection from `host` to `address` that nothing should answer (`silent`).
pub fn connect_in_vain(host: &Host, address: &str, port: u16) -> String {
    connect_within(host, address, port, Duration::from_millis(700))
}

/// What comes of a connection from `host`: `open`, `refused`, `silent` or the error.
pub fn connect_within(host: &Host, address: &str, port: u16, limit: Duration) -> String {
    let to = SocketAddr::new(address.parse().unwrap(), port);
    match host.inside(|| TcpStream::connect_timeout(&to, limit)).unwrap() {
        Ok(_) => "open".to_owned(),
        Err(error) if error.kind() == ErrorKind::TimedOut => "silent".to_owned(),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => "refused".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Address and port of a `PORT` line or a `227` reply.
pub fn host_port(line: &str) -> (String, u16) {
    let start = line.find(',').unwrap_or_else(|| panic!("no host-port in {line}"));
    let start = line[..start].rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    let numbers: Vec<u16> = line[start..]
        .split(|c: char| !c.is_ascii_digit())
        .take(6)
        .map(|number| number.parse().unwrap())
        .collect();
    let address: Vec<String> = numbers[..4].iter().map(u16::to_string).collect();
    (address.join("."), numbers[4] * 256 + numbers[5])
}

/// How control connections fare through the gateway, as its rules say.
pub fn control(lab: &Lab) -> ControlPathVerdict {
    let look = || {
        let firewall = operator_firewall::read(RuleParameters::default().gateway);
        firewall.control_verdicts(&operator_firewall::links(), &[Hook::Forward])
    };
    lab.gateway.inside(look).unwrap().swap_remove(0)
}

/// The file with the daemon's configuration.
pub fn configuration_file(daemon: &Daemon) -> String {
    daemon.socket().with_file_name("ftp-alg.toml").display().to_string()
}

/// `ftp-alg doctor` with the daemon's configuration.
pub fn doctor(daemon: &Daemon) -> ProgramOutput {
    daemon.ask(&["doctor", "--config", &configuration_file(daemon)]).unwrap()
}

/// The lines of a ruleset, without the elements of sets and maps.
pub fn without_elements(ruleset: &str) -> Vec<String> {
    let lines = ruleset.lines().filter(|line| !line.trim_start().starts_with("elements"));
    lines.map(str::to_owned).collect()
}
