//! What the program of the fast path has inspected, on its way to the engines, as `daemon::fast_path` of the daemon has it.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{Engine, FastPathLine, PinholeEnds},
    ftp::Padding,
    session,
};

use super::{
    super::{
        Rng,
        fast_path::{
            layout::{LineRecord, Side},
            model::Passed,
            program::TcpPacket,
        },
        recorder::Recorder,
        segment::{Fault, Segment},
    },
    Sim,
};

/// Where the daemon is in the ring.
pub struct FastPathLines {
    epoch: Instant,
    /// What was fetched is before it.
    position: usize,
    inbox: Vec<LineRecord>,
    /// What is released when all of it is written.
    releases: Option<usize>,
}

impl FastPathLines {
    pub fn new(epoch: Instant) -> Self {
        Self { epoch, position: 0, inbox: Vec::new(), releases: None }
    }

    /// Starts with what nobody has released.
    pub fn after(mut self, kernel: &Recorder) -> Self {
        self.position = kernel.program.positions().1;
        self
    }

    /// Fetches what was inspected by now.
    pub fn fetch(&mut self, kernel: &Recorder) {
        self.inbox.extend_from_slice(kernel.program.lines(self.position));
        self.position = kernel.program.positions().0;
    }

    /// Has the engine read what was fetched.
    pub fn feed(&mut self, engine: &mut Engine, kernel: &mut Recorder) {
        let lines = std::mem::take(&mut self.inbox);
        if !lines.is_empty() {
            engine.read_fast_path_lines(lines.iter().map(|line| read(line, self.epoch)), kernel);
        }
    }

    /// Fetches what is released at the end.
    pub fn begin_read(&mut self, kernel: &Recorder) {
        self.fetch(kernel);
        self.releases = Some(self.position);
    }

    pub fn end_read(&mut self, kernel: &mut Recorder) {
        if let Some(position) = self.releases.take() {
            kernel.program.release_lines(position);
        }
    }
}

fn read(line: &LineRecord, epoch: Instant) -> FastPathLine<'_> {
    let is_by_client = line.side == Side::Client as u32;
    FastPathLine {
        flow: line.flow,
        line: line.number,
        at: epoch + Duration::from_nanos(line.at_ns),
        from: if is_by_client { session::Side::Client } else { session::Side::Server },
        client: line.client(),
        server: line.server(),
        seq: line.seq,
        ack: line.ack,
        window: line.window,
        opened_pinhole: line.opened_pinhole != 0,
        consumed_pinhole: (line.consumed_pinhole != 0).then_some(line.consumed_pinhole),
        is_fin: line.is_fin != 0,
        padding: Padding::from_digits(line.port_digits.into()),
        bytes: line.line(),
    }
}

impl Sim {
    /// What goes on at once of a packet that arrives, as the program decides about it.
    pub(super) fn inspect_in_kernel(
        &mut self,
        from: session::Side,
        bytes: &[u8],
    ) -> Option<Vec<u8>> {
        let (source, destination) = self.translation.seen_by(from);
        // As it comes, where what it is sent to is not translated yet.
        let (source, destination) = (destination, source);
        let now = self.now();
        let (_, _, segment) = match Segment::read(bytes) {
            Ok(read) => read,
            Err(Fault::Ip) => return None,
            Err(Fault::Content(_)) => {
                let damaged = damaged(bytes, (source, destination))?;
                assert_eq!(self.kernel.program.inspect(now, &damaged), None);
                return None;
            }
        };
        let seen = TcpPacket {
            source,
            destination,
            is_plain: !segment.ip_options,
            has_plain_options: segment.sack.is_empty(),
            flags: segment.flags,
            seq: segment.seq,
            ack: segment.ack,
            window: segment.window,
            payload: &segment.payload,
        };
        let Passed { seq, ack, payload } = self.kernel.program.inspect(now, &seen)?;
        if self.kernel.program.has_lines() {
            self.queues.read_later(self.now);
        }
        let passed = if (seq, ack) == (segment.seq, segment.ack) && payload == segment.payload {
            bytes.to_vec()
        } else {
            let (source, destination) = self.endpoints(from);
            let new = Segment { seq, ack, payload, ..segment }.packet(source, destination);
            self.check_replaced(from, bytes, &new);
            new
        };
        self.trace("fast_path", from, &passed);
        Some(passed)
    }

