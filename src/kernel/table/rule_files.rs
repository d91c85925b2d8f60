//! The rule files in `rules/table`, with the configured ports, queues and marks.
//!
//! A placeholder `@NAME@` stands for a value. Its line is repeated for each value of it, and is left out if there is
//! none. Lines between `#if SECTION` and the next such line, or `#end`, are rendered if the section applies. This
//! module does not know whether the kernel accepts the rules.

use ftp_alg_firewall::IpVersion;

use super::helper::OWN_HELPER;
use crate::kernel::{
    RuleParameters,
    parameters::{Backend, QueueStatement},
};

/// The parts of the nftables rules, in order. A part with a back end is for that back end alone.
const NFTABLES: [(&str, Option<Backend>); 5] = [
    (include_str!("../../../rules/table/definitions.nft.in"), None),
    (include_str!("../../../rules/table/pinholes-conntrack.nft.in"), Some(Backend::Conntrack)),
    (include_str!("../../../rules/table/pinholes-nftables.nft.in"), Some(Backend::Nftables)),
    (include_str!("../../../rules/table/selection.nft.in"), None),
    (include_str!("../../../rules/table/marks.nft.in"), None),
];
/// The rules of iptables and ip6tables.
const IPTABLES: &str = include_str!("../../../rules/table/iptables.in");

/// The values of a placeholder.
type Values = fn(&RuleParameters) -> Vec<String>;

const PLACEHOLDERS: [(&str, Values); 14] = [
    ("PORT", |p| p.gateway.control_ports.iter().map(u16::to_string).collect()),
    ("QUEUES", |p| vec![range(p.queues().into_inner(), '-')]),
    ("QUEUE_TARGET", |p| {
        let single = p.queues().count() == 1;
        let option = if single { "--queue-num" } else { "--queue-balance" };
        vec![format!("{option} {}", range(p.queues().into_inner(), ':'))]
    }),
    ("LOG_GROUP", |p| p.logs_data.then(|| p.data_log_group().to_string()).into_iter().collect()),
    ("ZONES", |p| {
        let zones: Vec<_> = p.learned.now().zones.iter().map(u16::to_string).collect();
        vec![if zones.len() > 1 { format!("{{ {} }}", zones.join(", ")) } else { zones.concat() }]
    }),
    ("MAX_ENCRYPTED", |p| p.max_encrypted.iter().map(usize::to_string).collect()),
    // A translation of ports needs the protocol.
    ("TCP", |p| vec![p.source_ports().map_or("", |_| "meta l4proto tcp ").to_owned()]),
    ("SOURCE_PORTS", |p| {
        vec![p.source_ports().map_or_else(String::new, |ports| format!(" : {}", range(ports, '-')))]
    }),
    ("DATA", |p| mark(p.gateway.data_mark)),
    ("QUEUE_ALL", |p| mark(p.gateway.queue_all_mark)),
    ("QUEUE_NONE", |p| mark(p.gateway.queue_none_mark)),
    ("QUEUE_BITS", |p| mark(p.gateway.queue_all_mark | p.gateway.queue_none_mark)),
    ("ALL_BITS", |p| mark(p.mask())),
    ("SLOT", |p| mark(p.gateway.slot_mask)),
];

/// Whether a section applies.
type IsThere = fn(&RuleParameters, QueueStatement) -> bool;

const SECTIONS: [(&str, IsThere); 11] = [
    ("nftables", |p, _| p.backend == Backend::Nftables),
    ("conntrack", |p, _| p.backend == Backend::Conntrack),
    ("native", |_, statement| statement == QueueStatement::Native),
    ("xtables", |_, statement| statement == QueueStatement::Xtables),
    // Data connections inherit the ct mark when they are admitted, or before the rules of others.
    ("late-marks", |p, _| !p.inherits_marks_early()),
    ("early-marks", |p, _| p.inherits_marks_early()),
    // The chains that clear restored marks.
    ("restored", |p, _| p.clears_restored_marks()),
    // The chains that set our bits of the ct mark again.
    ("overwritten", |p, _| p.learned.now().overwrites_data_mark),
    ("overwritten-nftables", |p, _| {
        p.learned.now().overwrites_data_mark && p.backend == Backend::Nftables
    }),
    ("overwritten-conntrack", |p, _| {
        p.learned.now().overwrites_data_mark && p.backend == Backend::Conntrack
    }),
    // The kernel counts the data connections of encrypted sessions.
    ("limited", |p, _| p.max_encrypted.is_some()),
];

/// The build ends at a placeholder that has no values above.
const _: () = {
    let mut part = 0;
    while part < NFTABLES.len() {
        assert_known(NFTABLES[part].0);
        part += 1;
    }
    assert_known(IPTABLES);
};

/// The place of the first placeholder behind `from`, with its two `@`: capitals and underscores.
const fn placeholder(text: &[u8], from: usize) -> Option<(usize, usize)> {
    let (mut start, mut at) = (None, from);
    while at < text.len() {
        start = match (text[at], start) {
            (b'@', Some(start)) if at > start + 1 => return Some((start, at + 1)),
            (b'@', _) => Some(at),
            (b'A'..=b'Z' | b'_', start) => start,
            _ => None,
        };
        at += 1;
    }
    None
}

