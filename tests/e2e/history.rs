//! The file of `log.events`: all events, over restarts and kills, and what `ftp-alg events FILE` finds in it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::common::*;

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

fn upload(gateway: &Gateway, server: &Server, name: &str) {
    curl(&gateway.lab, server, Mode::Passive).upload(name, b"12345").unwrap();
}

#[test]
fn the_file_has_every_event_over_a_restart_and_a_kill() {
    let (mut gateway, file, configuration) = gateway_with_file();
    let server = Server::start(ServerKind::Vsftpd, &gateway.lab.server).unwrap();
    for name in ["first", "second", "third"] {
        upload(&gateway, &server, name);
        let is_written =
            || found(&gateway, &file, &["--verb", "STOR"]).contains(&format!("/{name} "));
        wait_for(name, is_written);
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
    let ids: Vec<_> = of_sessions.iter().map(|line| line["id"].as_u64().unwrap()).collect();
    assert!(ids.is_sorted(), "{text}");
    let sessions: Vec<_> =
        of_sessions.iter().map(|line| line["session"].as_u64().unwrap()).collect();
    assert_eq!(sessions.last(), Some(&3), "numbers go on: {text}");
    text.lines().filter(|line| line.contains("\"session\":")).for_each(|line| drop(event_of(line)));
    // Who opened the port, and who used it.
    let opened = of_sessions.iter().find(|line| line["event"] == "announcement").unwrap();
    let arrival = opened["arrival"].as_str().unwrap();
    let of_port = found(&gateway, &file, &["--port", arrival]);
    assert!(of_port.contains("open PASV") && of_port.contains("/first 5 B in "), "{of_port}");
    let transfer = of_sessions.iter().find(|line| line["event"] == "transfer").unwrap();
    assert_eq!(transfer["arrival"], arrival, "{transfer}");
    assert!(transfer["initiator_port"].is_u64(), "{transfer}");
    for (options, count) in [
        (&["--direction", "up"][..], 3),
        (&["--direction", "down"], 0),
        (&["--verb", "stor", "--since", opened["time"].as_str().unwrap()], 3),
        (&["--until", "yesterday"], 0),
        (&["--failed"], 0),
        (&["--kind", "stopped"], 1),
        (&["--session", "2", "--kind", "transfer"], 1),
    ] {
        assert_eq!(found(&gateway, &file, options).lines().count(), count, "{options:?}\n{text}");
    }
    // As `zcat FILE.gz | ftp-alg events -`.
    let line = format!("gzip -c {0:?} | zcat | {1:?} events - --verb STOR", file, executable());
    let piped = gateway.lab.gateway.run("sh", &["-c", &line]).unwrap().stdout_text();
    assert_eq!(piped, found(&gateway, &file, &["--verb", "STOR"]));
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
    wait_for("the first", || found(&gateway, &file, &["--kind", "transfer"]).contains("/before "));
    fs::rename(&file, &old).unwrap();
    signal(&gateway.daemon, "HUP");
    wait_for("the new file", || file.exists());
    upload(&gateway, &server, "after");
    wait_for("the second", || found(&gateway, &file, &["--kind", "transfer"]).contains("/after "));
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
    wait_for("the transfer", || found(&gateway, &file, &["--verb", "STOR"]).contains("/moved "));
    let steps = (login_as(server.login()), vec![say("PASV"), reply(), gate()]);
    let held = hold(&gateway.lab, steps);
    wait_for("the pinhole", || {
        found(&gateway, &file, &["--kind", "announcement"]).lines().count() == 2
    });
    let text = found(&gateway, &file, &["--open"]);
    let [moved, waits] = &text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
    let user = server.login().0;
    assert!(
        moved.contains(&format!(" #1 {user}@192.168.150.80 PASV: 192.168.150.80 to ")),
        "{text}"
    );
    assert!(
        moved.contains("/moved 5 B in ") && waits.contains("no event says that it was closed"),
        "{text}"
    );
    let row: Value =
        serde_json::from_str(found(&gateway, &file, &["--open", "--json"]).lines().next().unwrap())
            .unwrap();
    let (opened, closed) = (row["opened"].as_str().unwrap(), row["closed"].as_str().unwrap());
    assert!(opened <= closed && row["arrival"] == row["target"], "{row}");
    let arrival = row["arrival"].as_str().unwrap();
    // It was open before the span, and ends in it.
    for (options, count) in [
        (&["--open", "--since", closed][..], 2),
        (&["--open", "--until", closed, "--port", arrival], 1),
        (&["--open", "--until", opened], 0),
        (&["--open", "--client", "192.168.150.0/24"], 2),
        (&["--open", "--session", "9"], 0),
    ] {
        assert_eq!(found(&gateway, &file, options).lines().count(), count, "{options:?}\n{text}");
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
    let has_warning = || {
        let status = gateway.daemon.status().unwrap();
        status["warnings"].as_array().unwrap().iter().any(|one| one["name"] == "event-file")
    };
    wait_for("the warning", has_warning);
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
    for (nth, second) in [2, 1, 5].into_iter().enumerate() {
        let time = format!("2026-11-30T10:00:0{second}.000000Z");
        let event = json!({"time": time, "event": "ready", "text": format!("{nth}")});
        writeln!(pipe, "{event}").unwrap();
        let mut line = String::new();
        printed.read_line(&mut line).unwrap();
        assert_eq!(line, format!("{time} {nth}\n"));
    }
    drop(pipe);
    assert!(events.wait().unwrap().success());
}

#[test]
fn what_is_no_file_of_events_has_a_clear_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    let name = file.display();
    let gzip = format!("{name} is compressed with gzip: zcat {name} | ftp-alg events -\n");
    let mixed = b"{\"event\": 7}\n{\"event\": \"ready\"}\n\n\xff\nno event\n{\"event\": \"ready\"}";
    for (content, options, code, said) in [
        (None, &[][..], 1, "/file: No such file or directory"),
        (Some(&mixed[..]), &[], 0, "file: 3 lines are no event\n"),
        (Some(&b"no event\n"[..]), &[], 1, "file is no file of log.events\n"),
        (Some(&b"\x1f\x8b\x08 compressed"[..]), &[], 1, &gzip),
        (None, &["--since", "1h", "--until", "2h"], 2, "--until is not later than --since"),
        (None, &["--follow"], 2, "cannot be used with"),
    ] {
        if let Some(content) = content {
            fs::write(&file, content).unwrap();
        }
        let output = Command::new(PROGRAM).arg("events").arg(&file).args(options).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}: {error}");
        // A whole line is the last one.
        let is_said = if said.ends_with('\n') { str::ends_with } else { str::contains };
        assert!(is_said(&error, said), "{said}: {error}");
    }
}
