//! What has been said so far on one control connection, and what that makes of the next line.
//!
//! Replies come in the order of their commands (RFC 959 section 5.4), so the commands that are not
//! answered yet are kept in order. Servers do not keep it perfectly (`ABOR` has one or two
//! answers, `STAT` overtakes), so replies whose code tells what they answer put the order right.
//!
//! Nothing is opened while it is in doubt whether the ends agree on what is a line and which reply answers which
//! command ([`Doubt`]). The doubt ends when all that was said is answered and the server has nothing more to say.

use serde::{Deserialize, Serialize};

use super::{
    Note, Reason,
    unanswered::{Awaited, MAX_AWAITED, Unanswered},
};
use crate::ftp::{Command, LineEnd, Reply, ReplyTracker, Text, Verb, Zeros};

/// With more unanswered commands a client does not wait for replies.
const MAX_PENDING: u32 = 16;

/// How far a control connection has shown that it is FTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Nothing was said.
    Silent,
    /// The server has greeted.
    Greeted,
    /// The client has answered the greeting with FTP commands.
    Verified,
    /// Its start was not seen: what was said before is unknown.
    Joined,
    /// Bytes of it were missed: all that was said before is unknown.
    Lost,
    /// The client spoke before the server did.
    Early,
    /// The server has greeted as one of FTP does, but the client is none: nothing is opened any more, and what is
    /// refused is refused as before, as the server obeys whoever speaks.
    NotFtp,
    /// Its start was not seen, and the server has answered as one of FTP does: what is refused is refused.
    Answered,
    /// The client said `FEAT` before the server spoke, and nothing else, as lftp does that does not wait for replies
    /// (`ftp:sync-mode off`). No other protocol begins so.
    EarlyFeat,
}

impl Phase {
    /// Whether the server has greeted, as far as is known.
    pub fn has_greeted(self) -> bool {
        !matches!(self, Self::Silent | Self::Early | Self::EarlyFeat)
    }
}

/// Why it is not known what is pending, or the ends may not agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Doubt {
    /// A line did not end with CR LF, or had a CR, LF or NUL in it.
    Lines,
    /// A reply was asked for, or has begun, whose lines may hold names or files, which whoever made them can have look
    /// like other replies.
    Listing,
    /// The same as [`Doubt::Lines`], and a line of the client is why.
    ClientLines,
    /// That is over. But the server may know a name with line ends in it, so the next command brings [`Doubt::Repeats`].
    Names,
    /// A reply is pending in which the server may repeat that name.
    Repeats,
    /// Any other doubt is over, as far as can be seen. An announcement of the server must stand apart.
    Over,
    /// An announcement did not.
    Rest,
}

/// What a client's line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing that concerns a gateway.
    Nothing,
    /// `PORT` or `EPRT`; [`Dialogue::announced`] must be told what became of it.
    Announces,
    /// `AUTH`; [`Dialogue::auth`] must be told if it goes on.
    Auth,
}

/// What a server's reply means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing that concerns a gateway.
    Nothing,
    /// No FTP: the connection is not to be inspected any more.
    NotFtp,
    /// A 227 or 229; whether a `PASV` or `EPSV` was pending.
    Passive {
        /// Whether it answers one.
        asked: bool,
    },
    /// The server's answer to a command that was crossed out.
    Refused(Reason),
    /// Something that bears on what is open.
    Notable(Note),
    /// What follows is encrypted.
    Encrypted,
}

/// The state of one dialogue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dialogue {
    phase: Phase,
    logged_in: bool,
    epsv_all: bool,
    replies: ReplyTracker,
    awaited: Unanswered,
    doubt: Option<Doubt>,
    /// The zeros that the server takes, as its greeting tells.
    zeros: Zeros,
    /// Whether the server's last line was whole, read alike by everybody, and the last one of a reply.
    #[serde(skip)]
    replied: bool,
    /// Whether some were forgotten since [`Dialogue::has_forgotten`] was last asked.
    #[serde(skip)]
    forgot: bool,
}

impl Default for Dialogue {
    /// A dialogue at its start.
    fn default() -> Self {
        Self {
            phase: Phase::Silent,
            logged_in: false,
            epsv_all: false,
            replies: ReplyTracker::default(),
            awaited: Unanswered::default(),
            doubt: None,
            zeros: Zeros::Three,
            replied: false,
            forgot: false,
        }
    }
}

impl Dialogue {
    /// A dialogue whose start was not seen.
    pub fn joined() -> Self {
        Self { phase: Phase::Joined, ..Self::default() }
    }

    /// A dialogue in which the client said something before the server could, which was not read.
    pub fn early() -> Self {
        Self { phase: Phase::Early, ..Self::default() }
    }

