//! The lab itself: it drops what nobody admitted, and its servers and clients work.
//!
//! The kernel's own helper stands in for `ftp-alg` here, so that a failure in the other end-to-end
//! tests can be told from a failure of the lab.

use ftp_alg::lab::{
    Analysis, Capture, Client, Family, KERNEL_HELPER, Lab, Mode, Outcome, Server, ServerKind,
    Topology, Transfer, matrix,
};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const MODES: [Mode; 2] = [Mode::Active, Mode::Passive];

#[test]
fn without_help_no_data_connection_passes() {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    server.put("a", b"a").unwrap();
    for mode in MODES {
        let address = lab.dialled(Family::V4);
        let transfer = Transfer::new(Client::Ftplib, &lab.client, &server, address, mode);
        transfer.download("a").unwrap_err();
    }
}

#[test]
fn every_client_moves_files_to_and_from_every_server() {
    let lab = Lab::new(Topology::Routed).unwrap();
    lab.gateway.nft(KERNEL_HELPER).unwrap();
    let (cells, strays) = matrix::run(&lab).unwrap();
    let failed = cells.iter().filter(|cell| matches!(cell.outcome, Outcome::Failed(_)));
    assert_eq!(failed.map(ToString::to_string).collect::<Vec<_>>(), [""; 0]);
    assert_eq!(strays, [""; 0]);
}

#[test]
fn captures_on_both_sides_show_the_rewrite() {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    lab.gateway.nft(KERNEL_HELPER).unwrap();
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    server.put("a", b"abc").unwrap();
    let inner = Capture::start(&lab.gateway, lab.client_side(), "tcp").unwrap();
    let outer = Capture::start(&lab.gateway, lab.server_side(), "tcp").unwrap();
    let address = lab.dialled(Family::V4);
    let transfer = Transfer::new(Client::Curl, &lab.client, &server, address, Mode::Active);
    assert_eq!(transfer.download("a").unwrap(), b"abc");
    let (inner, outer) = (inner.finish().unwrap(), outer.finish().unwrap());
    let announced = |analysis: &Analysis| analysis.announcements().unwrap().join("; ");
    assert!(announced(&inner).starts_with("PORT 192,168,150,80,"), "{}", announced(&inner));
    assert!(announced(&outer).starts_with("PORT 198,51,100,1,"), "{}", announced(&outer));
    for side in [inner, outer] {
        assert_eq!(side.blemishes().unwrap(), [""; 0]);
    }
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0);
}

#[test]
fn a_port_scan_finds_what_listens() {
    let lab = Lab::new(Topology::PublishedServer).unwrap();
    let _server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    for family in FAMILIES {
        let found = lab.third.scan(lab.gateway.address(family), "1-65535").unwrap();
        assert_eq!(found, [21], "{family}");
    }
}

#[test]
fn nothing_is_left_behind() {
    let lab = Lab::new(Topology::Routed).unwrap();
    let server = Server::start(ServerKind::PureFtpd, &lab.server).unwrap();
    let (namespace, directory) = (lab.server.namespace().to_owned(), lab.directory().to_owned());
    let gone = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _held = (lab, server);
        panic!("as a failing test would");
    }));
    assert!(gone.is_err());
    assert!(!std::path::Path::new("/run/netns").join(namespace).exists());
    assert!(!directory.exists());
}
