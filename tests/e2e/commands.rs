//! What the commands show of a daemon that runs, and what they change of it.

use std::os::unix::net::UnixDatagram;

use crate::common::*;

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
    assert!(said(&["pinholes", "--port", "3762"]).stdout_text().contains("events --port 3762"));
    let found = said(&["events", "--port", "3762", "--since", "1 hour ago"]);
    let shown = found.stdout_text();
    assert!(shown.contains("10.9.8.7:3762") && shown.lines().count() == 1, "{shown}");
    assert_eq!(said(&["events", "--port", "3763"]).stdout_text(), "");
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
    let shown = gateway.daemon.ask(&["events", "--json"]).unwrap().success().unwrap();
    let events: Vec<_> = shown.stdout_text().lines().map(event_of).collect();
    assert!(events.is_sorted_by_key(|event| event["time"].to_string()), "{events:?}");
    let ids: Vec<_> = events.iter().map(|event| event["id"].as_u64()).collect();
    assert!(!ids.is_sorted(), "none was stored behind a later one");
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
    // Lines begin with a time of RFC 3339 where standard error is a file.
    for line in gateway.daemon.log().lines() {
        let form = line[..27].replace(|c: char| c.is_ascii_digit(), "0");
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
    let refusal = loop {
        let length = journal.recv(&mut datagram).unwrap();
        let entry = String::from_utf8(datagram[..length].to_vec()).unwrap();
        if entry.contains("refuse PORT") {
            break entry;
        }
    };
    assert!(refusal.contains("\nFTP_ALG_ANNOUNCED=10.9.8.7:3762\n"), "{refusal}");
    assert!(!gateway.daemon.log().contains("refuse"), "{}", gateway.daemon.log());
    drop(journal);
    refused(&gateway);
    wait_for("the line on standard error", || gateway.daemon.log().contains("<4>#2 "));
}
