//! The rule files in `rules/`, with an operator's ports, queues and marks in them.
//!
//! The files are the source; this only replaces values in their text. It does not know whether
//! the kernel takes them.

use std::fmt::Write as _;

use ftp_alg_core::engine::{Answer, Side};
use serde::{Deserialize, Serialize};

use super::{GatewayError, selection};

/// Lines between `#if BACKEND` and the next such line, or `#end`, are for that back end alone.
const NFTABLES: &str = include_str!("../../rules/ftp-alg.nft.in");
const IPTABLES: &str = include_str!("../../rules/ftp-alg.iptables");
const IP6TABLES: &str = include_str!("../../rules/ftp-alg.ip6tables");

/// Name of our table, of family `inet`.
pub const TABLE: &str = "ftp_alg";

/// The name of our own conntrack helper.
pub(super) const OWN_HELPER: &str = "ftp-alg";

/// What holds the pinholes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Sets and maps of our nftables table; a firewall accepts the mark.
    #[default]
    Nftables,
    /// Expectations of the connection tracker; a firewall accepts `related`.
    Conntrack,
}

impl Backend {
    /// Its name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Conntrack => "conntrack",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Nftables, Self::Conntrack].into_iter().find(|backend| backend.as_str() == name)
    }
}

/// What an operator may change in the rules.
///
/// Holds only values that make working rules: at least one port and one queue, and a mask of
/// exactly three bits, one of them the mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleParameters {
    control_ports: Vec<u16>,
    queue_first: u16,
    queue_count: u16,
    by_processor: bool,
    is_calm: bool,
    data: u32,
    every: u32,
    none: u32,
    backend: Backend,
}

impl Default for RuleParameters {
    fn default() -> Self {
        Self {
            control_ports: vec![21],
            queue_first: 2100,
            queue_count: 1,
            by_processor: false,
            is_calm: true,
            data: 0x4000_0000,
            every: 0x2000_0000,
            none: 0x1000_0000,
            backend: Backend::Nftables,
        }
    }
}

impl RuleParameters {
    /// Checks the values. `mark` is the ct mark bit on data connections that were admitted;
    /// `mark_mask` has it and the two bits that we put on control connections.
    pub fn new(
        control_ports: &[u16],
        queue_first: u16,
        queue_count: u16,
        mark: u32,
        mark_mask: u32,
    ) -> Result<Self, GatewayError> {
        let refuse = |text: String| Err(GatewayError::Parameters(text));
        let mut control_ports = control_ports.to_vec();
        control_ports.sort_unstable();
        control_ports.dedup();
        if control_ports.is_empty() {
            return refuse("control-ports is empty; name at least one port".into());
        }
        if control_ports.first() == Some(&0) {
            return refuse("port 0 in control-ports is no port; remove it".into());
        }
        if queue_count == 0 {
            return refuse("workers is 0; at least 1 is needed".into());
        }
        if queue_first.checked_add(queue_count - 1).is_none() {
            return refuse(format!(
                "{queue_count} queues from {queue_first} go beyond 65535; choose a lower number"
            ));
        }
        if mark_mask.count_ones() != 3 {
            return refuse(format!(
                "mark-mask {mark_mask:#010x} has {} bits; it needs exactly 3",
                mark_mask.count_ones()
            ));
        }
        if mark.count_ones() != 1 || mark & mark_mask == 0 {
            return refuse(format!(
                "mark {mark:#010x} is not one bit of the mark-mask {mark_mask:#010x}; choose one"
            ));
        }
        let others = mark_mask & !mark;
        let every = 1 << others.ilog2();
        let none = others & !every;
        let backend = Backend::Nftables;
        let by_processor = false;
        Ok(Self {
            control_ports,
            queue_first,
            queue_count,
            by_processor,
            is_calm: true,
            data: mark,
            every,
            none,
            backend,
        })
    }

    /// These, with another back end than [`Backend::Nftables`].
    pub fn with_backend(self, backend: Backend) -> Self {
        Self { backend, ..self }
    }

    /// These, where a packet goes to the queue of the processor that it is on, rather than to that of its
    /// connection. Of one queue both are the same.
    pub fn by_processor(self, by_processor: bool) -> Self {
        Self { by_processor: by_processor && self.queue_count > 1, ..self }
    }

    /// Whether packets are spread over the queues by the processor that they are on.
    pub fn is_by_processor(&self) -> bool {
        self.by_processor
    }

    /// What holds the pinholes.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Ports of control connections, ascending.
    pub fn control_ports(&self) -> &[u16] {
        &self.control_ports
    }

    /// The queues' numbers.
    pub fn queues(&self) -> std::ops::RangeInclusive<u16> {
        self.queue_first..=self.queue_first.saturating_add(self.queue_count.saturating_sub(1))
    }

