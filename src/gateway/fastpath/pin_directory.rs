//! Where program, maps and links stay when the daemon ends: a directory in a bpf file system, for each network
//! namespace and version of the program.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, StatFs, flock, statfs};

use super::{FastPathUnavailable, syscall};

/// From linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The program's name; it is pinned last.
pub(super) const PROGRAM_NAME: &str = "judge";
/// What the name of a link begins with; the interface's number follows.
const LINK_PREFIX: &str = "link-";

/// How long a daemon that was told to end may still use its pins.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a directory is made at most that others remove.
const ATTEMPTS: usize = 10;

/// The directory of one namespace and version.
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
    /// That of this thread's namespace below `root`, for a program of this `version`. Removes what other
    /// versions left.
    pub(super) fn open(root: &Path, version: u32) -> Result<Self, FastPathUnavailable> {
        create_root(root)?;
        let namespace = syscall::namespace_cookie().map_err(|error| {
            FastPathUnavailable::from_io_error("number of the network namespace", &error)
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

    /// Removes what daemons left that were killed in namespaces which are gone, and with them all interfaces that the program was
    /// attached to. What cannot be removed stays.
    fn remove_abandoned(&self, root: &Path) {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let pins = Self { directory: entry.path() };
            let is_detached = |link: &PinnedLink| {
                syscall::attached_interface(link.fd.as_fd()).is_ok_and(|at| at == 0)
            };
            if pins.directory != self.directory
                && pins.pin_path(PROGRAM_NAME).exists()
                && let Ok(_used) = pins.try_lock()
                && pins.links().is_ok_and(|links| links.iter().all(is_detached))
                && let Err(error) = pins.remove()
            {
                tracing::debug!("{} is not removed: {error}", pins.directory.display());
            }
        }
    }

    /// Removes what any version left below `root` for this thread's namespace. An error if a daemon uses it.
    pub(super) fn remove_all(root: &Path) -> io::Result<()> {
        if root.is_dir() {
            Self::remove_other_versions(root, syscall::namespace_cookie()?, "")?;
            // It is in use, or somebody else's.
            let _ = fs::remove_dir(root);
        }
        Ok(())
    }

    fn remove_other_versions(root: &Path, namespace: u64, name: &str) -> io::Result<()> {
        for others in Self::list_for_namespace(root, namespace)? {
            if others.directory != root.join(name) {
                let _used = others.lock()?;
                others.remove()?;
            }
        }
        Ok(())
    }

    /// Whether any version left something below `root` for this thread's namespace.
    pub(super) fn exists_for_namespace(root: &Path) -> io::Result<bool> {
        Ok(!Self::list_for_namespace(root, syscall::namespace_cookie()?)?.is_empty())
    }

    /// Those of all versions.
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

    fn try_lock(&self) -> io::Result<File> {
        let directory = File::open(&self.directory)?;
        flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
        Ok(directory)
    }

    /// Keeps other daemons from the directory for as long as the file is open. An error if one uses it.
    pub(super) fn lock(&self) -> io::Result<File> {
        let directory = File::open(&self.directory)?;
        let until = Instant::now() + LOCK_TIMEOUT;
        loop {
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(directory),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let text = "in use by another ftp-alg";
                    return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes the directory, in the place of one that is there.
    pub(super) fn create(&self) -> io::Result<()> {
        if self.directory.exists() {
            let _used = self.lock()?;
            self.remove()?;
        }
        DirBuilder::new().mode(0o700).create(&self.directory)
    }

    /// Where the link of an interface is.
    pub(super) fn link_path(&self, interface: u32) -> PathBuf {
        self.pin_path(&format!("{LINK_PREFIX}{interface}"))
    }

    /// The links that are pinned, whether they are attached or not.
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

    /// Detaches the links, whoever has them open, and removes the directory, if it is there, with all that is in it.
    pub(super) fn remove(&self) -> io::Result<()> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?.collect::<io::Result<Vec<_>>>()?,
        };
        for link in self.links()? {
            link.remove()?;
        }
        for entry in entries {
            ignore_not_found(fs::remove_file(entry.path()))?;
        }
        ignore_not_found(fs::remove_dir(&self.directory))
    }

    /// Removes the directory that those of all namespaces are in, if there are none.
    pub(super) fn remove_root(&self) {
        // It is in use, or somebody else's.
        let _ = self.directory.parent().map(fs::remove_dir);
    }
}

impl PinnedLink {
    /// Detaches it, whoever has it open, and removes its pin.
    pub(super) fn remove(&self) -> io::Result<()> {
        // It is detached with its interface.
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

fn create_root(root: &Path) -> Result<(), FastPathUnavailable> {
    let there = root.ancestors().find(|path| path.exists()).unwrap_or(root);
    let found = statfs(there).map_err(|error| {
        FastPathUnavailable::from_io_error(&format!("look at {}", there.display()), &error.into())
    })?;
    if !is_bpf_file_system(&found) {
        return Err(FastPathUnavailable(format!("{} is in no bpf file system", root.display())));
    }
    let make = || DirBuilder::new().recursive(true).mode(0o700).create(root);
    let mut made = make();
    // A daemon of another namespace may remove it meanwhile, as the last one there.
    for _ in 1..ATTEMPTS {
        if made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
            made = make();
        }
    }
    made.map_err(|error| {
        FastPathUnavailable::from_io_error(&format!("make {}", root.display()), &error)
    })
}

/// Whether this is a bpf file system.
pub fn is_bpf_file_system(found: &StatFs) -> bool {
    u64::from(found.f_type.cast_unsigned() as u32) == BPF_FS_MAGIC
}
