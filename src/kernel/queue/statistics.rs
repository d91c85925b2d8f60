//! Statistics of all queues in `/proc`: their readers, and dropped packets.

/// Most programs use their process id as netlink port.
pub(super) fn reader_name(port: u32) -> String {
    std::fs::read_to_string(format!("/proc/{port}/comm")).map_or_else(
        |_| format!("netlink port {port}"),
        |name| format!("{}, pid {port}", name.trim_end()),
    )
}

/// The queues among these that have a reader, and the reader.
pub(in super::super) fn readers(numbers: std::ops::RangeInclusive<u16>) -> Vec<(u16, String)> {
    let table = std::fs::read_to_string(STATISTICS).unwrap_or_default();
    numbers
        .filter_map(|number| Some((number, reader_name(find_row(&table, number)?.port))))
        .collect()
}

/// Netlink port of the queue's reader.
pub(in super::super) fn reader_port(number: u16) -> Option<u32> {
    let table = std::fs::read_to_string(STATISTICS).ok()?;
    find_row(&table, number).map(|row| row.port)
}

/// In the thread's own network namespace, not in that of the process's first thread.
pub(in super::super) const STATISTICS: &str = "/proc/thread-self/net/netfilter/nfnetlink_queue";

pub(super) struct QueueStatistics {
    pub(super) port: u32,
    pub(super) dropped: u64,
}

/// Columns (seq_show in nfnetlink_queue.c): queue, port, waiting, copy mode, copy range, dropped,
/// dropped at the socket, last id, 1.
pub(super) fn find_row(table: &str, number: u16) -> Option<QueueStatistics> {
    table.lines().find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        if columns.next()?.parse::<u16>().ok()? != number {
            return None;
        }
        let port = columns.next()?.parse().ok()?;
        let full: u64 = columns.nth(3)?.parse().ok()?;
        let socket: u64 = columns.next()?.parse().ok()?;
        Some(QueueStatistics { port, dropped: full.saturating_add(socket) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_of_a_queue_is_read() {
        let table = " 2100  27402     0 2 65531     3     4       58  1\n  210   1 0 2 0 0 0 0 1\n";
        let row = find_row(table, 2100).unwrap();
        assert_eq!((row.port, row.dropped), (27402, 7));
        assert!(super::find_row(table, 2101).is_none());
        assert!(super::find_row("2100 x", 2100).is_none());
    }
}
