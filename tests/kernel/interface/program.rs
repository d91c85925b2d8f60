//! The fast path's program in the kernel: how it is loaded, taken over and removed, its ring buffer, and its maps.

use std::{
    fs,
    net::SocketAddr,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use aya::{TestRun as _, TestRunOptions, programs::SchedClassifier};
use ftp_alg::kernel::offload::list_interfaces;
use ftp_alg_fastpath::{
    FastPath,
    layout::{Flow, LineRecord, PacketTuple, PinholeKey, side},
    remove_leftovers,
};

use ftp_alg_lab::{has_tcx, wait_for};

pub use crate::fastpath::scene::{CLIENT, SERVER};
use crate::fastpath::{
    frames::{ACK, Frame, PSH, WINDOW},
    scene::{now, routed},
};

use super::{
    attachments::{attached_interfaces, name_set, update_attachments},
    lab::Lab,
};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A lab and a pin directory; `None` if the kernel has no TCX.
pub fn lab_with_pins() -> Option<(Lab, Pins)> {
    has_tcx().then(|| (Lab::new(), Pins::new()))
}

/// Runs `test` in the gateway's namespace, if the kernel has TCX.
pub fn with_pins(test: impl FnOnce(&Lab, &Pins) + Send) {
    if let Some((lab, pins)) = lab_with_pins() {
        lab.on_gateway(|| test(&lab, &pins));
    }
}

/// A pin directory. The rest of it is removed when this is dropped.
pub struct Pins(pub PathBuf);

impl Pins {
    pub fn new() -> Self {
        ftp_alg_lab::mount_bpf();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ftp-alg-test-{}-{count}", std::process::id());
        Self(Path::new("/sys/fs/bpf").join(name))
    }

    /// Whether it has nothing.
    pub fn is_empty(&self) -> bool {
        fs::read_dir(&self.0).map_or(true, |mut found| found.next().is_none())
    }

    pub fn load(&self) -> FastPath {
        let path = FastPath::load(&self.0, list_interfaces).unwrap();
        path.set_heartbeat(Duration::MAX).unwrap();
        path
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn tuples() -> [PacketTuple; 2] {
    [PacketTuple::new(CLIENT, SERVER), PacketTuple::new(SERVER, CLIENT)]
}

/// A connection without NAT, after its login.
pub fn flow() -> Flow {
    let marks = Flow { active_mark: 0x5000_0000, passive_mark: 0x5000_0000, ..routed() };
    Flow { next_seq: [1000, 2000], inspected_mark: 0x3000_0000, ..marks }
}

/// Indices of the interfaces with these names, in the namespace of this thread.
pub fn indices(names: [&str; 2]) -> [u32; 2] {
    names.map(|name| nix::net::if_::if_nametoindex(name).unwrap())
}

/// An Ethernet frame with its checksums.
pub fn frame(from: SocketAddr, to: SocketAddr, seq: u32, ack: u32, line: &[u8]) -> Vec<u8> {
    Frame { seq, ack, payload: line.to_vec(), ..Frame::new(from, to, ACK | PSH) }.to_bytes()
}

/// Runs the program with a frame, as if `lo` had received it.
pub fn receive(path: &FastPath, frame: &[u8]) {
    receive_at(path, 1, frame);
}

/// Runs the program with a frame, as if the interface with this index had received it.
pub fn receive_at(path: &FastPath, interface: u32, frame: &[u8]) {
    // `ifindex` in `struct __sk_buff`.
    let mut context = [0; 192];
    context[40..44].copy_from_slice(&interface.to_ne_bytes());
    let program = SchedClassifier::from_pin(path.directory().join("inspect")).unwrap();
    let mut out = vec![0; frame.len() + 64];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ..TestRunOptions::default()
    };
    program.test_run(options).unwrap();
}

/// The client's line number `count`, of six bytes, and the server's reply.
pub fn exchange(path: &FastPath, count: u32) {
    let (client, server) = (1000 + count * 6, 2000 + count * 6);
    receive(path, &frame(CLIENT, SERVER, client, server, b"NOOP\r\n"));
    receive(path, &frame(SERVER, CLIENT, server, client + 6, b"200 \r\n"));
}

pub fn read(path: &FastPath) -> Vec<LineRecord> {
    let mut lines = Vec::new();
    assert!(path.ring().read(&mut lines));
    lines
}

#[test]
fn lines_stay_in_the_ring_until_they_are_released() {
    with_pins(|_, pins| {
        let path = pins.load();
        path.hand_over(7, tuples(), &flow()).unwrap();
        assert!(!path.ring().has_unread());
        let before = now();
        exchange(&path, 0);
        assert!(path.ring().has_unread());
        let lines = read(&path);
        let texts: Vec<_> = lines.iter().map(|line| (line.number, line.line())).collect();
        assert_eq!(texts, [(1, &b"NOOP\r\n"[..]), (2, b"200 \r\n")]);
        let [noop, ok] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((noop.flow, noop.side, noop.seq, noop.ack), (7, side::CLIENT, 1000, 2000));
        assert_eq!(
            (ok.client(), ok.server(), ok.window, ok.opened_pinhole),
            (CLIENT, SERVER, WINDOW, 0)
        );
        assert!(before <= noop.at_ns && noop.at_ns <= ok.at_ns && ok.at_ns <= now());
        assert_eq!(ok.side, side::SERVER);

        // The next daemon reads them as well, because they were not released. A third one reads nothing.
        drop(path);
        let second = pins.load();
        assert_eq!(read(&second), lines);
        assert!(!second.ring().has_unread());
        second.ring().release(second.ring().position());
        drop(second);
        let third = pins.load();
        assert_eq!(read(&third), []);
        third.remove().unwrap();
    });
}

#[test]
fn a_full_ring_hands_flows_back_until_it_is_released() {
    with_pins(|_, pins| {
        let path = pins.load();
        path.hand_over(1, tuples(), &flow()).unwrap();
        let mut count = 0;
        while path.counters().unwrap().ring_full == 0 {
            exchange(&path, count);
            count += 1;
        }
        let lines = read(&path);
        assert!(
            lines.len() > 4800 && lines.iter().map(|one| one.number).eq(1..=lines.len() as u32)
        );
        let counters = path.counters().unwrap();
        assert_eq!((counters.inspected, counters.handed_back), (lines.len() as u64, 1));
        // A position beyond the last record that was read releases nothing.
        path.ring().release(path.ring().position() + 8);
        assert!(path.ring().unreleased_bytes() > 1_000_000);
        path.ring().release(path.ring().position());
        assert_eq!(path.ring().unreleased_bytes(), 0);
        // After this the positions have wrapped around the ring.
        for turn in 0..3 {
            path.take_back(1, tuples()).unwrap();
            path.hand_over(1, tuples(), &flow()).unwrap();
            (0..2000).for_each(|count| exchange(&path, count));
            let lines = read(&path);
            assert_eq!((turn, lines.len()), (turn, 4000));
            assert!(lines.iter().all(|one| matches!(one.line(), b"NOOP\r\n" | b"200 \r\n")));
            path.ring().release(path.ring().position());
        }
        path.remove().unwrap();
    });
}

#[test]
fn lines_are_not_inspected_after_take_back() {
    with_pins(|_, pins| {
        let path = pins.load();
        path.hand_over(7, tuples(), &flow()).unwrap();
        // Neither the same flow nor another one with the same tuples.
        for flow_id in [7, 8] {
            let refused = path.hand_over(flow_id, tuples(), &flow()).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EEXIST));
        }
        assert_eq!(path.flow_ids().unwrap(), [7]);
        exchange(&path, 0);
        assert_eq!(path.counters().unwrap().inspected, 2);
        path.take_back(7, tuples()).unwrap();
        exchange(&path, 1);
        assert_eq!((path.counters().unwrap().inspected, path.flow_ids().unwrap()), (2, vec![]));
        path.take_back(7, tuples()).unwrap();
        path.hand_over(8, tuples(), &flow()).unwrap();
        path.take_back_all().unwrap();
        path.hand_over(9, tuples(), &flow()).unwrap();
        assert_eq!(path.flow_ids().unwrap(), [9]);
        path.remove().unwrap();
    });
}

