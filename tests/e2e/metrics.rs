//! The endpoint for Prometheus: its text, hostile clients, and the alert rules.

use std::{collections::BTreeSet, net::TcpListener, os::unix::fs::PermissionsExt as _};

use crate::common::*;

const LISTEN: &str = "[metrics]\nlisten = \"127.0.0.1:9821\"\n";
const ADDRESS: &str = "127.0.0.1:9821";

/// A program of Prometheus, as packaging/provision unpacked it.
fn prometheus_program(name: &str) -> PathBuf {
    let cache = std::env::var("FTP_ALG_LAB_CACHE").unwrap_or("/var/cache/ftp-alg-lab".to_owned());
    let program = PathBuf::from(cache).join("prometheus/usr/bin").join(name);
    assert!(program.exists(), "{} is missing: run packaging/provision", program.display());
    program
}

/// What `promtool` says of `stdin`.
fn promtool(lab: &Lab, arguments: &[&str], stdin: &[u8]) -> ProgramOutput {
    let mut command = lab.gateway.command(prometheus_program("promtool"));
    command.args(arguments);
    lab.gateway.finish(command, stdin, Duration::from_secs(60)).unwrap()
}

/// The status and the text that curl gets on the gateway with `options`.
fn asked_at(lab: &Lab, address: &str, path: &str, options: &[&str]) -> (String, String) {
    let url = format!("http://{address}{path}");
    let limit = scaled_timeout(Duration::from_secs(60)).as_secs().to_string();
    let fixed = ["-sS", "--max-time", &limit, "-w", "\n%{http_code}", &url];
    let got = lab.gateway.run("curl", &[&fixed, options].concat()).unwrap().stdout_text();
    let (text, status) = got.rsplit_once('\n').unwrap();
    (status.to_owned(), text.to_owned())
}

fn asked(lab: &Lab, path: &str, options: &[&str]) -> (String, String) {
    asked_at(lab, ADDRESS, path, options)
}

/// The head and the text of the metrics.
fn scrape(lab: &Lab) -> (String, String) {
    let (status, got) = asked(lab, "/metrics", &["-i"]);
    assert_eq!(status, "200", "{got}");
    let (head, text) = got.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), text.to_owned())
}

/// The value of a sample, by its name with labels.
fn value(text: &str, sample: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{sample} is missing:\n{text}")).parse().unwrap()
}

#[test]
fn prometheus_gets_what_the_gateway_did() {
    let gateway = gateway_with(Topology::Masquerade, LISTEN);
    let lab = &gateway.lab;
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    for mode in MODES {
        curl(lab, &server, mode).exchange(&server, "report", b"the body").unwrap();
    }
    let mut client = hold(lab, [vec![reply(), gate()], ask("PORT 192,168,150,80,0,99")].concat());
    wait_for("the session", || value(&scrape(lab).1, "ftp_alg_sessions") == 1);
    client.open_gate();
    let session = client.release().ok();
    assert!(session.got(3).starts_with("504"), "{}", session.got(3));
    let refused = "ftp_alg_refusals_total{reason=\"low_port\"}";
    wait_for("the refusal", || value(&scrape(lab).1, refused) == 1);
    wait_for("the session's end", || value(&scrape(lab).1, "ftp_alg_sessions") == 0);

    let counters = [
        ("ftp_alg_packets_total", "packets"),
        ("ftp_alg_rewrites_total", "rewrites"),
        ("ftp_alg_pinholes_opened_total", "pinholes_opened"),
        ("ftp_alg_pinholes_used_total", "pinholes_used"),
        ("ftp_alg_errors_total", "errors"),
    ];
    let (mut head, mut text, mut status) = Default::default();
    // The text may be one of a moment before, and the last packet of a session may come late.
    wait_for("the numbers of the status", || {
        (head, text) = scrape(lab);
        status = gateway.daemon.status().unwrap();
        counters.iter().all(|(sample, field)| json!(value(&text, sample)) == status[field])
    });
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    assert!(value(&text, "ftp_alg_pinholes_used_total") > 0, "{text}");
    let version = status["version"].as_str().unwrap();
    assert_eq!(value(&text, &format!("ftp_alg_build_info{{version=\"{version}\"}}")), 1);
    assert_eq!(status["problems"], json!([]));
    assert!(!text.contains("severity=\"problem\""), "{text}");
    assert!(value(&text, "ftp_alg_decision_seconds_count") > 0, "{text}");

    let checked = promtool(lab, &["check", "metrics"], text.as_bytes());
    assert!(checked.status.success(), "{}", checked.stderr_text());
    assert_eq!(checked.stderr_text(), "", "promtool finds nothing to improve");
    gateway.assert_tidy();
}

