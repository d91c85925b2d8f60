//! The directory in a BPF file system that has the pinned program, maps and links, so that they stay in the kernel
//! when the daemon ends.
//!
//! There is one directory for each network namespace and version of the program. A daemon locks the one that it uses.
//! This module does not know what is in the maps.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, Mode, OFlags, StatFs, flock, major, minor, open, statfs};

use super::{FastPathUnavailable, syscall};

/// From linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Name of the program, and of its pin. It is pinned last.
pub(super) const PROGRAM_NAME: &str = "inspect";
/// Start of the name of a pinned link. The interface's index follows.
const LINK_PREFIX: &str = "link-";

/// How long to wait for the lock. An earlier daemon that is about to end may still hold it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// How often to create the root directory, if other daemons remove it meanwhile.
const ATTEMPTS: usize = 10;

/// The directory of one network namespace and program version.
#[derive(Clone, Debug)]
pub(super) struct PinDirectory {
    directory: PathBuf,
}

/// The pinned link of an interface.
#[derive(Debug)]
pub(super) struct PinnedLink {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
}

impl PinDirectory {
    /// The directory of this thread's namespace and of this `version` below `root`. Removes those of other versions.
    pub(super) fn open(root: &Path, version: u32) -> Result<Self, FastPathUnavailable> {
        create_root(root)?;
        let namespace = syscall::namespace_cookie().map_err(|error| {
            FastPathUnavailable::from_io_error("read the cookie of the network namespace", &error)
        })?;
        let name = format!("{namespace:x}-{version:08x}");
        Self::remove_other_versions(root, namespace, &name).map_err(|error| {
            let what = format!("remove other versions from {}", root.display());
            FastPathUnavailable::from_io_error(&what, &error)
        })?;
        let own = Self { directory: root.join(name) };
        own.remove_abandoned(root);
        Ok(own)
    }

    /// Removes the directories of killed daemons whose namespaces do not exist any more. The kernel has detached the
    /// links of such a directory, because the interfaces are gone. A directory that cannot be removed stays.
    fn remove_abandoned(&self, root: &Path) {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let pins = Self { directory: entry.path() };
            let is_detached = |link: &PinnedLink| {
                syscall::attached_interface(link.fd.as_fd()).is_ok_and(|index| index == 0)
            };
            if pins.directory != self.directory
                && pins.pin_path(PROGRAM_NAME).exists()
                && let Ok(_lock) = pins.try_lock()
                && pins.links().is_ok_and(|links| links.iter().all(is_detached))
                && let Err(error) = pins.remove()
            {
                tracing::debug!("cannot remove {}: {error}", pins.directory.display());
            }
        }
    }

    /// Removes the directories of all versions for this thread's namespace below `root`. An error if a daemon uses one.
    pub(super) fn remove_all(root: &Path) -> io::Result<()> {
        if root.is_dir() {
            Self::remove_other_versions(root, syscall::namespace_cookie()?, "")?;
            // This fails if other namespaces have directories there, or another user owns it.
            let _ = fs::remove_dir(root);
        }
        Ok(())
    }

    fn remove_other_versions(root: &Path, namespace: u64, name: &str) -> io::Result<()> {
        for other in Self::list_for_namespace(root, namespace)? {
            if other.directory != root.join(name) {
                let _lock = other.lock()?;
                other.remove()?;
            }
        }
        Ok(())
    }

    /// Whether there is a directory of any version for this thread's namespace below `root`.
    pub(super) fn exists_for_namespace(root: &Path) -> io::Result<bool> {
        Ok(!Self::list_for_namespace(root, syscall::namespace_cookie()?)?.is_empty())
    }

    /// The directories of all versions for a namespace.
    fn list_for_namespace(root: &Path, namespace: u64) -> io::Result<Vec<Self>> {
        let prefix = format!("{namespace:x}-");
        let mut found = Vec::new();
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                found.push(Self { directory: entry.path() });
            }
        }
        Ok(found)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn pin_path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Locks the directory at the path. An error if another process holds the lock, or has just removed the directory.
    fn try_lock(&self) -> io::Result<File> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = File::from(open(&self.directory, flags, Mode::empty())?);
        flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
        // The lock of a removed directory does not exclude who uses another one of this name.
        let (locked, current) = (directory.metadata()?, fs::symlink_metadata(&self.directory)?);
        if (locked.dev(), locked.ino()) == (current.dev(), current.ino()) {
            Ok(directory)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    /// Locks the directory as long as the returned file is open. An error if another daemon holds the lock and does
    /// not end.
    pub(super) fn lock(&self) -> io::Result<File> {
        wait_for_lock(|| self.try_lock())
    }

    /// Creates the directory and locks it. Empties an existing one.
    pub(super) fn create(&self) -> io::Result<File> {
        match DirBuilder::new().mode(0o700).create(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let lock = self.lock()?;
                self.empty()?;
                Ok(lock)
            }
            created => created.and_then(|()| self.lock()),
        }
    }

    /// The path of an interface's link.
    pub(super) fn link_path(&self, interface: u32) -> PathBuf {
        self.pin_path(&format!("{LINK_PREFIX}{interface}"))
    }

    /// The pinned links, whether they are attached or not.
    pub(super) fn links(&self) -> io::Result<Vec<PinnedLink>> {
        let mut links = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(LINK_PREFIX) {
                let path = entry.path();
                links.push(PinnedLink { fd: syscall::open_pinned(&path)?, path });
            }
        }
        Ok(links)
    }

    /// Detaches the links, even if another process has them open, and removes the directory with all its pins. It
    /// need not exist.
    pub(super) fn remove(&self) -> io::Result<()> {
        ignore_not_found(self.empty())?;
        ignore_not_found(fs::remove_dir(&self.directory))
    }

    /// Detaches the links, even if another process has them open, and removes all pins.
    fn empty(&self) -> io::Result<()> {
        for link in self.links()? {
            link.remove()?;
        }
        for entry in fs::read_dir(&self.directory)? {
            ignore_not_found(fs::remove_file(entry?.path()))?;
        }
        Ok(())
    }

    /// Whether the pins outlive this process: not if the BPF file system is in a mount namespace of its own, as after
    /// `ip netns exec` or `unshare --mount`. Looks for an ancestor that has not mounted it, or that hides its mounts.
    pub(super) fn is_lasting(&self) -> io::Result<bool> {
        let own = fs::metadata(&self.directory)?.dev();
        let mut process = "self".to_owned();
        while let Some(parent) = parent_of(&process) {
            // Unlike its root directory, another process's mounts may be read without the right to trace it.
            let mounts = fs::read(format!("/proc/{parent}/mountinfo")).unwrap_or_default();
            if !is_mounted(own, &String::from_utf8_lossy(&mounts)) {
                return Ok(false);
            }
            process = parent;
        }
        Ok(true)
    }

    /// Removes the parent directory, if it is empty.
    pub(super) fn remove_root(&self) {
        // This fails if other namespaces have directories there, or another user owns it.
        let _ = self.directory.parent().map(fs::remove_dir);
    }
}

