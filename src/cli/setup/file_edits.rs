//! Edits the files from which a firewall is loaded. All edits are pure functions from text to text.
//!
//! Every added line has [`MARKER`] in a comment of the rule itself. `iptables-save` and `nft list ruleset` preserve
//! this comment, so setup recognises its lines even if somebody edited the file or saved the rules again.

use ftp_alg_firewall::RulePlace;
use similar::TextDiff;

/// The comment of each rule that setup adds.
pub(super) const MARKER: &str = "ftp-alg-setup";

/// A rule to add, and how to recognise that the operator already has an equivalent rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AcceptRule {
    /// The conditions of the rule, in the language of the file.
    pub(super) condition: String,
    /// The words by which an equivalent line is recognised.
    pub(super) recognised_by: [String; 2],
}

impl AcceptRule {
    /// Whether `line` has the same effect. It may be a line of the operator.
    fn is_equivalent(&self, line: &str) -> bool {
        let line = line.trim_start().to_ascii_lowercase();
        !line.starts_with('#')
            && line.contains("accept")
            && self.recognised_by.iter().all(|words| line.contains(words))
    }

    /// Whether one of `lines` has the same effect.
    pub(super) fn has_equivalent_in(&self, lines: &str) -> bool {
        lines.lines().any(|line| self.is_equivalent(line))
    }

    /// The arguments of iptables after the chain.
    pub(super) fn iptables_arguments(&self) -> String {
        format!("{} -m comment --comment {MARKER} -j ACCEPT", self.condition)
    }

    /// The rule as a statement of nftables.
    pub(super) fn nft_statement(&self) -> String {
        format!("{} accept comment \"{MARKER}\"", self.condition)
    }
}

/// `text` without the rules that setup added, and without their lines, if nothing else is in these.
pub(super) fn without_setup_lines(text: &str) -> String {
    text.split_inclusive('\n').map(without_setup_rule).collect()
}

/// `line` without the rule that setup added, if there is one. A comment that only names setup stays.
fn without_setup_rule(line: &str) -> String {
    let is_path = line.starts_with('/') && line.trim_end().ends_with(&format!("{MARKER}.nft"));
    let is_of_iptables = [MARKER, &format!("\"{MARKER}\"")]
        .iter()
        .any(|comment| line.contains(&format!("--comment {comment}")));
    let is_comment = line.trim_start().starts_with('#');
    if (is_path || is_of_iptables) && !is_comment {
        return String::new();
    }
    let comment = format!("comment \"{MARKER}\"");
    // Behind a `#` it is no rule, unless that is in a string.
    let is_rule =
        |at: &usize| line[..*at].split('"').step_by(2).all(|unquoted| !unquoted.contains('#'));
    let Some(at) = line.find(&comment).filter(is_rule) else { return line.to_owned() };
    let start = line[..at].rfind([';', '{', '}']).map_or(0, |separator| separator + 1);
    let behind = line[at + comment.len()..].trim_start_matches([' ', '\t']);
    let rest = format!("{}{}", &line[..start], behind.strip_prefix(';').unwrap_or(behind));
    if rest.trim().is_empty() { String::new() } else { rest }
}

/// The line end that `text` uses.
pub(super) fn newline(text: &str) -> &'static str {
    if text.contains("\r\n") { "\r\n" } else { "\n" }
}

