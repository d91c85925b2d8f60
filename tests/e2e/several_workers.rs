//! Several workers. That other ones know the sessions again is in `kills`.

use crate::common::*;

#[test]
fn sessions_at_once_work_with_several_workers() {
    let gateway = gateway_with(Topology::Masquerade, "queue.workers = 3\n");
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
