//! The file of `log.events`: all events, over restarts and kills, and what `ftp-alg events FILE` finds in it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use crate::{common::*, health::warnings};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ftp-alg");

/// A gateway that writes its events to a file, and the configuration.
fn gateway_with_file() -> (Gateway, PathBuf, String) {
    let lab = lab_for(Topology::Masquerade, "");
    let file = lab.directory().join("events.json");
    let configuration = format!("log.events = {file:?}\n");
    (Gateway::on(lab, &configuration), file, configuration)
}

/// What `ftp-alg events FILE` prints with these options.
fn found(gateway: &Gateway, file: &Path, options: &[&str]) -> String {
    let file = file.to_str().unwrap();
    let output = gateway.lab.gateway.run(PROGRAM, &[&["events", file], options].concat()).unwrap();
    assert_eq!(output.stderr_text(), "");
    output.stdout_text()
}

/// Uploads a file of 5 bytes.
fn upload(gateway: &Gateway, server: &Server, name: &str) {
    curl(&gateway.lab, server, Mode::Passive).upload(name, b"12345").unwrap();
}

/// Waits until `file` has the upload `name`.
fn wait_for_upload(gateway: &Gateway, file: &Path, name: &str) {
    let path = format!("/{name} 5 B in ");
    wait_for(name, || found(gateway, file, &["--verb", "STOR"]).contains(&path));
}

#[test]
fn the_file_has_every_event_over_a_restart_and_a_kill() {
    let (mut gateway, file, configuration) = gateway_with_file();
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    for name in ["first", "second", "third"] {
        upload(&gateway, &server, name);
        wait_for_upload(&gateway, &file, name);
        match name {
            "first" => drop(gateway.daemon.stop().unwrap()),
            _ => gateway.daemon.kill(),
        }
        gateway.start_again(&configuration);
    }
    wait_for("the last start", || {
        found(&gateway, &file, &["--kind", "ready"]).lines().count() == 4
    });
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_sessions: Vec<_> = lines.iter().filter(|line| line["session"].is_u64()).collect();
    assert!(of_sessions.len() >= 12, "{text}");
    assert!(of_sessions.is_sorted_by_key(|line| line["id"].as_u64()), "{text}");
    assert_eq!(of_sessions.last().unwrap()["session"], 3, "numbers go on: {text}");
    text.lines().filter(|line| line.contains("\"session\":")).for_each(|line| drop(event_of(line)));
    // Who opened the port, and who used it.
    let opened = of_sessions.iter().find(|line| line["event"] == "announcement").unwrap();
    let arrival = opened["arrival"].as_str().unwrap();
    let of_port = found(&gateway, &file, &["--port", arrival]);
    assert!(of_port.contains("open PASV") && of_port.contains("/first 5 B in "), "{of_port}");
    for (options, count) in [
        (&["--verb", "stor", "--since", opened["time"].as_str().unwrap()][..], 3),
        (&["--until", "yesterday"], 0),
        (&["--failed"], 0),
        (&["--kind", "stopped"], 1),
    ] {
        assert_eq!(found(&gateway, &file, options).lines().count(), count, "{options:?}\n{text}");
    }
}

#[test]
fn one_client_floods_and_the_file_has_all() {
    const REFUSED: usize = 2500;
    let (gateway, file, _) = gateway_with_file();
    let _server = scripted_server(&gateway.lab.server, &json!({}));
    let flood = (0..REFUSED).flat_map(|_| ask("PORT 9,9,9,9,80,80"));
    talk(&gateway.lab, [login(), flood.collect()].concat()).ok();
    let written = || found(&gateway, &file, &["--failed"]).lines().count();
    wait_for("all refusals", || written() == REFUSED);
    assert_eq!(gateway.daemon.status().unwrap()["events_unwritten"], 0);
}

