//! Finds out whether rules of this machine drop a connection of `--try`. The rules are read only if a step fails.

use std::{
    cell::OnceCell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use ftp_alg_firewall::{Acceptance, Firewall, Hook, IpVersion};

use super::ftp_client::{
    FtpClientError,
    FtpClientErrorKind::{
        AnnouncementRefused, ConnectFailed, ControlConnection, ForeignAddress, LoginRefused,
        NoDataConnection, PassiveInTls, Refused, RefusedByGateway, Tls, Undecided,
    },
};
use crate::{
    cli::SocketOption,
    kernel::{RuleParameters, operator_firewall, parameters::Backend},
};

/// The rules and the daemon of this machine.
pub(super) struct LocalMachine<'a> {
    parameters: &'a RuleParameters,
    socket: &'a SocketOption,
    /// The back end of the local daemon, if one answers.
    running: OnceCell<Option<Backend>>,
    firewall: OnceCell<Firewall>,
}

impl<'a> LocalMachine<'a> {
    pub(super) fn new(parameters: &'a RuleParameters, socket: &'a SocketOption) -> Self {
        Self { parameters, socket, running: OnceCell::new(), firewall: OnceCell::new() }
    }

    /// The error message, and what to do. `server` is the endpoint of the control connection, if there is one.
    pub(super) fn explain(
        &self,
        error: &FtpClientError,
        server: Option<SocketAddr>,
    ) -> (String, Vec<String>) {
        let failed = |hook, address, port| {
            let to = SocketAddr::new(address, port);
            self.explain_failed_connection(error, hook, to, server.map(|server| server.port()))
        };
        let advice = match error.kind {
            ConnectFailed(to) => return failed(Hook::Output, to.ip(), to.port()),
            NoDataConnection(to) => {
                return failed(Hook::Input, server.unwrap_or(to).ip(), to.port());
            }
            ForeignAddress => {
                "run ftp-alg on the server's gateway, or set the server's external address"
            }
            PassiveInTls { to, is_foreign, is_closed } => {
                return self.explain_passive_in_tls(error, to, is_foreign, is_closed);
            }
            RefusedByGateway(reason) => {
                let advice = format!("on that gateway: {}", reason.remedy());
                return (error.to_string(), vec![advice]);
            }
            AnnouncementRefused => {
                "a NAT gateway in between needs ftp-alg: run `ftp-alg doctor` there"
            }
            ControlConnection => {
                "check the server's log, and `ftp-alg status` on each gateway in between"
            }
            LoginRefused => "try another login: ftp://USER@HOST and --password-file FILE",
            Tls(advice) => advice,
            Refused | Undecided => "check the server's log and configuration",
        };
        (error.to_string(), vec![advice.to_owned()])
    }

    /// Explains an announcement inside TLS, which must be right as the server sends it and which no gateway can read.
    fn explain_passive_in_tls(
        &self,
        error: &FtpClientError,
        to: SocketAddr,
        is_foreign: bool,
        is_closed: bool,
    ) -> (String, Vec<String>) {
        let (mut says, mut remedy) = (error.to_string(), Vec::new());
        if is_foreign {
            let public = to.ip();
            remedy.extend([
                "no gateway can correct a 227 inside TLS: in the server's configuration".to_owned(),
                format!("vsftpd listen=YES and pasv_address={public}, Pure-FTPd -P {public},"),
                format!("ProFTPD MasqueradeAddress {public},"),
                format!("or pyftpdlib masquerade_address = \"{public}\""),
            ]);
        }
        if is_closed {
            if let Some((rule, _)) = self.dropping_rule(Hook::Output, to, None) {
                says += &format!("; {rule}");
            }
            let start = (to.port() / 100 * 100).max(1024);
            let end = start.saturating_add(100 - start % 100);
            remedy.extend([
                "on each gateway in between, in [[server]] with the server's address:".to_owned(),
                format!("passive-ports = \"{start}-{end}\""),
                "(the range of vsftpd pasv_min_port, ProFTPD PassivePorts, Pure-FTPd -p)"
                    .to_owned(),
            ]);
        }
        (says, remedy)
    }

    /// Explains a connection whose first packet did not pass `hook`, or did not come back. `to` is the address of the
    /// peer and the destination port, and `control` is the server's control port if it is a data connection.
    fn explain_failed_connection(
        &self,
        error: &FtpClientError,
        hook: Hook,
        to: SocketAddr,
        control: Option<u16>,
    ) -> (String, Vec<String>) {
        let dropped = self.dropping_rule(hook, to, control);
        let mut remedy = match (&dropped, control) {
            (Some((_, remedy)), _) => remedy.clone(),
            (None, Some(_)) => {
                vec!["run `ftp-alg doctor` on each gateway in between".to_owned()]
            }
            (None, None) => vec![
                "check that the server is running".to_owned(),
                "check that each firewall in between accepts the connection".to_owned(),
            ],
        };
        if !rustix::process::geteuid().is_root() {
            remedy.push("run this as root to check the rules of this machine, too".to_owned());
        }
        match dropped {
            Some((rule, _)) => (format!("{error}; {rule}"), remedy),
            None => (error.to_string(), remedy),
        }
    }

    /// The rule of this machine that drops such a connection, and what to do. `None` if no rule drops it.
    fn dropping_rule(
        &self,
        hook: Hook,
        to: SocketAddr,
        control: Option<u16>,
    ) -> Option<(String, Vec<String>)> {
        let (peer, port) = (to.ip(), to.port());
        let ip = if peer.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
        let firewall =
            self.firewall.get_or_init(|| operator_firewall::read(self.parameters.gateway.clone()));
        let is_read =
            control.is_some_and(|port| self.parameters.gateway.control_ports.contains(&port));
        let running = self.running.get_or_init(|| self.socket.status().ok()?.backend.parse().ok());
        let class = match running.filter(|_| is_read) {
            Some(backend) => backend.into(),
            None => {
                // Without a route the connection fails before any rule.
                let interface = outgoing_interface(peer)?;
                let ends = if hook == Hook::Output { ("", &*interface) } else { (&*interface, "") };
                let (acceptance, chain) = firewall.uninspected_verdict(ip, ends, port);
                let event = match acceptance {
                    Acceptance::Dropped => "dropped on this machine by",
                    Acceptance::Partly => "may be dropped on this machine by",
                    Acceptance::Accepted => return None,
                };
                let remedy = match control {
                    Some(port) if !is_read => {
                        format!("add port {port} to control-ports of ftp-alg on this machine")
                    }
                    Some(_) => {
                        "start ftp-alg on this machine, then run `ftp-alg doctor`".to_owned()
                    }
                    None => format!("accept TCP to port {port}, and the replies, in that chain"),
                };
                return Some((format!("{event} {}", chain?), vec![remedy]));
            }
        };
        let verdict = firewall.verdict(hook, ip, class);
        let chain = verdict.dropping_chains().next()?;
        let remedies = firewall.remedies(&verdict, class);
        Some((format!("dropped on this machine by {chain}"), remedies))
    }
}

/// The output interface of packets to `peer`.
fn outgoing_interface(peer: IpAddr) -> Option<String> {
    let any: IpAddr = match peer {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // connect() of a UDP socket looks up the route and sends nothing.
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((peer, 9)).ok()?;
    let own = socket.local_addr().ok()?.ip();
    let all = pnet::datalink::interfaces().into_iter();
    let mut with = all.filter(|one| one.ips.iter().any(|network| network.ip() == own));
    with.next().map(|one| one.name)
}
