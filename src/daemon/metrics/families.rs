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
    health::Severity,
    snapshot::{
        ClientBytes, FastPathState, FastPathStatus, Problem, ResultCounts, ServerTotals, Status,
        TransferTotals,
    },
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
    Counters(Vec<Sample>),
    Gauges(Vec<Sample>),
    Histogram(Histogram),
}

/// A value with that of its only label.
type LabelledCount = (String, u64);
/// A value with those of its labels.
type Sample = (Vec<String>, u64);

impl Family {
    fn gauge(base_name: &'static str, value: u64, help: impl Into<Cow<'static, str>>) -> Self {
        let help = help.into();
        let values = Values::Gauges(vec![(Vec::new(), value)]);
        Self { base_name, help, labels: Vec::new(), values }
    }

    fn counter(base_name: &'static str, value: u64, help: impl Into<Cow<'static, str>>) -> Self {
        let help = help.into();
        let values = Values::Counters(vec![(Vec::new(), value)]);
        Self { base_name, help, labels: Vec::new(), values }
    }

    fn counters(
        base_name: &'static str,
        label: &'static str,
        samples: Vec<LabelledCount>,
        help: impl Into<Cow<'static, str>>,
    ) -> Self {
        let help = help.into();
        let samples = samples.into_iter().map(|(of, value)| (vec![of], value)).collect();
        Self { base_name, help, labels: vec![label], values: Values::Counters(samples) }
    }

    /// The name in the text.
    #[cfg(test)]
    pub(super) fn name(&self) -> String {
        let suffix = if matches!(self.values, Values::Counters(_)) { "_total" } else { "" };
        format!("{}{suffix}", self.base_name)
    }

    /// The type's name in the text.
    #[cfg(test)]
    pub(super) fn type_name(&self) -> &'static str {
        match self.values {
            Values::Counters(_) => "counter",
            Values::Gauges(_) => "gauge",
            Values::Histogram(_) => "histogram",
        }
    }

    fn metric_type(&self) -> MetricType {
        match self.values {
            Values::Counters(_) => MetricType::Counter,
            Values::Gauges(_) => MetricType::Gauge,
            Values::Histogram(_) => MetricType::Histogram,
        }
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let kind = self.metric_type();
        let mut metric = encoder.encode_descriptor(self.base_name, &self.help, None, kind)?;
        match &self.values {
            Values::Counters(samples) => self.encode_each(&mut metric, samples, |one, value| {
                one.encode_counter::<[(&str, &str); 0], u64, f64>(&value, None)
            }),
            Values::Gauges(samples) => {
                self.encode_each(&mut metric, samples, |one, value| one.encode_gauge(&value))
            }
            Values::Histogram(Histogram { sum, buckets }) => {
                let count = buckets.iter().map(|(_, count)| count).sum();
                metric.encode_histogram::<[(&str, &str); 0]>(*sum, count, buckets, None)
            }
        }
    }

    fn encode_each(
        &self,
        metric: &mut MetricEncoder<'_>,
        samples: &[Sample],
        encode: impl Fn(&mut MetricEncoder<'_>, u64) -> fmt::Result,
    ) -> fmt::Result {
        for (label_values, value) in samples {
            let values = label_values.iter().map(String::as_str);
            let labels: Vec<_> = self.labels.iter().copied().zip(values).collect();
            match &labels[..] {
                [] => encode(metric, *value)?,
                _ => encode(&mut metric.encode_family(&labels)?, *value)?,
            }
        }
        Ok(())
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
        gauges(status),
        of_counters(status),
        of_transfers(status),
        of_servers(status),
        of_clients(status),
        of_the_fast_path(&status.fast_path),
        of_decisions(&reading.decisions),
    ];
    parts.into_iter().flatten().collect()
}

