//! One measurement: a lab of its own, the contestant on its gateway, and the ends' answer.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, OwnedFd},
    process::{Command, Stdio},
    time::Duration,
};

use ftp_alg::lab::{Family, Host, LabError, Result};
use serde::Serialize;

use crate::{
    bulk,
    contestant::{Contestant, Stage},
    figure::Figure,
    flood,
    load::{self, Report, Verb},
    options::{Options, ROLE},
    server,
};

/// What `contestant` reaches. That it could not be measured is an error of the report.
pub fn measure(options: &Options, figure: Figure, contestant: &Contestant) -> Report {
    let measured = Stage::set(contestant, figure, options.pin).and_then(|stage| {
        let report = match figure {
            Figure::Cycles(workers) => cycles(options, contestant, &stage, workers),
            Figure::Packets => packets(options, &stage),
            Figure::Bulk => transfer(options, &stage, false),
            Figure::Control => transfer(options, &stage, true),
        };
        if std::env::var_os("FTP_ALG_COMPARE_LOG").is_some() {
            eprintln!("\n{} {report:?}\n{}", contestant.name(), stage.log());
        }
        report
    });
    measured.unwrap_or_else(|error| Report {
        errors: 1,
        error: Some(error.to_string()),
        ..Report::default()
    })
}

fn cycles(
    options: &Options,
    contestant: &Contestant,
    stage: &Stage,
    workers: usize,
) -> Result<Report> {
    let mut verbs = options.verbs.clone();
    if *contestant == Contestant::NoHelper {
        // An endpoint that the client announces is of no use without a helper.
        verbs.retain(|verb| matches!(verb, Verb::Pasv | Verb::Epsv));
        if verbs.is_empty() {
            return Ok(Report::default());
        }
    }
    let order = load::Order { target: stage.target, verbs, workers, time: options.time };
    answer(options, &stage.lab.client, stage, &["load"], &order)
}

fn transfer(options: &Options, stage: &Stage, control: bool) -> Result<Report> {
    let order = bulk::Order { target: stage.target, control, time: options.time };
    let before = stage.packets()?;
    let mut report = answer(options, &stage.lab.client, stage, &["bulk"], &order)?;
    if let (true, Some(before), Some(after)) = (control, before, stage.packets()?) {
        let seen = after.saturating_sub(before);
        report.note = Some(format!("the daemon saw {seen} packets"));
    }
    Ok(report)
}

fn packets(options: &Options, stage: &Stage) -> Result<Report> {
    // Nobody answers but the generator.
    for (host, port) in [(&stage.lab.client, "sport"), (&stage.lab.server, "dport")] {
        host.nft(&format!(
            "table ip quiet {{ chain arrived {{
                type filter hook prerouting priority raw; tcp {port} 21 drop
            }}; }}"
        ))?;
    }
    let order = flood::Order {
        client: v4(&stage.lab.client)?,
        outside: v4(&stage.lab.gateway)?,
        server: stage.target,
        time: options.time,
        counters: [String::new(), String::new()],
    };
    let before = stage.packets()?;
    let beside = ["flood-beside", stage.lab.client.namespace()];
    let mut report = answer(options, &stage.lab.server, stage, &beside, &order)?;
    if let (Some(before), Some(after)) = (before, stage.packets()?) {
        let sent = report.rate * options.time.as_secs_f64();
        let seen = after.saturating_sub(before) as f64 / sent * 100.0;
        let note = report.note.take().unwrap_or_default();
        report.note = Some(format!("{note}, the daemon saw {seen:.0}%"));
    }
    Ok(report)
}

fn v4(host: &Host) -> Result<Ipv4Addr> {
    match host.address(Family::V4) {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(LabError::Unexpected("no IPv4 address".to_owned())),
    }
}

/// What this program says as `role` on `host`.
fn answer(
    options: &Options,
    host: &Host,
    stage: &Stage,
    role: &[&str],
    order: &impl Serialize,
) -> Result<Report> {
    let order = serde_json::to_vec(order).unwrap_or_default();
    let command = options.pin.traffic(host.command(options.pin.program()), role)?;
    let limit = options.time + Duration::from_secs(30);
    let done = host.finish(command, &order, limit)?.success()?;
    serde_json::from_slice(&done.stdout).map_err(|error| {
        LabError::Unexpected(format!("{role:?}: {error}: {}{}", done.text(), stage.log()))
    })
}

/// This program as an end of a measurement; what it says is on its standard output.
pub fn play(role: &[&str]) -> io::Result<()> {
    let report = match role {
        ["serve", port] => return server::run(port.parse().map_err(io::Error::other)?),
        ["load"] => load::run(&serde_json::from_slice(&input()?)?),
        ["bulk"] => bulk::run(&serde_json::from_slice(&input()?)?)?,
        ["flood-beside", client] => return flood_beside(client),
        ["flood", order] => {
            let socket = io::stdin().as_fd().try_clone_to_owned()?;
            flood::run(&serde_json::from_str(order)?, socket.into())?
        }
        _ => return Err(io::Error::other(format!("no such role: {role:?}"))),
    };
    io::stdout().write_all(&serde_json::to_vec(&report)?)
}

fn input() -> io::Result<Vec<u8>> {
    let mut order = Vec::new();
    io::stdin().read_to_end(&mut order)?;
    Ok(order)
}

/// In the server's namespace: opens a socket there and gives it to the generator, which runs in
/// the client's.
fn flood_beside(client: &str) -> io::Result<()> {
    let mut order: flood::Order = serde_json::from_slice(&input()?)?;
    let counters = |process: &str| format!("/proc/{process}/net/dev");
    order.counters = [counters("self"), counters(&std::process::id().to_string())];
    let socket: OwnedFd = flood::raw_socket()?.into();
    let status = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{client}"))
        .arg("--")
        .arg(std::env::current_exe()?)
        .args([ROLE, "flood", &serde_json::to_string(&order)?])
        .stdin(Stdio::from(socket))
        .status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("generator: {status}"))) }
}
