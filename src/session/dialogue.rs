//! What has been said so far on one control connection, and what that makes of the next line.
//!
//! Replies come in the order of their commands (RFC 959 section 5.4), so the commands that are not
//! answered yet are kept in order. Servers do not keep it perfectly (`ABOR` has one or two
//! answers, `STAT` overtakes), so replies whose code tells what they answer put the order right.

use serde::{Deserialize, Serialize};

use super::{
    Note,
    unanswered::{Awaited, Unanswered},
};
use crate::ftp::{Command, Reply, ReplyTracker, Text, Verb};

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
    /// It was verified, but bytes of it were missed: all else that was said before is unknown.
    Lost,
}

/// What a client's line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing that concerns a gateway.
    Nothing,
    /// No FTP: the connection is not to be inspected any more.
    NotFtp,
    /// `PORT` or `EPRT`; [`Dialogue::announced`] must be told what became of it.
    Announces,
    /// `AUTH`; [`Dialogue::auth`] must be told whether it goes on.
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
            forgot: false,
        }
    }
}

impl Dialogue {
    /// A dialogue whose start was not seen.
    pub fn joined() -> Self {
        Self { phase: Phase::Joined, ..Self::default() }
    }

    /// Bytes were missed: nothing that was known counts any more, but that it is FTP. An end can have it
    /// look so at any time, and must not be rid of what is refused by that.
    pub fn lose(&mut self) {
        let phase = match self.phase {
            Phase::Verified | Phase::Lost => Phase::Lost,
            Phase::Silent | Phase::Greeted | Phase::Joined => Phase::Joined,
        };
        *self = Self { phase, ..Self::default() };
    }

    /// How far this is known to be FTP.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the server has accepted a login.
    pub fn is_logged_in(&self) -> bool {
        self.logged_in
    }

    /// Whether the client has bound itself to EPSV (RFC 2428 section 4).
    pub fn is_epsv_only(&self) -> bool {
        self.epsv_all
    }

    /// Whether a 227 or 229 would be an answer.
    pub fn awaits_passive(&self) -> bool {
        self.awaited.has(Awaited::Passive)
    }

    /// Whether the start of a server's line may become an announcement.
    pub fn may_announce(&self, text: &Text<'_>) -> bool {
        self.awaits_passive() && self.replies.may_announce(text)
    }

    /// Reads a complete line of the client.
    pub fn client_line(&mut self, command: Option<&Command<'_>>) -> Step {
        match (self.phase, command.map(|c| c.verb)) {
            (Phase::Silent, _) | (Phase::Greeted, None | Some(Verb::Unknown)) => {
                return Step::NotFtp;
            }
            (Phase::Greeted, Some(_)) => self.phase = Phase::Verified,
            (Phase::Verified | Phase::Joined | Phase::Lost, _) => {}
        }
        let Some(command) = command else { return Step::Nothing };
        let awaited = match command.verb {
            Verb::Port | Verb::Eprt => return Step::Announces,
            Verb::Auth => return Step::Auth,
            Verb::Pasv | Verb::Epsv => Awaited::Passive,
            Verb::EpsvAll => Awaited::EpsvAll,
            Verb::Login => Awaited::Login,
            Verb::Reinitialize => Awaited::Reinitialize,
            Verb::Transfer => Awaited::Transfer,
            Verb::ClearCommandChannel | Verb::Other | Verb::Unknown => Awaited::Other,
        };
        self.await_reply(awaited);
        Step::Nothing
    }

    /// Says whether the announcement just read opened a pinhole.
    pub fn announced(&mut self, opened: bool) {
        self.await_reply(if opened { Awaited::Announcement } else { Awaited::Other });
    }

    /// Says whether the `AUTH` just read goes on to the server.
    pub fn auth(&mut self, passed: bool) {
        self.await_reply(if passed { Awaited::Auth } else { Awaited::Other });
    }

