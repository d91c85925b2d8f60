//! docs/messages.md lists what the daemon logs, with what it means and what to do. Texts of errors and of commands say
//! that themselves.
//!
//! A message is a string literal of at least three words in the code of sessions, or a text that the daemon logs. The test
//! reads the code with [`syn`], and compares with the page. `UPDATE=1 cargo test --test repo messages` writes the page
//! again: new messages get empty columns, which then fail the test until somebody fills them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

const PAGE: &str = "docs/messages.md";

/// A section of the page.
struct Section {
    title: &'static str,
    /// The source files whose messages it has.
    sources: &'static [&'static str],
    /// Whether only logged texts are messages there.
    is_log: bool,
    /// What stands above its table.
    intro: &'static str,
}

const SECTIONS: [Section; 2] = [
    Section {
        title: "Sessions",
        sources: &[
            "crates/ftp-alg-core/src/engine",
            "crates/ftp-alg-core/src/ftp",
            "crates/ftp-alg-core/src/session",
        ],
        is_log: false,
        intro: "The log lines of one session, after `#NUMBER CLIENT -> SERVER:`, and the reasons in them and in `replay`.",
    },
    Section {
        title: "Daemon",
        sources: &["src", "crates/ftp-alg-fastpath/src", "crates/ftp-alg-firewall/src"],
        is_log: true,
        intro: "The other log lines. [Health](health.md) lists the problems by name.",
    },
];

const HEAD: &str = "| message | meaning | what to do |\n| --- | --- | --- |";

/// The event of a session whose text is logged as it is.
const STATE_CHANGE: &str = "StateChanged";

/// Texts of at least this many words are messages; shorter ones are names and parts, except in macros of `tracing`,
/// in [`STATE_CHANGE`] and in some of [`ATTRIBUTES`].
const WORDS: usize = 3;

/// The levels that are logged by default.
const LEVELS: [&str; 3] = ["ERROR", "WARN", "INFO"];

/// Macros, methods and functions whose texts are for developers alone: they name what the code has excluded, or are
/// logged at the level `trace`.
const INTERNAL: [&str; 12] = [
    "assert",
    "assert_eq",
    "assert_ne",
    "debug_assert",
    "debug_assert_eq",
    "debug_assert_ne",
    "expect",
    "expect_err",
    "panic",
    "pass_unread",
    "trace_unread",
    "unreachable",
];
/// Attributes with reasons, and their least number of words.
const ATTRIBUTES: [(&str, usize); 2] = [("error", 1), ("strum", WORDS)];

/// How texts begin that explain themselves: the longer form of a reply to the client.
const LONG_REPLY: &str = "Refused by the gateway: ";
/// How texts begin that are built before they are logged.
const BUILT: [&str; 6] = [
    "{lines} more lines",
    "{client} -> {server}: pinhole expired",
    "cannot write journal",
    "table inet ftp_alg was",
    "cannot read all rules",
    "rule translates unknown",
];
/// What stands in an error of the kernel, or of the configuration, which explains itself.
const ERRORS: [&str; 4] = ["(os error ", ": failed: ", ": open pinhole ", "ftp-alg.toml:"];

/// What the page says of a message.
struct Row {
    meaning: String,
    action: String,
}

/// Collects the messages of one file.
struct Messages {
    is_log: bool,
    texts: BTreeSet<String>,
}

impl Messages {
    /// Adds a literal of at least `least` words. In a log a longer one counts only if it is built there.
    fn add(&mut self, literal: &str, least: usize) {
        let text = literal.split_whitespace().collect::<Vec<_>>().join(" ");
        let words = text
            .split(' ')
            .filter(|word| word.chars().filter(|one| one.is_alphabetic()).count() > 1);
        let is_value = text.split(' ').all(|word| word.contains('{'));
        let is_other = self.is_log && least == WORDS && !is_built(&text);
        if words.count() >= least && !is_value && !is_other && !text.starts_with(LONG_REPLY) {
            self.texts.insert(text);
        }
    }

