//! A client's control connection: it sends commands and reads complete replies. It knows only as much of FTP as the
//! measurements need, and shares no code with the gateway.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    time::Duration,
};

/// Time limit for a reply, or for the data of a small file.
pub const REPLY_LIMIT: Duration = Duration::from_secs(3);

/// A control connection of a client.
pub struct ControlClient {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// How many bytes of the buffer were already returned.
    taken: usize,
}

impl ControlClient {
    /// Connects and logs in.
    pub fn login(target: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&target, REPLY_LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_LIMIT))?;
        let mut control = Self { stream, buffer: Vec::with_capacity(4096), taken: 0 };
        control.expect(b'2')?;
        control.command("USER lab\r\n", b'3')?;
        control.command("PASS lab\r\n", b'2')?;
        control.command("TYPE I\r\n", b'2')?;
        Ok(control)
    }

    /// The client's own address, and that of the other end.
    pub fn addresses(&self) -> io::Result<[IpAddr; 2]> {
        Ok([self.stream.local_addr()?, self.stream.peer_addr()?].map(|end| end.ip()))
    }

    /// The TCP connection, for data that is not part of a dialogue.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Sends `line` and returns the reply, which must begin with `class`.
    pub fn command(&mut self, line: &str, class: u8) -> io::Result<&str> {
        self.send(line)?;
        self.expect(class)
    }

    /// Sends `line`.
    pub fn send(&mut self, line: &str) -> io::Result<()> {
        self.stream.write_all(line.as_bytes())
    }

    /// The last line of the next reply, which must begin with `class`.
    pub fn expect(&mut self, class: u8) -> io::Result<&str> {
        loop {
            let (start, end) = self.line()?;
            let line = &self.buffer[start..end];
            // `220-` and the lines after it belong to a multi-line reply.
            let is_last =
                line.len() > 3 && line[3] == b' ' && line[..3].iter().all(u8::is_ascii_digit);
            if !is_last {
                continue;
            }
            let line = std::str::from_utf8(&self.buffer[start..end]).map_err(io::Error::other)?;
            if line.as_bytes()[0] != class {
                return Err(io::Error::other(format!("unexpected reply: {line}")));
            }
            return Ok(line);
        }
    }

    /// The range of the next line in the buffer, without its line end.
    fn line(&mut self) -> io::Result<(usize, usize)> {
        loop {
            if let Some(length) = memchr::memchr(b'\n', &self.buffer[self.taken..]) {
                let start = self.taken;
                self.taken += length + 1;
                return Ok((start, start + length.saturating_sub(1)));
            }
            self.buffer.drain(..self.taken);
            self.taken = 0;
            let mut chunk = [0; 2048];
            let count = self.stream.read(&mut chunk)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.buffer.extend_from_slice(&chunk[..count]);
        }
    }
}

/// The endpoint in a 227's `(h1,h2,h3,h4,p1,p2)`.
pub fn parse_host_port(reply: &str) -> Option<SocketAddrV4> {
    let inside = reply.split_once('(')?.1.split_once(')')?.0;
    let mut numbers = inside.split(',').map(|number| number.trim().parse::<u8>().ok());
    let mut next = || numbers.next().flatten();
    let [a, b, c, d, high, low] = [next()?, next()?, next()?, next()?, next()?, next()?];
    Some(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low])))
}

/// The port in a 229's `(|||port|)`.
pub fn parse_extended_port(reply: &str) -> Option<u16> {
    reply.split_once("(|||")?.1.split_once('|')?.0.parse().ok()
}

/// An endpoint as a host-port, as in `PORT` and 227.
pub fn format_host_port(endpoint: SocketAddrV4) -> String {
    let [a, b, c, d] = endpoint.ip().octets();
    let [high, low] = endpoint.port().to_be_bytes();
    format!("{a},{b},{c},{d},{high},{low}")
}
