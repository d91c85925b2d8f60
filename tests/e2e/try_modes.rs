//! `ftp-alg doctor --try` against real servers and hostile ones: which step fails, and why.

use crate::common::*;

/// What came of a try.
struct Try {
    steps: Vec<Value>,
    text: String,
}

/// Instead of the configuration and the daemon of the machine.
const NO_DAEMON: [&str; 4] = ["--config", "/dev/null", "--socket", "/nonexistent"];

/// `doctor --try` on `host`, with more arguments.
fn attempt(host: &Host, url: &str, more: &[&str]) -> Try {
    let none = if more.contains(&"--socket") { &NO_DAEMON[..2] } else { &NO_DAEMON };
    let words = [&["doctor", "--json", "--try", url], more, none].concat();
    let done = host.try_run(executable(), &words).unwrap();
    let text = done.stdout_text();
    let report: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {}", done.stderr_text()));
    let steps = report["steps"].as_array().unwrap().clone();
    let well = steps.iter().all(|step| step["ok"] != false);
    assert_eq!(report["ok"], well, "{text}");
    assert_eq!(done.status.code(), Some(if well { 0 } else { 1 }), "{text}");
    Try { steps, text }
}

impl Try {
    /// The names of the steps that fared so.
    fn with(&self, ok: &Value) -> Vec<&str> {
        let steps = self.steps.iter().filter(|step| step["ok"] == *ok);
        steps.map(|step| step["step"].as_str().unwrap()).collect()
    }

    fn failed(&self) -> Vec<&str> {
        self.with(&json!(false))
    }

    fn skipped(&self) -> Vec<&str> {
        self.with(&Value::Null)
    }

