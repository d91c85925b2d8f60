//! Sessions as records, so that a daemon that is started again goes on with them.
//!
//! A record says what a session is once the packets that were decided so far have passed, or that it is
//! gone; of several about one session the last counts. Whoever keeps them writes them before it gives
//! those verdicts: what was queued and not written has not passed either, and is retransmitted. Records
//! may run ahead of verdicts, as one worker's batch writes what another has decided as well: the
//! retransmission was read before, and goes on as it was read. Times are milliseconds since a moment that
//! both daemons know.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    Control, Counters, Effects, Entry, Epoch, Lookup, Opening, Pinhole, Places, Sessions,
    Translation, handover::Judging, pinholes::SavedPinhole,
};
use crate::session::{Phase, Session};

/// The form of a record. Raised with every change of a type that is in one, so that the records of another
/// version are refused rather than misread; `tests` has a record of this form.
pub const RECORD_FORMAT: u32 = 10;

#[derive(Serialize, Deserialize)]
enum Record<'a> {
    Session(Box<Saved<'a>>),
    Gone(u64),
}

#[derive(Serialize, Deserialize)]
struct Saved<'a> {
    id: u64,
    client: SocketAddr,
    server: SocketAddr,
    translation: Option<Translation>,
    since: u64,
    last: u64,
    pinholes: Vec<SavedPinhole>,
    spoke_in_syn: bool,
    judging: Judging,
    session: Cow<'a, Session>,
    rival: Option<Cow<'a, Session>>,
}

/// A connection is in use on which something was said that long ago.
const IN_USE: Duration = Duration::from_secs(3);

/// A record that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("a session cannot be read: {0}")]
pub struct BadRecord(#[from] postcard::Error);

/// Sessions of records, by their numbers, so that the oldest are the first again.
#[derive(Default)]
pub struct SavedSessions(BTreeMap<u64, Box<Saved<'static>>>);

impl SavedSessions {
    /// Those that `records` tell of.
    pub fn read<'r>(records: impl Iterator<Item = &'r [u8]>) -> Result<Self, BadRecord> {
        let mut sessions = BTreeMap::new();
        for record in records {
            match postcard::from_bytes(record)? {
                Record::Session(saved) => drop(sessions.insert(saved.id, saved)),
                Record::Gone(id) => drop(sessions.remove(&id)),
            }
        }
        Ok(Self(sessions))
    }

    /// Adds those of other records. Sessions of engines [beside](super::Engine::beside) each other have different numbers.
    pub fn add(&mut self, Self(others): Self) {
        self.0.extend(others);
    }

    /// Divides them into `parts`, each to the one that its client and server have their `home` in.
    pub fn divide(self, parts: usize, home: impl Fn(SocketAddr, SocketAddr) -> usize) -> Vec<Self> {
        let mut divided: Vec<Self> = (0..parts).map(|_| Self::default()).collect();
        for (id, saved) in self.0 {
            if let Some(Self(part)) = divided.get_mut(home(saved.client, saved.server)) {
                part.insert(id, saved);
            }
        }
        divided
    }
}

/// What was taken over from records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Control connections.
    pub sessions: usize,
    /// How many of them have adjusted numbers.
    pub adjusted: usize,
}

/// What changed and was not written yet.
pub(super) struct Changes {
    epoch: Instant,
    /// Places in the table; an entry knows whether it is one of them.
    changed: Vec<u32>,
    gone: Vec<u64>,
}

fn since(epoch: Instant, at: Instant) -> u64 {
    at.saturating_duration_since(epoch).as_millis() as u64 // of an uptime
}

fn write(
    Entry { session, control }: &Entry,
    own: Epoch,
    epoch: Instant,
    buffer: &mut Vec<u8>,
) -> Result<(), postcard::Error> {
    let millis = |moment| own.instant(moment).map_or(0, |at| since(epoch, at));
    let saved = Saved {
        id: control.id,
        client: control.client(),
        server: control.server(),
        translation: control.translation().copied(),
        since: millis(control.since),
        last: millis(control.last),
        pinholes: control
            .pinholes()
            .iter()
            .map(|held| held.save(since(epoch, held.deadline)))
            .collect(),
        spoke_in_syn: control.spoke_in_syn(),
        judging: control.judging(),
        session: Cow::Borrowed(session),
        rival: control.rival().map(Cow::Borrowed),
    };
    put(&Record::Session(Box::new(saved)), buffer)
}

