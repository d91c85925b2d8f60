//! Where the engine sits in judgement on one control connection's announcements.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use super::{
    Action, Attention, Counters, Decision, Kernel, KernelError, Pinhole, Translation, What,
    control::{Control, Moment},
    event::{Events, shown},
    pinholes::{OpenError, PinholeTable},
};
use crate::{
    ftp::{Announcement, Kind, Malformed, Text},
    policy::{AuthTls, External, Foreign, Policy},
    session::{Dialogue, Judge, Limit, Note, Phase, Reason, Refused, Ruling, Side},
};

/// How many pinholes one session may hold at a time; pipelined announcements need several.
const MAX_PER_SESSION: usize = 8;

pub struct Bench<'a, K> {
    pub now: Instant,
    /// The same.
    pub moment: Moment,
    pub index: u32,
    pub policy: &'a Policy,
    pub kernel: &'a mut K,
    pub control: &'a mut Control,
    pub pinholes: &'a mut PinholeTable,
    pub counters: &'a mut Counters,
    pub events: &'a mut Events,
    /// Whether the packet selection takes answers.
    pub answers: bool,
}

/// Why nothing is opened.
enum No {
    Refuse(Reason, Cow<'static, str>),
    Ignore(Cow<'static, str>),
    /// As refused, but the client gets the reply as it is.
    Pass(Cow<'static, str>),
}

impl No {
    /// What is done about an address that is not the sender's, and that nothing can be opened for.
    fn foreign(policy: &Policy, why: Reason, reason: Cow<'static, str>) -> Self {
        match policy.foreign {
            Foreign::Refuse => Self::Refuse(why, reason),
            Foreign::Allow => Self::Ignore(reason),
        }
    }
}

/// What is opened: the pinhole that is wanted, and the address that the announcement will name.
struct Plan {
    pinhole: Pinhole,
    named: IpAddr,
    /// Whether the server meant itself by another address.
    healed: bool,
}

/// What was opened.
struct Opened {
    /// What to announce.
    endpoint: SocketAddr,
    /// As in [`Plan`].
    healed: bool,
}

impl<K: Kernel> Judge for Bench<'_, K> {
    fn announcement(
        &mut self,
        kind: Kind,
        read: Result<&Announcement, &Malformed>,
        asked: bool,
        dialogue: &Dialogue,
        line: &Text<'_>,
    ) -> Ruling {
        if let (false, Err(Malformed::Form(_))) = (kind.is_active(), read) {
            self.tell(What::Unread(shown(line.bytes())));
            return Ruling::Pass;
        }
        let from = if kind.is_active() { Side::Client } else { Side::Server };
        let announced = read.ok().map(|a| {
            let address = a.address.unwrap_or(self.control.server().ip());
            SocketAddr::new(address, a.port)
        });
        let opened = match (read, announced) {
            (Ok(read), Some(endpoint)) => self.open(read, endpoint, asked, dialogue),
            (Err(malformed), _) => {
                let reason = malformed.to_string().into();
                Err(match malformed {
                    // No server can be made to connect anywhere by it.
                    Malformed::Family => No::Ignore(reason),
                    Malformed::Scope => No::foreign(self.policy, Reason::Address, reason),
                    _ if kind.is_active() => No::Refuse(Reason::Malformed, reason),
                    _ => No::Ignore(reason),
                })
            }
            (Ok(_), None) => Err(No::Ignore("nothing was announced".into())),
        };
        let (action, rewritten, reason, ruling) = match opened {
            Ok(Opened { endpoint, healed }) => {
                let same = Some(endpoint) == announced;
                let action = if same { Action::Open } else { Action::Rewrite };
                let reason = match announced.filter(|_| healed) {
                    Some(announced) => {
                        let (own, ip) = (self.control.server().ip(), announced.ip());
                        format!("healed: the server is {own}, and means itself by {ip}").into()
                    }
                    None if same => "both ends see the same endpoint".into(),
                    None => "the other end sees another endpoint".into(),
                };
                (action, (!same).then_some(endpoint), reason, Ruling::Open(endpoint))
            }
            Err(No::Refuse(why, reason)) => (Action::Refuse, None, reason, Ruling::Refuse(why)),
            Err(No::Pass(reason)) => (Action::Refuse, None, reason, Ruling::Pass),
            Err(No::Ignore(reason)) => (Action::Ignore, None, reason, Ruling::Pass),
        };
        match action {
            Action::Rewrite => self.counters.rewrites += 1,
            Action::Refuse => self.counters.pinholes_refused += 1,
            Action::Open | Action::Ignore => {}
        }
        let said = read.is_err().then(|| shown(line.bytes()));
        let decision = Decision { kind, from, announced, action, rewritten, reason, said };
        self.tell(What::Announcement(decision));
        ruling
    }

    fn may_adjust(&mut self) -> bool {
        let every = Attention::Every;
        let told = self.translation().and_then(|t| self.kernel.attend(&t, every));
        if told.is_ok() {
            self.control.told(every, self.moment);
        }
        told.is_ok()
    }

    fn refuses_auth(&self) -> bool {
        self.policy.auth_tls == AuthTls::Refuse
    }

    fn refused(&mut self, what: Refused) {
        match what {
            Refused::Hidden => self.counters.pinholes_refused += 1,
            _ => self.counters.commands_refused += 1,
        }
        self.counters.limits.line += u64::from(what == Refused::Overlong);
        self.tell(What::Refused(match what {
            Refused::Auth => "AUTH: policy.auth-tls is \"refuse\"",
            Refused::Hidden => {
                "PORT, EPRT or AUTH: Telnet commands, a bare CR or LF or a NUL hide it from some servers"
            }
            Refused::Overlong => "PORT or EPRT: the line is longer than 512 bytes",
            Refused::Overtaken => {
                "an announcement that was lost: the line behind it has passed already"
            }
            Refused::Urgent => "a line that is another command without its urgent byte",
        }));
    }

    fn limit(&mut self, which: Limit) {
        let limits = &mut self.counters.limits;
        let (counter, what) = match which {
            Limit::Reply => (
                &mut limits.line,
                "nothing is opened for a 227 or 229: its line is longer than 512 bytes",
            ),
            Limit::Rewrites => {
                (&mut limits.rewrites, "a segment waits: 64 rewrites are not acknowledged")
            }
            Limit::Kept => (&mut limits.kept, "a segment waits: 64 KiB are not acknowledged"),
            Limit::Commands => (
                &mut limits.commands,
                "too many commands wait for replies: those to the oldest open nothing",
            ),
        };
        *counter += 1;
        self.tell(What::Limit(what.into()));
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::AnnouncementAccepted => {
                let mut pinholes = self.control.pinholes_mut().into_iter().flatten().enumerate();
                if let Some((at, held)) = pinholes.find(|(_, p)| !p.answered) {
                    held.answered = true;
                    self.close_answered(at, None);
                }
            }
            Note::AnnouncementRefused => {
                let refused = self.control.pinholes().iter().position(|p| !p.answered);
                if let Some(held) = refused.and_then(|at| self.control.let_go(at)) {
                    self.tell(What::Closed(held.pinhole, "the server refused the announcement"));
                    self.pinholes.close(held);
                }
            }
            Note::TransferStarted => {
                let pinholes = self.control.pinholes_mut().into_iter().flatten();
                for held in pinholes.filter(|p| p.answered) {
                    self.counters.pinholes_used += u64::from(!held.in_use);
                    self.pinholes.used(held);
                }
            }
            Note::TransferEnded { completed: true } => {
                let pinholes = self.control.pinholes_mut();
                let over = pinholes.map(|all| all.extract_if(.., |held| held.answered));
                for held in over.into_iter().flatten() {
                    self.counters.pinholes_used += u64::from(!held.in_use);
                    self.pinholes.spend(held);
                }
            }
            Note::TransferEnded { completed: false } => self.transfer_failed(),
            Note::LoggedIn => self.tell(What::Turned("logged in")),
            Note::NotFtp => {
                self.close_all("the connection is not FTP");
                self.tell(What::Turned("not FTP: not inspected any more"));
            }
            Note::NotFtpClient => {
                self.close_all("the connection is not FTP");
                self.tell(What::Turned(
                    "not FTP: nothing is opened any more; what is refused is refused",
                ));
            }
            Note::Encrypted => {
                self.counters.encrypted += 1;
                self.tell(What::Encrypted);
            }
            Note::Readable => self.tell(What::Turned("readable again")),
            Note::Lost => {
                self.counters.lost += 1;
                self.tell(What::Turned("packets were missed: nothing is opened any more"));
            }
        }
    }
}

impl<K: Kernel> Bench<'_, K> {
    /// Closes all pinholes of the connection.
    pub fn close_all(&mut self, why: &'static str) {
        for held in self.control.take_pinholes() {
            if !held.in_use {
                self.tell(What::Closed(held.pinhole, why));
            }
            self.pinholes.close(held);
        }
        self.pinholes.settle_spent();
    }

