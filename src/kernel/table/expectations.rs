//! Pinholes as conntrack expectations (nf_conntrack_expect.c).
//!
//! An expected data connection is `related` to its control connection. So a firewall that accepts `related` needs
//! nothing else, and the kernel translates it like the control connection ("nat-follow-master"). An expectation is
//! consumed by its first connection and ends with its control connection. Knows nothing of announcements.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use ftp_alg_core::engine::{
    KernelError, OpenRange, Opening, PinholeEnds, RANGE_LIFETIME, Translation,
};

use super::{
    helper::expectation_timeout,
    pinholes::{OpenPinhole, is_ipv6},
};
use crate::{
    config::MAX_EXPECTED_PORTS,
    kernel::{
        NetfilterError, RuleParameters,
        conntrack::{IPCTNL_MSG_EXP_GET, Tuple, change, change_in_zones, dump, put_zone},
        netlink::{Attributes, Socket, Writer, be32, family_of, kind_of},
    },
};

// From linux/netfilter/nfnetlink_conntrack.h; libc lacks them.
const IPCTNL_MSG_EXP_NEW: u16 = kind_of(libc::NFNL_SUBSYS_CTNETLINK_EXP, 0);
const IPCTNL_MSG_EXP_DELETE: u16 = kind_of(libc::NFNL_SUBSYS_CTNETLINK_EXP, 2);
const CTA_EXPECT_MASTER: u16 = 1;
const CTA_EXPECT_TUPLE: u16 = 2;
const CTA_EXPECT_MASK: u16 = 3;
const CTA_EXPECT_TIMEOUT: u16 = 4;
const CTA_EXPECT_ZONE: u16 = 7;
const CTA_EXPECT_FLAGS: u16 = 8;
const CTA_EXPECT_NAT: u16 = 10;
const CTA_EXPECT_FN: u16 = 11;
const CTA_EXPECT_NAT_DIR: u16 = 1;
const CTA_EXPECT_NAT_TUPLE: u16 = 2;
/// A flag: no connection consumes the expectation.
const NF_CT_EXPECT_PERMANENT: u32 = 1;
/// Translates source and destination like those of the master connection.
const FOLLOW_MASTER: &[u8] = b"nat-follow-master\0";

/// Limit of expectations, including those of others.
const CAPACITY: &str = "/proc/sys/net/netfilter/nf_conntrack_expect_max";

/// Opens and closes pinholes. One for each thread.
#[derive(Debug)]
pub struct Expectations {
    socket: Socket,
    capacity: usize,
    /// Timeout of a new expectation.
    first_timeout: Duration,
    /// The parameters, with the ports to which the operator's rules may translate source ports, and the zones in which
    /// a control connection may be. An expectation is in the zone of its control connection.
    parameters: RuleParameters,
}

impl Expectations {
    /// Opens a netlink socket.
    pub fn new(parameters: &RuleParameters) -> Result<Self, NetfilterError> {
        let socket = Socket::open().map_err(|e| NetfilterError::system("netlink socket", e))?;
        let read = fs::read_to_string(CAPACITY).ok().and_then(|text| text.trim().parse().ok());
        let capacity = read.unwrap_or(usize::MAX);
        Ok(Self {
            socket,
            capacity,
            first_timeout: expectation_timeout(),
            parameters: parameters.clone(),
        })
    }

    /// Limit of expectations when this was created.
    pub(in crate::kernel) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Opens a pinhole for one connection, for its lifetime in whole seconds or longer, after closing `closed`.
    /// [`KernelError::Taken`] if an expectation has the same initiator and arrival, [`KernelError::NotClosed`] if any of
    /// `closed` may still be open.
    pub fn open(&mut self, opening: &Opening, closed: &[PinholeEnds]) -> Result<(), KernelError> {
        self.close(closed).map_err(KernelError::not_closed)?;
        self.expect(opening, 0)
    }

    /// Opens a range for its lifetime from now, or renews it.
    pub fn open_range(&mut self, range: &OpenRange) -> Result<(), KernelError> {
        let all = || openings_of(range);
        for opening in all() {
            let opened = match self.expect(&opening, NF_CT_EXPECT_PERMANENT) {
                // It may be that of another control connection, and end with it.
                Err(KernelError::Taken) => {
                    self.close_one(&opening.ends)?;
                    self.expect(&opening, NF_CT_EXPECT_PERMANENT)
                }
                other => other,
            };
            opened?;
        }
        // The kernel drops the oldest expectation of a connection for another one, if its helper allows no more.
        let Some(first) = all().next() else { return Ok(()) };
        if self.renew(&first)? {
            return Ok(());
        }
        self.close_range(range)?;
        let what = format!("open the passive ports of {}", range.control.server.ip());
        let text =
            "the kernel allows one expected connection at a time: it needs nfnetlink_cthelper";
        let source = io::Error::new(io::ErrorKind::Unsupported, text);
        Err(KernelError::System { what, source })
    }