fn put(record: &Record<'_>, buffer: &mut Vec<u8>) -> Result<(), postcard::Error> {
    buffer.clear();
    *buffer = postcard::to_extend(record, std::mem::take(buffer))?;
    Ok(())
}

impl Sessions {
    /// The session at `index` is another than before.
    pub(super) fn note_change(&mut self, index: u32) {
        if let (Some(changes), Some(entry)) = (&mut self.changes, self.table.get_mut(index))
            && !std::mem::replace(&mut entry.control.changed, true)
        {
            changes.changed.push(index);
        }
    }

    /// The session `id` is gone.
    pub(super) fn note_gone(&mut self, id: u64) {
        if let Some(changes) = &mut self.changes {
            changes.gone.push(id);
        }
    }

    /// From now on changes are noted; `epoch` is the moment that times count from.
    pub fn note_changes(&mut self, epoch: Instant) {
        self.changes = Some(Changes { epoch, changed: Vec::new(), gone: Vec::new() });
    }

    /// Adds a record of each session that changed to `effects`.
    pub(super) fn take_records(&mut self, counters: &mut Counters, effects: &mut Effects) {
        let Effects { records, record_ends, .. } = effects;
        let failed = self.take_changes(|record| {
            records.extend_from_slice(record);
            record_ends.push(records.len());
        });
        if failed.is_err() {
            counters.errors += 1;
        }
    }

    fn take_changes(&mut self, mut each: impl FnMut(&[u8])) -> Result<(), BadRecord> {
        let Some(Changes { epoch, changed, gone }) = &mut self.changes else { return Ok(()) };
        let buffer = &mut self.record;
        // First, so that of records that are cut off one never tells of two on the same endpoints.
        for id in gone.drain(..) {
            put(&Record::Gone(id), buffer)?;
            each(buffer);
        }
        for index in changed.drain(..) {
            let Some(entry) = self.table.get_mut(index) else { continue };
            if std::mem::take(&mut entry.control.changed) {
                write(entry, self.epoch, *epoch, buffer)?;
                each(buffer);
            }
        }
        Ok(())
    }

    /// Hands a record of every session to `each`, in place of all changes so far.
    pub fn records(&mut self, mut each: impl FnMut(&[u8])) -> Result<(), BadRecord> {
        let Some(changes) = &mut self.changes else { return Ok(()) };
        changes.changed.clear();
        changes.gone.clear();
        for entry in self.table.iter_mut() {
            entry.control.changed = false;
            write(entry, self.epoch, changes.epoch, &mut self.record)?;
            each(&self.record);
        }
        Ok(())
    }

