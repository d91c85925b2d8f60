//! Standard error, to which a thread can write many lines at once.

use std::{
    cell::RefCell,
    io::{self, Write},
};

/// Lines are written when they are longer than this.
const MAX_BATCH: usize = 64 << 10;

thread_local! {
    /// The lines of a batch of this thread that are not written yet.
    static UNWRITTEN: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Runs `log`, and writes what this thread logs meanwhile at once. The journal gets its lines one by one.
pub(in crate::daemon) fn log_at_once(log: impl FnOnce()) {
    UNWRITTEN.set(Some(Vec::new()));
    log();
    if let Some(lines) = UNWRITTEN.take() {
        let _ = io::stderr().write_all(&lines);
    }
}

/// Standard error.
pub(super) struct BatchedStderr;

impl Write for BatchedStderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        UNWRITTEN.with_borrow_mut(|unwritten| match unwritten {
            None => io::stderr().write(line),
            Some(lines) => {
                lines.extend_from_slice(line);
                if lines.len() >= MAX_BATCH {
                    let _ = io::stderr().write_all(&std::mem::take(lines));
                }
                Ok(line.len())
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
