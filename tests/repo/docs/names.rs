//! Files and functions that pages name are there. Decisions and studies tell of what was.

use std::{collections::HashSet, fs, process::Command};

use super::pages::{named_pages, root, text};

/// The files of the repository, and the text of each that is source.
fn files() -> Vec<(String, String)> {
    let list = Command::new("git").arg("ls-files").current_dir(root()).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let is_source = |path: &str| [".rs", ".c", ".h", ".py"].iter().any(|end| path.ends_with(end));
    let text = |path: &str| match is_source(path) {
        true => fs::read_to_string(root().join(path)).unwrap(),
        false => String::new(),
    };
    list.lines().map(|path| (path.to_owned(), text(path))).collect()
}

fn is_name(one: char) -> bool {
    one.is_ascii_alphanumeric() || one == '_'
}

/// Names of the kernel, of ProFTPD and of libFuzzer.
const OF_OTHERS: [&str; 3] = ["nf_ct_seqadj.c", "mod_tls.c", "stat::number_of_executed_units"];

#[test]
fn files_and_functions_that_pages_name_are_there() {
    let files = files();
    let words: HashSet<&str> =
        files.iter().flat_map(|(_, text)| text.split(|one| !is_name(one))).collect();
    let with_name = |name: &str| {
        let end = format!("/{name}");
        files.iter().filter(move |(path, _)| format!("/{path}").ends_with(&end))
    };
    let mut wrong = Vec::new();
    for (page, text) in named_pages() {
        if page.starts_with("docs/decisions") || page.starts_with("benches/studies") {
            continue;
        }
        let of_path = |one: char| is_name(one) || matches!(one, '.' | '/' | ':' | '-');
        let tokens = text.split(|one| !of_path(one)).map(|token| token.trim_matches(':'));
        for token in tokens.filter(|token| !OF_OTHERS.contains(token)) {
            let is_file = [".rs", ".c", ".h", ".py"]
                .iter()
                .any(|end| token.strip_suffix(end).is_some_and(|start| start.ends_with(is_name)));
            if is_file && with_name(token).next().is_none() {
                wrong.push(format!("{page}: no file {token}"));
            }
            if token.contains("::") && !token.contains(['.', '-', '/']) {
                let unknown = token.split("::").find(|part| !words.contains(part));
                wrong.extend(unknown.map(|part| format!("{page}: {token}: no {part}")));
            }
            // A test's name; those of metrics have a prefix.
            let is_long = token.matches('_').count() > 3 && token.starts_with(char::is_lowercase);
            if is_long && !token.starts_with("ftp_alg_") && !words.contains(token) {
                wrong.push(format!("{page}: no {token}"));
            }
        }
        // Lists of functions with their file at the end of the line.
        for line in text.lines() {
            let mut ends = line.split_whitespace();
            let (Some(path), Some(file)) = (ends.next(), ends.next_back()) else { continue };
            let Some(name) = path.split("::").last().filter(|name| name.chars().all(is_name))
            else {
                continue;
            };
            let function = format!("fn {name}");
            let is_listed = file.strip_suffix(".rs").is_some_and(|stem| stem.chars().all(is_name));
            let mut named = with_name(file).map(|(_, text)| text.contains(&function));
            if is_listed && !named.any(|found| found) {
                wrong.push(format!("{page}: no function {name} in {file}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A row of "Where is what" leads to a file or a directory, in the repository or in the core.
#[test]
fn paths_of_where_is_what_exist() {
    let page = text("docs/architecture.md");
    let section = page.split("\n## ").find(|section| section.starts_with("Where is what")).unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let paths = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let of_path = |one: char| one.is_ascii_lowercase() || "/._-".contains(one);
    let paths: Vec<_> = paths.filter(|name| name.chars().all(of_path)).collect();
    assert!(paths.len() > 40, "{paths:?}");
    let exists = |path: &str| {
        ["", "crates/ftp-alg-core/src"].map(|base| root().join(base).join(path).exists())
    };
    let wrong: Vec<_> = paths.into_iter().filter(|path| exists(path) == [false, false]).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
