//! One control connection while its packets are decided: what its dialogue does to its pinholes, and what is told of it.

use std::time::Instant;

use super::{
    Attention, Counters, Effects, KernelError, Lookup, Mark, What,
    control::{Control, Moment},
    effects::{Ask, Purpose, SessionRef, Waiting},
    pinholes::{Held, PinholeTable},
};
use crate::{
    policy::Policy,
    session::{Limit, Note, Question, Refused},
};

/// A connection, and what belongs to all of them.
pub struct Connection<'a> {
    pub now: Instant,
    /// The same.
    pub moment: Moment,
    pub index: u32,
    pub policy: &'a Policy,
    pub control: &'a mut Control,
    pub pinholes: &'a mut PinholeTable,
    pub counters: &'a mut Counters,
    pub effects: &'a mut Effects,
}

impl Connection<'_> {
    /// Takes note of what a session found.
    pub fn note(&mut self, note: Note) {
        match note {
            Note::AnnouncementAccepted => {
                let mut pinholes = self.control.pinholes_mut().into_iter().flatten().enumerate();
                if let Some((at, held)) = pinholes.find(|(_, p)| !p.answered) {
                    held.answered = true;
                    self.close_answered(at, None);
                }
            }
            Note::AnnouncementRefused => {
                let refused = self.control.pinholes().iter().position(|p| !p.answered);
                if let Some(held) = refused.and_then(|at| self.control.let_go(at)) {
                    self.tell(What::Closed(held.pinhole, "the server refused the announcement"));
                    self.pinholes.close(held);
                }
            }
            Note::TransferStarted => {
                let pinholes = self.control.pinholes_mut().into_iter().flatten();
                for held in pinholes.filter(|p| p.answered) {
                    self.counters.pinholes_used += u64::from(!held.in_use);
                    self.pinholes.used(held);
                }
            }
            Note::TransferEnded { completed: true } => {
                let pinholes = self.control.pinholes_mut();
                let over = pinholes.map(|all| all.extract_if(.., |held| held.answered));
                for held in over.into_iter().flatten() {
                    self.counters.pinholes_used += u64::from(!held.in_use);
                    self.pinholes.spend(held);
                }
            }
            Note::TransferEnded { completed: false } => self.transfer_failed(),
            Note::LoggedIn => self.tell(What::Turned("logged in")),
            Note::NotFtp => {
                self.close_all("the connection is not FTP");
                self.tell(What::Turned("not FTP: not inspected any more"));
            }
            Note::NotFtpClient => {
                self.close_all("the connection is not FTP");
                self.tell(What::Turned(
                    "not FTP: nothing is opened any more; what is refused is refused",
                ));
            }
            Note::Encrypted => {
                self.counters.encrypted += 1;
                self.tell(What::Encrypted);
            }
            Note::Readable => self.tell(What::Turned("readable again")),
            Note::Refused(what) => self.refused(what),
            Note::Limit(which) => self.limit(which),
            Note::Lost => {
                self.counters.lost += 1;
                self.tell(What::Turned("packets were missed: nothing is opened any more"));
            }
        }
    }

    fn refused(&mut self, what: Refused) {
        match what {
            Refused::Hidden => self.counters.pinholes_refused += 1,
            _ => self.counters.commands_refused += 1,
        }
        self.counters.limits.line += u64::from(what == Refused::Overlong);
        self.tell(What::Refused(match what {
            Refused::Auth => "AUTH: policy.auth-tls is \"refuse\"",
            Refused::Hidden => {
                "PORT, EPRT or AUTH: Telnet commands, a bare CR or LF or a NUL hide it from some servers"
            }
            Refused::Overlong => "PORT or EPRT: the line is longer than 512 bytes",
            Refused::Urgent => "a line that is another command without its urgent byte",
        }));
    }

    fn limit(&mut self, which: Limit) {
        let limits = &mut self.counters.limits;
        let (counter, what) = match which {
            Limit::Reply => (
                &mut limits.line,
                "nothing is opened for a 227 or 229: its line is longer than 512 bytes",
            ),
            Limit::Rewrites => {
                (&mut limits.rewrites, "a segment waits: 64 rewrites are not acknowledged")
            }
            Limit::Kept => (&mut limits.kept, "a segment waits: 64 KiB are not acknowledged"),
            Limit::Commands => (
                &mut limits.commands,
                "too many commands wait for replies: those to the oldest open nothing",
            ),
        };
        *counter += 1;
        self.tell(What::Limit(what.into()));
    }

    /// Closes all pinholes of the connection.
    pub fn close_all(&mut self, why: &'static str) {
        for held in self.control.take_pinholes() {
            if !held.in_use {
                self.tell(What::Closed(held.pinhole, why));
            }
            self.pinholes.close(held);
        }
        self.pinholes.settle_spent();
    }

    /// This session.
    pub fn session(&self) -> SessionRef {
        SessionRef { index: self.index, id: self.control.id }
    }

    /// Its ends, as packets show them.
    pub fn ends(&self) -> Lookup {
        Lookup { client: self.control.client(), server: self.control.server() }
    }

    /// Asks for a mark. Its session is busy until that is set: two threads could set two in the wrong order.
    pub fn mark(&mut self, attention: Attention) {
        self.control.ask();
        let ask = Ask::new(self.session(), self.mark_of(attention), None);
        self.effects.marks.push(ask);
    }

    /// Asks what the packet of these `bytes` is `waiting` for: a pinhole as attempted, the translation, or the mark that
    /// numbers need that are to change.
    pub fn ask(&mut self, bytes: &[u8], mut waiting: Box<Waiting>) {
        let start = self.effects.waiting.len();
        self.effects.waiting.extend_from_slice(bytes);
        waiting.bytes = start..self.effects.waiting.len();
        self.control.ask();
        let session = self.session();
        if matches!(waiting.request.question, Question::Lengthen) {
            let question = self.mark_of(Attention::Every);
            self.effects.marks.push(Ask::new(session, question, Some(waiting)));
        } else if let (Some(attempt), Some(control)) =
            (&waiting.attempt, self.control.translation())
        {
            let question = attempt.proposal.opening(control);
            self.effects.openings.push(Ask::new(session, question, Some(waiting)));
        } else {
            let question = self.ends();
            self.effects.lookups.push(Ask::new(session, question, Some(waiting)));
        }
    }

    fn mark_of(&self, attention: Attention) -> Mark {
        let translation = self.control.translation().copied();
        Mark { connection: self.ends(), translation, attention, purpose: Purpose::Session }
    }

    pub fn tell(&mut self, what: What) {
        self.effects.events.push(self.control.event(what));
    }

    pub fn failed(&mut self, error: &KernelError) {
        self.counters.errors += 1;
        self.tell(What::Failed(error.to_string()));
    }

    /// Closes what the server has answered, before the pinhole at `end`.
    pub(super) fn close_answered(&mut self, end: usize, why: Option<&'static str>) {
        let mut kept = 0;
        for _ in 0..end {
            if self.control.pinholes().get(kept).is_some_and(|held| !held.answered) {
                kept += 1;
                continue;
            }
            let Some(held) = self.control.let_go(kept) else { return };
            if let Some(why) = why.filter(|_| !held.in_use) {
                self.tell(What::Closed(held.pinhole, why));
            }
            self.pinholes.close(held);
        }
    }

    /// Closes what the program in the kernel has opened: it has one of each connection at a time.
    pub(super) fn close_judged(&mut self, why: &'static str) {
        let is_judged = |control: &Control| control.pinholes().iter().position(Held::is_judged);
        while let Some(held) = is_judged(self.control).and_then(|at| self.control.let_go(at)) {
            if !held.in_use {
                self.tell(What::Closed(held.pinhole, why));
            }
            self.pinholes.close(held);
        }
    }

    /// A transfer failed, perhaps before its data connection: the pinhole lives to its deadline.
    fn transfer_failed(&mut self) {
        let (now, pinholes) = (self.now, &mut *self.pinholes);
        let Some(held) = self.control.pinholes_mut() else { return };
        held.retain_mut(|held| {
            if held.in_use && held.deadline <= now {
                pinholes.close(held.clone());
                return false;
            }
            if held.in_use {
                pinholes.unused(held);
            }
            true
        });
    }
}
