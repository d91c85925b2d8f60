//! Urgent data (RFC 9293 section 3.8.5; RFC 6093).
//!
//! Most servers read the urgent byte in the stream (SO_OOBINLINE); others read the stream without it, and a server
//! may take the byte before the urgent pointer for it (Linux, BSD) or the one behind. So a command could be one line
//! for us and another for the server. The URG bit is therefore cleared, and the byte is in the stream for everybody.
//!
//! One use is legitimate: the Telnet Synch (RFC 854), Telnet commands with an urgent byte among them before `ABOR`,
//! `STAT` or `QUIT` (RFC 959 section 4.1.3), which makes some servers look at the command during a transfer. There URG
//! stays, if the urgent byte stands before the first readable byte of its line. The line is then held back until it
//! is complete. If it is another known command without the urgent byte, it is crossed out. Of a server nothing is
//! legitimate. A retransmission gets the same treatment, as a mark is remembered by its sequence number.

use serde::{Deserialize, Serialize};

use super::limits::MAX_HELD;
use crate::{
    ftp::{Command, Text, Verb},
    packet::Seq,
};

/// An urgent pointer of the client that was forwarded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// The sequence number that the pointer names: the one behind the urgent byte.
    end: Seq,
    /// The line that the urgent byte stands in, until it is complete.
    line: Option<Line>,
}

/// A line with an urgent byte.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Line {
    /// What was read of it, Telnet commands included.
    bytes: Vec<u8>,
    /// The index of the urgent byte.
    urgent: usize,
}

impl Mark {
    /// If the urgent pointer that names `end` is that of a Telnet Synch, where `new` is what is new in its packet from
    /// `next` on, and `known` the start of its line that was read already. The urgent byte must be new, in this packet,
    /// and before all that is readable in its line.
    pub fn of_synch(end: Seq, next: Seq, new: &[u8], known: &[u8]) -> Option<Self> {
        let urgent = end - 1;
        if urgent.is_before(next) {
            return None;
        }
        let at = (urgent - next) as usize;
        let (before, from) = (new.get(..at)?, new.get(at..).filter(|from| !from.is_empty())?);
        let start = memchr::memrchr(b'\n', before).map_or(0, |at| at + 1);
        let stop = at + memchr::memchr(b'\n', from).unwrap_or(from.len());
        let known = if start == 0 { known } else { &[] };
        let line = [known, &new[start..stop]].concat();
        let urgent = known.len() + at - start;
        let text = Text::new(&line);
        let lead = match text.bytes() {
            [] => line.len(),
            _ => text.origin(0..1).start,
        };
        let line = Line { bytes: known.to_vec(), urgent };
        (line.urgent < lead).then_some(Self { end, line: Some(line) })
    }

    /// The sequence number that the pointer names.
    pub fn end(&self) -> Seq {
        self.end
    }

    /// Whether its line is not complete. A line may have one urgent byte.
    pub fn is_in_line(&self) -> bool {
        self.line.is_some()
    }

    /// `chunk` at `seq` is read, which continues or ends a line. Whether that has the urgent byte.
    pub fn continues(&mut self, seq: Seq, chunk: &[u8]) -> bool {
        let Self { end, line: Some(line) } = self else { return false };
        if (*end - 1).is_before(seq + chunk.len() as u32) {
            let room = (MAX_HELD + 1).saturating_sub(line.bytes.len());
            line.bytes.extend(&chunk[..chunk.len().min(room)]);
            return true;
        }
        false
    }

    /// `chunk` at `seq` ends a line. Whether the urgent byte makes it another command for servers that read the stream
    /// without that byte.
    pub fn ends_ambiguously(&mut self, seq: Seq, chunk: &[u8]) -> bool {
        let is_marked = self.continues(seq, chunk);
        let line = if is_marked { self.line.take_if(|line| !line.may_go_on()) } else { None };
        line.is_some_and(|line| line.is_ambiguous())
    }
}

impl Line {
    /// Whether the line feed at its end may be the urgent byte, so that it is one line with the next one.
    fn may_go_on(&self) -> bool {
        self.urgent + 2 == self.bytes.len() && self.bytes.ends_with(b"\n")
    }

    /// Whether the line is another known command without the urgent byte, whichever byte that is.
    fn is_ambiguous(&self) -> bool {
        let said = Text::new(last_line(&self.bytes));
        let is_other = |at: usize| {
            let mut bytes = self.bytes.clone();
            bytes.remove(at);
            let other = readable(last_line(&bytes));
            other != said.bytes() && is_known(&other)
        };
        let end = self.bytes.len().min(self.urgent + 2);
        self.bytes.len() > MAX_HELD || (self.urgent..end).any(is_other)
    }
}

/// The last line of `bytes`, which may end with its line feed.
fn last_line(bytes: &[u8]) -> &[u8] {
    let complete = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    memchr::memrchr(b'\n', complete).map_or(bytes, |at| &bytes[at + 1..])
}

/// What a server reads of a line that skips all that no command begins with.
fn readable(line: &[u8]) -> Vec<u8> {
    let text = Text::new(line);
    text.bytes().iter().copied().skip_while(|byte| !byte.is_ascii_alphabetic()).collect()
}

fn is_known(line: &[u8]) -> bool {
    Command::parse(&Text::new(line)).is_some_and(|command| command.verb != Verb::Unknown)
}
