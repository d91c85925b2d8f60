//! What the client of a connection does, for reports only: its user, its directory, its pending transfers.

use std::{fmt, mem::take, path::Path, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize, Serializer};

use crate::{
    engine::{Transfer, TransferEnd, TransferResult, pinholes::pinhole::Pinhole},
    ftp::{NameInText, resolve_path},
    session::TransferVerb,
};

/// Time after which a transfer that waits for its data connection is examined. The SYN was sent four times by then: Linux
/// retransmits it after 1, 3 and 7 seconds (RFC 6298).
pub const EXAMINED_AFTER: Duration = Duration::from_secs(10);
/// Limit of pending transfers of a connection whose paths are stored. Clients request one after the other.
const MAX_NAMED: usize = 4;
/// Limit of pending transfers of a connection. Further ones are counted.
pub(super) const MAX_PENDING: usize = 64;
/// Why nobody knows which file a reply is about.
const TOO_MANY_PENDING: &str = "more commands were pending than are stored";
const REPLY_TOO_MANY: &str = "there may have been a reply too many in this session";
/// Why nobody knows how a transfer ended.
const OTHER_REPLY: &str = "the reply to it may be that to another line";
/// Limit of a directory in bytes.
const MAX_DIRECTORY: usize = 1024;

/// What the client of a connection does.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ClientActivity {
    user: Option<Arc<str>>,
    /// The user whose login is pending, or was refused; empty if it is not certain which user a reply is about.
    named_user: Option<Box<str>>,
    /// The directory, if it is known.
    directory: Option<Box<str>>,
    /// What the client wants to change to, if the server has not answered.
    wanted_directory: Option<Box<str>>,
    transfers: Vec<PendingTransfer>,
    /// Number of pending transfers behind the stored ones.
    uncounted: u32,
    /// Whether there may have been a reply too many since the login, so that nobody knows which command a reply is about.
    is_doubtful: bool,
    /// Number of transfers that were reported.
    reported_transfers: u32,
    /// Whether the start of the session was reported, and its end was not.
    is_reported: bool,
}

/// A transfer without a last reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingTransfer {
    /// The command.
    pub verb: TransferVerb,
    /// The file or directory: absolute if the client's directory is known.
    pub path: Box<str>,
    /// When it was requested, since the connection's first packet.
    pub requested: Duration,
    /// Whether the server sent a preliminary reply.
    pub has_started: bool,
    /// Whether its path is known.
    is_named: bool,
    /// Whether another one was pending when it was requested.
    is_pipelined: bool,
    /// Whether its replies may be those of another one.
    is_doubtful: bool,
    /// Whether its last reply may be that to another line.
    #[serde(skip)]
    lacks_end: bool,
    /// Whether it was examined because it was pending for a while.
    is_examined: bool,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionEnd {
    /// Both ends have closed the control connection.
    Closed,
    /// One of the ends, or the gateway, has reset it.
    Reset,
    /// It had no packet until its timeout.
    Expired,
    /// Another connection uses its endpoints.
    Replaced,
    /// The gateway does not follow it any more.
    Forgotten,
}

impl SessionEnd {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Expired => "expired",
            Self::Replaced => "replaced",
            Self::Forgotten => "forgotten",
        }
    }

    /// How the session's transfers end with it.
    pub fn of_transfers(self) -> TransferEnd {
        match self {
            Self::Closed => TransferEnd::SessionEnded,
            Self::Reset => TransferEnd::SessionReset,
            Self::Expired | Self::Replaced | Self::Forgotten => TransferEnd::Unseen,
        }
    }
}

/// A session that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndedSession {
    /// How it ended.
    pub end: SessionEnd,
    /// Number of its transfers, whatever their result.
    pub transfers: u32,
    /// The bytes of its transfers, if they are known of each. The engine does not know them.
    pub bytes: Option<u64>,
    /// From its first packet to its last one.
    #[serde(rename = "seconds", serialize_with = "in_seconds")]
    pub duration: Duration,
}

/// To a microsecond.
pub(super) fn in_seconds<S: Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((duration.as_secs_f64() * 1e6).round() / 1e6)
}

