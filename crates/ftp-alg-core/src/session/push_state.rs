//! Whether a line that looks like an announcement is a reply of its own, or the tail of an earlier reply.
//!
//! A server repeats file names, which may contain line ends, and a client can stop the server at any byte by its
//! receive window. The bytes sent so far then end like a reply, with PSH (`tcp_write_wakeup`), and the rest begins like
//! the next reply. So once a reply may contain such a name, or the ends may disagree about line ends, a 227 or 229
//! counts only if the server had nothing else to send when it could send:
//! - the reply fills one segment with PSH, and acknowledges its command;
//! - the packets of that command acknowledged everything before, and offered a window larger than the reply.
//!
//! Bytes that waited in the server's TCP would have come with the reply, because TCP sends what fits as soon as the
//! window opens (`tcp_data_snd_check`). If those bytes are one line, it ends as no announcement does
//! (`line_decisions::is_end_of_reply`).

use crate::packet::{Packet, flags};

use super::{Dialogue, direction::Direction};

/// What the PSH bit of a packet says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum PushState {
    /// More data may follow at once.
    #[default]
    NotPushed,
    /// The sender's TCP has nothing more to send for now.
    Pushed,
    /// As `Pushed`, and the packet is exactly one reply line.
    CompleteReply,
}

impl PushState {
    /// The PSH state of any packet.
    pub(super) fn from_packet(packet: &Packet<'_>) -> Self {
        if packet.has(flags::PSH) { Self::Pushed } else { Self::NotPushed }
    }

    /// The PSH state of a server's packet in an ambiguous dialogue.
    pub(super) fn from_reply_packet(
        packet: &Packet<'_>,
        client: &Direction,
        server: &Direction,
    ) -> Self {
        match Self::from_packet(packet) {
            Self::Pushed if is_complete_reply(packet, client, server) => Self::CompleteReply,
            push_state => push_state,
        }
    }
}

/// Whether `packet`, which has PSH, is one line of the server and everything that the server had to send.
fn is_complete_reply(packet: &Packet<'_>, client: &Direction, server: &Direction) -> bool {
    let payload = packet.payload();
    // Some servers send an empty line after each reply.
    let line =
        payload.strip_suffix(b"\r\n").filter(|line| line.ends_with(b"\n")).unwrap_or(payload);
    server.is_idle()
        && memchr::memchr(b'\n', line) == line.len().checked_sub(1)
        && payload.len() < usize::from(client.offered_window())
        && client.space.is_acknowledged()
}

/// Records how much the client's `packet`, if it carries data, lets the server send. The window field is taken without
/// its scale; with a scale the window is larger.
#[cold]
pub(super) fn record_offered_window(
    packet: &Packet<'_>,
    client: &mut Direction,
    server: &Direction,
    dialogue: &Dialogue,
) {
    if packet.payload().is_empty() {
        return;
    }
    let acknowledges_all = packet.ack() == server.space.map.to_delivered(server.space.next);
    let window = if acknowledges_all { packet.window() } else { 0 };
    // The server has read every earlier command, with the window of its packets.
    let is_first =
        client.is_idle() && (!dialogue.has_pending_commands() || client.space.is_acknowledged());
    client.set_offered_window(if is_first { window } else { window.min(client.offered_window()) });
}
