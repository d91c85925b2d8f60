//! Packets through the queue: many logged-in control connections whose packets this makes itself,
//! both ends of them, so that no TCP stack stands in the way. Commands and replies follow each other
//! in order.
//!
//! It runs on the reader's core and before it: it fills the queue, then sleeps until that is read.
//! So the reader always finds many packets, as one does that cannot keep up, and never loses one. On
//! a core of its own the generator would be slower than a good reader, which then wakes and sleeps
//! for each packet; and waking another core costs more than anything that is measured here.
//!
//! It stands at the other ends of the gateway's cables, and needs to hear nothing: both ends'
//! numbers are its own, masquerading keeps ports that are free, and what arrives is counted by the
//! interfaces.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    cable::{
        ACK, Cable, Counters,
        End::{self, Client, Server},
        Flow, PUSH_ACK, SYN, Side,
    },
    load::BenchReport,
};

/// Control connections. Twice what is under way, so that a reply is sent only when the command
/// that it answers has arrived.
const CONNECTIONS: u16 = 256;

/// Packets under way: fewer than a queue or a reader's socket takes by default.
const MAX_IN_FLIGHT: u64 = 128;

/// When so few are left, it is time for more.
const LOW_WATER: u64 = 16;

/// The reader's time between two looks at what has arrived.
const PAUSE: Duration = Duration::from_micros(200);

/// One that a gateway has to read: it is not among those that the rules of `ftp-alg` let pass once a
/// dialogue is known.
const COMMAND: &[u8] = b"CWD p b\r\n";

/// The first client port.
const FIRST_PORT: u16 = 20_000;

/// After so long without a packet those under way are taken for lost.
const LOSS_TIMEOUT: Duration = Duration::from_millis(300);

/// What to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The client's and the server's.
    pub sides: [Side; 2],
    /// For how long.
    pub time: Duration,
}

/// Does what is ordered.
pub fn run(order: &Order) -> io::Result<BenchReport> {
    let [client, server] = &order.sides;
    let mut flood = Flood {
        cables: [Cable::open(client)?, Cable::open(server)?],
        counters: Counters::open(&order.sides)?,
        connections: (0..CONNECTIONS).map(|number| Flow::new([FIRST_PORT + number, 21])).collect(),
        sent: 0,
        arrived: 0,
        lost: 0,
    };
    flood.open()?;
    let arrived = flood.counters.arrived()?;
    let (start, lost) = (Instant::now(), flood.lost);
    while start.elapsed() < order.time {
        flood.send_round(Client, COMMAND)?;
        flood.send_round(Server, b"250 fine\r\n")?;
    }
    let elapsed = start.elapsed();
    let arrived = flood.counters.arrived()? - arrived;
    let lost = flood.lost - lost;
    Ok(BenchReport {
        rate: arrived as f64 / elapsed.as_secs_f64(),
        total: flood.sent as f64,
        errors: lost,
        error: (lost > 0).then(|| format!("{lost} packets did not arrive")),
        ..BenchReport::default()
    })
}

struct Flood {
    /// To the client's and to the server's side.
    cables: [Cable; 2],
    counters: Counters,
    /// Each has a client port of its own.
    connections: Vec<Flow>,
    sent: u64,
    /// As far as it is known.
    arrived: u64,
    lost: u64,
}

impl Flood {
    /// Handshakes and logins.
    fn open(&mut self) -> io::Result<()> {
        self.counters.restart()?;
        self.send_on_all(Client, SYN, b"")?;
        self.send_on_all(Server, SYN | ACK, b"")?;
        self.send_on_all(Client, ACK, b"")?;
        self.send_round(Server, b"220 ready\r\n")?;
        self.send_round(Client, b"USER lab\r\n")?;
        self.send_round(Server, b"331 password\r\n")?;
        self.send_round(Client, b"PASS lab\r\n")?;
        self.send_round(Server, b"230 logged in\r\n")
    }

    /// A line on every connection.
    fn send_round(&mut self, from: End, line: &[u8]) -> io::Result<()> {
        self.send_on_all(from, PUSH_ACK, line)
    }

    fn send_on_all(&mut self, from: End, flags: u8, payload: &[u8]) -> io::Result<()> {
        for number in 0..usize::from(CONNECTIONS) {
            self.wait_for_room()?;
            self.connections[number].send(&self.cables, from, flags, payload)?;
            self.sent += 1;
        }
        Ok(())
    }

    /// Waits until only [`FEW`] are under way, if [`UNDER_WAY`] are.
    fn wait_for_room(&mut self) -> io::Result<()> {
        if self.sent < self.arrived + MAX_IN_FLIGHT {
            return Ok(());
        }
        let start = Instant::now();
        loop {
            self.arrived = self.counters.arrived()? + self.lost;
            if self.sent <= self.arrived + LOW_WATER {
                return Ok(());
            }
            if start.elapsed() > LOSS_TIMEOUT {
                self.lost += self.sent.saturating_sub(self.arrived);
                self.arrived = self.sent;
                return Ok(());
            }
            thread::sleep(PAUSE);
        }
    }
}
