//! Clients with servers, in every way to announce, in every topology, through `ftp-alg run` and default drop: a part of
//! the combinations on each change, all of them in `make test-nightly`. Both ends are watched: a cell fails, too, if its
//! client said anything else than its script.

pub mod cells;
mod witness;

use crate::common::*;
use cells::Clients;
use witness::Witness;

const BACKENDS: [&str; 2] = ["nftables", "conntrack"];

const WAYS: [(Verb, Family); 6] = [
    (Verb::Port, V4),
    (Verb::Pasv, V4),
    (Verb::Eprt, V4),
    (Verb::Epsv, V4),
    (Verb::Eprt, V6),
    (Verb::Epsv, V6),
];

fn every_client_with_every_server(topology: Topology, backend: &str) {
    let lab = lab_for(topology, backend);
    let configuration = lab.configuration(backend);
    let daemons = daemons_of(&lab, &configuration);
    // A topology has two parts that follow each other, one with each back end.
    let at = Topology::ALL.iter().position(|other| *other == topology);
    let part = 2 * at.unwrap() + usize::from(backend == BACKENDS[1]);
    let part = telling(&[Some(part)], &[None])[0];
    let dialled = lab.server_endpoint(V4).port();
    let client_end = Witness::start(&lab.client, lab.interface(&lab.client), dialled).unwrap();
    let server_end = Witness::start(&lab.server, lab.interface(&lab.server), 21).unwrap();
    let mut cells = Vec::new();
    for (number, kind) in ServerKind::ALL.into_iter().enumerate() {
        let server = Server::start(kind, &lab.server).unwrap();
        let clients = Clients {
            programs: &ClientProgram::ALL,
            ways: &WAYS,
            // Servers begin with different clients.
            part: part.map(|part| part + 3 * number),
            tls: ClientTls::Off,
            // More than there are processors: ProFTPD rests 0.2 to 0.4 s whenever a session has ended, before it accepts
            // those that wait.
            threads: 8,
        };
        cells.extend(cells::run(&lab, &server, &clients, |family| lab.server_endpoint(family)));
    }
    let mut failures = Vec::new();
    for end in [client_end, server_end] {
        let testimony = end.finish().unwrap();
        for cell in &mut cells {
            let objection = || testimony.objection(&cell.name, cell.verb);
            cell.failure = cell.failure.take().or_else(objection);
        }
        failures.extend(testimony.strays);
    }
    for cell in cells {
        println!("{}: {}", cell.name, cell.failure.as_deref().unwrap_or("ok"));
        failures.extend(cell.failure.map(|why| format!("{}: {why}", cell.name)));
    }
    assert_all_carried(&lab, &daemons, backend, &failures);
}

/// A test of `$run` for each topology with each back end.
macro_rules! by_topology {
    ($run:ident: $($name:ident: $topology:ident,)*) => {
        mod nftables {
            use super::{Topology, $run};
            $(#[test] fn $name() {
                $run(Topology::$topology, "nftables");
            })*
        }
        mod conntrack {
            use super::{Topology, $run};
            $(#[test] fn $name() {
                $run(Topology::$topology, "conntrack");
            })*
        }
    };
}
pub(crate) use by_topology;

by_topology! {
    every_client_with_every_server:
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
