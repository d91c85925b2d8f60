//! A kernel for tests: it knows every connection, opens what it is asked for, and records that.

use std::net::{IpAddr, SocketAddr};

use crate::engine::{
    FastPathPinhole, FastPathPinholeClosing, FlowChange, Kernel, KernelError, Opening, Pinhole,
    QueueMode, Renewal, RouteLookup, Translation,
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
    pub open: Vec<Pinhole>,
    /// The number of pinholes that were ever opened.
    pub opened: usize,
    /// The number of lookups of consumed pinholes.
    pub consumed_lookups: usize,
    /// The renewals.
    pub renewals: Vec<Renewal>,
    /// The injected packets.
    pub injected: Vec<Vec<u8>>,
    /// The last queue mode that was set.
    pub mode: Option<QueueMode>,
    /// The changes of connections on the fast path.
    pub changes: Vec<FlowChange>,
    /// The pinholes of the fast path that were closed.
    pub fast_path_closings: Vec<FastPathPinholeClosing>,
    /// The same, of no session.
    pub lost_fast_path_pinholes: Vec<FastPathPinhole>,
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

    fn update_pinholes(
        &mut self,
        closed: &[Pinhole],
        openings: &[Opening],
        outcomes: &mut Vec<Result<(), KernelError>>,
    ) -> Result<(), KernelError> {
        self.open.retain(|pinhole| !closed.contains(pinhole));
        for Opening { pinhole, .. } in openings {
            let ends = |open: &Pinhole| (open.initiator, open.arrival);
            let is_taken = self.open.iter().any(|open| ends(open) == ends(pinhole));
            if !is_taken {
                self.open.push(*pinhole);
                self.opened += 1;
            }
            outcomes.push(if is_taken { Err(KernelError::Taken) } else { Ok(()) });
        }
        Ok(())
    }

    fn renew_pinholes(&mut self, renewals: &[Renewal]) -> Vec<Result<bool, KernelError>> {
        self.renewals.extend(renewals);
        renewals.iter().map(|renewal| Ok(self.open.contains(&renewal.opening.pinhole))).collect()
    }

    fn find_consumed(&mut self, pinholes: &[Pinhole]) -> Result<Vec<Pinhole>, KernelError> {
        self.consumed_lookups += 1;
        Ok(pinholes.iter().filter(|pinhole| !self.open.contains(pinhole)).copied().collect())
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

    fn close_fast_path_pinholes(&mut self, closings: &[FastPathPinholeClosing]) {
        self.fast_path_closings.extend(closings);
    }

    fn close_lost_fast_path_pinholes(&mut self, lost: &[FastPathPinhole]) {
        self.lost_fast_path_pinholes.extend(lost);
    }

    fn inject(&mut self, packet: &[u8], _: IpAddr, _: u32) -> Result<(), KernelError> {
        self.injected.push(packet.to_vec());
        Ok(())
    }
}
