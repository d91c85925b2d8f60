//! The programs that this crate needs (`nft`, `iptables-save` and its variants): run here, or by the broker if this
//! process may not start programs.

use std::io;

use super::child::{self, ChildOutput};

/// Runs `program` to its end, with `input` on its standard input.
pub(in crate::kernel) fn run(
    program: &str,
    arguments: &[&str],
    input: &str,
) -> io::Result<ChildOutput> {
    match super::own_broker() {
        Some(broker) => broker.run(program, arguments, input),
        None => child::run(program, arguments, input),
    }
}

/// The standard output of a program if it succeeds, otherwise its error output.
pub fn run_for_output(program: &str, arguments: &[&str]) -> io::Result<String> {
    run_with_input(program, arguments, "")
}

/// As [`run_for_output`], for a program that reads `input`.
pub(in crate::kernel) fn run_with_input(
    program: &str,
    arguments: &[&str],
    input: &str,
) -> io::Result<String> {
    let finished = run(program, arguments, input).map_err(|error| match error.kind() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_prints_and_what_it_says_of_a_failure() {
        assert_eq!(run_with_input("cat", &[], "a\n").unwrap(), "a\n");
        let failed = run_for_output("sh", &["-c", "echo why >&2; exit 1"]).unwrap_err();
        assert_eq!(failed.to_string(), "sh failed: why");
        let absent = run_for_output("no-such-program", &[]).unwrap_err();
        assert_eq!(absent.to_string(), "no-such-program is not installed");
    }
}