    /// The log group of copies: the number of the first queue.
    pub fn copies(&self) -> u16 {
        self.queue_first
    }

    /// The ct mark bit of an admitted data connection.
    pub fn data(&self) -> u32 {
        self.data
    }

    /// The ct mark bit of a control connection of which every packet is queued.
    pub fn every(&self) -> u32 {
        self.every
    }

    /// The ct mark bit of a control connection of which no packet is queued.
    pub fn none(&self) -> u32 {
        self.none
    }

    /// These, with harmless lines of calm connections passing, if `calm`.
    pub fn calm(self, calm: bool) -> Self {
        Self { is_calm: calm, ..self }
    }

    /// How these may be loaded where no operator queues, best first: not every kernel logs, or has nftables' own queue
    /// statement.
    pub fn ways(&self) -> impl Iterator<Item = (Self, QueueStatement)> + use<> {
        let less_calm = self.is_calm.then(|| self.clone().calm(false));
        std::iter::once(self.clone()).chain(less_calm).flat_map(|parameters| {
            [QueueStatement::Native, QueueStatement::Xtables].map(|way| (parameters.clone(), way))
        })
    }

    /// Whether harmless lines of calm connections pass.
    pub fn is_calm(&self) -> bool {
        self.is_calm
    }

    /// Whether a packet of packet mark `mark` has ended the calm of its connection.
    pub fn has_ended_calm(&self, mark: u32) -> bool {
        mark & self.mask() == self.none | self.every
    }

    /// Which end sent a packet of packet mark `mark`, if the rules say so.
    pub fn from(&self, mark: u32) -> Option<Side> {
        match mark & self.mask() {
            bits if bits == self.every => Some(Side::Client),
            bits if bits == self.data => Some(Side::Server),
            _ => None,
        }
    }

    /// Whether a packet of packet mark `mark` was queued because every packet of its connection is.
    pub fn is_every(&self, mark: u32) -> bool {
        mark & self.mask() == self.none
    }

    /// Whether a packet of packet mark `mark` ends a connection that the selection had no room to note.
    pub fn is_unnoted_end(&self, mark: u32) -> bool {
        mark & self.mask() == self.data | self.every
    }

    /// Whether a packet of packet mark `mark` is a segment that ended the calm of its connection before, and was
    /// sent again.
    pub fn has_ended_calm_before(&self, mark: u32) -> bool {
        mark & self.mask() == self.none | self.data
    }

    /// The packet mark that a packet of `mark` goes on with for `answer`, if it is to be another.
    pub fn answer(&self, mark: u32, answer: Answer) -> Option<u32> {
        match answer {
            Answer::Nothing => None,
            Answer::Calm => Some(mark | self.mask()),
            Answer::Payload => Some(mark & !self.mask() | self.data | self.every),
        }
    }

    /// All our bits of the ct mark; also the packet mark of what we send ourselves.
    pub fn mask(&self) -> u32 {
        self.data | self.every | self.none
    }
}

/// What puts the packets into the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueStatement {
    /// The `queue` statement of nftables.
    Native,
    /// The iptables target NFQUEUE in our nftables table, through nft_compat.
    Xtables,
    /// Rules that the operator loaded (`ftp-alg rules iptables`); our table queues nothing.
    Operator,
}

/// The nftables rules, for `nft -f`.
pub fn render(parameters: &RuleParameters) -> String {
    render_nftables(parameters, QueueStatement::Native)
}

/// As [`render`]; without the `queue` statements when `statement` is another. Chain `hold` then
/// drops for [`QueueStatement::Xtables`], until the rule that queues takes that place: what it
/// gets must never pass unseen.
pub fn render_nftables(parameters: &RuleParameters, statement: QueueStatement) -> String {
    let mut text = String::with_capacity(NFTABLES.len() + 64);
    for line in lines_for(parameters.backend) {
        let mut value = |old: &str, new: &str| text.push_str(&line.replacen(old, new, 1));
        match line.split_once('=').map_or("", |(name, _)| name.trim_end()) {
            "define control_ports" => {
                let ports: Vec<_> =
                    parameters.control_ports.iter().map(ToString::to_string).collect();
                value("21", &ports.join(", "));
            }
            "define queues" => value("2100", &queues(parameters, '-')),
            // Which needs nfnetlink_log.
            _ if line.trim_start().starts_with("log group") => {
                if parameters.is_calm {
                    value("2100", &parameters.copies().to_string());
                } else {
                    text.push_str("\t\tgoto wake\n");
                }
            }
            "define data" => value("0x40000000", &mark(parameters.data)),
            "define every" => value("0x20000000", &mark(parameters.every)),
            "define none" => value("0x10000000", &mark(parameters.none)),
            "define injected" => value("0x70000000", &mark(parameters.mask())),
            _ if line.starts_with('#') => text.push_str(&replace_marks(line, parameters)),
            _ => match (line.trim(), statement) {
                ("queue to $queues", QueueStatement::Operator) => {}
                ("queue to $queues", QueueStatement::Xtables) => text.push_str("\t\tdrop\n"),
                ("queue to $queues", _) if parameters.by_processor => {
                    text.push_str(&line.replace("queue to", "queue flags fanout to"));
                }
                _ => text.push_str(line),
            },
        }
    }
    text.replacen(selection::PLACE, &selection::chains(), 1)
}

