//! Output that the pages show has the shape of what the program prints now: all but numbers and addresses is the same.

use std::collections::BTreeSet;

use super::pages::{Block, blocks};
use crate::{common::*, replay};

/// A configuration that `ftp-alg check` refuses, as docs/configuration.md shows.
const REFUSED: &str = "[pinhole]\ntimout = \"30s\"\nbackend = \"nft\"\n[nat]\nmin-data-port = 1\n";

/// Whether the block is a drawing, not output.
fn is_drawing(block: &Block) -> bool {
    block.text.contains("----") || block.text.contains('─')
}

/// What prints the text of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Source {
    /// `sessions`, `pinholes`, the log and `doctor --try` of a gateway that masquerades.
    Masquerade,
    /// The log of a gateway with a published server, which then announces the address of its container.
    Published,
    /// `status` of a daemon with the fast path.
    FastPath,
    /// `status` of a daemon whose external address has a name.
    Name,
    /// `doctor`, `status`, `doctor --try` and `setup` behind a firewall that drops data connections.
    Dropping,
    /// `replay` with a simulated NAT.
    Replay,
    /// `check`.
    Check,
}

/// Pages, how a block begins, and its source.
const SHOWN: [(&str, &str, Source); 15] = [
    ("README.md", "ftp://anonymous@", Source::Masquerade),
    ("docs/commands.md", "ID  CLIENT", Source::Masquerade),
    ("docs/commands.md", "SESSION  KIND", Source::Masquerade),
    ("docs/commands.md", "FRAME  SESSION", Source::Replay),
    ("docs/configuration.md", "ftp-alg: bad.toml", Source::Check),
    ("docs/fastpath.md", "fast path  on", Source::FastPath),
    ("docs/setup.md", "nftables (recognised", Source::Dropping),
    ("docs/health.md", "PROBLEM data-connections", Source::Dropping),
    ("docs/names-and-ports.md", "ignore PASV", Source::Published),
    ("docs/howto/one-to-one-nat.md", "gateway.example.net", Source::Name),
    ("docs/howto/masquerade.md", "#7 10.0.0.7", Source::Masquerade),
    ("docs/howto/published-server.md", "#3 203", Source::Published),
    ("docs/troubleshooting.md", "firewall\n", Source::Dropping),
    ("docs/troubleshooting.md", "  FAILED   EPSV", Source::Dropping),
    ("docs/troubleshooting.md", "#12 10.0.0.7", Source::Masquerade),
];

/// The firewall that the pages on `setup` and `doctor` have.
const DROPPING: &str = "table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established accept
        iifname \"lan0\" tcp dport 21 accept
    }
}
table inet nat {
    chain source {
        type nat hook postrouting priority srcnat;
        oifname \"wan\" masquerade
    }
}
";

/// Words; each number, and each address, is a `#`. Lines break where the width of numbers lets them.
fn shape(text: &str) -> Vec<String> {
    let names = [("lan0", "lan"), ("wan0", "wan"), ("gateway.example.net", NAME)];
    let text = names.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    let mut words = Vec::new();
    for word in text.split_whitespace() {
        let mut form = word.replace(|one: char| one.is_ascii_digit(), "#");
        while form.contains("##") || form.contains("#.#") || form.contains("#:#") {
            form = form.replace("##", "#").replace("#.#", "#").replace("#:#", "#");
        }
        words.push(form);
    }
    words
}

/// Whether `printed` has what `shown` shows. `...` stands for what the page leaves out.
fn has(printed: &str, shown: &str) -> bool {
    let printed = shape(printed);
    let mut from = 0;
    shown.split("...").map(shape).all(|part| {
        if part.is_empty() {
            return true;
        }
        let at = printed[from..].windows(part.len()).position(|words| words == part);
        from += at.map_or(0, |at| at + part.len());
        at.is_some()
    })
}

