//! Measures the time from the start to the first verdict, and the memory of an idle daemon: `cargo bench --bench daemon`,
//! as root.
//!
//! The daemon logs `ready` when its workers give verdicts; the fast path's program is loaded after that. It is started
//! and stopped in a namespace of its own, in turn with `nft -f` for the same rules. No daemon can start faster than its
//! rules are loaded.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use ftp_alg::kernel::{RuleParameters, parameters::QueueStatement, table::rule_files};
use ftp_alg_lab::{Daemon, Lab, Topology};

const ROUNDS: usize = 15;
const READY_GOAL: Duration = Duration::from_millis(100);
const MEMORY_GOAL_KIB: u64 = 10 * 1024;

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return; // `cargo test --benches` only compiles this
    }
    let lab = match Lab::new(Topology::Routed) {
        Ok(lab) => lab,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    let program = Path::new(env!("CARGO_BIN_EXE_ftp-alg"));
    let rules = rule_files::render_nftables(&RuleParameters::default(), QueueStatement::Operator);
    let rules = lab.gateway.write("rules.nft", rules.as_bytes()).unwrap();
    let state = lab.gateway.directory().join("gateway-ftp-alg/state");
    let cases = [
        ("with a state directory, fast path off", "queue.fast-path = \"off\"\n", false),
        ("with a state directory", "", false),
        ("with an empty state directory", "", true),
    ];
    let mut ready = cases.map(|_| Vec::new());
    let (mut loading, mut memory) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for ((_, configuration, is_empty), ready) in cases.iter().zip(&mut ready) {
            if *is_empty {
                fs::remove_dir_all(&state).unwrap();
            }
            let start = Instant::now();
            let mut daemon = Daemon::launch(program, &lab.gateway, configuration).unwrap();
            while !daemon.log().contains("ready: version") {
                assert_eq!(daemon.exit_status(), None, "{}", daemon.log());
                thread::sleep(Duration::from_millis(1));
            }
            ready.push(start.elapsed());
            daemon.wait_until_ready().unwrap();
            memory.push(daemon.resident_kib().unwrap());
            daemon.stop().unwrap();
        }
        let start = Instant::now();
        lab.gateway.run("nft", &["-f", rules.to_str().unwrap()]).unwrap().success().unwrap();
        loading.push(start.elapsed());
        lab.gateway.run("nft", &["delete", "table", "inet", "ftp_alg"]).unwrap().success().unwrap();
    }
    let (loading, memory) = (median(loading), median(memory));
    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    println!("median of {ROUNDS}, interleaved");
    for ((case, ..), ready) in cases.iter().zip(ready) {
        let ready = median(ready);
        println!(
            "start to ready     {ready:>9.1?}   {:.2} of the goal of {READY_GOAL:?}, {case}",
            ratio(ready, READY_GOAL)
        );
    }
    println!("  nft -f alone     {loading:>9.1?}");
    println!(
        "resident when idle {memory:>5} KiB   {:.2} of the goal of {MEMORY_GOAL_KIB} KiB",
        memory as f64 / MEMORY_GOAL_KIB as f64
    );
}

fn median<T: Ord + Copy>(mut values: Vec<T>) -> T {
    values.sort_unstable();
    values[values.len() / 2]
}
