//! What a dialogue makes of the server's lines before and during the login.

use super::{Dialogue, Login, PendingKind, Phase, ReplyEffect};
use crate::ftp::{Reply, ReplyTracker, Text};

/// How the first lines of other protocols' servers begin: SSH, VNC, POP3, IMAP, rsync, and those of HTTP's form.
const OTHER_PROTOCOLS: [&[u8]; 10] = [
    b"SSH-",
    b"RFB ",
    b"+",
    b"-ERR",
    b"* OK",
    b"* PREAUTH",
    b"* BYE",
    b"@RSYNCD",
    b"HTTP",
    b"RTSP",
];

/// Whether a server may write `text` before its greeting: a warning of its loader, or a banner. It is printable, and not
/// the first line of another protocol.
fn may_precede_greeting(text: &[u8]) -> bool {
    let first = text.split(|byte| *byte == b' ').next().unwrap_or_default();
    let is_versioned = first.contains(&b'/') && first.last().is_some_and(u8::is_ascii_digit);
    text.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'))
        && !is_versioned
        && !text.first().is_some_and(u8::is_ascii_digit)
        && !OTHER_PROTOCOLS.iter().any(|start| text.starts_with(start))
}

impl Dialogue {
    /// Reads a line of the greeting, which ends with `reply`.
    pub(super) fn read_greeting_line(
        &mut self,
        text: &Text<'_>,
        reply: Option<Reply>,
    ) -> ReplyEffect {
        match reply {
            Some(reply) if reply.is_preliminary() => ReplyEffect::Nothing, // 120: ready in a while
            Some(_) if self.phase == Phase::NotGreeted => {
                self.phase = Phase::Greeted;
                ReplyEffect::Nothing
            }
            Some(Reply { code: 220 }) => {
                let is_feat = self.phase == Phase::FeatFirst;
                self.phase = if is_feat { Phase::Verified } else { Phase::NotFtp };
                ReplyEffect::Nothing
            }
            Some(_) => ReplyEffect::NotFtp,
            None if self.phase == Phase::NotGreeted && self.open_reply_code() == Some(220) => {
                // Some clients do not wait for the last line.
                self.phase = Phase::Greeted;
                self.push_pending(PendingKind::Greeting);
                ReplyEffect::Nothing
            }
            // First or middle line of a multi-line greeting.
            None if self.replies != ReplyTracker::default() => ReplyEffect::Nothing,
            None if self.phase == Phase::NotGreeted && may_precede_greeting(text.bytes()) => {
                ReplyEffect::Nothing
            }
            None => ReplyEffect::NotFtp,
        }
    }

    /// Whether `text` is a reply of one line to the first login, and no other command is pending.
    pub(super) fn is_reply_to_login(&self, text: &Text<'_>) -> bool {
        let is_of_one_line =
            matches!(text.bytes(), [b'2' | b'3', _, _, rest @ ..] if rest.first() != Some(&b'-'));
        is_of_one_line
            && self.login == Login::None
            && self.replies == ReplyTracker::default()
            && self.has_pending_commands()
            && self.pending.are_all_of(&[PendingKind::User, PendingKind::Login])
    }
}
