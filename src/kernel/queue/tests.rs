//! What is read of a packet, and what the kernel does with the verdicts that are sent.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[test]
fn packets_that_are_missing_are_counted_by_their_numbers() {
    assert_eq!([count_between(0, 1), count_between(1, 2), count_between(2, 5)], [0, 0, 2]);
    assert_eq!(count_between(u32::MAX, 0), 0);
}

#[test]
fn the_row_of_a_queue_is_read() {
    let table = " 2100  27402     9 2 65531     3     4       58  1\n  210   1 0 2 0 0 0 0 1\n";
    let row = find_row(table, 2100).unwrap();
    assert_eq!((row.port, row.waiting, row.dropped), (27402, 9, 7));
    assert!(find_row(table, 2101).is_none());
    assert!(find_row("2100 x", 2100).is_none());
}

/// A message of Linux 6.18 with a forwarded packet of 53 bytes, the last of them an `x`.
const RECORDED: &str = "\
    79000000000300000000000000000000020008340b00010000000002080002000800050000000002\
    080006000000000310000900000600003e0f9080bf7a000039000a0045000035310d40003f063eab\
    0a000002c0000209b1010015d19332784262f1ef8018003ff72f00000101080aa7eac0e31476d480\
    78";

fn packet_message() -> Vec<u8> {
    data_encoding::HEXLOWER.decode(RECORDED.as_bytes()).unwrap()
}

fn parse_all(bytes: &[u8]) -> Vec<QueuePacket<'_>> {
    let parsed = Messages::new(bytes).filter_map(|message| parse(&message));
    parsed.map(|(packet, _)| packet).collect()
}

proptest! {
    #[test]
    fn damaged_packet_messages_do_not_panic(at in 0usize..121, value: u8, cut in 0usize..122) {
        let mut bytes = packet_message();
        if let Some(byte) = bytes.get_mut(at) { *byte = value; }
        bytes.truncate(cut);
        parse_all(&bytes);
    }
}

/// The fate of packets, by a model of nfqnl_recv_verdict() and nfqnl_recv_verdict_batch().
#[derive(Default)]
struct Kernel {
    waiting: VecDeque<u32>,
    fates: BTreeMap<u32, (u32, Option<Vec<u8>>)>,
    marks: BTreeMap<u32, Option<u32>>,
    batches: usize,
    /// Verdicts on packets that did not wait.
    refused: usize,
}

impl Kernel {
    fn take(&mut self, pending: &mut PendingVerdicts) {
        pending.close_run();
        for message in Messages::new(&pending.out) {
            assert_eq!(message.body.get(2..4), Some(&2100_u16.to_be_bytes()[..]));
            let header = message.attributes().first(libc::NFQA_VERDICT_HDR as u16).unwrap();
            let number = |at: usize| u32::from_be_bytes(*header[at..].first_chunk().unwrap());
            let (verdict, id) = (number(0), number(4));
            let payload = message.attributes().first(libc::NFQA_PAYLOAD as u16);
            let mark = message.attributes().first(libc::NFQA_MARK as u16);
            let mark = mark.map(|mark| u32::from_be_bytes(*mark.first_chunk().unwrap()));
            let is_batch = i32::from(message.kind & 0xff) == libc::NFQNL_MSG_VERDICT_BATCH;
            self.batches += usize::from(is_batch);
            let is_meant = |waiting: u32| match is_batch {
                true => id.wrapping_sub(waiting).cast_signed() >= 0,
                false => id == waiting,
            };
            let before = self.waiting.len();
            self.waiting.retain(|waiting| {
                if is_meant(*waiting) {
                    self.fates.insert(*waiting, (verdict, payload.map(<[u8]>::to_vec)));
                    self.marks.insert(*waiting, mark);
                }
                !is_meant(*waiting)
            });
            self.refused += usize::from(self.waiting.len() == before);
        }
        pending.out.clear();
    }

    fn was(&self, id: u32) -> Option<char> {
        self.fates.get(&id).map(|fate| match fate {
            (0, None) => 'd',
            (1, None) => 'a',
            (1, Some(payload)) if payload == b"new" => 'r',
            other => panic!("{other:?}"),
        })
    }
}