impl PinnedLink {
    /// Detaches the link, even if another process has it open, and removes its pin.
    pub(super) fn remove(&self) -> io::Result<()> {
        // The link of an interface that is gone is detached already (ENOLINK).
        let detached = syscall::detach_link(self.fd.as_fd());
        ignore_not_found(fs::remove_file(&self.path))?;
        match detached {
            Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => Err(error),
            _ => Ok(()),
        }
    }
}

fn ignore_not_found(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The parent of a process; `None` if it has none here.
fn parent_of(process: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The command's name, in parentheses, may have blanks and parentheses itself.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(1).filter(|parent| *parent != "0").map(str::to_owned)
}

/// Whether the file system `device` is among `mounts`. Their third field is the device (proc_pid_mountinfo(5)).
fn is_mounted(device: u64, mounts: &str) -> bool {
    let device = format!("{}:{}", major(device), minor(device));
    mounts.lines().any(|mount| mount.split(' ').nth(2) == Some(&device))
}

/// Locks the network namespace of this thread for one daemon, as long as the returned file is open.
pub(super) fn lock_namespace() -> io::Result<File> {
    wait_for_lock(|| {
        let namespace = File::open("/proc/thread-self/ns/net")?;
        flock(&namespace, FlockOperation::NonBlockingLockExclusive)?;
        Ok(namespace)
    })
}

/// Repeats `try_lock` as long as another daemon that may be about to end holds the lock.
fn wait_for_lock(try_lock: impl Fn() -> io::Result<File>) -> io::Result<File> {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match try_lock() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            Err(_) => {
                let text = "in use by another ftp-alg";
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
            locked => return locked,
        }
    }
}

fn create_root(root: &Path) -> Result<(), FastPathUnavailable> {
    let ancestor = root.ancestors().find(|path| path.exists()).unwrap_or(root);
    let found = statfs(ancestor).map_err(|error| {
        FastPathUnavailable::from_io_error(
            &format!("examine {}", ancestor.display()),
            &error.into(),
        )
    })?;
    if !is_bpf_file_system(&found) {
        return Err(FastPathUnavailable(format!("{} is not in a BPF file system", root.display())));
    }
    let create = || DirBuilder::new().recursive(true).mode(0o700).create(root);
    let mut created = create();
    // A daemon of another namespace may remove the directory meanwhile, if it was the last one there.
    for _ in 1..ATTEMPTS {
        if created.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
            created = create();
        }
    }
    created.map_err(|error| {
        FastPathUnavailable::from_io_error(&format!("create {}", root.display()), &error)
    })
}

/// Whether this is a BPF file system.
pub fn is_bpf_file_system(found: &StatFs) -> bool {
    u64::from(found.f_type.cast_unsigned() as u32) == BPF_FS_MAGIC
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_found_among_the_mounts_of_a_process() {
        let device = fs::metadata("/proc").unwrap().dev();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(is_mounted(device, &mounts), "{device} {mounts}");
        let others: Vec<_> = mounts.lines().filter(|mount| !is_mounted(device, mount)).collect();
        assert!(!is_mounted(device, &others.join("\n")) && !is_mounted(device, ""));
    }
}