    /// Bytes were missed: nothing that was known counts any more, but that it is FTP. An end can have it
    /// look so at any time, and must not be rid of what is refused by that.
    pub fn lose(&mut self) {
        let phase = match self.phase {
            Phase::Joined | Phase::Answered | Phase::NotFtp => self.phase,
            // Also where the server has not greeted: it may have.
            _ => Phase::Lost,
        };
        *self = Self { phase, ..Self::default() };
    }

    /// How far this is known to be FTP.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Why nothing is opened for what an end announces now, the client if it `is_active`.
    pub fn bar(&self, is_active: bool) -> Option<&'static str> {
        Some(match (self.phase, self.doubt) {
            (Phase::NotFtp, _) => "the client is none of FTP",
            (Phase::Early | Phase::EarlyFeat, _) => "the client spoke before the server",
            (Phase::Joined | Phase::Answered, _) => "the start of the dialogue was not seen",
            (Phase::Lost, _) => "packets of the dialogue were missed",
            (_, Some(Doubt::Lines | Doubt::ClientLines)) => {
                "a line did not end with CR LF, or had a CR, LF or NUL in it: the ends may not agree where lines end"
            }
            (_, Some(Doubt::Listing)) if !is_active => {
                "it came together with a reply of several lines, or that to STAT, MLST, SITE, HELP or QUIT, which may hold lines of the client's making"
            }
            (_, Some(Doubt::Repeats)) if !is_active => {
                "it may be a part of another reply, which repeats a name with line ends in it"
            }
            (_, Some(Doubt::Rest)) if !is_active => {
                "it may be a part of another reply: it was no segment by itself, or its command left no room for more"
            }
            _ => return None,
        })
    }

    /// Whether the server's announcements must stand apart, as it was doubtful at some time what was pending.
    pub fn is_doubted(&self) -> bool {
        self.doubt.is_some()
    }

    /// The announcement that was read does not stand apart.
    pub fn may_be_rest(&mut self) {
        match self.doubt {
            Some(Doubt::Over) => self.doubt = Some(Doubt::Rest),
            Some(Doubt::Names) => self.doubt = Some(Doubt::Repeats),
            _ => {}
        }
    }

    /// The client is none of FTP, where a server may be.
    pub fn leave_ftp(&mut self) {
        self.phase = Phase::NotFtp;
    }

    /// Takes note of how a line of the client ended, before it is read.
    pub fn client_line_ended(&mut self, end: LineEnd) {
        if end == LineEnd::Odd {
            self.doubt = Some(Doubt::ClientLines);
        }
    }

    /// Takes note of how a line of the server ended, before it is read.
    pub fn server_line_ended(&mut self, end: LineEnd) {
        self.replied = end == LineEnd::Plain;
        if end == LineEnd::Odd {
            self.doubt_lines();
        }
    }

    fn doubt_lines(&mut self) {
        self.doubt = Some(match self.doubt {
            Some(Doubt::ClientLines | Doubt::Names | Doubt::Repeats) => Doubt::ClientLines,
            _ => Doubt::Lines,
        });
    }

    /// The server has no more to say for now, as far as its TCP tells: what it said last was the end of a reply.
    pub fn settled(&mut self) {
        if self.replied && !self.awaits_replies() {
            self.doubt = match self.doubt {
                None => None,
                Some(Doubt::ClientLines | Doubt::Names | Doubt::Repeats) => Some(Doubt::Names),
                _ => Some(Doubt::Over),
            };
        }
    }

    /// Whether the server has accepted a login.
    pub fn is_logged_in(&self) -> bool {
        self.logged_in
    }

    /// Whether every command was answered, and nothing is doubted or special.
    pub fn is_at_rest(&self) -> bool {
        matches!(self.phase, Phase::Silent | Phase::Greeted | Phase::Verified)
            && !self.epsv_all
            && self.doubt.is_none()
            && !self.awaits_replies()
            && self.replies == ReplyTracker::default()
    }

    /// Whether the client has bound itself to EPSV (RFC 2428 section 4).
    pub fn is_epsv_only(&self) -> bool {
        self.epsv_all
    }

    /// The zeros that the server takes.
    pub fn zeros(&self) -> Zeros {
        self.zeros
    }

    /// Whether a 227 or 229 would be an answer.
    pub fn awaits_passive(&self) -> bool {
        self.awaited.has(Awaited::Passive)
    }

    /// Whether the start of a server's line may become an announcement, or the answer to a command that was
    /// crossed out.
    pub fn may_announce(&self, text: &Text<'_>) -> bool {
        let is_refused = !self.is_flooded() && self.awaits_refusal();
        self.awaits_passive() && self.replies.may_announce(text)
            || is_refused && self.replies.may_fail(text)
    }

    /// Whether the next reply may be the answer to a command that was crossed out.
    pub fn awaits_refusal(&self) -> bool {
        matches!(self.awaited.oldest(), Some(Awaited::Refused(_)))
    }

    /// The code of the reply of which the last line was one, but not the last.
    pub fn open_reply(&self) -> Option<u16> {
        self.replies.open()
    }

    /// Reads a complete line of the client.
    pub fn client_line(&mut self, command: Option<&Command<'_>>) -> Step {
        match (self.phase, command) {
            (Phase::Silent, Some(c)) if c.word == b"FEAT" && c.argument.is_empty() => {
                self.phase = Phase::EarlyFeat;
            }
            (Phase::Silent | Phase::EarlyFeat, _) => self.phase = Phase::Early,
            (Phase::Greeted, Some(c)) if c.verb != Verb::Unknown && !c.is_foreign(true) => {
                self.phase = Phase::Verified;
            }
            (Phase::Greeted, _) => self.phase = Phase::NotFtp,
            (Phase::Verified, Some(c)) if c.is_foreign(false) => self.phase = Phase::NotFtp,
            _ => {}
        }
        let Some(command) = command else { return Step::Nothing };
        if matches!(command.verb, Verb::User | Verb::Reinitialize) {
            // The server forgets the login as it reads this (RFC 959 section 4.1.1).
            self.logged_in = false;
        }
        self.doubt = match (self.doubt, command.verb) {
            (None | Some(Doubt::Over), Verb::Listing) => Some(Doubt::Listing),
            (doubt, Verb::Pasv | Verb::Epsv) => doubt,
            (Some(Doubt::Names), _) => Some(Doubt::Repeats),
            (doubt, _) => doubt,
        };
        let awaited = match command.verb {
            Verb::Port | Verb::Eprt => return Step::Announces,
            Verb::Auth => return Step::Auth,
            Verb::Pasv | Verb::Epsv => Awaited::Passive,
            Verb::EpsvAll => Awaited::EpsvAll,
            Verb::User => Awaited::User,
            Verb::Login => Awaited::Login,
            Verb::Reinitialize => Awaited::Reinitialize,
            Verb::Transfer => Awaited::Transfer,
            Verb::ClearCommandChannel | Verb::Listing | Verb::Other | Verb::Unknown => {
                Awaited::Other
            }
        };
        self.await_reply(awaited);
        Step::Nothing
    }

    /// Says whether the announcement just read opened a pinhole.
    pub fn announced(&mut self, opened: bool) {
        self.await_reply(if opened { Awaited::Announcement } else { Awaited::Other });
    }

    /// Says that the command just read was crossed out. With many of them, or where it is not known which reply
    /// answers it, its client gets what the server answers.
    pub fn refused(&mut self, reason: Reason) {
        let is_known = self.phase == Phase::Verified && self.awaited.len() < MAX_AWAITED / 2;
        self.await_reply(if is_known { Awaited::Refused(reason) } else { Awaited::Other });
    }

    /// Says that the `AUTH` just read goes on to the server.
    pub fn auth(&mut self) {
        self.await_reply(Awaited::Auth);
    }

    /// Reads a complete line of the server.
    pub fn server_line(&mut self, text: &Text<'_>) -> Meaning {
        let was_open = self.replies != ReplyTracker::default();
        let reply = self.replies.line(text);
        self.replied &= reply.is_some();
        if !self.phase.has_greeted() {
            if is_well_known(text.bytes()) {
                self.zeros = Zeros::Four;
            }
            return match reply {
                Some(reply) if reply.is_preliminary() => Meaning::Nothing, // 120: ready in a while
                Some(_) if self.phase == Phase::Silent => {
                    self.phase = Phase::Greeted;
                    Meaning::Nothing
                }
                Some(Reply { code: 220 }) => {
                    let is_feat = self.phase == Phase::EarlyFeat;
                    self.phase = if is_feat { Phase::Verified } else { Phase::NotFtp };
                    Meaning::Nothing
                }
                Some(_) => Meaning::NotFtp,
                // The first line of a greeting of several, or one of those that follow.
                None if self.replies != ReplyTracker::default() => Meaning::Nothing,
                None => Meaning::NotFtp,
            };
        }
        if self.phase == Phase::Joined && reply.is_some() {
            self.phase = Phase::Answered;
        }
        if !was_open
            && self.open_reply().is_some_and(may_show_files)
            && matches!(self.doubt, None | Some(Doubt::Over))
        {
            self.doubt = Some(Doubt::Listing);
        }
        if !was_open && reply.is_none() && self.replies == ReplyTracker::default() {
            // No server says this; perhaps it is a part of a name.
            self.doubt_lines();
        }
        if reply.is_some_and(|reply| reply.code == 257) && ends_in_name(text) {
            self.doubt_lines();
        }
        reply.map_or(Meaning::Nothing, |reply| self.reply(reply))
    }

    /// Whether so many commands are unanswered that no reply is held back for a reason, or becomes longer by one. The
    /// server sends as much as its client has room for, so replies that grow would not fit, and with them the
    /// acknowledgements that the client needs to go on.
    pub fn is_flooded(&self) -> bool {
        self.awaited.count() > MAX_PENDING
    }

    /// Whether a command was not answered yet.
    pub fn awaits_replies(&self) -> bool {
        self.awaited.len() > 0
    }

    /// The dialogue is plain text again after encryption. If there was a `session` in it, of which both ends
    /// had a part, the login was made there: RFC 4217 lets `CCC` follow a login only, and the server still
    /// refuses what comes without one.
    pub fn resume(&mut self, session: bool) {
        self.awaited = Unanswered::default();
        self.replies = ReplyTracker::default();
        self.logged_in = session;
    }

    fn reply(&mut self, reply: Reply) -> Meaning {
        match reply.code {
            227 | 229 => {
                let asked = self.answer(Awaited::Passive);
                if !asked {
                    self.awaited.pop();
                }
                Meaning::Passive { asked }
            }
            // What the client was before does not count any more (RFC 2228 section 3, RFC 4217 section 4).
            234 if self.answer(Awaited::Auth) => {
                self.logged_in = false;
                Meaning::Encrypted
            }
            334 if self.answer(Awaited::Auth) => {
                self.logged_in = false;
                Meaning::Nothing
            }
            230 | 232 if self.awaited.skip_to_any(&[Awaited::User, Awaited::Login]) => {
                self.awaited.pop();
                // Not if the client has begun anew since.
                self.logged_in = ![Awaited::User, Awaited::Reinitialize]
                    .into_iter()
                    .any(|later| self.awaited.has(later));
                if self.logged_in { Meaning::Notable(Note::LoggedIn) } else { Meaning::Nothing }
            }
            _ if reply.is_preliminary() => {
                if self.awaited.skip_to(Awaited::Transfer) {
                    Meaning::Notable(Note::TransferStarted)
                } else {
                    Meaning::Nothing
                }
            }
            _ => match self.awaited.pop() {
                Some(Awaited::Announcement) if reply.is_success() => {
                    Meaning::Notable(Note::AnnouncementAccepted)
                }
                Some(Awaited::Announcement) if reply.is_failure() => {
                    Meaning::Notable(Note::AnnouncementRefused)
                }
                Some(Awaited::Refused(reason)) if reply.is_of_unknown_command() => {
                    Meaning::Refused(reason)
                }
                Some(Awaited::Transfer) => {
                    Meaning::Notable(Note::TransferEnded { completed: reply.is_success() })
                }
                Some(Awaited::EpsvAll) if reply.is_success() => {
                    self.epsv_all = true;
                    Meaning::Nothing
                }
                Some(Awaited::Reinitialize) if reply.is_success() => {
                    self.epsv_all = false;
                    Meaning::Nothing
                }
                _ => Meaning::Nothing,
            },
        }
    }

    fn await_reply(&mut self, awaited: Awaited) {
        self.forgot |= self.awaited.push(awaited);
    }

    /// Whether there were more unanswered commands than are known by kind since this was last asked.
    pub fn has_forgotten(&mut self) -> bool {
        std::mem::take(&mut self.forgot)
    }

    fn answer(&mut self, which: Awaited) -> bool {
        self.awaited.skip_to(which) && self.awaited.pop().is_some()
    }
}

