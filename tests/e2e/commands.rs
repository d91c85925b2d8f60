//! What the commands show of a daemon that runs, and what they change of it.

use std::os::unix::net::UnixDatagram;

use crate::common::*;

fn assert_narrow(text: &str) {
    let wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(wide.is_empty(), "more than 80 columns:\n{}", wide.join("\n"));
}

fn output(gateway: &Gateway, command: &str) -> String {
    gateway.daemon.ask(&[command]).unwrap().success().unwrap().stdout_text()
}

#[test]
fn external_endpoints_are_shown_before_anything_is_announced() {
    for (topology, end) in [
        (Topology::Masquerade, "client"),
        (Topology::PublishedServer, "server"),
        (Topology::Routed, ""),
    ] {
        let (gateway, _server) = served(topology, "", json!({}));
        let client = hold(&gateway.lab, (login(), gate(), ask("NOOP")));
        let sessions = gateway.daemon.sessions().unwrap();
        let [session] = sessions.as_slice() else { panic!("{topology}: {sessions:?}") };
        for side in ["client", "server"] {
            let (own, external) = (&session[side], &session[&*format!("{side}_external")]);
            assert_eq!(own != external, side == end, "{topology} {side}: {session}");
        }
        assert_narrow(&output(&gateway, "sessions"));
        let number = session["id"].as_u64().unwrap().to_string();
        let detail = gateway.daemon.ask(&["sessions", "--session", &number]).unwrap();
        let text = detail.success().unwrap().stdout_text();
        assert_eq!(text.contains(" sees as"), !end.is_empty(), "{text}");
        assert_eq!(client.release().error, None);
    }
}

/// A refused announcement, after a login.
fn refused(gateway: &Gateway) {
    talk(&gateway.lab, (login(), ask("PORT 10,9,8,7,14,178"))).ok();
}

#[test]
fn a_port_that_was_open_is_found_among_the_events() {
    let (gateway, _server) = served(Topology::Masquerade, "", json!({}));
    refused(&gateway);
    let said = |words: &[&str]| gateway.daemon.ask(words).unwrap().success().unwrap();
    let hint = "no pinholes\nused ones: ftp-alg events --port 3762\n";
    assert_eq!(said(&["pinholes", "--port", "3762"]).stdout_text(), hint);
    assert_eq!(said(&["pinholes", "--port", "3762", "--json"]).stdout_text(), "[]\n");
    let found = said(&["events", "--port", "3762", "--since", "1 hour ago"]);
    let (shown, note) = (found.stdout_text(), found.stderr_text());
    assert!(shown.contains("10.9.8.7:3762") && shown.lines().count() == 1, "{shown}");
    assert!(note.starts_with("ftp-alg: stored events begin at 20"), "{note}");
    let others = said(&["events", "--port", "3763"]);
    assert_eq!((others.stdout_text(), others.stderr_text()), (String::new(), String::new()));
    let future = gateway.daemon.ask(&["events", "--since", "2999-01-01"]).unwrap();
    assert_fails(&future, 2, "; see `ftp-alg events --help`");
}

/// A transfer is stored when all is known of it, so behind events that came after its end.
#[test]
fn events_are_shown_oldest_first() {
    // By the queue, which records an announcement at once.
    let setup = "queue.fast-path = \"off\"\n";
    let (gateway, _server) = served(Topology::Masquerade, setup, json!({"body": "1"}));
    talk(&gateway.lab, (login(), vec![passive_transfer("PASV"); 5])).ok();
    wait_for("the transfers", || gateway.events("transfer").len() == 5);
    wait_for("the end", || gateway.events("session-ended").len() == 1);
    let is_in_order = |gateway: &Gateway| {
        let mut ids = Vec::new();
        for options in [&["events"][..], &["events", "--json"], &["events", "--user", "lab"]] {
            let shown = gateway.daemon.ask(options).unwrap().success().unwrap().stdout_text();
            let time = |line: &str| json!({"time": line.split_once(' ').unwrap().0});
            let event = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| time(line));
            let events: Vec<Value> = shown.lines().map(event).collect();
            assert!(events.len() > 11, "{options:?}: {shown}");
            assert!(events.is_sorted_by_key(|event| event["time"].to_string()), "{shown}");
            ids.extend(events.iter().filter_map(|event| event["id"].as_u64()));
        }
        assert!(!ids.is_sorted(), "none was stored behind a later one");
    };
    is_in_order(&gateway);
}