#[test]
fn after_a_stop_the_ring_has_all_inspected_lines() {
    let Some((lab, pins)) = lab_with_pins() else { return };
    let path = lab.on_gateway(|| pins.load());
    for round in 1..=50 {
        path.hand_over(round, tuples(), &flow()).unwrap();
        let before = path.counters().unwrap().handed_back;
        let (inspected, late) = std::thread::scope(|scope| {
            // Another processor sends lines while the flow is stopped, or taken back.
            let lines = scope.spawn(|| {
                lab.on_gateway(|| (0..3000).for_each(|count| exchange(&path, count)));
            });
            std::thread::sleep(Duration::from_millis(2 + round % 5));
            match round % 2 {
                0 => path.stop_inspection(round).unwrap(),
                _ => path.take_back(round, tuples()).unwrap(),
            }
            let inspected = read(&path);
            lines.join().unwrap();
            path.take_back(round, tuples()).unwrap();
            (inspected, read(&path))
        });
        assert!(inspected.iter().map(|line| line.number).eq(1..=inspected.len() as u32), "{round}");
        assert_eq!(late, [], "{round}: inspected after {}", inspected.len());
        assert!(path.counters().unwrap().handed_back <= before + 1);
        path.ring().release(path.ring().position());
    }
    lab.on_gateway(|| path.remove().unwrap());
}

