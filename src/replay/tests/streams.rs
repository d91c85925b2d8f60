//! Tests of streams of packets: what is noted while they are played, and memory.

use super::*;

#[test]
fn logins_and_encryption_are_noted() {
    let talk = Talk::of(&[(CLIENT, "AUTH TLS\r\n"), (SERVER, "234 go\r\n")]);
    let (first, _) = played(&talk.capture(&[])).unwrap();
    let text =
        |(position, event): &(FramePosition, Event)| (position.frame, event.session, event.text());
    let rows: Vec<_> = first.session_rows.iter().map(text).collect();
    let ends = "192.168.150.80:1035 -> 203.0.113.9:21";
    assert_eq!(rows[0], (7, 1, format!("{ends}: logged in: joe")), "{rows:?}");
    assert_eq!(rows.len(), 1, "after a login it may be in a file: {rows:?}");
    let lines = [(SERVER, "220 ready\r\n"), (CLIENT, "AUTH TLS\r\n"), (SERVER, "234 go\r\n")];
    let handshake = "\x16\x03\x01\x00\x01\x01";
    let records = [(CLIENT, handshake), (SERVER, handshake)];
    let talk = Talk::without_login(&[&lines[..], &records].concat());
    let (second, _) = played(&talk.capture(&[])).unwrap();
    let rows: Vec<_> = second.session_rows.iter().map(text).collect();
    assert_eq!((rows.len(), rows[0].0, second.summary.encrypted), (1, 7, 1), "{rows:?}");
    assert!(rows[0].2.starts_with(&format!("{ends}: encrypted: ")), "{rows:?}");
}

/// Each connection has a segment with data, and behind a gap one that waits.
#[test]
fn connections_and_queued_segments_are_bounded() {
    let mut player = Player::<Vec<u8>>::new(Policy::default(), SimulatedNat::default());
    player.begin_capture();
    let mut frame = 0;
    for client in 0..70_000u32 {
        let source = (10 << 24 | client).to_be_bytes();
        for (seq, payload) in [(100, &[b'x'; 300][..1]), (5000, &[b'x'; 300])] {
            let mut data = Vec::new();
            PacketBuilder::ipv4(source, [203, 0, 113, 9], 64)
                .tcp(1035, 21, seq, 512)
                .ack(1)
                .write(&mut data, payload)
                .unwrap();
            frame += 1;
            let time = Duration::from_secs(1);
            let link = Some(capture::LinkType::Raw);
            player.handle_record(&capture::Record { frame, time, link, data: &data }).unwrap();
        }
        player.report.take_notes();
        let (connections, bytes) = (player.connections.len(), player.queued_bytes);
        assert!(connections <= 1 << 16, "{connections}");
        assert!(bytes <= 16 << 20, "{bytes}");
    }
    player.finish().unwrap();
}
