//! iptables targets as expressions of nf_tables, for kernels without the expression that would do.

#![allow(unsafe_code)]

use std::{ffi::CStr, ptr::NonNull};

use nftnl_sys as sys;

/// Aborts if memory is exhausted, as Rust does; libnftnl's allocations fail for no other reason.
fn allocated<T>(object: *mut T) -> NonNull<T> {
    NonNull::new(object).unwrap_or_else(|| std::process::abort())
}

/// An iptables target as an nftables expression, for nft_compat. `info` is the target's kernel structure, padded as
/// XT_ALIGN does.
pub fn xtables_target(name: &CStr, revision: u32, info: &[u8]) -> NonNull<sys::nftnl_expr> {
    // SAFETY: strings are copied. libnftnl frees the information with free(3) when it frees the
    // expression, so it must come from malloc(3), with room for what is copied there.
    unsafe {
        let expression = allocated(sys::nftnl_expr_alloc(c"target".as_ptr()));
        let memory = allocated(libc::malloc(info.len()).cast::<u8>());
        std::ptr::copy_nonoverlapping(info.as_ptr(), memory.as_ptr(), info.len());
        let raw = expression.as_ptr();
        sys::nftnl_expr_set_str(raw, sys::NFTNL_EXPR_TG_NAME as u16, name.as_ptr());
        sys::nftnl_expr_set_u32(raw, sys::NFTNL_EXPR_TG_REV as u16, revision);
        let memory = memory.as_ptr().cast();
        sys::nftnl_expr_set(raw, sys::NFTNL_EXPR_TG_INFO as u16, memory, info.len() as u32);
        expression
    }
}
