//! What no dialogue shows: the room for events, and the flags of resegmented packets.

use super::{
    events::{Events, MAX_EVENTS},
    *,
};
use crate::{
    packet::{Header, HeaderEdit, Packet, Seq, build_segment, flags},
    session::TransferVerb,
};

#[test]
fn transfers_for_whose_events_there_is_no_room_are_counted() {
    let transfer = |session| Event {
        session,
        client: "192.168.150.80:1035".parse().unwrap(),
        server: "203.0.113.9:21".parse().unwrap(),
        user: None,
        kind: EventKind::of_transfer(Box::new(Transfer::new(TransferVerb::Retr, None))),
    };
    let mut events = Events::default();
    (0..MAX_EVENTS as u64 + 3).for_each(|session| events.push(transfer(session)));
    let (stored, omitted) = events.replace(Vec::new());
    assert_eq!((stored.len(), omitted), (MAX_EVENTS, OmittedEvents { all: 3, ended_transfers: 3 }));
    // A session leaves room for others.
    let mut events = Events::default();
    (0..2 * MAX_EVENTS).for_each(|_| events.push(transfer(1)));
    events.push(transfer(2));
    assert_eq!(events.stored().last().map(|event| event.session), Some(2));
}

#[test]
fn segments_carry_the_flags_of_the_super_packet() {
    let mut packet = Vec::new();
    let [source, destination] =
        ["192.168.150.80:1035", "203.0.113.9:21"].map(|end| end.parse().unwrap());
    let header =
        Header { source, destination, seq: Seq(7), ack: Seq(9), window: 9, flags: flags::ACK };
    build_segment(&header, &[b'x'; 1200], &mut packet);
    let packet = Packet::parse(&packet).unwrap();
    let control = flags::ACK | flags::PSH | flags::FIN | flags::URG | flags::CWR;
    let changed = [b'y'; 1100];
    let header = HeaderEdit { seq: Seq(100), ack: Seq(9), flags: control, window: 9, urgent: 3 };
    let parts = packets::resegment(&packet, &header, &changed, 536, Some);
    let seen: Vec<_> = parts
        .iter()
        .map(|part| {
            let part = Packet::parse(part).unwrap();
            assert!(part.checksum_is_valid());
            (part.seq().0, part.payload().len(), part.flags(), part.urgent())
        })
        .collect();
    let (first, last) = (flags::URG | flags::CWR, flags::PSH | flags::FIN);
    assert_eq!(
        seen,
        [
            (100, 536, flags::ACK | first, Some(3)),
            (636, 536, flags::ACK, None),
            (1172, 28, flags::ACK | last, None),
        ]
    );
    assert_eq!(packets::resegment(&packet, &header, &[], 536, Some).len(), 1);
}
