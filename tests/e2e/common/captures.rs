//! Captures on both sides of the gateway.

use ftp_alg_lab::{Capture, CaptureAnalysis, Lab};

/// Captures on both sides of the gateway: towards the client, towards the server.
pub fn captures(lab: &Lab) -> (Capture, Capture) {
    let start = |side| Capture::start(&lab.gateway, side, "tcp").unwrap();
    (start(lab.client_side()), start(lab.server_side()))
}

/// The result of `play`, and what [`captures`] saw of it. It is repeated at most twice while there are retransmission
/// time-outs: one that the gateway causes comes each time, one of a busy machine does not.
#[track_caller]
pub fn captured<T>(
    lab: &Lab,
    mut play: impl FnMut() -> T,
) -> (T, CaptureAnalysis, CaptureAnalysis) {
    let mut timeouts = Vec::new();
    for _ in 0..3 {
        let (client_side, server_side) = captures(lab);
        let result = play();
        let sides = [client_side, server_side].map(|side| side.finish().unwrap());
        for side in &sides {
            assert_eq!(side.faults().unwrap(), [""; 0], "{}", side.path().display());
        }
        let now = sides.each_ref().map(|side| side.timeouts().unwrap());
        if now.concat().is_empty() {
            let [client_side, server_side] = sides;
            return (result, client_side, server_side);
        }
        timeouts.push(now);
    }
    panic!("time-outs each time: {timeouts:#?}");
}