    /// The daemon reads what was inspected, where no packet has it do so.
    pub(super) fn read_fast_path_lines(&mut self) {
        self.queues.reads();
        if self.daemon.is_busy() {
            return self.queues.read_later(self.now);
        }
        let now = self.instant();
        let is_killed = self.crashes.strikes();
        if is_killed {
            self.life.ends_after(self.crashes.calls());
        }
        self.daemon.read(now, &mut self.kernel);
        if is_killed {
            return self.kill();
        }
        self.settle_daemon();
        if self.kernel.program.has_lines() {
            self.queues.read_later(self.now);
        }
    }

    /// Whether somebody holds what the kernel has open, and the kernel has open what is held. To be called when the daemon
    /// has nothing to do.
    pub fn assert_pinholes_agree(&mut self, used: &[(IpAddr, SocketAddr)]) {
        let ends = |pinhole: &PinholeEnds| (pinhole.initiator, pinhole.arrival);
        let mut open: Vec<_> = self.kernel.pinholes().iter().map(ends).collect();
        let sessions = &mut self.daemon.engine().sessions;
        let unheld = open.iter().copied().find(|(from, to)| !sessions.holds_pinhole(*from, *to));
        let holes = self.kernel.program.open_pinholes();
        let is_held = |hole| sessions.fast_path_pinholes().any(|held| held == hole);
        let unheld_hole = holes.iter().find(|(hole, _)| !is_held(*hole));
        open.extend(holes.iter().map(|(_, ends)| *ends));
        let held: Vec<_> = sessions.list_pinholes().map(|info| ends(&info.ends)).collect();
        let is_missing = |pinhole: &&_| !open.contains(pinhole) && !used.contains(pinhole);
        let missing = held.iter().find(is_missing).filter(|_| !self.has_crashed);
        let wrong = (unheld, unheld_hole, missing);
        assert_eq!(wrong, (None, None, None), "{open:?} {}", self.summary());
    }

    /// A data connection comes for one of the pinholes that are held, if there is one. Gives which one was consumed.
    pub fn use_pinhole(&mut self, rng: &mut Rng) -> Option<(IpAddr, SocketAddr)> {
        let held: Vec<_> = self.engine().sessions.list_pinholes().collect();
        let pinhole = (!held.is_empty()).then(|| rng.pick(&held).ends)?;
        self.kernel.now = self.now();
        let target = self.kernel.connect(pinhole.initiator, pinhole.arrival)?;
        assert_eq!(target, pinhole.target, "{}", self.summary());
        Some((pinhole.initiator, pinhole.arrival))
    }
}

/// A packet between these two whose TCP checksum is wrong.
fn damaged(bytes: &[u8], (source, destination): (SocketAddr, SocketAddr)) -> Option<TcpPacket<'_>> {
    let ip_length = usize::from(bytes[0] & 15) * 4;
    let tcp = bytes.get(ip_length..).filter(|tcp| tcp.len() >= 20 && bytes[0] >> 4 == 4)?;
    let payload = tcp.get(usize::from(tcp[12] >> 4) * 4..)?;
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    let number = |at: usize| u32::from_be_bytes(*tcp[at..].first_chunk().unwrap());
    Some(TcpPacket {
        source: SocketAddr::new(source.ip(), port(0)),
        destination: SocketAddr::new(destination.ip(), port(2)),
        is_plain: false,
        has_plain_options: true,
        flags: tcp[13],
        seq: number(4),
        ack: number(8),
        window: 0,
        payload,
    })
}
