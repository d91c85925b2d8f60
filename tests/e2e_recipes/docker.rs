//! Docker's chains, as its daemon sets them up for `docker run -p 21:21` on the bridge network: a
//! container is a host behind docker0.

use std::net::Ipv4Addr;

use ftp_alg::lab::{Family, Host, Mode, Plan, Spec, Topology};

use crate::site::{Place, Recipe, Site, needs_no_line_with_conntrack, run_script, shows_its_line};

/// What dockerd 20.10 prints by `iptables-save`.
const DOCKER_20: &str = "\
*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:DOCKER -
:DOCKER-ISOLATION-STAGE-1 -
:DOCKER-ISOLATION-STAGE-2 -
:DOCKER-USER -
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 21 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:DOCKER -
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 21 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 21 -j DNAT --to-destination 172.17.0.2:21
COMMIT
";

/// The chains of dockerd 28, which also drops what is addressed to a container itself.
const DOCKER_28: &str = "\
*raw
-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -p tcp -m tcp --dport 21 -j DROP
COMMIT
*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:DOCKER -
:DOCKER-BRIDGE -
:DOCKER-CT -
:DOCKER-FORWARD -
:DOCKER-ISOLATION-STAGE-1 -
:DOCKER-ISOLATION-STAGE-2 -
:DOCKER-USER -
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 21 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
COMMIT
*nat
:DOCKER -
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 21 -j DNAT --to-destination 172.17.0.2:21
COMMIT
";

const KINDS: [(&str, &str); 3] = [(DOCKER_20, "nft"), (DOCKER_28, "nft"), (DOCKER_28, "legacy")];

/// A host with a published container, and its recipe.
fn docker(rules: &str, variant: &str) -> (Site, Recipe) {
    let mut plan = Plan::of(Topology::PublishedServer);
    plan.inside.v4 = Ipv4Addr::new(172, 17, 0, 1);
    plan.server.v4 = Ipv4Addr::new(172, 17, 0, 2);
    let site = Site::build(Place::Published, Spec { plan, ..Spec::new(Topology::PublishedServer) });
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

/// What a container opens goes out anyway; passive transfers are what Docker stops.
#[test]
fn docker_admits_data_connections_by_the_line_in_its_user_s_chain() {
    for (rules, variant) in KINDS {
        let (site, recipe) = docker(rules, variant);
        shows_its_line(&site, &recipe, &[Family::V4], &[Mode::Passive], apply);
    }
}

#[test]
fn docker_needs_no_line_with_the_conntrack_back_end() {
    for (rules, variant) in KINDS {
        let (site, recipe) = docker(rules, variant);
        needs_no_line_with_conntrack(&site, &recipe, &[Family::V4], apply);
    }
}