    /// Closes a range. Its established connections stay.
    pub fn close_range(&mut self, range: &OpenRange) -> Result<(), KernelError> {
        openings_of(range).try_for_each(|opening| self.close_one(&opening.ends))
    }

    fn expect(&mut self, opening: &Opening, expect_flags: u32) -> Result<(), KernelError> {
        let Opening { ends: pinhole, control, lifetime, .. } = *opening;
        let from_client = opening.is_from_client();
        let failed =
            |source| KernelError::System { what: format!("open pinhole {pinhole}"), source };
        let family = family_of(pinhole.initiator);
        let expected = ExpectedPacket::for_pinhole(&pinhole).map_err(failed)?;
        // CTA_EXPECT_NAT_DIR: the master's direction that the data connection has.
        let direction = u32::from(!from_client);
        let nat = Tuple { source: pinhole.target, destination: expected.unspecified };
        let announcer = if from_client { control.server } else { control.client };
        let is_third = pinhole.target.ip() != announcer.ip();
        if is_third && pinhole.target != pinhole.arrival {
            let text = "the port is taken, and an expectation cannot translate to a third host";
            return Err(failed(io::Error::new(io::ErrorKind::Unsupported, text)));
        }
        // The rules translate the client, into the set. Its data connection then gets a port of the set from them.
        let set = self.parameters.source_ports();
        let is_in_set = |port: u16| set.is_some_and(|(first, last)| (first..=last).contains(&port));
        let follows_rules = from_client
            && control.client != control.client_external
            && pinhole.target == pinhole.arrival
            && is_in_set(control.client_external.port());
        let mut ask = |flags, zone| {
            let fill = |message: &mut Writer<'_>| {
                expected.put(message, control, zone, lifetime);
                message.put(CTA_EXPECT_FLAGS, &expect_flags.to_be_bytes());
                // Following the master would lead to the announcing end, or keep the source port.
                if is_third || follows_rules {
                    return;
                }
                message.put(CTA_EXPECT_FN, FOLLOW_MASTER);
                message.nest(CTA_EXPECT_NAT, |inner| {
                    inner.put(CTA_EXPECT_NAT_DIR, &direction.to_be_bytes());
                    nat.put(inner, CTA_EXPECT_NAT_TUPLE);
                });
            };
            change(&mut self.socket, IPCTNL_MSG_EXP_NEW, flags, family, fill)
        };
        let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let learned = self.parameters.learned.now();
        let mut tried = learned.zones.iter().map(|zone| (*zone, ask(create, *zone)));
        // Otherwise conntrack has forgotten the control connection.
        let is_known = |(_, opened): &(u16, io::Result<()>)| {
            !opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        let (zone, opened) = tried.find(is_known).ok_or(KernelError::Unknown)?;
        opened.map_err(|source| match source.raw_os_error() {
            Some(libc::EEXIST | libc::EBUSY | libc::EALREADY) => KernelError::Taken,
            Some(libc::EMFILE) => KernelError::Full { what: "nf_conntrack_expect_max" },
            _ => failed(explain_error(source)),
        })?;
        // nf_ct_expect_insert() sets the helper's timeout; ours applies only to an expectation that already exists. The engine
        // closes one that would stay longer, so the packet does not wait for another request.
        if lifetime <= self.first_timeout {
            return Ok(());
        }
        let limited = ask(0, zone);
        limited.or_else(|error| {
            self.close_one(&pinhole)?;
            Err(failed(error))
        })
    }

    /// Sets the timeout of an expectation to its lifetime from now. A consumed expectation stays consumed.
    pub fn renew(&mut self, opening: &Opening) -> Result<bool, KernelError> {
        let Opening { ends: pinhole, control, lifetime, .. } = *opening;
        let failed =
            |source| KernelError::System { what: format!("renew pinhole {pinhole}"), source };
        let expected = ExpectedPacket::for_pinhole(&pinhole).map_err(failed)?;
        let fill = |message: &mut Writer<'_>, zone| expected.put(message, control, zone, lifetime);
        let (zones, family) = (&self.parameters.learned.now().zones, family_of(pinhole.initiator));
        let renewed = change_in_zones(&mut self.socket, zones, IPCTNL_MSG_EXP_NEW, family, fill);
        renewed.map(|renewed| renewed.is_some()).map_err(failed)
    }

    /// Closes these pinholes, as far as they are open. Established connections stay. After an error any pinhole may
    /// still be open.
    pub fn close(&mut self, closed: &[PinholeEnds]) -> Result<(), KernelError> {
        closed.iter().try_for_each(|pinhole| self.close_one(pinhole))
    }

