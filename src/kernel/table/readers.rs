//! The processes that read our queues, or those of the loaded table.
//!
//! The kernel knows a reader by the port of its netlink socket; `/proc` shows whose socket that is. If another program
//! reads a queue that the loaded table uses, the table is that of another running daemon. A table without such a reader
//! is a saved copy that someone loaded, or was left by a daemon.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use rustix::process::Pid;

use super::queue_rules::queues_of_table;
use crate::kernel::{
    NetfilterError, RuleParameters,
    netlink::Socket,
    queue::{self, Queue},
};

/// The thread's own network namespace.
const SOCKETS: &str = "/proc/thread-self/net/netlink";

/// How often to look for a socket. The kernel lists sockets in parts, and skips some if others are closed meanwhile.
const ATTEMPTS: usize = 10;

/// A process that reads queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueReader {
    pub process: Pid,
    pub name: String,
    pub queue: u16,
}

impl QueueReader {
    /// Whether all its file descriptors below its limit are in use, as far as that can be seen.
    pub fn has_no_free_descriptor(&self) -> bool {
        let directory = format!("/proc/{}", self.process.as_raw_nonzero());
        // Columns: `Max open files`, soft limit, hard limit, `files`.
        let limit = fs::read_to_string(format!("{directory}/limits")).ok().and_then(|limits| {
            let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
            line.split_whitespace().next()?.parse::<usize>().ok()
        });
        let (Some(limit), Ok(open)) = (limit, fs::read_dir(format!("{directory}/fd"))) else {
            return false;
        };
        let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        numbers.filter(|number: &usize| *number < limit).count() >= limit
    }
}

/// The processes that read the queues of `parameters`, or of the loaded table. Root sees all of them; others see those
/// with their own user and capabilities.
pub fn readers(parameters: &RuleParameters) -> Result<Vec<QueueReader>, NetfilterError> {
    readers_with(parameters.queues().collect())
}

/// The processes that read the queues of the loaded table, as far as they can be seen.
pub fn readers_of_table() -> Result<Vec<QueueReader>, NetfilterError> {
    readers_with(BTreeSet::new())
}

/// The processes that read the queues with these `numbers`, or those of the loaded table.
fn readers_with(mut numbers: BTreeSet<u16>) -> Result<Vec<QueueReader>, NetfilterError> {
    let failed = |source| NetfilterError::system("look for the readers of queues", source);
    let mut socket = Socket::open().map_err(failed)?;
    numbers.extend(queues_of_table(&mut socket).map_err(failed)?);
    let ports =
        numbers.into_iter().filter_map(|number| Some((number, queue::reader_port(number)?)));
    let mut readers: Vec<QueueReader> = Vec::new();
    for (queue, port) in ports {
        let inode = find_inode(port).map_err(failed)?;
        let found = inode.map_or(Ok(None), process_with_socket).map_err(failed)?;
        let process = found.ok_or_else(|| NetfilterError::NotPermitted {
            what: format!("find the process that reads queue {queue}"),
        })?;
        if readers.iter().all(|reader| reader.process != process) {
            readers.push(QueueReader { process, name: process_name(process), queue });
        }
    }
    Ok(readers)
}

/// An error that names the daemon of the loaded table, if that is not the reader of the queues of `parameters`.
pub(super) fn find_other_daemon(
    socket: &mut Socket,
    parameters: &RuleParameters,
) -> io::Result<Option<NetfilterError>> {
    let numbers = queues_of_table(socket)?;
    let others = numbers.into_iter().filter(|number| !parameters.queues().contains(number));
    Ok(others.into_iter().find_map(|number| match Queue::open(number) {
        Err(NetfilterError::QueueTaken { number, owner }) => {
            Some(NetfilterError::OtherDaemon { number, owner })
        }
        _ => None,
    }))
}

/// The command name of a process.
pub fn process_name(process: Pid) -> String {
    let path = format!("/proc/{}/comm", process.as_raw_nonzero());
    fs::read_to_string(path).map_or_else(|_| String::new(), |name| name.trim_end().to_owned())
}

/// Inode of the netfilter socket with this port.
fn find_inode(port: u32) -> io::Result<Option<u64>> {
    for _ in 0..ATTEMPTS {
        if let Some(inode) = inode(&fs::read_to_string(SOCKETS)?, port) {
            return Ok(Some(inode));
        }
    }
    Ok(None)
}

/// Inode of the netfilter socket with this port in a list. Columns (netlink_native_seq_show): address, protocol, port,
/// ..., inode.
fn inode(sockets: &str, port: u32) -> Option<u64> {
    let protocol = libc::NETLINK_NETFILTER.to_string();
    let port = port.to_string();
    sockets.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_it = columns.get(1..3)? == [protocol.as_str(), port.as_str()];
        is_it.then(|| columns.last()?.parse().ok()).flatten()
    })
}

/// The process that has this socket open.
fn process_with_socket(inode: u64) -> io::Result<Option<Pid>> {
    let socket = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let process = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        if let Some(process) = process.and_then(Pid::from_raw)
            && has_open(&path, &socket)
        {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

/// Whether the process has this file open, as far as that is visible.
pub fn has_open_file(process: Pid, file: &File) -> bool {
    let identity = |found: &fs::Metadata| (found.dev(), found.ino());
    let own = file.metadata().map(|found| identity(&found)).ok();
    let files = fs::read_dir(format!("/proc/{}/fd", process.as_raw_nonzero()));
    let mut files = files.into_iter().flatten().flatten();
    own.is_some() && files.any(|open| fs::metadata(open.path()).ok().as_ref().map(identity) == own)
}

/// Whether the process has it open, as far as that is visible.
fn has_open(process: &Path, socket: &str) -> bool {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|to| to == Path::new(socket))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    #[test]
    fn a_socket_is_found_while_others_are_closed() {
        let open = |count| (0..count).map(|_| Socket::open().unwrap()).collect::<Vec<_>>();
        let sockets = open(100);
        let has_ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !has_ended.load(Relaxed) {
                        open(50);
                    }
                });
            }
            let missed = (0..2000).filter(|_| find_inode(sockets[50].port()).unwrap().is_none());
            let missed = missed.count();
            has_ended.store(true, Relaxed);
            assert_eq!(missed, 0);
        });
    }

    #[test]
    fn a_socket_is_found_by_its_port_and_its_owner_by_its_inode() {
        let sockets = "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode\n\
                       0 0 77 00000000 0 0 0 2 0 4\n0 12 77 00000000 0 0 0 2 0 5\n";
        assert_eq!((inode(sockets, 77), inode(sockets, 7)), (Some(5), None));
        let (ours, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let inode = rustix::fs::fstat(&ours).unwrap().st_ino;
        assert_eq!(process_with_socket(inode).unwrap(), Some(rustix::process::getpid()));
    }
}
