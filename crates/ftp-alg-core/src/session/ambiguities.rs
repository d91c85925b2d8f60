//! The pending commands, and whether client and server may disagree about line ends, or about which reply answers which
//! command. Nothing is opened meanwhile.

use serde::{Deserialize, Serialize};

use super::{
    RefusalReason,
    compact::{self, CompactVec},
};
use crate::ftp::{LineEnd, Reply, Text, Verb};

/// Why the ends may disagree about the dialogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Ambiguity {
    /// A line of the server did not end with CR LF (or with LF, where that is known to be a line end), or contained a
    /// CR, LF or NUL.
    LineEnds,
    /// A line of the server belonged to no reply, or ended inside a quoted name.
    StrayLine,
    /// A pending or unfinished reply may contain file names or contents. Their author can make them look like other
    /// replies.
    ListingReply,
    /// As [`Ambiguity::LineEnds`], caused by a line of the client.
    ClientLineEnds,
    /// As [`Ambiguity::ClientLineEnds`], but only the end of the last line is ambiguous: it is LF alone, and no other
    /// command is pending. A `PORT` there opens no more than the client could open anyway, and a `PASV` what
    /// the server answers.
    ClientLf,
    /// Resolved, but the server may store a name with line ends in it. The next command leads to
    /// [`Ambiguity::RepeatedName`].
    NameWithLineEnd,
    /// The server may repeat such a name in a pending reply.
    RepeatedName,
    /// Resolved as far as can be seen. A server's announcement must be a complete reply of its own.
    Resolved,
    /// An announcement was not a complete reply of its own.
    PartialReply,
}

/// Whether a client's lines end with LF alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum ClientLf {
    #[default]
    Unknown,
    /// The only pending command ended so.
    Tried,
    /// The server has answered such a line.
    Known,
}

/// What a server may have answered that is no command, so that later replies answer earlier commands than it seems.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ExtraReply {
    /// Nothing.
    #[default]
    None,
    /// The client did not wait for the greeting, and there may be two.
    Greeting,
    /// Anything. Some servers answer an empty line, some count blanks and Telnet commands as a line, or replies were
    /// not read.
    Any,
}

/// What is ambiguous in a dialogue.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Ambiguities {
    ambiguity: Option<Ambiguity>,
    /// Whether the server is known to end its lines with LF alone: its greeting ended so, or its reply to a login.
    pub has_server_lf: bool,
    client_lf: ClientLf,
    /// What the server may have answered that is no command.
    pub extra_reply: ExtraReply,
    /// The server's last line.
    #[serde(skip)]
    last_line: LastLine,
}

/// What the server's last line was, and the line before it in the same segment. `Reply` was complete, and the end of a
/// reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LastLine {
    #[default]
    Other,
    Reply,
    OtherBehindReply,
    ReplyBehindReply,
}

