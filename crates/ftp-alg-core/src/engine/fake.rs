//! A kernel for tests: it knows every connection, opens what it is asked for, and records that.

use std::net::{IpAddr, SocketAddr};

use crate::engine::{
    Closing, FlowChange, InstalledIn, Kernel, KernelError, OpenRange, Opening, PinholeEnds,
    QueueMode, RouteLookup, Translation,
};

/// See the module.
#[derive(Debug, Default)]
pub struct FakeKernel {
    /// The translation of all connections. Without it, only servers are translated, as `published` says.
    pub translation: Option<Translation>,
    /// The address of all servers as their clients see it.
    pub published: Option<IpAddr>,
    /// The only routes that there are; `None`: each address has a route to each interface.
    pub routes: Option<Vec<(IpAddr, u32)>>,
    /// The number of route lookups.
    pub route_lookups: usize,
    /// Whether conntrack was flushed, and no packet has passed since.
    pub was_flushed: bool,
    /// The open pinholes.
    pub open: Vec<PinholeEnds>,
    /// How many pinholes may be open, if there is a limit.
    pub limit: Option<usize>,
    /// The open ranges.
    pub ranges: Vec<OpenRange>,
    /// The number of pinholes that were ever opened.
    pub opened: usize,
    /// The number of lookups of consumed pinholes.
    pub consumed_lookups: usize,
    /// The renewals.
    pub renewals: Vec<(Opening, InstalledIn)>,
    /// The injected packets.
    pub injected: Vec<Vec<u8>>,
    /// The last queue mode that was set.
    pub mode: Option<QueueMode>,
    /// Whether the fast path goes on with connections that it is to stop.
    pub never_stops: bool,
    /// How many connections it was to stop.
    pub stops: usize,
    /// The changes of connections on the fast path.
    pub changes: Vec<FlowChange>,
    /// Whether its pinholes are expectations.
    pub uses_expectations: bool,
    /// The closings of the fast path's pinholes.
    pub program_closings: Vec<Closing>,
    /// The error of each opening and each closing.
    pub refuses: Option<fn() -> KernelError>,
    /// The number of closings that it was asked for.
    pub asked_closings: usize,
}

impl Kernel for FakeKernel {
    fn lookup_translation(
        &mut self,
        a: SocketAddr,
        b: SocketAddr,
    ) -> Result<Option<Translation>, KernelError> {
        if self.was_flushed {
            return Ok(None);
        }
        let (client, server) = if b.port() == 21 { (a, b) } else { (b, a) };
        let published = self.published.map(|address| SocketAddr::new(address, server.port()));
        let server_external = published.unwrap_or(server);
        let plain = Translation { server_external, ..Translation::identity(client, server) };
        Ok(Some(self.translation.unwrap_or(plain)))
    }

    fn has_route(&mut self, lookup: RouteLookup) -> Result<bool, KernelError> {
        self.route_lookups += 1;
        Ok(self
            .routes
            .as_ref()
            .is_none_or(|routes| routes.contains(&(lookup.address, lookup.interface))))
    }

    fn uses_expectations(&self) -> bool {
        self.uses_expectations
    }

    fn open(&mut self, opening: &Opening, closings: &[Closing]) -> Result<(), KernelError> {
        self.close(closings)?;
        if self.open.iter().any(|open| open.key() == opening.ends.key()) {
            return Err(KernelError::Taken);
        }
        if self.limit.is_some_and(|limit| self.open.len() >= limit) {
            return Err(KernelError::Full { what: "the limit" });
        }
        self.open.push(opening.ends);
        self.opened += 1;
        Ok(())
    }

    fn close(&mut self, closings: &[Closing]) -> Result<(), KernelError> {
        self.asked_closings += closings.len();
        if let Some(error) = self.refuses {
            return Err(error());
        }
        for closing in closings {
            match closing {
                Closing::Rules(ends) => self.open.retain(|open| open.key() != ends.key()),
                closing => self.program_closings.push(*closing),
            }
        }
        Ok(())
    }

    fn renew(&mut self, opening: &Opening, installed_in: InstalledIn) -> Result<bool, KernelError> {
        self.renewals.push((*opening, installed_in));
        Ok(self.open.contains(&opening.ends))
    }

    fn find_consumed(&mut self, pinholes: &[PinholeEnds]) -> Result<Vec<PinholeEnds>, KernelError> {
        self.consumed_lookups += 1;
        Ok(pinholes.iter().filter(|pinhole| !self.open.contains(pinhole)).copied().collect())
    }

    fn open_range(&mut self, range: &OpenRange) -> Result<(), KernelError> {
        self.close_range(range)?;
        self.ranges.push(range.clone());
        Ok(())
    }

    fn close_range(&mut self, range: &OpenRange) -> Result<(), KernelError> {
        self.ranges.retain(|one| one.key() != range.key());
        self.refuses.map_or(Ok(()), |error| Err(error()))
    }

    fn set_queue_mode(&mut self, _: &Translation, mode: QueueMode) -> Result<(), KernelError> {
        if self.was_flushed {
            return Err(KernelError::Unknown);
        }
        self.mode = Some(mode);
        Ok(())
    }

    fn apply_flow_changes(&mut self, changes: &[FlowChange]) {
        self.changes.extend(changes);
    }

    fn stop_flow(&mut self, _: u64) -> bool {
        self.stops += 1;
        !self.never_stops
    }

    fn inject(&mut self, packet: &[u8], _: IpAddr, _: u32) -> Result<(), KernelError> {
        self.injected.push(packet.to_vec());
        Ok(())
    }
}
