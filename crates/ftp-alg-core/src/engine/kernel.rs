//! What is asked of the kernel, and nothing else.
//!
//! The engine never makes a system call: what it asks is among its [`Effects`](super::Effects), and whoever carries
//! those out asks a [`Kernel`]. The daemon's is `gateway::LinuxKernel`, that of `replay` a simulated NAT, that of tests
//! a recorder.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use super::{FlowChange, Opening, Shut};
use crate::session::Side;

/// How NAT shows the two ends of a control connection to each other.
///
/// At our hooks (forward; input; output after destination NAT) a packet carries the real address
/// of both ends: `client` and `server`. Without NAT the external addresses equal the real ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translation {
    /// The client's own endpoint (conntrack's original source).
    pub client: SocketAddr,
    /// The client as the server sees it (conntrack's reply destination).
    pub client_external: SocketAddr,
    /// The server's own endpoint (conntrack's reply source).
    pub server: SocketAddr,
    /// The server as the client sees it, the one it dialled (conntrack's original destination).
    pub server_external: SocketAddr,
}

impl Translation {
    /// No NAT: both ends see each other's own address.
    pub fn identity(client: SocketAddr, server: SocketAddr) -> Self {
        Self { client, client_external: client, server, server_external: server }
    }

    /// Source and destination of what `to` receives, as it sees them.
    pub fn seen_by(&self, to: Side) -> (SocketAddr, SocketAddr) {
        match to {
            Side::Client => (self.server_external, self.client),
            Side::Server => (self.client_external, self.server),
        }
    }
}

/// Permission for exactly one data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pinhole {
    /// Source address of the connection's first packet, as it arrives at this machine. Its source
    /// port is free.
    pub initiator: IpAddr,
    /// Destination of the connection's first packet, as it arrives at this machine.
    pub arrival: SocketAddr,
    /// Where the connection is sent (destination translation; equal to `arrival` without NAT).
    pub target: SocketAddr,
    /// Source address the target sees (source translation; equal to `initiator` without NAT).
    pub source: IpAddr,
}

impl fmt::Display for Pinhole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.initiator, self.arrival)?;
        if self.target != self.arrival {
            write!(f, " (to {})", self.target)?;
        }
        if self.source != self.initiator {
            write!(f, " (from {})", self.source)?;
        }
        Ok(())
    }
}

/// What later packets of a control connection need, said to the packet selection by ct mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Every packet must be queued, and conntrack must not judge sequence numbers (be-liberal).
    Every,
    /// Every packet is queued for a while, as an acknowledgement shows whose a SYN-ACK was; conntrack goes on judging numbers.
    Watched,
    /// What opens, ends or says something is queued, as of a connection that is new.
    Payload,
    /// No packet is queued any more: not FTP, or opaque and unadjusted.
    None,
}

/// Why the kernel did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The pinhole's initiator and arrival are already those of another pinhole.
    #[error("the port is already taken")]
    Taken,
    /// There is no room for another pinhole.
    #[error("the kernel has no room for another pinhole: {what}")]
    Full {
        /// The limit that was reached.
        what: &'static str,
    },
    /// Conntrack does not know the connection, or not yet: of one that it forgot, the first packet
    /// is known when its verdict is given.
    #[error("conntrack does not know the connection")]
    Unknown,
    /// The system refused; the text names what was asked for.
    #[error("{what}: {source}")]
    System {
        /// What was asked for, as in `open pinhole 10.0.0.1 -> 10.0.0.2:4000`.
        what: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// The kernel, as [`carry_out`](super::carry_out) asks it. Each call has taken effect when it returns.
pub trait Kernel {
    /// The translation of the TCP connection whose packets show these two ends, as conntrack knows it;
    /// `None` when it knows no such connection. Costs a few direct look-ups, however many connections there are.
    fn translation(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Result<Option<Translation>, KernelError>;

    /// Closes `closed`, whether they are open or not, and drops their translations; data connections go on. Then opens
    /// `openings`, each for one connection, or for its lifetime if none comes. All in one transaction where the kernel
    /// can, but for openings that are refused: [`KernelError::Taken`] if initiator and arrival are those of an open
    /// pinhole. Adds one outcome for each opening, in their order; fails if closing does.
    fn change(
        &mut self,
        closed: &[Pinhole],
        openings: &[Opening],
        outcomes: &mut Vec<Result<(), KernelError>>,
    ) -> Result<(), KernelError>;

    /// How many pinholes can be open at a time, at least 1.
    fn capacity(&self) -> usize {
        usize::from(u16::MAX)
    }

    /// Sets what later packets of this control connection need. [`KernelError::Unknown`] if
    /// conntrack does not know it.
    fn attend(&mut self, control: &Translation, attention: Attention) -> Result<(), KernelError>;

    /// Hands connections over to the program in the kernel that judges what recurs, if there is one, and takes others back.
    fn hand_over(&mut self, _changes: &[FlowChange]) {}

    /// Closes pinholes that this program has opened, if they are still open.
    fn shut(&mut self, _shut: &[Shut]) {}

    /// Sends a whole IP packet from this machine, past connection tracking.
    fn inject(&mut self, packet: &[u8]) -> Result<(), KernelError>;
}
