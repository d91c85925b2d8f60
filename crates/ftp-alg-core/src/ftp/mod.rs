//! The FTP control protocol (RFC 959, RFC 2428): commands, replies, announcements.
//!
//! Pure functions from the bytes of one line to its meaning. A line is the text between two line feeds. This module
//! knows nothing of packets, connections or time. It never panics, because an attacker may have chosen every byte.

mod ambiguity;
mod announcement;
mod command;
mod names;
mod reply;
mod text;

pub use ambiguity::{
    LineEnd, VerbScanner, VerbSearch, begins_subnegotiation, line_end, may_end_or_skip,
    reply_line_end, without_nuls,
};
pub use announcement::{Announcement, AnnouncementKind, MalformedAnnouncement, Padding};
pub use command::{Command, Verb};
pub use names::{NameInText, escape_name, resolve_path};
pub use reply::{Reply, ReplyTracker};
pub use text::{Text, has_control_bytes};
