//! One thread for each queue, which waits for packets and for the end.
//!
//! A worker that ends by itself, or panics, ends the daemon: half a gateway is worse than one that
//! the service manager starts again, since unadjusted connections pass without us.

use std::{
    error::Error,
    io::{self, PipeReader, PipeWriter},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
        mpsc::Sender,
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use super::{
    Event, Service, ServiceError,
    snapshot::{PinholeRow, SessionRow, Source, Status},
};
use crate::{config::Config, policy::Policy};

/// What the workers and the control socket share.
#[derive(Debug)]
pub(super) struct Shared {
    started: Instant,
    backend: &'static str,
    policy: RwLock<Arc<Policy>>,
    generation: AtomicU64,
}

impl Shared {
    /// The policy in use.
    pub(super) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes whenever the policy does: what a worker compares before each batch.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn set_policy(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// Starts a worker for each queue; when this returns they give verdicts.
pub(super) fn start(
    config: &Config,
    state_dir: &Path,
    events: &Sender<Event>,
) -> Result<Box<dyn Service>, ServiceError> {
    let shared = Arc::new(Shared {
        started: Instant::now(),
        backend: config.pinhole.backend.as_str(),
        policy: RwLock::new(Arc::new(config.policy())),
        generation: AtomicU64::new(0),
    });
    let (wake, end) = io::pipe()?;
    let mut workers = Workers { shared, end: Some(end), threads: Vec::new() };
    for number in config.queue.numbers() {
        let worker = Worker::new(number, config, state_dir, &workers.shared)?;
        workers.spawn(worker, wake.try_clone()?, events.clone())?;
    }
    Ok(Box::new(workers))
}

/// One queue and the engine behind it.
///
/// PLUG IN HERE: bind the queue, make engine and kernel in `new`; poll the queue and `wake` in
/// `run`. `Workers` (below) is the place for what all share: load the rules in [`start`] before
/// the first worker, remove them in `Workers::drop` after the last.
struct Worker {
    number: u16,
    shared: Arc<Shared>,
}

impl Worker {
    fn new(
        number: u16,
        _config: &Config,
        _state_dir: &Path,
        shared: &Arc<Shared>,
    ) -> Result<Self, ServiceError> {
        Ok(Self { number, shared: Arc::clone(shared) })
    }

    /// Works until `wake` ends: it never has a byte to read, and hangs up when the daemon stops.
    fn run(self, mut wake: PipeReader) -> Result<(), Box<dyn Error>> {
        let (ports, generation) = (&self.shared.policy().control_ports, self.shared.generation());
        tracing::debug!("queue {}: control ports {ports:?}, policy {generation}", self.number);
        io::copy(&mut wake, &mut io::sink())?;
        Ok(())
    }
}

struct Workers {
    shared: Arc<Shared>,
    /// Dropped to end all workers: each has the other end of the pipe.
    end: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    fn spawn(&mut self, worker: Worker, wake: PipeReader, events: Sender<Event>) -> io::Result<()> {
        let name = format!("queue-{}", worker.number);
        let work = move || {
            let number = worker.number;
            let why = match catch_unwind(AssertUnwindSafe(|| worker.run(wake))) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "a defect in ftp-alg; please report the lines above".to_owned(),
            };
            let _ =
                events.send(Event::Failed(format!("the worker of queue {number} ended: {why}")));
        };
        self.threads.push(thread::Builder::new().name(name).spawn(work)?);
        Ok(())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        drop(self.end.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Service for Workers {
    fn source(&self) -> Arc<dyn Source> {
        Arc::clone(&self.shared) as Arc<dyn Source>
    }

    fn reload(&self, config: &Config) {
        self.shared.set_policy(config.policy());
    }
}

impl Source for Shared {
    fn status(&self) -> Status {
        Status::new(self.backend, self.started.elapsed())
    }

    fn sessions(&self) -> Vec<SessionRow> {
        Vec::new()
    }

    fn pinholes(&self) -> Vec<PinholeRow> {
        Vec::new()
    }
}