    /// The connection's translation, looked up once. Only what conntrack tracks is queued, so one
    /// that it does not know was forgotten (`conntrack -F`), and may be translated.
    pub fn translation(&mut self) -> Result<Translation, KernelError> {
        if let Some(translation) = self.control.translation() {
            return Ok(*translation);
        }
        let (client, server) = (self.control.client(), self.control.server());
        let found = self.kernel.translation(client, server)?;
        let translation = found.ok_or(KernelError::Unknown)?;
        self.control.set_translation(Some(translation));
        Ok(translation)
    }

    pub fn tell(&mut self, what: What) {
        self.events.push(self.control.event(what));
    }

    pub fn failed(&mut self, error: &KernelError) {
        self.counters.errors += 1;
        self.tell(What::Failed(error.to_string()));
    }

    /// Opens a pinhole for `announced`.
    fn open(
        &mut self,
        read: &Announcement,
        announced: SocketAddr,
        asked: bool,
        dialogue: &Dialogue,
    ) -> Result<Opened, No> {
        let kind = read.kind;
        let bar = dialogue.bar(kind.is_active());
        // Without a question to the kernel: anyone can make up such a one. A reply may work without us.
        let is_unknown = match dialogue.phase() {
            Phase::Joined => true,
            Phase::Answered => !kind.is_active(),
            _ => false,
        };
        if let Some(bar) = bar.filter(|_| is_unknown) {
            return Err(No::Ignore(bar.into()));
        }
        if !asked {
            return Err(No::Ignore("it answers no PASV or EPSV".into()));
        }
        let translation = self.translation().map_err(|error| {
            self.failed(&error);
            No::Refuse(Reason::Kernel, error.to_string().into())
        })?;
        let plan = plan(kind, announced, &translation, self.policy)?;
        if let Some(bar) = bar {
            return Err(No::Ignore(bar.into()));
        }
        if self.policy.require_login && !dialogue.is_logged_in() {
            return Err(No::Ignore("the server has not accepted a login".into()));
        }
        if dialogue.is_epsv_only() && kind != Kind::Epsv {
            let reason = "the client has bound itself to EPSV (EPSV ALL)";
            return Err(No::Refuse(Reason::EpsvOnly, reason.into()));
        }
        if self.control.pinholes().len() >= MAX_PER_SESSION {
            self.counters.limits.session_pinholes += 1;
            let reason = format!("the session has {MAX_PER_SESSION} pinholes already");
            return Err(No::Refuse(Reason::Limit, reason.into()));
        }
        let policy = self.policy;
        // A server's port may be the only one that leads to it, and a connection may be adjusted already.
        let is_free = self.answers && kind.is_active() && plan.named != announced.ip();
        let room = is_free.then(|| read.room_for_port(plan.named)).flatten();
        let opened = self.pinholes.open(
            self.now,
            policy,
            (self.index, &translation),
            (kind, room),
            plan.pinhole,
            self.kernel,
        );
        let held = opened.map_err(|error| match error {
            OpenError::Limit(limit) => {
                self.counters.limits.client_pinholes += 1;
                let reason = format!("the client has {limit} pinholes already");
                No::Refuse(Reason::Limit, reason.into())
            }
            OpenError::Full(what) => {
                self.counters.limits.pinholes += 1;
                let reason = format!("there is no room for another pinhole: {what}");
                No::Refuse(Reason::Limit, reason.into())
            }
            OpenError::NoPort => {
                self.counters.limits.ports += 1;
                No::Refuse(Reason::NoPort, "no external port is free".into())
            }
            OpenError::Kernel(error) => {
                self.failed(&error);
                No::Refuse(Reason::Kernel, error.to_string().into())
            }
        })?;
        self.counters.pinholes_opened += 1;
        let endpoint = SocketAddr::new(plan.named, held.pinhole.arrival.port());
        let answered = held.answered;
        self.control.hold(held);
        if answered {
            let before = self.control.pinholes().len() - 1;
            self.close_answered(before, Some("a later one replaced it"));
        }
        Ok(Opened { endpoint, healed: plan.healed })
    }

