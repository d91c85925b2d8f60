//! A connection's transfers, from the command to the last reply, and who requests them.

use std::time::Duration;

use crate::{
    engine::{EventKind, activity::TransferEnd, decision::connection::Connection},
    session::Activity,
};

impl Connection<'_> {
    /// Records what a command says about the client's activity.
    pub(super) fn record_request(&mut self, activity: Activity) {
        let now = self.since_first_packet();
        let dialogue = &self.entry.session.dialogue;
        let (pending, may_transfer) = (dialogue.pending_transfers(), dialogue.may_be_logged_in());
        let known = self.entry.activity_mut();
        match activity {
            Activity::User(name) => known.record_user(name),
            Activity::ChangeDirectory(wanted) => known.record_wanted_directory(wanted),
            Activity::Transfer(command) if may_transfer => {
                known.record_transfer(command, now, pending);
            }
            // The server refuses it. Otherwise a client that cannot log in could fill the log.
            Activity::Transfer(_) => {}
        }
    }

    /// Records that the oldest transfer has ended.
    pub(super) fn record_transfer_end(&mut self, end: TransferEnd) -> bool {
        let now = self.since_first_packet();
        // The last announcement is that of the data connection.
        let last = self.entry.extra().pinholes.iter().rev().find(|held| held.answered);
        let announcement = last.map(|held| (held.kind, held.pinhole));
        let Some(extra) = self.entry.existing_extra_mut() else { return false };
        let Some(transfer) = extra.activity.take_transfer(now, end, announcement) else {
            return false;
        };
        self.push_event(EventKind::Transfer(Box::new(transfer)));
        true
    }

    /// Ends all transfers with the connection.
    pub(super) fn end_transfers(&mut self) {
        let is_reset = self.entry.session.is_reset();
        let end = if is_reset { TransferEnd::SessionReset } else { TransferEnd::SessionEnded };
        while self.record_transfer_end(end) {}
    }

    fn since_first_packet(&self) -> Duration {
        self.entry.last_seen.duration_since(self.entry.first_seen)
    }
}
