//! Several workers.

use crate::common::*;

const CONFIGURATION: &str = "queue.workers = 3\n";

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
