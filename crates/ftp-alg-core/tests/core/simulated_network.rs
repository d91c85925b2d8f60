//! Random dialogues over a bad network (see `support::link` and `support::off_path`): both ends must
//! get what the other sent, with exactly the rewrites that NAT calls for, in bounded time, and nothing may
//! be left over.
//!
//! `FTP_ALG_DIALOGUES` says how many (5,000), `FTP_ALG_SEED` where to start; a failure names its
//! seed, and `FTP_ALG_DIALOGUES=1 FTP_ALG_SEED=n` repeats it.

use std::{
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::support::{
    Rng,
    attacker::attack,
    fast_path::program::Counts,
    ftp::{ServerModel, active, at, crossed_out, eprt, filled, with_blanks},
    link::Link,
    scenario::{NATS, Scenario, hands_over, uses_expectations},
    sim::{Sim, queues::Queueing},
    tcp::{Probe, Settings},
};
use ftp_alg_core::{
    policy::Policy,
    session::Side::{self, Client, Server},
};

const DIALOGUES: u64 = 5_000;
const THREADS: u64 = 2;
const ATTACKS: u64 = 1_000;
/// Refused commands whose client heard the reason, and those whose client heard the server: more than 16 commands were
/// pending, or its window was closed.
static REASONS: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
/// Of the fast path: dialogues of which lines were inspected, lines, those rewritten, pinholes that were opened, those used, and
/// retransmissions; and over IPv6 lines, and those rewritten.
static FAST_PATH: [AtomicUsize; 9] = [const { AtomicUsize::new(0) }; 9];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().unwrap())
}

