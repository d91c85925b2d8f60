//! The writer of a shard's records to the own machine's store.
//!
//! Invariants:
//! - No packet waits longer than [`WRITE_LIMIT`], and [`SLICE_LIMIT`] for what another one does. Behind a reply that is
//!   late no batch waits until the store has caught up.
//! - Nothing is queued in our memory. What cannot be sent is written once more by the thread that looks at the stores:
//!   all records of the shard.
//! - The replies of a connection are in step with its commands. A connection with any other reply is dropped.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{Batch, EncodedRecord, Engine};
use redis::cmd;
use rustix::event::{PollFd, PollFlags, poll};
use socket2::Socket;

use super::super::records::{Need, Records, framed};
use super::{StoreLink, keys};
use crate::config::Confirm;

/// How long the packets of a batch wait for the other gateway's store, at most.
const WRITE_LIMIT: Duration = Duration::from_millis(20);
/// How long the store waits for its replica, in milliseconds.
const REPLICA_LIMIT: u32 = 10;
/// How long other commands may take, for instance one slice of a shard's records, during which packets of the shard wait.
/// A packet may wait for these of another shard, too, whose session its shard adopts.
const SLICE_LIMIT: Duration = Duration::from_millis(5);
/// How long a shard waits for its last replies when the other gateway continues.
const LAST_LIMIT: Duration = Duration::from_millis(200);
/// How many table slots are in a slice.
const SLICE: u32 = 64;
/// The longest reply to a command that writes.
const MAX_LINE: usize = 512;

/// The writer of one shard.
pub(in crate::daemon) struct StoreWriter {
    link: Arc<StoreLink>,
    /// The number of the shard.
    shard: usize,
    confirm: Confirm,
    stream: Option<WriteStream>,
    /// The key of the shard's records; `None` while this gateway is not active.
    key: Option<String>,
    /// The next slot of the table whose record is to be sent, while not all are.
    next_slot: Option<u32>,
    /// Sessions that the workers have adopted. Their records are removed later: the worker's own records may come after
    /// what this connection sends.
    gone: Vec<u64>,
    buffer: Vec<u8>,
}

impl StoreWriter {
    pub(in crate::daemon) fn new(link: Arc<StoreLink>, shard: usize, confirm: Confirm) -> Self {
        let (gone, buffer) = (Vec::new(), Vec::new());
        Self { link, shard, confirm, stream: None, key: None, next_slot: None, gone, buffer }
    }

    /// Writes from now on to the keys of `epoch`, beginning with all records, when the link has connected it.
    pub(in crate::daemon) fn begin(&mut self, epoch: u64) {
        self.end();
        self.key = Some(keys::sessions(epoch, self.shard));
    }

    /// Writes nothing any more, behind the replies to what was written.
    pub(in crate::daemon) fn end(&mut self) {
        if let Some(stream) = &mut self.stream {
            // The connection ends in any case.
            let _ = stream.await_replies(Instant::now() + LAST_LIMIT);
        }
        (self.key, self.stream) = (None, None);
        self.gone.clear();
    }

    /// Whether it needs a connection.
    pub(in crate::daemon) fn lacks_connection(&self) -> bool {
        self.key.is_some() && self.stream.is_none()
    }

    /// Whether the store lacks records.
    pub(in crate::daemon) fn is_behind(&self) -> bool {
        self.lacks_connection() || self.next_slot.is_some()
    }

    /// Uses a connection, on which all records are written once more.
    pub(in crate::daemon) fn connect(&mut self, socket: Socket) -> io::Result<()> {
        let Some(key) = &self.key else { return Ok(()) };
        let mut stream = WriteStream::new(socket)?;
        let removal = cmd("DEL").arg(key).get_packed_command();
        stream.send(&removal, 1, Instant::now() + SLICE_LIMIT)?;
        (self.stream, self.next_slot) = (Some(stream), Some(0));
        self.gone.clear();
        Ok(())
    }

