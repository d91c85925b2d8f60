//! The fast path's BPF program, run by the kernel (`BPF_PROG_TEST_RUN`) packet by packet: which lines it lets pass,
//! and at which packets it hands the flow back.
//!
//! These tests need root. Packets are built and parsed with etherparse.

use std::net::TcpListener;

mod data;
pub mod frames;
mod ignored;
mod processors;
mod retransmitted_syns;
pub mod scene;
mod walk;

use crate::{admitted_syns, layout, model, rng};
use layout::*;
use scene::*;

#[test]
fn no_pinhole_is_opened_where_this_machine_listens() {
    let families = [
        (routed(), "127.0.0.1", ["0.0.0.0", "127.0.0.1"], "EPRT |1|10.0.0.2|"),
        (routed6(), "::1", ["::", "::1"], "EPRT |2|2001:db8:1::2|"),
    ];
    for (flow, here, bound, eprt) in families {
        let arrival = ip(here);
        let mut talk =
            Talk::new(Flow { active_arrival: arrival, passive_arrival: arrival, ..flow });
        for bound in bound {
            let listener = TcpListener::bind((ip(bound), 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let lines = [
                (Side::Server, EPSV_PENDING, format!("229 (|||{port}|)")),
                (Side::Client, READY, format!("{eprt}{port}|")),
            ];
            let mut each = |says: fn(&mut Talk, Side, &str)| {
                for (side, dialogue, line) in &lines {
                    talk.before.dialogue = *dialogue;
                    talk.hand_over();
                    says(&mut talk, *side, line);
                }
            };
            each(|talk, side, line| talk.line_hands_back(side, format!("{line}\r\n")));
            drop(listener);
            each(Talk::says);
        }
    }
    // If the announced end is this machine itself, a listener is expected.
    for (here, server, start) in
        [("127.0.0.1", SERVER.ip(), "EPRT |1|127.0.0.1|"), ("::1", SERVER6, "EPRT |2|::1|")]
    {
        let here = ip(here);
        let listener = TcpListener::bind((here, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut talk = Talk::new(between(here, here, server, server));
        talk.says(Side::Client, &format!("{start}{port}|"));
    }
}
