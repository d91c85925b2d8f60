//! The state of the FTP dialogue on one control connection, and what it makes of the next line.
//!
//! Replies come in the order of their commands (RFC 959 section 5.4), so pending commands are stored in order. Servers
//! are not strict about it: `ABOR` has one or two replies, and the reply to `STAT` comes early. Replies whose code
//! shows which command they answer restore the order.
//!
//! Nothing is opened while the ends may disagree about line ends, or about which reply answers which command
//! ([`Ambiguity`]). The ambiguity ends when no command is pending and the server has nothing more to send.

use serde::{Deserialize, Serialize};

use super::{
    DialogueEvent, Reason,
    pending_commands::{MAX_RUNS, PendingCommands, PendingKind},
};
use crate::ftp::{Command, LineEnd, Reply, ReplyTracker, Text, Verb, Zeros};

/// With more pending commands than this, the client does not wait for replies.
const MAX_PENDING: u32 = 16;

/// How much of the dialogue has shown that the connection is FTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// No data yet.
    NotGreeted,
    /// The server has sent its greeting.
    Greeted,
    /// The client has answered the greeting with FTP commands.
    Verified,
    /// Picked up mid-stream: the earlier dialogue is unknown.
    PickedUp,
    /// Packets were missed: the earlier dialogue is unknown.
    Missed,
    /// The client sent data before the server's greeting.
    ClientFirst,
    /// The server's greeting is FTP, but the client is not. Nothing is opened any more. Refused commands are still
    /// refused, because the server obeys whatever it receives.
    NotFtp,
    /// Picked up mid-stream, and the server has replied as an FTP server. Refused commands are refused.
    PickedUpFtp,
    /// The client sent `FEAT` alone before the greeting, as lftp does if it does not wait for replies (`ftp:sync-mode
    /// off`). No other protocol begins like this.
    FeatFirst,
}

impl Phase {
    /// Whether the server has sent its greeting, as far as is known.
    pub fn has_greeted(self) -> bool {
        !matches!(self, Self::NotGreeted | Self::ClientFirst | Self::FeatFirst)
    }
}

/// Why the ends may disagree about the dialogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ambiguity {
    /// A line did not end with CR LF, or contained a CR, LF or NUL.
    Lines,
    /// A pending or unfinished reply may contain file names or contents. Their author can make them look like other
    /// replies.
    Listing,
    /// As [`Ambiguity::Lines`], caused by a line of the client.
    ClientLines,
    /// Resolved, but the server may store a name with line ends in it. The next command leads to
    /// [`Ambiguity::Repeats`].
    Names,
    /// The server may repeat such a name in a pending reply.
    Repeats,
    /// Resolved as far as can be seen. A server's announcement must be a complete reply of its own.
    Over,
    /// An announcement was not a complete reply of its own.
    Rest,
}

/// What a client's line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandEffect {
    /// Nothing that concerns a gateway.
    Nothing,
    /// `PORT` or `EPRT`: the caller reports the decision with [`Dialogue::announced`].
    Announces,
    /// `AUTH`: the caller calls [`Dialogue::auth`] if it is forwarded.
    Auth,
}

/// What a server's reply does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyEffect {
    /// Nothing that concerns a gateway.
    Nothing,
    /// The server is not an FTP server: inspection ends.
    NotFtp,
    /// A 227 or 229.
    Passive {
        /// Whether a `PASV` or `EPSV` was pending.
        asked: bool,
    },
    /// The reply to a command that was blanked for this reason.
    Refused(Reason),
    /// An event that concerns pinholes or the session's state.
    Notable(DialogueEvent),
    /// Encryption begins with the next byte.
    Encrypted,
}