#[test]
fn reserved_pinholes_and_barred_ports_are_not_opened() {
    let Some((lab, pins)) = lab_with_pins() else { return };
    let arrival = SocketAddr::new(SERVER.ip(), 4001);
    let pasv = |path: &FastPath, id: u64| {
        path.hand_over(id, tuples(), &flow()).unwrap();
        receive(path, &frame(CLIENT, SERVER, 1000, 2000, b"PASV\r\n"));
        receive(path, &frame(SERVER, CLIENT, 2000, 1006, b"227 x (192,0,2,9,15,161)\r\n"));
        let opened = read(path).iter().any(|line| line.opened_pinhole == 1);
        path.take_back(id, tuples()).unwrap();
        opened
    };
    lab.on_gateway(|| {
        let path = pins.load();
        let key = PinholeKey::new(CLIENT.ip(), arrival);
        assert!(path.reserve_pinhole(&key).unwrap());
        assert!(path.reserve_pinhole(&key).unwrap(), "as by an earlier daemon");
        path.close_pinhole(&key, 1, 2).unwrap();
        assert!(!pasv(&path, 1), "it is reserved");
        path.release_pinhole(&key).unwrap();
        assert!(pasv(&path, 2), "it is released");
        path.release_pinhole(&key).unwrap();
        path.retain_pinholes(|_, pinhole| pinhole.flow != 0).unwrap();
        path.close_pinhole(&key, 2, 1).unwrap();
        assert!(!path.reserve_pinhole(&key).unwrap(), "the pinhole of another line is open");
        path.close_pinhole(&key, 2, 2).unwrap();
        assert!(path.reserve_pinhole(&key).unwrap(), "it is closed");
        path.retain_pinholes(|_, pinhole| pinhole.flow != 0).unwrap();

        path.set_barred_ports(|port| port == 4001).unwrap();
        assert!(!pasv(&path, 3), "the port is barred");
        path.set_barred_ports(|port| port == 4000 || port == 4002).unwrap();
        assert!(pasv(&path, 4), "only its neighbours are barred");
        // The pinhole of a flow of an earlier daemon.
        path.hand_over(4, tuples(), &flow()).unwrap();
        path.take_back_all().unwrap();
        assert!(!path.reserve_pinhole(&key).unwrap(), "a session may use it");
        path.retain_pinholes(|_, pinhole| pinhole.flow != 4).unwrap();
        assert!(path.reserve_pinhole(&key).unwrap());
        path.remove().unwrap();
    });
}

#[test]
fn a_daemon_takes_over_its_version_and_removes_others() {
    with_pins(|lab, pins| {
        let first = pins.load();
        update_attachments(&first);
        first.hand_over(7, tuples(), &flow()).unwrap();
        let version = first.directory().to_owned();
        drop(first);
        assert_eq!(attached_interfaces(lab), name_set(&["lan", "wan"]), "the pins keep it");

        let second = pins.load();
        assert_eq!((second.directory(), second.flow_ids().unwrap()), (&*version, vec![7]));
        lab.gateway_sh("ip link add later type veth peer name later2");
        update_attachments(&second);
        assert_eq!(attached_interfaces(lab), name_set(&["lan", "later", "later2", "wan"]));
        drop(second);

        // The directory gets the name of another version. The incomplete directory of a daemon that was killed while
        // it loaded is removed as well.
        let name = version.file_name().unwrap().to_str().unwrap();
        let other = name.split_once('-').unwrap().0.to_owned() + "-0badf00d";
        fs::rename(&version, pins.0.join(other)).unwrap();
        fs::create_dir(&version).unwrap();
        let third = pins.load();
        assert_eq!((attached_interfaces(lab), third.flow_ids().unwrap()), (name_set(&[]), vec![]));
        assert_eq!(fs::read_dir(&pins.0).unwrap().count(), 1);
        third.remove().unwrap();
        assert!(pins.is_empty());
    });
}

