//! How a dialogue of which packets were missed gets in step again.
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

use crate::ftp::{Command, Reply, Verb};

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
/// Replies may be about earlier lines than it seems: some servers answer an empty line, one of blanks or of Telnet commands,
/// and both parts of what others take for one line. Reports need to know.
const LAG: u8 = 1 << 5;
/// The next 227 or 229 ends that: it answers a later line, and nothing else has such a reply.
const LAG_ENDS: u8 = 1 << 6;

/// What is known about replies that may still come. One byte, because a session must fit into its cache lines.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step(u8);

impl Step {
    /// Records a line of the client. If it `is_only`, nothing else is pending.
    pub fn record_command(&mut self, command: Option<&Command<'_>>, is_only: bool) {
        let doubted = if command.is_some_and(is_plain) { 0 } else { PLAIN | AFTER_SILENCE };
        self.0 &= !(doubted | ASKED | ANSWERED);
        let is_asked = is_only && self.has_any_of(PLAIN | AFTER_SILENCE);
        self.0 |= if is_asked { ASKED } else { 0 };
    }

    /// Records a line of the server. `reply` is the reply that it is, if it is one in a single line to the only pending
    /// command.
    pub fn record_reply(&mut self, reply: Option<Reply>) {
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
    pub fn record_pause(&mut self) {
        self.0 |= PAUSED;
    }

    /// Whether the server had nothing more to send after its last line.
    pub fn has_paused(self) -> bool {
        self.has_any_of(PAUSED)
    }

    /// Whether the last command and its reply show that the dialogue is in step, if that was a complete reply of its own.
    pub fn is_answered(self) -> bool {
        self.has_any_of(ANSWERED)
    }

    /// Records a line of the client to which the server may have other replies than it seems.
    pub fn record_lag(&mut self) {
        self.0 = self.0 & !LAG_ENDS | LAG;
    }

    /// Records a `PASV` or `EPSV`, which may be the second one that `is_pending`.
    pub fn record_passive(&mut self, is_pending: bool) {
        self.0 |= if self.may_lag() && !is_pending { LAG_ENDS } else { 0 };
    }

    /// Records a 227 or 229.
    pub fn record_passive_reply(&mut self) {
        self.0 &= if self.has_any_of(LAG_ENDS) { !(LAG | LAG_ENDS) } else { !0 };
    }

    /// Whether replies may be about earlier lines than it seems.
    pub fn may_lag(self) -> bool {
        self.has_any_of(LAG)
    }

    /// Of a dialogue of which something was not read.
    pub fn unknown() -> Self {
        Self(LAG)
    }

    /// Of an idle dialogue that is in step.
    pub fn idle(self) -> Self {
        Self(PLAIN | PAUSED | self.0 & (LAG | LAG_ENDS))
    }

    /// Of a dialogue in which nothing was sent for a while.
    pub fn after_silence() -> Self {
        Self(AFTER_SILENCE)
    }

    /// After bytes of the server were missed: what it says about the client's commands.
    pub fn after_missed(self) -> Self {
        Self(self.0 & PLAIN | LAG)
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
