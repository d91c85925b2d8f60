//! Small FTP programs in Python, for behaviour that real software does not have.
//!
//! The scripts are part of the binary, because the demo needs some of them. They are written to the directory of the
//! lab.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{LabError, Result, process::find_program};

/// A script of the lab. The first lines of each script describe its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// A client that sends given lines with given segment boundaries and pauses, and accepts data connections.
    Client,
    /// A server that sends given replies, announces given ports and accepts lines in several segments.
    Server,
    /// ftplib: one operation with a given announcement command.
    Ftplib,
    /// Client or server of recorded dialogues.
    Dialogue,
    /// ftplib: many sessions at the same time, until a file exists.
    Load,
    /// ftplib: one transfer with a pause after the announcement.
    HeldClient,
    /// Sends many SYNs without completing the handshakes.
    Flood,
    /// Lists the open pinholes of the fast path.
    Pinholes,
    /// Starts pyftpdlib.
    Pyftpdlib,
    /// A cable between two tun interfaces.
    Tun,
}

impl Script {
    fn source(self) -> (&'static str, &'static str) {
        match self {
            Self::Client => ("client.py", include_str!("scripts/client.py")),
            Self::Server => ("server.py", include_str!("scripts/server.py")),
            Self::Ftplib => ("ftplib_operation.py", include_str!("scripts/ftplib_operation.py")),
            Self::Dialogue => ("dialogue.py", include_str!("scripts/dialogue.py")),
            Self::Load => ("load.py", include_str!("scripts/load.py")),
            Self::HeldClient => ("held_transfer.py", include_str!("scripts/held_transfer.py")),
            Self::Flood => ("flood.py", include_str!("scripts/flood.py")),
            Self::Pinholes => ("pinholes.py", include_str!("scripts/pinholes.py")),
            Self::Tun => ("tun.py", include_str!("scripts/tun.py")),
            Self::Pyftpdlib => ("serve_pyftpdlib.py", include_str!("scripts/serve_pyftpdlib.py")),
        }
    }

    pub(super) fn install(self, directory: &Path) -> Result<PathBuf> {
        let (name, source) = self.source();
        let path = directory.join(name);
        if !path.exists() {
            // The file is renamed into place, because another thread may run it at the same time.
            let part = directory.join(format!("{name}.{:?}", std::thread::current().id()));
            fs::write(&part, source)
                .and_then(|()| fs::rename(&part, &path))
                .map_err(LabError::file(&path))?;
        }
        Ok(path)
    }
}

/// The Python of the distribution, if it is installed. Shims of version managers start slowly, and the package
/// python3-pyftpdlib is made for the distribution's Python.
pub(super) fn python() -> PathBuf {
    let system = PathBuf::from("/usr/bin/python3");
    if system.exists() { system } else { find_program("python3").unwrap_or(system) }
}