/// With the alert rules and the password.
#[test]
fn the_documented_configuration_of_prometheus_is_valid() {
    let lab = Lab::new(Topology::Routed).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/metrics.md")).unwrap();
    let blocks = page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let [block, password] = blocks.collect::<Vec<_>>()[..] else { panic!("{page}") };
    let targets = "    static_configs:\n";
    assert!(block.contains(targets) && password.starts_with("    basic_auth:\n"), "{password}");
    let block = block.replace(targets, &format!("{password}{targets}"));
    let rules = root.join("packaging/prometheus/ftp-alg.rules.yml");
    let installed = "/etc/prometheus/ftp-alg.rules.yml";
    assert!(block.contains(installed), "{block}");
    let block = block.replace(installed, rules.to_str().unwrap());
    let file = lab.gateway.write("prometheus.yml", block.as_bytes()).unwrap();
    let checked = promtool(&lab, &["check", "config", file.to_str().unwrap()], b"");
    assert!(checked.status.success(), "{}", checked.stderr_text());
    assert!(checked.stdout_text().contains("10 rules found"), "{}", checked.stdout_text());
}

/// The metrics that `text` names, without the suffixes of a histogram's series.
fn metric_names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '_');
    let names = words.filter(|word| word.starts_with("ftp_alg_"));
    names.map(|name| name.strip_suffix("_bucket").unwrap_or(name)).collect()
}

/// The list is that of the code (`the_page_of_metrics_has_each_with_its_labels`).
#[test]
fn dashboard_and_alert_rules_name_metrics_of_the_list() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |file: &str| fs::read_to_string(root.join(file)).unwrap();
    let page = text("docs/metrics.md");
    let listed = metric_names(page.split("\n## List\n").nth(1).unwrap());
    let rules = text("packaging/prometheus/ftp-alg.rules.yml");
    let named = metric_names(&rules);
    assert!(named.len() > 6 && named.is_subset(&listed), "{:?}", &named - &listed);
    let dashboard = text("packaging/prometheus/ftp-alg.dashboard.json");
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    for panel in panels {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{panel}");
        for target in targets {
            let named = metric_names(target["expr"].as_str().unwrap());
            assert!(!named.is_empty() && named.is_subset(&listed), "{target}");
        }
    }
}

#[test]
fn ftp_works_without_metrics_if_their_port_is_taken_or_their_password_is_missing() {
    let missing = "password-file = \"/nonexistent/password\"\n";
    let taken = "metrics: cannot listen at 127.0.0.1:9821: Address already in use";
    for (more, why) in [
        ("", taken),
        (missing, "metrics.password-file: cannot read /nonexistent/password: No such file"),
    ] {
        let lab = Lab::new(Topology::Masquerade).unwrap();
        let bind = || TcpListener::bind(ADDRESS).unwrap();
        let _other = more.is_empty().then(|| lab.gateway.inside(bind).unwrap());
        let gateway = Gateway::on(lab, &format!("{LISTEN}{more}"));
        let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
        curl(&gateway.lab, &server, Mode::Active).exchange(&server, "report", b"the body").unwrap();
        assert!(gateway.daemon.log().contains(why), "{}", gateway.daemon.log());
        if more == missing {
            let warnings = gateway.daemon.status().unwrap()["warnings"].to_string();
            assert!(warnings.contains(why), "{warnings}");
            assert!(!gateway.lab.gateway.listens(9821).unwrap(), "nothing is served without it");
        }
    }
}

