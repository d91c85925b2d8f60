//! Commands in the documentation: those of `ftp-alg` have its commands and options, those of firewalls run.

use std::{
    collections::{BTreeSet, HashMap},
    process::Command,
};

use crate::{
    pages::{all_blocks, blocks, lines, manual_examples, pages, root, text},
    rules::{expanded, in_namespace},
};

/// Programs that no test runs, because they change the machine or are not there.
const NOT_RUN: &str = "apt-get bpftool cargo conntrack cp curl do done echo for fw4 grep journalctl mkdir mount rm \
                       rustup sysctl systemctl systemd-sysusers tests/vmrun uci";

/// Files that have commands of firewalls which an end-to-end test runs.
const TESTED: [&str; 5] = [
    "rules/recipes/ufw.sh",
    "rules/recipes/firewalld.sh",
    "tests/e2e_recipes/firewalld.rs",
    "tests/e2e_recipes/ufw.rs",
    "tests/e2e_setup/ufw.rs",
];

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
    // A message may begin with the program's name.
    let pages = pages().into_iter().filter(|(page, _)| !page.ends_with("docs/messages.md"));
    for (page, text) in pages.chain([manual]) {
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
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = commands.take_while(|line| !line.is_empty());
    let names = commands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    for name in names.filter(|name| !name.is_empty()) {
        assert!(page.contains(&format!("`ftp-alg {name}")), "{name}");
    }
}

#[test]
fn every_block_of_operators_pages_has_a_language() {
    let languages = ["iptables", "nft", "sh", "text", "toml"];
    for block in all_blocks().iter().filter(|block| block.is_for_operators()) {
        assert!(languages.contains(&&*block.language), "{}: {:?}", block.name(), block.language);
    }
}

/// nft and iptables in a namespace where the named chains are there; recipes by their tests; make by its targets.
#[test]
fn commands_of_firewalls_run_or_are_run_by_a_test() {
    let tested: String = TESTED.map(|file| expanded(&text(file))).concat();
    let recipes = ["e2e_recipes/native.rs", "e2e_recipes/docker.rs", "e2e_flowtable.rs"];
    let recipes = recipes.map(|file| text(&format!("tests/{file}"))).concat() + &tested;
    let makefile = text("Makefile");
    let (mut ran, mut unknown) = (0, BTreeSet::new());
    for block in blocks("sh").iter().filter(|block| block.is_for_operators()) {
        for line in block.commands() {
            for command in line.split(" && ").flat_map(|line| line.split("; ")) {
                let what = format!("{}: {command}", block.page);
                let words: Vec<_> = command.split_whitespace().collect();
                let [program, rest @ ..] = words.as_slice() else { continue };
                let recipe = rest.iter().find_map(|word| word.strip_prefix("rules/recipes/"));
                match (*program, recipe) {
                    ("sh" | "nft", Some(recipe)) => {
                        assert!(root().join("rules/recipes").join(recipe).exists(), "{what}");
                        assert!(recipes.contains(recipe) || tested.contains(recipe), "{what}");
                    }
                    ("nft", None) => {
                        in_namespace(&format!("{}\n{command}", table(rest)), "", &what)
                    }
                    ("iptables" | "ip6tables", None) => {
                        let chain = rest.get(1).unwrap();
                        let chain = format!("{program} -N {chain} 2>/dev/null || true");
                        in_namespace(&format!("{chain}\n{command}"), "", &what);
                    }
                    ("ufw" | "firewall-cmd", None) => {
                        assert!(tested.contains(command) || block.is_run_by_firewalld(), "{what}");
                    }
                    ("make", None) => {
                        let targets = rest.iter().filter(|word| !word.contains('='));
                        for target in targets {
                            assert!(makefile.contains(&format!("\n{target}:")), "{what}");
                        }
                    }
                    ("ftp-alg", None) => continue,
                    (program, _) if NOT_RUN.split(' ').any(|one| one == program) => continue,
                    (program, _) if program.contains('=') => continue,
                    _ => drop(unknown.insert(what)),
                }
                ran += 1;
            }
        }
    }
    assert!(unknown.is_empty(), "neither run nor known: {unknown:#?}");
    assert!(ran > 20, "{ran} commands");
}

/// Commands that make the table and the chain that a command of nft names.
fn table(words: &[&str]) -> String {
    let words: Vec<_> = words.iter().filter(|word| !word.starts_with('>')).collect();
    let position = words.iter().position(|word| matches!(**word, "inet" | "ip" | "ip6"));
    let Some(position) = position else { return String::new() };
    let [family, name] = [words[position], words[position + 1]];
    let chain = words.get(position + 2).filter(|word| word.starts_with(char::is_lowercase));
    let mut text = format!("nft add table {family} {name}\n");
    if let Some(chain) = chain {
        text += &format!("nft add chain {family} {name} {chain}\n");
    }
    text
}
