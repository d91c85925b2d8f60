//! The state of the FTP dialogue on one control connection, and how each line changes it.
//!
//! Replies come in the order of their commands (RFC 959 section 5.4), so pending commands are stored in order. Servers
//! are not strict about it: `ABOR` has one or two replies, and the reply to `STAT` comes early. Replies whose code
//! shows which command they answer restore the order.
//!
//! Nothing is opened while the ends may disagree about line ends, or about which reply answers which command
//! ([`Ambiguities`]). The ambiguity ends when no command is pending and the server has nothing more to send.
//!
//! # In step again
//!
//! [`ReplySync`] records how a dialogue gets in step again after packets were missed.
//!
//! Either end can make us miss bytes at any time by acknowledging bytes that the other end has not sent yet: these
//! bytes then pass unread. So a client could make the start of a listing pass, and name files so that the rest looks
//! like replies. Nothing is opened until a command and its [complete reply](super::reading) show that no such line can
//! come any more:
//!
//! - Either all commands whose replies may still come are plain, so their replies contain no text that a client chose.
//!   All of the client's bytes must have been read.
//! - Or nothing was sent for a while, and the command is the first line afterwards. A server that pauses inside a reply
//!   has its client's window closed; then more than one line waits, and comes with the reply.
//!
//! The server has received the command, with an acknowledgement of everything that was read. So the server has sent as
//! much, and none of its later bytes is taken for a retransmission.

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use super::{
    DialogueEvent, RefusalReason, Side,
    compact::{self, CompactVec},
    protocols::{self, is_tls_byte},
    state::{Login, Phase, Read, State, Tls},
};
use crate::ftp::{Command, LineEnd, Padding, Reply, ReplyTracker, Text, Verb};

/// With more pending commands than this, the client does not wait for replies.
const MAX_PENDING: u32 = 16;

/// What a client's line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandMeaning {
    /// Nothing that concerns a gateway.
    Nothing,
    /// `PORT` or `EPRT`: the caller reports the decision with [`Dialogue::note_announcement`].
    Announcement,
    /// `AUTH`: the caller calls [`Dialogue::note_auth`] if it is forwarded.
    Auth,
}

/// What a server's reply leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyMeaning {
    /// Nothing that concerns a gateway.
    Nothing,
    /// A 227 or 229.
    Passive {
        /// Whether a `PASV` or `EPSV` was pending.
        was_requested: bool,
    },
    /// The reply to a command that was crossed out for this reason.
    ReplyToCrossedOut(RefusalReason),
    /// An event that concerns pinholes or the session's state.
    Event(DialogueEvent),
}

/// The state of one dialogue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dialogue {
    pub(super) state: State,
    /// Whether the client has restricted itself to EPSV (RFC 2428 section 4).
    pub epsv_all: bool,
    pub(super) replies: ReplyTracker,
    pending: PendingCommands,
    ambiguities: Ambiguities,
    /// The padding with which announcements keep their length, according to the greeting.
    pub padding: Padding,
    /// Code of the server's last line, if it is inside a multi-line reply and looks like the end of another one.
    #[serde(skip)]
    other_end: Option<NonZeroU16>,
    /// Whether command kinds were forgotten with the last line, because too many commands were pending.
    #[serde(skip)]
    pub(super) has_forgotten: bool,
    /// What is known about replies that may still come.
    #[serde(skip)]
    sync: ReplySync,
}

impl Default for Dialogue {
    /// A dialogue at its start.
    fn default() -> Self {
        Self {
            state: State::NEW,
            epsv_all: false,
            replies: ReplyTracker::default(),
            pending: PendingCommands::default(),
            ambiguities: Ambiguities::default(),
            padding: Padding::Blanks,
            other_end: None,
            has_forgotten: false,
            sync: ReplySync::default(),
        }
    }
}

impl Dialogue {
    /// A dialogue that was picked up mid-stream.
    pub fn picked_up() -> Self {
        Self { state: State::PICKED_UP, ..Self::default() }
    }

    /// Whether it is as this module leaves it. A record may say anything.
    pub fn is_consistent(&self) -> bool {
        self.pending.is_consistent()
    }

    /// How much of the dialogue has shown that the connection is FTP.
    #[inline]
    pub fn phase(&self) -> Phase {
        self.state.phase
    }

    /// Whether the server has accepted a login.
    pub fn is_logged_in(&self) -> bool {
        matches!(self.state.login(), Login::Accepted | Login::InTls)
    }

    /// Whether the server may have accepted a login in plain text.
    pub fn may_be_logged_in(&self) -> bool {
        !matches!(self.state.login(), Login::NotYet | Login::InTls)
    }

    /// Whether the server has accepted no login, or has forgotten it.
    fn is_logged_out(&self) -> bool {
        matches!(self.state.login(), Login::NotYet | Login::None | Login::Asked)
    }

    /// Whether the server may still accept a login after which pinholes are opened.
    pub fn may_log_in(&self) -> bool {
        !self.is_logged_in() && !self.phase().opens_nothing_more()
    }

    /// Changes to the state after `read`.
    pub(super) fn advance(&mut self, read: Read) {
        self.state = self.state.next(read);
    }

