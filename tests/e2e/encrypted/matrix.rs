//! Clients with servers through TLS, in several topologies, through `ftp-alg run` and default drop.
//!
//! Each cell is a download, an upload and a listing, compared byte for byte. The table is printed. On each change a topology
//! has two servers of [`KINDS`], and each of its [`WAYS`] by one client; the next topologies have the other servers, and the
//! other clients in turn. `make test-nightly` has all cells.

use std::{
    fmt::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use ftp_alg::kernel::probe::ConntrackAbilities;

use super::*;

/// How many cells run at a time. Pure-FTPd allows half as many sessions as it has passive ports.
const THREADS: usize = 3;

/// A server program, how it begins TLS, and whether data connections must resume the session.
type Kind = (ServerKind, ClientTls, bool);

const KINDS: [Kind; 10] = [
    (ServerKind::Vsftpd, ClientTls::Explicit, false),
    (ServerKind::Vsftpd, ClientTls::Explicit, true),
    (ServerKind::Vsftpd, ClientTls::Implicit, true),
    (ServerKind::Proftpd, ClientTls::Explicit, false),
    (ServerKind::Proftpd, ClientTls::Explicit, true),
    (ServerKind::Proftpd, ClientTls::Implicit, true),
    (ServerKind::Proftpd, ClientTls::Implicit, false),
    (ServerKind::PureFtpd, ClientTls::Explicit, false),
    (ServerKind::Pyftpdlib, ClientTls::Explicit, false),
    (ServerKind::Pyftpdlib, ClientTls::Implicit, false),
];

const CLIENTS: [ClientProgram; 3] =
    [ClientProgram::Curl, ClientProgram::Lftp, ClientProgram::Ftplib];

const WAYS: [(Verb, Family); 3] = [(Verb::Pasv, V4), (Verb::Epsv, V4), (Verb::Epsv, V6)];

/// One client with one server, in one way.
struct Cell {
    client: ClientProgram,
    way: (Verb, Family),
    failure: Option<String>,
}

fn clients_with_servers(topology: Topology, backend: &str) {
    if backend == "conntrack" && !ConntrackAbilities::read().cthelper {
        println!(
            "not tried: this kernel has no nfnetlink_cthelper, without which one port is open at a time"
        );
        return;
    }
    let lab = lab_for(topology, backend);
    accept_implicit(&lab);
    let configuration = configuration(&lab, backend);
    let daemons = daemons_of(&lab, &configuration);
    let mut table = String::new();
    let mut failures = Vec::new();
    let turn = topology as usize;
    let whole: Vec<_> = KINDS.into_iter().enumerate().collect();
    let part: Vec<_> = whole.iter().copied().skip(turn % 5).step_by(5).collect();
    for (number, kind) in telling(&part, &whole).iter().copied() {
        let start = Instant::now();
        let cells = run(&lab, kind, telling(&[Some(turn + number / 2)], &[None])[0]);
        table += &row(topology, kind, &cells, start.elapsed());
        for Cell { client, way: (verb, family), failure } in cells {
            let (server, tls, _) = kind;
            let case = format!("{client} with {server}, {tls}, {verb} over {family}");
            failures.extend(failure.map(|why| format!("{case}: {why}")));
        }
    }
    println!("{table}");
    assert_all_carried(&lab, &daemons, backend, &failures);
}

/// Runs the cells of a server: all, or those of one client for each way.
fn run(lab: &Lab, (kind, tls, resumes): Kind, part: Option<usize>) -> Vec<Cell> {
    let settings = server_tls(lab, tls, resumes);
    let server = Server::start_tls(kind, &lab.server, &settings).unwrap();
    let only_ipv4 = kind == ServerKind::Vsftpd && settings.announced.is_some();
    let body: Vec<u8> = (0..100_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    let ways = WAYS.into_iter().enumerate().filter(|(_, (_, family))| !only_ipv4 || *family == V4);
    let cells = ways.flat_map(|(nth, way)| {
        let clients = match part {
            Some(part) => vec![CLIENTS[(part + nth) % CLIENTS.len()]],
            None => CLIENTS.to_vec(),
        };
        clients.into_iter().map(move |client| Mutex::new(Cell { client, way, failure: None }))
    });
    let cells: Vec<Mutex<Cell>> = cells.collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut cell = cell.lock().unwrap();
            let (client, (verb, family)) = (cell.client, cell.way);
            let (endpoint, login) = (endpoint(lab, family, tls), server.login());
            let transfer = Transfer { client, host: &lab.client, endpoint, verb, login, tls };
            let name = format!("{client}-{verb}-{family}");
            let done = transfer.exchange(&server, &name, &body);
            cell.failure = done.err().map(|error| error.to_string());
        }
    };
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(work);
        }
    });
    cells.into_iter().map(|cell| cell.into_inner().unwrap()).collect()
}

fn row(topology: Topology, (kind, tls, resumes): Kind, cells: &[Cell], took: Duration) -> String {
    let resumption = if resumes { "resumption" } else { "" };
    let server = format!("{kind} {tls} {resumption}");
    let mut text = format!("{:<24} {server:<30}", topology.to_string());
    for Cell { client, way: (verb, family), failure } in cells {
        let outcome = if failure.is_none() { "ok" } else { "FAILED" };
        write!(text, " | {client} {verb} {family} {outcome}").unwrap();
    }
    format!("{text} | {:.1} s\n", took.as_secs_f64())
}

macro_rules! in_topologies {
    ($($name:ident: $topology:ident,)*) => {
        mod nftables {
            use super::{Topology, clients_with_servers};
            $(#[test] fn $name() {
                clients_with_servers(Topology::$topology, "nftables");
            })*
        }
        mod conntrack {
            use super::{Topology, clients_with_servers};
            $(#[test] fn $name() {
                clients_with_servers(Topology::$topology, "conntrack");
            })*
        }
    };
}

in_topologies! {
    through_masquerade: Masquerade,
    to_a_published_server: PublishedServer,
    through_nat_on_both_sides: BothSides,
    through_a_routed_firewall: Routed,
    to_a_server_on_the_gateway: OnServer,
    from_a_client_on_the_gateway: OnClient,
}
