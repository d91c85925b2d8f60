//! How a simulation is set up.

use ftp_alg_core::{engine::Translation, policy::Policy};

use super::{Rng, link::Link, sim::queues::Queueing, tcp::Settings};

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
            client_external: if self.hides_client() { outside } else { client },
            server_external: if self.hides_server() { published } else { server },
            ..Translation::identity(client, server)
        }
    }
}

/// For half of the seeds, how many fast-path lines there is room for.
pub fn hands_over(seed: u64) -> Option<usize> {
    let mut rng = Rng::new(seed ^ 11);
    rng.chance(0.5).then(|| *rng.pick(&[1, 2, 3, 7, 4854, 4854, 4854, 4854]))
}

/// For a quarter of the seeds, pinholes are expectations.
pub fn uses_expectations(seed: u64) -> bool {
    Rng::new(seed ^ 14).chance(0.25)
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
    /// How often, for each packet that an end sends, an off-path attacker sends one.
    pub strays: f64,
    /// How often the daemon crashes, for each packet that is queued.
    pub crashes: f64,
    /// Whether out-of-order packets wait for their predecessors, as the daemon has it.
    pub is_patient: bool,
    pub queueing: Queueing,
    /// For how many fast-path lines there is room, if connections are handed over.
    pub hands_over: Option<usize>,
    /// Whether pinholes are expectations.
    pub uses_expectations: bool,
    /// The interfaces of client and server.
    pub interfaces: [u32; 2],
    /// Whether another gateway continues after a crash.
    pub is_pair: bool,
    pub seed: u64,
}

impl Scenario {
    /// What the gateway translates. Where lines are fast_path, it may be that no 227 changes its length.
    pub fn translation(&self) -> Translation {
        let mut translation = self.nat.translation(self.v6);
        let uses_fast_path = self.hands_over.is_some() && !self.v6 && self.nat.hides_server();
        if uses_fast_path && Rng::new(self.seed ^ 12).chance(0.7) {
            let as_long = "192.0.2.200";
            translation.server_external.set_ip(as_long.parse().unwrap());
        }
        translation
    }
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
            hands_over: None,
            uses_expectations: false,
            interfaces: [1; 2],
            is_pair: false,
            seed: 1,
        }
    }
}
