//! Transfers in captures, with and without their data connections.

use ftp_alg_core::engine::TransferResult;

use super::*;

const ENDS: [([u8; 4], u16); 2] = [([203, 0, 113, 9], 20), ([192, 168, 150, 80], 3762)];

/// A segment of the data connection, from its initiator or to it.
fn data(from_initiator: bool, seq: u32, payload: &[u8], flags: &str) -> Vec<u8> {
    let [initiator, target] = ENDS;
    let [(source, source_port), (destination, port)] =
        if from_initiator { [initiator, target] } else { [target, initiator] };
    let mut tcp = PacketBuilder::ipv4(source, destination, 64).tcp(source_port, port, seq, 512);
    for flag in flags.chars() {
        tcp = match flag {
            'S' => tcp.syn(),
            'F' => tcp.fin(),
            _ => tcp.ack(501),
        };
    }
    let mut bytes = Vec::new();
    tcp.write(&mut bytes, payload).unwrap();
    bytes
}

/// A download of seven bytes in active mode. The server's last reply comes before the end of the data connection.
fn download(has_data: bool) -> Talk {
    let mut talk = Talk::of(&[
        (CLIENT, PORT),
        (SERVER, "200 ok\r\n"),
        (CLIENT, "RETR /pub/f\r\n"),
        (SERVER, "150 here\r\n"),
    ]);
    let data = [
        data(true, 500, b"", "S"),
        data(false, 900, b"", "SA"),
        data(true, 501, b"1234567", "A"),
        data(true, 508, b"", "FA"),
        data(false, 901, b"", "FA"),
    ];
    let mut data = data.into_iter().filter(|_| has_data);
    talk.packets.extend(data.by_ref().take(4));
    talk.say(SERVER, "226 done\r\n");
    talk.packets.extend(data);
    talk.say(CLIENT, "QUIT\r\n");
    talk
}

#[test]
fn a_transfer_has_its_user_and_its_bytes() {
    let (report, ..) = played(&download(true).capture(&[])).unwrap();
    let [(position, event, transfer)] = &report.transfers[..] else { panic!("{report:?}") };
    assert_eq!(position.frame, 16);
    let line = event.to_string();
    let expected = "transfer #1 joe@192.168.150.80 RETR /pub/f 7 B in 0.0 s: 226";
    assert_eq!((line.as_str(), transfer.result), (expected, TransferResult::Complete));
    assert_eq!(transfer.is_active(), Some(true));
    assert_eq!((report.summary.bytes, report.summary.transfers["complete"]), ([0, 7], 1));
}

#[test]
fn bytes_are_unknown_if_the_data_connection_was_not_captured() {
    let (report, ..) = played(&download(false).capture(&[])).unwrap();
    let [(position, _, transfer)] = &report.transfers[..] else { panic!("{report:?}") };
    assert_eq!((position.frame, transfer.bytes, transfer.code()), (12, None, Some(226)));
    // Without its last packet.
    let (report, ..) = played(&download(true).capture(&[15, 17])).unwrap();
    assert_eq!(report.transfers[0].2.bytes, None);
}

#[test]
fn a_transfer_that_the_capture_does_not_end_is_not_reported() {
    let mut talk = download(false);
    talk.packets.truncate(11);
    let (report, ..) = played(&talk.capture(&[])).unwrap();
    assert!(report.transfers.is_empty());
}

/// A capture of control connections only does not say why a transfer failed.
#[test]
fn a_failed_transfer_has_a_reason_if_data_connections_were_captured() {
    for has_data in [false, true] {
        let mut talk = Talk::of(&[(CLIENT, PORT), (SERVER, "200 ok\r\n")]);
        if has_data {
            talk.packets.push(data(true, 500, b"", "S"));
        }
        talk.say(CLIENT, "RETR /pub/f\r\n");
        talk.say(SERVER, "425 no\r\n");
        let (report, ..) = played(&talk.capture(&[])).unwrap();
        let transfer = &report.transfers[0].2;
        assert_eq!(transfer.result, TransferResult::NoDataConnection);
        let reason = "SYN of 203.0.113.9 seen, no answer from 192.168.150.80:3762";
        assert_eq!(transfer.reason.as_deref(), has_data.then_some(reason));
    }
}
