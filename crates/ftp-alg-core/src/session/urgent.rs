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

use super::{
    Dialogue, Forward, Inspection, Outcome, Refused, Session, Side,
    lines::{LineEdit, refusal},
    stream::MAX_HELD,
};
use crate::{
    ftp::{Command, Text, Verb},
    packet::{Packet, Seq, flags},
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

impl Session {
    /// Takes a packet of `from` with the URG bit, as [`Session::packet_after`] does.
    #[cold]
    pub(super) fn urgent_packet(
        &mut self,
        calm: bool,
        from: Side,
        packet: &Packet<'_>,
        pass: &mut Inspection,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let end = packet.seq() + u32::from(packet.urgent().unwrap_or(0));
        let mut stays = !self.is_readable(from);
        let before = self.mark().cloned();
        if !stays && from == Side::Client {
            stays = before.as_ref().is_some_and(|mark| mark.end == end);
            if !stays && let Some(line) = self.line_of_synch(end, packet) {
                self.seldom_mut().mark = Some(Mark { end, line: Some(line) });
                stays = true;
            }
        }
        let mut outcome = self.take(calm, from, packet, pass, out);
        if pass.request.is_some() {
            return outcome; // its mark is noted for when it is taken up again
        }
        let is_noted = stays && from == Side::Client && self.mark().is_some();
        if is_noted && !(self.client.next + 1).is_after(end) {
            // The segment was not forwarded, so its mark was not either.
            self.seldom_mut().mark = before;
            stays = false;
        }
        if !stays {
            outcome.forward = without_urgent(outcome.forward, packet);
        }
        outcome
    }

    /// Whether a line with an urgent byte is not complete.
    pub(super) fn is_in_marked_line(&self) -> bool {
        self.mark().is_some_and(|mark| mark.line.is_some())
    }

    /// The client's `chunk` at `seq` is read, which continues or ends a line. Whether that has an urgent byte.
    pub(super) fn continues_marked_line(&mut self, seq: Seq, chunk: &[u8]) -> bool {
        let Some(Mark { end, line: Some(line) }) = self.mark_mut() else { return false };
        if (*end - 1).is_before(seq + chunk.len() as u32) {
            let room = (MAX_HELD + 1).saturating_sub(line.bytes.len());
            line.bytes.extend(&chunk[..chunk.len().min(room)]);
            return true;
        }
        false
    }

    /// The client's `chunk` at `seq` ends a line. Whether an urgent byte makes it another command for servers that
    /// read the stream without that byte.
    pub(super) fn ends_ambiguously(&mut self, seq: Seq, chunk: &[u8]) -> bool {
        let is_marked = self.continues_marked_line(seq, chunk);
        let acknowledged = self.client.unacknowledged();
        let Some(mark) = self.mark_mut() else { return false };
        let line = if is_marked { mark.line.take_if(|line| !line.may_go_on()) } else { None };
        if mark.line.is_none() && mark.end.is_before(acknowledged) {
            self.seldom_mut().mark = None;
        }
        line.is_some_and(|line| line.is_ambiguous())
    }

    pub(super) fn mark(&self) -> Option<&Mark> {
        self.seldom.as_ref()?.mark.as_ref()
    }

    fn mark_mut(&mut self) -> Option<&mut Mark> {
        self.seldom.as_mut()?.mark.as_mut()
    }

    /// If the urgent pointer of `packet`, which names `end`, is that of a Telnet Synch: the start of its line that
    /// was read already. The urgent byte must be new, in this packet, and before all that is readable in its line.
    /// A line may have one urgent byte.
    fn line_of_synch(&self, end: Seq, packet: &Packet<'_>) -> Option<Line> {
        let (seq, next, urgent) = (packet.seq(), self.client.next, end - 1);
        if seq.is_after(next) || urgent.is_before(next) || self.is_in_marked_line() {
            return None;
        }
        let payload = self.as_read(seq, packet.payload());
        let new = payload.get((next - seq) as usize..)?;
        let at = (urgent - next) as usize;
        let (before, from) = (new.get(..at)?, new.get(at..).filter(|from| !from.is_empty())?);
        let start = memchr::memrchr(b'\n', before).map_or(0, |at| at + 1);
        let stop = at + memchr::memchr(b'\n', from).unwrap_or(from.len());
        let known = if start == 0 { self.client.line() } else { &[] };
        let line = [known, &new[start..stop]].concat();
        let urgent = known.len() + at - start;
        let text = Text::new(&line);
        let lead = match text.bytes() {
            [] => line.len(),
            _ => text.origin(0..1).start,
        };
        (urgent < lead).then(|| Line { bytes: known.to_vec(), urgent })
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

/// The client's line, which is another command for some servers and of which `delivered` bytes were forwarded, is refused.
pub fn ambiguous_line(
    dialogue: &mut Dialogue,
    line: &[u8],
    delivered: usize,
    pass: &mut Inspection,
) -> LineEdit {
    pass.refused(Refused::Urgent);
    dialogue.refused(Refused::Urgent.reason());
    let text = Text::new(line);
    if text.bytes().is_empty() {
        return None;
    }
    let (range, new) = refusal(&text, line);
    let skipped = delivered.saturating_sub(range.start).min(range.len());
    (skipped < range.len()).then(|| (range.start + skipped..range.end, new[skipped..].to_vec()))
}

fn without_urgent(forward: Forward, packet: &Packet<'_>) -> Forward {
    match forward {
        Forward::Drop(_) | Forward::Asks => forward,
        Forward::Unchanged => Forward::Changed {
            seq: packet.seq(),
            ack: packet.ack(),
            payload: false,
            flags: packet.flags() & !flags::URG,
            urgent: 0,
        },
        Forward::Changed { seq, ack, payload, flags, .. } => {
            Forward::Changed { seq, ack, payload, flags: flags & !flags::URG, urgent: 0 }
        }
    }
}
