//! docs/messages.md lists every message of the program, with what it means and what to do.
//!
//! A message is a string literal of at least three words in the code of the product, or a shorter one that is logged or
//! an error. The test reads the code with
//! [`syn`], and compares with the page. `UPDATE=1 cargo test --test repo messages` writes the page again: new messages get
//! empty columns, which then fail the test until somebody fills them. A text that only occurs inside of messages goes
//! from the table of messages to that of parts, by hand, and stays there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

const PAGE: &str = "docs/messages.md";

/// The page's sections: which source files each has, the first that fits counts, and what stands above its table.
const SECTIONS: [(&str, &[&str], &str); 8] = [
    (
        "Sessions",
        &["crates/ftp-alg-core/src"],
        "The log lines of one session, after `#NUMBER CLIENT -> SERVER:`, and the reasons in them and in `replay`.",
    ),
    (
        "Configuration",
        &["src/config"],
        "What `check`, `run` and a reload say about the configuration file.",
    ),
    (
        "Firewall rules",
        &["src/gateway/firewall"],
        "What `doctor`, `setup` and `status` say about the rules of other programs.",
    ),
    (
        "Kernel",
        &["src/gateway"],
        "What the kernel refused, or lacks: queues, nf_tables, conntrack, the fast path.",
    ),
    (
        "Daemon",
        &["src/daemon"],
        "The log of the daemon, and the problems that `status` and `doctor` show.",
    ),
    ("Captures", &["src/replay", "src/cli/replay.rs"], "What `replay` says about a capture."),
    (
        "doctor and setup",
        &["src/cli/doctor.rs", "src/cli/doctor", "src/cli/setup.rs", "src/cli/setup"],
        "What `doctor`, `doctor --try` and `setup` print.",
    ),
    ("Other commands", &["src/cli", "src/main.rs", "src/lib.rs"], "What the other commands print."),
];

const MESSAGES_HEAD: &str = "| message | meaning | what to do |\n| --- | --- | --- |";
const PARTS_HEAD: &str = "| part | what it says |\n| --- | --- |";
/// What stands above lists of parts that say everything themselves.
const LISTS: [&str; 2] = [
    "Operations that failed, and the objects of errors. The reason follows in the message:",
    "Advice at the end of a message:",
];

/// The event of a session whose text is logged as it is.
const STATE_CHANGE: &str = "StateChanged";

/// Texts of at least this many words are messages; shorter ones are names and parts, except in macros of `tracing`,
/// in [`STATE_CHANGE`] and in some of [`ATTRIBUTES`].
const WORDS: usize = 3;

/// Macros and methods whose texts are for developers alone: they name what the code has excluded.
const INTERNAL: [&str; 12] = [
    "assert",
    "assert_eq",
    "assert_ne",
    "debug_assert",
    "debug_assert_eq",
    "debug_assert_ne",
    "expect",
    "expect_err",
    "include_bytes",
    "include_str",
    "panic",
    "unreachable",
];
/// Attributes with texts for users, and the least number of words. Those of clap are the help, which `ftp-alg help` and
/// the manual page show.
const ATTRIBUTES: [(&str, usize); 2] = [("error", 1), ("strum", WORDS)];

/// How texts begin that are no messages.
const NO_MESSAGES: [&str; 28] = [
    // commands and rules
    "list table ",
    "table inet {",
    "table inet ftp_alg_probe {",
    "-m ",
    "ct mark and ",
    "ct state ",
    "meta mark ",
    "queue flags ",
    "queue to ",
    "{before}port ",
    "{opening} flags ",
    "{} -m comment ",
    "{} accept comment ",
    "{family} {table} ",
    // files that `ftp-alg` writes
    "# By `ftp-alg setup",
    "<",
    "ExecStartPost=",
    "ftp-alg sessions, format",
    "{MAGIC}",
    // errors of `nft`, compared with its output
    "Interrupted system call",
    "No such file or directory",
    "Operation not permitted",
    "cache initialization failed",
    "not supported by",
    // parts of the help
    "EXIT STATUS:",
    "For more information",
    "The configuration file [default",
    // the layout of a line
    "{mark:<7} ",
];

