//! An operator's flowtable takes data connections, and leaves control connections to the queue.

use crate::common::*;

/// As operators have it: whatever is established is handed over, control connections too.
const FLOWTABLE: &str = "
table inet acceleration {
    flowtable ft {
        hook ingress priority filter
        devices = { lan, wan }
    }
    chain accelerate {
        type filter hook forward priority 10; policy accept;
        meta l4proto tcp ct state established flow add @ft
    }
}
";

/// As `ftp-alg` recommends it: data connections, and nothing else.
const RECIPE: &str = include_str!("../../rules/recipes/nftables-flowtable.nft");

/// Whether `connections`, as conntrack lists them, has an offloaded one that is as `to` says.
fn is_offloaded(connections: &str, to: impl Fn(&str) -> bool) -> bool {
    connections.lines().any(|line| line.contains("[OFFLOAD]") && to(line))
}

fn data_is_offloaded_and_control_is_not(flowtable: &str, configuration: &str) {
    let gateway = gateway_with(Topology::Masquerade, configuration);
    let lab = &gateway.lab;
    if let Err(error) = lab.gateway.nft(flowtable) {
        assert!(error.to_string().contains("flowtable "), "{error}");
        println!("not tried: this kernel has no flowtables (CONFIG_NF_FLOW_TABLE): {error}");
        return;
    }
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    server.put("body", &vec![b'x'; 4 << 20]).unwrap();
    let mut announced = 0;
    // Whether an offloaded data connection was seen. Each lasts for milliseconds; conntrack lists those of a moment.
    let mut is_seen = |mode| {
        announced += 10;
        let transfer = curl(lab, &server, mode);
        let connections = thread::scope(|scope| {
            let download = |_| transfer.download("body").unwrap().len() == 4 << 20;
            let transfers = scope.spawn(move || (0..10).all(download));
            let mut connections = String::new();
            while !transfers.is_finished() {
                connections += &lab.gateway.connections().unwrap();
            }
            assert!(transfers.join().unwrap(), "{mode}");
            connections
        });
        let is_control = |line: &str| line.contains("dport=21 ");
        assert!(!is_offloaded(&connections, is_control), "{mode}: {connections}");
        is_offloaded(&connections, |line| !is_control(line))
    };
    for mode in MODES {
        assert!((0..5).any(|_| is_seen(mode)), "{mode}: {}", lab.gateway.connections().unwrap());
    }
    assert_eq!(gateway.count("pinholes_opened"), announced);
    assert_eq!(gateway.count("errors"), 0);
}

#[test]
fn an_operators_flowtable_has_data_and_no_control_connections() {
    data_is_offloaded_and_control_is_not(FLOWTABLE, NFTABLES);
    let recipe = RECIPE.replace("\"lan0\"", "\"lan\"").replace("\"wan0\"", "\"wan\"");
    data_is_offloaded_and_control_is_not(&recipe, CONNTRACK);
}
