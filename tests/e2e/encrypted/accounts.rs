//! What the gateway says of encrypted sessions: transfers, what is open, and what the firewall drops because a setting is
//! missing.

use super::*;

fn transfers(gateway: &Gateway) -> Vec<Value> {
    gateway.events("transfer")
}

#[test]
fn a_data_connection_is_a_transfer_with_its_bytes() {
    for (kind, tls) in
        [(ServerKind::Proftpd, ClientTls::Explicit), (ServerKind::Vsftpd, ClientTls::Implicit)]
    {
        let scene = Scene::new(Topology::PublishedServer, kind, tls);
        let (gateway, lab) = (&scene.gateway, scene.lab());
        let body = vec![b'x'; 300_000];
        scene.server.put("file", &body).unwrap();
        let client = scene.client(
            V4,
            [begin_download("EPSV", "file"), vec![end_download(), reply(), gate()]].concat(),
        );
        let row = &gateway.daemon.sessions().unwrap()[0];
        assert_eq!(
            (&row["state"], &row["passive_ports"]),
            (&json!("encrypted"), &json!("50000-50009"))
        );
        wait_for("the transfer", || !transfers(gateway).is_empty());
        client.release().ok();
        let mut transfer = curl(lab, &scene.server, Mode::Passive);
        // It waits for the end of TLS, so its server confirms an upload.
        (transfer.client, transfer.tls) = (ClientProgram::Ftplib, tls);
        transfer.endpoint = endpoint(lab, V4, tls);
        transfer.upload("up", &body).unwrap();
        wait_for("both", || transfers(gateway).len() == 2);
        for (event, direction) in transfers(gateway).iter().zip(["down", "up"]) {
            for (field, expected) in [
                ("encrypted", json!(true)),
                ("direction", json!(direction)),
                ("path", Value::Null),
                ("mode", json!("passive")),
                ("result", json!("complete")),
                ("client", json!(lab.client.address(V4))),
            ] {
                assert_eq!(event[field], expected, "{kind}: {event}");
            }
            let bytes = event["bytes"].as_u64();
            // With the records of TLS, and its handshake.
            assert!(
                bytes.is_some_and(|bytes| (300_000..320_000).contains(&bytes)),
                "{kind}: {event}"
            );
        }
        wait_for("the end", || gateway.daemon.counter("sessions").unwrap() == 0);
        let opened = gateway.events("range-opened");
        assert_eq!((opened.len(), &opened[0]["ports"]), (2, &json!("50000-50009")));
        assert_eq!(gateway.events("range-closed").len(), 2);
        assert_eq!(gateway.count("ranges_opened"), 2);
        assert!(gateway.events("encrypted").is_empty(), "nothing is to be done");
        gateway.assert_tidy();
    }
}

/// And what it is cut by: `conntrack -F`.
#[test]
fn a_running_transfer_has_its_bytes_and_is_reported_if_it_is_cut() {
    let scene = Scene::new(Topology::PublishedServer, ServerKind::Vsftpd, ClientTls::Explicit);
    let (gateway, lab) = (&scene.gateway, scene.lab());
    lab.gateway.run("sysctl", &["-qw", "net.netfilter.nf_conntrack_acct=1"]).unwrap();
    scene.server.put("large", &large_file()).unwrap();
    let _client = scene.client(V4, (begin_download("PASV", "large"), gate()));
    // What the buffers of the sockets hold.
    let of_session = || gateway.daemon.sessions().unwrap()[0]["transfer"]["bytes"].as_u64();
    wait_for("bytes", || of_session().is_some_and(|bytes| bytes > 50_000));
    let row = &gateway.daemon.sessions().unwrap()[0];
    assert_eq!(row["bytes"], row["transfer"]["bytes"]);
    // The sums are of a moment of their own.
    let seen = row["bytes"].as_u64();
    let running = || gateway.daemon.status().unwrap()["running"].clone();
    wait_for("the sum", || running()["bytes_down"].as_u64() >= seen);
    let running = running();
    assert_eq!((&running["transfers"], &running["bytes_up"]), (&json!(1), &json!(0)), "{running}");
    lab.gateway.run("conntrack", &["-F"]).unwrap().success().unwrap();
    wait_for("the event", || !transfers(gateway).is_empty());
    let event = &transfers(gateway)[0];
    let result = (&event["encrypted"], &event["result"], &event["bytes"]);
    assert_eq!(result, (&json!(true), &json!("no-data-connection"), &Value::Null), "{event}");
}

/// The operator learns which line is missing. With it, a reload is enough.
#[test]
fn what_the_firewall_drops_for_want_of_the_setting_is_named() {
    for setting in ["", "passive-ports = \"40000-40009\"\n"] {
        let lab = Lab::new(Topology::PublishedServer).unwrap();
        let tls = server_tls(&lab, ClientTls::Explicit, false);
        let server = Server::start_tls(ServerKind::Proftpd, &lab.server, &tls).unwrap();
        server.put("file", b"the body").unwrap();
        let address = lab.server.address(V4);
        let table = |setting: &str| format!("[[server]]\naddress = \"{address}\"\n{setting}");
        let gateway = Gateway::on(lab, &table(setting));
        let daemon = &gateway.daemon;
        let mut transfer = curl(&gateway.lab, &server, Mode::Passive);
        transfer.tls = ClientTls::Explicit;
        assert!(transfer.download("file").is_err());
        wait_for("the event", || !gateway.events("no-data-connection").is_empty());
        let event = &gateway.events("no-data-connection")[0];
        let reason = event["reason"].as_str().unwrap();
        assert!(
            reason.ends_with(&format!("is not among the passive-ports of {address}")),
            "{reason}"
        );
        let warnings = || daemon.status().unwrap()["warnings"].clone();
        wait_for("the warning", || warnings()[0]["name"] == "encrypted");
        let lines = match setting {
            "" => format!("\n[[server]]\naddress = \"{address}\"\npassive-ports = \"50000-50100\""),
            _ => format!("in the settings of {address}, and write it as its passive-ports"),
        };
        assert!(warnings()[0]["remedy"].as_str().unwrap().contains(&lines), "{}", warnings());
        assert_eq!(gateway.events("encrypted").is_empty(), !setting.is_empty());

        reload(daemon, &table("passive-ports = \"50000-50099\"\n"));
        wait_for("the end of what is cured", || warnings() == json!([]));
        assert_eq!(transfer.download("file").unwrap(), b"the body");
        gateway.assert_tidy();
    }
}
