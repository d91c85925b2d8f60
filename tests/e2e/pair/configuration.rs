//! What keepalived, conntrackd, the store and the firewall of a gateway are configured with.

use crate::common::*;

/// Where the files of both gateways are, in the directory of the lab.
const FILES: &str = "files";

/// Has `ftp-alg setup --pair` write the files of both gateways.
pub fn write_files(host: &Host) {
    let arguments = [
        "setup",
        "--pair",
        "--link=sync0",
        "--gw-1=10.99.0.1",
        "--gw-2=10.99.0.2",
        "--inside=lan=192.168.150.1/24,lan=fd00:150::1/64",
        "--outside=wan=198.51.100.1/24,wan=2001:db8:100::1/64",
        "--output",
        FILES,
    ];
    host.try_run(executable(), &arguments).unwrap().success().unwrap();
}

/// Writes a file of `setup` to the gateway's directory `home`, where all is that it names. Returns its path.
pub fn in_home(host: &Host, number: u8, file: &str, home: &Path) -> PathBuf {
    let path = host.directory().join(format!("{FILES}/gw-{number}/etc/{file}"));
    let (mut text, home) = (fs::read_to_string(path).unwrap(), home.display());
    for directory in ["/run/redis-ftp-alg", "/run/lock", "/usr/lib/ftp-alg"] {
        text = text.replace(directory, &home.to_string());
    }
    text = text.replace("/run/conntrackd.ctl", &format!("{home}/conntrackd.ctl"));
    let name = Path::new(file).file_name().unwrap().display();
    host.write(&format!("{number}/{name}"), text.as_bytes()).unwrap()
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
