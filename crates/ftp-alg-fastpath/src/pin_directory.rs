//! The directory in a BPF file system that has the pinned program, maps and links, so that they stay in the kernel
//! when the daemon ends.
//!
//! There is one directory for each network namespace and version of the program, below one root. A daemon locks the
//! one that it uses. Any user may make files in a BPF file system, and the daemon may be root. So everything is reached
//! from descriptors of directories that belong to the daemon's user, and that no other user may change.
//! This module does not know what is in the maps.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, StatFs, flock, fstatfs, major, minor,
        mkdirat, openat, statat, unlinkat,
    },
    io::Errno,
};

use super::{FastPathUnavailable, OrUnavailable as _, syscall};

/// From linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Name of the program, and of its pin. It is pinned last.
pub(crate) const PROGRAM_NAME: &str = "inspect";
/// Start of the name of a pinned link. The interface's index follows.
const LINK_PREFIX: &str = "link-";

/// How long to wait for the lock. An earlier daemon that is about to end may still hold it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// How often to create a directory, if other daemons remove it meanwhile.
const ATTEMPTS: usize = 10;

/// The directory with those of all network namespaces.
#[derive(Debug)]
struct Root {
    directory: File,
    path: PathBuf,
}

/// The directory of one network namespace and program version. It is locked as long as this or a clone exists.
#[derive(Clone, Debug)]
pub(crate) struct PinDirectory {
    directory: Arc<File>,
    root: Arc<Root>,
    name: String,
    path: PathBuf,
}

/// The pinned link of an interface.
#[derive(Debug)]
pub(crate) struct PinnedLink {
    pub(crate) fd: OwnedFd,
    pub(crate) name: String,
    pub(crate) pins: PinDirectory,
}

impl Root {
    fn open(path: &Path) -> io::Result<Arc<Self>> {
        // The daemon names an open directory by a link below /proc/self/fd.
        let directory = open_own(CWD, path, OFlags::empty())?;
        Ok(Arc::new(Self { directory, path: path.to_owned() }))
    }

    fn create(path: &Path) -> Result<Arc<Self>, FastPathUnavailable> {
        let ancestor = path.ancestors().find(|path| path.exists()).unwrap_or(path);
        let found = openat(CWD, ancestor, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .and_then(fstatfs)
            .map_err(io::Error::from)
            .or_unavailable(format_args!("examine {}", ancestor.display()))?;
        if !is_bpf_file_system(&found) {
            let text = format!("{} is not in a BPF file system", path.display());
            return Err(FastPathUnavailable(text));
        }
        let create = || {
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            Self::open(path)
        };
        // The unit of another namespace removes the directory when it has ended, if it is empty.
        let is_gone = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound)
        };
        repeat_while(is_gone, create).or_unavailable(format_args!("create {}", path.display()))
    }
}

impl PinDirectory {
    /// Creates the directory of this thread's namespace and of this `version` below `root`, or opens the one that
    /// exists, and locks it. Removes those of other versions.
    pub(crate) fn open(root: &Path, version: u32) -> Result<Self, FastPathUnavailable> {
        let root = &Root::create(root)?;
        let namespace = syscall::namespace_cookie()
            .or_unavailable("read the cookie of the network namespace")?;
        let name = format!("{namespace:x}-{version:08x}");
        let what = format!("remove other versions from {}", root.path.display());
        Self::remove_other_versions(root, namespace, &name).or_unavailable(what)?;
        Self::remove_abandoned(root, &name);
        let path = root.path.join(&name);
        Self::create(root, &name).or_unavailable(format_args!("create {}", path.display()))
    }

    /// Removes the directories of killed daemons whose namespaces do not exist any more. The kernel has detached the
    /// links of such a directory, because the interfaces are gone. A directory that cannot be removed stays.
    fn remove_abandoned(root: &Arc<Root>, own: &str) {
        let is_detached = |link: &PinnedLink| {
            syscall::attached_interface(link.fd.as_fd()).is_ok_and(|index| index == 0)
        };
        for name in names(&root.directory, "").unwrap_or_default() {
            if name != own
                && let Ok(pins) = Self::try_lock(root, &name)
                && pins.has_program()
                && pins.links().is_ok_and(|links| links.iter().all(is_detached))
                && let Err(error) = pins.remove()
            {
                tracing::debug!("cannot remove {}: {error}", pins.path.display());
            }
        }
    }

    /// Removes the directories of all versions for this thread's namespace below `root`. An error if a daemon uses one,
    /// or if another user may change `root`. The root stays: a daemon of another namespace may be about to use it.
    pub(crate) fn remove_all(root: &Path) -> io::Result<()> {
        let root = match Root::open(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        Self::remove_other_versions(&root, syscall::namespace_cookie()?, "")
    }

    fn remove_other_versions(root: &Arc<Root>, namespace: u64, own: &str) -> io::Result<()> {
        for name in names(&root.directory, &prefix_of(namespace))? {
            if name != own {
                let other = wait_for_lock(|| Self::try_lock(root, &name));
                ignore_not_found(other.and_then(|other| other.remove()))?;
            }
        }
        Ok(())
    }

    /// Whether there is a directory of any version for this thread's namespace below `root`, of this user or another.
    pub(crate) fn exists_for_namespace(root: &Path) -> io::Result<bool> {
        let prefix = prefix_of(syscall::namespace_cookie()?);
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = File::from(openat(CWD, root, flags, Mode::empty())?);
        Ok(!names(&root, &prefix)?.is_empty())
    }

    /// Where the directory is, for messages. A process without rights to the root cannot use it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The open directory, through which the paths of pins lead.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// A path to a pin that leads through the open directory, whatever is at its place now.
    pub(crate) fn pin_path(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd()).into()
    }

