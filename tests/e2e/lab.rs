//! The lab itself: it drops what nobody admitted, and leaves nothing behind.

use fs::File;

use etherparse::PacketBuilder;
use pcap_file::{
    DataLink,
    pcap::{PcapHeader, PcapPacket, PcapWriter},
};

use crate::common::*;

#[test]
fn without_help_no_data_connection_passes() {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    server.put("a", b"a").unwrap();
    for mode in MODES {
        let address = lab.server_address(V4);
        let transfer = Transfer::new(ClientProgram::Ftplib, &lab.client, &server, address, mode);
        transfer.download("a").unwrap_err();
    }
}

#[test]
fn every_topology_passes_control_connections_and_nothing_else() {
    let all = [FirewallKind::IptablesNft, FirewallKind::Nftables, FirewallKind::IptablesLegacy];
    for &firewall in telling(&all[..1], &all) {
        thread::scope(|scope| {
            for topology in Topology::ALL {
                let spec = LabSpec { firewall, ..LabSpec::new(topology) };
                scope.spawn(move || only_control_connections_pass(spec));
            }
        });
    }
}

fn only_control_connections_pass(spec: LabSpec) {
    let topology = spec.topology;
    let lab = Lab::build(spec).unwrap();
    let listen = |host: &Host, ports: &str| {
        let mut command = host.command("python3");
        let program = "import socket, sys, time\n\
            held = [socket.create_server(('::', int(port)), family=socket.AF_INET6, \
                dualstack_ipv6=True) for port in sys.argv[1:]]\n\
            time.sleep(600)";
        command.args(["-c", program]).args(ports.split(' '));
        let process = host.start(command, "listeners").unwrap();
        host.wait_for_port(4000, Duration::from_secs(60)).unwrap();
        process
    };
    let _listeners = [listen(&lab.server, "21 4000"), listen(&lab.client, "4000")];
    for family in FAMILIES {
        let endpoint = lab.server_endpoint(family);
        assert_eq!(
            connect(&lab.client, &endpoint.ip().to_string(), endpoint.port()),
            "open",
            "{topology} {family}"
        );
        let server = connect_in_vain(&lab.client, &endpoint.ip().to_string(), 4000);
        assert_eq!(server, "silent", "{topology} {family}: the client to the server");
        let inner = lab.client_side() == "lan" || topology == Topology::OnClient;
        let inner = if inner { &lab.client } else { &lab.server };
        let outsider = connect_in_vain(&lab.outsider, &inner.address(family).to_string(), 4000);
        assert_eq!(outsider, "silent", "{topology} {family}: an outsider to the {}", inner.role());
    }
}

/// A packet with the content `content`, and `said` for its TCP checksum if that is something.
fn packet(content: [u8; 2], said: Option<u16>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let packet = PacketBuilder::ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64).tcp(4000, 21, 1, 1000);
    packet.write(&mut bytes, &content).unwrap();
    if let Some(said) = said {
        bytes[CHECKSUM].copy_from_slice(&said.to_be_bytes());
    }
    bytes
}

/// Where a packet of [`packet`] has its checksum.
const CHECKSUM: std::ops::Range<usize> = 36..38;

#[test]
fn a_checksum_of_all_ones_is_as_good_as_zero_and_others_are_wrong() {
    let file = tempfile::NamedTempFile::with_suffix(".pcap").unwrap();
    let header = PcapHeader { datalink: DataLink::RAW, ..PcapHeader::default() };
    let mut writer = PcapWriter::with_header(File::create(file.path()).unwrap(), header).unwrap();
    // With the checksum of all else as its content, a packet has the checksum 0.
    let content = packet([0, 0], None)[CHECKSUM].try_into().unwrap();
    for said in [None, Some(0xffff), Some(0x1234)] {
        let bytes = packet(content, said);
        let packet = PcapPacket::new(Duration::ZERO, u32::try_from(bytes.len()).unwrap(), &bytes);
        writer.write_packet(&packet).unwrap();
    }
    drop(writer);
    let wrong = CaptureAnalysis::open(file.path()).wrong_checksums().unwrap();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].starts_with("frame 3:"), "{wrong:?}");
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
