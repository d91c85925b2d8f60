//! The rule files in `rules/`, with the configured ports, queues and marks.
//!
//! The files are the source; this module only replaces values in their text. It does not know whether the kernel
//! accepts them.

use std::fmt::Write as _;

use super::helper::OWN_HELPER;
use crate::kernel::{
    RuleParameters,
    parameters::{Backend, QueueStatement},
};

/// Lines between `#if BACKEND` and the next such line, or `#end`, belong to that back end. Those after [`LATE_MARKS`],
/// [`EARLY_MARKS`], [`RESTORED`] and [`OVERWRITTEN`] depend on what rules of others do with the ct mark, and those after
/// [`LIMITED`] on whether the kernel counts connections.
const NFTABLES: &str = include_str!("../../../rules/ftp-alg.nft.in");
const IPTABLES: &str = include_str!("../../../rules/ftp-alg.iptables");
const IP6TABLES: &str = include_str!("../../../rules/ftp-alg.ip6tables");

/// The sections by which data connections inherit the ct mark when they are admitted, or before the rules of others.
const LATE_MARKS: &str = "late-marks";
const EARLY_MARKS: &str = "early-marks";
/// The section with the chains that clear restored marks.
const RESTORED: &str = "restored";
/// The section with the chains that set our bits of the ct mark again. With a hyphen and a back end behind it, its part
/// for that back end.
const OVERWRITTEN: &str = "overwritten";
/// The section that limits the data connections of encrypted sessions.
const LIMITED: &str = "limited";

/// The nftables rules, for `nft -f`.
pub fn render(parameters: &RuleParameters) -> String {
    render_nftables(parameters, QueueStatement::Native)
}

/// As [`render`], without `queue` statements unless `statement` is native. For [`QueueStatement::Xtables`] chain
/// `to_queue` then drops, until the rule that queues replaces that: its packets must never pass unread.
pub fn render_nftables(parameters: &RuleParameters, statement: QueueStatement) -> String {
    let zones = &parameters.learned.now().zones;
    let mut text = String::with_capacity(NFTABLES.len() + 64);
    for line in lines_for(parameters) {
        if let Some((first, last)) = parameters.source_ports().filter(|_| is_source_map(line)) {
            let line = line.trim_end().replacen("snat ", "meta l4proto tcp snat ", 1);
            let _ = writeln!(text, "{line} : {first}-{last}");
            continue;
        }
        let mut value = |old: &str, new: &str| text.push_str(&line.replacen(old, new, 1));
        match line.split_once('=').map_or("", |(name, _)| name.trim_end()) {
            _ if line.contains(" 21 ") => {
                let ports = &parameters.gateway.control_ports;
                ports.iter().for_each(|port| value(" 21 ", &format!(" {port} ")));
            }
            "define queues" => value("2100", &queue_range(parameters, '-')),
            _ if line.contains("log group 2100") => {
                if parameters.logs_data {
                    value("2100", &parameters.data_log_group().to_string());
                }
            }
            _ if line.contains("ct count over 1024") => {
                value("1024", &parameters.max_encrypted.unwrap_or_default().to_string());
            }
            "define zones" if zones.len() > 1 => {
                let zones: Vec<_> = zones.iter().map(u16::to_string).collect();
                value("0", &format!("{{ {} }}", zones.join(", ")));
            }
            _ if line.starts_with('#') || line.starts_with("define ") => {
                text.push_str(&replace_marks(line, parameters));
            }
            _ => match (line.trim(), statement) {
                ("queue to $queues", QueueStatement::Operator) => {}
                ("queue to $queues", QueueStatement::Xtables) => text.push_str("\t\tdrop\n"),
                _ => text.push_str(line),
            },
        }
    }
    text
}

/// Whether the line translates a source to the address in a map.
fn is_source_map(line: &str) -> bool {
    line.contains("snat ") && line.contains(" map @")
}

