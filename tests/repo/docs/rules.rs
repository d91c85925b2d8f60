//! Rules in the documentation load, and those of how-to pages are the tested recipes'.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use super::pages::{Block, blocks, lines, manual_examples, pages, root, text};

/// Files with rules that a test loads and moves files through, besides the recipes.
const TESTED: [&str; 2] = ["README.md", "tests/lab/src/firewall.rs"];

/// Runs the shell `lines` in a network namespace of their own that has the interfaces `lan0` and `wan0`.
fn in_namespace(lines: &str, input: &str, what: &str) {
    let script = format!(
        "set -e
        for name in lan0 wan0; do ip link add $name type veth peer name peer-$name; done
        cd \"$(mktemp -d)\"
        {}",
        lines.replace(" /etc/nftables.conf", " nftables.conf")
    );
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "sh", "-c", &script]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = command.env("PATH", format!("{path}:/usr/sbin:/sbin")).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let is_missing = said.contains("flowtable ") && input.contains("flowtable ");
    if is_missing {
        println!("not tried: this kernel has no flowtables (CONFIG_NF_FLOW_TABLE)");
    }
    assert!(output.status.success() || is_missing, "{what}: {said}{input}");
}

/// Loads one rule of nftables, or one of iptables with its chain.
fn load_rule(rule: &str, what: &str) {
    if rule.starts_with("-A ") {
        in_namespace("iptables-restore --test", &format!("*filter\n{rule}\nCOMMIT\n"), what);
    } else {
        in_namespace(
            "nft -c -f -",
            &format!("table inet page {{ chain page {{\n{rule}\n}}\n}}\n"),
            what,
        );
    }
}

#[test]
fn blocks_of_nftables_load() {
    let blocks = blocks("nft");
    for block in &blocks {
        match block.text.contains("table ") {
            true => in_namespace("nft -c -f -", &block.text, &block.name()),
            false => load_rule(&block.text, &block.name()),
        }
    }
    assert!(blocks.len() > 6, "{} blocks", blocks.len());
}

#[test]
fn blocks_of_iptables_load() {
    let blocks = blocks("iptables");
    for block in &blocks {
        let mut text = block.text.clone();
        if !text.contains("*filter") {
            let appended =
                text.lines().filter_map(|line| line.strip_prefix("-A ")?.split(' ').next());
            let own: Vec<_> =
                appended.filter(|chain| chain.starts_with(char::is_lowercase)).collect();
            let chains: String = own.iter().map(|chain| format!(":{chain} - [0:0]\n")).collect();
            text = format!("*filter\n{chains}{text}COMMIT\n");
        }
        for program in ["iptables-restore", "ip6tables-restore"] {
            // Only one family has addresses of the page.
            if !(program.starts_with("ip6") && text.contains("10.0.0.5")) {
                in_namespace(&format!("{program} --test"), &text, &block.name());
            }
        }
    }
    assert!(blocks.len() > 3, "{} blocks", blocks.len());
}

/// The rules of ftp-alg(7): its minimal rule set is the README's, and each single rule loads.
#[test]
fn rules_of_the_manual_load() {
    let examples = manual_examples("ftp-alg.7");
    let (whole, single): (Vec<_>, Vec<_>) =
        examples.iter().partition(|example| example.contains("table "));
    for example in &whole {
        assert!(text("README.md").contains(example.as_str()), "{example}");
    }
    let single: Vec<_> = single.iter().flat_map(|example| example.lines()).collect();
    single.iter().for_each(|rule| load_rule(rule, rule));
    assert!(!whole.is_empty() && single.len() > 8, "{whole:?} {single:?}");
}

