//! One measurement: a lab of its own, a contestant on its gateway, and the report of the client.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr},
    process::Command,
    time::Duration,
};

use ftp_alg_lab::{Family, Host, LabError, Result};
use serde::Serialize;

use crate::{
    bulk,
    cable::Side,
    contestant::Contestant,
    figure::Figure,
    flood,
    forward::{self, Traffic},
    load::{self, BenchReport, Verb},
    options::Options,
    placement::Placement,
    server,
    testbed::Testbed,
};

/// Measures `contestant`. If that fails, the report has the error.
pub fn measure(options: &Options, figure: Figure, contestant: &Contestant) -> BenchReport {
    let pin = match figure {
        Figure::Packets | Figure::Forward(_) => Placement::Together,
        _ => Placement::Free,
    };
    let measured = Testbed::build(contestant, figure, pin).and_then(|stage| match figure {
        Figure::Cycles(clients, verb) | Figure::Cycles6(clients, verb) => {
            cycles(options, &stage, clients, false, verb)
        }
        Figure::Sessions(clients, verb) => cycles(options, &stage, clients, true, verb),
        Figure::Published(clients) => cycles(options, &stage, clients, false, Verb::Pasv),
        Figure::Packets => packets(options, &stage),
        Figure::Forward(traffic) => forward(options, &stage, traffic),
        Figure::Bulk => transfer(options, &stage, false),
        Figure::Control => transfer(options, &stage, true),
    });
    measured.unwrap_or_else(|error| BenchReport {
        errors: 1,
        error: Some(error.to_string()),
        ..BenchReport::default()
    })
}

fn cycles(
    options: &Options,
    stage: &Testbed,
    clients: usize,
    is_whole_session: bool,
    verb: Verb,
) -> Result<BenchReport> {
    let (target, time) = (stage.target, options.time);
    let order = load::Order { target, verb, is_whole_session, clients, time };
    let pin = stage.placement.for_clients(Some(clients));
    let command = stage.lab.client.command(pin.program());
    run_role(options, stage, pin.traffic_command(command, &["load"]), &order)
}

fn transfer(options: &Options, stage: &Testbed, control: bool) -> Result<BenchReport> {
    let order = bulk::Order { target: stage.target, control, time: options.time };
    let before = stage.packets()?;
    let command = stage.lab.client.command(stage.placement.program());
    let mut report =
        run_role(options, stage, stage.placement.traffic_command(command, &["bulk"]), &order)?;
    if let (true, Some(before), Some(after)) = (control, before, stage.packets()?) {
        let seen = after.saturating_sub(before);
        report.note = Some(format!("the daemon saw {seen} packets"));
    }
    Ok(report)
}

/// Detaches the gateway's cables from the switches, so that they end at this program, and sets the gateway's
/// neighbours.
fn cables(stage: &Testbed) -> Result<[Side; 2]> {
    let lab = &stage.lab;
    let side = |interface: &str, near, far| {
        let [host, switches] = [lab.gateway.namespace(), lab.switches()];
        let neighbour = format!("neigh replace {near} lladdr 02:00:00:00:00:09 dev {interface}");
        let cable = format!("gateway-{interface}");
        lab.gateway.shell(&format!(
            "ip -n {switches} link set {cable} nomaster\nip -n {host} {neighbour}"
        ))?;
        let shown =
            lab.gateway.run("ip", &["-br", "link", "show", "dev", interface])?.stdout_text();
        let gateway = link_address(&shown)
            .ok_or_else(|| LabError::Unexpected(format!("no link-layer address: {shown}")))?;
        Ok(Side { interface: cable, gateway, near, far })
    };
    let (client, outside) = (v4(&lab.client)?, v4(&lab.gateway)?);
    let server = v4(&lab.server)?;
    Ok([side("lan", client, server)?, side("wan", server, outside)?])
}

