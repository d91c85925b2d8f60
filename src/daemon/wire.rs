//! Lines over a Unix socket, with a limit on their length and one deadline for the whole exchange.
//!
//! A socket's own timeouts bound one call only; a peer that trickles bytes would hold us for
//! ever. Knows nothing of what the lines say.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// A socket that is read and written until a deadline. A call that would end later fails.
pub(super) struct DeadlineStream<'a> {
    pub(super) stream: &'a UnixStream,
    pub(super) deadline: Instant,
}

impl DeadlineStream<'_> {
    fn remaining(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }

    /// Reads up to the first newline, which is not part of the result. Bytes after it are lost: an
    /// exchange is one line each way. An end before the newline is [`io::ErrorKind::UnexpectedEof`].
    pub(super) fn read_line(&mut self, limit: usize) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        BufReader::new(self.take(limit as u64 + 1)).read_until(b'\n', &mut line)?;
        match line.pop_if(|last| *last == b'\n') {
            Some(_) => Ok(line),
            None if line.len() > limit => {
                let text = format!("a line has more than {limit} bytes");
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Read for DeadlineStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.remaining()?)?;
        self.stream.read(buffer)
    }
}

impl Write for DeadlineStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.remaining()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