/// The lines of the nftables file for `parameters`.
fn lines_for(parameters: &RuleParameters) -> impl Iterator<Item = &'static str> + use<> {
    let (backend, clears) = (parameters.backend, parameters.clears_restored_marks());
    let inherits_early = parameters.inherits_marks_early();
    let marks_again = parameters.learned.now().overwrites_data_mark;
    let is_limited = backend == Backend::Nftables && parameters.max_encrypted.is_some();
    let mut is_for = true;
    NFTABLES.split_inclusive('\n').filter(move |line| {
        let line = line.trim_end();
        let section = line.strip_prefix("#if ").map(|name| match name {
            LATE_MARKS => backend == Backend::Nftables && !inherits_early,
            EARLY_MARKS => inherits_early,
            RESTORED => clears,
            OVERWRITTEN => marks_again,
            LIMITED => is_limited,
            name => match name.split_once('-') {
                Some((OVERWRITTEN, name)) => marks_again && name.parse() == Ok(backend),
                _ => name.parse() == Ok(backend),
            },
        });
        let section = section.or((line == "#end").then_some(true));
        is_for = section.unwrap_or(is_for);
        is_for && section.is_none()
    })
}

/// The rules with our own helper, which must exist when they are loaded.
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
    let queue = match parameters.queues().count() {
        1 => format!("--queue-num {}", parameters.queues().start()),
        _ => format!("--queue-balance {}", queue_range(parameters, ':')),
    };
    let mut text = String::with_capacity(template.len() + 64);
    for line in template.split_inclusive('\n') {
        let line = replace_marks(line, parameters).replace("--queue-num 2100", &queue);
        match line.split_once("port 21 ") {
            Some((before, after)) if line.starts_with("-A") => {
                for port in &parameters.gateway.control_ports {
                    // Writing to a String cannot fail.
                    let _ = write!(text, "{before}port {port} {after}");
                }
            }
            _ => text.push_str(&line),
        }
    }
    text
}

fn queue_range(parameters: &RuleParameters, separator: char) -> String {
    let (first, last) = parameters.queues().into_inner();
    if first == last { first.to_string() } else { format!("{first}{separator}{last}") }
}

fn mark(bits: u32) -> String {
    format!("{bits:#010x}")
}