    /// Closes what the server has answered, before the pinhole at `end`.
    fn close_answered(&mut self, end: usize, why: Option<&'static str>) {
        let mut kept = 0;
        for _ in 0..end {
            if self.control.pinholes().get(kept).is_some_and(|held| !held.answered) {
                kept += 1;
                continue;
            }
            let Some(held) = self.control.let_go(kept) else { return };
            if let Some(why) = why.filter(|_| !held.in_use) {
                self.tell(What::Closed(held.pinhole, why));
            }
            self.pinholes.close(held);
        }
    }

    /// A transfer failed, perhaps before its data connection: the pinhole lives to its deadline.
    fn transfer_failed(&mut self) {
        let (now, pinholes) = (self.now, &mut *self.pinholes);
        let Some(held) = self.control.pinholes_mut() else { return };
        held.retain_mut(|held| {
            if held.in_use && held.deadline <= now {
                pinholes.close(held.clone());
                return false;
            }
            if held.in_use {
                pinholes.unused(held);
            }
            true
        });
    }
}

/// What an announcement asks for, and whether policy allows it.
fn plan(
    kind: Kind,
    announced: SocketAddr,
    translation: &Translation,
    policy: &Policy,
) -> Result<Plan, No> {
    let Translation { client, client_external, server, server_external } = *translation;
    let (own, seen, initiator, source) = if kind.is_active() {
        (client.ip(), client_external.ip(), server.ip(), server_external.ip())
    } else {
        (server.ip(), server_external.ip(), client.ip(), client_external.ip())
    };
    if announced.is_ipv4() != own.is_ipv4() {
        // A server that speaks both could be made to connect to any host of the other.
        let reason = "its address is of another family than the control connection";
        return Err(No::foreign(policy, Reason::Family, reason.into()));
    }
    let named = external(kind, translation, policy)?;
    let is_own = [own, seen, named].contains(&announced.ip());
    let healed = !is_own && !kind.is_active() && policy.server(own).is_some_and(|s| s.heal);
    let sender = is_own || healed;
    if !sender && policy.foreign == Foreign::Refuse {
        let ip = announced.ip();
        let hint = if kind.is_active() { "" } else { ", and no heal-address is set for it" };
        let reason = format!("{ip} is not the sender's address {own}{hint}").into();
        // Somebody's public server that does not know its address. Many clients then connect to the address that they
        // dialled (curl, lftp, FileZilla), which works where the firewall lets clients connect to any server.
        let is_elsewhere = is_internal(ip) && !is_internal(own) && policy.server(own).is_none();
        return Err(match is_elsewhere && !kind.is_active() {
            true => No::Pass(reason),
            false => No::Refuse(Reason::Address, reason),
        });
    }
    if announced.port() < policy.min_data_port {
        let (port, minimum) = (announced.port(), policy.min_data_port);
        let reason = format!("port {port} in {kind} is below the minimum {minimum}");
        return Err(No::Refuse(Reason::LowPort, reason.into()));
    }
    if policy.denies(announced.port()) {
        let reason = format!("port {} in {kind} is one of deny-ports", announced.port());
        return Err(No::Refuse(Reason::DeniedPort, reason.into()));
    }
    let (target, arrival, named) = if healed && is_internal(named) && !is_internal(announced.ip()) {
        // The address that the server was given by whoever put it behind another NAT.
        (own, seen, announced.ip())
    } else if sender {
        (own, seen, named)
    } else {
        // A third host, allowed: it is reached at the address that was announced.
        (announced.ip(), announced.ip(), announced.ip())
    };
    let pinhole = Pinhole {
        initiator,
        arrival: SocketAddr::new(arrival, announced.port()),
        target: SocketAddr::new(target, announced.port()),
        source,
    };
    Ok(Plan { pinhole, named, healed })
}