/// Renamed and made again at a reload, and then removed without one.
#[test]
fn a_file_of_events_that_is_gone_is_made_again() {
    let (gateway, file, _) = gateway_with_file();
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    let old = file.with_extension("json.1");
    upload(&gateway, &server, "before");
    wait_for_upload(&gateway, &file, "before");
    fs::rename(&file, &old).unwrap();
    signal(&gateway.daemon, "HUP");
    wait_for("the new file", || file.exists());
    upload(&gateway, &server, "after");
    wait_for_upload(&gateway, &file, "after");
    let both = found(&gateway, &old, &[file.to_str().unwrap(), "--verb", "STOR"]);
    assert!(both.find("/before ") < both.find("/after "), "{both}");

    fs::remove_file(&file).unwrap();
    let mut uploads = 0;
    wait_for("a new file with an upload", || {
        uploads += 1;
        upload(&gateway, &server, &format!("again{uploads}"));
        file.exists() && found(&gateway, &file, &["--verb", "STOR"]).contains("/again")
    });
}

/// What was open, when, and for whom.
#[test]
fn what_was_open_in_a_span_is_found() {
    let (gateway, file, _) = gateway_with_file();
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    upload(&gateway, &server, "moved");
    wait_for_upload(&gateway, &file, "moved");
    let held = hold(&gateway.lab, (login_as(server.login()), ask("PASV"), gate()));
    let announced = || found(&gateway, &file, &["--kind", "announcement"]).lines().count();
    wait_for("the pinhole", || announced() == 2);
    let text = found(&gateway, &file, &["--open"]);
    let [moved, waits] = &text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
    assert!(moved.contains("/moved 5 B in "), "{text}");
    assert!(waits.contains("no event says that it was closed"), "{text}");
    let rows = found(&gateway, &file, &["--open", "--json"]);
    let row: Value = serde_json::from_str(rows.lines().next().unwrap()).unwrap();
    let [opened, closed, arrival] =
        ["opened", "closed", "arrival"].map(|field| row[field].as_str().unwrap());
    // It was open before the span, and ends in it.
    for (options, count) in [
        (["--since", closed, "--client", "192.168.150.0/24"], 2),
        (["--until", closed, "--port", arrival], 1),
        (["--until", opened, "--session", "1"], 0),
    ] {
        let options = [&["--open"][..], &options].concat();
        assert_eq!(found(&gateway, &file, &options).lines().count(), count, "{options:?}\n{text}");
    }
    let of_daemon = gateway.daemon.ask(&["events", "--open"]).unwrap().success().unwrap();
    assert_eq!(of_daemon.stdout_text(), text);
    assert_eq!(held.release().error, None);
    wait_for("its end", || !found(&gateway, &file, &["--open"]).contains("no event says"));
}

#[test]
fn a_full_disk_costs_events_of_the_file_alone() {
    let gateway = gateway_with(Topology::Masquerade, "log.events = \"/dev/full\"\n");
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    upload(&gateway, &server, "name");
    wait_for("the count", || {
        gateway.daemon.status().unwrap()["events_unwritten"].as_u64() > Some(3)
    });
    wait_for("the warning", || warnings(&gateway.daemon, "status") == ["event-file"]);
    wait_for("the event", || gateway.events("transfer").len() == 1);
    let count =
        || gateway.daemon.log().matches("warning event-file: log.events: /dev/full: ").count();
    wait_for("the line", || count() > 0);
    assert_eq!(count(), 1);
}

/// `tail -f` gives no end.
#[test]
fn a_pipe_is_read_while_it_is_written() {
    let mut events = Command::new(PROGRAM)
        .args(["events", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = events.stdin.take().unwrap();
    let mut printed = BufReader::new(events.stdout.take().unwrap());
    for text in ["first", "second"] {
        writeln!(pipe, "{}", json!({"time": "T", "event": "ready", "text": text})).unwrap();
        let mut line = String::new();
        printed.read_line(&mut line).unwrap();
        assert_eq!(line, format!("T {text}\n"));
    }
    drop(pipe);
    assert!(events.wait().unwrap().success());
}

#[test]
fn what_is_no_file_of_events_has_a_clear_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    let mixed = b"{\"event\": 7}\n{\"event\": \"ready\"}\n\n\xff\nno event\n{\"event\": \"ready\"}";
    for (content, code, said) in [
        (&mixed[..], 0, "file: 3 lines are no event\n"),
        (b"no event\n", 1, "file is no file of log.events\n"),
        (b"\x1f\x8b\x08 compressed", 1, "file is compressed with gzip: zcat "),
    ] {
        fs::write(&file, content).unwrap();
        let output = Command::new(PROGRAM).arg("events").arg(&file).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}: {error}");
        assert!(error.contains(said), "{said}: {error}");
    }
}
