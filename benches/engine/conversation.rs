//! Recorded conversations of a client and a server, and a kernel that accepts every request.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4},
    time::Instant,
};

use etherparse::PacketBuilder;
use ftp_alg_core::{
    engine::{
        Checksums, Closing, Engine, Kernel, KernelError, Opening, PacketMeta, PacketOutcome,
        QueueMode, QueuedPacket, Standalone, Token, Translation,
    },
    policy::Policy,
};

const CLIENT: &str = "192.168.150.80:1035";
const SERVER: &str = "203.0.113.9:21";
/// The lines of a transfer in active mode, and whether the server sends them.
pub const ACTIVE: [(&str, bool); 4] = [
    (PORT, false),
    ("200 PORT command successful.\r\n", true),
    ("LIST\r\n", false),
    ("226 Done.\r\n", true),
];
pub const PORT: &str = "PORT 192,168,150,80,14,178\r\n";
/// A bypassable command and its reply.
pub const BYPASSABLE: [(&str, bool); 2] = [("NOOP\r\n", false), ("200 Zzz...\r\n", true)];

/// A gateway without sessions and without limits.
pub fn gateway() -> Standalone<GrantingKernel> {
    let most = usize::MAX;
    let policy = Policy { max_sessions: most, max_pinholes_per_client: most, ..Policy::default() };
    Standalone::new(Engine::new(policy, Checksums::Verify), GrantingKernel)
}

/// A packet as a netfilter queue delivers it.
pub fn arrival(bytes: &[u8]) -> QueuedPacket<'_> {
    QueuedPacket { token: Token::default(), bytes, meta: PacketMeta::FORWARDED }
}

/// A packet between two `ends`, with its sequence number and what it acknowledges.
pub fn build(ends: [SocketAddrV4; 2], numbers: [u32; 2], syn: bool, payload: &[u8]) -> Vec<u8> {
    let [from, to] = ends;
    let builder = PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64)
        .tcp(from.port(), to.port(), numbers[0], 512)
        .ack(numbers[1]);
    let builder = if syn { builder.syn() } else { builder };
    let mut packet = Vec::with_capacity(80);
    builder.write(&mut packet, payload).unwrap();
    packet
}

/// A conversation as the gateway sees it: the server acknowledges what the gateway forwarded to it.
pub struct Conversation {
    pub packets: Vec<Vec<u8>>,
    client: SocketAddr,
    gateway: Standalone<GrantingKernel>,
    next: [u32; 2],
    received: [u32; 2],
}

impl Conversation {
    pub fn logged_in(client: &str) -> Self {
        let (packets, client) = (Vec::new(), client.parse().unwrap());
        let mut conversation =
            Self { packets, client, gateway: gateway(), next: [100, 499], received: [499, 100] };
        conversation.send(b"", true, true);
        conversation.next[1] = 500;
        conversation.received[0] = 500;
        for (line, server) in [
            ("220 ready\r\n", true),
            ("USER joe\r\n", false),
            ("331 password\r\n", true),
            ("PASS x\r\n", false),
            ("230 in\r\n", true),
        ] {
            conversation.send_line(line, server);
        }
        conversation
    }

    /// A client that has logged in, and then this.
    pub fn with(lines: &[(&str, bool)]) -> Self {
        let mut conversation = Self::logged_in(CLIENT);
        lines.iter().for_each(|(line, server)| conversation.send_line(line, *server));
        conversation
    }

    pub fn send_line(&mut self, line: &str, server: bool) {
        self.send(line.as_bytes(), server, false);
    }

    fn send(&mut self, payload: &[u8], server: bool, syn: bool) {
        let me = usize::from(server);
        let (client, other): (SocketAddr, SocketAddr) = (self.client, SERVER.parse().unwrap());
        let (from, to) = if server { (other, client) } else { (client, other) };
        let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { return };
        let packet = build([from, to], [self.next[me], self.received[me]], syn, payload);
        let shrunk = match self.gateway.packet(Instant::now(), &packet) {
            PacketOutcome::Replace => packet.len() as i64 - self.gateway.replacement().len() as i64,
            _ => 0,
        };
        self.next[me] += payload.len() as u32;
        self.received[1 - me] += (payload.len() as i64 - shrunk) as u32;
        self.packets.push(packet);
    }
}

/// A kernel that accepts every request.
pub struct GrantingKernel;

impl Kernel for GrantingKernel {
    fn lookup_translation(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Result<Option<Translation>, KernelError> {
        let client_external = SocketAddr::from(([198, 51, 100, 1], client.port()));
        Ok(Some(Translation { client_external, ..Translation::identity(client, server) }))
    }

    fn open(&mut self, _: &Opening, _: &[Closing]) -> Result<(), KernelError> {
        Ok(())
    }

    fn close(&mut self, _: &[Closing]) -> Result<(), KernelError> {
        Ok(())
    }

    fn set_queue_mode(&mut self, _: &Translation, _: QueueMode) -> Result<(), KernelError> {
        Ok(())
    }

    fn inject(&mut self, _: &[u8], _: IpAddr, _: u32) -> Result<(), KernelError> {
        Ok(())
    }
}