#[test]
fn every_dialogue_arrives_with_the_expected_rewrites_and_leaves_nothing() {
    let count = number("FTP_ALG_DIALOGUES").unwrap_or(DIALOGUES);
    let first = number("FTP_ALG_SEED").unwrap_or(0);
    let inconsistent = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..THREADS.min(count) {
            let inconsistent = &inconsistent;
            scope.spawn(move || {
                for seed in (first + thread..first + count).step_by(THREADS as usize) {
                    if catch_unwind(AssertUnwindSafe(|| dialogue(seed))).is_err() {
                        eprintln!("FTP_ALG_SEED={seed} FTP_ALG_DIALOGUES=1 repeats this");
                        inconsistent.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let inconsistent = inconsistent.into_inner().unwrap();
    eprintln!("{count} dialogues from seed {first}, {} inconsistent", inconsistent.len());
    let [explained, unexplained] = REASONS.each_ref().map(|count| count.load(Relaxed));
    eprintln!("{explained} refusals by the gateway, {unexplained} by the server");
    let fast_path = FAST_PATH.each_ref().map(|count| count.load(Relaxed));
    eprintln!(
        "fast path: dialogues, lines, rewritten, adjusted, opened, used, retransmissions, over IPv6: lines, rewritten {fast_path:?}"
    );
    let few = count as usize / 100;
    assert!(count < 1000 || fast_path.iter().all(|figure| *figure > few), "{fast_path:?}");
    assert!(unexplained <= 10 + explained / 100, "{unexplained} of {explained}");
    assert!(inconsistent.is_empty(), "seeds of inconsistent dialogues: {inconsistent:?}");
}

/// No segments of a client have its server execute what was not inspected. `FTP_ALG_ATTACKS` says how many attacks (1,000)
/// there are, and `FTP_ALG_SEED` where to start.
#[test]
fn no_attack_on_the_queue_makes_a_server_execute_an_announcement() {
    assert_no_attack_succeeds(0.0);
}

/// The client says something else at the numbers of a line that was read before the daemon was killed.
#[test]
fn nor_does_one_while_the_daemon_crashes() {
    assert_no_attack_succeeds(0.1);
}

fn assert_no_attack_succeeds(crashes: f64) {
    let count = number("FTP_ALG_ATTACKS").unwrap_or(ATTACKS);
    let first = number("FTP_ALG_SEED").unwrap_or(0);
    let succeeds = |seed: &u64| !attack(*seed, crashes).is_empty();
    let seeds: Vec<u64> = (first..first + count).filter(succeeds).collect();
    assert!(seeds.is_empty(), "seeds of attacks that succeed: {seeds:?}");
}

/// One dialogue, and perhaps another between the same endpoints.
fn dialogue(seed: u64) {
    let mut rng = Rng::new(seed);
    let scenario = scenario(&mut rng, seed);
    let nat = scenario.nat;
    let mut sim = Sim::new(scenario);
    talk(&mut sim, &mut rng);
    if rng.chance(0.2) {
        sim.connect_again();
        talk(&mut sim, &mut rng);
    }
    if !nat.hides_client() && !nat.hides_server() {
        assert!(sim.kernel.opened.iter().all(|p| p.arrival == p.target));
    }
    sim.assert_nothing_left();
    if sim.hands_over() {
        let Counts { inspected, rewritten, adjusted, opened, admitted, retransmitted, .. } =
            sim.kernel.program.counts;
        let dialogues = usize::from(inspected > 0);
        let figures = [dialogues, inspected, rewritten, adjusted, opened, admitted, retransmitted];
        let over_ipv6 = [inspected, rewritten]
            .map(|count| if sim.translation.client.is_ipv6() { count } else { 0 });
        for (sum, figure) in FAST_PATH.iter().zip(figures.into_iter().chain(over_ipv6)) {
            sum.fetch_add(figure, Relaxed);
        }
    }
}

/// What the client says on one connection, and what of it the server is to hear.
fn talk(sim: &mut Sim, rng: &mut Rng) {
    let t = sim.translation;
    let mut server = ServerModel::new(t.server.ip(), 20_000);
    server.refuses_active = rng.chance(0.2);
    let reads_zeros = rng.chance(0.5);
    let greeting = if reads_zeros { "220 ProFTPD Server\r\n" } else { "220 ready\r\n" };
    sim.write(Server, greeting.as_bytes());
    while sim.client.received() < greeting.len() {
        assert!(sim.step(), "no greeting");
    }

    let mut said = String::new();
    let mut expected = Vec::new();
    let unchanged = |line: &str| (line.to_owned(), line.to_owned());
    for line in ["USER joe\r\n", "PASS x\r\n"] {
        write_in_pieces(sim, rng, line);
        sim.converse(&mut server);
        expected.push(unchanged(line));
    }
    // Lines that recur, one after the other.
    let is_idle = sim.hands_over() && rng.chance(0.7);
    server.pauses = is_idle;
    let pipelines = !is_idle && rng.chance(0.5);
    let mut filled = 0;
    let mut used = Vec::new();
    let most = if is_idle || rng.chance(0.1) { 25 } else { 7 };
    for _ in 0..1 + rng.below(most) {
        let (line, heard) = if is_idle && rng.chance(0.8) {
            recurring(rng, t.client, t.client_external)
        } else {
            command(rng, t.client, t.client_external)
        };
        said += &line;
        expected.push((line, heard));
        for _ in 0..if pipelines { rng.below(4) } else { 0 } {
            said += "TYPE I\r\n";
            filled += 1;
            expected.push(unchanged("TYPE I\r\n"));
        }
        // At most so many pending that no session's limit is met.
        if !pipelines || (expected.len() - filled) % 5 == 0 {
            let said = std::mem::take(&mut said);
            if is_idle && rng.chance(0.9) {
                sim.write(Client, said.as_bytes());
            } else {
                write_in_pieces(sim, rng, &said);
            }
            sim.converse(&mut server);
            if sim.hands_over() {
                look_at_pinholes(sim, rng, &mut used);
            }
        }
    }
    write_in_pieces(sim, rng, &said);
    sim.converse(&mut server);
    part(sim, rng, &mut server, &mut expected);

    let is_heard = |(heard, (said, rewritten)): (&String, &(String, String))| {
        *heard == whole(sim, reads_zeros, rewritten, said)
            || names_another_port(sim, reads_zeros, heard, said, rewritten)
    };
    let all = server.lines.len() == expected.len();
    let heard = all && server.lines.iter().zip(&expected).all(is_heard);
    assert!(heard, "{:#?}, not {expected:#?}: {}", server.lines, sim.summary());
    assert_replies(sim, &server, t.server, t.server_external);
    for side in [Client, Server] {
        assert!(sim.end(side).is_quiet() && sim.end(side).peer_has_closed(), "{}", sim.summary());
    }
}

/// A data connection comes, or none does, and what is open is what is held.
fn look_at_pinholes(sim: &mut Sim, rng: &mut Rng, used: &mut Vec<(IpAddr, SocketAddr)>) {
    if rng.chance(0.3) {
        used.extend(sim.use_pinhole(rng));
    }
    if rng.chance(0.2) {
        // What is over is closed within nine seconds.
        sim.advance(Duration::from_secs(*rng.pick(&[10, 10, 40])));
        sim.settle();
        sim.assert_pinholes_agree(used);
    }
}

/// What is heard of `rewritten` in the place of what was `said`, by a policy that may keep its length.
fn whole(sim: &Sim, reads_zeros: bool, rewritten: &str, said: &str) -> String {
    let keeps_length = reads_zeros && sim.daemon.policy.preserves_length;
    if keeps_length { filled(rewritten, said.len()) } else { rewritten.to_owned() }
}

/// Whether `heard` names another external port that leads where `said` points: one that is written with as many bytes, or
/// any if that of `rewritten` was taken.
fn names_another_port(
    sim: &Sim,
    reads_zeros: bool,
    heard: &str,
    said: &str,
    rewritten: &str,
) -> bool {
    let forms = |at| [whole(sim, reads_zeros, &active(at), said), active(at), eprt(at)];
    let is = |line: &str, at| forms(at).iter().any(|form| form == line);
    let opened = || sim.kernel.opened.iter();
    let is_taken = opened().any(|p| is(rewritten, p.arrival) && !is(said, p.target));
    (heard.len() == said.len() || is_taken)
        && opened().any(|p| is(heard, p.arrival) && is(said, p.target))
}

/// One end closes first, or both at once.
fn part(
    sim: &mut Sim,
    rng: &mut Rng,
    server: &mut ServerModel,
    expected: &mut Vec<(String, String)>,
) {
    if rng.chance(0.2) {
        sim.close_both();
    } else {
        expected.push(("QUIT\r\n".to_owned(), "QUIT\r\n".to_owned()));
        write_in_pieces(sim, rng, "QUIT\r\n");
        if rng.chance(0.3) {
            sim.close(Client);
        }
        sim.converse(server);
        if !sim.server.peer_has_closed() {
            sim.close(Client);
        }
    }
    sim.converse(server);
}

fn scenario(rng: &mut Rng, seed: u64) -> Scenario {
    let rough = rng.chance(0.7);
    let some =
        |rng: &mut Rng, most: f64| if rough { most * rng.below(100) as f64 / 100.0 } else { 0.0 };
    let settings = |rng: &mut Rng| Settings {
        isn: match rng.below(3) {
            0 => 0u32.wrapping_sub(rng.below(400) as u32),
            _ => rng.next() as u32,
        },
        mss: *rng.pick(&[536, 1220, 1448]),
        nagle: rng.chance(0.3),
        timestamps: rng.chance(0.5),
        sack: rng.chance(0.7),
        window: *rng.pick(&[2000, 30_000, 65_535]),
        window_scale: None,
        reslices: rng.chance(0.5),
        ecn: rng.chance(0.3),
        ip_options: rng.chance(0.2),
        probe: *rng.pick(&[Probe::Empty, Probe::Next, Probe::Garbage]),
    };
    let scenario = Scenario {
        nat: *rng.pick(&NATS),
        v6: rng.chance(0.4),
        policy: Policy { preserves_length: rng.chance(0.5), ..Policy::default() },
        client: settings(rng),
        server: settings(rng),
        link: Link {
            delay: 1 + rng.below(20_000) as u64,
            loss: some(rng, 0.2),
            duplicate: some(rng, 0.1),
            reorder: some(rng, 0.2),
            damage: some(rng, 0.1),
            split: if rng.chance(0.3) { 0.3 } else { 0.0 },
            merge: if rng.chance(0.3) { 0.5 } else { 0.0 },
            congestion: some(rng, 0.1),
        },
        queues_acks: rng.chance(0.5),
        crashes: *rng.pick(&[0.0, 0.0, 0.01, 0.2]),
        strays: if rng.chance(0.3) { 0.1 } else { 0.0 },
        is_patient: seed % 2 == 1,
        queueing: queueing(&mut Rng::new(seed ^ 7)),
        hands_over: hands_over(seed),
        uses_expectations: uses_expectations(seed),
        interfaces: [1, 1 + seed as u32 % 3],
        // A pair has no fast path.
        is_pair: hands_over(seed).is_none() && Rng::new(seed ^ 15).chance(0.5),
        seed,
    };
    match scenario.hands_over {
        Some(_) => calmed(scenario, &mut Rng::new(seed ^ 13)),
        None => scenario,
    }
}

/// One in which less than in others keeps connections from being handed over.
fn calmed(mut scenario: Scenario, rng: &mut Rng) -> Scenario {
    let Scenario { client, server, link, .. } = &mut scenario;
    if rng.chance(0.8) {
        for end in [client, server] {
            (end.ip_options, end.ecn) = (false, false);
        }
        (link.split, link.merge) = (0.0, 0.0);
    }
    scenario.queues_acks &= rng.chance(0.2);
    scenario
}

fn queueing(rng: &mut Rng) -> Queueing {
    if rng.chance(0.2) {
        return Queueing::AT_ONCE;
    }
    Queueing {
        batch: *rng.pick(&[1, 2, 4, 16]),
        wake: *rng.pick(&[10, 300, 10_000]),
        stage: *rng.pick(&[10, 300, 10_000]),
        away: *rng.pick(&[0, 100_000]),
    }
}

/// What the client says, and what the server is to hear.
fn command(rng: &mut Rng, own: SocketAddr, seen: SocketAddr) -> (String, String) {
    let port = 1024 + rng.below(60_000) as u16;
    let low = 1 + rng.below(1000) as u16;
    let unchanged = |line: &str| (line.to_owned(), line.to_owned());
    let refused = |line: String| (line.clone(), crossed_out(&line));
    match rng.below(10) {
        0 | 1 => (active(at(own, port)), active(at(seen, port))),
        2 => (eprt(at(own, port)), eprt(at(seen, port))),
        3 => refused(active(at(own, low))),
        4 => refused(eprt(at(
            if own.is_ipv4() { "10.99.99.99:1" } else { "[2001:db8:5::5]:1" }.parse().unwrap(),
            port,
        ))),
        5 => unchanged("PASV\r\n"),
        6 => unchanged("EPSV\r\n"),
        7 => unchanged("LIST\r\n"),
        8 => unchanged("STAT\r\n"),
        _ => unchanged(rng.pick::<&str>(&["NOOP\r\n", "PO\r\n", "EPR\r\n", "\r\n", " PWD \r\n"])),
    }
}

/// What the fast path may inspect.
fn recurring(rng: &mut Rng, own: SocketAddr, seen: SocketAddr) -> (String, String) {
    let port = *rng.pick(&[1025, 2201, 25_700, 34_567, 65_535]);
    let unchanged = |line: &str| (line.to_owned(), line.to_owned());
    match rng.below(8) {
        0 | 1 => (active(at(own, port)), active(at(seen, port))),
        2 if own == seen => (eprt(at(own, port)), eprt(at(seen, port))),
        3 | 4 => unchanged("PASV\r\n"),
        5 => unchanged("EPSV\r\n"),
        6 => unchanged("LIST\r\n"),
        _ => unchanged(rng.pick::<&str>(&["NOOP\r\n", "RETR one\r\n", "type i\r\n", "ABOR\r\n"])),
    }
}

fn write_in_pieces(sim: &mut Sim, rng: &mut Rng, text: &str) {
    let mut rest = text.as_bytes();
    let kinds = if rng.chance(0.4) { 2 } else { 4 };
    while !rest.is_empty() {
        let len = match rng.below(kinds) {
            0 => 1 + rng.below(rest.len().min(4)),
            1 => 1 + rng.below(rest.len().min(30)),
            _ => rest.len(),
        };
        let (piece, after) = rest.split_at(len);
        sim.write(Client, piece);
        if rng.chance(0.2) {
            for _ in 0..rng.below(6) {
                sim.step();
            }
        }
        disturb(sim, rng);
        rest = after;
    }
}

/// Both pause, one asks whether the other is alive, or has no room for what comes.
fn disturb(sim: &mut Sim, rng: &mut Rng) {
    let side = *rng.pick(&[Client, Server]);
    match rng.below(100) {
        0 => sim.advance(Duration::from_secs(15)),
        1 | 2 => sim.keep_alive(side),
        // Not while it speaks: a shorter rewrite makes the numbers of what follows lower, and a
        // window advertised by a higher one, which arrived before the line, would hold for good.
        3 | 4 if sim.end(side).is_quiet() => {
            let time = Duration::from_millis(rng.below(3000) as u64);
            sim.close_window(side, time);
            sim.advance(time);
        }
        _ => {}
    }
}

/// The client heard what the server said, its own address replaced by the one that it shows, and the gateway's reason
/// in place of the answer to a line that was crossed out.
fn assert_replies(sim: &mut Sim, server: &ServerModel, own: SocketAddr, seen: SocketAddr) {
    let numbers = |e: SocketAddr| match e.ip() {
        std::net::IpAddr::V4(ip) => format!("({},", ip.to_string().replace('.', ",")),
        std::net::IpAddr::V6(_) => "none".to_owned(),
    };
    let said = String::from_utf8(sim.end(Side::Server).sent().to_vec()).unwrap();
    let heard = String::from_utf8(sim.client.read()).unwrap();
    let rewritten = said.replace(&numbers(own), &numbers(seen));
    let keeps_length = sim.daemon.policy.preserves_length;
    let as_expected = |(((heard, said), rewritten), is_refusal): (((&str, &str), &str), bool)| {
        if !is_refusal {
            return heard
                == if keeps_length {
                    with_blanks(rewritten, said.len())
                } else {
                    rewritten.into()
                };
        }
        let is_reason = ["504", "425"].contains(&&heard[..3])
            && heard[3..].starts_with(" Refused by the gateway: ");
        REASONS[usize::from(!is_reason)].fetch_add(1, Relaxed);
        is_reason || heard == said
    };
    let refusals = std::iter::once(false).chain(server.refusals.iter().copied());
    let mut lines = heard.lines().zip(said.lines()).zip(rewritten.lines()).zip(refusals);
    let all = heard.lines().count() == said.lines().count() && heard.ends_with('\n');
    assert!(all && lines.all(as_expected), "{heard} of {said}: {}", sim.summary());
}
