//! Runs the engine of a player, and reports what it finds.

use std::{io::Write, time::Duration};

use ftp_alg_core::engine::{Event, EventKind, PacketOutcome};

use super::{player::Player, report::FramePosition};

/// The interval, in the capture's time, at which the engine removes expired sessions and pinholes.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

impl<W: Write> Player<W> {
    /// Passes `bytes` to the engine. Its decisions are reported for `frame`.
    pub(super) fn run_engine(&mut self, bytes: &[u8], frame: u64) -> PacketOutcome {
        let now = self.now();
        let verdict = self.gateway.packet(now, bytes);
        let position = self.position(frame);
        self.report_events(position);
        verdict
    }

    /// Records that no packet came until `time` since 1970.
    pub fn pass_time(&mut self, time: Duration) {
        if let Some((_, last)) = &mut self.time_span {
            *last = time.max(*last);
        }
        self.sweep();
    }

    /// Makes the engine remove expired sessions and pinholes.
    pub(super) fn sweep(&mut self) {
        let latest = self.latest_time();
        if latest.saturating_sub(self.last_sweep) >= SWEEP_INTERVAL {
            self.last_sweep = latest;
            let now = self.now();
            self.gateway.expire(now);
            self.report_events(self.position(self.last_frame));
        }
        self.report_transfers(false);
    }

    /// Reports what the engine found in the frame at `position`.
    pub(super) fn report_events(&mut self, position: FramePosition) {
        let now = self.now();
        let (events, omitted) = self.gateway.take_events();
        self.report.summary.omitted += omitted;
        for event in events {
            let Event { session, client, server, user, kind } = event;
            let head = Event { session, client, server, user, kind: () };
            match kind {
                EventKind::Transfer(transfer) => {
                    let ended = self.transfers.end(now, position, head.map(|()| transfer));
                    ended.into_iter().for_each(|(at, event)| self.report.add(at, event));
                }
                kind => self.report.add(position, head.map(|()| kind)),
            }
        }
    }

    /// Reports the transfers of which nothing more is to be known; at the end of the captures, all.
    pub(super) fn report_transfers(&mut self, is_end: bool) {
        for (position, event) in self.transfers.take_finished(self.now(), is_end) {
            self.report.add(position, event);
        }
    }
}
