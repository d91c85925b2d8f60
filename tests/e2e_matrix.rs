//! Every client with every server, in every way to announce, in every topology.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod common;

use std::time::Duration;

use common::executable;
use ftp_alg::lab::{Daemon, Lab, Outcome, Topology, matrix};

fn every_client_with_every_server(topology: Topology, backend: &str) {
    let lab = Lab::new(topology).unwrap();
    let start = |host| Daemon::start(&executable(), host, &lab.configuration(backend)).unwrap();
    let daemons: Vec<Daemon> = lab.gateways().into_iter().map(start).collect();
    let (cells, strays) = matrix::run(&lab).unwrap();
    println!("{strays:#?}");
    for cell in &cells {
        println!("{} {:?} {cell}", cell.elapsed.as_millis(), topology);
    }
    for daemon in &daemons {
        daemon.wait_closed(Duration::from_secs(2)).unwrap();
        assert_eq!(daemon.openings().unwrap(), [""; 0]);
        assert_eq!(daemon.counter("errors").unwrap(), 0);
    }
    for host in lab.gateways() {
        assert_eq!(host.invalid_packets().unwrap(), 0);
    }
    let failed: Vec<_> = cells
        .iter()
        .filter(|c| matches!(c.outcome, Outcome::Failed(_)))
        .map(|c| c.to_string())
        .collect();
    assert_eq!(failed, [""; 0]);
}

#[test]
fn masquerade() {
    every_client_with_every_server(Topology::Masquerade, "nftables");
}
#[test]
fn snat_pool() {
    every_client_with_every_server(Topology::SnatPool, "nftables");
}
#[test]
fn published() {
    every_client_with_every_server(Topology::PublishedServer, "nftables");
}
#[test]
fn port_forward() {
    every_client_with_every_server(Topology::PortForward, "nftables");
}
#[test]
fn one_to_one() {
    every_client_with_every_server(Topology::OneToOne, "nftables");
}
#[test]
fn both_sides() {
    every_client_with_every_server(Topology::BothSides, "nftables");
}
#[test]
fn routed() {
    every_client_with_every_server(Topology::Routed, "nftables");
}
#[test]
fn on_server() {
    every_client_with_every_server(Topology::OnServer, "nftables");
}
#[test]
fn on_client() {
    every_client_with_every_server(Topology::OnClient, "nftables");
}
