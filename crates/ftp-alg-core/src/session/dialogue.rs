//! The state of the FTP dialogue on one control connection, and what it makes of the next line.
//!
//! Replies come in the order of their commands (RFC 959 section 5.4), so pending commands are stored in order. Servers
//! are not strict about it: `ABOR` has one or two replies, and the reply to `STAT` comes early. Replies whose code
//! shows which command they answer restore the order.
//!
//! Nothing is opened while the ends may disagree about line ends, or about which reply answers which command
//! ([`Ambiguities`]). The ambiguity ends when no command is pending and the server has nothing more to send.

use std::num::NonZeroU16;

use login::Login;
pub use phases::BegunEncryption;
use phases::{Step, TlsStart, is_announcement, is_login_reply};
use serde::{Deserialize, Serialize};

use super::{
    DialogueEvent, RefusalReason,
    ambiguities::{Ambiguities, ExtraReply, MAX_RUNS, PendingCommands, PendingKind, may_answer},
};
use crate::ftp::{Command, LineEnd, Padding, Reply, ReplyTracker, Text, Verb};

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
    PacketsMissed,
    /// The client sent data before the server's greeting.
    ClientFirst,
    /// The server may speak FTP, but the client does not. Nothing is opened any more. Refused commands are still
    /// refused, because the server obeys whatever it receives.
    NotFtp,
    /// Picked up mid-stream, and the server has replied as an FTP server. Refused commands are refused.
    PickedUpFtp,
    /// The client sent FTP commands before the server's greeting, because it does not wait for replies.
    CommandFirst,
    /// As [`Phase::PacketsMissed`], after [`Phase::Verified`]: the dialogue may [get in step](phases) again.
    OutOfStep,
    /// The server has sent text, which may precede its greeting.
    TextFirst,
    /// As [`Phase::TextFirst`], and the client has sent FTP commands. It may have read the text as a greeting.
    CommandAfterText,
}

/// What a client's line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandEffect {
    /// Nothing that concerns a gateway.
    Nothing,
    /// `PORT` or `EPRT`: the caller reports the decision with [`Dialogue::record_announcement`].
    Announcement,
    /// `AUTH`: the caller calls [`Dialogue::record_auth`] if it is forwarded.
    Auth,
}

/// What a server's reply does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyEffect {
    /// Nothing that concerns a gateway.
    Nothing,
    /// The server is not an FTP server: inspection ends.
    NotFtp,
    /// A 227 or 229.
    Passive {
        /// Whether a `PASV` or `EPSV` was pending.
        was_requested: bool,
    },
    /// The reply to a command that was crossed out for this reason.
    ReplyToCrossedOut(RefusalReason),
    /// An event that concerns pinholes or the session's state.
    Event(DialogueEvent),
    /// Encryption begins with the next byte.
    Encrypted,
}

/// The state of one dialogue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dialogue {
    /// How much of the dialogue has shown that the connection is FTP.
    pub phase: Phase,
    login: Login,
    tls: TlsStart,
    /// Whether the client has restricted itself to EPSV (RFC 2428 section 4).
    pub epsv_all: bool,
    pub(super) replies: ReplyTracker,
    pending: PendingCommands,
    ambiguities: Ambiguities,
    /// By what announcements keep their length, according to the greeting.
    pub padding: Padding,
    /// Code of the server's last line, if it is inside a multi-line reply and looks like the end of another one.
    #[serde(skip)]
    other_end: Option<NonZeroU16>,
    /// Whether command kinds were forgotten with the last line, because too many commands were pending.
    #[serde(skip)]
    pub(super) has_forgotten: bool,
    /// What is known about replies that may still come.
    #[serde(skip)]
    step: Step,
}

impl Default for Dialogue {
    /// A dialogue at its start.
    fn default() -> Self {
        Self {
            phase: Phase::NotGreeted,
            login: Login::NotYet,
            tls: TlsStart::No,
            epsv_all: false,
            replies: ReplyTracker::default(),
            pending: PendingCommands::default(),
            ambiguities: Ambiguities::default(),
            padding: Padding::Blanks,
            other_end: None,
            has_forgotten: false,
            step: Step::default(),
        }
    }
}

impl Dialogue {
    /// A dialogue that was picked up mid-stream.
    pub fn picked_up() -> Self {
        Self { phase: Phase::PickedUp, login: Login::None, ..Self::default() }
    }

