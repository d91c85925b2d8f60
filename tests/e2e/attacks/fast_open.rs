//! TCP Fast Open (RFC 7413): what a SYN carries is read before the server gets it.

use super::scene::with_each_back_end;
use crate::{common::*, recipes::queueing::load_queueing};

/// `ADDRESS FIRST [LINE]...` sends FIRST in its SYN, and each LINE after the replies to what precedes it. Prints all
/// replies.
const CLIENT: &str = r#"
import socket, sys
address, first, *lines = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
connection = socket.socket(family)
connection.settimeout(20)
connection.sendto(first.encode().decode("unicode_escape").encode(), socket.MSG_FASTOPEN, (address, 21))
replies = connection.makefile("r")
for _ in range(1 + first.count("\\n")):
    print(replies.readline(), end="")
for line in lines:
    connection.sendall((line + "\r\n").encode())
    print(replies.readline(), end="")
"#;

/// The codes of the replies to a client that sends `first` in its SYN, and `lines` afterwards.
fn hear(lab: &Lab, family: Family, first: &str, lines: &[&str]) -> Vec<String> {
    let script = lab.client.write("fast_open.py", CLIENT.as_bytes()).unwrap();
    let mut command = lab.client.command("/usr/bin/python3");
    command.arg(script).arg(lab.server_address(family).to_string()).arg(first).args(lines);
    let done = lab.client.finish(command, b"", Duration::from_secs(60)).unwrap();
    done.success().unwrap().stdout_text().lines().map(|reply| reply[..3].to_owned()).collect()
}

/// A client names a third host in its SYN. Another one sends only `USER` in it.
fn attack(lab: Lab, configuration: &str) {
    // Both ends put data into their SYN and accept it, without a cookie.
    for host in [&lab.client, &lab.server] {
        host.shell("sysctl -qw net.ipv4.tcp_fastopen=1543").unwrap();
    }
    let gateway = Gateway::on(lab, configuration);
    let server = scripted_server(&gateway.lab.server, &json!({}));
    let lab = &gateway.lab;
    let (towards_client, towards_server) = captures(lab);
    for family in FAMILIES {
        let (third, own) = match family {
            V4 => ("PORT 192,168,150,81,0,22".to_owned(), "PORT 192,168,150,80,14,178".to_owned()),
            V6 => {
                let address = lab.client.address(family);
                ("EPRT |2|fd99::9|2222|".to_owned(), format!("EPRT |2|{address}|3762|"))
            }
        };
        let opened = gateway.count("pinholes_opened");
        let heard = hear(lab, family, &format!("USER lab\\r\\nPASS lab\\r\\n{third}\\r\\n"), &[]);
        assert_eq!(heard, ["220", "331", "230", "500"], "{family:?}");
        // An ordinary session goes on behind it.
        let heard = hear(lab, family, "USER lab\\r\\n", &["PASS lab", &own]);
        assert_eq!(heard, ["220", "331", "230", "200"], "{family:?}");
        assert_eq!(gateway.count("pinholes_opened"), opened + 1, "{family:?}");
        let lines = server.lines();
        assert!(!lines.iter().any(|line| line.ends_with(&third[5..])), "{family:?}: {lines:?}");
    }
    let [sent, forwarded] = [towards_client, towards_server].map(|capture| {
        let seen = capture.finish().unwrap();
        assert_eq!(seen.wrong_checksums().unwrap(), [""; 0]);
        seen.count("tcp.flags.syn == 1 && tcp.len > 0").unwrap()
    });
    assert_eq!((sent, forwarded), (4, 0), "SYNs with data");
}

#[test]
fn a_third_host_named_in_a_syn_is_refused() {
    with_each_back_end(|back_end| attack(lab_for(Topology::Routed, back_end), back_end));
    // The rules of iptables select packets by other means.
    let lab = Lab::new(Topology::Routed).unwrap();
    load_queueing(&lab.gateway, "nft");
    attack(lab, "");
}
