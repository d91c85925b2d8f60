//! Limits the running daemon to the system calls that it makes.
//!
//! A forbidden call fails with EPERM. A C library that tries a new call must not end a gateway, and an attacker gains
//! nothing by trying. In a debug build a forbidden call ends the process at once, so that tests find calls that are
//! missing here.

use std::{collections::BTreeMap, process};

use ftp_alg_fastpath::BPF_COMMANDS;
use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is,
    SeccompCondition as Condition, SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

const FORBIDDEN: SeccompAction = if cfg!(debug_assertions) {
    SeccompAction::KillProcess
} else {
    SeccompAction::Errno(libc::EPERM as u32)
};

/// The calls that are allowed with any arguments.
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
    // Threads, signals, the end: `clone` and `tgkill` are below, and [`hide_clone3`] handles `clone3`.
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
    // Facts about the time, the process and the machine.
    libc::SYS_clock_gettime,
    libc::SYS_getcwd, // A panic shows paths relative to it.
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getrandom,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// Further allowed calls, which newer architectures do not have.
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
const ALLOWED_LEGACY: &[c_long] = &[];

/// The call that removes the fast path's directory. `bpf` is below.
const FAST_PATH: &[c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
];

/// The address families of sockets.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_NETLINK, libc::AF_INET, libc::AF_INET6];
/// The operations of `prctl`: names of threads, names of memory (the C library sets these), and the auxiliary vector,
/// in which rustix finds the kernel's clocks.
const CONTROLS: [u64; 3] = [libc::PR_SET_NAME as u64, libc::PR_SET_VMA as u64, PR_GET_AUXV];
/// From linux/prctl.h, because libc does not have it.
const PR_GET_AUXV: u64 = 0x4155_5856;
/// The requests of `ioctl`: whether a file is a terminal, and that a socket must not block.
const REQUESTS: [u64; 2] = [libc::TCGETS as _, libc::FIONBIO as _];

/// Installs the filters for this thread and for threads that it starts. `fast_path` says whether the program is loaded.
pub(super) fn restrict(fast_path: bool) -> Result<(), Error> {
    // After the second filter, no further one can be installed.
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
    // No executable memory, and no processes, only threads.
    let not_executable = argument(2, Is::MaskedEq(libc::PROT_EXEC as u64), 0)?;
    rules.insert(libc::SYS_mmap, vec![not_executable.clone()]);
    rules.insert(libc::SYS_mprotect, vec![not_executable]);
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![argument(0, Is::MaskedEq(thread), thread)?]);
    // Only to the process itself, for abort(3).
    rules.insert(libc::SYS_tgkill, one_of(0, &[process::id().into()])?);
    filter(rules, FORBIDDEN, SeccompAction::Allow)
}

/// The filter for `clone3`, whose arguments a filter cannot read. It fails with ENOSYS, and the C library then calls
/// `clone`.
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
