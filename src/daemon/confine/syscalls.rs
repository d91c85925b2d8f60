//! The system calls that the running daemon makes; no other is possible.
//!
//! What is forbidden fails with EPERM: a C library that tries something new must not end a gateway, and
//! who has taken it over gains nothing by trying. In a debug build it ends the process at once, so
//! that tests find a call that is missing here.

use std::{collections::BTreeMap, process};

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is,
    SeccompCondition as Condition, SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

use crate::gateway::fastpath::BPF_COMMANDS;

const FORBIDDEN: SeccompAction = if cfg!(debug_assertions) {
    SeccompAction::KillProcess
} else {
    SeccompAction::Errno(libc::EPERM as u32)
};

/// Whatever their arguments.
const ALLOWED: &[c_long] = &[
    // Files: /proc, the state directory, the log.
    libc::SYS_close,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    // Sockets: `socket` and `socketpair` are below.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Waiting.
    libc::SYS_clock_nanosleep,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_nanosleep,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    // Memory: `mmap` and `mprotect` are below.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads, signals, the end: `clone` and `tgkill` are below, `clone3` is answered by [`newer`].
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // What may be known.
    libc::SYS_clock_gettime,
    libc::SYS_getcwd, // A panic shows paths in relation to it.
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getrandom,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// Calls that newer architectures do without.
#[cfg(target_arch = "x86_64")]
const ALLOWED_LEGACY: &[c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_gettimeofday,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OF_OLD: &[c_long] = &[];

/// With these the fast path's pins are removed. `bpf` is below.
const FAST_PATH: &[c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_NETLINK, libc::AF_INET, libc::AF_INET6];
/// Names of threads and, by the C library, of memory; what the kernel told the process at its start,
/// for which rustix asks to find its clocks (linux/prctl.h; libc lacks it).
const CONTROLS: [u64; 3] = [libc::PR_SET_NAME as u64, libc::PR_SET_VMA as u64, PR_GET_AUXV];
const PR_GET_AUXV: u64 = 0x4155_5856;
/// Whether it is a terminal, and that a socket must not block.
const REQUESTS: [u64; 2] = [libc::TCGETS as _, libc::FIONBIO as _];

/// Puts the filters on this thread and those that it starts; `fast_path` says whether that is loaded.
pub(super) fn restrict(fast_path: bool) -> Result<(), Error> {
    // The second forbids a third.
    for filter in [hide_clone3()?, allow_listed(fast_path)?] {
        apply_filter(&filter)?;
    }
    Ok(())
}

fn allow_listed(fast_path: bool) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let more = if fast_path { FAST_PATH } else { &[] };
    for &call in ALLOWED.iter().chain(ALLOWED_LEGACY).chain(more) {
        rules.insert(call, Vec::new());
    }
    let argument = |number, is, value| {
        SeccompRule::new(vec![Condition::new(number, Length::Dword, is, value)?])
    };
    let one_of = |number, values: &[u64]| {
        values.iter().map(|value| argument(number, Is::Eq, *value)).collect::<Result<Vec<_>, _>>()
    };
    rules.insert(libc::SYS_socket, one_of(0, &FAMILIES.map(|family| family as u64))?);
    rules.insert(libc::SYS_socketpair, one_of(0, &[libc::AF_UNIX as u64])?);
    rules.insert(libc::SYS_ioctl, one_of(1, &REQUESTS)?);
    if fast_path {
        rules.insert(libc::SYS_bpf, one_of(0, &BPF_COMMANDS.map(u64::from))?);
    }
    rules.insert(libc::SYS_prctl, one_of(0, &CONTROLS)?);
    // Memory that can be executed is never made, and no process, only threads.
    let not_executable = argument(2, Is::MaskedEq(libc::PROT_EXEC as u64), 0)?;
    rules.insert(libc::SYS_mmap, vec![not_executable.clone()]);
    rules.insert(libc::SYS_mprotect, vec![not_executable]);
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![argument(0, Is::MaskedEq(thread), thread)?]);
    // Of the thread itself.
    rules.insert(libc::SYS_sched_setaffinity, one_of(0, &[0])?);
    // As abort(3) does.
    rules.insert(libc::SYS_tgkill, one_of(0, &[process::id().into()])?);
    filter(rules, FORBIDDEN, SeccompAction::Allow)
}

/// A filter cannot look into the arguments of `clone3`. It is said not to exist, and the C library
/// then takes `clone`.
fn hide_clone3() -> Result<BpfProgram, BackendError> {
    let rules = [(libc::SYS_clone3, Vec::new())].into();
    filter(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    others: SeccompAction,
    these: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, others, these, architecture)?.try_into()
}
