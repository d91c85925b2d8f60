//! What `status`, `sessions` and `pinholes` show of a gateway that works.

use crate::common::*;

#[test]
fn all_totals_begin_with_the_daemon() {
    let Some(mut gateway) = fast_path_gateway(Topology::Routed) else { return };
    let _server = scripted_server(&gateway.lab.server, &json!({"body": "here it is\r\n"}));
    let transfers = vec![passive_transfer("PASV"); 3];
    let steps = (login(), &transfers, gate(), &transfers, gate(), &transfers);
    let client = until_on_fast_path(&gateway, ("lines", 1), || hold(&gateway.lab, &steps));
    gateway.daemon.kill();
    gateway.start_again(FAST_PATH);
    let status = gateway.daemon.status().unwrap();
    for name in ["lines", "opened", "admitted", "handed_back", "no_room"] {
        assert_eq!(status["fast_path"][name], 0, "{name}: {status}");
    }
    for name in ["fast_path_lines", "pinholes_opened", "sessions_started"] {
        assert_eq!(status[name], 0, "{name}: {status}");
    }
    client.release().ok();
    wait_for("six transfers", || gateway.count("pinholes_opened") == 6);
    assert!(fast_path(&gateway.daemon)["lines"].as_u64().unwrap() > 0);
}

#[test]
fn a_session_in_detail_with_a_running_transfer() {
    let lab = lab_for(Topology::Masquerade, "");
    // Buffers in which the file has no room, so the transfer lasts until the client reads it.
    for (host, key) in [(&lab.client, "net.ipv4.tcp_rmem"), (&lab.server, "net.ipv4.tcp_wmem")] {
        host.run("sysctl", &["-qw", &format!("{key}=4096 4096 4096")]).unwrap();
    }
    let gateway = Gateway::on(lab, "queue.fast-path = \"off\"\n");
    let _server = scripted_server(&gateway.lab.server, &json!({"body": "x".repeat(60_000)}));
    let start = ["PASV", "RETR half.csv"].map(ask);
    let steps = (login(), start, gate(), [dial(), gate(), drain(), reply()]);
    let mut client = hold(&gateway.lab, steps);
    let id = gateway.daemon.sessions().unwrap()[0]["id"].clone();
    let ask = |words: &str| {
        let words: Vec<_> = words.split(' ').collect();
        gateway.daemon.ask(&words).unwrap().success().unwrap().stdout_text()
    };
    let detail = || -> Value {
        serde_json::from_str(&ask(&format!("sessions --session {id} --json"))).unwrap()
    };
    let session = detail();
    for (field, expected) in [
        ("/id", id.clone()),
        ("/user", json!("lab")),
        ("/state", json!("logged-in")),
        ("/encrypted", json!(false)),
        ("/fast_path", json!(false)),
        ("/directory", Value::Null),
        ("/transfer/verb", json!("RETR")),
        ("/transfer/path", json!("half.csv")),
        ("/transfer/started", json!(true)),
        ("/data_connection/pending", json!(true)),
        ("/data_connection/kind", json!("PASV")),
        ("/data_connection/initiator", json!("192.168.150.80")),
    ] {
        assert_eq!(session.pointer(field), Some(&expected), "{field}: {session}");
    }
    let pinholes = session["pinholes"].as_array().unwrap();
    assert_eq!((pinholes.len(), &pinholes[0]["session"]), (1, &id), "{session}");
    let events = session["events"].as_array().unwrap();
    let kinds: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["session-started", "login", "announcement"], "{session}");
    // The options reach the daemon's rows.
    let target = pinholes[0]["target"].as_str().unwrap();
    for (words, is_found) in [
        (format!("pinholes --port {target} --user lab --client 192.168.0.0/16"), true),
        ("pinholes --port 1".to_owned(), false),
        ("sessions --client 192.168.150.0/24 --sort age --reverse".to_owned(), true),
        ("sessions --user eve".to_owned(), false),
    ] {
        assert_eq!(ask(&format!("{words} --json")) != "[]\n", is_found, "{words}");
    }
    client.open_gate();
    let has_arrived = || detail()["data_connection"]["pending"] == false;
    wait_for("the data connection", has_arrived);
    let row = &gateway.daemon.sessions().unwrap()[0];
    assert_eq!((&row["transfer"]["verb"], &row["pinholes"]), (&json!("RETR"), &json!(0)), "{row}");
    client.release().ok();
    wait_for("its end", || gateway.daemon.sessions().unwrap().is_empty());
    let gone = gateway.daemon.ask(&["sessions", "--session", &id.to_string()]).unwrap();
    assert_fails(&gone, 1, &format!("`ftp-alg events --session {id}`"));
}

