//! A full set of the packet selection: the daemon manages without the element, and counts that.

use super::scene::{PORT, fill};
use crate::common::*;

#[test]
fn a_close_is_detected_although_the_closing_set_is_full() {
    // The fast path does not use the closing set.
    let lab = Lab::new(Topology::Routed).unwrap();
    let configuration = "queue.fast-path = \"off\"\n";
    let daemon =
        Daemon::start(&executable_without_owner(&lab), &lab.gateway, configuration).unwrap();
    let _server = scripted_server(&lab.server, &json!({}));
    let client = hold(&lab, (login(), ask(PORT), gate()));
    assert_eq!(daemon.open_pinholes().unwrap().len(), 1);
    fill(&lab, "closing", 65_536);
    assert_eq!(client.release().error, None);
    daemon.wait_for_no_pinholes(Duration::from_secs(10)).unwrap();
    let status = daemon.status().unwrap();
    assert!(status["limits"]["closing_set"].as_u64().unwrap() > 0);
}
