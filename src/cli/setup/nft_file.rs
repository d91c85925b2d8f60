//! Reads files that `nft -f` loads: finds base chains and includes, and adds a rule at the start of a chain.
//!
//! The parser knows only the blocks and statements that are needed to find base chains. It does not check the file,
//! because nft does that.

use std::ops::Range;

use super::file_edits::AcceptRule;

/// A base chain in a file.
#[derive(Debug, PartialEq, Eq)]
struct ChainInFile {
    /// Family, table and chain, as in `inet filter forward`.
    name: String,
    /// The range between the braces.
    body: Range<usize>,
    /// The position after the statement with the hook.
    after_hook: usize,
}

/// The base chains and includes of a file.
#[derive(Debug, Default)]
pub(super) struct NftFile {
    chains: Vec<ChainInFile>,
    /// The tables that it makes, family first.
    pub(super) tables: Vec<String>,
    /// The patterns in the file's `include` statements.
    pub(super) includes: Vec<String>,
}

/// A token of the nft language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Open,
    Close,
    /// A semicolon or the end of a line.
    End,
}

/// The tokens of `text` with their end positions, without comments.
fn tokens(text: &str) -> Vec<(Token<'_>, usize)> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let start = at;
        at += 1;
        match byte {
            b'{' => tokens.push((Token::Open, at)),
            b'}' => tokens.push((Token::Close, at)),
            b';' | b'\n' => tokens.push((Token::End, at)),
            b'#' => at = text[at..].find('\n').map_or(bytes.len(), |end| at + end),
            b'"' => {
                at = text[at..].find('"').map_or(bytes.len(), |end| at + end + 1);
                tokens.push((Token::Word(text[start + 1..at].trim_end_matches('"')), at));
            }
            b'\\' if bytes.get(at) == Some(&b'\n') => at += 1,
            _ if byte.is_ascii_whitespace() => {}
            _ => {
                let ends = |c: char| c.is_ascii_whitespace() || "{};#\"".contains(c);
                at = text[start..].find(ends).map_or(bytes.len(), |end| start + end);
                tokens.push((Token::Word(&text[start..at]), at));
            }
        }
    }
    tokens
}

const FAMILIES: [&str; 6] = ["ip", "ip6", "inet", "arp", "bridge", "netdev"];

/// The name with its family: `[FAMILY] REST...` becomes `FAMILY REST...`. The default family is `ip`.
fn full_name(words: &[&str]) -> String {
    match words.first() {
        Some(first) if FAMILIES.contains(first) => words.join(" "),
        _ => format!("ip {}", words.join(" ")),
    }
}

/// An open block.
enum Block {
    Table(String),
    Chain { name: String, start: usize, after_hook: Option<usize> },
    Other,
}

/// The block that starts after `words`.
fn block(open: &[Block], words: &[&str], start: usize) -> Block {
    let plain = match words {
        ["add" | "create", rest @ ..] => rest,
        all => all,
    };
    match (open.last(), plain) {
        (None, ["table", name @ ..]) => Block::Table(full_name(name)),
        (None, ["chain", name @ ..]) => {
            Block::Chain { name: full_name(name), start, after_hook: None }
        }
        (Some(Block::Table(table)), ["chain", name]) => {
            Block::Chain { name: format!("{table} {name}"), start, after_hook: None }
        }
        _ => Block::Other,
    }
}

impl NftFile {
    pub(super) fn parse(text: &str) -> Self {
        let mut script = Self::default();
        let mut open: Vec<Block> = Vec::new();
        let mut words: Vec<&str> = Vec::new();
        for (token, end) in tokens(text) {
            match token {
                Token::Word(word) => {
                    words.push(word);
                    continue;
                }
                Token::Open => {
                    let block = block(&open, &words, end);
                    if let Block::Table(name) = &block {
                        script.tables.push(name.clone());
                    }
                    open.push(block);
                }
                Token::Close => script.statement(&mut open, &words, end - 1),
                Token::End => script.statement(&mut open, &words, end),
            }
            let is_set = matches!(open.last(), Some(Block::Other));
            // A statement continues after a set of values in braces.
            if !is_set {
                words.clear();
            }
            if token == Token::Close
                && let Some(Block::Chain { name, start, after_hook: Some(after_hook) }) = open.pop()
            {
                script.chains.push(ChainInFile { name, body: start..end - 1, after_hook });
            }
        }
        script.statement(&mut open, &words, text.len());
        script
    }

    /// Reads the statement that ends at `end`.
    fn statement(&mut self, open: &mut [Block], words: &[&str], end: usize) {
        match (open.last_mut(), words) {
            (Some(Block::Chain { after_hook, .. }), ["type", _, "hook", ..]) => {
                *after_hook = Some(end);
            }
            (None, ["include", pattern]) => self.includes.push((*pattern).to_owned()),
            _ => {}
        }
    }
}

