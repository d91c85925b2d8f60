//! A client, a gateway and a server, each in a network namespace of its own.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use ftp_alg_core::engine::{Kernel, KernelError, Opening, Pinhole};
use socket2::{Domain, Socket, Type};

pub const CLIENT: &str = "10.0.0.2";
pub const GATEWAY_INSIDE: &str = "10.0.0.1";
pub const EXTERNAL: &str = "192.0.2.1";
pub const EXTERNAL2: &str = "192.0.2.77";
pub const SERVER: &str = "192.0.2.9";
pub const SERVER2: &str = "192.0.2.10";
pub const CLIENT6: &str = "2001:db8:1::2";
pub const EXTERNAL6: &str = "2001:db8:2::1";
pub const SERVER6: &str = "2001:db8:2::9";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The namespaces; deleted when dropped, whether the test passed or not.
pub struct Lab {
    pub client: String,
    pub gateway: String,
    pub server: String,
}

impl Lab {
    pub fn new() -> Self {
        let id = format!("gw{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let [client, gateway, server] = ["c", "g", "s"].map(|role| format!("{id}{role}"));
        let lab = Self { client, gateway, server };
        for name in [&lab.client, &lab.gateway, &lab.server] {
            run("ip", &["netns", "add", name]);
            lab.ip(name, "link set lo up");
            // Otherwise link-local addresses are no good for the first second or two.
            let sysctl = ["netns", "exec", name, "sysctl", "-qw"];
            let mut all = sysctl.to_vec();
            all.extend(["net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"]);
            run("ip", &all);
        }
        let link = |inside: &str, name: &str, here: &str| {
            let (there, gateway) = (format!("netns {inside}"), &lab.gateway);
            lab.ip(gateway, &format!("link add {name} type veth peer name {here} {there}"));
            lab.ip(gateway, &format!("link set {name} up"));
            lab.ip(inside, &format!("link set {here} up"));
        };
        link(&lab.client, "inside", "eth0");
        link(&lab.server, "outside", "eth0");
        for (name, device, address) in [
            (&lab.client, "eth0", "10.0.0.2/24"),
            (&lab.gateway, "inside", "10.0.0.1/24"),
            (&lab.gateway, "outside", "192.0.2.1/24"),
            (&lab.gateway, "outside", "192.0.2.77/24"),
            (&lab.server, "eth0", "192.0.2.9/24"),
            (&lab.server, "eth0", "192.0.2.10/24"),
            (&lab.client, "eth0", "2001:db8:1::2/64"),
            (&lab.gateway, "inside", "2001:db8:1::1/64"),
            (&lab.gateway, "outside", "2001:db8:2::1/64"),
            (&lab.server, "eth0", "2001:db8:2::9/64"),
        ] {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            lab.ip(name, &format!("address add {address} dev {device}{nodad}"));
        }
        lab.ip(&lab.client, "route add default via 10.0.0.1");
        lab.ip(&lab.server, "route add default via 192.0.2.1");
        lab.ip(&lab.client, "-6 route add default via 2001:db8:1::1");
        lab.ip(&lab.server, "-6 route add default via 2001:db8:2::1");
        lab.gateway_sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        lab
    }

    fn ip(&self, name: &str, arguments: &str) {
        let mut all = vec!["-n", name];
        all.extend(arguments.split(' '));
        run("ip", &all);
    }

    /// Runs a shell command in the gateway's namespace and returns what it printed.
    pub fn gateway_sh(&self, command: &str) -> String {
        run("ip", &["netns", "exec", &self.gateway, "sh", "-c", command])
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
                oifname outside masquerade; }; }'",
        );
    }

    /// Runs `work` in the gateway's namespace.
    pub fn on_gateway<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.gateway, work)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in [&self.client, &self.gateway, &self.server] {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `work` on a thread of its own that has moved to a namespace.
pub fn inside<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let namespace = File::open(format!("/run/netns/{name}")).unwrap();
            // SAFETY: it only changes the namespace of this thread.
            let done = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(done, 0, "setns {name}: {}", io::Error::last_os_error());
            work()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

pub fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

pub fn listen(name: &str, address: SocketAddr) -> TcpListener {
    inside(name, || TcpListener::bind(address).unwrap())
}

/// Connects from an address, with a short patience.
pub fn connect(name: &str, from: &str, to: SocketAddr) -> io::Result<TcpStream> {
    inside(name, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&at(from, 0).into())?;
        socket.connect_timeout(&to.into(), Duration::from_millis(700))?;
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

pub fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

pub fn pinhole(initiator: &str, arrival: SocketAddr) -> Pinhole {
    let initiator = ip(initiator);
    Pinhole { initiator, arrival, target: arrival, source: initiator }
}

/// A kernel that is asked for one thing at a time.
pub trait OneAtATime: Kernel {
    fn close_and_open(&mut self, closed: &[Pinhole], opening: &Opening) -> Result<(), KernelError> {
        let mut outcomes = Vec::new();
        self.update_pinholes(closed, &[*opening], &mut outcomes)?;
        outcomes.remove(0)
    }

    fn open(&mut self, opening: &Opening) -> Result<(), KernelError> {
        self.close_and_open(&[], opening)
    }

    fn close(&mut self, pinhole: &Pinhole) -> Result<(), KernelError> {
        self.update_pinholes(&[*pinhole], &[], &mut Vec::new())
    }
}

impl<K: Kernel> OneAtATime for K {}
