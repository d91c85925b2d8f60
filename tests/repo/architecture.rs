//! The layering that `src/lib.rs` describes, held by reading the source.
//!
//! A module may name only modules above it. The reading is textual: comments and literals are
//! blanked, then every path from `crate`, `ftp_alg` or `super` is followed to the module it
//! starts in. Knows nothing of macros that make paths, and needs not to: there are none.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// From the top of the list to its end. What crates know of each other the compiler holds.
const LAYERS: [&str; 10] =
    ["ftp", "packet", "session", "policy", "engine", "config", "kernel", "daemon", "replay", "cli"];
/// The crates that have them.
const CORE: &str = "crates/ftp-alg-core/src";
const CRATES: [&str; 2] = [CORE, "src"];
/// Where methods of one type may be in several files, so that the calls tell who needs whom.
const SESSION: &str = "crates/ftp-alg-core/src/session";
/// Names of its functions that collections, iterators or packets have as well.
const COMMON: [&str; 13] = [
    "default", "add", "clear", "count", "extend", "has", "is_empty", "len", "map", "pop", "push",
    "take", "truncate",
];
/// The crates without layers. Neither names another one.
const OTHER_CRATES: [&str; 2] = ["crates/ftp-alg-firewall/src", "crates/ftp-alg-lab/src"];
/// What a module knows nothing of, although that is above it: the table's last column.
const IGNORANCE: [(&str, &[&str]); 5] = [
    ("packet", &["ftp"]),
    ("policy", &["ftp", "packet", "session"]),
    ("config", &["ftp", "packet", "session"]),
    ("kernel", &["ftp", "session"]),
    ("replay", &["config", "kernel", "daemon"]),
];
/// The files that see all modules.
const ROOTS: [&str; 2] = ["lib.rs", "main.rs"];
/// The one place for `unsafe`: the kernel's edge.
const UNSAFE: &str = "kernel";
const MAX_LINES: usize = 600;
/// The kernel's edge, whose rooms are its directories and files.
const KERNEL: &str = "src/kernel";
#[test]
fn a_module_names_only_modules_above_it() {
    let mut wrong = Vec::new();
    for file in CRATES.into_iter().flat_map(sources) {
        let Some(module) = module_of(&file) else { continue };
        assert!(LAYERS.contains(&module.as_str()), "{file:?} is in no layer: add {module}");
        // In `src/x.rs` and `src/x/mod.rs`, `super` is the crate itself.
        let nested = !file.ends_with("mod.rs") && !file.parent().unwrap().ends_with("src");
        let own = |name: &str| nested && file.with_file_name(format!("{name}.rs")).exists();
        for name in named_modules(&fs::read_to_string(&file).unwrap(), own) {
            if layer(&name) > layer(&module) {
                wrong.push(format!("{}: {module} is above {name}", file.display()));
            }
            if IGNORANCE.iter().any(|(one, of)| *one == module && of.contains(&name.as_str())) {
                wrong.push(format!("{}: {module} knows nothing of {name}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_of_a_directory_have_no_cyclic_references() {
    let mut named: BTreeMap<PathBuf, BTreeSet<PathBuf>> = BTreeMap::new();
    for file in CRATES.into_iter().chain(OTHER_CRATES).flat_map(sources) {
        let text = fs::read_to_string(&file).unwrap();
        for (from, to) in through_super(&file, &text) {
            named.entry(from).or_default().insert(to);
        }
    }
    assert!(named.len() > 50, "{} files name others", named.len());
    let circles = circles(named);
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn no_file_of_a_session_calls_back_into_one_that_called_it() {
    let files = sources(SESSION);
    let texts = files.iter().map(|file| fs::read_to_string(file).unwrap());
    let called = calls_between(files.iter().cloned().zip(texts).collect());
    let known: usize = called.values().map(BTreeSet::len).sum();
    assert!(known > 30, "{called:#?}");
    let circles = circles(called);
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn rooms_of_the_kernel_edge_name_each_other_in_no_circle() {
    let edge = root().join(KERNEL);
    let index = fs::read_to_string(edge.join("mod.rs")).unwrap();
    let exported = exports(&index);
    let is_room = |name: &String| edge.join(name).join("mod.rs").exists();
    let is_file = |name: &String| edge.join(name).with_extension("rs").exists();
    let mut named: BTreeMap<PathBuf, BTreeSet<PathBuf>> = BTreeMap::new();
    for file in sources(KERNEL) {
        let inside = file.strip_prefix(&edge).unwrap_or(&file).to_owned();
        let room = inside.components().next().unwrap().as_os_str().to_owned();
        let room = PathBuf::from(room).with_extension("");
        if room == Path::new("mod") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let rooms = names_of_kernel(&file, &text).into_iter().filter_map(|name| {
            let is_one = is_room(&name) || is_file(&name);
            if is_one { Some(name) } else { exported.get(&name).cloned() }
        });
        let others = rooms.map(PathBuf::from).filter(|other| *other != room);
        named.entry(room.clone()).or_default().extend(others);
    }
    let of_table = &named[Path::new("table")];
    assert!(of_table.contains(Path::new("netlink")) && of_table.contains(Path::new("parameters")));
    let circles = circles(named);
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn unsafe_code_is_only_at_the_kernels_edge() {
    for file in CRATES.into_iter().chain(OTHER_CRATES).flat_map(sources) {
        if module_of(&file).as_deref() != Some(UNSAFE) {
            let text = fs::read_to_string(&file).unwrap();
            assert!(!has_unsafe(&text), "{}: unsafe outside src/{UNSAFE}", file.display());
        }
    }
}

#[test]
fn every_file_opens_with_its_purpose_and_is_short() {
    for file in ["src", "crates", "tests", "benches", "fuzz/targets"].into_iter().flat_map(sources)
    {
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//! "), "{}: does not open with //!", file.display());
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{}: {lines} lines, at most {MAX_LINES}", file.display());
    }
}

#[test]
fn every_layer_exists() {
    let libs = CRATES.map(|at| fs::read_to_string(root().join(at).join("lib.rs")).unwrap());
    for name in LAYERS {
        let line = format!("mod {name};");
        assert!(libs.iter().any(|lib| lib.contains(&line)), "{name} is in no lib.rs");
    }
    assert!(libs[0].contains("#![forbid(unsafe_code)]"), "{CORE}");
}

mod the_reading_itself {
    use super::*;

    fn named(text: &str) -> Vec<String> {
        named_modules(text, |_| false)
    }

    #[test]
    fn finds_every_way_to_name_a_module() {
        let cases: [(&str, &[&str]); 11] = [
            ("use crate::engine::Verdict;", &["engine"]),
            ("use crate::{config::Config, engine::{Kernel, Pinhole}};", &["config", "engine"]),
            ("use crate::{\n    policy::Policy,\n    daemon,\n};", &["policy", "daemon"]),
            ("use crate::cli as shell;", &["cli"]),
            ("use crate::{self, cli::{self, run}};", &["cli"]),
            ("fn f(x: &crate::kernel::Queue) {}", &["kernel"]),
            ("let x = < crate :: daemon :: Options >::new();", &["daemon"]),
            ("use ftp_alg_core::engine::Engine;", &["engine"]),
            ("use super::config::Config;", &["config"]),
            ("mod tests { use super::super::{daemon, *}; }", &["daemon"]),
            ("pub(in crate::session) fn f() {}", &["session"]),
        ];
        for (text, expected) in cases {
            assert_eq!(named(text), expected, "{text}");
        }
    }

    #[test]
    fn passes_over_comments_literals_and_children_of_the_same_name() {
        let texts = [
            "// use crate::cli;",
            "//! see [`crate::cli`]",
            "/* use crate::cli; /* nested */ crate::daemon::x */",
            "let x = \"crate::cli::run \\\" crate::daemon\";",
            "let x = r#\"crate::cli::\"quoted\" crate::engine\"#;",
            "let x = b\"crate::cli\"; let y = '\"'; let z = '\\'';",
            "use my_crate::cli::x;",
            "use std::{io, fmt};",
        ];
        for text in texts {
            assert_eq!(named(text), [""; 0], "{text}");
        }
        assert_eq!(named_modules("use super::policy::x;", |name| name == "policy"), [""; 0]);
    }

    #[test]
    fn goes_on_after_a_lifetime_a_char_and_a_literal() {
        let text =
            "fn f<'a>(x: &'a str) -> char { '\\u{1b}' } const S: &str = \"\"; use crate::cli;";
        assert_eq!(named(text), ["cli"]);
    }

    #[test]
    fn would_refuse_a_policy_that_knows_the_configuration() {
        let names = named("use crate::config::Config;");
        assert!(layer(&names[0]) > layer("policy"));
        assert!(layer("policy") < layer("config") && layer("daemon") < layer("cli"));
    }

    #[test]
    fn finds_the_files_of_a_directory() {
        let edge = root().join("src/kernel");
        let found =
            |file: &str, text| -> Vec<(PathBuf, PathBuf)> { through_super(&edge.join(file), text) };
        let (queue, kernel) = (edge.join("queue"), edge.join("kernel"));
        assert_eq!(found("kernel.rs", "use super::{Thing, queue::x};"), [(kernel, queue.clone())]);
        let error = [(queue, edge.join("error"))];
        assert_eq!(found("queue/mod.rs", "use super::error::NetfilterError;"), error);
        assert_eq!(found("queue/receive.rs", "use super::super::error::NetfilterError;"), error);
        assert_eq!(found("kernel.rs", "use super::*; // super::queue"), []);
    }

    #[test]
    fn finds_rooms_by_their_names_and_by_what_they_export() {
        let edge = root().join(KERNEL);
        let found = |file: &str, text| names_of_kernel(&edge.join(file), text);
        let text = "use crate::kernel::{Queue, netlink::Socket}; use super::commits::Commits;";
        assert_eq!(found("table/other_daemon.rs", text), ["Queue", "netlink"]);
        assert_eq!(found("table/mod.rs", "use super::{Backend, queue::x};"), ["Backend", "queue"]);
        assert_eq!(found("inject.rs", "use super::NetfilterError;"), ["NetfilterError"]);
        let exported = exports("pub use queue::{Packet, Queue};\npub use error::NetfilterError;");
        assert_eq!(exported["Queue"], "queue");
        assert_eq!(exported["NetfilterError"], "error");
    }

    #[test]
    fn tells_a_circle_from_what_leads_to_it() {
        let of = |edges: &[(&str, &str)]| -> Vec<PathBuf> {
            let mut named: BTreeMap<PathBuf, BTreeSet<PathBuf>> = BTreeMap::new();
            for (from, to) in edges {
                named.entry(from.into()).or_default().insert(to.into());
            }
            circles(named).into_keys().collect()
        };
        assert_eq!(of(&[("a", "b"), ("b", "c"), ("a", "c")]), [""; 0].map(PathBuf::from));
        assert_eq!(of(&[("b", "c"), ("c", "b"), ("b", "d")]), ["b", "c"].map(PathBuf::from));
    }

    #[test]
    fn finds_a_file_that_calls_back() {
        let called = |texts: [&str; 3]| {
            let names = ["a", "b", "c"].map(PathBuf::from);
            calls_between(names.into_iter().zip(texts.map(String::from)).collect())
        };
        let (a, b) = ("fn f() { g(); new() } fn new() {}", "fn g() { x.h::<T>(); X::k() }");
        let c = "fn h() { new() } fn k() {} fn new() {} #[cfg(test)] mod tests { fn t() { f() } }";
        let tree = called([a, b, c]);
        assert_eq!(tree[Path::new("b")], BTreeSet::from([PathBuf::from("c")]));
        assert!(circles(tree).is_empty());
        let back = called([a, b, "impl X { fn h(&self) { self.f() } fn k() {} }"]);
        assert_eq!(circles(back).len(), 3);
    }

    #[test]
    fn tells_unsafe_code_from_the_word() {
        assert!(has_unsafe("fn f() { unsafe { g() } }"));
        assert!(has_unsafe("pub unsafe fn f() {}"));
        assert!(!has_unsafe("#![deny(unsafe_code)] // unsafe\nconst X: &str = \"unsafe\";"));
    }
}

/// The top-level modules that `text` names, in order. `own_child` says whether a name is that of a
/// file next to it, which `super` then means.
fn named_modules(text: &str, own_child: impl Fn(&str) -> bool) -> Vec<String> {
    let tokens = tokens(&crossed_out(text));
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let rest = match token.as_str() {
            "crate" | "ftp_alg" | "ftp_alg_core" | "super" => &tokens[at + 1..],
            _ => continue,
        };
        let through_super = token == "super";
        found.extend(
            heads(rest)
                .into_iter()
                .filter(|name| LAYERS.contains(&name.as_str()))
                .filter(|name| !(through_super && own_child(name))),
        );
    }
    found
}

/// What follows `::` at the start of `tokens`: one name, or the first name of each path of a group.
fn heads(tokens: &[String]) -> Vec<String> {
    if tokens.first().is_none_or(|token| token != "::") {
        return Vec::new();
    }
    let Some(first) = tokens.get(1) else { return Vec::new() };
    if first != "{" {
        return vec![first.clone()];
    }
    let mut heads = Vec::new();
    let (mut depth, mut at_start) = (1, true);
    for token in &tokens[2..] {
        match token.as_str() {
            "{" => depth += 1,
            "}" if depth == 1 => break,
            "}" => depth -= 1,
            "," if depth == 1 => at_start = true,
            name if depth == 1 && at_start => {
                heads.push(name.to_owned());
                at_start = false;
            }
            _ => {}
        }
    }
    heads
}

/// What the text of `file` names through `super`, of modules that are files or directories: which of those it
/// is in, and which it names, both without their ending.
fn through_super(file: &Path, text: &str) -> Vec<(PathBuf, PathBuf)> {
    let named = named_through_super(file, text).into_iter();
    let named = named.map(|(from, name)| (from.clone(), from.with_file_name(name)));
    named.filter(|(_, to)| to.join("mod.rs").exists() || to.with_extension("rs").exists()).collect()
}

/// The names behind `super`, each with the module next to which it is.
fn named_through_super(file: &Path, text: &str) -> Vec<(PathBuf, String)> {
    let own = if file.ends_with("mod.rs") { file.parent().unwrap() } else { file };
    let own = own.with_extension("");
    let tokens = tokens(&crossed_out(text));
    let mut found = Vec::new();
    let mut levels: usize = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "super" => levels += 1,
            "::" => continue,
            _ => levels = 0,
        }
        let Some(from) = levels.checked_sub(1).and_then(|levels| own.ancestors().nth(levels))
        else {
            continue;
        };
        found.extend(heads(&tokens[at + 1..]).into_iter().map(|name| (from.to_owned(), name)));
    }
    found
}

/// Which of the `files` call functions that are in another one. A name that several files have is nobody's.
fn calls_between(files: Vec<(PathBuf, String)>) -> BTreeMap<PathBuf, BTreeSet<PathBuf>> {
    let mut owners: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    let mut called: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in files {
        let code = crossed_out(&text);
        let tokens = tokens(code.split("#[cfg(test)]").next().unwrap());
        for (at, name) in tokens.iter().enumerate().filter(|(_, token)| is_name(token)) {
            let next = |count| tokens.get(at + count).map_or("", String::as_str);
            if at > 0 && tokens[at - 1] == "fn" {
                owners.entry(name.clone()).or_default().insert(file.clone());
            } else if next(1) == "(" || next(1) == "::" && next(2) == "<" {
                called.entry(file.clone()).or_default().insert(name.clone());
            }
        }
    }
    owners.retain(|name, files| files.len() == 1 && !COMMON.contains(&name.as_str()));
    let owner = |name: &String| owners.get(name)?.first();
    let others = |file: &PathBuf, names: &BTreeSet<String>| {
        names.iter().filter_map(owner).filter(|owner| *owner != file).cloned().collect()
    };
    called.iter().map(|(file, names)| (file.clone(), others(file, names))).collect()
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_lowercase() || c == '_')
}

/// What a file of the kernel edge names of it, by `crate::kernel` or `super`.
fn names_of_kernel(file: &Path, text: &str) -> Vec<String> {
    let tokens = tokens(&crossed_out(text));
    let windows = tokens.windows(3).enumerate();
    let absolute = windows.filter(|(_, window)| *window == ["crate", "::", "kernel"]);
    let mut names: Vec<_> = absolute.flat_map(|(at, _)| heads(&tokens[at + 3..])).collect();
    let edge = root().join(KERNEL);
    let of_super = named_through_super(file, text).into_iter();
    let of_super = of_super.filter(|(from, _)| from.parent() == Some(&edge));
    names.extend(of_super.map(|(_, name)| name));
    names.retain(|name| name != "super");
    names
}

/// The names that `pub use` in `text` takes from a module, with the module.
fn exports(text: &str) -> BTreeMap<String, String> {
    let tokens = tokens(&crossed_out(text));
    let uses = tokens.windows(3).enumerate().filter(|(_, window)| window[..2] == ["pub", "use"]);
    uses.flat_map(|(at, window)| {
        let end = tokens[at..].iter().position(|token| token == ";").unwrap() + at;
        let names = tokens[at + 4..end].iter().map(|name| (name.clone(), window[2].clone()));
        names.collect::<Vec<_>>()
    })
    .collect()
}

/// What is left of `named` when anyone who names nobody has left, again and again.
fn circles(
    mut named: BTreeMap<PathBuf, BTreeSet<PathBuf>>,
) -> BTreeMap<PathBuf, BTreeSet<PathBuf>> {
    loop {
        let before = named.clone();
        for names in named.values_mut() {
            names.retain(|name| before.contains_key(name));
        }
        named.retain(|_, names| !names.is_empty());
        if named == before {
            return named;
        }
    }
}

fn has_unsafe(text: &str) -> bool {
    tokens(&crossed_out(text)).iter().any(|token| token == "unsafe")
}

/// Words, `::`, and every other character by itself.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut in_word = false;
    for c in text.chars() {
        let word = c.is_alphanumeric() || c == '_';
        match tokens.last_mut() {
            Some(last) if word && in_word => last.push(c),
            Some(last) if c == ':' && last == ":" => last.push(c),
            _ if c.is_whitespace() => {}
            _ => tokens.push(c.to_string()),
        }
        in_word = word;
    }
    tokens
}

/// `text` without comments and without the content of literals.
fn crossed_out(text: &str) -> String {
    let mut rest = text;
    let mut out = String::new();
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if c == '"' {
            quoted(rest, '"')
        } else if rest.starts_with("r\"") || rest.starts_with("r#") {
            raw_string(rest).unwrap_or(0)
        } else if c == '\'' {
            char_literal(rest).unwrap_or(0)
        } else {
            0
        };
        if skipped == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out.push(' ');
            rest = &rest[skipped..];
        }
    }
    out
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text[at..];
        let step = if rest.starts_with("/*") {
            depth += 1;
            2
        } else if rest.starts_with("*/") {
            depth -= 1;
            2
        } else {
            rest.chars().next().map_or(1, char::len_utf8)
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of a literal that starts and ends with `quote`.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn raw_string(text: &str) -> Option<usize> {
    let hashes = text[1..].chars().take_while(|&c| c == '#').count();
    let content = text[1 + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(content.find(&end).map_or(text.len(), |at| 2 + hashes + at + end.len()))
}

/// The length of a character literal; `None` for a lifetime.
fn char_literal(text: &str) -> Option<usize> {
    let mut chars = text.chars().skip(1);
    let (first, second) = (chars.next()?, chars.next()?);
    (first == '\\' || second == '\'').then(|| quoted(text, '\''))
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|name| *name == module)
}

/// The top-level module that a file belongs to; none for the crate's roots.
fn module_of(file: &Path) -> Option<String> {
    let inside = CRATES.iter().find_map(|at| file.strip_prefix(root().join(at)).ok())?;
    let first = inside.iter().next()?.to_str()?;
    (!ROOTS.contains(&first)).then(|| first.trim_end_matches(".rs").to_owned())
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust files under `directory`.
fn sources(directory: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![root().join(directory)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty(), "{directory}: no source is read");
    files.sort();
    files
}
