//! Builds the loop that accepts every packet (`accept.c`), with the machine's C compiler.

use std::{fs, path::PathBuf, process::Command, sync::OnceLock};

use ftp_alg_lab::{LabError, Result};

const SOURCE: &str = include_str!("accept.c");

/// Builds the program once, and returns its path.
pub fn build() -> Result<PathBuf> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = BUILT.get() {
        return Ok(path.clone());
    }
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (directory.join("accept.c"), directory.join("accept"));
    fs::write(&source, SOURCE).map_err(LabError::file(&source))?;
    let output = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-o"])
        .args([&program, &source])
        .arg("-lnetfilter_queue")
        .output()
        .map_err(|source| LabError::Start { program: "cc".to_owned(), source })?;
    if !output.status.success() {
        return Err(LabError::Failed {
            program: "cc accept.c (packaging/provision bench brings what it needs)".to_owned(),
            status: output.status.to_string(),
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    Ok(BUILT.get_or_init(|| program).clone())
}