    /// Reads a complete line of the server.
    pub fn server_line(&mut self, text: &Text<'_>) -> Meaning {
        let reply = self.replies.line(text);
        if self.phase == Phase::Silent {
            return match reply {
                Some(reply) if reply.is_preliminary() => Meaning::Nothing, // 120: ready in a while
                Some(_) => {
                    self.phase = Phase::Greeted;
                    Meaning::Nothing
                }
                // The first line of a greeting of several, or one of those that follow.
                None if self.replies != ReplyTracker::default() => Meaning::Nothing,
                None => Meaning::NotFtp,
            };
        }
        reply.map_or(Meaning::Nothing, |reply| self.reply(reply))
    }

    /// Whether it is known from its start, and nothing is pending.
    pub fn is_calm(&self) -> bool {
        matches!(self.phase, Phase::Greeted | Phase::Verified)
            && self.replies == ReplyTracker::default()
            && !self.awaits_replies()
    }

    /// Whether a command was not answered yet.
    pub fn awaits_replies(&self) -> bool {
        self.awaited.len() > 0
    }

    /// The dialogue is plain text again after encryption. The login was made while it could not
    /// be read: RFC 4217 lets `CCC` follow a login only, and the server still refuses what comes
    /// without one.
    pub fn resume(&mut self) {
        self.awaited = Unanswered::default();
        self.replies = ReplyTracker::default();
        self.logged_in = true;
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
            234 if self.answer(Awaited::Auth) => Meaning::Encrypted,
            230 | 232 if self.answer(Awaited::Login) => {
                self.logged_in = true;
                Meaning::Notable(Note::LoggedIn)
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
                Some(Awaited::Transfer) => {
                    Meaning::Notable(Note::TransferEnded { completed: reply.is_success() })
                }
                Some(Awaited::EpsvAll) if reply.is_success() => {
                    self.epsv_all = true;
                    Meaning::Nothing
                }
                Some(Awaited::Reinitialize) if reply.is_success() => {
                    self.logged_in = false;
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

#[cfg(test)]
mod tests {
    use super::{super::unanswered::MAX_AWAITED, *};

    fn said(dialogue: &mut Dialogue, line: &str) -> Step {
        let text = Text::new(line.as_bytes());
        dialogue.client_line(Command::parse(&text).as_ref())
    }

    fn answered(dialogue: &mut Dialogue, line: &str) -> Meaning {
        dialogue.server_line(&Text::new(line.as_bytes()))
    }

    fn logged_in() -> Dialogue {
        let mut dialogue = Dialogue::default();
        answered(&mut dialogue, "220 ready");
        said(&mut dialogue, "USER x");
        answered(&mut dialogue, "331 password");
        said(&mut dialogue, "PASS x");
        assert_eq!(answered(&mut dialogue, "230 in"), Meaning::Notable(Note::LoggedIn));
        dialogue
    }

    #[test]
    fn the_server_greets_first_and_the_client_answers_with_ftp() {
        assert_eq!(said(&mut Dialogue::default(), "USER x"), Step::NotFtp);
        assert_eq!(answered(&mut Dialogue::default(), "SSH-2.0-x"), Meaning::NotFtp);
        let mut dialogue = Dialogue::default();
        for line in ["120 soon", "220-hello", "any text", "220 ready"] {
            assert_eq!(answered(&mut dialogue, line), Meaning::Nothing);
        }
        assert_eq!(dialogue.phase(), Phase::Greeted);
        assert_eq!(said(&mut dialogue.clone(), "POST / HTTP/1.1"), Step::NotFtp);
        assert_eq!(said(&mut dialogue, "USER x"), Step::Nothing);
        assert_eq!(said(&mut dialogue, "WHAT"), Step::Nothing);
    }

    #[test]
    fn a_login_needs_its_reply() {
        let mut dialogue = Dialogue::default();
        answered(&mut dialogue, "220 ready");
        assert_eq!(answered(&mut dialogue, "230 in"), Meaning::Nothing);
        said(&mut dialogue, "USER x");
        answered(&mut dialogue, "331 password");
        assert!(!dialogue.is_logged_in());
        assert!(logged_in().is_logged_in());
        let mut dialogue = logged_in();
        said(&mut dialogue, "REIN");
        answered(&mut dialogue, "220 again");
        assert!(!dialogue.is_logged_in());
    }

    #[test]
    fn a_227_counts_only_as_an_answer() {
        let mut dialogue = logged_in();
        assert_eq!(answered(&mut dialogue, "227 x"), Meaning::Passive { asked: false });
        said(&mut dialogue, "ABOR"); // answered once although we expect as many replies as commands
        said(&mut dialogue, "EPSV");
        assert_eq!(answered(&mut dialogue, "227 x"), Meaning::Passive { asked: true });
        assert!(!dialogue.awaits_passive());
    }

    #[test]
    fn a_refused_announcement_is_noticed_in_a_pipeline() {
        let mut dialogue = logged_in();
        said(&mut dialogue, "TYPE I");
        assert_eq!(said(&mut dialogue, "PORT 1,2,3,4,5,6"), Step::Announces);
        dialogue.announced(true);
        said(&mut dialogue, "LIST");
        assert_eq!(answered(&mut dialogue, "200 ok"), Meaning::Nothing);
        assert_eq!(answered(&mut dialogue, "500 no"), Meaning::Notable(Note::AnnouncementRefused));
        assert_eq!(answered(&mut dialogue, "150 here"), Meaning::Notable(Note::TransferStarted));
        assert_eq!(
            answered(&mut dialogue, "226 done"),
            Meaning::Notable(Note::TransferEnded { completed: true })
        );
    }

    #[test]
    fn epsv_all_counts_once_accepted() {
        let mut dialogue = logged_in();
        said(&mut dialogue, "EPSV ALL");
        assert!(!dialogue.is_epsv_only());
        answered(&mut dialogue, "200 ok");
        assert!(dialogue.is_epsv_only());
    }

    #[test]
    fn encryption_needs_a_234_to_an_auth() {
        let mut dialogue = logged_in();
        assert_eq!(answered(&mut dialogue, "234 x"), Meaning::Nothing);
        assert_eq!(said(&mut dialogue, "AUTH TLS"), Step::Auth);
        dialogue.auth(true);
        assert_eq!(answered(&mut dialogue.clone(), "534 no"), Meaning::Nothing);
        assert_eq!(answered(&mut dialogue, "234 go"), Meaning::Encrypted);
    }

    #[test]
    fn unanswered_commands_are_bounded() {
        let mut dialogue = logged_in();
        for _ in 0..100 {
            said(&mut dialogue, "NOOP");
            said(&mut dialogue, "PASV");
        }
        assert_eq!(dialogue.awaited.len(), MAX_AWAITED);
        assert!(dialogue.has_forgotten() && !dialogue.has_forgotten());
    }

    #[test]
    fn commands_of_one_kind_are_not_many() {
        let mut dialogue = logged_in();
        for _ in 0..1000 {
            said(&mut dialogue, "SIZE x");
        }
        assert_eq!(said(&mut dialogue, "PORT 1,2,3,4,5,6"), Step::Announces);
        dialogue.announced(true);
        assert!(!dialogue.has_forgotten());
        for _ in 0..1000 {
            assert_eq!(answered(&mut dialogue, "550 no"), Meaning::Nothing);
        }
        assert_eq!(answered(&mut dialogue, "500 no"), Meaning::Notable(Note::AnnouncementRefused));
    }

    #[test]
    fn a_reply_to_a_forgotten_command_means_nothing_and_later_ones_are_told_apart() {
        let mut dialogue = logged_in();
        for _ in 0..50 {
            said(&mut dialogue, "PASV");
            said(&mut dialogue, "AUTH TLS");
            dialogue.auth(true);
        }
        let forgotten = 100 - (MAX_AWAITED as u32 - 1);
        for number in 0..forgotten {
            let line = if number % 2 == 0 { "227 x" } else { "234 x" };
            let meaning = answered(&mut dialogue, line);
            assert!(matches!(meaning, Meaning::Nothing | Meaning::Passive { asked: false }));
        }
        assert_eq!(forgotten % 2, 1, "the next is an AUTH");
        assert_eq!(answered(&mut dialogue, "534 no"), Meaning::Nothing);
        assert_eq!(answered(&mut dialogue, "227 x"), Meaning::Passive { asked: true });
        assert_eq!(answered(&mut dialogue, "234 go"), Meaning::Encrypted);
    }
}
