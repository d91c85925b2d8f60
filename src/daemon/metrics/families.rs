//! All metrics: names, types, help texts, and which value of the [`Status`] each has.
//!
//! Knows nothing of HTTP. `docs/metrics.md` has the same list, and a test compares them.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use ftp_alg_core::engine::{Count, CounterDescription};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, prometheus_text},
    metrics::MetricType,
    registry::Registry,
};

use super::decision_times::Histogram;
use crate::daemon::{
    catalogue,
    snapshot::{FastPathState, Status, TransferTotals},
};

/// What the metrics are made of.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) status: Status,
    /// When the daemon started, in seconds since 1970.
    pub(super) started: u64,
    pub(super) decisions: Histogram,
}

/// A metric with all its label values.
#[derive(Debug)]
pub(super) struct Family {
    kind: MetricType,
    /// The name without the `_total` of counters.
    base_name: &'static str,
    /// What it counts, and in which unit.
    pub(super) help: Cow<'static, str>,
    /// The names of its labels.
    pub(super) labels: Vec<&'static str>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Samples(Vec<Sample>),
    Histogram(Histogram),
}

/// A value with those of its labels.
type Sample = (Vec<String>, u64);

fn sample<const LABELS: usize>(labels: [&str; LABELS], value: u64) -> Sample {
    (labels.map(str::to_owned).into(), value)
}

fn gauge(base_name: &'static str, help: &'static str, value: u64) -> Family {
    gauges(base_name, help, [], [sample([], value)])
}

fn gauges<const LABELS: usize>(
    base_name: &'static str,
    help: &'static str,
    labels: [&'static str; LABELS],
    samples: impl IntoIterator<Item = Sample>,
) -> Family {
    let values = Values::Samples(samples.into_iter().collect());
    Family { kind: MetricType::Gauge, base_name, help: help.into(), labels: labels.into(), values }
}

fn counter(base_name: &'static str, help: &'static str, value: u64) -> Family {
    counters(base_name, help, [], [sample([], value)])
}

fn counters<const LABELS: usize>(
    base_name: &'static str,
    help: &'static str,
    labels: [&'static str; LABELS],
    samples: impl IntoIterator<Item = Sample>,
) -> Family {
    Family { kind: MetricType::Counter, ..gauges(base_name, help, labels, samples) }
}

impl Family {
    /// The name in the text.
    #[cfg(test)]
    pub(super) fn name(&self) -> String {
        let suffix = if self.kind.as_str() == "counter" { "_total" } else { "" };
        format!("{}{suffix}", self.base_name)
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(self.base_name, &self.help, None, self.kind)?;
        let encode = |one: &mut MetricEncoder<'_>, value: u64| match self.kind {
            MetricType::Counter => one.encode_counter::<[(&str, &str); 0], u64, f64>(&value, None),
            _ => one.encode_gauge(&value),
        };
        match &self.values {
            Values::Samples(samples) => samples.iter().try_for_each(|(values, value)| {
                let values = values.iter().map(String::as_str);
                let labels: Vec<_> = self.labels.iter().copied().zip(values).collect();
                match &labels[..] {
                    [] => encode(&mut metric, *value),
                    _ => encode(&mut metric.encode_family(&labels)?, *value),
                }
            }),
            Values::Histogram(Histogram { sum, buckets }) => {
                let count = buckets.iter().map(|(_, count)| count).sum();
                metric.encode_histogram::<[(&str, &str); 0]>(*sum, count, buckets, None)
            }
        }
    }
}

/// The metrics as text in Prometheus's format 0.0.4.
pub(super) fn text(reading: &Reading) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(families(reading))));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|family| family.encode(&mut encoder))
    }
}

