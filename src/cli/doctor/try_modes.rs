//! `ftp-alg doctor --try`: logs in to a server, transfers a listing in each mode, and reports which step fails.
//!
//! For a failed step it also reports the reply, or the rule of this machine that drops the connection.

mod connection;
mod ftp_client;
mod local_machine;
mod target;

use std::{
    net::{SocketAddr, ToSocketAddrs as _},
    path::PathBuf,
    sync::mpsc,
    thread,
    time::Duration,
};

use clap::Args;
use ftp_alg_core::ftp::AnnouncementKind;
use ftp_client::{
    FtpClient, FtpClientError,
    FtpClientErrorKind::{AnnouncementRefused, ControlConnection, NoDataConnection, Undecided},
};
use local_machine::LocalMachine;
use serde::Serialize;
use target::TryTarget;

use super::{
    Failure, SocketOption,
    output::{self, Style},
    table,
};
use crate::{config::escaped, kernel::RuleParameters};

/// The time limit for resolving a name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many addresses of a name are tried at most.
const MAX_ADDRESSES: usize = 4;
/// Both modes of each direction.
const MODES: [AnnouncementKind; 4] = [
    AnnouncementKind::Epsv,
    AnnouncementKind::Pasv,
    AnnouncementKind::Eprt,
    AnnouncementKind::Port,
];

/// The options of `doctor --try`.
#[derive(Args, Debug)]
pub(super) struct TryOptions {
    /// Log in at ftp://[USER[:PASSWORD]@]HOST[:PORT] and try each mode; ftps:// and
    /// ftpes:// for implicit TLS and AUTH TLS
    #[arg(long = "try", value_name = "URL")]
    url: Option<String>,
    /// A file with the password in its first line; or set FTP_ALG_PASSWORD
    #[arg(long, value_name = "FILE", requires = "url")]
    password_file: Option<PathBuf>,
    /// Accept any certificate, as one that the server signed itself
    #[arg(long, requires = "url")]
    insecure: bool,
}

impl TryOptions {
    /// Runs all steps and prints each result, those of both modes of a direction together. `None` if `--try` is not
    /// given.
    pub(super) fn run_if_asked(
        &self,
        parameters: &RuleParameters,
        socket: &SocketOption,
        json: bool,
    ) -> Option<Result<(), Failure>> {
        let (url, file) = (self.url.as_deref()?, self.password_file.as_deref());
        let target = TryTarget::new(url, file, self.insecure);
        Some(
            target.map_err(Failure::Usage).and_then(|target| {
                run_steps(&target, &LocalMachine::new(parameters, socket), json)
            }),
        )
    }
}

/// The result of a step.
#[derive(Debug, Serialize)]
struct TryStep {
    step: String,
    /// Whether the step succeeded; `None` if that is not known: it was not tried, or the server does not support it.
    ok: Option<bool>,
    says: String,
    /// What to do, one line each.
    remedy: Vec<String>,
}

impl TryStep {
    fn text(&self) -> String {
        let mark = match self.ok {
            Some(true) => "ok",
            Some(false) => "FAILED",
            None => "skipped",
        };
        let mut text = String::new();
        let start = format!("  {mark:<7}  {:<8}  ", self.step);
        text += &format!(
            "{start}{}\n",
            table::wrapped(&self.says, start.len(), Style::of_stdout().text_width())
        );
        for line in &self.remedy {
            text += &format!("      {line}\n");
        }
        text
    }
}

fn run_steps(target: &TryTarget, local: &LocalMachine<'_>, json: bool) -> Result<(), Failure> {
    let mut report = TryReport { json, steps: Vec::new() };
    if !json {
        output::print(&format!("{}\n", escaped(&target.to_string())))?;
    }
    if let Some(why) = try_server(target, local, &mut report)? {
        for kind in MODES {
            report.add(&kind.to_string(), None, format!("not tried: {why}"), Vec::new())?;
        }
    }
    report.end()
}

/// The results of all steps, in order.
struct TryReport {
    json: bool,
    steps: Vec<TryStep>,
}

impl TryReport {
    fn add(
        &mut self,
        step: &str,
        ok: Option<bool>,
        says: String,
        remedy: Vec<String>,
    ) -> Result<(), Failure> {
        let [says, step] = [says, step.to_owned()].map(|text| escaped(&text));
        let remedy = remedy.iter().map(|line| escaped(line)).collect();
        let step = TryStep { step, ok, says, remedy };
        if !self.json {
            output::print(&step.text())?;
        }
        self.steps.push(step);
        Ok(())
    }

    /// Adds a step that succeeded, or that failed with an error message and a remedy. Returns whether it succeeded.
    fn add_result(
        &mut self,
        step: &str,
        result: Result<String, (String, Vec<String>)>,
    ) -> Result<bool, Failure> {
        let ok = result.is_ok();
        let (says, remedy) = result.map_or_else(|failed| failed, |says| (says, Vec::new()));
        self.add(step, Some(ok), says, remedy)?;
        Ok(ok)
    }

    fn end(&self) -> Result<(), Failure> {
        let failed: Vec<&str> = self
            .steps
            .iter()
            .filter(|step| step.ok == Some(false))
            .map(|step| step.step.as_str())
            .collect();
        if self.json {
            let report = serde_json::json!({"ok": failed.is_empty(), "steps": self.steps});
            output::print_line(&report.to_string())?;
        }
        match failed.as_slice() {
            [] => Ok(()),
            failed => Err(Failure::Failed(format!("failed: {}", failed.join(", ")))),
        }
    }
}