    /// What is said of a step.
    fn of(&self, name: &str, field: &str) -> String {
        let step = self.steps.iter().find(|step| step["step"] == name);
        let value = &step.unwrap_or_else(|| panic!("no {name}: {}", self.text))[field];
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    /// Asserts that the text of a step has all of `parts`.
    #[track_caller]
    fn assert_says(&self, name: &str, parts: &[&str]) {
        let says = self.of(name, "says");
        assert!(parts.iter().all(|part| says.contains(part)), "{parts:?}: {says}");
    }

    #[track_caller]
    fn assert_remedy(&self, name: &str, part: &str) {
        let remedy = self.of(name, "remedy");
        assert!(remedy.contains(part), "{part}: {remedy}");
    }
}

/// The URL of a lab's server, with its login if it has one.
fn url(lab: &Lab, server: Option<&Server>, family: Family) -> String {
    let endpoint = lab.server_endpoint(family);
    match server.map(Server::login) {
        Some((user, password)) if user != "anonymous" => {
            format!("ftp://{user}:{password}@{endpoint}")
        }
        _ => format!("ftp://{endpoint}"),
    }
}

const MODES: [&str; 4] = ["EPSV", "PASV", "EPRT", "PORT"];

#[test]
fn all_modes_work_through_masquerade_and_default_drop() {
    let gateway = gateway(Topology::Masquerade);
    for kind in ServerKind::ALL {
        let server = Server::start(kind, &gateway.lab.server).unwrap();
        let tried = |family| {
            let url = url(&gateway.lab, Some(&server), family);
            attempt(&gateway.lab.client, &url, &[])
        };
        let over_v4 = tried(V4);
        assert_eq!(over_v4.with(&json!(true)).len(), 7, "{kind}: {}", over_v4.text);
        let over_v6 = tried(V6);
        assert_eq!(over_v6.failed(), [""; 0], "{kind}: {}", over_v6.text);
        assert_eq!(over_v6.skipped(), ["PASV", "PORT"], "{kind}");
    }
}

#[test]
fn a_gateway_tries_for_itself() {
    let gateway = gateway(Topology::OnClient);
    let lab = &gateway.lab;
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    let socket = gateway.daemon.socket().display().to_string();
    let url = url(lab, Some(&server), V4);
    let attempt = |url: &str| attempt(&lab.gateway, url, &["--socket", &socket]);
    let tried = attempt(&url);
    assert_eq!(tried.failed(), [""; 0], "{}", tried.text);
    // Its own rules are in the way; the daemon does not inspect this port.
    lab.gateway.nft("insert rule inet gateway output tcp dport 2121 accept").unwrap();
    let _uninspected = scripted_server(&lab.server, &json!({"port": 2121}));
    let tried = attempt(&format!("ftp://{}:2121", lab.server.address(V4)));
    assert_eq!(tried.failed(), MODES, "{}", tried.text);
    let drops = "dropped on this machine by the policy of inet gateway ";
    tried.assert_says("PASV", &[&format!("{drops}output")]);
    tried.assert_says("PORT", &[&format!("{drops}input")]);
    tried.assert_remedy("PASV", "add port 2121 to control-ports of ftp-alg on this machine");
    // The daemon is there, and the rules forget its mark.
    lab.gateway
        .nft(
            "flush chain inet gateway output
             add rule inet gateway output ct state established accept
             add rule inet gateway output tcp dport 21 accept",
        )
        .unwrap();
    let tried = attempt(&url);
    assert_eq!(tried.failed(), ["EPSV", "PASV"], "{}", tried.text);
    tried.assert_says("EPSV", &[&format!("{drops}output")]);
    let line = "nft add rule inet gateway output index 0 ct mark and 0x40000000 != 0 accept";
    tried.assert_remedy("PASV", line);
}

#[test]
fn without_the_daemon_data_connections_fail_and_login_does_not() {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    let server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    let tried = attempt(&lab.client, &url(&lab, Some(&server), V4), &[]);
    assert_eq!(tried.failed(), MODES, "{}", tried.text);
    let to = format!("the data connection failed: connection to {}:", lab.server.address(V4));
    tried.assert_says("EPSV", &[&to, "no answer to the SYN within 5 s"]);
    tried.assert_says("PORT", &[" refused: 500 Illegal PORT command"]);
    tried.assert_remedy("PASV", "ftp-alg doctor");
}

/// The control connection fails, and each further setting adds to the one before.
#[test]
fn what_is_in_the_way_of_a_control_connection_is_named() {
    let lab = Lab::new(Topology::Routed).unwrap();
    let url = url(&lab, None, V4);
    let interface = lab.interface(&lab.client);
    let rule = format!("-A OUTPUT -o {interface} -p tcp -m tcp --dport 21 -j DROP");
    for (host, setting, says) in [
        (&lab.client, "true", format!("connection refused by {}", lab.server_endpoint(V4))),
        (
            &lab.gateway,
            "nft insert rule inet gateway forward tcp dport 21 drop",
            "no answer to the SYN within 5 s".to_owned(),
        ),
        (
            &lab.client,
            &format!("iptables-legacy {rule}"),
            format!("dropped on this machine by `{rule}` in iptables-legacy filter OUTPUT"),
        ),
        (&lab.client, "ip route flush default", "unreachable".to_owned()),
    ] {
        host.shell(setting).unwrap();
        let tried = attempt(&lab.client, &url, &[]);
        assert_eq!((tried.failed(), tried.skipped()), (vec!["connect"], MODES.to_vec()));
        tried.assert_says("connect", &[&says]);
        assert_eq!(tried.text.contains("on this machine"), says.contains(&rule), "{}", tried.text);
    }
}

#[test]
fn a_refused_login_is_reported_with_the_reply() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let _server = Server::start(ServerKind::Vsftpd, &lab.server).unwrap();
    let url = format!("ftp://nobody:secret@{}", lab.server_endpoint(V4));
    let tried = attempt(&lab.client, &url, &[]);
    assert_eq!((tried.failed(), tried.skipped()), (vec!["login"], MODES.to_vec()));
    tried.assert_says("login", &["530 "]);
    assert!(!tried.text.contains("secret"), "{}", tried.text);
    let refused = || gateway.events("login-refused");
    wait_for("the event", || !refused().is_empty());
    let [refused] = &refused()[..] else { panic!() };
    assert_eq!((&refused["user"], &refused["code"]), (&json!("nobody"), &json!(530)), "{refused}");
}

#[test]
fn what_a_server_says_wrongly_is_reported_and_never_used() {
    let lab = Lab::new(Topology::Routed).unwrap();
    lab.gateway.shell("nft flush ruleset").unwrap();
    let url = url(&lab, None, V4);
    let attempt_with = |extra: Value| {
        let _server = scripted_server(&lab.server, &json!({"extra": extra}));
        attempt(&lab.client, &url, &[])
    };
    let foreign = "227 Entering Passive Mode (198,51,100,66,200,10)";
    let tried = attempt_with(json!({"PASV": foreign, "EPRT": "500 no"}));
    assert_eq!((tried.failed(), tried.skipped()), (vec!["PASV"], vec!["EPRT"]), "{}", tried.text);
    let dialled = format!("connection refused by {}:51210", lab.server.address(V4));
    tried.assert_says("PASV", &["227 announces 198.51.100.66, not the address of", &dialled]);

    let tried = attempt_with(json!({
        "EPSV": "229 Entering Extended Passive Mode (|||22|)",
        "PASV": "227 \u{1b}[2Jnothing",
        "LIST": "425 Cannot",
    }));
    assert_eq!(tried.failed(), MODES, "{}", tried.text);
    tried.assert_says("EPSV", &["announced port 22 is below 1024 and was not tried"]);
    tried.assert_says("PASV", &["227 \\u{1b}[2Jnothing"]);
    tried.assert_says("PORT", &["the server could not connect to "]);
}

