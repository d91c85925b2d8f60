//! The thread that reports transfers, from the packets of their data connections and from what an earlier daemon has left
//! of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
    thread::JoinHandle,
};

use ftp_alg_core::engine::TransferTracker;

use super::{
    DaemonEvent, ServiceError, data_packets::DataPackets, shared_state::SharedState,
    state_dir::StateDir, threads::start_thread, transfers::TransferFile,
};
use crate::kernel::clocks::monotonic_zero;

/// The thread.
pub(super) struct TransfersThread {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl TransfersThread {
    /// Starts to report transfers, with their bytes if there are `data_packets`.
    pub(super) fn start(
        shared: Arc<SharedState>,
        state: StateDir,
        data_packets: Option<DataPackets>,
        mut file: Option<TransferFile>,
        events: &Sender<DaemonEvent>,
    ) -> Result<Self, ServiceError> {
        let ends = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&ends);
        let work = move || {
            let mut tracker = TransferTracker::default();
            tracker.restore_connections(monotonic_zero(), &state.take_data_connections());
            let publish = |reports| shared.publish_reports(reports, file.as_mut());
            let tracker = shared.transfers.run(tracker, data_packets, &*shared, publish, &is_over);
            shared.report(state.save_data_connections(&tracker.open_connections(monotonic_zero())));
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