impl Ambiguities {
    /// Why no announcement may open a pinhole now, by the client if `is_active`, else by the server.
    pub fn blocked_because(self, is_active: bool) -> Option<&'static str> {
        Some(match self.ambiguity? {
            Ambiguity::ClientLf if is_active => return None,
            // The server answers the line with LF, and no other command is pending.
            Ambiguity::ClientLf
                if self.client_lf == ClientLf::Tried && self.is_reply_complete() =>
            {
                return None;
            }
            // No line of a server makes its client announce anything.
            Ambiguity::LineEnds | Ambiguity::StrayLine if is_active => return None,
            Ambiguity::LineEnds | Ambiguity::ClientLineEnds | Ambiguity::ClientLf => {
                "a line did not end with CR LF, or contained a CR, LF or NUL: client and server may disagree where lines end"
            }
            Ambiguity::StrayLine => {
                "it may be part of another reply: a line of the server belonged to no reply, or ended inside a quoted name"
            }
            Ambiguity::ListingReply if !is_active => {
                "it came with a multi-line reply, or with a reply to STAT, MLST, SITE, HELP or QUIT: a client can choose lines of such replies"
            }
            Ambiguity::RepeatedName if !is_active => {
                "it may be part of another reply, which repeats a name that contains line ends"
            }
            Ambiguity::PartialReply if !is_active => {
                "it may be part of another reply: it was not a segment of its own, or the client's window left no room for more"
            }
            _ => return None,
        })
    }

    /// Whether the dialogue was ambiguous at some time, so that a server's announcement must be a complete reply of its
    /// own.
    pub fn is_any(self) -> bool {
        self.ambiguity.is_some()
    }

    /// Records that the announcement just read is not a complete reply of its own.
    pub fn record_partial_reply(&mut self) {
        match self.ambiguity {
            Some(Ambiguity::Resolved | Ambiguity::ClientLf) => {
                self.ambiguity = Some(Ambiguity::PartialReply);
            }
            Some(Ambiguity::NameWithLineEnd) => self.ambiguity = Some(Ambiguity::RepeatedName),
            _ => {}
        }
    }

    /// Records how a client's line ends, before the line is read. If it `is_only`, no other command is pending.
    pub fn record_client_line_end(&mut self, end: LineEnd, is_only: bool) {
        let is_clear = self.is_clear();
        let is_known = self.client_lf == ClientLf::Known;
        if !is_known {
            let is_tried = end == LineEnd::Lf && is_only;
            self.client_lf = if is_tried { ClientLf::Tried } else { ClientLf::Unknown };
        }
        match end {
            // For some servers it continues the line before.
            LineEnd::Plain if self.ambiguity == Some(Ambiguity::ClientLf) => {
                self.ambiguity = Some(Ambiguity::ClientLineEnds);
            }
            LineEnd::Plain => {}
            LineEnd::Lf if is_known => {}
            LineEnd::Lf if is_only && is_clear => self.ambiguity = Some(Ambiguity::ClientLf),
            LineEnd::Lf | LineEnd::Ambiguous => self.ambiguity = Some(Ambiguity::ClientLineEnds),
        }
    }

    /// Records how a server's line ends, before the line is read. The greeting, and if nothing is ambiguous the reply
    /// to a login (`is_of_login`), show how it ends its lines: they hold no name that contains LF.
    pub fn record_server_line_end(&mut self, end: LineEnd, is_greeting: bool, is_of_login: bool) {
        if end == LineEnd::Lf && (is_greeting || is_of_login && self.is_clear()) {
            self.has_server_lf = true;
            self.require_complete_replies();
        }
        let is_plain = end == LineEnd::Plain || end == LineEnd::Lf && self.has_server_lf;
        self.last_line = match self.is_reply_complete() {
            true => LastLine::ReplyBehindReply,
            false => LastLine::Reply,
        };
        if !is_plain {
            self.record_ambiguous_line(Ambiguity::LineEnds);
        }
    }

    /// Whether the server's last line was complete, and the end of a reply.
    fn is_reply_complete(self) -> bool {
        matches!(self.last_line, LastLine::Reply | LastLine::ReplyBehindReply)
    }

    /// Whether a server may read one line of the client as several, or the other way round.
    pub fn may_part_client_lines(self) -> bool {
        self.ambiguity == Some(Ambiguity::ClientLineEnds)
    }

    /// Whether nothing is ambiguous now.
    pub fn is_clear(self) -> bool {
        matches!(self.ambiguity, None | Some(Ambiguity::Resolved))
    }

    /// Records that a line of the server is ambiguous, and why.
    fn record_ambiguous_line(&mut self, why: Ambiguity) {
        self.ambiguity = Some(match self.ambiguity {
            Some(Ambiguity::ClientLineEnds | Ambiguity::ClientLf) => Ambiguity::ClientLineEnds,
            Some(Ambiguity::NameWithLineEnd | Ambiguity::RepeatedName) => Ambiguity::RepeatedName,
            Some(Ambiguity::LineEnds) => Ambiguity::LineEnds,
            _ => why,
        });
    }

    /// From now on a server's announcement must be a complete reply of its own.
    pub fn require_complete_replies(&mut self) {
        self.ambiguity.get_or_insert(Ambiguity::Resolved);
    }

    /// Records something that the server may have answered, and that is no command.
    pub fn record_extra_reply(&mut self, extra: ExtraReply) {
        self.extra_reply = self.extra_reply.max(extra);
    }

    /// Whether nothing was ambiguous so far, and the server has answered nothing but commands.
    pub fn has_none(self) -> bool {
        !self.is_any() && self.extra_reply == ExtraReply::None
    }

    /// Records a command that the client has sent behind the `pending` ones.
    pub fn record_command(&mut self, verb: Verb, pending: &PendingCommands) {
        let is_passive = matches!(verb, Verb::Pasv | Verb::Epsv);
        match self.ambiguity {
            // If the server ignores another command, the listing's reply comes earlier than it seems.
            None | Some(Ambiguity::Resolved)
                if verb == Verb::Listing && !pending.begins_with_only(PendingKind::Passive) =>
            {
                self.ambiguity = Some(Ambiguity::ListingReply);
            }
            Some(Ambiguity::NameWithLineEnd) if !is_passive => {
                self.ambiguity = Some(Ambiguity::RepeatedName);
            }
            _ => {}
        }
        if is_passive {
            self.expect_listing(pending);
        }
    }

    /// The next line may belong to the reply to a listing, if one is pending.
    pub fn expect_listing(&mut self, pending: &PendingCommands) {
        if pending.contains(PendingKind::Listing) && self.is_clear() {
            self.ambiguity = Some(Ambiguity::ListingReply);
        }
    }

    /// Records whether the server's line ended a reply.
    pub fn record_end_of_reply(&mut self, is_end: bool) {
        self.last_line = match self.last_line {
            LastLine::Reply if !is_end => LastLine::Other,
            LastLine::ReplyBehindReply if !is_end => LastLine::OtherBehindReply,
            line => line,
        };
    }

    /// Records a line of the server after the greeting, which ended `reply`. If it begins one of several lines, `begun`
    /// is its code. A line that is in no reply (`is_stray`) may be part of a file name. Behind a reply in the same
    /// segment, with no command pending, it is more text of that reply, as some servers send it.
    pub fn record_reply_line(
        &mut self,
        text: &Text<'_>,
        reply: Option<Reply>,
        begun: Option<u16>,
        is_stray: bool,
        pending: &PendingCommands,
    ) {
        if begun.is_some_and(may_show_files) && self.is_clear() {
            self.ambiguity = Some(Ambiguity::ListingReply);
        }
        let is_announcement = reply.is_some_and(|reply| matches!(reply.code, 227 | 229));
        if !(is_announcement && pending.oldest() == Some(PendingKind::Passive)) {
            self.expect_listing(pending);
        }
        let follows_reply = self.last_line == LastLine::OtherBehindReply;
        if is_stray && follows_reply && self.is_clear() && pending.is_empty() {
            self.record_other_end();
        } else if is_stray || reply.is_some_and(|reply| reply.code == 257) && ends_inside_name(text)
        {
            self.record_ambiguous_line(Ambiguity::StrayLine);
        }
    }

    /// A line of another code, or without a code, has ended a reply.
    pub fn record_other_end(&mut self) {
        self.last_line = LastLine::Reply;
        self.require_complete_replies();
    }

    /// Ends the ambiguity if the server's last line ended a reply and no command is pending. After a listing, `PASV`
    /// may be, with what its transfer needs: some clients send them while the reply to their login still comes, or with
    /// the login. Returns whether the line ended a reply.
    pub fn resolve(&mut self, pending: &PendingCommands) -> bool {
        if !self.is_reply_complete() {
            return false;
        }
        let is_answered = pending.is_empty();
        // The server has answered a line with LF, so LF ends its lines.
        if self.client_lf == ClientLf::Tried && is_answered {
            self.client_lf = ClientLf::Known;
            if matches!(self.ambiguity, Some(Ambiguity::ClientLineEnds | Ambiguity::ClientLf)) {
                self.ambiguity = Some(Ambiguity::Resolved);
            }
        }
        self.ambiguity = match self.ambiguity {
            Some(Ambiguity::ListingReply) if is_passive_next(pending) => Some(Ambiguity::Resolved),
            ambiguity if !is_answered => ambiguity,
            None => None,
            Some(
                Ambiguity::ClientLineEnds
                | Ambiguity::ClientLf
                | Ambiguity::NameWithLineEnd
                | Ambiguity::RepeatedName,
            ) => Some(Ambiguity::NameWithLineEnd),
            Some(_) => Some(Ambiguity::Resolved),
        };
        // The next line is of another segment.
        self.last_line = LastLine::Other;
        true
    }

    /// What is ambiguous after packets were missed. If they were a client's, the server may store a name with line
    /// ends in it.
    pub fn after_missed(self, client_is_whole: bool) -> Self {
        let ambiguity = match self.ambiguity {
            Some(
                Ambiguity::ClientLineEnds
                | Ambiguity::ClientLf
                | Ambiguity::NameWithLineEnd
                | Ambiguity::RepeatedName,
            ) => Ambiguity::NameWithLineEnd,
            _ if client_is_whole => Ambiguity::Resolved,
            _ => Ambiguity::NameWithLineEnd,
        };
        let client_lf = match self.client_lf {
            ClientLf::Tried => ClientLf::Unknown,
            client => client,
        };
        Self { ambiguity: Some(ambiguity), client_lf, last_line: LastLine::Other, ..self }
    }
}

