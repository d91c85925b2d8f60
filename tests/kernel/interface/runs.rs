//! Runs of accepts against the real kernel: what is not accepted in between, or decided later, keeps its own
//! verdict.

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use ftp_alg::kernel::queue::{Queue, QueueCounts, QueueVerdict};

use super::lab::Lab;

const LATER: u8 = 5;
/// How often a queue is opened.
const ROUNDS: usize = 20;

#[test]
fn a_run_of_accepts_covers_no_other_packet() {
    let lab = Lab::new();
    lab.gateway_sh("iptables -I OUTPUT -p udp --dport 7 -j NFQUEUE --queue-num 2100");
    lab.on_gateway(|| {
        let mut queue = Queue::open(2100).unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:7").unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let (is_dropped, is_replaced) = (|number| number % 7 == 3, |number| number % 11 == 9);
        let arrived = || {
            let mut numbers = Vec::new();
            let mut datagram = [0; 9];
            while let Ok(length) = receiver.recv(&mut datagram) {
                numbers.push(datagram[length - 1]);
            }
            numbers
        };
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for number in 0..100 {
            sender.send_to(&[number; 9], "127.0.0.1:7").unwrap();
        }
        let (mut read, mut later) = (0, None);
        while read < 100 {
            let count = queue.receive().unwrap();
            assert!(count > 0, "{read} of 100 packets were queued");
            read += count;
            let (packets, mut verdicts) = queue.batch();
            for packet in packets {
                match *packet.payload.last().unwrap() {
                    LATER => later = Some(packet.id),
                    number if is_dropped(number) => {
                        verdicts.verdict(packet.id, QueueVerdict::Drop, None).unwrap();
                    }
                    number if is_replaced(number) => {
                        let mut other = packet.payload.to_vec();
                        *other.last_mut().unwrap() = number + 100;
                        other[26..28].fill(0); // No checksum.
                        verdicts.verdict(packet.id, QueueVerdict::Replace(&other), None).unwrap();
                    }
                    _ => verdicts.verdict(packet.id, QueueVerdict::Accept, None).unwrap(),
                }
            }
            verdicts.flush().unwrap();
        }
        let wanted = (0..100)
            .filter(|number| *number != LATER && !is_dropped(*number))
            .map(|number| if is_replaced(number) { number + 100 } else { number });
        assert_eq!(arrived(), wanted.collect::<Vec<_>>());
        queue.verdicts().verdict(later.unwrap(), QueueVerdict::Accept, None).unwrap();
        queue.verdicts().flush().unwrap();
        assert_eq!(arrived(), [LATER]);
        queue.receive().unwrap();
        assert_eq!(super::counts(&queue), QueueCounts::default());
        queue.verdicts().verdict(later.unwrap(), QueueVerdict::Accept, None).unwrap(); // the kernel has it no longer
        queue.verdicts().flush().unwrap();
        queue.receive().unwrap();
        assert_eq!(super::counts(&queue), QueueCounts { refused: 1, ..QueueCounts::default() });
    });
}

/// One that nobody reads would pass with the next run of accepts. The kernel counts from 1.
#[test]
fn what_comes_while_a_queue_is_opened_is_read() {
    let lab = Lab::new();
    lab.gateway_sh("iptables -I OUTPUT -p udp --dport 7 -j NFQUEUE --queue-num 2100");
    lab.on_gateway(|| {
        let is_over = AtomicBool::new(false);
        let send = || {
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            while !is_over.load(Ordering::Relaxed) {
                let _ = sender.send_to(b"x", "127.0.0.1:7"); // EPERM where there is no queue
                thread::sleep(Duration::from_micros(20));
            }
        };
        // A child that another test starts has our descriptors from fork to exec, and with them the queue of the round before.
        let open = |_| {
            let queue = Queue::open_with_super_packets(2100).ok();
            if queue.is_none() {
                thread::sleep(Duration::from_millis(20));
            }
            queue
        };
        // Without a panic, which would leave the sender alone.
        let first_read = |_| {
            let mut queue = (0..100).find_map(open)?;
            queue.set_receive_timeout(Duration::from_secs(5)).ok()?;
            queue.wait().ok()?;
            queue.batch().0.next().map(|packet| packet.id)
        };
        let first: Vec<_> = thread::scope(|scope| {
            scope.spawn(send);
            let first = (0..ROUNDS).map(first_read).collect();
            is_over.store(true, Ordering::Relaxed);
            first
        });
        assert_eq!(first, [Some(1); ROUNDS]);
    });
}
