//! Our own conntrack helper, registered through nfnetlink_cthelper: it reads nothing, and lets the kernel accept
//! expectations for the connections that carry it.
//!
//! Helpers belong to the machine, not to a network namespace; daemons in several namespaces share this one.

use std::{io, thread, time::Duration};

use crate::{
    config::MAX_EXPECTED_PORTS,
    kernel::{
        conntrack::{
            CTA_HELP, CTA_HELP_NAME, CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ZONE, IPCTNL_MSG_CT_GET,
            IPCTNL_MSG_CT_NEW, Tuple, change, dump, put_zone,
        },
        netlink::{Attributes, Socket, Writer, be16, family_of, is_answered, kind_of, or_absent},
    },
};

/// Name of the helper.
pub(super) const OWN_HELPER: &str = "ftp-alg";

// From linux/netfilter/nfnetlink_cthelper.h; libc lacks them.
const NFNL_MSG_CTHELPER_NEW: u16 = kind_of(libc::NFNL_SUBSYS_CTHELPER, 0);
const NFNL_MSG_CTHELPER_GET: u16 = kind_of(libc::NFNL_SUBSYS_CTHELPER, 1);
const NFNL_MSG_CTHELPER_DEL: u16 = kind_of(libc::NFNL_SUBSYS_CTHELPER, 2);
const NFCTH_NAME: u16 = 1;
const NFCTH_TUPLE: u16 = 2;
const NFCTH_QUEUE_NUM: u16 = 3;
const NFCTH_POLICY: u16 = 4;
const NFCTH_PRIV_DATA_LEN: u16 = 5;
const NFCTH_STATUS: u16 = 6;
const NFCTH_TUPLE_L3PROTONUM: u16 = 1;
const NFCTH_TUPLE_L4PROTONUM: u16 = 2;
const NFCTH_POLICY_SET_NUM: u16 = 1;
const NFCTH_POLICY_SET1: u16 = 2;
const NFCTH_POLICY_NAME: u16 = 1;
const NFCTH_POLICY_EXPECT_MAX: u16 = 2;
const NFCTH_POLICY_EXPECT_TIMEOUT: u16 = 3;
/// The kernel queues nothing for a helper in this state.
const NFCT_HELPER_STATUS_DISABLED: u32 = 0;

/// Limit of expectations: the passive ports of an encrypted session. Other sessions have fewer, by the engine's limit.
const MAX_EXPECTED: u32 = MAX_EXPECTED_PORTS as u32;
/// Timeout of its new expectations.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The kernel's helper for scanners, which stands in for ours, and the timeout of its new expectations
/// (nf_conntrack_sane.c).
const SCANNER_HELPER: &[u8] = b"sane\0";
const SCANNER_TIMEOUT: Duration = Duration::from_secs(300);

const FAMILIES: [i32; 2] = [libc::AF_INET, libc::AF_INET6];

/// The kernel frees the objects of a deleted table a little later: number and length of waits.
const REMOVAL_ATTEMPTS: (u32, Duration) = (20, Duration::from_millis(5));

/// The registered helper; removed on drop, unless another daemon's rules refer to it.
#[derive(Debug)]
pub(in crate::kernel) struct OwnHelper {
    socket: Socket,
    is_left_registered: bool,
}

impl OwnHelper {
    /// Whether the kernel has helpers in user space (nfnetlink_cthelper).
    pub(in crate::kernel) fn is_supported() -> bool {
        is_answered(NFNL_MSG_CTHELPER_GET, libc::NLM_F_DUMP)
    }

