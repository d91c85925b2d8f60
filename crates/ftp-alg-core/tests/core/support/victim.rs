//! What a server executes of segments that overlap and arrive out of order, by how its TCP puts them together.

use std::collections::BTreeMap;

/// Which of two segments a number's byte is taken from while what precedes it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefers {
    /// The one that starts first, and of those the longer (Linux: `tcp_data_queue_ofo`; BSD, nearly).
    Lowest,
    /// The one that came first.
    Earlier,
    /// The one that came last.
    Later,
}

pub const ALL: [Prefers; 3] = [Prefers::Lowest, Prefers::Earlier, Prefers::Later];

/// A byte that waits, and where its segment starts and ends.
type Waiting = (u8, i64, i64);

/// The receiving side of a server.
#[derive(Clone, Debug)]
pub struct Victim {
    prefers: Prefers,
    first: u32,
    received: Vec<u8>,
    waiting: BTreeMap<i64, Waiting>,
    answered: usize,
}

impl Victim {
    /// One that next expects the number `first`.
    pub fn new(prefers: Prefers, first: u32) -> Self {
        Self { prefers, first, received: Vec::new(), waiting: BTreeMap::new(), answered: 0 }
    }

    /// A segment arrives.
    pub fn arrive(&mut self, seq: u32, payload: &[u8]) {
        let next = self.received.len() as i64;
        let start = next + i64::from(seq.wrapping_sub(self.ack()).cast_signed());
        let end = start + payload.len() as i64;
        for (at, byte) in (start..).zip(payload).filter(|(at, _)| *at >= next) {
            let takes = self.waiting.get(&at).is_none_or(|(_, other, until)| match self.prefers {
                Prefers::Lowest => start < *other || start == *other && end > *until,
                Prefers::Earlier => false,
                Prefers::Later => true,
            });
            if takes {
                self.waiting.insert(at, (*byte, start, end));
            }
        }
        while let Some((byte, ..)) = self.waiting.remove(&(self.received.len() as i64)) {
            self.received.push(byte);
        }
    }

    /// What it acknowledges.
    pub fn ack(&self) -> u32 {
        self.first.wrapping_add(self.received.len() as u32)
    }

    /// What it executes, Telnet commands and NUL left out.
    pub fn lines(&self) -> Vec<String> {
        let whole = self.received.split_inclusive(|b| *b == b'\n').filter(|l| l.ends_with(b"\n"));
        let text = whole.map(|line| {
            let mut said = String::new();
            let mut bytes = line.iter();
            while let Some(byte) = bytes.next() {
                match byte {
                    0 => {}
                    0xff => drop(bytes.next()), // of the kind that has no option
                    byte => said.push(char::from(*byte)),
                }
            }
            said.trim().to_ascii_uppercase()
        });
        text.collect()
    }

    /// How many lines it has executed since this was last asked.
    pub fn executed(&mut self) -> usize {
        let all = self.lines().len();
        all - std::mem::replace(&mut self.answered, all)
    }

    /// What it was made to connect to, anyone who fast_path that.
    pub fn announcements(&self) -> Vec<String> {
        let announces = |line: &String| line.starts_with("PORT ") || line.starts_with("EPRT ");
        self.lines().into_iter().filter(announces).collect()
    }
}
