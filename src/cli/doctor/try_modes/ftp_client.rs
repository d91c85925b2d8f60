//! A small FTP client that does not trust the server.
//!
//! Invariants:
//! - All input and all waiting times are limited, so that a hostile server cannot stop the program.
//! - Data connections go only to the server's own address and never to a port below 1024 (RFC 2577).
//! - Control characters in replies are escaped, because replies are printed on a terminal.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use FtpClientErrorKind::{
    AnnouncementRefused, ConnectFailed, ControlConnection, ForeignAddress, LoginRefused,
    NoDataConnection, PassiveInTls, Refused, RefusedByGateway, Tls, Undecided,
};
use ftp_alg_core::{
    ftp::{Announcement, AnnouncementKind, ReplyTracker, Text},
    session::RefusalReason,
};

use super::{
    connection::{Connection, TlsError, TlsSettings},
    target::{Encryption, TryTarget},
};
use crate::config::escaped;

/// The time limit for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The time limit for a reply, and for a listing.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
const MAX_REPLY: usize = 64 * 1024;
const MAX_LISTING: usize = 1024 * 1024;
/// How many characters of a reply are shown.
const MAX_SHOWN: usize = 160;
const MIN_PORT: u16 = 1024;
/// What to do about a server that has its clients resume a TLS session and does not let them.
const NOT_RESUMED: &str = "vsftpd require_ssl_reuse=NO, ProFTPD TLSOptions NoSessionReuseRequired";

/// Why a step of the client failed.
#[derive(Debug, thiserror::Error)]
#[error("{says}")]
pub(super) struct FtpClientError {
    pub(super) kind: FtpClientErrorKind,
    says: String,
    /// Whether the server does not know the command or announcement, or a gateway changed it.
    pub(super) is_unsupported: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FtpClientErrorKind {
    /// The server refused a command, or sent a reply that cannot be used.
    Refused,
    /// The server refused the login.
    LoginRefused,
    /// A step of TLS failed; and what to do.
    Tls(&'static str),
    /// The server announced an address that is not its own.
    ForeignAddress,
    /// A reply inside TLS announced an address that is not the server's own, or this endpoint, to which the client
    /// could not connect, or both.
    PassiveInTls { to: SocketAddr, is_foreign: bool, is_closed: bool },
    /// An ftp-alg between client and server refused an announcement.
    RefusedByGateway(RefusalReason),
    /// The server refused an announcement.
    AnnouncementRefused,
    /// The server answered without a data connection, and did not need one.
    Undecided,
    /// The control connection cannot be used any more.
    ControlConnection,
    /// The client could not connect to this endpoint.
    ConnectFailed(SocketAddr),
    /// The server did not connect to this endpoint of the client.
    NoDataConnection(SocketAddr),
}

impl FtpClientErrorKind {
    pub(super) fn error(self, says: impl Into<String>) -> FtpClientError {
        FtpClientError { kind: self, says: says.into(), is_unsupported: false }
    }
}

/// A reply with one or more lines.
#[derive(Debug)]
struct FtpReply {
    code: u16,
    /// The last line as received.
    line: Vec<u8>,
}

impl FtpReply {
    /// Whether the first digit of the reply code is `class`.
    fn is_class(&self, class: u16) -> bool {
        self.code / 100 == class
    }

    /// Whether the server has no listing, as for an empty directory.
    fn has_no_listing(&self) -> bool {
        matches!(self.code, 450 | 550)
    }

    /// The error of a refused command. Some reply codes say that the server does not know it.
    fn refusal(&self, kind: FtpClientErrorKind, says: String) -> FtpClientError {
        let is_unsupported = matches!(self.code, 500 | 501 | 502 | 504 | 522);
        FtpClientError { is_unsupported, ..kind.error(says) }
    }

    /// The reply to an announcement; an error if a gateway wrote it.
    fn not_by_gateway(self) -> Result<Self, FtpClientError> {
        match RefusalReason::of_reply(&self.line) {
            Some(reason) => {
                let says = format!("refused by an ftp-alg on the way: {}", self.text());
                Err(RefusedByGateway(reason).error(says))
            }
            None => Ok(self),
        }
    }

    /// The text of a completion reply; any other reply is an error of `kind`.
    fn completion(&self, kind: FtpClientErrorKind) -> Result<String, FtpClientError> {
        let text = self.text();
        if self.is_class(2) { Ok(text) } else { Err(kind.error(text)) }
    }

    /// The last line, with control characters escaped.
    fn text(&self) -> String {
        let text = escaped(String::from_utf8_lossy(Text::new(&self.line).bytes()).trim());
        match text.char_indices().nth(MAX_SHOWN) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        }
    }
}

impl From<TlsError> for FtpClientError {
    fn from(error: TlsError) -> Self {
        Tls(error.advice).error(error.says)
    }
}

/// Connects within [`CONNECT_TIMEOUT`].
fn connect(to: SocketAddr) -> Result<Connection, FtpClientError> {
    let stream = TcpStream::connect_timeout(&to, CONNECT_TIMEOUT).map_err(|error| {
        let limit = CONNECT_TIMEOUT.as_secs();
        ConnectFailed(to).error(match error.kind() {
            io::ErrorKind::TimedOut => {
                format!("connection to {to} timed out: no answer to the SYN within {limit} s")
            }
            io::ErrorKind::ConnectionRefused => format!("connection refused by {to}"),
            _ => format!("{to}: {error}"),
        })
    })?;
    stream
        .set_write_timeout(Some(REPLY_TIMEOUT))
        .map_err(|error| ControlConnection.error(error.to_string()))?;
    Ok(Connection::new(stream))
}

/// A step of a login; its result is a description.
type LoginStep = fn(&mut FtpClient, &TryTarget) -> Result<String, FtpClientError>;

/// A control connection.
pub(super) struct FtpClient {
    connection: Connection,
    /// The settings of TLS, if the session is encrypted.
    tls: Option<TlsSettings>,
    server: SocketAddr,
    unread: Vec<u8>,
    tracker: ReplyTracker,
    /// The length of the lines of the current reply so far.
    length: usize,
}

impl FtpClient {
    pub(super) fn connect(server: SocketAddr) -> Result<Self, FtpClientError> {
        let (unread, tracker) = (Vec::new(), ReplyTracker::default());
        Ok(Self { connection: connect(server)?, tls: None, server, unread, tracker, length: 0 })
    }

