//! Commands of `ftp-alg` in the documentation have its commands and options.

use std::{collections::HashMap, process::Command};

use super::pages::{lines, manual_examples, pages, root, text};

fn help(command: &str) -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_ftp-alg")).args(["help", command]).output();
    let output = output.unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

#[test]
fn commands_and_options_are_those_of_the_program() {
    let (mut known, mut seen) = (HashMap::new(), 0);
    let manual = format!("\n```\n{}\n```\n", manual_examples("ftp-alg.8.in").concat());
    let manual = (root().join("packaging/man/ftp-alg.8.in"), manual);
    for (page, text) in pages().into_iter().chain([manual]) {
        let in_blocks = lines(&text, true);
        let in_text = lines(&text, false).flat_map(|line| line.split('`').skip(1).step_by(2));
        for line in in_blocks.chain(in_text) {
            let line = line.trim_start().trim_start_matches("# ").trim_start_matches("sudo ");
            let Some(words) = line.strip_prefix("ftp-alg ") else { continue };
            let words = words.split(['#', '|', '&', '\\', ';']).next().unwrap_or_default();
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

/// Each command of the program has a row in the reference.
#[test]
fn the_reference_has_every_command() {
    let page = text("docs/commands.md");
    let output = Command::new(env!("CARGO_BIN_EXE_ftp-alg")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let commands = help.lines().skip_while(|line| *line != "Set up:");
    let commands = commands.take_while(|line| *line != "Options:");
    let names = commands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let names: Vec<_> = names.filter(|name| !name.is_empty()).collect();
    assert!(names.len() > 9, "{names:?}");
    for name in names {
        assert!(page.contains(&format!("`ftp-alg {name}")), "{name}");
    }
}
