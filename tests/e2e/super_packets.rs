//! Segments that the kernel joins: a client that leaves segmentation to its interface hands the gateway
//! several as one packet, without a checksum. What is rewritten in it must be right on the wire.

use crate::common::*;

const NOOPS: usize = 600;

/// A lab whose client joins, and whose gateway parts and sums before a packet is on the wire.
fn joining() -> Gateway {
    let lab = Lab::build(LabSpec { offloads: true, ..LabSpec::new(Topology::Masquerade) }).unwrap();
    let parts = "tx off sg off tso off gso off";
    lab.gateway.shell(&format!("ethtool -K {} {parts}", lab.server_side())).unwrap();
    lab.server.shell(&format!("ethtool -K eth0 {parts}")).unwrap();
    Gateway::on(lab, "")
}

/// Sends `lines` between many others at once, in pieces as `cut` says, and gives what the server heard of them.
fn said_among_others(gateway: &Gateway, lines: &[&str], cut: Option<&str>) -> Vec<String> {
    let lab = &gateway.lab;
    let server = scripted_server(&lab.server, &json!({}));
    let (inner, outer) = captures(lab);
    let others = "NOOP\r\n".repeat(NOOPS);
    let text = format!("{others}{}\r\n{others}", lines.join("\r\n"));
    let mut send = json!({"send": text});
    if let Some(cut) = cut {
        let at = text.find(cut).unwrap() + cut.len();
        send["cut"] = json!([at]);
        send["pause"] = json!(0.05);
    }
    let count = 2 * NOOPS + lines.len();
    let replies = json!({"reply": true, "count": count});
    let list = port_transfer().split_off(2);
    let steps: Vec<Value> = [login(), vec![send, replies], list].concat();
    talk(lab, steps).ok_in(format!("{lines:?} {cut:?}"));
    let heard = server.lines();
    assert_eq!(heard.iter().filter(|line| *line == "NOOP").count(), 2 * NOOPS);
    let long = "tcp.dstport == 21 && tcp.len > 1448";
    assert!(inner.finish().unwrap().count(long).unwrap() > 0, "no super-packet was built");
    let outer = outer.finish().unwrap();
    assert_eq!(outer.count(long).unwrap(), 0, "{lines:?} {cut:?}");
    assert_eq!(outer.wrong_checksums().unwrap(), [""; 0], "{lines:?} {cut:?}");
    assert_eq!(lab.gateway.invalid_packets().unwrap(), 0);
    assert_eq!(gateway.count("errors"), 0);
    heard
        .into_iter()
        .filter(|line| line.starts_with('P') && line != "PASS lab" || line.starts_with('E'))
        .collect()
}

#[test]
fn an_announcement_in_a_super_packet_or_cut_after_it_is_rewritten() {
    let gateway = joining();
    let external = gateway.lab.gateway.address(V4).to_string().replace('.', ",");
    let port = "PORT 192,168,150,80,14,178";
    let rewritten = format!("PORT {external},14,178");
    // Each rewrite changes the length; what follows is renumbered.
    assert_eq!(said_among_others(&gateway, &[port; 3], None), [&*rewritten; 3]);
    for cut in ["PO", "PORT 192,168,", "14,178", "14,178\r"] {
        assert_eq!(said_among_others(&gateway, &[port], Some(cut)), [&*rewritten], "{cut}");
    }
}