/// Rules in running text and tables, as in `ct mark & 0x40000000 != 0 accept`.
#[test]
fn rules_in_the_text_load() {
    let mut seen = BTreeSet::new();
    for (page, text) in pages() {
        let spans = lines(&text, false).flat_map(|line| line.split('`').skip(1).step_by(2));
        for span in spans {
            let is_nft =
                ["ct mark ", "ct state ", "meta mark "].iter().any(|of| span.starts_with(of));
            let is_iptables = span.starts_with("-m ") && span.contains(" -j ");
            if !(is_nft && span.ends_with(" accept") || is_iptables)
                || !seen.insert(span.to_owned())
            {
                continue;
            }
            let rule = if is_nft { span.to_owned() } else { format!("-A FORWARD {span}") };
            load_rule(&rule, &format!("{}: {span}", page.display()));
        }
    }
    assert!(seen.len() > 4, "{seen:?}");
}

/// A recipe with the values of its variables.
pub fn expanded(recipe: &str) -> String {
    let mut text = recipe.to_owned();
    let values: Vec<_> = recipe
        .lines()
        .filter_map(|line| line.strip_prefix("define ").unwrap_or(line).split_once('='))
        .map(|(name, value)| (name.trim(), value.split('#').next().unwrap().trim()))
        .filter(|(name, value)| {
            !value.is_empty() && name.chars().all(|one| one.is_ascii_alphanumeric() || one == '_')
        })
        .collect();
    // Longer names first: `server6` begins with `server`.
    let mut values = values;
    values.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    for (name, value) in values {
        text = text.replace(&format!("${name}"), value);
    }
    // The argument of a recipe's function that is the server; what calls it has the variable.
    text.replace("$2", "10.0.0.5")
}

/// Rules without comments, names of tables and blank lines.
fn essence(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with("define "))
        .collect()
}

fn has_in_order(all: &[String], part: &[String]) -> bool {
    let mut all = all.iter();
    part.iter().all(|line| all.any(|one| one == line))
}

/// A reader gets the rules that end-to-end tests move files through, and no others.
#[test]
fn rules_of_how_to_pages_are_those_of_tested_recipes() {
    let recipes = fs::read_dir(root().join("rules/recipes")).unwrap();
    let recipes = recipes.map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
    let texts: Vec<_> = recipes.chain(TESTED.map(text)).collect();
    let known: Vec<_> = texts.iter().map(|text| essence(&expanded(text))).collect();
    let is_how_to = |block: &&Block| block.page.starts_with("docs/");
    let is_in_a_script = |line: &str| texts.iter().any(|text| text.contains(line));
    for block in [blocks("nft"), blocks("iptables")].iter().flatten().filter(is_how_to) {
        let lines = essence(&block.text);
        // ufw's recipe has its lines as arguments, with a variable for the chain's end.
        let by_variable = |line: &String| {
            let ends = ["-forward ", "-input ", "-output "];
            let line = ends.iter().fold(line.clone(), |line, end| line.replace(end, "-$chain "));
            is_in_a_script(&line)
        };
        let is_known = known.iter().any(|recipe| has_in_order(recipe, &lines))
            || lines.iter().all(|line| is_in_a_script(line) || by_variable(line));
        assert!(is_known, "no recipe has these rules: {}\n{lines:#?}", block.name());
    }
}

#[test]
fn configurations_are_valid() {
    let directory = tempfile::tempdir().unwrap();
    let mut blocks = blocks("toml");
    let (page, language) = ("ftp-alg.toml.5".to_owned(), "toml".to_owned());
    let manual = manual_examples(&page).into_iter();
    blocks.extend(manual.map(|text| Block {
        page: page.clone(),
        language: language.clone(),
        text,
    }));
    for (number, block) in blocks.iter().enumerate() {
        let file = directory.path().join(format!("{number}.toml"));
        fs::write(&file, &block.text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_ftp-alg")).arg("check").arg(&file).output();
        let output = output.unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let is_clean = said.lines().count() == 1;
        assert!(output.status.success() && is_clean, "{}: {said}", block.name());
    }
    assert!(blocks.len() > 8, "{} blocks", blocks.len());
}
