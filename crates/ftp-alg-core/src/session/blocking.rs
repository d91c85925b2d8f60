//! When a dialogue opens nothing, and what that depends on.

use super::{Dialogue, PendingKind, Phase};

impl Dialogue {
    /// Why no announcement may open a pinhole now, by the client if `is_active`, else by the server.
    pub fn blocked_because(&self, is_active: bool) -> Option<&'static str> {
        Some(match self.phase {
            Phase::NotFtp => "the client does not speak FTP",
            Phase::ClientFirst | Phase::CommandFirst => {
                "the client sent data before the server's greeting"
            }
            Phase::CommandAfterText => "the server has sent text, but no greeting",
            Phase::PickedUp | Phase::PickedUpFtp => {
                "the connection was picked up mid-stream: its earlier dialogue is unknown"
            }
            Phase::PacketsMissed | Phase::OutOfStep => {
                "packets were missed: the earlier dialogue is unknown"
            }
            Phase::NotGreeted | Phase::TextFirst | Phase::Greeted | Phase::Verified => {
                return self.ambiguities.blocked_because(is_active);
            }
        })
    }

    /// Whether the dialogue was ambiguous at some time, or may be with the client's next line, so that a server's
    /// announcement must be a complete reply of its own.
    pub fn is_ambiguous(&self) -> bool {
        self.ambiguities.is_any() || self.other_end.is_some()
    }

    /// Whether the windows that the client offers decide whether a server's announcement is a complete reply.
    #[inline]
    pub fn needs_windows(&self) -> bool {
        let never_opens = matches!(
            self.phase,
            Phase::PickedUp
                | Phase::PickedUpFtp
                | Phase::PacketsMissed
                | Phase::ClientFirst
                | Phase::NotFtp
        );
        (self.is_ambiguous() || self.pending.has_behind_another(PendingKind::Passive))
            && !never_opens
    }

    /// Records that the announcement just read is not a complete reply of its own.
    pub fn record_partial_reply(&mut self) {
        self.ambiguities.record_partial_reply();
    }
}
