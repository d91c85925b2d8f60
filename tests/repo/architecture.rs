//! What the compiler cannot hold of the layering that docs/architecture.md describes: within one crate.
//!
//! Reads the paths that begin at a crate, at `self` or at `super`, and follows each to the module whose file it leads to. Takes
//! a name that a module exports for its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use regex::Regex;

/// From the top of the list to its end: a module names only those before it.
const LAYERS: [&str; 10] =
    ["ftp", "packet", "session", "policy", "engine", "config", "kernel", "daemon", "replay", "cli"];
/// The crates that have them.
const LAYERED: [&str; 2] = ["crates/ftp-alg-core/src", "src"];
/// What a module knows nothing of, although that is before it: the table's last column.
const IGNORANCE: [(&str, &[&str]); 5] = [
    ("packet", &["ftp"]),
    ("policy", &["ftp", "packet", "session"]),
    ("config", &["ftp", "packet", "session"]),
    ("kernel", &["ftp", "session"]),
    ("replay", &["config", "kernel", "daemon"]),
];
/// The layer whose rooms have methods of one type, `Engine`: its files name each other in no circle, its rooms may.
const BY_FILE: &str = "engine";
/// The state that has methods in all of these rooms.
const STATE: &str = "engine::sessions";
/// Where `unsafe` may be allowed; elsewhere the lints deny it.
const UNSAFE: [&str; 3] = [
    "src/kernel/",
    "crates/ftp-alg-fastpath/src/ring.rs",
    "crates/ftp-alg-fastpath/src/syscall.rs",
];

/// The path of a module from its crate's root.
type ModulePath = Vec<String>;

/// What depends on what.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// The modules of one crate, each with the paths that it names.
#[derive(Default)]
struct Crate(BTreeMap<ModulePath, Vec<Vec<String>>>);

impl Crate {
    fn read(directory: &str) -> Self {
        let files = sources(directory)
            .into_iter()
            .filter(|file| !is_test(file) && !file.ends_with("main.rs"));
        let modules = files.map(|file| {
            let module = module_path(file.strip_prefix(root().join(directory)).unwrap());
            (module, paths(&fs::read_to_string(&file).unwrap()))
        });
        Self(modules.collect())
    }

    /// The modules that `from` names, each as far down as there are files.
    fn named_by(&self, from: &ModulePath) -> BTreeSet<ModulePath> {
        self.0[from].iter().filter_map(|path| self.follow(from, path)).collect()
    }

    fn follow(&self, from: &ModulePath, path: &[String]) -> Option<ModulePath> {
        let ups = path.iter().take_while(|name| *name == "super").count();
        let (start, rest) = match path[0].as_str() {
            "crate" | "ftp_alg" => (&from[..0], &path[1..]),
            "self" => (&from[..], &path[1..]),
            "super" => (&from[..from.len().checked_sub(ups)?], &path[ups..]),
            _ => return None,
        };
        Some(self.descend(start.to_vec(), rest))
    }

    fn descend(&self, at: ModulePath, rest: &[String]) -> ModulePath {
        let Some((name, after)) = rest.split_first() else { return at };
        let child: ModulePath = at.iter().chain([name]).cloned().collect();
        if self.0.contains_key(&child) {
            return self.descend(child, after);
        }
        at
    }

    /// Which of two modules that have one parent names the other, itself or by what is in it. In [`BY_FILE`], which of two
    /// files.
    fn siblings(&self) -> Graph {
        let mut graph = Graph::new();
        for from in self.0.keys() {
            for to in self.named_by(from) {
                let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
                if common < from.len() && common < to.len() {
                    let is_by_file = from[..common].first().is_some_and(|one| one == BY_FILE);
                    let [from, to] = [from, &to].map(|path| match is_by_file {
                        true => path.join("::"),
                        false => path[..=common].join("::"),
                    });
                    if to == STATE {
                        continue;
                    }
                    graph.entry(from).or_default().insert(to);
                }
            }
        }
        graph
    }
}

/// The paths that a file names, without its tests and comments.
fn paths(text: &str) -> Vec<Vec<String>> {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let start = Regex::new(r"(?:^|[^\w:$])((?:crate|self|super|ftp_alg|ftp_alg_core)::)").unwrap();
    let mut paths = Vec::new();
    for found in start.captures_iter(&code) {
        add_paths(&[], &code[found.get(1).unwrap().start()..], &mut paths);
    }
    paths
}