/// All metrics, in the order of the text.
pub(super) fn families(reading: &Reading) -> Vec<Family> {
    let Reading { status, .. } = reading;
    let parts = [
        of_the_daemon(reading),
        gauges_of(status),
        of_counters(status),
        of_transfers(status),
        of_pair(status),
        of_servers_and_clients(&status.transfers),
        vec![Family {
            kind: MetricType::Histogram,
            base_name: "ftp_alg_decision_seconds",
            help: "Time from the receipt of a batch of packets to its verdicts, in seconds.".into(),
            labels: Vec::new(),
            values: Values::Histogram(reading.decisions.clone()),
        }],
    ];
    parts.into_iter().flatten().collect()
}

fn of_the_daemon(reading: &Reading) -> Vec<Family> {
    let Status { version, findings, .. } = &reading.status;
    // Several may have one name, such as one for each chain that drops data connections.
    let mut by_name = BTreeMap::new();
    for (severity, one) in findings.iter() {
        *by_name.entry(vec![one.name.clone(), severity.to_string()]).or_insert(0) += 1;
    }
    vec![
        gauges(
            "ftp_alg_build_info",
            "Always 1; the label has the version of the running daemon.",
            ["version"],
            [sample([version], 1)],
        ),
        gauge(
            "ftp_alg_start_time_seconds",
            "When the daemon started, in seconds since 1970.",
            reading.started,
        ),
        gauges(
            "ftp_alg_problems",
            "Problems and warnings that exist now, each 1, or how many of one name. Only ftp-alg status finds \
             saved-table as well.",
            ["name", "severity"],
            by_name,
        ),
        gauge(
            "ftp_alg_warnings",
            "Warnings that exist now, as ftp-alg status lists them.",
            findings.warnings.len() as u64,
        ),
    ]
}

fn gauges_of(status: &Status) -> Vec<Family> {
    let Status { sessions, pinholes, memory, queue_waiting, fast_path, .. } = status;
    let waiting = queue_waiting.map(|waiting| {
        let help = "Packets in the queues that waited for a verdict, looked up each second; absent if the daemon's \
                    user cannot read it.";
        gauge("ftp_alg_queue_waiting_packets", help, waiting)
    });
    let families = [
        gauge("ftp_alg_sessions", "Control connections that are followed now.", *sessions),
        gauge("ftp_alg_pinholes", "Pinholes that are open now.", *pinholes),
        gauge(
            "ftp_alg_memory_bytes",
            "Bytes that sessions hold; policy.memory is their limit.",
            *memory,
        ),
        gauge(
            "ftp_alg_fast_path_on",
            "1 if the fast path runs, else 0.",
            u64::from(fast_path.state == FastPathState::On),
        ),
        gauge(
            "ftp_alg_fast_path_sessions",
            "Control connections that are on the fast path now.",
            fast_path.connections,
        ),
    ];
    families.into_iter().chain(waiting).collect()
}

/// The counters that have a metric.
fn of_counters(status: &Status) -> Vec<Family> {
    let of_one = |(described, count): (&'static CounterDescription, Count)| {
        let family = match count {
            Count::Number(value) => counter(described.metric, "", value),
            Count::Parts(parts) => {
                let samples = parts.into_iter().map(|(name, value)| sample([name], value));
                counters(described.metric, "", [described.label], samples)
            }
        };
        Family { help: sentence(described).into(), ..family }
    };
    status.counts().filter(|(described, _)| !described.metric.is_empty()).map(of_one).collect()
}

/// What a counter counts, as a sentence without Markdown.
fn sentence(described: &CounterDescription) -> String {
    let plain = catalogue::plain(described.means);
    let mut letters = plain.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    format!("{first}{}.", letters.as_str())
}

/// Samples of bytes in the directions in which they are known.
fn by_direction(up: Option<u64>, down: Option<u64>) -> impl Iterator<Item = Sample> {
    let known = [("up", up), ("down", down)].into_iter();
    known.filter_map(|(direction, bytes)| Some(sample([direction], bytes?)))
}

