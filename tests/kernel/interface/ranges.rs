//! Passive ports are open to the client of a session at the address that it dialled, and lead to the server of that session.

use std::{net::SocketAddr, sync::Arc};

use ftp_alg_core::engine::{OpenRange, Translation};

use super::{changes::Place, lab::*};

/// The range of a session of `client` with the server at `own`, which it reaches as `dialled`.
fn range(client: &str, dialled: SocketAddr, own: SocketAddr, first_port: u16) -> OpenRange {
    let control = Translation::identity(at(client, 1025), own);
    let ports = Arc::new([first_port..=first_port + 3]);
    OpenRange { control: Translation { server_external: dialled, ..control }, ports }
}

/// The gateway has a server of its own, and publishes another one at another port of the same address.
#[test]
fn a_session_opens_no_port_of_another_server_at_its_address() {
    let place = Place::new();
    place.lab.gateway_sh(
        "nft 'table inet filter { chain input { \
            type filter hook input priority 0; policy drop; \
            ct state established,related accept; ct mark & 0x40000000 != 0 accept; \
            meta l4proto icmpv6 accept; }; }'",
    );
    for (client, client2, external, server) in
        [(CLIENT, "10.0.0.3", EXTERNAL, SERVER), (CLIENT6, "2001:db8:1::3", EXTERNAL6, SERVER6)]
    {
        let (host, host2) = (&place.lab.client, &place.lab.client2);
        let gateway = &place.lab.gateway;
        let own = listen(gateway, at(external, 50_000));
        let _service = listen(gateway, at(external, 3000));
        let of_server = listen(&place.lab.server, at(server, 3000));
        for mut writer in place.writers() {
            let ranges = [
                range(client, at(external, 21), at(external, 21), 50_000),
                range(client2, at(external, 2121), at(server, 21), 3000),
            ];
            ranges.iter().for_each(|range| writer.open_range(range).unwrap());
            exchange(&mut connect(host, client, at(external, 50_000)), &own);
            exchange(&mut connect(host2, client2, at(external, 3000)), &of_server);
            assert!(is_silent(host, client, at(external, 3000)), "a service of the gateway");
            assert!(is_silent(host2, client2, at(external, 50_000)), "the other one's server");

            writer.close_range(&ranges[1]).unwrap();
            exchange(&mut connect(host, client, at(external, 50_000)), &own);
            assert!(is_silent(host, client, at(external, 3000)), "behind the other session");
            writer.close_range(&ranges[0]).unwrap();
            assert!(is_silent(host, client, at(external, 50_000)));
        }
    }
}

/// A client inside reaches the server by its own address, and by the external one (hairpin NAT).
#[test]
fn a_session_keeps_its_source_translation_at_the_end_of_another_one() {
    let place = Place::new();
    place.lab.drop_by_default();
    for (client, external, server) in [(CLIENT, EXTERNAL, SERVER), (CLIENT6, EXTERNAL6, SERVER6)] {
        let host = &place.lab.client;
        let listener = listen(&place.lab.server, at(server, 3000));
        let direct = range(client, at(server, 21), at(server, 21), 3000);
        let mut hairpin = range(client, at(external, 21), at(server, 21), 3000);
        hairpin.control.client_external = at(external, 1025);
        let source_by = |dialled| {
            let mut stream = connect(host, client, at(dialled, 3000));
            exchange(&mut stream, &listener).1.ip()
        };
        for mut writer in place.writers() {
            for (first, last, dialled, source) in
                [(&direct, &hairpin, external, external), (&hairpin, &direct, server, client)]
            {
                writer.open_range(last).unwrap();
                writer.open_range(first).unwrap();
                assert_eq!(source_by(dialled), ip(source), "next to another one");
                writer.close_range(first).unwrap();
                assert_eq!(source_by(dialled), ip(source), "behind another one");
                writer.close_range(last).unwrap();
            }
        }
    }
}
