//! Hands the engine a known number of packets and does nothing else, for a tool that counts instructions. `make
//! bench-instructions` runs this under callgrind with N and with 2N packets. Unlike times, the number of instructions
//! does not depend on the machine and its load.

use std::{hint::black_box, time::Instant};

use ftp_alg_core::engine::{Released, Standalone, Verdict};

use super::conversation::{
    ACTIVE, BYPASSABLE, Conversation, GrantingKernel, PORT, arrival, gateway,
};

/// Packets of a connection before its first measured line.
const LOGIN: usize = 6;

/// Hands an engine `count` times the counted packets of a `kind`, by [`counted`], in batches of `size`.
///
/// Kinds with several lines use `size` connections, so that a batch has the same packet of each connection. Each
/// `PORT` announces another port, as clients do.
pub fn run(kind: &str, count: usize, size: usize) {
    let script = |lines: &[(&'static str, bool)], times: usize, counted: usize| {
        let line =
            |(at, (line, server)): (usize, &(&'static str, bool))| (*line, *server, at < counted);
        (0..times).flat_map(|_| lines.iter().enumerate().map(line)).collect::<Vec<_>>()
    };
    let split = [(&PORT[..3], false), (&PORT[3..], false), ACTIVE[1], ACTIVE[2], ACTIVE[3]];
    let (connections, lines) = match kind {
        "passing" => (1, script(&BYPASSABLE, count / 2, 2)),
        "spread" => (size, script(&BYPASSABLE, count / 2 / size, 2)),
        "renumbering" => {
            (1, [script(&[ACTIVE[0]], 1, 0), script(&[("", true)], count, 1)].concat())
        }
        "rewriting" => (size, script(&ACTIVE, count / size, 1)),
        "splitting" => (size, script(&split, count / size, 2)),
        _ => panic!("passing, spread, renumbering, rewriting or splitting, not {kind}"),
    };
    let conversations: Vec<Conversation> = (0..connections)
        .map(|at| {
            let mut conversation =
                Conversation::logged_in(&format!("192.168.150.80:{}", 1035 + at));
            for (number, (line, server, _)) in lines.iter().enumerate() {
                let port = at * lines.len() + number;
                let port = format!("{},{}", 10 + port / 156 % 90, 100 + port % 156);
                conversation.send_line(&line.replace("14,178", &port), *server);
            }
            conversation
        })
        .collect();
    let steps = (0..LOGIN).map(|_| false).chain(lines.iter().map(|(.., counted)| *counted));
    let packets: Vec<(&[u8], bool)> = steps
        .enumerate()
        .flat_map(|(at, counts)| {
            conversations.iter().map(move |conversation| (&conversation.packets[at][..], counts))
        })
        .collect();
    let runs = packets.chunk_by(|(_, one), (_, next)| one == next);
    let now = Instant::now();
    let mut gateway = gateway();
    for batch in runs.flat_map(|run| run.chunks(size)) {
        match batch[0].1 {
            true => counted(&mut gateway, now, batch),
            false => take(&mut gateway, now, batch),
        }
        let dropped = |released: &Released| matches!(released.verdict, Verdict::Drop(_));
        assert!(gateway.verdicts().len() == batch.len() && !gateway.verdicts().iter().any(dropped));
    }
}

/// Handles a batch that is counted. The tool starts and stops counting at this function, by its name.
#[inline(never)]
fn counted(gateway: &mut Standalone<GrantingKernel>, now: Instant, batch: &[(&[u8], bool)]) {
    take(black_box(gateway), now, black_box(batch));
}

fn take(gateway: &mut Standalone<GrantingKernel>, now: Instant, batch: &[(&[u8], bool)]) {
    gateway.take(now, batch.iter().map(|(packet, _)| arrival(packet)));
    gateway.take_events();
}
