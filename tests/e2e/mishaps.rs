//! What happens around the daemon: queues that overflow, links that go down, a connection tracker that
//! forgets. All of it is repaired or reported, never silent. What others do to our table is in
//! `lifecycle`, and how the daemon's own end is survived in `restart`.

use crate::common::*;

/// The packets for which there was no room in the queues of `host`, as `nfnetlink_queue` counts them.
fn dropped_packets(host: &Host) -> u64 {
    let path = "/proc/thread-self/net/netfilter/nfnetlink_queue";
    let queues = host.inside(|| fs::read_to_string(path)).unwrap().unwrap();
    // The number, the reader, the length, the copy mode and its range come before.
    let dropped = queues.lines().map(|queue| queue.split_whitespace().nth(5).unwrap());
    dropped.map(|count| count.parse::<u64>().unwrap()).sum()
}

#[test]
fn packets_that_a_full_queue_drops_are_counted_and_reported() {
    let gateway = gateway(Topology::Masquerade);
    let lab = &gateway.lab;
    let [host, own] = [lab.server_address(V4), lab.client.address(V4)].map(|at| at.to_string());
    let flood = [&*host, "21", "20000", "20000", &own];
    // A flood that takes longer than the heartbeat's deadline is not queued.
    wait_for("dropped packets", || {
        signal(&gateway.daemon, "STOP");
        lab.client.script(Script::Flood, &flood, Duration::from_secs(60)).unwrap();
        let are_dropped = dropped_packets(&lab.gateway) > 0;
        signal(&gateway.daemon, "CONT");
        are_dropped
    });
    wait_for("the count", || gateway.count("overruns") > 0);
    let line = " was full: the kernel dropped";
    wait_for("the line in the log", || gateway.daemon.log().contains(line));
    // On a busy machine a flood outlasts the heartbeat, and packets pass unread until it is renewed.
    wait_for("the heartbeat", || {
        let listed = lab.gateway.shell("nft list set inet ftp_alg heartbeat").unwrap();
        listed.stdout_text().contains("expires")
    });
    let _server = scripted_server(&lab.server, &json!({}));
    assert_eq!(talk(lab, (login(), port_transfer())).error, None);
}

#[test]
fn a_link_that_goes_down_and_comes_back_is_no_end() {
    let (gateway, _server) = served(Topology::Masquerade, "", json!({}));
    let lab = &gateway.lab;
    // The kernel forgets what it masqueraded over the link; the first announcement after that may be
    // refused, as its translation is not known.
    let again = ask("PORT 192,168,150,80,14,178");
    let client = hold(lab, (login(), port_transfer(), gate(), again, port_transfer()));
    for state in ["down", "up"] {
        lab.gateway.run("ip", &["link", "set", lab.server_side(), state]).unwrap();
        thread::sleep(Duration::from_millis(300));
    }
    let session = client.release().ok();
    assert!(session.got(13).starts_with("200") || session.got(13).starts_with("425"));
    assert_eq!(session.got(18), "the body\r\n");
}

#[test]
fn a_translated_pinhole_opens_without_a_free_descriptor() {
    // The fast path lists the interfaces each second, for which it needs a descriptor.
    let setup = "queue.fast-path = \"off\"\n";
    let (gateway, _server) = served(Topology::Masquerade, setup, json!({}));
    let lab = &gateway.lab;
    let client = hold(lab, (login(), gate(), port_transfer(), port_transfer()));
    let id = gateway.daemon.id().to_string();
    lab.gateway.run("prlimit", &["--pid", &id, "--nofile=3:"]).unwrap();
    let session = client.release();
    lab.gateway.run("prlimit", &["--pid", &id, "--nofile=1024:"]).unwrap();
    let log = gateway.daemon.log();
    assert_eq!(session.error, None, "{log}");
    assert_eq!(log.matches("cannot look whether a program here has bound").count(), 1, "{log}");
    gateway.assert_tidy();
}

/// Removes the link between the gateway and the host `outside`, and makes it again with the same addresses and routes, as
/// one that is dialled again.
fn make_link_again(gateway: &Host, outside: &Host) {
    let ends = [(gateway, "wan"), (outside, "eth0")];
    let restore = ends.map(|(host, name)| {
        let lines = format!(
            "ip -4 -o address show dev {name} | awk '{{print \"address add\", $4, \"dev {name}\"}}'\n\
             ip -4 route show dev {name} | sed '/proto kernel/d; s/.*/route add & dev {name}/'"
        );
        host.shell(&lines).unwrap().stdout_text()
    });
    // They are ends of one cable if this is not the first time.
    for (host, name) in ends {
        host.shell(&format!("ip link delete {name} || true")).unwrap();
    }
    let add = "ip link add wan type veth peer name eth0 netns";
    gateway.shell(&format!("{add} {}", outside.namespace())).unwrap();
    for ((host, name), lines) in ends.into_iter().zip(restore) {
        host.shell(&format!("ip -batch - << EOF\nlink set {name} up\n{lines}\nEOF")).unwrap();
    }
}

/// SYNs arrive by the new link, in active mode or, at a published server, in passive mode.
#[test]
fn a_link_that_is_made_again_costs_no_data_connection() {
    for topology in [Topology::Masquerade, Topology::PublishedServer] {
        let Some(gateway) = fast_path_gateway(topology) else { return };
        let lab = &gateway.lab;
        let outside = if topology == Topology::PublishedServer { &lab.client } else { &lab.server };
        // So that a SYN is not dropped and retransmitted.
        lab.gateway.nft("add rule inet gateway forward reject with tcp reset").unwrap();
        // A server that takes zeros, so that the program opens for PORT.
        let plan = json!({"body": "here it is\r\n", "greeting": "220 (vsFTPd 3.0.3)"});
        let _server = scripted_server(&lab.server, &plan);
        let address = lab.client.address(V4);
        let both = |port| [active_transfer(address, port), passive_transfer("PASV")];
        let steps = (login(), both(1025), gate(), both(2050), both(2051), ask("QUIT"));
        let old = until_on_fast_path(&gateway, ("admitted", 2), || hold(lab, &steps));
        make_link_again(&lab.gateway, outside);
        talk(lab, (login(), both(2052), both(2053))).ok_in(format!("{topology}, new session"));
        make_link_again(&lab.gateway, outside);
        old.release().ok_in(format!("{topology}, old session"));
        gateway.assert_tidy();
    }
}
