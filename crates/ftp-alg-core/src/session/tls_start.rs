//! Whether encryption begins after an accepted `AUTH`.
//!
//! Servers accept it with other codes than 234, and some accept whatever they are sent. So the bytes that follow show
//! it: no end sends such a byte at the start of an FTP line. Both ends must do so, because otherwise one of them still
//! reads text.

use serde::{Deserialize, Serialize};

use super::{Dialogue, Login};
use crate::session::{
    Side,
    ambiguities::ExtraReply,
    tls::{is_binary_start, is_record_start},
};

/// Whether encryption may begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum TlsStart {
    /// No.
    #[default]
    No,
    /// The server has accepted `AUTH`.
    Allowed,
    /// The client has begun TLS. The next bytes of the server show whether it does, too.
    ByClient,
    /// As `ByClient`, with bytes that are neither TLS nor text.
    OtherByClient,
}

/// What both ends have begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BegunEncryption {
    /// TLS records.
    Tls,
    /// Bytes that are neither TLS nor text.
    Other,
}

impl Dialogue {
    /// Whether the next bytes may be TLS.
    #[inline]
    pub fn expects_tls(&self) -> bool {
        self.tls != TlsStart::No
    }

    /// Whether the client may have begun encryption with its last line, so that its bytes are no commands.
    pub fn may_be_tls(&self) -> bool {
        matches!(self.tls, TlsStart::ByClient | TlsStart::OtherByClient)
    }

    /// Whether the reply to an `AUTH` that the client sends now is known for certain. After a login it may be a line of
    /// a file that the server shows.
    pub(super) fn matches_auth(&self) -> bool {
        self.login == Login::NotYet
            && self.pending.is_empty()
            && self.ambiguities.matches_next_reply()
    }

    /// Whether another reply may be taken for that to `AUTH`.
    pub(super) fn doubts_replies(&self) -> bool {
        self.ambiguities.extra_reply() == ExtraReply::Any
    }

    /// Reads `first`, the first byte of a line of `from`. Returns what both ends have begun, if they have: the server
    /// has accepted `AUTH`, and both have sent a byte with which no line begins. If the server may not have
    /// accepted it, its bytes do not show anything, and those of the client pass, but not unread.
    #[cold]
    pub fn begins_encryption(&mut self, from: Side, first: u8) -> Option<BegunEncryption> {
        let before = self.tls;
        self.tls = match (before, from) {
            (TlsStart::Allowed, Side::Client) if is_record_start(first) => TlsStart::ByClient,
            (TlsStart::Allowed, Side::Client) if is_binary_start(first) => TlsStart::OtherByClient,
            (TlsStart::ByClient | TlsStart::OtherByClient, Side::Client) => before,
            // More text behind its reply.
            (TlsStart::Allowed, Side::Server) => before,
            (_, Side::Server) if self.doubts_replies() => before,
            _ => TlsStart::No,
        };
        if from == Side::Client || self.doubts_replies() {
            return None;
        }
        let begun = match before {
            TlsStart::ByClient if is_record_start(first) => BegunEncryption::Tls,
            TlsStart::ByClient | TlsStart::OtherByClient if is_binary_start(first) => {
                BegunEncryption::Other
            }
            _ => return None,
        };
        self.login = Login::None;
        Some(begun)
    }
}
