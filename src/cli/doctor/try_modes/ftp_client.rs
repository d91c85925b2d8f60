//! A small FTP client that trusts no server: what it reads and how long it waits is bounded, it
//! connects to the server's own address alone and never below port 1024 (RFC 2577), and no control
//! character of a reply comes through.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use ftp_alg_core::ftp::{Announcement, Kind, ReplyTracker, Text};

use crate::config::plain;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a reply may take.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a listing may take.
const LISTING_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
const MAX_REPLY: usize = 64 * 1024;
const MAX_LISTING: usize = 1024 * 1024;
/// How much of a reply's last line is shown.
const MAX_SHOWN: usize = 160;
const MIN_PORT: u16 = 1024;

/// Why something did not work.
#[derive(Debug, thiserror::Error)]
pub(super) enum FtpClientError {
    /// The server says no, or what cannot be used.
    #[error("{0}")]
    Refused(String),
    /// The server names another address than its own.
    #[error("{0}")]
    ForeignAddress(String),
    /// The server does not take an announcement.
    #[error("{0}")]
    AnnouncementRefused(String),
    /// The control connection is of no more use.
    #[error("{0}")]
    ControlConnection(String),
    /// A connection to this endpoint did not come about.
    #[error("{says}")]
    ConnectFailed { says: String, to: SocketAddr },
    /// The server's connection to this endpoint here did not come about.
    #[error("{says}")]
    NoDataConnection { says: String, to: SocketAddr },
}

/// A reply, of whatever number of lines.
#[derive(Debug)]
pub(super) struct FtpReply {
    pub(super) code: u16,
    /// Its last line as it came.
    line: Vec<u8>,
}

impl FtpReply {
    /// Whether it is of the hundreds `class`.
    pub(super) fn is_class(&self, class: u16) -> bool {
        self.code / 100 == class
    }

    /// Its last line, fit for a terminal.
    pub(super) fn text(&self) -> String {
        let text = plain(String::from_utf8_lossy(Text::new(&self.line).bytes()).trim());
        match text.char_indices().nth(MAX_SHOWN) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        }
    }
}

/// Connects within [`CONNECT`].
pub(super) fn connect(to: SocketAddr) -> Result<TcpStream, FtpClientError> {
    let stream = TcpStream::connect_timeout(&to, CONNECT_TIMEOUT).map_err(|error| {
        FtpClientError::ConnectFailed {
            says: match error.kind() {
                io::ErrorKind::TimedOut => {
                    format!("{to}: the SYN was not answered within {} s", CONNECT_TIMEOUT.as_secs())
                }
                io::ErrorKind::ConnectionRefused => format!("connection refused by {to}"),
                _ => format!("{to}: {error}"),
            },
            to,
        }
    })?;
    stream
        .set_write_timeout(Some(REPLY_TIMEOUT))
        .map_err(|error| FtpClientError::ControlConnection(error.to_string()))?;
    Ok(stream)
}

/// A control connection.
pub(super) struct FtpClient {
    stream: TcpStream,
    server: SocketAddr,
    unread: Vec<u8>,
    tracker: ReplyTracker,
    /// The length of the reply so far.
    length: usize,
}

impl FtpClient {
    pub(super) fn new(stream: TcpStream, server: SocketAddr) -> Self {
        let (unread, tracker) = (Vec::new(), ReplyTracker::default());
        Self { stream, server, unread, tracker, length: 0 }
    }

    /// The next reply.
    pub(super) fn reply(&mut self) -> Result<FtpReply, FtpClientError> {
        let reply = self.reply_before(Instant::now() + REPLY_TIMEOUT)?;
        reply.ok_or_else(|| {
            FtpClientError::ControlConnection(format!(
                "no reply within {} s",
                REPLY_TIMEOUT.as_secs()
            ))
        })
    }

