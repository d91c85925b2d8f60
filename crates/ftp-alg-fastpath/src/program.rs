//! Loads the program with its maps, by aya, and pins them. This module does not know what is in the maps.

use std::{error::Error, io, os::fd::AsFd as _};

use aya::{
    Ebpf, EbpfLoader,
    maps::MapInfo,
    programs::{ProgramError, ProgramInfo, SchedClassifier, TcAttachType},
    sys::SyscallError,
};

use super::{
    FastPathUnavailable, ListInterfaces, OrUnavailable as _,
    attachments::Interface,
    pin_directory::{PROGRAM_NAME, PinDirectory},
    syscall::{self, ANY, BpfMap},
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

/// The program whose maps are pinned, and that is not loaded yet.
pub(crate) struct PreparedProgram<'p> {
    program: Ebpf,
    pins: &'p PinDirectory,
}

/// The map with the program's version, and its key there.
const VERSION_MAP: &str = "heartbeat";
const VERSION_KEY: [u8; 4] = 1_u32.to_ne_bytes();

/// Makes the maps, and pins them in an empty directory.
pub(crate) fn prepare(pins: &PinDirectory) -> Result<PreparedProgram<'_>, FastPathUnavailable> {
    let mut loader = EbpfLoader::new();
    // The program uses no structures of the running kernel, so aya need not read its BTF.
    loader.btf(None);
    for map in MAPS {
        loader.map_pin_path(map, pins.pin_path(map));
    }
    let program = loader.load(PROGRAM).map_err(|error| cannot_load(&error))?;
    BpfMap::open(&pins.pin_path(VERSION_MAP), 1)
        .and_then(|map| map.update(&VERSION_KEY, &u64::from(program_version()).to_ne_bytes(), ANY))
        .or_unavailable("write the program's version")?;
    Ok(PreparedProgram { program, pins })
}

impl PreparedProgram<'_> {
    /// Loads the program, and pins it. It is pinned last, so if it is pinned, all maps are as well. The kernel verifies it
    /// meanwhile, which takes a tenth of a second.
    pub(crate) fn load(mut self) -> Result<(), FastPathUnavailable> {
        let program = self.program.program_mut(PROGRAM_NAME);
        let program = program
            .ok_or_else(|| FastPathUnavailable(format!("no program named {PROGRAM_NAME}")))?;
        let program: &mut SchedClassifier =
            program.try_into().map_err(|error| cannot_load(&error))?;
        program.load().map_err(|error| cannot_load(&error))?;
        program.pin(self.pins.pin_path(PROGRAM_NAME)).map_err(|error| cannot_load(&error))
    }
}

fn cannot_load(error: &dyn Error) -> FastPathUnavailable {
    let reasons = error_chain(error);
    // The verifier refuses the program without these rights.
    let is_refused = ["(os error 1)", "(os error 13)"].iter().any(|end| reasons.ends_with(end));
    let needs = if is_refused { FastPathUnavailable::REQUIRED_RIGHTS } else { "" };
    FastPathUnavailable(format!("cannot load the program: {reasons}{needs}"))
}

/// An attached program of an earlier daemon.
struct AttachedProgram {
    interface: u32,
    info: ProgramInfo,
    maps: Vec<MapInfo>,
}

impl AttachedProgram {
    /// `None` if the program is not ours: others may have its name, but not its maps.
    fn new(interface: u32, info: ProgramInfo) -> Option<Self> {
        let ids = info.map_ids().ok()??;
        let maps: Vec<_> = ids.into_iter().map(MapInfo::from_id).collect::<Result<_, _>>().ok()?;
        let has = |name: &str| maps.iter().any(|map| map.name() == name.as_bytes());
        let is_ours = info.name() == PROGRAM_NAME.as_bytes()
            && ["tuples", "flows", "pinholes", "control_ports", "ring"].into_iter().all(has);
        is_ours.then_some(Self { interface, info, maps })
    }

