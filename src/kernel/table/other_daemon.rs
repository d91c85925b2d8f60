//! Whether the loaded table belongs to another running daemon: another program reads the queue that its rules use. A
//! table without such a reader is a saved copy that someone loaded, or was left by a daemon.

use std::io;

use crate::kernel::{
    NetfilterError, RuleParameters,
    netlink::{Attributes, Socket, be16, nft},
    queue::Queue,
};

// From linux/netfilter/nf_tables.h; libc lacks them.
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_QUEUE_NUM: u16 = 1;
const NFTA_TARGET_NAME: u16 = 1;
const NFTA_TARGET_INFO: u16 = 3;

/// An error that names the daemon of the loaded table, if that is not the reader of the queues of `parameters`.
pub(super) fn find(
    socket: &mut Socket,
    parameters: &RuleParameters,
) -> io::Result<Option<NetfilterError>> {
    let numbers = queues(socket)?;
    let others = numbers.into_iter().filter(|number| !parameters.queues().contains(number));
    Ok(others.into_iter().find_map(|number| match Queue::open(number) {
        Err(NetfilterError::QueueTaken { number, owner }) => {
            Some(NetfilterError::OtherDaemon { number, owner })
        }
        _ => None,
    }))
}

/// First numbers of the queues that our table's rules use.
pub(super) fn queues(socket: &mut Socket) -> io::Result<Vec<u16>> {
    let mut numbers = Vec::new();
    nft::for_each_rule(socket, |rule| {
        let expressions = rule.nested(NFTA_RULE_EXPRESSIONS).into_iter().flatten();
        numbers.extend(expressions.filter_map(|(_, expression)| queue(expression)));
    })?;
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// Queue number in an expression.
fn queue(expression: &[u8]) -> Option<u16> {
    let expression = Attributes::new(expression);
    let data = expression.nested(NFTA_EXPR_DATA)?;
    match expression.first(NFTA_EXPR_NAME)? {
        b"queue\0" => data.first(NFTA_QUEUE_NUM).and_then(be16),
        b"target\0" if data.first(NFTA_TARGET_NAME)? == b"NFQUEUE\0" => {
            // struct xt_NFQ_info starts with it.
            data.first(NFTA_TARGET_INFO)?.first_chunk().map(|number| u16::from_ne_bytes(*number))
        }
        _ => None,
    }
}