    /// Sends the next records, if the store has taken those before. Returns whether it has not taken all yet.
    pub(in crate::daemon) fn send_slice(&mut self, engine: &mut Engine) -> io::Result<bool> {
        let (Some(stream), Some(key), Some(first)) = (&mut self.stream, &self.key, self.next_slot)
        else {
            return Ok(false);
        };
        stream.read_replies()?;
        if stream.pending > 0 {
            return Ok(true);
        }
        if first >= engine.sessions.slot_count() {
            self.next_slot = None;
            return Ok(false);
        }
        let mut command = cmd("HSET");
        command.arg(key);
        let mut count = 0;
        let mut add = |record: EncodedRecord<'_>| {
            command.arg(record.session).arg(framed(record.portable));
            count += 1;
        };
        let encoded =
            engine.sessions.write_records_in(first..first.saturating_add(SLICE), &mut add);
        encoded.map_err(io::Error::other)?;
        if count > 0 {
            let packed = command.get_packed_command();
            stream.send(&packed, 1, Instant::now() + SLICE_LIMIT)?;
        }
        self.next_slot = Some(first.saturating_add(SLICE));
        Ok(true)
    }

    /// The first slot of the table whose record is not sent yet, while not all are.
    pub(in crate::daemon) fn unsent_from(&self) -> Option<u32> {
        self.next_slot
    }

    /// Drops the connection. The link connects it again with its next look.
    pub(in crate::daemon) fn disconnect(&mut self) {
        self.stream = None;
    }

    /// Drops the connection. The link connects it again at once.
    fn give_up(&mut self) {
        self.disconnect();
        self.link.wake();
    }

    /// Whether the packets of this batch wait for the other gateway's store.
    fn waits(&self, batch: &Batch, need: Need) -> bool {
        need == Need::Confirmed
            && match self.confirm {
                Confirm::All => true,
                Confirm::Announcements => batch.shows_decision(),
                Confirm::None => false,
            }
            && self.next_slot.is_none()
            && self.link.has_replica.load(Ordering::Relaxed)
    }

    /// Appends the commands of a batch to the buffer. Returns their number.
    fn encode(&mut self, batch: &Batch) -> usize {
        self.buffer.clear();
        let Some(key) = &self.key else { return 0 };
        let (mut set, mut removal) = (cmd("HSET"), cmd("HDEL"));
        let (mut has_set, mut has_removal) = (false, false);
        set.arg(key);
        removal.arg(key);
        for record in batch.records() {
            if !record.portable.is_empty() {
                set.arg(record.session).arg(framed(record.portable));
                has_set = true;
            } else if self.shard == 0 {
                self.gone.push(record.session);
            } else {
                removal.arg(record.session);
                has_removal = true;
            }
        }
        // As in a journal, so that no two sessions are on the same endpoints.
        if has_removal {
            removal.write_packed_command(&mut self.buffer);
        }
        if has_set {
            set.write_packed_command(&mut self.buffer);
        }
        usize::from(has_removal) + usize::from(has_set)
    }

    fn try_write(&mut self, batch: &Batch, need: Need) -> io::Result<()> {
        let mut commands = self.encode(batch);
        let waits = self.waits(batch, need);
        let Some(stream) = self.stream.as_mut().filter(|_| commands > 0) else { return Ok(()) };
        stream.read_replies()?;
        let waits = waits && !stream.is_late;
        let deadline = Instant::now() + if waits { WRITE_LIMIT } else { SLICE_LIMIT };
        if waits {
            cmd("WAIT").arg(1).arg(REPLICA_LIMIT).write_packed_command(&mut self.buffer);
            commands += 1;
        }
        let until = if stream.is_late { Instant::now() } else { deadline };
        stream.send(&self.buffer, commands, until)?;
        if !waits {
            return Ok(());
        }
        let is_confirmed = stream.await_replies(deadline)? && stream.last_number > 0;
        self.link.note_wait(is_confirmed);
        Ok(())
    }
}

