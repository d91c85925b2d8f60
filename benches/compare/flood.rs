//! Packets through the queue: many logged-in control connections. This program builds the packets of both ends itself,
//! so no TCP stack limits the rate. Commands and replies are in order.
//!
//! The generator runs on the reader's core, with a higher priority: it fills the queue, then sleeps until the reader
//! has read it. So the reader always finds many packets, like a reader under full load, and loses none. On a core of
//! its own the generator would be slower than a good reader. The reader would then wake and sleep for each packet, and
//! waking another core costs more than the work that is measured here.
//!
//! The generator is at the other ends of the gateway's cables, and receives nothing. It knows the sequence numbers of
//! both ends, masquerading preserves free ports, and the interfaces count the arrivals.

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

/// The number of control connections: twice the packets in flight, so that a reply is sent only after its command has
/// arrived.
const CONNECTIONS: u16 = 256;

/// The largest number of packets in flight: fewer than a queue or a reader's socket holds by default.
const MAX_IN_FLIGHT: u64 = 128;

/// When so few packets are in flight, more are sent.
const LOW_WATER: u64 = 16;

/// The pause between two looks at the counters, in which the reader runs.
const PAUSE: Duration = Duration::from_micros(200);

/// A command that the gateway must inspect: the rules of `ftp-alg` do not let it bypass the queue.
const COMMAND: &[u8] = b"CWD p b\r\n";

/// The first client port.
const FIRST_PORT: u16 = 20_000;

/// After this time without an arrival, the packets in flight count as lost.
const LOSS_TIMEOUT: Duration = Duration::from_millis(300);

/// The parameters of the measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The sides of client and server.
    pub sides: [Side; 2],
    /// The duration.
    pub time: Duration,
}

/// Runs the measurement.
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
    /// The cables to the client's and to the server's side.
    cables: [Cable; 2],
    counters: Counters,
    /// The control connections, each with its own client port.
    connections: Vec<Flow>,
    sent: u64,
    /// How many packets had arrived at the last look.
    arrived: u64,
    lost: u64,
}

impl Flood {
    /// Opens all connections and logs in.
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

    /// Sends a line on every connection.
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

    /// If [`MAX_IN_FLIGHT`] packets are in flight, waits until only [`LOW_WATER`] are.
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
