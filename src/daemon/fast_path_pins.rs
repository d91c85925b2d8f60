//! The directory in which the fast path's program, maps and links are pinned, so that they outlive the daemon.
//!
//! systemd mounts the BPF file system for root only (mode 0700). So the daemon opens the directory before it gives up
//! its rights, and reaches the pins through `/proc/self/fd`. It loads the program after it has become its own user, so
//! the pins belong to that user. A daemon that was never root, as under systemd's unit, finds a BPF file system in its
//! state directory, where the service manager has mounted one.

use std::{
    fmt::Display,
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, fchown},
    },
    path::{Path, PathBuf},
};

use ftp_alg_fastpath::{FastPath, FastPathUnavailable, HAS_PROGRAM};
use rustix::{
    fs::{Mode, OFlags, StatFs, fstatfs, mkdirat, open, openat, statfs},
    io::Errno,
};

use super::{confine::Account, snapshot::FastPathStatus};
use crate::{config, kernel::offload::list_interfaces};

/// The directory of root's pins, with one directory for each network namespace; and with one for each other user.
pub const DIRECTORY: &str = "/sys/fs/bpf/ftp-alg";

/// Start of the name of another user's directory. The user's number follows.
const USER: &str = "user-";

/// The name in the state directory at which a BPF file system may be mounted.
const STATE_DIR_MOUNT: &str = "bpf";

/// The open directory, which belongs to the daemon's user.
#[derive(Debug)]
pub(super) struct FastPathPins(File);

/// Why this build, or the configuration, turns the fast path off, if it does.
pub(crate) fn off_reason(fast_path: config::FastPathMode) -> Option<&'static str> {
    match fast_path {
        config::FastPathMode::Off => Some(FastPathStatus::OFF_BY_CONFIGURATION),
        config::FastPathMode::OffInPair => Some(FastPathStatus::OFF_IN_PAIR),
        config::FastPathMode::Auto if !HAS_PROGRAM => Some(FastPathUnavailable::NOT_BUILT),
        config::FastPathMode::Auto => None,
    }
}

impl FastPathPins {
    /// Whether an earlier daemon of this network namespace left pins.
    pub(super) fn has_leftovers(state_dir: &Path, account: Option<&Account>) -> bool {
        ftp_alg_fastpath::has_leftovers(&pin_path(state_dir, account), list_interfaces)
    }

    /// Opens the directory for `account`, and makes it if it is absent. The error says why this failed, and what to do.
    pub(super) fn open_or_create(
        state_dir: &Path,
        account: Option<&Account>,
    ) -> Result<Self, String> {
        let path = &pin_path(state_dir, account);
        let root = Path::new(DIRECTORY);
        if let Some(other) = pins_of_another_user(path) {
            return Err(format!(
                "{}: another user's ftp-alg left its program in this network namespace: remove it",
                other.display()
            ));
        }
        if path == root || !path.starts_with(root) {
            return open_directory(&open_parent(path)?, path, account).map(Self);
        }
        let parent = open_directory(&open_parent(root)?, root, None)?;
        open_directory(&parent, path, account).map(Self)
    }

    /// Removes the pins of an earlier daemon. Called if this daemon has no fast path.
    pub(super) fn remove_leftovers(state_dir: &Path, account: Option<&Account>) {
        let path = pin_path(state_dir, account);
        // Another user's pins are left alone.
        if let Err(error) = ftp_alg_fastpath::remove_leftovers(&path, list_interfaces)
            && error.kind() != io::ErrorKind::PermissionDenied
        {
            log_not_removed(&path, &error);
        }
    }