/// Whether the next reply is that to `PASV` or `EPSV`, or none, and no reply is pending that may show files.
fn is_passive_next(pending: &PendingCommands) -> bool {
    let is_next = pending.oldest().is_none_or(|kind| kind == PendingKind::Passive);
    is_next
        && pending.are_all_of(&[PendingKind::Passive, PendingKind::Transfer, PendingKind::Other])
}

/// Whether a multi-line reply with this code may show a file that a client uploaded. ProFTPD does (`DisplayChdir`), and
/// replaces `%{time:%n}` by line ends. Not in a status, a help, or an announcement.
fn may_show_files(code: u16) -> bool {
    !matches!(code, 211 | 214 | 227 | 229)
}

/// Whether a 257 ends inside its quoted name. The name then contains a line end, because quotes in a name are doubled
/// (RFC 959 appendix II).
fn ends_inside_name(text: &Text<'_>) -> bool {
    text.bytes().iter().filter(|byte| **byte == b'"').count() % 2 == 1
}

/// The reply that a pending command expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PendingKind {
    User,
    Login,
    Passive,
    /// The reply to a `PORT` or `EPRT` that opened a pinhole.
    Announcement,
    EpsvAll,
    Reinitialize,
    Auth,
    Transfer,
    /// An unknown command before any known one. If the client does not wait for the reply to it, it speaks another
    /// protocol.
    FirstUnknown,
    /// The end of the server's greeting.
    Greeting,
    /// The reply to a crossed out command.
    CrossedOut(RefusalReason),
    /// A reply that may show files.
    Listing,
    /// The reply tells the client's directory.
    Directory,
    Other,
    /// The kind is no longer known, only the number of commands.
    Forgotten,
}

