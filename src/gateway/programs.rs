//! The programs that the kernel's edge needs (`nft`, and those that print the rules of iptables):
//! run here, or, where this process may not start any, by its assistant.

use std::{
    io::{self, Write as _},
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};

use super::assistant;

/// Packagers put these programs into sbin, which is not in everyone's PATH.
const SBIN: &str = "/usr/sbin:/sbin:/usr/local/sbin";

/// What a program left behind.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) success: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Runs `program` to its end, with `input` on its standard input.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<Finished> {
    match assistant::ours() {
        Some(assistant) => assistant.run(program, arguments, input),
        None => run_here(program, arguments, input),
    }
}

/// What a program prints, if it succeeds; else what it said.
pub(super) fn output_of(program: &str, arguments: &[&str]) -> io::Result<String> {
    let finished = run(program, arguments, "").map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            io::Error::new(error.kind(), format!("{program} is not installed"))
        }
        _ => error,
    })?;
    if finished.success {
        return Ok(finished.stdout);
    }
    let said = finished.stderr.lines().next().unwrap_or("it gave no reason").trim();
    Err(io::Error::other(format!("{program} failed: {said}")))
}

/// As [`run`], in this process. A program is found wherever packagers put it, and speaks English.
pub(super) fn run_here(program: &str, arguments: &[&str], input: &str) -> io::Result<Finished> {
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
    fn what_a_program_prints_and_what_it_says_of_a_failure() {
        assert_eq!(output_of("echo", &["a"]).unwrap(), "a\n");
        assert_eq!(run_here("cat", &[], "b").unwrap().stdout, "b");
        let failed = output_of("sh", &["-c", "echo why >&2; exit 1"]).unwrap_err();
        assert_eq!(failed.to_string(), "sh failed: why");
        let absent = output_of("no-such-program", &[]).unwrap_err();
        assert_eq!(absent.to_string(), "no-such-program is not installed");
    }
}
