//! The first and the last packets of data connections, from both of their sources: the fast path's program reports those
//! of the connections that it admits, and the kernel copies those of others. Each source gives them in their order.

use std::{sync::Arc, time::Instant};

use ftp_alg_core::{
    engine::{DataFlags, DataPacket},
    packet::flags::{ACK, FIN, RST, SYN},
};
use ftp_alg_fastpath::layout::DataRecord;

use crate::kernel::{NetfilterError, clocks::instant_of, data_log::DataLog, offload::Offload};

/// Both sources.
pub(super) struct DataPackets {
    log: DataLog,
    /// `None` without a fast path.
    fast_path: Option<Arc<Offload>>,
}

/// Opens the group of nfnetlink_log, unless the kernel lacks that or another program reads it.
pub(super) fn open_log(group: u16) -> Option<DataLog> {
    let opened = DataLog::open(group);
    opened
        .inspect_err(|error| {
            log_event!(DATA_LOG_OFF, "{error}: transfers are reported without their bytes");
        })
        .ok()
}

impl DataPackets {
    /// What the kernel copies to `log`, and what the program reports. Without a log the program reports nothing.
    pub(super) fn new(log: Option<DataLog>, fast_path: Option<Arc<Offload>>) -> Option<Self> {
        fast_path.iter().for_each(|fast_path| fast_path.set_data_reports(log.is_some()));
        log.map(|log| Self { log, fast_path })
    }

    /// Ends the copies. What has come can still be read.
    pub(super) fn end(&mut self) -> Result<(), NetfilterError> {
        self.log.unbind()
    }

    /// Passes each packet that has come to `each`, with the time at which it passed. After an error the program reports
    /// nothing more.
    pub(super) fn read(
        &mut self,
        mut each: impl FnMut(Instant, DataPacket),
    ) -> Result<(), NetfilterError> {
        if let Some(fast_path) = &self.fast_path {
            let report = |record: DataRecord| each(instant_of(record.at_ns), packet(&record));
            fast_path.program().read_data_reports(report);
        }
        self.log.read(each).inspect_err(|_| {
            self.fast_path.iter().for_each(|fast_path| fast_path.set_data_reports(false));
        })
    }
}

/// The packet that the program has reported.
fn packet(record: &DataRecord) -> DataPacket {
    let (initiator, target) = (record.initiator().into(), record.target().into());
    let (source, destination) =
        if record.from_target == 1 { (target, initiator) } else { (initiator, target) };
    let has = |flag| record.flags & flag != 0;
    DataPacket {
        source,
        destination,
        flags: DataFlags { syn: has(SYN), ack: has(ACK), fin: has(FIN), rst: has(RST) },
        end: record.end,
        acknowledged: record.acknowledged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_either_end_is_a_packet_of_that_end() {
        let record = DataRecord {
            initiator: [10, 0, 0, 2].into(),
            initiator_port: 4000,
            target: [192, 0, 2, 9].into(),
            target_port: 50069,
            end: 7,
            acknowledged: 9,
            flags: FIN | ACK,
            ..DataRecord::default()
        };
        let ends = ["10.0.0.2:4000", "192.0.2.9:50069"].map(|end| end.parse().unwrap());
        for (from_target, [source, destination]) in [(0, ends), (1, [ends[1], ends[0]])] {
            let flags = DataFlags { ack: true, fin: true, ..DataFlags::default() };
            let expected = DataPacket { source, destination, flags, end: 7, acknowledged: 9 };
            assert_eq!(packet(&DataRecord { from_target, ..record }), expected);
        }
    }
}
