//! Loads the program with its maps, by aya, and pins them. This module does not know what is in the maps.

use std::error::Error;

use aya::{
    EbpfLoader,
    programs::{ProgramError, SchedClassifier, TcAttachType},
    sys::SyscallError,
};

use super::{
    FastPathUnavailable,
    pin_directory::{PROGRAM_NAME, PinDirectory},
};

/// The compiled program with its maps. build.rs compiles it from `program/inspect.bpf.c`.
pub static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/inspect.o"));

pub(super) const TUPLES: &str = "tuples";
pub(super) const FLOWS: &str = "flows";
pub(super) const PINHOLES: &str = "pinholes";
pub(super) const BARRED_PORTS: &str = "barred_ports";
pub(super) const CONTROL_PORTS: &str = "control_ports";
pub(super) const RING: &str = "ring";
pub(super) const COUNTERS: &str = "counters";
const MAPS: [&str; 7] = [TUPLES, FLOWS, PINHOLES, BARRED_PORTS, CONTROL_PORTS, RING, COUNTERS];

/// The program's version: a checksum, by which one version is distinguished from another.
pub(super) fn program_version() -> u32 {
    crc32fast::hash(PROGRAM)
}

/// Checks that the kernel has TCX (Linux 6.6).
pub(super) fn check_kernel() -> Result<(), FastPathUnavailable> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Ok(()),
        Err(ProgramError::SyscallError(SyscallError { io_error, .. })) => {
            Err(match io_error.raw_os_error() {
                Some(libc::EINVAL) => {
                    FastPathUnavailable("the kernel has no TCX; it needs Linux 6.6".into())
                }
                _ => FastPathUnavailable::from_io_error("TCX", &io_error),
            })
        }
        Err(error) => Err(FastPathUnavailable(format!("TCX: {}", error_chain(&error)))),
    }
}

/// Loads program and maps, and pins them in an empty directory. The program is pinned last, so if it is pinned, all
/// maps are as well.
pub(super) fn load(pins: &PinDirectory) -> Result<(), FastPathUnavailable> {
    let failed = |error: &dyn Error| {
        let reasons = error_chain(error);
        // The verifier refuses the program without these rights.
        let is_refused = ["(os error 1)", "(os error 13)"].iter().any(|end| reasons.ends_with(end));
        let needs = if is_refused { FastPathUnavailable::REQUIRED_RIGHTS } else { "" };
        FastPathUnavailable(format!("cannot load the program: {reasons}{needs}"))
    };
    let mut loader = EbpfLoader::new();
    // The program uses no structures of the running kernel, so aya need not read its BTF.
    loader.btf(None);
    for map in MAPS {
        loader.map_pin_path(map, pins.pin_path(map));
    }
    let mut loaded = loader.load(PROGRAM).map_err(|error| failed(&error))?;
    let program = loaded.program_mut(PROGRAM_NAME);
    let program =
        program.ok_or_else(|| FastPathUnavailable(format!("no program named {PROGRAM_NAME}")))?;
    let program: &mut SchedClassifier = program.try_into().map_err(|error| failed(&error))?;
    program.load().map_err(|error| failed(&error))?;
    program.pin(pins.pin_path(PROGRAM_NAME)).map_err(|error| failed(&error))
}

/// Start of the lines with which the verifier's log ends, after the reason.
const VERIFIER_STATISTICS: [&str; 4] = ["verification time", "stack depth", "processed ", "\n"];

/// An error and its causes, in one line. Of the verifier's log it has only the last lines, which name the reason.
fn error_chain(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let message = error.to_string();
        let says = |line: &&str| !VERIFIER_STATISTICS.iter().any(|start| line.starts_with(start));
        let lines: Vec<&str> = message.lines().filter(says).collect();
        let last = lines.get(lines.len().saturating_sub(2)..).unwrap_or_default().join("; ");
        if !text.ends_with(&last) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&last);
        }
        next = error.source();
    }
    text
}