#[test]
fn control_ports_survive_a_takeover() {
    let Some((lab, pins)) = lab_with_pins() else { return };
    let at = |port| SocketAddr::new(SERVER.ip(), port);
    let hand_over = |path: &FastPath, id, inside, outside| {
        let tuples = [PacketTuple::new(CLIENT, at(outside)), PacketTuple::new(at(inside), CLIENT)];
        path.hand_over(id, tuples, &Flow { server_port: inside, ..flow() }).unwrap();
    };
    let exchange = |path: &FastPath, inside, outside| {
        receive(path, &frame(CLIENT, at(outside), 1000, 2000, b"NOOP\r\n"));
        receive(path, &frame(at(inside), CLIENT, 2000, 1006, b"200 \r\n"));
        read(path).len()
    };
    lab.on_gateway(|| {
        let first = pins.load();
        hand_over(&first, 1, 21, 21);
        hand_over(&first, 2, 2121, 65535);
        drop(first);
        let second = pins.load();
        hand_over(&second, 3, 22, 23);
        let ports = [(21, 21), (2121, 65535), (22, 23), (24, 24)];
        assert_eq!(ports.map(|(inside, outside)| exchange(&second, inside, outside)), [2, 2, 2, 0]);
        second.remove().unwrap();
    });
}

#[test]
fn a_directory_in_use_is_neither_taken_over_nor_removed() {
    with_pins(|lab, pins| {
        let path = pins.load();
        update_attachments(&path);
        let error_text = "in use by another ftp-alg";
        let unavailable = FastPath::load(&pins.0, list_interfaces).unwrap_err().to_string();
        assert!(unavailable.ends_with(error_text), "{unavailable}");
        assert_eq!(remove_leftovers(&pins.0, list_interfaces).unwrap_err().to_string(), error_text);
        assert_eq!(attached_interfaces(lab), name_set(&["lan", "wan"]));
        drop(path);
        remove_leftovers(&pins.0, list_interfaces).unwrap();
        assert_eq!(attached_interfaces(lab), name_set(&[]));
        assert!(pins.is_empty());
    });
}

#[test]
fn each_network_namespace_has_its_own_program() {
    need_tcx!();
    let (one, two, pins) = (Lab::new(), Lab::new(), Pins::new());
    let load = |lab: &Lab| {
        lab.on_gateway(|| {
            let path = pins.load();
            update_attachments(&path);
            path
        })
    };
    let (first, second) = (load(&one), load(&two));
    first.hand_over(7, tuples(), &flow()).unwrap();
    second.hand_over(8, tuples(), &flow()).unwrap();
    exchange(&first, 0);
    assert_eq!((read(&first).len(), read(&second).len()), (2, 0));
    one.on_gateway(|| first.remove().unwrap());
    assert_eq!(attached_interfaces(&two), name_set(&["lan", "wan"]));
    assert_eq!(second.flow_ids().unwrap(), [8]);
    drop(first);
    drop((load(&one), second));
    let count_directories = || fs::read_dir(&pins.0).unwrap().count();
    assert_eq!(count_directories(), 2, "both may be taken over");
    drop(one);
    // The kernel removes the interfaces of a deleted namespace some time later.
    wait_for("the removal of its directory", || {
        two.on_gateway(|| drop(pins.load()));
        count_directories() == 1
    });
    two.on_gateway(|| pins.load().remove().unwrap());
    assert!(pins.is_empty());
}

/// Sends a frame to the hardware address `to`.
pub fn send_frame(interface: &str, to: [u8; 6], frame: &[u8]) {
    let mut frame = frame.to_vec();
    frame[..6].copy_from_slice(&to);
    // A bridge forwards no frame without a source address.
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    let index = nix::net::if_::if_nametoindex(interface).unwrap();
    let socket = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, None).unwrap();
    // SAFETY: zeros are a valid address, and the family and the length say what it is.
    let ((), address) = unsafe {
        socket2::SockAddr::try_init(|storage, length| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = libc::AF_PACKET as u16;
            (*link).sll_ifindex = index as i32;
            (*link).sll_halen = 6;
            *length = size_of::<libc::sockaddr_ll>() as u32;
            Ok(())
        })
    }
    .unwrap();
    socket.send_to(&frame, &address).unwrap();
}

