//! Command lines of the pages: bash reads each block, and each command runs, or is in a list with the reason.
//!
//! Commands run with the machine's system directories under a writable layer, in a network namespace of their own, and
//! without a service manager. So nothing that a page says changes the machine.

use std::{
    collections::BTreeSet,
    process::{Command, Output, Stdio},
};

use super::{
    pages::{Block, all_blocks, lines, pages, root, text},
    rules::expanded,
};

/// Files that have commands of firewalls which an end-to-end test runs.
const TESTED: [&str; 5] = [
    "rules/recipes/ufw.sh",
    "rules/recipes/firewalld.sh",
    "tests/e2e/recipes/firewalld.rs",
    "tests/e2e/recipes/ufw.rs",
    "tests/e2e/setup/ufw.rs",
];

/// Programs, or how their commands begin, that do not run here, and why. Their lines are only read by bash.
const NOT_RUN: [(&str, &str); 25] = [
    ("ansible-playbook -i inventory", "nightly: tests/packaging/ansible.sh runs this playbook"),
    ("ansible gateways -i inventory", "needs gateways"),
    ("apt-get update", "needs the network; tests/installed/first-transfer runs it"),
    ("bpftool net", "not among the packages of packaging/provision"),
    (
        "bpftool map dump pinned /sys/fs/bpf/ftp-alg/",
        "as above; tests/e2e/fastpath.rs finds the pins there",
    ),
    ("curl http://127.0.0.1:9821/metrics", "tests/e2e/metrics.rs does it"),
    ("curl -u prometheus http://10.0.0.1:9821/metrics", "as above"),
    ("docker ", "there is no Docker here; tests/installed/first-transfer installs it"),
    ("echo \"prometheus:$(openssl rand -hex 16)\"", "openssl is not among the packages"),
    ("fw4 check", "OpenWrt's; tests/e2e/recipes and setup load the rules where fw4 has them"),
    ("fw4 print", "as above"),
    ("fw4 reload", "as above"),
    ("install -m 0640 -g ftp-alg /dev/null /etc/", "has the group of the package"),
    ("kubectl ", "needs a cluster; tests/e2e/kubernetes has the nodes of one"),
    ("jq -", "not among the packages of packaging/provision"),
    ("opkg ", "OpenWrt's, and not packaged for Debian"),
    ("seq -f gw-%g 40", "prints names for the next one"),
    ("ssh -", "needs gateways that serve ssh"),
    ("xargs -P 8 -I GW sh -c", "as above"),
    ("rm \"$XDG_RUNTIME_DIR/gw-1.sock\"", "the socket of the ssh above"),
    ("tcpdump -i lan0", "captures until it is interrupted"),
    ("uci commit firewall", "OpenWrt's, and not packaged for Debian"),
    ("uci set firewall.@defaults[0].", "as above"),
    (
        "zcat ",
        "the files are an operator's; tests/e2e/history.rs reads a file of events through a pipe",
    ),
    (
        "rm -r /sys/fs/bpf/ftp-alg",
        "the pins of other tests are there; tests/e2e/fastpath.rs removes its own",
    ),
];

/// Layers over the system's directories, with the packages that `packaging/provision` unpacked, without what the system
/// has of `ftp-alg`, and an empty /run.
const ENTER: &str = r#"
cache=${FTP_ALG_LAB_CACHE:-/var/cache/ftp-alg-lab}/root
mount -t tmpfs layers "$1"
for at in etc usr var/lib; do
    mkdir -p "$1/$at/upper" "$1/$at/work"
    lower=/$at
    [ -d "$cache/$at" ] && lower=$lower:$cache/$at
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=$1/$at/upper,workdir=$1/$at/work" "/$at"
done
rm -rf /etc/ftp-alg.toml /var/lib/ftp-alg
mount -t tmpfs run /run
for name in lan0 wan0; do ip link add $name type veth peer name peer-$name; done
fw4() { :; }
shift
"#;

