//! Many transfers in each mode, with an off-path attacker scanning meanwhile.

use crate::common::*;

#[test]
fn many_transfers_in_each_mode() {
    let all = [
        (Topology::Masquerade, ServerKind::Vsftpd),
        (Topology::PublishedServer, ServerKind::PureFtpd),
        (Topology::Routed, ServerKind::Proftpd),
    ];
    telling(&all[..1], &all).iter().for_each(|(topology, kind)| many_through(*topology, *kind));
}

fn many_through(topology: Topology, kind: ServerKind) {
    let gateway = gateway(topology);
    let lab = &gateway.lab;
    let server = Server::start(kind, &lab.server).unwrap();
    // Those that clients announce are among them.
    let ports = telling(&["1-1024,32768-36863"], &["1-65535"])[0];
    let [over_v4, over_v6] = [(V4, "over-ipv4"), (V6, "over-ipv6")].map(|(family, name)| {
        let spec = LoadSpec { name, family, sessions: 4, ..LoadSpec::default() };
        Load::start(lab, &server, spec)
    });
    let mut loads = [over_v4, over_v6];
    let mut open = Vec::new();
    for _ in 0..telling(&[8], &[300])[0] {
        loads.iter_mut().for_each(Load::wait_for_transfers);
        for target in [lab.gateway.address(V4), lab.client.address(V4)] {
            open.extend(lab.outsider.scan(target, ports).unwrap());
        }
    }
    for report in loads.map(Load::end) {
        println!("{topology}: {report}");
        assert_eq!(report.bad(), [0; 3], "{report}");
    }
    assert!(open.iter().all(|port| *port == 21), "open to an off-path attacker: {open:?}");
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0, "packets invalid for conntrack");
    gateway.assert_tidy();
}
