//! The thread of one queue: packets in, verdicts out.
//!
//! Verdicts go to the queue that the packet came from, once every [shard](super::shard) that a batch told something
//! new has written it to its journal; closing and sending follow the verdicts.

use std::{
    error::Error,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{Answer, Engine, Handled, Kept, Queued, Turn, Verdict, Waiting};

use super::{
    shard::{Home, Shard, lock},
    shared::Shared,
};
use crate::gateway::{
    Decision, GatewayError, LinuxKernel, MAXIMUM_WAITING, Packet, Queue, RuleParameters, Verdicts,
};

/// How long a worker waits for a packet before it looks at what has expired.
const TICK: Duration = Duration::from_secs(1);
/// The same where a packet waits for one that it overtook, which may come by another queue.
const LOOK: Duration = Duration::from_millis(2);

/// What was decided on a packet, until all are.
#[derive(Clone, Debug)]
enum Decided {
    Accept,
    Drop,
    /// These of the replacements.
    Replace(Range<usize>),
    /// It is kept until what precedes it has come.
    Wait,
}

/// One queue, and its way to the shards.
pub(super) struct Worker {
    pub(super) queue: Queue,
    pub(super) home: Home,
    /// The shard of which this worker drops what is over.
    pub(super) own: usize,
    pub(super) kernel: LinuxKernel,
    parameters: RuleParameters,
    pub(super) shared: Arc<Shared>,
    buffers: Buffers,
}

/// Those of this queue that overtook others: what there is of them besides their bytes.
type EarlyPackets = Waiting<Packet<'static>>;

/// For one batch; kept, so that a packet allocates nothing.
#[derive(Default)]
struct Buffers {
    /// The shard of each packet.
    homes: Vec<usize>,
    decided: Vec<(Decided, Handled, Answer)>,
    replacements: Vec<u8>,
    replacement: Vec<u8>,
    early: EarlyPackets,
}

/// Kept for the next batch; of a larger one the rest is given back.
const KEPT_REPLACEMENTS: usize = 256 << 10;

impl Worker {
    pub(super) fn new(
        queue: Queue,
        home: Home,
        own: usize,
        kernel: LinuxKernel,
        parameters: RuleParameters,
        shared: Arc<Shared>,
    ) -> Self {
        Self { queue, home, own, kernel, parameters, shared, buffers: Buffers::default() }
    }

    /// Works until `end` is set; who sets it wakes this one.
    pub(super) fn run(mut self, end: &AtomicBool) -> Result<(), Box<dyn Error>> {
        self.queue.set_patience(TICK)?;
        let (mut is_looking, mut has_lapsed) = (false, false);
        let mut overruns = self.queue.overruns();
        let mut next_tick = Instant::now();
        while !end.load(Ordering::Acquire) {
            let mut packets = self.queue.wait()?;
            let mut now = Instant::now();
            let had_lapsed = has_lapsed;
            has_lapsed = self.shared.progress.has_lapsed(now);
            if has_lapsed {
                if !had_lapsed {
                    self.shared.lapse();
                }
                self.clear()?;
                (packets, now) = (0, Instant::now());
            }
            self.shared.progress.note(self.own, now);
            if packets > 0 {
                self.batch(now);
            }
            if !self.buffers.early.is_empty() {
                self.look_at_early(now);
            }
            if is_looking == self.buffers.early.is_empty() {
                is_looking = !is_looking;
                self.queue.set_patience(if is_looking { LOOK } else { TICK })?;
            }
            if now >= next_tick {
                next_tick = self.tick(now, &mut overruns);
            }
        }
        Ok(())
    }

    /// Decides about the packets that were read.
    fn batch(&mut self, now: Instant) {
        let Self { queue, home, kernel, parameters, shared, buffers, .. } = self;
        let (packets, verdicts) = queue.batch();
        let pace = Pace::Ordinary;
        Means { home: *home, kernel, parameters, shared, buffers, pace }
            .use_on(now, packets, verdicts);
    }

    /// Decides about the packets that wait after the sign of life has lapsed, so that others of their connections may have
    /// passed by. Those of adjusted connections never do. What will not be changed goes on as well, such as a server's
    /// greeting, and what a client says waits until its server has said what it has. All else is dropped: TCP sends what is
    /// still missing again. Until progress is noted, no sign of life is given, and nothing else is queued; so there are at
    /// most as many as the queue has room for.
    #[cold]
    fn clear(&mut self) -> Result<(), GatewayError> {
        let (mut dropped, mut seen) = (0, 0);
        loop {
            let Self { queue, home, kernel, parameters, shared, buffers, .. } = self;
            let (packets, mut verdicts) = queue.batch();
            let mut kept = Vec::new();
            for packet in packets {
                seen += 1;
                let shard = shared.shards.get(home.of(packet.payload));
                if shard.is_some_and(|shard| lock(shard).engine.decides_late(packet.payload)) {
                    kept.push(packet);
                } else {
                    verdicts.verdict(packet.id, Decision::Drop)?;
                    dropped += 1;
                }
            }
            let pace = Pace::Late;
            Means { home: *home, kernel, parameters, shared, buffers, pace }.use_on(
                Instant::now(),
                kept.iter().copied(),
                verdicts,
            );
            if self.queue.receive()? == 0 || seen >= MAXIMUM_WAITING {
                break;
            }
        }
        if dropped > 0 {
            let number = self.queue.number();
            tracing::warn!(
                "queue {number}: {dropped} packets that waited too long are dropped, and come again"
            );
        }
        Ok(())
    }

    /// Decides about packets that overtook others, if these have come.
    fn look_at_early(&mut self, now: Instant) {
        let Self { queue, home, kernel, parameters, shared, buffers, .. } = self;
        let taken = buffers.early.take(now, |bytes| {
            let shard = shared.shards.get(home.of(bytes));
            shard.map_or(Turn::Over, |shard| lock(shard).engine.turn(bytes))
        });
        for (early, pace) in [(&taken.due, Pace::Due), (&taken.late, Pace::Overdue)] {
            if !early.is_empty() {
                let packets = early.iter().map(|early| early.with.of(&early.bytes));
                let buffers = &mut *buffers;
                Means { home: *home, kernel, parameters, shared, buffers, pace }.use_on(
                    now,
                    packets,
                    queue.verdicts(),
                );
            }
        }
        let mut verdicts = queue.verdicts();
        let dropped =
            taken.over.iter().try_for_each(|late| verdicts.verdict(late.with.id, Decision::Drop));
        if let Err(error) = dropped.and_then(|()| verdicts.flush()) {
            shared.fail(&error);
        }
    }

    /// What is to be done about once a second. Gives the time of the next.
    fn tick(&mut self, now: Instant, overruns: &mut u64) -> Instant {
        let Some(shard) = self.shared.shards.get(self.own) else { return now + TICK };
        let mut shard = lock(shard);
        let Shard { engine, journal } = &mut *shard;
        engine.expire(now, &mut self.kernel);
        let was_written = journal.is_written();
        match journal.recover(engine) {
            Ok(()) if was_written => {}
            Ok(()) => tracing::info!("{} is written again", journal.path().display()),
            // Said once.
            Err(_) if !was_written => {}
            Err(error) => self.shared.fail(&journal.not_kept(&error)),
        }
        let events = engine.take_events();
        drop(shard);
        self.shared.heed(now, events);
        self.shared.log.sum_up(now);
        let dropped = self.queue.overruns();
        if dropped > *overruns {
            let (number, more) = (self.queue.number(), dropped - *overruns);
            tracing::warn!("queue {number} was full: the kernel dropped {more} packets");
            self.shared.overruns.fetch_add(more, Ordering::Relaxed);
            *overruns = dropped;
        }
        now + TICK
    }
}

/// How packets come to be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// As they were read.
    Ordinary,
    /// They have waited for what they overtook, which has come;
    Due,
    /// or has not, and they wait no longer.
    Overdue,
    /// They have waited beyond the sign of life.
    Late,
}