    /// Why no announcement may open a pinhole now, by the client if `is_active`, else by the server.
    pub fn blocked_because(&self, is_active: bool) -> Option<&'static str> {
        Some(match self.phase() {
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

    /// Whether a server's announcement must be a complete reply of its own, because the dialogue was ambiguous at some
    /// time, or may become so with the client's next line.
    pub fn is_ambiguous(&self) -> bool {
        self.ambiguities.is_any() || self.other_end.is_some()
    }

    /// Whether the windows that the client offers decide whether a server's announcement is a complete reply.
    #[inline]
    pub fn needs_windows(&self) -> bool {
        (self.is_ambiguous() || self.pending.has_behind_another(PendingKind::Passive))
            && !self.phase().opens_nothing_more()
    }

    /// Notes that the announcement just read is not a complete reply of its own.
    pub fn note_partial_reply(&mut self) {
        self.ambiguities.note_partial_reply();
    }

    /// Notes how a client's line ends, before the line is read.
    pub fn note_client_line_end(&mut self, end: LineEnd) {
        let was_ambiguous = self.ambiguities.may_split_client_lines();
        self.ambiguities.note_client_line_end(end, !self.has_pending_commands());
        if end != LineEnd::Plain {
            self.sync.note_command(None, false);
        }
        if self.ambiguities.may_split_client_lines() && !(was_ambiguous && end == LineEnd::Plain) {
            self.sync.note_lag();
        }
    }

    /// Notes a line of the client that is so long that a server may split it.
    pub fn note_long_line(&mut self) {
        self.sync.note_lag();
    }

    /// Notes how a server's line ends, before the line is read.
    pub fn note_server_line_end(&mut self, end: LineEnd, text: &Text<'_>) {
        let is_greeting = self.phase().expects_greeting() || self.phase() == Phase::CommandFirst;
        let is_reply_to = |kinds: &[PendingKind]| {
            end == LineEnd::Lf
                && self.replies.open_code().is_none()
                && self.has_pending_commands()
                && self.pending.are_all_of(kinds)
        };
        let answers_login = is_login_reply(text)
            && self.is_logged_out()
            && is_reply_to(&[PendingKind::User, PendingKind::Login]);
        // A file name in an earlier reply could also end this line with CR LF, so an LF alone proves nothing.
        let answers_passive = is_announcement(text)
            && self.ambiguities.is_clear()
            && is_reply_to(&[PendingKind::Passive]);
        let end = if answers_passive { LineEnd::Plain } else { end };
        self.ambiguities.note_server_line_end(end, is_greeting, answers_login);
    }

    /// Notes that the server's TCP has nothing more to send after a whole line, which may end an ambiguity. After a
    /// [complete reply](super::reading) the dialogue may be in step again.
    pub fn note_pause(&mut self, is_complete_reply: bool) {
        self.sync.note_pause();
        if !(self.ambiguities.resolve(&self.pending) && self.is_between_replies()) {
            return;
        }
        if self.sync.is_answered() && is_complete_reply {
            self.advance(Read::InStep);
        }
        if self.phase() == Phase::Verified && self.ambiguities.is_clear() {
            self.sync = self.sync.idle();
        }
    }

    /// Ends an unfinished multi-line reply, because the client sends a line. Some servers end such a reply with a line
    /// of another code (glftpd: `553-`, then `150 `). If the server's last line may be that end, and nothing came after
    /// it, the client has taken it for the end. But a listing may have a name that looks like an end. Returns the event of
    /// the reply.
    pub fn end_open_reply(&mut self) -> Option<DialogueEvent> {
        if !self.phase().has_greeted() {
            return None;
        }
        let reply = Reply { code: self.other_end.filter(|_| self.sync.has_paused())?.get() };
        // Nobody has logged in yet, so this 230 opens nothing.
        let is_greeting = self.pending.oldest() == Some(PendingKind::Greeting) && reply.code == 230;
        let is_listing = self.pending.oldest() == Some(PendingKind::Listing);
        if self.pending.count() > 1 || is_listing || is_decisive(reply) && !is_greeting {
            return None;
        }
        (self.replies, self.other_end) = (ReplyTracker::default(), None);
        let meaning = self.handle_reply(reply);
        self.ambiguities.note_other_end();
        self.ambiguities.resolve(&self.pending);
        match meaning {
            ReplyMeaning::Event(event) => Some(event),
            _ => None,
        }
    }

    /// Whether no command is pending, and nothing is ambiguous or special.
    pub fn is_quiescent(&self) -> bool {
        let is_known = match self.phase() {
            Phase::NotGreeted | Phase::Verified => true,
            Phase::Greeted => !self.is_logged_in(),
            _ => false,
        };
        is_known && !self.epsv_all && !self.ambiguities.is_any() && self.is_between_replies()
    }

    /// Whether replies may be about earlier lines than it seems.
    pub fn may_lag(&self) -> bool {
        self.sync.may_lag()
    }

    /// Whether `reply`, taken for the completion reply of a transfer, may answer another command. A server that reads
    /// commands during a transfer that `has_started` answers them before the transfer ends.
    pub fn may_answer_another(&self, reply: Reply, has_started: bool) -> bool {
        let is_of_transfers = match reply.code {
            226 | 426 | 451 | 452 | 551 | 552 => true,
            425 => !self.has_pending_transfer(),
            _ => false,
        };
        let is_of_others = reply.is_success() && !matches!(reply.code, 225 | 226 | 250);
        is_of_others
            || match has_started {
                true => (self.may_lag() || self.has_pending_commands()) && !is_of_transfers,
                false => self.may_lag(),
            }
    }

    /// Whether a transfer command waits for its completion reply.
    pub fn has_pending_transfer(&self) -> bool {
        self.pending.has_kind(PendingKind::Transfer)
    }

    /// The number of transfer commands that wait for their completion replies.
    pub fn pending_transfers(&self) -> usize {
        self.pending.count_of(PendingKind::Transfer) as usize
    }

    /// Whether more than one command of a login is pending.
    pub fn has_earlier_login(&self) -> bool {
        let count = |kind| self.pending.count_of(kind);
        count(PendingKind::User).saturating_add(count(PendingKind::Login)) > 1
    }

    /// Whether a 227 or 229 would answer a pending command.
    pub fn has_pending_passive(&self) -> bool {
        self.pending.has_kind(PendingKind::Passive)
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

    /// Whether the client's next line shows which protocol it speaks.
    pub fn expects_first_command(&self) -> bool {
        self.phase() == Phase::Greeted || self.phase().expects_greeting()
    }

    /// Whether a CR that comes now belongs to the end of the greeting, LF CR.
    pub fn may_end_greeting_with_cr(&self) -> bool {
        self.phase() == Phase::Greeted && self.pending.is_empty() && self.ambiguities.has_server_lf
    }

    /// Notes that the client does not speak FTP, although the server may.
    pub fn mark_client_not_ftp(&mut self) {
        self.advance(Read::OtherClient);
        // After text it is unknown which reply is the greeting.
        self.ambiguities.note_extra_reply(ExtraReply::Any);
    }

    /// Notes that the client's first bytes were a PROXY header. A server that does not know it sends other replies with
    /// its greeting, and later replies may answer earlier commands than it seems.
    pub fn note_proxy_header(&mut self) {
        self.ambiguities.note_extra_reply(ExtraReply::Any);
        self.ambiguities.require_complete_replies();
    }

    /// Notes that packets were missed, or that the bytes read are in doubt: of the earlier dialogue only the fact
    /// counts that the connection is FTP. Either end can cause a miss at any time, so a miss must not lift a refusal.
    /// With `client_is_whole`, none of the client's packets were missed.
    pub fn note_missed(&mut self, read: Read, client_is_whole: bool) {
        let sync = ReplySync::unknown();
        let missed = Self { state: self.state.next(read), sync, ..Self::default() };
        let before = std::mem::replace(self, missed);
        if self.phase() == Phase::OutOfStep {
            (self.epsv_all, self.padding) = (before.epsv_all, before.padding);
            self.ambiguities = before.ambiguities.after_missed(client_is_whole);
            if client_is_whole {
                self.sync = before.sync.after_missed();
            }
        }
        self.ambiguities.note_extra_reply(ExtraReply::Any);
    }

    /// Notes that both ends were silent for so long that the server cannot be inside a reply.
    pub fn note_silence(&mut self) {
        if self.phase() == Phase::OutOfStep && self.replies.open_code().is_none() {
            self.pending = Default::default();
            self.sync = ReplySync::after_silence();
        }
    }

    /// Reads a complete line of the client.
    pub fn read_command(&mut self, command: Option<&Command<'_>>) -> CommandMeaning {
        self.sync.note_command(command, self.is_between_replies());
        // An empty line does not show what the client speaks.
        let Some(command) = command else {
            self.ambiguities.note_extra_reply(ExtraReply::Any);
            self.sync.note_lag();
            return CommandMeaning::Nothing;
        };
        if self.phase() != Phase::Verified {
            self.read_early_command(command);
        } else if command.is_not_ftp(false) {
            self.advance(Read::OtherClient);
        }
        if matches!(command.verb, Verb::User | Verb::Reinitialize) {
            // Many servers forget the login when they read this command (RFC 959 section 4.1.1).
            self.advance(Read::LoginRestarted);
        }
        self.ambiguities.note_command(command.verb, &self.pending);
        let kind = match command.verb {
            Verb::Port | Verb::Eprt => return CommandMeaning::Announcement,
            Verb::Auth => return CommandMeaning::Auth,
            Verb::Pasv | Verb::Epsv => {
                self.sync.note_passive(self.has_pending_passive());
                PendingKind::Passive
            }
            Verb::EpsvAll => PendingKind::EpsvAll,
            Verb::User => PendingKind::User,
            Verb::Login => PendingKind::Login,
            Verb::Reinitialize => PendingKind::Reinitialize,
            Verb::Transfer => PendingKind::Transfer,
            Verb::Unknown if self.phase() == Phase::Greeted => PendingKind::FirstUnknown,
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
        CommandMeaning::Nothing
    }

    /// Notes whether the announcement just read opened a pinhole.
    pub fn note_announcement(&mut self, opened: bool) {
        self.push_pending(if opened { PendingKind::Announcement } else { PendingKind::Other });
    }

    /// Notes that the command just read was crossed out. If too many commands are pending, or replies cannot be
    /// matched, the client gets the server's own reply.
    pub fn note_crossed_out(&mut self, reason: RefusalReason) {
        self.sync.note_command(None, false);
        let is_known = self.phase() == Phase::Verified && self.pending.len() < MAX_RUNS / 2;
        self.push_pending(if is_known {
            PendingKind::CrossedOut(reason)
        } else {
            PendingKind::Other
        });
    }

    /// Notes that the `AUTH` just read is forwarded to the server.
    pub fn note_auth(&mut self) {
        self.push_pending(PendingKind::Auth);
    }

    /// Reads a complete line of the server.
    pub fn read_reply_line(&mut self, text: &Text<'_>) -> ReplyMeaning {
        let was_open = self.replies.open_code().is_some();
        if text.bytes().is_empty() && !was_open {
            // Some servers send an empty line after a reply, or before the greeting. The next line may also be the
            // middle of a name with line ends.
            if self.phase().has_greeted() {
                self.ambiguities.require_complete_replies();
            }
            return ReplyMeaning::Nothing;
        }
        // No multi-line reply is open, so an indented greeting cannot be the text of one.
        let is_greeting = self.phase().expects_greeting() && !was_open;
        let reply = match is_greeting && text.is_indented() {
            true => self.replies.read_line(&Text::new(text.bytes())),
            false => self.replies.read_line(text),
        };
        if reply.is_some() && self.may_be_tls() && !self.has_pending_commands() {
            self.advance(Read::NoTls);
        }
        self.ambiguities.note_end_of_reply(reply.is_some());
        self.sync.note_reply(reply.filter(|_| !was_open && self.pending.count() == 1));
        let other_end = self.replies.other_end(text).filter(|_| reply.is_none());
        self.other_end = other_end.and_then(|end| NonZeroU16::new(end.code));
        let has_greeted = self.phase().has_greeted();
        if (!has_greeted || self.pending.has_kind(PendingKind::Greeting))
            && Padding::accepts_zeros(text.bytes())
        {
            self.padding = Padding::Zeros;
        }
        if !has_greeted {
            return match reply.filter(|reply| reply.code != 220) {
                Some(reply) if self.phase() == Phase::CommandAfterText => {
                    let is_ftp = self.is_answered_as_ftp(reply);
                    let meaning = self.handle_reply(reply);
                    self.note_reply_after_text(reply, is_ftp, meaning)
                }
                _ => self.read_greeting_line(text, reply),
            };
        }
        if self.phase() == Phase::PickedUp && reply.is_some() {
            self.advance(Read::Reply);
        }
        let begun = self.replies.open_code().filter(|_| !was_open);
        let is_stray = !was_open && reply.is_none() && begun.is_none();
        self.ambiguities.note_reply_line(text, reply, begun, is_stray, &self.pending);
        reply.map_or(ReplyMeaning::Nothing, |reply| self.handle_reply(reply))
    }

    /// Reads a command of a client that is not yet known to speak FTP.
    fn read_early_command(&mut self, command: &Command<'_>) {
        let follows_unknown = self.pending.has_kind(PendingKind::FirstUnknown);
        match protocols::read_command(self.phase(), command, follows_unknown) {
            Some(Read::OtherClient) => self.mark_client_not_ftp(),
            Some(read) => self.advance(read),
            None => {}
        }
    }

    /// Reads a line of the server before its greeting has ended. `reply` is the reply that the line ends, if any.
    fn read_greeting_line(&mut self, text: &Text<'_>, reply: Option<Reply>) -> ReplyMeaning {
        let (phase, open_code) = (self.phase(), self.replies.open_code());
        let may_be_logged_in = self.may_be_logged_in();
        let read = protocols::read_greeting_line(phase, text, reply, open_code, may_be_logged_in);
        let Some(read) = read else { return ReplyMeaning::Nothing };
        self.advance(read);
        match (read, self.phase()) {
            // Some clients do not wait for the last line.
            (Read::GreetingStart, _) => drop(self.pending.push(PendingKind::Greeting)),
            (Read::Reply220, Phase::Verified) => {
                self.ambiguities.note_extra_reply(ExtraReply::Greeting);
            }
            (Read::Reply, Phase::Greeted) if reply == Some(Reply { code: 230 }) => {
                return self.accept_login();
            }
            _ => {}
        }
        ReplyMeaning::Nothing
    }

    /// Whether `reply` answers the only pending command as no other protocol does. Called before the reply is handled,
    /// for a server that sent text in place of a greeting.
    fn is_answered_as_ftp(&self, reply: Reply) -> bool {
        self.pending.count() == 1
            && match self.pending.oldest() {
                Some(PendingKind::User) => matches!(reply.code, 230 | 232 | 331 | 332),
                Some(PendingKind::Login) => matches!(reply.code, 230 | 232 | 332),
                Some(PendingKind::Auth) => matches!(reply.code, 234 | 334),
                _ => false,
            }
    }

    /// Notes the `meaning` of a `reply` from a server that sent text in place of a greeting. The server speaks FTP if
    /// `is_ftp`, or when a pipeline with a login is answered completely.
    fn note_reply_after_text(
        &mut self,
        reply: Reply,
        is_ftp: bool,
        meaning: ReplyMeaning,
    ) -> ReplyMeaning {
        if meaning == ReplyMeaning::Event(DialogueEvent::LoggedIn) && reply.code / 10 != 23 {
            // Other protocols have success codes, too.
            self.advance(Read::LoginForgotten);
            return ReplyMeaning::Nothing;
        }
        if is_ftp || self.is_logged_in() && self.pending.is_empty() {
            self.advance(Read::FtpReply);
            // Nobody knows where the text would have ended.
            self.ambiguities.require_complete_replies();
        }
        meaning
    }

    /// Whether so many commands are pending that no reply may be held or made longer. The server sends as much as its
    /// client's window allows, so longer replies would not fit, and the acknowledgements in them would not arrive.
    pub fn has_many_pending(&self) -> bool {
        self.pending.count() > MAX_PENDING
    }

    /// Whether a command is pending.
    pub fn has_pending_commands(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Notes that `side` sends plain text again after encryption. If both ends have `sent_data` encrypted, the login
    /// was encrypted: RFC 4217 allows `CCC` only after a login, and the server still refuses commands that need one.
    pub fn end_tls(&mut self, side: Side, sent_data: bool) {
        if !self.state.reads_lines(side.peer()) {
            (self.pending, self.replies) = Default::default();
            self.sync = ReplySync::unknown();
            // The server may still owe a reply to an encrypted command.
            self.ambiguities.require_complete_replies();
        }
        let login = if sent_data { Login::InTls } else { Login::NotYet };
        self.advance(Read::TlsEnd(side, login));
    }

    /// Whether the client's line began like TLS, so that its bytes are no commands.
    #[inline]
    pub fn may_be_tls(&self) -> bool {
        matches!(self.state.tls(), Tls::ByClient | Tls::ByBoth)
    }

    /// Whether both ends have sent records.
    pub fn has_records_of_both(&self) -> bool {
        self.state.tls() == Tls::ByBoth
    }

    /// Reads `first`, the first byte of a line of `from`. After a login the server may show a file in a reply that
    /// looks like TLS records, so that the client's records could hide commands. So a server's byte counts only before
    /// the login, and after an `AUTH` that is known to be accepted. After `CCC` it counts as well, because both ends
    /// have spoken TLS.
    #[inline]
    pub fn read_first_byte(&mut self, from: Side, first: u8) {
        let may_be_shown = from == Side::Server && self.may_be_logged_in();
        if is_tls_byte(from, first) && !may_be_shown {
            self.advance(Read::TlsByte(from));
        }
    }

    /// Handles a login that the server has accepted.
    fn accept_login(&mut self) -> ReplyMeaning {
        if self.restarts_login() {
            self.advance(Read::LoginOutdated);
            return ReplyMeaning::Nothing;
        }
        self.advance(Read::LoginAccepted);
        ReplyMeaning::Event(DialogueEvent::LoggedIn)
    }

    /// Handles the server's failure reply to `which`. An earlier login continues.
    fn refuse_login(&mut self, which: PendingKind, reply: Reply) -> ReplyMeaning {
        if !self.restarts_login() {
            self.advance(Read::LoginRefused);
        }
        match which {
            PendingKind::Reinitialize => ReplyMeaning::Nothing,
            _ => ReplyMeaning::Event(DialogueEvent::LoginRefused(reply)),
        }
    }

    /// Whether a `USER` or `REIN` is pending, which ends the login that the server accepts now.
    fn restarts_login(&self) -> bool {
        self.pending.has_kind(PendingKind::User) || self.pending.has_kind(PendingKind::Reinitialize)
    }

    /// Whether no command is pending, and no reply is unfinished.
    fn is_between_replies(&self) -> bool {
        !self.has_pending_commands() && self.replies.open_code().is_none()
    }

    fn handle_reply(&mut self, reply: Reply) -> ReplyMeaning {
        // Nothing is transferred before a login, so 225 or 226 ends no transfer.
        let before_transfers = self.is_logged_out();
        let transfers = self.pending_transfers();
        let is_only = self.pending.count() == 1;
        if matches!(reply.code, 230 | 232) {
            self.advance(Read::LoginDoubted);
        }
        match reply.code {
            227 | 229 => {
                let was_requested = self.pop_answered(PendingKind::Passive);
                if !was_requested {
                    self.pending.pop();
                } else if self.pending_transfers() == transfers {
                    self.sync.note_passive_reply();
                } else {
                    // The server reads commands during a transfer.
                    self.sync.note_lag();
                }
                ReplyMeaning::Passive { was_requested }
            }
            234 | 334 if self.pop_answered(PendingKind::Auth) => {
                let is_certain =
                    is_only && self.phase() == Phase::Verified && self.ambiguities.has_none();
                self.advance(match is_certain || !self.may_be_logged_in() {
                    true => Read::AuthAccepted,
                    false => Read::LoginForgotten,
                });
                ReplyMeaning::Nothing
            }
            230 | 232 if self.pending.drop_before_any(&[PendingKind::User, PendingKind::Login]) => {
                self.pending.pop();
                if self.pending_transfers() < transfers {
                    self.sync.note_lag();
                }
                self.accept_login()
            }
            _ if reply.is_preliminary() => {
                if self.pending.drop_before(PendingKind::Transfer) {
                    ReplyMeaning::Event(DialogueEvent::TransferStarted(None))
                } else {
                    ReplyMeaning::Nothing
                }
            }
            // The reply answers another command: a transfer ends with 226 or 250 (RFC 959 section 5.4).
            _ if reply.is_success()
                && !matches!(reply.code, 225 | 226 | 250)
                && self.pending.pop_during_transfer() =>
            {
                ReplyMeaning::Nothing
            }
            _ => {
                let answered =
                    self.pending.pop_first(|kind| may_answer(reply, kind, before_transfers));
                self.handle_answer(answered, reply)
            }
        }
    }

    /// Handles the reply to the command `answered`.
    fn handle_answer(&mut self, answered: Option<PendingKind>, reply: Reply) -> ReplyMeaning {
        match answered {
            Some(PendingKind::Announcement) if reply.is_success() => {
                ReplyMeaning::Event(DialogueEvent::AnnouncementAccepted)
            }
            Some(PendingKind::Announcement) if reply.is_failure() => {
                ReplyMeaning::Event(DialogueEvent::AnnouncementRefused)
            }
            Some(PendingKind::CrossedOut(reason)) if reply.is_unknown_command() => {
                ReplyMeaning::ReplyToCrossedOut(reason)
            }
            Some(PendingKind::Transfer) => ReplyMeaning::Event(DialogueEvent::TransferEnded(reply)),
            Some(PendingKind::Directory) => {
                ReplyMeaning::Event(DialogueEvent::DirectoryAnswered(reply.is_success(), None))
            }
            Some(PendingKind::EpsvAll) if reply.is_success() => {
                self.epsv_all = true;
                ReplyMeaning::Nothing
            }
            Some(PendingKind::Reinitialize) if reply.is_success() => {
                self.epsv_all = false;
                self.advance(Read::LoginForgotten);
                ReplyMeaning::Nothing
            }
            // The code differs between servers, so no other reply may be due.
            Some(PendingKind::User | PendingKind::Login) if reply.is_success() => {
                if self.has_pending_commands() || self.ambiguities.extra_reply != ExtraReply::None {
                    self.advance(Read::LoginDoubted);
                    return ReplyMeaning::Nothing;
                }
                self.accept_login()
            }
            Some(which @ (PendingKind::User | PendingKind::Login | PendingKind::Reinitialize))
                if reply.is_failure() =>
            {
                self.refuse_login(which, reply)
            }
            // The server asks for a password, so the success before belonged to another command.
            None | Some(PendingKind::Login) if reply.code == 331 => {
                self.advance(Read::PasswordAsked);
                ReplyMeaning::Nothing
            }
            None if reply.code == 332 => {
                self.advance(Read::LoginForgotten);
                ReplyMeaning::Nothing
            }
            None if reply.code == 230 && self.state.login() == Login::Asked => self.accept_login(),
            _ => ReplyMeaning::Nothing,
        }
    }

    fn push_pending(&mut self, kind: PendingKind) {
        if self.pending.len() == MAX_RUNS {
            self.ambiguities.expect_listing(&self.pending);
        }
        if self.pending.push(kind) {
            self.has_forgotten = true;
            self.advance(Read::LoginDoubted);
        }
    }

    fn pop_answered(&mut self, which: PendingKind) -> bool {
        self.pending.drop_before(which) && self.pending.pop().is_some()
    }
}

/// Whether this reply may open a pinhole, or change rights, so that it must be whole.
fn is_decisive(reply: Reply) -> bool {
    matches!(reply.code, 227 | 229 | 230 | 232 | 234 | 334)
}

/// Whether `text` is a whole reply with a code that answers a login.
fn is_login_reply(text: &Text<'_>) -> bool {
    matches!(text.bytes(), [b'2' | b'3', _, _, rest @ ..] if rest.first() != Some(&b'-'))
}

/// Whether `text` is a whole 227 or 229.
fn is_announcement(text: &Text<'_>) -> bool {
    matches!(text.bytes(), [b'2', b'2', b'7' | b'9', rest @ ..] if rest.first() != Some(&b'-'))
}

/// Why the ends may disagree about the dialogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Ambiguity {
    /// A line of the server did not end with CR LF (or LF, if the server is known to end lines so), or contained a CR,
    /// LF or NUL.
    LineEnds,
    /// A line of the server belonged to no reply, or ended inside a quoted name.
    StrayLine,
    /// A pending or unfinished reply may contain file names or contents. Their author can make them look like other
    /// replies.
    ListingReply,
    /// As [`Ambiguity::LineEnds`], caused by a line of the client.
    ClientLineEnds,
    /// As [`Ambiguity::ClientLineEnds`], but only the end of the last line is ambiguous: it is LF alone, and no other
    /// command is pending. Such a `PORT` opens no more than the client could open anyway, and such a `PASV` only what
    /// the server announces.
    ClientLf,
    /// Resolved, but the server may store a name with line ends in it. The next command leads to
    /// [`Ambiguity::RepeatedName`].
    NameWithLineEnd,
    /// The server may repeat such a name in a pending reply.
    RepeatedName,
    /// Apparently resolved. A server's announcement must be a complete reply of its own.
    Resolved,
    /// An announcement was not a complete reply of its own.
    PartialReply,
}

/// Whether a client's lines end with LF alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum ClientLf {
    #[default]
    Unknown,
    /// The only pending command ended with LF alone.
    Tried,
    /// The server has answered a line that ended with LF alone.
    Known,
}

/// Other data than commands that the server may have answered, so that later replies answer earlier commands than it
/// seems.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum ExtraReply {
    /// Nothing.
    #[default]
    None,
    /// The client did not wait for the greeting, and the server may send two.
    Greeting,
    /// Anything. Some servers answer an empty line, some count blanks and Telnet commands as a line, or replies were
    /// not read.
    Any,
}

/// What is ambiguous in a dialogue.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Ambiguities {
    ambiguity: Option<Ambiguity>,
    /// Whether the server is known to end its lines with LF alone, by its greeting or its reply to a login.
    has_server_lf: bool,
    client_lf: ClientLf,
    /// Other data than commands that the server may have answered.
    extra_reply: ExtraReply,
    /// The server's last line.
    #[serde(skip)]
    last_line: LastLine,
}

/// The server's last line, and the line before it in the same segment. `Reply` is a complete line that ended a reply.
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
    fn blocked_because(self, is_active: bool) -> Option<&'static str> {
        Some(match self.ambiguity? {
            Ambiguity::ClientLf if is_active => return None,
            // The announcement answers the line with LF, and no other command is pending.
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

    /// Whether a server's announcement must be a complete reply of its own, because the dialogue was ambiguous at some
    /// time.
    fn is_any(self) -> bool {
        self.ambiguity.is_some()
    }

    /// Notes that the announcement just read is not a complete reply of its own.
    fn note_partial_reply(&mut self) {
        match self.ambiguity {
            Some(Ambiguity::Resolved | Ambiguity::ClientLf) => {
                self.ambiguity = Some(Ambiguity::PartialReply);
            }
            Some(Ambiguity::NameWithLineEnd) => self.ambiguity = Some(Ambiguity::RepeatedName),
            _ => {}
        }
    }

    /// Notes how a client's line ends, before the line is read. If it `is_only`, no other command is pending.
    fn note_client_line_end(&mut self, end: LineEnd, is_only: bool) {
        let is_clear = self.is_clear();
        let is_known = self.client_lf == ClientLf::Known;
        if !is_known {
            let is_tried = end == LineEnd::Lf && is_only;
            self.client_lf = if is_tried { ClientLf::Tried } else { ClientLf::Unknown };
        }
        match end {
            // For some servers this line continues the one before.
            LineEnd::Plain if self.ambiguity == Some(Ambiguity::ClientLf) => {
                self.ambiguity = Some(Ambiguity::ClientLineEnds);
            }
            LineEnd::Plain => {}
            LineEnd::Lf if is_known => {}
            LineEnd::Lf if is_only && is_clear => self.ambiguity = Some(Ambiguity::ClientLf),
            LineEnd::Lf | LineEnd::Ambiguous => self.ambiguity = Some(Ambiguity::ClientLineEnds),
        }
    }

    /// Notes how a server's line ends, before the line is read. The greeting, and if nothing is ambiguous the reply
    /// to a login (`is_of_login`), show how the server ends its lines, because they contain no file name.
    fn note_server_line_end(&mut self, end: LineEnd, is_greeting: bool, is_of_login: bool) {
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
            self.note_ambiguous_line(Ambiguity::LineEnds);
        }
    }

    /// Whether the server's last line was complete, and the end of a reply.
    fn is_reply_complete(self) -> bool {
        matches!(self.last_line, LastLine::Reply | LastLine::ReplyBehindReply)
    }

    /// Whether a server may read one line of the client as several, or several as one.
    fn may_split_client_lines(self) -> bool {
        self.ambiguity == Some(Ambiguity::ClientLineEnds)
    }

    /// Whether nothing is ambiguous now.
    fn is_clear(self) -> bool {
        matches!(self.ambiguity, None | Some(Ambiguity::Resolved))
    }

    /// Notes that a line of the server is ambiguous, and why.
    fn note_ambiguous_line(&mut self, why: Ambiguity) {
        self.ambiguity = Some(match self.ambiguity {
            Some(Ambiguity::ClientLineEnds | Ambiguity::ClientLf) => Ambiguity::ClientLineEnds,
            Some(Ambiguity::NameWithLineEnd | Ambiguity::RepeatedName) => Ambiguity::RepeatedName,
            Some(Ambiguity::LineEnds) => Ambiguity::LineEnds,
            _ => why,
        });
    }

    /// Requires that each announcement of the server is a complete reply of its own from now on.
    fn require_complete_replies(&mut self) {
        self.ambiguity.get_or_insert(Ambiguity::Resolved);
    }

    /// Notes other data than a command that the server may have answered.
    fn note_extra_reply(&mut self, extra: ExtraReply) {
        self.extra_reply = self.extra_reply.max(extra);
    }

    /// Whether nothing was ambiguous so far, and the server has answered nothing but commands.
    fn has_none(self) -> bool {
        !self.is_any() && self.extra_reply == ExtraReply::None
    }

    /// Notes a command after the `pending` ones.
    fn note_command(&mut self, verb: Verb, pending: &PendingCommands) {
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

    /// Notes that the next line may belong to the reply to a pending listing.
    fn expect_listing(&mut self, pending: &PendingCommands) {
        if pending.has_kind(PendingKind::Listing) && self.is_clear() {
            self.ambiguity = Some(Ambiguity::ListingReply);
        }
    }

    /// Notes whether the server's line ended a reply.
    fn note_end_of_reply(&mut self, is_end: bool) {
        self.last_line = match self.last_line {
            LastLine::Reply if !is_end => LastLine::Other,
            LastLine::ReplyBehindReply if !is_end => LastLine::OtherBehindReply,
            line => line,
        };
    }

    /// Notes a line of the server after the greeting: it ended `reply`, or began a multi-line reply with the code
    /// `begun`. A line that is in no reply (`is_stray`) may be part of a file name. Behind a reply in the same segment,
    /// with no command pending, a stray line is more text of that reply, as some servers send it.
    fn note_reply_line(
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
            self.note_other_end();
        } else if is_stray || reply.is_some_and(|reply| reply.code == 257) && ends_inside_name(text)
        {
            self.note_ambiguous_line(Ambiguity::StrayLine);
        }
    }

    /// Notes that a line of another code, or without a code, has ended a reply.
    fn note_other_end(&mut self) {
        self.last_line = LastLine::Reply;
        self.require_complete_replies();
    }

    /// Ends the ambiguity if the server's last line ended a reply and no command is pending. After a listing, `PASV`
    /// and the commands of its transfer may be pending: some clients send them with the login, or before its reply is
    /// complete. Returns whether the line ended a reply.
    fn resolve(&mut self, pending: &PendingCommands) -> bool {
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

    /// The ambiguities after packets were missed. With missed packets of the client, the server may store a name that
    /// contains line ends.
    fn after_missed(self, client_is_whole: bool) -> Self {
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

/// Whether no pending reply may show files, and the next one, if any, answers `PASV` or `EPSV`.
fn is_passive_next(pending: &PendingCommands) -> bool {
    let is_next = pending.oldest().is_none_or(|kind| kind == PendingKind::Passive);
    is_next
        && pending.are_all_of(&[PendingKind::Passive, PendingKind::Transfer, PendingKind::Other])
}

/// Whether a multi-line reply with this code may show a file that a client uploaded. ProFTPD does (`DisplayChdir`), and
/// replaces `%{time:%n}` by line ends. Replies to `STAT`, `HELP`, `PASV` and `EPSV` do not.
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
enum PendingKind {
    User,
    Login,
    Passive,
    /// The reply to a `PORT` or `EPRT` that opened a pinhole.
    Announcement,
    EpsvAll,
    Reinitialize,
    Auth,
    Transfer,
    /// An unknown command before any known one. A client that does not wait for its reply speaks another protocol.
    FirstUnknown,
    /// The end of the server's greeting.
    Greeting,
    /// The reply to a crossed out command.
    CrossedOut(RefusalReason),
    /// A reply that may show files.
    Listing,
    /// A reply that shows the client's directory.
    Directory,
    Other,
    /// The kind is no longer known, only the number of commands.
    Forgotten,
}

/// Whether `reply` may answer a command of this kind. Servers send 225, 226 and 426 when a transfer has ended, however
/// often, and some send a success before the reply to `PASV`.
fn may_answer(reply: Reply, kind: PendingKind, before_transfers: bool) -> bool {
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
/// still match their commands, and replies to forgotten commands change nothing.
const MAX_RUNS: usize = 32;

/// A number of consecutive commands of one kind.
type Run = (PendingKind, u32);

/// The pending commands. Usually only one is pending.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct PendingCommands {
    oldest: Option<Run>,
    /// Empty if `oldest` is `None`.
    later: CompactVec<Run>,
}

impl PendingCommands {
    fn is_consistent(&self) -> bool {
        let mut runs = self.oldest.iter().chain(self.later.iter());
        self.len() <= MAX_RUNS
            && (self.oldest.is_some() || self.later.is_empty())
            && runs.all(|(_, count)| *count > 0)
    }

    /// Number of runs.
    fn len(&self) -> usize {
        usize::from(self.oldest.is_some()) + self.later.len()
    }

    /// Whether no command is pending.
    #[inline]
    fn is_empty(&self) -> bool {
        self.oldest.is_none()
    }

    /// Number of commands.
    fn count(&self) -> u32 {
        let runs = self.oldest.iter().chain(self.later.iter());
        runs.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Number of commands of this kind.
    fn count_of(&self, which: PendingKind) -> u32 {
        let runs = self.oldest.iter().chain(self.later.iter());
        runs.filter(|(kind, _)| *kind == which)
            .fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Whether a command of this kind is pending.
    fn has_kind(&self, which: PendingKind) -> bool {
        self.kinds().any(|kind| kind == which)
    }

    /// Whether no command of another kind is pending.
    fn are_all_of(&self, which: &[PendingKind]) -> bool {
        self.kinds().all(|kind| which.contains(&kind))
    }

    /// Whether the oldest command is the only one of this kind.
    fn begins_with_only(&self, which: PendingKind) -> bool {
        self.oldest == Some((which, 1)) && !self.has_behind_another(which)
    }

    /// Whether a command of this kind waits behind one of another kind.
    #[inline]
    fn has_behind_another(&self, which: PendingKind) -> bool {
        // Consecutive commands of one kind are one run.
        self.later.iter().any(|(kind, _)| *kind == which)
    }

    /// The kind of the oldest command.
    fn oldest(&self) -> Option<PendingKind> {
        self.oldest.map(|(kind, _)| kind)
    }

    /// Adds a command. Returns whether the limit was exceeded, so that the oldest kinds were forgotten.
    fn push(&mut self, kind: PendingKind) -> bool {
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
    fn pop(&mut self) -> Option<PendingKind> {
        let (kind, count) = self.oldest.as_mut()?;
        let kind = *kind;
        *count -= 1;
        if *count == 0 {
            self.promote_next();
        }
        Some(kind)
    }

    /// Removes the first command for which `is_answered` holds, and the earlier ones, because their replies will not
    /// come any more. Removes none if `is_answered` holds for none.
    fn pop_first(&mut self, is_answered: impl Fn(PendingKind) -> bool) -> Option<PendingKind> {
        let at = self.kinds().position(is_answered)?;
        self.drop_runs(at);
        self.pop()
    }

    /// Removes the first listing or other command behind the oldest command, a transfer that continues. Returns `false`
    /// if there is none.
    fn pop_during_transfer(&mut self) -> bool {
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
    fn drop_before(&mut self, which: PendingKind) -> bool {
        self.drop_before_any(&[which])
    }

    /// As [`drop_before`](Self::drop_before), for the first of several kinds.
    fn drop_before_any(&mut self, which: &[PendingKind]) -> bool {
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

/// Maximum length of a plain command with its argument, which a server may repeat. An announcement is longer.
const MAX_PLAIN: usize = 12;

/// Whether replies answer the commands that they seem to answer, as far as known. One byte, because a session must fit into its cache lines.
#[derive(Clone, Copy, Debug, Default)]
struct ReplySync(u8);

impl ReplySync {
    /// Only plain commands were sent since no command was pending.
    const PLAIN: u8 = 1;
    /// Nothing was sent for a while, and only a plain command and its reply since.
    const AFTER_SILENCE: u8 = 1 << 1;
    /// The last command was sent while none was pending, so its reply may show that the dialogue is in step.
    const ASKED: u8 = 1 << 2;
    /// The last line was a reply that fits the last command.
    const ANSWERED: u8 = 1 << 3;
    /// The server had nothing more to send after its last line.
    const PAUSED: u8 = 1 << 4;
    /// Replies may answer earlier lines than it seems. Some servers answer an empty line, or a line of blanks or Telnet
    /// commands, or read one line as two. Reports depend on this.
    const LAG: u8 = 1 << 5;
    /// The next 227 or 229 ends [`Self::LAG`], because it answers a later line, and no other command has such a reply.
    const LAG_ENDS: u8 = 1 << 6;

    /// Notes a line of the client. If it `is_only`, no other command is pending.
    fn note_command(&mut self, command: Option<&Command<'_>>, is_only: bool) {
        let doubted =
            if command.is_some_and(is_plain) { 0 } else { Self::PLAIN | Self::AFTER_SILENCE };
        self.0 &= !(doubted | Self::ASKED | Self::ANSWERED);
        let is_asked = is_only && self.has_any_of(Self::PLAIN | Self::AFTER_SILENCE);
        self.0 |= if is_asked { Self::ASKED } else { 0 };
    }

    /// Notes a line of the server. `reply` is set for a reply of one line to the only pending command.
    fn note_reply(&mut self, reply: Option<Reply>) {
        let fits = reply.is_some_and(|reply| matches!(reply.code, 200 | 215 | 227 | 229));
        let is_answer = fits && self.has_any_of(Self::ASKED);
        self.0 &= !(Self::ASKED | Self::ANSWERED | Self::PAUSED);
        if is_answer {
            self.0 |= Self::ANSWERED;
        } else {
            self.0 &= !Self::AFTER_SILENCE;
        }
    }

    /// Notes that the server has nothing more to send after its last line.
    fn note_pause(&mut self) {
        self.0 |= Self::PAUSED;
    }

    /// Whether the server had nothing more to send after its last line.
    fn has_paused(self) -> bool {
        self.has_any_of(Self::PAUSED)
    }

    /// Whether the last command and its reply, if it was complete, show that the dialogue is in step.
    fn is_answered(self) -> bool {
        self.has_any_of(Self::ANSWERED)
    }

    /// Notes a line of the client that makes later replies answer earlier lines than it seems.
    fn note_lag(&mut self) {
        self.0 = self.0 & !Self::LAG_ENDS | Self::LAG;
    }

    /// Notes a `PASV` or `EPSV`; another one may be pending already (`is_pending`).
    fn note_passive(&mut self, is_pending: bool) {
        self.0 |= if self.may_lag() && !is_pending { Self::LAG_ENDS } else { 0 };
    }

    fn note_passive_reply(&mut self) {
        self.0 &= if self.has_any_of(Self::LAG_ENDS) { !(Self::LAG | Self::LAG_ENDS) } else { !0 };
    }

    /// Whether replies may be about earlier lines than it seems.
    fn may_lag(self) -> bool {
        self.has_any_of(Self::LAG)
    }

    /// For a dialogue of which bytes were not read.
    fn unknown() -> Self {
        Self(Self::LAG)
    }

    /// For an idle dialogue that is in step.
    fn idle(self) -> Self {
        Self(Self::PLAIN | Self::PAUSED | self.0 & (Self::LAG | Self::LAG_ENDS))
    }

    /// For a dialogue in which nothing was sent for a while.
    fn after_silence() -> Self {
        Self(Self::AFTER_SILENCE)
    }

    /// After bytes of the server were missed: the part about the client's commands remains.
    fn after_missed(self) -> Self {
        Self(self.0 & Self::PLAIN | Self::LAG)
    }

    /// Whether one of these bits is set.
    fn has_any_of(self, bits: u8) -> bool {
        self.0 & bits != 0
    }
}

/// Whether the reply to this command contains no text that a client chose.
fn is_plain(command: &Command<'_>) -> bool {
    matches!(command.verb, Verb::Pasv | Verb::Epsv | Verb::Plain)
        && command.word.len() + command.argument.len() <= MAX_PLAIN
}

#[cfg(test)]
#[path = "dialogue_tests.rs"]
mod tests;
