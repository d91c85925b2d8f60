//! Packets that the daemon sends: which way they take, and how an operator's rules see them.

use std::net::IpAddr;

use ftp_alg::kernel::{
    RuleParameters,
    inject::Injector,
    table::{Commits, Table},
};

use super::lab::*;

/// Other mark bits than the default ones as well.
#[test]
fn injected_packets_take_the_route_of_their_connection() {
    for parameters in
        [RuleParameters::default(), RuleParameters::new(&[21], 2100, 1, 0x10, 0x4000_0011)]
    {
        let lab = Lab::new();
        let _table = lab.on_gateway(|| Table::install(&parameters, &Commits::default()).unwrap());
        let mut injector = lab.on_gateway(|| Injector::new(&parameters).unwrap());
        let injected = parameters.mask();
        lab.gateway_sh(&format!(
            "nft 'table inet seen {{ chain out {{ type filter hook output priority 0; \
             meta l4proto tcp meta mark {injected} ct state untracked counter; }}; }}'"
        ));
        let mut sent = 0;
        for (version, from, external, to) in
            [("-4", CLIENT, EXTERNAL, SERVER), ("-6", CLIENT6, EXTERNAL6, SERVER6)]
        {
            let packet = segment(ip(external), ip(to), b"");
            let mut send = |from: &str, mark| injector.inject(&packet, ip(from), mark).is_ok();
            for rule in ["fwmark 0x0800/0x0f00".to_owned(), format!("from {from}")] {
                assert!(send(from, 0x0800) && send(from, 0));
                lab.gateway_sh(&format!("ip {version} rule add {rule} unreachable priority 10"));
                let by_mark = rule.starts_with("fwmark");
                assert!(!send(from, 0x0800), "{rule}");
                assert_eq!(send(from, 0), by_mark, "{rule}");
                assert!(send(external, 0), "{rule}");
                lab.gateway_sh(&format!("ip {version} rule del {rule} unreachable priority 10"));
                sent += 3 + u32::from(by_mark);
            }
        }
        let seen = lab.gateway_sh("nft list table inet seen");
        assert!(seen.contains(&format!("packets {sent} ")), "{sent}: {seen}");
        assert!(injector.inject(b"no packet", ip(CLIENT), 0).is_err());
    }
}

/// A packet with the addresses that its recipient knows.
pub fn segment(from: IpAddr, to: IpAddr, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            etherparse::PacketBuilder::ipv4(from.octets(), to.octets(), 64)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            etherparse::PacketBuilder::ipv6(from.octets(), to.octets(), 64)
        }
        _ => panic!("two families"),
    };
    builder.tcp(1025, 21, 7, 1000).ack(8).write(&mut packet, payload).unwrap();
    packet
}