    /// A path to the directory that needs no right to the directories above it.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// The directory above `path`.
fn open_parent(path: &Path) -> Result<File, String> {
    let parent = path.parent().unwrap_or(path);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = open(parent, flags, Mode::empty());
    opened.map(File::from).map_err(|error| failed(parent, error.into()))
}

fn failed(path: &Path, error: io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// Opens the directory `path` of the BPF file system, in its open `parent`, and makes it for `account` if it is absent.
fn open_directory(parent: &File, path: &Path, account: Option<&Account>) -> Result<File, String> {
    let name = path.file_name().unwrap_or_default();
    let may_make = has_bpf(fstatfs(parent));
    if !may_make && !has_bpf(statfs(path)) {
        return Err(missing_bpf_fs(path.parent().unwrap_or(path)));
    }
    let is_new = may_make
        && match mkdirat(parent, name, Mode::RWXU) {
            Err(error) if error != Errno::EXIST => return Err(failed(path, error.into())),
            made => made.is_ok(),
        };
    // Any user may make files in the BPF file system. A link of another user is not followed.
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match openat(parent, name, flags, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return Err(format!("{} is not a directory: remove it", path.display()));
        }
        opened => File::from(opened.map_err(|error| failed(path, error.into()))?),
    };
    let failed = |error| failed(path, error);
    if is_new && let Some(account) = account {
        fchown(&directory, Some(account.uid), Some(account.gid)).map_err(failed)?;
    }
    let user = account.map_or_else(|| rustix::process::geteuid().as_raw(), |own| own.uid);
    let owner = directory.metadata().map_err(failed)?.uid();
    if owner != user {
        return Err(format!(
            "the pin directory {} belongs to user {owner}, but the daemon runs as user {user}: remove it",
            path.display()
        ));
    }
    if has_bpf(fstatfs(&directory)) { Ok(directory) } else { Err(missing_bpf_fs(path)) }
}

/// The program, loaded or being loaded, and not in use yet. Dropping this removes the program. A program that an earlier
/// daemon left attached stays, for the next daemon.
#[derive(Debug)]
pub(super) struct LoadedProgram {
    program: Option<FastPath>,
    pins: FastPathPins,
}

impl LoadedProgram {
    /// Begins to load the program, or takes over the one that an earlier daemon left. Only for a process with one thread.
    pub(super) fn begin_loading(pins: FastPathPins) -> Result<Self, FastPathUnavailable> {
        let program = FastPath::begin_loading(&pins.path(), list_interfaces)?;
        Ok(Self { program: Some(program), pins })
    }

    pub(super) fn pins(&self) -> &FastPathPins {
        &self.pins
    }

    /// Takes the program, which then stays until [`FastPath::remove`].
    pub(super) fn take_program(&mut self) -> Option<FastPath> {
        self.program.take()
    }
}

impl Drop for LoadedProgram {
    fn drop(&mut self) {
        self.program.iter().filter(|program| !program.is_attached()).for_each(remove);
    }
}

fn remove(program: &FastPath) {
    if let Err(error) = program.remove() {
        log_not_removed(program.directory(), &error);
    }
}

fn log_not_removed(path: &Path, error: &dyn Display) {
    log_event!(
        FAST_PATH_NOT_REMOVED,
        path = %path.display(),
        "fast path not removed: {}: {error}; remove that directory when no ftp-alg runs",
        path.display()
    );
}

/// The pin directory: in the state directory if a BPF file system is mounted there. Each user has one, because daemons of
/// other network namespaces may use the same file system.
fn pin_path(state_dir: &Path, account: Option<&Account>) -> PathBuf {
    let mounted = state_dir.join(STATE_DIR_MOUNT);
    match account {
        _ if has_bpf(statfs(&mounted)) => mounted,
        Some(account) if account.uid != 0 => {
            Path::new(DIRECTORY).join(format!("{USER}{}", account.uid))
        }
        _ => DIRECTORY.into(),
    }
}

/// A directory of another user with pins for this network namespace, if this process may see it.
fn pins_of_another_user(own: &Path) -> Option<PathBuf> {
    let of_users = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let of_users = of_users.filter(|entry| entry.file_name().to_string_lossy().starts_with(USER));
    let all = of_users.map(|entry| entry.path()).chain([DIRECTORY.into()]);
    let inode = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    // The service manager may have mounted one in the state directory.
    let others = all.filter(|directory| inode(directory) != inode(own));
    others.into_iter().find(|directory| ftp_alg_fastpath::has_pins(directory))
}

/// Whether a path's file system is a BPF file system.
fn has_bpf(found: rustix::io::Result<StatFs>) -> bool {
    found.is_ok_and(|found| ftp_alg_fastpath::is_bpf_file_system(&found))
}

/// The error if there is no BPF file system at `path`.
fn missing_bpf_fs(path: &Path) -> String {
    format!("no BPF file system at {0}: mount -t bpf -o mode=0700 bpf /sys/fs/bpf", path.display())
}
