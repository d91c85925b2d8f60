//! The interface to the kernel.
//!
//! The engine makes no system call. It calls a [`Kernel`] where it needs an answer: `kernel::LinuxKernel` in the daemon, a
//! simulated NAT in `replay`, a recorder in tests.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    engine::{FlowChange, OpenRange, PinholeEnds, PinholeId, Translation},
    ftp::AnnouncementKind,
};

/// Which later packets of a control connection are queued. The ct mark stores it for the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueMode {
    /// Every packet is queued, and conntrack must accept any sequence number (be-liberal).
    EveryPacket,
    /// Every packet is queued for a while, because an acknowledgement will show whether a SYN-ACK was spoofed.
    /// Conntrack still checks sequence numbers.
    Watch,
    /// As `Selected`, and pure acknowledgements are queued, too: how much a server may send shows whether its
    /// announcement is a complete reply.
    WithAcknowledgements,
    /// Packets that carry data, and those that open or close the connection, are queued. This is the mode of a new
    /// connection.
    Selected,
    /// No packet is queued: the connection is not FTP, or it is encrypted and not adjusted.
    None,
}

/// Why the kernel refused a request.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Another pinhole has the same initiator and arrival.
    #[error("the port is already taken")]
    Taken,
    /// The limit of pinholes is reached.
    #[error("the kernel has no room for another pinhole: {what}")]
    Full {
        /// Which limit.
        what: &'static str,
    },
    /// Conntrack does not know the connection, or not yet: if it has forgotten a connection, it knows it again once its
    /// next packet has its verdict.
    #[error("conntrack does not know the connection")]
    Unknown,
    /// Closing the old pinhole failed; the new one was not opened.
    #[error("{0}")]
    NotClosed(Box<KernelError>),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// The request, for example `open pinhole 10.0.0.1 -> 10.0.0.2:4000`.
        what: String,
        /// The kernel's error.
        source: std::io::Error,
    },
}

impl KernelError {
    /// This error, as one of a closing.
    pub fn not_closed(self) -> Self {
        Self::NotClosed(Box::new(self))
    }
}

/// A request to open a pinhole.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// The pinhole's ends.
    pub ends: PinholeEnds,
    /// Its control connection.
    pub control: Translation,
    /// The kind of the announcement, which says who opens the data connection.
    pub kind: AnnouncementKind,
    /// How long the pinhole stays open if no connection arrives.
    pub lifetime: Duration,
}

impl Opening {
    /// For a connection of the client, as after a `PASV`.
    pub fn from_client(ends: PinholeEnds, control: Translation, lifetime: Duration) -> Self {
        Self { ends, control, kind: AnnouncementKind::Pasv, lifetime }
    }

    /// Whether the client opens the data connection, not the server.
    pub fn is_from_client(&self) -> bool {
        !self.kind.is_active()
    }
}

/// Who has a pinhole in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstalledIn {
    /// The rules.
    Rules,
    /// The fast path's BPF program, with this identity.
    Program(PinholeId),
}

/// A pinhole to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// Of the rules, with its translations. If its source is its initiator, another pinhole has the same source
    /// translation, which stays.
    Rules(PinholeEnds),
    /// Of the BPF program, if that still has it.
    Program(PinholeEnds, PinholeId),
    /// Of the BPF program, if that still has it. No session has it, so nobody knows its ends.
    Lost(PinholeId),
}

impl Closing {
    pub(crate) fn new(ends: PinholeEnds, installed_in: InstalledIn) -> Self {
        match installed_in {
            InstalledIn::Rules => Self::Rules(ends),
            InstalledIn::Program(id) => Self::Program(ends, id),
        }
    }

    /// The pinhole's ends, if they are known.
    pub fn ends(&self) -> Option<PinholeEnds> {
        match *self {
            Self::Rules(ends) | Self::Program(ends, _) => Some(ends),
            Self::Lost(_) => None,
        }
    }
}

/// A question to the kernel: does a route to this address, for packets with this mark, lead to this interface?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteLookup {
    /// The address.
    pub address: IpAddr,
    /// The interface's index.
    pub interface: u32,
    /// The index of the interface by which the kernel sends packets there, as far as is known; else 0. It tells the
    /// interface of its VRF.
    pub used: u32,
    /// The packet mark, for policy routing.
    pub mark: u32,
}

