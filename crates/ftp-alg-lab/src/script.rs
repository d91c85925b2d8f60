//! Small FTP programs in Python that do what real software cannot be made to do on demand.
//!
//! They are part of the binary (the demo needs some) and written to the lab's directory.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{LabError, Result, process::find_program};

/// One of the lab's scripts; each says at its top which arguments it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// A client that sends given lines, cut and paced as asked, and accepts data connections.
    Client,
    /// A server that announces given ports and reads split lines.
    Server,
    /// Python's ftplib: one errand, with a given command.
    Ftplib,
    /// Either end of dialogues that are written down.
    Dialogue,
    /// Python's ftplib: one login, many transfers.
    Many,
    /// Python's ftplib: many sessions at the same time, until told to stop.
    Load,
    /// Python's ftplib: one transfer with a pause after the announcement.
    HeldTransfer,
    /// Connects to one address and port, and says what came of it.
    Connect,
    /// Opens many control connections halfway.
    Flood,
    /// Lists what the fast path has open.
    Pinholes,
    /// Starts pyftpdlib.
    Pyftpdlib,
}

impl Script {
    fn source(self) -> (&'static str, &'static str) {
        match self {
            Self::Client => ("client.py", include_str!("scripts/client.py")),
            Self::Server => ("server.py", include_str!("scripts/server.py")),
            Self::Ftplib => ("errand.py", include_str!("scripts/errand.py")),
            Self::Dialogue => ("dialogue.py", include_str!("scripts/dialogue.py")),
            Self::Many => ("many.py", include_str!("scripts/many.py")),
            Self::Load => ("load.py", include_str!("scripts/load.py")),
            Self::HeldTransfer => ("held.py", include_str!("scripts/held.py")),
            Self::Connect => ("connect.py", include_str!("scripts/connect.py")),
            Self::Flood => ("flood.py", include_str!("scripts/flood.py")),
            Self::Pinholes => ("holes.py", include_str!("scripts/holes.py")),
            Self::Pyftpdlib => ("serve_pyftpdlib.py", include_str!("scripts/serve_pyftpdlib.py")),
        }
    }

    pub(super) fn install(self, directory: &Path) -> Result<PathBuf> {
        let (name, source) = self.source();
        let path = directory.join(name);
        if !path.exists() {
            // Renamed into place: another thread may be about to run it.
            let part = directory.join(format!("{name}.{:?}", std::thread::current().id()));
            fs::write(&part, source)
                .and_then(|()| fs::rename(&part, &path))
                .map_err(LabError::file(&path))?;
        }
        Ok(path)
    }
}

/// The distribution's Python where there is one: version managers' shims are slow to start, and
/// python3-pyftpdlib is made for it.
pub(super) fn python() -> PathBuf {
    let system = PathBuf::from("/usr/bin/python3");
    if system.exists() { system } else { find_program("python3").unwrap_or(system) }
}
