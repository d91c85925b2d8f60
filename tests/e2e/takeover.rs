//! A second daemon in a network namespace: it does not start and the first lives, or it takes over.

use std::os::unix::{
    fs::{PermissionsExt, chown},
    net::UnixListener,
    process::ExitStatusExt as _,
};

use crate::common::*;

const OTHER_QUEUE: &str = "queue.number = 2200\n";

/// A client whose announcement is rewritten twice, and which waits at its gate in between.
fn adjusted_client(gateway: &Gateway) -> GatedClient {
    let client = hold(&gateway.lab, (login(), port_transfer(), gate(), port_transfer()));
    assert_eq!(gateway.daemon.sessions().unwrap()[0]["adjusted"], json!(true));
    client
}

fn assert_goes_on(gateway: &Gateway, client: GatedClient, what: &str) {
    let session = client.release().ok_in(what);
    assert_eq!(session.got(16), "the body\r\n", "{what}");
    assert_eq!(gateway.lab.gateway.invalid_packets().unwrap(), 0, "{what}");
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Where a second daemon may have its files, anyone who it is.
fn elsewhere(gateway: &Gateway) -> [String; 2] {
    let home = gateway.lab.directory().join("elsewhere");
    fs::create_dir_all(&home).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o777)).unwrap();
    [text(&home.join("state")), text(&home.join("socket"))]
}

#[test]
fn a_second_daemon_does_not_start_and_the_first_lives() {
    let (gateway, _server) = served(Topology::Masquerade, "", json!({}));
    let client = adjusted_client(&gateway);
    let program = executable_for_everyone(&gateway.lab);
    let [other_state, socket] = elsewhere(&gateway);
    let first = gateway.daemon.socket();
    let (first_state, first_socket) = (text(&first.with_file_name("state")), text(&first));
    // With their handles, which a table that is loaded again has not.
    let tables =
        || gateway.lab.gateway.run("nft", &["-j", "list", "tables"]).unwrap().stdout_text();
    let running = tables();
    let expected = format!(
        "already, process {}, which reads queue 2100: `ftp-alg run --takeover` ends it",
        gateway.daemon.id()
    );
    // Without root it cannot see whose the queues are.
    let caps = "-all,+net_admin,+net_raw";
    let without_root = [&AS_NOBODY[..], &["--inh-caps", caps, "--ambient-caps", caps]].concat();
    let unseen = "`ftp-alg run --takeover`";
    let expected = expected.as_str();
    for (state, socket, user, configuration, under, expected) in [
        (&first_state, &first_socket, "", "", &[][..], expected),
        (&other_state, &first_socket, "", OTHER_QUEUE, &[], expected),
        (&first_state, &socket, "", "", &[], expected),
        (&other_state, &socket, "", "", &[], expected),
        (&other_state, &socket, "", OTHER_QUEUE, &[], expected),
        (&other_state, &socket, "nobody", "", &[], expected),
        (&other_state, &socket, "nobody", OTHER_QUEUE, &[], expected),
        (&other_state, &socket, "", "", &without_root, unseen),
        (&other_state, &socket, "", OTHER_QUEUE, &without_root, unseen),
    ] {
        let _ = fs::remove_dir_all(&other_state);
        let mut words = vec!["--state-dir", state, "--socket", socket];
        if !user.is_empty() {
            words.extend(["--user", user]);
        }
        let done = run_another(&gateway.lab, under, &program, &words, configuration);
        assert_eq!(done.status.code(), Some(1), "{words:?}: {}", done.stderr_text());
        assert!(done.stderr_text().contains(expected), "{words:?}: {}", done.stderr_text());
        // One error, and no other advice.
        let said = done.stderr_text();
        assert_eq!(said.lines().filter(|line| line.starts_with("ftp-alg: ")).count(), 1, "{said}");
        assert_eq!(tables(), running, "{words:?}");
    }
    assert_eq!(gateway.count("errors"), 0, "{}", gateway.daemon.log());
    assert_goes_on(&gateway, client, "after the others");
}

/// Starts `ftp-alg run --takeover` with these words, and waits until it is ready.
fn takeover(gateway: &Gateway, words: &[&str], socket: &str) -> BackgroundProcess {
    let program = executable_for_everyone(&gateway.lab);
    let words = [&["--takeover", "--socket", socket][..], words].concat();
    let command = another_daemon(&gateway.lab, &[], &program, &words, "");
    let mut second = gateway.lab.gateway.start(command, "second").unwrap();
    wait_for("the second daemon", || {
        assert!(second.exit_status().is_none(), "{}", second.log());
        second.log().contains("ready: version ")
    });
    second
}

fn answer(gateway: &Gateway, what: &str, socket: &str) -> Value {
    let done = gateway.lab.gateway.try_run(executable(), &[what, "--json", "--socket", socket]);
    serde_json::from_str(&done.unwrap().success().unwrap().stdout_text()).unwrap()
}

