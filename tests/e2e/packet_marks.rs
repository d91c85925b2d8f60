//! Rules of the operator that set or compare marks, and the marks of the fast path.

use crate::common::*;

const PORT: u16 = 3762;

fn transfers(lab: &Lab) -> Vec<Value> {
    let address = lab.client.address(V4);
    [passive_transfer("PASV"), active_transfer(address, PORT), passive_transfer("EPSV")].concat()
}

fn shell(lab: &Lab, lines: &str) {
    lab.gateway.shell(lines).unwrap();
}

/// Commands that load a rule for packets without a mark, one that marks some packets, or one for an exact ct mark.
const RULES: [&str; 6] = [
    "nft 'table inet own { chain marks { type filter hook prerouting priority mangle; \
     iifname \"lan\" meta mark 0 meta mark set meta mark or 0x2; }; }'",
    "iptables-nft -t mangle -A PREROUTING -m mark ! --mark 0 -j ACCEPT",
    "iptables-legacy -t mangle -A PREROUTING -i lan -m mark --mark 0 -j MARK --set-xmark 2/0xff",
    "ip rule add iif lan fwmark 0/0xffffffff lookup main priority 50",
    "ip -6 rule add iif lan fwmark 0/0xffffffff lookup main priority 60",
    "nft 'table inet own { chain passing { type filter hook forward priority 10; \
     iifname \"lan\" ct mark 0x40000000 accept; }; }'",
];

#[test]
fn a_rule_that_sets_or_compares_whole_marks_keeps_the_fast_path_off() {
    for command in RULES {
        let lab = Lab::new(Topology::Masquerade).unwrap();
        shell(&lab, command);
        let daemon = Daemon::start(&executable(), &lab.gateway, NFTABLES).unwrap();
        // It leaves later if the rules are read late.
        wait_for(command, || fast_path(&daemon)["state"] == "off" && pins(&lab).is_empty());
        let doctor = doctor(&daemon).stdout_text();
        assert!(doctor.contains("the fast path stays off"), "{command}: {doctor}");
        let _server = scripted_server(&lab.server, &json!({"body": "here it is\r\n"}));
        talk(&lab, (login(), transfers(&lab))).ok_in(command);
    }
}

/// Rules that overwrite the mark of an active data connection's first packet, which comes from the server.
const OVERWRITING: [&str; 4] = [
    "nft 'table netdev own { chain marks { type filter hook ingress device wan priority 0; \
     meta mark set 0x2; }; }'",
    "nft 'table inet own { chain marks { type filter hook prerouting priority mangle; \
     iifname \"wan\" meta mark set 0x2; }; }'",
    "nft 'table ip own { chain marks { type filter hook prerouting priority raw; \
     ct mark set 0x2; meta mark set ct mark; }; }'",
    // Of the priority of translation: what is added later comes first.
    "nft 'table ip own { chain marks { type filter hook prerouting priority dstnat; \
     iifname \"wan\" ct state new meta mark set 0x2; }; }'",
];

/// A session has its data connections on the fast path then, and an open pinhole there.
#[test]
fn the_fast_path_leaves_when_a_rule_compares_or_overwrites_marks() {
    // The kernel does not announce changes of iptables-legacy, so they are found later.
    let comparing = [RULES[0], RULES[3], RULES[4]].map(|rule| (Topology::Masquerade, rule));
    let overwriting = OVERWRITING.map(|command| (Topology::Routed, command));
    for (topology, command) in comparing.into_iter().chain(overwriting) {
        let Some(gateway) = fast_path_gateway(topology) else { return };
        let (lab, daemon) = (&gateway.lab, &gateway.daemon);
        let _server = scripted_server(&lab.server, &json!({"body": "here it is\r\n"}));
        let active = || active_transfer(lab.client.address(V4), PORT);
        let mut passive = passive_transfer("PASV");
        passive.insert(2, gate());
        let steps = (login(), active(), passive, active(), transfers(lab));
        let client = until_on_fast_path(&gateway, ("opened", 1), || hold(lab, &steps));
        shell(lab, command);
        wait_for("the end of the fast path", || fast_path(daemon)["state"] == "off");
        let off = fast_path(daemon);
        assert!(off["why"].as_str().unwrap().starts_with("since "), "{command}: {off}");
        assert_ne!(off["opened"], 0, "its counts stay: {off}");
        assert_eq!(daemon.open_pinholes().unwrap().len(), 1, "{command}: {}", daemon.log());
        client.release().ok_in(command);
        gateway.assert_tidy();
    }
}