    fn add_tokens(&mut self, tokens: TokenStream, least: usize) {
        let mut before = String::new();
        // The value of the field `event` is a name.
        let mut is_event = false;
        for tree in tokens {
            match &tree {
                TokenTree::Group(_) if before == "#" => {}
                TokenTree::Group(group) if !INTERNAL.contains(&before.as_str()) => {
                    self.add_tokens(group.stream(), least);
                }
                TokenTree::Literal(_) if is_event => is_event = false,
                TokenTree::Literal(literal) => {
                    if let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string()) {
                        self.add(&text.value(), least);
                    }
                }
                TokenTree::Ident(name) if name == "event" => is_event = true,
                _ => {}
            }
            if !matches!(&tree, TokenTree::Punct(mark) if mark.as_char() == '!') {
                before = tree.to_string();
            }
        }
    }
}

fn is_built(text: &str) -> bool {
    BUILT.iter().any(|start| text.starts_with(start))
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    let is_cfg_test = |attribute: &syn::Attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test")
    };
    attributes.iter().any(|attribute| attribute.path().is_ident("test") || is_cfg_test(attribute))
}

impl<'ast> Visit<'ast> for Messages {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if let syn::Meta::List(list) = &attribute.meta
            && let Some((_, least)) = ATTRIBUTES.iter().find(|(name, _)| list.path.is_ident(name))
            && !self.is_log
        {
            self.add_tokens(list.tokens.clone(), *least);
        }
    }

    fn visit_macro(&mut self, invocation: &'ast syn::Macro) {
        let segments = &invocation.path.segments;
        let Some(name) = segments.last().map(|last| last.ident.to_string()) else { return };
        if segments[0].ident == "tracing" {
            if LEVELS.contains(&name.to_uppercase().as_str()) {
                self.add_tokens(invocation.tokens.clone(), 1);
            }
        } else if !INTERNAL.contains(&name.as_str()) {
            self.add_tokens(invocation.tokens.clone(), WORDS);
        }
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        if !INTERNAL.contains(&call.method.to_string().as_str()) {
            visit::visit_expr_method_call(self, call);
        } else {
            self.visit_expr(&call.receiver);
        }
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        let name = match &*call.func {
            syn::Expr::Path(function) => function.path.segments.last().map(|last| &last.ident),
            _ => None,
        };
        if name.is_some_and(|name| name == STATE_CHANGE) {
            for argument in &call.args {
                if let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = argument {
                    self.add(&text.value(), 1);
                }
            }
        }
        if name.is_none_or(|name| !INTERNAL.contains(&name.to_string().as_str())) {
            visit::visit_expr_call(self, call);
        }
    }

    fn visit_lit_str(&mut self, literal: &'ast syn::LitStr) {
        self.add(&literal.value(), WORDS);
    }
}

/// Constants that are a string or a number, by name; `None` if several have one name.
#[derive(Default)]
struct Constants(BTreeMap<String, Option<String>>);

impl Constants {
    /// `text` with the values of constants in place of their names.
    fn expand(&self, text: &str) -> String {
        let known = self.0.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        known.fold(text.to_owned(), |text, (name, value)| {
            text.replace(&format!("{{{name}}}"), value)
        })
    }
}

impl<'ast> Visit<'ast> for Constants {
    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        let syn::Expr::Lit(literal) = &*item.expr else { return };
        let value = match &literal.lit {
            syn::Lit::Str(text) => text.value(),
            syn::Lit::Int(number) => number.base10_digits().to_owned(),
            _ => return,
        };
        let name = item.ident.to_string();
        let same = |known: &Option<String>| known.as_ref() == Some(&value);
        let is_unique = self.0.get(&name).is_none_or(same);
        self.0.insert(name, is_unique.then_some(value));
    }
}

/// The texts of errors, which say what to do themselves.
#[derive(Default)]
struct ErrorTexts(Vec<String>);

