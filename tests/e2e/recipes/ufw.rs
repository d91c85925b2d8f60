//! ufw itself.

use super::{native::PLACES, site::*};
use crate::{
    common::*,
    setup::ufw::{apply, enabled, recipe},
};

#[test]
fn the_ufw_rule_admits_data_connections() {
    for &place in telling(&[Place::Server], &PLACES) {
        let (site, machine) = enabled(place);
        let apply = |_: &Host, text: &str| apply(&machine, place, text);
        assert_rule_suffices(&site, &recipe(), &FAMILIES, &MODES, apply);
    }
}

#[test]
fn the_ufw_recipe_is_idempotent_and_survives_reloads() {
    let place = Place::Masquerade;
    let (site, machine) = enabled(place);
    let written = || machine.read("/etc/ufw/before.rules /etc/ufw/before6.rules");
    apply(&machine, place, &recipe().text);
    let once = written();
    apply(&machine, place, &recipe().text);
    assert_eq!(written(), once);
    let daemon = site.daemon(NFTABLES);
    for command in ["ufw reload", "ufw disable; ufw --force enable"] {
        machine.shell(command);
        site.carries(&daemon, &[V4]);
    }
    assert!(!daemon.log().contains("loaded again"), "{}", daemon.log());
}
