//! What stands for `program` in a build without the program: nothing can be loaded. Pins of an earlier daemon are removed.

use super::{FastPathUnavailable, pin_directory::PinDirectory};

/// The compiled program, which this build lacks.
pub static PROGRAM: &[u8] = &[];

fn missing<T>() -> Result<T, FastPathUnavailable> {
    Err(FastPathUnavailable(FastPathUnavailable::NOT_BUILT.into()))
}

pub(crate) fn program_version() -> u32 {
    0
}

pub(crate) fn check_kernel() -> Result<usize, FastPathUnavailable> {
    missing()
}

pub(crate) fn load(_: &PinDirectory) -> Result<(), FastPathUnavailable> {
    missing()
}
