//! Reading the stream: from new bytes to whole lines, and what of an unfinished line is held back.
//!
//! Bytes come here in the order of their numbers, each once. What a whole line says is read in
//! `lines`; where its bytes are kept, and how they are delivered, is the matter of `stream`.

use super::{
    Answers, Dialogue, Inspection, Limit, Note, Phase, Refused, Session, Side, TlsRecords, Unread,
    adjust::CROSSED_OUT,
    apart::Pushed,
    lines::{CROSSED_LINE, Limits, Read, client_line, is_no_beginning, server_line},
    stream::{MAX_HELD, MAX_LINE},
    urgent::{Mark, ambiguous_line},
};
use crate::{
    ftp::{Command, Hidden, LineEnd, Text, may_end_or_skip},
    packet::Seq,
};

/// How long the verbs are that are held back.
const VERB: usize = 4;

/// How many bytes at the end of `lead` bear on what follows: a Telnet command that may go on, or a CR that may end a line,
/// with the Telnet command of which it may be a part.
fn may_go_on(lead: &[u8]) -> usize {
    match lead {
        [.., 0xff, _, b'\r'] => 3,
        [.., 0xff, _] => 2,
        [.., 0xff | b'\r'] => 1,
        _ => 0,
    }
}

/// What a line changes as it is read, as it was before: a line that asks is read again once that is answered.
struct Before {
    dialogue: Dialogue,
    mark: Option<Mark>,
    line: usize,
    notes: usize,
}

impl Before {
    /// If the line that `chunk` of `from` ends may ask: an announcement may, and the answer to what was crossed out.
    fn of(session: &Session, from: Side, chunk: &[u8], pass: &Inspection) -> Option<Self> {
        let line = session.peek(from).line();
        let may_ask = match from {
            Side::Client => memchr::memchr2_iter(b'P', b'p', line)
                .chain(memchr::memchr2_iter(b'P', b'p', chunk))
                .next()
                .is_some(),
            Side::Server => true,
        };
        may_ask.then(|| Self {
            dialogue: session.dialogue.clone(),
            mark: session.mark().cloned(),
            line: line.len(),
            notes: pass.notes.len(),
        })
    }

    fn restore(self, session: &mut Session, from: Side, pass: &mut Inspection) {
        session.dialogue = self.dialogue;
        if session.mark().is_some() || self.mark.is_some() {
            session.seldom_mut().mark = self.mark;
        }
        session.stream(from).shorten_line(self.line);
        pass.notes.truncate(self.notes);
    }
}

impl Session {
    /// Reads `line` at `seq`, which was not seen before: a whole one, or the start of one. If it `is_last`, nothing follows
    /// it in its segment, and if `fin` a FIN does.
    pub(super) fn read_line(
        &mut self,
        from: Side,
        seq: Seq,
        line: &[u8],
        (is_last, fin): (bool, bool),
        pass: &mut Inspection,
    ) {
        if line.ends_with(b"\n") {
            self.end_line(from, seq, line, pass);
            if from == Side::Server && self.pushed != Pushed::Not && is_last {
                self.dialogue.settled();
            }
            return;
        }
        if from == Side::Client && is_no_beginning(&self.dialogue, line) {
            self.leave_ftp(pass);
        }
        self.continue_line(from, seq, line, fin, pass);
    }

