//! The lab itself: it drops what nobody admitted.

use std::net::{Ipv6Addr, TcpListener};

use crate::common::*;

#[test]
fn every_topology_passes_control_connections_and_nothing_else() {
    let all = [FirewallKind::IptablesNft, FirewallKind::Nftables, FirewallKind::IptablesLegacy];
    for &firewall in telling(&all[..1], &all) {
        thread::scope(|scope| {
            for topology in Topology::ALL {
                let spec = LabSpec { firewall, ..LabSpec::new(topology) };
                scope.spawn(move || only_control_connections_pass(spec));
            }
        });
    }
}

fn only_control_connections_pass(spec: LabSpec) {
    let topology = spec.topology;
    let lab = Lab::build(spec).unwrap();
    let listen = |host: &Host, port| {
        host.inside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()).unwrap()
    };
    let _listeners =
        [listen(&lab.server, 21), listen(&lab.server, 4000), listen(&lab.client, 4000)];
    for family in FAMILIES {
        let endpoint = lab.server_endpoint(family);
        assert_eq!(
            connect(&lab.client, &endpoint.ip().to_string(), endpoint.port()),
            "open",
            "{topology} {family}"
        );
        let server = connect_in_vain(&lab.client, &endpoint.ip().to_string(), 4000);
        assert_eq!(server, "silent", "{topology} {family}: the client to the server");
        let inner = lab.client_side() == "lan" || topology == Topology::OnClient;
        let inner = if inner { &lab.client } else { &lab.server };
        let outsider = connect_in_vain(&lab.outsider, &inner.address(family).to_string(), 4000);
        assert_eq!(outsider, "silent", "{topology} {family}: an outsider to the {}", inner.role());
    }
}
