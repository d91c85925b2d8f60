//! The kernel of a gateway with a few control connections: a recorder that checks every pinhole.

use std::net::{IpAddr, SocketAddr};

use ftp_alg_core::{
    engine::{Closing, Kernel, KernelError, Opening, PinholeEnds, QueueMode, Translation},
    policy::{ForeignAddress, Policy},
};

use super::recorder::{Life, Recorder};

/// The kernel, for any number of connections.
pub struct Gateway {
    /// The recorder, which knows one connection at a time.
    pub recorder: Recorder,
    /// The translations of all connections.
    pub translations: Vec<Translation>,
    /// For each connection, whether the server may have accepted a login.
    pub logged_in: Vec<bool>,
    /// The policy of the engine.
    pub policy: Policy,
    /// Whether conntrack has been flushed.
    pub knows_none: bool,
}

impl Gateway {
    pub fn new(translations: Vec<Translation>, policy: Policy) -> Self {
        let logged_in = vec![false; translations.len()];
        let recorder = Recorder::new(translations[0], Life::default());
        Self { recorder, translations, logged_in, policy, knows_none: false }
    }

    /// Checks a pinhole: it is for the two ends of its control connection, unless policy allows foreign addresses. Its
    /// port is not below the lowest one. A port that was not announced is in the configured range.
    fn check(&self, opening: &Opening) {
        let Opening { ends: pinhole, control, lifetime, .. } = opening;
        let PinholeEnds { initiator, arrival, target, source } = *pinhole;
        let Translation { client, client_external, server, server_external, .. } = *control;
        let network = self.policy.network_of(client.ip(), server.ip());
        let policy = self.policy.for_network(network);
        let ((from, seen_from), (to, seen_to)) = match opening.is_from_client() {
            true => ((client, client_external), (server, server_external)),
            false => ((server, server_external), (client, client_external)),
        };
        assert_eq!((initiator, source), (from.ip(), seen_from.ip()), "who opens {pinhole}");
        if policy.foreign_address == ForeignAddress::Refuse {
            assert_eq!((target.ip(), arrival.ip()), (to.ip(), seen_to.ip()), "whose is {pinhole}");
        }
        assert!(target.port() >= policy.min_data_port, "{pinhole} is too low");
        let chosen = policy.port_range.contains(&arrival.port())
            && !policy.control_ports.contains(&arrival.port());
        assert!(arrival.port() == target.port() || chosen, "{pinhole} arrives out of range");
        assert_eq!(*lifetime, policy.pinhole_timeout);
        let index = self.index(control);
        assert!(!policy.require_login || self.logged_in[index], "{pinhole} before a login");
    }

    fn index(&self, control: &Translation) -> usize {
        self.translations.iter().position(|t| t == control).expect("a connection that there is")
    }
}

impl Kernel for Gateway {
    fn lookup_translation(
        &mut self,
        a: SocketAddr,
        b: SocketAddr,
    ) -> Result<Option<Translation>, KernelError> {
        let is_between =
            |t: &&Translation| [t.client, t.server] == [a, b] || [t.client, t.server] == [b, a];
        let found = self.translations.iter().find(is_between).copied();
        self.recorder.translation = found.filter(|_| !self.knows_none);
        self.recorder.lookup_translation(a, b)
    }

    fn open(&mut self, opening: &Opening, closings: &[Closing]) -> Result<(), KernelError> {
        self.recorder.translation = Some(opening.control);
        self.recorder.open(opening, closings)?;
        self.check(opening);
        Ok(())
    }

    fn close(&mut self, closings: &[Closing]) -> Result<(), KernelError> {
        self.recorder.close(closings)
    }

    fn set_queue_mode(
        &mut self,
        control: &Translation,
        mode: QueueMode,
    ) -> Result<(), KernelError> {
        self.index(control);
        if self.knows_none {
            return Err(KernelError::Unknown);
        }
        self.recorder.translation = Some(*control);
        self.recorder.set_queue_mode(control, mode)
    }

    fn inject(&mut self, packet: &[u8], source: IpAddr, ct_mark: u32) -> Result<(), KernelError> {
        self.recorder.inject(packet, source, ct_mark)
    }
}
