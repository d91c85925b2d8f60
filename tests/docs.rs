//! The documentation: its links lead somewhere, and the commands in it are the program's.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// README.md and all pages below docs, with their texts.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md")];
    let mut directories = vec![root.join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => directories.push(path),
                Some(extension) if extension == "md" => pages.push(path),
                _ => {}
            }
        }
    }
    pages.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// Lines outside of blocks of code, or those in them.
fn lines(text: &str, in_code: bool) -> impl Iterator<Item = &str> {
    let parts = text.split("\n```").enumerate();
    let wanted = parts.filter(move |(number, _)| (number % 2 == 1) == in_code);
    // The first line of a part is behind its fence.
    wanted.flat_map(|(number, part)| part.lines().skip(usize::from(number > 0)))
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = |one: &char| one.is_alphanumeric() || matches!(one, ' ' | '-' | '_');
    heading
        .to_lowercase()
        .chars()
        .filter(kept)
        .map(|one| if one == ' ' { '-' } else { one })
        .collect()
}

fn anchors(text: &str) -> Vec<String> {
    let headings = lines(text, false).filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut wrong = Vec::new();
    for (page, text) in pages() {
        for line in lines(&text, false) {
            for link in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                if link.contains("://") {
                    continue;
                }
                let (file, heading) = link.split_once('#').unwrap_or((link, ""));
                let target = match file {
                    "" => page.clone(),
                    file => page.parent().unwrap().join(file),
                };
                let has_heading = || {
                    heading.is_empty()
                        || fs::read_to_string(&target)
                            .is_ok_and(|text| anchors(&text).iter().any(|one| one == heading))
                };
                if !target.exists() || !has_heading() {
                    wrong.push(format!("{}: {link}", page.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn commands_and_options_are_those_of_the_program() {
    let help = |command: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_ftp-alg")).args(["help", command]).output();
        let output = output.unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    let (mut known, mut seen) = (HashMap::new(), 0);
    for (page, text) in pages() {
        let in_blocks = lines(&text, true);
        let in_text = lines(&text, false).flat_map(|line| line.split('`').skip(1).step_by(2));
        for line in in_blocks.chain(in_text) {
            let line = line.trim_start().trim_start_matches("# ").trim_start_matches("sudo ");
            let Some(words) = line.strip_prefix("ftp-alg ") else { continue };
            let words = words.split(['#', '|', '&', '\\']).next().unwrap_or_default();
            let mut words = words.split_whitespace();
            let is_command = |word: &&str| word.starts_with(char::is_lowercase);
            let Some(command) = words.next().filter(is_command) else { continue };
            let text = known.entry(command.to_owned()).or_insert_with(|| help(command));
            let what = format!("{}: {line}", page.display());
            let text = text.as_ref().unwrap_or_else(|| panic!("no such command: {what}"));
            for option in words.filter(|word| word.starts_with("--")) {
                assert!(text.contains(option), "no such option: {what}");
            }
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen} commands");
}
