//! Whether the table that is loaded belongs to another daemon that runs: its rules put packets into a queue that another
//! program reads. A table without such a reader is a copy that someone saved and loaded, or what a daemon left.

use std::io;

use crate::gateway::{
    GatewayError, Queue, RuleParameters,
    netlink::{Attributes, Socket, be16, nft},
};

// From linux/netfilter/nf_tables.h; libc lacks them.
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_QUEUE_NUM: u16 = 1;
const NFTA_TARGET_NAME: u16 = 1;
const NFTA_TARGET_INFO: u16 = 3;

/// The daemon that the loaded table belongs to, as the error to give, if it is not the one that reads the queues of
/// `parameters`.
pub(super) fn find(
    socket: &mut Socket,
    parameters: &RuleParameters,
) -> io::Result<Option<GatewayError>> {
    let numbers = queues(socket)?;
    let others = numbers.into_iter().filter(|number| !parameters.queues().contains(number));
    Ok(others.into_iter().find_map(|number| match Queue::open(number) {
        Err(GatewayError::QueueTaken { number, owner }) => {
            Some(GatewayError::Rival { number, owner })
        }
        _ => None,
    }))
}

/// The first numbers of the queues that our table's rules name.
pub(super) fn queues(socket: &mut Socket) -> io::Result<Vec<u16>> {
    let mut numbers = Vec::new();
    nft::rules(socket, |rule| {
        let expressions = rule.nested(NFTA_RULE_EXPRESSIONS).into_iter().flatten();
        numbers.extend(expressions.filter_map(|(_, expression)| queue(expression)));
    })?;
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// The number of the queue that an expression names.
fn queue(expression: &[u8]) -> Option<u16> {
    let expression = Attributes::new(expression);
    let data = expression.nested(NFTA_EXPR_DATA)?;
    match expression.first(NFTA_EXPR_NAME)? {
        b"queue\0" => data.first(NFTA_QUEUE_NUM).and_then(be16),
        b"target\0" if data.first(NFTA_TARGET_NAME)? == b"NFQUEUE\0" => {
            // struct xt_NFQ_info begins with it.
            data.first(NFTA_TARGET_INFO)?.first_chunk().map(|number| u16::from_ne_bytes(*number))
        }
        _ => None,
    }
}
