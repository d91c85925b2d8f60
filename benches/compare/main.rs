//! `ftp-alg` beside what else there is: `make bench-compare`, as root.
//!
//! Builds a client, a gateway that masquerades and drops by default, and a server, puts each
//! contestant on the gateway in turn, and measures what users would notice. Each measurement has a
//! lab of its own, all are interleaved over several rounds, and what is printed are medians.
//! `docs/benchmarks/README.md` says how to run and read it.

mod accept;
mod contestant;
mod dialogue;
mod load;
mod options;
mod server;
mod table;

use std::{collections::BTreeMap, io::Read, process::ExitCode, thread, time::Duration};

use ftp_alg::lab::Result;

use contestant::{Contestant, Stage};
use options::{Figure, Options, ROLE};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        [ROLE, role @ ..] => play(role),
        _ if !words.contains(&"--bench") => return ExitCode::SUCCESS, // `cargo test --benches`
        _ => Options::read().and_then(|options| compare(&options)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

/// This program as an end of the measurement.
fn play(role: &[&str]) -> std::result::Result<(), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    match role {
        ["serve", port] => {
            let port = port.parse().map_err(|error| text(&error))?;
            server::run(port).map_err(|error| text(&error))
        }
        ["load"] => {
            let mut order = Vec::new();
            std::io::stdin().read_to_end(&mut order).map_err(|error| text(&error))?;
            let order = serde_json::from_slice(&order).map_err(|error| text(&error))?;
            let report = serde_json::to_string(&load::run(&order)).map_err(|error| text(&error))?;
            println!("{report}");
            Ok(())
        }
        _ => Err(format!("no such role: {role:?}")),
    }
}

/// Measures everything that is asked for and prints it.
fn compare(options: &Options) -> std::result::Result<(), String> {
    thread::spawn(|| {
        // Whoever is tired of waiting leaves nothing behind.
        let signals = [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM];
        if let Ok(mut signals) = signal_hook::iterator::Signals::new(signals) {
            if signals.forever().next().is_some() {
                ftp_alg::lab::remove_everything();
                std::process::exit(1);
            }
        }
    });
    let mut results: BTreeMap<(usize, usize), Vec<load::Report>> = BTreeMap::new();
    for round in 0..options.rounds {
        let count = options.contestants.len();
        for place in 0..count {
            // Who is first in one round is last in another.
            let place = if round % 2 == 0 { place } else { count - 1 - place };
            let at = (place + round / 2) % count;
            let contestant = &options.contestants[at];
            for figure in &options.figures {
                match figure {
                    Figure::Cycles => {
                        for (which, workers) in options.workers.iter().enumerate() {
                            eprint!("\rround {} of {}: {} {workers}    ", round + 1, options.rounds, contestant.name());
                            let report = cycles(options, contestant, *workers).map_err(|error| error.to_string())?;
                            results.entry((which, at)).or_default().push(report);
                        }
                    }
                }
            }
        }
    }
    eprintln!();
    table::print(options, &results);
    Ok(())
}

fn cycles(options: &Options, contestant: &Contestant, workers: usize) -> Result<load::Report> {
    let stage = Stage::set(contestant, options.pin)?;
    let mut verbs = options.verbs.clone();
    if *contestant == Contestant::NoHelper {
        // What is announced by the client needs a helper.
        verbs.retain(|verb| matches!(verb, load::Verb::Pasv | load::Verb::Epsv));
    }
    let order = load::Order { target: stage.target, verbs, workers, time: options.time };
    let order = serde_json::to_vec(&order).unwrap_or_default();
    let limit = options.time + Duration::from_secs(40);
    let report = stage.client("load", &order, limit)?;
    let report: load::Report = serde_json::from_slice(&report).map_err(|error| {
        ftp_alg::lab::LabError::Unexpected(format!("{error}: {}", stage.log()))
    })?;
    if report.errors > 0 && std::env::var_os("FTP_ALG_COMPARE_LOG").is_some() {
        eprintln!("\n{}: {:?}\n{}", contestant.name(), report, stage.log());
    }
    Ok(report)
}