#[test]
fn shapes_ignore_values_only() {
    assert!(has("a\n#7 10.0.0.7:55056 ->  b, c d", "#12 1.2.3.4:1 -> b, ...\n"));
    assert!(!has("#7 10.0.0.7:55056 -> b", "#12 1.2.3.4:1 -> c"));
    assert!(!has("12 sessions, 3 left", "12 sessions 3 left"));
}

fn asked(daemon: &Daemon, arguments: &[&str]) -> String {
    daemon.ask(arguments).unwrap().stdout_text()
}

/// What `commands` print while a client waits after `steps`, and then the log, once it has `lines`.
fn during(
    gateway: &Gateway,
    server: &Value,
    steps: &[Vec<Value>],
    commands: &[&str],
    lines: &[&str],
) -> String {
    let Gateway { daemon, lab } = gateway;
    let _server = scripted_server(&lab.server, server);
    let steps = [&[login()], steps, &[vec![gate()]]].concat().concat();
    let opened = steps.iter().filter(|step| **step == say("PASV")).count();
    let client = hold(lab, steps);
    // The fast path reports pinholes later than it opens them.
    if !commands.is_empty() {
        let has_opened = || daemon.counter("pinholes_opened").unwrap() >= opened as u64;
        wait_for("the pinholes in status", has_opened);
    }
    let texts: String = commands.iter().map(|command| asked(daemon, &[command])).collect();
    assert_eq!(client.release().error, None);
    for line in lines {
        wait_for(line, || daemon.log().contains(line));
    }
    texts + &daemon.log()
}

/// A gateway with rules that drop data connections.
fn dropping() -> Gateway {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    lab.gateway.shell("nft flush ruleset").unwrap();
    let rules = DROPPING.replace("\"lan0\"", "\"lan\"");
    lab.gateway.shell(&format!("nft -f - <<'END'\n{rules}END")).unwrap();
    Gateway::on(lab, NFTABLES)
}

fn tried(gateway: &Gateway) -> String {
    let _server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    let url = format!("ftp://{}", gateway.lab.server_endpoint(V4));
    let words = ["doctor", "--try", &url, "--socket", "/nonexistent", "--config", "/dev/null"];
    gateway.lab.client.try_run(executable(), &words).unwrap().stdout_text()
}

/// What `setup` prints where `/etc/nftables.conf` has the rules, and the machine's own journal of `setup` is hidden.
fn set_up(gateway: &Gateway) -> String {
    let Gateway { daemon, lab } = gateway;
    let rules = DROPPING.replace("\"lan0\"", "\"lan\"");
    let text = format!("#!/usr/sbin/nft -f\nflush ruleset\n{rules}");
    let file = lab.gateway.write("nftables.conf", text.as_bytes()).unwrap();
    let lines = format!(
        "exec unshare --mount sh -ec 'mount --bind {} /etc/nftables.conf
        mount -t tmpfs -o mode=755 tmpfs /var/lib
        exec {} setup --socket {} --config {}'",
        file.display(),
        executable().display(),
        daemon.socket().display(),
        configuration_file(daemon),
    );
    lab.gateway.shell(&lines).unwrap().stdout_text()
}

