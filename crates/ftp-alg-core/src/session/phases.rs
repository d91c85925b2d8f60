//! How the phases of a dialogue follow each other: how it begins, whether encryption begins, and how it gets in step
//! again after packets were missed.
//!
//! # How a dialogue begins
//!
//! The server speaks first, and its greeting is a reply. Two beginnings differ:
//! - The client does not wait, and sends commands before the greeting. Then only a 220 is the greeting, because another
//!   reply may be an answer of another protocol.
//! - The server sends text: a warning or a banner before the greeting, or a greeting with other bytes before its code,
//!   such as a byte order mark. Some clients take that for the greeting and log in. Then the reply to `USER`, `PASS` or
//!   `AUTH` shows that the server speaks FTP.
//!
//! # Whether encryption begins after an accepted `AUTH`
//!
//! Servers accept it with other codes than 234, and some accept whatever they are sent. So the bytes that follow show
//! it: no end sends such a byte at the start of an FTP line. Both ends must do so, because otherwise one of them still
//! reads text.
//!
//! # How a dialogue of which packets were missed gets in step again
//!
//! Either end can have bytes missed at any time: it acknowledges more than the other one has sent so far, and what is
//! sent then passes unread. So a client could have the start of a listing passed, and name files so that the rest looks
//! like replies. Nothing is opened until a command and its reply, which was [a complete reply of its
//! own](crate::session::push_state), show that no such line can come any more:
//!
//! - Either all commands that may have replies outstanding are plain: their replies contain nothing that anybody else
//!   chose. All of the client's bytes must have been read.
//! - Or nothing was sent for a while, and the command is the first thing after it. A server that pauses inside a reply
//!   has its client's window closed; then more than one line waits, and comes with the reply.
//!
//! The server has received the command, with an acknowledgement of everything that was read. So it has sent that much,
//! and nothing that it sends later is taken for a retransmission.
//!
//! A login that was accepted still counts. `USER` or `REIN` among the missed bytes would have ended it, but only at the
//! server, which then refuses what needs a login.

use serde::{Deserialize, Serialize};

use super::{Dialogue, ExtraReply, Login, PendingKind, Phase, ReplyEffect};
use crate::{
    ftp::{Command, Reply, Text, Verb},
    session::{
        DialogueEvent, Side,
        tls::{is_binary_start, is_record_start, is_tls_start},
    },
};

/// How the first lines of other protocols' servers begin: SSH, VNC, POP3, IMAP, rsync, and those of HTTP's form.
const OTHER_PROTOCOLS: [&[u8]; 10] = [
    b"SSH-",
    b"RFB ",
    b"+OK",
    b"-ERR",
    b"* OK",
    b"* PREAUTH",
    b"* BYE",
    b"@RSYNCD",
    b"HTTP",
    b"RTSP",
];

impl Phase {
    /// Whether the server has sent its greeting, as far as is known.
    pub fn has_greeted(self) -> bool {
        !matches!(
            self,
            Self::NotGreeted
                | Self::TextFirst
                | Self::CommandFirst
                | Self::CommandAfterText
                | Self::ClientFirst
        )
    }

    /// Whether the next reply is the server's greeting, with any code.
    pub(super) fn expects_greeting(self) -> bool {
        matches!(self, Self::NotGreeted | Self::TextFirst)
    }
}

impl Dialogue {
    /// Whether the client's next line shows which protocol it speaks.
    pub fn expects_first_command(&self) -> bool {
        self.phase == Phase::Greeted || self.phase.expects_greeting()
    }

    /// Whether a CR that comes now belongs to the end of the greeting, LF CR.
    pub fn may_end_greeting_with_cr(&self) -> bool {
        self.phase == Phase::Greeted && self.pending.is_empty() && self.ambiguities.has_server_lf
    }

    /// Records that the client does not speak FTP, although the server may.
    pub fn mark_client_not_ftp(&mut self) {
        let is_silent =
            matches!(self.phase, Phase::NotGreeted | Phase::CommandFirst | Phase::ClientFirst);
        self.phase = if is_silent { Phase::ClientFirst } else { Phase::NotFtp };
        // After text it is unknown which reply is the greeting.
        self.ambiguities.record_extra_reply(ExtraReply::Any);
    }

    /// Records that the client's first bytes were a PROXY header. A server that does not know it sends other replies with
    /// its greeting, and later replies may answer earlier commands than it seems.
    pub fn record_proxy_header(&mut self) {
        self.ambiguities.record_extra_reply(ExtraReply::Any);
        self.ambiguities.require_complete_replies();
    }