/// Adds `rule` at the start of the base chain `name`, as in `inet filter forward`.
///
/// Returns the text unchanged if the chain has an equivalent rule, and `None` if there is no such chain.
pub(super) fn with_rule(text: &str, name: &str, rule: &AcceptRule) -> Option<String> {
    let script = NftFile::parse(text);
    let chain = script.chains.into_iter().find(|chain| chain.name == name)?;
    if rule.has_equivalent_in(&text[chain.body.clone()]) {
        return Some(text.to_owned());
    }
    let mut at = chain.after_hook;
    // The policy is usually in the same line.
    let line_end = text[at..chain.body.end].find('\n').map_or(chain.body.end, |end| at + end + 1);
    while !text[..at].ends_with('\n') {
        let rest = &text[at..line_end];
        match rest.find(';').filter(|_| rest.trim_start().starts_with("policy")) {
            Some(end) => at += end + 1,
            None => break,
        }
    }
    let rest = text[at..line_end].trim();
    let ends_the_line = text[..at].ends_with('\n')
        || text[at..line_end].ends_with('\n') && (rest.is_empty() || rest.starts_with('#'));
    let hook_line = text[..chain.after_hook.min(at)].trim_end_matches('\n');
    let hook_line = hook_line.rsplit('\n').next().unwrap_or_default();
    let indent = &hook_line[..hook_line.len() - hook_line.trim_start().len()];
    let line = format!("{indent}{}\n", rule.nft_statement());
    let (at, line) = match ends_the_line {
        true if text[..at].ends_with('\n') => (at, line),
        true => (line_end, line),
        // The whole chain is in one line, so the line is broken here.
        false => (at, format!("\n{line}{indent}")),
    };
    Some(format!("{}{line}{}", &text[..at], &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::{super::file_edits::without_setup_lines, *};

    fn rule() -> AcceptRule {
        AcceptRule {
            condition: "ct mark & 0x40000000 != 0".into(),
            recognised_by: ["ct mark".into(), "0x40000000".into()],
        }
    }

    const LINE: &str = "ct mark & 0x40000000 != 0 accept comment \"ftp-alg-setup\"\n";

    #[test]
    fn rule_is_added_after_hook_and_policy() {
        let text = "#!/usr/sbin/nft -f\nflush ruleset\n\ntable inet filter {\n\tset s { type mark; }\n\
                    \tchain forward {\n\t\ttype filter hook forward priority 0; policy drop;\n\
                    \t\ttcp dport { 21, 22 } accept\n\t}\n}\n";
        let expected = text.replace("drop;\n", &format!("drop;\n\t\t{LINE}"));
        let edited = with_rule(text, "inet filter forward", &rule()).unwrap();
        assert_eq!(edited, expected);
        assert_eq!(without_setup_lines(&edited), text);
        assert_eq!(with_rule(&edited, "inet filter forward", &rule()).unwrap(), edited);
    }

    #[test]
    fn all_forms_of_a_chain_are_understood() {
        let cases = [
            (
                "table inet t { chain c { type filter hook forward priority 0; policy drop; accept; } }",
                "inet t c",
            ),
            (
                "table inet t { chain c { type filter hook forward priority 0; policy drop; } }",
                "inet t c",
            ),
            (
                "table t {\nchain c {\n  type filter hook input priority filter\n  policy drop\n}\n}",
                "ip t c",
            ),
            (
                "add table ip6 t\nadd chain ip6 t c { type filter hook input priority 0 ; }\n",
                "ip6 t c",
            ),
            (
                "create chain inet t c { type filter hook input priority 0; policy drop; }\n",
                "inet t c",
            ),
            (
                "table inet t { # chain x {\n chain c { # one\n type filter hook \\\n input priority 0; # two\n}\n}",
                "inet t c",
            ),
            (
                "table inet \"t\" {\n chain \"c\" {\n type filter hook input priority 0; policy drop; comment \"a;}\"; accept\n}\n}",
                "inet t c",
            ),
        ];
        for (text, name) in cases {
            let edited = with_rule(text, name, &rule()).unwrap_or_else(|| panic!("{text}"));
            let own: Vec<&str> = edited.lines().filter(|l| l.contains("ftp-alg-setup")).collect();
            assert_eq!(own.len(), 1, "{edited}");
            assert_eq!(own[0].trim(), LINE.trim(), "{edited}");
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(words(&without_setup_lines(&edited)), words(text));
        }
    }

    #[test]
    fn chain_without_hook_or_with_another_name_is_not_found() {
        let text = "table inet t {\n chain c {\n accept\n }\n chain d { type filter hook input priority 0; }\n}";
        for name in ["inet t c", "ip t d", "inet t e"] {
            assert_eq!(with_rule(text, name, &rule()), None, "{name}");
        }
        assert!(with_rule(text, "inet t d", &rule()).is_some());
    }

    #[test]
    fn equivalent_line_of_the_operator_is_enough() {
        let text = "table inet t {\n chain c {\n type filter hook input priority 0;\n \
                    ct mark and 0x40000000 != 0 accept\n }\n}";
        assert_eq!(with_rule(text, "inet t c", &rule()).unwrap(), text);
        let other = text.replace("ct mark", "# ct mark");
        assert_ne!(with_rule(&other, "inet t c", &rule()).unwrap(), other);
    }

    #[test]
    fn tables_are_found_and_not_what_deletes_or_names_them() {
        let text = "delete table inet ftp_alg\n# table inet ftp_alg {\nadd table ip6 a\ntable b {\n}\n\
                    add rule inet ftp_alg c accept\nadd table inet d { flags owner; }\ntable \\\n inet ftp_alg {";
        let script = NftFile::parse(text);
        assert_eq!(script.tables, ["ip b", "inet d", "inet ftp_alg"]);
    }

    #[test]
    fn includes_are_found_and_malformed_text_terminates() {
        let script =
            NftFile::parse("include \"/etc/nftables.d/*.nft\"\n include \"x\"; flush table t");
        assert_eq!(script.includes, ["/etc/nftables.d/*.nft", "x"]);
        for text in ["}}}}", "{{{{", "\"", "table {", "chain é {\n type x hook y\n", "\\", "#"] {
            let _ = with_rule(text, "ip t c", &rule());
            let _ = NftFile::parse(text);
        }
    }
}
