//! What the end-to-end tests share.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::PathBuf;

/// The program under test; `FTP_ALG_TEST_EXE` names another, such as an installed one.
pub fn executable() -> PathBuf {
    std::env::var_os("FTP_ALG_TEST_EXE")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_ftp-alg")), PathBuf::from)
}