/// Adds `rule` to a file of `iptables-restore`, at `place` in `chain` of `table`.
///
/// Returns the text unchanged if it has an equivalent rule, and `None` if it does not declare the chain.
pub(super) fn with_iptables_rule(
    text: &str,
    table: &str,
    chain: &str,
    place: &RulePlace,
    rule: &AcceptRule,
) -> Option<String> {
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    let start = lines.iter().position(|line| line.trim() == format!("*{table}"))? + 1;
    let end = start + lines[start..].iter().position(|line| line.trim() == "COMMIT")?;
    let declaration = format!(":{chain}");
    let declares = |line: &&str| line.split_whitespace().next() == Some(&declaration);
    lines[start..end].iter().find(|line| declares(line))?;
    let is_rule = |line: &&str| {
        // A line may start with counters, as `iptables-save -c` writes them.
        let rest = line.split_once("] ").filter(|_| line.starts_with('[')).map_or(*line, |x| x.1);
        let mut words = rest.split_whitespace();
        matches!(words.next(), Some("-A" | "-I")) && words.next() == Some(chain)
    };
    let rules: Vec<usize> = (start..end).filter(|at| is_rule(&lines[*at])).collect();
    let texts: Vec<&str> = rules.iter().map(|at| lines[*at]).collect();
    if texts.iter().any(|line| rule.is_equivalent(line)) {
        return Some(text.to_owned());
    }
    let at = match place.index_in(&texts) {
        0 => {
            let mut at = rules.first().copied().unwrap_or(end);
            // A comment belongs to the line after it.
            while at > start && lines[at - 1].trim_start().starts_with('#') {
                at -= 1;
            }
            at
        }
        index => rules[index - 1] + 1,
    };
    let new = format!("-A {chain} {}{}", rule.iptables_arguments(), newline(text));
    lines.insert(at, &new);
    Some(lines.concat())
}

/// Adds `line` at the end of `text`.
pub(super) fn with_last_line(text: &str, line: &str) -> String {
    let newline = newline(text);
    let gap = if text.is_empty() || text.ends_with('\n') { "" } else { newline };
    format!("{text}{gap}{line}{newline}")
}

