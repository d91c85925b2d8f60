//! The endpoint for Prometheus: its text, hostile clients, and the alert rules.

use std::{collections::BTreeSet, net::TcpListener, os::unix::fs::PermissionsExt as _};

use crate::{common::*, page::LISTEN};

/// What Prometheus' `promtool`, which packaging/provision unpacked, says of `stdin`. It finds nothing wrong.
fn promtool(lab: &Lab, arguments: &[&str], stdin: &[u8]) -> String {
    let cache = std::env::var("FTP_ALG_LAB_CACHE").unwrap_or("/var/cache/ftp-alg-lab".to_owned());
    let program = PathBuf::from(cache).join("prometheus/usr/bin/promtool");
    assert!(program.exists(), "{} is missing: run packaging/provision", program.display());
    let mut command = lab.gateway.command(program);
    command.args(arguments);
    let checked = lab.gateway.finish(command, stdin, Duration::from_secs(60)).unwrap();
    let checked = checked.success().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(checked.stderr_text(), "", "promtool finds nothing to improve");
    checked.stdout_text()
}

/// The status and the text that curl gets on the gateway with `options`.
fn asked(lab: &Lab, path: &str, options: &[&str]) -> (String, String) {
    let url = format!("http://localhost:9821{path}");
    let limit = scaled_timeout(Duration::from_secs(60)).as_secs().to_string();
    let fixed = ["-sS", "--max-time", &limit, "-w", "\n%{http_code}", &url];
    let got = lab.gateway.run("curl", &[&fixed, options].concat()).unwrap().stdout_text();
    let (text, status) = got.rsplit_once('\n').unwrap();
    (status.to_owned(), text.to_owned())
}

/// The text of the metrics.
fn scrape(lab: &Lab) -> String {
    let (status, text) = asked(lab, "/metrics", &[]);
    assert_eq!(status, "200", "{text}");
    text
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
    let _server = scripted_server(&lab.server, &json!({}));
    let refused = ask("PORT 192,168,150,80,0,99");
    let mut client = hold(lab, (login(), port_transfer(), gate(), refused));
    wait_for("the session", || value(&scrape(lab), "ftp_alg_sessions") == 1);
    client.open_gate();
    client.release().ok();
    for (sample, expected) in [
        ("ftp_alg_sessions", 0),
        ("ftp_alg_refusals_total{reason=\"low_port\"}", 1),
        ("ftp_alg_pinholes_used_total", 1),
    ] {
        wait_for(sample, || value(&scrape(lab), sample) == expected);
    }
    let text = scrape(lab);
    assert!(value(&text, "ftp_alg_decision_seconds_count") > 0, "{text}");
    promtool(lab, &["check", "metrics"], text.as_bytes());
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
    assert!(checked.contains("10 rules found"), "{checked}");
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
    for file in ["ftp-alg.rules.yml", "ftp-alg.dashboard.json"] {
        let text = text(&format!("packaging/prometheus/{file}"));
        let named = metric_names(&text);
        assert!(named.len() > 6 && named.is_subset(&listed), "{file}: {:?}", &named - &listed);
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
        let bind = || TcpListener::bind("127.0.0.1:9821").unwrap();
        let _other = more.is_empty().then(|| lab.gateway.inside(bind).unwrap());
        let gateway = Gateway::on(lab, &format!("{LISTEN}{more}"));
        let _server = scripted_server(&gateway.lab.server, &json!({}));
        talk(&gateway.lab, (login(), port_transfer())).ok();
        assert!(gateway.daemon.log().contains(why), "{}", gateway.daemon.log());
        if more == missing {
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
    let ask = ["-u", "bob:first secret"];
    for (path, with_password) in [
        ("/metrics", "200"),
        ("/", "200"),
        ("/page.js", "200"),
        ("/status.json", "200"),
        ("/other", "404"),
    ] {
        for options in [&[][..], &["-I"], &["-X", "POST"], &["-u", "bob:wrong"]] {
            assert_eq!(status(path, options), "401", "{path} {options:?}");
        }
        assert_eq!(status(path, &ask), with_password, "{path}");
        assert_eq!(status(path, &["-I", ask[0], ask[1]]), with_password, "HEAD {path}");
    }
    let refusal = asked(lab, "/metrics", &["-i"]).1;
    assert!(refusal.contains("\r\nwww-authenticate: Basic realm=\"ftp-alg\"\r\n"), "{refusal}");
    assert!(!gateway.daemon.log().contains("every user"), "{}", gateway.daemon.log());

    set("bob:second secret\n", 0o644);
    assert_eq!(status("/metrics", &ask), "200", "before the reload");
    reload(&gateway.daemon, &config);
    wait_for("the new password", || status("/metrics", &["-u", "bob:second secret"]) == "200");
    assert_eq!(status("/metrics", &ask), "401");
    let public = format!("every user of this machine can read the password in {}", file.display());
    assert!(gateway.daemon.log().contains(&public), "{}", gateway.daemon.log());

    set("third secret\n", 0o600);
    reload(&gateway.daemon, &config);
    let warned = || gateway.daemon.status().unwrap()["warnings"].to_string();
    wait_for("the warning", || warned().contains("The password from before stays in use"));
    assert_eq!(status("/metrics", &["-u", "bob:second secret"]), "200");
    set("bob:fourth secret\n", 0o600);
    reload(&gateway.daemon, &config);
    wait_for("the correct file", || !warned().contains("password"));
    assert_eq!(status("/metrics", &["-u", "bob:fourth secret"]), "200");
    assert!(!gateway.daemon.log().contains("secret"), "{}", gateway.daemon.log());
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
        gateway.start_again(&format!("metrics.listen = \"{listen}\"\nmetrics.page = false\n"));
        assert!(gateway.lab.gateway.listens(9821).unwrap(), "{listen}: {}", gateway.daemon.log());
        wait_for("the last line", || gateway.daemon.log().contains("ready: version "));
        let log = gateway.daemon.log();
        assert_eq!(log.contains(exposed), is_exposed, "{listen}: {log}");
        if !is_exposed {
            scrape(&gateway.lab);
        }
    }
    for path in ["/", "/page.js", "/icon.svg", "/status.json", "/sessions.json", "/events.json"] {
        assert_eq!(asked(&gateway.lab, path, &[]).0, "404", "without the page: {path}");
    }
    reload(&gateway.daemon, "metrics.listen = 9822\n");
    wait_for("the reload", || gateway.daemon.log().contains("metrics.listen keeps its old value"));
    assert!(!gateway.lab.gateway.listens(9822).unwrap());
}
