//! What becomes of an announcement: by policy and dialogue, by how the connection is translated, and by what the kernel
//! says to the pinhole.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
};

use super::{
    Action, Decision, KernelError, Pinhole, Translation, What,
    connection::Connection,
    handover::Hole,
    pinholes::{Attempt, Form, Held},
    places::OpenError,
};
use crate::{
    ftp::{Kind, Malformed, Zeros},
    policy::{External, Foreign, Policy},
    session::{Announced, Phase, Reason, Ruling, Side},
};

/// How many pinholes one session may hold at a time; pipelined announcements need several.
const MAX_PER_SESSION: usize = 8;

/// What is to be done about an announcement now.
pub enum Judged {
    /// This.
    Ruled(Ruling),
    /// The kernel is to be [asked](Connection::ask) first: for the pinhole that is attempted, if one is, or how the
    /// connection is translated.
    Asks,
}

/// Why nothing is opened.
pub(super) enum No {
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

impl Connection<'_> {
    /// Decides about `announced`, as far as that can be done without the kernel. The pinhole that it is to be asked for
    /// is written to `attempt`.
    pub fn judge(&mut self, announced: &Announced, attempt: &mut Option<Attempt>) -> Judged {
        let kind = announced.kind;
        if let (false, Err(Malformed::Form(_)), Some(said)) =
            (kind.is_active(), &announced.parsed, &announced.said)
        {
            self.tell(What::Unread(said.clone()));
            return Judged::Ruled(Ruling::Pass);
        }
        // Without a question to the kernel: anyone can make up such a one. A reply may work without us.
        let is_unknown = match announced.phase {
            Phase::Joined => true,
            Phase::Answered => !kind.is_active(),
            _ => false,
        };
        let plan = match (&announced.parsed, self.endpoint(announced)) {
            _ if is_unknown => Err(No::Ignore(announced.bar.unwrap_or_default().into())),
            (Ok(_), Some(endpoint)) => match self.plan(announced, endpoint) {
                Ok(None) => return Judged::Asks,
                Ok(Some(plan)) => Ok(plan),
                Err(no) => Err(no),
            },
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
        match plan.and_then(|plan| self.attempt(announced, plan)) {
            Ok(made) => {
                *attempt = Some(made);
                Judged::Asks
            }
            Err(no) => Judged::Ruled(self.decided(announced, Err(no))),
        }
    }

    /// What becomes of `announced`, as the kernel could not say how the connection is translated.
    pub fn judge_untranslated(&mut self, announced: &Announced, error: &KernelError) -> Ruling {
        self.failed(error);
        self.decided(announced, Err(No::Refuse(Reason::Kernel, error.to_string().into())))
    }

    /// What becomes of `announced`, as the kernel has answered.
    pub fn judge_opened(
        &mut self,
        announced: &Announced,
        attempt: &mut Attempt,
        answer: Result<(), KernelError>,
    ) -> Judged {
        let no = match answer {
            Ok(()) => {
                let held = self.pinholes.opened(self.now, self.index, &attempt.proposal);
                let opened = self.opened(held, attempt.named, attempt.healed);
                return Judged::Ruled(self.decided(announced, Ok(opened)));
            }
            Err(KernelError::Taken) => {
                let closed = &mut self.effects.closed_first;
                let again = self.pinholes.propose_again(self.policy, &mut attempt.proposal, closed);
                self.pinholes.take_shut(&mut self.effects.shut);
                match again {
                    Ok(()) => return Judged::Asks,
                    Err(error) => self.refusal(&error),
                }
            }
            Err(error) => {
                self.pinholes.withdraw(&attempt.proposal, &mut self.effects.closings);
                if let KernelError::Full { what } = error {
                    self.refusal(&OpenError::Full(what))
                } else {
                    self.failed(&error);
                    No::Refuse(Reason::Kernel, error.to_string().into())
                }
            }
        };
        Judged::Ruled(self.decided(announced, Err(no)))
    }

    /// What becomes of `announced`, which the program in the kernel has judged, and opened `hole` for. That is taken if it was
    /// right to do so.
    pub fn judge_judged(&mut self, announced: &Announced, hole: &mut Option<Hole>) -> Ruling {
        let endpoint = self.endpoint(announced);
        let plan = match (*hole, endpoint) {
            (Some(hole), Some(endpoint)) => {
                self.plan(announced, endpoint).map(|plan| plan.map(|plan| (hole, plan)))
            }
            _ => Err(No::Ignore("the fast path opened nothing for it".into())),
        };
        match plan {
            Ok(Some((opened, Plan { pinhole, named, healed }))) => {
                *hole = None;
                let (kind, lifetime) = (announced.kind, self.policy.pinhole_lifetime);
                let client = self.control.client().ip();
                let opened = (opened, self.now);
                self.close_judged("a later one replaced it");
                let held =
                    self.pinholes.opened_by(opened, self.index, client, (kind, lifetime), pinhole);
                let opened = self.opened(held, named, healed);
                self.decided(announced, Ok(opened))
            }
            Err(No::Refuse(_, reason) | No::Ignore(reason) | No::Pass(reason)) => {
                self.decided(announced, Err(No::Pass(reason)))
            }
            Ok(None) => {
                let reason = "nothing is known of its translation";
                self.decided(announced, Err(No::Pass(reason.into())))
            }
        }
    }

    /// The session holds one more pinhole.
    fn opened(&mut self, held: Held, named: IpAddr, healed: bool) -> Opened {
        let endpoint = SocketAddr::new(named, held.pinhole.arrival.port());
        self.counters.pinholes_opened += 1;
        let answered = held.answered;
        self.control.hold(held);
        if answered {
            let before = self.control.pinholes().len() - 1;
            self.close_answered(before, Some("a later one replaced it"));
        }
        Opened { endpoint, healed }
    }

    /// The endpoint that was announced.
    fn endpoint(&self, announced: &Announced) -> Option<SocketAddr> {
        let read = announced.parsed.as_ref().ok()?;
        let address = read.address.unwrap_or(self.control.server().ip());
        Some(SocketAddr::new(address, read.port))
    }

    /// The zeros by which an announcement keeps its length.
    fn zeros(&self, announced: &Announced) -> Zeros {
        if self.policy.keeps_length { announced.zeros } else { Zeros::None }
    }

    /// Takes note of what was decided.
    fn decided(&mut self, announced: &Announced, opened: Result<Opened, No>) -> Ruling {
        let endpoint = self.endpoint(announced);
        let (action, rewritten, reason, ruling) = match opened {
            Ok(Opened { endpoint: named, healed }) => {
                let same = Some(named) == endpoint;
                let action = if same { Action::Open } else { Action::Rewrite };
                let reason = match endpoint.filter(|_| healed) {
                    Some(endpoint) => {
                        let (own, ip) = (self.control.server().ip(), endpoint.ip());
                        format!("healed: the server is {own}, and means itself by {ip}").into()
                    }
                    None if same => "both ends see the same endpoint".into(),
                    None => "the other end sees another endpoint".into(),
                };
                let zeros = self.zeros(announced);
                let ruling = Ruling::Open { endpoint: named, zeros };
                (action, (!same).then_some(named), reason, ruling)
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
        let Announced { kind, ref said, .. } = *announced;
        let from = if kind.is_active() { Side::Client } else { Side::Server };
        let (announced, said) = (endpoint, said.clone());
        self.tell(What::Announcement(Decision {
            kind,
            from,
            announced,
            action,
            rewritten,
            reason,
            said,
        }));
        ruling
    }

    /// What is to be opened for `endpoint`; `None` if it is to be looked up first how the connection is translated.
    fn plan(&mut self, announced: &Announced, endpoint: SocketAddr) -> Result<Option<Plan>, No> {
        let Announced { kind, bar, .. } = *announced;
        if !announced.asked {
            return Err(No::Ignore("it answers no PASV or EPSV".into()));
        }
        let Some(translation) = self.control.translation() else { return Ok(None) };
        let plan = plan(kind, endpoint, translation, self.policy)?;
        if let Some(bar) = bar {
            return Err(No::Ignore(bar.into()));
        }
        if self.policy.require_login && !announced.is_logged_in {
            return Err(No::Ignore("the server has not accepted a login".into()));
        }
        if announced.is_epsv_only && kind != Kind::Epsv {
            let reason = "the client has bound itself to EPSV (EPSV ALL)";
            return Err(No::Refuse(Reason::EpsvOnly, reason.into()));
        }
        if self.control.pinholes().len() >= MAX_PER_SESSION {
            self.counters.limits.session_pinholes += 1;
            let reason = format!("the session has {MAX_PER_SESSION} pinholes already");
            return Err(No::Refuse(Reason::Limit, reason.into()));
        }
        Ok(Some(plan))
    }

    /// Reserves what is to be opened.
    fn attempt(&mut self, announced: &Announced, plan: Plan) -> Result<Attempt, No> {
        let Plan { pinhole, named, healed } = plan;
        let room = self.room(announced, named);
        let Some(control) = self.control.translation() else {
            return Err(No::Ignore("nothing is known of its translation".into()));
        };
        let form = Form { kind: announced.kind, room, zeros: self.zeros(announced) };
        let closed = &mut self.effects.closed_first;
        let proposed = self.pinholes.propose(self.policy, control, form, pinhole, closed);
        // The program would still have the port.
        self.pinholes.take_shut(&mut self.effects.shut);
        match proposed {
            Ok(proposal) => Ok(Attempt { proposal, named, healed }),
            Err(error) => Err(self.refusal(&error)),
        }
    }

    /// How many bytes an external port is to take for the line to keep its length. `None` if any will do.
    fn room(&mut self, announced: &Announced, named: IpAddr) -> Option<usize> {
        let (kind, endpoint) = (announced.kind, self.endpoint(announced)?);
        // A server's port may be the only one that leads to it.
        if !self.policy.keeps_length || !kind.is_active() || named == endpoint.ip() {
            return None;
        }
        let zeros = self.zeros(announced);
        let room = announced.parsed.as_ref().ok()?.room_for_port(named, zeros)?;
        let judging = self.control.judging();
        if judging.is_fruitful() && !kind.has_port_in(endpoint.port(), room, zeros) {
            // The program changes lengths of an adjusted connection, but no ports: what recurs would be queued each time.
            if judging.has_other_port {
                return None;
            }
            self.control.judging_mut().has_other_port = true;
        }
        Some(room)
    }

    fn refusal(&mut self, error: &OpenError) -> No {
        let limits = &mut self.counters.limits;
        match error {
            OpenError::Limit(limit) => {
                limits.client_pinholes += 1;
                let reason = format!("the client has {limit} pinholes already");
                No::Refuse(Reason::Limit, reason.into())
            }
            OpenError::Full(what) => {
                limits.pinholes += 1;
                let reason = format!("there is no room for another pinhole: {what}");
                No::Refuse(Reason::Limit, reason.into())
            }
            OpenError::NoPort => {
                limits.ports += 1;
                No::Refuse(Reason::NoPort, "no external port is free".into())
            }
        }
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
pub(super) fn external(
    kind: Kind,
    translation: &Translation,
    policy: &Policy,
) -> Result<IpAddr, No> {
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
