//! Limits of stored lines and of segment lengths.

/// Limit of a line start that is held back. Announcements are far shorter: the longest `EPRT` of RFC 2428 has 63 bytes.
pub const MAX_HELD: usize = 512;

/// Limit of the stored part of an unfinished line that was forwarded. A longer line is read as truncated.
pub const MAX_LINE: usize = 1024;

/// Maximum length of a super-packet that grew by a rewrite; an IP packet holds little more.
pub const MAX_SUPER_PACKET: usize = 65_000;

/// MSS of a sender that has sent no longer segment yet: RFC 879's default for IPv4.
pub const DEFAULT_MSS: usize = 536;

/// Length of the verbs of announcements.
pub const VERB_LENGTH: usize = 4;
