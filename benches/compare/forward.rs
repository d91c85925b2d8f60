//! Other traffic: measures the time of a forwarded packet that belongs to no control connection. Sender and gateway
//! share a core, so the time between two packets is the sum of sending and forwarding. The difference between two
//! contestants is the difference between their rules.

use std::{
    io,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    cable::{
        ACK, Cable, Counters,
        End::{self, Client, Server},
        Flow, PUSH_ACK, SYN, Side, TcpHeader,
    },
    load::BenchReport,
};

/// The kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Traffic {
    /// UDP of one flow.
    Udp,
    /// An established TCP connection, from the client.
    Tcp,
    /// A data connection of FTP, from the server.
    Data,
    /// The first packets of TCP connections.
    New,
}

impl Traffic {
    /// All kinds, in the order of the table.
    pub const ALL: [Self; 4] = [Self::Udp, Self::Tcp, Self::Data, Self::New];

    /// The name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
            Self::Data => "FTP data",
            Self::New => "new connections",
        }
    }
}

/// The parameters of the measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The sides of client and server.
    pub sides: [Side; 2],
    /// The kind of traffic.
    pub traffic: Traffic,
    /// The duration.
    pub time: Duration,
}

/// The destination ports of all traffic except FTP. The firewall accepts them.
pub const FORWARDED_PORTS: [u16; 2] = [5001, 5002];
/// The destination port of the data connection. Only a helper lets it pass.
pub const DATA_PORT: u16 = 5000;

/// A payload that makes IP packets of 64 bytes.
const UDP_PAYLOAD: [u8; 36] = [b'x'; 36];
const TCP_PAYLOAD: [u8; 24] = [b'x'; 24];

/// How many packets are sent between two looks at the clock.
const BATCH: u64 = 64;
/// The largest number of new connections, for which connection tracking has room: from each port to each of
/// [`FORWARDED_PORTS`].
const MOST_NEW: u64 = 100_000;
const FIRST_PORT: u16 = 10_000;
/// Time limit for the arrival of the packets in flight.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(2);

/// Runs the measurement.
pub fn run(order: &Order) -> io::Result<BenchReport> {
    let [client, server] = &order.sides;
    let mut sender = Sender {
        cables: [Cable::open(client)?, Cable::open(server)?],
        counters: Counters::open(&order.sides)?,
        sent: 0,
    };
    sender.counters.restart()?;
    let mut flow = match order.traffic {
        Traffic::Data => sender.data_connection()?,
        _ => sender.connection([FIRST_PORT, FORWARDED_PORTS[0]])?,
    };
    let (before, start, warm) = (sender.sent, Instant::now(), order.time / 10);
    let mut counted = None;
    while start.elapsed() < warm + order.time {
        for _ in 0..BATCH {
            match order.traffic {
                Traffic::Udp => sender.datagram()?,
                Traffic::Tcp => sender.send_segment(&mut flow, Client, PUSH_ACK, &TCP_PAYLOAD)?,
                Traffic::Data => sender.send_segment(&mut flow, Server, PUSH_ACK, &TCP_PAYLOAD)?,
                Traffic::New => sender.send_syn(sender.sent - before)?,
            }
        }
        if counted.is_none() && start.elapsed() >= warm {
            counted = Some((Instant::now(), sender.sent));
        }
        if order.traffic == Traffic::New && sender.sent - before > MOST_NEW - BATCH {
            break;
        }
    }
    let (from, already) = counted.unwrap_or((start, before));
    let elapsed = from.elapsed();
    let lost = sender.wait_for_arrival().err();
    Ok(BenchReport {
        rate: (sender.sent - already) as f64 / elapsed.as_secs_f64(),
        total: (sender.sent - before) as f64,
        errors: u64::from(lost.is_some()),
        error: lost.map(|error| error.to_string()),
        ..BenchReport::default()
    })
}

struct Sender {
    /// The cables to the client's and to the server's side.
    cables: [Cable; 2],
    counters: Counters,
    sent: u64,
}

impl Sender {
    /// Opens a connection between these ports.
    fn connection(&mut self, ports: [u16; 2]) -> io::Result<Flow> {
        let mut flow = Flow::new(ports);
        self.send_segment(&mut flow, Client, SYN, b"")?;
        self.wait_for_arrival()?;
        self.send_segment(&mut flow, Server, SYN | ACK, b"")?;
        self.wait_for_arrival()?;
        self.send_segment(&mut flow, Client, ACK, b"")?;
        self.wait_for_arrival()?;
        Ok(flow)
    }

    /// Opens a data connection that a control connection has announced.
    fn data_connection(&mut self) -> io::Result<Flow> {
        let mut control = self.connection([FIRST_PORT, 21])?;
        let [a, b, c, d] = self.cables[1].side.near.octets();
        let [high, low] = DATA_PORT.to_be_bytes();
        let entering = format!("227 Entering Passive Mode ({a},{b},{c},{d},{high},{low}).\r\n");
        for (end, line) in [
            (Server, "220 ready\r\n"),
            (Client, "USER lab\r\n"),
            (Server, "331 password\r\n"),
            (Client, "PASS lab\r\n"),
            (Server, "230 logged in\r\n"),
            (Client, "PASV\r\n"),
            (Server, &entering),
        ] {
            self.send_segment(&mut control, end, PUSH_ACK, line.as_bytes())?;
            self.wait_for_arrival()?;
        }
        self.connection([FIRST_PORT + 1, DATA_PORT])
    }

    fn send_segment(
        &mut self,
        flow: &mut Flow,
        from: End,
        flags: u8,
        payload: &[u8],
    ) -> io::Result<()> {
        self.sent += 1;
        flow.send(&self.cables, from, flags, payload)
    }

    fn datagram(&mut self) -> io::Result<()> {
        let (near, far) = self.ends();
        self.sent += 1;
        self.cables[0].send_udp(near, far, [FIRST_PORT, FORWARDED_PORTS[0]], &UDP_PAYLOAD)
    }

    /// Sends the first packet of a new connection, the one with this number.
    fn send_syn(&mut self, number: u64) -> io::Result<()> {
        let (near, far) = self.ends();
        let port = FIRST_PORT + 2 + (number / 2) as u16;
        let ports = [port, FORWARDED_PORTS[(number % 2) as usize]];
        let head = TcpHeader { ports, sequence: 1, acknowledged: 0, flags: SYN };
        self.sent += 1;
        self.cables[0].send_tcp(near, far, &head, b"")
    }

    /// The addresses of client and server on the client's side.
    fn ends(&self) -> (Ipv4Addr, Ipv4Addr) {
        let Side { near, far, .. } = self.cables[0].side;
        (near, far)
    }

    /// Waits until all packets have arrived.
    fn wait_for_arrival(&self) -> io::Result<()> {
        let start = Instant::now();
        loop {
            let arrived = self.counters.arrived()?;
            if arrived >= self.sent {
                return Ok(());
            }
            if start.elapsed() > ARRIVAL_LIMIT {
                let lost = self.sent - arrived;
                return Err(io::Error::other(format!("{lost} packets did not arrive")));
            }
            thread::sleep(Duration::from_micros(200));
        }
    }
}
