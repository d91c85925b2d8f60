//! The FTP control protocol (RFC 959, RFC 2428): commands, replies, announcements.
//!
//! Pure functions from one line's bytes to what it says. A line here is what lies between two line
//! feeds; this module knows nothing of packets, connections or time, and never panics: every
//! byte it is given was chosen by a stranger.

mod announcement;
mod command;
mod foreign;
mod hidden;
mod reply;
mod text;
mod zeros;

pub use announcement::{Announcement, Kind, Malformed};
pub use command::{Command, Verb};
pub use hidden::{Hidden, LineEnd, is_plain, may_end_or_skip};
pub use reply::{Reply, ReplyTracker};
pub use text::Text;
pub use zeros::Zeros;
