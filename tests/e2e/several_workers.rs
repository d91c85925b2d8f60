//! Several workers.

use crate::common::*;

const CONFIGURATION: &str = "queue.workers = 3\n";

#[test]
fn sessions_at_once_work_with_several_workers() {
    let gateway = gateway_with(Topology::Masquerade, CONFIGURATION);
    let lab = &gateway.lab;
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    let mut load = Load::start(lab, &server, LoadSpec::default());
    (0..20).for_each(|_| load.wait_for_transfers());
    let report = load.end();
    assert_eq!(report.bad(), [0; 3], "{report}");
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0, "packets invalid for conntrack");
    gateway.daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
    let status = gateway.daemon.status().unwrap();
    assert_eq!((&status["errors"], &status["unread_sessions"]), (&json!(0), &json!(0)), "{status}");
}

#[test]
fn each_session_is_known_again_by_any_number_of_workers() {
    let (mut gateway, _server) = served(Topology::Masquerade, CONFIGURATION, json!({}));
    let client = |port: u16| {
        let [high, low] = port.to_be_bytes();
        let transfer = [
            say(&format!("PORT 192,168,150,80,{high},{low}")),
            reply(),
            say("LIST"),
            reply(),
            accept(port),
            reply(),
        ];
        hold(&gateway.lab, (login(), &transfer, gate(), &transfer))
    };
    let clients: Vec<_> = (3762..3770).map(client).collect();
    for other in [CONFIGURATION, "[queue]\nnumber = 2099\nworkers = 5\n", "queue.workers = 1\n", ""]
    {
        gateway.daemon.kill();
        gateway.start_again(other);
        let log = gateway.daemon.log();
        assert!(log.contains("restored 8 sessions (8 with sequence adjustment)"), "{other}: {log}");
        assert!(!log.contains("WARN"), "{other}: {log}");
    }
    for client in clients {
        assert_eq!(client.release().error, None);
    }
}
