//! Command lines of the pages: bash reads each block, and programs that are here understand their commands.
//!
//! Commands run with the machine's system directories under a writable layer, in a network namespace of their own, and
//! without a service manager. So nothing that a page says changes the machine.

use std::{
    collections::BTreeSet,
    process::{Command, Output, Stdio},
};

use super::pages::{Block, all_blocks, root, spans, text};

/// Programs whose commands run here. `modprobe` is not one: it would change the machine's kernel.
const RUN: [&str; 12] = [
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
for name in eth1 lan0 wan0; do ip link add $name type veth peer name peer-$name; done
"#;

/// Runs `lines` there.
pub fn confined(lines: &str) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let script = format!("set -e\nset -- {}\n{ENTER}\n{lines}", directory.path().display());
    let mut command = Command::new("timeout");
    command.args(["120", "unshare", "--net", "--mount", "bash", "-c", &script]);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("/usr/sbin:/usr/bin:/sbin:/bin:{path}")).current_dir(root());
    command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent").stdin(Stdio::null());
    command.output().unwrap()
}

/// What says that a program, an option or an argument does not exist. Commands may fail otherwise.
const COMPLAINTS: [&str; 19] = [
    "Usage:",
    "usage:",
    "nknown",
    "nrecognized",
    "nvalid option",
    "nvalid operation",
    "not found",
    "not understood",
    "Failed to parse",
    "yntax error",
    "Invalid syntax",
    "mount:",
    "overlay",
    "no such option",
    "ould not resolve",
    "ould not parse",
    "Couldn't load",
    "Bad argument",
    "datatype mismatch",
];

/// Runs `command`, and ends what does not end by itself. Gives what it says of wrong usage.
fn complaint(command: &str) -> Option<String> {
    let own = command.strip_prefix("ftp-alg ");
    let line = own.map(|rest| format!("{} {rest}", env!("CARGO_BIN_EXE_ftp-alg")));
    let output = confined(&format!("timeout 10 {}", line.as_deref().unwrap_or(command)));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let is_complaint = COMPLAINTS.iter().any(|complaint| said.contains(complaint));
    let is_wrong_use = own.is_some() && output.status.code() == Some(2);
    (is_complaint || is_wrong_use).then_some(said)
}

#[test]
fn wrong_commands_are_not_understood() {
    let wrong = "conntrack --flash
        firewall-cmd --reloat
        ftp-alg log-level debugg
        ftp-alg pinholes extra
        ip rool
        iptables --fluxx
        iptables -A FORWARD -m nomatch -j ACCEPT
        nft inser rule inet filter forward accept
        nft add rule inet filter forward ct mark lan0 accept
        systemctl restrt ftp-alg
        ufw alow 21/tcp";
    for command in wrong.lines().map(str::trim) {
        assert!(complaint(command).is_some(), "{command}");
    }
}

fn is_shell(block: &Block) -> bool {
    matches!(&*block.language, "sh" | "bash" | "console" | "shell")
}

/// The commands of a block: a backslash at a line's end continues it.
fn commands(block: &Block) -> Vec<String> {
    let whole = block.text.replace("\\\n", " ");
    let lines = whole.lines().map(|line| line.split(" # ").next().unwrap());
    let commands = lines.flat_map(|line| line.split(" && ")).flat_map(|line| line.split("; "));
    let commands = commands.flat_map(|command| command.split(" | "));
    commands.map(|command| command.trim().trim_start_matches("sudo ").trim().to_owned()).collect()
}

/// A block of commands without a language would escape the next test.
#[test]
fn bash_reads_every_block_of_commands() {
    for block in all_blocks() {
        let mut words = block.text.lines().filter_map(|line| line.split(' ').next());
        let has_commands = words.any(|word| RUN.contains(&word) || word == "ftp-alg");
        assert!(!has_commands || !block.language.is_empty(), "{} has commands", block.name());
        if is_shell(&block) {
            let output = Command::new("bash").args(["-nc", &block.text]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "{}: {said}", block.name());
        }
    }
}

/// Commands of blocks, and those in backquotes, as in `conntrack -F`. Decisions quote what is no command to type.
#[test]
fn commands_of_the_pages_are_understood() {
    let blocks = all_blocks();
    let blocks = blocks.iter().filter(|block| is_shell(block));
    let of_blocks = blocks
        .flat_map(|block| commands(block).into_iter().map(|command| (block.page.clone(), command)));
    let of_blocks: Vec<_> = of_blocks.collect();
    let in_text = spans().into_iter().filter(|(page, span)| {
        page != "docs/decisions.md" && !span.contains("...") && !span.starts_with("ftp-alg ")
    });
    let mut seen = BTreeSet::new();
    for (page, command) in of_blocks.into_iter().chain(in_text) {
        let mut words = command.split_whitespace().skip_while(|word| word.contains('='));
        let (Some(program), Some(argument)) = (words.next(), words.next()) else { continue };
        if PARTS.contains(&&*command) || !seen.insert(command.clone()) {
            continue;
        }
        let what = format!("{page}: {command}");
        // Other settings belong to the machine.
        assert!(program != "sysctl" || argument.starts_with("net."), "{what}");
        if RUN.contains(&program) || program == "ftp-alg" {
            let complaint = complaint(&command);
            assert!(complaint.is_none(), "{what}: {}", complaint.unwrap());
        }
        names_what_there_is(&command, &what);
    }
    assert!(seen.len() > 100, "{seen:?}");
}

/// Targets of make, test programs and files of the repository that a command names are there.
fn names_what_there_is(command: &str, what: &str) {
    let words: Vec<_> = command.split_whitespace().collect();
    if let Some(target) = words.iter().skip_while(|word| **word != "make").nth(1)
        && !target.contains('=')
    {
        assert!(text("Makefile").contains(&format!("\n{target}:")), "no such target: {what}");
    }
    for pair in words.windows(2).filter(|pair| pair[0] == "--test") {
        let places = ["tests", "crates/ftp-alg-core/tests"].map(|place| root().join(place));
        assert!(places.iter().any(|place| place.join(pair[1]).join("main.rs").is_file()), "{what}");
    }
    // Capitals and asterisks stand for others.
    let is_whole = |word: &&str| !word.contains(|one: char| one == '*' || one.is_ascii_uppercase());
    for word in words.into_iter().filter(is_whole) {
        let is_ours =
            ["fuzz/", "packaging/", "rules/", "tests/"].iter().any(|of| word.starts_with(of));
        assert!(!is_ours || root().join(word).exists(), "no such file: {what}");
    }
}