/// Runs `lines` with `ftp-alg` as the program under test.
fn confined(lines: &str) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let layers = directory.path().display();
    let program = env!("CARGO_BIN_EXE_ftp-alg");
    let script =
        format!("set -e\nset -- {layers}\n{ENTER}ftp-alg() {{ {program} \"$@\"; }}\n{lines}");
    let mut command = Command::new("timeout");
    command.args(["120", "unshare", "--net", "--mount", "bash", "-c", &script]);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("/usr/sbin:/usr/bin:/sbin:/bin:{path}")).current_dir(root());
    command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent").stdin(Stdio::null());
    command.output().unwrap()
}

/// Runs `command`, which may fail, but not because a program or an option of it does not exist. Gives the complaint.
fn complaint(command: &str) -> Option<String> {
    let output = confined(command);
    let said = String::from_utf8_lossy(&output.stderr);
    let complaints = "Usage:,usage:,nknown,nrecognized,nvalid option,nvalid operation,not found,not understood,\
                      Failed to parse,yntax error,Invalid syntax,mount:,overlay,no such option,ould not resolve,ould not parse,\
                      Couldn't load,Bad argument,datatype mismatch";
    let is_complaint = complaints.split(',').any(|complaint| said.contains(complaint));
    // 2: wrong usage of `ftp-alg`, which has no daemon here; 124: the time is up.
    let code = output.status.code();
    let is_wrong_use = command.starts_with("ftp-alg ") && code == Some(2);
    (is_complaint || is_wrong_use || code == Some(124)).then(|| format!("{code:?} {said}"))
}

fn is_understood(command: &str, what: &str) {
    let complaint = complaint(command);
    assert!(complaint.is_none(), "{what}: {}", complaint.unwrap());
}

#[test]
fn wrong_commands_are_not_understood() {
    let wrong = [
        "apt-get purrge ftp-alg",
        "conntrack --flash",
        "firewall-cmd --reloat",
        "ftp-alg log-level debugg",
        "ftp-alg pinholes extra",
        "ip rool",
        "iptables --fluxx",
        "iptables -A FORWARD -m nomatch -j ACCEPT",
        "nft inser rule inet filter forward accept",
        "nft add rule inet filter forward ct mark lan0 accept",
        "systemctl restrt ftp-alg",
        "ufw alow 21/tcp",
    ];
    for command in wrong {
        assert!(complaint(command).is_some(), "{command}");
    }
}

/// Runs `command`, which has to succeed.
fn succeeds(command: &str, what: &str) {
    let output = confined(command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {said}");
}

/// A command's words without quotes.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut quote, mut is_open) = (Vec::<String>::new(), None, false);
    for one in command.chars() {
        match quote {
            Some(mark) if one == mark => quote = None,
            None if one == '\'' || one == '"' => quote = Some(one),
            None if one.is_whitespace() => is_open = false,
            _ => {
                if !is_open {
                    words.push(String::new());
                }
                is_open = true;
                words.last_mut().unwrap().push(one);
            }
        }
    }
    words
}

fn is_shell(block: &Block) -> bool {
    matches!(&*block.language, "sh" | "bash" | "console" | "shell")
}

/// The commands of a block's lines, without loops around them.
fn commands(block: &Block) -> Vec<String> {
    let lines = block.commands();
    let commands =
        lines.iter().flat_map(|line| line.split(" && ")).flat_map(|line| line.split("; "));
    let commands = commands.flat_map(|command| command.split(" | ")).map(str::trim);
    let is_loop =
        |command: &str| command == "do" || command == "done" || command.starts_with("for ");
    commands.filter(|command| !is_loop(command)).map(str::to_owned).collect()
}

