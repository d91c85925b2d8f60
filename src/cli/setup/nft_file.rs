//! Reads files that `nft -f` loads: finds chains with their rules, and includes, and adds a rule to a chain.
//!
//! The parser knows only the blocks and statements that are needed to find rules. It does not check the file, because
//! nft does that.

use std::ops::Range;

use ftp_alg_firewall::RulePlace;

use super::file_edits::AcceptRule;

/// A chain in a file.
#[derive(Debug, PartialEq, Eq)]
struct ChainInFile {
    /// Family, table and chain, as in `inet filter forward`.
    name: String,
    /// The range between the braces.
    body: Range<usize>,
    /// The position after the statement with the hook, if there is one.
    after_hook: Option<usize>,
    rules: Vec<RuleInFile>,
}

/// A rule in a file.
#[derive(Debug, PartialEq, Eq)]
struct RuleInFile {
    text: Range<usize>,
    /// The position after the semicolon or the line end.
    end: usize,
    /// Whether it is in the block of its chain, and not in a command (`add rule`).
    is_in_block: bool,
}

/// The chains and includes of a file.
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

/// The tokens of `text` with their positions, without comments.
fn tokens(text: &str) -> Vec<(Token<'_>, Range<usize>)> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let start = at;
        at += 1;
        match byte {
            b'{' => tokens.push((Token::Open, start..at)),
            b'}' => tokens.push((Token::Close, start..at)),
            b';' | b'\n' => tokens.push((Token::End, start..at)),
            b'#' => at = text[at..].find('\n').map_or(bytes.len(), |end| at + end),
            b'"' => {
                at = text[at..].find('"').map_or(bytes.len(), |end| at + end + 1);
                tokens.push((Token::Word(text[start + 1..at].trim_end_matches('"')), start..at));
            }
            b'\\' if bytes.get(at) == Some(&b'\n') => at += 1,
            _ if byte.is_ascii_whitespace() => {}
            _ => {
                let ends = |c: char| c.is_ascii_whitespace() || "{};#\"".contains(c);
                at = text[start..].find(ends).map_or(bytes.len(), |end| start + end);
                tokens.push((Token::Word(&text[start..at]), start..at));
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

/// The name of the chain to which a command adds a rule at the end.
fn chain_of_command(words: &[&str]) -> Option<String> {
    let name = match words {
        ["add", "rule", name @ ..] | ["rule", name @ ..] => name,
        _ => return None,
    };
    let length = if FAMILIES.contains(name.first()?) { 3 } else { 2 };
    Some(full_name(name.get(..length)?))
}

/// An open block.
enum Block {
    Table(String),
    Chain(ChainInFile),
    Other,
}

/// The block that starts after `words`.
fn block(open: &[Block], words: &[&str], start: usize) -> Block {
    let plain = match words {
        ["add" | "create", rest @ ..] => rest,
        all => all,
    };
    let chain = |name| {
        let (body, rules) = (start..start, Vec::new());
        Block::Chain(ChainInFile { name, body, after_hook: None, rules })
    };
    match (open.last(), plain) {
        (None, ["table", name @ ..]) => Block::Table(full_name(name)),
        (None, ["chain", name @ ..]) => chain(full_name(name)),
        (Some(Block::Table(table)), ["chain", name]) => chain(format!("{table} {name}")),
        _ => Block::Other,
    }
}

impl NftFile {
    pub(super) fn parse(text: &str) -> Self {
        let mut script = Self::default();
        let mut open: Vec<Block> = Vec::new();
        let mut words: Vec<&str> = Vec::new();
        // The statement's range without its end.
        let mut range: Option<Range<usize>> = None;
        for (token, at) in tokens(text) {
            let end = at.end;
            let so_far = range.clone().unwrap_or(at.clone());
            match token {
                Token::Word(word) => {
                    words.push(word);
                    range = Some(so_far.start..end);
                    continue;
                }
                Token::Open => {
                    let block = block(&open, &words, end);
                    range = Some(so_far.start..end);
                    if let Block::Table(name) = &block {
                        script.tables.push(name.clone());
                    }
                    open.push(block);
                }
                Token::Close => script.statement(&mut open, &words, so_far, end - 1),
                Token::End => script.statement(&mut open, &words, so_far, end),
            }
            let is_set = matches!(open.last(), Some(Block::Other));
            // A statement continues after a set of values in braces.
            if !is_set {
                words.clear();
                range = None;
            }
            if token != Token::Close {
                continue;
            }
            match open.pop() {
                Some(Block::Chain(mut chain)) => {
                    chain.body.end = end - 1;
                    script.add_chain(chain);
                }
                Some(Block::Other) => range = range.map(|range| range.start..end),
                _ => {}
            }
        }
        let rest = range.unwrap_or(text.len()..text.len());
        script.statement(&mut open, &words, rest, text.len());
        script
    }

    /// Adds a block of a chain, which may have more than one.
    fn add_chain(&mut self, chain: ChainInFile) {
        match self.chains.iter_mut().find(|known| known.name == chain.name) {
            Some(known) => {
                known.rules.extend(chain.rules);
                if chain.after_hook.is_some() {
                    (known.body, known.after_hook) = (chain.body, chain.after_hook);
                }
            }
            None => self.chains.push(chain),
        }
    }

    /// Reads the statement at `range`, behind which the next one starts at `end`.
    fn statement(&mut self, open: &mut [Block], words: &[&str], range: Range<usize>, end: usize) {
        let rule = |is_in_block| RuleInFile { text: range, end, is_in_block };
        match (open.last_mut(), words) {
            (Some(Block::Chain(chain)), ["type", _, "hook", ..]) => chain.after_hook = Some(end),
            (
                Some(Block::Chain(_)),
                [] | ["type" | "policy" | "comment" | "flags" | "device" | "devices", ..],
            ) => {}
            (Some(Block::Chain(chain)), _) => chain.rules.push(rule(true)),
            (None, ["include", pattern]) => self.includes.push((*pattern).to_owned()),
            (None, words) => {
                let name = chain_of_command(words);
                let chain = self.chains.iter_mut().find(|chain| Some(&chain.name) == name.as_ref());
                if let Some(chain) = chain {
                    chain.rules.push(rule(false));
                }
            }
            _ => {}
        }
    }
}

/// Adds `rule` to the chain `name`, as in `inet filter forward`.
///
/// Returns the text unchanged if the chain has an equivalent rule, and `None` if there is no such chain.
pub(super) fn with_rule(
    text: &str,
    name: &str,
    place: &RulePlace,
    rule: &AcceptRule,
) -> Option<String> {
    let script = NftFile::parse(text);
    let chain = script.chains.into_iter().find(|chain| chain.name == name)?;
    let rules: Vec<&str> = chain.rules.iter().map(|one| &text[one.text.clone()]).collect();
    if rules.iter().any(|one| rule.has_equivalent_in(one)) {
        return Some(text.to_owned());
    }
    let previous = place.index_in(&rules).checked_sub(1).map(|index| &chain.rules[index]);
    let in_block = previous.is_none_or(|previous| previous.is_in_block);
    let after_hook = chain.after_hook.unwrap_or(chain.body.start);
    let mut at = previous.map_or(after_hook, |previous| previous.end);
    let limit = if previous.is_some() { text.len() } else { chain.body.end };
    // The policy is usually in the same line.
    let line_end = text[at..limit].find('\n').map_or(limit, |end| at + end + 1);
    while previous.is_none() && !text[..at].ends_with('\n') {
        let rest = &text[at..line_end];
        match rest.find(';').filter(|_| rest.trim_start().starts_with("policy")) {
            Some(end) => at += end + 1,
            None => break,
        }
    }
    let rest = text[at..line_end].trim();
    let ends_the_line = text[..at].ends_with('\n')
        || text[at..line_end].ends_with('\n') && (rest.is_empty() || rest.starts_with('#'));
    let before = match previous {
        Some(previous) => &text[..previous.text.start],
        None => text[..after_hook.min(at)].trim_end_matches('\n'),
    };
    let line = before.rsplit('\n').next().unwrap_or_default();
    let indent = &line[..line.len() - line.trim_start().len()];
    let command = if in_block { String::new() } else { format!("add rule {name} ") };
    let line = format!("{indent}{command}{}\n", rule.nft_statement());
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

    /// A place at the top of a chain.
    fn top() -> RulePlace {
        RulePlace::new("c", &["drop", "nothing"], Some(0))
    }

    const LINE: &str = "ct mark & 0x40000000 != 0 accept comment \"ftp-alg-setup\"\n";

    #[test]
    fn rule_is_added_after_hook_and_policy() {
        let text = "#!/usr/sbin/nft -f\nflush ruleset\n\ntable inet filter {\n\tset s { type mark; }\n\
                    \tchain forward {\n\t\ttype filter hook forward priority 0; policy drop;\n\
                    \t\ttcp dport { 21, 22 } accept\n\t}\n}\n";
        let expected = text.replace("drop;\n", &format!("drop;\n\t\t{LINE}"));
        let edited = with_rule(text, "inet filter forward", &top(), &rule()).unwrap();
        assert_eq!(edited, expected);
        assert_eq!(without_setup_lines(&edited), text);
        assert_eq!(with_rule(&edited, "inet filter forward", &top(), &rule()).unwrap(), edited);
    }

    #[test]
    fn all_forms_of_a_chain_are_understood() {
        // ` / ` begins a line.
        let forms = r#"
            inet t c: table inet t { chain c { type filter hook forward priority 0; policy drop; accept; } }
            inet t c: table inet t { chain c { type filter hook forward priority 0; policy drop; } }
            ip t c: table t { / chain c { / type filter hook input priority filter / policy drop / } / }
            ip6 t c: add table ip6 t / add chain ip6 t c { type filter hook input priority 0 ; }
            inet t c: create chain inet t c { type filter hook input priority 0; policy drop; }
            inet t c: table inet t { # chain x { / chain c { # one / type filter hook \ / input priority 0; # two / } / }
            inet t c: table inet "t" { / chain "c" { / type filter hook input priority 0; policy drop; comment "a;}"; accept / } / }
        "#;
        for form in forms.trim().lines() {
            let (name, text) = form.trim().split_once(": ").unwrap();
            let text = &text.replace(" / ", "\n");
            let edited = with_rule(text, name, &top(), &rule()).unwrap_or_else(|| panic!("{text}"));
            let own: Vec<&str> = edited.lines().filter(|l| l.contains("ftp-alg-setup")).collect();
            assert_eq!(own.len(), 1, "{edited}");
            assert_eq!(own[0].trim(), LINE.trim(), "{edited}");
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(words(&without_setup_lines(&edited)), words(text));
        }
    }

    #[test]
    fn rule_is_added_at_its_place_in_the_chain() {
        let hook = "type filter hook forward priority 0; policy drop;";
        // ` / ` begins a line, and `>` is the place.
        let table = |chain: &str| {
            let chain = chain.replace(" / ", "\n\t\t").replace("HOOK", hook);
            format!("table inet t {{\n\tchain c {{ {chain}\n\t}}\n}}\n")
        };
        let tables = [
            "HOOK / ip saddr @b drop / ct state established accept # old / >tcp dport { 1, 2 } accept",
            "HOOK / ct state { / \testablished, / \trelated / } counter accept / >drop",
            "HOOK / ct state vmap { established : accept, invalid : drop }; / >drop",
            "HOOK / ct state established accept comment \"a; b\" / >drop",
            "HOOK / ip saddr @b \\ / drop / ct state established \\ / accept / >",
            "comment \"x\" / HOOK / ip saddr @b drop / ct state established accept / >",
            // A chain to which others jump.
            " / ct state established accept / >ct state invalid drop",
        ];
        // A chain in several blocks, and commands.
        let blocks = table("HOOK") + &table(" / ct state established accept / >");
        let commands = ["ip saddr @b drop", "ct state established accept", "drop"];
        let [first, second, last] = commands.map(|rule| format!("add rule inet t c {rule}\n"));
        let commands = table("HOOK") + &first + &second + ">" + &last;
        for marked in tables.map(table).into_iter().chain([blocks, commands]) {
            let line = match marked.contains(">add") {
                true => format!("add rule inet t c {LINE}"),
                false => format!("{LINE}\t\t"),
            };
            let text = marked.replace('>', "");
            let place = RulePlace::new("c", &["ct state established accept"], None);
            let edited = with_rule(&text, "inet t c", &place, &rule()).unwrap();
            assert_eq!(edited, marked.replace('>', &line));
            assert_eq!(without_setup_lines(&edited), text);
        }
        // The line is broken behind the rule.
        let text =
            format!("table inet t {{ chain c {{ {hook} ct state established accept; drop; }} }}");
        let place = RulePlace::new("c", &["ct state established accept"], None);
        let edited = with_rule(&text, "inet t c", &place, &rule()).unwrap();
        assert_eq!(
            edited,
            text.replace("accept;", &format!("accept;\n{}", LINE.trim_end()))
                .replace("\" drop", "\"\n drop")
        );
    }

    #[test]
    fn chain_with_another_name_is_not_found() {
        let text = "table inet t {\n chain c {\n accept\n }\n chain d { type filter hook input priority 0; }\n}";
        for name in ["ip t c", "ip t d", "inet t e"] {
            assert_eq!(with_rule(text, name, &top(), &rule()), None, "{name}");
        }
        assert!(with_rule(text, "inet t d", &top(), &rule()).is_some());
    }

    #[test]
    fn equivalent_line_of_the_operator_is_enough() {
        let text = "table inet t {\n chain c {\n type filter hook input priority 0;\n \
                    ct mark and 0x40000000 != 0 accept\n }\n}";
        assert_eq!(with_rule(text, "inet t c", &top(), &rule()).unwrap(), text);
        let other = text.replace("ct mark", "# ct mark");
        assert_ne!(with_rule(&other, "inet t c", &top(), &rule()).unwrap(), other);
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
            let _ = with_rule(text, "ip t c", &top(), &rule());
            let _ = NftFile::parse(text);
        }
    }
}
