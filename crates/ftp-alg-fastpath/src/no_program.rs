//! What stands for `program` in a build without the program: nothing can be loaded, and no program is found at an
//! interface. Pins of an earlier daemon can be removed.

use std::io;

use super::{FastPathUnavailable, ListInterfaces, pin_directory::PinDirectory};

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

/// A program, which does not exist in this build.
pub(crate) enum PreparedProgram {}

pub(crate) fn prepare(_: &PinDirectory) -> Result<PreparedProgram, FastPathUnavailable> {
    missing()
}

impl PreparedProgram {
    pub(crate) fn load(self) -> Result<(), FastPathUnavailable> {
        match self {}
    }
}

pub(crate) fn can_be_found(_: &PinDirectory) -> bool {
    false
}

pub(crate) fn is_any_attached(_: ListInterfaces) -> bool {
    false
}

pub(crate) fn detach_all(_: ListInterfaces) -> io::Result<()> {
    Ok(())
}

pub(crate) fn adopt_attached(_: &PinDirectory, _: ListInterfaces) -> io::Result<bool> {
    Ok(false)
}
