//! Commands of `ftp-alg` in the documentation have its commands and options.

use std::{collections::HashMap, process::Command};

use super::pages::{all_blocks, spans};

fn help(command: &str) -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_ftp-alg")).args(["help", command]).output();
    let output = output.unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn commands_and_options_are_those_of_the_program() {
    let (mut known, mut seen) = (HashMap::new(), 0);
    let blocks = all_blocks();
    let in_blocks = blocks
        .iter()
        .flat_map(|block| block.text.lines().map(|line| (block.page.clone(), line.to_owned())));
    for (page, line) in in_blocks.chain(spans()) {
        let line = line.trim_start().trim_start_matches("# ").trim_start_matches("sudo ");
        let Some(words) = line.strip_prefix("ftp-alg ") else { continue };
        let words = words.split(['#', '|', '&', '\\', ';']).next().unwrap_or_default();
        let mut words = words.split_whitespace();
        let is_command = |word: &&str| word.starts_with(char::is_lowercase);
        let Some(command) = words.next().filter(is_command) else { continue };
        let text = known.entry(command.to_owned()).or_insert_with(|| help(command));
        let text = text.as_ref().unwrap_or_else(|| panic!("no such command: {page}: {line}"));
        for option in words.filter(|word| word.starts_with("--")) {
            assert!(text.contains(option), "no such option: {page}: {line}");
        }
        seen += 1;
    }
    assert!(seen > 50, "{seen} commands");
}
