//! docs/messages.md lists every message of the program, with what it means and what to do.
//!
//! A message is a string literal of at least three words in the code of the product. The test reads the code with
//! [`syn`], and compares with the table. `UPDATE=1 cargo test --test messages` writes the table again: new messages get
//! empty columns, which then fail the test until somebody fills them.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

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

/// Texts of at least this many words are messages; shorter ones are names and parts.
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
/// Attributes with texts for users. Those of clap are the help, which `ftp-alg help` and the manual page show.
const ATTRIBUTES: [&str; 2] = ["error", "strum"];

/// What a row of the page says of a message.
#[derive(Clone, Default)]
struct Row {
    meaning: String,
    action: String,
}

/// Collects the messages of one file.
#[derive(Default)]
struct Messages {
    texts: BTreeSet<String>,
}

impl Messages {
    fn add(&mut self, literal: &str) {
        let text = literal.split_whitespace().collect::<Vec<_>>().join(" ");
        let words = text
            .split(' ')
            .filter(|word| word.chars().filter(|one| one.is_alphabetic()).count() > 1);
        if words.count() >= WORDS && !is_code(&text) {
            self.texts.insert(text);
        }
    }

    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut before = String::new();
        for tree in tokens {
            match &tree {
                TokenTree::Group(group) if before == "#" => {
                    let inner = group.stream().to_string();
                    if ATTRIBUTES.iter().any(|name| inner.starts_with(name)) {
                        self.add_tokens(group.stream());
                    }
                }
                TokenTree::Group(group) if !INTERNAL.contains(&before.as_str()) => {
                    self.add_tokens(group.stream());
                }
                TokenTree::Literal(literal) => {
                    if let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string()) {
                        self.add(&text.value());
                    }
                }
                _ => {}
            }
            if !matches!(&tree, TokenTree::Punct(mark) if mark.as_char() == '!') {
                before = tree.to_string();
            }
        }
    }
}

/// Rules, commands and formats that other programs read.
fn is_code(text: &str) -> bool {
    let starts = [
        "add ",
        "delete ",
        "list ",
        "table ",
        "chain ",
        "type ",
        "-A ",
        "-I ",
        "-m ",
        "<svg",
        "complete ",
    ];
    starts.iter().any(|start| text.starts_with(start))
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
        let is_text = |path: &syn::Path| ATTRIBUTES.iter().any(|name| path.is_ident(name));
        if let syn::Meta::List(list) = &attribute.meta
            && is_text(&list.path)
        {
            self.add_tokens(list.tokens.clone());
        }
    }

    fn visit_macro(&mut self, invocation: &'ast syn::Macro) {
        let name = invocation.path.segments.last().map(|segment| segment.ident.to_string());
        if name.is_none_or(|name| !INTERNAL.contains(&name.as_str())) {
            self.add_tokens(invocation.tokens.clone());
        }
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        if !INTERNAL.contains(&call.method.to_string().as_str()) {
            visit::visit_expr_method_call(self, call);
        } else {
            self.visit_expr(&call.receiver);
        }
    }

    fn visit_lit_str(&mut self, literal: &'ast syn::LitStr) {
        self.add(&literal.value());
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
    let mut found = vec![BTreeSet::new(); SECTIONS.len()];
    for path in sources() {
        let file = syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap();
        let mut messages = Messages::default();
        messages.visit_file(&file);
        found[section(&path)].extend(messages.texts);
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
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            title = heading;
        }
        let Some(line) = line.strip_prefix("| `") else { continue };
        let line = line.strip_suffix(" |").unwrap_or_else(|| panic!("no row of a table: {line}"));
        let mut cells = line.rsplitn(3, " | ").collect::<Vec<_>>();
        cells.reverse();
        let [message, meaning, action] = cells[..] else { panic!("not three cells: {line}") };
        let row = Row { meaning: meaning.trim().to_owned(), action: action.trim().to_owned() };
        rows.insert((title.to_owned(), format!("`{message}")), row);
    }
    rows
}

/// The page: what stands above the first section stays as it is.
fn render(page: &str, messages: &[BTreeSet<String>]) -> String {
    let rows = in_page(page);
    let mut text = page.split("\n## ").next().unwrap_or_default().trim_end().to_owned();
    for ((title, _, intro), messages) in SECTIONS.iter().zip(messages) {
        write!(
            text,
            "\n\n## {title}\n\n{intro}\n\n| message | meaning | what to do |\n| --- | --- | --- |"
        )
        .unwrap();
        for message in messages {
            let key = ((*title).to_owned(), cell(message));
            let Row { meaning, action } = rows.get(&key).cloned().unwrap_or_default();
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
        "{PAGE} lacks {missing:#?}\nand has {stale:#?}, which no code says: UPDATE=1 cargo test --test messages, and fill in the rows"
    );
    assert!(
        page == wanted,
        "{PAGE} is not as the test writes it: UPDATE=1 cargo test --test messages"
    );
}

#[test]
fn every_row_says_what_it_means_and_what_to_do() {
    let page = fs::read_to_string(root().join(PAGE)).unwrap();
    let empty = in_page(&page)
        .into_iter()
        .filter(|(_, row)| row.meaning.is_empty() || row.action.is_empty());
    let empty: Vec<_> = empty.map(|((_, message), _)| message).collect();
    assert!(empty.is_empty(), "{PAGE} does not explain {empty:#?}");
}