    /// The next reply, if it is complete by then.
    fn reply_before(&mut self, deadline: Instant) -> Result<Option<FtpReply>, FtpClientError> {
        loop {
            while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                self.length += line.len();
                if let Some(reply) = self.tracker.line(&Text::new(&line)) {
                    self.length = 0;
                    return Ok(Some(FtpReply { code: reply.code, line }));
                }
            }
            if self.length + self.unread.len() > MAX_REPLY {
                let says = format!("a reply of more than {} KiB", MAX_REPLY / 1024);
                return Err(FtpClientError::ControlConnection(says));
            }
            let mut chunk = [0; 4096];
            match read_before(&mut self.stream, &mut chunk, deadline) {
                Ok(None) => return Ok(None),
                Ok(Some(0)) => {
                    let says = "the server ended the control connection";
                    return Err(FtpClientError::ControlConnection(says.to_owned()));
                }
                Ok(Some(count)) => self.unread.extend_from_slice(&chunk[..count]),
                Err(error) => {
                    return Err(FtpClientError::ControlConnection(format!(
                        "control connection: {error}"
                    )));
                }
            }
        }
    }

    fn send_line(&mut self, line: &str) -> Result<(), FtpClientError> {
        let sent = self.stream.write_all(format!("{line}\r\n").as_bytes());
        sent.map_err(|error| {
            FtpClientError::ControlConnection(format!("control connection: {error}"))
        })
    }

    /// Sends a command and waits for its reply.
    pub(super) fn command(&mut self, line: &str) -> Result<FtpReply, FtpClientError> {
        self.send_line(line)?;
        self.reply()
    }

    /// Ends the session, whatever is under way in it.
    pub(super) fn quit(mut self) {
        // A server that does not hear it sees the connection end.
        let _ = self.send_line("QUIT");
    }

    /// A listing by a data connection that `kind` announces; what came of it.
    pub(super) fn transfer_listing(&mut self, kind: Kind) -> Result<String, FtpClientError> {
        if kind.is_active() { self.active_listing(kind) } else { self.passive_listing(kind) }
    }

    fn passive_listing(&mut self, kind: Kind) -> Result<String, FtpClientError> {
        let reply = self.command(&kind.to_string())?;
        let read = match (kind, reply.code) {
            (Kind::Pasv, 227) => Announcement::passive(&Text::new(&reply.line)),
            (Kind::Epsv, 229) => Announcement::extended_passive(&Text::new(&reply.line)),
            _ => return Err(FtpClientError::Refused(reply.text())),
        };
        let refuse = |why: String| FtpClientError::Refused(format!("{why}: {}", reply.text()));
        let announced = read.map_err(|error| refuse(error.to_string()))?;
        if announced.port < MIN_PORT {
            return Err(refuse(format!("port {} is below {MIN_PORT}, not tried", announced.port)));
        }
        let to = SocketAddr::new(self.server.ip(), announced.port);
        let foreign = announced.address.filter(|address| *address != to.ip());
        let foreign = foreign.map(|address| {
            format!("{} announces {address}, which is not the server's address", reply.code)
        });
        let data = connect(to).map_err(|trouble| match (trouble, &foreign) {
            (FtpClientError::ConnectFailed { says, .. }, Some(foreign)) => {
                FtpClientError::ForeignAddress(format!("{foreign}; tried instead: {says}"))
            }
            (FtpClientError::ConnectFailed { says, to }, None) => {
                let says = format!("{} came; data connection: {says}", reply.code);
                FtpClientError::ConnectFailed { says, to }
            }
            (other, _) => other,
        })?;
        self.send_line("LIST")?;
        let done = self.read_listing(data, None, &format!("from {to}"))?;
        match foreign {
            Some(foreign) => Err(FtpClientError::ForeignAddress(format!("{foreign}; {to} works"))),
            None => Ok(done),
        }
    }

    fn active_listing(&mut self, kind: Kind) -> Result<String, FtpClientError> {
        let here =
            |error: io::Error| FtpClientError::Refused(format!("cannot listen here: {error}"));
        let own = self.stream.local_addr().map_err(here)?.ip();
        let listener = TcpListener::bind((own, 0)).map_err(here)?;
        listener.set_nonblocking(true).map_err(here)?;
        let to = listener.local_addr().map_err(here)?;
        let announcement = match own {
            IpAddr::V4(v4) if kind == Kind::Port => {
                let ([a, b, c, d], [high, low]) = (v4.octets(), to.port().to_be_bytes());
                format!("PORT {a},{b},{c},{d},{high},{low}")
            }
            _ => format!("EPRT |{}|{own}|{}|", if own.is_ipv4() { 1 } else { 2 }, to.port()),
        };
        let reply = self.command(&announcement)?;
        if !reply.is_class(2) {
            let says = format!("{} to {announcement}", reply.text());
            return Err(FtpClientError::AnnouncementRefused(says));
        }
        self.send_line("LIST")?;
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let mut first = None;
        loop {
            let reply = self.reply_before(Instant::now() + POLL_INTERVAL)?;
            // What came before this reply is there by now.
            match listener.accept() {
                Ok((data, peer)) if peer.ip() == self.server.ip() => {
                    return self.read_listing(data, reply.or(first), &format!("to {to}"));
                }
                Ok((_, peer)) => {
                    let says = format!("the data connection came from {}", peer.ip());
                    return Err(FtpClientError::Refused(format!(
                        "{says}, not from the server's address"
                    )));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(here(error)),
            }
            match reply {
                Some(reply) if reply.is_class(1) => first = Some(reply),
                Some(reply) => {
                    let says = format!("{}; the server could not reach {to}", reply.text());
                    return Err(FtpClientError::NoDataConnection { says, to });
                }
                None => {}
            }
            if Instant::now() > deadline {
                let limit = CONNECT_TIMEOUT.as_secs();
                let says = format!("no data connection came to {to} within {limit} s");
                return Err(FtpClientError::NoDataConnection { says, to });
            }
        }
    }

    /// Reads what comes by `data`, and the replies around it, of which `first` is there already.
    fn read_listing(
        &mut self,
        mut data: TcpStream,
        first: Option<FtpReply>,
        way: &str,
    ) -> Result<String, FtpClientError> {
        let first = match first {
            Some(reply) => reply,
            None => self.reply()?,
        };
        if !first.is_class(1) && !first.is_class(2) {
            return Err(FtpClientError::Refused(first.text()));
        }
        let deadline = Instant::now() + LISTING_TIMEOUT;
        let (mut length, mut chunk) = (0, [0; 8192]);
        while length < MAX_LISTING {
            match read_before(&mut data, &mut chunk, deadline) {
                Ok(Some(0)) => break,
                Ok(Some(count)) => length += count,
                Ok(None) => {
                    let limit = LISTING_TIMEOUT.as_secs();
                    let says = format!("{length} bytes of a listing {way}, no end in {limit} s");
                    return Err(FtpClientError::Refused(says));
                }
                Err(error) => {
                    return Err(FtpClientError::Refused(format!("listing {way}: {error}")));
                }
            }
        }
        drop(data);
        let last = if first.is_class(1) { self.reply()? } else { first };
        // Who ends a long listing is told so.
        if !last.is_class(2) && length < MAX_LISTING {
            return Err(FtpClientError::Refused(last.text()));
        }
        Ok(format!("a listing of {length} bytes {way}"))
    }
}