    pub(super) fn own_address(&self) -> io::Result<IpAddr> {
        self.connection.own_address().map(|own| own.ip())
    }

    /// The steps of a login after the connection, in order.
    pub(super) fn login_steps(encryption: Encryption) -> &'static [(&'static str, LoginStep)] {
        match encryption {
            Encryption::None => &[("greeting", Self::greeting), ("login", Self::login)],
            Encryption::Explicit => &[
                ("greeting", Self::greeting),
                ("AUTH", Self::auth),
                ("TLS", Self::start_tls),
                ("login", Self::login),
                ("PROT", Self::protect),
            ],
            Encryption::Implicit => &[
                ("TLS", Self::start_tls),
                ("greeting", Self::greeting),
                ("login", Self::login),
                ("PROT", Self::protect),
            ],
        }
    }

    /// Reads the greeting of the server.
    fn greeting(&mut self, _: &TryTarget) -> Result<String, FtpClientError> {
        let greeting = self.reply();
        greeting
            .map_err(|error| error.kind.error(format!("connected, but {error}")))?
            .completion(Refused)
    }

    /// Asks for TLS.
    fn auth(&mut self, _: &TryTarget) -> Result<String, FtpClientError> {
        let reply = self.command("AUTH TLS")?.not_by_gateway()?;
        // Plain text after this reply does not belong to the session inside TLS.
        self.unread.clear();
        let advice = "switch TLS on in the server: vsftpd ssl_enable=YES, ProFTPD TLSEngine on";
        reply.completion(Tls(advice))
    }

    fn start_tls(&mut self, target: &TryTarget) -> Result<String, FtpClientError> {
        let settings = TlsSettings::new(&target.host, target.is_insecure)?;
        let version = self.connection.start_tls(&settings, REPLY_TIMEOUT)?;
        self.tls = Some(settings);
        let trust = if target.is_insecure { "not checked (--insecure)" } else { "trusted" };
        Ok(format!("{version}; certificate {trust}"))
    }

    /// Asks for TLS on data connections.
    fn protect(&mut self, _: &TryTarget) -> Result<String, FtpClientError> {
        self.command("PBSZ 0")?;
        let advice = "switch TLS on for data connections in the server";
        self.command("PROT P")?.completion(Tls(advice))
    }

    /// Logs in, and returns the server's reply.
    fn login(&mut self, target: &TryTarget) -> Result<String, FtpClientError> {
        let mut reply = self.command(&format!("USER {}", target.user))?;
        if reply.code == 331 {
            let Some(password) = &target.password else {
                return Err(LoginRefused.error(reply.text() + "; no password was given"));
            };
            reply = self.command(&format!("PASS {password}"))?;
        }
        let text = reply.text();
        let wants_tls = ["TLS", "SSL", "ncrypt", "leartext"].iter().any(|word| text.contains(word));
        reply.completion(match wants_tls && self.tls.is_none() {
            true => Tls("the server may want TLS: ftpes://USER@HOST, or ftps://USER@HOST"),
            false => LoginRefused,
        })
    }

    /// The next reply.
    fn reply(&mut self) -> Result<FtpReply, FtpClientError> {
        let reply = self.reply_before(Instant::now() + REPLY_TIMEOUT)?;
        let limit = REPLY_TIMEOUT.as_secs();
        reply.ok_or_else(|| ControlConnection.error(format!("no reply within {limit} s")))
    }

    /// The next reply, if it is complete before `deadline`.
    fn reply_before(&mut self, deadline: Instant) -> Result<Option<FtpReply>, FtpClientError> {
        loop {
            while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                self.length += line.len();
                if let Some(reply) = self.tracker.read_line(&Text::new(&line)) {
                    self.length = 0;
                    return Ok(Some(FtpReply { code: reply.code, line }));
                }
            }
            if self.length + self.unread.len() > MAX_REPLY {
                let says = format!("reply is longer than {} KiB", MAX_REPLY / 1024);
                return Err(ControlConnection.error(says));
            }
            let mut chunk = [0; 4096];
            match self.connection.read_before(&mut chunk, deadline) {
                Ok(None) => return Ok(None),
                Ok(Some(0)) => {
                    let says = "the server closed the control connection";
                    return Err(ControlConnection.error(says));
                }
                Ok(Some(count)) => self.unread.extend_from_slice(&chunk[..count]),
                Err(error) => return Err(control_connection(&error)),
            }
        }
    }

    fn send_line(&mut self, line: &str) -> Result<(), FtpClientError> {
        let sent = self.connection.write_all(format!("{line}\r\n").as_bytes());
        sent.map_err(|error| control_connection(&error))
    }

    /// Sends a command and waits for its reply.
    fn command(&mut self, line: &str) -> Result<FtpReply, FtpClientError> {
        self.send_line(line)?;
        self.reply()
    }

    /// Ends the session, even during a transfer.
    pub(super) fn quit(mut self) {
        // If QUIT cannot be sent, the end of the connection has the same effect.
        let _ = self.send_line("QUIT");
    }

    /// Transfers a listing over a data connection announced by `kind`, and returns a description.
    pub(super) fn transfer_listing(
        &mut self,
        kind: AnnouncementKind,
    ) -> Result<String, FtpClientError> {
        if kind.is_active() { self.active_listing(kind) } else { self.passive_listing(kind) }
    }

    fn passive_listing(&mut self, kind: AnnouncementKind) -> Result<String, FtpClientError> {
        let reply = self.command(&kind.to_string())?.not_by_gateway()?;
        let read = match (kind, reply.code) {
            (AnnouncementKind::Pasv, 227) => Announcement::parse_227(&Text::new(&reply.line)),
            (AnnouncementKind::Epsv, 229) => Announcement::parse_229(&Text::new(&reply.line)),
            _ => return Err(reply.refusal(Refused, reply.text())),
        };
        let refuse = |why: String| Refused.error(format!("{why}: {}", reply.text()));
        let announced = read.map_err(|error| refuse(error.to_string()))?;
        if announced.port < MIN_PORT {
            return Err(refuse(format!(
                "announced port {} is below {MIN_PORT} and was not tried",
                announced.port
            )));
        }
        let to = SocketAddr::new(self.server.ip(), announced.port);
        let code = reply.code;
        let foreign = announced
            .address
            .filter(|address| *address != to.ip())
            .map(|address| format!("{code} announces {address}, not the address of the server"));
        let is_foreign = foreign.is_some();
        // A gateway cannot help with what it cannot read.
        let error_kind = |plain, is_closed| match &self.tls {
            Some(_) => PassiveInTls { to, is_foreign, is_closed },
            None => plain,
        };
        let data = connect(to).map_err(|error| match (error.kind, &foreign) {
            (ConnectFailed(_), Some(foreign)) => {
                let says = format!("{foreign}; with the address of the server: {error}");
                error_kind(ForeignAddress, true).error(says)
            }
            (ConnectFailed(_), None) => error_kind(error.kind, true)
                .error(format!("reply {code}, but the data connection failed: {error}")),
            _ => error,
        })?;
        let foreign = foreign.map(|foreign| {
            error_kind(ForeignAddress, false)
                .error(format!("{foreign}; a connection to {to} works"))
        });
        self.send_line("LIST")?;
        let done = self.read_listing(data, None, &format!("from {to}"))?;
        match foreign {
            Some(foreign) => Err(foreign),
            None => Ok(done),
        }
    }

    fn active_listing(&mut self, kind: AnnouncementKind) -> Result<String, FtpClientError> {
        let here = |error: io::Error| {
            Refused.error(format!("cannot listen for a data connection: {error}"))
        };
        let own = self.own_address().map_err(here)?;
        let listener = TcpListener::bind((own, 0)).map_err(here)?;
        listener.set_nonblocking(true).map_err(here)?;
        let to = listener.local_addr().map_err(here)?;
        let announcement = match kind {
            AnnouncementKind::Port => {
                let [high, low] = to.port().to_be_bytes();
                format!("PORT {},{high},{low}", own.to_string().replace('.', ","))
            }
            _ => format!("EPRT |{}|{own}|{}|", if own.is_ipv4() { 1 } else { 2 }, to.port()),
        };
        let reply = self.command(&announcement)?.not_by_gateway()?;
        if !reply.is_class(2) {
            let says = format!("{announcement} refused: {}", reply.text());
            return Err(reply.refusal(AnnouncementRefused, says));
        }
        self.send_line("LIST")?;
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let mut first = None;
        loop {
            let reply = self.reply_before(Instant::now() + POLL_INTERVAL)?;
            // A connection that the server opened before this reply can be accepted now.
            match listener.accept() {
                Ok((data, peer)) if peer.ip() == self.server.ip() => {
                    let data = Connection::new(data);
                    return self.read_listing(data, reply.or(first), &format!("to {to}"));
                }
                Ok((_, peer)) => {
                    let says = format!("data connection from {}", peer.ip());
                    return Err(Refused.error(says + ", not from the address of the server"));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(here(error)),
            }
            match reply {
                Some(reply) if reply.is_class(1) => first = Some(reply),
                Some(reply) if matches!(reply.code, 425 | 426) => {
                    let says = format!("the server could not connect to {to}: {}", reply.text());
                    return Err(NoDataConnection(to).error(says));
                }
                Some(reply) => {
                    let says = format!(
                        "no data connection, and the server sent no listing: {}",
                        reply.text()
                    );
                    let is_undecided = reply.has_no_listing() || reply.is_class(2);
                    return Err(if is_undecided { Undecided } else { Refused }.error(says));
                }
                None => {}
            }
            if Instant::now() > deadline {
                let limit = CONNECT_TIMEOUT.as_secs();
                return Err(NoDataConnection(to)
                    .error(format!("no data connection to {to} within {limit} s")));
            }
        }
    }

    /// Reads a listing from `data`, and the replies before and after it. `first` is the preliminary reply if it was
    /// read already.
    fn read_listing(
        &mut self,
        mut data: Connection,
        first: Option<FtpReply>,
        direction: &str,
    ) -> Result<String, FtpClientError> {
        let first = match first {
            Some(reply) => reply,
            None => self.reply()?,
        };
        let without_listing = |reply: &FtpReply| {
            format!("data connection {direction}; the server sent no listing: {}", reply.text())
        };
        if first.has_no_listing() {
            return Ok(without_listing(&first));
        }
        if !first.is_class(1) && !first.is_class(2) {
            return Err(Refused.error(first.text()));
        }
        let (mut tls, mut kind) = ("", Refused);
        if let Some(settings) = &self.tls {
            match data.start_tls(settings, REPLY_TIMEOUT) {
                Ok(_) if data.is_resumed() => tls = ", TLS resumed",
                Ok(_) => (tls, kind) = (", TLS not resumed", Tls(NOT_RESUMED)),
                Err(_) if first.is_class(2) => return Ok(without_listing(&first)),
                Err(error) => {
                    drop(data);
                    let says = format!("TLS {direction}: {}", error.says);
                    return Err(self.failed_listing(says, Tls(error.advice)));
                }
            }
        }
        let deadline = Instant::now() + REPLY_TIMEOUT;
        let (mut length, mut chunk) = (0, [0; 8192]);
        while length < MAX_LISTING {
            match data.read_before(&mut chunk, deadline) {
                Ok(Some(0)) => break,
                Ok(Some(count)) => length += count,
                // The server was done without the data connection.
                Ok(None) | Err(_) if first.is_class(2) && length == 0 => {
                    return Ok(without_listing(&first));
                }
                Ok(None) => {
                    let limit = REPLY_TIMEOUT.as_secs();
                    let says = format!(
                        "listing {direction} not complete within {limit} s: {length} bytes"
                    );
                    return Err(Refused.error(says));
                }
                Err(error) => {
                    let says = format!("listing {direction}: {error}");
                    return Err(self.failed_listing(says, kind));
                }
            }
        }
        drop(data);
        let last = if first.is_class(1) { self.reply()? } else { first };
        if last.has_no_listing() && length == 0 {
            return Ok(without_listing(&last));
        }
        // The server reports an error if the client closes the connection of a long listing.
        if !last.is_class(2) && length < MAX_LISTING {
            return Err(kind.error(last.text()));
        }
        Ok(format!("listing of {length} bytes {direction}{tls}"))
    }

    /// The error of a listing that cannot be read, with the server's reply if one arrives.
    fn failed_listing(&mut self, says: String, kind: FtpClientErrorKind) -> FtpClientError {
        match self.reply() {
            Ok(reply) => kind.error(format!("{}; {says}", reply.text())),
            Err(_) => kind.error(says),
        }
    }
}

