//! The running kernel, as the engine uses it: looks up translations, opens and closes pinholes, injects packets.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use ftp_alg_core::engine::{
    FastPathPinhole, FastPathPinholeClosing, FlowChange, Kernel, KernelError, Opening, Pinhole,
    QueueMode, Renewal, RouteLookup, Translation,
};

use super::{
    Backend, ClaimedPorts, Commits, Conntrack, Expectations, GatewayError, Injector, OpenPinhole,
    Pinholes, RuleParameters, flows::FastPathFlows, routes::Routes,
};

/// The running kernel, in the network namespace of the thread that creates this. One for each thread. It needs the
/// loaded [`Table`], which all threads share.
#[derive(Debug)]
pub struct LinuxKernel {
    backend: PinholeBackend,
    conntrack: Conntrack,
    routes: Routes,
    injector: Injector,
    claimed_ports: ClaimedPorts,
    /// The fast path's flows, if there is a fast path.
    flows: Option<Arc<FastPathFlows>>,
}

/// The back end that implements pinholes.
#[derive(Debug)]
enum PinholeBackend {
    Nftables(Pinholes),
    Conntrack(Expectations),
}

impl LinuxKernel {
    /// Opens all sockets; needs CAP_NET_ADMIN and CAP_NET_RAW.
    pub fn new(parameters: &RuleParameters) -> Result<Self, GatewayError> {
        Ok(Self {
            backend: match parameters.backend() {
                Backend::Nftables => PinholeBackend::Nftables(Pinholes::new()?),
                Backend::Conntrack => PinholeBackend::Conntrack(Expectations::new(parameters)?),
            },
            conntrack: Conntrack::new(parameters)?,
            routes: Routes::new().map_err(|e| GatewayError::system("rtnetlink", e))?,
            injector: Injector::new(parameters)?,
            claimed_ports: ClaimedPorts::default(),
            flows: None,
        })
    }

    /// Counts each nf_tables transaction in `commits`.
    pub fn with_commits(self, commits: &Commits) -> Self {
        let holder = match self.backend {
            PinholeBackend::Nftables(pinholes) => {
                PinholeBackend::Nftables(pinholes.with_commits(commits))
            }
            other => other,
        };
        Self { backend: holder, ..self }
    }

    /// Opens no translated pinhole at a port in `claimed`.
    pub fn avoiding_ports(self, claimed: &ClaimedPorts) -> Self {
        Self { claimed_ports: claimed.clone(), ..self }
    }

    /// Updates the fast path about connections and pinholes.
    pub fn with_flows(self, flows: Option<&Arc<FastPathFlows>>) -> Self {
        Self { flows: flows.cloned(), ..self }
    }

    /// [`KernelError::Taken`] if the pinhole is translated and its arrival port is in use.
    fn check_arrival(&self, pinhole: &Pinhole) -> Result<(), KernelError> {
        let Pinhole { arrival, target, .. } = *pinhole;
        if arrival == target {
            return Ok(());
        }
        match self.claimed_ports.is_claimed(arrival, target) {
            // The BPF program would admit its own connection there.
            Ok(false)
                if self.flows.as_ref().is_some_and(|flows| !flows.reserve_pinhole(pinhole)) =>
            {
                Err(KernelError::Taken)
            }
            Ok(false) => Ok(()),
            Ok(true) => Err(KernelError::Taken),
            Err(source) => {
                Err(KernelError::System { what: format!("look whether {arrival} is free"), source })
            }
        }
    }

    /// The open pinholes of the BPF program.
    pub fn list_fast_path_pinholes(&self) -> Result<Vec<OpenPinhole>, GatewayError> {
        let Some(flows) = &self.flows else { return Ok(Vec::new()) };
        let open = flows.program().list_open_pinholes();
        let open = open.map_err(|source| GatewayError::system("list of pinholes", source))?;
        let row = |(initiator, arrival, remaining): (Ipv4Addr, SocketAddrV4, Duration)| {
            OpenPinhole { initiator: initiator.into(), arrival: arrival.into(), remaining }
        };
        Ok(open.into_iter().map(row).collect())
    }

    /// The open pinholes of the rules, or the expectations, according to the kernel. With [`Backend::Conntrack`] this
    /// includes expectations of other helpers.
    pub fn list_open(&mut self) -> Result<Vec<OpenPinhole>, GatewayError> {
        match &mut self.backend {
            PinholeBackend::Nftables(pinholes) => pinholes.list_open(),
            PinholeBackend::Conntrack(expectations) => expectations.list_open(),
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

    fn update_pinholes(
        &mut self,
        closed: &[Pinhole],
        openings: &[Opening],
        outcomes: &mut Vec<Result<(), KernelError>>,
    ) -> Result<(), KernelError> {
        if let Some(flows) = &self.flows {
            closed.iter().for_each(|pinhole| flows.release_pinhole(pinhole));
        }
        let checked: Vec<_> =
            openings.iter().map(|opening| self.check_arrival(&opening.pinhole)).collect();
        let passed = openings.iter().zip(&checked).filter(|(_, checked)| checked.is_ok());
        let passed: Vec<_> = passed.map(|(opening, _)| *opening).collect();
        let mut answers = Vec::with_capacity(passed.len());
        let changed = match &mut self.backend {
            PinholeBackend::Nftables(pinholes) => pinholes.change(closed, &passed, &mut answers),
            PinholeBackend::Conntrack(expectations) => {
                expectations.change(closed, &passed, &mut answers)
            }
        };
        if let Some(flows) = &self.flows {
            let is_open = |at| changed.is_ok() && !matches!(answers.get(at), Some(Err(_)));
            let failed = passed.iter().enumerate().filter(|(at, _)| !is_open(*at));
            failed.for_each(|(_, opening)| flows.release_pinhole(&opening.pinhole));
        }
        changed?;
        let mut answers = answers.into_iter();
        outcomes.clear();
        outcomes.extend(
            checked
                .into_iter()
                .map(|checked| checked.and_then(|()| answers.next().unwrap_or(Ok(())))),
        );
        Ok(())
    }

    fn renew_pinholes(&mut self, renewals: &[Renewal]) -> Vec<KernelError> {
        let mut renew = |Renewal { opening, fast_path }: &Renewal| match (
            fast_path,
            &mut self.backend,
            &self.flows,
        ) {
            (Some(id), _, Some(flows)) => {
                flows.renew_pinhole(opening, *id);
                Ok(())
            }
            (Some(_), _, None) => Ok(()),
            (None, PinholeBackend::Nftables(pinholes), _) => pinholes.renew(opening),
            (None, PinholeBackend::Conntrack(expectations), _) => expectations.renew(opening),
        };
        renewals.iter().filter_map(|renewal| renew(renewal).err()).collect()
    }

    fn pinhole_capacity(&self) -> usize {
        match &self.backend {
            PinholeBackend::Nftables(_) => Pinholes::CAPACITY,
            PinholeBackend::Conntrack(expectations) => expectations.capacity(),
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
        if let Some(flows) = &self.flows {
            flows.apply_changes(changes);
        }
    }

    fn close_fast_path_pinholes(&mut self, shut: &[FastPathPinholeClosing]) {
        if let Some(flows) = &self.flows {
            flows.close_pinholes(shut);
        }
    }

    fn close_lost_fast_path_pinholes(&mut self, lost: &[FastPathPinhole]) {
        if let Some(flows) = &self.flows {
            flows.close_lost_pinholes(lost);
        }
    }

    fn inject(&mut self, packet: &[u8], source: IpAddr, ct_mark: u32) -> Result<(), KernelError> {
        self.injector.inject(packet, source, ct_mark)
    }
}
