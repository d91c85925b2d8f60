//! Dialogues of products that cannot run here, through the gateway: every line arrives unchanged but
//! for the endpoint of an announcement, and every transfer is whole.

use crate::common::{dialogues::Segments, *};

fn every_dialogue(topology: Topology, firewall: FirewallKind, segments: Segments) {
    let lab = Lab::build(LabSpec { firewall, ..LabSpec::new(topology) }).unwrap();
    let gateway = Gateway::on(lab, "");
    let lab = &gateway.lab;
    let (towards_client, towards_server) = captures(lab);
    let dialogues = dialogues::all(|family| lab.server_address(family));
    assert!(dialogues.len() > 15, "transcripts are missing");
    let failures = dialogues::failures(&lab.server, &lab.client, &dialogues, segments);
    assert_eq!(failures, [""; 0]);

    let announcements: usize = dialogues.iter().map(dialogues::Playing::announcements).sum();
    let opened = gateway.count("pinholes_opened");
    assert_eq!(opened, announcements as u64, "one pinhole for each announcement, no more");
    gateway.assert_tidy();
    assert_eq!(gateway.count("pinholes_refused"), 0);
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0);
    for side in [towards_client, towards_server] {
        assert_eq!(side.finish().unwrap().faults().unwrap(), [""; 0]);
    }
}

#[test]
fn every_dialogue_through_masquerade() {
    every_dialogue(Topology::Masquerade, FirewallKind::Nftables, Segments::Lines);
}

#[test]
fn every_dialogue_with_a_published_server_and_iptables_with_a_segment_a_turn() {
    every_dialogue(Topology::PublishedServer, FirewallKind::IptablesNft, Segments::Turns);
}
