//! Valid configurations, and the messages about invalid ones.

use ftp_alg_core::{
    engine::PortsText,
    policy::{AuthTls, ForeignAddress},
};

use super::*;

/// The policy while no name is resolved.
fn policy(config: &Config) -> Policy {
    config.policy(|_| ExternalAddress::Unresolved, &Arc::default())
}

const FILE: &str = "f";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new(FILE))
}

pub(super) fn refusal(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

/// Rows of a configuration and what is said of it. ` / ` stands for a line end.
pub(super) fn rows(table: &str) -> impl Iterator<Item = (String, String)> {
    let pairs = table.trim().lines().map(|line| line.trim().split_once(" => ").unwrap());
    pairs.map(|(text, says)| (text.replace(" / ", "\n"), says.replace(" / ", "\n")))
}

/// Each configuration of a row is refused, in a line that has the path and what is expected.
fn assert_refusals(table: &str) {
    for (text, expected) in rows(table) {
        let refusal = refusal(&text);
        let has_path = refusal.starts_with(&format!("{FILE}:"));
        assert!(has_path && refusal.contains(&expected), "{text}\n{refusal}");
        assert_eq!(refusal.lines().count(), 1, "{refusal}");
    }
}

/// The page of the configuration has them, too: tests/packaging/sample.rs.
#[test]
fn the_values_of_the_sample_are_the_defaults() {
    let sample = include_str!("../../packaging/ftp-alg.toml");
    let (defaults, _examples) = sample.split_once("#[[network]]").unwrap();
    let in_force = |line: &str| {
        let key = line.strip_prefix('#').filter(|key| !key.starts_with(' '));
        format!("{}\n", key.unwrap_or(line))
    };
    let text: String = defaults.lines().map(in_force).collect();
    assert!(text.contains("\nmax-sessions = 65536\n"), "{text}");
    assert_eq!(parse(&text).unwrap(), Config::default());
}

/// A configuration with every key that the policy has.
const EVERY_KEY: &str = r#"
    control-ports = [21, 2121]
    implicit-tls-ports = [990]
    [queue]
    number = 7
    workers = 4
    [pinhole]
    timeout = "1500ms"
    [nat]
    external-address = "198.51.100.1"
    port-range = "50000-50099"
    [policy]
    foreign-address = "allow"
    min-data-port = 2048
    deny-ports = [3306, "5900-5999"]
    require-login = false
    auth-tls = "refuse"
    max-sessions = 10
    max-sessions-per-client = 3
    memory = "512MiB"
    max-pinholes-per-client = 2
    [[server]]
    address = "10.0.0.5"
    external-address = "198.51.100.7"
    replace-foreign-address = true
    passive-ports = [60000, "50000-50100"]
    [[server]]
    address = "2001:db8::5"
    [[network]]
    clients = "192.168.150.0/24"
    servers = ["203.0.113.9", "2001:db8::/32"]
    foreign-address = "refuse"
    auth-tls = "pass"
    [[network]]
    clients = "10.0.0.0/8"
    any-interface = true
    passive-ports = 40000
    min-data-port = 1
    deny-ports = []
    require-login = true
    max-pinholes-per-client = 3
    [[network]]
    servers = "10.0.0.0/8"
    inspect = false
"#;

#[test]
fn every_key_reaches_the_policy() {
    let config = parse(EVERY_KEY).unwrap();
    assert_eq!(config.queue.numbers().collect::<Vec<_>>(), [7, 8, 9, 10]);
    let base = Policy {
        control_ports: vec![21, 2121, 990],
        pinhole_timeout: Duration::from_millis(1500),
        preserves_length: true,
        port_range: 50000..=50099,
        port_sets: [50000..=50099].into(),
        external: ip("198.51.100.1").into(),
        servers: [
            KnownServer {
                address: ip("10.0.0.5"),
                external: Some(ExternalAddress::Fixed(ip("198.51.100.7"))),
                replace_foreign_address: true,
                passive_ports: [50000..=50100, 60000..=60000].into(),
            },
            KnownServer::new(ip("2001:db8::5")),
        ]
        .into(),
        foreign_address: ForeignAddress::Allow,
        min_data_port: 2048,
        deny_ports: [3306..=3306, 5900..=5999].into(),
        require_login: false,
        auth_tls: AuthTls::Refuse,
        max_sessions: 10,
        max_sessions_per_client: 3,
        memory: 512 << 20,
        max_pinholes_per_client: 2,
        ..Policy::default()
    };
    let of = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let network = |clients, servers, inspect, policy| NetworkPolicy {
        clients: of(clients),
        servers: of(servers),
        inspect,
        policy,
    };
    let first =
        Policy { foreign_address: ForeignAddress::Refuse, auth_tls: AuthTls::Pass, ..base.clone() };
    let second = Policy {
        any_interface: true,
        passive_ports: [40000..=40000].into(),
        min_data_port: 1,
        deny_ports: [].into(),
        require_login: true,
        max_pinholes_per_client: 3,
        ..base.clone()
    };
    let networks = vec![
        network(&["192.168.150.0/24"], &["203.0.113.9/32", "2001:db8::/32"], true, first),
        network(&["10.0.0.0/8"], &[], true, second),
        network(&[], &["10.0.0.0/8"], false, base.clone()),
    ];
    assert_eq!(policy(&config), Policy { networks, ..base });
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn names_resolve_in_the_address_families_that_use_them() {
    let text = r#"
        nat.external-address = "dns:gateway.example"
        [[server]]
        address = "10.0.0.5"
        external-address = "dns:ftp.example"
        [[server]]
        address = "2001:db8::5"
        external-address = "dns:ftp6.example."
        [[server]]
        address = "10.0.0.6"
        external-address = "auto"
        [[network]]
        clients = "10.0.0.0/8"
    "#;
    let config = parse(text).unwrap();
    let name = |name: &str, v6| ExternalName { name: name.into(), v6 };
    let expected = [
        name("ftp.example", false),
        name("ftp6.example.", true),
        name("gateway.example", false),
        name("gateway.example", true),
    ];
    assert!(config.external_names().iter().eq(&expected), "{:?}", config.external_names());
    let known = |asked: &ExternalName| match (asked.name.as_str(), asked.v6) {
        ("ftp.example", false) => ExternalAddress::Fixed(ip("198.51.100.7")),
        ("gateway.example", true) => ExternalAddress::Auto,
        _ => ExternalAddress::Unresolved,
    };
    let policy = config.policy(known, &Arc::default());
    for policy in [&policy, &policy.networks[0].policy] {
        let both = ExternalAddresses { v4: ExternalAddress::Unresolved, v6: ExternalAddress::Auto };
        assert_eq!(policy.external, both);
        let of = |address| policy.server(ip(address)).unwrap().external;
        assert_eq!(of("10.0.0.5"), Some(ExternalAddress::Fixed(ip("198.51.100.7"))));
        assert_eq!(of("2001:db8::5"), Some(ExternalAddress::Unresolved));
        assert_eq!(of("10.0.0.6"), Some(ExternalAddress::Auto));
    }
}

/// Each value of the first list is read, and none of the second. Nothing is trimmed, guessed or rounded.
#[test]
fn values_without_a_type_in_toml_have_one_form() {
    for (key, read, refused) in [
        (
            "pinhole.timeout",
            "'1500ms' | '30s' | '2m' | '1h'",
            "'' | '30' | 30 | 's' | '1.5s' | '-1s' | '30 s' | '1d' | '999ms' | '61m' | '99999999999999999999s' | \
             '18446744073709551615h'",
        ),
        (
            "policy.memory",
            "1048576 | '1048576' | '1536KiB' | '64MiB' | '2GiB'",
            "'' | '64.5' | '64MB' | '64 MiB' | '64mib' | '-1' | -1 | 1.5 | 'MiB' | true | 4096 | '100KiB' | \
             '99999999999999999999MiB' | '17592186044416MiB'",
        ),
        (
            "nat.port-range",
            "'49152-65535' | '2000-2000'",
            "'2000' | '3000-2000' | '1000-2000' | '-' | '1-65536' | '+2000-3000' | '2000 - 3000' | '2000-3000-4000'",
        ),
        (
            "policy.deny-ports",
            "[3306] | ['5900-5999'] | []",
            "[0] | [65536] | [-1] | [1.5] | ['3306'] | ['0-5'] | ['9-8'] | [true] | [[1]] | 22",
        ),
        (
            "nat.external-address",
            "'auto' | '198.51.100.1' | '2001:db8::1' | 'dns:ftp.example.net'",
            "'' | '0.0.0.0' | '224.0.0.1' | '255.255.255.255' | '127.0.0.1' | '::' | 'dns:' | 'dns:-a' | 'host'",
        ),
        (
            "metrics.listen",
            "'127.0.0.1:9821' | '[::1]:9821' | '9821' | 9821",
            "'9821x' | '127.0.0.1' | 'localhost:9821' | '::1:9821' | '127.0.0.1:0' | '224.0.0.1:9821' | 0 | 65536 | \
             true",
        ),
        (
            "[[network]]\nclients",
            "'192.168.150.0/24' | '0.0.0.0/0' | '2001:db8::/32' | '10.0.0.5' | ['2001:db8::5', '10.0.0.5/32']",
            "'' | '10.0.0.5/24' | '10.0.0.0/33' | '2001:db8::1/32' | 'lan' | '10.0.0/8' | [] | ['::/0', 7]",
        ),
    ] {
        let is_read = |value: &&str| parse(&format!("{key} = {value}")).is_ok();
        let [not_read, not_refused]: [Vec<_>; 2] = [
            read.split(" | ").filter(|value| !is_read(value)).collect(),
            refused.split(" | ").filter(is_read).collect(),
        ];
        assert!(not_read.is_empty() && not_refused.is_empty(), "{not_read:?} {not_refused:?}");
    }
    for (text, bytes) in [("1048576", 1 << 20), ("'1536KiB'", 1536 << 10), ("'2GiB'", 2 << 30)] {
        let config = parse(&format!("policy.memory = {text}")).unwrap();
        assert_eq!(config.limits.memory, bytes, "{text}");
    }
    for text in ["'127.0.0.1:9821'", "'9821'", "9821"] {
        let config = parse(&format!("metrics.listen = {text}")).unwrap();
        assert_eq!(config.metrics.listen, Some(([127, 0, 0, 1], 9821).into()), "{text}");
    }
    for (text, seconds) in [("2m", 120), ("1h", 3600)] {
        let config = parse(&format!("pinhole.timeout = '{text}'")).unwrap();
        assert_eq!(config.pinhole.timeout, Duration::from_secs(seconds));
    }
}

#[test]
fn invalid_values_are_refused_with_the_allowed_ones() {
    assert_refusals(
        r#"
        control-ports = [] => control-ports: [] is empty
        control-ports = [0] => control-ports: [0] is not a list of ports from 1 to 65535
        control-ports = [0, 21, "x"] => such as [21, 2121]: entry 1 is 0, entry 3 is "x"
        policy.deny-ports = [1, 65536] => such as [1433, "5900-5999"]: entry 2 is 65536
        queue.number = 65536 => queue.number: 65536 is not a whole number from 0 to 65535
        queue.workers = 0 => queue.workers: 0 is not a whole number from 1 to 64, or "auto"
        queue.workers = 65 => queue.workers: 65 is not a whole number from 1 to 64, or "auto"
        queue.fanout = "port" => queue.fanout: "port" is not one of "connection", "cpu"
        queue.fast-path = "on" => queue.fast-path: "on" is not one of "auto", "off"
        queue = { number = 65535, workers = 2 } => 65535 leaves fewer than 2 queue numbers
        pinhole.backend = "ebpf" => is not one of "auto", "nftables", "conntrack"
        pinhole.timeout = "61m" => pinhole.timeout: "61m" is not a duration
        pinhole.mark = 0x30000000 => exactly one bit set
        pinhole.mark = 0 => exactly one bit set
        pinhole.mark = 0x80000000 => 0x80000000 is not a bit of mark-mask 0x70000000
        pinhole.mark = -1 => pinhole.mark: -1 is not a 32-bit number
        pinhole.mark-mask = 0x100000000 => is not a 32-bit number
        pinhole.mark-mask = 0x30 => exactly three bits set
        pinhole.mark-mask = 0x7 => 0x7 does not contain the default mark 0x40000000
        nat.external-address = "127.0.0.1" => is not "auto", the address of a host
        nat.port-range = "1000-2000" => "1000-2000" is not a range of ports from 1024
        policy.foreign-address = "deny" => is not one of "refuse", "pass", "allow"
        policy.min-data-port = 0 => is not a whole number from 1 to 65535
        policy.deny-ports = 22 => :1:21: policy.deny-ports: 22 is not a list of ports and ranges
        [policy] / deny-ports = ["40000-65535"] => :2:14: policy.deny-ports: ["40000-65535"] denies every port of nat.port-range
        policy.auth-tls = true => policy.auth-tls: true is not one of "pass", "refuse"
        policy.max-sessions = 0 => policy.max-sessions: 0 is not a whole number from 1
        policy.max-sessions-per-client = 0 => policy.max-sessions-per-client: 0 is not a whole number from 1
        policy.memory = '64MB' => policy.memory: '64MB' is not a size from 1MiB to 1TiB, such as
        policy.max-pinholes-per-client = 0 => 0 is not a whole number from 1
        metrics.listen = "127.0.0.1" => and a port, such as "127.0.0.1:9821" or "[::1]:9821"
        metrics.listen = 65536 => or a port of 127.0.0.1, such as 9821
        log.transfers = "transfers.json" => "transfers.json" is not true, false, or an absolute path of a file
        log.transfers = 1 => log.transfers: 1 is not true, false, or an absolute path of a file
        log.transfers-format = "csv" => "csv" is not one of "json", "xferlog"
        log.transfers-format = "xferlog" => "xferlog" needs log.transfers to be the path
        metrics.page = "off" => metrics.page: "off" is not true or false
        metrics.password-file = "ftp-alg.password" => metrics.password-file: "ftp-alg.password" is not an absolute path of a file
        [pair] / store = "redis.sock" / peer = "10.99.0.2:6379" => pair.store: "redis.sock" is not the absolute path of the own
        [pair] / store = "/run/s" => :1:1: pair.peer: is missing: give address and port
        [pair] / store = "/run/s" / peer = "10.99.0.2" => pair.peer: "10.99.0.2" is not address and port
        [pair] / store = "/run/s" / peer = "[::1]:1" / confirm = "some" => is not one of "all", "announcements", "none"
        [[server]] / address = "ftp" => server.address: "ftp" is not the address of a host
        [[server]] / external-address = "auto" => :1:1: server.address: is missing
        [[server]] / address = "10.0.0.5" / external-address = "2001:db8::1" => :3:20: server.external-address: "2001:db8::1" is not of the same address family
        [[server]] / address = "10.0.0.5" / [[server]] / address = "10.0.0.5" => :4:11: server.address: "10.0.0.5" already has a [[server]]
        [[server]] / address = "10.0.0.5" / passive-ports = "20-30" => server.passive-ports: "20-30" is not a port, a range of ports or a list of them, from 1024
        [[server]] / address = "10.0.0.5" / passive-ports = [] => server.passive-ports: [] is not a port
        [[server]] / address = "10.0.0.5" / passive-ports = ["5000-5009", 5009] => ["5000-5009", 5009] is not a port
        [[server]] / address = "10.0.0.5" / replace-foreign-address = "yes" => :3:27: server.replace-foreign-address: "yes" is not true or false
        [[network]] / inspect = false => :1:1: network: clients and servers are missing
        [[network]] / clients = "10.0.0.5/24" => :2:11: network.clients: "10.0.0.5/24" is not a network without host bits
        [[network]] / servers = "::/0" / min-data-port = 0 => :3:17: network.min-data-port: 0 is not a whole number from 1 to 65535
        [[network]] / servers = "::/0" / deny-ports = [3306, 65536] => :3:14: network.deny-ports: [3306, 65536] is not a list of ports
        [[network]] / servers = "::/0" / inspect = false / auth-tls = "pass" => :4:12: network.auth-tls: "pass" has no effect with inspect = false
        control-ports = [2121] / [[server]] / address = "10.0.0.5" / passive-ports = "2000-3000" => contains the control port 2121
        policy.deny-ports = ["5000-6000"] / [[server]] / address = "10.0.0.5" / passive-ports = "5000-5009" => "5000-5009" has no port that deny-ports leaves
        [[network]] / servers = "::/0" / passive-ports = "60000-65536" => network.passive-ports: "60000-65536" is not a port
        [[network]] / servers = "::/0" / inspect = false / passive-ports = 5000 => :4:17: network.passive-ports: 5000 has no effect with inspect = false
        implicit-tls-ports = [990, 21] => implicit-tls-ports: [990, 21] contains port 21, as control-ports does
        [queue / number = 1 => :1:7:
        [queue] / number = 1 / number = 2 => :3:1:
        queue.number = 99999999999999999999 => :1:
        "#,
    );
}

#[test]
fn more_than_64_ports_are_refused() {
    let ports = (1..=65).collect::<Vec<u16>>();
    for (key, expected) in [
        ("control-ports", "has 65 ports: give at most 64"),
        ("policy.deny-ports", "has 65 entries: give at most 64"),
    ] {
        assert_refusals(&format!("{key} = {ports:?} => {expected}"));
    }
}

#[test]
fn values_in_messages_are_escaped_and_cut() {
    let text = format!("pinhole.backend = '''\n\u{1b}[31m{}'''", "x".repeat(300));
    let control = refusal("= = =\n\u{1b}[31m");
    assert!(control.contains(":1:") && !control.contains('\u{1b}'), "{control:?}");
    // TOML refuses control characters itself; a newline can occur.
    assert!(!refusal(&text).contains(['\n', '\u{1b}']));
    let text = format!("pinhole.backend = '''\n{}'''", "x".repeat(300));
    let refusal = refusal(&text);
    assert!(refusal.contains("'''\\nxxx") && refusal.contains("xxx..."), "{refusal}");
    assert!(!refusal.contains('\n') && refusal.len() < 200, "{refusal}");
}

#[test]
fn keys_that_need_a_restart_are_reported() {
    let old = Config::default();
    let new = parse("control-ports = [2121]\npinhole.timeout = \"5s\"\nqueue.workers = 2").unwrap();
    assert_eq!(old.fixed_keys_changed(&new), ["control-ports", "queue.workers"]);
    let other = parse("queue.fast-path = \"off\"").unwrap();
    assert_eq!(old.fixed_keys_changed(&other), ["queue.fast-path"]);
    let pair = parse("[pair]\nstore = \"/run/s\"\npeer = \"[::1]:1\"").unwrap();
    assert_eq!(old.fixed_keys_changed(&pair), ["queue.fast-path", "pair"]);
    // Without effect.
    assert_eq!(parse("queue.fanout = \"cpu\"").unwrap(), old);
    let merged = new.with_fixed_keys_of(&old);
    assert!(old.fixed_keys_changed(&merged).is_empty());
    assert_eq!(merged.pinhole.timeout, Duration::from_secs(5));
}

/// The tables that never apply, counted from 1, each with the earlier one that its problem names; 0 means several. A table
/// is written as `clients > servers`, where `*` is any.
fn shadowed(tables: &str) -> Vec<(usize, usize)> {
    let key = |name: &str, networks: &str| match networks.trim() {
        "*" => String::new(),
        networks => format!("{name} = {:?}", networks.split(' ').collect::<Vec<_>>()),
    };
    let table = |text: &str| {
        let (clients, servers) = text.split_once('>').unwrap();
        format!("[[network]]\n{}\n{}\n", key("clients", clients), key("servers", servers))
    };
    let text: String = tables.split('|').map(table).collect();
    let number = |line: &str| line.parse::<usize>().unwrap().div_ceil(3);
    let place = |problem: &str| {
        let later = problem.strip_prefix(&format!("{FILE}:")).unwrap().split(':').next().unwrap();
        let (_, rest) = problem.split_once("never applies, because the [[network]] ").unwrap();
        let earlier = rest.strip_prefix("of line ").map(|rest| rest.split(' ').next().unwrap());
        (number(later), earlier.map_or(0, number))
    };
    match parse(&text) {
        Ok(_) => Vec::new(),
        Err(error) => error.to_string().lines().map(place).collect(),
    }
}

#[test]
fn passive_ports_leave_out_denied_ports_and_any_means_all_others() {
    for (text, expected) in rows(
        r#"
        [[network]] / servers = "0.0.0.0/0" / passive-ports = "any" => 1024-65535
        [[network]] / servers = "0.0.0.0/0" / passive-ports = "1024-65535" => 1024-65535
        [[network]] / servers = "0.0.0.0/0" / passive-ports = "any" / deny-ports = [22, "1024-1029", 3306, 65535] => 1030-3305, 3307-65534
        control-ports = [21, 2121] / policy.deny-ports = [3306] / [[network]] / servers = "::/0" / passive-ports = "any" => 1024-2120, 2122-3305, 3307-65535
        policy.deny-ports = [3306] / [[network]] / servers = "::/0" / passive-ports = "any" / deny-ports = [] => 1024-65535
        policy.deny-ports = [50050] / [[server]] / address = "10.0.0.5" / passive-ports = ["50000-50100", 60000] => 50000-50049, 50051-50100, 60000
        "#,
    ) {
        let config = parse(&text).unwrap();
        let of_networks = config.networks.iter().map(|network| &network.policy.passive_ports);
        let of_servers = config.servers.iter().map(|server| &server.passive_ports);
        let ports = of_networks.chain(of_servers).next().unwrap();
        assert_eq!(PortsText(ports).to_string(), expected, "{text}");
    }
}

/// The rules have the passive ports of a server for all its clients.
#[test]
fn clients_of_one_server_have_the_same_passive_ports() {
    let network = |(keys, ports): (&str, &str)| {
        let keys = keys.replace(", ", "\n");
        format!("[[network]]\n{keys}\npassive-ports = {ports}\n")
    };
    let all = "clients = \"10.1.0.0/16\"";
    let some = "clients = \"10.2.0.0/16\", servers = \"203.0.113.0/24\"";
    let one = "servers = \"203.0.113.9\"";
    for (earlier, later, is_valid) in [
        ((all, "50000"), (some, "50001"), false),
        ((some, "50000"), (one, "50001"), false),
        ((some, "50000"), (one, "50000"), true),
        // Its clients are all that the server has.
        ((one, "50000"), (some, "50001"), true),
        ((some, "50000"), ("servers = \"203.0.112.0/24\"", "50001"), true),
        ((all, "50000"), ("clients = \"fd00::/8\"", "50001"), true),
    ] {
        let text = [earlier, later].map(network).concat();
        let problem = parse(&text).err().map(|error| error.to_string());
        assert_eq!(problem.is_none(), is_valid, "{text}: {problem:?}");
        let expected = "differs from that of the [[network]] of line 1";
        assert!(problem.is_none_or(|problem| problem.contains(expected)), "{text}");
    }
}

#[test]
fn a_network_behind_those_that_have_all_of_its_connections_is_refused() {
    for (tables, expected) in [
        ("10.0.0.0/8 > * | 10.1.0.0/16 > *", &[(2, 1)][..]),
        ("10.1.0.0/16 > * | 10.0.0.0/8 > *", &[]),
        ("10.0.0.0/8 > * | 10.1.0.0/16 11.0.0.1 > *", &[]),
        ("11.0.0.0/8 10.0.0.0/8 > * | 10.0.0.1 11.0.0.1 > *", &[(2, 1)]),
        ("10.0.0.0/8 > * | * > 10.0.0.1", &[]),
        ("* > 192.0.2.0/24 | 10.0.0.1 > 192.0.2.7", &[(2, 1)]),
        ("10.0.0.0/8 > 192.0.2.0/24 | 10.0.0.1 > *", &[]),
        ("0.0.0.0/0 > * | * > 192.0.2.7", &[(2, 1)]),
        ("0.0.0.0/0 > * | * > 192.0.2.7 2001:db8::7", &[]),
        ("0.0.0.0/0 ::/0 > * | * > 192.0.2.7 2001:db8::7", &[(2, 1)]),
        ("::/0 > * | 10.0.0.1 > *", &[]),
        // It has no connections at all.
        ("::/0 > * | 10.0.0.1 > 2001:db8::7", &[]),
        ("* > ::/0 | * > 0.0.0.0/0 | 10.0.0.1 > * | 2001:db8::1 > *", &[(3, 2), (4, 1)]),
        // Several together.
        ("10.0.0.0/9 > * | 10.128.0.0/9 > * | 10.0.0.0/8 > *", &[(3, 0)]),
        ("10.0.0.0/9 > * | 10.128.0.0/10 > * | 10.0.0.0/8 > *", &[]),
        ("10.0.0.1 > * | * > 10.0.0.2 | 10.0.0.1 10.0.0.3 > *", &[]),
        (
            "10.0.0.0/31 > 192.0.2.0/25 | * > 192.0.2.128/25 | 10.0.0.0 10.0.0.1 > 192.0.2.0/24",
            &[(3, 0)],
        ),
        ("0.0.0.0/0 > * | ::/1 > * | 8000::/1 > * | * > 192.0.2.7 2001:db8::7", &[(4, 0)]),
        ("::/1 > * | 8000::/1 > * | * > 192.0.2.7 2001:db8::7", &[]),
    ] {
        assert_eq!(shadowed(tables), expected, "{tables}");
    }
    let same = "[[network]]\nclients = \"::/0\"\n";
    assert!(parse(&format!("{same}{same}min-data-port = 5")).is_err(), "whatever its policy is");
    // It ends, whatever the tables are.
    let many =
        (0..5).flat_map(|one| (0..200).map(move |n| format!("10.{one}.{n}.0/25 > 11.{n}.0.0/16")));
    let tables: Vec<_> = many.chain(["10.0.0.0/8 > *".to_owned()]).collect();
    assert_eq!(shadowed(&tables.join("|")), []);
}
