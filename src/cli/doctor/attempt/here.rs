//! What this machine does to the connections that are tried: looked at once one fails.

use std::{
    cell::OnceCell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
};

use super::client::Trouble;
use crate::{
    daemon::{client, snapshot::Status},
    gateway::{
        Backend, RuleParameters,
        firewall::{Firewall, Hook, Ip, Passage, Sign},
    },
};

/// This machine's rules and daemon.
pub(super) struct Here<'a> {
    parameters: &'a RuleParameters,
    socket: &'a Path,
    /// The back end of the daemon here, if one answers.
    running: OnceCell<Option<Backend>>,
    firewall: OnceCell<Firewall>,
}

/// A connection that did not come about.
#[derive(Clone, Copy)]
struct Missed {
    /// Where its first packet would be.
    hook: Hook,
    peer: IpAddr,
    port: u16,
    /// The control port of its session, if it is a data connection.
    control: Option<u16>,
}

impl<'a> Here<'a> {
    pub(super) fn new(parameters: &'a RuleParameters, socket: &'a Path) -> Self {
        Self { parameters, socket, running: OnceCell::new(), firewall: OnceCell::new() }
    }

    /// What failed, and what to do. `server` is that of the control connection, if there is one.
    pub(super) fn explain(
        &self,
        trouble: &Trouble,
        server: Option<SocketAddr>,
    ) -> (String, Vec<String>) {
        let control = server.map(|server| server.port());
        let advice = match trouble {
            Trouble::Unreached { says, to } => {
                let (peer, port) = (to.ip(), to.port());
                return self.missed(says, Missed { hook: Hook::Output, peer, port, control });
            }
            Trouble::NotReached { says, to } => {
                let (peer, port) = (server.unwrap_or(*to).ip(), to.port());
                return self.missed(says, Missed { hook: Hook::Input, peer, port, control });
            }
            Trouble::Foreign(_) => {
                "run ftp-alg on the server's gateway, or give the server its outer address"
            }
            Trouble::Announcement(_) => {
                "if this host is behind NAT, its gateway needs ftp-alg: `ftp-alg doctor`"
            }
            Trouble::Control(_) => {
                "see the server's log, and `ftp-alg status` on each gateway in between"
            }
            Trouble::Refused(_) => "see the server's log and configuration",
        };
        (trouble.to_string(), vec![advice.to_owned()])
    }

    fn missed(&self, says: &str, missed: Missed) -> (String, Vec<String>) {
        let blamed = self.blame(missed);
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
    fn blame(&self, missed: Missed) -> Option<(String, Vec<String>)> {
        let Missed { hook, peer, port, control } = missed;
        let ip = if peer.is_ipv4() { Ip::V4 } else { Ip::V6 };
        let firewall = self.firewall.get_or_init(Firewall::read);
        let is_read = control.is_some_and(|port| self.parameters.control_ports().contains(&port));
        let sign = match self.running().filter(|_| is_read) {
            Some(backend) => Sign::of(backend),
            None => {
                // Without a route no rule is at fault.
                let interface = interface_to(peer)?;
                let judged = firewall.local(hook, ip, port, Some(&interface), self.parameters);
                let verb = match judged.0 {
                    Passage::Dropped => "drops it",
                    Passage::Some => "may drop it",
                    Passage::Accepted => return None,
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
        let judgement = firewall.judge(hook, ip, sign, self.parameters);
        let stop = judgement.stops().next()?;
        Some((format!("{stop} drops it"), Firewall::remedies(&judgement, sign, self.parameters)))
    }

    fn running(&self) -> Option<Backend> {
        *self.running.get_or_init(|| {
            let answer = client::request(self.socket, "status", crate::cli::ANSWER).ok()?;
            answer.parse::<Status>().ok()?.backend.parse().ok()
        })
    }
}

/// The interface by which packets leave for `peer`.
fn interface_to(peer: IpAddr) -> Option<String> {
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
