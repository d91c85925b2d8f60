//! A kernel for tests: it knows every connection, opens what it is asked for, and records that.

use std::net::{IpAddr, SocketAddr};

use crate::engine::{Closing, Kernel, KernelError, Opening, PinholeEnds, QueueMode, Translation};

/// See the module.
#[derive(Debug, Default)]
pub struct FakeKernel {
    /// The address of all servers as their clients see it.
    pub published: Option<IpAddr>,
    /// Whether conntrack was flushed, and no packet has passed since.
    pub was_flushed: bool,
    /// The open pinholes.
    pub open: Vec<PinholeEnds>,
    /// How many pinholes may be open, if there is a limit.
    pub limit: Option<usize>,
    /// The number of pinholes that were ever opened.
    pub opened: usize,
    /// The injected packets.
    pub injected: Vec<Vec<u8>>,
    /// Whether its pinholes are expectations.
    pub uses_expectations: bool,
    /// The error of each opening and each closing.
    pub refuses: Option<fn() -> KernelError>,
    /// The number of closings that it was asked for.
    pub asked_closings: usize,
}

impl Kernel for FakeKernel {
    fn lookup_translation(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Result<Option<Translation>, KernelError> {
        if self.was_flushed {
            return Ok(None);
        }
        let published = self.published.map(|address| SocketAddr::new(address, server.port()));
        let server_external = published.unwrap_or(server);
        Ok(Some(Translation { server_external, ..Translation::identity(client, server) }))
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
            if let Closing::Rules(ends) = closing {
                self.open.retain(|open| open.key() != ends.key());
            }
        }
        Ok(())
    }

    fn set_queue_mode(&mut self, _: &Translation, _: QueueMode) -> Result<(), KernelError> {
        if self.was_flushed { Err(KernelError::Unknown) } else { Ok(()) }
    }

    fn inject(&mut self, packet: &[u8], _: IpAddr, _: u32) -> Result<(), KernelError> {
        self.injected.push(packet.to_vec());
        Ok(())
    }
}
