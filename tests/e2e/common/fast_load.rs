//! Thousands of transfers a second by clients that give up soon: what a restart loses shows at this pace alone.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use ftp_alg_lab::{Family, Lab, scaled_timeout, wait_for};
use socket2::{Domain, Socket, Type};

/// After this a client, and the server, gives a data connection up: one retransmission of its SYN.
const DATA_TIMEOUT: Duration = Duration::from_secs(3);
/// Time limit of everything on the control connection.
const PATIENCE: Duration = Duration::from_secs(60);

/// Running sessions.
pub struct FastLoad {
    shared: Arc<Shared>,
    sessions: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    /// Of each session.
    transfers: Vec<AtomicU64>,
    failures: Mutex<Vec<String>>,
}

impl FastLoad {
    /// Starts a server and this many sessions, over IPv4 and IPv6, each passive and active in turn.
    pub fn start(lab: &Lab, sessions: usize) -> Self {
        // Otherwise all ports, and conntrack, would soon be full of TIME_WAIT.
        for host in [&lab.client, &lab.server] {
            host.shell("sysctl -qw net.ipv4.tcp_max_tw_buckets=1000").unwrap();
        }
        let timeout = "net.netfilter.nf_conntrack_tcp_timeout_time_wait=5";
        lab.gateway.shell(&format!("sysctl -qw {timeout}")).unwrap();
        let servers = [Family::V4, Family::V6].map(|family| lab.server_address(family));
        let listen = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, 21)).unwrap();
        let listener = lab.server.inside(listen).unwrap();
        let host = lab.server.clone();
        thread::spawn(move || host.inside(|| serve(&listener)).unwrap());
        let transfers = (0..sessions).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared { transfers, ..Shared::default() });
        let session = |number: usize| {
            let (host, shared) = (lab.client.clone(), Arc::clone(&shared));
            let server = servers[number / 2 % 2];
            thread::spawn(move || host.inside(|| run_session(&shared, server, number)).unwrap())
        };
        let sessions = (0..sessions).map(session).collect();
        Self { shared, sessions }
    }

    /// Waits until each session that still runs has made another transfer.
    pub fn wait_for_transfers(&self) {
        let count = || self.shared.transfers.iter().map(|transfers| transfers.load(Relaxed));
        let before: Vec<u64> = count().collect();
        let is_idle = |((session, before), now): ((&JoinHandle<()>, _), _)| {
            !session.is_finished() && before == now
        };
        wait_for("a transfer of each session", || {
            !self.sessions.iter().zip(before.iter().copied()).zip(count()).any(is_idle)
        });
    }

    /// Ends the sessions. Returns the number of transfers, and the failures.
    pub fn end(self) -> (u64, Vec<String>) {
        self.shared.is_over.store(true, Relaxed);
        self.sessions.into_iter().for_each(|session| session.join().unwrap());
        let failures = self.shared.failures.lock().unwrap().clone();
        let transfers = self.shared.transfers.iter().map(|transfers| transfers.load(Relaxed)).sum();
        (transfers, failures)
    }
}

fn run_session(shared: &Shared, server: IpAddr, number: usize) {
    let failed = |what| shared.failures.lock().unwrap().push(what);
    let mut control = match Control::connect(server) {
        Ok(control) => control,
        Err(error) => return failed(format!("log in: {error}")),
    };
    let mut is_passive = number.is_multiple_of(2);
    while !shared.is_over.load(Relaxed) {
        is_passive = !is_passive;
        match control.transfer(is_passive) {
            Ok(Ok(())) => _ = shared.transfers[number].fetch_add(1, Relaxed),
            Ok(Err(error)) => failed(format!("passive {is_passive}: {error}")),
            Err(error) => return failed(format!("control connection: {error}")),
        }
    }
}

/// A client's control connection.
struct Control(BufReader<TcpStream>);