    /// Reads a command of a client that is not yet known to speak FTP.
    pub(super) fn read_early_command(&mut self, command: &Command<'_>) {
        match self.phase {
            Phase::NotGreeted if may_precede_replies(command) => self.phase = Phase::CommandFirst,
            Phase::TextFirst if may_precede_replies(command) => {
                self.phase = Phase::CommandAfterText;
            }
            Phase::NotGreeted | Phase::TextFirst => self.mark_client_not_ftp(),
            Phase::CommandFirst | Phase::CommandAfterText if command.is_not_ftp(false) => {
                self.mark_client_not_ftp();
            }
            Phase::Greeted
                if command.is_not_ftp(true) || self.pending.contains(PendingKind::FirstUnknown) =>
            {
                self.mark_client_not_ftp();
            }
            Phase::Greeted if command.verb != Verb::Unknown => self.phase = Phase::Verified,
            _ => {}
        }
    }

    /// Reads a line of the server before its greeting has ended. If the line ends a reply, that is `reply`.
    pub(super) fn read_greeting_line(
        &mut self,
        text: &Text<'_>,
        reply: Option<Reply>,
    ) -> ReplyEffect {
        let open_code = self.replies.open_code();
        self.phase = match (self.phase, reply) {
            (phase, Some(reply)) if reply.is_preliminary() => phase, // 120: ready in a while
            (Phase::NotGreeted | Phase::TextFirst, Some(Reply { code: 230 })) => {
                self.phase = Phase::Greeted;
                return self.accept_login();
            }
            (Phase::NotGreeted | Phase::TextFirst, Some(_)) => Phase::Greeted,
            (Phase::CommandFirst | Phase::CommandAfterText, Some(Reply { code: 220 })) => {
                self.ambiguities.record_extra_reply(ExtraReply::Greeting);
                Phase::Verified
            }
            (_, Some(Reply { code: 220 })) => Phase::NotFtp,
            (_, Some(_)) => return ReplyEffect::NotFtp,
            // Some clients do not wait for the last line.
            (Phase::NotGreeted | Phase::TextFirst, None) if open_code == Some(220) => {
                self.pending.push(PendingKind::Greeting);
                Phase::Greeted
            }
            // First or middle line of a multi-line reply.
            (phase, None) if open_code.is_some() => phase,
            // A server that has accepted a login speaks FTP. It may show a file.
            (Phase::CommandAfterText, None) if self.login != Login::NotYet => self.phase,
            (_, None) if !may_precede_greeting(text) => return ReplyEffect::NotFtp,
            (Phase::NotGreeted | Phase::TextFirst, None) => Phase::TextFirst,
            (Phase::ClientFirst, None) => Phase::ClientFirst,
            (_, None) => Phase::CommandAfterText,
        };
        ReplyEffect::Nothing
    }

    /// Whether `reply` answers the only pending command as no other protocol does. Asked before it is handled, of a
    /// server that sent text in place of a greeting.
    pub(super) fn is_answered_as_ftp(&self, reply: Reply) -> bool {
        self.pending.count() == 1
            && match self.pending.oldest() {
                Some(PendingKind::User) => matches!(reply.code, 230 | 232 | 331 | 332),
                Some(PendingKind::Login) => matches!(reply.code, 230 | 232 | 332),
                Some(PendingKind::Auth) => matches!(reply.code, 234 | 334),
                _ => false,
            }
    }

    /// Records that `reply` of a server that sent text in place of a greeting had this `effect`. The server speaks FTP
    /// if `is_ftp`, or in a pipeline with a login, when all of it is answered.
    pub(super) fn record_reply_after_text(
        &mut self,
        reply: Reply,
        is_ftp: bool,
        effect: ReplyEffect,
    ) -> ReplyEffect {
        if effect == ReplyEffect::Event(DialogueEvent::LoggedIn) && reply.code / 10 != 23 {
            // Other protocols have such codes, too.
            self.login = Login::None;
            return ReplyEffect::Nothing;
        }
        if is_ftp || self.login == Login::Accepted && self.pending.is_empty() {
            self.phase = Phase::Verified;
            // Nobody knows where the text would have ended.
            self.ambiguities.require_complete_replies();
        }
        effect
    }
}

/// The commands that an FTP client may send first, without waiting for the greeting. No other protocol begins so.
const FIRST_COMMANDS: [&[u8]; 7] = [b"USER", b"AUTH", b"FEAT", b"HOST", b"CLNT", b"OPTS", b"LANG"];

