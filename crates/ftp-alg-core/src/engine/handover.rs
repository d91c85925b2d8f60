//! What the engine and the program in the kernel tell each other of connections that it judges.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::Translation;
use crate::{ftp::Zeros, session::Side};

/// A connection that was handed over so often and of which nothing was judged then is not handed over again.
const FRUITLESS: u8 = 3;

/// What of a connection was judged in the kernel.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Judging {
    /// How many lines of it were, ever.
    pub(super) lines: u32,
    /// Whether it is handed over.
    pub(super) is_handed_over: bool,
    /// How often in a row nothing was judged.
    pub(super) fruitless: u8,
    /// Whether it is to be handed over as soon as its translation is known.
    #[serde(skip)]
    pub(super) awaits_translation: bool,
    /// Whether nothing of it was judged since it was handed over, and its server had not greeted then.
    #[serde(skip)]
    pub(super) is_silent: bool,
    /// Whether one of its announcements kept its length by another external port, so that it was not judged.
    #[serde(skip)]
    pub(super) has_other_port: bool,
}

impl Judging {
    /// Whether lines of it were judged, and others may be.
    pub(super) fn is_fruitful(&self) -> bool {
        self.lines > 0 && self.may_be_handed_over()
    }

    pub(super) fn may_be_handed_over(&self) -> bool {
        self.fruitless < FRUITLESS
    }

    /// It is counted as silent no more. 1 if it was.
    pub(super) fn end_silence(&mut self) -> u32 {
        std::mem::take(&mut self.is_silent).into()
    }

    /// It could not be handed over, or nothing was judged since.
    pub(super) fn note_fruitless(&mut self) {
        self.fruitless = self.fruitless.saturating_add(1);
    }
}

/// A pinhole that the program opened: its connection, and which line of it that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hole {
    /// The session's number.
    pub flow: u64,
    /// Its line, from 1.
    pub line: u32,
}

/// How far a client is that logs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// The server has not greeted.
    Silent,
    /// It has.
    Greeted,
    /// The client has logged in.
    Done,
}

/// A connection for the program to judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The session's number.
    pub flow: u64,
    /// How many lines of it were judged before.
    pub lines: u32,
    /// The next sequence numbers of client and server.
    pub next: [u32; 2],
    /// What of the login is over. Before all of it is, nothing else is judged.
    pub login: Login,
    /// How its ends see each other; of IPv4.
    pub translation: Translation,
    /// The address that an announcement of the client names in the place of its own, and one of the server.
    pub named: [Ipv4Addr; 2],
    /// How a `PORT` that is rewritten keeps its length.
    pub zeros: Zeros,
    /// The client's sequence numbers and the server's, if they are adjusted: then a line may change its length.
    pub shifts: Option<[Shift; 2]>,
    /// How long an unused pinhole lives.
    pub lifetime: Duration,
}

/// Where the sequence numbers of one end are: by how much they are shifted, and from which sent one on. Earlier ones may be
/// shifted by something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shift {
    /// Delivered minus sent.
    pub by: u32,
    /// A sent number.
    pub since: u32,
}

/// A connection that the program is to leave alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenBack {
    /// The session's number.
    pub flow: u64,
    /// How its ends see each other.
    pub translation: Translation,
}

/// What the program is to be told, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowChange {
    /// It judges this one from now on.
    Over(Handover),
    /// It does not any more.
    Back(TakenBack),
}

/// What the program is to be told of the connections of one engine. Threads conclude batches in one order and may go on in
/// another, so who tells it says all that was decided by then, in the order in which it was decided.
#[derive(Clone, Debug, Default)]
pub struct FlowChanges(Arc<Untold>);

#[derive(Debug, Default)]
struct Untold {
    changes: Mutex<Vec<FlowChange>>,
    /// Held by who tells it. Taken before the other.
    telling: Mutex<()>,
}

impl FlowChanges {
    pub(super) fn add(&self, changes: &mut Vec<FlowChange>) {
        if !changes.is_empty() {
            lock(&self.0.changes).append(changes);
        }
    }

    /// Has `tell` tell it what it was not told yet. When this returns all that was decided before was told, by whomever.
    pub fn tell(&self, tell: impl FnOnce(&[FlowChange])) {
        let _telling = lock(&self.0.telling);
        let changes = std::mem::take(&mut *lock(&self.0.changes));
        if !changes.is_empty() {
            tell(&changes);
        }
    }
}

/// What a panic left is whole: changes are added and taken in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line that the program has judged, as it came; or a FIN.
#[derive(Clone, Copy, Debug)]
pub struct JudgedLine<'l> {
    /// The session's number.
    pub flow: u64,
    /// Which line of it this is, from 1.
    pub line: u32,
    /// When it was judged.
    pub at: Instant,
    /// Who said it.
    pub from: Side,
    /// The ends, as packets at our hooks show them.
    pub client: SocketAddrV4,
    /// The same.
    pub server: SocketAddrV4,
    /// Its sequence number, and what it acknowledges.
    pub seq: u32,
    /// The same.
    pub ack: u32,
    /// The window that its packet offers.
    pub window: u16,
    /// Whether a pinhole was opened for it.
    pub opened: bool,
    /// The line of its connection whose pinhole was found gone: the program need not close that.
    pub consumed: Option<u32>,
    /// Whether it is a FIN, and no line.
    pub ends: bool,
    /// How a `PORT` kept its length then.
    pub zeros: Zeros,
    /// The line, with its end.
    pub bytes: &'l [u8],
}
