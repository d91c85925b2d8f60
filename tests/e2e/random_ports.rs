//! Masquerading that chooses source ports at random: the port that the server sees is not the client's.

use crate::{common::*, situations::lab_that_masquerades};

const PORT: u16 = 3762;

/// Whether the server saw another source port than the client's own, in one of the control connections at least.
fn are_ports_translated(connections: &str) -> bool {
    let fields = |line: &str, key: &str| -> Vec<String> {
        let values = line.split_whitespace().filter_map(|field| field.strip_prefix(key));
        values.map(str::to_owned).collect()
    };
    let mut control = connections.lines().filter(|line| line.contains(" dport=21 "));
    control.any(|line| fields(line, "sport=")[0] != fields(line, "dport=")[1])
}

/// Real clients, and sessions on the fast path that all announce the same port.
#[test]
fn transfers_work_where_source_ports_are_random() {
    let gateway = Gateway::on(lab_that_masquerades("masquerade fully-random"), FAST_PATH);
    let lab = &gateway.lab;
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    let address = lab.server_address(V4);
    for client in [ClientProgram::Curl, ClientProgram::Lftp] {
        for mode in [Mode::Active, Mode::Passive] {
            let transfer = Transfer::new(client, &lab.client, &server, address, mode);
            let name = format!("{client:?}-{mode}");
            let body: Vec<u8> = name.bytes().cycle().take(60_000).collect();
            if let Err(error) = transfer.exchange(&server, &name, &body) {
                panic!("{client} {mode}: {error}: {}", gateway.daemon.log());
            }
        }
    }
    assert!(gateway.count("pinholes_used") >= 8);
    let connections = lab.gateway.connections().unwrap();
    assert!(are_ports_translated(&connections), "{connections}");

    drop(server);
    let _server = scripted_server(&lab.server, &json!({"body": "here it is\r\n"}));
    play_sessions(&gateway, PORT, 3, "random ports");
    let fast_path = fast_path(&gateway.daemon);
    assert!(fast_path["lines"].as_u64().unwrap() > 0 || !has_tcx(), "{fast_path}");
    gateway.assert_tidy();
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0);
}
