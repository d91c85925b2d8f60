//! The `ftp-alg` program.

fn main() {}
