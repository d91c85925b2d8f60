//! What connections that want to use much memory use of it, all together: resident memory of this process, and what
//! their journal would hold.
//!
//! Each connection sends as much as its packets can carry of what a gateway has to remember until it is acknowledged,
//! and acknowledges nothing. `FTP_ALG_HOSTILE` is how many there are; 1,000 without it.

use std::{fs, process::Command, time::Duration};

use ftp_alg_core::policy::Policy;

use super::network::{Hostile, LARGEST, Wire, numbered, repeated};

/// Set where one test has the process for itself.
const ALONE: &str = "FTP_ALG_ALONE";

/// What each session may use besides the budget (docs/limits.md).
const EACH: usize = 2 << 10;
/// What the tests use, and what the allocator does not give back at once.
const SPARE: usize = 16 << 20;

fn count() -> usize {
    std::env::var("FTP_ALG_HOSTILE").map_or(1000, |count| count.parse().unwrap())
}

/// Resident bytes of this process.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// In a process of its own, as other tests use memory as well.
#[test]
fn hostile_connections_stay_in_the_budget_all_together() {
    if std::env::var_os(ALONE).is_some() {
        return flood();
    }
    let module = module_path!().split_once("::").unwrap().1;
    let name = format!("{module}::hostile_connections_stay_in_the_budget_all_together");
    let mut command = Command::new(std::env::current_exe().unwrap());
    let done = command.args([&name, "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    println!("{said}");
    assert!(
        done.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

fn flood() {
    let all = Hostile::ALL;
    let kinds = [(&all[..1], 8 << 20), (&all[..], 8 << 20), (&all[1..2], 64 << 20)];
    let count = count();
    let before = resident();
    for (hostile, memory) in kinds {
        let policy = Policy { memory, max_sessions: count, ..Policy::default() };
        let mut wire = Wire::new(policy);
        for number in 0..count {
            let client = numbered(number);
            wire.connect(client);
            for segment in hostile[number % hostile.len()].segments() {
                wire.say(client, &segment);
            }
            wire.now += Duration::from_millis(1);
            assert!(wire.memory() <= memory, "{}", wire.memory());
            wire.events.clear();
            wire.resets();
            wire.gateway.journal.clear();
        }
        let grown = resident().saturating_sub(before);
        let mut written = 0;
        let sessions = &mut wire.gateway.engine.sessions;
        sessions.write_all_records(|record| written += record.bytes.len() + 8).unwrap();
        println!(
            "{hostile:?}: {count} connections, {} KiB counted, {} KiB more resident, {} KiB of journal; {:?}",
            wire.memory() >> 10,
            grown >> 10,
            written >> 10,
            wire.gateway.engine.counters().limits,
        );
        assert!(grown <= memory + EACH * count + SPARE, "{grown} bytes");
        assert!(written <= EACH * count + memory, "{written} bytes");
    }
}

/// docs/limits.md: one connection holds at most 160 KiB.
#[test]
fn one_connection_holds_no_more_than_it_may_whatever_it_says() {
    for hostile in Hostile::ALL {
        let mut wire = Wire::new(Policy::default());
        wire.connect(numbered(0));
        for segment in hostile.segments() {
            wire.say(numbered(0), &segment);
        }
        let held = wire.memory();
        assert!(held <= 160 << 10, "{hostile:?}: {held}");
        let longest = wire.gateway.journal.iter().map(Vec::len).max().unwrap_or(0);
        assert!(longest <= 12 << 10, "{hostile:?}: a record of {longest} bytes");
    }
}

#[test]
fn a_retransmission_writes_no_record() {
    let client = numbered(0);
    let mut wire = Wire::new(Policy::default());
    wire.connect(client);
    let [seq, ack] = wire.next[&client];
    let segment = Hostile::Refused.segments().remove(0);
    wire.say(client, &segment);
    let passed = wire.passed();
    assert!(passed > 0 && passed < LARGEST, "{passed}");
    wire.gateway.journal.clear();
    for _ in 0..100 {
        wire.say_at(client, seq, ack, &segment);
        assert_eq!(wire.passed(), passed, "the same as at first");
        assert!(wire.gateway.journal.is_empty(), "nothing of it is new");
    }
}

/// What this thread has computed, in nanoseconds.
fn computed() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap()
}

/// How long `times` packets take that the client says at its first number, each.
fn time_of(wire: &mut Wire, segment: &[u8], times: u32) -> Duration {
    let client = numbered(0);
    let [seq, ack] = wire.next[&client];
    let start = computed();
    for _ in 0..times {
        wire.say_at(client, seq, ack, segment);
        wire.gateway.journal.clear();
    }
    Duration::from_nanos(computed() - start) / times
}

#[test]
fn a_retransmission_costs_no_more_than_a_new_segment() {
    let ordinary = (0..20).map(|_| {
        let mut wire = Wire::new(Policy::default());
        wire.connect(numbered(0));
        time_of(&mut wire, &repeated("NOOP\r\n"), 1)
    });
    let ordinary = ordinary.min().unwrap();
    for hostile in [Hostile::Refused, Hostile::LongLine, Hostile::Unacknowledged] {
        let mut wire = Wire::new(Policy::default());
        wire.connect(numbered(0));
        let segment = hostile.segments().remove(0);
        let first = time_of(&mut wire, &segment, 1);
        let again = time_of(&mut wire, &segment, 50);
        println!("{hostile:?}: first {first:?}, again {again:?}; NOOPs {ordinary:?}");
        assert!(first.max(again) <= ordinary, "{hostile:?}: {first:?}, {again:?}; {ordinary:?}");
    }
}
