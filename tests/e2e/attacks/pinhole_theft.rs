//! Data connection theft: connections from hosts for which a pinhole is not meant, and connections that arrive too
//! late.

use super::scene::{ANNOUNCED, PASSIVE_PORT, PORT, Scene, assert_silent, with_each_back_end};
use crate::common::*;

/// A client behind NAT opens a pinhole. `attack` gets the address and port that the server received.
fn attack_active_pinhole(back_end: &str, attack: impl Fn(&Scene, &str, u16)) {
    let scene = Scene::with(Topology::Masquerade, back_end, &json!({}));
    let lab = &scene.gateway.lab;
    let client = hold_listening(lab, ANNOUNCED, (login(), ask(PORT), gate()));
    assert_eq!(scene.gateway.daemon.open_pinholes().unwrap().len(), 1);
    let (address, port) = host_port(scene.server.lines().last().unwrap());
    attack(&scene, &address, port);
    assert_eq!(client.release().error, None);
    scene.assert_transfer();
}

#[test]
fn a_third_host_neither_uses_nor_consumes_a_pinhole() {
    with_each_back_end(|back_end| {
        attack_active_pinhole(back_end, |scene, address, port| {
            let lab = &scene.gateway.lab;
            let inside = lab.client.address(V4).to_string();
            for _ in 0..2 {
                let third = &lab.outsider;
                assert_silent(&[(third, address, port), (third, &inside, ANNOUNCED)]);
            }
            assert_eq!(
                connect(&lab.server, address, port),
                "open",
                "the server itself must still get through"
            );
        });
    });
}

/// A client of a published server opens a pinhole. `attack` tries to use it.
fn attack_passive_pinhole(back_end: &str, attack: impl Fn(&Scene, &str)) {
    let scene =
        Scene::with(Topology::PublishedServer, back_end, &json!({"passive_port": PASSIVE_PORT}));
    let lab = &scene.gateway.lab;
    let host = lab.server_address(V4);
    let steps = [&login()[..], &[say("PASV"), reply(), gate()]].concat();
    let steps = [&steps[..], &[dial(), say("LIST"), reply()]].concat();
    let client = hold(lab, (&steps[..], drain(), reply()));
    assert_eq!(scene.gateway.daemon.open_pinholes().unwrap().len(), 1);
    attack(&scene, &host.to_string());
    let session = client.release();
    assert_eq!((session.error.as_deref(), session.got(11)), (None, "the body\r\n"));
    // The listener is gone, but a refusal would reveal that.
    scene.assert_closed(&[PASSIVE_PORT]);
}

#[test]
fn a_pinhole_does_not_admit_another_client() {
    with_each_back_end(|back_end| {
        attack_passive_pinhole(back_end, |scene, address| {
            let lab = &scene.gateway.lab;
            let inside = lab.server.address(V4).to_string();
            for _ in 0..2 {
                assert_silent(&[
                    (&lab.client2, address, PASSIVE_PORT),
                    (&lab.outsider, address, PASSIVE_PORT),
                    (&lab.outsider, &inside, PASSIVE_PORT),
                ]);
            }
            // Another client does not gain access by a login and a session of its own.
            let steps = [&login()[..], &[say("NOOP"), reply(), gate()]].concat();
            let plan = json!({"host": address, "steps": steps});
            let other = gated_client(&lab.client2, plan);
            assert_silent(&[(&lab.client2, address, PASSIVE_PORT)]);
            assert_eq!(other.release().error, None);
        });
    });
}

/// A client uses two servers. A pinhole announced to one server admits only that server.
#[test]
fn a_pinhole_does_not_admit_another_server() {
    with_each_back_end(|back_end| {
        attack_active_pinhole(back_end, |scene, address, port| {
            let lab = &scene.gateway.lab;
            let _other = scripted_server(&lab.outsider, &json!({}));
            let at = |host: &Host| json!(host.address(V4));
            let steps = [&login()[..], &[say("NOOP"), reply(), gate()]].concat();
            let plan = json!({"host": at(&lab.outsider), "steps": steps});
            let waiting = gated_client(&lab.client, plan);
            assert_silent(&[(&lab.outsider, address, port)]);
            // The client announces the same port to the second server. Each server has a pinhole of its own.
            let mut own = [&login()[..], &[say(PORT), reply(), say("LIST"), reply()]].concat();
            own.push(json!({"sleep": 0.1}));
            let plan = json!({"host": at(&lab.outsider), "steps": own});
            scripted_client(&lab.client, &plan);
            assert_eq!(connect(&lab.server, address, port), "open");
            assert_eq!(waiting.release().error, None);
        });
    });
}

/// Captures the inner network: no packet from any host but the server gets through.
#[test]
fn no_packet_of_a_third_host_reaches_the_inside() {
    let scene = Scene::new(Topology::Masquerade, &json!({}));
    let lab = &scene.gateway.lab;
    let inner = Capture::start(&lab.gateway, lab.client_side(), "tcp").unwrap();
    let client = scene.logged_in(&[say(PORT), reply()]);
    let (address, port) = host_port(scene.server.lines().last().unwrap());
    let ports: String = format!("{ANNOUNCED},{port},22,1024-1100,49152-49300");
    for target in [lab.gateway.address(V4), lab.client.address(V4)] {
        assert_eq!(lab.outsider.scan(target, &ports).unwrap(), [0; 0]);
    }
    assert_eq!(connect(&lab.server, &address, port), "open");
    let inner = inner.finish().unwrap();
    let third = lab.outsider.address(V4);
    assert_eq!(inner.count(&format!("ip.addr == {third}")).unwrap(), 0);
    assert_eq!(
        inner.count(&format!("tcp.flags.syn == 1 && tcp.dstport == {ANNOUNCED}")).unwrap(),
        1
    );
    assert_eq!(client.release().error, None);
}
