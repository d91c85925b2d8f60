//! Output that the pages show is output of the program.

use std::{collections::BTreeSet, fs, iter, path::Path, process::Command};

use proc_macro2::{TokenStream, TokenTree};

use super::pages::{Block, blocks, root};

/// A configuration that `ftp-alg check` refuses, as docs/configuration.md shows.
const REFUSED: &str = "[pinhole]\ntimout = \"30s\"\nbackend = \"nft\"\n[nat]\nmin-data-port = 1\n";

/// Words of the examples themselves: addresses, interfaces, the operator's rules, what servers say.
const EXAMPLE: &str = "accept chain conf drop established etc example filter forward gateway hook iifname inet lan0 net \
                       nftables policy priority slacker state successful table tcp timout type vsftpd wan0";

/// Whether the block is a drawing, not output.
pub fn is_drawing(block: &Block) -> bool {
    block.text.contains("----") || block.text.contains('─')
}

/// Adds the literals of all code below `path`.
fn add_literals(path: &Path, into: &mut String) {
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| add_literals(&entry.unwrap().path(), into));
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        add_tokens(fs::read_to_string(path).unwrap().parse().unwrap(), into);
    }
}

fn add_tokens(tokens: TokenStream, into: &mut String) {
    for tree in tokens {
        match tree {
            TokenTree::Group(group) => add_tokens(group.stream(), into),
            TokenTree::Literal(literal) => *into += &format!(" {literal}"),
            _ => {}
        }
    }
}

fn words(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|one: char| !one.is_ascii_alphanumeric());
    words
        .filter(|word| word.len() > 2 && word.starts_with(char::is_alphabetic))
        .map(str::to_lowercase)
}

#[test]
fn words_of_shown_output_are_words_of_the_program() {
    let mut text = EXAMPLE.to_owned();
    let crates =
        ["core", "fastpath", "firewall", "lab"].map(|name| format!("crates/ftp-alg-{name}/src"));
    for directory in iter::once("src").chain(crates.iter().map(String::as_str)) {
        add_literals(&root().join(directory), &mut text);
    }
    let known: BTreeSet<_> = words(&text).collect();
    let blocks = blocks("text");
    let outputs: Vec<_> = blocks.iter().filter(|block| !is_drawing(block)).collect();
    for block in &outputs {
        let unknown: Vec<_> = words(&block.text).filter(|word| !known.contains(word)).collect();
        assert!(unknown.is_empty(), "{}: the program never prints {unknown:?}", block.name());
    }
    assert!(outputs.len() > 12, "{} blocks", outputs.len());
}

#[test]
fn messages_of_check_are_as_shown() {
    let directory = std::env::temp_dir().join(format!("ftp-alg-docs-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("bad.toml"), REFUSED).unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_ftp-alg"));
    let output = check.args(["check", "--config", "bad.toml"]).current_dir(&directory).output();
    let printed = String::from_utf8(output.unwrap().stderr).unwrap();
    let is_shown = blocks("text").iter().any(|block| block.text == printed);
    assert!(is_shown, "no page shows what check prints:\n{printed}");
    fs::remove_dir_all(directory).unwrap();
}