impl Records for StoreWriter {
    fn write(&mut self, batch: &Batch, need: Need) -> Result<(), String> {
        self.try_write(batch, need).map_err(|error| {
            self.give_up();
            format!(
                "cannot write to the store of this machine: {error}; until this works, the other gateway cannot continue \
                 sessions; ftp-alg tries again at once"
            )
        })
    }

    fn maintain(&mut self, _: &mut Engine) -> Result<(), String> {
        // A store that was started again has no records. Without packets nobody else finds out.
        if self.stream.as_mut().is_some_and(|stream| stream.read_replies().is_err()) {
            self.give_up();
        }
        let (Some(key), false) = (&self.key, self.gone.is_empty()) else { return Ok(()) };
        let removal = cmd("HDEL").arg(key).arg(std::mem::take(&mut self.gone)).get_packed_command();
        if let Some(stream) = &mut self.stream
            && stream.send(&removal, 1, Instant::now() + SLICE_LIMIT).is_err()
        {
            self.give_up();
        }
        Ok(())
    }
}

/// A connection whose replies are counted.
struct WriteStream {
    socket: Socket,
    /// The number of commands without a reply.
    pending: usize,
    /// Whether a batch has waited in vain. Until all commands are answered, no batch waits.
    is_late: bool,
    /// The number in the last reply.
    last_number: i64,
    /// The beginning of the next reply.
    partial: Vec<u8>,
}

impl WriteStream {
    fn new(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let partial = Vec::new();
        Ok(Self { socket, pending: 0, is_late: false, last_number: 0, partial })
    }

    /// Sends `commands` commands.
    fn send(&mut self, mut bytes: &[u8], commands: usize, deadline: Instant) -> io::Result<()> {
        self.pending += commands;
        while !bytes.is_empty() {
            match self.socket.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !self.wait_for(PollFlags::OUT, deadline)? {
                        return Err(io::Error::new(ErrorKind::TimedOut, "it is too slow"));
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until all commands are answered. Returns whether they are.
    fn await_replies(&mut self, deadline: Instant) -> io::Result<bool> {
        loop {
            self.read_replies()?;
            if self.pending == 0 {
                return Ok(true);
            }
            if !self.wait_for(PollFlags::IN, deadline)? {
                self.is_late = true;
                return Ok(false);
            }
        }
    }

    /// Waits for an event of the socket. Returns whether it came before the deadline.
    fn wait_for(&self, event: PollFlags, deadline: Instant) -> io::Result<bool> {
        let remaining = deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return Ok(false);
        }
        let timeout = remaining.try_into().map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.socket, event)], Some(&timeout)) {
            Ok(count) => Ok(count > 0),
            Err(rustix::io::Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the replies that have come, and fails if one has come that no command asked for. Each is one line, because no
    /// command asks for anything else.
    fn read_replies(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    self.take_replies(&bytes[..length])?;
                    if length < bytes.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.is_late &= self.pending > 0;
        Ok(())
    }

    fn take_replies(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(part);
            if self.partial.len() > MAX_LINE {
                return Err(not_a_reply(&self.partial));
            }
            if part.ends_with(b"\n") {
                self.take_reply()?;
                self.partial.clear();
            }
        }
        Ok(())
    }

    fn take_reply(&mut self) -> io::Result<()> {
        let line = self.partial.trim_ascii_end();
        let number = std::str::from_utf8(line.strip_prefix(b":").unwrap_or_default());
        self.last_number = number.ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        self.pending = match (line.first(), self.pending) {
            (Some(b':' | b'+'), 1..) => self.pending - 1,
            _ => return Err(not_a_reply(line)),
        };
        Ok(())
    }
}

/// What the store sent in place of a reply: an error of its own, or garbage.
fn not_a_reply(line: &[u8]) -> io::Error {
    let shown = line[..line.len().min(80)].escape_ascii();
    io::Error::new(ErrorKind::InvalidData, format!("it answers {shown}"))
}
