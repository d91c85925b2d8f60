//! Lines over a Unix socket, with a limit on their length and one deadline for the whole exchange.
//!
//! A socket's own timeouts bound one call only; a peer that trickles bytes would hold us for
//! ever. Knows nothing of what the lines say.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// Reads up to the first newline, which is not part of the result. Bytes after it are lost: an
/// exchange is one line each way. An end before the newline is [`io::ErrorKind::UnexpectedEof`].
pub(super) fn read_line(
    mut stream: &UnixStream,
    limit: usize,
    deadline: Instant,
) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        let length = match stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => length,
            Err(error) => retry(error).map(|()| 0)?,
        };
        let read = &chunk[..length];
        let end = memchr::memchr(b'\n', read);
        line.extend_from_slice(&read[..end.unwrap_or(length)]);
        if line.len() > limit {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a line has more than {limit} bytes"),
            ));
        }
        if end.is_some() {
            return Ok(line);
        }
    }
}

/// Writes all of `bytes`.
pub(super) fn write_all(
    mut stream: &UnixStream,
    mut bytes: &[u8],
    deadline: Instant,
) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(remaining(deadline)?))?;
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(error) => retry(error)?,
        }
    }
    Ok(())
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// `Ok` if the call is to be made again; a socket's timeout shows as `WouldBlock`.
fn retry(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
        _ => Err(error),
    }
}
