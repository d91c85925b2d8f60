//! What the packet selection lets pass, and is told of: harmless lines of calm connections, of which copies come here.

use std::time::Instant;

use super::{
    Answer, Attention, Engine, Kernel, KernelError, Verdict, What,
    bench::Bench,
    control::Entry,
    table::Key,
    telling::{answer, attend_afresh, tell_kernel},
};
use crate::{
    packet::Packet,
    session::{Forward, Side, harmless},
};

/// The connection of a packet that was decided about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handled {
    pub(super) index: u32,
    pub(super) id: u64,
}

impl Handled {
    /// None that is followed.
    pub const NONE: Self = Self { index: u32::MAX, id: 0 };
}

/// Whose calm was ended by a request, while the packets of one batch were decided.
#[derive(Default)]
pub(super) struct Interrupted {
    at: Option<Instant>,
    connections: Vec<u32>,
}

impl Interrupted {
    #[inline]
    pub(super) fn has(&self, now: Instant, index: u32) -> bool {
        !self.connections.is_empty() && self.at == Some(now) && self.connections.contains(&index)
    }

    fn add(&mut self, now: Instant, index: u32) {
        if self.at.replace(now) != Some(now) {
            self.connections.clear();
        }
        self.connections.push(index);
    }
}

impl Engine {
    /// Ends a calm that began after a packet of the client was queued, or while it waited: harmless lines may be passing at
    /// its numbers, and cut what the server gets of it. So it is dropped, and so are those of its batch; copies are
    /// read before the next, and what is sent again finds them read.
    #[cold]
    pub(super) fn interrupt(
        &mut self,
        now: Instant,
        index: u32,
        kernel: &mut impl Kernel,
    ) -> Verdict {
        let moment = self.epoch.moment(now);
        let Some(Entry { control, .. }) = self.table.get_mut(index) else { return Verdict::Drop };
        match attend_afresh(kernel, control.client(), control.server(), Attention::Payload) {
            // What conntrack does not know is not calm either.
            Ok(()) | Err(KernelError::Unknown) => control.told(Attention::Payload, moment),
            Err(error) => {
                self.counters.errors += 1;
                self.events.push(control.event(What::Failed(error.to_string())));
            }
        }
        self.interrupted.add(now, index);
        Verdict::Drop
    }

    /// Whether since the last packet that was decided about, and not before, all packets of its connection must be seen
    /// lest it break.
    pub fn has_just_changed(&self) -> bool {
        self.has_just_changed
    }

    /// Takes back what the last packet [changed](Self::has_just_changed), which will be dropped, as others of its connection may
    /// have passed before the kernel was told. What was said on it is given up: it goes on as one whose start was not seen.
    #[cold]
    pub fn take_back(&mut self, now: Instant, kernel: &mut impl Kernel) {
        let Handled { index, id } = self.handled;
        let moment = self.epoch.moment(now);
        let Some(Entry { control, .. }) = self.table.get_of(index, id) else { return };
        self.injections.retain(|injection| injection.session != id);
        self.counters.lost += 1;
        self.events.push(control.event(What::Turned(
            "packets passed by while it was decided: nothing is opened any more",
        )));
        match attend_afresh(kernel, control.client(), control.server(), Attention::Payload) {
            Ok(()) | Err(KernelError::Unknown) => control.told(Attention::Payload, moment),
            Err(error) => {
                self.counters.errors += 1;
                self.events.push(control.event(What::Failed(error.to_string())));
            }
        }
        self.forget(index);
    }

    /// The connection of the packet that was decided about last.
    pub fn handled(&self) -> Handled {
        self.handled
    }

    /// From now on the packet selection takes an [`Answer`] with each verdict, and sends copies of what passes
    /// in the calm to [`passed`](Self::passed), or does not.
    pub fn set_selection(&mut self, answers: bool) {
        self.answers = answers;
    }

    /// Copies were lost, of any of the connections.
    pub fn lose_copies(&mut self) {
        self.counters.errors += 1;
        for Entry { session, control } in self.table.iter_mut() {
            // What the connections of before a restart are is not known here.
            if matches!(control.attention(), Some(Attention::Calm) | None) {
                session.lose_copies();
            }
        }
    }

    /// Packets of any of the connections may have passed unread for some time, but of those of which all are held.
    pub fn lapse(&mut self) {
        for index in 0..self.table.places() {
            self.lapse_at(index);
        }
    }

