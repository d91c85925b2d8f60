//! FTP bounce (RFC 2577): announcements of another host. wire_cases::refusals of the core has all of them.

use super::scene::{ANNOUNCED, Scene};
use crate::common::*;

/// A tshark filter for connection attempts.
pub const ATTEMPTS: &str = "tcp.flags.syn == 1 && tcp.flags.ack == 0";

/// The gateway refuses each, the session goes on, and the server connects to no host.
#[test]
fn a_client_cannot_bounce_to_a_third_host() {
    for family in FAMILIES {
        let scene = Scene::new(Topology::Masquerade, &json!({}));
        let lab = &scene.gateway.lab;
        // The server sees the client with the gateway's outer address, so that is not a third host.
        let lines = [&lab.outsider, &lab.client2, &lab.server].map(|host| {
            let numbers = host.address(V4).to_string().replace('.', ",");
            let eprt = format!("EPRT |2|{}|3764|", host.address(V6));
            if family == V4 { format!("PORT {numbers},14,180") } else { eprt }
        });
        let try_line = |line: &String| [ask(line), ask("LIST"), ask("NOOP")].concat();
        let attempts = Capture::start(&lab.server, "eth0", "tcp").unwrap();
        let plan = json!({"host": lab.server_address(family), "listen": [ANNOUNCED, 22]});
        let steps = [login(), lines.iter().flat_map(try_line).collect()].concat();
        let client = scene.client_of(&lab.client, &plan, &steps);
        scene.assert_closed(&[ANNOUNCED, 22]);
        let session = client.release().ok();
        for (at, line) in lines.iter().enumerate() {
            let [answer, list, noop] = [6, 8, 10].map(|step| session.got(step + at * 6));
            assert!(answer.starts_with("50") && answer.contains("the gateway"), "{line}: {answer}");
            assert!(list.starts_with("425 ") && noop == "200 Noop", "{line}: {list}, {noop}");
        }
        assert_eq!(scene.announcements(), [""; 0]);
        // Except the attempts that this test itself makes to check that nothing is open.
        let [v4, v6] = FAMILIES.map(|family| lab.server.address(family));
        let from_server = format!("(ip.src == {v4} || ipv6.src == {v6})");
        let others =
            format!("{ATTEMPTS} && {from_server} && !(tcp.dstport in {{{ANNOUNCED}, 22}})");
        let seen = attempts.finish().unwrap();
        assert_eq!(seen.count(&others).unwrap(), 0);
        assert_eq!(seen.faults().unwrap(), [""; 0]);
        assert_eq!(scene.gateway.count("pinholes_refused"), lines.len() as u64);
        assert_eq!(scene.gateway.count("pinholes_opened"), 0);
        scene.assert_transfer();
    }
}