impl Control {
    fn connect(server: IpAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&(server, 21).into(), scaled_timeout(PATIENCE))?;
        let mut control = Self(prepare(stream)?);
        control.reply()?;
        control.ask("USER lab")?;
        control.ask("PASS lab")?;
        Ok(control)
    }

    fn reply(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line),
        }
    }

    fn ask(&mut self, command: &str) -> io::Result<String> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        self.reply()
    }

    /// A download of one byte: whether it worked, unless the control connection broke.
    fn transfer(&mut self, is_passive: bool) -> io::Result<io::Result<()>> {
        let (own, peer) = (self.0.get_ref().local_addr()?.ip(), self.0.get_ref().peer_addr()?.ip());
        let (listener, data) = if is_passive {
            let reply = self.ask(if own.is_ipv4() { "PASV" } else { "EPSV" })?;
            let endpoint = read_endpoint(&reply, peer).ok_or_else(|| io::Error::other(reply))?;
            (None, TcpStream::connect_timeout(&endpoint, scaled_timeout(DATA_TIMEOUT)))
        } else {
            let listener = listen(own)?;
            let verb = if own.is_ipv4() { "PORT" } else { "EPRT" };
            let reply = self.ask(&format!("{verb} {}", announce(listener.local_addr()?)))?;
            if !reply.starts_with("200") {
                return Ok(Err(io::Error::other(reply)));
            }
            (Some(listener), Err(io::ErrorKind::NotConnected.into()))
        };
        let started = self.ask("RETR f")?;
        let data = match listener {
            Some(listener) => accept(&listener),
            None => data,
        };
        let received = data.and_then(|mut data| {
            data.set_read_timeout(Some(scaled_timeout(PATIENCE)))?;
            data.read_exact(&mut [0])
        });
        if started.starts_with('1') {
            self.reply()?;
        }
        Ok(received)
    }
}

fn prepare(stream: TcpStream) -> io::Result<BufReader<TcpStream>> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(scaled_timeout(PATIENCE)))?;
    Ok(BufReader::new(stream))
}

fn listen(address: IpAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address((address, 0).into()), Type::STREAM, None)?;
    socket.set_read_timeout(Some(scaled_timeout(DATA_TIMEOUT)))?; // accept(2) obeys it
    socket.bind(&SocketAddr::new(address, 0).into())?;
    socket.listen(1)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    listener.accept().map(|(stream, _)| stream)
}

fn announce(endpoint: SocketAddr) -> String {
    let [high, low] = endpoint.port().to_be_bytes();
    match endpoint.ip() {
        IpAddr::V4(address) => format!("{address},{high},{low}").replace('.', ","),
        IpAddr::V6(address) => format!("|2|{address}|{}|", endpoint.port()),
    }
}

/// The endpoint of a `PORT`, 227, `EPRT`, or of a 229 from `peer`.
fn read_endpoint(line: &str, peer: IpAddr) -> Option<SocketAddr> {
    if let Some((_, fields)) = line.split_once('|') {
        let fields: Vec<&str> = fields.split('|').collect();
        let address = fields.get(1).and_then(|address| address.parse().ok()).unwrap_or(peer);
        return Some(SocketAddr::new(address, fields.get(2)?.parse().ok()?));
    }
    let is_part = |c: char| c.is_ascii_digit() || c == ',';
    let list = line.split(|c| !is_part(c)).find(|part| part.contains(','))?;
    let numbers: Vec<u8> = list.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [a, b, c, d, high, low] = numbers[..] else { return None };
    Some(SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low]))))
}

/// Serves until the process ends.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        // A session that breaks is the client's to report.
        thread::spawn(move || serve_session(stream).ok());
    }
}

fn serve_session(stream: TcpStream) -> io::Result<()> {
    let own = stream.local_addr()?.ip().to_canonical();
    let mut control = prepare(stream)?;
    let (mut passive, mut active) = (None, None);
    control.get_mut().write_all(b"220 ready\r\n")?;
    loop {
        let mut line = String::new();
        if control.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let reply = match line.get(..4).unwrap_or_default() {
            "USER" => "331 password".to_owned(),
            "PASS" => "230 in".to_owned(),
            "PASV" => {
                let listener = listen(own)?;
                let at = announce(listener.local_addr()?);
                (passive, active) = (Some(listener), None);
                format!("227 entering ({at})")
            }
            "EPSV" => {
                let listener = listen(own)?;
                let port = listener.local_addr()?.port();
                (passive, active) = (Some(listener), None);
                format!("229 entering (|||{port}|)")
            }
            "PORT" | "EPRT" => {
                (passive, active) = (None, read_endpoint(&line, own));
                "200 ok".to_owned()
            }
            "RETR" => {
                control.get_mut().write_all(b"150 now\r\n")?;
                let data = match (&passive, active) {
                    (Some(listener), _) => accept(listener),
                    (_, Some(to)) => TcpStream::connect_timeout(&to, scaled_timeout(DATA_TIMEOUT)),
                    _ => Err(io::ErrorKind::NotConnected.into()),
                };
                match data.and_then(|mut data| data.write_all(b"x")) {
                    Ok(()) => "226 done".to_owned(),
                    Err(error) => format!("425 {error}"),
                }
            }
            _ => "500 what?".to_owned(),
        };
        control.get_mut().write_all(format!("{reply}\r\n").as_bytes())?;
    }
}
