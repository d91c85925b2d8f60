//! Loads the program with its maps, by aya, and pins them. Knows nothing of what is in the maps.

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

/// The compiled program and its maps; build.rs makes them of `program/judge.bpf.c`.
pub static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/judge.o"));

pub(super) const TUPLES: &str = "ways";
pub(super) const FLOWS: &str = "flows";
pub(super) const PINHOLES: &str = "holes";
pub(super) const BARRED_PORTS: &str = "ports";
pub(super) const CONTROL_PORTS: &str = "control_ports";
pub(super) const RING: &str = "ring";
pub(super) const COUNTERS: &str = "counts";
const MAPS: [&str; 7] = [TUPLES, FLOWS, PINHOLES, BARRED_PORTS, CONTROL_PORTS, RING, COUNTERS];

/// By which another version is told from this one.
pub(super) fn program_version() -> u32 {
    crc32fast::hash(PROGRAM)
}

/// Whether programs can be attached as this one has to be (TCX, Linux 6.6).
pub(super) fn check_kernel() -> Result<(), FastPathUnavailable> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Ok(()),
        Err(ProgramError::SyscallError(SyscallError { io_error, .. })) => {
            Err(match io_error.raw_os_error() {
                Some(libc::EINVAL) => {
                    FastPathUnavailable("the kernel has no TCX; Linux 6.6 has it".into())
                }
                _ => FastPathUnavailable::from_io_error("TCX", &io_error),
            })
        }
        Err(error) => Err(FastPathUnavailable(format!("TCX: {}", error_chain(&error)))),
    }
}

/// Loads program and maps into an empty directory. The program comes last: with it all is there.
pub(super) fn load(pins: &PinDirectory) -> Result<(), FastPathUnavailable> {
    let failed = |error: &dyn Error| {
        let reasons = error_chain(error);
        // The verifier accepts less of those with fewer rights.
        let is_refused = ["(os error 1)", "(os error 13)"].iter().any(|end| reasons.ends_with(end));
        let needs = if is_refused { FastPathUnavailable::REQUIRED_RIGHTS } else { "" };
        FastPathUnavailable(format!("the program is not loaded: {reasons}{needs}"))
    };
    let mut loader = EbpfLoader::new();
    // It needs to know nothing of this kernel's structures.
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

/// With what the verifier's log ends, behind the reason.
const VERIFIER_STATISTICS: [&str; 4] = ["verification time", "stack depth", "processed ", "\n"];

/// An error with what caused it, in one line. Of the verifier's log only the end says something.
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