fn decision(name: char) -> QueueVerdict<'static> {
    match name {
        'a' => QueueVerdict::Accept,
        'd' => QueueVerdict::Drop,
        _ => QueueVerdict::Replace(b"new"),
    }
}

/// What the kernel does with these packets, which are read and get verdicts one after the other: number, verdict and mark. A
/// number that could not be read has the decision `-`.
fn with_verdicts(packets: &[(u32, char, Option<u32>)]) -> Kernel {
    let (mut pending, mut kernel) = (PendingVerdicts::new(2100), Kernel::default());
    for &(id, name, mark) in packets {
        kernel.waiting.push_back(id);
        if name == '-' {
            pending.note_unreadable();
            continue;
        }
        pending.note_read(id);
        pending.set_verdict(id, decision(name), mark).unwrap();
    }
    kernel.take(&mut pending);
    kernel
}

#[test]
fn a_run_of_accepts_is_one_message_and_all_else_has_its_own() {
    let packets: Vec<_> = (7..).zip("aaadaaraa".chars()).map(|(id, n)| (id, n, None)).collect();
    let kernel = with_verdicts(&packets);
    let fates: String = (7..16).filter_map(|id| kernel.was(id)).collect();
    assert_eq!((fates.as_str(), kernel.batches, kernel.refused), ("aaadaaraa", 3, 0));
}

#[test]
fn a_number_that_is_unknown_or_does_not_rise_ends_the_runs() {
    for (numbers, verdicts, waiting) in
        [(&[1, 2, 3, 4, 5, 6][..], "aa-aaa", &[3][..]), (&[5, 6, 4, 7], "aada", &[])]
    {
        let packets = numbers.iter().zip(verdicts.chars()).map(|(id, name)| (*id, name, None));
        let kernel = with_verdicts(&packets.collect::<Vec<_>>());
        let fates: String = numbers.iter().map(|id| kernel.was(*id).unwrap_or('-')).collect();
        assert_eq!((&*fates, kernel.batches), (verdicts, 0));
        assert_eq!(kernel.waiting, waiting);
    }
}

proptest! {
    /// Whatever the verdicts and their order, over several batches and a wrap of the numbers, each packet gets its own
    /// verdict and mark.
    #[test]
    fn each_packet_gets_its_own_verdict(
        first in prop_oneof![Just(1_u32), Just(u32::MAX - 20), any::<u32>()],
        steps in proptest::collection::vec((0u32..3, 0usize..4, prop::char::range('a', 'e')), 0..200),
    ) {
        let (mut pending, mut kernel) = (PendingVerdicts::new(2100), Kernel::default());
        let mut next = first;
        let mut open: Vec<u32> = Vec::new();
        let mut wanted = BTreeMap::new();
        for (gap, place, name) in steps {
            match name {
                'e' => kernel.take(&mut pending),
                'b' | 'c' => {
                    // A packet may be read long after the kernel queued others, and the kernel drops some.
                    next = next.wrapping_add(gap + 1);
                    kernel.waiting.push_back(next);
                    pending.note_read(next);
                    open.push(next);
                }
                _ if open.is_empty() => {}
                name => {
                    let id = open.remove(place.saturating_sub(2).min(open.len() - 1));
                    let name = if gap == 2 { 'r' } else { name };
                    let mark = (gap == 1).then_some(place as u32);
                    pending.set_verdict(id, decision(name), mark).unwrap();
                    wanted.insert(id, (name, mark));
                }
            }
        }
        kernel.take(&mut pending);
        prop_assert_eq!(kernel.refused, 0);
        for (id, (name, mark)) in &wanted {
            prop_assert_eq!(kernel.was(*id), Some(*name), "packet {}", id);
            prop_assert_eq!(kernel.marks.get(id), Some(mark), "packet {}", id);
        }
        prop_assert_eq!(kernel.waiting.make_contiguous(), &open[..]);
    }
}
