//! Listeners for data connections, which all sessions of a process share. A port is reused after several hundred
//! transfers. Binding a new port for each transfer would take longer than a session, because the kernel searches among
//! the ports of closed connections.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv6Addr, TcpListener, TcpStream},
    sync::{Mutex, PoisonError},
};

use crate::dialogue::REPLY_LIMIT;

/// The number of listeners.
const LISTENERS: usize = 512;

static IDLE: Mutex<VecDeque<(TcpListener, u16)>> = Mutex::new(VecDeque::new());

/// A listener for one transfer. Dropping it returns it to the pool.
pub struct PooledListener {
    listener: Option<TcpListener>,
    pub port: u16,
}

impl PooledListener {
    /// Takes the listener that was idle for the longest time.
    pub fn take() -> io::Result<Self> {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= LISTENERS
            && let Some((listener, port)) = idle.pop_front()
        {
            return Ok(Self { listener: Some(listener), port });
        }
        drop(idle);
        // Of both families.
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        socket2::SockRef::from(&listener).set_read_timeout(Some(REPLY_LIMIT))?;
        let port = listener.local_addr()?.port();
        Ok(Self { listener: Some(listener), port })
    }

    /// Accepts the next connection.
    pub fn accept(&self) -> io::Result<TcpStream> {
        let listener = self.listener.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        listener.accept().map(|(stream, _)| stream)
    }
}

impl Drop for PooledListener {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.take() {
            IDLE.lock().unwrap_or_else(PoisonError::into_inner).push_back((listener, self.port));
        }
    }
}