/// The kernel, as the engine uses it. Each call has taken effect when it returns.
pub trait Kernel {
    /// The translation of the TCP connection whose packets show these two ends, or `None` if conntrack does not know
    /// it. Costs a few lookups, however many connections there are.
    fn lookup_translation(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Result<Option<Translation>, KernelError>;

    /// Whether a route to the address leads to the interface: the best one, or another one with the same prefix. All
    /// answers together take a bounded part of the time; beyond it they are no.
    fn has_route(&mut self, _lookup: RouteLookup) -> Result<bool, KernelError> {
        Ok(true)
    }

    /// Whether the operator's rules certainly drop a connection to this port of the server's that nothing admits.
    /// `interfaces` are the indices of the client's and the server's interface; 0 is this machine. All answers together
    /// take a bounded part of the time; beyond it they are no.
    fn drops_unadmitted(&mut self, _interfaces: [u32; 2], _server: SocketAddr) -> bool {
        false
    }

    /// Closes the pinholes of `closings`, open or not; established data connections stay. Then opens a pinhole, for one
    /// connection or until its lifetime ends. All of it is one transaction if the kernel can. The pinholes are closed also
    /// if the opening is refused, but not if the error is [`KernelError::NotClosed`]. [`KernelError::Taken`] says that an
    /// open pinhole has the same initiator and arrival.
    fn open(&mut self, opening: &Opening, closings: &[Closing]) -> Result<(), KernelError>;

    /// Closes pinholes, open or not; established data connections stay.
    fn close(&mut self, closings: &[Closing]) -> Result<(), KernelError>;

    /// Maximum number of open pinholes; at least 1.
    fn pinhole_capacity(&self) -> usize {
        usize::from(u16::MAX)
    }

    /// Whether pinholes are expectations. Then the fast path's program opens none, each closing is a request of its own, for
    /// which no packet should wait, and a pinhole may stay open beyond its lifetime.
    fn uses_expectations(&self) -> bool {
        false
    }

    /// Renews a pinhole that is still open and not consumed, for its lifetime from now. Returns whether it is open.
    fn renew(
        &mut self,
        _opening: &Opening,
        _installed_in: InstalledIn,
    ) -> Result<bool, KernelError> {
        Ok(true)
    }

    /// The elements of `pinholes` that are no longer open, as far as the kernel can say within a bounded part of the time.
    fn find_consumed(
        &mut self,
        _pinholes: &[PinholeEnds],
    ) -> Result<Vec<PinholeEnds>, KernelError> {
        Ok(Vec::new())
    }

    /// Whether a control connection is there, and its ends have not both closed it as far as the kernel has seen.
    fn is_running(&mut self, control: &Translation) -> Result<bool, KernelError> {
        Ok(self.lookup_translation(control.client, control.server)?.is_some())
    }

    /// Opens a range, or renews it, until it is [closed](Self::close_range): its client may connect to all of its ports.
    fn open_range(&mut self, _range: &OpenRange) -> Result<(), KernelError> {
        Ok(())
    }

    /// Closes a range; established data connections stay.
    fn close_range(&mut self, _range: &OpenRange) -> Result<(), KernelError> {
        Ok(())
    }

    /// Sets which later packets of this control connection are queued. [`KernelError::Unknown`] if conntrack does not
    /// know it.
    fn set_queue_mode(&mut self, control: &Translation, mode: QueueMode)
    -> Result<(), KernelError>;

    /// Hands connections over to the fast path's BPF program and takes others back. Without a fast path it does
    /// nothing.
    fn apply_flow_changes(&mut self, _changes: &[FlowChange]) {}

    /// Tells the fast path's BPF program to inspect no more lines of this connection. When this returns, all that it has
    /// inspected can be read. Returns whether that is so.
    fn stop_flow(&mut self, _flow: u64) -> bool {
        true
    }

    /// Sends an IP packet from this machine, without connection tracking. It is routed as the packets of its connection
    /// are, which have the source address `source` and the operator's bits `ct_mark` in the ct mark.
    fn inject(&mut self, packet: &[u8], source: IpAddr, ct_mark: u32) -> Result<(), KernelError>;
}
