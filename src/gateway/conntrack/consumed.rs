//! The pinholes that were consumed, according to conntrack: the connections that carry the mark of admitted data
//! connections.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use crate::gateway::{
    GatewayError, RuleParameters,
    netlink::{
        Writer,
        ctnetlink::{CTA_MARK, CTA_MARK_MASK, CTA_TUPLE_ORIG, IPCTNL_MSG_CT_GET, Requests, Tuple},
    },
};

/// Initiator and arrival of each admitted connection that conntrack still knows.
pub fn consumed_pinholes(
    parameters: &RuleParameters,
) -> Result<HashSet<(IpAddr, SocketAddr)>, GatewayError> {
    let failed = |error| GatewayError::system("list of data connections", error);
    let mut requests = Requests::open(libc::NFNL_SUBSYS_CTNETLINK).map_err(failed)?;
    let mark = parameters.data_mark().to_be_bytes();
    let mut used = HashSet::new();
    let marked = |message: &mut Writer<'_>| {
        message.put(CTA_MARK, &mark).put(CTA_MARK_MASK, &mark);
    };
    let dumped = requests.dump(IPCTNL_MSG_CT_GET, marked, |connection| {
        let tuple = Tuple::read(connection, CTA_TUPLE_ORIG);
        used.extend(tuple.map(|tuple| (tuple.source.ip(), tuple.destination)));
    });
    dumped.map_err(failed)?;
    Ok(used)
}
