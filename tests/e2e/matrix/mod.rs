//! Clients with servers, in every way to announce, in every topology, through `ftp-alg run` and default drop: a part of
//! the combinations on each change ([`part`]), all of them in `make test-nightly`.

mod cells;
mod witness;

use crate::common::*;
use cells::run;

const BACKENDS: [&str; 2] = ["nftables", "conntrack"];

fn every_client_with_every_server(topology: Topology, backend: &str) {
    let lab = lab_for(topology, backend);
    let configuration = lab.configuration(backend);
    let daemons = daemons_of(&lab, &configuration);
    let matrix = run(&lab, part(topology, backend)).unwrap();
    matrix.cells.iter().for_each(|cell| println!("{cell}, {:.1} s", cell.elapsed.as_secs_f64()));
    let failures = matrix.failures();
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

/// The part of the cells that is run on each change; `None` for all of them. A topology has two parts that follow each
/// other, one with each back end.
fn part(topology: Topology, backend: &str) -> Option<usize> {
    let at = Topology::ALL.iter().position(|other| *other == topology);
    let part = 2 * at.unwrap() + usize::from(backend == BACKENDS[1]);
    telling(&[Some(part)], &[None])[0]
}
