//! The active gateway loses its power while clients talk, and the other one continues all sessions.

use super::{
    clients::{STAGES, Servers, Stage, Way, assert_all_done, encrypted_client},
    gateways::Pair,
};

/// All ways, with the commands that announce there.
const ALL: [(Way, &[&str]); 3] = [
    (Way::Out, &["PORT", "EPRT", "PASV", "EPSV"]),
    (Way::In, &["PORT", "EPRT", "PASV", "EPSV"]),
    (Way::Six, &["EPRT", "EPSV"]),
];

#[test]
fn all_sessions_and_transfers_survive_a_crash_of_the_active_gateway() {
    let mut pair = Pair::new("nftables");
    let servers = Servers::start(&pair);
    let of = |way, command: &&'static str| STAGES.map(|stage| (way, *command, stage));
    let all = ALL.iter().flat_map(|(way, commands)| commands.iter().flat_map(|one| of(*way, one)));
    let clients = servers.clients(&pair, all);
    let (_server, encrypted) = encrypted_client(&pair);
    pair.wait_until_replicated();
    let at = pair.active();
    let sessions = pair.node(at).daemon.sessions().unwrap();
    assert_eq!(sessions.len(), clients.len() + 1);
    let adjusted = sessions.iter().filter(|session| session["adjusted"] == true).count();
    // Of PORT and EPRT by source NAT.
    assert!(adjusted >= 6, "{sessions:?}");
    pair.crash(at);
    pair.wait_for_role(1 - at, "active");
    encrypted.release().ok();
    assert_all_done(clients);
    let log = pair.node(1 - at).daemon.log();
    let took = format!("took over {} sessions ({adjusted} with", sessions.len());
    assert!(log.contains(&took), "{log}");
}

#[test]
fn expectations_survive_a_crash_of_the_active_gateway() {
    let mut pair = Pair::new("conntrack");
    let servers = Servers::start(&pair);
    let clients = servers.clients(
        &pair,
        [
            (Way::Out, "PORT", Stage::Announced),
            (Way::Out, "PORT", Stage::Idle),
            (Way::In, "PASV", Stage::Announced),
            (Way::In, "PASV", Stage::Running),
        ],
    );
    pair.wait_until_replicated();
    let at = pair.active();
    assert_eq!(pair.node(at).daemon.status().unwrap()["backend"], "conntrack");
    pair.crash(at);
    pair.wait_for_role(1 - at, "active");
    assert_all_done(clients);
}
