//! What this machine does to the connections that are tried: looked at once one fails.

use std::{
    cell::OnceCell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
};

use super::ftp_client::FtpClientError;
use crate::{
    daemon::{client, snapshot::Status},
    gateway::{
        Backend, RuleParameters,
        firewall::{Acceptance, Firewall, Hook, Ip, PacketClass},
    },
};

/// This machine's rules and daemon.
pub(super) struct LocalMachine<'a> {
    parameters: &'a RuleParameters,
    socket: &'a Path,
    /// The back end of the daemon here, if one answers.
    running: OnceCell<Option<Backend>>,
    firewall: OnceCell<Firewall>,
}

/// A connection that did not come about.
#[derive(Clone, Copy)]
struct FailedConnection {
    /// Where its first packet would be.
    hook: Hook,
    peer: IpAddr,
    port: u16,
    /// The control port of its session, if it is a data connection.
    control: Option<u16>,
}

impl<'a> LocalMachine<'a> {
    pub(super) fn new(parameters: &'a RuleParameters, socket: &'a Path) -> Self {
        Self { parameters, socket, running: OnceCell::new(), firewall: OnceCell::new() }
    }

    /// What failed, and what to do. `server` is that of the control connection, if there is one.
    pub(super) fn explain(
        &self,
        trouble: &FtpClientError,
        server: Option<SocketAddr>,
    ) -> (String, Vec<String>) {
        let control = server.map(|server| server.port());
        let advice = match trouble {
            FtpClientError::ConnectFailed { says, to } => {
                let (peer, port) = (to.ip(), to.port());
                return self.explain_failed_connection(
                    says,
                    FailedConnection { hook: Hook::Output, peer, port, control },
                );
            }
            FtpClientError::NoDataConnection { says, to } => {
                let (peer, port) = (server.unwrap_or(*to).ip(), to.port());
                return self.explain_failed_connection(
                    says,
                    FailedConnection { hook: Hook::Input, peer, port, control },
                );
            }
            FtpClientError::ForeignAddress(_) => {
                "run ftp-alg on the server's gateway, or give the server its outer address"
            }
            FtpClientError::AnnouncementRefused(_) => {
                "if this host is behind NAT, its gateway needs ftp-alg: `ftp-alg doctor`"
            }
            FtpClientError::ControlConnection(_) => {
                "see the server's log, and `ftp-alg status` on each gateway in between"
            }
            FtpClientError::Refused(_) => "see the server's log and configuration",
        };
        (trouble.to_string(), vec![advice.to_owned()])
    }

    fn explain_failed_connection(
        &self,
        says: &str,
        missed: FailedConnection,
    ) -> (String, Vec<String>) {
        let blamed = self.dropping_rule(missed);
        let mut remedy = match (&blamed, missed.control) {
            (Some((_, remedy)), _) => remedy.clone(),
            (None, Some(_)) => {
                vec!["look on each gateway in between: `ftp-alg doctor` there".to_owned()]
            }
            (None, None) => {
                vec!["is a server there, and does each firewall in between let it pass?".to_owned()]
            }
        };
        if !rustix::process::geteuid().is_root() {
            remedy
                .push("run it as root to have the rules of this machine looked at, too".to_owned());
        }
        match blamed {
            Some((rule, _)) => (format!("{says}; on this machine {rule}"), remedy),
            None => (says.to_owned(), remedy),
        }
    }

    /// Which rule here drops such a connection, if one does, and what to do.
    fn dropping_rule(&self, missed: FailedConnection) -> Option<(String, Vec<String>)> {
        let FailedConnection { hook, peer, port, control } = missed;
        let ip = if peer.is_ipv4() { Ip::V4 } else { Ip::V6 };
        let firewall = self.firewall.get_or_init(Firewall::read);
        let is_read = control.is_some_and(|port| self.parameters.control_ports().contains(&port));
        let sign = match self.running_backend().filter(|_| is_read) {
            Some(backend) => PacketClass::for_data_connections(backend),
            None => {
                // Without a route no rule is at fault.
                let interface = outgoing_interface(peer)?;
                let judged = firewall.local_connection_verdict(
                    hook,
                    ip,
                    port,
                    Some(&interface),
                    self.parameters,
                );
                let verb = match judged.0 {
                    Acceptance::Dropped => "drops it",
                    Acceptance::Partly => "may drop it",
                    Acceptance::Accepted => return None,
                };
                let remedy = match control {
                    Some(port) if !is_read => {
                        format!("ftp-alg here reads port {port} only if it is in control-ports")
                    }
                    Some(_) => "start ftp-alg here, and see `ftp-alg doctor`".to_owned(),
                    None => format!("let it accept TCP to port {port}, and the replies"),
                };
                return Some((format!("{} {verb}", judged.1?), vec![remedy]));
            }
        };
        let judgement = firewall.verdict(hook, ip, sign, self.parameters);
        let stop = judgement.dropping_chains().next()?;
        Some((format!("{stop} drops it"), Firewall::remedies(&judgement, sign, self.parameters)))
    }

    fn running_backend(&self) -> Option<Backend> {
        *self.running.get_or_init(|| {
            let answer = client::request(self.socket, "status", crate::cli::ANSWER_TIMEOUT).ok()?;
            answer.parse::<Status>().ok()?.backend.parse().ok()
        })
    }
}

/// The interface by which packets leave for `peer`.
fn outgoing_interface(peer: IpAddr) -> Option<String> {
    let any: IpAddr = match peer {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // To connect it asks for a route, and sends nothing.
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((peer, 9)).ok()?;
    let own = socket.local_addr().ok()?.ip();
    let all = pnet::datalink::interfaces().into_iter();
    let mut with = all.filter(|one| one.ips.iter().any(|network| network.ip() == own));
    with.next().map(|one| one.name)
}