impl<'ast> Visit<'ast> for ErrorTexts {
    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        let syn::Meta::List(list) = &attribute.meta else { return };
        let first = list.tokens.clone().into_iter().next().filter(|_| list.path.is_ident("error"));
        let literal = first.and_then(|first| syn::parse2::<syn::LitStr>(first.into()).ok());
        self.0.extend(literal.map(|literal| literal.value()));
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files of the product, without those that are tests.
fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let places = SECTIONS.iter().flat_map(|section| section.sources);
    let mut directories: Vec<_> = places.map(|place| root().join(place)).collect();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && name != "tests"
                && !name.ends_with("_tests")
            {
                files.push(path);
            }
        }
    }
    files
}

fn section(file: &Path) -> Option<usize> {
    let file = file.strip_prefix(root()).unwrap();
    SECTIONS.iter().position(|section| section.sources.iter().any(|place| file.starts_with(place)))
}

/// The files of the product, parsed.
fn parsed_sources() -> Vec<(PathBuf, syn::File)> {
    let parse = |path: PathBuf| {
        let file = syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap();
        (path, file)
    };
    sources().into_iter().map(parse).collect()
}

/// The messages of each section.
fn in_code() -> Vec<BTreeSet<String>> {
    let files = parsed_sources();
    let mut constants = Constants::default();
    files.iter().for_each(|(_, file)| constants.visit_file(file));
    let mut found = vec![BTreeSet::new(); SECTIONS.len()];
    for (path, file) in &files {
        let Some(section) = section(path) else { continue };
        let mut messages = Messages { is_log: SECTIONS[section].is_log, texts: BTreeSet::new() };
        messages.visit_file(file);
        found[section].extend(messages.texts.iter().map(|text| constants.expand(text)));
    }
    found
}

/// A message as a cell of a table.
fn cell(text: &str) -> String {
    let text = text.replace('|', "\\|");
    if text.contains('`') { format!("`` {text} ``") } else { format!("`{text}`") }
}

/// The rows of the page by their first cells, in each section.
fn in_page(page: &str) -> BTreeMap<(String, String), Row> {
    let mut rows = BTreeMap::new();
    let mut title = "";
    for line in page.lines().skip_while(|line| !line.starts_with("## ")) {
        if let Some(heading) = line.strip_prefix("## ") {
            title = heading;
        }
        let Some(line) = line.strip_prefix("| `") else { continue };
        let cells: Vec<_> = line.trim_end_matches(" |").split(" | ").map(str::trim).collect();
        let [text, meaning, action] = cells[..] else { panic!("no row of three cells: {line}") };
        let row = Row { meaning: meaning.to_owned(), action: action.to_owned() };
        rows.insert((title.to_owned(), format!("`{text}")), row);
    }
    rows
}

/// The page: what stands above the first section stays as it is.
fn render(page: &str, messages: &[BTreeSet<String>]) -> String {
    let rows = in_page(page);
    let mut text = page.split("\n## ").next().unwrap_or_default().trim_end().to_owned();
    for (Section { title, intro, .. }, messages) in SECTIONS.iter().zip(messages) {
        write!(text, "\n\n## {title}\n\n{intro}\n\n{HEAD}").unwrap();
        for message in messages {
            let key = ((*title).to_owned(), cell(message));
            let (meaning, action) = match rows.get(&key) {
                Some(row) => (&*row.meaning, &*row.action),
                None => ("", ""),
            };
            write!(text, "\n| {} | {meaning} | {action} |", key.1).unwrap();
        }
    }
    text.push('\n');
    text
}

#[test]
fn the_page_lists_every_message() {
    let path = root().join(PAGE);
    let page = fs::read_to_string(&path).unwrap_or_default();
    let wanted = render(&page, &in_code());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    let (listed, wanted_rows) = (in_page(&page), in_page(&wanted));
    let missing: Vec<_> = wanted_rows.keys().filter(|key| !listed.contains_key(*key)).collect();
    let stale: Vec<_> = listed.keys().filter(|key| !wanted_rows.contains_key(*key)).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "{PAGE} lacks {missing:#?}\nand has {stale:#?}, which no code says: UPDATE=1 cargo test --test repo messages, and fill in the rows"
    );
    assert!(
        page == wanted,
        "{PAGE} is not as the test writes it: UPDATE=1 cargo test --test repo messages"
    );
}