/// Adds the paths at the beginning of `text`, behind `prefix`. Returns what follows.
fn add_paths<'t>(prefix: &[String], text: &'t str, into: &mut Vec<Vec<String>>) -> &'t str {
    let is_other = |one: char| !one.is_alphanumeric() && one != '_';
    let (name, rest) = text.split_at(text.find(is_other).unwrap_or(text.len()));
    let path = [prefix, &[name.to_owned()]].concat();
    if let Some(mut rest) = rest.strip_prefix("::{") {
        loop {
            rest = rest.trim_start_matches(|one: char| is_other(one) && one != '}');
            if let Some(rest) = rest.strip_prefix('}') {
                return rest;
            }
            rest = add_paths(&path, rest, into);
        }
    }
    match rest.strip_prefix("::") {
        Some(rest) if !rest.starts_with(is_other) => add_paths(&path, rest, into),
        _ => {
            into.push(path);
            rest
        }
    }
}

/// What is left of `named` when anyone who names nobody, or whom nobody names, has left, again and again.
fn circles(mut named: Graph) -> Graph {
    loop {
        let before = named.clone();
        named.values_mut().for_each(|names| names.retain(|name| before.contains_key(name)));
        let is_named = |name: &String| before.values().any(|names| names.contains(name));
        named.retain(|name, names| !names.is_empty() && is_named(name));
        if named == before {
            return named;
        }
    }
}

#[test]
fn a_module_names_only_modules_above_it() {
    let layer = |module: &str| LAYERS.iter().position(|name| *name == module);
    let mut wrong = Vec::new();
    for directory in LAYERED {
        let modules = Crate::read(directory);
        for (from, paths) in &modules.0 {
            let Some(own) = from.first() else { continue };
            assert!(layer(own).is_some(), "{own} is in no layer: add it");
            let of_core = paths.iter().filter(|path| path[0] == "ftp_alg_core");
            let of_core = of_core.filter_map(|path| path.get(1).cloned());
            let of_crate = modules.named_by(from).into_iter().filter_map(|to| to.first().cloned());
            for name in of_core.chain(of_crate) {
                if layer(&name) > layer(own) {
                    wrong.push(format!("{}: {own} is above {name}", from.join("::")));
                }
                if IGNORANCE.iter().any(|(one, of)| one == own && of.contains(&name.as_str())) {
                    wrong.push(format!("{}: {own} knows nothing of {name}", from.join("::")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_of_one_parent_name_each_other_in_no_circle() {
    for directory in crates() {
        let circles = circles(Crate::read(&directory).siblings());
        assert!(circles.is_empty(), "{directory}: {circles:#?}");
    }
    assert!(Crate::read("src").siblings().len() > 50);
}

#[test]
fn unsafe_code_is_allowed_only_at_the_kernels_edge() {
    let lints = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(lints.contains("unsafe_code = \"deny\""));
    for file in crates().iter().flat_map(|directory| sources(directory)) {
        let allows = fs::read_to_string(&file).unwrap().contains("allow(unsafe_code");
        let inside = file.strip_prefix(root()).unwrap().display().to_string();
        assert!(!allows || UNSAFE.iter().any(|edge| inside.starts_with(edge)), "{inside}");
    }
}

fn is_test(file: &Path) -> bool {
    file.to_string_lossy().ends_with("tests.rs")
}

/// The module that a file is, by its path inside its crate's sources.
fn module_path(file: &Path) -> ModulePath {
    let names = file.with_extension("");
    let names = names.iter().map(|name| name.to_str().unwrap().to_owned());
    names.filter(|name| !["lib", "mod"].contains(&name.as_str())).collect()
}

/// The source directories of all crates.
fn crates() -> Vec<String> {
    let crates = fs::read_dir(root().join("crates")).unwrap();
    let names = crates.map(|one| one.unwrap().file_name().into_string().unwrap());
    let others = ["src", "tests/lab/src"].map(str::to_owned);
    names.map(|name| format!("crates/{name}/src")).chain(others).collect()
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The Rust files under `directory`.
pub fn sources(directory: &str) -> Vec<PathBuf> {
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
