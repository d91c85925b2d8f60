//! Gives up all rights that the daemon does not need, before it reads the first packet.
//!
//! The daemon retains two capabilities, its state directory, the system calls of its work, and the fast path's pins if
//! the fast path runs. It cannot start a program, and it cannot regain rights. Its broker ([`crate::kernel::broker`])
//! does everything else for it. The broker may read files and run programs, but it may write nothing. Those programs
//! may read only what programs need to run.
//!
//! There are two steps. [`become_user`] changes the user, and retains the capabilities that load the fast path.
//! [`confine_daemon`] gives up the rest. In between the fast path's maps are made, so its pins belong to the daemon's user;
//! a copy of the process retains the rights until it has loaded the program.
//!
//! Invariant: this happens before the daemon starts a thread, because it applies only to the calling thread and to
//! threads that it starts later.
//!
//! docs/security.md says which rights are left, and why.

mod syscalls;

use std::{
    fs, io,
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
};

use capctl::{Cap, CapSet, CapState, ambient, bounding, caps::cap_set_ids, prctl};
use landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};

/// The capabilities for netlink and marks, and for raw sockets.
const NEEDED: [Cap; 2] = [Cap::NET_ADMIN, Cap::NET_RAW];

/// Further capabilities that loading the fast path's program needs. Without CAP_PERFMON the verifier refuses code as
/// compilers generate it ("attempt to corrupt spilled pointer on stack"). CAP_SYS_ADMIN finds the program that an
/// earlier daemon left attached. Once it is loaded, none is needed.
const NEEDED_TO_LOAD: [Cap; 3] = [Cap::BPF, Cap::PERFMON, Cap::SYS_ADMIN];

/// The rights that landlock forbids unless a rule allows them, together with [`Scope::Signal`], as far as the kernel
/// knows them. Linux 5.13 does not know truncation by name, signals and ioctl yet, but seccomp forbids these as well.
const HANDLED: ABI = ABI::V5;
const NO_LANDLOCK: &str = "landlock: not in this kernel, or not enabled (lsm= on its command line); \
                           files are protected by their permissions only";

/// The directories of programs and their libraries.
const PROGRAMS: [&str; 9] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/nix", "/gnu"];
/// Files that programs read: for the dynamic loader, for names of users and services, and from the kernel.
const PROGRAMS_READ: [&str; 11] = [
    "/dev/urandom",
    "/proc",
    "/etc/ld.so.cache",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/protocols",
    "/etc/services",
    "/etc/ethertypes",
    "/etc/iproute2",
    "/etc/xtables",
];

/// The file with the accounts of the machine. Accounts of directory services are not looked up.
const ACCOUNTS: &str = "/etc/passwd";

/// Why rights could not be given up. The daemon does not start then.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("cannot become user {user}: {source}; --user needs root")]
    Become { user: String, source: io::Error },
    #[error("cannot give up rights ({what}): {reason}")]
    System { what: &'static str, reason: String },
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> ConfineError {
    move |reason| ConfineError::System { what, reason: reason.to_string() }
}

/// A user and its own group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

/// Why the account cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("--user {name}: no such user in {ACCOUNTS}; `useradd --system {name}` creates it")]
    Unknown { name: String },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

impl Account {
    /// Looks up an account by its name.
    pub fn named(name: &str) -> Result<Self, AccountError> {
        let read = |source| AccountError::Read { path: ACCOUNTS.into(), source };
        let text = fs::read_to_string(ACCOUNTS).map_err(read)?;
        Self::find(&text, name).ok_or_else(|| AccountError::Unknown { name: name.to_owned() })
    }

    /// Finds an account in the text of a file with lines `name:password:uid:gid:...`, see passwd(5).
    fn find(text: &str, name: &str) -> Option<Self> {
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next()? != name {
                return None;
            }
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(Self { name: name.to_owned(), uid, gid })
        })
    }
}

/// Becomes `account`, with the daemon's capabilities and those that load the fast path's program. [`confine_daemon`]
/// must follow.
pub fn become_user(account: Option<&Account>) -> Result<(), ConfineError> {
    restrict_capabilities(account, &NEEDED_TO_LOAD, false)
}