fn of_the_daemon(reading: &Reading) -> Vec<Family> {
    let Status { version, problems, warnings, .. } = &reading.status;
    vec![
        Family {
            base_name: "ftp_alg_build_info",
            help: "Always 1; the label has the version of the running daemon.".into(),
            labels: vec!["version"],
            values: Values::Gauges(vec![(vec![version.clone()], 1)]),
        },
        Family::gauge(
            "ftp_alg_start_time_seconds",
            reading.started,
            "When the daemon started, in seconds since 1970.",
        ),
        problems_by_name(problems, warnings),
        Family::gauge(
            "ftp_alg_warnings",
            warnings.len() as u64,
            "Warnings that exist now, as ftp-alg status lists them.",
        ),
    ]
}

/// Several may have one name, such as one for each chain that drops data connections.
fn problems_by_name(problems: &[Problem], warnings: &[Problem]) -> Family {
    let of = |severity: Severity| move |one: &Problem| vec![one.name.clone(), severity.to_string()];
    let problems = problems.iter().map(of(Severity::Problem));
    let mut counts = BTreeMap::new();
    for labels in problems.chain(warnings.iter().map(of(Severity::Warning))) {
        *counts.entry(labels).or_insert(0) += 1;
    }
    Family {
        base_name: "ftp_alg_problems",
        help: "Problems and warnings that exist now, each 1, or how many of one name. Only ftp-alg status finds \
               saved-table as well.".into(),
        labels: vec!["name", "severity"],
        values: Values::Gauges(counts.into_iter().collect()),
    }
}

fn gauges(status: &Status) -> Vec<Family> {
    let Status { sessions, pinholes, memory, queue_waiting, .. } = status;
    let waiting = queue_waiting.map(|waiting| {
        let help = "Packets in the queues that waited for a verdict, looked up each second; absent if the daemon's \
                    user cannot read it.";
        Family::gauge("ftp_alg_queue_waiting_packets", waiting, help)
    });
    let families = [
        Family::gauge("ftp_alg_sessions", *sessions, "Control connections that are followed now."),
        Family::gauge("ftp_alg_pinholes", *pinholes, "Pinholes that are open now."),
        Family::gauge(
            "ftp_alg_memory_bytes",
            *memory,
            "Bytes that sessions hold; policy.memory is their limit.",
        ),
    ];
    families.into_iter().chain(waiting).collect()
}

