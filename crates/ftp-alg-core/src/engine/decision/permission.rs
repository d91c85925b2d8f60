//! What policy and the connection's translation say about an announced endpoint.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
};

use crate::{
    engine::{Decision, Opening, PinholeEnds, Translation},
    ftp::{AnnouncementKind, MalformedAnnouncement},
    policy::{ExternalAddress, ForeignAddress, Policy},
    session::{Action, AnnouncedLine, RefusalReason},
};

/// Why no pinhole is opened for an announcement.
#[derive(Debug, PartialEq, Eq)]
pub struct NoPinhole {
    /// The objection of policy or a limit, if there is one.
    pub(super) objection: Option<RefusalReason>,
    /// The reason, in a log line's words.
    pub(super) reason: Cow<'static, str>,
}

impl NoPinhole {
    /// No objection, but no pinhole can be opened.
    pub(super) fn because(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { objection: None, reason: reason.into() }
    }

    pub(super) fn objection(why: RefusalReason, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { objection: Some(why), reason: reason.into() }
    }

    /// The announcement cannot be read.
    pub(super) fn malformed(kind: AnnouncementKind, malformed: &MalformedAnnouncement) -> Self {
        let reason = malformed.to_string();
        match malformed {
            // It cannot make a server connect to anything.
            MalformedAnnouncement::Family => Self::because(reason),
            MalformedAnnouncement::Scope => Self::objection(RefusalReason::ForeignAddress, reason),
            _ if kind.is_active() => Self::objection(RefusalReason::Malformed, reason),
            _ => Self::because(reason),
        }
    }

    pub(super) fn decision(
        self,
        line: &AnnouncedLine,
        announced: Option<SocketAddr>,
        action: Action,
    ) -> Decision {
        let Self { objection, reason } = self;
        let (kind, unread_text) = (line.kind, line.unread_text.clone());
        Decision { kind, announced, unread_text, action, reason, objection, pinhole: None }
    }
}

/// The pinhole for an announced endpoint, at the announced port, and the address to announce, if policy allows them.
pub(super) fn permit(
    kind: AnnouncementKind,
    announced: SocketAddr,
    control: &Translation,
    policy: &Policy,
) -> Result<(Opening, IpAddr), NoPinhole> {
    let (ip, port) = (announced.ip(), announced.port());
    let [(own, seen), (initiator, source)] = sender_and_receiver(kind, control);
    if ip.is_ipv4() != own.is_ipv4() && (kind.is_active() || !ip.is_unspecified()) {
        // A dual-stack server could be made to connect to any host of the other family.
        let reason = "its address is of another family than the control connection";
        return Err(NoPinhole::objection(RefusalReason::OtherFamily, reason));
    }
    let external = external(kind, control, policy)?;
    let is_own = names_sender(kind, ip, control, external);
    let replaces_foreign = !is_own
        && !kind.is_active()
        && policy.server(own).is_some_and(|server| server.replace_foreign_address);
    let is_sender = is_own || replaces_foreign;
    if !is_sender && policy.foreign_address != ForeignAddress::Allow {
        let hint = match kind.is_active() {
            true => "",
            false => ", and no [[server]] with that address has replace-foreign-address = true",
        };
        let reason = format!("{ip} is not the sender's address {own}{hint}");
        return Err(NoPinhole::objection(RefusalReason::ForeignAddress, reason));
    }
    if port < policy.min_data_port {
        let minimum = policy.min_data_port;
        let reason = format!("port {port} in {kind} is below min-data-port {minimum}");
        return Err(NoPinhole::objection(RefusalReason::LowPort, reason));
    }
    if policy.denies(port) {
        let reason = format!("port {port} in {kind} is in deny-ports");
        return Err(NoPinhole::objection(RefusalReason::DeniedPort, reason));
    }
    // A third host that policy allows is reached at the announced address.
    let (target, arrival) = if is_sender { (own, seen) } else { (ip, ip) };
    // A server's public address on the other side of another NAT stays.
    let stays = replaces_foreign && is_internal(external) && !is_internal(ip);
    let address = if is_sender && !stays { external } else { ip };
    let [arrival, target] = [arrival, target].map(|ip| SocketAddr::new(ip, port));
    let ends = PinholeEnds { initiator, arrival, target, source };
    let opening = Opening { ends, control: *control, kind, lifetime: policy.pinhole_timeout };
    Ok((opening, address))
}

/// Whether a pinhole with these ends may be of this control connection, whatever policy permits, and at any external port.
pub(crate) fn may_belong(
    ends: &PinholeEnds,
    kind: AnnouncementKind,
    control: &Translation,
) -> bool {
    let [(own, seen), (initiator, source)] = sender_and_receiver(kind, control);
    let (target, arrival) = (ends.target.ip(), ends.arrival.ip());
    let is_third_host = target == arrival && target != own && !target.is_unspecified();
    (ends.initiator, ends.source) == (initiator, source)
        && ((target, arrival) == (own, seen) || is_third_host)
}

/// For the announcing end and for the other end: its own address, and the address by which the respective other one
/// sees it.
fn sender_and_receiver(kind: AnnouncementKind, control: &Translation) -> [(IpAddr, IpAddr); 2] {
    let Translation { client, client_external, server, server_external, .. } = *control;
    let client = (client.ip(), client_external.ip());
    let server = (server.ip(), server_external.ip());
    if kind.is_active() { [client, server] } else { [server, client] }
}

/// Whether the announcing end, known as `external` to the other one, announced an address of its own, or 0.0.0.0. A
/// client that reads 0.0.0.0 connects to the server, also over IPv6, where vsftpd announces 0.0.0.0. A server that
/// reads 0.0.0.0 connects to itself.
pub(super) fn names_sender(
    kind: AnnouncementKind,
    announced: IpAddr,
    control: &Translation,
    external: IpAddr,
) -> bool {
    let [(own, seen), _] = sender_and_receiver(kind, control);
    announced.is_unspecified() || [own, seen, external].contains(&announced)
}

/// The address by which the other end knows the announcing end. A configured address replaces one that NAT hides, and
/// applies to a published server.
pub(crate) fn external(
    kind: AnnouncementKind,
    translation: &Translation,
    policy: &Policy,
) -> Result<IpAddr, NoPinhole> {
    let [(own, translated), _] = sender_and_receiver(kind, translation);
    let external = match kind.is_active() {
        true if own == translated => ExternalAddress::Auto,
        true => policy.external.of_family(own),
        false => policy.external_of(own, own != translated),
    };
    match external {
        ExternalAddress::Auto => Ok(translated),
        ExternalAddress::Fixed(address) => Ok(address),
        ExternalAddress::Unresolved => {
            let reason = "the name of the external address is not resolved yet";
            Err(NoPinhole::objection(RefusalReason::Unresolved, reason))
        }
    }
}

/// Whether an address is not routable outside its own network.
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
#[path = "permission_tests.rs"]
mod tests;
