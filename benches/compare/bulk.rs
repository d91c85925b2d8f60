//! Bulk: receives as many bytes as possible, on a data connection, or on the control connection as a reply without end.

use std::{
    io::{self, Read},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    dialogue::{ControlClient, REPLY_LIMIT, parse_host_port},
    load::BenchReport,
};

/// More bytes than a measurement can receive.
const ENDLESS: u64 = 1 << 40;

/// The time before counting begins, in which TCP opens its windows.
const WARM_UP: Duration = Duration::from_millis(500);

/// The parameters of the measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The address of the server, or of the proxy.
    pub target: SocketAddr,
    /// Whether the bytes come on the control connection instead of a data connection.
    pub control: bool,
    /// The duration.
    pub time: Duration,
}

/// Runs the measurement. The rate is in bits a second.
pub fn run(order: &Order) -> io::Result<BenchReport> {
    let mut control = ControlClient::login(order.target)?;
    if order.control {
        control.send(&format!("STAT {ENDLESS}\r\n"))?;
        return receive(control.stream(), order.time);
    }
    let reply = control.command("PASV\r\n", b'2')?;
    let target =
        parse_host_port(reply).ok_or_else(|| io::Error::other("no endpoint in the reply"))?;
    let mut data = TcpStream::connect_timeout(&target.into(), REPLY_LIMIT)?;
    control.send(&format!("RETR {ENDLESS}\r\n"))?;
    data.set_read_timeout(Some(REPLY_LIMIT))?;
    receive(&mut data, order.time)
}

fn receive(stream: &mut TcpStream, time: Duration) -> io::Result<BenchReport> {
    let mut buffer = vec![0; 1 << 20];
    let start = Instant::now() + WARM_UP;
    let end = start + time;
    let (mut bytes, mut all) = (0, 0);
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        all += count;
        let now = Instant::now();
        if now >= start {
            bytes += count;
        }
        if now >= end {
            let rate = bytes as f64 * 8.0 / (now - start).as_secs_f64();
            return Ok(BenchReport { rate, total: all as f64 * 8.0, ..BenchReport::default() });
        }
    }
}