    /// The same of the connection of the packet that was decided about last.
    pub fn lapse_handled(&mut self) {
        let Handled { index, id } = self.handled;
        if self.table.get_of(index, id).is_some() {
            self.lapse_at(index);
        }
    }

    fn lapse_at(&mut self, index: u32) {
        if let Some(Entry { session, control }) = self.table.get_mut(index)
            && !session.wants_every_packet()
        {
            control.forget_attention();
            session.lapse();
            self.note_change(index);
        }
    }

    /// Whether all packets of the connection that this one belongs to are held, so that none ever passes unread.
    pub fn wants_every(&mut self, bytes: &[u8]) -> bool {
        let Ok(packet) = Packet::parse(bytes) else { return false };
        self.table.of_packet(&packet).is_some_and(|entry| entry.session.wants_every_packet())
    }

    /// Whether it is decided about a packet although others of its connection may have passed while it waited: it goes on as it
    /// is whatever they said, or waits until its receiver has said what it has. Nothing is opened for a connection that is not
    /// known, nor for one that took the place of one that is.
    pub fn decides_late(&mut self, bytes: &[u8]) -> bool {
        let Ok(packet) = Packet::parse(bytes) else { return true };
        let Some(Entry { session, control }) = self.table.of_packet(&packet) else { return true };
        let from = control.side(packet.endpoints().0);
        session.wants_every_packet()
            || session.is_asking(from, &packet)
            || !session.concerns(from, &packet)
            || is_plain(from, &packet)
    }

    /// Reads a copy of a packet that has passed as it is, from its IP header on. To be called before the packets
    /// that were queued after it passed are decided; then call [`settle`](Self::settle). Whether its connection is
    /// one of this engine.
    pub fn passed(&mut self, now: Instant, bytes: &[u8], kernel: &mut impl Kernel) -> bool {
        // Conntrack has looked at its checksum, if it was there already.
        let Ok(packet) = Packet::parse(bytes) else { return false };
        let (source, destination) = packet.endpoints();
        let Some(index) = self.table.find(&Key::between(source, destination)) else { return false };
        let moment = self.epoch.moment(now);
        let Some(Entry { session, control }) = self.table.get_mut(index) else { return false };
        self.counters.copies += 1;
        control.last = moment;
        if session.has_ended() {
            return true;
        }
        let from = control.side(source);
        if control.attention().is_none() && session.has_unseen_lines() {
            control.told(Attention::Calm, moment);
        }
        let mut bench = Bench {
            now,
            moment,
            index,
            policy: self.policy.within(control.network()),
            kernel,
            control,
            pinholes: &mut self.pinholes,
            counters: &mut self.counters,
            events: &mut self.events,
            answers: self.answers,
        };
        session.passed(from, &packet, &mut bench);
        if session.wants_every_packet() {
            let told = tell_kernel(
                &mut bench,
                session,
                &Forward::Unchanged.into(),
                false,
                &mut self.injections,
            );
            if !session.changes_packets() {
                self.watched.add(now, index, bench.control);
            }
            if let Err(error) = told {
                bench.failed(&error);
            }
        }
        if session.is_over() {
            bench.close_all("the control connection ended");
        }
        self.note_change(index);
        self.weigh(now, index, kernel);
        self.enlist(now, index, kernel);
        true
    }

    /// What goes to the packet selection with the verdict on a packet, if that is not dropped. To be asked when the
    /// other packets of the batch are decided, too.
    pub fn answer(&mut self, handled: Handled) -> Answer {
        let Handled { index, id } = handled;
        let entry = if self.answers { self.table.get_of(index, id) } else { None };
        let Some(Entry { session, control }) = entry else { return Answer::Nothing };
        let answer = answer(session, control);
        if answer == Answer::Calm {
            // After a restart it is not adjusted, either, where its end is lost.
            self.note_change(index);
        }
        answer
    }
}

/// Whether a packet says nothing, or is a reply of one line that tells neither an endpoint nor a refusal.
fn is_plain(from: Side, packet: &Packet<'_>) -> bool {
    let said = packet.payload();
    let is_reply = from == Side::Server && harmless::is_harmless_reply(said);
    packet.urgent().is_none() && (said.is_empty() || is_reply && !said.starts_with(b"5"))
}