impl Pace {
    /// Whether early packets may wait.
    fn is_patient(self) -> bool {
        self != Self::Overdue
    }

    /// Whether all of them have.
    fn has_waited(self) -> bool {
        self != Self::Ordinary
    }
}

/// What packets are decided with.
struct Means<'a> {
    home: Home,
    kernel: &'a mut LinuxKernel,
    parameters: &'a RuleParameters,
    shared: &'a Shared,
    buffers: &'a mut Buffers,
    pace: Pace,
}

impl Means<'_> {
    /// Decides about `packets` and gives the verdicts, then does what may wait until then.
    fn use_on<'p>(
        mut self,
        now: Instant,
        packets: impl Iterator<Item = Packet<'p>> + Clone,
        verdicts: Verdicts<'_>,
    ) {
        let Self { home, parameters, shared, .. } = self;
        shared.read_copies(now, self.kernel);
        let buffers = &mut *self.buffers;
        buffers.homes.clear();
        buffers.homes.extend(packets.clone().map(|packet| home.of(packet.payload)));
        buffers.decided.clear();
        buffers
            .decided
            .resize(buffers.homes.len(), (Decided::Drop, Handled::NONE, Answer::Nothing));
        for (index, shard) in shared.shards.iter().enumerate() {
            if self.buffers.homes.contains(&index) {
                decide(&mut lock(shard), now, index, packets.clone(), &mut self);
            }
        }
        let Self { buffers, kernel, .. } = self;
        give(verdicts, packets, buffers, parameters, shared);
        for (index, shard) in shared.shards.iter().enumerate() {
            if buffers.homes.contains(&index) {
                shared.settle(now, lock(shard), kernel);
            }
        }
    }
}

