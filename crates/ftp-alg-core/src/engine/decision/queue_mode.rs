//! Which later packets of a control connection the kernel queues.

use super::Decider;
use crate::{
    engine::{KernelError, QueueMode, RESEND_INTERVAL, table::entry::Head},
    session::Session,
};

/// Which translation tells the kernel the connection whose queue mode is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionOf {
    /// The session's translation. It is looked up if it is unknown.
    Session,
    /// The translation of the connection that has these endpoints now, perhaps another connection. It is looked up.
    Endpoints,
}

impl Decider<'_> {
    /// Sets in the kernel which later packets of the connection are queued. `Unknown` is no error of the kernel: conntrack
    /// knows the connection once this packet has passed, perhaps with another translation. Until then the connection has
    /// no mark.
    pub fn set_queue_mode(
        &mut self,
        mode: QueueMode,
        connection: ConnectionOf,
    ) -> Result<(), KernelError> {
        let timestamp = self.epoch.timestamp(self.now);
        let known = match connection {
            ConnectionOf::Session => self.head.extra().translation,
            ConnectionOf::Endpoints => None,
        };
        let found = known.map_or_else(|| self.look_up_translation(), Ok);
        let set = found.and_then(|found| {
            self.kernel.set_queue_mode(&found, mode)?;
            Ok(found)
        });
        match set {
            Ok(found) => {
                self.head.note_mode(mode, timestamp);
                if connection == ConnectionOf::Session {
                    self.head.set_translation(Some(found));
                }
                Ok(())
            }
            Err(KernelError::Unknown) => {
                if mode == QueueMode::Selected {
                    self.head.note_mode(mode, timestamp);
                } else {
                    if known.is_some() {
                        self.head.set_translation(None);
                    }
                    self.head.note_unknown(mode, timestamp);
                }
                Err(KernelError::Unknown)
            }
            Err(error) => {
                self.report_kernel_error(&error);
                if mode == QueueMode::Selected {
                    self.watch();
                }
                Err(error)
            }
        }
    }

    /// Queues every packet for a while.
    pub fn watch(&mut self) {
        let until = self.head.watch(self.now);
        self.timers.add(until, self.index);
    }
}

/// The queue mode that the kernel must set, unless it has set the same one recently. `queues_all` says that the rules
/// queued the packet because they queue every packet of its connection. If this session did not request that mode, an
/// earlier daemon or a removed session did. `needs_none` says that the session is not inspected any more.
#[inline]
pub fn wanted_queue_mode(
    head: &Head,
    session: &Session,
    queues_all: bool,
    needs_none: bool,
) -> Option<QueueMode> {
    let timestamp = head.last_seen;
    let is_settled = head.incarnation().is_none();
    // Conntrack must not check sequence numbers past a gap either: it has seen numbers that were not forwarded.
    let wanted = if session.needs_all_queued() {
        QueueMode::EveryPacket
    } else if needs_none {
        QueueMode::None
    } else if is_settled && session.needs_acknowledgements() {
        QueueMode::WithAcknowledgements
    } else {
        let is_outdated = match head.queue_mode() {
            Some(QueueMode::EveryPacket | QueueMode::Watch | QueueMode::WithAcknowledgements) => {
                is_settled
            }
            // The mode may have been set after this packet was queued.
            Some(QueueMode::Selected) => {
                queues_all && is_settled && head.mode_set_since(timestamp) >= RESEND_INTERVAL
            }
            // A session that has just replaced another on its endpoints must be written first, because after a crash
            // the packet is handled again.
            None => queues_all && is_settled && head.first_seen < timestamp,
            Some(QueueMode::None) => false,
        };
        is_outdated.then_some(QueueMode::Selected)?
    };
    let is_set =
        head.queue_mode() == Some(wanted) && head.mode_set_since(timestamp) < RESEND_INTERVAL;
    (!is_set).then_some(wanted)
}