/// Reads what there is; `None` if there is nothing by then.
fn read_before(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    deadline: Instant,
) -> io::Result<Option<usize>> {
    let left = deadline.saturating_duration_since(Instant::now());
    stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
    match stream.read(buffer) {
        Ok(count) => Ok(Some(count)),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{io::BufRead as _, net::Ipv4Addr, thread};

    use super::*;

    /// A client of a server that `serve` plays, with the lines that it hears.
    fn session(
        serve: impl FnOnce(TcpStream, io::Lines<io::BufReader<TcpStream>>) + Send + 'static,
    ) -> FtpClient {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let heard = io::BufReader::new(stream.try_clone().unwrap()).lines();
            serve(stream, heard);
        });
        FtpClient::new(connect(server).unwrap(), server)
    }

    /// Says `text` until the client has enough of it.
    fn forever(mut stream: impl io::Write, text: &str) {
        let text = text.repeat(1000);
        while stream.write_all(text.as_bytes()).is_ok() {}
    }

    #[test]
    fn replies_without_an_end_are_given_up() {
        for text in ["no line feed ", "220-more\r\n", "\n"] {
            let mut client = session(move |stream, _| forever(stream, text));
            let trouble = client.reply().unwrap_err();
            assert_eq!(trouble.to_string(), "a reply of more than 64 KiB", "{text:?}");
        }
    }

    #[test]
    fn a_reply_may_come_in_pieces_and_lines() {
        let mut client = session(|mut stream, _| {
            for piece in ["220-Wel", "come\r\n 220 not yet\r", "\n220 \u{1b}He", "re\r\n230 in\r\n"]
            {
                stream.write_all(piece.as_bytes()).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
        });
        let greeting = client.reply().unwrap();
        assert_eq!((greeting.code, greeting.text().as_str()), (220, "220 \\u{1b}Here"));
        assert_eq!(client.reply().unwrap().code, 230);
        let ended = client.reply().unwrap_err().to_string();
        assert_eq!(ended, "the server ended the control connection");
    }

    /// A server of one passive listing, which sends `body` again and again.
    fn listing(body: &'static str, last: &'static str) -> Result<String, FtpClientError> {
        let mut client = session(move |mut stream, mut heard| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            assert_eq!(heard.next().unwrap().unwrap(), "EPSV");
            write!(stream, "229 here (|||{port}|)\r\n").unwrap();
            assert_eq!(heard.next().unwrap().unwrap(), "LIST");
            let (mut data, _) = listener.accept().unwrap();
            write!(stream, "150 it comes\r\n").unwrap();
            match body {
                "" => {}
                "short" => data.write_all(b"short").unwrap(),
                endless => forever(&data, endless),
            }
            drop(data);
            write!(stream, "{last}\r\n").unwrap();
        });
        client.transfer_listing(Kind::Epsv)
    }

    #[test]
    fn listings_are_counted_and_endless_ones_are_left() {
        let done = listing("short", "226 done").unwrap();
        assert!(done.starts_with("a listing of 5 bytes from 127.0.0.1:"), "{done}");
        assert!(listing("", "226 done").is_ok());
        assert_eq!(listing("", "426 lost").unwrap_err().to_string(), "426 lost");
        assert!(listing("endless ", "426 lost").is_ok());
    }

    /// What comes of `PORT` where `act` is done once the client listens; it gets the port.
    fn port(
        act: impl FnOnce(u16, &mut TcpStream) + Send + 'static,
    ) -> Result<String, FtpClientError> {
        let mut client = session(move |mut stream, mut heard| {
            let announced = heard.next().unwrap().unwrap();
            let numbers: Vec<u16> =
                announced[5..].split(',').map(|number| number.parse().unwrap()).collect();
            write!(stream, "200 will do\r\n").unwrap();
            assert_eq!(heard.next().unwrap().unwrap(), "LIST");
            act(numbers[4] * 256 + numbers[5], &mut stream);
            // Until the client is done.
            heard.for_each(drop);
        });
        client.transfer_listing(Kind::Port)
    }

    #[test]
    fn the_server_may_connect_before_it_says_so() {
        let done = port(|port, stream| {
            let mut data = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            data.write_all(b"listing").unwrap();
            drop(data);
            write!(stream, "226 done\r\n").unwrap();
        });
        assert!(done.unwrap().starts_with("a listing of 7 bytes to 127.0.0.1:"));
    }

    #[test]
    fn only_the_server_may_connect() {
        let stranger = port(|port, _| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let socket = socket.unwrap();
            let from: SocketAddr = ([127, 0, 0, 2], 0).into();
            socket.bind(&from.into()).unwrap();
            let to: SocketAddr = ([127, 0, 0, 1], port).into();
            socket.connect(&to.into()).unwrap();
        });
        let says = stranger.unwrap_err().to_string();
        assert_eq!(says, "the data connection came from 127.0.0.2, not from the server's address");
    }

    #[test]
    fn preliminary_replies_do_not_hold_the_client() {
        let trouble = port(|_, stream| forever(stream, "150 soon\r\n")).unwrap_err();
        assert!(matches!(trouble, FtpClientError::NoDataConnection { .. }), "{trouble}");
    }
}
