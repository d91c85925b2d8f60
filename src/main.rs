//! The `ftp-alg` program: maps the end of a command to an exit code.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use ftp_alg::cli;

fn main() -> ExitCode {
    match cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let (code, lines) = failure.report();
            for line in lines {
                // If standard error is closed, the exit code remains (eprintln! would panic).
                let _ = writeln!(io::stderr(), "{line}");
            }
            ExitCode::from(code)
        }
    }
}