/// The state of one dialogue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dialogue {
    phase: Phase,
    logged_in: bool,
    epsv_all: bool,
    replies: ReplyTracker,
    awaited: PendingCommands,
    doubt: Option<Ambiguity>,
    /// The leading zeros that the server accepts, according to its greeting.
    zeros: Zeros,
    /// Whether the server's last line was complete, unambiguous, and the end of a reply.
    #[serde(skip)]
    replied: bool,
    /// Whether command kinds were forgotten since the last call of [`Dialogue::has_forgotten`].
    #[serde(skip)]
    forgot: bool,
}

impl Default for Dialogue {
    /// A dialogue at its start.
    fn default() -> Self {
        Self {
            phase: Phase::NotGreeted,
            logged_in: false,
            epsv_all: false,
            replies: ReplyTracker::default(),
            awaited: PendingCommands::default(),
            doubt: None,
            zeros: Zeros::Three,
            replied: false,
            forgot: false,
        }
    }
}

impl Dialogue {
    /// A dialogue that was picked up mid-stream.
    pub fn picked_up() -> Self {
        Self { phase: Phase::PickedUp, ..Self::default() }
    }

    /// A dialogue whose client sent data before the greeting, which was not read.
    pub fn client_first() -> Self {
        Self { phase: Phase::ClientFirst, ..Self::default() }
    }

    /// Packets were missed: the earlier dialogue no longer counts, except that the connection is FTP. Either end can
    /// cause this at any time, so it must not lift a refusal.
    pub fn record_missed(&mut self) {
        let phase = match self.phase {
            Phase::PickedUp | Phase::PickedUpFtp | Phase::NotFtp => self.phase,
            // Even if no greeting was seen: the missed packets may contain it.
            _ => Phase::Missed,
        };
        *self = Self { phase, ..Self::default() };
    }

