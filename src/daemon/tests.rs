//! Tests of a worker's end, and of the state directory's owner.

use super::*;

#[test]
fn a_worker_that_ends_by_itself_ends_the_daemon() {
    let (sender, events) = mpsc::channel();
    let work = || Err("the queue is gone".into());
    let what = "the worker of queue 2100";
    threads::start_thread("queue-2100", what, sender, work).unwrap().join().unwrap();
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
