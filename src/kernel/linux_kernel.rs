//! The running kernel, as the engine uses it: looks up translations, opens and closes pinholes, injects packets.

use std::{
    collections::HashSet,
    io::{self, ErrorKind},
    mem,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{
    Closing, FlowChange, InstalledIn, Kernel, KernelError, OpenRange, Opening, PinholeEnds,
    PinholeId, QueueMode, RouteLookup, Translation,
};
use ftp_alg_fastpath::layout::PinholeKey;

use super::{
    NetfilterError, RuleParameters,
    budget::{Budget, Stopwatch},
    conntrack::Conntrack,
    inject::Injector,
    known_rules::KnownRules,
    offload::Offload,
    parameters::Backend,
    rtnetlink::Routes,
    table::{Commits, Expectations, OpenPinhole, PinholeSets},
};

/// The running kernel, in the network namespace of the thread that creates this. One for each thread. It needs the
/// loaded [`Table`], which all threads share.
#[derive(Debug)]
pub struct LinuxKernel {
    backend: RunningBackend,
    /// Queries about connections.
    pub conntrack: Conntrack,
    routes: Routes,
    injector: Injector,
    /// Whether an error said that an injected packet had no route.
    has_reported_no_route: bool,
    known_rules: KnownRules,
    /// The time for lists of pinholes, which a client at its limit causes.
    list_budget: Budget,
    /// The time for questions to the operator's rules, which a server's replies cause.
    rules_budget: Budget,
    /// The fast path, if there is one.
    offload: Option<Arc<Offload>>,
}

/// The back end that implements pinholes.
#[derive(Debug)]
enum RunningBackend {
    Nftables(PinholeSets),
    Conntrack(Expectations),
}

impl LinuxKernel {
    /// Opens all sockets; needs CAP_NET_ADMIN and CAP_NET_RAW. Counts each nf_tables transaction in `commits`.
    pub fn new(parameters: &RuleParameters, commits: &Commits) -> Result<Self, NetfilterError> {
        Ok(Self {
            backend: match parameters.backend {
                Backend::Nftables => RunningBackend::Nftables(PinholeSets::new(commits)?),
                Backend::Conntrack => RunningBackend::Conntrack(Expectations::new(parameters)?),
            },
            conntrack: Conntrack::new(parameters)?,
            routes: Routes::new().map_err(|e| NetfilterError::system("rtnetlink", e))?,
            injector: Injector::new(parameters)?,
            has_reported_no_route: false,
            known_rules: KnownRules::default(),
            list_budget: Budget::new(Instant::now()),
            rules_budget: Budget::new(Instant::now()),
            offload: None,
        })
    }

    /// Obeys the operator's rules: no translated pinhole is opened at a port that is in use.
    pub fn obeying(self, known_rules: &KnownRules) -> Self {
        Self { known_rules: known_rules.clone(), ..self }
    }

    /// Updates the fast path about connections and pinholes.
    pub fn with_offload(self, offload: Option<&Arc<Offload>>) -> Self {
        Self { offload: offload.cloned(), ..self }
    }

    /// The open pinholes of the BPF program.
    pub fn list_fast_path_pinholes(&self) -> Result<Vec<OpenPinhole>, NetfilterError> {
        let Some(offload) = &self.offload else { return Ok(Vec::new()) };
        let open = offload.program().list_open_pinholes();
        let open = open.map_err(|source| NetfilterError::system("list of pinholes", source))?;
        let row = |(key, remaining): (PinholeKey, Duration)| OpenPinhole {
            initiator: key.initiator,
            arrival: key.arrival(),
            remaining,
        };
        Ok(open.into_iter().map(row).collect())
    }

    /// Moves pinholes of the BPF program to the rules. Appends an error for each that the rules refuse.
    ///
    /// The rules have a pinhole before the program loses it, so a SYN in between finds it at one of the two. If the
    /// program admitted the SYN, the rules lose it, too. Until then they admit one more SYN of the same initiator.
    pub fn move_pinholes_to_rules(
        &mut self,
        moved: &[(PinholeId, Opening)],
        errors: &mut Vec<KernelError>,
    ) {
        let mut consumed = Vec::new();
        for (id, opening) in moved {
            let pinhole = &opening.ends;
            let opened = match self.backend {
                RunningBackend::Nftables(_) => self.open_in_rules(opening, &[]),
                // Expectations need a helper, which the connection may not have.
                RunningBackend::Conntrack(_) => Ok(()),
            };
            let was_open =
                self.offload.as_ref().is_some_and(|offload| offload.move_pinhole(pinhole, *id));
            match opened {
                // Another pinhole may use the same source translation.
                Ok(()) if !was_open => {
                    consumed.push(PinholeEnds { source: pinhole.initiator, ..*pinhole });
                }
                // A crash may have come after the move to the rules, and before its record.
                Ok(()) | Err(KernelError::Taken) => {}
                Err(error) => errors.push(error),
            }
        }
        let RunningBackend::Nftables(pinholes) = &mut self.backend else { return };
        errors.extend(pinholes.close(&consumed).err());
    }

    /// Opens pinholes of restored sessions, none of which replaces another. Returns why some are not open.
    pub fn open_many(&mut self, openings: &[Opening]) -> Vec<KernelError> {
        let (mut free, mut errors) = (Vec::with_capacity(openings.len()), Vec::new());
        for opening in openings {
            match self.check_free(opening) {
                Ok(()) => free.push(*opening),
                Err(error) => errors.push(error),
            }
        }
        match &mut self.backend {
            RunningBackend::Nftables(pinholes) => {
                if let Some(offload) = &self.offload {
                    free.iter().for_each(|opening| offload.note_rules_pinhole(opening));
                }
                errors.extend(pinholes.open_many(&free));
            }
            RunningBackend::Conntrack(expectations) => {
                errors.extend(free.iter().filter_map(|one| expectations.open(one, &[]).err()));
            }
        }
        errors
    }

    /// Whether neither a server of this machine nor the BPF program has the ends of a pinhole.
    fn check_free(&self, opening: &Opening) -> Result<(), KernelError> {
        self.known_rules.check_free(opening.ends.arrival, opening.ends.target)?;
        // The BPF program would admit its own connection there.
        let is_reserved =
            self.offload.as_ref().is_none_or(|offload| offload.reserve_pinhole(&opening.ends));
        if is_reserved { Ok(()) } else { Err(KernelError::Taken) }
    }

    /// The open pinholes of the rules, or the expectations, according to the kernel. With [`Backend::Conntrack`] this
    /// includes expectations of other helpers. Without our table there are none.
    pub fn list_open(&mut self) -> Result<Vec<OpenPinhole>, NetfilterError> {
        Ok(self.list_in_table()?.unwrap_or_default())
    }

    fn list_in_table(&mut self) -> Result<Option<Vec<OpenPinhole>>, NetfilterError> {
        match &mut self.backend {
            RunningBackend::Nftables(pinholes) => pinholes.list_open(),
            RunningBackend::Conntrack(expectations) => expectations.list_open().map(Some),
        }
    }

    /// Closes all ranges, also those of an earlier daemon.
    pub fn close_all_ranges(&mut self) -> Result<(), KernelError> {
        match &mut self.backend {
            RunningBackend::Nftables(sets) => sets.close_all_ranges(),
            // They end with their control connections, or expire.
            RunningBackend::Conntrack(_) => Ok(()),
        }
    }

    /// The open pinholes of the rules and of the BPF program; `None` if our table is not loaded.
    fn list_all(&mut self) -> Result<Option<Vec<OpenPinhole>>, NetfilterError> {
        let (of_rules, of_program) = (self.list_in_table()?, self.list_fast_path_pinholes()?);
        Ok(of_rules.map(|open| [open, of_program].concat()))
    }

    /// Closes those of `closings` that the BPF program has. Returns the others, which are pinholes of the rules.
    fn close_in_program(&self, closings: &[Closing]) -> Vec<PinholeEnds> {
        let (mut of_rules, mut lost) = (Vec::new(), Vec::new());
        for closing in closings {
            match (*closing, &self.offload) {
                (Closing::Rules(ends), offload) => {
                    of_rules.push(ends);
                    if let Some(offload) = offload {
                        offload.release_pinhole(&ends);
                    }
                }
                (Closing::Program(ends, id), Some(offload)) => {
                    offload.close_pinhole(&ends, id);
                }
                (Closing::Lost(id), _) => lost.push(id),
                (Closing::Program(..), None) => {}
            }
        }
        if let Some(offload) = self.offload.as_ref().filter(|_| !lost.is_empty()) {
            offload.close_lost_pinholes(&lost);
        }
        of_rules
    }

    fn open_in_rules(
        &mut self,
        opening: &Opening,
        closed: &[PinholeEnds],
    ) -> Result<(), KernelError> {
        match &mut self.backend {
            RunningBackend::Nftables(pinholes) => {
                if let Some(offload) = &self.offload {
                    offload.note_rules_pinhole(opening);
                }
                pinholes.open(opening, closed)
            }
            RunningBackend::Conntrack(expectations) => expectations.open(opening, closed),
        }
    }

    fn close_in_rules(&mut self, closed: &[PinholeEnds]) -> Result<(), KernelError> {
        match &mut self.backend {
            RunningBackend::Nftables(pinholes) => pinholes.close(closed),
            RunningBackend::Conntrack(expectations) => expectations.close(closed),
        }
    }
}

impl Kernel for LinuxKernel {
    fn lookup_translation(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Result<Option<Translation>, KernelError> {
        self.conntrack.translation(client, server)
    }

    fn has_route(&mut self, lookup: RouteLookup) -> Result<bool, KernelError> {
        self.routes.has_route(lookup)
    }

    fn drops_unadmitted(&mut self, interfaces: [u32; 2], server: SocketAddr) -> bool {
        if !self.rules_budget.allows(Instant::now()) {
            return false;
        }
        let stopwatch = Stopwatch::start();
        let is_dropped = self.known_rules.drop_connection(interfaces, server);
        self.rules_budget.charge(stopwatch.elapsed());
        is_dropped
    }

    fn open(&mut self, opening: &Opening, closings: &[Closing]) -> Result<(), KernelError> {
        let closed = self.close_in_program(closings);
        if let Err(error) = self.check_free(opening) {
            self.close_in_rules(&closed).map_err(KernelError::not_closed)?;
            return Err(error);
        }
        let opened = self.open_in_rules(opening, &closed);
        if let (Err(_), Some(offload)) = (&opened, &self.offload) {
            offload.release_pinhole(&opening.ends);
        }
        opened
    }

    fn close(&mut self, closings: &[Closing]) -> Result<(), KernelError> {
        let closed = self.close_in_program(closings);
        self.close_in_rules(&closed)
    }

    fn renew(&mut self, opening: &Opening, installed_in: InstalledIn) -> Result<bool, KernelError> {
        match (installed_in, &mut self.backend, &self.offload) {
            (InstalledIn::Program(id), _, Some(offload)) => Ok(offload.renew_pinhole(opening, id)),
            (InstalledIn::Program(_), _, None) => Ok(false),
            (InstalledIn::Rules, RunningBackend::Nftables(pinholes), offload) => {
                let renewed = pinholes.renew(opening);
                if let (Ok(true), Some(offload)) = (&renewed, offload) {
                    offload.note_rules_pinhole(opening);
                }
                renewed
            }
            (InstalledIn::Rules, RunningBackend::Conntrack(expectations), _) => {
                expectations.renew(opening)
            }
        }
    }

    fn find_consumed(&mut self, pinholes: &[PinholeEnds]) -> Result<Vec<PinholeEnds>, KernelError> {
        if !self.list_budget.allows(Instant::now()) {
            return Ok(Vec::new());
        }
        let stopwatch = Stopwatch::start();
        let listed = self.list_all();
        self.list_budget.charge(stopwatch.elapsed());
        let failed = |error: NetfilterError| KernelError::System {
            what: "look for consumed pinholes".into(),
            source: io::Error::other(error.to_string()),
        };
        // A table that is loaded again gets its pinholes back.
        let Some(open) = listed.map_err(failed)? else { return Ok(Vec::new()) };
        let open: HashSet<_> = open.iter().map(OpenPinhole::key).collect();
        let is_consumed = |pinhole: &&PinholeEnds| !open.contains(&pinhole.key());
        Ok(pinholes.iter().filter(is_consumed).copied().collect())
    }

    fn pinhole_capacity(&self) -> usize {
        match &self.backend {
            RunningBackend::Nftables(_) => PinholeSets::CAPACITY,
            RunningBackend::Conntrack(expectations) => expectations.capacity(),
        }
    }

    fn uses_expectations(&self) -> bool {
        matches!(self.backend, RunningBackend::Conntrack(_))
    }

    fn is_running(&mut self, control: &Translation) -> Result<bool, KernelError> {
        Ok(self.lookup_translation(control.client, control.server)?.is_some()
            && !self.conntrack.is_over(control)?)
    }

    fn open_range(&mut self, range: &OpenRange) -> Result<(), KernelError> {
        match &mut self.backend {
            RunningBackend::Nftables(sets) => sets.open_range(range),
            RunningBackend::Conntrack(expectations) => expectations.open_range(range),
        }
    }

    fn close_range(&mut self, range: &OpenRange) -> Result<(), KernelError> {
        match &mut self.backend {
            RunningBackend::Nftables(sets) => sets.close_range(range),
            RunningBackend::Conntrack(expectations) => expectations.close_range(range),
        }
    }

    fn set_queue_mode(
        &mut self,
        control: &Translation,
        mode: QueueMode,
    ) -> Result<(), KernelError> {
        self.conntrack.set_mark_and_liberal(control, mode)
    }

    fn apply_flow_changes(&mut self, changes: &[FlowChange]) {
        if let Some(offload) = &self.offload {
            offload.apply_changes(changes);
        }
    }

    fn stop_flow(&mut self, flow: u64) -> bool {
        self.offload.as_ref().is_none_or(|offload| offload.stop(flow))
    }

    /// A bridge without an address has no route for any packet, so only the first error that says so is returned.
    fn inject(&mut self, packet: &[u8], source: IpAddr, ct_mark: u32) -> Result<(), KernelError> {
        let injected = self.injector.inject(packet, source, ct_mark);
        let has_no_route = matches!(&injected, Err(KernelError::System { source, .. })
            if matches!(source.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable));
        if has_no_route && mem::replace(&mut self.has_reported_no_route, true) {
            return Ok(());
        }
        injected
    }
}
