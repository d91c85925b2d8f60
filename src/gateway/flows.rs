//! The engine's wishes for the fast path, as its program knows them: connections that it judges, and pinholes that it must leave
//! alone or close.

use std::{
    collections::HashMap,
    fmt::Display,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Mutex,
};

use ftp_alg_core::engine::{FlowChange, Handover, Login, Pinhole, Shut, TakenBack, Translation};

use super::{
    ClaimedPorts, GatewayError, RuleParameters,
    fastpath::{Awaits, FastPath, Flow, JudgedStep, Slot, Translations, WayKey, lock},
};

/// The program, and what was arranged for its connections.
pub struct Flows {
    program: FastPath,
    translations: Mutex<Translations>,
    slots: Mutex<HashMap<u64, [Slot; 2]>>,
    judged_mark: u32,
    failures: Mutex<Option<Failures>>,
}

/// What the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failures {
    /// How often.
    pub count: u64,
    /// What, and why, the last time.
    pub last: String,
}

/// Both ends of a connection in all forms, of IPv4.
struct Ends {
    client: SocketAddrV4,
    client_external: SocketAddrV4,
    server: SocketAddrV4,
    server_external: SocketAddrV4,
}

const NOT_HANDED_OVER: &str = "a connection was not handed over";

impl Flows {
    /// Of a program that is loaded.
    pub fn new(program: FastPath, translations: Translations, parameters: &RuleParameters) -> Self {
        Self {
            program,
            translations: Mutex::new(translations),
            slots: Mutex::default(),
            judged_mark: parameters.judged_mark(),
            failures: Mutex::default(),
        }
    }

    /// The program.
    pub fn program(&self) -> &FastPath {
        &self.program
    }

    /// What the kernel refused since this was last asked.
    pub fn take_failures(&self) -> Option<Failures> {
        lock(&self.failures).take()
    }

    /// Adds what was judged by now.
    pub fn read(&self, into: &mut Vec<JudgedStep>) {
        if !self.program.ring().read(into) {
            self.failed("the ring buffer was not read", &"a record of it is not committed");
        }
    }

    /// Has the program open nothing at these ports, nor at those that are `claimed`.
    pub fn bar_ports(&self, claimed: &ClaimedPorts, is_barred: impl Fn(u16) -> bool) {
        let barred = self.program.set_barred_ports(|port| is_barred(port) || claimed.has(port));
        self.check("ports were not barred", barred);
    }

    /// Has the program judge connections, and leave others alone.
    pub(super) fn change(&self, changes: &[FlowChange]) {
        for change in changes {
            match change {
                FlowChange::Over(handover) => self.hand_over(handover),
                FlowChange::Back(taken) => self.take_back(taken),
            }
        }
    }