impl ClientActivity {
    /// The activity of a client about which nothing is known.
    pub const NOTHING: Self = Self {
        user: None,
        named_user: None,
        directory: None,
        wanted_directory: None,
        transfers: Vec::new(),
        uncounted: 0,
        is_doubtful: false,
        reported_transfers: 0,
        is_reported: false,
    };

    /// The user, if a login was seen.
    pub fn user(&self) -> Option<&Arc<str>> {
        self.user.as_ref()
    }

    /// The directory, if it is known.
    pub fn directory(&self) -> Option<&str> {
        self.directory.as_deref().filter(|_| self.wanted_directory.is_none())
    }

    /// The oldest transfer that has not ended.
    pub fn running_transfer(&self) -> Option<&PendingTransfer> {
        self.transfers.first()
    }

    /// Number of transfers that have ended.
    pub fn ended_transfers(&self) -> u32 {
        self.reported_transfers
    }

    /// Notes `USER`. If it `is_pipelined`, nobody knows which user the next reply to a login is about.
    pub fn note_user(&mut self, name: Box<str>, is_pipelined: bool) {
        self.named_user = Some(if is_pipelined { "".into() } else { name });
    }

    /// Takes the user whose login was refused. A later 230 is that of an earlier login: vsftpd says `Already logged in`.
    pub fn take_refused_user(&mut self) -> Option<Arc<str>> {
        self.named_user.take().filter(|name| !name.is_empty()).map(Arc::from)
    }

    /// Notes that the start of the session is reported. Returns whether that is the first report.
    pub fn begin_session(&mut self) -> bool {
        !std::mem::replace(&mut self.is_reported, true)
    }

    /// What is to be reported of the session's end, once, if its start was reported.
    pub fn end_session(&mut self, end: SessionEnd, duration: Duration) -> Option<EndedSession> {
        self.forget_uncounted();
        let transfers = self.reported_transfers;
        let ended = EndedSession { end, transfers, bytes: None, duration };
        take(&mut self.is_reported).then_some(ended)
    }

    /// Notes that the server has accepted the login; of whom is not known if its replies `may_lag`.
    pub fn note_login(&mut self, may_lag: bool) {
        if may_lag {
            self.named_user = Some("".into());
        }
        if let Some(named) = self.named_user.take() {
            let named = Some(named).filter(|name| !name.is_empty());
            (self.user, self.directory) = (named.map(Arc::from), None);
            self.is_doubtful = false;
        }
    }

    /// Notes that the client wants to change to a directory. If it wants to before it has the answer to an earlier
    /// change, its directory becomes unknown: nothing says which change an answer belongs to.
    pub fn note_wanted_directory(&mut self, wanted: Box<str>) {
        if self.wanted_directory.replace(wanted).is_some() {
            (self.directory, self.wanted_directory) = (None, Some("".into()));
        }
    }

    /// Notes the answer to `CWD`, `CDUP` or `PWD`: whether it is a success, and the directory that it names.
    pub fn note_directory(&mut self, is_success: bool, named: Option<Box<str>>) {
        let wanted = self.wanted_directory.take();
        if !is_success {
            return;
        }
        let directory = named.or_else(|| self.resolve(&wanted?));
        self.directory = directory
            .filter(|directory| directory.starts_with('/') && directory.len() <= MAX_DIRECTORY);
    }

    /// Notes that nobody knows which directory an answer is about.
    pub fn forget_directory(&mut self) {
        (self.directory, self.wanted_directory) = (None, None);
    }

    /// Notes that the client renames this, which may be its directory, or one above it.
    pub fn note_renamed(&mut self, from: &str) {
        let is_above = |from: Box<str>| {
            let [from, own] = [Some(&from), self.directory.as_ref()]
                .map(|path| path.map(|path| path.to_ascii_lowercase()).unwrap_or_default());
            Path::new(&own).starts_with(from)
        };
        if self.resolve(from).is_none_or(is_above) {
            self.forget_directory();
        }
    }