    /// Whether the program is pinned. It is pinned last, so all maps are as well.
    pub(crate) fn has_program(&self) -> bool {
        statat(&*self.directory, PROGRAM_NAME, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// An error if another process holds the lock, or has just removed the directory.
    fn try_lock(root: &Arc<Root>, name: &str) -> io::Result<Self> {
        let directory = open_own(root.directory.as_fd(), Path::new(name), OFlags::NOFOLLOW)?;
        flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
        // The lock of a removed directory does not exclude who uses another one of this name.
        let current = statat(&root.directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let locked = directory.metadata()?;
        if (locked.dev(), locked.ino()) != (current.st_dev, current.st_ino) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (directory, root, path) = (Arc::new(directory), Arc::clone(root), root.path.join(name));
        Ok(Self { directory, root, name: name.to_owned(), path })
    }

    /// Creates the directory, unless it exists, and locks it.
    fn create(root: &Arc<Root>, name: &str) -> io::Result<Self> {
        let create = || match mkdirat(&root.directory, name, Mode::RWXU) {
            Err(error) if error != Errno::EXIST => Err(error.into()),
            _ => wait_for_lock(|| Self::try_lock(root, name)),
        };
        // A daemon of another namespace may remove it as abandoned.
        repeat_while(|error| error.kind() == io::ErrorKind::NotFound, create)
    }

    /// The name of an interface's link.
    pub(crate) fn link_name(interface: u32) -> String {
        format!("{LINK_PREFIX}{interface}")
    }

    /// The pinned links, whether they are attached or not.
    pub(crate) fn links(&self) -> io::Result<Vec<PinnedLink>> {
        let open = |name: String| {
            let fd = syscall::open_pinned(&self.pin_path(&name))?;
            Ok(PinnedLink { fd, name, pins: self.clone() })
        };
        names(&self.directory, LINK_PREFIX)?.into_iter().map(open).collect()
    }

    /// Removes a pin. It need not exist.
    pub(crate) fn unpin(&self, name: &str) -> io::Result<()> {
        ignore_not_found(unlinkat(&*self.directory, name, AtFlags::empty()).map_err(Into::into))
    }

    /// Detaches the links, even if another process has them open, and removes the directory with all its pins. It
    /// need not exist.
    pub(crate) fn remove(&self) -> io::Result<()> {
        self.empty()?;
        let removed = unlinkat(&self.root.directory, &*self.name, AtFlags::REMOVEDIR);
        ignore_not_found(removed.map_err(Into::into))
    }

    /// Detaches the links, even if another process has them open, and removes all pins.
    pub(crate) fn empty(&self) -> io::Result<()> {
        for link in ignore_not_found(self.links())? {
            link.remove()?;
        }
        for name in ignore_not_found(names(&self.directory, ""))? {
            self.unpin(&name)?;
        }
        Ok(())
    }

    /// Whether the pins outlive this process: not if the BPF file system is in a mount namespace of its own, as after
    /// `ip netns exec` or `unshare --mount`. Looks for an ancestor that has not mounted it, or that hides its mounts.
    pub(crate) fn is_lasting(&self) -> io::Result<bool> {
        let own = self.directory.metadata()?.dev();
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
}

impl PinnedLink {
    /// Detaches the link, even if another process has it open, and removes its pin.
    pub(crate) fn remove(&self) -> io::Result<()> {
        // The link of an interface that is gone is detached already (ENOLINK).
        let detached = syscall::detach_link(self.fd.as_fd());
        self.pins.unpin(&self.name)?;
        match detached {
            Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => Err(error),
            _ => Ok(()),
        }
    }
}

/// Opens a directory that belongs to this process's user. An error if another user may change it.
fn open_own(at: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = File::from(openat(at, path, flags, Mode::empty())?);
    let found = directory.metadata()?;
    if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(directory)
}

/// The names in a directory that start with `prefix`.
fn names(directory: &File, prefix: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) && name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Start of the names of a namespace's directories.
fn prefix_of(namespace: u64) -> String {
    format!("{namespace:x}-")
}

/// Tries several times, as long as `is_passing` says so of the error.
fn repeat_while<T>(
    is_passing: impl Fn(&io::Error) -> bool,
    attempt: impl Fn() -> io::Result<T>,
) -> io::Result<T> {
    let mut done = attempt();
    for _ in 1..ATTEMPTS {
        if done.as_ref().is_err_and(&is_passing) {
            done = attempt();
        }
    }
    done
}

fn ignore_not_found<T: Default>(done: io::Result<T>) -> io::Result<T> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
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
pub(crate) fn lock_namespace() -> io::Result<File> {
    wait_for_lock(|| {
        let namespace = File::open("/proc/thread-self/ns/net")?;
        flock(&namespace, FlockOperation::NonBlockingLockExclusive)?;
        Ok(namespace)
    })
}

/// Repeats `try_lock` as long as another daemon that may be about to end holds the lock.
fn wait_for_lock<T>(try_lock: impl Fn() -> io::Result<T>) -> io::Result<T> {
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