/// A daemon that hangs does not react to SIGTERM.
#[test]
fn a_takeover_with_the_same_state_directory_goes_on_with_adjusted_sessions() {
    for (same_socket, hangs) in [(true, false), (false, false), (true, true)] {
        let (mut gateway, _server) = served(Topology::Masquerade, "", json!({}));
        let client = adjusted_client(&gateway);
        let first = gateway.daemon.socket();
        let state = text(&first.with_file_name("state"));
        let [_, other] = elsewhere(&gateway);
        let socket = if same_socket { text(&first) } else { other };
        if hangs {
            signal(&gateway.daemon, "STOP");
        }
        let mut second = takeover(&gateway, &["--state-dir", &state], &socket);
        let log = second.log();
        let ended = gateway.daemon.exit_status().unwrap();
        let expected = (!hangs, hangs.then_some(libc::SIGKILL));
        assert_eq!((ended.success(), ended.signal()), expected, "{}", gateway.daemon.log());
        assert_eq!(log.contains("gets SIGKILL"), hangs, "{log}");
        assert!(log.contains("restored 1 session (1 with sequence adjustment)"), "{log}");
        assert_eq!(answer(&gateway, "sessions", &socket)[0]["adjusted"], json!(true));
        assert_goes_on(&gateway, client, "taken over");
        assert!(second.terminate(Duration::from_secs(30)).unwrap().success());
    }
}

#[test]
fn a_takeover_from_another_place_ends_the_first_and_serves_new_sessions() {
    for user in [&[][..], &["--user", "nobody"]] {
        let (mut gateway, _server) = served(Topology::Masquerade, "", json!({}));
        let before = gateway.daemon.status().unwrap()["fast_path"]["state"].clone();
        let [state, socket] = elsewhere(&gateway);
        let words = [&["--state-dir", &*state][..], user].concat();
        let mut second = takeover(&gateway, &words, &socket);
        assert!(gateway.daemon.exit_status().unwrap().success(), "{}", gateway.daemon.log());
        talk(&gateway.lab, (login(), ask("PORT 192,168,150,80,14,178"))).ok();
        assert_eq!(answer(&gateway, "status", &socket)["rewrites"], json!(1), "{}", second.log());
        let after = || answer(&gateway, "status", &socket)["fast_path"]["state"].clone();
        wait_for("the fast path", || after() == before);
        second.terminate(Duration::from_secs(30)).unwrap();
    }
}

#[test]
fn a_takeover_that_could_not_start_ends_nothing() {
    let mut gateway = gateway(Topology::Routed);
    let program = executable_for_everyone(&gateway.lab);
    let [state, socket] = elsewhere(&gateway);
    let first = gateway.daemon.socket();
    let roots = text(&first.with_file_name("another"));
    // One that nobody owns and may not write to, one that another process has locked, and a socket that one listens on.
    let [read_only, locked] = ["read-only", "locked"].map(|name| {
        let path = Path::new(&state).with_file_name(name);
        fs::create_dir(&path).unwrap();
        path
    });
    chown(&read_only, Some(65534), None).unwrap();
    fs::set_permissions(&read_only, fs::Permissions::from_mode(0o500)).unwrap();
    let lock = fs::File::open(&locked).unwrap();
    lock.lock().unwrap();
    let taken = Path::new(&state).with_file_name("taken");
    let _listener = UnixListener::bind(&taken).unwrap();
    let [read_only, locked, taken] = [read_only, locked, taken].map(|path| text(&path));
    for (state, socket, user, expected) in [
        (&state, &roots, "nobody", "cannot make the control socket"),
        (&read_only, &socket, "nobody", "cannot use the directory"),
        (&locked, &socket, "root", "is in use by another ftp-alg"),
        (&state, &taken, "root", "a daemon is already running on"),
        (&state, &state, "root", "exists and is not a socket"),
    ] {
        let _ = fs::remove_dir_all(Path::new(&state).with_file_name("state"));
        let words = ["--takeover", "--state-dir", state, "--socket", socket, "--user", user];
        let done = run_another(&gateway.lab, &[], &program, &words, "");
        assert_eq!(done.status.code(), Some(1), "{words:?}: {}", done.stderr_text());
        assert!(done.stderr_text().contains(expected), "{words:?}: {}", done.stderr_text());
        assert_eq!(gateway.daemon.exit_status(), None, "{words:?}: {}", gateway.daemon.log());
    }
    assert!(gateway.daemon.status().is_ok());
}

/// Starts a copy of the program with this name.
fn start_as(gateway: &Gateway, name: &str) -> Daemon {
    let (host, copy) = (&gateway.lab.gateway, gateway.lab.directory().join(name));
    let program = executable_for_everyone(&gateway.lab);
    host.run("cp", &[&text(&program), &text(&copy)]).unwrap();
    let lines = format!("exec {} \"$@\"", copy.display());
    Daemon::start(&shell_program(host, "start-other", &lines), host, "").unwrap()
}

/// It is known by its control socket alone.
#[test]
fn a_takeover_ends_no_other_program_and_a_daemon_with_another_name() {
    let mut gateway = gateway(Topology::Routed);
    gateway.daemon.stop().unwrap();
    let mut first = start_as(&gateway, "alg-on");
    let socket = text(&first.socket());
    let state = text(&first.socket().with_file_name("state"));
    let program = executable_for_everyone(&gateway.lab);
    let refused = |words: &[&str], why: &str| {
        assert_fails(&run_another(&gateway.lab, &[], &program, words, ""), 1, why);
    };
    let other = format!("is read by alg-on, process {}, which is not ftp-alg", first.id());
    refused(&["--takeover"], &other);
    let already = format!("runs in this network namespace already, process {}", first.id());
    refused(&["--state-dir", &state, "--socket", &socket], &already);
    let mut second = takeover(&gateway, &["--state-dir", &state], &socket);
    assert!(first.exit_status().unwrap().success(), "{}", first.log());
    assert!(second.terminate(Duration::from_secs(30)).unwrap().success());
}
