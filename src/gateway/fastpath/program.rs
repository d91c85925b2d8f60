//! Loads the program with its maps, by aya, and pins them. Knows nothing of what is in the maps.

use std::error::Error;

use aya::{
    EbpfLoader,
    programs::{ProgramError, SchedClassifier, TcAttachType},
    sys::SyscallError,
};

use super::{
    Missing,
    pins::{NAME, Pins},
};

/// The compiled program and its maps; build.rs makes them of `program/judge.bpf.c`.
pub static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/judge.o"));

pub(super) const WAYS: &str = "ways";
pub(super) const FLOWS: &str = "flows";
pub(super) const HOLES: &str = "holes";
pub(super) const PORTS: &str = "ports";
pub(super) const CONTROL_PORTS: &str = "control_ports";
pub(super) const RING: &str = "ring";
pub(super) const COUNTS: &str = "counts";
const MAPS: [&str; 7] = [WAYS, FLOWS, HOLES, PORTS, CONTROL_PORTS, RING, COUNTS];

/// By which another version is told from this one.
pub(super) fn version() -> u32 {
    crc32fast::hash(PROGRAM)
}

/// Whether programs can be attached as this one has to be (TCX, Linux 6.6).
pub(super) fn check_kernel() -> Result<(), Missing> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Ok(()),
        Err(ProgramError::SyscallError(SyscallError { io_error, .. })) => {
            Err(match io_error.raw_os_error() {
                Some(libc::EINVAL) => Missing("the kernel has no TCX; Linux 6.6 has it".into()),
                _ => Missing::system("TCX", &io_error),
            })
        }
        Err(error) => Err(Missing(format!("TCX: {}", reasons(&error)))),
    }
}

/// Loads program and maps into an empty directory. The program comes last: with it all is there.
pub(super) fn load(pins: &Pins) -> Result<(), Missing> {
    let failed = |error: &dyn Error| {
        let reasons = reasons(error);
        // The verifier accepts less of those with fewer rights.
        let is_refused = ["(os error 1)", "(os error 13)"].iter().any(|end| reasons.ends_with(end));
        let needs = if is_refused { Missing::NEEDS } else { "" };
        Missing(format!("the program is not loaded: {reasons}{needs}"))
    };
    let mut loader = EbpfLoader::new();
    // It needs to know nothing of this kernel's structures.
    loader.btf(None);
    for map in MAPS {
        loader.map_pin_path(map, pins.path(map));
    }
    let mut loaded = loader.load(PROGRAM).map_err(|error| failed(&error))?;
    let program = loaded.program_mut(NAME);
    let program = program.ok_or_else(|| Missing(format!("no program named {NAME}")))?;
    let program: &mut SchedClassifier = program.try_into().map_err(|error| failed(&error))?;
    program.load().map_err(|error| failed(&error))?;
    program.pin(pins.path(NAME)).map_err(|error| failed(&error))
}

/// With what the verifier's log ends, behind the reason.
const STATISTICS: [&str; 4] = ["verification time", "stack depth", "processed ", "\n"];

/// An error with what caused it, in one line. Of the verifier's log only the end says something.
fn reasons(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let message = error.to_string();
        let says = |line: &&str| !STATISTICS.iter().any(|start| line.starts_with(start));
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
