//! A client sends segments that its server discards, so that the report of a transfer is wrong: FINs, resets and SYN-ACKs
//! with other sequence numbers.

use super::scene::with_each_back_end;
use crate::common::*;

const HIDE: &[u8] = include_bytes!("hide.py");

/// On the fast path, whose program does not know the window, and off it: conntrack lets such segments pass.
#[test]
fn forged_ends_of_data_connections_hide_no_bytes() {
    for setup in [FAST_PATH, "queue.fast-path = \"off\"\n"] {
        let gateway = gateway_with(Topology::Masquerade, setup);
        let lab = &gateway.lab;
        let _server = scripted_server(&lab.server, &json!({"body": "x".repeat(7000)}));
        let server = lab.server_address(V4).to_string();
        let moved = python(&lab.client, "hide.py", HIDE, &[&server]);
        // Which SYN-ACK of a client is the true one is not certain: its handshake may be forged, too.
        let reports = |line: &str| match line.strip_prefix("/syn-ack-STOR-active ") {
            Some(_) => "/syn-ack-STOR-active null".to_owned(),
            None => line.to_owned(),
        };
        let expected: Vec<_> = moved.lines().map(reports).collect();
        assert_eq!(expected.len(), 35, "{moved}");
        let reported = || {
            let text = |event: &Value| {
                assert_eq!(event["result"], "complete", "{event}");
                format!("{} {}", event["path"].as_str().unwrap(), event["bytes"])
            };
            gateway.events("transfer").iter().map(text).collect::<Vec<_>>()
        };
        wait_for("the reports", || reported().len() == expected.len());
        assert_eq!(reported(), expected, "{setup}");
        let on = fast_path(&gateway.daemon)["admitted"].as_u64().unwrap_or_default() > 0;
        assert_eq!(on, setup == FAST_PATH, "{}", fast_path(&gateway.daemon));
    }
}

/// The handshake would have no SYN-ACK but a forged one.
#[test]
fn no_data_connection_is_opened_from_both_ends() {
    with_each_back_end(|back_end| {
        let gateway = gateway_with(Topology::Masquerade, back_end);
        let lab = &gateway.lab;
        let _server = scripted_server(&lab.server, &json!({}));
        let output = "type filter hook output priority 0; tcp flags & rst == rst drop";
        lab.client.nft(&format!("table ip mute {{ chain output {{ {output}; }}; }}")).unwrap();
        let server = lab.server_address(V4).to_string();
        let said = python(&lab.client, "both_ends.py", include_bytes!("both_ends.py"), &[&server]);
        assert_eq!(said.trim(), "silent", "{back_end}");
    });
}

#[test]
fn a_loss_of_copies_is_reported() {
    let gateway = gateway_with(Topology::Masquerade, "");
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    let [server, daemon] = [lab.server_address(V4).to_string(), gateway.daemon.id().to_string()];
    python(&lab.client, "hide.py", HIDE, &[&server, &daemon]);
    wait_for("the event", || gateway.daemon.log().contains("copies were lost"));
}
