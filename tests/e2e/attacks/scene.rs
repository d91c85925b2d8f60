//! A gateway with a scripted server, checks that no port is open, and an ordinary transfer.

use crate::common::*;

/// Announces port 3762 of the client behind [`Topology::Masquerade`].
pub const PORT: &str = "PORT 192,168,150,80,14,178";
/// The port in [`PORT`].
pub const ANNOUNCED: u16 = 3762;
/// A passive port of the server.
pub const PASSIVE_PORT: u16 = 50069;

/// Runs `test` with a configuration for each back end. Both run at the same time, because they mostly wait for
/// timeouts.
pub fn with_each_back_end(test: impl Fn(&str) + Sync) {
    thread::scope(|scope| {
        for name in ["nftables", "conntrack"] {
            let test = &test;
            scope.spawn(move || test(&back_end(name)));
        }
    });
}

/// The port that the ordinary transfer announces; attacks use other ports.
const ORDINARY: u16 = 3763;

/// A gateway and a scripted server. The topology decides which end is behind NAT.
pub struct Scene {
    pub server: ScriptedServer,
    pub gateway: Gateway,
}

impl Scene {
    /// A gateway with an empty configuration, and a server that answers as `plan` says.
    pub fn new(topology: Topology, plan: &Value) -> Self {
        Self::with(topology, "", plan)
    }

    pub fn with(topology: Topology, configuration: &str, plan: &Value) -> Self {
        let gateway = gateway_with(topology, configuration);
        let server = scripted_server(&gateway.lab.server, plan);
        Self { server, gateway }
    }

    /// As [`Scene::with`], with a table that the test may change.
    pub fn with_open_table(topology: Topology, configuration: &str, plan: &Value) -> Self {
        let lab = Lab::new(topology).unwrap();
        let program = executable_without_owner(&lab);
        let daemon = Daemon::start(&program, &lab.gateway, configuration).unwrap();
        let server = scripted_server(&lab.server, plan);
        Self { server, gateway: Gateway { daemon, lab } }
    }

    /// The client runs `steps` and stays connected.
    pub fn client(&self, steps: &[Value]) -> GatedClient {
        self.client_of(&self.gateway.lab.client, &json!({"listen": [ANNOUNCED]}), steps)
    }

    /// The client logs in, runs `steps` and stays connected.
    pub fn logged_in(&self, steps: &[Value]) -> GatedClient {
        self.client(&[&login(), steps].concat())
    }

    /// A client on `host` connects as `plan` says, runs `steps` and stays connected.
    pub fn client_of(&self, host: &Host, plan: &Value, steps: &[Value]) -> GatedClient {
        let mut plan = plan.clone();
        if plan["host"].is_null() {
            plan["host"] = json!(self.gateway.lab.server_address(V4));
        }
        plan["steps"] = json!([steps, &[gate()]].concat());
        gated_client(host, plan)
    }

    /// Asserts that no pinhole is open: the kernel lists none, and connections from the intended initiators and from
    /// the outsider get no answer.
    pub fn assert_closed(&self, ports: &[u16]) {
        assert_eq!(self.gateway.daemon.open_pinholes().unwrap(), [""; 0]);
        let lab = &self.gateway.lab;
        let outside = lab.gateway.address(V4).to_string();
        let (initiators, inside) = match lab.spec().topology {
            Topology::PublishedServer => (vec![&lab.client, &lab.client2], &lab.server),
            _ => (vec![&lab.server], &lab.client),
        };
        let inside = inside.address(V4).to_string();
        let mut targets: Vec<(&Host, &str, u16)> = Vec::new();
        for port in ports {
            targets.extend(initiators.iter().map(|host| (*host, outside.as_str(), *port)));
            targets.extend([
                (&lab.outsider, outside.as_str(), *port),
                (&lab.outsider, &inside, *port),
            ]);
        }
        assert_silent(&targets);
        assert_eq!(self.gateway.daemon.open_pinholes().unwrap(), [""; 0]);
    }

    /// Asserts that an ordinary transfer works on a session of its own: an active one to a client behind NAT, a passive
    /// one from a server behind NAT.
    pub fn assert_transfer(&self) {
        let lab = &self.gateway.lab;
        let mut steps = login();
        let body = if lab.spec().topology == Topology::PublishedServer {
            steps.extend(passive_transfer("PASV"));
            10
        } else {
            steps.extend(active_transfer(lab.client.address(V4), ORDINARY));
            9
        };
        let session = talk(lab, steps).ok();
        assert_eq!(session.got(body), "the body\r\n");
    }

    /// The `PORT` and `EPRT` lines that the server received, without their unprintable bytes.
    pub fn announcements(&self) -> Vec<String> {
        let printable = |line: String| line.chars().filter(|c| matches!(c, ' '..='~')).collect();
        let lines = self.server.lines().into_iter().map(printable);
        lines.filter(|line: &String| line.contains("PORT") || line.contains("EPRT")).collect()
    }
}

/// Connects to all of `targets` at once and asserts that none answers, not even with a refusal.
pub fn assert_silent(targets: &[(&Host, &str, u16)]) {
    thread::scope(|scope| {
        let tries: Vec<_> = targets
            .iter()
            .map(|(host, address, port)| scope.spawn(|| connect_in_vain(host, address, *port)))
            .collect();
        for ((host, address, port), outcome) in targets.iter().zip(tries) {
            let outcome = outcome.join().unwrap();
            assert_eq!(outcome, "silent", "{} to {address}:{port}", host.role());
        }
    });
}
