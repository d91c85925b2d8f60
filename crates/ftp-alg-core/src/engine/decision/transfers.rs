//! A connection's transfers, from the command to the last reply, and who requests them; and what waits for its data
//! connection.

use std::{sync::Arc, time::Instant};

use crate::{
    engine::{
        Effects, EventKind, SessionEnd, SessionRef, Sessions,
        activity::TransferEnd,
        decision::connection::Connection,
        examinations::{Examination, Subject},
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
                self.entry.pinholes_mut().iter_mut().for_each(|held| held.is_refused = false);
                let requested = self.entry.since_first_packet();
                self.entry.activity_mut().record_transfer(command, requested);
                let session = self.session_ref();
                self.examinations.add(self.now, session, Subject::Transfer(requested));
            }
            // The server refuses it. Otherwise a client that cannot log in could fill the log.
            Activity::Transfer(_) => {}
        }
    }

    /// Records that the oldest transfer has ended.
    pub(super) fn record_transfer_end(&mut self, end: TransferEnd) -> bool {
        let Some(event) = self.entry.end_transfer(end, Some(self.now)) else { return false };
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
    /// The user of `session`, if a login was seen.
    pub(crate) fn user_of(&mut self, session: SessionRef) -> Option<Arc<str>> {
        let entry = self.table.get_session(session.index, session.id)?;
        entry.extra().activity.user().cloned()
    }

    /// Reports transfers that have been pending for a while, and pinholes that have none, once each.
    pub(crate) fn examine_due(&mut self, now: Instant, effects: &mut Effects) {
        while effects.events.has_room()
            && let Some(Examination { session, subject, .. }) = self.examinations.take_due(now)
        {
            let timestamp = self.epoch.timestamp(now);
            let Some(entry) = self.table.get_session(session.index, session.id) else { continue };
            let found = match subject {
                Subject::Transfer(requested) => entry
                    .examine_transfer(requested, timestamp)
                    .map(|transfer| EventKind::TransferWaiting(Arc::new(transfer))),
                Subject::Pinhole(serial) => entry
                    .pinhole_without_transfer()
                    .filter(|held| held.serial == serial)
                    .map(|held| EventKind::PinholeWaiting(held.pinhole)),
            };
            if let Some(kind) = found {
                effects.events.push(entry.event(kind));
            }
        }
    }
}