    /// How much of the dialogue has shown that the connection is FTP.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Why no announcement may open a pinhole now, by the client if `is_active`, else by the server.
    pub fn blocked_because(&self, is_active: bool) -> Option<&'static str> {
        Some(match (self.phase, self.doubt) {
            (Phase::NotFtp, _) => "the client is none of FTP",
            (Phase::ClientFirst | Phase::FeatFirst, _) => "the client spoke before the server",
            (Phase::PickedUp | Phase::PickedUpFtp, _) => "the start of the dialogue was not seen",
            (Phase::Missed, _) => "packets of the dialogue were missed",
            (_, Some(Ambiguity::Lines | Ambiguity::ClientLines)) => {
                "a line did not end with CR LF, or had a CR, LF or NUL in it: the ends may not agree where lines end"
            }
            (_, Some(Ambiguity::Listing)) if !is_active => {
                "it came together with a reply of several lines, or that to STAT, MLST, SITE, HELP or QUIT, which may hold lines of the client's making"
            }
            (_, Some(Ambiguity::Repeats)) if !is_active => {
                "it may be a part of another reply, which repeats a name with line ends in it"
            }
            (_, Some(Ambiguity::Rest)) if !is_active => {
                "it may be a part of another reply: it was no segment by itself, or its command left no room for more"
            }
            _ => return None,
        })
    }

    /// Whether the dialogue was ambiguous at some time, so that a server's announcement must be a complete reply of its
    /// own.
    pub fn is_ambiguous(&self) -> bool {
        self.doubt.is_some()
    }

    /// Records that the announcement just read is not a complete reply of its own.
    pub fn may_be_rest(&mut self) {
        match self.doubt {
            Some(Ambiguity::Over) => self.doubt = Some(Ambiguity::Rest),
            Some(Ambiguity::Names) => self.doubt = Some(Ambiguity::Repeats),
            _ => {}
        }
    }

    /// Records that the client does not speak FTP, although the server may.
    pub fn leave_ftp(&mut self) {
        self.phase = Phase::NotFtp;
    }

    /// Records how a client's line ends, before the line is read.
    pub fn client_line_ended(&mut self, end: LineEnd) {
        if end == LineEnd::Odd {
            self.doubt = Some(Ambiguity::ClientLines);
        }
    }

    /// Records how a server's line ends, before the line is read.
    pub fn server_line_ended(&mut self, end: LineEnd) {
        self.replied = end == LineEnd::Plain;
        if end == LineEnd::Odd {
            self.doubt_lines();
        }
    }

    fn doubt_lines(&mut self) {
        self.doubt = Some(match self.doubt {
            Some(Ambiguity::ClientLines | Ambiguity::Names | Ambiguity::Repeats) => {
                Ambiguity::ClientLines
            }
            _ => Ambiguity::Lines,
        });
    }

    /// The server's TCP has nothing more to send for now, so its last line was the end of a reply.
    pub fn settled(&mut self) {
        if self.replied && !self.has_pending_commands() {
            self.doubt = match self.doubt {
                None => None,
                Some(Ambiguity::ClientLines | Ambiguity::Names | Ambiguity::Repeats) => {
                    Some(Ambiguity::Names)
                }
                _ => Some(Ambiguity::Over),
            };
        }
    }

    /// Whether the server has accepted a login.
    pub fn is_logged_in(&self) -> bool {
        self.logged_in
    }

    /// Whether no command is pending, and nothing is ambiguous or special.
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::NotGreeted | Phase::Greeted | Phase::Verified)
            && !self.epsv_all
            && self.doubt.is_none()
            && !self.has_pending_commands()
            && self.replies == ReplyTracker::default()
    }

    /// Whether the client has restricted itself to EPSV (RFC 2428 section 4).
    pub fn is_epsv_only(&self) -> bool {
        self.epsv_all
    }

    /// The leading zeros that the server accepts.
    pub fn zeros(&self) -> Zeros {
        self.zeros
    }

    /// Whether a 227 or 229 would answer a pending command.
    pub fn awaits_passive(&self) -> bool {
        self.awaited.contains(PendingKind::Passive)
    }

    /// Whether the start of a server's line may become an announcement, or the reply to a blanked command.
    pub fn may_announce(&self, text: &Text<'_>) -> bool {
        let is_refused = !self.is_flooded() && self.awaits_refusal();
        self.awaits_passive() && self.replies.may_announce(text)
            || is_refused && self.replies.may_fail(text)
    }

    /// Whether the next reply may answer a blanked command.
    pub fn awaits_refusal(&self) -> bool {
        matches!(self.awaited.oldest(), Some(PendingKind::Refused(_)))
    }

    /// Reply code of an unfinished multi-line reply.
    pub fn open_reply(&self) -> Option<u16> {
        self.replies.open()
    }

    /// Reads a complete line of the client.
    pub fn client_line(&mut self, command: Option<&Command<'_>>) -> CommandEffect {
        match (self.phase, command) {
            (Phase::NotGreeted, Some(c)) if c.word == b"FEAT" && c.argument.is_empty() => {
                self.phase = Phase::FeatFirst;
            }
            (Phase::NotGreeted | Phase::FeatFirst, _) => self.phase = Phase::ClientFirst,
            (Phase::Greeted, Some(c)) if c.verb != Verb::Unknown && !c.is_foreign(true) => {
                self.phase = Phase::Verified;
            }
            (Phase::Greeted, _) => self.phase = Phase::NotFtp,
            (Phase::Verified, Some(c)) if c.is_foreign(false) => self.phase = Phase::NotFtp,
            _ => {}
        }
        let Some(command) = command else { return CommandEffect::Nothing };
        if matches!(command.verb, Verb::User | Verb::Reinitialize) {
            // The server forgets the login when it reads this command (RFC 959 section 4.1.1).
            self.logged_in = false;
        }
        self.doubt = match (self.doubt, command.verb) {
            (None | Some(Ambiguity::Over), Verb::Listing) => Some(Ambiguity::Listing),
            (doubt, Verb::Pasv | Verb::Epsv) => doubt,
            (Some(Ambiguity::Names), _) => Some(Ambiguity::Repeats),
            (doubt, _) => doubt,
        };
        let awaited = match command.verb {
            Verb::Port | Verb::Eprt => return CommandEffect::Announces,
            Verb::Auth => return CommandEffect::Auth,
            Verb::Pasv | Verb::Epsv => PendingKind::Passive,
            Verb::EpsvAll => PendingKind::EpsvAll,
            Verb::User => PendingKind::User,
            Verb::Login => PendingKind::Login,
            Verb::Reinitialize => PendingKind::Reinitialize,
            Verb::Transfer => PendingKind::Transfer,
            Verb::ClearCommandChannel | Verb::Listing | Verb::Other | Verb::Unknown => {
                PendingKind::Other
            }
        };
        self.push_pending(awaited);
        CommandEffect::Nothing
    }

    /// Records whether the announcement just read opened a pinhole.
    pub fn announced(&mut self, opened: bool) {
        self.push_pending(if opened { PendingKind::Announcement } else { PendingKind::Other });
    }

    /// Records that the command just read was blanked. If too many commands are pending, or replies cannot be matched,
    /// the client gets the server's own reply.
    pub fn refused(&mut self, reason: Reason) {
        let is_known = self.phase == Phase::Verified && self.awaited.len() < MAX_RUNS / 2;
        self.push_pending(if is_known { PendingKind::Refused(reason) } else { PendingKind::Other });
    }

    /// Records that the `AUTH` just read is forwarded to the server.
    pub fn auth(&mut self) {
        self.push_pending(PendingKind::Auth);
    }

    /// Reads a complete line of the server.
    pub fn server_line(&mut self, text: &Text<'_>) -> ReplyEffect {
        let was_open = self.replies != ReplyTracker::default();
        let reply = self.replies.line(text);
        self.replied &= reply.is_some();
        if !self.phase.has_greeted() {
            if accepts_leading_zeros(text.bytes()) {
                self.zeros = Zeros::Four;
            }
            return match reply {
                Some(reply) if reply.is_preliminary() => ReplyEffect::Nothing, // 120: ready in a while
                Some(_) if self.phase == Phase::NotGreeted => {
                    self.phase = Phase::Greeted;
                    ReplyEffect::Nothing
                }
                Some(Reply { code: 220 }) => {
                    let is_feat = self.phase == Phase::FeatFirst;
                    self.phase = if is_feat { Phase::Verified } else { Phase::NotFtp };
                    ReplyEffect::Nothing
                }
                Some(_) => ReplyEffect::NotFtp,
                // First or middle line of a multi-line greeting.
                None if self.replies != ReplyTracker::default() => ReplyEffect::Nothing,
                None => ReplyEffect::NotFtp,
            };
        }
        if self.phase == Phase::PickedUp && reply.is_some() {
            self.phase = Phase::PickedUpFtp;
        }
        if !was_open
            && self.open_reply().is_some_and(may_show_files)
            && matches!(self.doubt, None | Some(Ambiguity::Over))
        {
            self.doubt = Some(Ambiguity::Listing);
        }
        if !was_open && reply.is_none() && self.replies == ReplyTracker::default() {
            // No server sends this line; it may be part of a file name.
            self.doubt_lines();
        }
        if reply.is_some_and(|reply| reply.code == 257) && ends_inside_name(text) {
            self.doubt_lines();
        }
        reply.map_or(ReplyEffect::Nothing, |reply| self.reply(reply))
    }

    /// Whether so many commands are pending that no reply may be held or made longer. The server sends as much as its
    /// client's window allows, so longer replies would not fit, and with them the acknowledgements that the client
    /// needs would not arrive.
    pub fn is_flooded(&self) -> bool {
        self.awaited.count() > MAX_PENDING
    }

    /// Whether a command is pending.
    pub fn has_pending_commands(&self) -> bool {
        self.awaited.len() > 0
    }

    /// The dialogue is plain text again after encryption. If `session` is set, both ends sent encrypted data, so the
    /// login happened there: RFC 4217 allows `CCC` only after a login, and the server still refuses commands that need
    /// one.
    pub fn resume(&mut self, session: bool) {
        self.awaited = PendingCommands::default();
        self.replies = ReplyTracker::default();
        self.logged_in = session;
    }

    fn reply(&mut self, reply: Reply) -> ReplyEffect {
        match reply.code {
            227 | 229 => {
                let asked = self.answer(PendingKind::Passive);
                if !asked {
                    self.awaited.pop();
                }
                ReplyEffect::Passive { asked }
            }
            // The client's earlier identity no longer counts (RFC 2228 section 3, RFC 4217 section 4).
            234 if self.answer(PendingKind::Auth) => {
                self.logged_in = false;
                ReplyEffect::Encrypted
            }
            334 if self.answer(PendingKind::Auth) => {
                self.logged_in = false;
                ReplyEffect::Nothing
            }
            230 | 232 if self.awaited.skip_to_any(&[PendingKind::User, PendingKind::Login]) => {
                self.awaited.pop();
                // Unless the client has started another login since.
                self.logged_in = ![PendingKind::User, PendingKind::Reinitialize]
                    .into_iter()
                    .any(|later| self.awaited.contains(later));
                if self.logged_in {
                    ReplyEffect::Notable(DialogueEvent::LoggedIn)
                } else {
                    ReplyEffect::Nothing
                }
            }
            _ if reply.is_preliminary() => {
                if self.awaited.skip_to(PendingKind::Transfer) {
                    ReplyEffect::Notable(DialogueEvent::TransferStarted)
                } else {
                    ReplyEffect::Nothing
                }
            }
            _ => match self.awaited.pop() {
                Some(PendingKind::Announcement) if reply.is_success() => {
                    ReplyEffect::Notable(DialogueEvent::AnnouncementAccepted)
                }
                Some(PendingKind::Announcement) if reply.is_failure() => {
                    ReplyEffect::Notable(DialogueEvent::AnnouncementRefused)
                }
                Some(PendingKind::Refused(reason)) if reply.is_of_unknown_command() => {
                    ReplyEffect::Refused(reason)
                }
                Some(PendingKind::Transfer) => ReplyEffect::Notable(DialogueEvent::TransferEnded {
                    completed: reply.is_success(),
                }),
                Some(PendingKind::EpsvAll) if reply.is_success() => {
                    self.epsv_all = true;
                    ReplyEffect::Nothing
                }
                Some(PendingKind::Reinitialize) if reply.is_success() => {
                    self.epsv_all = false;
                    ReplyEffect::Nothing
                }
                _ => ReplyEffect::Nothing,
            },
        }
    }

    fn push_pending(&mut self, awaited: PendingKind) {
        self.forgot |= self.awaited.push(awaited);
    }

    /// Whether command kinds were forgotten since the last call, because too many commands were pending.
    pub fn has_forgotten(&mut self) -> bool {
        std::mem::take(&mut self.forgot)
    }

    fn answer(&mut self, which: PendingKind) -> bool {
        self.awaited.skip_to(which) && self.awaited.pop().is_some()
    }
}

/// Servers that read numbers of any length in a `PORT`, by the start of their greeting text (docs/studies/lengths.md).
const WELL_KNOWN: [&[u8]; 5] = [
    b"(vsFTPd ",
    b"ProFTPD ",
    b"--------- Welcome to Pure-FTPd",
    b"FileZilla Server",
    b"pyftpdlib ",
];

/// Whether this is the greeting of such a server.
fn accepts_leading_zeros(line: &[u8]) -> bool {
    let text = line.strip_prefix(b"220").and_then(|rest| rest.get(1..)).unwrap_or_default();
    WELL_KNOWN.iter().any(|name| text.starts_with(name))
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

#[cfg(test)]
#[path = "dialogue_tests.rs"]
mod tests;
