//! The thread that reports transfers, from the packets of their data connections, and writes the files of events.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
    thread::JoinHandle,
};

use super::{
    DaemonEvent, ServiceError, log_files::LogFiles, shard::lock, shared_state::SharedState,
    state_dir::LastSession, threads::start_thread,
};
use crate::kernel::data_log::DataLog;

/// The thread.
pub(super) struct ReporterThread {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl ReporterThread {
    /// Starts to report transfers, with their bytes if there is a `data_log`.
    pub(super) fn start(
        shared: Arc<SharedState>,
        mut last_session: LastSession,
        data_log: Option<DataLog>,
        files: Arc<Mutex<LogFiles>>,
        events: &Sender<DaemonEvent>,
    ) -> Result<Self, ServiceError> {
        let ends = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&ends);
        let work = move || {
            let publish = |reports| {
                shared.publish_reports(reports, &mut lock(&files));
                last_session.set(shared.events.last_session());
            };
            shared.transfers.run(data_log, &*shared, publish, &is_over);
            Ok(())
        };
        let (name, what) = ("transfers".to_owned(), "the reports of transfers".to_owned());
        Ok(Self { ends, thread: start_thread(name, what, events.clone(), work)? })
    }

    /// Ends it when all that was recorded is reported. Nothing may be recorded any more.
    pub(super) fn end(self) {
        self.ends.store(true, Ordering::Release);
        let _ = self.thread.join();
    }
}