    /// Where in the bytes `new` at `seq`, which begin as something else, text begins again; `None`
    /// if it does not.
    #[cold]
    pub(super) fn text_start(
        &mut self,
        from: Side,
        seq: Seq,
        new: &[u8],
        pass: &mut Inspection,
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
            self.stop_reading(pass);
            return None;
        }
        if others.is_some() {
            let complete =
                |of: &Option<TlsRecords>| of.as_ref().is_some_and(TlsRecords::is_complete);
            let session = complete(records) && complete(others);
            *records = None;
            self.dialogue.resume(session);
            pass.note(Note::Readable);
        } else {
            self.seldom_mut().unread = None;
        }
        Some(start)
    }

    /// `chunk` at `seq` ends a line.
    fn end_line(&mut self, from: Side, mut seq: Seq, mut chunk: &[u8], pass: &mut Inspection) {
        if from == Side::Client && self.client.line().len() + chunk.len() > MAX_LINE {
            // Not all of the line is kept until it is read.
            let end = chunk.len() - if chunk.ends_with(b"\r\n") { 2 } else { 1 };
            if end > 0 && !self.client.is_holding() && self.hides(seq, &chunk[..end], pass) {
                (seq, chunk) = (seq + end as u32, &chunk[end..]);
            }
        }
        let is_unproven = self.copies().is_some_and(|copies| copies.is_unproven(from));
        let overtaken = is_unproven || self.is_overtaken(from, seq + chunk.len() as u32);
        if is_unproven {
            self.copies_mut().end_line(from);
        }
        let before = Before::of(self, from, chunk, pass);
        let is_ambiguous = from == Side::Client && self.ends_ambiguously(seq, chunk);
        let grow = self.client.window > 0;
        let stream = match from {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        };
        let replace = !stream.map.is_half_full();
        let (line, delivered) = stream.line_with(chunk);
        let mut read = Read::Nothing;
        let edit = match from {
            Side::Client if is_ambiguous => {
                ambiguous_line(&mut self.dialogue, line, delivered, pass)
            }
            Side::Client => {
                client_line(&mut self.dialogue, line, delivered, overtaken, pass, &mut read)
            }
            // Perhaps a part of a line: it answers a command, but is no login, and encrypts nothing.
            Side::Server if is_unproven && line.starts_with(b"23") => {
                self.dialogue.answered_unproven();
                None
            }
            Side::Server => {
                let apart = self.pushed == Pushed::Apart;
                let limits = Limits { overtaken, replace, grow, apart };
                server_line(&mut self.dialogue, line, delivered, limits, pass, &mut read)
            }
        };
        if pass.request.is_some()
            && let Some(before) = before
        {
            return before.restore(self, from, pass);
        }
        pass.answers = Answers::default();
        stream.end_line(seq, chunk, delivered, edit);
        if self.dialogue.has_forgotten() {
            pass.limit(Limit::Commands);
        }
        match read {
            Read::Nothing => {}
            Read::NotFtp => self.stop_reading(pass),
            Read::NotFtpClient => pass.note(Note::NotFtpClient),
            Read::Encrypted => {
                self.seldom_mut().unread = Some(Unread::Encrypted {
                    client: Some(TlsRecords::default()),
                    server: Some(TlsRecords::default()),
                });
                self.client.stop_reading();
                self.server.stop_reading();
                pass.note(Note::Encrypted);
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
        pass: &mut Inspection,
    ) {
        let is_marked = from == Side::Client && self.continues_marked_line(seq, chunk);
        if from == Side::Client && !self.client.is_holding() {
            let lead = self.pass_lead(chunk, pass.refuses_auth);
            (seq, chunk) = (seq + lead as u32, &chunk[lead..]);
            if chunk.is_empty() {
                return;
            }
            if is_marked {
                self.client.pass_over(Vec::new(), 0); // what follows is held back by itself
            }
        }
        let overtaken = self.is_overtaken(from, seq + chunk.len() as u32);
        let stream = match from {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        };
        let before = stream.line().len();
        let mut hold = is_marked;
        if !hold && (stream.is_holding() || before == 0) && self.dialogue.phase() != Phase::Joined {
            let line = [stream.line(), chunk].concat();
            let text = Text::new(&line);
            hold = match from {
                Side::Client => Command::may_announce(&text, pass.refuses_auth),
                Side::Server => self.dialogue.may_announce(&text),
            };
            // Of what may be another protocol's no byte waits for the next: its server may wait for it, too.
            let is_early = matches!(self.dialogue.phase(), Phase::Early | Phase::EarlyFeat);
            hold &= !is_early || text.bytes().len() > VERB;
        }
        let refused = if before + chunk.len() > MAX_HELD {
            Some(Refused::Overlong)
        } else {
            overtaken.then_some(Refused::Overtaken)
        };
        if hold && let Some(refused) = refused {
            if from == Side::Client {
                pass.refused(refused);
                stream.cross_out(seq, chunk);
                return;
            }
            hold = false;
        }
        if !hold && from == Side::Client && self.hides(seq, chunk, pass) {
            return;
        }
        self.stream(from).continue_line(seq, chunk, hold && !fin);
        if from == Side::Client && before + chunk.len() > MAX_LINE {
            self.keep_last_start(chunk);
        }
    }

    /// Whether some server may see an announcement in what goes on with `chunk` at `seq`: it is crossed out from there on.
    fn hides(&mut self, seq: Seq, chunk: &[u8], pass: &mut Inspection) -> bool {
        if self.dialogue.phase() == Phase::Joined {
            return false;
        }
        let before = self.client.line().len();
        let line = [self.client.line(), chunk].concat();
        let Some(end) = Hidden::find(&line, pass.refuses_auth) else { return false };
        // What the line would have shown as a whole, as that it is none of FTP, is not known.
        self.dialogue.client_line_ended(LineEnd::Odd);
        if !self.client.line().starts_with(CROSSED_LINE) {
            pass.refused(Refused::Hidden);
        }
        if self.client.is_holding() {
            self.client.cross_out(seq, chunk);
        } else {
            let kept = end.saturating_sub(before).min(chunk.len() - 1);
            let (kept, rest) = chunk.split_at(kept);
            self.client.map.replace(
                seq + kept.len() as u32,
                rest.len() as u32,
                vec![CROSSED_OUT; rest.len()],
            );
        }
        self.client.pass_over(CROSSED_LINE.to_vec(), CROSSED_LINE.len());
        true
    }

    /// Of an unfinished line that is longer than is kept, the last place where some server may see another one begin.
    fn keep_last_start(&mut self, chunk: &[u8]) {
        if let Some(at) = chunk.iter().rposition(|byte| matches!(byte, 0 | b'\r')) {
            self.client.pass_over(chunk[at..].to_vec(), chunk.len() - at);
        }
    }

    /// Telnet commands (urgent ones above all) and blanks before a command need not wait: gives how
    /// much of `chunk` they are. They are kept where servers may read what follows otherwise.
    fn pass_lead(&mut self, chunk: &[u8], auth: bool) -> usize {
        let line = [self.client.line(), chunk].concat();
        let text = Text::new(&line);
        let start = match text.bytes() {
            [] => line.len(),
            _ => text.origin(0..1).start,
        };
        let Some(lead) = start.checked_sub(self.client.line().len()) else { return 0 };
        let is_all = lead == chunk.len();
        if !is_all && !Command::may_announce(&text, auth) {
            return 0;
        }
        let mut unfinished = if is_all { text.unfinished().max(may_go_on(&line)) } else { 0 };
        let passed = &line[..start - unfinished];
        let is_cut = is_all && Text::new(passed).unfinished() > 0; // within a Telnet command
        if is_cut || may_end_or_skip(passed) {
            self.dialogue.client_line_ended(LineEnd::Odd);
        }
        if is_cut {
            unfinished = text.unfinished();
        }
        self.client.pass_over(line[..start].to_vec(), unfinished);
        lead
    }

    /// The client is none of FTP.
    fn leave_ftp(&mut self, pass: &mut Inspection) {
        self.dialogue.leave_ftp();
        pass.note(Note::NotFtpClient);
    }

    /// The connection is not FTP: from here on nothing is read.
    fn stop_reading(&mut self, pass: &mut Inspection) {
        self.seldom_mut().unread = Some(Unread::Opaque);
        self.client.stop_reading();
        self.server.stop_reading();
        pass.note(Note::NotFtp);
    }
}
