//! The iptables target NFQUEUE as an expression of nf_tables, for nft_compat on kernels without `queue` statements.

#![allow(unsafe_code)]

use std::ptr::NonNull;

use nftnl::{Rule, expr::Expression};
use nftnl_sys as sys;

/// Queues to a range of queue numbers.
pub(super) struct NfQueue {
    pub(super) first: u16,
    pub(super) total: u16,
    pub(super) by_processor: bool,
}

impl Expression for NfQueue {
    fn to_expr(&self, _rule: &Rule<'_>) -> NonNull<sys::nftnl_expr> {
        // struct xt_NFQ_info_v3 (flags: 2 by processor), padded to 8 bytes as XT_ALIGN does.
        let [a, b] = self.first.to_ne_bytes();
        let [c, d] = self.total.to_ne_bytes();
        let [e, f] = (u16::from(self.by_processor) << 1).to_ne_bytes();
        let info = [a, b, c, d, e, f, 0, 0];
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

/// Aborts if memory is exhausted, as Rust does; libnftnl's allocations fail for no other reason.
fn allocated<T>(object: *mut T) -> NonNull<T> {
    NonNull::new(object).unwrap_or_else(|| std::process::abort())
}
