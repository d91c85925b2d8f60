//! How the login of a dialogue goes on.

use serde::{Deserialize, Serialize};

use super::{Dialogue, PendingKind, ReplyEffect};
use crate::{ftp::Reply, session::DialogueEvent};

/// Progress of the login.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Login {
    /// The server has accepted none yet.
    #[default]
    NotYet,
    /// The server has accepted none that is known for certain, or has forgotten it.
    None,
    /// The server has accepted one.
    Accepted,
    /// As [`Login::None`], and the server has asked for a password although none of its replies was due: those before were
    /// of its greeting, not of the login.
    Asked,
    /// As [`Login::Accepted`], but the client has sent `USER` or `REIN` since. If the server refuses that, the login
    /// is as it was: vsftpd (530) and ProFTPD (501) continue it, and pyftpdlib refuses what needs one.
    Restarted,
}

impl Dialogue {
    /// Whether the server has accepted a login.
    pub fn is_logged_in(&self) -> bool {
        self.login == Login::Accepted
    }

    /// Whether the server may have accepted a login.
    pub fn may_be_logged_in(&self) -> bool {
        self.login != Login::NotYet
    }

    /// Whether the server has accepted no login, or has forgotten it.
    pub(super) fn is_logged_out(&self) -> bool {
        matches!(self.login, Login::NotYet | Login::None | Login::Asked)
    }

    /// The server has accepted a login, or has refused another one after it.
    pub(super) fn accept_login(&mut self) -> ReplyEffect {
        let restarts = [PendingKind::User, PendingKind::Reinitialize];
        if restarts.into_iter().any(|later| self.pending.contains(later)) {
            self.login = Login::Restarted;
            return ReplyEffect::Nothing;
        }
        self.login = Login::Accepted;
        ReplyEffect::Event(DialogueEvent::LoggedIn)
    }

    /// The server has answered `which` with this failure. A login before it goes on.
    pub(super) fn refuse_login(&mut self, which: PendingKind, reply: Reply) -> ReplyEffect {
        if self.login == Login::Restarted {
            self.accept_login();
        }
        match which {
            PendingKind::Reinitialize => ReplyEffect::Nothing,
            _ => ReplyEffect::Event(DialogueEvent::LoginRefused(reply)),
        }
    }

    /// The server may have accepted a login.
    pub(super) fn doubt_login(&mut self) {
        if self.login == Login::NotYet {
            self.login = Login::None;
        }
    }
}
