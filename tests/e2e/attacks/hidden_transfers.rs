//! A client sends segments that its server discards, so that the report of a transfer is wrong: FINs, resets and SYN-ACKs
//! with other sequence numbers.

use crate::common::*;

/// On the fast path, whose program does not know the window, and off it: conntrack lets such segments pass.
#[test]
fn forged_ends_of_data_connections_hide_no_bytes() {
    for setup in [FAST_PATH, "queue.fast-path = \"off\"\n"] {
        let gateway = gateway_with(Topology::Masquerade, setup);
        let lab = &gateway.lab;
        let _server = scripted_server(&lab.server, &json!({"body": "x".repeat(7000)}));
        let script = lab.client.write("hide.py", include_bytes!("hide.py")).unwrap();
        let server = lab.server_address(V4).to_string();
        let moved = lab.client.run("/usr/bin/python3", &[script.to_str().unwrap(), &server]);
        let moved = moved.unwrap().stdout_text();
        let expected: Vec<_> = moved.lines().map(str::to_owned).collect();
        assert_eq!(expected.len(), 36, "{moved}");
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

#[test]
fn a_loss_of_copies_is_reported() {
    let gateway = gateway_with(Topology::Masquerade, "");
    let lab = &gateway.lab;
    let _server = scripted_server(&lab.server, &json!({}));
    let script = lab.client.write("hide.py", include_bytes!("hide.py")).unwrap();
    let [server, daemon] = [lab.server_address(V4).to_string(), gateway.daemon.id().to_string()];
    let words = [script.to_str().unwrap(), &server, &daemon];
    lab.client.run("/usr/bin/python3", &words).unwrap();
    wait_for("the event", || gateway.daemon.log().contains("copies were lost"));
}