/// Starts an upload of so many bytes that does not end.
fn endless_upload(gateway: &Gateway, mode: Mode, bytes: usize) -> BackgroundProcess {
    let upload = format!(
        "import ftplib, time\n\
         ftp = ftplib.FTP('{}', 'lab', 'lab', timeout=60)\n\
         ftp.set_pasv({})\n\
         data = ftp.transfercmd('STOR /pub/q3.csv')\n\
         data.sendall(bytes({bytes}))\n\
         time.sleep(3600)\n",
        gateway.lab.server_address(V4),
        if mode == Mode::Passive { "True" } else { "False" },
    );
    let mut command = gateway.lab.client.command("/usr/bin/python3");
    command.args(["-c", &upload]);
    gateway.lab.client.start(command, &format!("upload-{mode}")).unwrap()
}

#[test]
fn a_running_transfer_has_its_bytes_and_a_rate_where_conntrack_counts() {
    const BYTES: usize = 200_000;
    let lab = lab_for(Topology::Masquerade, "");
    lab.gateway.run("sysctl", &["-qw", "net.netfilter.nf_conntrack_acct=1"]).unwrap();
    let gateway = Gateway::on(lab, "");
    let _server = scripted_server(&gateway.lab.server, &json!({}));
    for mode in MODES {
        let upload = endless_upload(&gateway, mode, BYTES);
        let row = || gateway.daemon.sessions().unwrap().first().cloned().unwrap_or_default();
        let bytes = || row()["transfer"]["bytes"].as_u64().unwrap_or(0) as usize;
        // Conntrack counts what is retransmitted as well.
        let is_right = || (BYTES - BYTES / 50..2 * BYTES).contains(&bytes());
        wait_for(&format!("{mode}: the bytes"), is_right);
        let rate = || row()["transfer"]["bytes_per_second"].as_f64().unwrap();
        assert!(rate() > 0.0, "{}", row());
        wait_for("a rate of 0, because nothing comes any more", || rate() == 0.0);
        let running = &gateway.daemon.status().unwrap()["running"];
        assert_eq!((&running["transfers"], &running["bytes_down"]), (&json!(1), &json!(0)));
        assert_eq!(running["bytes_up"], row()["transfer"]["bytes"], "{running}");
        drop(upload);
        wait_for("its end", || gateway.daemon.sessions().unwrap().is_empty());
    }
}

#[test]
fn a_list_has_the_columns_and_colours_of_its_terminal() {
    let (gateway, _server) = served(Topology::Masquerade, "", json!({}));
    let client = hold(&gateway.lab, (login(), gate()));
    let (program, socket) = (executable(), gateway.daemon.socket());
    let words = format!("{} sessions --socket {}", program.display(), socket.display());
    let shown = |line: &str| gateway.lab.gateway.shell(line).unwrap().stdout_text();
    for (columns, has_transfer) in [(80, false), (120, true)] {
        let line = format!("script -qec 'stty cols {columns}; {words}' /dev/null < /dev/null");
        let text = shown(&line);
        assert!(text.contains('\x1b') && text.contains("USER"), "{text:?}");
        assert_eq!(text.contains("TRANSFER"), has_transfer, "{text:?}");
    }
    let piped = shown(&words);
    assert!(!piped.contains('\x1b') && piped.lines().count() == 2, "{piped:?}");
    client.release().ok();
}
