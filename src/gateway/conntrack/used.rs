//! Which pinholes were used, as conntrack knows it: the connections that have the mark of those that were admitted.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use crate::gateway::{
    GatewayError, RuleParameters,
    netlink::ctnetlink::{CTA_TUPLE_ORIG, IPCTNL_MSG_CT_GET, Requests, Tuple},
};

// From linux/netfilter/nfnetlink_conntrack.h; libc lacks them.
const CTA_MARK: u16 = 8;
const CTA_MARK_MASK: u16 = 21;

/// Initiator and arrival of each connection that a pinhole admitted, and that conntrack still knows.
pub fn used_pinholes(
    parameters: &RuleParameters,
) -> Result<HashSet<(IpAddr, SocketAddr)>, GatewayError> {
    let failed = |error| GatewayError::system("list of data connections", error);
    let mut requests = Requests::open(libc::NFNL_SUBSYS_CTNETLINK).map_err(failed)?;
    let mark = parameters.data().to_be_bytes();
    let mut used = HashSet::new();
    requests
        .ask(
            IPCTNL_MSG_CT_GET,
            libc::NLM_F_DUMP,
            libc::AF_UNSPEC,
            |message| {
                message.put(CTA_MARK, &mark).put(CTA_MARK_MASK, &mark);
            },
            |message| {
                let original = message.attributes().nested(CTA_TUPLE_ORIG);
                let tuple = original.and_then(|tuple| Tuple::parse(&tuple));
                used.extend(tuple.map(|tuple| (tuple.source.ip(), tuple.destination)));
            },
        )
        .map_err(failed)?;
    Ok(used)
}
