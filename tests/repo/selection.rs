//! Each test runs on each change or in `make test-nightly`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use regex::Regex;

/// The test programs: their directories.
const PROGRAMS: [&str; 5] = [
    "crates/ftp-alg-core/tests/core",
    "tests/e2e",
    "tests/kernel",
    "tests/packaging",
    "tests/repo",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The Rust files below `directory`.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let all = entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] });
    all.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// The names of all tests, and of their modules with `::` behind, as the test programs list them.
fn names() -> BTreeSet<String> {
    let test = Regex::new(r"#\[test\]\s+(#\[[^\n]*\]\s+)*fn (\w+)").unwrap();
    let mut names = BTreeSet::new();
    for program in PROGRAMS.map(|program| root().join(program)) {
        for file in files(&program) {
            let relative = file.strip_prefix(&program).unwrap().with_extension("");
            let parts = relative.iter().map(|part| part.to_str().unwrap());
            let module: String = parts
                .filter(|part| !["main", "mod"].contains(part))
                .map(|part| format!("{part}::"))
                .collect();
            let text = fs::read_to_string(&file).unwrap();
            names.extend(test.captures_iter(&text).map(|found| format!("{module}{}", &found[2])));
            names.insert(module);
        }
    }
    names
}

/// The patterns of `test(/PATTERN/)` in `text`, one for each of their alternatives.
fn patterns(text: &str) -> Vec<String> {
    let filter = Regex::new(r"test\(/(.*?)/\)").unwrap();
    let group = Regex::new(r"\(([^()]*)\)").unwrap();
    let mut open: Vec<String> =
        filter.captures_iter(text).map(|found| found[1].to_owned()).collect();
    let mut patterns = Vec::new();
    while let Some(pattern) = open.pop() {
        let Some(found) = group.captures(&pattern) else {
            patterns.push(pattern);
            continue;
        };
        let whole = found.get(0).unwrap();
        let (before, after) = (&pattern[..whole.start()], &pattern[whole.end()..]);
        open.extend(found[1].split('|').map(|choice| format!("{before}{choice}{after}")));
    }
    patterns
}

#[test]
fn filters_of_nextest_and_make_name_tests() {
    let names = names();
    for file in [".config/nextest.toml", "Makefile"] {
        let patterns = patterns(&text(file));
        assert!(!patterns.is_empty());
        for pattern in patterns {
            let pattern = Regex::new(&pattern).unwrap();
            assert!(
                names.iter().any(|name| pattern.is_match(name)),
                "{file}: no test is {pattern}"
            );
        }
    }
}

/// `make test` runs all tests but the ignored ones, and `make test-nightly` those as well, except those that draw
/// and the one of arm64, which `.ci/run` runs.
#[test]
fn no_test_is_left_out() {
    assert!(!text(".config/nextest.toml").contains("default-filter"));
    let nightly = text("Makefile");
    assert!(
        nightly.contains("NIGHTLY = $(NEXTEST) --release --profile nightly --run-ignored all ")
    );
    let ignored = Regex::new(r#"#\[ignore( = "([^"]*)")?\]"#).unwrap();
    for directory in ["crates", "src", "tests"] {
        for file in files(&root().join(directory)) {
            for found in ignored.captures_iter(&fs::read_to_string(&file).unwrap()) {
                let reason = found.get(2).map_or("", |reason| reason.as_str());
                let runs =
                    ["nightly: ", "make test ", "make test-arm64-replay: ", "make pictures: "];
                let is_run = runs.iter().any(|run| reason.starts_with(run));
                assert!(is_run, "{}: {reason:?}", file.display());
            }
        }
    }
}
