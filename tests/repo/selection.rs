//! Filters of nextest name tests and modules that there are.

use std::{collections::BTreeSet, fs};

use regex::Regex;

use super::architecture::{root, sources};

/// Names of tests, of their files and of the directories of these.
fn names() -> BTreeSet<String> {
    let function = Regex::new(r"\bfn (\w+)\(\) ").unwrap();
    let mut names = BTreeSet::new();
    for file in ["crates/ftp-alg-core", "tests"].into_iter().flat_map(sources) {
        let text = fs::read_to_string(&file).unwrap();
        names.extend(function.captures_iter(&text).map(|found| found[1].to_owned()));
        names.extend(file.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()));
    }
    names
}

#[test]
fn filters_of_nextest_and_make_name_tests() {
    let names = names();
    let filter = Regex::new(r"test\(/(.*?)/\)").unwrap();
    let word = Regex::new(r"\w+").unwrap();
    for file in [".config/nextest.toml", "Makefile"] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let filters: String =
            filter.captures_iter(&text).map(|found| found[1].to_owned() + " ").collect();
        assert!(!filters.is_empty());
        for word in word.find_iter(&filters).map(|word| word.as_str()) {
            assert!(names.iter().any(|name| name.contains(word)), "{file}: no test is {word}");
        }
    }
}