/// Whether a client that sends this command first speaks FTP, although the server has not sent its greeting.
fn may_precede_replies(command: &Command<'_>) -> bool {
    let mut first = FIRST_COMMANDS.iter();
    first.any(|verb| command.word.eq_ignore_ascii_case(verb)) && !command.is_not_ftp(true)
}

/// Whether a server may write `text` before its greeting: a warning of its loader, or a banner, in any character set
/// and with escape sequences. It is not the first line of another protocol.
fn may_precede_greeting(text: &Text<'_>) -> bool {
    let is_binary = text.contains_nul();
    let text = text.bytes();
    let first = text.split(|byte| *byte == b' ').next().unwrap_or_default();
    let is_versioned = first.first().is_some_and(u8::is_ascii_alphabetic)
        && first.contains(&b'/')
        && first.last().is_some_and(u8::is_ascii_digit);
    !is_binary
        && !is_versioned
        && !is_tls_start(text)
        && !OTHER_PROTOCOLS.iter().any(|start| text.starts_with(start))
}

/// Whether `text` is a whole reply that a server gives to a login.
pub(super) fn is_login_reply(text: &Text<'_>) -> bool {
    matches!(text.bytes(), [b'2' | b'3', _, _, rest @ ..] if rest.first() != Some(&b'-'))
}

/// Whether `text` is a whole 227 or 229.
pub(super) fn is_announcement(text: &Text<'_>) -> bool {
    matches!(text.bytes(), [b'2', b'2', b'7' | b'9', rest @ ..] if rest.first() != Some(&b'-'))
}

/// Whether encryption may begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum TlsStart {
    /// No.
    #[default]
    No,
    /// The server has accepted `AUTH`.
    Allowed,
    /// The client has begun TLS. The next bytes of the server show whether it does, too.
    ByClient,
    /// As `ByClient`, with bytes that are neither TLS nor text.
    OtherByClient,
}

/// What both ends have begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BegunEncryption {
    /// TLS records.
    Tls,
    /// Bytes that are neither TLS nor text.
    Other,
}

impl Dialogue {
    /// Whether the next bytes may be TLS.
    #[inline]
    pub fn expects_tls(&self) -> bool {
        self.tls != TlsStart::No
    }

    /// Whether the client may have begun encryption with its last line, so that its bytes are no commands.
    pub fn may_be_tls(&self) -> bool {
        matches!(self.tls, TlsStart::ByClient | TlsStart::OtherByClient)
    }

    /// Whether the reply to an `AUTH` that the client sends now is known for certain. After a login it may be a line of
    /// a file that the server shows.
    pub(super) fn matches_auth(&self) -> bool {
        self.login == Login::NotYet
            && self.pending.is_empty()
            && self.ambiguities.matches_next_reply()
    }

    /// Whether another reply may be taken for that to `AUTH`.
    pub(super) fn doubts_replies(&self) -> bool {
        self.ambiguities.extra_reply == ExtraReply::Any
    }

    /// Reads `first`, the first byte of a line of `from`. Returns what both ends have begun, if they have: the server
    /// has accepted `AUTH`, and both have sent a byte with which no line begins. If the server may not have
    /// accepted it, its bytes do not show anything, and those of the client pass, but not unread.
    #[cold]
    pub fn begins_encryption(&mut self, from: Side, first: u8) -> Option<BegunEncryption> {
        let before = self.tls;
        self.tls = match (before, from) {
            (TlsStart::Allowed, Side::Client) if is_record_start(first) => TlsStart::ByClient,
            (TlsStart::Allowed, Side::Client) if is_binary_start(first) => TlsStart::OtherByClient,
            (TlsStart::ByClient | TlsStart::OtherByClient, Side::Client) => before,
            // More text behind its reply.
            (TlsStart::Allowed, Side::Server) => before,
            (_, Side::Server) if self.doubts_replies() => before,
            _ => TlsStart::No,
        };
        if from == Side::Client || self.doubts_replies() {
            return None;
        }
        let begun = match before {
            TlsStart::ByClient if is_record_start(first) => BegunEncryption::Tls,
            TlsStart::ByClient | TlsStart::OtherByClient if is_binary_start(first) => {
                BegunEncryption::Other
            }
            _ => return None,
        };
        self.login = Login::None;
        Some(begun)
    }
}

/// A plain command is at most this long with its argument, because a server may repeat that. An announcement is longer.
const MAX_PLAIN: usize = 12;