#[test]
fn loading_needs_rights_and_a_bpf_file_system() {
    let Some((lab, pins)) = lab_with_pins() else { return };
    let load = |directory: &Path| FastPath::load(directory, list_interfaces);
    lab.on_gateway(|| {
        let outside = tempfile::tempdir().unwrap();
        let unavailable = load(&outside.path().join("pins")).unwrap_err().to_string();
        assert!(unavailable.ends_with("is not in a BPF file system"), "{unavailable}");
        // After an error the program can still be loaded.
        pins.load().remove().unwrap();
    });
    for rights in ["cap_bpf,cap_net_admin", "cap_perfmon,cap_net_admin", "cap_bpf,cap_perfmon"] {
        let text =
            lab.on_gateway(|| with_rights(rights, || load(&pins.0).unwrap_err().to_string()));
        assert!(text.ends_with("CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"), "{rights}: {text}");
        assert!(!text.contains('\n') && text.len() < 400, "{rights}: {text}");
        assert!(pins.is_empty(), "{rights}");
    }
    let all = "cap_bpf,cap_perfmon,cap_net_admin";
    lab.on_gateway(|| with_rights(all, || load(&pins.0).unwrap().remove().unwrap()));
}

#[test]
fn a_program_that_is_being_loaded_has_no_connection_yet() {
    let Some((lab, pins)) = lab_with_pins() else { return };
    let begin = || FastPath::begin_loading(&pins.0, list_interfaces).unwrap();
    lab.on_gateway(|| {
        let path = begin();
        assert!(!path.is_loaded() && !path.was_taken_over());
        path.hand_over(1, tuples(), &flow()).unwrap_err();
        path.update_attachments(Instant::now()).unwrap_err();
        path.finish_loading().unwrap();
        path.set_heartbeat(Duration::MAX).unwrap();
        update_attachments(&path);
        path.hand_over(1, tuples(), &flow()).unwrap();
        exchange(&path, 0);
        assert_eq!(path.counters().unwrap().inspected, 2);
        drop(path);
        let next = begin();
        assert!(next.is_loaded() && next.was_taken_over());
        next.remove().unwrap();
        drop(next);
        // One that is not wanted any more before it is loaded.
        begin().remove().unwrap();
        assert!(pins.is_empty());
    });
}

/// The kernel ends a process that loads the program only when it has verified it, also if the daemon was killed. The next
/// daemon must not find its socket and its locks in use meanwhile.
#[test]
fn the_process_that_loads_the_program_has_no_socket_or_lock_of_the_daemon() {
    with_pins(|_, pins| {
        let _listener = UnixDatagram::unbound().unwrap();
        let path = FastPath::begin_loading(&pins.0, list_interfaces).unwrap();
        let child = copy_of_this_process();
        // It has its channel to the daemon alone.
        wait_for("the end of its sockets and locks", || sockets_and_locks(&child) == [1, 0]);
        path.finish_loading().unwrap();
        path.remove().unwrap();
    });
}

/// The directory in /proc of this process's child that is a copy of it, and has called no other program.
fn copy_of_this_process() -> PathBuf {
    let parent = format!("PPid:\t{}\n", std::process::id());
    let program = |process: &Path| fs::read_link(process.join("exe")).ok();
    let is_copy = |path: &PathBuf| {
        fs::read_to_string(path.join("status")).is_ok_and(|status| status.contains(&parent))
            && program(path) == program(Path::new("/proc/self"))
    };
    fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).find(is_copy).unwrap()
}

/// How many sockets and how many locked files a process has.
fn sockets_and_locks(process: &Path) -> [usize; 2] {
    let (mut sockets, mut locks) = (0, 0);
    for descriptor in fs::read_dir(process.join("fd")).unwrap().flatten() {
        let target = fs::read_link(descriptor.path()).unwrap_or_default();
        let info = process.join("fdinfo").join(descriptor.file_name());
        sockets += usize::from(target.to_string_lossy().starts_with("socket:"));
        locks += usize::from(fs::read_to_string(info).unwrap_or_default().contains("FLOCK"));
    }
    [sockets, locks]
}

/// Runs `work` on this thread with these capabilities and no others. It can be called once in a thread.
fn with_rights<T>(rights: &str, work: impl FnOnce() -> T) -> T {
    let mut state = capctl::CapState::get_current().unwrap();
    let rights = rights.split(',').map(|name| name.parse::<capctl::Cap>().unwrap());
    state.effective = rights.collect();
    state.set_current().unwrap();
    work()
}
