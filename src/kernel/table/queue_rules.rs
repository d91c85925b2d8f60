//! Rules that queue: reads those of our table, and writes the iptables target NFQUEUE, for nft_compat on kernels
//! without `queue` statements.

#![allow(unsafe_code)]

use std::{ffi::CStr, io, ptr::NonNull};

use nftnl::{Chain, MsgType, ProtoFamily, Rule, Table, expr::Expression};
use nftnl_sys as sys;

use crate::kernel::{
    NetfilterError, RuleParameters,
    netlink::{
        Attributes, Socket, be16,
        nft::{self, Batch},
    },
};

// From linux/netfilter/nf_tables.h; libc lacks them.
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_QUEUE_NUM: u16 = 1;
const NFTA_TARGET_NAME: u16 = 1;
const NFTA_TARGET_INFO: u16 = 3;

/// The chain that puts packets into the queue.
const QUEUEING: &CStr = c"to_queue";

/// First numbers of the queues that our table's rules use.
pub(in crate::kernel) fn queues_of_table(socket: &mut Socket) -> io::Result<Vec<u16>> {
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

/// Replaces the content of the queueing chain by the target. Returns the index of the rule's message.
pub(super) fn queue_to_target(batch: &mut Batch, parameters: &RuleParameters) -> usize {
    let table = Table::new(nft::TABLE, ProtoFamily::Inet);
    let chain = Chain::new(QUEUEING, &table);
    // A rule without a handle stands for all rules of its chain.
    batch.object(&Rule::new(&chain), MsgType::Del);
    batch.object(&target_rule(&chain, parameters), MsgType::Add)
}

/// Tests the target in a transaction whose last message must fail, because it deletes a chain that does not exist. So
/// the kernel checks the rule, loads the target's module, and commits nothing.
pub(in crate::kernel) fn try_queue_rule(
    parameters: &RuleParameters,
    socket: &mut Socket,
) -> Result<(), NetfilterError> {
    let mut refused = None;
    // Linux 6.1 loads the target's module by a name that starts with the family's, and has none for inet.
    for family in [ProtoFamily::Inet, ProtoFamily::Ipv4, ProtoFamily::Inet] {
        let table = Table::new(c"ftp_alg_probe", family);
        let chain = Chain::new(c"probe", &table);
        let mut batch = Batch::new();
        batch.object(&table, MsgType::Add);
        batch.object(&chain, MsgType::Add);
        let rule = batch.object(&target_rule(&chain, parameters), MsgType::Add);
        batch.object(&Chain::new(c"absent", &table), MsgType::Del);
        let outcome = batch.send(socket).map_err(|e| NetfilterError::system("nf_tables", e))?;
        refused = outcome.error_of(rule);
        if refused.is_none() && matches!(family, ProtoFamily::Inet) {
            return Ok(());
        }
    }
    Err(no_queue(refused.unwrap_or(libc::ENOENT)))
}

/// Adds a chain with a `queue` statement to a table that has none. Returns the index of the rule's message.
pub(super) fn put_queue_rule(batch: &mut Batch, table: &CStr) -> usize {
    let table = Table::new(table, ProtoFamily::Inet);
    let chain = Chain::new(QUEUEING, &table);
    batch.object(&chain, MsgType::Add);
    let mut rule = Rule::new(&chain);
    rule.add_expr(&QueueNumber(0));
    batch.object(&rule, MsgType::Add)
}

/// The `queue` statement as an expression of libnftnl.
struct QueueNumber(u16);

impl Expression for QueueNumber {
    fn to_expr(&self, _rule: &Rule<'_>) -> NonNull<sys::nftnl_expr> {
        // SAFETY: the string is copied, and the number is set in an expression that was just made.
        unsafe {
            let expression = allocated(sys::nftnl_expr_alloc(c"queue".as_ptr()));
            sys::nftnl_expr_set_u16(expression.as_ptr(), sys::NFTNL_EXPR_QUEUE_NUM as u16, self.0);
            expression
        }
    }
}

/// The rule with the target.
fn target_rule<'a>(chain: &'a Chain<'a>, parameters: &RuleParameters) -> Rule<'a> {
    let (first, last) = parameters.queues().into_inner();
    let [a, b] = first.to_ne_bytes();
    let [c, d] = (last - first + 1).to_ne_bytes();
    let mut rule = Rule::new(chain);
    rule.add_expr(&NfQueue { info: [a, b, c, d, 0, 0, 0, 0] });
    rule
}

/// The target as an expression of libnftnl.
struct NfQueue {
    /// struct xt_NFQ_info_v3: first number, count, flags; padded to 8 bytes as XT_ALIGN does.
    info: [u8; 8],
}

impl Expression for NfQueue {
    fn to_expr(&self, _rule: &Rule<'_>) -> NonNull<sys::nftnl_expr> {
        let info = self.info;
        // SAFETY: strings are copied. libnftnl frees the information with free(3) when it frees the
        // expression, so it must come from malloc(3), with room for what is copied there.
        unsafe {
            let expression = allocated(sys::nftnl_expr_alloc(c"target".as_ptr()));
            let memory = allocated(libc::malloc(info.len()).cast::<u8>());
            std::ptr::copy_nonoverlapping(info.as_ptr(), memory.as_ptr(), info.len());
            let raw = expression.as_ptr();
            sys::nftnl_expr_set_str(raw, sys::NFTNL_EXPR_TG_NAME as u16, c"NFQUEUE".as_ptr());
            sys::nftnl_expr_set_u32(raw, sys::NFTNL_EXPR_TG_REV as u16, 3);
            let memory = memory.as_ptr().cast();
            sys::nftnl_expr_set(raw, sys::NFTNL_EXPR_TG_INFO as u16, memory, info.len() as u32);
            expression
        }
    }
}

/// The object. Aborts if memory is exhausted, as Rust does; libnftnl's allocations fail for no other reason.
fn allocated<T>(object: *mut T) -> NonNull<T> {
    NonNull::new(object).unwrap_or_else(|| std::process::abort())
}

/// Why the target cannot queue.
pub(super) fn no_queue(errno: i32) -> NetfilterError {
    match errno {
        libc::ENOENT | libc::EOPNOTSUPP => NetfilterError::FeatureMissing {
            what: NetfilterError::QUEUE_RULES.into(),
            feature: "nft_queue, and no nft_compat with xt_NFQUEUE",
            remedy: "load the output of `ftp-alg rules iptables` with iptables-restore --noflush \
                     first, then start ftp-alg again",
        },
        _ => {
            NetfilterError::system(NetfilterError::QUEUE_RULES, io::Error::from_raw_os_error(errno))
        }
    }
}
