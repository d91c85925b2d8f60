//! The gateway of the simulated network: which packets its rules queue, and what its daemon does with them.

use std::net::SocketAddr;

use ftp_alg_core::{
    engine::{Answer, Attention, Kept, Queued, Translation, Verdict, Waiting},
    packet::{Seq, flags},
    session::Side,
};

use super::{
    super::{
        link::{Flight, Origin, Place},
        segment::{Fault, Segment},
        selection::Way,
    },
    Sim,
};

/// The verdict on what overtook others.
struct Waits;

impl Sim {
    pub(super) fn at_gateway(&mut self, flight: Flight) {
        // One queue gives its verdicts in order, and what is not queued overtakes what is.
        let release = self.release();
        let Flight { from, origin, bytes, .. } = &flight;
        let queued = self.engine.counters().packets;
        let passed = self.select(*from, bytes.clone(), release, Some(*origin));
        let was_queued = self.engine.counters().packets != queued;
        let release = if was_queued { release } else { self.now };
        self.released = self.released.max(release);
        if let Some(bytes) = passed {
            self.air.send(Flight { to: Place::End, bytes, ..flight }, release);
        }
        let now = self.base + self.now();
        let taken = self.early.take(now, |bytes| self.engine.turn(bytes));
        self.dropped += taken.over.len() as u64;
        self.selection.ended = false; // or another calm has begun since
        for (early, is_due) in [(taken.due, true), (taken.late, false)] {
            for early in early {
                let ((from, origin), release) = (early.with, self.release());
                let passed = self.decide(from, early.bytes, release, is_due.then_some(origin));
                self.released = self.released.max(release);
                if let Some(bytes) = passed {
                    self.air.send(Flight { from, to: Place::End, origin, bytes }, release);
                }
            }
        }
    }

    fn release(&mut self) -> u64 {
        self.released.max(self.now + self.air.verdict_delay())
    }

    /// What goes on of a packet, whose verdict is given at `release` if it is queued. It may wait for what it
    /// overtook if its `origin` is known.
    pub(super) fn select(
        &mut self,
        from: Side,
        bytes: Vec<u8>,
        release: u64,
        origin: Option<Origin>,
    ) -> Option<Vec<u8>> {
        let read = Segment::read(&bytes);
        if matches!(read, Err(Fault::Ip)) {
            return None; // by the kernel, before it comes to us
        }
        let segment = read.as_ref().ok().map(|(_, _, segment)| segment);
        match self.selection.way(self.now, &mut self.kernel.attention, from, segment) {
            Way::Passes => Some(bytes),
            Way::Copied => {
                self.trace("copied", from, &bytes);
                self.selection.copy(&bytes);
                if self.selection.is_read_now() {
                    self.read_copies();
                    let now = self.base + self.now();
                    let Self { crashes, engine, kernel, selection, .. } = self;
                    crashes.strike(engine, kernel, selection, now);
                }
                Some(bytes)
            }
            Way::Queued => self.decide(from, bytes, release, origin),
        }
    }

    /// As [`select`](Self::select), of a packet that is queued.
    fn decide(
        &mut self,
        from: Side,
        bytes: Vec<u8>,
        release: u64,
        origin: Option<Origin>,
    ) -> Option<Vec<u8>> {
        let passed = self.hand_patiently(from, &bytes, release, origin);
        let unread = passed.as_ref().is_none_or(|passed| *passed == bytes);
        assert!(Segment::read(&bytes).is_ok() || unread, "it passes unread");
        passed
    }

    /// Hands a packet to the engine as the daemon does.
    fn hand_patiently(
        &mut self,
        from: Side,
        bytes: &[u8],
        release: u64,
        origin: Option<Origin>,
    ) -> Option<Vec<u8>> {
        let verdict = self.hand_once(from, bytes, release, self.is_patient && origin.is_some());
        match (verdict, origin) {
            (Ok(passed), _) => return passed,
            (Err(Waits), Some(origin)) => {
                match self.early.keep(self.base + self.now(), bytes, (from, origin)) {
                    Kept::Yes => return None,
                    Kept::Full => {}
                    // As the first time.
                    Kept::Again => drop(self.hand(from, bytes, release)),
                }
            }
            (Err(Waits), None) => panic!("it may not wait"),
        }
        self.hand(from, bytes, release)
    }

    /// The gateway crashes, having written what it knew.
    pub fn crash(&mut self) {
        let now = self.base + self.now();
        self.crashes.crash(&mut self.engine, &mut self.kernel, now);
        self.selection.crashed(true);
    }

    /// The daemon reads what passed.
    pub fn read_copies(&mut self) {
        self.kernel.now = self.now();
        let now = self.base + self.now();
        for copy in self.selection.read() {
            self.engine.passed(now, &copy, &mut self.kernel);
        }
        self.engine.settle(&mut self.kernel);
        self.events.extend(self.engine.take_events().0);
        assert!(self.kernel.injected.is_empty(), "nothing is held");
    }

    /// Hands a packet to the engine, and gives what goes on at `release`.
    pub(super) fn hand(&mut self, from: Side, bytes: &[u8], release: u64) -> Option<Vec<u8>> {
        self.hand_once(from, bytes, release, false)
            .unwrap_or_else(|Waits| panic!("it may not wait"))
    }