/// Does `work` with the rights that [`become_user`] leaves. Only a thread of its own gives up the others.
pub fn as_user<T: Send>(
    account: Option<&Account>,
    work: impl FnOnce() -> T + Send,
) -> Result<T, ConfineError> {
    let outcome =
        thread::scope(|scope| scope.spawn(|| become_user(account).map(|()| work())).join());
    outcome.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Confines the daemon. From now on it may read `/proc`, use files in `state_dir`, and make and remove sockets in
/// `socket_dir`. With `pins`, the directory of the fast path's pins, it may also use BPF maps, attach the loaded
/// program, and make and remove pins. It may make and write files in `log_dirs`. Returns a line for each confinement that
/// this kernel lacks.
pub fn confine_daemon(
    state_dir: &Path,
    socket_dir: &Path,
    pins: Option<&Path>,
    log_dirs: &[&Path],
) -> Result<Vec<String>, ConfineError> {
    restrict_capabilities(None, &[], false)?;
    let state = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeSock
        | AccessFs::RemoveFile;
    let pinned = pins.map(|pins| {
        let names = AccessFs::MakeReg | AccessFs::RemoveFile;
        (pins, names | AccessFs::RemoveDir | AccessFs::ReadDir)
    });
    let logs = log_dirs
        .iter()
        .map(|logs| (*logs, AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg));
    let rules = [
        (Path::new("/proc"), AccessFs::ReadFile | AccessFs::ReadDir),
        (state_dir, state),
        (socket_dir, AccessFs::MakeSock | AccessFs::RemoveFile),
    ];
    let status = restrict(rules.into_iter().chain(pinned).chain(logs))?;
    let landlock = (status == RulesetStatus::NotEnforced).then(|| NO_LANDLOCK.to_owned());
    // Some kernels lack seccomp, and the filter does not support every processor.
    let seccomp = syscalls::restrict(pins.is_some()).err();
    let seccomp =
        seccomp.map(|error| format!("seccomp: {error}; the daemon can make every system call"));
    Ok(landlock.into_iter().chain(seccomp).collect())
}

/// Confines the broker. It may read and run the files that its user may, and change none.
pub fn confine_broker(account: Option<&Account>) -> Result<(), ConfineError> {
    restrict_capabilities(account, &[], true)?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute;
    restrict([(Path::new("/"), read), (Path::new("/dev/null"), AccessFs::WriteFile.into())])?;
    Ok(())
}

/// Confines the broker's thread that is about to start a program to the files that such programs read. The program's
/// input comes from the daemon, and could name other files.
pub fn confine_program() -> io::Result<()> {
    let run = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let rules = PROGRAMS.map(|place| (Path::new(place), run)).into_iter();
    let rules = rules.chain(PROGRAMS_READ.map(|place| (Path::new(place), read)));
    let null = (Path::new("/dev/null"), AccessFs::ReadFile | AccessFs::WriteFile);
    restrict(rules.chain([null])).map(drop).map_err(io::Error::other)
}

/// Why landlock has no effect on this machine. `None` if it works.
pub fn landlock_missing() -> Option<&'static str> {
    // On a thread of its own, because the confinement lasts until the thread ends.
    let status = thread::spawn(|| restrict([])).join().ok().and_then(Result::ok);
    (status == Some(RulesetStatus::NotEnforced)).then_some(NO_LANDLOCK)
}

/// Becomes `account`, and retains the needed capabilities and `more`. The process can regain no other. A second call
/// without `more` gives those up as well. A capability that the process does not have is no error here, but later where
/// it is needed. With `for_programs`, programs that the process starts have these capabilities, too.
fn restrict_capabilities(
    account: Option<&Account>,
    more: &[Cap],
    for_programs: bool,
) -> Result<(), ConfineError> {
    let system = failed("capabilities");
    let now = CapState::get_current().map_err(&system)?;
    let needed: CapSet = NEEDED.into_iter().filter(|cap| now.permitted.has(*cap)).collect();
    let more: CapSet = more.iter().copied().filter(|cap| now.permitted.has(*cap)).collect();
    let retained = needed | more;
    // Without CAP_SETPCAP, as in systemd's unit, the bounding set cannot be changed.
    if now.effective.has(Cap::SETPCAP) {
        for cap in Cap::iter().filter(|cap| cap.is_supported() && !needed.has(*cap)) {
            bounding::drop(cap).map_err(&system)?;
        }
        bounding::clear_unknown().map_err(&system)?;
    }
    if let Some(Account { name, uid, gid }) = account {
        cap_set_ids(Some(*uid), Some(*gid), Some(&[]))
            .map_err(|error| ConfineError::Become { user: name.clone(), source: error.into() })?;
    }
    let inheritable = if for_programs { retained } else { CapSet::empty() };
    let state = CapState { effective: retained, permitted: retained, inheritable };
    state.set_current().map_err(&system)?;
    ambient::clear().map_err(&system)?;
    for cap in inheritable {
        ambient::raise(cap).map_err(&system)?;
    }
    prctl::set_no_new_privs().map_err(&system)
}

/// Forbids this thread all files except those below the paths of `rules`. Paths that do not exist are left out.
fn restrict<'a>(
    rules: impl IntoIterator<Item = (&'a Path, BitFlags<AccessFs>)>,
) -> Result<RulesetStatus, ConfineError> {
    let restrict = || {
        let ruleset =
            Ruleset::default().handle_access(AccessFs::from_all(HANDLED))?.scope(Scope::Signal)?;
        let mut ruleset = ruleset.create()?;
        for (path, access) in rules {
            let Ok(file) = PathFd::new(path) else { continue };
            // The kernel refuses rights of directories for a file.
            let access = if path.is_dir() { access } else { access & AccessFs::from_file(HANDLED) };
            ruleset = ruleset.add_rule(PathBeneath::new(file, access))?;
        }
        Ok(ruleset.restrict_self()?.ruleset)
    };
    restrict().map_err(|error: RulesetError| failed("landlock")(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let text = "root:x:0:0:root:/root:/bin/sh\nftp:x:7:8::/:\nftp-alg:x:998:997::/:\nbad:x\n";
        let found = Account::find(text, "ftp-alg");
        assert_eq!(found, Some(Account { name: "ftp-alg".into(), uid: 998, gid: 997 }));
        for absent in ["ftp-al", "bad", "", "x"] {
            assert_eq!(Account::find(text, absent), None, "{absent}");
        }
    }
}