const fn assert_known(text: &str) {
    let text = text.as_bytes();
    let mut from = 0;
    while let Some((start, end)) = placeholder(text, from) {
        let (mut index, mut is_known) = (0, false);
        while index < PLACEHOLDERS.len() {
            let name = PLACEHOLDERS[index].0.as_bytes();
            let (mut same, mut at) = (name.len() == end - start - 2, 0);
            while same && at < name.len() {
                same = name[at] == text[start + 1 + at];
                at += 1;
            }
            is_known = is_known || same;
            index += 1;
        }
        assert!(is_known, "rules/table has a placeholder that rule_files.rs does not know");
        from = end;
    }
}

/// The nftables rules, for `nft -f`.
pub fn render(parameters: &RuleParameters) -> String {
    render_nftables(parameters, QueueStatement::Native)
}

/// As [`render`], without `queue` statements unless `statement` is native. For [`QueueStatement::Xtables`] the chain
/// `to_queue` drops, until the rule that queues replaces its content, because packets must never pass unread.
pub fn render_nftables(parameters: &RuleParameters, statement: QueueStatement) -> String {
    let backend = parameters.backend;
    let has_section = |name: &str| {
        let section = SECTIONS.iter().find(|(known, _)| *known == name);
        section.is_some_and(|(_, is_there)| is_there(parameters, statement))
    };
    let parts = NFTABLES.iter().filter(|(_, of)| of.is_none_or(|of| of == backend));
    parts.map(|(part, _)| fill(part, has_section, parameters)).collect()
}

/// The rules with our own helper, which must exist when the rules are loaded.
pub(super) fn with_own_helper(text: &str) -> String {
    text.replace("\"sane\"", &format!("\"{OWN_HELPER}\"")).replace("#helper: ", "")
}

/// The rules for `iptables-restore --noflush`, or `ip6tables-restore --noflush`.
pub fn render_iptables(parameters: &RuleParameters, ip: IpVersion) -> String {
    let has_section = |name: &str| (name == "ipv4") == (ip == IpVersion::V4);
    fill(IPTABLES, has_section, parameters)
}

/// The lines of the sections that apply, with values in place of placeholders.
fn fill(template: &str, has_section: impl Fn(&str) -> bool, parameters: &RuleParameters) -> String {
    let mut text = String::with_capacity(template.len() + 64);
    let mut is_there = true;
    for line in template.split_inclusive('\n') {
        match line.trim_end().strip_prefix("#if ") {
            Some(section) => is_there = has_section(section),
            None if line.trim_end() == "#end" => is_there = true,
            None if is_there => fill_line(line, parameters, &mut text),
            None => {}
        }
    }
    text
}

fn fill_line(line: &str, parameters: &RuleParameters, text: &mut String) {
    let Some((start, end)) = placeholder(line.as_bytes(), 0) else { return text.push_str(line) };
    let (before, name, after) = (&line[..start], &line[start + 1..end - 1], &line[end..]);
    let known = PLACEHOLDERS.iter().find(|(known, _)| *known == name);
    for value in known.into_iter().flat_map(|(_, values)| values(parameters)) {
        fill_line(&format!("{before}{value}{after}"), parameters, text);
    }
}

fn range((first, last): (u16, u16), separator: char) -> String {
    if first == last { first.to_string() } else { format!("{first}{separator}{last}") }
}

fn mark(bits: u32) -> Vec<String> {
    vec![format!("{bits:#010x}")]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn others() -> RuleParameters {
        RuleParameters::new(&[2121, 21], 7, 4, 0x10, 0x4000_0011)
    }

    #[test]
    fn every_section_is_known_and_there() {
        let lines = NFTABLES.iter().flat_map(|(part, _)| part.lines());
        let named: BTreeSet<_> = lines.filter_map(|line| line.strip_prefix("#if ")).collect();
        assert_eq!(named, SECTIONS.iter().map(|(name, _)| *name).collect());
        for backend in [Backend::Nftables, Backend::Conntrack] {
            let parameters = RuleParameters::default().with_backend(backend);
            let text = render(&parameters);
            assert_eq!(text.matches('{').count(), text.matches('}').count());
            assert!(!text.contains("#if ") && !text.contains("#end"));
        }
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
        let text = render_iptables(&others(), IpVersion::V4);
        assert_eq!(text.matches("--dport 2121 ").count(), 3);
        assert_eq!(text.matches("--dport 21 ").count(), 3);
        assert_eq!(text.matches("--queue-balance 7:10").count(), 8);
        assert!(text.contains("connmark --mark 0x40000000/0x40000001 -j NFQUEUE"));
        assert!(text.contains("connmark --mark 0x00000010/0x00000010 -j RETURN"));
        assert!(!text.contains("0x70000000"));
        assert!(text.contains("0>>24=0x45&&0&0xFFFF=40"));
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