/// Pins a BPF program at the path in its argument that sets the packet mark of every packet, and lets it pass.
const MARKING_PROGRAM: &str = r#"
import ctypes, os, platform, struct, sys
bpf = ctypes.CDLL(None, use_errno=True).syscall
number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
# r0 = 5; *(u32 *)(r1 + 8) = r0, the field `mark`; r0 = -1 (TCX_NEXT, TC_ACT_UNSPEC); exit
code = struct.pack("<BBhiBBhiBBhiBBhi", 0xb7, 0, 0, 5, 0x63, 1, 8, 0, 0xb7, 0, 0, -1, 0x95, 0, 0, 0)
keep = [ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL"), ctypes.create_string_buffer(sys.argv[1].encode())]
code, license, path = map(ctypes.addressof, keep)
def call(command, fields):
    value = ctypes.create_string_buffer(fields.ljust(128, b"\0"))
    result = bpf(number, command, value, 128)
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result
program = call(5, struct.pack("<IIQQ", 3, 4, code, license)) # BPF_PROG_LOAD
call(6, struct.pack("<QI", path, program)) # BPF_OBJ_PIN
if len(sys.argv) > 2: # BPF_PROG_ATTACH to BPF_TCX_INGRESS of this interface
    call(8, struct.pack("<III", int(sys.argv[2]), program, 46))
"#;

/// Loads [`MARKING_PROGRAM`], and attaches it to TCX at `interface` if there is one. Returns the path of its pin, which
/// is removed when this is dropped.
struct MarkingProgram(PathBuf);

impl MarkingProgram {
    fn load(lab: &Lab, interface: Option<&str>) -> Self {
        let pin = Self(Path::new("/sys/fs/bpf").join(lab.gateway.namespace()));
        let index = interface.map(|name| {
            let line = format!("ip -o link show {name} | cut -d: -f1");
            lab.gateway.shell(&line).unwrap().stdout_text().trim().to_owned()
        });
        let mut arguments = vec!["-c", MARKING_PROGRAM, pin.0.to_str().unwrap()];
        arguments.extend(index.as_deref());
        lab.gateway.run("python3", &arguments).unwrap().success().unwrap();
        pin
    }
}

impl Drop for MarkingProgram {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Commands that add a filter behind the program, and what names it; nothing for those that write no packet mark.
const FILTERS: [(&str, &str); 6] = [
    ("clsact; ingress bpf direct-action object-pinned PIN", "tc filter bpf"),
    (
        "ingress; parent ffff: protocol ip u32 match u32 0 0 action connmark",
        "tc filter u32, action connmark",
    ),
    (
        "ingress_block 7 clsact; block 7 protocol ip flower ip_proto tcp action connmark",
        "tc filter flower, action connmark",
    ),
    ("clsact; egress bpf direct-action object-pinned PIN", ""),
    ("clsact; ingress protocol ip u32 match u32 0 0 action mirred egress mirror dev lo", ""),
    ("clsact; ingress matchall action skbedit priority 3", ""),
];

/// Each is added before the start, and while a session is on the fast path. Its data SYNs arrive at the interface.
#[test]
fn an_interface_with_a_filter_that_writes_marks_has_no_program() {
    if !has_tcx() {
        return;
    }
    for (filter, name) in FILTERS {
        // At the start, all filters are found in one way.
        let both = [true, false];
        for &is_late in telling(if filter == FILTERS[0].0 { &both } else { &both[..1] }, &both) {
            let lab = Lab::new(Topology::Routed).unwrap();
            // So that a SYN is not dropped and retransmitted.
            lab.gateway.nft("add rule inet gateway forward reject with tcp reset").unwrap();
            let pin = MarkingProgram::load(&lab, None);
            let (qdisc, filter) = filter.split_once("; ").unwrap();
            let filter = filter.replace("PIN", pin.0.to_str().unwrap());
            let device = if filter.starts_with("block") { "" } else { "dev wan" };
            let add = format!("tc qdisc add dev wan {qdisc} && tc filter add {device} {filter}");
            let has_it = |lab: &Lab| match lab.gateway.shell(&add) {
                Ok(_) => true,
                Err(error) => {
                    println!("not tried: {add}: {error}");
                    false
                }
            };
            if !is_late && !has_it(&lab) {
                break;
            }
            let gateway = Gateway::on(lab, NFTABLES);
            let (lab, daemon) = (&gateway.lab, &gateway.daemon);
            let _server = scripted_server(&lab.server, &json!({"body": "here it is\r\n"}));
            let steps = (login(), transfers(lab), gate(), transfers(lab), transfers(lab));
            let client = match is_late || name.is_empty() {
                true => until_on_fast_path(&gateway, ("opened", 1), || hold(lab, &steps)),
                false => hold(lab, &steps),
            };
            if is_late && !has_it(lab) {
                break;
            }
            let expected =
                if name.is_empty() { json!([]) } else { json!([format!("wan: {name}")]) };
            wait_for(&add, || {
                let now = fast_path(daemon);
                now["mark_writers"] == expected && (name.is_empty() || now["connections"] == 0)
            });
            client.release().ok_in(format!("{add}, late {is_late}"));
            let has_program =
                fast_path(daemon)["interfaces"].as_array().unwrap().contains(&json!("wan"));
            assert_eq!(has_program, name.is_empty(), "{add}: {}", fast_path(daemon));
            if !name.is_empty() {
                shell(lab, "tc qdisc del dev wan clsact || tc qdisc del dev wan ingress");
                wait_for("the program", || fast_path(daemon)["mark_writers"] == json!([]));
            }
            gateway.assert_tidy();
        }
    }
}

/// It runs after ours, which is then attached again, behind it.
#[test]
fn the_program_is_the_last_one_at_its_interface() {
    let Some(gateway) = fast_path_gateway(Topology::Routed) else { return };
    let (lab, daemon) = (&gateway.lab, &gateway.daemon);
    lab.gateway.nft("add rule inet gateway forward reject with tcp reset").unwrap();
    let _server = scripted_server(&lab.server, &json!({"body": "here it is\r\n"}));
    let steps = (login(), transfers(lab), gate(), transfers(lab), transfers(lab));
    let client = until_on_fast_path(&gateway, ("opened", 1), || hold(lab, &steps));
    let _pin = MarkingProgram::load(lab, Some("wan"));
    wait_for("the connection in the queue", || fast_path(daemon)["connections"] == 0);
    client.release().ok();
    gateway.assert_tidy();
}

/// As a tc filter does at the port of a bridge, or below a VLAN's interface: it runs before the program.
#[test]
fn a_syn_that_has_a_mark_before_the_program_is_admitted() {
    if !has_tcx() {
        return;
    }
    let lab = Lab::new(Topology::Routed).unwrap();
    lab.gateway.nft("add rule inet gateway forward reject with tcp reset").unwrap();
    let _pin = MarkingProgram::load(&lab, Some("wan"));
    let gateway = Gateway::on(lab, NFTABLES);
    let _server = scripted_server(&gateway.lab.server, &json!({"body": "here it is\r\n"}));
    let steps = (login(), transfers(&gateway.lab), transfers(&gateway.lab));
    talk(&gateway.lab, steps).ok_in(fast_path(&gateway.daemon));
    gateway.assert_tidy();
}
