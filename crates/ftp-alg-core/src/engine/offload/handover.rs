//! The interface between the engine and the fast path's BPF program.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{engine::Translation, ftp::Padding, session::Side};

/// Limit of consecutive handovers during which the BPF program passed no line. After that the connection is not handed
/// over again.
const MAX_IDLE_HANDOVERS: u8 = 3;

/// A connection's state on the fast path.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct FastPathProgress {
    /// Number of lines that the BPF program has passed in total.
    pub(crate) lines_inspected: u32,
    /// Whether the connection is handed over.
    pub(crate) is_handed_over: bool,
    /// Whether the BPF program inspects none of its lines, and those that it had inspected were read: it was stopped, or
    /// the handover is not carried out yet.
    #[serde(skip)]
    pub(crate) is_stopped: bool,
    /// Number of consecutive handovers without a passed line. A restart ends handovers, so those before do not count.
    #[serde(skip)]
    pub(crate) idle_handovers: u8,
    /// Whether it was handed over before the greeting, and no line was passed since.
    #[serde(skip)]
    pub(crate) is_ungreeted: bool,
    /// Whether an announcement got another external port to keep its length, and so was queued.
    #[serde(skip)]
    pub(crate) used_fitting_port: bool,
}

impl FastPathProgress {
    pub(crate) const NONE: Self = Self {
        lines_inspected: 0,
        is_handed_over: false,
        is_stopped: false,
        idle_handovers: 0,
        is_ungreeted: false,
        used_fitting_port: false,
    };

    /// Whether lines were passed, and more may be.
    pub(crate) fn is_worthwhile(&self) -> bool {
        self.lines_inspected > 0 && self.may_be_handed_over()
    }

    pub(crate) fn may_be_handed_over(&self) -> bool {
        self.idle_handovers < MAX_IDLE_HANDOVERS
    }

    /// Clears `is_ungreeted`. Returns 1 if it was set, else 0.
    pub(crate) fn clear_ungreeted(&mut self) -> u32 {
        std::mem::take(&mut self.is_ungreeted).into()
    }

    /// Counts a failed handover, or one without a passed line.
    pub(crate) fn count_idle_handover(&mut self) {
        self.idle_handovers = self.idle_handovers.saturating_add(1);
    }
}

/// A pinhole of the BPF program, identified by the session and the line that opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PinholeId {
    /// Session number.
    pub flow: u64,
    /// Line number in the session, from 1.
    pub line: u32,
}

/// Progress of the login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginStage {
    /// The server has not sent its greeting.
    NotGreeted,
    /// The server has sent its greeting.
    Greeted,
    /// The client has logged in.
    LoggedIn,
}

/// A connection that the BPF program takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Session number.
    pub flow: u64,
    /// Number of lines that were passed before.
    pub lines: u32,
    /// Next expected sequence numbers of client and server.
    pub next_seq: [u32; 2],
    /// Progress of the login. Until it is complete, the program passes only lines of the login.
    pub login: LoginStage,
    /// Translation of the connection.
    pub translation: Translation,
    /// Indices of the interfaces on which client and server are.
    pub interfaces: [u32; 2],
    /// The first and the last port that the client may announce.
    pub client_ports: [u16; 2],
    /// The addresses to announce for the client and for the server.
    pub announced_addresses: [IpAddr; 2],
    /// How a rewritten `PORT` keeps its length.
    pub padding: Padding,
    /// Sequence offsets of client and server. With them, a line may change its length.
    pub seq_offsets: Option<[SequenceOffset; 2]>,
    /// Lifetime of an unused pinhole; `None`: the program opens none, and returns the connection at each announcement.
    pub pinhole_timeout: Option<Duration>,
}

/// The sequence offset of one direction, valid from a certain sequence number on. Earlier numbers may have another
/// offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceOffset {
    /// Delivered minus sent sequence number.
    pub offset: u32,
    /// First sent sequence number with this offset.
    pub first_seq: u32,
}

/// A connection that the BPF program returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withdrawal {
    /// Session number.
    pub flow: u64,
    /// The connection's translation.
    pub translation: Translation,
}

/// A change for the BPF program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowChange {
    /// It takes this connection over.
    Handover(Handover),
    /// It returns this connection.
    Withdraw(Withdrawal),
}

impl FastPathLine<'_> {
    /// The pinhole that was opened for it.
    pub(crate) fn pinhole(&self) -> Option<PinholeId> {
        self.opened_pinhole.then_some(PinholeId { flow: self.flow, line: self.line })
    }
}

/// A line, or a FIN, that the BPF program passed.
#[derive(Clone, Copy, Debug)]
pub struct FastPathLine<'l> {
    /// Session number.
    pub flow: u64,
    /// Line number in the session, from 1.
    pub line: u32,
    /// Time of the packet.
    pub at: Instant,
    /// The end that sent it.
    pub from: Side,
    /// The client's endpoint, as packets at our hooks show it.
    pub client: SocketAddr,
    /// The server's endpoint, as packets at our hooks show it.
    pub server: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// The advertised window.
    pub window: u16,
    /// Whether a pinhole was opened for it.
    pub opened_pinhole: bool,
    /// The line number of a pinhole that was found consumed, so it need not be closed.
    pub consumed_pinhole: Option<u32>,
    /// Whether this is a FIN instead of a line.
    pub is_fin: bool,
    /// How the rewritten `PORT` got its original length.
    pub padding: Padding,
    /// The line, including its line end.
    pub bytes: &'l [u8],
}