/// The lines of the nftables file that are for `backend`.
fn lines_for(backend: Backend) -> impl Iterator<Item = &'static str> {
    let mut is_for = true;
    NFTABLES.split_inclusive('\n').filter(move |line| {
        let line = line.trim_end();
        let section = line.strip_prefix("#if ").map(|name| name == backend.as_str());
        let section = section.or((line == "#end").then_some(true));
        is_for = section.unwrap_or(is_for);
        is_for && section.is_none()
    })
}

/// Nftables rules with our own helper, which must be there when they are loaded.
pub(super) fn with_own_helper(text: &str) -> String {
    text.replace("\"sane\"", &format!("\"{OWN_HELPER}\"")).replace("#helper: ", "")
}

/// The iptables rules, for `iptables-restore --noflush`.
pub fn render_iptables(parameters: &RuleParameters) -> String {
    render_xtables(IPTABLES, parameters)
}

/// The ip6tables rules, for `ip6tables-restore --noflush`.
pub fn render_ip6tables(parameters: &RuleParameters) -> String {
    render_xtables(IP6TABLES, parameters)
}

fn render_xtables(template: &str, parameters: &RuleParameters) -> String {
    let queue = match parameters.queue_count {
        1 => format!("--queue-num {}", parameters.queue_first),
        _ if parameters.by_processor => {
            format!("--queue-balance {} --queue-cpu-fanout", queues(parameters, ':'))
        }
        _ => format!("--queue-balance {}", queues(parameters, ':')),
    };
    let mut text = String::with_capacity(template.len() + 64);
    for line in template.split_inclusive('\n') {
        let line = replace_marks(line, parameters).replace("--queue-num 2100", &queue);
        match line.split_once("port 21 ") {
            Some((before, after)) if line.starts_with("-A") => {
                for port in &parameters.control_ports {
                    // Writing to a String cannot fail.
                    let _ = write!(text, "{before}port {port} {after}");
                }
            }
            _ => text.push_str(&line),
        }
    }
    text
}

fn queues(parameters: &RuleParameters, separator: char) -> String {
    let (first, last) = parameters.queues().into_inner();
    if first == last { first.to_string() } else { format!("{first}{separator}{last}") }
}

fn mark(bits: u32) -> String {
    format!("{bits:#010x}")
}

