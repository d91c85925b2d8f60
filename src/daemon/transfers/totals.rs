//! What was transferred: in all, of each configured server, and of the clients with the most bytes in the last hour.
//!
//! Invariant: memory is bounded by the configured servers and by [`MAX_CLIENTS`].

use std::{collections::HashMap, net::IpAddr, time::Instant};

use ftp_alg_core::engine::{ClientKey, Event, Transfer, TransferResult};

use crate::daemon::snapshot::{ClientBytes, ResultCounts, ServerTotals, TransferTotals};

/// Limit of clients that are followed. A new one takes the place of the one with the fewest bytes.
const MAX_CLIENTS: usize = 1024;
/// Clients that are shown.
const TOP_CLIENTS: usize = 10;
/// The length of a part of the hour, in seconds.
const PART_SECONDS: u64 = 300;
/// Parts of an hour.
const PARTS: usize = 12;

/// The totals since `begin`.
#[derive(Debug)]
pub(super) struct Totals {
    /// All totals, with the servers in the order of their addresses, and without clients.
    all: TransferTotals,
    clients: HashMap<ClientKey, LastHour>,
    begin: Instant,
}

impl Totals {
    pub(super) fn new(now: Instant) -> Self {
        Self { all: TransferTotals::default(), clients: HashMap::new(), begin: now }
    }

    /// Counts the transfers of these servers from now on. Servers that are counted already keep their counts.
    pub(super) fn set_servers(&mut self, servers: impl IntoIterator<Item = IpAddr>) {
        let mut known = std::mem::take(&mut self.all.servers);
        let total = |server| match known.iter().position(|known| known.server == server) {
            Some(at) => known.swap_remove(at),
            None => ServerTotals::new(server),
        };
        let mut totals: Vec<_> = servers.into_iter().map(total).collect();
        totals.sort_unstable_by_key(|total| total.server);
        totals.dedup_by_key(|total| total.server);
        self.all.servers = totals;
    }

    /// Notes how many lines the file of `log.transfers` lacks.
    pub(super) fn set_unwritten(&mut self, unwritten: u64) {
        self.all.unwritten = unwritten;
    }

    /// Counts the `transfer` of an `event`.
    pub(super) fn count(&mut self, now: Instant, event: &Event, transfer: &Transfer) {
        let (is_upload, bytes) = (transfer.verb.is_upload(), transfer.bytes.unwrap_or(0));
        let all = &mut self.all;
        *if is_upload { &mut all.bytes_up } else { &mut all.bytes_down } += bytes;
        count_result(of_mode(all, transfer.is_active()), transfer.result);
        if let Some(total) = self.of_server(event) {
            count_result(&mut total.results, transfer.result);
            *if is_upload { &mut total.bytes_up } else { &mut total.bytes_down } += bytes;
        }
        if bytes > 0 {
            self.count_client(now, event.client.ip().into(), bytes);
        }
    }

    /// Counts a data connection that did not come about, and for which there is no transfer.
    pub(super) fn count_missing(&mut self, event: &Event, is_active: bool) {
        of_mode(&mut self.all, Some(is_active)).no_data_connection += 1;
        if let Some(total) = self.of_server(event) {
            total.results.no_data_connection += 1;
        }
    }

    fn of_server(&mut self, event: &Event) -> Option<&mut ServerTotals> {
        let server = event.server.ip().to_canonical();
        let servers = &mut self.all.servers;
        let at = servers.binary_search_by_key(&server, |total| total.server).ok()?;
        servers.get_mut(at)
    }

    /// Everything, with the clients of the hour before `now`.
    pub(super) fn read(&self, now: Instant) -> TransferTotals {
        let part = self.part(now);
        let of_hour = |(client, hour): (&ClientKey, &LastHour)| (hour.bytes(part), *client);
        let mut clients: Vec<_> = self.clients.iter().map(of_hour).collect();
        clients.retain(|(bytes, _)| *bytes > 0);
        clients.sort_unstable_by_key(|(bytes, client)| (std::cmp::Reverse(*bytes), *client));
        clients.truncate(TOP_CLIENTS);
        let row =
            |(bytes, client): (_, ClientKey)| ClientBytes { client: client.to_string(), bytes };
        let top_clients = clients.into_iter().map(row).collect();
        TransferTotals { top_clients, ..self.all.clone() }
    }

    fn count_client(&mut self, now: Instant, client: ClientKey, bytes: u64) {
        let part = self.part(now);
        if self.clients.len() >= MAX_CLIENTS && !self.clients.contains_key(&client) {
            let least = self.clients.iter().min_by_key(|(_, hour)| hour.bytes(part));
            if let Some(least) = least.map(|(client, _)| *client) {
                self.clients.remove(&least);
            }
        }
        self.clients.entry(client).or_default().add(part, bytes);
    }

    /// The number of the part of an hour at `now`, from 1.
    fn part(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begin).as_secs() / PART_SECONDS + 1
    }
}

fn of_mode(totals: &mut TransferTotals, is_active: Option<bool>) -> &mut ResultCounts {
    match is_active {
        Some(true) => &mut totals.active,
        Some(false) => &mut totals.passive,
        None => &mut totals.unknown,
    }
}

fn count_result(counts: &mut ResultCounts, result: TransferResult) {
    *match result {
        TransferResult::Complete => &mut counts.complete,
        TransferResult::Aborted => &mut counts.aborted,
        TransferResult::Refused => &mut counts.refused,
        TransferResult::NoDataConnection => &mut counts.no_data_connection,
        TransferResult::Reset => &mut counts.reset,
        TransferResult::Unseen => &mut counts.unseen,
        TransferResult::Waiting => return,
    } += 1;
}

/// The bytes of a client in an hour.
#[derive(Clone, Copy, Debug, Default)]
struct LastHour {
    /// The number of a part, and the bytes in it. A part takes the place of the one an hour before.
    parts: [(u64, u64); PARTS],
}

impl LastHour {
    fn add(&mut self, part: u64, bytes: u64) {
        let place = &mut self.parts[(part % PARTS as u64) as usize];
        if place.0 != part {
            *place = (part, 0);
        }
        place.1 = place.1.saturating_add(bytes);
    }

    /// The bytes in the hour that ends with `part`.
    fn bytes(&self, part: u64) -> u64 {
        let is_recent = |number: u64| number > 0 && number + PARTS as u64 > part;
        let recent = self.parts.iter().filter(|(number, _)| is_recent(*number));
        recent.fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes))
    }
}

#[cfg(test)]
#[path = "totals_tests.rs"]
mod tests;