/// Replaces all marks in one pass, because a new value may equal another's old one.
fn replace_marks(line: &str, parameters: &RuleParameters) -> String {
    let mut rest = line;
    let mut text = String::with_capacity(line.len());
    while let Some(at) = rest.find("0x") {
        let (before, found) = rest.split_at(at);
        text.push_str(before);
        let new = match found.get(..10) {
            Some("0x40000000") => parameters.gateway.data_mark,
            Some("0x20000000") => parameters.gateway.queue_all_mark,
            Some("0x10000000") => parameters.gateway.queue_none_mark,
            Some("0x30000000") => {
                parameters.gateway.queue_all_mark | parameters.gateway.queue_none_mark
            }
            Some("0x70000000") => parameters.mask(),
            Some("0x8ffe0000") => parameters.gateway.slot_mask,
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
    use crate::kernel::parameters::CtMarkUse;

    fn others() -> RuleParameters {
        RuleParameters::new(&[2121, 21], 7, 4, 0x10, 0x4000_0011)
    }

    #[test]
    fn data_connections_are_logged_to_the_group_of_the_first_queue() {
        let text = render_nftables(&others(), QueueStatement::Native);
        let group = format!("log group {} ", others().data_log_group());
        assert_eq!(text.matches("log group ").count(), text.matches(&group).count());
        assert_eq!(
            text.matches(&group).count(),
            5,
            "SYN to the gateway; two of SYNs; FIN and others; what encrypted sessions try"
        );
        let without = render_nftables(&others().with_data_log(false), QueueStatement::Native);
        assert!(!without.contains("log group"));
    }

    #[test]
    fn a_client_has_the_limit_of_the_configuration() {
        let text = |limit| render(&others().with_max_encrypted(limit));
        assert_eq!(text(Some(7)).matches("ct count over 7 }").count(), 2, "IPv4 and IPv6");
        assert!(!text(None).contains("ct count") && !text(None).contains("encrypted_clients"));
    }

    #[test]
    fn defaults_give_the_files_themselves() {
        let defaults = RuleParameters::new(&[21], 2100, 1, 0x4000_0000, 0x7000_0000);
        assert_eq!(render(&defaults), render(&RuleParameters::default()));
        let lines: String = lines_for(&defaults).collect();
        assert_eq!(render(&defaults), lines);
        assert_eq!(render_iptables(&defaults), IPTABLES);
        assert_eq!(render_ip6tables(&defaults), IP6TABLES);
    }

    #[test]
    fn each_back_end_has_its_sections_and_no_other() {
        for (backend, own, other) in [
            (Backend::Nftables, "chain translate_source {", "\n\tct helper ftp_alg {"),
            (Backend::Conntrack, "\n\tct helper ftp_alg {", "pinholes4"),
        ] {
            let parameters = RuleParameters::default().with_backend(backend);
            let text: String = lines_for(&parameters).collect();
            assert_eq!(text.matches(own).count(), 1);
            assert!(!text.contains(other) && !text.contains("#if ") && !text.contains("#end"));
            assert_eq!(text.matches('{').count(), text.matches('}').count());
        }
        let sections = NFTABLES.lines().filter_map(|line| line.strip_prefix("#if "));
        assert!(sections.clone().count() > 10);
        let is_known = |name: &str| {
            let backend = name.strip_prefix("overwritten-").unwrap_or(name);
            [LATE_MARKS, EARLY_MARKS, RESTORED, OVERWRITTEN, LIMITED].contains(&name)
                || backend.parse::<Backend>().is_ok()
        };
        assert!(sections.into_iter().all(is_known));
    }

    #[test]
    fn other_values_are_put_in() {
        let text = render(&others());
        for line in [
            "th sport 21 goto from_control_port",
            "ct original proto-dst 2121 goto control",
            "define queues = 7-10 ",
            "define data = 0x00000010 ",
            "define queue_all = 0x40000000 ",
            "define queue_none = 0x00000001 ",
            "define injected = 0x40000011 ",
            "define target_slot = 0xbff80000 ",
            "#   ct mark & 0x00000010 != 0 accept ",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
        let text = render_iptables(&others());
        assert_eq!(text.matches("--dport 2121 ").count(), 3);
        assert_eq!(text.matches("--dport 21 ").count(), 3);
        assert_eq!(text.matches("--queue-balance 7:10").count(), 8);
        assert!(text.contains("connmark --mark 0x40000000/0x40000001 -j NFQUEUE"));
        assert!(text.contains("connmark --mark 0x00000010/0x00000010 -j RETURN"));
        assert!(!text.contains("0x70000000"));
        assert!(text.contains("0>>24=0x45&&0&0xFFFF=40"));
    }

    #[test]
    fn marks_have_the_chains_that_rules_of_others_need() {
        let parts = |backend, ct_mark_use| {
            let parameters = RuleParameters::default().with_backend(backend);
            let text = render(&parameters.with_ct_mark_use(ct_mark_use));
            assert_eq!(text.matches('{').count(), text.matches('}').count());
            [
                "ct mark 0 meta nfproto",
                "hook prerouting priority mangle - 49",
                "chain clear_restored_",
            ]
            .map(|part| text.matches(part).count())
        };
        for (ct_mark_use, nftables, conntrack) in [
            (CtMarkUse::None, [4, 0, 0], [0; 3]),
            (CtMarkUse::Restored, [0, 1, 0], [0; 3]),
            (CtMarkUse::Compared, [0, 1, 2], [0, 0, 2]),
        ] {
            assert_eq!(parts(Backend::Nftables, ct_mark_use), nftables);
            assert_eq!(parts(Backend::Conntrack, ct_mark_use), conntrack);
        }
    }

    #[test]
    fn without_the_statement_no_packet_passes_unread() {
        let text = render_nftables(&others(), QueueStatement::Xtables);
        assert!(!text.contains("$queues"));
        assert!(text.contains("chain to_queue {\n\t\tdrop\n"));
        let text = render_nftables(&others(), QueueStatement::Operator);
        assert!(text.contains("chain to_queue {\n\t}"));
        assert!(!text.contains("queue to"));
    }
}