/// The address by which the other end knows the one that announces. A configured one stands for
/// what translation hides, and for a known server.
fn external(kind: Kind, translation: &Translation, policy: &Policy) -> Result<IpAddr, No> {
    let Translation { client, client_external, server, server_external } = translation;
    let (own, seen) = if kind.is_active() {
        (client.ip(), client_external.ip())
    } else {
        (server.ip(), server_external.ip())
    };
    let external = match kind.is_active() {
        true if own == seen => External::Auto,
        true => policy.external.of_family(own),
        false => policy.external_of(own, own != seen),
    };
    match external {
        External::Auto => Ok(seen),
        External::Fixed(address) => Ok(address),
        External::Unresolved => {
            let reason = "the name of the external address is not resolved yet";
            Err(No::Refuse(Reason::Unresolved, reason.into()))
        }
    }
}

/// Whether an address leads nowhere beyond the network that it was given in.
fn is_internal(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64; // RFC 6598
            let this_network = v4.octets()[0] == 0; // RFC 1122, section 3.2.1.3
            let no_host = v4.octets()[0] >= 224; // multicast, reserved, broadcast
            let special = shared || this_network || no_host;
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || special
        }
        IpAddr::V6(v6) => {
            v6.is_unique_local()
                || v6.is_unicast_link_local()
                || v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::KnownServer;

    /// What is opened for a 227 of `announced` by the server 10.0.0.5 that is dialled as `dialled`:
    /// where it arrives, and what the client is told.
    fn healed(dialled: &str, announced: &str) -> (IpAddr, IpAddr) {
        let end = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 21);
        let server = end("10.0.0.5");
        let translation = Translation {
            server_external: end(dialled),
            ..Translation::identity(end("192.0.2.20"), server)
        };
        let known = KnownServer { address: server.ip(), external: None, heal: true };
        let policy = Policy { servers: [known].into(), ..Policy::default() };
        let announced = SocketAddr::new(announced.parse().unwrap(), 5000);
        let Ok(plan) = plan(Kind::Pasv, announced, &translation, &policy) else { panic!() };
        assert_eq!(plan.pinhole.target, SocketAddr::new(server.ip(), 5000));
        (plan.pinhole.arrival.ip(), plan.named)
    }

    #[test]
    fn a_healed_servers_public_address_stays_only_where_the_dialled_one_leads_nowhere() {
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        for (dialled, announced, named) in [
            // Behind the 1:1 NAT of a cloud its own address is all that the gateway sees.
            ("10.0.0.5", "198.51.100.77", "198.51.100.77"),
            ("10.0.0.5", "172.17.0.2", "10.0.0.5"),
            ("10.0.0.5", "0.0.0.0", "10.0.0.5"),
            ("10.0.0.5", "224.0.0.1", "10.0.0.5"),
            ("10.0.0.5", "255.255.255.255", "10.0.0.5"),
            ("203.0.113.9", "198.51.100.77", "203.0.113.9"),
            ("203.0.113.9", "10.0.0.6", "203.0.113.9"),
        ] {
            assert_eq!(healed(dialled, announced), (ip(dialled), ip(named)), "{dialled}");
        }
    }

    #[test]
    fn internal_addresses_are_told_from_public_ones() {
        let internal = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.1",
            "127.0.0.1",
            "169.254.1.1",
            "172.31.0.1",
            "192.168.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fd00::1",
            "fe80::1",
            "ff02::1",
        ];
        let public = ["100.63.0.1", "100.128.0.1", "172.32.0.1", "198.51.100.1", "2001:db8::1"];
        for (addresses, expected) in [(&internal[..], true), (&public[..], false)] {
            for address in addresses {
                assert_eq!(is_internal(address.parse().unwrap()), expected, "{address}");
            }
        }
    }
}