/// It was taken for the server's: "check the server's log", or "a gateway in between needs ftp-alg".
#[test]
fn a_refusal_of_the_gateway_is_reported_with_its_setting() {
    for (setting, why, advice) in [
        ("min-data-port = 65535", "min-data-port.", "lower min-data-port in [policy]"),
        ("deny-ports = [\"1024-49151\", \"49153-65535\"]", "deny-ports.", "out of deny-ports"),
    ] {
        let configuration = format!("[policy]\n{setting}\n");
        let (gateway, _server) =
            served(Topology::PublishedServer, &configuration, json!({"passive_port": 20050}));
        let tried = attempt(&gateway.lab.client, &url(&gateway.lab, None, V4), &[]);
        assert_eq!(tried.failed(), MODES, "{}", tried.text);
        for mode in MODES {
            tried.assert_says(mode, &["refused by an ftp-alg on the way: ", why]);
            tried.assert_remedy(mode, "on that gateway: ");
            tried.assert_remedy(mode, advice);
        }
    }
}

#[test]
fn without_capabilities_everything_but_the_rules_is_reported() {
    let lab = Lab::new(Topology::Routed).unwrap();
    let program = executable_for_everyone(&lab);
    let (program, url) = (program.to_str().unwrap(), url(&lab, None, V4));
    let words = [&AS_NOBODY[..], &[program, "doctor", "--try", &url], &NO_DAEMON].concat();
    let said = lab.client.try_run("env", &words).unwrap().stdout_text();
    assert!(said.contains("connection refused by"), "{said}");
    assert!(said.contains("      run this as root "), "{said}");
}

#[test]
fn encrypted_sessions_are_tried_in_each_mode() {
    for (scheme, more, steps) in [
        ("ftpes", "", ["connect", "greeting", "AUTH", "TLS", "login", "PROT"].as_slice()),
        ("ftps", "implicit_ssl=YES", &["connect", "TLS", "greeting", "login", "PROT"]),
    ] {
        let lab = Lab::new(Topology::Routed).unwrap();
        lab.gateway.shell("nft flush ruleset").unwrap();
        // Data connections must resume the session.
        let certificate = include_bytes!("../../src/cli/doctor/try_modes/test_certificate.pem");
        let certificate = lab.server.write("certificate.pem", certificate).unwrap();
        let configuration = format!(
            "ssl_enable=YES\nallow_anon_ssl=YES\nrequire_ssl_reuse=YES\n\
             force_anon_logins_ssl=YES\nrsa_cert_file={}\n{more}",
            certificate.display()
        );
        let _server = Server::start_with(ServerKind::Vsftpd, &lab.server, &configuration).unwrap();
        let url = format!("{scheme}://{}", lab.server_endpoint(V4));
        let tried = attempt(&lab.client, &url, &["--insecure"]);
        assert_eq!(tried.with(&json!(true)), [steps, &MODES].concat(), "{}", tried.text);
        for mode in MODES {
            assert!(tried.of(mode, "says").ends_with(", TLS resumed"), "{}", tried.text);
        }
        let tried = attempt(&lab.client, &url, &[]);
        assert_eq!((tried.failed(), tried.skipped()), (vec!["TLS"], MODES.to_vec()));
        tried.assert_remedy("TLS", "--insecure");
        let trusted = lab.client.directory().join("certificate.pem");
        let trusted = format!("SSL_CERT_FILE={}", trusted.display());
        let program = executable();
        let words = [&trusted, program.to_str().unwrap(), "doctor", "--try", &url];
        let tried = lab.client.try_run("env", &[&words[..], &NO_DAEMON].concat()).unwrap();
        let text = tried.stdout_text();
        assert_eq!(tried.status.code(), Some(0), "{text}");
        assert!(text.contains("TLS 1.3; certificate trusted"), "{text}");
    }
}
