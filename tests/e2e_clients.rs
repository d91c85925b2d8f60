//! Real clients and real servers, each with each, through `ftp-alg run` and default drop.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod common;
#[path = "common/matrix.rs"]
mod matrix;

use std::time::Duration;

use common::gateway;
use ftp_alg::lab::Topology;

fn every_client_with_every_server(topology: Topology) {
    let gateway = gateway(topology);
    assert_eq!(matrix::failures(&gateway.lab), [""; 0]);
    assert_eq!(gateway.lab.gateway.invalid_packets().unwrap(), 0);
    gateway.daemon.wait_closed(Duration::from_secs(2)).unwrap();
    assert_eq!(gateway.daemon.openings().unwrap(), [""; 0]);
    assert_eq!(gateway.daemon.counter("errors").unwrap(), 0);
}

#[test]
fn every_client_with_every_server_through_masquerade() {
    every_client_with_every_server(Topology::Masquerade);
}

#[test]
fn every_client_with_every_server_published() {
    every_client_with_every_server(Topology::PublishedServer);
}

#[test]
fn every_client_with_every_server_through_a_routed_firewall() {
    every_client_with_every_server(Topology::Routed);
}
