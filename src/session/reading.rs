//! Reading the stream: from new bytes to whole lines, and what of an unfinished line is held back.
//!
//! Bytes come here in the order of their numbers, each once. What a whole line says is read in
//! `lines`; where its bytes are kept, and how they are delivered, is the matter of `stream`.

use super::{
    Judge, Limit, Note, Phase, Refused, Session, Side, TlsRecords, Unread,
    lines::{Read, client_line, is_no_beginning, server_line},
    stream::MAX_HELD,
};
use crate::{
    ftp::{Command, Text},
    packet::Seq,
};

impl Session {
    /// Reads the bytes `new`, which start at `seq` and were not seen before.
    pub(super) fn read(
        &mut self,
        from: Side,
        mut seq: Seq,
        mut new: &[u8],
        fin: bool,
        judge: &mut impl Judge,
    ) {
        while !new.is_empty() {
            if !self.is_readable(from) {
                let Some(start) = self.text_start(from, seq, new, judge) else { return };
                (seq, new) = (seq + start as u32, &new[start..]);
            }
            let Some(end) = memchr::memchr(b'\n', new) else {
                if from == Side::Client && is_no_beginning(&self.dialogue, new) {
                    self.stop_reading(judge);
                    continue;
                }
                self.continue_line(from, seq, new, fin, judge);
                return;
            };
            let (chunk, rest) = new.split_at(end + 1);
            self.end_line(from, seq, chunk, judge);
            (seq, new) = (seq + chunk.len() as u32, rest);
        }
    }

    /// Where in the bytes `new` at `seq`, which begin as something else, text begins again; `None`
    /// if it does not.
    #[cold]
    fn text_start(
        &mut self,
        from: Side,
        seq: Seq,
        new: &[u8],
        judge: &mut impl Judge,
    ) -> Option<usize> {
        let was_holding = self.peek(from).is_holding();
        if was_holding {
            self.stream(from).let_go(seq, *new.first()?);
        }
        let (records, others) =
            match (self.seldom.as_mut().and_then(|seldom| seldom.unread.as_mut()), from) {
                (None, _) => return Some(0),
                (Some(Unread::Opaque), _) => return None,
                (Some(Unread::Encrypted { client, server }), Side::Client) => (client, server),
                (Some(Unread::Encrypted { client, server }), Side::Server) => (server, client),
            };
        let start = records.as_mut()?.follow(new)?;
        if was_holding && start == 0 {
            // It goes on a line whose start went with its first byte.
            self.stop_reading(judge);
            return None;
        }
        if others.is_some() {
            *records = None;
            self.dialogue.resume();
            judge.note(Note::Readable);
        } else {
            self.seldom_mut().unread = None;
        }
        Some(start)
    }

    /// `chunk` at `seq` ends a line.
    fn end_line(&mut self, from: Side, seq: Seq, chunk: &[u8], judge: &mut impl Judge) {
        let overtaken = self.is_overtaken(from, seq + chunk.len() as u32);
        let stream = match from {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        };
        let (line, delivered) = stream.line_with(chunk);
        let mut read = Read::Nothing;
        let edit = match from {
            Side::Client => {
                client_line(&mut self.dialogue, line, delivered, overtaken, judge, &mut read)
            }
            Side::Server => {
                server_line(&mut self.dialogue, line, delivered, overtaken, judge, &mut read)
            }
        };
        stream.end_line(seq, chunk, delivered, edit);
        if self.dialogue.has_forgotten() {
            judge.limit(Limit::Commands);
        }
        match read {
            Read::Nothing => {}
            Read::NotFtp => self.stop_reading(judge),
            Read::Encrypted => {
                self.seldom_mut().unread = Some(Unread::Encrypted {
                    client: Some(TlsRecords::default()),
                    server: Some(TlsRecords::default()),
                });
                self.client.stop_reading();
                self.server.stop_reading();
                judge.note(Note::Encrypted);
            }
        }
    }

    /// `chunk` at `seq` belongs to a line that is not complete; a FIN follows it if `fin`.
    fn continue_line(
        &mut self,
        from: Side,
        mut seq: Seq,
        mut chunk: &[u8],
        fin: bool,
        judge: &mut impl Judge,
    ) {
        if from == Side::Client && !self.client.is_holding() {
            let lead = self.pass_lead(chunk);
            (seq, chunk) = (seq + lead as u32, &chunk[lead..]);
            if chunk.is_empty() {
                return;
            }
        }
        let overtaken = self.is_overtaken(from, seq + chunk.len() as u32);
        let stream = match from {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        };
        let before = stream.line().len();
        let mut hold = false;
        if (stream.is_holding() || before == 0) && self.dialogue.phase() != Phase::Joined {
            let line = [stream.line(), chunk].concat();
            let text = Text::new(&line);
            hold = match from {
                Side::Client => Command::may_announce(&text, judge.refuses_auth()),
                Side::Server => self.dialogue.may_announce(&text),
            };
        }
        let refused = if before + chunk.len() > MAX_HELD {
            Some(Refused::Overlong)
        } else {
            overtaken.then_some(Refused::Overtaken)
        };
        if hold && let Some(refused) = refused {
            if from == Side::Client {
                judge.refused(refused);
                stream.cross_out(seq, chunk);
                return;
            }
            hold = false;
        }
        stream.continue_line(seq, chunk, hold && !fin);
    }

    /// Telnet commands (urgent ones above all) and blanks before a command need not wait: gives how
    /// much of `chunk` they are.
    fn pass_lead(&mut self, chunk: &[u8]) -> usize {
        let line = [self.client.line(), chunk].concat();
        let text = Text::new(&line);
        let start = match text.bytes() {
            [] => line.len(),
            _ => text.origin(0..1).start,
        };
        let Some(lead) = start.checked_sub(self.client.line().len()) else { return 0 };
        let unfinished = if lead == chunk.len() { text.unfinished() } else { 0 };
        self.client.pass_over(line[..start].to_vec(), unfinished);
        lead
    }

    /// The connection is not FTP: from here on nothing is read.
    fn stop_reading(&mut self, judge: &mut impl Judge) {
        self.seldom_mut().unread = Some(Unread::Opaque);
        self.client.stop_reading();
        self.server.stop_reading();
        judge.note(Note::NotFtp);
    }
}