/// What the page says of a message.
#[derive(Clone)]
enum Row {
    Message {
        meaning: String,
        action: String,
    },
    /// A text that only occurs inside of messages, and what it stands for.
    Part {
        meaning: String,
    },
    /// Such a text, in one of [`LISTS`].
    Listed(usize),
}

/// Collects the messages of one file.
#[derive(Default)]
struct Messages {
    texts: BTreeSet<String>,
}

impl Messages {
    /// Adds a literal of at least `least` words.
    fn add(&mut self, literal: &str, least: usize) {
        let text = literal.split_whitespace().collect::<Vec<_>>().join(" ");
        let words = text
            .split(' ')
            .filter(|word| word.chars().filter(|one| one.is_alphabetic()).count() > 1);
        let is_value = text.split(' ').all(|word| word.contains('{'));
        if words.count() >= least && !is_value && !is_code(&text) {
            self.texts.insert(text);
        }
    }

    fn add_tokens(&mut self, tokens: TokenStream, least: usize) {
        let mut before = String::new();
        // The value of the field `event` is a name.
        let mut is_event = false;
        for tree in tokens {
            match &tree {
                TokenTree::Group(group) if before == "#" => {
                    let inner = group.stream().to_string();
                    if let Some((_, least)) =
                        ATTRIBUTES.iter().find(|(name, _)| inner.starts_with(name))
                    {
                        self.add_tokens(group.stream(), *least);
                    }
                }
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

/// Whether this is text for other programs, and no message.
fn is_code(text: &str) -> bool {
    NO_MESSAGES.iter().any(|start| text.starts_with(start))
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
        {
            self.add_tokens(list.tokens.clone(), *least);
        }
    }

    fn visit_macro(&mut self, invocation: &'ast syn::Macro) {
        let is_log = invocation.path.segments.first().is_some_and(|first| first.ident == "tracing");
        let name = invocation.path.segments.last().map(|segment| segment.ident.to_string());
        if name.is_none_or(|name| !INTERNAL.contains(&name.as_str())) {
            self.add_tokens(invocation.tokens.clone(), if is_log { 1 } else { WORDS });
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
        if let syn::Expr::Path(function) = &*call.func
            && function.path.segments.last().is_some_and(|last| last.ident == STATE_CHANGE)
        {
            for argument in &call.args {
                if let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = argument {
                    self.add(&text.value(), 1);
                }
            }
        }
        visit::visit_expr_call(self, call);
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

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files of the product, without those that are tests.
fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![root().join("src"), root().join("crates/ftp-alg-core/src")];
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

fn section(file: &Path) -> usize {
    let file = file.strip_prefix(root()).unwrap();
    SECTIONS
        .iter()
        .position(|(_, places, _)| places.iter().any(|place| file.starts_with(place)))
        .unwrap()
}

/// The messages of each section.
fn in_code() -> Vec<BTreeSet<String>> {
    let parse = |path: PathBuf| {
        let file = syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap();
        (path, file)
    };
    let files: Vec<_> = sources().into_iter().map(parse).collect();
    let mut constants = Constants::default();
    files.iter().for_each(|(_, file)| constants.visit_file(file));
    let mut found = vec![BTreeSet::new(); SECTIONS.len()];
    for (path, file) in &files {
        let mut messages = Messages::default();
        messages.visit_file(file);
        let texts = messages.texts.iter().map(|text| constants.expand(text));
        found[section(path)].extend(texts);
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
    let (mut title, mut list) = ("", None);
    let sections = page.lines().skip_while(|line| !line.starts_with("## "));
    for line in sections {
        if let Some(heading) = line.strip_prefix("## ") {
            title = heading;
        }
        list = LISTS.iter().position(|heading| *heading == line).or(list);
        if let (Some(list), Some(text)) = (list, line.strip_prefix("- ")) {
            rows.insert((title.to_owned(), text.to_owned()), Row::Listed(list));
        }
        let Some(line) = line.strip_prefix("| `") else { continue };
        let line = line.strip_suffix(" |").unwrap_or_else(|| panic!("no row of a table: {line}"));
        let mut cells = line.split(" | ").map(|cell| cell.trim().to_owned());
        let text = cells.next().unwrap_or_default();
        let row = match cells.collect::<Vec<_>>() {
            cells if cells.len() == 1 => Row::Part { meaning: cells[0].clone() },
            cells if cells.len() == 2 => {
                Row::Message { meaning: cells[0].clone(), action: cells[1].clone() }
            }
            _ => panic!("neither two cells nor three: {line}"),
        };
        rows.insert((title.to_owned(), format!("`{text}")), row);
    }
    rows
}

/// The page: what stands above the first section stays as it is.
fn render(page: &str, messages: &[BTreeSet<String>]) -> String {
    let rows = in_page(page);
    let mut text = page.split("\n## ").next().unwrap_or_default().trim_end().to_owned();
    for ((title, _, intro), messages) in SECTIONS.iter().zip(messages) {
        let (mut whole, mut parts) = (String::new(), String::new());
        let mut lists = LISTS.map(|_| String::new());
        for message in messages {
            let key = ((*title).to_owned(), cell(message));
            match rows.get(&key) {
                Some(Row::Part { meaning }) => {
                    write!(parts, "\n| {} | {meaning} |", key.1).unwrap();
                }
                Some(Row::Message { meaning, action }) => {
                    write!(whole, "\n| {} | {meaning} | {action} |", key.1).unwrap();
                }
                Some(Row::Listed(list)) => write!(lists[*list], "\n- {}", key.1).unwrap(),
                None => write!(whole, "\n| {} |  |  |", key.1).unwrap(),
            }
        }
        write!(text, "\n\n## {title}\n\n{intro}\n\n{MESSAGES_HEAD}{whole}").unwrap();
        if !parts.is_empty() {
            write!(text, "\n\nParts of these messages:\n\n{PARTS_HEAD}{parts}").unwrap();
        }
        for (heading, list) in LISTS.iter().zip(&lists).filter(|(_, list)| !list.is_empty()) {
            write!(text, "\n\n{heading}\n{list}").unwrap();
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
    let is_empty = |row: &Row| match row {
        Row::Message { meaning, action } => meaning.is_empty() || action.is_empty(),
        Row::Part { meaning } => meaning.is_empty(),
        Row::Listed(_) => false,
    };
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

/// The messages in the log of a daemon, in either format.
fn logged(log: &str) -> impl Iterator<Item = String> {
    log.lines().filter_map(|line| {
        if line.starts_with('{') {
            let record: serde_json::Value = serde_json::from_str(line).ok()?;
            return record["message"].as_str().map(str::to_owned);
        }
        let levels = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"];
        let (_, after_time) = line.split_once(' ')?;
        let (level, message) = after_time.trim_start().split_once(' ')?;
        levels.contains(&level).then(|| message.trim_start().to_owned())
    })
}

/// `make test` runs this after the end-to-end tests, whose daemons leave their logs in FTP_ALG_LAB_LOGS.
#[test]
#[ignore = "make test runs it after the end-to-end tests, whose logs it reads"]
fn each_logged_line_is_on_the_page() {
    let page = fs::read_to_string(root().join(PAGE)).unwrap();
    let rows = in_page(&page).into_iter();
    // An error may consist of its object and the kernel's reason.
    let is_whole = |row: &Row| matches!(row, Row::Message { .. } | Row::Listed(0));
    let messages = rows.filter(|(_, row)| is_whole(row));
    let patterns: Vec<_> = messages.filter_map(|((_, cell), _)| Pattern::new(&cell)).collect();
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
    let is_listed = |line: &&String| patterns.iter().any(|pattern| pattern.is_in(line));
    let unlisted: Vec<_> = lines.values().filter(|line| !is_listed(line)).collect();
    println!("{} different lines in the logs, {} not listed", lines.len(), unlisted.len());
    assert!(unlisted.is_empty(), "{PAGE} does not have {unlisted:#?}");
}
