//! Child programs of this process.

use std::{
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};

/// Directories that are searched for programs. Never `PATH`: if the binary has file capabilities (`setcap`), the user who
/// starts it chooses `PATH`, and so would choose which program gets them.
const DIRECTORIES: [&str; 6] = [
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/usr/local/sbin",
    "/run/current-system/sw/bin", // NixOS
];

/// Output and exit status of a program.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::kernel) struct ChildOutput {
    pub(in crate::kernel) success: bool,
    pub(in crate::kernel) stdout: String,
    pub(in crate::kernel) stderr: String,
}

/// Runs `program` to its end, with `input` on its standard input. Its environment is empty and its locale is C.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<ChildOutput> {
    let absent = || io::Error::from_raw_os_error(libc::ENOENT);
    let path = find(program, &DIRECTORIES.map(Path::new)).ok_or_else(absent)?;
    let mut child = Command::new(path)
        .env_clear()
        .env("PATH", DIRECTORIES.join(":"))
        .env("LC_ALL", "C")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // A program that ends before it has read everything reports the reason on its standard error.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    if output.status.success() {
        written?;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(ChildOutput {
        success: output.status.success(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}

/// The path of `program`. A directory in which others than its owner may create files is skipped.
fn find(program: &str, directories: &[&Path]) -> Option<PathBuf> {
    let is_safe = |directory: &&&Path| {
        directory.metadata().is_ok_and(|found| found.permissions().mode() & 0o022 == 0)
    };
    let candidates = directories.iter().filter(is_safe).map(|directory| directory.join(program));
    candidates.into_iter().find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn programs_get_nothing_of_the_environment() {
        let printed = run("env", &[], "").unwrap().stdout;
        let mut names: Vec<_> = printed.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["LC_ALL", "PATH"], "{printed}");
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("nft"), "").unwrap();
        for (mode, is_found) in [(0o755, true), (0o775, false), (0o1777, false)] {
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(find("nft", &[directory.path()]).is_some(), is_found, "{mode:o}");
        }
    }

    #[test]
    fn a_program_reads_its_input() {
        assert_eq!(run("cat", &[], "b").unwrap().stdout, "b");
    }
}