    /// Goes on with the sessions that `records` tell of; see [`go_on_with`](Self::go_on_with).
    pub fn restore<'r>(
        &mut self,
        records: impl Iterator<Item = &'r [u8]>,
        now: Instant,
        epoch: Instant,
    ) -> Result<Restored, BadRecord> {
        Ok(self.go_on_with(SavedSessions::read(records)?, now, epoch))
    }

    /// Goes on with saved sessions, with times counted from `epoch`. Their pinholes are taken for
    /// open: what the kernel has not, it has used up. Where numbers are adjusted a policy that is stricter
    /// now changes nothing: the connection would break.
    pub fn go_on_with(
        &mut self,
        SavedSessions(sessions): SavedSessions,
        now: Instant,
        epoch: Instant,
    ) -> Restored {
        let at = |millis| epoch.checked_add(Duration::from_millis(millis)).unwrap_or(now);
        let mut restored = Restored::default();
        let (first, rest): (Vec<_>, Vec<_>) =
            sessions.into_values().partition(|saved| saved.session.is_adjusted());
        for saved in first.into_iter().chain(rest) {
            self.last_id.fetch_max(saved.id, Ordering::Relaxed);
            let Saved { id, client, server, translation, pinholes, .. } = *saved;
            let network = self.policy.network_of(client.ip(), server.ip());
            let adjusted = saved.session.is_adjusted();
            if !adjusted && (!self.policy.inspects(network) || !self.has_room()) {
                continue;
            }
            let [since, last] =
                [saved.since, saved.last].map(|millis| self.epoch.moment(at(millis).min(now)));
            let mut control = Control::new(id, client, server, since);
            control.set_network(network);
            // What is retransmitted is not written, and one that is adjusted must not be forgotten for that.
            control.last = if adjusted { self.epoch.moment(now) } else { last };
            control.set_spoke_in_syn(saved.spoke_in_syn);
            control.set_translation(translation);
            if saved.judging.lines > 0 || saved.judging.is_handed_over {
                *control.judging_mut() = saved.judging;
                if saved.judging.is_handed_over {
                    self.pinholes.count_granted(client.ip());
                }
            }
            if let Some(rival) = saved.rival {
                control.set_rival(rival.into_owned(), self.epoch.moment(now));
            }
            let session = saved.session.into_owned();
            restored.sessions += 1;
            restored.adjusted += usize::from(adjusted);
            let owner = self.table.insert(Entry { session, control });
            self.note_memory(owner);
            self.count_for_client(owner);
            let Some(entry) = self.table.get_mut(owner) else { continue };
            if entry.control.rival().is_some() {
                self.watched.add(now, owner, &mut entry.control);
            }
            for pinhole in pinholes {
                let deadline = at(pinhole.deadline).min(now + self.policy.pinhole_lifetime);
                let held = self.pinholes.restore(owner, client.ip(), &pinhole, deadline);
                entry.control.hold(held);
            }
        }
        restored
    }

    /// Where pinholes are.
    pub fn places(&self) -> &Places {
        self.pinholes.places()
    }

    /// What sessions hold and `is_missing`, to be opened for the rest of its time.
    pub fn to_open_again(
        &self,
        now: Instant,
        is_missing: impl Fn(&Pinhole) -> bool,
    ) -> impl Iterator<Item = Opening> {
        self.table.iter().flat_map(move |Entry { control, .. }| {
            let missing = control
                .pinholes()
                .iter()
                .filter(|p| !p.in_use && !p.is_judged() && is_missing(&p.pinhole));
            missing
                .filter_map(move |held| {
                    let lifetime = held.deadline.saturating_duration_since(now);
                    let (pinhole, from_client) = (held.pinhole, !held.kind.is_active());
                    let control = *control.translation().filter(|_| !lifetime.is_zero())?;
                    Some(Opening { pinhole, control, from_client, lifetime })
                })
                .collect::<Vec<_>>()
        })
    }

    /// Whether a session of this engine or one beside it holds a pinhole with these endpoints that rules are to have, and not
    /// the program.
    pub fn holds(&self, initiator: IpAddr, arrival: SocketAddr) -> bool {
        self.pinholes.holds(initiator, arrival)
    }

    /// Whether something was said a moment ago on a connection that is open, and followed.
    pub fn is_in_use(&mut self, now: Instant) -> bool {
        let moment = self.epoch.moment(now);
        self.table.iter().any(|Entry { session, control }| {
            let is_known = matches!(session.dialogue().phase(), Phase::Greeted | Phase::Verified);
            is_known && !session.is_half_closed() && moment.since(control.last) < IN_USE
        })
    }

    /// The connections that are open and whose numbers are adjusted.
    pub fn adjusted(&self) -> impl Iterator<Item = Lookup> {
        let adjusted = |entry: &&Entry| entry.session.is_adjusted() && !entry.session.is_over();
        self.table.iter().filter(adjusted).map(|Entry { control, .. }| Lookup {
            client: control.client(),
            server: control.server(),
        })
    }
}
