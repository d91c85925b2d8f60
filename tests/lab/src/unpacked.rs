//! Programs that `packaging/provision` unpacks below a cache and does not install, because some of their packages conflict
//! with each other, and installing one would start its service on the machine.

use std::{fs, path::PathBuf, process::Command};

use super::{Host, LabError, Result, process::find_program};

/// The directory with the unpacked packages.
pub(super) fn cache() -> PathBuf {
    let cache = std::env::var_os("FTP_ALG_LAB_CACHE")
        .map_or_else(|| PathBuf::from("/var/cache/ftp-alg-lab"), PathBuf::from);
    cache.join("root")
}

/// The directories of unpacked libraries, for `LD_LIBRARY_PATH`.
fn library_path() -> String {
    let directories = ["usr/lib", "lib"].map(|name| fs::read_dir(cache().join(name)));
    let entries = directories.into_iter().flatten().flatten().flatten();
    let paths = entries.map(|entry| entry.path().to_string_lossy().into_owned());
    paths.filter(|path| path.ends_with("-linux-gnu")).collect::<Vec<_>>().join(":")
}

/// Lets an unpacked program find the libraries that are unpacked with it.
pub(super) fn with_libraries(command: &mut Command) {
    command.env("LD_LIBRARY_PATH", library_path());
    command.env("PYTHONPATH", cache().join("usr/lib/python3/dist-packages"));
}

/// Lets a shell find all unpacked programs, behind the installed ones, with their libraries.
pub fn with_programs(command: &mut Command) {
    let unpacked = ["usr/sbin", "usr/bin"].map(|at| cache().join(at).display().to_string());
    command.env("PATH", format!("/usr/sbin:/usr/bin:/sbin:/bin:{}", unpacked.join(":")));
    with_libraries(command);
}

/// An unpacked program, or an installed one.
#[derive(Clone, Debug)]
pub struct UnpackedProgram(PathBuf);

impl UnpackedProgram {
    /// Finds a program, which is in this package.
    pub fn find(name: &str, package: &str) -> Result<Self> {
        let unpacked = ["usr/sbin", "usr/bin"].map(|at| cache().join(at).join(name));
        let path = unpacked.into_iter().find(|path| path.exists()).or_else(|| find_program(name));
        path.map(Self).ok_or_else(|| LabError::Missing(format!("{name} (package {package})")))
    }

    /// A command that runs it on `host`.
    pub fn command(&self, host: &Host) -> Command {
        let mut command = host.command(&self.0);
        with_libraries(&mut command);
        command
    }

    /// The beginning of a command line that runs it.
    pub fn words(&self) -> String {
        format!("env LD_LIBRARY_PATH={} {}", library_path(), self.0.display())
    }
}