/// Runs all steps. If a step fails that all modes need, returns the reason why no mode was tried.
fn try_server(
    target: &TryTarget,
    local: &LocalMachine<'_>,
    report: &mut TryReport,
) -> Result<Option<String>, Failure> {
    let addresses = match resolve(&target.host, target.port) {
        Ok(addresses) => addresses,
        Err(error) => {
            let advice = "check /etc/resolv.conf, or use an address".to_owned();
            report.add("lookup", Some(false), format!("{}: {error}", target.host), vec![advice])?;
            return Ok(Some(format!("no address for {}", target.host)));
        }
    };
    let (mut errors, mut remedies, mut found) = (Vec::new(), Vec::new(), None);
    for address in addresses {
        match FtpClient::connect(address) {
            Ok(client) => {
                found = Some((client, address));
                break;
            }
            Err(error) => {
                let (says, remedy) = local.explain(&error, None);
                errors.push(says);
                remedies.extend(remedy);
            }
        }
    }
    remedies.dedup();
    let Some((mut client, server)) = found else {
        report.add("connect", Some(false), errors.join("; "), remedies)?;
        return Ok(Some("no control connection".to_owned()));
    };
    let own = client.own_address().map(|own| format!(" from {own}")).unwrap_or_default();
    errors.insert(0, format!("{server}{own}"));
    report.add("connect", Some(true), errors.join("; but "), Vec::new())?;
    for (step, run) in FtpClient::login_steps(target.encryption) {
        let result = run(&mut client, target).map_err(|error| local.explain(&error, Some(server)));
        if !report.add_result(step, result)? {
            return Ok(Some(format!("{step} failed")));
        }
    }
    try_modes(target, local, report, client, server)?;
    Ok(None)
}

/// Tries each mode. After a failed mode it starts a new session, because replies may still arrive in the old one.
fn try_modes(
    target: &TryTarget,
    local: &LocalMachine<'_>,
    report: &mut TryReport,
    client: FtpClient,
    server: SocketAddr,
) -> Result<(), Failure> {
    let mut client = Some(client);
    for direction in MODES.chunks(2) {
        let mut results = Vec::new();
        for &kind in direction {
            if server.is_ipv6() && matches!(kind, AnnouncementKind::Pasv | AnnouncementKind::Port) {
                let says = format!("not tried: {kind} works only with IPv4");
                results.push((kind, Err(Undecided.error(says))));
                continue;
            }
            let session = client.take().map_or_else(|| new_session(target, server), Ok);
            let result = match session {
                Ok(mut session) => {
                    let result = session.transfer_listing(kind);
                    match &result {
                        Err(error) if !error.is_unsupported => session.quit(),
                        _ => client = Some(session),
                    }
                    result
                }
                Err(error) => Err(ControlConnection
                    .error(format!("not tried: cannot open another session: {error}"))),
            };
            results.push((kind, result));
        }
        // A gateway that spoils announcements spoils both of a direction.
        let works = results.iter().any(|(_, result)| result.is_ok());
        for (kind, result) in results {
            let step = kind.to_string();
            match result {
                Err(error) if error.kind == Undecided => {
                    report.add(&step, None, error.to_string(), Vec::new())?;
                }
                Err(error)
                    if target.is_encrypted()
                        && matches!(error.kind, NoDataConnection(_) | AnnouncementRefused) =>
                {
                    let advice = "no gateway can read it inside TLS: use passive mode, or CCC";
                    report.add(&step, None, error.to_string(), vec![advice.to_owned()])?;
                }
                Err(error) if error.is_unsupported && works => {
                    let says = format!("not supported by the server: {error}");
                    report.add(&step, None, says, Vec::new())?;
                }
                result => {
                    let explain = |error| local.explain(&error, Some(server));
                    report.add_result(&step, result.map_err(explain))?;
                }
            }
        }
    }
    if let Some(session) = client {
        session.quit();
    }
    Ok(())
}

/// Opens another session with the same login.
fn new_session(target: &TryTarget, server: SocketAddr) -> Result<FtpClient, FtpClientError> {
    let mut client = FtpClient::connect(server)?;
    for (_, run) in FtpClient::login_steps(target.encryption) {
        run(&mut client, target)?;
    }
    Ok(client)
}

/// The first few addresses of a name. The time limit is needed because the resolver has none.
fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let (sender, receiver) = mpsc::channel();
    let host = host.to_owned();
    thread::spawn(move || {
        let found = (host.as_str(), port).to_socket_addrs();
        let found = found.map(|all| all.take(MAX_ADDRESSES).collect::<Vec<_>>());
        // After the time limit nobody receives the result.
        let _ = sender.send(found.map_err(|error| error.to_string()));
    });
    match receiver.recv_timeout(RESOLVE_TIMEOUT) {
        Ok(Ok(addresses)) if addresses.is_empty() => Err("the name has no address".to_owned()),
        Ok(found) => found,
        Err(_) => Err(format!("no answer within {} s", RESOLVE_TIMEOUT.as_secs())),
    }
}
