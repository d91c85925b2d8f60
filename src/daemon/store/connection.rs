//! A connection to a store, a Redis or Valkey: commands, each with a deadline.

use std::{
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use redis::{Cmd, FromRedisValue, Parser, Value};
use socket2::{SockAddr, SockRef, Socket, Type};

use super::super::deadline_stream::DeadlineStream;

/// The longest reply in bytes. A longer one would take too much memory: a value takes twenty times as much as its bytes, if
/// it has few.
const MAX_REPLY: u64 = 8 << 20;

/// A connection to a store. After an error it must not be used any more, because its replies may be out of step.
pub(in crate::daemon) struct StoreConnection {
    socket: Socket,
    parser: Parser,
}

impl StoreConnection {
    /// Connects to the store of this machine.
    pub(in crate::daemon) fn open_own(path: &Path, limit: Duration) -> io::Result<Self> {
        Self::open(&SockAddr::unix(path)?, limit)
    }

    /// Connects to the store of the other gateway.
    pub(in crate::daemon) fn open_peer(address: SocketAddr, limit: Duration) -> io::Result<Self> {
        Self::open(&address.into(), limit)
    }

    fn open(address: &SockAddr, limit: Duration) -> io::Result<Self> {
        let socket = Socket::new(address.domain(), Type::STREAM, None)?;
        if address.is_unix() {
            // It waits, for the write timeout, while the listener's backlog is full.
            socket.set_write_timeout(Some(limit))?;
            socket.connect(address)?;
        } else {
            socket.connect_timeout(address, limit)?;
        }
        Ok(Self { socket, parser: Parser::new() })
    }

    /// Sends a command, and returns the reply.
    pub(in crate::daemon) fn query<T: FromRedisValue>(
        &mut self,
        command: &Cmd,
        deadline: Instant,
    ) -> io::Result<T> {
        let mut stream = DeadlineStream { socket: SockRef::from(&self.socket), deadline };
        stream.write_all(&command.get_packed_command())?;
        let reply = self.parser.parse_value(stream.take(MAX_REPLY)).map_err(io::Error::other)?;
        let reply = reply.extract_error().map_err(io::Error::other)?;
        T::from_redis_value(reply).map_err(io::Error::other)
    }

    /// As [`query`](Self::query), if the reply says only that it is done.
    pub(in crate::daemon) fn run(&mut self, command: &Cmd, deadline: Instant) -> io::Result<()> {
        self.query::<Value>(command, deadline).map(drop)
    }

    /// The socket, for one that reads replies of its own.
    pub(in crate::daemon) fn into_socket(self) -> Socket {
        self.socket
    }
}
