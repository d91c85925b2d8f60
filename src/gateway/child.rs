//! Programs that this process starts itself.

use std::{
    io::{self, Write as _},
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};

/// Packagers put these programs into sbin, which is not in everyone's PATH.
const SBIN: &str = "/usr/sbin:/sbin:/usr/local/sbin";

/// What a program left behind.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) success: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Runs `program` to its end, with `input` on its standard input. It is found wherever packagers put it, and speaks
/// English.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<Finished> {
    let mut child = Command::new(program)
        .env("PATH", search_path())
        .env("LC_ALL", "C")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // One that ends before it has read all says why on its standard error.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    if output.status.success() {
        written?;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Finished {
        success: output.status.success(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}

/// Where programs are looked for, as in PATH.
pub fn search_path() -> String {
    path(std::env::var("PATH").ok())
}

/// An empty part would be the working directory, which may be anyone's.
fn path(own: Option<String>) -> String {
    match own.filter(|own| !own.is_empty()) {
        Some(own) => format!("{own}:{SBIN}"),
        None => format!("{SBIN}:/usr/bin:/bin"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_path_nothing_is_looked_for_in_the_working_directory() {
        for own in [None, Some(String::new())] {
            assert!(path(own).split(':').all(|part| part.starts_with('/')));
        }
        assert_eq!(path(Some("/opt/bin".into())), format!("/opt/bin:{SBIN}"));
    }

    #[test]
    fn a_program_reads_its_input() {
        assert_eq!(run("cat", &[], "b").unwrap().stdout, "b");
    }
}
