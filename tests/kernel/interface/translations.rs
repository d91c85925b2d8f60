//! Looking up how a connection is translated.

use std::time::Duration;

use ftp_alg_core::engine::{Kernel as _, Translation};
use ftp_alg_lab::wait_for;
use socket2::SockRef;

use super::{Ready, lab::*};

fn nat(ready: &Ready, rules: &str) {
    ready.lab.gateway_sh(&format!(
        "nft 'table inet nat; delete table inet nat; table inet nat {{ \
            chain pre {{ type nat hook prerouting priority -100; }}; \
            chain post {{ type nat hook postrouting priority 100; }}; }}; {rules}'"
    ));
}

/// NAT of both ends: each port from 3000 to 3999 of any address leads to the servers.
const INTERCEPT: &str = "\
    add rule inet nat pre tcp dport 3000-3999 dnat ip to 192.0.2.9:21; \
    add rule inet nat pre tcp dport 3000-3999 dnat ip6 to [2001:db8:2::9]:21; \
    add rule inet nat post oifname wan masquerade";

/// A gateway that intercepts.
fn intercepting() -> Ready {
    let ready = Ready::new();
    ready.lab.pass_by();
    nat(&ready, INTERCEPT);
    ready
}

#[test]
fn translations_are_found_from_the_visible_pair() {
    let mut ready = Ready::new();
    ready.lab.pass_by();
    let snat = "add rule inet nat post oifname wan snat ip to 192.0.2.77";
    let dnat = "add rule inet nat pre tcp dport 2121 dnat ip to 192.0.2.9:21";
    let listener = listen(&ready.lab.server, at(SERVER, 21));
    for (rules, dial) in [
        (String::new(), at(SERVER, 21)),
        (snat.into(), at(SERVER, 21)),
        (dnat.into(), at(GATEWAY_INSIDE, 2121)),
        (format!("{dnat}; {snat}"), at(GATEWAY_INSIDE, 2121)),
    ] {
        nat(&ready, &rules);
        let mut stream = connect(&ready.lab.client, CLIENT, dial);
        let (_server, peer) = exchange(&mut stream, &listener);
        let expected = Translation {
            client_external: peer,
            server_external: dial,
            ..Translation::identity(stream.local_addr().unwrap(), at(SERVER, 21))
        };
        let mut found = || ready.kernel.lookup_translation(expected.client, expected.server);
        wait_for(&rules, || found().unwrap() == Some(expected));
        if peer.ip() != expected.client.ip() {
            // A pair that no packet shows at our hooks.
            assert_eq!(ready.kernel.lookup_translation(peer, dial).unwrap(), None);
        }
    }
    let unknown = ready.kernel.lookup_translation(at(CLIENT, 1), at(SERVER, 1)).unwrap();
    assert_eq!(unknown, None);
}

#[test]
fn each_of_many_dialled_addresses_is_found_at_once() {
    let mut ready = intercepting();
    for (client, server, inside) in
        [(CLIENT, SERVER, GATEWAY_INSIDE), (CLIENT6, SERVER6, "2001:db8:1::1")]
    {
        let listener = listen(&ready.lab.server, at(server, 21));
        // From any port, and then all from one port.
        let any = (3000..3040).map(|port| (0, port));
        for (from, port) in any.chain((3040..3043).map(|port| (4000, port))) {
            let mut stream = connect_from(&ready.lab.client, at(client, from), at(inside, port));
            let (_server, _) = exchange(&mut stream, &listener);
            let visible = stream.local_addr().unwrap();
            let found = ready.kernel.lookup_translation(visible, at(server, 21)).unwrap().unwrap();
            assert_eq!((found.client, found.server_external), (visible, at(inside, port)));
            // No TIME-WAIT keeps the port.
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
}

#[test]
fn the_first_data_store_the_external_address() {
    let mut ready = intercepting();
    let listener = listen(&ready.lab.server, at(SERVER, 21));
    let stored = |ready: &Ready| {
        let list = ready.lab.gateway_sh("nft list map inet ftp_alg external_addresses4");
        list.matches("expires").count()
    };
    for port in 3000..3010 {
        let stream = connect(&ready.lab.client, CLIENT, at(GATEWAY_INSIDE, port));
        drop((listener.accept().unwrap(), stream));
    }
    assert_eq!(stored(&ready), 0);
    let mut stream = connect(&ready.lab.client, CLIENT, at(GATEWAY_INSIDE, 3000));
    let (_server, _) = exchange(&mut stream, &listener);
    assert_eq!(stored(&ready), 1);
    let visible = stream.local_addr().unwrap();
    let mut look_up = || ready.kernel.lookup_translation(visible, at(SERVER, 21)).unwrap();
    let found = look_up().unwrap();
    // An idle connection is found by its known translation.
    ready.lab.gateway_sh("nft flush map inet ftp_alg external_addresses4");
    assert_eq!(look_up(), None);
    assert!(ready.kernel.conntrack.has_connection(&found).unwrap());
    let gone = Translation { client: at(CLIENT, 1), ..found };
    assert!(!ready.kernel.conntrack.has_connection(&gone).unwrap());
}
