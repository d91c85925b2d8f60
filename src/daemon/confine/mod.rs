//! What the daemon gives up before the first packet: all rights that it does not need, for good.
//!
//! It keeps two capabilities, its state directory, and the system calls of its work, and where the fast path runs its
//! pins; it cannot start a program or take rights back. What it needs done beyond that its broker does
//! ([`crate::gateway::broker`]), which may read and run programs, but write nothing; those may
//! read what programs need, and no file besides.
//!
//! Two steps: [`user`] gives up all but the capabilities, [`daemon`] the rest. In between the fast path is loaded, by the
//! user to whom it then belongs. All of this holds for the calling thread and those that it starts, so it comes before any
//! thread.
//! docs/security.md says what is left, and why.

mod account;
mod syscalls;

use std::{io, path::Path};

use capctl::{Cap, CapSet, CapState, ambient, bounding, caps::cap_set_ids, prctl};
use landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};

pub use account::{Account, AccountError};

/// The kernel's edge needs these: netlink and marks, raw sockets.
const NEEDED: [Cap; 2] = [Cap::NET_ADMIN, Cap::NET_RAW];

/// The fast path's program needs these as well while it is loaded: the verifier refuses code that compilers make of it
/// without CAP_PERFMON ("attempt to corrupt spilled pointer on stack"). Once it is loaded, neither is needed.
const NEEDED_TO_LOAD: [Cap; 2] = [Cap::BPF, Cap::PERFMON];

/// What landlock forbids unless it is allowed, with [`Scope::Signal`], as far as the kernel knows it.
/// What Linux 5.13 does not know yet (truncation by name, signals, ioctl) seccomp forbids as well.
const HANDLED: ABI = ABI::V5;
const NO_LANDLOCK: &str = "landlock: not in this kernel, or not enabled (lsm= on its command line); \
                           files are protected by their permissions only";

/// Where programs and their libraries are.
const PROGRAMS: [&str; 9] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/nix", "/gnu"];
/// What programs read: how to load and translate names, and what the kernel shows.
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

/// Why rights could not be given up. Nothing goes on then.
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

/// Becomes `account`, with the daemon's capabilities and those that load the fast path's program: [`daemon`] is to follow.
pub fn become_user(account: Option<&Account>) -> Result<(), ConfineError> {
    restrict_capabilities(account, &NEEDED_TO_LOAD, false)
}

/// Confines the daemon: from now on it reads `/proc`, has files in `state_dir`, and makes and removes
/// sockets in `socket_dir`. With `pins`, the directory of the fast path's pins, it may use BPF maps, attach the program that
/// is loaded, and make and remove pins. Gives what this kernel cannot confine, a line each, for people.
pub fn confine_daemon(
    state_dir: &Path,
    socket_dir: &Path,
    pins: Option<&Path>,
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
    let rules = [
        (Path::new("/proc"), AccessFs::ReadFile | AccessFs::ReadDir),
        (state_dir, state),
        (socket_dir, AccessFs::MakeSock | AccessFs::RemoveFile),
    ];
    let status = restrict(rules.into_iter().chain(pinned))?;
    let landlock = (status == RulesetStatus::NotEnforced).then(|| NO_LANDLOCK.to_owned());
    // Not every kernel has it, and not for every processor is there a filter.
    let seccomp = syscalls::restrict(pins.is_some()).err();
    let seccomp =
        seccomp.map(|error| format!("seccomp: {error}; every system call stays possible"));
    Ok(landlock.into_iter().chain(seccomp).collect())
}

/// Confines the broker: it reads and runs what it may, and changes no file.
pub fn confine_broker(account: Option<&Account>) -> Result<(), ConfineError> {
    restrict_capabilities(account, &[], true)?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute;
    restrict([(Path::new("/"), read), (Path::new("/dev/null"), AccessFs::WriteFile.into())])?;
    Ok(())
}

/// Confines the broker's thread that will start a program to what such programs read: their
/// input, which is the daemon's, may name files.
pub fn confine_program() -> io::Result<()> {
    let run = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let rules = PROGRAMS.map(|place| (Path::new(place), run)).into_iter();
    let rules = rules.chain(PROGRAMS_READ.map(|place| (Path::new(place), read)));
    let null = (Path::new("/dev/null"), AccessFs::ReadFile | AccessFs::WriteFile);
    restrict(rules.chain([null])).map(drop).map_err(io::Error::other)
}

/// Why landlock would do nothing here; `None` if it does.
pub fn landlock_missing() -> Option<&'static str> {
    // On a thread of its own, which ends with its confinement.
    let status = std::thread::spawn(|| restrict([])).join().ok().and_then(Result::ok);
    (status == Some(RulesetStatus::NotEnforced)).then_some(NO_LANDLOCK)
}

/// Becomes `account`, keeping the needed capabilities, and no other, now or later, but `more` until this is done again
/// without them; those that the process does not have are missed where they are needed. With `for_programs` a program
/// that is started has them, too.
fn restrict_capabilities(
    account: Option<&Account>,
    more: &[Cap],
    for_programs: bool,
) -> Result<(), ConfineError> {
    let system = failed("capabilities");
    let now = CapState::get_current().map_err(&system)?;
    let needed: CapSet = NEEDED.into_iter().filter(|cap| now.permitted.has(*cap)).collect();
    let more: CapSet = more.iter().copied().filter(|cap| now.permitted.has(*cap)).collect();
    let kept = needed | more;
    // Without CAP_SETPCAP, as in a unit, the bounding set is what it was made.
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
    let inheritable = if for_programs { kept } else { CapSet::empty() };
    let state = CapState { effective: kept, permitted: kept, inheritable };
    state.set_current().map_err(&system)?;
    ambient::clear().map_err(&system)?;
    for cap in inheritable {
        ambient::raise(cap).map_err(&system)?;
    }
    prctl::set_no_new_privs().map_err(&system)
}

/// Forbids this thread all files but those beneath these paths; one that is absent gives nothing.
fn restrict<'a>(
    rules: impl IntoIterator<Item = (&'a Path, BitFlags<AccessFs>)>,
) -> Result<RulesetStatus, ConfineError> {
    let restrict = || {
        let ruleset =
            Ruleset::default().handle_access(AccessFs::from_all(HANDLED))?.scope(Scope::Signal)?;
        let mut ruleset = ruleset.create()?;
        for (path, access) in rules {
            let Ok(file) = PathFd::new(path) else { continue };
            // Rights of a directory mean nothing for a file.
            let access = if path.is_dir() { access } else { access & AccessFs::from_file(HANDLED) };
            ruleset = ruleset.add_rule(PathBeneath::new(file, access))?;
        }
        Ok(ruleset.restrict_self()?.ruleset)
    };
    restrict().map_err(|error: RulesetError| failed("landlock")(error))
}