/// Replaces in one pass, as a new value may equal another's old one.
fn replace_marks(line: &str, parameters: &RuleParameters) -> String {
    let mut rest = line;
    let mut text = String::with_capacity(line.len());
    while let Some(at) = rest.find("0x") {
        let (before, found) = rest.split_at(at);
        text.push_str(before);
        let new = match found.get(..10) {
            Some("0x40000000") => parameters.data,
            Some("0x20000000") => parameters.every,
            Some("0x10000000") => parameters.none,
            Some("0x30000000") => parameters.every | parameters.none,
            Some("0x70000000") => parameters.mask(),
            _ => {
                text.push_str("0x");
                rest = found.get(2..).unwrap_or_default();
                continue;
            }
        };
        text.push_str(&mark(new));
        rest = found.get(10..).unwrap_or_default();
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn others() -> RuleParameters {
        RuleParameters::new(&[2121, 21], 7, 4, 0x10, 0x4000_0011).unwrap()
    }

    #[test]
    fn defaults_give_the_files_themselves() {
        let defaults = RuleParameters::new(&[21], 2100, 1, 0x4000_0000, 0x7000_0000).unwrap();
        assert_eq!(defaults, RuleParameters::default());
        let lines: String = lines_for(Backend::Nftables).collect();
        assert_eq!(render(&defaults), lines.replace(selection::PLACE, &selection::chains()));
        assert_eq!(render_iptables(&defaults), IPTABLES);
        assert_eq!(render_ip6tables(&defaults), IP6TABLES);
    }

    #[test]
    fn each_back_end_has_its_sections_and_no_other() {
        for (backend, own, other) in [
            (Backend::Nftables, "chain nat_postrouting {", "\n\tct helper ftp_alg {"),
            (Backend::Conntrack, "\n\tct helper ftp_alg {", "pinholes4"),
        ] {
            let text: String = lines_for(backend).collect();
            assert_eq!(text.matches(own).count(), 1);
            assert!(!text.contains(other) && !text.contains("#if ") && !text.contains("#end"));
            assert_eq!(text.matches('{').count(), text.matches('}').count());
            assert_eq!(text.matches(selection::PLACE).count(), 1);
        }
        let sections = NFTABLES.lines().filter_map(|line| line.strip_prefix("#if "));
        assert!(sections.clone().count() > 10);
        assert!(sections.into_iter().all(|name| Backend::named(name).is_some()));
    }

    #[test]
    fn other_values_are_put_in() {
        let text = render(&others());
        for line in [
            "define control_ports = { 21, 2121 }",
            "define queues = 7-10 ",
            "define data = 0x00000010 ",
            "define every = 0x40000000 ",
            "define none = 0x00000001 ",
            "define injected = 0x40000011 ",
            "#   ct mark & 0x00000010 != 0 accept ",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
        let text = render_iptables(&others());
        assert_eq!(text.matches("--dport 2121 ").count(), 1);
        assert_eq!(text.matches("--dport 21 ").count(), 1);
        assert_eq!(text.matches("--queue-balance 7:10").count(), 3);
        assert!(text.contains("connmark --mark 0x40000000/0x40000001 -j NFQUEUE"));
        assert!(text.contains("connmark --mark 0x00000010/0x00000010 -j RETURN"));
        assert!(!text.contains("0x70000000"));
        assert!(text.contains("0>>24=0x45&&0&0xFFFF=40"));
    }

    #[test]
    fn packets_are_spread_by_processor_over_several_queues_only() {
        let spread = others().by_processor(true);
        let text = render(&spread);
        assert!(text.contains("\tqueue flags fanout to $queues"), "{text}");
        let text = render_iptables(&spread);
        assert_eq!(text.matches("--queue-balance 7:10 --queue-cpu-fanout").count(), 3);
        assert_eq!(RuleParameters::default().by_processor(true), RuleParameters::default());
    }

    #[test]
    fn without_the_statement_nothing_passes_hold_unseen() {
        let text = render_nftables(&others(), QueueStatement::Xtables);
        assert!(!text.contains("$queues"));
        assert!(text.contains("chain hold {\n\t\tdrop\n"));
        let text = render_nftables(&others(), QueueStatement::Operator);
        assert!(text.contains("chain hold {\n\t}"));
        assert!(!text.contains("queue to"));
    }

    #[test]
    fn what_goes_with_a_packet_is_read_as_the_rules_write_it() {
        for parameters in [RuleParameters::default(), others()] {
            let RuleParameters { data, every, none, .. } = parameters;
            let read = |mark| {
                let mark = mark | 0x8000; // the operator's
                let ended = (
                    parameters.has_ended_calm(mark),
                    parameters.has_ended_calm_before(mark),
                    parameters.is_unnoted_end(mark),
                );
                (parameters.from(mark), ended, parameters.is_every(mark))
            };
            let (client, server) = (Some(Side::Client), Some(Side::Server));
            let no_end = (false, false, false);
            assert_eq!(read(0), (None, no_end, false), "an operator's rules say nothing");
            assert_eq!(read(every), (client, no_end, false));
            assert_eq!(read(data), (server, no_end, false));
            assert_eq!(read(every | none), (None, (true, false, false), false));
            assert_eq!(read(data | none), (None, (false, true, false), false));
            assert_eq!(read(data | every), (None, (false, false, true), false));
            assert_eq!(read(none), (None, no_end, true));
            // None of them is taken for an answer by the rules, if it comes back as it is.
            let answers = [Answer::Calm, Answer::Payload].map(|a| parameters.answer(0, a));
            for mark in [every, every | none, data, data | none, none] {
                assert!(!answers.contains(&Some(mark)));
            }
        }
    }

    #[test]
    fn values_that_make_no_rules_are_refused() {
        for (ports, first, count, mark, mask) in [
            (&[][..], 1, 1, 0x4000_0000, 0x7000_0000),
            (&[0], 1, 1, 0x4000_0000, 0x7000_0000),
            (&[21], 1, 0, 0x4000_0000, 0x7000_0000),
            (&[21], 65535, 2, 0x4000_0000, 0x7000_0000),
            (&[21], 1, 1, 0x8000_0000, 0x7000_0000),
            (&[21], 1, 1, 0x6000_0000, 0x7000_0000),
            (&[21], 1, 1, 0x4000_0000, 0xf000_0000),
        ] {
            assert!(RuleParameters::new(ports, first, count, mark, mask).is_err());
        }
    }
}