/// The counters that have a metric.
fn of_counters(status: &Status) -> Vec<Family> {
    let of_one = |(described, count): (&'static CounterDescription, Count)| {
        let CounterDescription { metric, label, .. } = *described;
        let help = sentence(described);
        match count {
            Count::Number(value) => Family::counter(metric, value, help),
            Count::Parts(parts) => Family::counters(metric, label, owned(parts.into_iter()), help),
        }
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

fn of_transfers(status: &Status) -> Vec<Family> {
    let TransferTotals { active, passive, unknown, bytes_up, bytes_down, lost, unwritten, .. } =
        status.transfers;
    let running = status.running;
    let known = [("up", running.bytes_up), ("down", running.bytes_down)];
    let known = known.into_iter().filter_map(|(of, bytes)| Some((vec![of.to_owned()], bytes?)));
    let modes = [("active", active), ("passive", passive), ("unknown", unknown)];
    let of_mode = |(mode, counts): (&str, ResultCounts)| {
        let sample =
            |(result, count): (&str, u64)| (vec![mode.to_owned(), result.to_owned()], count);
        counts.by_result().map(sample)
    };
    let bytes = [("up".to_owned(), bytes_up), ("down".to_owned(), bytes_down)];
    vec![
        Family {
            base_name: "ftp_alg_transfers",
            help: "Transfers that have ended, with data connections that did not come about before a command. The mode is unknown if no announcement opened a pinhole.".into(),
            labels: vec!["mode", "result"],
            values: Values::Counters(modes.into_iter().flat_map(of_mode).collect()),
        },
        Family::counters(
            "ftp_alg_transfer_bytes",
            "direction",
            bytes.into(),
            "Bytes that servers (up) and clients (down) received in transfers, as far as they are known.",
        ),
        Family::gauge(
            "ftp_alg_running_transfers",
            running.transfers,
            "Transfers that servers have begun and that have not ended.",
        ),
        Family {
            base_name: "ftp_alg_running_transfer_bytes",
            help: "Bytes of them until now, to servers (up) and clients (down); absent if conntrack counts none of them (nf_conntrack_acct).".into(),
            labels: vec!["direction"],
            values: Values::Gauges(known.collect()),
        },
        Family::counter(
            "ftp_alg_transfers_unreported",
            lost,
            "Transfers that were not reported: too many ended at once.",
        ),
        Family::counter(
            "ftp_alg_transfers_unwritten",
            unwritten,
            "Transfers that are missing in the file of log.transfers.",
        ),
    ]
}

fn of_servers(status: &Status) -> Vec<Family> {
    let servers = &status.transfers.servers;
    if servers.is_empty() {
        return Vec::new();
    }
    let results = |total: &ServerTotals| {
        let server = total.server.to_string();
        let sample =
            |(result, count): (&str, u64)| (vec![server.clone(), result.to_owned()], count);
        total.results.by_result().map(sample)
    };
    let bytes = |total: &ServerTotals| {
        [("up", total.bytes_up), ("down", total.bytes_down)]
            .map(|(direction, bytes)| (vec![total.server.to_string(), direction.to_owned()], bytes))
    };
    vec![
        Family {
            base_name: "ftp_alg_server_transfers",
            help: "Transfers with each [[server]] that have ended; absent without one.".into(),
            labels: vec!["server", "result"],
            values: Values::Counters(servers.iter().flat_map(results).collect()),
        },
        Family {
            base_name: "ftp_alg_server_transfer_bytes",
            help: "Bytes to (up) and from (down) each [[server]] in transfers.".into(),
            labels: vec!["server", "direction"],
            values: Values::Counters(servers.iter().flat_map(bytes).collect()),
        },
    ]
}

fn of_clients(status: &Status) -> Vec<Family> {
    let clients = &status.transfers.top_clients;
    if clients.is_empty() {
        return Vec::new();
    }
    let sample = |row: &ClientBytes| (vec![row.client.clone()], row.bytes);
    vec![Family {
        base_name: "ftp_alg_top_client_bytes",
        help: "Bytes of the ten clients with the most in the last hour, so at most ten label values at a time; of IPv6 \
               a /64.".into(),
        labels: vec!["client"],
        values: Values::Gauges(clients.iter().map(sample).collect()),
    }]
}

fn of_the_fast_path(status: &FastPathStatus) -> Vec<Family> {
    vec![
        Family::gauge(
            "ftp_alg_fast_path_on",
            u64::from(status.state == FastPathState::On),
            "1 if the fast path runs, else 0.",
        ),
        Family::gauge(
            "ftp_alg_fast_path_sessions",
            status.connections,
            "Control connections that are on the fast path now.",
        ),
        Family::counter(
            "ftp_alg_fast_path_lines",
            status.lines,
            "Lines that the fast path inspected, so that they were not queued.",
        ),
        Family::counter(
            "ftp_alg_fast_path_handed_back",
            status.handed_back,
            "Times that a control connection went back from the fast path to the queue.",
        ),
        Family::counter(
            "ftp_alg_fast_path_no_room",
            status.no_room,
            "Lines that were queued because the fast path's ring buffer was full.",
        ),
    ]
}

fn of_decisions(decisions: &Histogram) -> Vec<Family> {
    vec![Family {
        base_name: "ftp_alg_decision_seconds",
        help: "Time from the receipt of a batch of packets to its verdicts, in seconds.".into(),
        labels: Vec::new(),
        values: Values::Histogram(decisions.clone()),
    }]
}

fn owned(samples: impl Iterator<Item = (&'static str, u64)>) -> Vec<LabelledCount> {
    samples.map(|(name, value)| (name.to_owned(), value)).collect()
}