/// Only plain commands were sent since nothing was pending.
const PLAIN: u8 = 1;
/// Nothing was sent for a while, and only a plain command and its reply since.
const AFTER_SILENCE: u8 = 1 << 1;
/// The last command may show that the dialogue is in step: it was sent while nothing was pending.
const ASKED: u8 = 1 << 2;
/// The last line was a reply that fits it.
const ANSWERED: u8 = 1 << 3;
/// The server had nothing more to send after its last line.
const PAUSED: u8 = 1 << 4;

/// What is known about replies that may still come. One byte, because a session must fit into its cache lines.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Step(u8);

impl Step {
    /// Records a line of the client. If it `is_only`, nothing else is pending.
    pub(super) fn record_command(&mut self, command: Option<&Command<'_>>, is_only: bool) {
        if !command.is_some_and(is_plain) {
            self.0 &= !(PLAIN | AFTER_SILENCE);
        }
        self.0 &= !(ASKED | ANSWERED);
        if is_only && self.has_any_of(PLAIN | AFTER_SILENCE) {
            self.0 |= ASKED;
        }
    }

    /// Records a line of the server. `reply` is the reply that it is, if it is one in a single line to the only pending
    /// command.
    pub(super) fn record_reply(&mut self, reply: Option<Reply>) {
        let fits = reply.is_some_and(|reply| matches!(reply.code, 200 | 215 | 227 | 229));
        let is_answer = fits && self.has_any_of(ASKED);
        self.0 &= !(ASKED | ANSWERED | PAUSED);
        if is_answer {
            self.0 |= ANSWERED;
        } else {
            self.0 &= !AFTER_SILENCE;
        }
    }

    /// Records that the server has nothing more to send after its last line.
    pub(super) fn record_pause(&mut self) {
        self.0 |= PAUSED;
    }

    /// Whether the server had nothing more to send after its last line.
    pub(super) fn has_paused(self) -> bool {
        self.has_any_of(PAUSED)
    }

    /// Whether one of these bits is set.
    fn has_any_of(self, bits: u8) -> bool {
        self.0 & bits != 0
    }
}

/// Whether the reply to this command contains nothing that anybody else chose.
fn is_plain(command: &Command<'_>) -> bool {
    matches!(command.verb, Verb::Pasv | Verb::Epsv | Verb::Plain)
        && command.word.len() + command.argument.len() <= MAX_PLAIN
}

impl Dialogue {
    /// Packets were missed: the earlier dialogue no longer counts, except that the connection is FTP. Either end can
    /// cause this at any time, so it must not lift a refusal. `client_is_whole` says that they were none of the client.
    pub fn record_missed(&mut self, client_is_whole: bool) {
        let phase = match self.phase {
            Phase::PickedUp | Phase::PickedUpFtp | Phase::NotFtp => self.phase,
            Phase::Verified | Phase::OutOfStep => Phase::OutOfStep,
            // Even if no greeting was seen: the missed packets may contain it.
            _ => Phase::PacketsMissed,
        };
        let missed = Self { phase, login: Login::None, ..Self::default() };
        let before = std::mem::replace(self, missed);
        if phase == Phase::OutOfStep {
            if before.login == Login::Accepted {
                self.login = Login::Accepted;
            }
            (self.epsv_all, self.padding) = (before.epsv_all, before.padding);
            self.ambiguities = before.ambiguities.after_missed(client_is_whole);
            self.step = Step(if client_is_whole { before.step.0 & PLAIN } else { 0 });
        }
        self.ambiguities.record_extra_reply(ExtraReply::Any);
    }

    /// Records that neither end has sent anything for so long that the server is not inside a reply.
    pub fn record_silence(&mut self) {
        if self.phase == Phase::OutOfStep && self.replies.open_code().is_none() {
            self.pending = Default::default();
            self.step = Step(AFTER_SILENCE);
        }
    }

    /// Records that a reply has ended, and nothing is pending. Returns whether the dialogue is in step again.
    pub(super) fn record_rest(&mut self, is_complete_reply: bool) -> bool {
        let is_answered = self.step.has_any_of(ANSWERED) && is_complete_reply;
        let gets_in_step = self.phase == Phase::OutOfStep && is_answered;
        if gets_in_step {
            self.phase = Phase::Verified;
        }
        if self.phase == Phase::Verified && self.ambiguities.is_clear() {
            self.step = Step(PLAIN | PAUSED);
        }
        gets_in_step
    }
}
