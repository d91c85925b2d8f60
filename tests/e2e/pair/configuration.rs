//! What keepalived, conntrackd, the store and the firewall of a gateway are configured with.

use std::path::Path;

/// The addresses that move: a VRRP instance each, with its number, its interface, and its addresses. The first address of
/// an instance decides the IP version, and for IPv6 it must be a link-local one.
const INSTANCES: [(&str, u8, &str, &str); 4] = [
    ("lan4", 51, "lan", "192.168.150.1/24"),
    ("wan4", 52, "wan", "198.51.100.1/24"),
    ("lan6", 61, "lan", "fe80::51 fd00:150::1/64"),
    ("wan6", 62, "wan", "fe80::52 2001:db8:100::1/64"),
];

/// keepalived, which calls the shipped script. Gateway 1 wins if both start at once. With a real-time priority the kernel
/// kills what takes 10 ms of a processor, unless the limit is higher.
pub fn keepalived(number: u8, notify: &Path) -> String {
    let mut text = format!(
        "global_defs {{
    router_id gw-{number}
    script_user root
    enable_script_security
    vrrp_version 3
    vrrp_rt_priority 10
    vrrp_rlimit_rttime 5000000
}}
vrrp_sync_group gateways {{
    group {{ lan4 wan4 lan6 wan6 }}
    notify \"{}\" root
}}
",
        notify.display()
    );
    for (name, id, interface, addresses) in INSTANCES {
        let addresses = addresses.replace(' ', "\n        ");
        text += &format!(
            "vrrp_instance {name} {{
    state BACKUP
    nopreempt
    interface {interface}
    virtual_router_id {id}
    priority {}
    advert_int 0.1
    garp_master_delay 0
    garp_master_repeat 2
    virtual_ipaddress {{
        {addresses}
    }}
}}
",
            200 - number
        );
    }
    text
}

/// conntrackd, whose files are in `home`.
pub fn conntrackd(number: u8, home: &Path) -> String {
    let (home, other) = (home.display(), 3 - number);
    format!(
        "Sync {{
    Mode FTFW {{
        DisableExternalCache Off
    }}
    UDP {{
        IPv4_address 10.99.0.{number}
        IPv4_Destination_Address 10.99.0.{other}
        Port 3780
        Interface sync0
        Checksum on
    }}
    Options {{
        TCPWindowTracking Off
    }}
}}
General {{
    Systemd off
    HashSize 8192
    HashLimit 65535
    LockFile {home}/conntrackd.lock
    LogFile {home}/conntrackd.log
    UNIX {{
        Path {home}/conntrackd.ctl
    }}
    NetlinkEventsReliable On
    Filter From Userspace {{
        Protocol Accept {{ TCP }}
        State Accept {{ ESTABLISHED FIN_WAIT CLOSE_WAIT LAST_ACK TIME_WAIT CLOSED for TCP }}
        Address Ignore {{
            IPv4_address 127.0.0.1
            IPv4_address 10.99.0.1
            IPv4_address 10.99.0.2
        }}
    }}
}}
"
    )
}

/// The arguments of redis-server, as in docs/howto/two-gateways.md.
pub fn store(number: u8, socket: &Path) -> String {
    format!(
        "--port 6379 --bind 10.99.0.{number} --unixsocket {} --unixsocketperm 770 --protected-mode no --appendonly no \
         --repl-diskless-sync yes --repl-diskless-sync-delay 0 --repl-ping-replica-period 1 --repl-timeout 5 \
         --replicaof 10.99.0.{} 6379",
        socket.display(),
        3 - number
    )
}

/// `ftp-alg`, with the passive ports of the server outside for encrypted sessions.
pub fn daemon(number: u8, socket: &Path, backend: &str) -> String {
    let (socket, other) = (socket.display(), 3 - number);
    format!(
        "implicit-tls-ports = [990]\n\
         [[server]]\naddress = \"198.51.100.10\"\npassive-ports = \"50000-50009\"\n\
         [pinhole]\nbackend = \"{backend}\"\n\
         [pair]\nstore = \"{socket}\"\npeer = \"10.99.0.{other}:6379\"\n"
    )
}

/// Source NAT for clients inside, a published server at 192.168.150.81, and IPv6 without translation. Data connections pass by
/// their mark, or if they are `related`. A packet to the virtual address that comes before the kernel has its connection must
/// not be answered, because the answer would be a reset.
pub fn firewall(backend: &str) -> String {
    let data = match backend {
        "conntrack" => "ct state related accept",
        _ => "ct mark and 0x40000000 != 0 accept",
    };
    format!(
        "table ip nat {{
    chain pre {{
        type nat hook prerouting priority dstnat
        iifname \"wan\" ip daddr 198.51.100.1 tcp dport 21 dnat to 192.168.150.81
    }}
    chain post {{
        type nat hook postrouting priority srcnat
        oifname \"wan\" ip saddr 192.168.150.0/24 snat to 198.51.100.1
    }}
}}
table inet gateway {{
    chain input {{
        type filter hook input priority filter
        iifname \"sync0\" accept
        ct state invalid drop
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop
        ct state invalid drop
        meta l4proto {{ icmp, ipv6-icmp }} accept
        ct state established accept
        {data}
        iifname \"lan\" tcp dport {{ 21, 990 }} accept
        ip daddr 192.168.150.81 tcp dport 21 accept
    }}
}}
"
    )
}