    /// Whether it is the program of this build.
    fn is_of_this_version(&self) -> io::Result<bool> {
        let Some(map) = self.maps.iter().find(|map| map.name() == VERSION_MAP.as_bytes()) else {
            return Ok(false);
        };
        let map =
            BpfMap::new(map.fd().map_err(io::Error::other)?.as_fd().try_clone_to_owned()?, 1)?;
        // An earlier version's map may have no such element, or elements of another size.
        let version = map.look_up(&VERSION_KEY, ANY).unwrap_or_default();
        Ok(version.map(u64::from_ne_bytes) == Some(program_version().into()))
    }

    /// Detaches it, if it is attached without a link.
    fn detach(&self) -> io::Result<()> {
        let program = self.info.fd().map_err(io::Error::other)?;
        syscall::detach_tcx(program.as_fd(), self.interface)
    }

    /// Pins it with its maps in an empty directory, the program last.
    fn pin(&self, pins: &PinDirectory) -> io::Result<()> {
        for map in &self.maps {
            if let Some(name) = MAPS.iter().find(|name| map.name() == kernel_name(name)) {
                let map = map.fd().map_err(io::Error::other)?;
                syscall::pin(map.as_fd(), &pins.pin_path(name))?;
            }
        }
        let program = self.info.fd().map_err(io::Error::other)?;
        syscall::pin(program.as_fd(), &pins.pin_path(PROGRAM_NAME))
    }
}

/// The programs of earlier daemons at the interfaces of this network namespace. None without CAP_SYS_ADMIN, which the
/// kernel asks of those who look for programs.
fn list_attached(list_interfaces: ListInterfaces) -> io::Result<Vec<AttachedProgram>> {
    let mut found = Vec::new();
    for Interface { index, name } in list_interfaces()?.into_candidates() {
        let Ok((_, programs)) = SchedClassifier::query_tcx(&name, TcAttachType::Ingress) else {
            continue;
        };
        found.extend(programs.into_iter().filter_map(|info| AttachedProgram::new(index, info)));
    }
    Ok(found)
}

/// Whether this process may find an attached program with its maps, as [`adopt_attached`] does.
pub(crate) fn can_be_found(pins: &PinDirectory) -> bool {
    let pinned = MapInfo::from_pin(pins.pin_path("ring"));
    pinned.is_ok_and(|ring| MapInfo::from_id(ring.id()).is_ok())
}

/// Whether a program of an earlier daemon is attached to an interface of this network namespace.
pub(crate) fn is_any_attached(list_interfaces: ListInterfaces) -> bool {
    list_attached(list_interfaces).is_ok_and(|found| !found.is_empty())
}

/// Detaches the programs of earlier daemons that are attached without links.
pub(crate) fn detach_all(list_interfaces: ListInterfaces) -> io::Result<()> {
    list_attached(list_interfaces)?
        .iter()
        .map(AttachedProgram::detach)
        .fold(Ok(()), io::Result::and)
}

/// Pins the program that an earlier daemon left attached, if it is this build's, and its maps with their open pinholes and
/// unread lines. So the program need not be loaded, which takes a tenth of a second. Detaches any other program. Returns
/// whether it pinned one.
pub(crate) fn adopt_attached(
    pins: &PinDirectory,
    list_interfaces: ListInterfaces,
) -> io::Result<bool> {
    let mut adopted = None;
    for attached in list_attached(list_interfaces)? {
        if adopted == Some(attached.info.id()) {
            continue;
        }
        if adopted.is_some() || !attached.is_of_this_version()? {
            attached.detach()?;
            continue;
        }
        attached.pin(pins)?;
        adopted = Some(attached.info.id());
    }
    Ok(adopted.is_some())
}

/// The name of a map as the kernel has it (`BPF_OBJ_NAME_LEN`).
fn kernel_name(name: &str) -> &[u8] {
    name.as_bytes().get(..15).unwrap_or(name.as_bytes())
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