    /// The number of transfers whose ends were not seen, if `pending` transfers have no last reply, and one of these is
    /// not recorded yet.
    pub fn unseen_ends(&self, pending: usize) -> usize {
        let known = self.transfers.len() + self.uncounted as usize;
        (known + 1).saturating_sub(pending.max(1)).min(known)
    }

    /// Notes a transfer that the client requested at the time `requested` since the connection's first packet.
    pub fn note_transfer(&mut self, verb: TransferVerb, path: Box<str>, requested: Duration) {
        if self.wanted_directory.take().is_some() {
            self.directory = None; // its answer was not seen
        }
        if self.uncounted > 0 || self.transfers.len() >= MAX_PENDING {
            self.uncounted = self.uncounted.saturating_add(1);
            return;
        }
        let is_named =
            self.transfers.len() < MAX_NAMED && self.transfers.iter().all(|one| one.is_named);
        let path = match is_named {
            true => self.resolve(&path).unwrap_or(path),
            false => Box::default(),
        };
        let is_pipelined = !self.transfers.is_empty();
        let pending = PendingTransfer::new(verb, path, requested);
        self.transfers.push(PendingTransfer { is_named, is_pipelined, ..pending });
    }

    /// Notes that the oldest transfer has started, or another one if the server's replies `may_lag`. The file of a `STOU` is
    /// the one that the server has `named`.
    pub fn note_start(&mut self, named: Option<Box<str>>, may_lag: bool) {
        let path = named.map(|named| self.resolve(&named).unwrap_or(named));
        let has_others = self.transfers.len() > 1;
        if let Some(oldest) = self.transfers.first_mut() {
            // A server that begins a transfer before the end of another sends one end for both.
            self.is_doubtful |= oldest.has_started && has_others;
            oldest.is_doubtful |= may_lag;
            oldest.has_started = true;
            if let (TransferVerb::Stou, Some(path)) = (oldest.verb, path) {
                oldest.path = path;
            }
        }
    }

    /// Notes the last reply to the oldest transfer, which may be that to another line, depending on whether it has started.
    pub fn note_last_reply(&mut self, may_answer_another: impl Fn(bool) -> bool) {
        if let Some(oldest) = self.transfers.first_mut() {
            oldest.lacks_end = may_answer_another(oldest.has_started);
        }
    }

    /// Takes the oldest transfer, which ends at the time `now` since the connection's first packet.
    pub fn take_transfer(
        &mut self,
        now: Duration,
        end: TransferEnd,
        announcement: Option<&Pinhole>,
    ) -> Option<Transfer> {
        if self.transfers.is_empty() {
            if self.uncounted > 0 {
                self.uncounted -= 1;
                self.reported_transfers = self.reported_transfers.saturating_add(1);
            }
            return None;
        }
        let mut pending = self.transfers.remove(0);
        let end = if pending.lacks_end { TransferEnd::Unseen } else { end };
        // The reply may be a second one to the command before.
        self.is_doubtful |= pending.is_pipelined && !pending.has_started && end.is_success();
        pending.is_doubtful |= self.is_doubtful;
        // The reply may have been that to the next transfer.
        self.is_doubtful |= pending.lacks_end && pending.has_started && !self.transfers.is_empty();
        if self.transfers.is_empty() {
            take(&mut self.transfers);
        }
        self.reported_transfers = self.reported_transfers.saturating_add(1);
        let is_followed = !self.transfers.is_empty();
        Some(Transfer { is_followed, ..pending.into_transfer(now, end, announcement) })
    }

    /// The oldest transfer as it is at the time `now` since the connection's first packet, once, if it has been pending
    /// for a while. A transfer that has waited behind the oldest is not reported later.
    pub fn examine_transfers(
        &mut self,
        now: Duration,
        announcement: Option<&Pinhole>,
    ) -> Option<Transfer> {
        let was_examined = self.transfers.first()?.is_examined;
        for pending in &mut self.transfers {
            pending.is_examined |= now.saturating_sub(pending.requested) >= EXAMINED_AFTER;
        }
        let oldest = self.transfers.first().filter(|one| one.is_examined && !was_examined)?.clone();
        Some(oldest.into_transfer(now, TransferEnd::Pending, announcement))
    }

