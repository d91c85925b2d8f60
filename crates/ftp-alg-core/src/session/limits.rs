//! How much of a line is kept, and how long segments are.

/// The longest line start that is held back. Announcements are far shorter: RFC 2428's longest is
/// an `EPRT` of 63 bytes.
pub const MAX_HELD: usize = 512;

/// How much of an unfinished line that passes is kept for reading; more of it is read as cut.
pub const MAX_LINE: usize = 1024;

/// A joined segment may grow to this length; an IP packet holds little more.
pub const MAX_JOINED: usize = 65_000;

/// A delivered segment may always be this long (RFC 879's default for IPv4), and as long as the
/// longest that its sender sent.
pub const SAFE_SEGMENT: usize = 536;

/// How long the verbs of announcements are.
pub const VERB: usize = 4;
