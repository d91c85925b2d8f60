//! The pinholes that were consumed, according to conntrack: the connections that carry the mark of admitted data
//! connections.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use super::{CTA_PROTOINFO, CTA_PROTOINFO_TCP};
use crate::kernel::{
    NetfilterError, RuleParameters,
    netlink::{
        Attributes, Writer,
        ctnetlink::{CTA_MARK, CTA_MARK_MASK, CTA_TUPLE_ORIG, IPCTNL_MSG_CT_GET, Requests, Tuple},
    },
};

const CTA_PROTOINFO_TCP_STATE: u16 = 1;
/// States of a connection that both ends have closed, or one has reset: LAST_ACK, TIME_WAIT and CLOSE. From
/// linux/netfilter/nf_conntrack_tcp.h.
const OVER: [u8; 3] = [6, 7, 8];

/// Initiator and arrival of each admitted connection that conntrack still knows.
pub fn admitted_connections(
    parameters: &RuleParameters,
) -> Result<HashSet<(IpAddr, SocketAddr)>, NetfilterError> {
    list(parameters, |_| true)
}

/// Initiator and arrival of each admitted connection that is not over.
///
/// A connection that is over stays in conntrack for minutes. If it counted, a server with few passive ports would lose
/// each pinhole that the table has at its ports. The price: a connection that consumed its pinhole and was over before
/// its lines were read, while the table or the daemon was away, does not count. Then the same initiator may connect
/// once more to the same endpoint until the pinhole expires. One that only one end has closed still counts, because
/// the transfer may go on.
pub fn consumed_pinholes(
    parameters: &RuleParameters,
) -> Result<HashSet<(IpAddr, SocketAddr)>, NetfilterError> {
    list(parameters, |connection| !is_over(connection))
}

fn is_over(connection: &Attributes<'_>) -> bool {
    let info = connection.nested(CTA_PROTOINFO).and_then(|info| info.nested(CTA_PROTOINFO_TCP));
    let state = info.and_then(|info| info.first(CTA_PROTOINFO_TCP_STATE)?.first());
    state.is_some_and(|state| OVER.contains(state))
}

fn list(
    parameters: &RuleParameters,
    counts: impl Fn(&Attributes<'_>) -> bool,
) -> Result<HashSet<(IpAddr, SocketAddr)>, NetfilterError> {
    let failed = |error| NetfilterError::system("list of data connections", error);
    let mut requests = Requests::open(libc::NFNL_SUBSYS_CTNETLINK).map_err(failed)?;
    let mark = parameters.gateway.data_mark.to_be_bytes();
    let mut found = HashSet::new();
    let marked = |message: &mut Writer<'_>| {
        message.put(CTA_MARK, &mark).put(CTA_MARK_MASK, &mark);
    };
    let dumped = requests.dump(IPCTNL_MSG_CT_GET, marked, |connection| {
        let tuple = Tuple::read(connection, CTA_TUPLE_ORIG).filter(|_| counts(connection));
        found.extend(tuple.map(|tuple| (tuple.source.ip(), tuple.destination)));
    });
    dumped.map_err(failed)?;
    Ok(found)
}