/// As the daemon's user reads it, also at a reload.
#[test]
fn the_password_is_that_of_the_file_also_after_a_reload() {
    let lab = Lab::new(Topology::Routed).unwrap();
    let file = lab.directory().join("password");
    let set = |text: &str, mode: u32| {
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    };
    set("bob:first secret\n", 0o600);
    let config = format!("{LISTEN}password-file = {:?}\n", file.to_str().unwrap());
    let gateway = Gateway::on(lab, &config);
    let lab = &gateway.lab;
    let status = |path: &str, options: &[&str]| asked(lab, path, options).0;
    for path in ["/metrics", "/", "/page.js", "/status.json", "/other"] {
        assert_eq!(status(path, &[]), "401", "{path}");
        assert_eq!(status(path, &["-I"]), "401", "HEAD {path}");
        assert_eq!(status(path, &["-u", "bob:wrong"]), "401", "{path}");
        assert_eq!(status(path, &["-X", "POST"]), "401", "{path}");
    }
    let refusal = asked(lab, "/metrics", &["-i"]).1;
    assert!(refusal.contains("\r\nwww-authenticate: Basic realm=\"ftp-alg\"\r\n"), "{refusal}");
    for path in ["/metrics", "/", "/page.js", "/status.json"] {
        assert_eq!(status(path, &["-u", "bob:first secret"]), "200", "{path}");
        assert_eq!(status(path, &["-I", "-u", "bob:first secret"]), "200", "HEAD {path}");
    }
    assert_eq!(status("/other", &["-u", "bob:first secret"]), "404");
    assert!(!gateway.daemon.log().contains("every user"), "{}", gateway.daemon.log());

    set("bob:second secret\n", 0o644);
    assert_eq!(status("/metrics", &["-u", "bob:first secret"]), "200", "before the reload");
    reload(&gateway.daemon, &config);
    wait_for("the new password", || status("/metrics", &["-u", "bob:second secret"]) == "200");
    assert_eq!(status("/metrics", &["-u", "bob:first secret"]), "401");
    let log = gateway.daemon.log();
    let public = format!("every user of this machine can read the password in {}", file.display());
    assert!(log.contains(&public), "{log}");

    set("third secret\n", 0o600);
    reload(&gateway.daemon, &config);
    let warned = || gateway.daemon.status().unwrap()["warnings"].to_string();
    wait_for("the refusal of the file", || warned().contains("has no colon in its first line"));
    assert!(warned().contains("The password from before stays in use"), "{}", warned());
    assert_eq!(status("/metrics", &["-u", "bob:second secret"]), "200");
    set("bob:fourth secret\n", 0o600);
    reload(&gateway.daemon, &config);
    wait_for("the correct file", || !warned().contains("password"));
    assert_eq!(status("/metrics", &["-u", "bob:fourth secret"]), "200");
    assert!(!gateway.daemon.log().contains("secret"), "{}", gateway.daemon.log());
}

#[test]
fn without_the_page_there_are_metrics_alone() {
    let gateway = gateway_with(Topology::Routed, &format!("{LISTEN}page = false\n"));
    let files = ["/", "/page.css", "/page.js", "/icon.svg", "/other"];
    for path in files.into_iter().chain(["/status.json", "/sessions.json", "/events.json"]) {
        let (status, text) = asked(&gateway.lab, path, &[]);
        let line = "Only /metrics is here, because metrics.page is false.\n";
        assert_eq!((&*status, &*text), ("404", line), "{path}");
    }
    scrape(&gateway.lab);
}

#[test]
fn the_endpoint_is_where_the_configuration_says() {
    let mut gateway = gateway(Topology::Routed);
    assert!(!gateway.lab.gateway.listens(9821).unwrap(), "off by default");
    let exposed = "WARN metrics: other machines can read them";
    // Addresses that the machine may get later, too.
    for (listen, is_exposed) in [
        ("0.0.0.0:9821", true),
        ("192.0.2.77:9821", true),
        ("[2001:db8::77]:9821", true),
        ("[::1]:9821", false),
        ("9821", false),
    ] {
        assert!(gateway.daemon.stop().unwrap().success(), "{}", gateway.daemon.log());
        gateway.start_again(&format!("metrics.listen = \"{listen}\"\n"));
        assert!(gateway.lab.gateway.listens(9821).unwrap(), "{listen}: {}", gateway.daemon.log());
        wait_for("the last line", || gateway.daemon.log().contains("ready: version "));
        let log = gateway.daemon.log();
        assert_eq!(log.contains(exposed), is_exposed, "{listen}: {log}");
        assert_eq!(log.contains("set metrics.password-file"), is_exposed, "{listen}: {log}");
        if listen.contains("[::1]") {
            assert_eq!(asked_at(&gateway.lab, listen, "/metrics", &[]).0, "200");
        }
    }
    scrape(&gateway.lab);
    reload(&gateway.daemon, "metrics.listen = 9822\n");
    wait_for("the reload", || gateway.daemon.log().contains("metrics.listen keeps its old value"));
    assert!(!gateway.lab.gateway.listens(9822).unwrap());
}