/// What the program prints, or nothing where the kernel cannot do it.
fn printed(source: Source) -> Option<String> {
    let nothing = json!({});
    Some(match source {
        Source::Masquerade => {
            let gateway = gateway(Topology::Masquerade);
            // The port has fewer digits than the one that is announced instead.
            let active = active_transfer(gateway.lab.client.address(V4), 1024);
            let steps = [ask("PORT 10,9,8,7,14,178"), active, ask("PASV")];
            let lines = ["refuse PORT", "rewrite PORT"];
            during(&gateway, &nothing, &steps, &["sessions", "pinholes"], &lines) + &tried(&gateway)
        }
        Source::Published => {
            let gateway = gateway(Topology::PublishedServer);
            let log = during(&gateway, &nothing, &[ask("PASV")], &[], &["rewrite PASV"]);
            let container = json!({"address": "172.17.0.2"});
            log + &during(&gateway, &container, &[ask("PASV")], &[], &["ignore PASV"])
        }
        Source::FastPath => {
            let gateway = fast_path_gateway(Topology::Routed)?;
            let _server = scripted_server(&gateway.lab.server, &json!({"body": "here it is\r\n"}));
            let steps = (login(), vec![passive_transfer("PASV"); 8], gate());
            let start = || hold(&gateway.lab, &steps);
            let _client = until_on_fast_path(&gateway, ("opened", 2), start);
            // Not if a retransmission has just handed it back.
            wait_for("the connection on the fast path", || {
                fast_path(&gateway.daemon)["connections"] == 1
            });
            asked(&gateway.daemon, &["status"])
        }
        Source::Name => {
            let lab = Lab::new(Topology::PublishedServer).unwrap();
            let names = json!({ NAME: {"A": ["203.0.113.1"], "ttl": 60} });
            let dns = NameServer::start(&lab.gateway, &executable(), &names);
            let configuration = format!("[nat]\nexternal-address = \"dns:{NAME}\"\n");
            let daemon = Daemon::start(&dns.executable, &lab.gateway, &configuration).unwrap();
            wait_for_address(&daemon, "203.0.113.1");
            asked(&daemon, &["status"])
        }
        Source::Dropping => {
            let gateway = dropping();
            let status = || asked(&gateway.daemon, &["status"]);
            wait_for("the problem in status", || status().contains("PROBLEM"));
            let doctor = doctor(&gateway.daemon).stdout_text();
            [status(), doctor, tried(&gateway), set_up(&gateway)].concat()
        }
        Source::Replay => {
            let port = (true, "PORT 192,168,150,80,14,178");
            let transfer = [(true, "RETR /pub/q3.csv"), (false, "150 here"), (false, "226 done")];
            let lines = [&replay::LOGIN[..], &[port], &transfer].concat();
            let place = tempfile::tempdir().unwrap();
            let capture = place.path().join("capture.pcap");
            let bytes = replay::slacksite([192, 168, 150, 80], [203, 0, 113, 9], &lines);
            std::fs::write(&capture, bytes).unwrap();
            replay::printed(&[capture.to_str().unwrap(), "--external", "198.51.100.1"])
        }
        Source::Check => {
            let place = tempfile::tempdir().unwrap();
            fs::write(place.path().join("bad.toml"), REFUSED).unwrap();
            let mut check = std::process::Command::new(executable());
            let done = check.args(["check", "bad.toml"]).current_dir(place.path()).output();
            String::from_utf8(done.unwrap().stderr).unwrap()
        }
    })
}

#[test]
fn shown_output_has_the_shape_of_what_the_program_prints() {
    let blocks = blocks("text");
    let sources: BTreeSet<_> = SHOWN.iter().map(|(_, _, source)| *source).collect();
    let compare = &|source: Source| {
        let mut wrong = Vec::new();
        let Some(printed) = printed(source) else { return wrong };
        for (page, start, _) in SHOWN.iter().filter(|(_, _, of)| *of == source) {
            for block in
                blocks.iter().filter(|one| one.page == *page && one.text.starts_with(start))
            {
                if !has(&printed, &block.text) {
                    wrong.push(format!("{}:\n{}\nprinted:\n{printed}", block.name(), block.text));
                }
            }
        }
        wrong
    };
    let wrong: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            sources.iter().map(|source| scope.spawn(move || compare(*source))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn every_shown_output_has_a_source() {
    let blocks = blocks("text");
    for block in blocks.iter().filter(|block| !is_drawing(block)) {
        let has_source = |(page, start, _): &(&str, &str, _)| {
            block.page == *page && block.text.starts_with(start)
        };
        assert!(SHOWN.iter().any(has_source), "{} is not in SHOWN", block.name());
    }
    for (page, start, _) in SHOWN {
        let is_shown = blocks.iter().any(|one| one.page == page && one.text.starts_with(start));
        assert!(is_shown, "{page} no longer shows {start}");
    }
}
