//! The directory in which the fast path's program, maps and links are pinned, so that they outlive the daemon.
//!
//! The BPF file system is root's alone as systemd mounts it (mode 0700). So the directory is opened before rights are given
//! up, and what is in it is named through `/proc/self/fd`. The program is loaded when the daemon has become its user, to whom
//! all that is pinned then belongs. A daemon that was never root, as that of the unit, finds it in its
//! state directory, where the service manager has mounted it.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, MetadataExt, chown},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{StatFs, fstatfs, statfs};

use super::{confine::Account, snapshot::FastPathStatus};
use crate::{
    config,
    gateway::{
        Backend,
        fastpath::{self, FastPath, FastPathUnavailable},
    },
};

/// Where it is. One directory below it is for each network namespace.
pub const DIRECTORY: &str = "/sys/fs/bpf/ftp-alg";

/// Where it may be mounted in the state directory.
const STATE_DIR_MOUNT: &str = "bpf";

/// Why the fast path is off with that back end.
const OFF_BY_CONNTRACK: &str = "back end conntrack: it needs nftables";

/// The directory, which belongs to the daemon's user.
#[derive(Debug)]
pub(super) struct FastPathPins(File);

/// Why the fast path is off as it is configured, if it is.
pub(super) fn off_reason(
    fast_path: config::FastPath,
    backend: Option<Backend>,
) -> Option<&'static str> {
    match (fast_path, backend) {
        (config::FastPath::Off, _) => Some(FastPathStatus::OFF_BY_CONFIGURATION),
        (config::FastPath::Auto, Some(Backend::Conntrack)) => Some(OFF_BY_CONNTRACK),
        (config::FastPath::Auto, _) => None,
    }
}

impl FastPathPins {
    /// Whether another daemon left something in it that concerns this one.
    pub(super) fn has_leftovers(state_dir: &Path) -> bool {
        fastpath::has_pinned_state(&pin_path(state_dir))
    }

    /// Opens it for `account`, makes it if it is absent. The error says why not, and what to do.
    pub(super) fn open_or_create(
        state_dir: &Path,
        account: Option<&Account>,
    ) -> Result<Self, String> {
        let path = &pin_path(state_dir);
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        if !path.is_dir() {
            let parent = path.parent().unwrap_or(path);
            if !has_bpf(statfs(parent)) {
                return Err(missing_bpf_fs(parent));
            }
            DirBuilder::new().mode(0o700).create(path).map_err(failed)?;
            if let Some(account) = account {
                chown(path, Some(account.uid), Some(account.gid)).map_err(failed)?;
            }
        }
        let user = account.map_or_else(|| rustix::process::geteuid().as_raw(), |own| own.uid);
        let owner = fs::metadata(path).map_err(failed)?.uid();
        if owner != user {
            return Err(format!(
                "{} belongs to user {owner}, but the daemon runs as user {user}: remove it",
                path.display()
            ));
        }
        let directory = File::open(path).map_err(failed)?;
        if has_bpf(fstatfs(&directory)) { Ok(Self(directory)) } else { Err(missing_bpf_fs(path)) }
    }

    /// Removes what a daemon left that had a fast path, as this one has none.
    pub(super) fn remove_leftovers(state_dir: &Path) {
        let path = pin_path(state_dir);
        // What another user left is that one's.
        if let Err(error) = fastpath::remove_pinned_state(&path)
            && error.kind() != io::ErrorKind::PermissionDenied
        {
            tracing::warn!(
                "{}: the fast path that was left is not removed: {error}",
                path.display()
            );
        }
    }

    /// A path of it that works without a right to the directories above it.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// The program, loaded, and not in use yet. Dropped, it is removed, unless another daemon left it attached: then the next
/// one may take it over.
#[derive(Debug)]
pub(super) struct LoadedProgram {
    program: Option<FastPath>,
    pins: FastPathPins,
}

impl LoadedProgram {
    /// Loads it, or takes over the one that another daemon left.
    pub(super) fn load(pins: FastPathPins) -> Result<Self, FastPathUnavailable> {
        let program = FastPath::load(&pins.path())?;
        Ok(Self { program: Some(program), pins })
    }

    pub(super) fn pins(&self) -> &FastPathPins {
        &self.pins
    }

    /// The program, which from now on stays until it is removed.
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
        tracing::warn!("{}: the fast path is not removed: {error}", program.directory().display());
    }
}

fn pin_path(state_dir: &Path) -> PathBuf {
    let mounted = state_dir.join(STATE_DIR_MOUNT);
    if has_bpf(statfs(&mounted)) { mounted } else { DIRECTORY.into() }
}

/// Whether a place is in a BPF file system.
fn has_bpf(place: rustix::io::Result<StatFs>) -> bool {
    place.is_ok_and(|place| fastpath::is_bpf_file_system(&place))
}

/// Why nothing can be pinned at `path`.
fn missing_bpf_fs(path: &Path) -> String {
    format!("no BPF file system at {0}: mount -t bpf bpf /sys/fs/bpf", path.display())
}