#[test]
fn the_log_level_changes_while_the_daemon_runs() {
    let (gateway, _server) = served(Topology::Routed, "", json!({}));
    let ask = |arguments: &[&str]| {
        gateway.daemon.ask(arguments).unwrap().success().unwrap().stdout_text()
    };
    let refusals = || gateway.daemon.log().matches("refuse PORT").count();
    assert_eq!(ask(&["log-level"]), "info\n");
    refused(&gateway);
    wait_for("the first line", || refusals() == 1);
    assert_eq!(ask(&["log-level", "error"]), "error\n");
    refused(&gateway);
    assert_eq!(ask(&["log-level", "debug"]), "debug\n");
    refused(&gateway);
    wait_for("the line after that", || refusals() > 1);
    assert_eq!(refusals(), 2, "{}", gateway.daemon.log());
    assert!(gateway.daemon.log().contains("log level changed: debug, error before"));
    // Lines begin with a time of RFC 3339 where standard error is a file.
    let log = gateway.daemon.log();
    for line in log.lines() {
        let form: String =
            line.chars().take(27).map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(form, "0000-00-00T00:00:00.000000Z", "{line}");
        assert!(!line.contains('\u{1b}'), "{line}");
    }
}

/// The program, with a journal for its standard error, whose socket is in `directory`.
fn executable_with_journal(lab: &Lab, directory: &str) -> PathBuf {
    let lines = format!(
        "# A /run with the lab and with journald's directory.
[ -n \"$JOURNAL_STREAM\" ] || {{
    export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2)
    exec unshare --mount \"$0\" \"$@\"
}}
run={directory}/run
mkdir -p $run/ftp-alg-lab $run/systemd/journal
mount --rbind /run/ftp-alg-lab $run/ftp-alg-lab
mount --bind {directory} $run/systemd/journal
mount --rbind $run /run
exec {} \"$@\"",
        executable().display()
    );
    shell_program(&lab.gateway, "ftp-alg-with-journal", &lines)
}

#[test]
fn a_confined_daemon_logs_to_journald_with_fields_and_without_it_to_standard_error() {
    let lab = Lab::new(Topology::Routed).unwrap();
    let place = lab.directory().join("journal");
    fs::create_dir(&place).unwrap();
    let journal = UnixDatagram::bind(place.join("socket")).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let program = executable_with_journal(&lab, place.to_str().unwrap());
    let daemon = Daemon::start(&program, &lab.gateway, "").unwrap();
    let gateway = Gateway { daemon, lab };
    let _server = scripted_server(&gateway.lab.server, &json!({}));
    refused(&gateway);
    let mut datagram = [0; 4096];
    let mut next = || {
        let length = journal.recv(&mut datagram).unwrap();
        String::from_utf8(datagram[..length].to_vec()).unwrap()
    };
    let refusal = loop {
        let entry = next();
        assert!(entry.contains("\nSYSLOG_IDENTIFIER=ftp-alg\nMESSAGE="), "{entry}");
        if entry.contains("refuse PORT") {
            break entry;
        }
    };
    for line in [
        "PRIORITY=4",
        "FTP_ALG_EVENT=refusal",
        "FTP_ALG_SESSION=1",
        "FTP_ALG_ACTION=refuse",
        "FTP_ALG_KIND=PORT",
        "FTP_ALG_ANNOUNCED=10.9.8.7:3762",
    ] {
        assert!(refusal.lines().any(|other| other == line), "{line}: {refusal}");
    }
    assert!(refusal.contains("\nFTP_ALG_CLIENT=192.168.150.80:"), "{refusal}");
    assert!(!gateway.daemon.log().contains("refuse"), "{}", gateway.daemon.log());
    drop(journal);
    refused(&gateway);
    wait_for("the line on standard error", || gateway.daemon.log().contains("<4>#2 "));
}

#[test]
fn lines_on_a_terminal_have_colours_unless_no_color_is_set() {
    for (variable, has_colours) in [("NO_COLOR=", true), ("NO_COLOR=1", false)] {
        let lab = Lab::new(Topology::Routed).unwrap();
        let program = executable();
        let program = program.display();
        let lines = format!(
            "[ \"$1\" = run ] || exec {program} \"$@\"\n\
             exec env {variable} script --quiet --flush --command \"exec {program} $*\" /dev/null"
        );
        let started = shell_program(&lab.gateway, "ftp-alg-on-a-terminal", &lines);
        let daemon = Daemon::start(&started, &lab.gateway, "").unwrap();
        wait_for("the terminal's output", || daemon.log().contains("ready: version "));
        let log = daemon.log();
        assert_eq!(log.contains('\u{1b}'), has_colours, "{variable}: {log:?}");
    }
}