    fn hand_over(&self, handover: &Handover) {
        let Some(ends) = Ends::of(&handover.translation) else { return };
        // Those that have not logged in leave half of the room to the others. They are offered again.
        let most = self.program.most_flows() as usize / 2;
        if handover.login != Login::Done && lock(&self.slots).len() >= most {
            return;
        }
        let arranged = self.arrange(&ends);
        let slots = match arranged {
            Ok(Some(slots)) => slots,
            Ok(None) => return,
            Err(error) => return self.failed(NOT_HANDED_OVER, &error),
        };
        let [active_mark, passive_mark] = slots.each_ref().map(Slot::mark);
        let [client_named, server_named] = handover.named;
        let flow = Flow {
            flow: handover.flow,
            ways: ends.ways(),
            next: handover.next,
            steps: handover.lines,
            awaits: match handover.login {
                Login::Silent => Awaits::Greeting,
                Login::Greeted => Awaits::Login,
                Login::Done => Awaits::Nothing,
            },
            client: ends.client,
            server: ends.server,
            client_named,
            server_named,
            client_arrival: *ends.client_external.ip(),
            server_arrival: *ends.server_external.ip(),
            active_initiator: *ends.server.ip(),
            passive_initiator: *ends.client.ip(),
            active_mark,
            passive_mark,
            judged_mark: self.judged_mark,
            digits: handover.zeros.digits() as u32, // at most 4
            shifts: handover.shifts,
            lifetime: handover.lifetime,
        };
        let mut handed = self.program.hand_over(&flow);
        if handed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
            // Taken back by another thread, which has not told yet.
            handed = self
                .program
                .take_back(flow.flow, flow.ways)
                .and_then(|()| self.program.hand_over(&flow));
        }
        match handed {
            Ok(()) => self.keep(handover.flow, Some(slots)),
            Err(error) => {
                self.release(&slots);
                match error.raw_os_error() {
                    Some(libc::E2BIG | libc::ENOSPC) => {
                        let most = self.program.most_flows();
                        self.failed(
                            NOT_HANDED_OVER,
                            &format_args!("{most} are already, and others are queued"),
                        );
                    }
                    _ => self.failed(NOT_HANDED_OVER, &error),
                }
            }
        }
    }

    /// The translations of its data connections, active and passive.
    fn arrange(&self, ends: &Ends) -> Result<Option<[Slot; 2]>, GatewayError> {
        let Ends { client, client_external, server, server_external } = ends;
        let moved =
            |own: &SocketAddrV4, seen: &SocketAddrV4| (own.ip() != seen.ip()).then(|| *own.ip());
        let source = |initiator: &SocketAddrV4, target: &SocketAddrV4, seen: &SocketAddrV4| {
            moved(initiator, seen).map(|own| (own, *target.ip(), *seen.ip()))
        };
        let mut translations = lock(&self.translations);
        let active = translations
            .acquire(moved(client, client_external), source(server, client, server_external))?;
        let Some(active) = active else { return Ok(None) };
        let passive = translations
            .acquire(moved(server, server_external), source(client, server, client_external));
        match passive {
            Ok(Some(passive)) => Ok(Some([active, passive])),
            other => {
                translations.release(&active);
                other.map(|_| None)
            }
        }
    }

    fn take_back(&self, taken: &TakenBack) {
        let Some(ends) = Ends::of(&taken.translation) else { return };
        let back = self.program.take_back(taken.flow, ends.ways());
        self.check("a connection was not taken back", back);
        self.keep(taken.flow, None);
    }

    /// Gives back what a connection had, and keeps what it has now.
    fn keep(&self, flow: u64, slots: Option<[Slot; 2]>) {
        let mut all = lock(&self.slots);
        let before = match slots {
            Some(slots) => all.insert(flow, slots),
            None => all.remove(&flow),
        };
        drop(all);
        if let Some(before) = before {
            self.release(&before);
        }
    }

    fn release(&self, slots: &[Slot; 2]) {
        let mut translations = lock(&self.translations);
        slots.iter().for_each(|slot| translations.release(slot));
    }

    /// Keeps the program from opening a pinhole with the endpoints of this translated one. Whether it has none.
    pub fn reserve(&self, pinhole: &Pinhole) -> bool {
        let Some((initiator, arrival)) = translated(pinhole) else { return true };
        self.program.reserve(initiator, arrival).unwrap_or_else(|error| {
            self.failed("a pinhole was not reserved", &error);
            false
        })
    }

    /// It may open such a one again.
    pub(super) fn free(&self, pinhole: &Pinhole) {
        if let Some((initiator, arrival)) = translated(pinhole) {
            self.check("a pinhole was not released", self.program.release(initiator, arrival));
        }
    }

    /// Closes pinholes that the program has opened.
    pub(super) fn shut(&self, shut: &[Shut]) {
        for Shut { pinhole, hole } in shut {
            if let (IpAddr::V4(initiator), SocketAddr::V4(arrival)) =
                (pinhole.initiator, pinhole.arrival)
            {
                let closed = self.program.shut(initiator, arrival, hole.flow, hole.line);
                self.check("a pinhole was not closed", closed);
            }
        }
    }

    /// Puts the translations that are used into a table that was loaded anew.
    pub fn reset(&self) -> Result<(), GatewayError> {
        lock(&self.translations).reset()
    }

    fn check(&self, what: &str, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            self.failed(what, &error);
        }
    }

    fn failed(&self, what: &str, why: &dyn Display) {
        let mut failures = lock(&self.failures);
        let count = failures.take().map_or(0, |before| before.count) + 1;
        *failures = Some(Failures { count, last: format!("{what}: {why}") });
    }
}

impl std::fmt::Debug for Flows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Flows")
    }
}

/// The key of a pinhole that is translated, of IPv4.
fn translated(pinhole: &Pinhole) -> Option<(Ipv4Addr, SocketAddrV4)> {
    let Pinhole { initiator, arrival, target, .. } = *pinhole;
    match (initiator, arrival) {
        (IpAddr::V4(initiator), SocketAddr::V4(arrival)) if pinhole.arrival != target => {
            Some((initiator, arrival))
        }
        _ => None,
    }
}

impl Ends {
    fn of(translation: &Translation) -> Option<Self> {
        let Translation { client, client_external, server, server_external } = *translation;
        let v4 = |end| if let SocketAddr::V4(end) = end { Some(end) } else { None };
        let (client, client_external) = (v4(client)?, v4(client_external)?);
        Some(Self {
            client,
            client_external,
            server: v4(server)?,
            server_external: v4(server_external)?,
        })
    }

    /// Source and destination of what each end sends, as it arrives here.
    fn ways(&self) -> [WayKey; 2] {
        [
            WayKey { source: self.client, destination: self.server_external },
            WayKey { source: self.server, destination: self.client_external },
        ]
    }
}
