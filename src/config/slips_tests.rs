//! Common slips in a configuration: each gets a line that says what to write.

use std::{fs, path::Path};

use super::{
    tests::{refusal, rows},
    *,
};

/// Text without quotes, unknown keys, wrong brackets, and two faults of one list.
#[test]
fn each_slip_gets_a_line_that_says_what_to_write() {
    for (text, expected) in rows(
        r#"
        nat.external-address = 10.0.0.5 / nat.port-range = "2000-3000" => f:1:24: nat.external-address: 10.0.0.5 is text without quotes: write "10.0.0.5"
        nat.external-address = 2001:db8::1 => f:1:24: nat.external-address: 2001:db8::1 is text without quotes: write "2001:db8::1"
        nat.external-address = dns:ftp.example => f:1:24: nat.external-address: dns:ftp.example is text without quotes: write "dns:ftp.example"
        [[network]] / clients = ["::/0", 10.0.0.0/8] => f:2:20: clients: 10.0.0.0/8 is text without quotes: write "10.0.0.0/8"
        [pinhole] / timeout = 30s # long => f:2:11: timeout: 30s is text without quotes: write "30s"
        [policy] / require-login = yes => f:2:17: require-login: yes is text without quotes: write true
        [policy] / require-login = True => f:2:17: require-login: True is text without quotes: write true
        [pinhole] / timeout = 30s / [nat] / external-address = 10.0.0.5 => f:2:11: timeout: 30s is text without quotes: write "30s" / f:4:20: external-address: 10.0.0.5 is text without quotes: write "10.0.0.5"
        [queue] / worker = 2 => f:2:1: queue.worker: unknown key; did you mean `workers`?
        [polcy] / auth-tls = "pass" => f:1:2: polcy: unknown key; did you mean `policy`?
        [[server]] / address = "10.0.0.5" / [[server]] / address = "10.0.0.6" / adress = 1 => f:5:1: server.adress: unknown key; did you mean `address`?
        [pinhole] / frobnicate = 2 => f:2:1: pinhole.frobnicate: unknown key; allowed: backend, timeout, mark, mark-mask
        workers = 2 => f:1:1: workers: unknown key; it belongs in [queue]
        [[network]] / clients = "::/0" / max-sessions = 5 => f:3:1: network.max-sessions: unknown key; it belongs in [policy]
        [queue] / control-ports = [21] => f:2:1: queue.control-ports: unknown key; it belongs at the top of the file, before the first [table]
        [policy] / external_address = "auto" => f:2:1: policy.external_address: unknown key; it belongs in [nat] or [[server]]
        [policy] / any-interface = true => f:2:1: policy.any-interface: unknown key; it belongs in [[network]]
        control-ports = [21, 21, 2121, 70000] => f:1:17: control-ports: [21, 21, 2121, 70000] is not a list of ports from 1 to 65535, such as [21, 2121]: entry 4 is 70000 / f:1:17: control-ports: [21, 21, 2121, 70000] contains port 21 twice, as entries 1 and 2: remove one
        [server] / address = "10.0.0.5" => f:1:2: server: this table may occur several times: write [[server]], with two brackets
        [[policy]] => f:1:3: policy: this table may occur only once: write [policy], with one bracket
        nat = "auto" => f:1:1: nat: this is a table, not a value: write [nat], and its keys below
        server = [] / network = [1] => f:2:1: network: this is a table, not a value: write [[network]], and its keys below
        "#,
    ) {
        assert_eq!(refusal(&text), expected, "{text}");
    }
}

#[test]
fn unknown_keys_and_invalid_values_are_reported_together() {
    let text =
        "frob = 1\n[queue]\nworker = 0\nnumber = -1\n[server]\naddress = 1\n[polcy]\n[nat]\nx = 1";
    let refusal = refusal(text);
    let places: Vec<&str> = refusal.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(places, ["f:1:1", "f:3:1", "f:4:10", "f:5:2", "f:7:2", "f:9:1"], "{refusal}");
}

#[test]
fn common_slips_get_a_suggestion() {
    let table = r#"
        nat.external-address = "ftp.example.net" => "dns:ftp.example.net"
        [[network]] / clients = "10.0.0.5/24" => "10.0.0.0/24"
        [[network]] / clients = ["10.0.0.5/24", "::/0"] => ["10.0.0.0/24", "::/0"]
        pinhole.timeout = 30 => "30s"
        pinhole.timeout = "30 sec" => "30s"
        policy.memory = "64MB" => "64MiB"
        policy.memory = "1g" => "1GiB"
        queue.workers = "2" => 2
        pinhole.mark = "0x10000000" => 0x10000000
        control-ports = ["21"] => [21]
        control-ports = "21" => [21]
        policy.deny-ports = "5900-5999" => ["5900-5999"]
        policy.require-login = "yes" => true
        policy.auth-tls = "Refuse" => "refuse"
        nat.port-range = "49152:65535" => "49152-65535"
    "#;
    for (text, meant) in rows(table) {
        let refusal = refusal(&text);
        let offered = refusal.rsplit_once("; did you mean ").map(|(_, offered)| offered);
        assert_eq!(offered, Some(&*format!("{meant}?")), "{text}: {refusal}");
    }
}

#[test]
fn suggestions_are_always_valid() {
    for text in [
        "nat.external-address = \"10.0.0.256\"",
        "nat.external-address = \"ftp\"",
        "queue.workers = \"many\"",
        "queue.workers = \"1\\nnumber = 2\"",
        "pinhole.timeout = \"2d\"",
        "pinhole.timeout = 7200",
        "[[network]]\nclients = []",
        "[[server]]\naddress = \"ftp.example.net\"",
    ] {
        assert!(!refusal(text).contains("did you mean"), "{}", refusal(text));
    }
}

#[test]
fn a_byte_order_mark_and_carriage_returns_are_valid() {
    let text = "\u{feff}control-ports = [2121]\r\n\r\n[queue]\r\nworkers = 2\r\n";
    let config = Config::parse(text, Path::new("f")).unwrap();
    assert_eq!((config.control_ports, config.queue.workers), (vec![2121], Some(2)));
    let wrong = "\u{feff}workers = 2\r\n[queue]\r\nworkers = 0\r\n";
    let places: Vec<String> = refusal(wrong).lines().map(|line| line[..7].to_owned()).collect();
    assert_eq!(places, ["f:1:1: ", "f:3:11:"]);
}

#[test]
fn an_unreadable_file_gets_a_remedy() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("f");
    fs::write(&path, b"\xff\xfec\x00").unwrap();
    let refusal = |path: &Path| Config::load(Some(path)).unwrap_err().to_string();
    for (path, end) in [
        (place.path(), "Is a directory (os error 21); name a file"),
        (&path, "the file is not UTF-8 text; save it as UTF-8"),
        (Path::new("/dev/zero"), "more than 1048576 bytes"),
    ] {
        assert!(refusal(path).contains(end), "{}", refusal(path));
    }
}