/// Decides about those of `packets` that are of the shard `index`, and writes what they do to sessions. Where
/// that fails they go on all the same: FTP works, and only a restart will be noticed.
fn decide<'p>(
    shard: &mut Shard,
    now: Instant,
    index: usize,
    packets: impl Iterator<Item = Packet<'p>> + Clone,
    means: &mut Means<'_>,
) {
    let Means { kernel, parameters, shared, buffers, pace, .. } = means;
    let (is_patient, has_waited) = (pace.is_patient(), pace.has_waited());
    // This thread may be stopped at any moment. What is dropped before it is decided has changed nothing.
    // What is held is in time.
    let is_late = |engine: &mut Engine, packet: &Packet<'_>| {
        *pace != Pace::Late
            && shared.progress.has_lapsed(Instant::now())
            && !engine.wants_every(packet.payload)
    };
    let Buffers { homes, decided, replacements, replacement, early } = &mut **buffers;
    let own = packets.clone().zip(homes.iter()).filter(|(_, home)| **home == index);
    shard.engine.expect(own.map(|(packet, _)| packet.payload));
    for ((packet, home), decided) in packets.clone().zip(homes.iter()).zip(decided.iter_mut()) {
        if *home != index || is_late(&mut shard.engine, &packet) {
            continue;
        }
        let ended_calm = !has_waited && parameters.has_ended_calm(packet.mark);
        if parameters.is_unnoted_end(packet.mark) {
            shared.endings.fetch_add(1, Ordering::Relaxed);
        }
        let ended_calm_before = !has_waited && parameters.has_ended_calm_before(packet.mark);
        let mut queued = |may_wait| {
            let (from, every) = (parameters.from(packet.mark), parameters.is_every(packet.mark));
            let offload = packet.offload;
            let how = Queued { offload, ended_calm, ended_calm_before, may_wait, from, every };
            shard.engine.queued(now, packet.payload, how, *kernel, replacement)
        };
        let mut verdict = queued(is_patient);
        if verdict == Verdict::Early {
            let empty: &'static [u8] = &[];
            match early.keep(now, packet.payload, packet.of(empty)) {
                Kept::Yes => {}
                Kept::Full => verdict = queued(false),
                Kept::Again => {
                    queued(false); // as the first time
                    verdict = queued(false);
                }
            }
        }
        if *pace == Pace::Late {
            shard.engine.lapse_handled();
        }
        // From its decision on all packets of the connection wait, but before that others may have passed by.
        if shard.engine.has_just_changed() && shared.progress.has_lapsed(Instant::now()) {
            shard.engine.take_back(now, *kernel);
            verdict = Verdict::Drop;
        }
        let verdict = match verdict {
            Verdict::Accept => Decided::Accept,
            Verdict::Drop => Decided::Drop,
            Verdict::Early => Decided::Wait,
            Verdict::Replace => {
                let start = replacements.len();
                replacements.extend_from_slice(replacement);
                Decided::Replace(start..replacements.len())
            }
        };
        (decided.0, decided.1) = (verdict, shard.engine.handled());
    }
    for (home, (verdict, handled, answer)) in homes.iter().zip(decided.iter_mut()) {
        if *home == index
            && *pace != Pace::Late
            && !matches!(verdict, Decided::Drop | Decided::Wait)
        {
            *answer = shard.engine.answer(*handled);
        }
    }
    if let Err(error) = shard.journal.write(&mut shard.engine) {
        shared.fail(&shard.journal.not_kept(&error));
    }
}

/// Gives the verdicts, in the order of the packets, so that accepts are runs.
fn give<'p>(
    mut verdicts: Verdicts<'_>,
    packets: impl Iterator<Item = Packet<'p>>,
    buffers: &mut Buffers,
    parameters: &RuleParameters,
    shared: &Shared,
) {
    let Buffers { decided, replacements, .. } = buffers;
    for (packet, (decided, _, answer)) in packets.zip(decided.iter()) {
        let decision = match decided {
            Decided::Accept => Decision::Accept,
            Decided::Drop => Decision::Drop,
            Decided::Wait => continue,
            Decided::Replace(range) => {
                Decision::Replace(replacements.get(range.clone()).unwrap_or_default())
            }
        };
        let mark = parameters.answer(packet.mark, *answer);
        if let Err(error) = verdicts.verdict_with(packet.id, decision, mark) {
            shared.fail(&error);
        }
        if verdicts.is_full()
            && let Err(error) = verdicts.flush()
        {
            shared.fail(&error);
        }
    }
    if let Err(error) = verdicts.flush() {
        shared.fail(&error);
    }
    replacements.clear();
    replacements.shrink_to(KEPT_REPLACEMENTS);
}
