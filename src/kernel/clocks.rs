//! The clocks by which the kernel dates packets, and [`Instant`].
//!
//! Two clocks cannot be read at the same moment: between the two reads another thread may run for milliseconds. An error
//! as long as a short transfer would put its data connection behind its last reply.

use std::{
    sync::LazyLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};

/// The longest time between the reads of two clocks, if the thread is not interrupted.
const CLOSE: Duration = Duration::from_micros(5);
/// How often the clocks are read until their reads are close.
const MOST_READS: u32 = 64;

/// The zero of the kernel's monotonic clock. `Instant` reads that clock, so it is the same for the life of the process.
pub fn monotonic_zero() -> Instant {
    static ZERO: LazyLock<Instant> = LazyLock::new(|| {
        let read = || Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
        let (now, since_zero) = at_once(read);
        now.checked_sub(since_zero).unwrap_or(now)
    });
    *ZERO
}

/// The time at which `bpf_ktime_get_ns` returned this number.
pub fn instant_of(ns: u64) -> Instant {
    let zero = monotonic_zero();
    zero.checked_add(Duration::from_nanos(ns)).unwrap_or(zero)
}

/// The time of day now, since 1970.
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// What `read` returns, for example the time of day, and the moment before it was called.
pub fn at_once<T>(read: impl Fn() -> T) -> (Instant, T) {
    let attempt = || {
        let before = Instant::now();
        let read = read();
        (before.elapsed(), (before, read))
    };
    let (mut between, mut closest) = attempt();
    for _ in 1..MOST_READS {
        if between <= CLOSE {
            break;
        }
        let next = attempt();
        if next.0 < between {
            (between, closest) = next;
        }
    }
    closest
}

#[cfg(test)]
mod tests {
    use std::{
        hint,
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        thread,
    };

    use super::*;

    /// Longer than the clocks are read apart, and shorter than another thread runs.
    const EXACT: Duration = Duration::from_micros(500);

    #[test]
    fn times_of_the_kernel_are_exact_while_other_threads_run() {
        let ends = AtomicBool::new(false);
        let be_busy = || {
            while !ends.load(Relaxed) {
                hint::spin_loop();
            }
        };
        let mut wrong = None;
        thread::scope(|scope| {
            for _ in 0..2 * thread::available_parallelism().unwrap().get() {
                scope.spawn(be_busy);
            }
            for _ in 0..1_000_000 {
                let before = Instant::now();
                let clock = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap();
                let time = instant_of(clock.as_nanos() as u64);
                let after = Instant::now();
                if before > time + EXACT || time > after {
                    wrong = Some([before, time, after]);
                }
            }
            ends.store(true, Relaxed);
        });
        assert_eq!(wrong, None);
    }
}
