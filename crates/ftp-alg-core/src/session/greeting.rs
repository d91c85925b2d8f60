//! How a dialogue begins: the server's greeting, and the client's first lines.
//!
//! The server speaks first, and its greeting is a reply. Two beginnings differ:
//! - The client does not wait, and sends commands before the greeting. Then only a 220 is the greeting, because another
//!   reply may be an answer of another protocol.
//! - The server sends text: a warning or a banner before the greeting, or a greeting with other bytes before its code,
//!   such as a byte order mark. Some clients take that for the greeting and log in. Then the reply to `USER`, `PASS` or
//!   `AUTH` shows that the server speaks FTP.

use super::{Dialogue, Login, PendingKind, Phase, ReplyEffect};
use crate::{
    ftp::{Command, Reply, Text, Verb},
    session::{DialogueEvent, ambiguities::ExtraReply, tls::is_tls_start},
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
        self.phase == Phase::Greeted
            && self.pending.is_empty()
            && self.ambiguities.knows_server_lf()
    }

    /// Records that the client does not speak FTP, although the server may.
    pub fn mark_client_not_ftp(&mut self) {
        let is_silent =
            matches!(self.phase, Phase::NotGreeted | Phase::CommandFirst | Phase::ClientFirst);
        self.phase = if is_silent { Phase::ClientFirst } else { Phase::NotFtp };
        // After text it is unknown which reply is the greeting.
        self.ambiguities.record_extra_reply(ExtraReply::Any);
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
