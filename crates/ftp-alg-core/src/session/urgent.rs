//! Urgent data (RFC 9293 section 3.8.5; RFC 6093).
//!
//! Most servers read the urgent byte in the stream (SO_OOBINLINE); others read the stream without it. A server may take
//! the byte before the urgent pointer as the urgent byte (Linux, BSD), or the byte after it. So a line could be one
//! command for us and another for the server. The gateway therefore clears the URG bit, and the byte is in the stream
//! for everybody.
//!
//! One use is legitimate: the Telnet Synch (RFC 854), an urgent byte among the Telnet commands before `ABOR`, `STAT` or
//! `QUIT` (RFC 959 section 4.1.3). It makes some servers read the command during a transfer. URG stays there if the
//! urgent byte precedes the first readable byte of its line. The line is then held back until it is complete. If it is
//! another known command without the urgent byte, it is crossed out. A server has no legitimate use. A retransmission
//! is treated alike, because the urgent pointer is stored with its sequence number.

use serde::{Deserialize, Serialize};

use super::MAX_HELD;
use crate::{
    ftp::{Command, Text, Verb},
    packet::Seq,
};

/// A client's urgent pointer that was forwarded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UrgentPointer {
    /// The sequence number that the pointer names: one after the urgent byte.
    end: Seq,
    /// The line with the urgent byte, until it is complete.
    line: Option<UrgentLine>,
}

/// A line with an urgent byte.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct UrgentLine {
    /// The bytes read so far, including Telnet commands.
    bytes: Vec<u8>,
    /// Index of the urgent byte.
    urgent: usize,
}

impl UrgentPointer {
    /// The urgent pointer `end`, if it belongs to a Telnet Synch. `new` are the new bytes of its packet from `next` on,
    /// and `known` is the start of its line that was read before. The urgent byte must be new, in this packet, and
    /// before everything readable in its line.
    pub fn from_telnet_synch(end: Seq, next: Seq, new: &[u8], known: &[u8]) -> Option<Self> {
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
            _ => text.line_range(0..1).start,
        };
        let line = UrgentLine { bytes: known.to_vec(), urgent };
        (line.urgent < lead).then_some(Self { end, line: Some(line) })
    }

    /// The sequence number that the pointer names.
    pub fn end(&self) -> Seq {
        self.end
    }

    /// Whether its line is incomplete. A line may have one urgent byte.
    pub fn has_open_line(&self) -> bool {
        self.line.is_some()
    }

    /// Reads `chunk` at `seq`, which continues or completes a line. Returns whether that line has the urgent byte.
    pub fn continues(&mut self, seq: Seq, chunk: &[u8]) -> bool {
        let Self { end, line: Some(line) } = self else { return false };
        if (*end - 1).is_before(seq + chunk.len() as u32) {
            let room = (MAX_HELD + 1).saturating_sub(line.bytes.len());
            line.bytes.extend(&chunk[..chunk.len().min(room)]);
            return true;
        }
        false
    }

    /// Reads `chunk` at `seq`, which completes a line. Returns whether the line is another command for servers that
    /// read the stream without the urgent byte.
    pub fn ends_ambiguously(&mut self, seq: Seq, chunk: &[u8]) -> bool {
        let is_urgent = self.continues(seq, chunk);
        let line = if is_urgent { self.line.take_if(|line| !line.may_continue()) } else { None };
        line.is_some_and(|line| line.is_ambiguous())
    }
}

impl UrgentLine {
    /// Whether the line feed at its end may be the urgent byte, so that this line and the next are one.
    fn may_continue(&self) -> bool {
        self.urgent + 2 == self.bytes.len() && self.bytes.ends_with(b"\n")
    }

    /// Whether the line without the urgent byte is another known command, whichever byte that is.
    fn is_ambiguous(&self) -> bool {
        let read = Text::new(last_line(&self.bytes));
        let is_other = |at: usize| {
            let mut bytes = self.bytes.clone();
            bytes.remove(at);
            let other = from_first_letter(last_line(&bytes));
            other != read.bytes() && is_known_command(&other)
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

/// The part of a line that remains for a server which skips everything that cannot start a command.
fn from_first_letter(line: &[u8]) -> Vec<u8> {
    let text = Text::new(line);
    text.bytes().iter().copied().skip_while(|byte| !byte.is_ascii_alphabetic()).collect()
}

fn is_known_command(line: &[u8]) -> bool {
    Command::parse(&Text::new(line)).is_some_and(|command| command.verb != Verb::Unknown)
}
