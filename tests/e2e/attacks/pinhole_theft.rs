//! Data connection theft: connections from hosts for which a pinhole is not meant, and connections that arrive too
//! late.

use super::scene::{ANNOUNCED, PASSIVE_PORT, PORT, Scene, assert_silent, with_each_back_end};
use crate::common::*;

/// A client behind NAT opens a pinhole.
#[test]
fn a_third_host_neither_uses_nor_consumes_a_pinhole() {
    with_each_back_end(|back_end| {
        let scene = Scene::with(Topology::Masquerade, back_end, &json!({}));
        let lab = &scene.gateway.lab;
        let inner = Capture::start(&lab.gateway, lab.client_side(), "tcp").unwrap();
        let client = scene.logged_in(&[say(PORT), reply()]);
        assert_eq!(scene.gateway.daemon.open_pinholes().unwrap().len(), 1);
        let (address, port) = host_port(scene.server.lines().last().unwrap());
        let inside = lab.client.address(V4).to_string();
        let third = &lab.outsider;
        for _ in 0..2 {
            assert_silent(&[(third, &address, port), (third, &inside, ANNOUNCED)]);
        }
        assert_eq!(connect(&lab.server, &address, port), "open", "the server itself");
        let of_third = format!("ip.addr == {}", third.address(V4));
        assert_eq!(inner.finish().unwrap().count(&of_third).unwrap(), 0);
        assert_eq!(client.release().error, None);
        scene.assert_transfer();
    });
}

/// A client of a published server opens a pinhole.
#[test]
fn a_pinhole_does_not_admit_another_client() {
    with_each_back_end(|back_end| {
        let answers = json!({"passive_port": PASSIVE_PORT});
        let scene = Scene::with(Topology::PublishedServer, back_end, &answers);
        let lab = &scene.gateway.lab;
        let transfer = [vec![dial()], ask("LIST"), vec![drain(), reply()]].concat();
        let client = hold(lab, (login(), ask("PASV"), gate(), transfer));
        assert_eq!(scene.gateway.daemon.open_pinholes().unwrap().len(), 1);
        let address = &lab.server_address(V4).to_string();
        let inside = &lab.server.address(V4).to_string();
        for _ in 0..2 {
            assert_silent(&[
                (&lab.client2, address, PASSIVE_PORT),
                (&lab.outsider, address, PASSIVE_PORT),
                (&lab.outsider, inside, PASSIVE_PORT),
            ]);
        }
        // Another client does not gain access by a login and a session of its own.
        let other = gated_client(&lab.client2, plan(lab, (login(), ask("NOOP"), gate())));
        assert_silent(&[(&lab.client2, address, PASSIVE_PORT)]);
        assert_eq!(other.release().error, None);
        let session = client.release().ok();
        assert_eq!(session.got(11), "the body\r\n");
        // The listener is gone, but a refusal would reveal that.
        scene.assert_closed(&[PASSIVE_PORT]);
    });
}
