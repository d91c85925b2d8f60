//! The HTTP endpoint: a listener, and a thread that answers its clients.
//!
//! A connection has one request, and [`EXCHANGE_LIMIT`] for it. If there are [`MAX_CONNECTIONS`], a new one ends the
//! oldest, so that clients that are slow on purpose do not keep a scrape waiting.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::oneshot,
    task::AbortHandle,
    time::{sleep, timeout},
};

use super::{
    password::Password,
    routes::{self, Site},
};
use crate::daemon::shard::lock;

/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 8192;
/// Connections at a time: a browser opens six, and some in advance; a few browsers and Prometheus.
const MAX_CONNECTIONS: usize = 32;
/// Time limit for one request and its answer.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(5);
/// The pause after accept failed, for example because there are no free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: i32 = 64;

/// A listener at `address`, which need not be an address of this machine yet: at boot, interfaces may get theirs later.
pub(in crate::daemon) fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The endpoint while it answers. Dropping it ends its thread.
pub(in crate::daemon) struct MetricsEndpoint {
    site: Arc<Site>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsEndpoint {
    /// Answers the clients of `listener`, on a thread of its own.
    pub(in crate::daemon) fn serve(listener: StdListener, site: Site) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let site = Arc::new(site);
        let accepted = {
            let _context = runtime.enter();
            accept_clients(TcpListener::from_std(listener)?, Arc::clone(&site))
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let work = move || {
            runtime.block_on(async {
                tokio::spawn(accepted);
                let _ = stopped.await;
            });
        };
        let thread = thread::Builder::new().name("metrics".into()).spawn(work)?;
        Ok(Self { site, stop: Some(stop), thread: Some(thread) })
    }

    /// From now on clients need this password.
    pub(in crate::daemon) fn set_password(&self, password: Password) {
        *lock(&self.site.password) = Some(password);
    }
}

impl Drop for MetricsEndpoint {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept_clients(listener: TcpListener, site: Arc<Site>) {
    let mut connections: VecDeque<AbortHandle> = VecDeque::with_capacity(MAX_CONNECTIONS);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!("metrics: cannot accept a client: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= MAX_CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let exchange = answer_client(stream, Arc::clone(&site));
        connections.push_back(tokio::spawn(exchange).abort_handle());
    }
}

async fn answer_client(stream: TcpStream, site: Arc<Site>) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = routes::respond(&request, &site);
        async { Ok::<_, Infallible>(response) }
    });
    let mut server = http1::Builder::new();
    server.keep_alive(false).max_buf_size(MAX_HEAD);
    let exchange = server.serve_connection(TokioIo::new(stream), service);
    match timeout(EXCHANGE_LIMIT, exchange).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("metrics: a client's request failed: {error}"),
        Err(_) => tracing::debug!("metrics: a client took longer than {EXCHANGE_LIMIT:?}"),
    }
}
