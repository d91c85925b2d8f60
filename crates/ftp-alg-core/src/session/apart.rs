//! Whether an announcement is what the server says now, or the rest of what it said before.
//!
//! A server repeats names that may have line ends in them, and its client can stop it anywhere by the window: what it has sent
//! then ends like a reply, with PSH (`tcp_write_wakeup`), and what follows begins like the next one. Once a reply may hold such
//! a name, or the ends may not agree where lines end, a 227 or 229 counts only if the server had nothing else to say when it
//! could: it fills a segment with PSH, and acknowledges its command, and that command's packets had acknowledged all that came
//! before, and offered a larger window. What waited in the server's TCP would have come with it: it sends what fits as soon as
//! the window opens (`tcp_data_snd_check`). If that is no more than one line, it ends as no announcement does (`lines::is_last`).

use crate::packet::{Packet, flags};

use super::{Session, Side};

/// What the sender of a packet says by PSH.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pushed {
    /// More of it may be under way.
    #[default]
    Not,
    /// That is all for now, as far as its TCP tells.
    Yes,
    /// The same, and the packet is a line that stands apart.
    Apart,
}

impl Pushed {
    pub(super) fn of(packet: &Packet<'_>) -> Self {
        if packet.has(flags::PSH) { Self::Yes } else { Self::Not }
    }
}

impl Session {
    /// Takes note of what `packet`, if the client says something in it, lets the server send. Its window is taken as it stands:
    /// with a scale it is larger.
    pub(super) fn offers(&mut self, from: Side, packet: &Packet<'_>) {
        if from == Side::Server || !self.dialogue.is_doubted() || packet.payload().is_empty() {
            return;
        }
        let acknowledges_all = packet.ack() == self.server.map.deliver(self.server.next);
        let window = if acknowledges_all { packet.window() } else { 0 };
        let is_first = self.client.is_idle() && !self.dialogue.awaits_replies();
        let offered = &mut self.seldom_mut().offered;
        *offered = if is_first { window } else { window.min(*offered) };
    }

    /// Whether `packet`, which has PSH, is one line of the server, and all that the server had to say.
    pub(super) fn is_apart(&self, packet: &Packet<'_>) -> bool {
        let payload = packet.payload();
        let offered = self.seldom.as_ref().map_or(0, |seldom| seldom.offered);
        self.server.is_idle()
            && memchr::memchr(b'\n', payload) == payload.len().checked_sub(1)
            && payload.len() < usize::from(offered)
            && self.client.unacknowledged() == self.client.next
    }
}
