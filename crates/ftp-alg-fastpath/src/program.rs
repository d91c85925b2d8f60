//! Loads the program with its maps, by aya, and pins them. This module does not know what is in the maps.

use std::error::Error;

use aya::{
    EbpfLoader,
    programs::{ProgramError, SchedClassifier, TcAttachType},
    sys::SyscallError,
};

use super::{
    FastPathUnavailable, OrUnavailable as _,
    pin_directory::{PROGRAM_NAME, PinDirectory},
};

/// The compiled program with its maps. build.rs compiles it from `program/inspect.bpf.c`.
pub static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/inspect.o"));

/// The maps that are pinned.
const MAPS: [&str; 10] = [
    "tuples",
    "flows",
    "pinholes",
    "rules_pinholes",
    "barred_ports",
    "control_ports",
    "ring",
    "counters",
    "heartbeat",
    "readmission_start",
];

/// The program's version: a checksum, by which one version is distinguished from another.
pub(crate) fn program_version() -> u32 {
    crc32fast::hash(PROGRAM)
}

/// Checks that the kernel has TCX (Linux 6.6). Returns the number of possible processors.
pub(crate) fn check_kernel() -> Result<usize, FastPathUnavailable> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => aya::util::nr_cpus().or_else(|(what, error)| Err(error).or_unavailable(what)),
        Err(ProgramError::SyscallError(SyscallError { io_error, .. })) => {
            if io_error.raw_os_error() == Some(libc::EINVAL) {
                let text = "the kernel has no TCX; it needs Linux 6.6";
                return Err(FastPathUnavailable(text.into()));
            }
            Err(io_error).or_unavailable("TCX")
        }
        Err(error) => Err(FastPathUnavailable(format!("TCX: {}", error_chain(&error)))),
    }
}

/// Makes the maps, and pins them in an empty directory. Then loads the program, and pins it: if it is pinned, all maps are
/// as well.
pub(crate) fn load(pins: &PinDirectory) -> Result<(), FastPathUnavailable> {
    let mut loader = EbpfLoader::new();
    // The program uses no structures of the running kernel, so aya need not read its BTF.
    loader.btf(None);
    for map in MAPS {
        loader.map_pin_path(map, pins.pin_path(map));
    }
    let mut loaded = loader.load(PROGRAM).map_err(|error| cannot_load(&error))?;
    let program = loaded
        .program_mut(PROGRAM_NAME)
        .ok_or_else(|| FastPathUnavailable(format!("no program named {PROGRAM_NAME}")))?;
    let program: &mut SchedClassifier = program.try_into().map_err(|error| cannot_load(&error))?;
    program.load().map_err(|error| cannot_load(&error))?;
    program.pin(pins.pin_path(PROGRAM_NAME)).map_err(|error| cannot_load(&error))
}

fn cannot_load(error: &dyn Error) -> FastPathUnavailable {
    let reasons = error_chain(error);
    // The verifier refuses the program without these rights.
    let is_refused = ["(os error 1)", "(os error 13)"].iter().any(|end| reasons.ends_with(end));
    let needs = if is_refused { FastPathUnavailable::REQUIRED_RIGHTS } else { "" };
    FastPathUnavailable(format!("cannot load the program: {reasons}{needs}"))
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