/// The command for this program in `role`, in the namespace with the cables' other ends.
fn sender(stage: &Testbed, wrapper: &[&str], role: &str) -> Command {
    let there = format!("--net=/run/netns/{}", stage.lab.switches());
    let words: Vec<&str> = [wrapper, &["nsenter", &there, "--"]].concat();
    let mut command = stage.lab.gateway.command(words[0]);
    command.args(&words[1..]).arg(Placement::Together.program());
    Placement::Together.traffic_command(command, &[role])
}

fn forward(options: &Options, stage: &Testbed, traffic: Traffic) -> Result<BenchReport> {
    let order = forward::Order { sides: cables(stage)?, traffic, time: options.time };
    let report = run_role(options, stage, sender(stage, &[], "forward"), &order)?;
    Ok(BenchReport { cost: None, ..report })
}

fn packets(options: &Options, stage: &Testbed) -> Result<BenchReport> {
    let sides = cables(stage)?;
    let order = flood::Order { sides, time: options.time };
    let before = stage.packets()?;
    // With a higher priority than the reader, on the same core.
    let is_read = stage.processor_time().is_some();
    let wrapper: &[&str] = if is_read { &["chrt", "-f", "1"] } else { &[] };
    let mut report = run_role(options, stage, sender(stage, wrapper, "flood"), &order)?;
    let seen = before.zip(stage.packets()?).map(|(before, after)| after.saturating_sub(before));
    // Packets that bypass the queue cost the daemon nothing, and do not count.
    let share = seen.map_or(1.0, |seen| seen as f64 / report.total);
    if let Some(cost) = report.cost {
        let share_note =
            seen.map_or(String::new(), |_| format!(", the daemon saw {:.0}%", share * 100.0));
        report.note = Some(format!("{:.0}/s next to the generator{share_note}", report.rate));
        report.cost = Some(cost / share);
        report.rate = share / cost;
    }
    Ok(report)
}

/// The address in a line like `lan@if5  UP  aa:bb:cc:dd:ee:ff <...>`.
fn link_address(shown: &str) -> Option<[u8; 6]> {
    let text = shown.split_whitespace().nth(2)?;
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

fn v4(host: &Host) -> Result<Ipv4Addr> {
    match host.address(Family::V4) {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(LabError::Unexpected("no IPv4 address".to_owned())),
    }
}

/// Runs this program in a role with `command`, and returns its report.
fn run_role(
    options: &Options,
    stage: &Testbed,
    command: Command,
    order: &impl Serialize,
) -> Result<BenchReport> {
    let order = serde_json::to_vec(order).unwrap_or_default();
    let limit = options.time + Duration::from_secs(30);
    let before = stage.processor_time();
    let done = stage.lab.client.finish(command, &order, limit)?.success()?;
    let mut report: BenchReport = serde_json::from_slice(&done.stdout).map_err(|error| {
        LabError::Unexpected(format!("{error}: {}{}", done.stdout_text(), stage.log()))
    })?;
    let used = before.zip(stage.processor_time()).map(|(before, after)| after - before);
    report.cost = used.map(|used| used.as_secs_f64() / report.total);
    Ok(report)
}

/// Plays a role in a measurement: reads its parameters from standard input, and writes its report to standard output.
pub fn play_role(role: &[&str]) -> io::Result<()> {
    let report = match role {
        ["serve", port] => return server::run(port.parse().map_err(io::Error::other)?),
        ["load"] => load::run(&serde_json::from_slice(&input()?)?),
        ["bulk"] => bulk::run(&serde_json::from_slice(&input()?)?)?,
        ["flood"] => flood::run(&serde_json::from_slice(&input()?)?)?,
        ["forward"] => forward::run(&serde_json::from_slice(&input()?)?)?,
        _ => return Err(io::Error::other(format!("no such role: {role:?}"))),
    };
    io::stdout().write_all(&serde_json::to_vec(&report)?)
}

fn input() -> io::Result<Vec<u8>> {
    let mut order = Vec::new();
    io::stdin().read_to_end(&mut order)?;
    Ok(order)
}
