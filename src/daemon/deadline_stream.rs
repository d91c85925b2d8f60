//! Lines on a socket, with a limit for their length and one deadline for request and answer together.
//!
//! A socket's own timeouts apply to each call, so a peer that sends byte after byte could block the reader for ever.
//! This module knows nothing of what the lines mean.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    time::{Duration, Instant},
};

use socket2::SockRef;

/// A socket with a deadline. A read or write that is not done by then fails.
pub(super) struct DeadlineStream<'a> {
    pub(super) socket: SockRef<'a>,
    pub(super) deadline: Instant,
}

impl DeadlineStream<'_> {
    fn remaining(&self) -> io::Result<Option<Duration>> {
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(remaining)) }
    }

    /// Reads a line, and returns it without its newline. Bytes after the newline are lost, because each side sends only
    /// one line. If the connection ends before the newline, the error is [`io::ErrorKind::UnexpectedEof`].
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
        self.socket.set_read_timeout(self.remaining()?)?;
        (&*self.socket).read(buffer)
    }
}

impl Write for DeadlineStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.remaining()?)?;
        (&*self.socket).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