    /// Skips the examination of the pending transfers: what was seen of their data connections is not known any more.
    pub fn skip_examinations(&mut self) {
        self.transfers.iter_mut().for_each(|pending| pending.is_examined = true);
    }

    /// When a transfer is to be examined, since the connection's first packet.
    pub fn next_examination(&self) -> Option<Duration> {
        let pending = self.transfers.iter().find(|pending| !pending.is_examined)?;
        Some(pending.requested.saturating_add(EXAMINED_AFTER))
    }

    /// Notes that the ends of further pending transfers will not be seen.
    pub fn forget_uncounted(&mut self) {
        let uncounted = take(&mut self.uncounted);
        self.reported_transfers = self.reported_transfers.saturating_add(uncounted);
    }

    /// Whether a transfer has no last reply.
    pub fn has_transfer(&self) -> bool {
        !self.transfers.is_empty()
    }

    /// Whether anything is known.
    pub fn is_known(&self) -> bool {
        self.is_reported || self.reported_transfers > 0 || self.heap_size() > 0
    }

    /// Heap memory in bytes.
    pub fn heap_size(&self) -> usize {
        let user = self.user.as_ref().map_or(0, |user| user.len());
        let names = [&self.named_user, &self.directory, &self.wanted_directory];
        let names: usize = user + names.into_iter().flatten().map(|name| name.len()).sum::<usize>();
        let paths: usize = self.transfers.iter().map(|pending| pending.path.len()).sum();
        names + paths + self.transfers.capacity() * size_of::<PendingTransfer>()
    }

    /// The absolute form of `path`, if it is known. Many servers take `~` for a home directory.
    fn resolve(&self, path: &str) -> Option<Box<str>> {
        // Behind a symbolic link, `..` leads elsewhere than the path says.
        if path.starts_with('~') || path.split('/').any(|part| part == "..") {
            return None;
        }
        let is_absolute = path.starts_with('/');
        let base = if is_absolute { "/" } else { self.directory.as_deref()? };
        Some(resolve_path(base, path))
    }
}

impl PendingTransfer {
    /// One that the server has not answered.
    pub fn new(verb: TransferVerb, path: Box<str>, requested: Duration) -> Self {
        Self {
            verb,
            path,
            requested,
            has_started: false,
            is_named: true,
            is_pipelined: false,
            is_doubtful: false,
            lacks_end: false,
            is_examined: false,
        }
    }

    fn into_transfer(
        self,
        now: Duration,
        end: TransferEnd,
        announcement: Option<&Pinhole>,
    ) -> Transfer {
        let Self { verb, path, requested, has_started, is_named, is_doubtful, lacks_end, .. } =
            self;
        let duration = now.saturating_sub(requested);
        let unnamed = match (is_named, is_doubtful) {
            (false, _) => Some(TOO_MANY_PENDING),
            (_, true) => Some(REPLY_TOO_MANY),
            _ => None,
        };
        let path = unnamed.is_none().then_some(path);
        let uncertain = unnamed.or(lacks_end.then_some(OTHER_REPLY));
        let result = match end {
            TransferEnd::Pending => TransferResult::Waiting,
            _ => TransferResult::Unseen,
        };
        let announced = announcement.and_then(|pinhole| pinhole.opened);
        let ends = announcement.map(|pinhole| (pinhole.kind, pinhole.ends));
        let new = Transfer::new(verb, ends);
        Transfer { path, announced, duration, has_started, end, result, uncertain, ..new }
    }
}

impl EndedSession {
    /// Writes the text of the event of a session of `user`.
    pub fn write(&self, f: &mut fmt::Formatter<'_>, user: Option<&str>) -> fmt::Result {
        let Self { end, transfers, bytes, duration } = self;
        write!(f, "session ended after {:.1} s: {}", duration.as_secs_f64(), end.name())?;
        if let Some(user) = user {
            write!(f, ", user {}", NameInText::User(user))?;
        }
        match transfers {
            1 => f.write_str(", 1 transfer")?,
            count => write!(f, ", {count} transfers")?,
        }
        bytes.map_or(Ok(()), |bytes| write!(f, ", {bytes} B"))
    }
}
