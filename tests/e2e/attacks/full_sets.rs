//! A full set of the packet selection: the daemon manages without the element, and counts that.

use std::fmt::Write as _;

use super::scene::{PORT, Scene};
use crate::common::*;

/// Adds elements to a set of our table until it is full.
fn fill(scene: &Scene, set: &str) {
    let gateway = &scene.gateway.lab.gateway;
    for part in 0..32 {
        let mut rules = format!("add element inet ftp_alg {set} {{ ");
        for number in part * 2048..(part + 1) * 2048 {
            write!(rules, "{} timeout 10m, ", number + 1).unwrap();
        }
        rules.push_str("}\n");
        gateway.nft(&rules).unwrap();
    }
}

#[test]
fn a_close_is_detected_although_the_closing_set_is_full() {
    // The fast path does not use the closing set.
    let scene =
        Scene::with_open_table(Topology::Routed, "[queue]\nfast-path = \"off\"\n", &json!({}));
    let client = scene.logged_in(&[say(PORT), reply()]);
    assert_eq!(scene.gateway.daemon.open_pinholes().unwrap().len(), 1);
    fill(&scene, "closing");
    assert_eq!(client.release().error, None);
    scene.gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
    let status = scene.gateway.daemon.status().unwrap();
    assert!(status["limits"]["closing_set"].as_u64().unwrap() > 0);
}