    /// Registers the helper; `None` if the kernel has no nfnetlink_cthelper.
    pub(super) fn register() -> io::Result<Option<Self>> {
        let mut helper = Self { socket: Socket::open()?, is_left_registered: false };
        match helper.register_missing() {
            Ok(_) => Ok(Some(helper)),
            // nfnetlink_rcv_msg() answers like this for an unknown subsystem; the subsystem itself does outside the
            // machine's own user namespace.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPERM)
                ) =>
            {
                helper.leave_in_kernel();
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Registers the helper again if another daemon removed it when its own rules no longer referred to it. Returns
    /// whether anything was missing.
    pub(super) fn register_missing(&mut self) -> io::Result<bool> {
        let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut was_missing = false;
        for family in FAMILIES {
            let fill = |message: &mut Writer<'_>| fill(message, family);
            let (kind, family) = (NFNL_MSG_CTHELPER_NEW, libc::AF_UNSPEC);
            match change(&mut self.socket, kind, create, family, fill) {
                Ok(()) => was_missing = true,
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(was_missing)
    }

    /// Leaves the helper in the kernel.
    pub(super) fn leave_in_kernel(mut self) {
        self.is_left_registered = true;
    }

    fn remove(&mut self, family: i32) -> io::Result<()> {
        let (attempts, pause) = REMOVAL_ATTEMPTS;
        for _ in 0..attempts {
            let fill = |message: &mut Writer<'_>| identify(message, family);
            let (kind, family) = (NFNL_MSG_CTHELPER_DEL, libc::AF_UNSPEC);
            match or_absent(change(&mut self.socket, kind, 0, family, fill)) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => thread::sleep(pause),
                other => return other.map(drop),
            }
        }
        Ok(())
    }
}

impl Drop for OwnHelper {
    fn drop(&mut self) {
        if self.is_left_registered {
            return;
        }
        for family in FAMILIES {
            if let Err(error) = self.remove(family) {
                tracing::warn!("removal of conntrack helper {OWN_HELPER}: {error}");
            }
        }
    }
}

/// Timeout of a new expectation of a control connection.
pub(super) fn expectation_timeout() -> Duration {
    if OwnHelper::is_supported() { TIMEOUT } else { SCANNER_TIMEOUT }
}

/// Removes the helper for scanners from connections to `ports`, and their expectations: without our rules nothing
/// prevents it from acting on their content.
pub(super) fn remove_scanner_helper(ports: &[u16]) -> io::Result<()> {
    let mut socket = Socket::open()?;
    let mut carriers = Vec::new();
    let each =
        |connection: &Attributes<'_>| carriers.extend(scanner_helper_carrier(connection, ports));
    dump(&mut socket, IPCTNL_MSG_CT_GET, |_| {}, each)?;
    for (original, zone) in carriers {
        let fill = |message: &mut Writer<'_>| {
            original.put(message, CTA_TUPLE_ORIG);
            put_zone(message, CTA_ZONE, zone);
            message.nest(CTA_HELP, |help| {
                help.put(CTA_HELP_NAME, b"\0");
            });
        };
        // A connection that has ended meanwhile carries no helper any more.
        let family = family_of(original.source.ip());
        or_absent(change(&mut socket, IPCTNL_MSG_CT_NEW, 0, family, fill))?;
    }
    Ok(())
}

/// Original tuple and zone of a connection to one of `ports` that carries the helper for scanners.
fn scanner_helper_carrier(attributes: &Attributes<'_>, ports: &[u16]) -> Option<(Tuple, u16)> {
    let name = attributes.nested(CTA_HELP)?.first(CTA_HELP_NAME)?;
    let original = Tuple::read(attributes, CTA_TUPLE_ORIG)?;
    let reply = Tuple::read(attributes, CTA_TUPLE_REPLY)?;
    let is_control = [original.destination, reply.source].map(|end| ports.contains(&end.port()));
    let zone = attributes.first(CTA_ZONE).and_then(be16).unwrap_or(0);
    (name == SCANNER_HELPER && is_control.contains(&true)).then_some((original, zone))
}

fn identify(message: &mut Writer<'_>, family: i32) {
    let mut name = OWN_HELPER.as_bytes().to_vec();
    name.push(0);
    message.put(NFCTH_NAME, &name).nest(NFCTH_TUPLE, |tuple| {
        tuple
            .put(NFCTH_TUPLE_L3PROTONUM, &(family as u16).to_be_bytes())
            .put(NFCTH_TUPLE_L4PROTONUM, &[libc::IPPROTO_TCP as u8]);
    });
}

fn fill(message: &mut Writer<'_>, family: i32) {
    let timeout = TIMEOUT.as_secs() as u32;
    identify(message, family);
    message
        .put(NFCTH_QUEUE_NUM, &0u32.to_be_bytes())
        .put(NFCTH_PRIV_DATA_LEN, &0u32.to_be_bytes())
        .put(NFCTH_STATUS, &NFCT_HELPER_STATUS_DISABLED.to_be_bytes())
        .nest(NFCTH_POLICY, |policy| {
            policy.put(NFCTH_POLICY_SET_NUM, &1u32.to_be_bytes()).nest(NFCTH_POLICY_SET1, |set| {
                set.put(NFCTH_POLICY_NAME, b"data\0")
                    .put(NFCTH_POLICY_EXPECT_MAX, &MAX_EXPECTED.to_be_bytes())
                    .put(NFCTH_POLICY_EXPECT_TIMEOUT, &timeout.to_be_bytes());
            });
        });
}
