//! Docker's chains, as its daemon creates them for `docker run -p 21:21` on the bridge network. The container is a host
//! behind docker0.

use std::net::Ipv4Addr;

use super::{native::run_iptables, site::*};
use crate::common::*;

/// The output of `iptables-save` with dockerd 20.10.
pub const DOCKER_20: &str = include_str!("docker-20.rules");

/// The chains of dockerd 28, which also drops packets addressed to the container itself.
pub const DOCKER_28: &str = include_str!("docker-28.rules");

const KINDS: [(&str, &str); 3] = [(DOCKER_20, "nft"), (DOCKER_28, "nft"), (DOCKER_28, "legacy")];

/// A host that publishes the server of a container.
pub fn site() -> Site {
    let mut plan = AddressPlan::for_topology(Topology::PublishedServer);
    plan.inside.v4 = Ipv4Addr::new(172, 17, 0, 1);
    plan.server.v4 = Ipv4Addr::new(172, 17, 0, 2);
    let spec = LabSpec { plan, ..LabSpec::new(Topology::PublishedServer) };
    let site = Site::build(Place::Published, spec);
    let rename = "ip link set lan down; ip link set lan name docker0; ip link set docker0 up";
    site.guard().shell(rename).unwrap();
    site
}

/// Docker accepts connections that a container opens. It drops only passive data connections.
#[test]
fn a_rule_in_docker_user_admits_data_connections() {
    for &(rules, variant) in telling(&KINDS[1..2], &KINDS) {
        let site = site();
        let host = site.guard();
        let rules = host.write("docker.rules", rules.as_bytes()).unwrap();
        host.shell(&format!("iptables-{variant}-restore {}", rules.display())).unwrap();
        let recipe = Recipe::read("docker.sh", &[("variant= ", &format!("variant=-{variant} "))]);
        assert_rule_suffices(&site, &recipe, &[V4], &[Mode::Passive], run_iptables);
    }
}
