//! Data connections that their target refuses: the pinhole opens again.
//!
//! The rules queue an RST that answers the SYN of an admitted data connection. It belongs to no session, and its shard
//! may be another one than that of the control connection, so the [registry](super::registry) knows how to open the
//! pinhole.

use std::time::Instant;

use crate::{
    engine::{
        Effects, Engine, QueuedPacket, Verdict,
        packets::{Handling, trace_unread},
        questions::{effects::SessionRef, kernel::RouteLookup},
    },
    packet::{Packet, Seq, flags},
};

impl Engine {
    /// Opens a pinhole again if `packet`, an RST of no control connection, refuses its data connection. Windows sends a
    /// refused SYN again, and some servers announce a port before they listen.
    #[cold]
    pub(crate) fn reopen_refused(
        &mut self,
        now: Instant,
        queued: &QueuedPacket<'_>,
        packet: &Packet<'_>,
        effects: &mut Effects,
    ) -> Handling {
        let (target, initiator, meta) = (packet.source(), packet.destination().ip(), &queued.meta);
        let accept = Handling::Verdict(Verdict::Accept);
        let registry = self.sessions.pinholes.registry();
        // RFC 9293 section 3.10.7.1. Other RSTs may leave the target's handshake as it is.
        let answers_syn = packet.has(flags::RST | flags::ACK) && packet.seq() == Seq(0);
        if meta.is_late || !answers_syn || !registry.has_target(initiator, target) {
            self.sessions.counters.unread.no_session += 1;
            trace_unread(queued.bytes, "no session for it");
            return accept;
        }
        // The initiator could forge the target's RST. Nobody else sends in the name of this machine.
        if meta.input != 0 {
            let (address, interface, mark) = (target.ip(), meta.input, meta.mark);
            let lookup = RouteLookup { address, interface, used: 0, mark };
            match self.sessions.routes.get(&lookup) {
                Some(true) => {}
                Some(false) => {
                    self.sessions.counters.unread.elsewhere += 1;
                    return accept;
                }
                None => {
                    self.ask_for_route(queued, SessionRef::NONE, lookup, effects);
                    return Handling::AwaitKernel;
                }
            }
        }
        effects.reopenings.extend(registry.take_refused(initiator, target, now));
        accept
    }
}
