//! Which pinhole an announcement plans, and what is announced.

use super::*;
use crate::policy::KnownServer;

/// The pinhole for a 227 of `announced` by the server 10.0.0.5, whose clients use the address `dialled`: arrival
/// address, and announced address.
fn replaced_foreign(dialled: &str, announced: &str) -> (IpAddr, IpAddr) {
    let end = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 21);
    let server = end("10.0.0.5");
    let translation = Translation {
        server_external: end(dialled),
        ..Translation::identity(end("192.0.2.20"), server)
    };
    let known = KnownServer { replace_foreign_address: true, ..KnownServer::new(server.ip()) };
    let policy = Policy { servers: [known].into(), ..Policy::default() };
    let announced = SocketAddr::new(announced.parse().unwrap(), 5000);
    let (Opening { ends, .. }, address) =
        permit(AnnouncementKind::Pasv, announced, &translation, &policy).unwrap();
    assert_eq!(ends.target, SocketAddr::new(server.ip(), 5000));
    (ends.arrival.ip(), address)
}

#[test]
fn a_public_address_is_announced_if_the_control_address_is_internal() {
    let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
    for (dialled, announced, announced_address) in [
        // Behind a cloud's 1:1 NAT, the gateway sees only the private address.
        ("10.0.0.5", "198.51.100.77", "198.51.100.77"),
        ("10.0.0.5", "172.17.0.2", "10.0.0.5"),
        ("10.0.0.5", "0.0.0.0", "10.0.0.5"),
        ("10.0.0.5", "224.0.0.1", "10.0.0.5"),
        ("10.0.0.5", "255.255.255.255", "10.0.0.5"),
        ("203.0.113.9", "198.51.100.77", "203.0.113.9"),
        ("203.0.113.9", "10.0.0.6", "203.0.113.9"),
    ] {
        assert_eq!(
            replaced_foreign(dialled, announced),
            (ip(dialled), ip(announced_address)),
            "{dialled}"
        );
    }
}

#[test]
fn internal_and_public_addresses_are_distinguished() {
    let internal = "0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.1 127.0.0.1 169.254.1.1 172.31.0.1 192.168.1.1 \
                    224.0.0.1 255.255.255.255 :: ::1 fd00::1 fe80::1 ff02::1";
    let public = "100.63.0.1 100.128.0.1 172.32.0.1 198.51.100.1 2001:db8::1";
    for (addresses, expected) in [(internal, true), (public, false)] {
        for address in addresses.split(' ') {
            assert_eq!(is_internal(address.parse().unwrap()), expected, "{address}");
        }
    }
}