/// Servers that read numbers of any length in a `PORT`, by what their greetings begin with behind the code
/// (docs/studies/lengths.md).
const WELL_KNOWN: [&[u8]; 5] = [
    b"(vsFTPd ",
    b"ProFTPD ",
    b"--------- Welcome to Pure-FTPd",
    b"FileZilla Server",
    b"pyftpdlib ",
];

/// Whether this is the greeting of one of them.
fn is_well_known(line: &[u8]) -> bool {
    let text = line.strip_prefix(b"220").and_then(|rest| rest.get(1..)).unwrap_or_default();
    WELL_KNOWN.iter().any(|name| text.starts_with(name))
}

/// Whether a server may show a file of an uploader's in a reply of several lines with this code, as ProFTPD does, whose
/// `DisplayChdir` puts line ends in place of `%{time:%n}`. Not in a status, a help, or an announcement.
fn may_show_files(code: u16) -> bool {
    !matches!(code, 211 | 214 | 227 | 229)
}

/// Whether a 257 ends within the name that it quotes: the name has a line end in it, as its own quotes are doubled (RFC 959
/// appendix II).
fn ends_in_name(text: &Text<'_>) -> bool {
    text.bytes().iter().filter(|byte| **byte == b'"').count() % 2 == 1
}

#[cfg(test)]
#[path = "dialogue_tests.rs"]
mod tests;
