//! Tests of a reload, of a worker's end, and of the state directory's owner.

use super::*;

/// Reads the configuration again in a daemon with the default configuration, with `text` in the configuration file.
fn load_again_with(text: &str) -> Result<Config, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ftp-alg.toml");
    fs::write(&file, text).unwrap();
    load_again(&options_with(&file), &Config::default())
}

fn options_with(file: &Path) -> DaemonOptions {
    DaemonOptions {
        config: Some(file.to_owned()),
        state_dir: file.with_file_name("state"),
        socket: file.with_file_name("socket"),
        user: None,
        takeover: false,
        log_level: None,
    }
}

#[test]
fn an_invalid_new_configuration_is_refused() {
    let twice = "[[network]]\nclients = \"10.0.0.0/8\"\n".repeat(2);
    for text in ["pinhole.timeout = 5", "metrics.listen = \"127.0.0.1:0\"", &twice] {
        assert!(load_again_with(text).is_err(), "{text}");
    }
}

#[test]
fn a_refused_reload_is_a_problem_of_one_line_with_the_file() {
    let error = load_again_with("control-ports = []\npinhole.timeout = 5").unwrap_err();
    let Problem { name, text, remedy, .. } =
        refused_reload(&options_with(Path::new("/etc/here.toml")), &error);
    assert_eq!(name, "config");
    assert!(text.contains("ftp-alg.toml:1:") && text.ends_with(" (and 1 more)"), "{text}");
    assert!(!text.contains('\n') && remedy.contains("ftp-alg check /etc/here.toml"), "{remedy}");
}

#[test]
fn a_reload_changes_all_but_the_fixed_keys() {
    let config =
        load_again_with("pinhole.timeout = \"5s\"\nqueue.workers = 8\nmetrics.listen = 9821")
            .unwrap();
    assert_eq!(config.metrics, Config::default().metrics);
    assert_eq!(config.queue, Config::default().queue);
    assert_eq!(config.pinhole.timeout, Duration::from_secs(5));
}

#[test]
fn a_worker_that_ends_by_itself_ends_the_daemon() {
    let (sender, events) = mpsc::channel();
    let (name, what) = ("queue-2100".to_owned(), "the worker of queue 2100".to_owned());
    let work = || Err("the queue is gone".into());
    threads::start_thread(name, what, sender, work).unwrap().join().unwrap();
    let outcome = handle_events(&events, |_| {});
    let why = "the worker of queue 2100 ended: the queue is gone";
    assert_eq!(outcome.unwrap_err().to_string(), why);
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