fn of_transfers(status: &Status) -> Vec<Family> {
    let TransferTotals { active, passive, unknown, bytes_up, bytes_down, lost, unwritten, .. } =
        status.transfers;
    let running = status.running;
    let modes = [("active", active), ("passive", passive), ("unknown", unknown)];
    let results = modes.into_iter().flat_map(|(mode, counts)| {
        counts.by_result().map(|(result, count)| sample([mode, result], count))
    });
    vec![
        counters(
            "ftp_alg_transfers",
            "Transfers that have ended, with data connections that did not come about before a command. The mode is \
             unknown if no announcement opened a pinhole.",
            ["mode", "result"],
            results,
        ),
        counters(
            "ftp_alg_transfer_bytes",
            "Bytes that servers (up) and clients (down) received in transfers, as far as they are known.",
            ["direction"],
            by_direction(Some(bytes_up), Some(bytes_down)),
        ),
        gauge(
            "ftp_alg_running_transfers",
            "Transfers that servers have begun and that have not ended.",
            running.transfers,
        ),
        gauges(
            "ftp_alg_running_transfer_bytes",
            "Bytes of them until now, to servers (up) and clients (down); absent if conntrack counts none of them \
             (nf_conntrack_acct).",
            ["direction"],
            by_direction(running.bytes_up, running.bytes_down),
        ),
        counter(
            "ftp_alg_transfers_unreported",
            "Transfers that were not reported: too many ended at once.",
            lost,
        ),
        counter(
            "ftp_alg_transfers_unwritten",
            "Transfers that are missing in the file of log.transfers.",
            unwritten,
        ),
    ]
}

/// The metrics of one of two gateways.
fn of_pair(status: &Status) -> Vec<Family> {
    let Some(pair) = &status.pair else { return Vec::new() };
    let is_active = u64::from(pair.role == "active");
    let families = [
        gauge("ftp_alg_pair_active", "1 if this gateway is active, 0 if standby.", is_active),
        gauge("ftp_alg_pair_role_seconds", "Seconds since the role changed.", pair.since_seconds),
        gauge("ftp_alg_pair_replica", "1 if the standby confirms records.", pair.replica.into()),
        gauge("ftp_alg_pair_shards_behind", "Shards not in the store.", pair.shards_behind),
    ];
    let help = "Seconds since the stores heard of each other; absent if not connected.";
    let lag = pair.lag.map(|lag| gauge("ftp_alg_pair_lag_seconds", help, lag as u64));
    families.into_iter().chain(lag).collect()
}

/// The metrics by server and by client, if there are any.
fn of_servers_and_clients(transfers: &TransferTotals) -> Vec<Family> {
    let TransferTotals { servers, top_clients, .. } = transfers;
    let servers = servers.iter().map(|total| (total.server.to_string(), total));
    let results = servers.clone().flat_map(|(server, total)| {
        total.results.by_result().map(|(result, count)| sample([&server, result], count))
    });
    let bytes = servers.flat_map(|(server, total)| {
        [("up", total.bytes_up), ("down", total.bytes_down)]
            .map(|(direction, bytes)| sample([&server, direction], bytes))
    });
    let clients = top_clients.iter().map(|row| sample([&row.client], row.bytes));
    let families = [
        counters(
            "ftp_alg_server_transfers",
            "Transfers with each [[server]] that have ended; absent without one.",
            ["server", "result"],
            results,
        ),
        counters(
            "ftp_alg_server_transfer_bytes",
            "Bytes to (up) and from (down) each [[server]] in transfers.",
            ["server", "direction"],
            bytes,
        ),
        gauges(
            "ftp_alg_top_client_bytes",
            "Bytes of the ten clients with the most in the last hour, so at most ten label values at a time; of IPv6 \
             a /64.",
            ["client"],
            clients,
        ),
    ];
    let has_samples =
        |family: &Family| !matches!(&family.values, Values::Samples(samples) if samples.is_empty());
    families.into_iter().filter(has_samples).collect()
}