#[test]
fn every_row_says_what_it_means_and_what_to_do() {
    let page = fs::read_to_string(root().join(PAGE)).unwrap();
    let is_empty = |row: &Row| row.meaning.is_empty() || row.action.is_empty();
    let rows = in_page(&page).into_iter();
    let empty: Vec<_> =
        rows.filter(|(_, row)| is_empty(row)).map(|((_, message), _)| message).collect();
    assert!(empty.is_empty(), "{PAGE} does not explain {empty:#?}");
}

/// The fixed text of a message, without its values.
struct Pattern(Vec<String>);

impl Pattern {
    /// From the first cell of a row; `None` if it has less fixed text than a word.
    fn new(cell: &str) -> Option<Self> {
        let text = cell.trim_matches('`').trim().replace("\\|", "|");
        let text = text.replace("{{", "\u{1}").replace("}}", "\u{2}");
        let mut fixed = Vec::new();
        for piece in text.split('{') {
            let after_value = piece.split_once('}').map_or(piece, |(_, after)| after);
            fixed.push(after_value.replace('\u{1}', "{").replace('\u{2}', "}"));
        }
        let length: usize = fixed.iter().map(|piece| piece.trim().len()).sum();
        (length >= 6).then_some(Self(fixed))
    }

    fn is_in(&self, line: &str) -> bool {
        let after = |rest, piece: &String| {
            let rest: &str = rest;
            rest.find(piece).map(|at| &rest[at + piece.len()..])
        };
        self.0.iter().try_fold(line, after).is_some()
    }
}

/// The messages in the log of a daemon, in either format, at the levels that are logged by default.
fn logged(log: &str) -> impl Iterator<Item = String> {
    log.lines().filter_map(|line| {
        if line.starts_with('{') {
            let record: serde_json::Value = serde_json::from_str(line).ok()?;
            let is_usual = LEVELS.contains(&record["level"].as_str()?);
            return record["message"].as_str().filter(|_| is_usual).map(str::to_owned);
        }
        let (_, after_time) = line.split_once(' ')?;
        let (level, message) = after_time.trim_start().split_once(' ')?;
        LEVELS.contains(&level).then(|| message.trim_start().to_owned())
    })
}

/// `make test` runs this after the end-to-end tests, whose daemons leave their logs in FTP_ALG_LAB_LOGS.
#[test]
#[ignore = "make test runs it after the end-to-end tests, whose logs it reads"]
fn each_logged_line_is_on_the_page() {
    let page = fs::read_to_string(root().join(PAGE)).unwrap();
    let rows = in_page(&page).into_iter();
    let mut patterns: Vec<_> = rows.filter_map(|((_, cell), _)| Pattern::new(&cell)).collect();
    let mut errors = ErrorTexts::default();
    parsed_sources().iter().for_each(|(_, file)| errors.visit_file(file));
    assert!(errors.0.len() > 50, "only {} texts of errors", errors.0.len());
    patterns.extend(errors.0.iter().filter_map(|text| Pattern::new(text)));
    let directory = std::env::var_os("FTP_ALG_LAB_LOGS").expect("FTP_ALG_LAB_LOGS is set");
    // Equal but for their numbers, lines are one message.
    let mut lines = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let log = fs::read(entry.unwrap().path()).unwrap();
        for line in logged(&String::from_utf8_lossy(&log)) {
            let shape = line.replace(|digit: char| digit.is_ascii_digit(), "");
            lines.entry(shape).or_insert(line);
        }
    }
    assert!(lines.len() > 50, "only {} different lines", lines.len());
    let is_listed = |line: &&String| {
        patterns.iter().any(|pattern| pattern.is_in(line))
            || ERRORS.iter().any(|part| line.contains(part))
    };
    let unlisted: Vec<_> = lines.values().filter(|line| !is_listed(line)).collect();
    println!("{} different lines in the logs, {} not listed", lines.len(), unlisted.len());
    assert!(unlisted.is_empty(), "{PAGE} does not have {unlisted:#?}");
}
