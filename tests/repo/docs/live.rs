//! Output that the pages show has the shape of what the program prints now: all but numbers and addresses is the same.

use super::pages::{Block, blocks};
use crate::{common::*, replay};

/// Whether the block is a drawing, not output.
fn is_drawing(block: &Block) -> bool {
    block.text.contains("----") || block.text.contains('─')
}

/// What prints, and the blocks that show it: their pages and how they begin.
type Source = (fn() -> String, &'static [(&'static str, &'static str)]);

const SHOWN: [Source; 7] = [
    (
        masquerade,
        &[
            ("README.md", "ftp://anonymous@"),
            ("docs/commands.md", "ID  CLIENT"),
            ("docs/commands.md", "SESSION  KIND"),
            ("docs/howto/masquerade.md", "#7 10.0.0.7"),
            ("docs/troubleshooting.md", "#12 10.0.0.7"),
        ],
    ),
    (
        published,
        &[("docs/names-and-ports.md", "ignore PASV"), ("docs/howto/published-server.md", "#3 203")],
    ),
    (on_fast_path, &[("docs/fastpath.md", "fast path  on")]),
    (with_name, &[("docs/howto/one-to-one-nat.md", "gateway.example.net")]),
    (
        dropping,
        &[
            ("docs/setup.md", "nftables (recognised"),
            ("docs/health.md", "PROBLEM data-connections"),
            ("docs/troubleshooting.md", "firewall\n"),
            ("docs/troubleshooting.md", "  FAILED   EPSV"),
        ],
    ),
    (replayed, &[("docs/commands.md", "FRAME  SESSION")]),
    (checked, &[("docs/configuration.md", "ftp-alg: bad.toml")]),
];

/// The firewall that the pages on `setup` and `doctor` have.
const DROPPING: &str = "#!/usr/sbin/nft -f
flush ruleset
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established accept
        iifname \"lan\" tcp dport 21 accept
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

fn tried(gateway: &Gateway) -> String {
    let _server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    let url = format!("ftp://{}", gateway.lab.server_endpoint(V4));
    let words = ["doctor", "--try", &url, "--socket", "/nonexistent", "--config", "/dev/null"];
    gateway.lab.client.try_run(executable(), &words).unwrap().stdout_text()
}

/// What `setup` prints where `/etc/nftables.conf` has the rules, and the machine's own journal of `setup` is hidden.
fn set_up(gateway: &Gateway) -> String {
    let Gateway { daemon, lab } = gateway;
    let file = lab.gateway.write("nftables.conf", DROPPING.as_bytes()).unwrap();
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

/// `sessions`, `pinholes`, the log and `doctor --try` of a gateway that masquerades.
fn masquerade() -> String {
    let gateway = gateway(Topology::Masquerade);
    // The port has fewer digits than the one that is announced instead.
    let active = active_transfer(gateway.lab.client.address(V4), 1024);
    let steps = [ask("PORT 10,9,8,7,14,178"), active, ask("PASV")];
    let lines = ["refuse PORT", "rewrite PORT"];
    during(&gateway, &json!({}), &steps, &["sessions", "pinholes"], &lines) + &tried(&gateway)
}

/// The log of a gateway with a published server, which then announces the address of its container.
fn published() -> String {
    let gateway = gateway(Topology::PublishedServer);
    let log = during(&gateway, &json!({}), &[ask("PASV")], &[], &["rewrite PASV"]);
    let container = json!({"address": "172.17.0.2"});
    log + &during(&gateway, &container, &[ask("PASV")], &[], &["ignore PASV"])
}

/// `status` of a daemon with the fast path; nothing where the kernel has none.
fn on_fast_path() -> String {
    let Some(gateway) = fast_path_gateway(Topology::Routed) else { return String::new() };
    let _server = scripted_server(&gateway.lab.server, &json!({"body": "here it is\r\n"}));
    let steps = (login(), vec![passive_transfer("PASV"); 8], gate());
    let start = || hold(&gateway.lab, &steps);
    let _client = until_on_fast_path(&gateway, ("opened", 2), start);
    // Not if a retransmission has just handed it back.
    wait_for("the connection on the fast path", || fast_path(&gateway.daemon)["connections"] == 1);
    asked(&gateway.daemon, &["status"])
}

/// `status` of a daemon whose external address has a name.
fn with_name() -> String {
    let lab = Lab::new(Topology::PublishedServer).unwrap();
    let names = json!({ NAME: {"A": ["203.0.113.1"], "ttl": 60} });
    let dns = NameServer::start(&lab.gateway, &executable(), &names);
    let configuration = format!("[nat]\nexternal-address = \"dns:{NAME}\"\n");
    let daemon = Daemon::start(&dns.executable, &lab.gateway, &configuration).unwrap();
    wait_for_address(&daemon, "203.0.113.1");
    asked(&daemon, &["status"])
}

/// `doctor`, `status`, `doctor --try` and `setup` behind a firewall that drops data connections.
fn dropping() -> String {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    lab.gateway.shell(&format!("nft -f - <<'END'\n{DROPPING}END")).unwrap();
    let gateway = Gateway::on(lab, NFTABLES);
    let status = || asked(&gateway.daemon, &["status"]);
    wait_for("the problem in status", || status().contains("PROBLEM"));
    let doctor = doctor(&gateway.daemon).stdout_text();
    [status(), doctor, tried(&gateway), set_up(&gateway)].concat()
}

/// `replay` with a simulated NAT.
fn replayed() -> String {
    let port = (true, "PORT 192,168,150,80,14,178");
    let transfer = [(true, "RETR /pub/q3.csv"), (false, "150 here"), (false, "226 done")];
    let lines = [&replay::LOGIN[..], &[port], &transfer].concat();
    let place = tempfile::tempdir().unwrap();
    let capture = place.path().join("capture.pcap");
    let bytes = replay::slacksite([192, 168, 150, 80], [203, 0, 113, 9], &lines);
    fs::write(&capture, bytes).unwrap();
    replay::printed(&[capture.to_str().unwrap(), "--external", "198.51.100.1"])
}

/// `check` of a configuration that it refuses.
fn checked() -> String {
    let place = tempfile::tempdir().unwrap();
    let text = "[pinhole]\ntimout = \"30s\"\nbackend = \"nft\"\n[nat]\nmin-data-port = 1\n";
    fs::write(place.path().join("bad.toml"), text).unwrap();
    let mut check = std::process::Command::new(executable());
    let done = check.args(["check", "bad.toml"]).current_dir(place.path()).output();
    String::from_utf8(done.unwrap().stderr).unwrap()
}

#[test]
fn shown_output_has_the_shape_of_what_the_program_prints() {
    let mut blocks = blocks("text");
    blocks.retain(|block| !is_drawing(block));
    let compare = |(print, shown): Source| {
        let printed = print();
        let mut compared = 0;
        for (page, start) in shown {
            let is_this = |one: &&Block| one.page == *page && one.text.starts_with(start);
            let of_page: Vec<_> = blocks.iter().filter(is_this).collect();
            assert!(!of_page.is_empty(), "{page} no longer shows {start}");
            for block in &of_page {
                let is_printed = printed.is_empty() || has(&printed, &block.text);
                assert!(is_printed, "{}:\n{}\nprinted:\n{printed}", block.name(), block.text);
            }
            compared += of_page.len();
        }
        compared
    };
    let compared: usize = std::thread::scope(|scope| {
        let threads = SHOWN.map(|source| scope.spawn(move || compare(source)));
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(compared, blocks.len(), "not all shown output is in SHOWN");
}
