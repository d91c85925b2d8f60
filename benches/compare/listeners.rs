//! Listeners for data connections, which all sessions of a process share. A port is announced again after some hundred
//! transfers, and is not searched for each time: among the ports of closed connections that takes the kernel longer than
//! a session does.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Mutex, PoisonError},
};

use crate::dialogue::REPLY_LIMIT;

/// So many are bound.
const LISTENERS: usize = 512;

static IDLE: Mutex<VecDeque<(TcpListener, u16)>> = Mutex::new(VecDeque::new());

/// Of one transfer; goes back to the others afterwards.
pub struct PooledListener {
    listener: Option<TcpListener>,
    pub port: u16,
}

impl PooledListener {
    /// The one that was idle for longest.
    pub fn take() -> io::Result<Self> {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= LISTENERS
            && let Some((listener, port)) = idle.pop_front()
        {
            return Ok(Self { listener: Some(listener), port });
        }
        drop(idle);
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket2::SockRef::from(&listener).set_read_timeout(Some(REPLY_LIMIT))?;
        let port = listener.local_addr()?.port();
        Ok(Self { listener: Some(listener), port })
    }

    /// The next connection to it.
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
