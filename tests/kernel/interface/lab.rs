//! A client, a gateway and a server, each in a network namespace of its own.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    ops::Deref,
    os::fd::AsRawFd as _,
    time::Duration,
};

use ftp_alg_core::{
    engine::{Closing, Kernel, KernelError, Opening, PinholeEnds, Translation},
    ftp::AnnouncementKind,
};
use ftp_alg_lab::{
    AddressPlan, DualAddress, FirewallKind, Host, LabSpec, Topology, scaled_timeout,
};
use socket2::{Domain, Socket, Type};

pub const CLIENT: &str = "10.0.0.2";
pub const GATEWAY_INSIDE: &str = "10.0.0.1";
pub const EXTERNAL: &str = "192.0.2.1";
pub const EXTERNAL2: &str = "192.0.2.77";
pub const SERVER: &str = "192.0.2.9";
pub const SERVER2: &str = "192.0.2.10";
pub const SERVER2_6: &str = "2001:db8:2::10";
pub const CLIENT6: &str = "2001:db8:1::2";
pub const EXTERNAL6: &str = "2001:db8:2::1";
pub const SERVER6: &str = "2001:db8:2::9";

/// The lab with the addresses above, and without a firewall.
pub struct Lab(ftp_alg_lab::Lab);

impl Deref for Lab {
    type Target = ftp_alg_lab::Lab;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Lab {
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let ends =
            |v4: &str, v6: &str| DualAddress { v4: v4.parse().unwrap(), v6: v6.parse().unwrap() };
        let plan = AddressPlan {
            inside: ends(GATEWAY_INSIDE, "2001:db8:1::1"),
            outside: ends(EXTERNAL, EXTERNAL6),
            client: ends(CLIENT, CLIENT6),
            client2: ends("10.0.0.3", "2001:db8:1::3"),
            server: ends(SERVER, SERVER6),
            outsider: ends("192.0.2.20", "2001:db8:2::20"),
            far: None,
            pool: vec![ends(EXTERNAL2, "2001:db8:2::77")],
        };
        let spec = LabSpec {
            plan,
            firewall: FirewallKind::None,
            offloads: true,
            ..LabSpec::new(Topology::Routed)
        };
        let lab = ftp_alg_lab::Lab::build(spec).unwrap();
        let more = format!(
            "ip address add {SERVER2}/24 dev eth0; ip address add {SERVER2_6}/64 dev eth0 nodad"
        );
        lab.server.shell(&more).unwrap();
        Self(lab)
    }

    /// Runs a shell command in the gateway's namespace and returns what it printed.
    pub fn gateway_sh(&self, command: &str) -> String {
        self.gateway.shell(command).unwrap().stdout_text()
    }

    /// Nobody renews the heartbeat in the table, and the queue is bypassed.
    pub fn pass_by(&self) {
        self.gateway_sh("nft 'delete element inet ftp_alg heartbeat { tcp }'");
    }

    /// An operator's firewall: drops what is forwarded, but control connections and our bit.
    pub fn drop_by_default(&self) {
        self.gateway_sh(
            "nft 'table inet filter { chain forward { \
                type filter hook forward priority 0; policy drop; \
                ct state established,related accept; tcp dport 21 accept; \
                ct mark & 0x40000000 != 0 accept; meta l4proto icmpv6 accept; }; }'",
        );
    }

    /// An operator's source translation.
    pub fn masquerade(&self) {
        self.gateway_sh(
            "nft 'table ip nat { chain post { type nat hook postrouting priority 100; \
                oifname wan masquerade; }; }'",
        );
    }

    /// The ct mark of the connection that `client` initiated.
    pub fn ct_mark_of(&self, client: &TcpStream) -> u32 {
        let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let family = if from.is_ipv4() { "ipv4" } else { "ipv6" };
        // An earlier connection to another port may have had the same source port.
        let ports = format!("--sport {} --dport {}", from.port(), to.port());
        let known = self.gateway_sh(&format!("conntrack -L -f {family} -p tcp {ports}"));
        let mark = known.split_once("mark=").unwrap().1.split_whitespace().next();
        mark.unwrap().parse().unwrap()
    }

    /// Runs `work` in the gateway's namespace.
    pub fn on_gateway<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.gateway, work)
    }
}

/// Runs `work` on a thread of its own in the namespace of `host`.
pub fn inside<T: Send>(host: &Host, work: impl FnOnce() -> T + Send) -> T {
    host.inside(work).unwrap()
}

/// An opening for a session of [`CLIENT`] with [`SERVER`].
pub fn opening(ends: PinholeEnds, lifetime: Duration) -> Opening {
    let control = Translation::identity(at(CLIENT, 1025), at(SERVER, 21));
    Opening { ends, control, kind: AnnouncementKind::Pasv, lifetime }
}

pub fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

pub fn listen(host: &Host, address: SocketAddr) -> TcpListener {
    inside(host, || TcpListener::bind(address).unwrap())
}

/// Connects from an address.
pub fn connect(host: &Host, from: &str, to: SocketAddr) -> TcpStream {
    connect_from(host, at(from, 0), to)
}

/// Connects from an address and port.
pub fn connect_from(host: &Host, from: SocketAddr, to: SocketAddr) -> TcpStream {
    connect_within(host, from, to, scaled_timeout(Duration::from_secs(8))).unwrap()
}

/// Whether nothing answers a connection.
pub fn is_silent(host: &Host, from: &str, to: SocketAddr) -> bool {
    connect_within(host, at(from, 0), to, Duration::from_millis(700)).is_err()
}

/// Connects from an address and port, or gives up after `limit`.
pub fn connect_within(
    host: &Host,
    from: SocketAddr,
    to: SocketAddr,
    limit: Duration,
) -> io::Result<TcpStream> {
    inside(host, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), limit)?;
        Ok(socket.into())
    })
}

/// A connection from end to end that has carried a byte each way, and the peer that the
/// listening end sees.
pub fn exchange(client: &mut TcpStream, listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let (mut server, peer) = listener.accept().unwrap();
    let mut byte = [0];
    for stream in [&*client, &server] {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    client.write_all(b"x").unwrap();
    server.read_exact(&mut byte).unwrap();
    server.write_all(b"y").unwrap();
    client.read_exact(&mut byte).unwrap();
    (server, peer)
}

/// What the peer has not acknowledged.
pub fn unacknowledged_bytes(stream: &TcpStream) -> i32 {
    let mut count = 0;
    // SAFETY: the request writes one int to `count`.
    let done = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &mut count) };
    assert_eq!(done, 0, "TIOCOUTQ: {}", io::Error::last_os_error());
    count
}

pub fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

pub fn pinhole(initiator: &str, arrival: SocketAddr) -> PinholeEnds {
    let initiator = ip(initiator);
    PinholeEnds { initiator, arrival, target: arrival, source: initiator }
}

/// A kernel that is asked for one thing at a time.
pub trait OneAtATime: Kernel {
    fn close_and_open(
        &mut self,
        closed: &[PinholeEnds],
        opening: &Opening,
    ) -> Result<(), KernelError> {
        let closings: Vec<_> = closed.iter().copied().map(Closing::Rules).collect();
        self.open(opening, &closings)
    }

    fn open_one(&mut self, opening: &Opening) -> Result<(), KernelError> {
        self.close_and_open(&[], opening)
    }

    fn close_one(&mut self, pinhole: &PinholeEnds) -> Result<(), KernelError> {
        self.close(&[Closing::Rules(*pinhole)])
    }
}

impl<K: Kernel> OneAtATime for K {}