    fn hand_once(
        &mut self,
        from: Side,
        bytes: &[u8],
        release: u64,
        may_wait: bool,
    ) -> Result<Option<Vec<u8>>, Waits> {
        self.read_copies();
        let mut out = vec![0xa5; 5]; // junk that must go
        let now = self.base + self.now();
        let ended = self.selection.ended;
        let every = matches!(self.kernel.attention, Some(Attention::Every | Attention::Watched));
        let how = Queued { ended_calm: ended, every, may_wait, ..Queued::default() };
        let verdict = self.engine.queued(now, bytes, how, &mut self.kernel, &mut out);
        let answer = match verdict {
            Verdict::Early | Verdict::Drop => Answer::Nothing,
            Verdict::Accept | Verdict::Replace => {
                let handled = self.engine.handled();
                self.engine.answer(handled)
            }
        };
        let Self { crashes, engine, kernel, selection, .. } = self;
        if crashes.strike(engine, kernel, selection, now) {
            self.trace("crashed", from, bytes);
            self.early = Waiting::default();
            self.dropped += 1;
            return Ok(None);
        }
        self.selection.answered(answer, release);
        self.engine.settle(&mut self.kernel);
        self.events.extend(self.engine.take_events().0);
        for injected in std::mem::take(&mut self.kernel.injected) {
            self.deliver_injected(injected);
        }
        self.check_pinholes();
        self.trace("queued", from, bytes);
        Ok(match verdict {
            Verdict::Early => return Err(Waits),
            Verdict::Accept => {
                self.trace("accepted", from, bytes);
                self.accepted += 1;
                Some(bytes.to_vec())
            }
            Verdict::Replace => {
                self.trace("replaced", from, &out);
                self.replaced += 1;
                self.check_replaced(from, bytes, &out);
                Some(out)
            }
            Verdict::Drop => {
                self.trace("dropped", from, bytes);
                self.dropped += 1;
                None
            }
        })
    }

    /// A packet that takes the place of another is valid, and says the same of all that is no
    /// concern of ours.
    fn check_replaced(&self, from: Side, old: &[u8], new: &[u8]) {
        let (old, (source, destination, new)) = (Segment::judged(old).2, Segment::judged(new));
        assert_eq!((source, destination), self.endpoints(from));
        assert_eq!((new.ecn, new.ip_options), (old.ecn, old.ip_options));
        assert_eq!((new.window, new.timestamps), (old.window, old.timestamps));
    }

    pub(super) fn trace(&self, what: &str, from: Side, bytes: &[u8]) {
        if self.traces {
            let shown = Segment::read(bytes).map(|(_, _, s)| {
                let text = String::from_utf8_lossy(&s.payload).into_owned();
                format!(
                    "seq {} ack {} flags {:#04x} sack {:?} {text:?}",
                    s.seq, s.ack, s.flags, s.sack
                )
            });
            eprintln!("{:>9}us {what:<10} {from:?} {shown:?}", self.now);
        }
    }

    pub(super) fn deliver_injected(&mut self, bytes: Vec<u8>) {
        let (source, destination, segment) = Segment::judged(&bytes);
        let Translation { client, client_external, server, server_external } = self.translation;
        let to = if destination == client { Side::Client } else { Side::Server };
        let expected: (SocketAddr, SocketAddr) = match to {
            Side::Client => (server_external, client),
            Side::Server => (client_external, server),
        };
        assert_eq!((source, destination), expected, "what the addressee knows");
        assert!(segment.has(flags::ACK) && !segment.has(flags::SYN) && !segment.has(flags::RST));
        self.trace("injected", to.peer(), &bytes);
        let flight = Flight { from: to.peer(), to: Place::End, origin: Origin::Genuine, bytes };
        self.air.send(flight, self.now);
    }

    /// What a SACK block claims to `side`, which sent it, the other end has.
    pub(super) fn check_claims(&mut self, side: Side, segment: &Segment) {
        let Translation { client, server, .. } = self.translation;
        if self.server.received() == 0 {
            return; // the gateway may still follow the connection before
        }
        let Some((session, _)) = self.engine.session(client, server) else { return };
        let map = session.map(side).clone();
        let sender = if side == Side::Client { &self.client } else { &self.server };
        let receiver = if side == Side::Client { &self.server } else { &self.client };
        let awaits = |number| sender.awaits(number);
        for (left, right) in segment.sack.iter().filter(|(left, _)| awaits(*left)) {
            let (from, to) = (map.deliver(Seq(*left)).0, map.deliver(Seq(*right)).0);
            assert!(receiver.has(from, to), "SACK {left}..{right} of {side:?} is untrue");
        }
    }

    /// What the engine holds open, the kernel holds open, unless it was used or has expired.
    pub(super) fn check_pinholes(&mut self) {
        let open = self.kernel.pinholes();
        let mut held: Vec<_> = self.engine.pinholes().map(|p| p.pinhole).collect();
        held.retain(|p| open.contains(p));
        held.dedup();
        let limit = 8; // of one session
        assert!(open.len() <= limit, "{} pinholes for one session", open.len());
    }
}
