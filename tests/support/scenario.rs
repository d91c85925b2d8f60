//! How a simulation is set up.

use ftp_alg_core::{engine::Translation, policy::Policy};

use super::{link::Link, sim::queues::Queueing, tcp::Settings};

/// What the gateway translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    Routed,
    /// The client is hidden.
    Masquerade,
    /// The server is published.
    PortForward,
    Both,
}

pub const NATS: [Nat; 4] = [Nat::Routed, Nat::Masquerade, Nat::PortForward, Nat::Both];

impl Nat {
    pub fn hides_client(self) -> bool {
        matches!(self, Self::Masquerade | Self::Both)
    }

    pub fn hides_server(self) -> bool {
        matches!(self, Self::PortForward | Self::Both)
    }

    pub fn translation(self, v6: bool) -> Translation {
        let [client, outside, server, published] = if v6 {
            [
                "[fd00:150::80]:1035",
                "[2001:db8::1]:40035",
                "[2001:db8:9::9]:21",
                "[2001:db8::2]:2121",
            ]
        } else {
            // Longer than the server's own, and shorter.
            let published = if self == Self::Both { "192.0.2.2:2121" } else { "198.51.100.2:2121" };
            ["192.168.150.80:1035", "198.51.100.1:40035", "203.0.113.9:21", published]
        }
        .map(|text| text.parse().unwrap());
        Translation {
            client,
            client_external: if self.hides_client() { outside } else { client },
            server,
            server_external: if self.hides_server() { published } else { server },
        }
    }
}

/// How a simulation is set up.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub nat: Nat,
    pub v6: bool,
    pub policy: Policy,
    pub client: Settings,
    pub server: Settings,
    pub link: Link,
    /// Whether pure acknowledgements are queued although the engine does not want every packet.
    pub queues_acks: bool,
    /// How often, for each packet that an end sends, a stranger sends one.
    pub strays: f64,
    /// How often the daemon crashes, for each packet that is queued.
    pub crashes: f64,
    /// Whether what overtook others waits for them, as the daemon has it.
    pub is_patient: bool,
    pub queueing: Queueing,
    pub seed: u64,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            nat: Nat::Masquerade,
            v6: false,
            policy: Policy::default(),
            client: Settings::default(),
            server: Settings { isn: 70_000, ..Settings::default() },
            link: Link::default(),
            queues_acks: false,
            strays: 0.0,
            crashes: 0.0,
            is_patient: false,
            queueing: Queueing::AT_ONCE,
            seed: 1,
        }
    }
}
