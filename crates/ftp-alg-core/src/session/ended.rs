//! A connection that the gateway has ended: both ends are reset, and nothing of either goes on any more.
//!
//! What is known of it is given back, so that its packets could not be put right; they are dropped as long as it is
//! remembered, and each is answered by a reset with the number that its sender expects (RFC 9293 section 3.10.7.1).

use serde::{Deserialize, Serialize};

use super::{Dialogue, Session, Side, Stream, few::Bytes, is_near};
use crate::packet::{Packet, Seq, flags};

/// Whether a connection was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cut {
    /// It was not.
    No,
    /// By one of its ends.
    Reset,
    /// By the gateway.
    Ended,
}

impl Cut {
    pub fn is_cut(self) -> bool {
        self != Self::No
    }
}

impl Session {
    /// Ends it.
    pub fn end(&mut self) {
        for stream in [&mut self.client, &mut self.server] {
            *stream = Stream::new(stream.next);
        }
        (self.kept, self.kept_from) = (Bytes::default(), self.client.next);
        (self.dialogue, self.seldom) = (Dialogue::joined(), None);
        self.cut = Cut::Ended;
    }

    /// Whether the gateway has ended it.
    pub fn has_ended(&self) -> bool {
        self.cut == Cut::Ended
    }

    /// Numbers of resets for `to`, before it is ended. What `to` expects is the first or the second, or lies between
    /// them: then it answers the second by one that tells.
    pub fn resets(&self, to: Side) -> [Seq; 2] {
        let stream = self.peek(to.peer());
        [stream.acked, stream.map.deliver(stream.next)]
    }

    /// Whether `packet` of `from` is one of this connection, not of one that began on its endpoints unseen.
    pub fn concerns(&self, from: Side, packet: &Packet<'_>) -> bool {
        !packet.has(flags::SYN) && is_near(packet.seq(), self.peek(from).next)
    }

    /// Whether it is encrypted, so that a login is not seen.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.unread(), Some(super::Unread::Encrypted { .. }))
    }
}
