//! Urgent data: real servers read all bytes in the stream, and some look for a command as soon as urgent data arrives.

use crate::common::*;

/// RFC 959 section 4.1.3, as BSD's client implements it: `IAC IP IAC` as urgent data, then `DM` and the command.
#[test]
fn a_telnet_synch_before_abor_reaches_every_server() {
    for kind in ServerKind::ALL {
        let gateway = gateway(Topology::Masquerade);
        let lab = &gateway.lab;
        let server = Server::start(kind, &lab.server).unwrap();
        let body = vec![b'x'; 8_000_000];
        server.put("large", &body).unwrap();
        let start = [login_as(server.login()), ask("TYPE I"), ask("PASV"), vec![dial()]].concat();
        let mut steps = [start, ask("RETR pub/large")].concat();
        steps.push(json!({"send": "\u{ff}\u{f4}\u{ff}", "urgent": true}));
        steps.push(json!({"send": "\u{f2}ABOR\r\n"}));
        // Read the data in flight, so that a server that looks for commands later gets to this one.
        steps.extend([drain(), reply(), reply(), say("NOOP"), reply()]);
        let session = talk(lab, steps);
        let codes: Vec<_> = session.steps.iter().map(|(got, _)| got.get(..3)).collect();
        let last = &codes[codes.len().saturating_sub(5)..];
        assert_eq!(session.error, None, "{kind}: {codes:?}");
        assert!(matches!(last[1], Some("426" | "226" | "225")), "{kind}: {last:?}");
        assert!(matches!(last[2], Some("226" | "225" | "500")), "{kind}: {last:?}");
        assert_eq!(last[4], Some("200"), "{kind}");
        gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
    }
}
