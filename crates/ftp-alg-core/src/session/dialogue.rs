//! The state of the FTP dialogue on one control connection, and what it makes of the next line.
//!
//! Replies come in the order of their commands (RFC 959 section 5.4), so pending commands are stored in order. Servers
//! are not strict about it: `ABOR` has one or two replies, and the reply to `STAT` comes early. Replies whose code
//! shows which command they answer restore the order.
//!
//! Nothing is opened while the ends may disagree about line ends, or about which reply answers which command
//! ([`Ambiguities`]). The ambiguity ends when no command is pending and the server has nothing more to send.

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use super::{
    DialogueEvent, RefusalReason, Side,
    ambiguities::{Ambiguities, ExtraReply, MAX_RUNS, PendingCommands, PendingKind, may_answer},
    in_step::Step,
    protocol,
    state::{Login, Phase, Read, State, Tls},
    tls::is_tls_byte,
};
use crate::ftp::{Command, LineEnd, Padding, Reply, ReplyTracker, Text, Verb};

/// With more pending commands than this, the client does not wait for replies.
const MAX_PENDING: u32 = 16;

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
            state: State::NEW,
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
        Self { state: State::PICKED_UP, ..Self::default() }
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

    /// Whether a login may be accepted that opens pinholes.
    pub fn may_log_in(&self) -> bool {
        !self.is_logged_in() && !self.phase().opens_nothing_more()
    }

    /// Goes on to the state after `read`.
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

    /// Whether the dialogue was ambiguous at some time, or may be with the client's next line, so that a server's
    /// announcement must be a complete reply of its own.
    pub fn is_ambiguous(&self) -> bool {
        self.ambiguities.is_any() || self.other_end.is_some()
    }

    /// Whether the windows that the client offers decide whether a server's announcement is a complete reply.
    #[inline]
    pub fn needs_windows(&self) -> bool {
        (self.is_ambiguous() || self.pending.has_behind_another(PendingKind::Passive))
            && !self.phase().opens_nothing_more()
    }

    /// Records that the announcement just read is not a complete reply of its own.
    pub fn record_partial_reply(&mut self) {
        self.ambiguities.record_partial_reply();
    }

    /// Records how a client's line ends, before the line is read.
    pub fn record_client_line_end(&mut self, end: LineEnd) {
        let was_ambiguous = self.ambiguities.may_part_client_lines();
        self.ambiguities.record_client_line_end(end, !self.has_pending_commands());
        if end != LineEnd::Plain {
            self.step.record_command(None, false);
        }
        if self.ambiguities.may_part_client_lines() && !(was_ambiguous && end == LineEnd::Plain) {
            self.step.record_lag();
        }
    }

    /// Records that the client's line is so long that a server may take it for several.
    pub fn record_long_line(&mut self) {
        self.step.record_lag();
    }

    /// Records how a server's line ends, before the line is read.
    pub fn record_server_line_end(&mut self, end: LineEnd, text: &Text<'_>) {
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
        // A name in an earlier reply could as well end this line with CR LF.
        let answers_passive = is_announcement(text)
            && self.ambiguities.is_clear()
            && is_reply_to(&[PendingKind::Passive]);
        let end = if answers_passive { LineEnd::Plain } else { end };
        self.ambiguities.record_server_line_end(end, is_greeting, answers_login);
    }

    /// The server's TCP has nothing more to send for now, after a whole line. That may end an ambiguity. After a
    /// [complete reply](super::push_state) the dialogue may be in step again.
    pub fn record_pause(&mut self, is_complete_reply: bool) {
        self.step.record_pause();
        if !(self.ambiguities.resolve(&self.pending) && self.is_between_replies()) {
            return;
        }
        if self.step.is_answered() && is_complete_reply {
            self.advance(Read::InStep);
        }
        if self.phase() == Phase::Verified && self.ambiguities.is_clear() {
            self.step = self.step.idle();
        }
    }

    /// The client sends a line while a multi-line reply is unfinished. Some servers end one with a line of another code
    /// (glftpd: `553-`, then `150 `). If the server's last line may be one, and nothing came after it, the client has
    /// taken it for the end. Returns the event of that reply.
    pub fn end_open_reply(&mut self) -> Option<DialogueEvent> {
        if !self.phase().has_greeted() {
            return None;
        }
        let reply = Reply { code: self.other_end.filter(|_| self.step.has_paused())?.get() };
        // Nobody has logged in yet, so this 230 opens nothing.
        let is_greeting = self.pending.oldest() == Some(PendingKind::Greeting) && reply.code == 230;
        if self.pending.count() > 1 || is_decisive(reply) && !is_greeting {
            return None;
        }
        (self.replies, self.other_end) = (ReplyTracker::default(), None);
        let effect = self.handle_reply(reply);
        self.ambiguities.record_other_end();
        self.ambiguities.resolve(&self.pending);
        match effect {
            ReplyEffect::Event(event) => Some(event),
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
        self.step.may_lag()
    }

    /// Whether `reply`, which was the last one to a transfer that `has_started`, may be about something else. A server that
    /// reads commands during a transfer answers them before it ends.
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
        self.pending.contains(PendingKind::Transfer)
    }

    /// The number of transfer commands that wait for their completion replies.
    pub fn pending_transfers(&self) -> usize {
        self.pending.count_of(PendingKind::Transfer) as usize
    }

    /// Whether another command of a login is pending than the last one.
    pub fn has_earlier_login(&self) -> bool {
        let count = |kind| self.pending.count_of(kind);
        count(PendingKind::User).saturating_add(count(PendingKind::Login)) > 1
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

    /// Whether the client's next line shows which protocol it speaks.
    pub fn expects_first_command(&self) -> bool {
        self.phase() == Phase::Greeted || self.phase().expects_greeting()
    }

    /// Whether a CR that comes now belongs to the end of the greeting, LF CR.
    pub fn may_end_greeting_with_cr(&self) -> bool {
        self.phase() == Phase::Greeted && self.pending.is_empty() && self.ambiguities.has_server_lf
    }

    /// Records that the client does not speak FTP, although the server may.
    pub fn mark_client_not_ftp(&mut self) {
        self.advance(Read::OtherClient);
        // After text it is unknown which reply is the greeting.
        self.ambiguities.record_extra_reply(ExtraReply::Any);
    }

    /// Records that the client's first bytes were a PROXY header. A server that does not know it sends other replies with
    /// its greeting, and later replies may answer earlier commands than it seems.
    pub fn record_proxy_header(&mut self) {
        self.ambiguities.record_extra_reply(ExtraReply::Any);
        self.ambiguities.require_complete_replies();
    }

    /// Packets were missed, or what was read is in doubt: the earlier dialogue no longer counts, except that the
    /// connection is FTP. Either end can cause this at any time, so it must not lift a refusal. `client_is_whole` says
    /// that the packets were none of the client.
    pub fn record_missed(&mut self, read: Read, client_is_whole: bool) {
        let step = Step::unknown();
        let missed = Self { state: self.state.next(read), step, ..Self::default() };
        let before = std::mem::replace(self, missed);
        if self.phase() == Phase::OutOfStep {
            (self.epsv_all, self.padding) = (before.epsv_all, before.padding);
            self.ambiguities = before.ambiguities.after_missed(client_is_whole);
            if client_is_whole {
                self.step = before.step.after_missed();
            }
        }
        self.ambiguities.record_extra_reply(ExtraReply::Any);
    }

    /// Records that neither end has sent anything for so long that the server is not inside a reply.
    pub fn record_silence(&mut self) {
        if self.phase() == Phase::OutOfStep && self.replies.open_code().is_none() {
            self.pending = Default::default();
            self.step = Step::after_silence();
        }
    }

    /// Reads a complete line of the client.
    pub fn read_command(&mut self, command: Option<&Command<'_>>) -> CommandEffect {
        self.step.record_command(command, self.is_between_replies());
        // An empty line says nothing about the client.
        let Some(command) = command else {
            self.ambiguities.record_extra_reply(ExtraReply::Any);
            self.step.record_lag();
            return CommandEffect::Nothing;
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
        self.ambiguities.record_command(command.verb, &self.pending);
        let kind = match command.verb {
            Verb::Port | Verb::Eprt => return CommandEffect::Announcement,
            Verb::Auth => return CommandEffect::Auth,
            Verb::Pasv | Verb::Epsv => {
                self.step.record_passive(self.has_pending_passive());
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
        let is_known = self.phase() == Phase::Verified && self.pending.len() < MAX_RUNS / 2;
        self.push_pending(if is_known {
            PendingKind::CrossedOut(reason)
        } else {
            PendingKind::Other
        });
    }

    /// Records that the `AUTH` just read is forwarded to the server.
    pub fn record_auth(&mut self) {
        self.push_pending(PendingKind::Auth);
    }

    /// Reads a complete line of the server.
    pub fn read_reply_line(&mut self, text: &Text<'_>) -> ReplyEffect {
        let was_open = self.replies.open_code().is_some();
        if text.bytes().is_empty() && !was_open {
            // Some servers send one after a reply, or before the greeting. What comes next may also be in the middle
            // of a name with line ends.
            if self.phase().has_greeted() {
                self.ambiguities.require_complete_replies();
            }
            return ReplyEffect::Nothing;
        }
        // Nothing that an indented greeting could be the text of precedes it.
        let is_greeting = self.phase().expects_greeting() && !was_open;
        let reply = match is_greeting && text.is_indented() {
            true => self.replies.read_line(&Text::new(text.bytes())),
            false => self.replies.read_line(text),
        };
        if reply.is_some() && self.may_be_tls() && !self.has_pending_commands() {
            self.advance(Read::NoTls);
        }
        self.ambiguities.record_end_of_reply(reply.is_some());
        self.step.record_reply(reply.filter(|_| !was_open && self.pending.count() == 1));
        let other_end = self.replies.other_end(text).filter(|_| reply.is_none());
        self.other_end = other_end.and_then(|end| NonZeroU16::new(end.code));
        let has_greeted = self.phase().has_greeted();
        if (!has_greeted || self.pending.contains(PendingKind::Greeting))
            && Padding::accepts_zeros(text.bytes())
        {
            self.padding = Padding::Zeros;
        }
        if !has_greeted {
            return match reply.filter(|reply| reply.code != 220) {
                Some(reply) if self.phase() == Phase::CommandAfterText => {
                    let is_ftp = self.is_answered_as_ftp(reply);
                    let effect = self.handle_reply(reply);
                    self.record_reply_after_text(reply, is_ftp, effect)
                }
                _ => self.read_greeting_line(text, reply),
            };
        }
        if self.phase() == Phase::PickedUp && reply.is_some() {
            self.advance(Read::Reply);
        }
        let begun = self.replies.open_code().filter(|_| !was_open);
        let is_stray = !was_open && reply.is_none() && begun.is_none();
        self.ambiguities.record_reply_line(text, reply, begun, is_stray, &self.pending);
        reply.map_or(ReplyEffect::Nothing, |reply| self.handle_reply(reply))
    }

    /// Reads a command of a client that is not yet known to speak FTP.
    fn read_early_command(&mut self, command: &Command<'_>) {
        let follows_unknown = self.pending.contains(PendingKind::FirstUnknown);
        match protocol::read_command(self.phase(), command, follows_unknown) {
            Some(Read::OtherClient) => self.mark_client_not_ftp(),
            Some(read) => self.advance(read),
            None => {}
        }
    }

    /// Reads a line of the server before its greeting has ended. If the line ends a reply, that is `reply`.
    fn read_greeting_line(&mut self, text: &Text<'_>, reply: Option<Reply>) -> ReplyEffect {
        let (phase, open_code) = (self.phase(), self.replies.open_code());
        let may_be_logged_in = self.may_be_logged_in();
        let read = protocol::read_greeting_line(phase, text, reply, open_code, may_be_logged_in);
        let Some(read) = read else { return ReplyEffect::Nothing };
        self.advance(read);
        match (read, self.phase()) {
            // Some clients do not wait for the last line.
            (Read::GreetingStart, _) => drop(self.pending.push(PendingKind::Greeting)),
            (Read::Reply220, Phase::Verified) => {
                self.ambiguities.record_extra_reply(ExtraReply::Greeting);
            }
            (Read::Reply, Phase::Greeted) if reply == Some(Reply { code: 230 }) => {
                return self.accept_login();
            }
            _ => {}
        }
        ReplyEffect::Nothing
    }

    /// Whether `reply` answers the only pending command as no other protocol does. Asked before it is handled, of a
    /// server that sent text in place of a greeting.
    fn is_answered_as_ftp(&self, reply: Reply) -> bool {
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
    fn record_reply_after_text(
        &mut self,
        reply: Reply,
        is_ftp: bool,
        effect: ReplyEffect,
    ) -> ReplyEffect {
        if effect == ReplyEffect::Event(DialogueEvent::LoggedIn) && reply.code / 10 != 23 {
            // Other protocols have such codes, too.
            self.advance(Read::LoginForgotten);
            return ReplyEffect::Nothing;
        }
        if is_ftp || self.is_logged_in() && self.pending.is_empty() {
            self.advance(Read::FtpReply);
            // Nobody knows where the text would have ended.
            self.ambiguities.require_complete_replies();
        }
        effect
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

    /// `side` sends plain text again after encryption. If both ends `sent_data` encrypted, the login happened there: RFC
    /// 4217 allows `CCC` only after a login, and the server still refuses commands that need one.
    pub fn end_tls(&mut self, side: Side, sent_data: bool) {
        if !self.state.reads_lines(side.peer()) {
            (self.pending, self.replies) = Default::default();
            self.step = Step::unknown();
            // The server may still owe a reply to what it read encrypted.
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

    /// Whether the server has sent records, too.
    pub fn has_records_of_both(&self) -> bool {
        self.state.tls() == Tls::ByBoth
    }

    /// Reads `first`, the first byte of a line of `from`. A server that is logged in to may show a file in a reply, which
    /// looks like its records; the client's would then hide commands. So its byte counts only if it shows none: before the
    /// login, and after an `AUTH` that is known to be accepted. Who has spoken TLS before hides nothing new in it.
    #[inline]
    pub fn read_first_byte(&mut self, from: Side, first: u8) {
        let may_be_shown = from == Side::Server && self.may_be_logged_in();
        if is_tls_byte(from, first) && !may_be_shown {
            self.advance(Read::TlsByte(from));
        }
    }

    /// The server has accepted a login.
    fn accept_login(&mut self) -> ReplyEffect {
        if self.restarts_login() {
            self.advance(Read::LoginOutdated);
            return ReplyEffect::Nothing;
        }
        self.advance(Read::LoginAccepted);
        ReplyEffect::Event(DialogueEvent::LoggedIn)
    }

    /// The server has answered `which` with this failure. A login before it goes on.
    fn refuse_login(&mut self, which: PendingKind, reply: Reply) -> ReplyEffect {
        if !self.restarts_login() {
            self.advance(Read::LoginRefused);
        }
        match which {
            PendingKind::Reinitialize => ReplyEffect::Nothing,
            _ => ReplyEffect::Event(DialogueEvent::LoginRefused(reply)),
        }
    }

    /// Whether a `USER` or `REIN` is pending, which ends the login that the server accepts now.
    fn restarts_login(&self) -> bool {
        self.pending.contains(PendingKind::User) || self.pending.contains(PendingKind::Reinitialize)
    }

    /// Whether no command is pending, and no reply is unfinished.
    fn is_between_replies(&self) -> bool {
        !self.has_pending_commands() && self.replies.open_code().is_none()
    }

    fn handle_reply(&mut self, reply: Reply) -> ReplyEffect {
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
                    self.step.record_passive_reply();
                } else {
                    // The server reads commands during a transfer.
                    self.step.record_lag();
                }
                ReplyEffect::Passive { was_requested }
            }
            234 | 334 if self.pop_answered(PendingKind::Auth) => {
                let is_certain =
                    is_only && self.phase() == Phase::Verified && self.ambiguities.has_none();
                self.advance(match is_certain || !self.may_be_logged_in() {
                    true => Read::AuthAccepted,
                    false => Read::LoginForgotten,
                });
                ReplyEffect::Nothing
            }
            230 | 232 if self.pending.drop_before_any(&[PendingKind::User, PendingKind::Login]) => {
                self.pending.pop();
                if self.pending_transfers() < transfers {
                    self.step.record_lag();
                }
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
            _ => {
                let answered =
                    self.pending.pop_first(|kind| may_answer(reply, kind, before_transfers));
                self.handle_answer(answered, reply)
            }
        }
    }

    /// Handles the reply to the command `answered`.
    fn handle_answer(&mut self, answered: Option<PendingKind>, reply: Reply) -> ReplyEffect {
        match answered {
            Some(PendingKind::Announcement) if reply.is_success() => {
                ReplyEffect::Event(DialogueEvent::AnnouncementAccepted)
            }
            Some(PendingKind::Announcement) if reply.is_failure() => {
                ReplyEffect::Event(DialogueEvent::AnnouncementRefused)
            }
            Some(PendingKind::CrossedOut(reason)) if reply.is_unknown_command() => {
                ReplyEffect::ReplyToCrossedOut(reason)
            }
            Some(PendingKind::Transfer) => ReplyEffect::Event(DialogueEvent::TransferEnded(reply)),
            Some(PendingKind::Directory) => {
                ReplyEffect::Event(DialogueEvent::DirectoryAnswered(reply.is_success(), None))
            }
            Some(PendingKind::EpsvAll) if reply.is_success() => {
                self.epsv_all = true;
                ReplyEffect::Nothing
            }
            Some(PendingKind::Reinitialize) if reply.is_success() => {
                self.epsv_all = false;
                self.advance(Read::LoginForgotten);
                ReplyEffect::Nothing
            }
            // Servers differ in the code, so the reply must be the only one that is due.
            Some(PendingKind::User | PendingKind::Login) if reply.is_success() => {
                if self.has_pending_commands() || self.ambiguities.extra_reply != ExtraReply::None {
                    self.advance(Read::LoginDoubted);
                    return ReplyEffect::Nothing;
                }
                self.accept_login()
            }
            Some(which @ (PendingKind::User | PendingKind::Login | PendingKind::Reinitialize))
                if reply.is_failure() =>
            {
                self.refuse_login(which, reply)
            }
            // It asks for a password, so the success before it was of something else.
            None | Some(PendingKind::Login) if reply.code == 331 => {
                self.advance(Read::PasswordAsked);
                ReplyEffect::Nothing
            }
            None if reply.code == 332 => {
                self.advance(Read::LoginForgotten);
                ReplyEffect::Nothing
            }
            None if reply.code == 230 && self.state.login() == Login::Asked => self.accept_login(),
            _ => ReplyEffect::Nothing,
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

/// Whether a reply with this code may open something, or change rights. Such a reply must be whole.
fn is_decisive(reply: Reply) -> bool {
    matches!(reply.code, 227 | 229 | 230 | 232 | 234 | 334)
}

/// Whether `text` is a whole reply that a server gives to a login.
fn is_login_reply(text: &Text<'_>) -> bool {
    matches!(text.bytes(), [b'2' | b'3', _, _, rest @ ..] if rest.first() != Some(&b'-'))
}

/// Whether `text` is a whole 227 or 229.
fn is_announcement(text: &Text<'_>) -> bool {
    matches!(text.bytes(), [b'2', b'2', b'7' | b'9', rest @ ..] if rest.first() != Some(&b'-'))
}

#[cfg(test)]
#[path = "dialogue_tests.rs"]
mod tests;
