//! Tests of the main thread's events, with a service that only records its calls.

use std::cell::RefCell;

use super::*;

#[derive(Default)]
struct RecordingService(RefCell<Vec<Config>>);

impl DaemonService for RecordingService {
    fn makes_progress(&self) -> bool {
        true
    }

    fn source(&self) -> Arc<dyn StatusSource> {
        unreachable!("no control socket here")
    }
    fn reload(&self, config: &Config) {
        self.0.borrow_mut().push(config.clone());
    }
    fn update_policy(&self, _: &Config) {}
    fn maintain(&mut self) {}
}

/// Handles `events` in a daemon with the default configuration, with `text` in the configuration file.
fn handle_with_config(
    text: &str,
    events: Vec<DaemonEvent>,
) -> (Result<(), DaemonError>, Vec<Config>) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ftp-alg.toml");
    fs::write(&file, text).unwrap();
    let options = DaemonOptions {
        config: Some(file),
        state_dir: directory.path().to_owned(),
        socket: directory.path().join("socket"),
        user: None,
        takeover: false,
        log_level: None,
    };
    let (sender, receiver) = mpsc::channel();
    for event in events {
        sender.send(event).unwrap();
    }
    let mut service = RecordingService::default();
    let outcome = handle_events(&receiver, &options, Config::default(), &mut service);
    (outcome, service.0.into_inner())
}

#[test]
fn a_valid_new_configuration_is_used() {
    let (outcome, reloads) = handle_with_config(
        "pinhole.timeout = \"5s\"",
        vec![DaemonEvent::Reload, DaemonEvent::Terminate],
    );
    outcome.unwrap();
    assert_eq!(reloads.len(), 1);
    assert_eq!(reloads[0].pinhole.timeout, Duration::from_secs(5));
}

#[test]
fn an_invalid_new_configuration_leaves_the_old_one_in_use() {
    for text in ["pinhole.timeout = 5", "metrics.listen = \"127.0.0.1:1\""] {
        let (outcome, reloads) =
            handle_with_config(text, vec![DaemonEvent::Reload, DaemonEvent::Terminate]);
        outcome.unwrap();
        assert!(reloads.is_empty(), "{text}");
    }
}

#[test]
fn fixed_keys_retain_their_values_at_a_reload() {
    let text = "pinhole.timeout = \"5s\"\nqueue.workers = 8";
    let (outcome, reloads) = handle_with_config(
        text,
        vec![DaemonEvent::Reload, DaemonEvent::Reload, DaemonEvent::Terminate],
    );
    outcome.unwrap();
    for config in reloads {
        assert_eq!(config.queue, Config::default().queue);
        assert_eq!(config.pinhole.timeout, Duration::from_secs(5));
    }
}

#[test]
fn a_worker_that_ends_by_itself_ends_the_daemon() {
    let (outcome, _) =
        handle_with_config("", vec![DaemonEvent::Failed("queue 2100 is gone".into())]);
    assert_eq!(outcome.unwrap_err().to_string(), "queue 2100 is gone");
}

#[test]
fn only_the_daemons_user_may_write_to_the_state_directory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b");
    make_state_dir(&path, None).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    make_state_dir(&path, None).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).unwrap();
    let error = make_state_dir(&path, None).unwrap_err().to_string();
    assert!(error.contains("may be written by others (mode 1777)"), "{error}");
    let nobody = Account { name: "nobody".into(), uid: 65534, gid: 65534 };
    let error = make_state_dir(&path, Some(&nobody)).unwrap_err().to_string();
    assert!(error.contains("belongs to user 0, but the daemon runs as user 65534"), "{error}");
    let path = directory.path().join("c");
    make_state_dir(&path, Some(&nobody)).unwrap();
    let error = make_state_dir(&path, None).unwrap_err().to_string();
    assert!(error.contains("belongs to user 65534"), "{error}");
}
