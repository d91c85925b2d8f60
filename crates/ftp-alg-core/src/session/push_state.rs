//! Whether a line that looks like an announcement is a reply of its own, or the tail of an earlier reply.
//!
//! A server repeats file names, which may contain line ends, and a client can stop the server at any byte by its
//! receive window. The bytes sent so far then end like a reply, with PSH (`tcp_write_wakeup`), and the rest begins like
//! the next reply. So once a reply may contain such a name, or the ends may disagree about line ends, a 227 or 229
//! counts only if the server had nothing else to send when it could send:
//! - the reply fills one segment with PSH, or its line end has one of its own, as with servers that write line ends
//!   alone; and it acknowledges its command;
//! - the packets of that command acknowledged everything before, and let the server send more than it has sent since.
//!
//! Bytes that waited in the server's TCP would have come with the reply, because TCP sends what fits as soon as a
//! packet opens the window (`tcp_data_snd_check`). If those bytes are one line, it ends as no announcement does
//! (`line_decisions::is_end_of_reply`). Acknowledgements without data can close the window again, so they are queued as
//! well. One with a later sequence number than the client's next is dropped: the server would ignore the windows of all
//! packets before that number, except of those that acknowledge more than was acknowledged before
//! (`tcp_may_update_window`).
//!
//! The client's window scale is unknown: its SYN is not queued, and conntrack's scale may be of a SYN that the server
//! has not received. Without a scale a field of 31 is a window of 31 bytes, with a scale of 11 one of 63 KB. So a small
//! field is raised to [`RAISED_WINDOW`] before the packet is forwarded, if the connection scales windows. Then the
//! server may send as much, whatever the scale. An honest client does not notice: its window is larger than a reply, or
//! the server retransmits what did not fit.

use crate::{
    ftp::has_lf,
    packet::{Packet, flags},
};

use super::{Dialogue, Session, Side, direction::Direction};

/// The least window field of commands while a server's announcement must be a complete reply of its own.
const RAISED_WINDOW: u16 = 256;

/// What the PSH bit of a packet says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum PushState {
    /// More data may follow at once.
    #[default]
    NotPushed,
    /// The sender's TCP has nothing more to send for now.
    Pushed,
    /// As `Pushed`, and the packet is exactly one reply line without its line end.
    ReplyWithoutEnd,
    /// As `Pushed`, and the packet is exactly one reply line, or the line end of one.
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
            Self::Pushed if is_all_there_was(packet, client, server) => {
                Self::from_reply_bytes(packet.payload(), server)
            }
            push_state => push_state,
        }
    }

    /// The PSH state of everything that the server had to send.
    fn from_reply_bytes(payload: &[u8], server: &Direction) -> Self {
        let nuls = payload.iter().rev().take_while(|byte| **byte == 0).count();
        let payload = &payload[..payload.len() - nuls];
        // Some servers send an empty line after each reply.
        let line =
            payload.strip_suffix(b"\r\n").filter(|line| line.ends_with(b"\n")).unwrap_or(payload);
        let begins = server.is_between_lines();
        match memchr::memchr(b'\n', line) {
            None if begins => Self::ReplyWithoutEnd,
            Some(at) if at + 1 == line.len() && (begins || is_rest_of_line(line, server)) => {
                Self::CompleteReply
            }
            _ => Self::Pushed,
        }
    }
}

/// Whether `line` is only the end of a line of which the server sent the rest in a packet of its own.
fn is_rest_of_line(line: &[u8], server: &Direction) -> bool {
    matches!(line, b"\r\n" | b"\n") && server.extra().line_without_end == Some(server.space.next)
}

/// Whether `packet`, which has PSH, is everything that the server had to send.
fn is_all_there_was(packet: &Packet<'_>, client: &Direction, server: &Direction) -> bool {
    let end = packet.seq() + packet.payload().len() as u32; // an IP packet's
    packet.seq() == server.space.next
        && client.extra().window_end.is_some_and(|window_end| end.is_before(window_end))
        && client.space.is_acknowledged()
}

impl Session {
    /// The window field with which the client's `packet` is forwarded, if it carries data after which a server's
    /// announcement must be a complete reply of its own. A line that ends with LF alone makes the dialogue ambiguous
    /// when it is read, and the reply to a command in a pipeline may do so, or to a login, behind which some clients send
    /// `PASV` at once. So do a packet that shows missed bytes, and the first text after TLS.
    #[inline]
    pub(super) fn window_to_offer(&self, from: Side, packet: &Packet<'_>) -> Option<u16> {
        let payload = packet.payload();
        if from == Side::Server {
            return None;
        }
        let line = payload.strip_suffix(b"\r\n").unwrap_or(payload);
        let shows_missed = || self.server.space.is_all_seen(packet.ack()) == Some(false);
        let is_required = match payload.is_empty() {
            true => self.needs_acknowledgements(),
            false => {
                self.dialogue.is_ambiguous()
                    || self.dialogue.has_pending_commands()
                    || self.dialogue.may_log_in()
                    || self.is_encrypted()
                    || has_lf(line)
                    || shows_missed()
            }
        };
        if !is_required {
            return None;
        }
        let window = packet.window();
        let is_raised = window > 0 && !self.client.space.has_plain_window;
        Some(if is_raised { window.max(RAISED_WINDOW) } else { window })
    }
}

/// Records how much the client's `packet` lets the server send: at least `window` bytes.
#[cold]
pub(super) fn record_offered_window(
    packet: &Packet<'_>,
    window: u16,
    client: &mut Direction,
    server: &Direction,
    dialogue: &Dialogue,
) {
    if packet.payload().is_empty() {
        // The server may not have received it if it offers more, and has if it offers less.
        let end = server.space.map.to_sent(packet.ack()) + u32::from(window);
        let known = client.extra().window_end.map(|known| known.min(end));
        return client.set_window_end(known);
    }
    let sent = server.space.next;
    let acknowledges_all = packet.ack() == server.space.map.to_delivered(sent);
    let end = if acknowledges_all { sent + u32::from(window) } else { sent };
    // The server has read every earlier command, with the window of its packets. It takes no window from bytes that it
    // has already.
    let is_first = client.is_idle()
        && packet.seq() == client.space.next
        && (!dialogue.has_pending_commands() || client.space.is_acknowledged());
    let end =
        if is_first { end } else { client.extra().window_end.map_or(sent, |known| known.min(end)) };
    client.set_window_end(Some(end));
}
