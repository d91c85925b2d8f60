//! The sessions that everyone quotes when explaining FTP behind NAT, byte for byte, checked by
//! tshark on both sides of the gateway.

use crate::common::*;

const BODY: &str = "total 0\r\n-rw-r--r-- 1 ftp ftp 12 Jan 1 00:00 slacksite\r\n";

fn assert_clean(side: &CaptureAnalysis) {
    assert_eq!(side.anomalies().unwrap(), [""; 0], "{}", side.path().display());
}

#[test]
fn active_session_through_masquerade() {
    let (gateway, server) =
        served(Topology::Masquerade, "", json!({"body": BODY, "active_source": 20}));
    let lab = &gateway.lab;
    let (session, inner, outer) =
        captured(lab, || talk(lab, (login(), port_transfer(), ask("QUIT"))).ok());
    assert_eq!(session.got(6), "200 PORT command successful");
    assert_eq!(session.got(9), BODY, "what came to port 3762");
    assert_eq!(session.got(12), "221 Bye");
    assert_eq!(inner.announcements().unwrap(), ["PORT 192,168,150,80,14,178"]);
    let read = outer.announcements().unwrap();
    let [read] = read.as_slice() else { panic!("{read:?}") };
    let (address, port) = host_port(read);
    assert_eq!(address, "198.51.100.1");
    assert!(server.lines().contains(read), "{read}");
    // The data connection came to the announced port outside, and to 3762 inside.
    let syn = "tcp.flags.syn == 1 && tcp.flags.ack == 0 && tcp.srcport == 20";
    let fields = ["ip.src", "ip.dst", "tcp.dstport"];
    assert_eq!(
        outer.fields(syn, &fields).unwrap(),
        [["198.51.100.10", "198.51.100.1", &port.to_string()]]
    );
    assert_eq!(inner.fields(syn, &fields).unwrap(), [["198.51.100.10", "192.168.150.80", "3762"]]);
    assert_clean(&inner);
    assert_clean(&outer);
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0);
    assert_eq!(gateway.daemon.pinholes().unwrap().len(), 0);
}

/// The rewritten line is as long as it was, so that no sequence number changes: each server must read what that takes.
#[test]
fn servers_take_zeros_before_the_numbers_of_a_port() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    for kind in ServerKind::ALL {
        let server = Server::start(kind, &lab.server).unwrap();
        let transfer =
            (ask("PORT 192,168,150,80,4,1"), say("LIST"), accept(1025), reply(), reply());
        let steps = (login_as(server.login()), transfer, ask("QUIT"));
        let (session, _, outer) = captured(lab, || talk(lab, &steps).ok_in(kind));
        assert!(session.got(6).starts_with("200"), "{kind}: {}", session.got(6));
        assert_eq!(outer.announcements().unwrap(), ["PORT 198,51,100,1,4,001"], "{kind}");
        assert_clean(&outer);
    }
}
