//! The fast path of a daemon, and sessions that use it.

use super::*;

/// What `ftp-alg status` says of the fast path.
pub fn fast_path(daemon: &Daemon) -> Value {
    daemon.status().unwrap()["fast_path"].clone()
}

/// A gateway whose fast path is on; nothing where the kernel cannot have it.
pub fn fast_path_gateway(topology: Topology) -> Option<Gateway> {
    if !has_tcx() {
        return None;
    }
    let gateway = gateway_with(topology, FAST_PATH);
    let state = fast_path(&gateway.daemon);
    assert_eq!(state["state"], "on", "{state}");
    Some(gateway)
}

/// Starts sessions, one after the other, until the number `name` of the [fast path](fast_path) is greater by `more`
/// after a start. On a busy machine a retransmission hands a connection back to the queue.
#[track_caller]
pub fn until_on_fast_path<T>(
    gateway: &Gateway,
    (name, more): (&str, u64),
    start: impl Fn() -> T,
) -> T {
    let daemon = &gateway.daemon;
    let count = || fast_path(daemon)[name].as_u64().unwrap();
    let mut started = None;
    wait_for(&format!("a session with {name} {more}"), || {
        drop(started.take());
        wait_for("the session's end", || daemon.sessions().unwrap().is_empty());
        daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
        let before = count();
        started = Some(start());
        count() >= before + more
    });
    started.unwrap()
}
