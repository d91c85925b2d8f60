//! Clients with servers through TLS, in several topologies, through `ftp-alg run` and default drop.
//!
//! Each cell is a download, an upload and a listing, compared byte for byte. On each change a topology has two servers of
//! [`KINDS`], and each of its [`WAYS`] by one client; the next topologies have the other servers, and the other clients in
//! turn. `make test-nightly` has all cells.

use ftp_alg::kernel::probe::ConntrackAbilities;

use super::*;
use crate::matrix::{
    by_topology,
    cells::{self, Clients},
};

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
    for (number, (kind, tls, resumes)) in telling(&part, &whole).iter().copied() {
        let settings = server_tls(&lab, tls, resumes);
        let server = Server::start_tls(kind, &lab.server, &settings).unwrap();
        let only_ipv4 = kind == ServerKind::Vsftpd && settings.announced.is_some();
        let clients = Clients {
            programs: &CLIENTS,
            ways: if only_ipv4 { &WAYS[..2] } else { &WAYS },
            part: telling(&[Some(turn + number / 2)], &[None])[0],
            tls,
            // Pure-FTPd allows half as many sessions as it has passive ports.
            threads: 3,
        };
        let resumption = if resumes { " with resumption" } else { "" };
        for cell in cells::run(&lab, &server, &clients, |family| endpoint(&lab, family, tls)) {
            let case = format!("{} {tls}{resumption}", cell.name);
            println!("{case}: {}", cell.failure.as_deref().unwrap_or("ok"));
            failures.extend(cell.failure.map(|why| format!("{case}: {why}")));
        }
    }
    assert_all_carried(&lab, &daemons, backend, &failures);
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
