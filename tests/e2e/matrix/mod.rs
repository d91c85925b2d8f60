//! Clients with servers, in every way to announce, in every topology, through `ftp-alg run` and default drop: a part of
//! the combinations on each change ([`part`]), all of them in `make test-nightly`.
//!
//! What each cell showed is left in `target/matrix/`, and the table of all in `target/matrix.txt`,
//! which `make test` shows at its end.

mod cells;
mod witness;

use std::{fmt::Write as _, fs::File};

use rustix::fs::FlockOperation;

use crate::common::*;
use cells::{Cell, Matrix, WAYS};

pub use cells::run;

const BACKENDS: [&str; 2] = ["nftables", "conntrack"];

fn every_client_with_every_server(topology: Topology, backend: &str) {
    let start = Instant::now();
    let lab = lab_for(topology, backend);
    let configuration = lab.configuration(backend);
    let daemons = daemons_of(&lab, &configuration);
    let matrix = run(&lab, part(topology, backend)).unwrap();
    write_down(topology, backend, &matrix, start.elapsed());
    let failures = matrix.failures();
    assert_all_carried(&lab, &daemons, backend, &failures);
}

macro_rules! in_every_topology {
    ($($name:ident: $topology:ident,)*) => {
        mod nftables {
            use super::{Topology, every_client_with_every_server};
            $(#[test] fn $name() {
                every_client_with_every_server(Topology::$topology, "nftables");
            })*
        }
        mod conntrack {
            use super::{Topology, every_client_with_every_server};
            $(#[test] fn $name() {
                every_client_with_every_server(Topology::$topology, "conntrack");
            })*
        }
    };
}

in_every_topology! {
    through_masquerade: Masquerade,
    through_a_pool_of_sources: SnatPool,
    to_a_published_server: PublishedServer,
    to_a_server_published_at_another_port: PortForward,
    through_one_to_one_nat_further_out: OneToOne,
    through_nat_on_both_sides: BothSides,
    through_a_routed_firewall: Routed,
    to_a_server_on_the_gateway: OnServer,
    from_a_client_on_the_gateway: OnClient,
}

/// The part of the cells that is run on each change; `None` for all of them. A topology has two parts that follow each
/// other, one with each back end.
fn part(topology: Topology, backend: &str) -> Option<usize> {
    let at = Topology::ALL.iter().position(|other| *other == topology);
    let part = 2 * at.unwrap() + usize::from(backend == BACKENDS[1]);
    telling(&[Some(part)], &[None])[0]
}

/// Leaves the cells in a file of their own, and the table of all topologies so far.
fn write_down(topology: Topology, backend: &str, matrix: &Matrix, elapsed: Duration) {
    let directory = target().join("matrix");
    fs::create_dir_all(&directory).unwrap();
    // The tests of other topologies are other processes.
    let lock = File::open(&directory).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    let file =
        |topology: Topology, backend: &str| directory.join(format!("{topology:?}-{backend}.txt"));
    let mut text = row(topology, backend, &matrix.cells, elapsed);
    for cell in &matrix.cells {
        writeln!(text, "{cell}, {:.1} s", cell.elapsed.as_secs_f64()).unwrap();
    }
    for stray in &matrix.strays {
        writeln!(text, "FAILED: {stray}").unwrap();
    }
    fs::write(file(topology, backend), text).unwrap();

    let files = Topology::ALL.into_iter().flat_map(|topology| {
        BACKENDS.map(|backend| fs::read_to_string(file(topology, backend)).unwrap_or_default())
    });
    let files: Vec<String> = files.collect();
    let mut table = heading();
    table.extend(files.iter().filter_map(|file| file.lines().next()).map(|row| format!("{row}\n")));
    let failed =
        files.iter().flat_map(|file| file.lines()).filter(|line| line.contains("FAILED: "));
    table.extend(failed.map(|line| line.chars().take(160).collect::<String>() + "\n"));
    fs::write(target().join("matrix.txt"), table + &reasons()).unwrap();
}

/// Cargo's target directory.
fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().to_owned()
}

fn heading() -> String {
    let mut text = format!("{:<24}{:<10}", "clients with servers", "back end");
    for (verb, family) in WAYS {
        write!(text, "{:>7}", format!("{verb}{}", if family == V6 { "6" } else { "" })).unwrap();
    }
    text += "  |";
    for client in ClientProgram::ALL {
        write!(text, "{client:>10}").unwrap();
    }
    text += "  |";
    for server in ServerKind::ALL {
        write!(text, "{:>11}", server.to_string()).unwrap();
    }
    text + "\n"
}

/// How many cells worked: of each way to announce, of each client, and of each server.
fn row(topology: Topology, backend: &str, cells: &[Cell], elapsed: Duration) -> String {
    let count = |of: &dyn Fn(&Cell) -> bool| {
        let all = cells.iter().filter(|cell| of(cell)).count();
        let good = cells.iter().filter(|cell| cell.failure.is_none() && of(cell)).count();
        if good == all { format!("{good}") } else { format!("{good}/{all}") }
    };
    let mut text = format!("{:<24}{backend:<10}", topology.to_string());
    for way in WAYS {
        write!(text, "{:>7}", count(&|cell| (cell.verb, cell.family) == way)).unwrap();
    }
    text += "  |";
    for client in ClientProgram::ALL {
        write!(text, "{:>10}", count(&|cell| cell.client == client)).unwrap();
    }
    text += "  |";
    for server in ServerKind::ALL {
        write!(text, "{:>11}", count(&|cell| cell.server == server)).unwrap();
    }
    format!("{text}  | {} ok, {:.0} s\n", count(&|_| true), elapsed.as_secs_f64())
}

/// Why the cells that are missing cannot exist.
fn reasons() -> String {
    let mut reasons: Vec<&str> = ClientProgram::ALL
        .into_iter()
        .flat_map(|client| WAYS.map(|(verb, family)| client.unsupported_reason(verb, family)))
        .flatten()
        .chain(
            ClientProgram::ALL.into_iter().filter(|c| !c.uploads()).map(|_| "wget stores nothing"),
        )
        .collect();
    reasons.sort_unstable();
    reasons.dedup();
    format!("each cell a download, an upload and a listing; {}\n", reasons.join("; "))
}
