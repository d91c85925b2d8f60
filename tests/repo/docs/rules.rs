//! Rules and configurations in the documentation load. `tests/e2e/recipes` moves files through the rules of how-to pages.

use std::{collections::BTreeSet, fs, process::Command};

use super::{
    pages::{blocks, spans, text},
    shell::confined,
};

/// Marks that the rules of pages have.
const MARKS: [&str; 2] = ["0x40000000", "0x70000000"];

/// Has `program` check `rules`, between the interfaces `lan0` and `wan0`.
fn check(program: &str, rules: &str, what: &str) {
    let output = confined(&format!("{program} <<'END'\n{rules}\nEND"));
    let said = String::from_utf8_lossy(&output.stderr);
    let is_missing = said.contains("flowtable ") && rules.contains("flowtable ");
    if is_missing {
        println!("not tried: this kernel has no flowtables (CONFIG_NF_FLOW_TABLE)");
    }
    assert!(output.status.success() || is_missing, "{what}: {said}{rules}");
}

/// Checks one rule of nftables, or one of iptables with its chain.
fn check_rule(rule: &str, what: &str) {
    for word in rule.split([' ', '/']).filter(|word| word.starts_with("0x")) {
        assert!(MARKS.contains(&word), "{what}: {word}");
    }
    let Some(rest) = rule.strip_prefix("-A ") else {
        return check(
            "nft -c -f -",
            &format!("table inet page {{ chain page {{\n{rule}\n}}\n}}"),
            what,
        );
    };
    let chain = rest.split(' ').next().unwrap();
    let own =
        if chain.starts_with(char::is_lowercase) { format!(":{chain} -\n") } else { String::new() };
    for program in ["iptables-restore --test", "ip6tables-restore --test"] {
        check(program, &format!("*filter\n{own}{rule}\nCOMMIT"), what);
    }
}

/// Of the pages, of ftp-alg(7), and in running text, as in `ct mark & 0x40000000 != 0 accept`.
#[test]
fn rules_load() {
    let mut single = BTreeSet::new();
    for block in [blocks("nft"), blocks("iptables")].into_iter().flatten() {
        if block.text.contains("table ") {
            check("nft -c -f -", &block.text, &block.name());
            let is_manual = block.page.ends_with(".7");
            assert!(!is_manual || text("README.md").contains(&block.text), "{}", block.text);
        } else {
            single.extend(block.text.lines().map(|line| (line.to_owned(), block.page.clone())));
        }
    }
    for (page, span) in spans() {
        let is_nft = ["ct mark ", "ct state ", "meta mark "].iter().any(|of| span.starts_with(of));
        if is_nft && span.ends_with(" accept") {
            single.insert((span, page));
        } else if span.starts_with("-m ") && span.contains(" -j ") {
            single.insert((format!("-A FORWARD {span}"), page));
        }
    }
    assert!(single.len() > 15, "{single:?}");
    single.iter().for_each(|(rule, page)| check_rule(rule, page));
}

#[test]
fn configurations_are_valid() {
    let directory = tempfile::tempdir().unwrap();
    let blocks = blocks("toml");
    for block in &blocks {
        let file = directory.path().join("ftp-alg.toml");
        fs::write(&file, &block.text).unwrap();
        let mut check = Command::new(env!("CARGO_BIN_EXE_ftp-alg"));
        let output = check.arg("check").arg(&file).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let is_clean = said.lines().count() == 1;
        assert!(output.status.success() && is_clean, "{}: {said}", block.name());
    }
    assert!(blocks.len() > 8, "{} blocks", blocks.len());
}