/// Whether `reply` may answer a command of this kind. Servers send 225, 226 and 426 when a transfer has ended, however
/// often, and some send a success before the reply to `PASV`.
pub fn may_answer(reply: Reply, kind: PendingKind, before_transfers: bool) -> bool {
    match kind {
        PendingKind::User | PendingKind::Login if before_transfers => true,
        PendingKind::Transfer
        | PendingKind::Listing
        | PendingKind::Directory
        | PendingKind::Other
        | PendingKind::Forgotten => true,
        _ if matches!(reply.code, 225 | 226 | 426) => false,
        PendingKind::Passive => reply.is_failure(),
        _ => true,
    }
}

/// Limit of runs of one kind. Beyond it the kinds of the oldest commands are forgotten, but not their number. Replies
/// still match their commands, and replies to forgotten commands have no effect.
pub const MAX_RUNS: usize = 32;

/// A number of consecutive commands of one kind.
type Run = (PendingKind, u32);

/// The pending commands. Usually there is one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PendingCommands {
    oldest: Option<Run>,
    /// Empty if `oldest` is `None`.
    later: CompactVec<Run>,
}

impl PendingCommands {
    /// Number of runs.
    pub fn len(&self) -> usize {
        usize::from(self.oldest.is_some()) + self.later.len()
    }

