//! Many transfers in a row in each mode (a thousand in `make test-nightly`), with an off-path attacker scanning meanwhile.

use crate::common::*;

/// `count` downloads in one session; the errors that came of it.
fn transfers(lab: &Lab, server: &Server, family: Family, mode: &str, count: u32) -> Vec<String> {
    let (user, password) = server.login();
    let (address, count) = (lab.server_address(family).to_string(), count.to_string());
    let arguments = [&address, user, password, mode, &count, "pub/report"];
    let done = lab.client.script(Script::Many, &arguments, Duration::from_secs(240)).unwrap();
    let done = done.success().unwrap();
    let report: Value = serde_json::from_str(&done.stdout_text()).unwrap();
    println!("{mode} {family}: {report}");
    let errors = report["errors"].as_array().unwrap();
    let mut errors: Vec<String> = errors.iter().map(Value::to_string).collect();
    if report["transfers"].as_u64().map(|done| done.to_string()) != Some(count.clone()) {
        errors.push(format!("{} of {count} transfers", report["transfers"]));
    }
    errors
}

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
    server.put("report", &[b'x'; 2000]).unwrap();
    // Those that clients announce are among them.
    let ports = telling(&["1-1024,32768-36863"], &["1-65535"])[0];
    let (errors, open) = thread::scope(|scope| {
        let all = scope.spawn(|| {
            let [many, fewer] = telling(&[[60, 20]], &[[1000, 200]])[0];
            let mut errors = transfers(lab, &server, V4, "active", many);
            errors.extend(transfers(lab, &server, V4, "passive", many));
            for (family, mode) in
                [(V4, "active+ext"), (V4, "passive+ext"), (V6, "active"), (V6, "passive")]
            {
                errors.extend(transfers(lab, &server, family, mode, fewer));
            }
            errors
        });
        let mut open = Vec::new();
        while !all.is_finished() {
            for target in [lab.gateway.address(V4), lab.client.address(V4)] {
                open.extend(lab.outsider.scan(target, ports).unwrap());
            }
        }
        (all.join().unwrap(), open)
    });
    assert_eq!(errors, [""; 0]);
    assert!(open.iter().all(|port| *port == 21), "open to an off-path attacker: {open:?}");
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0, "packets invalid for conntrack");
    gateway.assert_tidy();
}
