//! `ftp-alg demo`: shows every case of the design's table on a terminal, with real servers and clients.
//!
//! All output comes from captures on both sides of the gateway and from answers of the running daemon. The demo does
//! not use reports of the engine, because those could hide an error of the engine.

use std::{
    io::{self, Write as _},
    panic::resume_unwind,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use ftp_alg_lab::{
    self, Capture, CaptureAnalysis,
    ClientProgram::{self, Curl, Ftplib, Inetutils, Lftp, Ncftp, Tnftp},
    Daemon, Family, HeldClient, Lab, LabError, Mode, Server, ServerKind, Topology, Transfer,
};
use serde_json::Value;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use super::{Failure, output::Style};

/// Show that every case works, in separate network namespaces
///
/// Builds gateways that drop by default, with clients and servers. Needs root.
/// Changes nothing outside its own namespaces. Exit code 0 only if every case
/// works.
#[derive(Debug, Args)]
pub(super) struct DemoOptions {
    /// The program to demonstrate instead of this one.
    #[arg(long, hide = true, value_name = "FILE")]
    executable: Option<PathBuf>,

    /// Skip the port scans, which take most of the time
    #[arg(long)]
    no_scan: bool,
}

/// The labs: what the gateway does, and the server program.
const LABS: [(Topology, ServerKind); 4] = [
    (Topology::Masquerade, ServerKind::PureFtpd),
    (Topology::SnatPool, ServerKind::Vsftpd),
    (Topology::PublishedServer, ServerKind::Proftpd),
    (Topology::Routed, ServerKind::PureFtpd),
];

/// An IP version, a mode and a client.
type DemoCase = (Family, Mode, ClientProgram);

impl DemoOptions {
    /// Runs all cases. It is a failure if one of them does not work.
    pub fn run(&self) -> Result<(), Failure> {
        let failed = self.show().map_err(Failure::failed)?;
        let cases = if failed == 1 { "case" } else { "cases" };
        match failed {
            0 => Ok(()),
            _ => Err(Failure::Failed(format!("{failed} {cases} failed; see the table above"))),
        }
    }

    /// Runs all cases and returns the number of failed rows.
    fn show(&self) -> ftp_alg_lab::Result<usize> {
        ftp_alg_lab::requirements()?;
        clean_up_on_signals()?;
        let executable = match &self.executable {
            Some(path) => path.clone(),
            None => std::env::current_exe().map_err(LabError::file("/proc/self/exe"))?,
        };
        let style = Style::of_stdout();
        let mut table = format!(
            "\n{:<24} {:<6} {:<8} {:<10} {:<10} result\n",
            "gateway", "", "", "client", "server"
        );
        let scan = if self.no_scan { "" } else { ", port scan" };
        let (mut ends, mut failed) = (String::new(), 0);
        for (topology, server) in LABS {
            let mut outcomes = Vec::new();
            let end = self.show_lab(topology, server, &executable, style, &mut outcomes);
            if let Err(error) = &end {
                say(&format!("\n  {}: {error}\n", style.red("FAILED")));
                // Cases that were not reached count as failed.
                let unreached = || Err(unexpected(error.to_string()));
                outcomes.resize_with(cases(topology).len(), unreached);
            }
            failed += outcomes.iter().chain([&end]).filter(|outcome| outcome.is_err()).count();
            let gateway = topology.to_string();
            for ((family, mode, client), outcome) in cases(topology).into_iter().zip(&outcomes) {
                let outcome = outcome_text(outcome, style);
                table += &format!(
                    "{gateway:<24} {family:<6} {mode:<8} {client:<10} {server:<10} {outcome}\n"
                );
            }
            let what = format!("nothing open at the end{scan}");
            ends += &format!("{gateway:<24} {what:<37} {}\n", outcome_text(&end, style));
        }
        say(&(table + &ends));
        Ok(failed)
    }

    fn show_lab(
        &self,
        topology: Topology,
        kind: ServerKind,
        executable: &std::path::Path,
        style: Style,
        outcomes: &mut Vec<ftp_alg_lab::Result<()>>,
    ) -> ftp_alg_lab::Result<()> {
        let lab = Lab::new(topology)?;
        say(&picture(&lab, kind, style));
        let server = Server::start(kind, &lab.server)?;
        let before = lab.gateway.ruleset()?;
        let mut daemon = Daemon::start(executable, &lab.gateway, "")?;
        for case @ (family, mode, client) in cases(topology) {
            let title = format!("{family}, {mode}: {client} with {kind}");
            say(&format!("  {}\n", style.bold(&title)));
            let outcome = show_case(&lab, &server, &daemon, case, style);
            outcomes.push(outcome.inspect_err(|error| {
                say(&format!("    {} {error}\n", style.red("FAILED")));
            }));
        }
        check_nothing_open(&lab, &daemon)?;
        if !self.no_scan {
            scan(&lab)?;
        }
        daemon.stop()?;
        if lab.gateway.ruleset()? != before {
            return Err(unexpected("rules left after the daemon ended"));
        }
        let ports = if self.no_scan { "" } else { "no open port but 21, " };
        say(&format!(
            "  afterwards: no open pinhole, empty sets, {ports}no rule left at the end\n"
        ));
        Ok(())
    }
}

fn unexpected(what: impl Into<String>) -> LabError {
    LabError::Unexpected(what.into())
}

/// Every pair of IP version and mode, each with another client.
fn cases(topology: Topology) -> [DemoCase; 4] {
    let [a, b, c, d] = match topology {
        Topology::Masquerade => [Ncftp, Lftp, Curl, Tnftp],
        Topology::SnatPool => [Inetutils, Curl, Ftplib, Inetutils],
        Topology::PublishedServer => [Lftp, Curl, Tnftp, Lftp],
        _ => [Tnftp, Ncftp, Lftp, Curl],
    };
    [
        (Family::V4, Mode::Active, a),
        (Family::V4, Mode::Passive, b),
        (Family::V6, Mode::Active, c),
        (Family::V6, Mode::Passive, d),
    ]
}

/// Runs a download, an upload and a listing. A second download then waits after its announcement while the pinhole is
/// checked. Says what was observed.
fn show_case(
    lab: &Lab,
    server: &Server,
    daemon: &Daemon,
    (family, mode, client): DemoCase,
    style: Style,
) -> ftp_alg_lab::Result<()> {
    let start = Instant::now();
    let body: Vec<u8> = (0..250_000_u32).map(|n| (n.wrapping_mul(31) >> 3) as u8).collect();
    let near_client = Capture::start(&lab.gateway, lab.client_side(), "tcp port 21")?;
    let near_server = Capture::start(&lab.gateway, lab.server_side(), "tcp port 21")?;
    let address = lab.server_address(family);
    let transfer = Transfer::new(client, &lab.client, server, address, mode);
    transfer.exchange(server, "report", &body)?;
    let held = HeldClient::start(&lab.client, server, address, mode, "report")?;
    let pinholes = daemon.pinholes()?;
    let [pinhole] = pinholes.as_slice() else {
        return Err(unexpected(format!("expected one pinhole, found: {pinholes:?}")));
    };
    if held.release()? != body.len() {
        return Err(unexpected("the second download has a wrong length"));
    }
    daemon.wait_for_no_pinholes(Duration::from_secs(2))?;
    let (near_client, near_server) = (near_client.finish()?, near_server.finish()?);
    for side in [&near_client, &near_server] {
        let faults = [side.faults()?, side.reorderings()?].concat();
        if !faults.is_empty() {
            return Err(unexpected(format!("tshark found errors: {}", faults.join("; "))));
        }
    }
    // The target announces, so the capture on its side has the original announcement.
    let mut ends = [("client", near_client), ("server", near_server)];
    if mode == Mode::Passive {
        ends.reverse();
    }
    let [(maker, made), (reader, read)] = ends;
    let (before, after) = (last_announcement(&made)?, last_announcement(&read)?);
    let change = if before == after { "unchanged" } else { "rewritten" };
    let pinhole = describe_pinhole(pinhole);
    let (ok, seconds) = (style.green("ok"), start.elapsed().as_secs_f64());
    let lines = [
        format!("{maker} says     {before}"),
        format!("{reader} reads    {after}  ({change})"),
        format!("pinhole         {pinhole}"),
        format!(
            "{ok}              download, upload and listing at {address}, bytes compared, {seconds:.1} s"
        ),
    ];
    say(&lines.map(|line| format!("    {line}\n")).concat());
    Ok(())
}

/// The last announcement. It belongs to the second download, whose pinhole is shown.
fn last_announcement(side: &CaptureAnalysis) -> ftp_alg_lab::Result<String> {
    side.announcements()?.pop().ok_or_else(|| unexpected("no announcement in the capture"))
}

fn describe_pinhole(pinhole: &Value) -> String {
    let field = |name: &str| pinhole.get(name).and_then(Value::as_str).unwrap_or("?");
    let mut text = format!("{} -> {}", field("initiator"), field("arrival"));
    if field("target") != field("arrival") {
        text += &format!(", sent to {}", field("target"));
    }
    if field("source") != field("initiator") {
        text += &format!(", as {}", field("source"));
    }
    text + ", one connection"
}

fn check_nothing_open(lab: &Lab, daemon: &Daemon) -> ftp_alg_lab::Result<()> {
    daemon.wait_for_no_pinholes(Duration::from_secs(2))?;
    let elements = daemon.open_pinholes()?;
    if !elements.is_empty() {
        return Err(unexpected(format!("elements left in the sets: {}", elements.join("; "))));
    }
    match lab.gateway.invalid_packets()? {
        0 => Ok(()),
        invalid => Err(unexpected(format!("conntrack counted {invalid} invalid packets"))),
    }
}

/// Scans every port of the gateway and of the host behind it from outside.
fn scan(lab: &Lab) -> ftp_alg_lab::Result<()> {
    let mut targets = vec![lab.gateway.address(Family::V4), lab.gateway.address(Family::V6)];
    let inner = if lab.server_side() == "lan" { &lab.server } else { &lab.client };
    targets.push(inner.address(Family::V4));
    let scan = |target| (target, lab.outsider.scan(target, "1-65535"));
    // Nearly all of it is waiting.
    let scanned: Vec<_> = thread::scope(|scope| {
        let scans: Vec<_> = targets.into_iter().map(|one| scope.spawn(move || scan(one))).collect();
        scans.into_iter().map(|scan| scan.join().unwrap_or_else(|it| resume_unwind(it))).collect()
    });
    for (target, open) in scanned {
        let open = open?;
        if open.iter().any(|port| *port != 21) {
            return Err(unexpected(format!("open ports on {target}: {open:?}")));
        }
    }
    Ok(())
}

fn picture(lab: &Lab, kind: ServerKind, style: Style) -> String {
    let plan = &lab.spec().plan;
    let (mut left, mut right) = (("client", plan.client), ("server", plan.server));
    if lab.server_side() == "lan" {
        std::mem::swap(&mut left, &mut right);
    }
    let does = match lab.spec().topology {
        Topology::Masquerade => "masquerade, default drop",
        Topology::SnatPool => "SNAT to a pool, default drop",
        Topology::PublishedServer => "port 21 by DNAT, default drop",
        Topology::PortForward => "port 2121 to 21 by DNAT, default drop",
        _ => "no NAT, default drop",
    };
    let mut text = format!("\n{} ({kind})\n\n", style.bold(&lab.spec().topology.to_string()));
    let mut line = |a: &str, b: &str, c: &str| {
        text += &format!("  {}\n", format!("{a:<18}   {b:<40}   {c}").trim_end());
    };
    let wall = format!("+{}+", "-".repeat(38));
    line("", &wall, "");
    line(left.0, &format!("|{:^38}|", "gateway: ftp-alg"), right.0);
    for family in [Family::V4, Family::V6] {
        let [near, inside, outside, far] = [left.1, plan.inside, plan.outside, right.1]
            .map(|addresses| addresses.address(family).to_string());
        line(&near, &format!("| {inside:<17} {outside:>18} |"), &far);
    }
    line("", &format!("|{does:^38}|"), "");
    line("", &wall, "");
    text.push('\n');
    text
}

/// Removes the labs when a signal ends the demo, because a signal does not unwind the stack.
fn clean_up_on_signals() -> ftp_alg_lab::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|source| LabError::Start { program: "the signal handler".to_owned(), source })?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            ftp_alg_lab::remove_everything();
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

fn say(text: &str) {
    // Errors are ignored, so that a closed pipe (`ftp-alg demo | head`) does not leave namespaces behind.
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// `ok`, or the first line of the error.
fn outcome_text(outcome: &ftp_alg_lab::Result<()>, style: Style) -> String {
    let Err(error) = outcome else { return style.green("ok") };
    let text = error.to_string();
    let line: String = text.lines().next().unwrap_or_default().chars().take(120).collect();
    format!("{} {line}", style.red("FAILED"))
}