/// A block of commands without a language would escape the other tests.
#[test]
fn every_block_has_its_language_and_bash_reads_those_of_the_shell() {
    let languages = "conf iptables json nft powershell python sh text toml yaml";
    let programs = ["apt-get", "cargo", "ftp-alg", "iptables", "make", "nft", "sudo", "systemctl"];
    let is_command = |line: &str| {
        let word = line.split(' ').next().unwrap_or_default();
        programs.contains(&word) || line.starts_with("FTP_ALG_")
    };
    let blocks = all_blocks();
    for block in &blocks {
        let is_known = languages.split(' ').any(|one| one == block.language);
        assert!(is_known || !block.is_for_operators(), "{}: {:?}", block.name(), block.language);
        let has_commands = block.language.is_empty() && block.text.lines().any(is_command);
        assert!(!has_commands, "{} has commands", block.name());
    }
    let shells: Vec<_> = blocks.iter().filter(|block| is_shell(block)).collect();
    for block in &shells {
        let output = Command::new("bash").args(["-nc", &block.text]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{}: {said}", block.name());
    }
    assert!(shells.len() > 50, "{} blocks", shells.len());
}

#[test]
fn commands_of_the_pages_run_or_are_in_the_list() {
    let mut used = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for block in all_blocks().iter().filter(|block| is_shell(block)) {
        if block.text.contains("/usr/share/nftables.d") {
            on_openwrt(block);
        }
        for command in commands(block) {
            if seen.insert(command.clone()) {
                used.extend(run(&command, block));
            }
        }
    }
    assert!(seen.len() > 60, "{} commands", seen.len());
    let stale: Vec<_> = NOT_RUN.iter().filter(|(start, _)| !used.contains(start)).collect();
    assert!(stale.is_empty(), "no page has these: {stale:?}");
}

/// Programs whose commands in running text run here. `modprobe` is not one: it would change the machine's kernel.
const IN_TEXT: [&str; 12] = [
    "conntrack",
    "firewall-cmd",
    "ip",
    "ip6tables",
    "iptables",
    "journalctl",
    "nft",
    "ss",
    "sysctl",
    "systemctl",
    "tshark",
    "ufw",
];

/// Beginnings of commands, which stand for all commands that begin so.
const PARTS: [&str; 2] = ["ip netns exec", "ufw route allow"];

/// Commands in backquotes, as in `conntrack -F`. Decisions quote what is no command to type.
#[test]
fn commands_in_the_text_are_understood() {
    let mut seen = BTreeSet::new();
    for (page, text) in pages() {
        let page = page.strip_prefix(root()).unwrap().display().to_string();
        if page == "docs/decisions.md" {
            continue;
        }
        for span in lines(&text, false).flat_map(|line| line.split('`').skip(1).step_by(2)) {
            let Some((program, arguments)) = span.split_once(' ') else { continue };
            let is_part = span.contains("...") || PARTS.contains(&span);
            if !IN_TEXT.contains(&program) || is_part || !seen.insert(span.to_owned()) {
                continue;
            }
            let what = format!("{page}: `{span}`");
            // Other settings belong to the machine.
            assert!(program != "sysctl" || arguments.starts_with("net."), "{what}");
            // `nft monitor` does not end by itself.
            is_understood(&format!("timeout 2 {span} || true"), &what);
        }
    }
    assert!(seen.len() > 15, "{seen:?}");
}

/// Runs `command`. Gives its entry in the list of those that do not run.
fn run(command: &str, block: &Block) -> Option<&'static str> {
    let what = format!("{}: {command}", block.page);
    let listed = NOT_RUN.iter().find(|(start, _)| command.starts_with(start));
    if let Some((start, _)) = listed {
        return Some(start);
    }
    let all = words(command);
    let is_assignment =
        |word: &&String| word.split_once('=').is_some_and(|(name, _)| name.chars().all(is_of_name));
    let rest: Vec<&str> = all.iter().skip_while(is_assignment).map(String::as_str).collect();
    let [program, rest @ ..] = rest.as_slice() else { panic!("no command: {what}") };
    let recipe = rest.iter().find_map(|word| word.strip_prefix("rules/recipes/"));
    match (*program, recipe) {
        ("sh" | "nft", Some(recipe)) => has_test(recipe, &what),
        ("ufw" | "firewall-cmd", None) => {
            let tested = TESTED.map(|file| expanded(&text(file))).concat();
            assert!(tested.contains(command) || block.is_run_by_firewalld(), "{what}");
        }
        (
            "nft" | "iptables" | "ip6tables" | "conntrack" | "ip" | "ss" | "ftp-alg" | "journalctl"
            | "systemctl" | "grep",
            None,
        ) => is_understood(command, &what),
        ("systemd-sysusers", None) => {
            is_understood("systemd-sysusers --dry-run $PWD/packaging/ftp-alg.sysusers", &what);
        }
        ("apt-get", None) => {
            let known = text("packaging/provision");
            let is_known = |name: &&str| {
                name.contains("ftp-alg_*.deb")
                    || *name == "ftp-alg"
                    || known.split([' ', ':', '(', ')', '\n']).any(|one| one == *name)
            };
            assert!(
                rest[1..].iter().all(is_known),
                "no such package in packaging/provision: {what}"
            );
            is_understood(&command.replace("apt-get ", "apt-get --simulate "), &what);
        }
        ("mkdir" | "cp" | "echo", _) => {
            assert!(block.text.contains("/usr/share/nftables.d"), "{what}");
        }
        ("make", None) => {
            let makefile = text("Makefile");
            for target in rest.iter().filter(|word| !word.contains('=')) {
                assert!(makefile.contains(&format!("\n{target}:")), "no such target: {what}");
            }
        }
        ("cargo", None) => of_cargo(rest, &what),
        ("cd", None) => assert!(root().join(rest[0]).is_dir(), "{what}"),
        (program, _) if program.starts_with("target/") => {
            assert!(text("fuzz/run").contains("target/"), "{what}");
        }
        (program, _) if program.contains('/') => {
            assert!(root().join(program).is_file(), "no such file: {what}");
        }
        _ => panic!("no test runs this, and it is not in NOT_RUN: {what}"),
    }
    None
}

