//! Compares `ftp-alg` with other helpers and proxies: `make bench-compare`, as root.
//!
//! Builds a client, a gateway that masquerades and drops by default, and a server. Runs each contestant on the gateway
//! in turn, and measures what users notice. Each measurement has a lab of its own. The measurements are interleaved
//! over several rounds, and the table shows medians. `benches/README.md` says how to run this and how to read
//! the result.

mod accept;
mod bulk;
mod cable;
mod contestant;
mod dialogue;
mod figure;
mod flood;
mod forward;
mod listeners;
mod load;
mod measure;
mod options;
mod placement;
mod proxies;
mod results;
mod server;
mod table;
mod testbed;

use std::{fs, path::Path, process::ExitCode, thread};

use options::Options;
use placement::ROLE;
use results::Results;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        [ROLE, role @ ..] => measure::play_role(role).map_err(|error| error.to_string()),
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

/// Measures all chosen figures, then prints and saves the results.
fn compare(options: &Options) -> Result<(), String> {
    ftp_alg_lab::requirements().map_err(|error| error.to_string())?;
    clean_up_on_signal();
    let machine = table::machine();
    let mut results = Results::new(options);
    for round in 0..options.rounds {
        for (at, figure) in options.figures.iter().enumerate() {
            for place in 0..options.contestants.len() {
                let which = contestant_at(round, place, options.contestants.len());
                let contestant = &options.contestants[which];
                if figure.is_for(contestant) {
                    let title = contestant.title();
                    eprint!("\r\x1b[Kround {}: {}, {title}", round + 1, figure.title());
                    results.add(at, which, measure::measure(options, *figure, contestant));
                }
            }
        }
    }
    eprint!("\r\x1b[K");
    let text = table::text(options, &machine, &results);
    print!("{text}");
    let failed = results.failed(options);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = if options.keep && !failed {
        root.join("docs/benchmarks")
    } else {
        root.join(env!("CARGO_TARGET_TMPDIR"))
    };
    let path = directory.join("comparison.txt");
    fs::create_dir_all(&directory)
        .and_then(|()| fs::write(&path, text))
        .map_err(|error| format!("{}: {error}", path.display()))?;
    println!("{}", path.display());
    if failed { Err("some measurements failed: see ERRORS above".to_owned()) } else { Ok(()) }
}

/// The contestant at `place` in `round`. The order is reversed in every second round, and rotated after each pair of
/// rounds, so that each contestant is first equally often.
fn contestant_at(round: usize, place: usize, count: usize) -> usize {
    let place = if round.is_multiple_of(2) { place } else { count - 1 - place };
    (place + round / 2) % count
}

/// Removes all namespaces and processes if the user interrupts the benchmark.
fn clean_up_on_signal() {
    let signals = [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM];
    let Ok(mut signals) = signal_hook::iterator::Signals::new(signals) else { return };
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            ftp_alg_lab::remove_everything();
            std::process::exit(1);
        }
    });
}
