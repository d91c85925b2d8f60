//! Whether an announcement is what the server says now, or the rest of what it said before.
//!
//! A server repeats names that may have line ends in them, and its client can stop it anywhere by the window: what it has sent
//! then ends like a reply, with PSH (`tcp_write_wakeup`), and what follows begins like the next one. Once a reply may hold such
//! a name, or the ends may not agree where lines end, a 227 or 229 counts only if the server had nothing else to say when it
//! could: it fills a segment with PSH, and acknowledges its command, and that command's packets had acknowledged all that came
//! before, and offered a larger window. What waited in the server's TCP would have come with it: it sends what fits as soon as
//! the window opens (`tcp_data_snd_check`). If that is no more than one line, it ends as no announcement does (`lines::is_last`).

use crate::packet::{Packet, flags};

use super::{Dialogue, direction::Direction};

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
    /// Of a packet.
    pub(super) fn of(packet: &Packet<'_>) -> Self {
        if packet.has(flags::PSH) { Self::Yes } else { Self::Not }
    }

    /// Of a packet of the server in a dialogue that is doubted.
    pub(super) fn of_reply(packet: &Packet<'_>, client: &Direction, server: &Direction) -> Self {
        match Self::of(packet) {
            Self::Yes if is_apart(packet, client, server) => Self::Apart,
            pushed => pushed,
        }
    }
}

/// Whether `packet`, which has PSH, is one line of the server, and all that the server had to say.
fn is_apart(packet: &Packet<'_>, client: &Direction, server: &Direction) -> bool {
    let payload = packet.payload();
    server.is_idle()
        && memchr::memchr(b'\n', payload) == payload.len().checked_sub(1)
        && payload.len() < usize::from(client.offered())
        && client.space.is_acknowledged()
}

/// Takes note of what `packet` of the client, if that says something in it, lets the server send. Its window is taken as it
/// stands: with a scale it is larger.
#[cold]
pub(super) fn note_offer(
    packet: &Packet<'_>,
    client: &mut Direction,
    server: &Direction,
    dialogue: &Dialogue,
) {
    if packet.payload().is_empty() {
        return;
    }
    let acknowledges_all = packet.ack() == server.space.map.deliver(server.space.next);
    let window = if acknowledges_all { packet.window() } else { 0 };
    let is_first = client.is_idle() && !dialogue.awaits_replies();
    client.set_offered(if is_first { window } else { window.min(client.offered()) });
}