    fn close_one(&mut self, pinhole: &PinholeEnds) -> Result<(), KernelError> {
        let failed =
            |source| KernelError::System { what: format!("close pinhole {pinhole}"), source };
        let tuple = ExpectedPacket::for_pinhole(pinhole).map_err(failed)?.tuple;
        let fill = |message: &mut Writer<'_>, zone| {
            tuple.put(message, CTA_EXPECT_TUPLE);
            put_zone(message, CTA_EXPECT_ZONE, zone);
        };
        let (zones, family) = (&self.parameters.learned.now().zones, family_of(pinhole.initiator));
        let closed = change_in_zones(&mut self.socket, zones, IPCTNL_MSG_EXP_DELETE, family, fill);
        closed.map(drop).map_err(failed)
    }

    /// The present TCP expectations, ours and those of others.
    pub fn list_open(&mut self) -> Result<Vec<OpenPinhole>, NetfilterError> {
        let mut open = Vec::new();
        let each = |expectation: &Attributes<'_>| open.extend(parse(expectation));
        let dumped = dump(&mut self.socket, IPCTNL_MSG_EXP_GET, |_| {}, each);
        dumped.map_err(|error| NetfilterError::system("list of expectations", error))?;
        Ok(open)
    }
}

/// The pinholes of a range, at most [`MAX_EXPECTED_PORTS`].
fn openings_of(range: &OpenRange) -> impl Iterator<Item = Opening> + use<> {
    let control = range.control;
    let (initiator, source) = (control.client.ip(), control.client_external.ip());
    let at = move |port| {
        let [arrival, target] =
            [control.server_external, control.server].map(|end| SocketAddr::new(end.ip(), port));
        let ends = PinholeEnds { initiator, arrival, target, source };
        Opening::from_client(ends, control, RANGE_LIFETIME)
    };
    let ports: Vec<u16> = range.ports.iter().cloned().flatten().take(MAX_EXPECTED_PORTS).collect();
    ports.into_iter().map(at)
}

/// The first packet of a pinhole's connection.
struct ExpectedPacket {
    /// The tuple, whose source port is 0.
    tuple: Tuple,
    /// The mask, by which the source port is not compared. The kernel always compares the destination, whatever the
    /// mask says.
    mask: Tuple,
    /// Placeholder for fields that are read and not used.
    unspecified: SocketAddr,
}

impl ExpectedPacket {
    fn for_pinhole(pinhole: &PinholeEnds) -> io::Result<Self> {
        let PinholeEnds { initiator, arrival, .. } = *pinhole;
        let [none, all]: [IpAddr; 2] = match is_ipv6(pinhole)? {
            false => [Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into()],
            true => [Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from(u128::MAX).into()],
        };
        Ok(Self {
            tuple: Tuple { source: (initiator, 0).into(), destination: arrival },
            mask: Tuple { source: (all, 0).into(), destination: (all, u16::MAX).into() },
            unspecified: (none, 0).into(),
        })
    }

    /// Adds what opening and renewing have in common. The timeout is in whole seconds.
    fn put(&self, message: &mut Writer<'_>, control: Translation, zone: u16, lifetime: Duration) {
        put_zone(message, CTA_EXPECT_ZONE, zone);
        let master = Tuple { source: control.client, destination: control.server_external };
        master.put(message, CTA_EXPECT_MASTER);
        self.tuple.put(message, CTA_EXPECT_TUPLE);
        self.mask.put(message, CTA_EXPECT_MASK);
        let seconds = u32::try_from(lifetime.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        message.put(CTA_EXPECT_TIMEOUT, &seconds.to_be_bytes());
    }
}

/// Explains the kernel's error numbers.
fn explain_error(error: io::Error) -> io::Error {
    let text = match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ESHUTDOWN) => {
            "the control connection carries no helper: it began before ftp-alg did or conntrack was \
             flushed (open a new one), or SYNPROXY opened it (use the back end nftables)"
        }
        Some(libc::EINVAL) => "the kernel does not know nat-follow-master (modprobe nf_nat)",
        _ => return error,
    };
    io::Error::new(error.kind(), text)
}

fn parse(attributes: &Attributes<'_>) -> Option<OpenPinhole> {
    let tuple = Tuple::read(attributes, CTA_EXPECT_TUPLE)?;
    let remaining = attributes.first(CTA_EXPECT_TIMEOUT).and_then(be32).unwrap_or(0);
    Some(OpenPinhole {
        initiator: tuple.source.ip(),
        arrival: tuple.destination,
        remaining: Duration::from_secs(remaining.into()),
    })
}