const fn is_of_name(one: char) -> bool {
    one.is_ascii_uppercase() || one.is_ascii_digit() || one == '_'
}

/// An end-to-end test runs this recipe.
fn has_test(recipe: &str, what: &str) {
    assert!(root().join("rules/recipes").join(recipe).exists(), "{what}");
    let tests = ["recipes/native.rs", "recipes/docker.rs", "flowtable.rs"];
    let tests = tests.map(|file| text(&format!("tests/e2e/{file}"))).concat();
    let tested = TESTED.map(|file| expanded(&text(file))).concat();
    assert!(tests.contains(recipe) || tested.contains(recipe), "{what}");
}

/// The targets exist: these commands would build the project again, and `make test` runs them.
fn of_cargo(arguments: &[&str], what: &str) {
    for pair in arguments.windows(2).filter(|pair| pair[0] == "--test") {
        let places = ["tests", "crates/ftp-alg-core/tests"].map(|place| root().join(place));
        assert!(places.iter().any(|place| place.join(pair[1]).join("main.rs").is_file()), "{what}");
    }
    let own = arguments.iter().position(|word| *word == "--").map(|at| &arguments[at + 1..]);
    if let ("run", Some(own)) = (arguments[0], own) {
        is_understood(&format!("ftp-alg {}", own.join(" ")), what);
    }
}

/// Runs a block for OpenWrt as it is. nft then loads what it left in fw4's directories.
fn on_openwrt(block: &Block) {
    let includes = "table inet fw4 {
        chain forward { include \"/usr/share/nftables.d/chain-pre/forward/*.nft\"; }
        chain input { include \"/usr/share/nftables.d/chain-pre/input/*.nft\"; }
    }";
    let lines = format!(
        "nft -f - <<'END'\n{includes}\nEND\n\
         for chain in forward input; do nft list chain inet fw4 $chain | grep -q 0x40000000; done"
    );
    succeeds(&format!("{}\n{lines}", block.text), &block.name());
}