    /// Whether no command is pending.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.oldest.is_none()
    }

    /// Number of commands.
    pub fn count(&self) -> u32 {
        let runs = self.oldest.iter().chain(self.later.iter());
        runs.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Number of commands of this kind.
    pub fn count_of(&self, which: PendingKind) -> u32 {
        let runs = self.oldest.iter().chain(self.later.iter());
        runs.filter(|(kind, _)| *kind == which)
            .fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Whether a command of this kind is pending.
    pub fn contains(&self, which: PendingKind) -> bool {
        self.kinds().any(|kind| kind == which)
    }

    /// Whether no command of another kind is pending.
    pub fn are_all_of(&self, which: &[PendingKind]) -> bool {
        self.kinds().all(|kind| which.contains(&kind))
    }

    /// Whether the oldest command is the only one of this kind.
    pub fn begins_with_only(&self, which: PendingKind) -> bool {
        self.oldest == Some((which, 1)) && !self.has_behind_another(which)
    }

    /// Whether a command of this kind waits behind one of another.
    #[inline]
    pub fn has_behind_another(&self, which: PendingKind) -> bool {
        // Runs of one kind are one.
        self.later.iter().any(|(kind, _)| *kind == which)
    }

    /// The kind of the oldest command.
    pub fn oldest(&self) -> Option<PendingKind> {
        self.oldest.map(|(kind, _)| kind)
    }

    /// Adds a command. Returns whether the limit was exceeded, so that the oldest kinds were forgotten.
    pub fn push(&mut self, kind: PendingKind) -> bool {
        let Some(oldest) = &mut self.oldest else {
            self.oldest = Some((kind, 1));
            return false;
        };
        let (last, count) = self.later.last_mut().unwrap_or(oldest);
        if *last == kind {
            *count = count.saturating_add(1);
            return false;
        }
        let is_full = self.len() >= MAX_RUNS;
        if is_full {
            let first = self.oldest.take().map_or(0, |(_, count)| count);
            self.promote_next();
            if let Some((kind, count)) = &mut self.oldest {
                (*kind, *count) = (PendingKind::Forgotten, count.saturating_add(first));
            }
        }
        compact::push(&mut self.later, (kind, 1));
        is_full
    }

    /// Removes the oldest command.
    pub fn pop(&mut self) -> Option<PendingKind> {
        let (kind, count) = self.oldest.as_mut()?;
        let kind = *kind;
        *count -= 1;
        if *count == 0 {
            self.promote_next();
        }
        Some(kind)
    }

    /// Removes the first command for which `is_answered` holds, and those before it, because their replies will not
    /// come any more. Leaves all if there is none.
    pub fn pop_first(&mut self, is_answered: impl Fn(PendingKind) -> bool) -> Option<PendingKind> {
        let at = self.kinds().position(is_answered)?;
        self.drop_runs(at);
        self.pop()
    }

    /// Removes a command of another kind than a transfer's from behind the oldest, a transfer's, which goes on. Returns
    /// `false` if there is none.
    pub fn pop_during_transfer(&mut self) -> bool {
        let is_other = |kind| matches!(kind, PendingKind::Listing | PendingKind::Other);
        let later = self.later.iter().position(|(kind, _)| is_other(*kind));
        let Some(at) = later.filter(|_| self.oldest() == Some(PendingKind::Transfer)) else {
            return false;
        };
        self.later[at].1 -= 1;
        if self.later[at].1 == 0 {
            self.later.remove(at);
        }
        true
    }

    /// Removes the commands before the first `which`, because their replies will not come any more. Returns `false` if
    /// there is none, or if forgotten commands precede it.
    pub fn drop_before(&mut self, which: PendingKind) -> bool {
        self.drop_before_any(&[which])
    }

    /// As [`drop_before`](Self::drop_before), for the first of several kinds.
    pub fn drop_before_any(&mut self, which: &[PendingKind]) -> bool {
        let mut kinds = self.kinds().enumerate();
        let found = kinds.find(|(_, kind)| which.contains(kind) || *kind == PendingKind::Forgotten);
        let Some((at, _)) = found.filter(|(_, kind)| which.contains(kind)) else { return false };
        drop(kinds);
        self.drop_runs(at);
        true
    }

    /// Removes the oldest `count` runs.
    fn drop_runs(&mut self, count: usize) {
        if count > 0 {
            compact::drop_front(&mut self.later, count - 1);
            self.promote_next();
        }
    }

    fn kinds(&self) -> impl Iterator<Item = PendingKind> {
        self.oldest.iter().chain(self.later.iter()).map(|(kind, _)| *kind)
    }

    fn promote_next(&mut self) {
        self.oldest = self.later.first().copied();
        if self.oldest.is_some() {
            compact::drop_front(&mut self.later, 1);
        }
    }
}
