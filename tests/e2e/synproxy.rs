//! SYNPROXY: the kernel answers SYNs itself, and then adjusts the sequence numbers of the whole connection. Each
//! greeting takes a second there, also without `ftp-alg`. A kernel with nfnetlink_cthelper, as Debian's, must not adjust
//! them twice.

use crate::{common::*, health::problems};

const PORT: u16 = 3762;

const RULES: &str = "
table ip raw {
    chain syn {
        type filter hook prerouting priority raw;
        iifname \"lan\" tcp dport 21 tcp flags & (fin|syn|rst|ack) == syn notrack
    }
}
table inet gateway {
    chain forward {
        type filter hook forward priority filter; policy drop;
        iifname \"lan\" tcp dport 21 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm
        ct state established,related accept
        ct mark and 0x40000000 != 0 accept
        iifname \"lan\" tcp dport 21 accept
    }
}
";

/// What SYNPROXY needs: conntrack picks up no connection, and the kernel sends SYN cookies.
const SETTINGS: &str =
    "sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0 net.ipv4.tcp_syncookies=1";

/// How many handshakes SYNPROXY has completed, as each processor counts them.
fn handshakes(lab: &Lab) -> u64 {
    let table = lab.gateway.run("cat", &["/proc/net/stat/synproxy"]).unwrap().stdout_text();
    let column = |line: &str, at| line.split_whitespace().nth(at).unwrap().to_owned();
    let mut lines = table.lines();
    assert_eq!(column(lines.next().unwrap(), 3), "cookie_valid", "{table}");
    lines.map(|line| u64::from_str_radix(&column(line, 3), 16).unwrap()).sum()
}

#[test]
fn transfers_work_behind_synproxy_and_no_problem_is_reported() {
    for state in ["auto", "off"] {
        let lab = lab_behind(FirewallKind::None, Topology::Routed);
        if let Err(error) = lab.gateway.nft(RULES) {
            assert!(error.to_string().contains("synproxy"), "{error}");
            println!("not tried: this kernel has no SYNPROXY (CONFIG_NFT_SYNPROXY): {error}");
            return;
        }
        // The rules have loaded conntrack.
        lab.gateway.shell(SETTINGS).unwrap();
        let configuration =
            format!("queue.fast-path = \"{state}\"\npinhole.backend = \"nftables\"\n");
        let gateway = Gateway::on(lab, &configuration);
        let (lab, daemon) = (&gateway.lab, &gateway.daemon);
        let _server = scripted_server(&lab.server, &json!({"body": "here it is\r\n"}));
        play_sessions(&gateway, PORT, 4, state);
        assert_eq!(handshakes(lab), 3, "{state}");
        assert_eq!(daemon.counter("pinholes_used").unwrap(), 36, "{state}");
        let found = fast_path(daemon);
        assert_eq!(found["state"] == "on", has_tcx() && state == "auto", "{found}");
        for command in ["status", "doctor"] {
            assert_eq!(problems(daemon, command), [""; 0], "{state}: {command}");
        }
        gateway.assert_tidy();
    }
}
