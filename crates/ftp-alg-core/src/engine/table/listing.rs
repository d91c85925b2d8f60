//! Lists of open sessions and pinholes, for `ftp-alg sessions` and `ftp-alg pinholes`.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};

use crate::{
    engine::{
        PinholeEnds, Sessions, Translation, activity::PendingTransfer, pinholes::pinhole::Pinhole,
        table::entry::Entry,
    },
    ftp::AnnouncementKind,
    policy::PassivePorts,
};

/// A row of `ftp-alg sessions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Session number.
    pub id: u64,
    /// Endpoints and translation. Until the translation is looked up, the external endpoints equal the real ones.
    pub translation: Translation,
    /// Whether the translation was looked up.
    pub is_looked_up: bool,
    /// The state as one word.
    pub state: &'static str,
    /// Time of the first packet.
    pub since: Instant,
    /// Whether its sequence numbers are adjusted.
    pub adjusted: bool,
    /// The user, if a login was seen.
    pub user: Option<Arc<str>>,
    /// Whether it is on the fast path.
    pub is_on_fast_path: bool,
    /// The transfer that has no last reply yet.
    pub transfer: Option<PendingTransfer>,
    /// The pinhole of that transfer, once the server has sent a preliminary reply.
    pub data_connection: Option<(AnnouncementKind, PinholeEnds)>,
    /// Number of transfers that have ended, whatever their result.
    pub ended_transfers: u32,
    /// The passive ports that are open to its client, because it is encrypted.
    pub open_ports: Option<PassivePorts>,
}

/// What is known of one session in addition to its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionDetails {
    /// Its row.
    pub info: SessionInfo,
    /// The client's directory, if it is known.
    pub directory: Option<Box<str>>,
    /// Whether it is encrypted, if that is known.
    pub is_encrypted: Option<bool>,
    /// Delivered minus sent sequence numbers: to the server, and to the client.
    pub offsets: [i32; 2],
}

/// An open pinhole, with the fields of `ftp-alg pinholes --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinholeInfo {
    /// The number of its session.
    pub session: u64,
    /// The session's client.
    pub client: SocketAddr,
    /// The session's server.
    pub server: SocketAddr,
    /// The session's user, if a login was seen.
    pub user: Option<Arc<str>>,
    /// Its ends.
    #[serde(flatten)]
    pub ends: PinholeEnds,
    /// The kind of announcement that opened it.
    pub kind: AnnouncementKind,
    /// When it expires, at the latest. `None` on the other side of the control socket.
    #[serde(skip)]
    pub deadline: Option<Instant>,
}

impl Sessions {
    /// The open control connections.
    pub fn list(&self) -> impl Iterator<Item = SessionInfo> {
        self.open_entries().filter_map(|(index, entry)| self.info(index, entry))
    }

    /// The open control connections with a transfer that has not ended, or that may have encrypted transfers.
    pub fn list_running(&self) -> impl Iterator<Item = SessionInfo> {
        let running = self.open_entries().filter(|(index, entry)| {
            entry.head.extra().activity.has_transfer() || self.ranges.of(*index).is_some()
        });
        running.filter_map(|(index, entry)| self.info(index, entry))
    }

    /// The number of open control connections.
    pub fn count_open(&self) -> usize {
        self.open_entries().count()
    }

    /// What is known of the open control connection with the number `id`.
    pub fn details(&self, id: u64) -> Option<SessionDetails> {
        let (index, entry) = self.open_entries().find(|(_, entry)| entry.head.id == id)?;
        Some(SessionDetails {
            directory: entry.head.extra().activity.directory().map(Box::from),
            is_encrypted: entry.session.encryption(),
            offsets: entry.session.sequence_offsets(),
            info: self.info(index, entry)?,
        })
    }

    fn open_entries(&self) -> impl Iterator<Item = (u32, &Entry)> {
        self.table.slots().filter(|(_, entry)| !entry.session.is_over())
    }

    fn info(&self, index: u32, entry: &Entry) -> Option<SessionInfo> {
        let extra = entry.head.extra();
        let transfer = extra.activity.running_transfer();
        let has_started = transfer.is_some_and(|transfer| transfer.has_started);
        // As for a transfer that ends, the last announcement is that of the data connection.
        let last = || self.pinholes.last_announcement(index);
        Some(SessionInfo {
            id: entry.head.id,
            translation: entry.head.translation_or_identity(),
            is_looked_up: extra.translation.is_some(),
            state: entry.session.state(),
            since: self.epoch.instant(entry.head.first_seen)?,
            adjusted: entry.session.is_adjusted(),
            user: extra.activity.user().cloned(),
            is_on_fast_path: extra.fast_path.is_handed_over,
            transfer: transfer.cloned(),
            data_connection: has_started.then(last).flatten().map(|held| (held.kind, held.ends)),
            ended_transfers: extra.activity.ended_transfers(),
            open_ports: self.ranges.open_ports(index),
        })
    }

    /// The pinholes that are open, as far as is known. The kernel closes a consumed one by itself.
    pub fn list_pinholes(&self) -> impl Iterator<Item = PinholeInfo> {
        let open = self.pinholes.iter().filter(|(_, pinhole)| pinhole.is_open());
        open.filter_map(|(owner, pinhole)| self.pinhole_info(owner, pinhole))
    }

    /// The pinholes whose transfers have ended, and that may be open `now`. Only the kernel knows which of them are.
    pub fn list_ended_pinholes(&self, now: Instant) -> impl Iterator<Item = PinholeInfo> {
        let is_left = move |pinhole: &Pinhole| pinhole.has_ended() && pinhole.may_be_open(now);
        let ended = self.pinholes.iter().filter(move |(_, pinhole)| is_left(pinhole));
        ended.filter_map(|(owner, pinhole)| self.pinhole_info(owner, pinhole))
    }

    fn pinhole_info(&self, owner: u32, pinhole: &Pinhole) -> Option<PinholeInfo> {
        let head = &self.table.get(owner)?.head;
        Some(PinholeInfo {
            session: head.id,
            client: head.client(),
            server: head.server(),
            user: head.extra().activity.user().cloned(),
            ends: pinhole.ends,
            kind: pinhole.kind,
            deadline: Some(pinhole.deadline),
        })
    }
}
