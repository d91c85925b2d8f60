//! Clients with servers through TLS, in several topologies, through `ftp-alg run` and default drop.
//!
//! Each cell is a download, an upload and a listing, compared byte for byte. On each change a topology has two servers of
//! [`KINDS`], and each of its [`WAYS`] by one client; the next topologies have the other servers, and the other clients in
//! turn. `make test-nightly` has all cells.

use ftp_alg::kernel::probe::ConntrackAbilities;

use super::*;
use crate::matrix::by_topology;

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
    let mut failures = Vec::new();
    let turn = topology as usize;
    let whole: Vec<_> = KINDS.into_iter().enumerate().collect();
    let part: Vec<_> = whole.iter().copied().skip(turn % 5).step_by(5).collect();
    for (number, kind) in telling(&part, &whole).iter().copied() {
        let (server, tls, resumes) = kind;
        let resumption = if resumes { " with resumption" } else { "" };
        let part = telling(&[Some(turn + number / 2)], &[None])[0];
        for Cell { client, way: (verb, family), failure } in run(&lab, kind, part) {
            let case = format!("{client} with {server}, {tls}{resumption}, {verb} over {family}");
            println!("{case}: {}", failure.as_deref().unwrap_or("ok"));
            failures.extend(failure.map(|why| format!("{case}: {why}")));
        }
    }
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
        clients.into_iter().map(move |client| Cell { client, way, failure: None })
    });
    let mut cells: Vec<Cell> = cells.collect();
    side_by_side(THREADS, &mut cells, |cell| {
        let (client, (verb, family)) = (cell.client, cell.way);
        let (endpoint, login) = (endpoint(lab, family, tls), server.login());
        let transfer = Transfer { client, host: &lab.client, endpoint, verb, login, tls };
        let name = format!("{client}-{verb}-{family}");
        let done = transfer.exchange(&server, &name, &body);
        cell.failure = done.err().map(|error| error.to_string());
    });
    cells
}

by_topology! {
    clients_with_servers:
    through_masquerade: Masquerade,
    to_a_published_server: PublishedServer,
    through_nat_on_both_sides: BothSides,
    through_a_routed_firewall: Routed,
    to_a_server_on_the_gateway: OnServer,
    from_a_client_on_the_gateway: OnClient,
}
