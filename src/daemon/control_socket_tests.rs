//! Tests of the control socket and its client, together and against peers that misbehave.

use std::{io::Write, net::Shutdown};

use ftp_alg_core::engine::Counters;

use super::*;
use crate::daemon::{
    config_file::ConfigTexts, control_client, snapshot::Status, status_source::fixed::FixedSource,
};

const TIMEOUT: Duration = Duration::from_secs(5);

fn source() -> FixedSource {
    FixedSource::new(Status {
        counters: Counters { packets: 5, ..Counters::default() },
        ..Status::new("nftables", Duration::from_secs(3))
    })
}

fn socket_path() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ftp-alg.sock");
    (directory, path)
}

fn serve(path: &Path) -> ControlSocket {
    let mut socket = ControlSocket::bind(path).unwrap();
    socket.serve(Arc::new(source())).unwrap();
    socket
}

#[test]
fn only_its_owner_may_use_the_socket() {
    let (_directory, path) = socket_path();
    let _socket = ControlSocket::bind(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn unknown_and_endless_requests_are_refused() {
    let (_directory, path) = socket_path();
    let _server = serve(&path);
    for (request, expected) in [
        ("exit\u{1b}", "unknown request `exit\\x1b`"),
        (&*"x".repeat(300), "more than 256 bytes"),
        ("log-level loud", "the level is one of error, warn, info, debug, trace"),
    ] {
        let error = control_client::request(&path, request, TIMEOUT).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// An operator may open the socket to users who may not read the file.
#[test]
fn others_neither_read_the_configuration_nor_change_the_log_level() {
    let answer = |request: &[u8], is_trusted: bool| {
        let answer = answer_request(request, &source(), || is_trusted).unwrap();
        String::from_utf8(answer).unwrap()
    };
    for request in [&b"config"[..], b"log-level info"] {
        assert!(answer(request, false).contains("only root and the daemon's own user"));
    }
    let texts: ConfigTexts = serde_json::from_str(&answer(b"config", true)).unwrap();
    assert_eq!(texts.in_use().unwrap().queue.number, 7);
}

#[test]
fn a_silent_client_does_not_block_others() {
    let (_directory, path) = socket_path();
    let _server = serve(&path);
    let _silent = UnixStream::connect(&path).unwrap();
    let mut half = UnixStream::connect(&path).unwrap();
    half.write_all(b"stat").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    control_client::request(&path, "status", TIMEOUT).unwrap();
}

#[test]
fn a_live_daemons_socket_is_left_alone() {
    let (_directory, path) = socket_path();
    let _server = serve(&path);
    let error = ControlSocket::bind(&path).unwrap_err();
    assert!(matches!(error, ControlError::InUse { .. }), "{error}");
    control_client::request(&path, "status", TIMEOUT).unwrap();
}

#[test]
fn a_start_waits_while_an_ending_daemons_backlog_is_full() {
    let (_directory, path) = socket_path();
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let _pending = UnixStream::connect(&path).unwrap();
    assert!(ControlSocket::check(&path, |_| false).is_ok());
    let start = thread::spawn({
        let path = path.clone();
        move || ControlSocket::bind(&path)
    });
    thread::sleep(Duration::from_millis(100));
    assert!(!start.is_finished());
    drop(socket);
    start.join().unwrap().unwrap();
}

#[test]
fn a_file_that_is_not_a_socket_is_never_removed() {
    let (_directory, path) = socket_path();
    fs::write(&path, "precious").unwrap();
    let error = ControlSocket::bind(&path).unwrap_err();
    assert!(matches!(error, ControlError::NotASocket { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn the_server_removes_its_name_unless_it_is_another_sockets() {
    let (_directory, path) = socket_path();
    drop(serve(&path));
    assert!(!path.exists());
    let first = serve(&path);
    fs::remove_file(&path).unwrap();
    let _second = serve(&path);
    drop(first);
    control_client::request(&path, "status", TIMEOUT).unwrap();
}

#[test]
fn a_connection_that_ends_without_an_answer_is_made_again() {
    let (_directory, path) = socket_path();
    let server = ControlSocket::bind(&path).unwrap();
    thread::scope(|scope| {
        let answer = scope.spawn(|| control_client::request(&path, "status", TIMEOUT));
        // On a busy machine the daemon may have found the first one too slow.
        drop(server.listener.accept().unwrap());
        let (stream, _) = server.listener.accept().unwrap();
        answer_client(&stream, &source()).unwrap();
        assert!(answer.join().unwrap().unwrap().json().contains("\"packets\":5"));
    });
}
