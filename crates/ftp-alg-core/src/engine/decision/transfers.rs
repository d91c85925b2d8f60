//! A connection's transfers, from the command to the last reply, and who requests them.

use std::{sync::Arc, time::Instant};

use crate::{
    engine::{
        Effects, EventKind, SessionEnd, Sessions, activity::TransferEnd,
        decision::connection::Connection, requested_transfers::RequestedTransfer,
    },
    session::Activity,
};

impl Connection<'_> {
    /// Records what a command says about the client's activity.
    pub(super) fn record_request(&mut self, activity: Activity) {
        let dialogue = &self.entry.session.dialogue;
        let (pending, may_transfer) = (dialogue.pending_transfers(), dialogue.may_be_logged_in());
        let known = self.entry.activity_mut();
        match activity {
            Activity::User(name) => known.record_user(name),
            Activity::ChangeDirectory(wanted) => known.record_wanted_directory(wanted),
            Activity::Transfer(command) if may_transfer => {
                for _ in 0..known.unseen_ends(pending) {
                    self.record_transfer_end(TransferEnd::Unseen);
                }
                let requested = self.entry.since_first_packet();
                self.entry.activity_mut().record_transfer(command, requested);
                self.requested.add(self.now, self.session_ref(), requested);
            }
            // The server refuses it. Otherwise a client that cannot log in could fill the log.
            Activity::Transfer(_) => {}
        }
    }

    /// Records that the oldest transfer has ended.
    pub(super) fn record_transfer_end(&mut self, end: TransferEnd) -> bool {
        let Some(event) = self.entry.end_transfer(end) else { return false };
        self.effects.events.push(event);
        true
    }

    /// Ends all transfers, because their ends will not be seen.
    pub(super) fn end_transfers_unseen(&mut self) {
        while self.record_transfer_end(TransferEnd::Unseen) {}
    }

    /// Reports the end of the session and of its transfers, once.
    pub fn report_end(&mut self, end: SessionEnd) {
        self.entry.end_session(end, &mut self.effects.events);
    }
}

impl Sessions {
    /// Reports transfers that have been pending for a while, once each.
    pub(crate) fn report_waiting_transfers(&mut self, now: Instant, effects: &mut Effects) {
        while effects.events.has_room()
            && let Some(due) = self.requested.take_due(now)
        {
            let RequestedTransfer { session, requested, .. } = due;
            let timestamp = self.epoch.timestamp(now);
            let Some(entry) = self.table.get_session(session.index, session.id) else { continue };
            if let Some(transfer) = entry.examine_transfer(requested, timestamp) {
                let waiting = EventKind::TransferWaiting(Arc::new(transfer));
                effects.events.push(entry.event(waiting));
            }
        }
    }
}