fn control_connection(error: &io::Error) -> FtpClientError {
    ControlConnection.error(format!("control connection: {error}"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, Write as _},
        net::Ipv4Addr,
        thread,
    };

    use rustls::version::TLS13;

    use super::{
        super::connection::tests::{greet, server},
        *,
    };

    /// A client that is connected to a server. `serve` plays the server, and gets the lines that it receives.
    fn session(
        serve: impl FnOnce(TcpStream, io::Lines<io::BufReader<TcpStream>>) + Send + 'static,
    ) -> FtpClient {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let received = io::BufReader::new(stream.try_clone().unwrap()).lines();
            serve(stream, received);
        });
        FtpClient::connect(server).unwrap()
    }

    /// A client of a server that answers each line by `reply`.
    fn answered(reply: &str) -> FtpClient {
        let reply = format!("{reply}\r\n");
        session(move |mut stream, received| {
            for _ in received.map_while(Result::ok) {
                stream.write_all(reply.as_bytes()).unwrap();
            }
        })
    }

    /// Sends `text` until the client closes the connection.
    fn forever(mut stream: impl io::Write, text: &str) {
        let text = text.repeat(1000);
        while stream.write_all(text.as_bytes()).is_ok() {}
    }

    #[test]
    fn endless_replies_are_an_error() {
        for text in ["no line feed ", "220-more\r\n", "\n"] {
            let mut client = session(move |stream, _| forever(stream, text));
            let error = client.reply().unwrap_err();
            assert_eq!(error.to_string(), "reply is longer than 64 KiB", "{text:?}");
        }
        let error = port(|_, stream| forever(stream, "150 soon\r\n")).unwrap_err();
        assert!(matches!(error.kind, NoDataConnection(_)), "{error}");
    }

    #[test]
    fn reply_may_have_several_segments_and_lines() {
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
        assert_eq!(ended, "the server closed the control connection");
    }

    /// The result of a passive listing, inside TLS or not. `serve` plays the server on both connections after its 150.
    fn passive(
        has_tls: bool,
        serve: impl FnOnce(TcpStream, &mut TcpStream) + Send + 'static,
    ) -> Result<String, FtpClientError> {
        let mut client = session(move |mut stream, mut received| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            assert_eq!(received.next().unwrap().unwrap(), "EPSV");
            write!(stream, "229 here (|||{port}|)\r\n150 it comes\r\n").unwrap();
            let (data, _) = listener.accept().unwrap();
            assert_eq!(received.next().unwrap().unwrap(), "LIST");
            serve(data, &mut stream);
            received.for_each(drop);
        });
        client.tls = has_tls.then(|| TlsSettings::new("ftp.test", true).unwrap());
        client.transfer_listing(AnnouncementKind::Epsv)
    }

    #[test]
    fn listings_are_counted_and_endless_ones_are_cut_off() {
        let listing = |send: fn(TcpStream), last: &'static str| {
            passive(false, move |data, stream| {
                send(data);
                write!(stream, "{last}\r\n").unwrap();
            })
        };
        let done = listing(|mut data| data.write_all(b"short").unwrap(), "226 done").unwrap();
        assert!(done.starts_with("listing of 5 bytes from 127.0.0.1:"), "{done}");
        assert!(listing(drop, "226 done").is_ok());
        assert_eq!(listing(drop, "426 lost").unwrap_err().to_string(), "426 lost");
        assert!(listing(|data| forever(data, "endless "), "426 lost").is_ok());
    }

    /// The result of a listing with `PORT`. `act` plays the server after `LIST`, and gets the announced port.
    fn port(
        act: impl FnOnce(u16, &mut TcpStream) + Send + 'static,
    ) -> Result<String, FtpClientError> {
        let mut client = session(move |mut stream, mut received| {
            let announced = received.next().unwrap().unwrap();
            let numbers: Vec<u16> =
                announced[5..].split(',').map(|number| number.parse().unwrap()).collect();
            write!(stream, "200 will do\r\n").unwrap();
            assert_eq!(received.next().unwrap().unwrap(), "LIST");
            act(numbers[4] * 256 + numbers[5], &mut stream);
            // Keep the connection open until the client is done.
            received.for_each(drop);
        });
        client.transfer_listing(AnnouncementKind::Port)
    }

    #[test]
    fn a_server_without_a_listing_leaves_active_mode_undecided() {
        let answer =
            |text: &'static str| port(move |_, stream| write!(stream, "{text}\r\n").unwrap());
        for (reply, kind) in [
            ("450 No files found", Undecided),
            ("550 No files found", Undecided),
            ("226 0 matches", Undecided),
            ("530 Not you", Refused),
        ] {
            assert_eq!(answer(reply).unwrap_err().kind, kind, "{reply}");
        }
        let error = answer("425 Cannot connect").unwrap_err();
        assert!(matches!(error.kind, NoDataConnection(_)), "{error}");
        let connected = port(|port, stream| {
            let _data = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            write!(stream, "450 No files found\r\n").unwrap();
        });
        assert!(connected.unwrap().starts_with("data connection to 127.0.0.1:"));
    }

    #[test]
    fn a_mode_that_the_server_does_not_know_is_unsupported() {
        for (code, is_unknown) in [(500, true), (502, true), (522, true), (530, false)] {
            let mut client = answered(&format!("{code} no"));
            let error = client.transfer_listing(AnnouncementKind::Epsv).unwrap_err();
            assert_eq!(error.is_unsupported, is_unknown, "{error}");
        }
    }

    #[test]
    fn only_the_server_may_connect() {
        let outsider = port(|port, _| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let socket = socket.unwrap();
            let from: SocketAddr = ([127, 0, 0, 2], 0).into();
            socket.bind(&from.into()).unwrap();
            let to: SocketAddr = ([127, 0, 0, 1], port).into();
            socket.connect(&to.into()).unwrap();
        });
        let says = outsider.unwrap_err().to_string();
        assert_eq!(says, "data connection from 127.0.0.2, not from the address of the server");
    }

    /// The error of a login step that the server answers by `reply`.
    fn login_step(step: LoginStep, reply: &str) -> FtpClientError {
        let target = TryTarget::new("ftpes://h", None, false).unwrap();
        step(&mut answered(reply), &target).unwrap_err()
    }

    #[test]
    fn a_server_without_tls_or_with_tls_alone_is_recognised() {
        let steps: [(LoginStep, _, _); 8] = [
            (FtpClient::auth, "500 What?", "ssl_enable"),
            (FtpClient::auth, "504 No", "ssl_enable"),
            (FtpClient::auth, "530 Log in", "ssl_enable"),
            (FtpClient::auth, "534 No", "ssl_enable"),
            (FtpClient::protect, "536 No", ""),
            (FtpClient::login, "530 Anonymous sessions must use encryption.", "ftpes://"),
            (FtpClient::login, "550 SSL/TLS required", "ftpes://"),
            (FtpClient::login, "421 Sorry, cleartext sessions are not accepted", "ftpes://"),
        ];
        for (step, reply, part) in steps {
            let error = login_step(step, reply);
            assert!(matches!(error.kind, Tls(advice) if advice.contains(part)), "{error}");
        }
        let error = login_step(FtpClient::auth, "534 Gateway policy refuses AUTH.");
        assert_eq!(error.kind, RefusedByGateway(RefusalReason::AuthTls), "{error}");
        assert_eq!(login_step(FtpClient::login, "530 Not you").kind, LoginRefused);
    }

    #[test]
    fn a_refused_listing_inside_tls_names_what_failed() {
        let listing = |works: bool, last: &'static str| {
            passive(true, move |data, stream| {
                greet(data, server(&TLS13), works);
                write!(stream, "{last}\r\n").unwrap();
            })
        };
        let says = listing(true, "226 done").unwrap();
        assert!(says.ends_with(", TLS not resumed"), "{says}");
        let error = listing(false, "522 session reuse required").unwrap_err();
        assert_eq!(error.to_string(), "522 session reuse required");
        assert_eq!(error.kind, Tls(NOT_RESUMED));
        let no_handshake = passive(true, |data, stream| {
            drop(data);
            write!(stream, "425 Cannot\r\n").unwrap();
        });
        let says = no_handshake.unwrap_err().to_string();
        assert!(says.starts_with("425 Cannot; TLS from 127.0.0.1:"), "{says}");
    }

    #[test]
    fn a_passive_failure_inside_tls_has_its_own_remedy() {
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        for (address, is_foreign) in [("127,0,0,1", false), ("10,0,0,5", true)] {
            let [high, low] = closed.port().to_be_bytes();
            let mut client = answered(&format!("227 here ({address},{high},{low})"));
            client.tls = Some(TlsSettings::new("ftp.test", true).unwrap());
            let error = client.transfer_listing(AnnouncementKind::Pasv).unwrap_err();
            assert_eq!(error.kind, PassiveInTls { to: closed, is_foreign, is_closed: true });
        }
    }
}