    /// Why no announcement may open a pinhole now, by the client if `is_active`, else by the server.
    pub fn blocked_because(&self, is_active: bool) -> Option<&'static str> {
        Some(match self.phase {
            Phase::NotFtp => "the client does not speak FTP",
            Phase::ClientFirst | Phase::CommandFirst => {
                "the client sent data before the server's greeting"
            }
            Phase::CommandAfterText => "the server has sent text, but no greeting",
            Phase::PickedUp | Phase::PickedUpFtp => {
                "the connection was picked up mid-stream: its earlier dialogue is unknown"
            }
            Phase::PacketsMissed | Phase::OutOfStep => {
                "packets were missed: the earlier dialogue is unknown"
            }
            Phase::NotGreeted | Phase::TextFirst | Phase::Greeted | Phase::Verified => {
                return self.ambiguities.blocked_because(is_active);
            }
        })
    }

    /// Whether the dialogue was ambiguous at some time, or may be with the client's next line, so that a server's
    /// announcement must be a complete reply of its own.
    pub fn is_ambiguous(&self) -> bool {
        self.ambiguities.is_any() || self.other_end.is_some()
    }

    /// Whether the windows that the client offers decide whether a server's announcement is a complete reply.
    #[inline]
    pub fn needs_windows(&self) -> bool {
        (self.is_ambiguous() || self.pending.has_behind_another(PendingKind::Passive))
            && !matches!(
                self.phase,
                Phase::PickedUp
                    | Phase::PickedUpFtp
                    | Phase::PacketsMissed
                    | Phase::ClientFirst
                    | Phase::NotFtp
            )
    }

    /// Records that the announcement just read is not a complete reply of its own.
    pub fn record_partial_reply(&mut self) {
        self.ambiguities.record_partial_reply();
    }

    /// Records how a client's line ends, before the line is read.
    pub fn record_client_line_end(&mut self, end: LineEnd) {
        self.ambiguities.record_client_line_end(end, !self.has_pending_commands());
        if end != LineEnd::Plain {
            self.step.record_command(None, false);
        }
    }

    /// Records how a server's line ends, before the line is read.
    pub fn record_server_line_end(&mut self, end: LineEnd, text: &Text<'_>) {
        let is_greeting = self.phase.expects_greeting() || self.phase == Phase::CommandFirst;
        let is_reply_to = |kinds: &[PendingKind]| {
            end == LineEnd::Lf
                && self.replies.open_code().is_none()
                && self.has_pending_commands()
                && self.pending.are_all_of(kinds)
        };
        let answers_login = is_login_reply(text)
            && self.is_logged_out()
            && is_reply_to(&[PendingKind::User, PendingKind::Login]);
        // A name in an earlier reply could as well end this line with CR LF.
        let answers_passive = is_announcement(text)
            && self.ambiguities.is_clear()
            && is_reply_to(&[PendingKind::Passive]);
        let end = if answers_passive { LineEnd::Plain } else { end };
        self.ambiguities.record_server_line_end(end, is_greeting, answers_login);
    }

    /// The server's TCP has nothing more to send for now, after a whole line. That may end an ambiguity. Returns
    /// whether the dialogue is in step again, as it may be after a [complete reply](super::push_state).
    pub fn record_pause(&mut self, is_complete_reply: bool) -> bool {
        self.step.record_pause();
        let is_end = self.ambiguities.resolve(&self.pending);
        is_end && self.is_between_replies() && self.record_rest(is_complete_reply)
    }

    /// The client sends a line while a multi-line reply is unfinished. Some servers end one with a line of another code
    /// (glftpd: `553-`, then `150 `). If the server's last line may be one, and nothing came after it, the client has
    /// taken it for the end. Returns the event of that reply.
    pub fn end_open_reply(&mut self) -> Option<DialogueEvent> {
        if !self.phase.has_greeted() {
            return None;
        }
        let reply = Reply { code: self.other_end.filter(|_| self.step.has_paused())?.get() };
        // Nobody has logged in yet, so this 230 opens nothing.
        let is_greeting = self.pending.oldest() == Some(PendingKind::Greeting) && reply.code == 230;
        if self.pending.count() > 1 || is_decisive(reply) && !is_greeting {
            return None;
        }
        (self.replies, self.other_end) = (ReplyTracker::default(), None);
        let phase = self.phase;
        let effect = self.handle_reply(reply);
        self.ambiguities.record_other_end();
        self.ambiguities.resolve(&self.pending);
        match effect {
            ReplyEffect::Event(event) => Some(event),
            _ => (self.phase != phase).then_some(DialogueEvent::NotFtpClient),
        }
    }

    /// Whether no command is pending, and nothing is ambiguous or special.
    pub fn is_quiescent(&self) -> bool {
        let is_known = match self.phase {
            Phase::NotGreeted | Phase::Verified => true,
            Phase::Greeted => !self.is_logged_in(),
            _ => false,
        };
        is_known && !self.epsv_all && !self.ambiguities.is_any() && self.is_between_replies()
    }

    /// Whether a transfer command waits for its completion reply.
    pub fn has_pending_transfer(&self) -> bool {
        self.pending.contains(PendingKind::Transfer)
    }

    /// The number of transfer commands that wait for their completion replies.
    pub fn pending_transfers(&self) -> usize {
        self.pending.count_of(PendingKind::Transfer) as usize
    }

    /// Whether a 227 or 229 would answer a pending command.
    pub fn has_pending_passive(&self) -> bool {
        self.pending.contains(PendingKind::Passive)
    }

    /// Whether the start of a server's line may become an announcement, or the reply to a crossed out command.
    pub fn may_announce(&self, text: &Text<'_>) -> bool {
        let is_refused = !self.has_many_pending() && self.expects_crossed_out_reply();
        self.has_pending_passive() && self.replies.may_announce(text)
            || is_refused && self.replies.may_refuse_command(text)
    }

    /// Whether the next reply may answer a crossed out command.
    pub fn expects_crossed_out_reply(&self) -> bool {
        matches!(self.pending.oldest(), Some(PendingKind::CrossedOut(_)))
    }

    /// Reads a complete line of the client.
    pub fn read_command(&mut self, command: Option<&Command<'_>>) -> CommandEffect {
        self.step.record_command(command, self.is_between_replies());
        match (self.phase, command) {
            (Phase::Verified, Some(c)) if c.is_not_ftp_after(self.is_logged_in()) => {
                self.phase = Phase::NotFtp;
            }
            (Phase::Verified, _) => {}
            (_, Some(c)) => self.read_early_command(c),
            // An empty line says nothing about the client.
            (_, None) => {}
        }
        let Some(command) = command else {
            self.ambiguities.record_extra_reply(ExtraReply::Any);
            return CommandEffect::Nothing;
        };
        if matches!(command.verb, Verb::User | Verb::Reinitialize) && self.is_logged_in() {
            // Many servers forget the login when they read this command (RFC 959 section 4.1.1).
            self.login = Login::Restarted;
        }
        self.ambiguities.record_command(command.verb, &self.pending);
        let kind = match command.verb {
            Verb::Port | Verb::Eprt => return CommandEffect::Announcement,
            Verb::Auth => return CommandEffect::Auth,
            Verb::Pasv | Verb::Epsv => PendingKind::Passive,
            Verb::EpsvAll => PendingKind::EpsvAll,
            Verb::User => PendingKind::User,
            Verb::Login => PendingKind::Login,
            Verb::Reinitialize => PendingKind::Reinitialize,
            Verb::Transfer => PendingKind::Transfer,
            Verb::Unknown if self.phase == Phase::Greeted => PendingKind::FirstUnknown,
            Verb::Listing => PendingKind::Listing,
            // Only a client that waits for each reply can be followed.
            Verb::Directory if !self.has_pending_commands() => PendingKind::Directory,
            Verb::ClearCommandChannel
            | Verb::Plain
            | Verb::Directory
            | Verb::Other
            | Verb::Unknown => PendingKind::Other,
        };
        self.push_pending(kind);
        CommandEffect::Nothing
    }

    /// Records whether the announcement just read opened a pinhole.
    pub fn record_announcement(&mut self, opened: bool) {
        self.push_pending(if opened { PendingKind::Announcement } else { PendingKind::Other });
    }

    /// Records that the command just read was crossed out. If too many commands are pending, or replies cannot be
    /// matched, the client gets the server's own reply.
    pub fn record_crossed_out(&mut self, reason: RefusalReason) {
        self.step.record_command(None, false);
        let is_known = self.phase == Phase::Verified && self.pending.len() < MAX_RUNS / 2;
        self.push_pending(if is_known {
            PendingKind::CrossedOut(reason)
        } else {
            PendingKind::Other
        });
    }

    /// Records that the `AUTH` just read is forwarded to the server.
    pub fn record_auth(&mut self) {
        if !self.matches_auth() {
            self.ambiguities.record_extra_reply(ExtraReply::Any);
        }
        self.push_pending(PendingKind::Auth);
    }

    /// Reads a complete line of the server.
    pub fn read_reply_line(&mut self, text: &Text<'_>) -> ReplyEffect {
        let was_open = self.replies.open_code().is_some();
        if text.bytes().is_empty() && !was_open {
            // Some servers send one after a reply, or before the greeting. What comes next may also be in the middle
            // of a name with line ends.
            if self.phase.has_greeted() {
                self.ambiguities.require_complete_replies();
            }
            return ReplyEffect::Nothing;
        }
        // Nothing that an indented greeting could be the text of precedes it.
        let is_greeting = self.phase.expects_greeting() && !was_open;
        let reply = match is_greeting && text.is_indented() {
            true => self.replies.read_line(&Text::new(text.bytes())),
            false => self.replies.read_line(text),
        };
        self.ambiguities.record_end_of_reply(reply.is_some());
        self.step.record_reply(reply.filter(|_| !was_open && self.pending.count() == 1));
        let other_end = self.replies.other_end(text).filter(|_| reply.is_none());
        self.other_end = other_end.and_then(|end| NonZeroU16::new(end.code));
        let has_greeted = self.phase.has_greeted();
        if (!has_greeted || self.pending.contains(PendingKind::Greeting))
            && Padding::accepts_zeros(text.bytes())
        {
            self.padding = Padding::Zeros;
        }
        if !has_greeted {
            return match reply.filter(|reply| reply.code != 220) {
                Some(reply) if self.phase == Phase::CommandAfterText => {
                    let is_ftp = self.is_answered_as_ftp(reply);
                    let effect = self.handle_reply(reply);
                    self.record_reply_after_text(reply, is_ftp, effect)
                }
                _ => self.read_greeting_line(text, reply),
            };
        }
        if self.phase == Phase::PickedUp && reply.is_some() {
            self.phase = Phase::PickedUpFtp;
        }
        let begun = self.replies.open_code().filter(|_| !was_open);
        let is_stray = !was_open && reply.is_none() && begun.is_none();
        self.ambiguities.record_reply_line(text, reply, begun, is_stray, &self.pending);
        reply.map_or(ReplyEffect::Nothing, |reply| self.handle_reply(reply))
    }

    /// Whether so many commands are pending that no reply may be held or made longer. The server sends as much as its
    /// client's window allows, so longer replies would not fit, and with them the acknowledgements that the client
    /// needs would not arrive.
    pub fn has_many_pending(&self) -> bool {
        self.pending.count() > MAX_PENDING
    }

    /// Whether a command is pending.
    pub fn has_pending_commands(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The dialogue is plain text again after encryption. If `session` is set, both ends sent encrypted data, so the
    /// login happened there: RFC 4217 allows `CCC` only after a login, and the server still refuses commands that need
    /// one.
    pub fn resume_plaintext(&mut self, session: bool) {
        (self.pending, self.replies, self.step) = Default::default();
        // The server may still owe a reply to what it read encrypted.
        self.ambiguities.require_complete_replies();
        self.login = if session { Login::Accepted } else { Login::None };
    }

    /// Whether no command is pending, and no reply is unfinished.
    fn is_between_replies(&self) -> bool {
        !self.has_pending_commands() && self.replies.open_code().is_none()
    }

    fn handle_reply(&mut self, reply: Reply) -> ReplyEffect {
        // Nothing is transferred before a login, so 225 or 226 ends no transfer.
        let before_transfers = self.is_logged_out();
        if matches!(reply.code, 230 | 232) {
            self.doubt_login();
        }
        match reply.code {
            227 | 229 => {
                let was_requested = self.pop_answered(PendingKind::Passive);
                if !was_requested {
                    self.pending.pop();
                }
                ReplyEffect::Passive { was_requested }
            }
            // The client's earlier identity no longer counts (RFC 2228 section 3, RFC 4217 section 4).
            234 | 334 if self.pop_answered(PendingKind::Auth) => {
                self.login = Login::None;
                self.doubt_early_commands();
                if reply.code == 234 && !self.doubts_replies() {
                    return ReplyEffect::Encrypted;
                }
                self.tls = TlsStart::Allowed;
                ReplyEffect::Nothing
            }
            230 | 232 if self.pending.drop_before_any(&[PendingKind::User, PendingKind::Login]) => {
                self.pending.pop();
                self.accept_login()
            }
            _ if reply.is_preliminary() => {
                if self.pending.drop_before(PendingKind::Transfer) {
                    ReplyEffect::Event(DialogueEvent::TransferStarted(None))
                } else {
                    ReplyEffect::Nothing
                }
            }
            // It answers another command: a transfer ends with 226 or 250 (RFC 959 section 5.4).
            _ if reply.is_success()
                && !matches!(reply.code, 225 | 226 | 250)
                && self.pending.pop_during_transfer() =>
            {
                ReplyEffect::Nothing
            }
            _ => match self.pending.pop_first(|kind| may_answer(reply, kind, before_transfers)) {
                Some(PendingKind::Announcement) if reply.is_success() => {
                    ReplyEffect::Event(DialogueEvent::AnnouncementAccepted)
                }
                Some(PendingKind::Announcement) if reply.is_failure() => {
                    ReplyEffect::Event(DialogueEvent::AnnouncementRefused)
                }
                Some(PendingKind::CrossedOut(reason)) if reply.is_unknown_command() => {
                    ReplyEffect::ReplyToCrossedOut(reason)
                }
                Some(PendingKind::Auth) if !reply.is_failure() => {
                    self.doubt_early_commands();
                    self.tls = TlsStart::Allowed;
                    ReplyEffect::Nothing
                }
                Some(PendingKind::Transfer) => {
                    ReplyEffect::Event(DialogueEvent::TransferEnded(reply))
                }
                Some(PendingKind::Directory) => {
                    ReplyEffect::Event(DialogueEvent::DirectoryAnswered(reply.is_success(), None))
                }
                Some(PendingKind::EpsvAll) if reply.is_success() => {
                    self.epsv_all = true;
                    ReplyEffect::Nothing
                }
                Some(PendingKind::Reinitialize) if reply.is_success() => {
                    (self.epsv_all, self.login) = (false, Login::None);
                    ReplyEffect::Nothing
                }
                // Servers differ in the code, so the reply must be the only one that is due.
                Some(PendingKind::User | PendingKind::Login) if reply.is_success() => {
                    if self.has_pending_commands()
                        || self.ambiguities.extra_reply != ExtraReply::None
                    {
                        self.doubt_login();
                        return ReplyEffect::Nothing;
                    }
                    self.accept_login()
                }
                Some(
                    which @ (PendingKind::User | PendingKind::Login | PendingKind::Reinitialize),
                ) if reply.is_failure() => self.refuse_login(which, reply),
                Some(PendingKind::FirstUnknown) if !reply.is_failure() => {
                    self.phase = Phase::NotFtp;
                    ReplyEffect::Nothing
                }
                // It asks for a password, so the success before it was of something else.
                None | Some(PendingKind::Login) if reply.code == 331 => {
                    self.login = Login::Asked;
                    ReplyEffect::Nothing
                }
                None if reply.code == 332 => {
                    self.login = Login::None;
                    ReplyEffect::Nothing
                }
                None if reply.code == 230 && self.login == Login::Asked => self.accept_login(),
                _ => ReplyEffect::Nothing,
            },
        }
    }

    /// A client that begins TLS sends nothing behind `AUTH` before its reply.
    fn doubt_early_commands(&mut self) {
        if self.has_pending_commands() {
            self.ambiguities.record_extra_reply(ExtraReply::Any);
        }
    }

    fn push_pending(&mut self, kind: PendingKind) {
        if self.pending.len() == MAX_RUNS {
            self.ambiguities.expect_listing(&self.pending);
        }
        if self.pending.push(kind) {
            self.has_forgotten = true;
            self.doubt_login();
        }
    }

    fn pop_answered(&mut self, which: PendingKind) -> bool {
        self.pending.drop_before(which) && self.pending.pop().is_some()
    }
}

/// Whether a reply with this code may open something, or change rights. Such a reply must be whole.
fn is_decisive(reply: Reply) -> bool {
    matches!(reply.code, 227 | 229 | 230 | 232 | 234 | 334)
}

#[path = "login.rs"]
mod login;
#[path = "phases.rs"]
mod phases;

#[cfg(test)]
#[path = "dialogue_tests.rs"]
mod tests;