/// The difference between two versions of a file in the format of `diff -u`.
pub(super) fn difference(path: &str, before: Option<&str>, after: &str) -> String {
    let old = if before.is_some() { path } else { "/dev/null" };
    TextDiff::from_lines(before.unwrap_or_default(), after)
        .unified_diff()
        .header(old, path)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> AcceptRule {
        AcceptRule {
            condition: "-m connmark --mark 0x40000000/0x40000000".into(),
            recognised_by: ["connmark".into(), "0x40000000".into()],
        }
    }

    const LINE: &str = "-A FORWARD -m connmark --mark 0x40000000/0x40000000 -m comment --comment \
                        ftp-alg-setup -j ACCEPT";
    const SAVED: &str = "*nat\n:FORWARD ACCEPT [0:0]\nCOMMIT\n*filter\n:INPUT ACCEPT [0:0]\n\
                         :FORWARD DROP [0:0]\n-A INPUT -j ACCEPT\n# SSH\n-A FORWARD -j A\nCOMMIT\n";

    fn edited(text: &str) -> Option<String> {
        let place = RulePlace::new("FORWARD", &[], None);
        with_iptables_rule(text, "filter", "FORWARD", &place, &mark())
    }

    #[test]
    fn rule_is_added_at_its_place_in_the_chain() {
        const OLD: &str = "-A FORWARD -m state --state RELATED,ESTABLISHED -j ACCEPT";
        const BAD: &str = "-A FORWARD -s 10.0.0.9/32 -j DROP";
        for (rules, drop, expected) in [
            (&[BAD, OLD][..], None, &[BAD, OLD, LINE][..]),
            (&[BAD, OLD, "-A FORWARD -j DROP"], Some(2), &[BAD, OLD, LINE, "-A FORWARD -j DROP"]),
            (&[BAD, "-A FORWARD -j DROP"], Some(1), &[BAD, LINE, "-A FORWARD -j DROP"]),
            (&["-A FORWARD -j DROP", OLD], Some(0), &[LINE, "-A FORWARD -j DROP", OLD]),
            (&[BAD], None, &[BAD, LINE]),
        ] {
            let file = |rules: &[&str]| {
                let rules = rules.join("\n# next\n");
                format!("*filter\n:FORWARD DROP\n-A INPUT -j A\n# first\n{rules}\n\nCOMMIT\n")
            };
            let place = RulePlace::new("FORWARD", rules, drop);
            let text = file(rules);
            let new = with_iptables_rule(&text, "filter", "FORWARD", &place, &mark()).unwrap();
            let without_comments = |text: &str| {
                text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
            };
            assert_eq!(without_comments(&new), without_comments(&file(expected)));
            assert_eq!(without_setup_lines(&new), text);
        }
    }

    #[test]
    fn rule_is_added_before_the_first_rule_if_its_place_is_not_found() {
        let expected = SAVED.replace("# SSH", &format!("{LINE}\n# SSH"));
        let place = RulePlace::new("FORWARD", &["-A FORWARD -j B", "-A FORWARD -j DROP"], Some(1));
        let edited = |text: &str| with_iptables_rule(text, "filter", "FORWARD", &place, &mark());
        let text = edited(SAVED).unwrap();
        assert_eq!(text, expected);
        assert_eq!(without_setup_lines(&text), SAVED);
        assert_eq!(edited(&text).unwrap(), text, "it is there already");
    }

    #[test]
    fn equivalent_line_of_the_operator_is_enough() {
        let own = "-A FORWARD -m connmark --mark 0x40000000/0x40000000 -j ACCEPT\n";
        let text = SAVED.replace("# SSH\n", own);
        assert_eq!(edited(&text).unwrap(), text);
        // A comment is not enough, nor is a rule in another chain.
        for other in [format!("#{own}"), own.replace("FORWARD", "INPUT")] {
            let text = SAVED.replace("# SSH\n", &other);
            assert!(edited(&text).unwrap().contains(MARKER), "{other}");
        }
    }

    #[test]
    fn only_the_rules_of_setup_are_removed() {
        let own = "ct mark & 0x40000000 != 0 accept comment \"ftp-alg-setup\"";
        // As nft lists it.
        let listed = own.replace("!= 0", "!= 0x00000000");
        for (line, rest) in [
            (format!("\t\t{own}\n"), ""),
            (format!("\t\t{listed};\r\n"), ""),
            (format!("{LINE}\n"), ""),
            ("/usr/share/nftables.d/chain-pre/forward/zz-ftp-alg-setup.nft\n".to_owned(), ""),
            (format!("\t{own}; tcp dport 22 accept\n"), " tcp dport 22 accept\n"),
            (
                format!("\ttcp dport 22 accept comment \"a;b #\"; {own}\n"),
                "\ttcp dport 22 accept comment \"a;b #\";\n",
            ),
            (format!("chain c {{ {own}; drop; }}\n"), "chain c { drop; }\n"),
            (format!("\t{own} # since May\n"), "# since May\n"),
            ("# ftp-alg-setup adds a rule here\n".to_owned(), "# ftp-alg-setup adds a rule here\n"),
            (format!("#{own}\n"), &*format!("#{own}\n")),
            (format!("# {LINE}\n"), &*format!("# {LINE}\n")),
            (format!("drop # not {own}\n"), &*format!("drop # not {own}\n")),
            (
                "drop comment \"before ftp-alg-setup\"\n".to_owned(),
                "drop comment \"before ftp-alg-setup\"\n",
            ),
        ] {
            assert_eq!(without_setup_lines(&line), rest, "{line}");
        }
    }

    #[test]
    fn undeclared_chain_gets_no_rule() {
        for text in
            ["", "*filter\nCOMMIT\n", "*filter\n:FORWARD-X DROP\nCOMMIT\n", "*filter\n:FORWARD -\n"]
        {
            assert_eq!(edited(text), None, "{text}");
        }
    }

    #[test]
    fn line_ends_of_the_file_are_preserved() {
        let text = SAVED.replace('\n', "\r\n");
        assert!(edited(&text).unwrap().contains(&format!("{LINE}\r\n")));
        let text = SAVED.trim_end();
        assert_eq!(without_setup_lines(&edited(text).unwrap()), text);
        assert_eq!(with_last_line("a", "b"), "a\nb\n");
        assert_eq!(with_last_line("", "b"), "b\n");
    }

    #[test]
    fn rule_is_added_at_the_end_of_its_chain_with_or_without_rules_and_counters() {
        for rules in ["", "[3:4] -A FORWARD -j A\n"] {
            let text = format!("*filter\n:FORWARD DROP [1:2]\n{rules}COMMIT\n");
            let expected = text.replace("COMMIT", &format!("{LINE}\nCOMMIT"));
            assert_eq!(edited(&text).unwrap(), expected);
        }
    }
}
