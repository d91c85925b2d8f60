//! A connection's transfers, from the command to the last reply, and who requests them; and what waits for its data
//! connection.

use std::time::Instant;

use crate::{
    engine::{
        Entry, EventKind, MissingConnection, SessionEnd, Sessions, TransferEnd,
        activity::EXAMINED_AFTER, decision::Decider,
    },
    session::{Activity, Dialogue},
};

impl Decider<'_> {
    /// Notes what a command says about the client's activity.
    pub(super) fn note_request(&mut self, activity: Activity, dialogue: &Dialogue) {
        let (pending, may_transfer) = (dialogue.pending_transfers(), dialogue.may_be_logged_in());
        let known = self.head.activity_mut();
        match activity {
            Activity::User(name) => known.note_user(name, dialogue.has_earlier_login()),
            Activity::ChangeDirectory(wanted) => known.note_wanted_directory(wanted),
            Activity::Rename(from) => known.note_renamed(&from),
            Activity::Transfer(verb, path) if may_transfer => {
                for _ in 0..known.unseen_ends(pending) {
                    self.head.activity_mut().note_last_reply(|_| true);
                    self.note_transfer_end(TransferEnd::Unseen);
                }
                self.pinholes.retry(self.index);
                let requested = self.head.since_first_packet();
                self.head.activity_mut().note_transfer(verb, path, requested);
                if let Some(translation) = self.head.extra().translation
                    && dialogue.has_pending_transfer()
                {
                    let (owner, lifetime) = (self.index, self.policy.pinhole_timeout);
                    self.pinholes.renew(self.now, owner, &translation, lifetime, self.kernel);
                }
                self.timers.add(self.now + EXAMINED_AFTER, self.index);
            }
            // The server refuses it. Otherwise a client that cannot log in could fill the log.
            Activity::Transfer(..) => {}
        }
    }

    /// Notes that the oldest transfer has ended.
    pub(super) fn note_transfer_end(&mut self, end: TransferEnd) -> bool {
        let announcement = self.pinholes.last_announcement(self.index);
        let Some(event) = self.head.end_transfer(end, Some(self.now), announcement) else {
            return false;
        };
        self.batch.events.push(event);
        true
    }

    /// Ends all transfers, because their ends will not be seen.
    pub(super) fn end_transfers_unseen(&mut self) {
        while self.note_transfer_end(TransferEnd::Unseen) {}
        if let Some(extra) = self.head.existing_extra_mut() {
            extra.activity.forget_uncounted();
        }
    }

    /// Reports the end of the session and of its transfers, once.
    pub fn report_end(&mut self, end: SessionEnd) {
        let announcement = self.pinholes.last_announcement(self.index);
        self.head.end_session(end, announcement, &mut self.batch.events);
    }
}

impl Sessions {
    /// Reports, once each, the oldest transfer if it has been pending for a while, and a pinhole that no transfer
    /// uses.
    pub(crate) fn report_waiting(&mut self, index: u32, now: Instant) {
        let timestamp = self.epoch.timestamp(now);
        let examined = self.pinholes.take_examinations(index, now);
        let Some(Entry { head, .. }) = self.table.get_mut(index) else { return };
        let announcement = self.pinholes.last_announcement(index);
        if let Some(transfer) = head.examine_transfers(timestamp, announcement) {
            self.batch.events.push(head.event(EventKind::TransferWaiting(Box::new(transfer))));
        }
        if let Some(ends) = examined.filter(|_| !head.extra().activity.has_transfer()) {
            let missing = MissingConnection::new(ends, String::new());
            self.batch.events.push(head.event(EventKind::NoDataConnection(missing)));
        }
    }
}
