//! What is decided about an announcement.

use std::{borrow::Cow, net::SocketAddr};

use super::RefusalReason;
use crate::ftp::Padding;

/// A decision about an announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What is done.
    pub effect: Effect,
    /// Why, in a log line's words.
    pub reason: Cow<'static, str>,
}

/// What is done about an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Forward the line unchanged; nothing was opened for it.
    Pass,
    /// A pinhole is open; the line announces this endpoint.
    Open {
        /// The endpoint in the forwarded line.
        endpoint: SocketAddr,
        /// How the line keeps its length.
        padding: Padding,
    },
    /// The client gets an error reply with the reason. A command is replaced by a line that the server must refuse.
    Refuse(RefusalReason),
}

impl Decision {
    /// To forward the line unchanged.
    pub fn pass(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { effect: Effect::Pass, reason: reason.into() }
    }

    /// To refuse the announcement.
    pub fn refuse(why: RefusalReason, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { effect: Effect::Refuse(why), reason: reason.into() }
    }
}
