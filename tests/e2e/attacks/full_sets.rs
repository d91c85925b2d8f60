//! Full sets of the packet selection: the announcement is refused, or the daemon manages without the element. Both are
//! counted.

use std::fmt::Write as _;

use super::scene::{PORT, Scene};
use crate::common::*;

/// Adds elements to a set of our table until it is full.
fn fill(scene: &Scene, set: &str, element: impl Fn(u32) -> String) {
    let gateway = &scene.gateway.lab.gateway;
    for part in 0..32 {
        let mut rules = format!("add element inet ftp_alg {set} {{ ");
        for number in part * 2048..(part + 1) * 2048 {
            write!(rules, "{} timeout 10m, ", element(number)).unwrap();
        }
        rules.push_str("}\n");
        gateway.nft(&rules).unwrap();
    }
}

fn limit(scene: &Scene, name: &str) -> u64 {
    scene.gateway.daemon.status().unwrap()["limits"][name].as_u64().unwrap()
}

#[test]
fn a_close_is_detected_although_the_closing_set_is_full() {
    // The fast path does not use the closing set.
    let scene =
        Scene::with_open_table(Topology::Routed, "[queue]\nfast-path = \"off\"\n", &json!({}));
    let client = scene.logged_in(&[say(PORT), reply()]);
    assert_eq!(scene.gateway.daemon.open_pinholes().unwrap().len(), 1);
    fill(&scene, "closing", |number| (number + 1).to_string());
    assert_eq!(client.release().error, None);
    scene.gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
    assert!(limit(&scene, "closing_set") > 0);
}

#[test]
fn a_full_pinhole_set_refuses_announcements_and_is_counted() {
    let scene = Scene::with_open_table(Topology::Masquerade, NFTABLES, &json!({}));
    fill(&scene, "pinholes4", |number| {
        let [_, _, high, low] = number.to_be_bytes();
        format!("192.0.2.1 . 10.77.{high}.{low} . 4000")
    });
    let steps = [&login()[..], &[say(PORT), reply()]].concat();
    let client = scene.client(&steps);
    assert!(!scene.server.lines().last().unwrap().contains("PORT"));
    scene.gateway.lab.gateway.nft("flush set inet ftp_alg pinholes4").unwrap();
    assert_eq!(limit(&scene, "pinholes"), 1);
    assert_eq!(scene.gateway.daemon.status().unwrap()["errors"], 0);
    let session = client.release();
    assert!(session.got(6).starts_with("425 "), "{session:?}");
    let log = scene.gateway.daemon.log();
    assert!(log.contains("there is no room for another pinhole"), "{log}");
}

/// After their pinholes are closed, the maps have no elements left, including those of the translations.
#[test]
fn closed_pinholes_leave_no_map_elements() {
    let scene = Scene::with_open_table(Topology::Masquerade, NFTABLES, &json!({}));
    let steps: Vec<_> =
        (1..=20).flat_map(|low| [say(&format!("PORT 192,168,150,80,9,{low}")), reply()]).collect();
    let client = scene.logged_in(&steps);
    let ruleset =
        || scene.gateway.lab.gateway.run("nft", &["list", "map", "inet", "ftp_alg", "targets4"]);
    let elements = || ruleset().unwrap().stdout_text().matches(" expires ").count();
    wait_for("the end of all but one", || elements() <= 1);
    assert_eq!(client.release().error, None);
    scene.gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
    assert_eq!(elements(), 0, "{}", ruleset().unwrap().stdout_text());
}
