//! A control connection that reuses the tuple of one whose ends vanished without a packet. Conntrack still has the old
//! entry, but the new connection must be inspected.

use std::process::Command;

use super::scene::{fill, with_each_back_end};
use crate::common::*;

/// The ends of the connection. `server GONE` closes a connection without a packet after the line `GONE`, and then
/// creates the file GONE. `client GONE ADDRESS FIRST` says the line FIRST, waits for that file, vanishes, connects again
/// from the same port and makes a passive transfer.
const ENDS: &str = r#"
import os, re, socket, sys, time
role, gone, *rest = sys.argv[1:]

def vanish(connection, lines):
    connection.setsockopt(socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR: it ends without a packet
    lines.close()
    connection.close()

if role == "server":
    listener = socket.create_server(("0.0.0.0", 21))
    while True:
        connection, _ = listener.accept()
        data = socket.create_server(("0.0.0.0", 0))
        port, own = data.getsockname()[1], connection.getsockname()[0]
        announcement = "227 Passive (%s,%d,%d)" % (own.replace(".", ","), port >> 8, port & 255)
        replies = {"USER": "331 word?", "PASS": "230 in", "PASV": announcement}
        connection.sendall(b"220 ready\r\n")
        lines = connection.makefile("r")
        for line in lines:
            if line.startswith("GONE"):
                vanish(connection, lines)
                open(gone, "w").close()
                break
            connection.sendall((replies.get(line[:4], "200 fine") + "\r\n").encode())
            if line.startswith("PASV"):
                data.settimeout(9)
                data.accept()[0].sendall(b"whole")
    sys.exit()

address, first = rest

def dial():
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.bind(("0.0.0.0", 2021))
    connection.settimeout(9)
    connection.connect((address, 21))
    lines = connection.makefile("r")
    lines.readline()
    def say(line):
        connection.sendall((line + "\r\n").encode())
        return lines.readline()
    say("USER lab")
    say("PASS lab")
    return connection, lines, say

connection, lines, say = dial()
for line in 4 * [first]:
    say(line)
connection.sendall(b"GONE\r\n")
while not os.path.exists(gone):
    time.sleep(0.02)
vanish(connection, lines)
connection, lines, say = dial()
numbers = re.findall(r"\d+", say("PASV").split("(")[1])
with socket.create_connection((".".join(numbers[:4]), int(numbers[4]) * 256 + int(numbers[5])), 9) as data:
    print(data.recv(9).decode())
"#;

fn ends(lab: &Lab, host: &Host, role: &str, arguments: &[&str]) -> Command {
    let script = host.write("tuple_reuse.py", ENDS.as_bytes()).unwrap();
    let mut command = host.command("/usr/bin/python3");
    command.arg(script).arg(role).arg(lab.server.directory().join("gone")).args(arguments);
    command
}

fn start_server(lab: &Lab) -> BackgroundProcess {
    let server = ends(lab, &lab.server, "server", &[]);
    let server = lab.server.start(server, "tuple-reuse-server").unwrap();
    lab.server.wait_for_port(21, Duration::from_secs(60)).unwrap();
    server
}

/// The client's final output.
fn client_output(lab: &Lab, first: &str) -> String {
    let address = lab.server_address(V4).to_string();
    let client = ends(lab, &lab.client, "client", &[&address, first]);
    let finished = lab.client.finish(client, b"", Duration::from_secs(20)).unwrap();
    finished.stdout_text().trim().to_owned() + &finished.stderr_text()
}

#[test]
fn a_control_connection_on_a_reused_tuple_is_inspected() {
    // The first session is on the fast path. The second one has a sequence adjustment, so all its packets are queued.
    for first in ["NOOP", "PORT 192,168,150,80,14,178"] {
        with_each_back_end(|back_end| {
            let gateway = gateway_with(Topology::Masquerade, back_end);
            let _server = start_server(&gateway.lab);
            assert_eq!(client_output(&gateway.lab, first), "whole", "{back_end} {first}");
            let sessions = gateway.daemon.sessions().unwrap();
            assert!(sessions.iter().any(|session| session["id"] != 1), "{back_end} {first}");
        });
    }
}

/// If the set has no room for the tuple, the SYN is not answered until there is room.
#[test]
fn a_syn_waits_if_the_reused_tuples_set_is_full() {
    let lab = Lab::new(Topology::Masquerade).unwrap();
    let _daemon = Daemon::start(&executable_without_owner(&lab), &lab.gateway, "").unwrap();
    let _server = start_server(&lab);
    fill(&lab, "reused_tuples", 65_536);
    let start = Instant::now();
    let end = thread::scope(|scope| {
        let client = scope.spawn(|| client_output(&lab, "NOOP"));
        thread::sleep(Duration::from_millis(2500));
        assert!(!client.is_finished());
        lab.gateway.nft("flush set inet ftp_alg reused_tuples").unwrap();
        client.join().unwrap()
    });
    assert_eq!(end, "whole", "after {:?}", start.elapsed());
}
