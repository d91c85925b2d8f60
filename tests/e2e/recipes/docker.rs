//! Docker's chains, as its daemon creates them for `docker run -p 21:21` on the bridge network. The container is a host
//! behind docker0.

use std::net::Ipv4Addr;

use super::site::*;
use crate::common::*;

/// The output of `iptables-save` with dockerd 20.10.
const DOCKER_20: &str = include_str!("docker-20.rules");

/// The chains of dockerd 28, which also drops packets addressed to the container itself.
const DOCKER_28: &str = include_str!("docker-28.rules");

const KINDS: [(&str, &str); 3] = [(DOCKER_20, "nft"), (DOCKER_28, "nft"), (DOCKER_28, "legacy")];

/// A host with a published container, and the recipe.
fn docker(rules: &str, variant: &str) -> (Site, Recipe) {
    let mut plan = AddressPlan::for_topology(Topology::PublishedServer);
    plan.inside.v4 = Ipv4Addr::new(172, 17, 0, 1);
    plan.server.v4 = Ipv4Addr::new(172, 17, 0, 2);
    let site =
        Site::build(Place::Published, LabSpec { plan, ..LabSpec::new(Topology::PublishedServer) });
    let host = site.guard();
    host.shell("ip link set lan down; ip link set lan name docker0; ip link set docker0 up")
        .unwrap();
    let rules = host.write("docker.rules", rules.as_bytes()).unwrap();
    host.shell(&format!("iptables-{variant}-restore {}", rules.display())).unwrap();
    (site, Recipe::read("docker.sh", &[("variant= ", &format!("variant=-{variant} "))]))
}

fn apply(host: &Host, text: &str) {
    run_script(host, text, &[], "/usr/sbin");
}

/// Docker accepts connections that a container opens. It drops only passive data connections.
#[test]
fn a_rule_in_docker_user_admits_data_connections() {
    for &(rules, variant) in telling(&KINDS[1..2], &KINDS) {
        let (site, recipe) = docker(rules, variant);
        assert_rule_suffices(&site, &recipe, &[V4], &[Mode::Passive], apply);
    }
}
